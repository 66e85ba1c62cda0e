//! Format strings of `bpf_snprintf`, which are checked when the program is loaded.

use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::reg::Reg;

impl Env<'_> {
    /// Checks the call: r3 is a constant string, r5 the size of its arguments of eight bytes each.
    pub fn check_snprintf(&self) -> Check {
        let (text, size) = (self.state.reg(3), self.state.reg(5).num.bits.value);
        if !size.is_multiple_of(8) {
            return invalid!(ConstantString, "the arguments of bpf_snprintf are 64-bit numbers; r5 says {size} bytes");
        }
        let Some(text) = self.constant_text(text) else {
            return invalid!(ConstantString, "the format string in r3 is not known");
        };
        match check(text, size / 8) {
            Ok(()) => Ok(()),
            Err(why) => {
                invalid!(ConstantString, "the format string {:?}: {why}", String::from_utf8_lossy(text))
            }
        }
    }

    /// The string that a pointer to a constant one means.
    fn constant_text(&self, reg: &Reg) -> Option<&[u8]> {
        let data = self.maps.get(reg.what as usize)?.frozen_data()?;
        let at = i64::from(reg.off).wrapping_add(reg.num.as_const()? as i64);
        let text = data.get(usize::try_from(at).ok()?..)?;
        let end = text.iter().position(|b| *b == 0)?;
        text.get(..end)
    }
}

/// Checks a format string that is given `args` arguments.
fn check(text: &[u8], args: u64) -> Result<(), String> {
    let mut used = 0;
    let mut rest = text;
    while let Some((&c, tail)) = rest.split_first() {
        rest = tail;
        if c.is_ascii_control() && !is_space(c) {
            return Err(format!("the control character {c:#04x} cannot be printed"));
        }
        if c != b'%' {
            continue;
        }
        if let [b'%', tail @ ..] = rest {
            rest = tail;
            continue;
        }
        if used >= args {
            return Err(format!("it names more arguments than the {args} that are passed"));
        }
        used += 1;
        rest = conversion(rest)?;
    }
    Ok(())
}

/// Checks what follows a `%`; gives what is left.
fn conversion(text: &[u8]) -> Result<&[u8], String> {
    let skip = |text: &'_ [u8], what: fn(&u8) -> bool| text.iter().take_while(|b| what(b)).count();
    let text = &text[skip(text, |b| b"0+- ".contains(b))..];
    let text = &text[skip(text, u8::is_ascii_digit)..];
    let unknown = || {
        let shown: String = String::from_utf8_lossy(text).chars().take(3).collect();
        Err(format!("%{shown} is no conversion that BPF knows"))
    };
    match text {
        [b'p', rest @ ..] if ends(rest) => Ok(rest),
        [b'p', b'k' | b'u', b's', rest @ ..] | [b's', rest @ ..] => match ends(rest) {
            true => Ok(rest),
            false => Err("%s is followed by a letter or digit".into()),
        },
        [b'p', b'K' | b'x' | b's' | b'S' | b'B', rest @ ..] => Ok(rest),
        [b'p', b'i' | b'I', b'4' | b'6', rest @ ..] => Ok(rest),
        [b'c', rest @ ..] => Ok(rest),
        [b'l', b'l', b'i' | b'd' | b'u' | b'x' | b'X', rest @ ..]
        | [b'l', b'i' | b'd' | b'u' | b'x' | b'X', rest @ ..]
        | [b'i' | b'd' | b'u' | b'x' | b'X', rest @ ..] => Ok(rest),
        _ => unknown(),
    }
}

/// True if a conversion of pointers or strings is over here.
fn ends(text: &[u8]) -> bool {
    text.first().is_none_or(|c| is_space(*c) || c.is_ascii_punctuation())
}

/// What C calls white space.
fn is_space(c: u8) -> bool {
    matches!(c, b' ' | 9..=13)
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn conversions() {
        for good in ["%d", "%llx", "%5c", "%-08lu", "%p.", "%pks ", "%pI4", "%pi6", "%pB", "%s", "%s\n", "%px%%"] {
            assert_eq!(check(good.as_bytes(), 1), Ok(()), "{good}");
        }
        for bad in ["%", "%5", "%n", "%lllx", "%pI5", "%pq", "%sx", "%puse", "%f", "%lc", "\x01", "%d%d"] {
            assert!(check(bad.as_bytes(), 1).is_err(), "{bad:?}");
        }
        assert_eq!(check("→ %d".as_bytes(), 1), Ok(()));
        assert_eq!(check(b"100%%", 0), Ok(()));
    }
}
