//! A program's machine code as dumps show it: the code, and where its functions and lines are.

use super::Subsystem;
use super::object::ProgObject;
use super::xlated;

/// Machine code; empty for programs that are interpreted.
#[derive(Debug, Default)]
pub(super) struct Jited<'p> {
    /// The code of all functions, one behind the other.
    pub code: &'p [u8],
    /// The address of each function, 64 bits.
    pub symbols: Vec<u8>,
    /// Bytes of each function, 32 bits.
    pub lengths: Vec<u8>,
    /// The address of each line of `line_info`, 64 bits.
    pub lines: Vec<u8>,
}

impl Jited<'_> {
    /// That of a program.
    pub fn of<'p>(subsystem: &Subsystem, prog: &'p ProgObject) -> Jited<'p> {
        let code = prog.loaded.machine_code();
        let Some((code, base)) = code.zip(subsystem.world().code_address(&prog.place)) else { return Jited::default() };
        let starts = prog.loaded.function_offsets();
        let ends = starts.iter().skip(1).copied().chain([code.len() as u32]);
        let offsets = prog.loaded.code_offsets();
        let functions = prog.verified.rewritten().functions();
        // The first line of a function is where it begins; an instruction that has no code is where the next one is.
        let place = |insn: u32| {
            let function = functions.iter().position(|f| f.start == insn).and_then(|n| starts.get(n)).copied();
            function.or_else(|| offsets.get(insn as usize..)?.iter().flatten().next().copied())
        };
        let lines = xlated::places(prog).filter_map(place);
        Jited {
            code,
            symbols: starts.iter().flat_map(|at| (base + u64::from(*at)).to_ne_bytes()).collect(),
            lengths: starts.iter().zip(ends).flat_map(|(from, to)| to.saturating_sub(*from).to_ne_bytes()).collect(),
            lines: lines.flat_map(|at| (base + u64::from(at)).to_ne_bytes()).collect(),
        }
    }
}
