//! Where control may arrive in a function other than by direct branches: the targets of its indirect jumps, and its landing pads.
//!
//! Everything here over-approximates, and what is not understood is an error. Where can the address of a place within a
//! function come from?
//!
//! * A **table of distances**, `lea T; movslq (T, i, 4), x; add T, x; jmp *x`. Compilers have no other use for such a table, so
//!   its entries are places where instructions of the function begin: it is read to the first entry that is none, whatever
//!   bounds the index. What is read too much does no harm.
//! * A **pointer** in memory, in a table or wherever a program keeps one. Pointers to code are made by the linker, in the data
//!   of the module, or by instructions that name the address. Both are looked for where they lead: into a window
//!   ([`super::arrivals`]). So a jump through a pointer, which most often leaves the function, need not be understood.
//! * Any other arithmetic: not understood.
//!
//! Compilers put parts of a function elsewhere (`NAME.cold`), and tables lead there and back. All that can be reached without
//! a call counts as the function.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

use super::elf_file::Symbol;
use super::landing::Pieces;
use super::symbols::{Loaded, Module, Modules};
use super::world::Memory;

/// Parts of a function at most.
const PARTS: usize = 40;
/// Bytes of all parts at most.
const BYTES: u64 = 1 << 20;
/// Steps back to where a value comes from at most.
const STEPS: usize = 20_000;
/// Entries of a table at most.
const ENTRIES: usize = 1 << 16;
/// Rounds of finding parts by tables and tables in parts at most.
const ROUNDS: usize = 16;

/// All places in a function where control may arrive indirectly, as far as they are not known to the linker, in order.
pub fn arrivals(
    memory: &Memory,
    modules: &Modules,
    module: &Module,
    function: &Range<u64>,
    inner_symbols: &[u64],
) -> Result<Vec<u64>, String> {
    let loaded = module.loaded().ok_or("its file cannot be read")?;
    let Some(pieces) = module.pieces(memory, modules) else {
        return match loaded.elf.describes() {
            true => Err("the call frame information of its module is not understood".into()),
            false => without_descriptions(memory, function),
        };
    };
    let mut entries: HashSet<u64> = inner_symbols.iter().copied().collect();
    entries.insert(function.start);
    let mut body = Body { entries, ..Body::new(memory, module, loaded, pieces) };
    body.add_part(function)?;
    body.add_piece_at(function.start)?;
    if !body.is_other(function.start) {
        // Whose part it is is not known, so neither whose exceptions land in it. For tables see `arrivals`.
        let pads = pieces.pads().ok_or("an exception table of its module is not understood")?;
        body.pads.extend(pads.filter(|pad| function.contains(pad)));
    }
    for _ in 0..ROUNDS {
        let before = body.size();
        body.link()?;
        if body.by_thunk {
            return Err("it jumps by way of a thunk".into());
        }
        body.follow()?;
        match before == body.size() {
            // What is not reached by now is reached by pointers.
            true if !body.settled => body.settled = true,
            true => {
                let targets: BTreeSet<u64> = body.targets.keys().copied().collect();
                return Ok(targets.union(&body.pads).copied().collect());
            }
            false => {}
        }
    }
    Err("its tables lead to ever more tables".into())
}

/// A module that describes no frames is of a compiler that needs none (Go's), or of one that was told so: its functions are
/// in one part.
fn without_descriptions(memory: &Memory, function: &Range<u64>) -> Result<Vec<u64>, String> {
    match decode(memory, function).iter().find(|i| i.is_invalid() || i.flow_control() == FlowControl::IndirectBranch) {
        Some(insn) => Err(format!("it is not known where the jump at {:#x} leads", insn.ip())),
        None => Ok(Vec::new()),
    }
}

fn decode(memory: &Memory, range: &Range<u64>) -> Vec<Instruction> {
    let text = memory.read_up_to(range.start, range.end.saturating_sub(range.start).min(BYTES) as usize);
    Decoder::with_ip(64, &text, range.start, DecoderOptions::NONE).into_iter().collect()
}

