//! Instruction by instruction from bytecode to operations of the interpreter.

use std::collections::BTreeSet;
use std::mem::offset_of;

use skep_ebpf::Insn;
use skep_ebpf::insn::{CALL, EXIT, JA, JA32, LD_IMM64, alu, atomic, call, class, jmp, mode, pseudo, size};
use skep_runtime::helpers;
use skep_runtime::op::{Code, Op};
use skep_runtime::session::FunctionCell;

use crate::calls::subprog_of;
use crate::error::unsupported;
use crate::special::{self, Kfunc};
use crate::{CompileError, Engine, Options, Source, marks};

/// Code and what it refers to.
pub(crate) struct Lowered {
    pub(crate) code: Vec<Code>,
    pub(crate) helpers: BTreeSet<u32>,
    pub(crate) maps: BTreeSet<u32>,
    /// Handles that the table of maps must have.
    pub(crate) nmaps: u32,
    /// A 16th of the main function's frame if that has a `may_goto`.
    pub(crate) may_goto: u8,
    /// The same of each function.
    may_gotos: Vec<u8>,
}

/// What is wrong with an instruction.
type What = &'static str;

/// Translates all instructions; for machine code alone, only those that may be refused or name a map or a helper.
pub(crate) fn lower(source: &Source<'_>, options: &Options) -> Result<Lowered, CompileError> {
    let all = options.engine == Engine::Interpreter || options.bytecode;
    let may_gotos: Vec<u8> = (0..source.subprogs.len()).map(|n| may_goto_frame(source, n)).collect();
    let mut out = Lowered {
        code: Vec::with_capacity(if all { source.insns.len() } else { 0 }),
        helpers: BTreeSet::new(),
        maps: BTreeSet::new(),
        nmaps: 0,
        may_goto: may_gotos.first().copied().unwrap_or(0),
        may_gotos,
    };
    if all {
        let mut i = 0;
        while let Some(&insn) = source.insns.get(i) {
            out.insn(source, options, i, insn)?;
            i += if insn.code == LD_IMM64 { 2 } else { 1 };
        }
    } else {
        for (i, insn) in special::marked(source.insns, source.marks).filter(|(_, insn)| !is_conditional(*insn)) {
            out.insn(source, options, i, insn)?;
        }
    }
    Ok(out)
}

/// True of jumps that compare: neither engine refuses any that the verifier lets through.
fn is_conditional(insn: Insn) -> bool {
    matches!(insn.class(), class::JMP | class::JMP32)
        && insn.op() <= jmp::JSLE
        && !matches!(insn.op(), jmp::JA | jmp::CALL | jmp::EXIT)
}

impl Lowered {
    /// A 16th of a function's frame if it has a `may_goto`, else 0.
    fn may_goto_of(&self, function: usize) -> u8 {
        self.may_gotos.get(function).copied().unwrap_or(0)
    }

    /// Translates one instruction.
    fn insn(&mut self, source: &Source<'_>, options: &Options, i: usize, insn: Insn) -> Result<(), CompileError> {
        let refused =
            |what| CompileError::Instruction { program: source.name.into(), insn: i as u32, code: insn.code, what };
        match insn.code {
            LD_IMM64 => {
                let &high = source.insns.get(i + 1).ok_or_else(|| refused("half a 64-bit immediate"))?;
                if insn.src() == pseudo::FUNC {
                    self.function(insn, i, source, options).map_err(refused)?;
                } else {
                    self.wide(insn, high, source, options).map_err(refused)?;
                }
            }
            CALL => self.call(insn, i, source, options)?,
            _ if source.is_object_access(i) => self.code.push(object(insn).map_err(refused)?),
            _ if special::is_may_goto(insn) => {
                let a = frame_of(source, i);
                self.code.push(Code { op: Op::MayGoto, dst: 0, a, imm: i32::from(insn.off) });
            }
            _ => self.code.push(single(insn).map_err(refused)?),
        }
        Ok(())
    }

