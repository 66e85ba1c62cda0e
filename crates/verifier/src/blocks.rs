//! Basic blocks: runs of instructions that are entered at the first and left at the last one only.
//!
//! Every point where paths meet begins a block, so a saved state stands at the first or at the last instruction of one.

use skep_ebpf::insn::Insn;

use crate::cfg::{Cfg, is_jump, successors};

/// A block's number, in order of instructions.
pub(crate) type BlockId = u32;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub start: u32,
    /// The instruction behind the last.
    pub end: u32,
    /// Blocks that may follow inside the function.
    pub next: [Option<BlockId>; 2],
}

/// The blocks of a program.
#[derive(Debug)]
pub(crate) struct Blocks {
    all: Vec<Block>,
    /// The block of each instruction.
    of: Vec<BlockId>,
    /// Where the predecessors of each block begin in `before`, and where the last ones end.
    first_before: Vec<u32>,
    before: Vec<BlockId>,
}

impl Blocks {
    pub fn new(insns: &[Insn], cfg: &Cfg) -> Blocks {
        let mut begins: Vec<bool> = cfg.points.iter().map(|p| p.prune || p.jump).collect();
        begins.iter_mut().take(1).for_each(|b| *b = true);
        for f in &cfg.functions {
            begins[f.start] = true;
        }
        for (at, i) in insns.iter().enumerate() {
            if (is_jump(*i) || i.is_exit())
                && let Some(b) = begins.get_mut(at + 1)
            {
                *b = true;
            }
        }
        let mut all: Vec<Block> = Vec::new();
        let mut of = Vec::with_capacity(insns.len());
        for (at, begins) in begins.iter().enumerate() {
            if *begins {
                all.push(Block { start: at as u32, end: at as u32, next: [None; 2] });
            }
            if let Some(last) = all.last_mut() {
                last.end = at as u32 + 1;
            }
            of.push((all.len() as u32).saturating_sub(1));
        }
        let mut first_before = vec![0u32; all.len() + 2];
        for block in &mut all {
            let mut last = block.end as usize - 1;
            if cfg.points[last].second_half && last > block.start as usize {
                last -= 1;
            }
            let s = successors(insns, last);
            // Some instructions have the same successor twice.
            let (next, target) = (s.next.map(|at| of[at]), s.target.map(|at| of[at]));
            block.next = [next, target.filter(|t| Some(*t) != next)];
            for n in block.next.into_iter().flatten() {
                first_before[n as usize + 2] += 1;
            }
        }
        for n in 2..first_before.len() {
            first_before[n] += first_before[n - 1];
        }
        let mut before = vec![0; first_before.last().map_or(0, |n| *n as usize)];
        for (id, block) in all.iter().enumerate() {
            for n in block.next.into_iter().flatten() {
                let place = &mut first_before[n as usize + 1];
                before[*place as usize] = id as u32;
                *place += 1;
            }
        }
        Blocks { all, of, first_before, before }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn get(&self, id: BlockId) -> Block {
        self.all[id as usize]
    }

    /// The block that an instruction is in.
    pub fn of(&self, at: usize) -> BlockId {
        self.of[at]
    }

    /// Blocks that may come right before this one inside the function.
    pub fn before(&self, id: BlockId) -> &[BlockId] {
        let (from, to) = (self.first_before[id as usize], self.first_before[id as usize + 1]);
        &self.before[from as usize..to as usize]
    }

    /// What holds for the blocks after one, together.
    pub fn after<T: std::ops::BitOr<Output = T> + Default>(&self, id: BlockId, of: impl Fn(BlockId) -> T) -> T {
        self.get(id).next.into_iter().flatten().fold(T::default(), |all, b| all | of(b))
    }
}

/// Blocks to look at again; the last one comes first, as what flows backward wants it.
#[derive(Debug)]
pub(crate) struct Worklist {
    words: Vec<u64>,
    /// No word above this one has a bit set.
    top: usize,
}

impl Worklist {
    pub fn new(blocks: usize) -> Worklist {
        Worklist { words: vec![0; blocks.div_ceil(64)], top: 0 }
    }

    pub fn push(&mut self, id: BlockId) {
        let word = id as usize / 64;
        self.words[word] |= 1 << (id % 64);
        self.top = self.top.max(word);
    }

    pub fn pop(&mut self) -> Option<BlockId> {
        loop {
            let word = self.words.get_mut(self.top)?;
            if *word != 0 {
                let bit = 63 - word.leading_zeros();
                *word &= !(1 << bit);
                return Some(self.top as u32 * 64 + bit);
            }
            self.top = self.top.checked_sub(1)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ebpf::asm::assemble;

    fn blocks(text: &str) -> Blocks {
        let insns = assemble(text).expect("a program");
        let options = crate::Options::default();
        let cfg = Cfg::build(&insns, crate::kfunc::Kfuncs::new(&options), None).expect("a graph");
        Blocks::new(&insns, &cfg)
    }

    #[test]
    fn blocks_end_where_paths_part_and_meet() {
        let b = blocks("r0 = 0\nr1 = 1\nif r0 == 0 goto out\nr0 = 1\nout:\nexit");
        let starts: Vec<u32> = (0..b.len() as u32).map(|id| b.get(id).start).collect();
        assert_eq!(starts, [0, 2, 3, 4]);
        assert_eq!(b.get(1).next, [Some(2), Some(3)]);
        assert_eq!(b.before(3), [1, 2]);
        assert_eq!(b.before(0), [0; 0]);
        assert_eq!((b.of(1), b.of(4)), (0, 3));
    }

    #[test]
    fn a_wide_instruction_ends_a_block_with_its_second_half() {
        let b = blocks("r0 = 0\nhead:\nr1 = 5 ll\nif r0 == 0 goto head\nexit");
        assert_eq!(b.get(b.of(1)).next, [Some(b.of(3)), None]);
        assert_eq!(b.before(b.of(1)), [b.of(0), b.of(3)]);
    }

    #[test]
    fn the_worklist_gives_the_last_block_first_and_each_once() {
        let mut w = Worklist::new(200);
        for id in [3, 150, 70, 150, 71] {
            w.push(id);
        }
        assert_eq!((w.pop(), w.pop()), (Some(150), Some(71)));
        w.push(199);
        assert_eq!([w.pop(), w.pop(), w.pop(), w.pop()], [Some(199), Some(70), Some(3), None]);
        w.push(1);
        assert_eq!(w.pop(), Some(1));
    }
}
