//! Strings that never change, and the format strings of `bpf_snprintf` among them.

use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType;

use crate::env::Env;
use crate::fail::{Check, Failure, denied, invalid};
use crate::reason::Reason;
use crate::reg::Reg;

impl Env<'_> {
    /// A terminated string that never changes.
    pub fn check_const_str(&self, function: &str, r: u8, reg: &Reg) -> Check {
        let Some(map) = self.maps.get(reg.what as usize) else {
            return invalid!(UnknownMap, "r{r} points into a map that does not exist");
        };
        if !map.is_constant() {
            return denied!(
                ConstantString,
                "r{r} of {function} is a constant string; map {} is not read-only",
                map.def.name
            );
        }
        let Some(var) = reg.num.as_const() else {
            return denied!(ConstantString, "r{r} of {function} is a constant string, not at a variable offset");
        };
        if !matches!(map.def.map_type, MapType::Array | MapType::Arena) {
            return denied!(
                ConstantString,
                "r{r} of {function} is a constant string; map {} has no place in memory",
                map.def.name
            );
        }
        let rest = i64::from(map.def.value_size) - i64::from(reg.off);
        self.check_map_value(r, reg, reg.off.into(), rest.max(0) as u64, false, false)?;
        let Some(data) = map.frozen_data() else {
            return Err(Failure::new(
                Errno::ENOTSUPP,
                Reason::ConstantString,
                format!("r{r} of {function} is a constant string; map {} has several elements", map.def.name),
            ));
        };
        let at = i64::from(reg.off).wrapping_add(var as i64);
        let text = usize::try_from(at).ok().and_then(|at| data.get(at..));
        match text {
            Some(t) if t.contains(&0) => Ok(()),
            _ => invalid!(ConstantString, "the string in r{r} of {function} is not terminated"),
        }
    }

    /// Checks the call: r3 is a constant string, r5 the size of its arguments of eight bytes each.
    pub fn check_snprintf(&self) -> Check {
        let (text, size) = (self.state.reg(3), self.state.reg(5).num.bits.value);
        if !size.is_multiple_of(8) {
            return invalid!(ConstantString, "the arguments of bpf_snprintf are 64-bit numbers; r5 says {size} bytes");
        }
        let text = self.constant_text(text);
        let Some(text) = text.as_deref() else {
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
    fn constant_text(&self, reg: &Reg) -> Option<Vec<u8>> {
        let data = self.maps.get(reg.what as usize)?.frozen_data()?;
        let at = i64::from(reg.off).wrapping_add(reg.num.as_const()? as i64);
        let text = data.get(usize::try_from(at).ok()?..)?;
        let end = text.iter().position(|b| *b == 0)?;
        text.get(..end).map(<[u8]>::to_vec)
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