    /// A 64-bit immediate: a number or a map.
    fn wide(&mut self, insn: Insn, high: Insn, source: &Source<'_>, options: &Options) -> Result<(), What> {
        let (op, imm) = match insn.src() {
            0 => (Op::LdImm64, insn.imm),
            src @ (pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE) => {
                let index = insn.imm as u32;
                let known = (index as usize) < source.maps.len();
                let at = options.maps.of(index).and_then(|i| i32::try_from(i).ok()).filter(|_| known);
                self.maps.insert(index);
                let op = if src == pseudo::MAP_IDX { Op::LdMap } else { Op::LdMapValue };
                let at = at.ok_or("a map that the program does not have")?;
                self.nmaps = self.nmaps.max(at as u32 + 1);
                (op, at)
            }
            pseudo::MAP_FD | pseudo::MAP_VALUE => return Err("a map by its file descriptor"),
            pseudo::BTF_ID => return Err("the address of a kernel variable"),
            _ => return Err("a 64-bit immediate of unknown kind"),
        };
        self.code.push(Code { op, dst: insn.dst(), a: 0, imm });
        self.code.push(Code { op: Op::Trap, dst: 0, a: 0, imm: high.imm });
        Ok(())
    }

    /// The address of a function: of its own, or where it is called through a cell of what goes there.
    fn function(&mut self, insn: Insn, i: usize, source: &Source<'_>, options: &Options) -> Result<(), What> {
        let target = (i as i64 + 1 + i64::from(insn.imm)) as usize;
        let found = source.subprogs.iter().position(|s| s.start as usize == target);
        let found = found.ok_or("the address of a function that the program does not have")?;
        let through = named_cells(source, options).iter().position(|(n, _)| *n == found);
        let (imm, may_goto) = match through {
            Some(n) => ((source.insns.len() + n) as i32 - i as i32 - 1, 0),
            None => (insn.imm, i32::from(self.may_goto_of(found))),
        };
        self.code.push(Code { op: Op::LdFunc, dst: insn.dst(), a: 0, imm });
        self.code.push(Code { op: Op::Trap, dst: 0, a: 0, imm: may_goto });
        Ok(())
    }

    fn call(&mut self, insn: Insn, i: usize, source: &Source<'_>, options: &Options) -> Result<(), CompileError> {
        let at = i as u32;
        let code = match insn.src() {
            call::SUBPROG => {
                let callee = subprog_of(source.subprogs, (i as i64 + 1 + i64::from(insn.imm)) as usize);
                let a = frame_of(source, i);
                match cell_of(source, options, callee) {
                    Some(imm) => Code { op: Op::CallCell, dst: 0, a, imm },
                    None => Code { op: Op::CallSub, dst: self.may_goto_of(callee), a, imm: insn.imm },
                }
            }
            call::HELPER => {
                let id = insn.imm as u32;
                if !helpers::supported(id) {
                    let (name, reason) = unsupported(id);
                    return Err(CompileError::Helper { program: source.name.into(), name, id, insn: at, reason });
                }
                self.helpers.insert(id);
                if helpers::calls_back(id) || helpers::may_end(id) {
                    let entry = helpers::index(id).unwrap_or(0) as i32;
                    self.code.push(Code { op: Op::CallBack, dst: 0, a: frame_of(source, i), imm: entry });
                    return Ok(());
                }
                let op = match id {
                    1 => Op::CallLookup,
                    helpers::TAIL_CALL => Op::TailCall,
                    _ => Op::CallHelper,
                };
                Code { op, dst: 0, a: 0, imm: insn.imm }
            }
            _ => match source.special.kfuncs.get(&at) {
                Some(&Kfunc::Entry { entry, .. }) => Code { op: Op::CallEntry, dst: 0, a: 0, imm: entry as i32 },
                Some(&Kfunc::Host { index, .. }) => Code { op: Op::CallHost, dst: 0, a: 0, imm: index as i32 },
                Some(Kfunc::Throw) => {
                    let catches = source.special.catches.map(|f| f as usize);
                    let start = catches.and_then(|f| source.subprogs.get(f)).map(|s| i64::from(s.start));
                    let imm = start.map_or(-1, |s| (s - i as i64 - 1) as i32);
                    Code { op: Op::Throw, dst: catches.map_or(0, |f| self.may_goto_of(f)), a: 0, imm }
                }
                None => {
                    let (program, name) = (source.name.into(), format!("BTF id {}", insn.imm));
                    return Err(CompileError::Kfunc { program, insn: at, name });
                }
            },
        };
        self.code.push(code);
        Ok(())
    }
}

