//! Where free elements may be: a tree of bits.
//!
//! The lowest level has a bit per element, each level above a bit per word of the one below, the highest is one word.
//! A bit that is set says that there *may* be something free below it. What is free, an element's owner word alone says:
//! taking an element is one compare-and-swap there. So a bit too many costs a look, and whoever is not sure that a bit is
//! set may set it again. Who empties a word takes the hint to it back, then looks at the word once more.

use crate::header::View;
use crate::pool::{Empty, Record};
use crate::sync::{AtomicU64, Ordering};

/// Levels that the largest map needs.
const LEVELS: usize = 6;

/// A level of the tree.
#[derive(Clone, Copy, Default)]
struct Level {
    /// Offset of its first word.
    off: u64,
    /// Number of its words.
    words: u32,
}

/// The levels for a number of elements whose tree starts at `off`, the lowest first, and how many there are.
fn levels(mut off: u64, elems: u32) -> ([Level; LEVELS], usize) {
    let (mut all, mut count, mut bits) = ([Level::default(); LEVELS], 0, elems);
    for level in &mut all {
        *level = Level { off, words: bits.div_ceil(64) };
        count += 1;
        if level.words <= 1 {
            break;
        }
        off += u64::from(level.words) * 8;
        bits = level.words;
    }
    (all, count)
}

/// Bytes of the tree for so many elements.
#[cfg(feature = "control")]
pub(crate) fn size(elems: u32) -> u64 {
    let (all, count) = levels(0, elems);
    all.iter().take(count).map(|level| u64::from(level.words) * 8).sum()
}

/// Where a slot begins to look in a word, so that slots do not take elements side by side: these share a cache line.
#[inline]
pub(crate) fn turn(slot: u32) -> u32 {
    slot.wrapping_mul(0x9e37_79b9) >> 26
}

/// The number of the first bit that is set, from bit `turn` on and around. There is one.
#[inline]
pub(crate) fn first_from(bits: u64, turn: u32) -> u32 {
    bits.rotate_right(turn).trailing_zeros().wrapping_add(turn) & 63
}

impl<'a> View<'a> {
    fn word(self, level: Level, n: u32) -> Option<&'a AtomicU64> {
        if n >= level.words {
            return None;
        }
        // SAFETY: the level has that many aligned words.
        Some(unsafe { AtomicU64::from_ptr(self.at(level.off + u64::from(n) * 8).cast()) })
    }

    /// A word of the lowest level.
    pub(crate) fn hints(self, n: u32) -> Option<&'a AtomicU64> {
        self.word(Level { off: self.h.bits_off, words: self.h.elems.div_ceil(64) }, n)
    }

    /// Sets the bits that lead to an element.
    pub(crate) fn hint(self, idx: u32) {
        let (levels, count) = levels(self.h.bits_off, self.h.elems);
        let mut at = idx;
        for (n, level) in levels.iter().take(count).enumerate() {
            let Some(word) = self.word(*level, at >> 6) else { return };
            let bit = 1u64 << (at & 63);
            // The lowest is written in any case: whoever clears it then sees the owner word that was written before, and
            // whoever takes back a hint that is seen here sees the word below.
            if n == 0 || word.load(Ordering::SeqCst) & bit == 0 {
                word.fetch_or(bit, Ordering::SeqCst);
            }
            at >>= 6;
        }
    }

    /// A word of the lowest level with a bit set. `record` is that of the slot that looks, `turn` where it begins, and `tries`
    /// how often it may.
    pub(crate) fn find_hint(self, record: &Record, turn: u32, tries: &mut u32) -> Result<u32, Empty> {
        let (levels, count) = levels(self.h.bits_off, self.h.elems);
        'look: while let Some(left) = tries.checked_sub(1) {
            *tries = left;
            let (mut at, mut above) = (0u32, None);
            for (n, level) in levels.iter().take(count).enumerate().rev() {
                let word = self.word(*level, at);
                match (word.map_or(0, |word| word.load(Ordering::Acquire)), above) {
                    (0, None) => return Err(Empty::Full),
                    (0, Some(above)) => {
                        self.take_back(record, above, word, at, n as u32);
                        continue 'look;
                    }
                    _ if n == 0 => return Ok(at),
                    (bits, _) => {
                        above = word;
                        at = (at << 6) | first_from(bits, turn);
                    }
                }
            }
        }
        Err(Empty::Busy)
    }

    /// Takes back the hint in `above` to an empty word, number `at` of level `n`.
    fn take_back(self, record: &Record, above: &AtomicU64, word: Option<&AtomicU64>, at: u32, n: u32) {
        let first = u64::from(at).wrapping_shl(6 * (n + 1)) as u32;
        // If this slot ends here, its recovery sets the hints to this element, and so this one.
        record.journal.store(first.wrapping_add(1), Ordering::Release);
        above.fetch_and(!(1u64 << (at & 63)), Ordering::SeqCst);
        if word.is_some_and(|word| word.load(Ordering::SeqCst) != 0) {
            self.hint(first);
        }
        record.journal.store(0, Ordering::Release);
    }
}

#[cfg(all(test, feature = "control"))]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (elems, words) in [(1, 1), (64, 1), (65, 2 + 1), (4096, 64 + 1), (4097, 65 + 2 + 1)] {
            assert_eq!(size(elems), words * 8, "{elems}");
        }
        let (all, count) = levels(0, u32::MAX);
        assert_eq!((all[count - 1].words, count), (1, LEVELS));
    }
}
