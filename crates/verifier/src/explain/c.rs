//! Just enough C to name things: the expression at a column, what is assigned, an index, the arguments of a call.

fn is_ident(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_'
}

/// The end of the bracket that opens at `at`, itself included.
fn close(text: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (n, c) in text.iter().enumerate().skip(at) {
        match c {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
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

/// The operand that begins at `start`: a name with its members, elements and calls.
fn operand(line: &str, start: usize) -> Option<&str> {
    let text = line.as_bytes();
    let mut at = start;
    while text.get(at).is_some_and(|c| is_ident(*c)) {
        at += 1;
    }
    if at == start {
        return None;
    }
    loop {
        let rest = text.get(at..)?;
        let skip = if rest.starts_with(b"->") {
            2
        } else if rest.starts_with(b".") {
            1
        } else if rest.starts_with(b"[") || rest.starts_with(b"(") {
            at = close(text, at)?;
            continue;
        } else {
            break;
        };
        let member = rest.get(skip..)?.iter().take_while(|c| is_ident(**c)).count();
        if member == 0 {
            break;
        }
        at += skip + member;
    }
    line.get(start..at)
}

/// Position of a column (from 1).
fn position(line: &str, column: u32) -> Option<usize> {
    let at = (column as usize).checked_sub(1)?;
    (at < line.len() && line.is_char_boundary(at)).then_some(at)
}

/// What stands at the column, from its name on: of `h->x[i]` all, also if the column is that of `->`.
pub(super) fn expression(line: &str, column: u32) -> Option<&str> {
    let text = line.as_bytes();
    let mut at = position(line, column)?;
    while at > 0 && (is_ident(*text.get(at)?) || matches!(text.get(at), Some(b'-' | b'.' | b'['))) && {
        let before = text[at - 1];
        is_ident(before)
            || matches!(before, b'.')
            || (before == b'>' && at > 1 && text[at - 2] == b'-')
            || matches!(text[at], b'-' | b'.' | b'[')
    } {
        at -= if text[at - 1] == b'>' { 2 } else { 1 };
    }
    while text.get(at).is_some_and(|c| matches!(c, b'*' | b'(' | b'&' | b'!' | b' ')) {
        at += 1;
    }
    operand(line, at).filter(|e| !e.ends_with(')') && !is_keyword(e))
}

fn is_keyword(word: &str) -> bool {
    matches!(
        word,
        "return"
            | "if"
            | "else"
            | "for"
            | "while"
            | "do"
            | "switch"
            | "case"
            | "goto"
            | "sizeof"
            | "struct"
            | "const"
            | "int"
            | "long"
            | "char"
            | "void"
            | "unsigned"
            | "asm"
            | "__asm__"
            | "volatile"
            | "static"
            | "NULL"
    ) || word.bytes().next().is_none_or(|c| c.is_ascii_digit())
}

/// The variable that the expression at the column is assigned to.
pub(super) fn assigned(line: &str, column: u32) -> Option<&str> {
    let until = position(line, column).unwrap_or(line.len());
    let named = |text: &str| {
        let at = text.rfind('=').filter(|at| line.as_bytes().get(at + 1) != Some(&b'='))?;
        let text = text.get(..at)?;
        if text.ends_with(['=', '!', '<', '>', '+', '-', '|', '&']) {
            return None;
        }
        let text = text.trim_end();
        let start =
            text.bytes().rev().take_while(|c| is_ident(*c) || matches!(c, b'.' | b'>' | b'-' | b'[' | b']')).count();
        Some(text.len() - start..text.len()).filter(|r| !r.is_empty())
    };
    let range = named(line.get(..until)?).or_else(|| named(line))?;
    let start = range.start;
    line.get(range).filter(|n| !is_keyword(n) && (start == 0 || !n.starts_with(['[', '.', '>', '-'])))
}

/// The index of the last element access of an expression: `i` of `p->a[i]`.
pub(super) fn index(expression: &str) -> Option<&str> {
    let open = expression.find('[')?;
    let end = close(expression.as_bytes(), open)?;
    let inner = expression.get(open + 1..end - 1)?.trim();
    let after = expression.get(end..)?;
    if after.contains('[') {
        return index(after);
    }
    Some(inner).filter(|i| !i.is_empty())
}

/// The first element access in a line: the whole expression.
pub(super) fn element(line: &str) -> Option<&str> {
    let open = line.find('[')?;
    let before = line.get(..open)?.as_bytes();
    let mut at = open;
    while at > 0 && (is_ident(before[at - 1]) || matches!(before[at - 1], b'.' | b'>' | b'-')) {
        at -= 1;
    }
    operand(line, at).filter(|e| e.contains('[') && !is_keyword(e))
}

/// The argument `n` (from 0) of the first call of a function whose name ends in `name`.
pub(super) fn argument<'l>(line: &'l str, name: &str, n: usize) -> Option<&'l str> {
    let at = line.find(&format!("{name}("))?;
    let open = at + name.len();
    let end = close(line.as_bytes(), open)?;
    let inner = line.get(open + 1..end - 1)?;
    let mut depth = 0usize;
    let mut parts = Vec::new();
    let mut start = 0;
    for (k, c) in inner.bytes().enumerate() {
        match c {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(inner.get(start..k)?.trim());
                start = k + 1;
            }
            _ => {}
        }
    }
    parts.push(inner.get(start..)?.trim());
    parts.get(n).copied().filter(|p| !p.is_empty())
}