/// Where the cell of a function names bytecode, if it is called through one.
fn cell_of(source: &Source<'_>, options: &Options, function: usize) -> Option<i32> {
    let cell = source.subprogs.get(function).and_then(|s| options.cell_of(s.number as usize))?;
    Some(cell + offset_of!(FunctionCell, bytecode) as i32)
}

/// The functions whose addresses the program takes that are called through cells, and their cells.
fn named_cells(source: &Source<'_>, options: &Options) -> Vec<(usize, i32)> {
    if options.cells.is_none() {
        return Vec::new();
    }
    let named = special::named_functions(source.insns, source.marks, source.subprogs).into_iter();
    named.filter_map(|n| Some((n, cell_of(source, options, n)?))).collect()
}

/// Adds, behind the program's instructions, what goes to cells and what is entered through them; returns where each
/// function is entered, in bytes.
pub(crate) fn entries(source: &Source<'_>, options: &Options, code: &mut Vec<Code>) -> Vec<u32> {
    code.extend(named_cells(source, options).into_iter().map(|(_, imm)| Code { op: Op::GoCell, dst: 0, a: 0, imm }));
    let mut entries = Vec::with_capacity(source.subprogs.len());
    for (n, subprog) in source.subprogs.iter().enumerate() {
        let main = n == 0 && options.extends.is_some();
        let outside = main || cell_of(source, options, n).is_some();
        let a = u16::from(may_goto_frame(source, n));
        let mut at = subprog.start;
        if outside && (a != 0 || main && source.special.throws()) {
            at = code.len() as u32;
            code.push(Code { op: Op::Enter, dst: u8::from(main), a, imm: subprog.start as i32 - at as i32 - 1 });
        }
        entries.push(at * size_of::<Code>() as u32);
    }
    entries
}

/// Bytes of the frame of the function that an instruction belongs to.
fn frame_of(source: &Source<'_>, i: usize) -> u16 {
    source.subprogs.get(subprog_of(source.subprogs, i)).map_or(0, |s| s.frame()) as u16
}

/// A 16th of a function's frame if it has a `may_goto`, else 0.
fn may_goto_frame(source: &Source<'_>, function: usize) -> u8 {
    let Some(s) = source.subprogs.get(function) else { return 0 };
    let end = source.subprogs.get(function + 1).map_or(source.insns.len(), |s| s.start as usize);
    let body = marks::within(source.marks, s.start as usize, end);
    if special::has_may_goto(source.insns, body) { (s.frame() / 16) as u8 } else { 0 }
}

/// An instruction of one slot that is not a call.
fn single(insn: Insn) -> Result<Code, What> {
    match insn.class() {
        class::ALU | class::ALU64 => arithmetic(insn),
        class::JMP | class::JMP32 => jump(insn),
        class::LD => packet(insn),
        _ => memory(insn),
    }
}

/// One of four operations: 64 or 32 bits, register or immediate.
fn pick(insn: Insn, wide: bool, [x64, k64, x32, k32]: [Op; 4]) -> Op {
    match (wide, insn.is_x()) {
        (true, true) => x64,
        (true, false) => k64,
        (false, true) => x32,
        (false, false) => k32,
    }
}

