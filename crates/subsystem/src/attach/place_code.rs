//! Room for code near a module, and the code of one site in it.

use std::ops::Range;

use super::procfs::Mapping;

const PAGE: u64 = 4096;
/// How far a code area may be from what it refers to: 2 GiB less the sizes that nobody has checked.
const REACH: u64 = (1 << 31) - (64 << 20);
/// Lowest address that user programs may map on all systems.
const LOWEST: u64 = 0x1_0000;
/// Kept free beside what it adjoins.
const MARGIN: u64 = 64 << 10;
/// Kept free above the heap, which grows upwards.
const HEAP_ROOM: u64 = 1 << 30;

/// A free range of `size` bytes from which all of `near` can be reached by a 32-bit displacement. The nearest one below is
/// preferred: what lies above an executable is its heap, which wants to grow.
pub fn find(maps: &[Mapping], taken: &[Range<u64>], near: &Range<u64>, size: u64) -> Option<u64> {
    let size = size.next_multiple_of(PAGE);
    let lowest = near.end.saturating_sub(REACH).max(LOWEST).next_multiple_of(PAGE);
    let highest = near.start.saturating_add(REACH).checked_sub(size)? & !(PAGE - 1);
    let mut used: Vec<(Range<u64>, &str)> = maps.iter().map(|m| (m.range.clone(), m.name.as_str())).collect();
    used.extend(taken.iter().map(|r| (r.clone(), "")));
    used.sort_by_key(|(range, _)| range.start);
    let mut best: Option<(u64, u64)> = None;
    let mut gap_start = LOWEST;
    let mut below = "";
    for (range, name) in used.iter().map(|(r, n)| (r.clone(), *n)).chain([(1 << 47..u64::MAX, "")]) {
        let (start, end) = (gap_start, range.start);
        gap_start = gap_start.max(range.end);
        let under = std::mem::replace(&mut below, name);
        // The stack grows downwards into the gap below it.
        if name == "[stack]" {
            continue;
        }
        let start = if under == "[heap]" { start.saturating_add(HEAP_ROOM) } else { start };
        let roomy = end.saturating_sub(start) > size + 4 * MARGIN;
        let (start, end) = if roomy { (start + MARGIN, end - MARGIN) } else { (start, end) };
        let Some(top) = end.checked_sub(size) else { continue };
        let (low, high) = (start.next_multiple_of(PAGE).max(lowest), (top & !(PAGE - 1)).min(highest));
        if low > high {
            continue;
        }
        // Within a gap, next to the module: at the top of a gap below it, at the bottom of one above.
        let (at, distance) = match high < near.start {
            true => (high, near.start - high),
            false => (low, (low - near.start).saturating_mul(2)),
        };
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, at));
        }
    }
    best.map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(start: u64, end: u64, name: &str) -> Mapping {
        Mapping { range: start..end, perms: [true; 4], offset: 0, inode: 0, name: name.into() }
    }

    #[test]
    fn gaps() {
        let exe = 0x5555_5555_4000..0x5555_5556_0000;
        let maps = [map(exe.start, exe.end, "/bin/x"), map(exe.end + 0x1000, exe.end + 0x9000, "[heap]")];
        let at = find(&maps, &[], &exe, 5000).unwrap();
        assert!(at + 8192 <= exe.start && exe.start - at < 1 << 20, "{at:#x}");
        let taken = vec![at..at + 8192; 1];
        let again = find(&maps, &taken, &exe, 5000).unwrap();
        assert!(again + 8192 <= at || again >= at + 8192);

        // A fixed executable has little below it, yet enough.
        let fixed = 0x40_0000..0x41_0000;
        let at = find(&[map(fixed.start, fixed.end, "/bin/y")], &[], &fixed, 4096).unwrap();
        assert!((LOWEST..0x40_0000).contains(&at));

        // Nothing free below, the stack above.
        let low = 0x1_0000..0x7f00_0000;
        let maps = [map(low.start, low.end, "/bin/z"), map(0x7f10_0000, 0x7f20_0000, "[stack]")];
        let at = find(&maps, &[], &(0x7eff_0000..0x7f00_0000), 4096).unwrap();
        assert!(at >= 0x7f20_0000);

        // No room at all within reach.
        let all = [map(LOWEST, 1 << 47, "big")];
        assert_eq!(find(&all, &[], &(0x5000_0000..0x5001_0000), 4096), None);
    }
}