/// A function, in all its parts.
struct Body<'a> {
    memory: &'a Memory,
    module: &'a Module,
    loaded: &'a Loaded,
    pieces: &'a Pieces,
    parts: Vec<Range<u64>>,
    /// In order of address.
    insns: Vec<Instruction>,
    /// Indices of instructions.
    index: HashMap<u64, usize>,
    /// Those that end at an address and may go on there.
    before: HashMap<u64, Vec<usize>>,
    /// Those that branch to an address.
    sources: HashMap<u64, Vec<usize>>,
    indirect: Vec<usize>,
    calls: Vec<usize>,
    entries: HashSet<u64>,
    /// Where tables lead, with the jumps that go by them, by address; and what is named, with none.
    targets: BTreeMap<u64, BTreeSet<u64>>,
    /// Jumps that go by pointers.
    by_pointer: BTreeSet<u64>,
    /// All that tables lead to is found.
    settled: bool,
    /// An indirect jump is written otherwise.
    by_thunk: bool,
    pads: BTreeSet<u64>,
    /// Where instructions begin in code that is not known to be part of the function.
    elsewhere: HashMap<u64, HashSet<u64>>,
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Origin {
    /// What an instruction names.
    Address(u64),
    /// What it has read from memory.
    Loaded(usize),
    /// Four bytes from memory, sign-extended.
    Distance(usize),
    /// The sum of two registers.
    Sum(usize, Register, Register),
    /// What the caller or somebody called has given.
    Given,
}

impl<'a> Body<'a> {
    fn new(memory: &'a Memory, module: &'a Module, loaded: &'a Loaded, pieces: &'a Pieces) -> Self {
        Body {
            memory,
            module,
            loaded,
            pieces,
            parts: Vec::new(),
            insns: Vec::new(),
            index: HashMap::new(),
            before: HashMap::new(),
            sources: HashMap::new(),
            indirect: Vec::new(),
            calls: Vec::new(),
            entries: HashSet::new(),
            targets: BTreeMap::new(),
            by_pointer: BTreeSet::new(),
            settled: false,
            by_thunk: false,
            pads: BTreeSet::new(),
            elsewhere: HashMap::new(),
        }
    }

    /// Grows as long as something is found.
    fn size(&self) -> (usize, usize, usize) {
        (self.parts.len(), self.targets.values().map(|jumps| jumps.len() + 1).sum(), self.by_pointer.len())
    }

    fn insn(&self, index: usize) -> &Instruction {
        &self.insns[index]
    }

    fn has(&self, address: u64) -> bool {
        self.parts.iter().any(|part| part.contains(&address))
    }

    /// Adds the piece that an address is in, if there is one and it is not there yet.
    fn add_piece_at(&mut self, address: u64) -> Result<(), String> {
        match self.pieces.at(address) {
            Some(piece) if !self.parts.iter().any(|p| p.start <= piece.range.start && piece.range.end <= p.end) => {
                self.add_part(&piece.range.clone())
            }
            _ => Ok(()),
        }
    }

    fn add_part(&mut self, range: &Range<u64>) -> Result<(), String> {
        let bytes: u64 = self.parts.iter().map(|part| part.end - part.start).sum();
        if self.parts.len() >= PARTS || bytes.saturating_add(range.end - range.start) > BYTES {
            return Err("it has too many parts".into());
        }
        for piece in self.pieces.touching(range) {
            let pads = piece.pads.as_ref().ok_or("its exception table is not understood")?;
            self.pads.extend(pads);
        }
        let insns = decode(self.memory, range);
        if let Some(bad) = insns.iter().find(|insn| insn.is_invalid()) {
            return Err(format!("the instruction at {:#x} cannot be decoded", bad.ip()));
        }
        self.parts.push(range.clone());
        self.insns.extend(insns);
        self.insns.sort_by_key(Instruction::ip);
        self.insns.dedup_by_key(|insn| insn.ip());
        self.index_all();
        Ok(())
    }

    fn index_all(&mut self) {
        for map in [&mut self.before, &mut self.sources] {
            map.clear();
        }
        self.index.clear();
        self.indirect.clear();
        self.calls.clear();
        for (n, insn) in self.insns.iter().enumerate() {
            self.index.insert(insn.ip(), n);
            let goes_on = match insn.flow_control() {
                FlowControl::UnconditionalBranch | FlowControl::Return | FlowControl::Exception => false,
                FlowControl::IndirectBranch => {
                    self.indirect.push(n);
                    false
                }
                FlowControl::Call | FlowControl::IndirectCall => {
                    self.calls.push(n);
                    true
                }
                _ => true,
            };
            if goes_on {
                self.before.entry(insn.next_ip()).or_default().push(n);
            }
            if let Some(target) = branch(insn) {
                self.sources.entry(target).or_default().push(n);
                self.by_thunk |= self.loaded.is_thunk(target);
            }
        }
    }