fn arithmetic(insn: Insn) -> Result<Code, What> {
    use Op::*;
    let wide = insn.class() == class::ALU64;
    let signed = insn.off == 1;
    let family = match (insn.op(), insn.off) {
        (alu::ADD, 0) => [Add64X, Add64K, Add32X, Add32K],
        (alu::SUB, 0) => [Sub64X, Sub64K, Sub32X, Sub32K],
        (alu::MUL, 0) => [Mul64X, Mul64K, Mul32X, Mul32K],
        (alu::DIV, 0 | 1) if signed => [SDiv64X, SDiv64K, SDiv32X, SDiv32K],
        (alu::DIV, 0) => [Div64X, Div64K, Div32X, Div32K],
        (alu::MOD, 0 | 1) if signed => [SMod64X, SMod64K, SMod32X, SMod32K],
        (alu::MOD, 0) => [Mod64X, Mod64K, Mod32X, Mod32K],
        (alu::OR, 0) => [Or64X, Or64K, Or32X, Or32K],
        (alu::AND, 0) => [And64X, And64K, And32X, And32K],
        (alu::XOR, 0) => [Xor64X, Xor64K, Xor32X, Xor32K],
        (alu::LSH, 0) => [Lsh64X, Lsh64K, Lsh32X, Lsh32K],
        (alu::RSH, 0) => [Rsh64X, Rsh64K, Rsh32X, Rsh32K],
        (alu::ARSH, 0) => [Arsh64X, Arsh64K, Arsh32X, Arsh32K],
        (alu::MOV, 0) => [Mov64X, Mov64K, Mov32X, Mov32K],
        (alu::MOV, 8) if insn.is_x() => [MovSx8To64, MovSx8To64, MovSx8To32, MovSx8To32],
        (alu::MOV, 16) if insn.is_x() => [MovSx16To64, MovSx16To64, MovSx16To32, MovSx16To32],
        (alu::MOV, 32) if insn.is_x() && wide => [MovSx32To64; 4],
        (alu::MOV, 1) if insn.is_x() && wide => return Err("a cast between address spaces"),
        (alu::NEG, 0) if !insn.is_x() => [Neg64, Neg64, Neg32, Neg32],
        (alu::END, 0) => return byte_order(insn, wide),
        _ => return Err("an unknown arithmetic operation"),
    };
    Ok(Code { op: pick(insn, wide, family), dst: insn.dst(), a: u16::from(insn.src()), imm: insn.imm })
}

/// Conversions of byte order. The host is little-endian: "to little" only cuts.
fn byte_order(insn: Insn, swap: bool) -> Result<Code, What> {
    if swap && insn.is_x() {
        return Err("an unknown conversion of byte order");
    }
    let swap = swap || insn.is_x();
    let (op, src) = match (insn.imm, swap) {
        (16, true) => (Op::Swap16, 0),
        (32, true) => (Op::Swap32, 0),
        (64, true) => (Op::Swap64, 0),
        (16, false) => (Op::Zext16, 0),
        (32, false) => (Op::Mov32X, insn.dst()),
        (64, false) => (Op::Mov64X, insn.dst()),
        _ => return Err("a conversion of byte order of unknown width"),
    };
    Ok(Code { op, dst: insn.dst(), a: u16::from(src), imm: 0 })
}

fn jump(insn: Insn) -> Result<Code, What> {
    use Op::*;
    let code = |op, imm| Ok(Code { op, dst: 0, a: 0, imm });
    match insn.code {
        JA => return code(Ja, i32::from(insn.off)),
        JA32 => return code(Ja, insn.imm),
        EXIT => return code(Exit, 0),
        _ => {}
    }
    let family = match insn.op() {
        jmp::JEQ => [Jeq64X, Jeq64K, Jeq32X, Jeq32K],
        jmp::JNE => [Jne64X, Jne64K, Jne32X, Jne32K],
        jmp::JSET => [Jset64X, Jset64K, Jset32X, Jset32K],
        jmp::JGT => [Jgt64X, Jgt64K, Jgt32X, Jgt32K],
        jmp::JGE => [Jge64X, Jge64K, Jge32X, Jge32K],
        jmp::JLT => [Jlt64X, Jlt64K, Jlt32X, Jlt32K],
        jmp::JLE => [Jle64X, Jle64K, Jle32X, Jle32K],
        jmp::JSGT => [Jsgt64X, Jsgt64K, Jsgt32X, Jsgt32K],
        jmp::JSGE => [Jsge64X, Jsge64K, Jsge32X, Jsge32K],
        jmp::JSLT => [Jslt64X, Jslt64K, Jslt32X, Jslt32K],
        jmp::JSLE => [Jsle64X, Jsle64K, Jsle32X, Jsle32K],
        _ => return Err("an unknown jump"),
    };
    let op = pick(insn, insn.class() == class::JMP, family);
    Ok(if insn.is_x() {
        Code { op, dst: insn.dst(), a: u16::from(insn.src()), imm: i32::from(insn.off) }
    } else {
        Code { op, dst: insn.dst(), a: insn.off as u16, imm: insn.imm }
    })
}

