//! Numbers as the kernel reads them: decimal, hexadecimal after `0x`, octal after `0`.

/// A number without a sign.
pub fn unsigned(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    let plain = digits.bytes().next().is_some_and(|b| b.is_ascii_hexdigit());
    if plain { u64::from_str_radix(digits, radix).ok() } else { None }
}

/// A number that may have a minus.
pub fn signed(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(rest) => 0i64.checked_sub_unsigned(unsigned(rest)?),
        None => i64::try_from(unsigned(text)?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, value) in [("0", Some(0)), ("010", Some(8)), ("0x1f", Some(31)), ("12", Some(12))] {
            assert_eq!(unsigned(text), value, "{text}");
        }
        for text in ["", "0x", "09", "+1", "1 ", "x", "99999999999999999999", "-1"] {
            assert_eq!(unsigned(text), None, "{text}");
        }
        assert_eq!((signed("-8"), signed("0x10"), signed("--1")), (Some(-8), Some(16), None));
    }
}