    /// Adds the parts that branches, tables and exceptions lead to, until there are no more.
    fn link(&mut self) -> Result<(), String> {
        loop {
            let ways = self.sources.keys().chain(self.targets.keys()).chain(&self.pads);
            let away: BTreeSet<u64> = ways.copied().filter(|&to| !self.has(to) && !self.is_other(to)).collect();
            let parts = self.parts.len();
            for to in away {
                if !self.has(to) {
                    self.add_piece_at(to)?;
                }
            }
            if parts == self.parts.len() {
                return Ok(());
            }
        }
    }

    /// Does another function begin there? Parts that stand elsewhere have names, too.
    fn is_other(&self, address: u64) -> bool {
        let Some(piece) = self.pieces.at(address) else { return true };
        let start = piece.range.start.wrapping_sub(self.loaded.bias);
        self.loaded.elf.at(start).any(Symbol::begins)
    }

    /// Finds out where the indirect jumps lead.
    fn follow(&mut self) -> Result<(), String> {
        // What is named may be jumped to.
        let named: Vec<u64> = self.insns.iter().filter_map(named).filter(|&address| self.has(address)).collect();
        for address in named {
            self.targets.entry(address).or_default();
        }
        for at in self.indirect.clone() {
            let insn = *self.insn(at);
            if insn.op0_kind() != OpKind::Register {
                self.by_pointer.insert(insn.ip());
                continue;
            }
            let unknown = || format!("it is not known where the jump at {:#x} leads", insn.ip());
            for origin in self.origins(at, insn.op0_register()).ok_or_else(unknown)? {
                match origin {
                    Origin::Address(_) | Origin::Loaded(_) | Origin::Given => drop(self.by_pointer.insert(insn.ip())),
                    Origin::Distance(_) => return Err(unknown()),
                    Origin::Sum(sum, a, b) => {
                        let tables = self.tables(sum, a, b).ok_or_else(unknown)?;
                        for table in tables {
                            self.read_table(table, insn.ip()).ok_or_else(unknown)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The tables whose addresses are added to distances in them.
    fn tables(&self, sum: usize, a: Register, b: Register) -> Option<BTreeSet<u64>> {
        let (a, b) = (self.origins(sum, a)?, self.origins(sum, b)?);
        let are_distances = |origins: &BTreeSet<Origin>| origins.iter().all(|o| matches!(o, Origin::Distance(_)));
        let (distances, bases) = match (are_distances(&a), are_distances(&b)) {
            (true, false) => (a, b),
            (false, true) => (b, a),
            _ => return None,
        };
        for distance in &distances {
            let Origin::Distance(at) = distance else { return None };
            let insn = self.insn(*at);
            // Distances in a table elsewhere are from something else than its beginning.
            let plain = insn.memory_displacement64() == 0 && insn.segment_prefix() == Register::None;
            let from = |register: Register| {
                register.is_gpr64() && self.origins(*at, register).is_some_and(|found| found == bases)
            };
            let of_table = from(insn.memory_base()) || insn.memory_index_scale() == 1 && from(insn.memory_index());
            if !plain || !of_table {
                return None;
            }
        }
        let mut tables = BTreeSet::new();
        for base in bases {
            match base {
                Origin::Address(address) => drop(tables.insert(address)),
                // It was kept on the stack for a while: any that the function names.
                Origin::Loaded(at) if is_of_stack(self.insn(at)) => {
                    tables.extend(self.insns.iter().filter_map(named).filter(|&address| !self.has(address)));
                }
                _ => return None,
            }
        }
        (!tables.is_empty()).then_some(tables)
    }

    /// Reads a table of distances that a jump goes by.
    fn read_table(&mut self, table: u64, jump: u64) -> Option<()> {
        if !self.module.is_constant(table) {
            return None;
        }
        let mut found = Vec::new();
        let mut at = table;
        'table: while found.len() < ENTRIES {
            let bytes = self.memory.read_up_to(at, 256);
            for entry in bytes.chunks_exact(4) {
                let distance = i32::from_le_bytes(entry.try_into().ok()?);
                let target = table.wrapping_add_signed(distance.into());
                if !self.is_place(target) {
                    break 'table;
                }
                found.push(target);
            }
            if bytes.len() < 256 {
                break;
            }
            at += 256;
        }
        for target in found {
            self.targets.entry(target).or_default().insert(jump);
        }
        Some(())
    }

    /// Can a table of the function lead there?
    fn is_place(&mut self, address: u64) -> bool {
        if self.index.contains_key(&address) || self.parts.iter().any(|part| part.end == address) {
            return true;
        }
        if self.has(address) || !self.module.has_code_at(address) || self.is_other(address) {
            return false;
        }
        let Some(piece) = self.pieces.at(address) else { return false };
        if !self.elsewhere.contains_key(&piece.range.start) {
            let starts = decode(self.memory, &piece.range).iter().map(Instruction::ip).collect();
            self.elsewhere.insert(piece.range.start, starts);
        }
        self.elsewhere.get(&piece.range.start).is_some_and(|starts| starts.contains(&address))
    }

    /// What a register may hold before an instruction.
    fn origins(&self, at: usize, register: Register) -> Option<BTreeSet<Origin>> {
        let mut found = BTreeSet::new();
        let mut seen = HashSet::new();
        let mut pending = vec![(at, register.full_register(), false)];
        let mut info = InstructionInfoFactory::new();
        while let Some((at, register, narrow)) = pending.pop() {
            if !seen.insert((at, register, narrow)) {
                continue;
            }
            if seen.len() > STEPS {
                return None;
            }
            let address = self.insn(at).ip();
            let mut ways: Vec<usize> = Vec::new();
            ways.extend(self.before.get(&address).into_iter().flatten());
            ways.extend(self.sources.get(&address).into_iter().flatten());
            if self.entries.contains(&address) {
                found.insert(Origin::Given);
            }
            if self.pads.contains(&address) {
                ways.extend(&self.calls);
                if !is_kept(register) {
                    return None;
                }
            }
            let jumps = self.targets.get(&address);
            ways.extend(jumps.into_iter().flatten().filter_map(|jump| self.index.get(jump)));
            // What nothing leads to is led to by a pointer, unless it is there for alignment.
            let known = !ways.is_empty() || self.entries.contains(&address) || is_filling(self.insn(at));
            if jumps.is_some_and(BTreeSet::is_empty) || self.settled && !known {
                ways.extend(self.by_pointer.iter().filter_map(|jump| self.index.get(jump)));
            }
            for way in ways {
                let insn = self.insn(way);
                match step(&mut info, insn, register, narrow)? {
                    Step::Through => pending.push((way, register, narrow)),
                    Step::From(other, narrow) => pending.push((way, other, narrow)),
                    Step::Either(other) => {
                        pending.push((way, register, narrow));
                        pending.push((way, other, narrow));
                    }
                    Step::OrLoaded => {
                        pending.push((way, register, narrow));
                        found.insert(Origin::Loaded(way));
                    }
                    Step::Address(address) => drop(found.insert(Origin::Address(address))),
                    Step::Loaded => drop(found.insert(Origin::Loaded(way))),
                    Step::Distance => drop(found.insert(Origin::Distance(way))),
                    Step::Sum(a, b) => drop(found.insert(Origin::Sum(way, a, b))),
                    Step::Given => drop(found.insert(Origin::Given)),
                }
            }
        }
        Some(found)
    }
}

/// What an instruction does to a register.
enum Step {
    /// Nothing.
    Through,
    /// It copies another; `true`: the lower half, with its sign.
    From(Register, bool),
    /// It copies another or does nothing.
    Either(Register),
    /// It loads it or does nothing.
    OrLoaded,
    Address(u64),
    Loaded,
    Distance,
    Sum(Register, Register),
    Given,
}

/// `None`: something that is not understood. `narrow`: what matters is the lower half, which is sign-extended later.
fn step(info: &mut InstructionInfoFactory, insn: &Instruction, register: Register, narrow: bool) -> Option<Step> {
    if matches!(insn.flow_control(), FlowControl::Call | FlowControl::IndirectCall) && insn.mnemonic() == Mnemonic::Call
    {
        // Compilers keep values in other registers, too, across calls of functions that they see leave them alone.
        return match register {
            Register::RAX if !narrow => Some(Step::Given),
            Register::RAX | Register::RDX => None,
            _ => Some(Step::Through),
        };
    }
    let writes = info.info(insn).used_registers().iter().any(|used| {
        let write = matches!(
            used.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        write && used.register().full_register() == register
    });
    if !writes {
        return Some(Step::Through);
    }
    let whole = insn.op0_kind() == OpKind::Register && insn.op0_register() == register;
    let source = (insn.op_count() > 1 && insn.op1_kind() == OpKind::Register).then(|| insn.op1_register());
    let from_memory = insn.op_count() > 1 && insn.op1_kind() == OpKind::Memory;
    let half = insn.op0_kind() == OpKind::Register
        && insn.op0_register().is_gpr32()
        && insn.op0_register().full_register() == register;
    Some(match insn.code() {
        Code::Mov_r32_rm32 | Code::Mov_rm32_r32 if narrow && half => match source {
            Some(source) => Step::From(source.full_register(), true),
            None => Step::Distance,
        },
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64 if whole => match source {
            Some(source) => Step::From(source, narrow),
            None if narrow => return None,
            None => Step::Loaded,
        },
        _ if narrow => return None,
        Code::Movsxd_r64_rm32 if whole && from_memory => Step::Distance,
        Code::Movsxd_r64_rm32 if whole => Step::From(source?.full_register(), true),
        Code::Cdqe => Step::From(Register::RAX, true),
        Code::Lea_r64_m if whole && insn.is_ip_rel_memory_operand() => Step::Address(insn.ip_rel_memory_address()),
        Code::Lea_r64_m
            if whole
                && insn.memory_displacement64() == 0
                && insn.memory_index_scale() == 1
                && insn.memory_base().is_gpr64()
                && insn.memory_index().is_gpr64() =>
        {
            Step::Sum(insn.memory_base(), insn.memory_index())
        }
        Code::Mov_r32_imm32 | Code::Mov_rm32_imm32 if half => Step::Address(insn.immediate32().into()),
        Code::Mov_r64_imm64 if whole => Step::Address(insn.immediate64()),
        Code::Mov_rm64_imm32 if whole => Step::Address(insn.immediate32to64().cast_unsigned()),
        Code::Add_r64_rm64 | Code::Add_rm64_r64 if whole => Step::Sum(register, source?),
        Code::Pop_r64 | Code::Pop_rm64 if whole => Step::Loaded,
        _ if whole && is_conditional_move(insn) => match source {
            Some(source) => Step::Either(source),
            None => Step::OrLoaded,
        },
        _ => return None,
    })
}

fn is_conditional_move(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        Mnemonic::Cmova
            | Mnemonic::Cmovae
            | Mnemonic::Cmovb
            | Mnemonic::Cmovbe
            | Mnemonic::Cmove
            | Mnemonic::Cmovg
            | Mnemonic::Cmovge
            | Mnemonic::Cmovl
            | Mnemonic::Cmovle
            | Mnemonic::Cmovne
            | Mnemonic::Cmovno
            | Mnemonic::Cmovnp
            | Mnemonic::Cmovns
            | Mnemonic::Cmovo
            | Mnemonic::Cmovp
            | Mnemonic::Cmovs
    )
}

/// Is it there for the alignment of what follows? Compilers make no other use of long ones.
fn is_filling(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Nop && insn.len() > 1
}

/// Do functions give it back as they got it?
fn is_kept(register: Register) -> bool {
    matches!(
        register,
        Register::RBX | Register::RBP | Register::RSP | Register::R12 | Register::R13 | Register::R14 | Register::R15
    )
}

fn is_of_stack(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Pop || matches!(insn.memory_base(), Register::RSP | Register::RBP)
}

fn branch(insn: &Instruction) -> Option<u64> {
    let leaves = insn.flow_control() != FlowControl::Call && insn.op0_kind() == OpKind::NearBranch64;
    leaves.then(|| insn.near_branch_target())
}

/// The address that an instruction names as a value.
fn named(insn: &Instruction) -> Option<u64> {
    match insn.code() {
        Code::Lea_r64_m | Code::Lea_r32_m if insn.is_ip_rel_memory_operand() => Some(insn.ip_rel_memory_address()),
        _ => (0..insn.op_count()).find_map(|n| match insn.op_kind(n) {
            OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64 => Some(insn.immediate(n)),
            _ => None,
        }),
    }
}

#[cfg(test)]
mod tests;