/// Absolute and indirect loads from the packet.
fn packet(insn: Insn) -> Result<Code, What> {
    let op = match (insn.mode(), insn.size()) {
        (mode::ABS, size::B) => Op::LdAbsB,
        (mode::ABS, size::H) => Op::LdAbsH,
        (mode::ABS, size::W) => Op::LdAbsW,
        (mode::IND, size::B) => Op::LdIndB,
        (mode::IND, size::H) => Op::LdIndH,
        (mode::IND, size::W) => Op::LdIndW,
        _ => return Err("an unknown load"),
    };
    Ok(Code { op, dst: 0, a: u16::from(insn.src()), imm: insn.imm })
}

/// One of four operations by access size.
fn sized(insn: Insn, [b, h, w, dw]: [Op; 4]) -> Op {
    match insn.size() {
        size::B => b,
        size::H => h,
        size::W => w,
        _ => dw,
    }
}

fn memory(insn: Insn) -> Result<Code, What> {
    use Op::*;
    let base = Code { op: Trap, dst: insn.dst(), a: u16::from(insn.src()), imm: i32::from(insn.off) };
    Ok(match (insn.class(), insn.mode()) {
        (class::LDX, mode::MEM) => Code { op: sized(insn, [LdxB, LdxH, LdxW, LdxDw]), ..base },
        (class::LDX, mode::MEMSX) if insn.size() != size::DW => {
            Code { op: sized(insn, [LdxSB, LdxSH, LdxSW, LdxSW]), ..base }
        }
        (class::STX, mode::MEM) => Code { op: sized(insn, [StxB, StxH, StxW, StxDw]), ..base },
        (class::ST, mode::MEM) => {
            Code { op: sized(insn, [StB, StH, StW, StDw]), a: insn.off as u16, imm: insn.imm, ..base }
        }
        (class::STX, mode::ATOMIC) => Code { op: atomic_op(insn)?, ..base },
        _ => return Err("an unknown access to memory"),
    })
}

/// A load from a kernel object.
fn object(insn: Insn) -> Result<Code, What> {
    use Op::*;
    let op = match (insn.class(), insn.mode()) {
        (class::LDX, mode::MEM) => sized(insn, [ObjB, ObjH, ObjW, ObjDw]),
        (class::LDX, mode::MEMSX) if insn.size() != size::DW => sized(insn, [ObjSB, ObjSH, ObjSW, ObjSW]),
        _ => return Err("a store to a kernel object"),
    };
    Ok(Code { op, ..memory(insn)? })
}

fn atomic_op(insn: Insn) -> Result<Op, What> {
    use Op::*;
    const FETCH: i32 = atomic::FETCH;
    match insn.imm {
        atomic::LOAD_ACQ => return Ok(sized(insn, [LoadAcqB, LoadAcqH, LoadAcqW, LoadAcqDw])),
        atomic::STORE_REL => return Ok(sized(insn, [StoreRelB, StoreRelH, StoreRelW, StoreRelDw])),
        _ => {}
    }
    let [narrow, wide] = match insn.imm & !FETCH {
        atomic::ADD if insn.imm & FETCH != 0 => [FetchAdd32, FetchAdd64],
        atomic::OR if insn.imm & FETCH != 0 => [FetchOr32, FetchOr64],
        atomic::AND if insn.imm & FETCH != 0 => [FetchAnd32, FetchAnd64],
        atomic::XOR if insn.imm & FETCH != 0 => [FetchXor32, FetchXor64],
        atomic::ADD => [AtomicAdd32, AtomicAdd64],
        atomic::OR => [AtomicOr32, AtomicOr64],
        atomic::AND => [AtomicAnd32, AtomicAnd64],
        atomic::XOR => [AtomicXor32, AtomicXor64],
        _ if insn.imm == atomic::XCHG => [Xchg32, Xchg64],
        _ if insn.imm == atomic::CMPXCHG => [CmpXchg32, CmpXchg64],
        _ => return Err("an unknown atomic operation"),
    };
    match insn.size() {
        size::W => Ok(narrow),
        size::DW => Ok(wide),
        _ => Err("an atomic operation of a width that there is not"),
    }
}
