//! Histograms of powers of two, drawn with characters.

use skep::ebpf::btf::value::Value;

/// Widest bar, in characters.
const BAR: usize = 40;

/// A struct with a member `slots`.
pub struct Histogram {
    /// The counts in `slots`.
    pub counts: Vec<u64>,
    /// The other members.
    pub others: Value,
}

/// The histogram that a value is, if it is one.
pub fn histogram(value: &Value) -> Option<Histogram> {
    let Value::Struct(members) = value else { return None };
    let (_, found) = members.iter().find(|(name, _)| name == "slots")?;
    let Value::Array(counts) = found else { return None };
    let counts = counts.iter().map(crate::value::number).collect::<Option<Vec<_>>>()?;
    let others = members.iter().filter(|(name, _)| name != "slots").cloned().collect();
    Some(Histogram { counts, others: Value::Struct(others) })
}

/// Draws counts; slot `i` stands for values from 2^i up to 2^(i+1)−1, slot 0 for 0 and 1. Empty slots at both ends are
/// left out.
pub fn draw(counts: &[u64]) -> Vec<String> {
    let used = |&(_, &n): &(usize, &u64)| n > 0;
    let Some((first, _)) = counts.iter().enumerate().find(used) else { return vec!["(empty)".into()] };
    let last = counts.iter().enumerate().rfind(used).map_or(first, |(i, _)| i);
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let mut lines = vec![format!("{:>20} .. {:<20} : {:<10} distribution", "from", "to", "count")];
    for (i, &n) in counts.iter().enumerate().take(last + 1).skip(first) {
        let low = if i == 0 { 0 } else { 1u128 << i };
        let high = (1u128 << (i + 1)) - 1;
        // Rounded up, so that what is there is seen.
        let stars = (u128::from(n) * BAR as u128).div_ceil(u128::from(most)) as usize;
        lines.push(format!("{low:>20} .. {high:<20} : {n:<10} |{:<BAR$}|", "*".repeat(stars)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_between_the_used_slots() {
        let lines = draw(&[0, 0, 1, 40, 0, 2, 0]);
        assert_eq!(lines.len(), 5);
        assert!(lines[1].contains("4 .. 7 ") && lines[1].contains(": 1 "));
        assert!(lines[2].ends_with(&format!("|{}|", "*".repeat(BAR))));
        assert!(lines[4].contains("32 .. 63 "));
        assert_eq!(draw(&[0; 4]), ["(empty)"]);
        assert_eq!(draw(&[]), ["(empty)"]);
        assert_eq!(draw(&[u64::MAX; 64]).len(), 65);
    }

    #[test]
    fn found_by_name() {
        let members = vec![
            ("calls".into(), Value::Uint(3)),
            ("slots".into(), Value::Array(vec![Value::Uint(1), Value::Uint(2)])),
        ];
        let found = histogram(&Value::Struct(members)).unwrap();
        assert_eq!(found.counts, [1, 2]);
        assert_eq!(found.others, Value::Struct(vec![("calls".into(), Value::Uint(3))]));
        assert!(histogram(&Value::Struct(vec![("slots".into(), Value::Uint(1))])).is_none());
        assert!(histogram(&Value::Uint(1)).is_none());
    }
}