/// An expression as an operand of a comparison: in brackets if it has operators of its own.
pub(super) fn operand_of(expression: &str) -> String {
    let bare = expression.replace("->", ".");
    let simple = bare.bytes().all(|c| is_ident(c) || matches!(c, b'.' | b'[' | b']'));
    let bracketed = expression.starts_with('(') && close(expression.as_bytes(), 0) == Some(expression.len());
    if simple || bracketed { expression.into() } else { format!("({expression})") }
}

/// True for text that can stand in a condition as it is: no side effects.
pub(super) fn is_plain(text: &str) -> bool {
    !text.contains(['(', ')', '=', '+', '"', ',']) || text.starts_with('(') && !text.contains(['=', '"', ','])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(line: &str, at: &str) -> u32 {
        line.find(at).unwrap() as u32 + 1
    }

    #[test]
    fn expressions() {
        for (line, at, found) in [
            ("\treturn data[0];", "data", Some("data[0]")),
            ("\tif (iph->ttl == 1)", "iph", Some("iph->ttl")),
            ("\tif (iph->ttl == 1)", "ttl", Some("iph->ttl")),
            ("\tx = a.b[i + 1].c;", "c;", None),
            ("\treturn *v;", "*v", Some("v")),
            ("\treturn f(x);", "f(x", None),
            ("\treturn 0;", "return", None),
        ] {
            let got = expression(line, column(line, at));
            if found.is_some() {
                assert_eq!(got, found, "{line}");
            }
        }
        assert_eq!(expression("x", 0), None);
        assert_eq!(expression("x", 9), None);
        assert_eq!(expression("é", 2), None);
    }

    #[test]
    fn assignments() {
        let line = "\tu64 now = ktime_ns(), *start = map_lookup(&started, &c), ns;";
        assert_eq!(assigned(line, column(line, "map_lookup")), Some("start"));
        assert_eq!(assigned(line, column(line, "ktime_ns")), Some("now"));
        assert_eq!(assigned("\te->sk = bpf_sk_lookup_tcp(ctx, &t, 4, 0, 0);", 9), Some("e->sk"));
        assert_eq!(assigned("\treturn x == y;", 12), None);
    }

    #[test]
    fn elements_and_arguments() {
        assert_eq!(index("p->a[i]"), Some("i"));
        assert_eq!(index("m[a][b + 1]"), Some("b + 1"));
        assert_eq!(index("x"), None);
        assert_eq!(element("\treturn v->slots[i & 7] + 1;"), Some("v->slots[i & 7]"));
        let line = "\tn = bpf_probe_read_user(buf, min(a, b), (void *)p);";
        assert_eq!(argument(line, "probe_read_user", 1), Some("min(a, b)"));
        assert_eq!(argument(line, "probe_read_user", 2), Some("(void *)p"));
        assert_eq!(argument(line, "probe_read_user", 3), None);
        assert_eq!(argument("f((", "f", 0), None);
        assert_eq!(operand_of("p->a[i]"), "p->a[i]");
        assert_eq!(operand_of("skb->mark & 31"), "(skb->mark & 31)");
        assert_eq!(operand_of("(a | b)"), "(a | b)");
    }
}
