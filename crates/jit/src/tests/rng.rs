//! A small generator (xorshift), so that failures repeat.

pub(super) struct Rng(u64);

impl Rng {
    /// A generator whose numbers follow from the seed.
    pub(super) fn new(seed: u64) -> Rng {
        Rng((seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 8) as usize % n
    }

    /// True once in so many times.
    pub(super) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A number as programs have them.
    pub(super) fn imm(&mut self) -> i32 {
        match self.below(5) {
            0 => self.below(8) as i32,
            1 => -(self.below(8) as i32),
            2 => 1 << self.below(31),
            3 => self.one(&[0xff, 0xffff, i32::MAX, i32::MIN, 127, 128, -128, -129]),
            _ => self.next() as i32,
        }
    }

    /// A register's value.
    pub(super) fn word(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(16) as u64,
            1 => u64::from(self.next() as u32),
            _ => self.next(),
        }
    }
}
