//! Which part of a C line an instruction was compiled from.

use std::ops::Range;

/// The expression that begins at a column (from 1, 0 if unknown), as far as the line alone shows it; else the statement.
pub fn expression(text: &str, column: u32) -> Range<usize> {
    let begin = text.len() - text.trim_start().len();
    let end = text.trim_end().trim_end_matches([';', '{']).trim_end().len();
    let statement = begin..end.max(begin);
    let Some(start) = (column as usize).checked_sub(1).filter(|s| (begin + 1..end).contains(s)) else {
        return statement;
    };
    let Some(rest) = text.get(start..end) else { return statement };
    match operand(rest) {
        0 => statement,
        length => start..start + length,
    }
}

/// Length of the operand that a text begins with: prefix operators, a name or a group, what is called, indexed or
/// selected of it.
fn operand(text: &str) -> usize {
    let bytes = text.as_bytes();
    let at = |n: usize| bytes.get(n).copied().unwrap_or(0);
    let mut n = 0;
    while matches!(at(n), b'!' | b'~') || matches!(at(n), b'*' | b'&') && is_word(at(n + 1)) {
        n += 1;
    }
    let name = n;
    while is_word(at(n)) {
        n += 1;
    }
    if matches!(&text[name..n], "return" | "if" | "while" | "for" | "switch" | "do" | "goto" | "else") {
        return text.len();
    }
    // A group, which may be the type of a cast.
    if n == name && at(n) != b'(' {
        return 0;
    }
    loop {
        match at(n) {
            b'(' | b'[' => match group(bytes.get(n..).unwrap_or_default()) {
                Some(length) => n += length,
                None => return text.len(),
            },
            b'.' if is_word(at(n + 1)) => n += 1,
            b'-' if at(n + 1) == b'>' && is_word(at(n + 2)) => n += 2,
            c if is_word(c) => n += 1,
            _ => return n,
        }
    }
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_'
}

/// Length of a group in brackets, if it ends here.
fn group(bytes: &[u8]) -> Option<usize> {
    let mut depth = 0usize;
    let mut quote = None;
    let mut escaped = false;
    for (n, &c) in bytes.iter().enumerate() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(q), _) => quote = Some(q).filter(|q| *q != c),
            (None, b'"' | b'\'') => quote = Some(c),
            (None, b'(' | b'[') => depth += 1,
            (None, b')' | b']') => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(n + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_found_by_their_column() {
        for (text, column, marked) in [
            ("\treturn data[0];", 2, "return data[0]"),
            ("\treturn data[0];", 9, "data[0]"),
            ("  x = f(a, \")\\\"\")[2].y->z + 1;", 7, "f(a, \")\\\"\")[2].y->z"),
            ("  if (p->len > *q) {", 7, "p->len"),
            ("  if (p->len > *q) {", 16, "*q"),
            ("  if (p->len > *q) {", 14, "if (p->len > *q)"),
            ("  if (p->len > *q) {", 3, "if (p->len > *q)"),
            ("  a = (int)b;", 7, "(int)b"),
            ("  a = f(b,", 7, "f(b,"),
            ("  a = b;", 0, "a = b"),
            ("  a = b;", 99, "a = b"),
            ("  ä = b;", 4, "ä = b"),
            ("  ", 1, ""),
            ("", 1, ""),
            (";", 1, ""),
        ] {
            assert_eq!(&text[expression(text, column)], marked, "{text:?} {column}");
        }
    }
}
