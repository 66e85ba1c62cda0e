//! The operations of the interpreter: eBPF instructions decoded once, so that each takes one dispatch and no further
//! look at its encoding.
//!
//! A program's code has one [`Code`] per instruction slot, at the same index, so that jump distances are those of the
//! bytecode and an address in the code is an instruction index. A fused operation stands in place of its first
//! instruction and does the work of those behind it too; they are still there for jumps into the middle.

/// A decoded instruction.
///
/// | operations | `dst` | `a` | `imm` |
/// |---|---|---|---|
/// | `…X` arithmetic | destination | source register | |
/// | `…K` arithmetic | destination | | operand |
/// | `J…X` | left side | right side | distance |
/// | `J…K` | left side | distance (`i16`) | right side |
/// | `Ldx…` | destination | base register | offset |
/// | `Stx…`, atomics | base register | source register | offset |
/// | `St…` | base register | offset (`i16`) | value |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Code {
    /// The operation.
    pub op: Op,
    /// Destination register.
    pub dst: u8,
    /// Source register or 16-bit offset.
    pub a: u16,
    /// Immediate, offset or distance.
    pub imm: i32,
}

/// What a [`Code`] does. `X` takes a register, `K` the immediate; 64 and 32 are the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[rustfmt::skip]
#[allow(missing_docs)] // the names are the instructions'
pub enum Op {
    /// Ends the program with 0: what stands where no verified path leads.
    Trap,
    Add64X, Add64K, Add32X, Add32K, Sub64X, Sub64K, Sub32X, Sub32K, Mul64X, Mul64K, Mul32X, Mul32K,
    Div64X, Div64K, Div32X, Div32K, Mod64X, Mod64K, Mod32X, Mod32K,
    SDiv64X, SDiv64K, SDiv32X, SDiv32K, SMod64X, SMod64K, SMod32X, SMod32K,
    Or64X, Or64K, Or32X, Or32K, And64X, And64K, And32X, And32K, Xor64X, Xor64K, Xor32X, Xor32K,
    Lsh64X, Lsh64K, Lsh32X, Lsh32K, Rsh64X, Rsh64K, Rsh32X, Rsh32K, Arsh64X, Arsh64K, Arsh32X, Arsh32K,
    Mov64X, Mov64K, Mov32X, Mov32K, Neg64, Neg32,
    MovSx8To64, MovSx16To64, MovSx32To64, MovSx8To32, MovSx16To32,
    Zext8, Zext16, Swap16, Swap32, Swap64,
    LdxB, LdxH, LdxW, LdxDw, LdxSB, LdxSH, LdxSW,
    /// Loads from kernel objects, which give 0 where there is none.
    ObjB, ObjH, ObjW, ObjDw, ObjSB, ObjSH, ObjSW,
    StB, StH, StW, StDw, StxB, StxH, StxW, StxDw,
    AtomicAdd32, AtomicOr32, AtomicAnd32, AtomicXor32, FetchAdd32, FetchOr32, FetchAnd32, FetchXor32, Xchg32, CmpXchg32,
    AtomicAdd64, AtomicOr64, AtomicAnd64, AtomicXor64, FetchAdd64, FetchOr64, FetchAnd64, FetchXor64, Xchg64, CmpXchg64,
    LoadAcqB, LoadAcqH, LoadAcqW, LoadAcqDw, StoreRelB, StoreRelH, StoreRelW, StoreRelDw,
    /// Absolute packet loads: offset in `imm`; a register is added to it in the indirect form.
    LdAbsB, LdAbsH, LdAbsW, LdIndB, LdIndH, LdIndW,
    /// 64-bit immediate: low half here, high half in the next slot's `imm`.
    LdImm64,
    /// Address of the process's handle of map `imm`.
    LdMap,
    /// Address in the data of map `imm`, at the offset in the next slot's `imm`.
    LdMapValue,
    /// Unconditional jump by `imm`.
    Ja,
    Jeq64X, Jeq64K, Jeq32X, Jeq32K, Jne64X, Jne64K, Jne32X, Jne32K,
    Jset64X, Jset64K, Jset32X, Jset32K,
    Jgt64X, Jgt64K, Jgt32X, Jgt32K, Jge64X, Jge64K, Jge32X, Jge32K,
    Jlt64X, Jlt64K, Jlt32X, Jlt32K, Jle64X, Jle64K, Jle32X, Jle32K,
    Jsgt64X, Jsgt64K, Jsgt32X, Jsgt32K, Jsge64X, Jsge64K, Jsge32X, Jsge32K,
    Jslt64X, Jslt64K, Jslt32X, Jslt32K, Jsle64X, Jsle64K, Jsle32X, Jsle32K,
    /// Call of the subprogram at distance `imm`; `a` is the caller's stack use in bytes, `dst` a 16th of the callee's if that
    /// has a `may_goto`, else 0.
    CallSub,
    /// Call of a function where the cell says that is `imm` bytes behind the head of the control arena; `a` is as above.
    CallCell,
    /// Goes on where the cell says that is `imm` bytes behind the head of the control arena.
    GoCell,
    /// A function is entered that others than its own program call: goes on at distance `imm`. `a` is a 16th of the
    /// function's frame if it has a `may_goto`, else 0; `dst` is 1 if it is a main function.
    Enter,
    /// What runs around a function: an [`Around`](crate::around::Around) `imm` bytes behind this operation, which is the
    /// first one of two.
    Around,
    /// The second one: the function has returned.
    Returned,
    /// Call of helper `imm`.
    CallHelper,
    /// The helper `map_lookup_elem`.
    CallLookup,
    /// The helper `tail_call`.
    TailCall,
    /// Call of the function of the runtime at place `imm` of its table.
    CallEntry,
    /// Call of the application's function `imm`.
    CallHost,
    /// The same, of one that calls back; `a` is the caller's stack use in bytes.
    CallBack,
    /// Address of the function at distance `imm`; if that has a `may_goto`, a 16th of its frame is in the next slot's `imm`.
    LdFunc,
    /// Jump by `imm` once the function has gone through enough loops; what is left is at its frame pointer less `a`.
    MayGoto,
    /// Ends what this program has called, and goes on at distance `imm`, in the main function's frame; with -1 it ends the
    /// program with r1. `dst` is as in `CallSub`.
    Throw,
    Exit,
    // Fused operations.
    /// `rD = rS; rD += imm` (the sum's immediate is the next slot's).
    MovAdd64,
    /// `rD <<= imm; rD >>= imm of the next slot` (unsigned and signed).
    LshRsh64, LshArsh64,
    /// `rD += imm`, then the conditional jump of the next slot on the same register.
    AddJne64K, AddJne64X, AddJlt64X,
    /// `rD &= imm`, then the test for zero of the next slot.
    AndJeq64K, AndJne64K,
}

impl Op {
    /// Number of operations.
    pub const COUNT: usize = Op::AndJne64K as usize + 1;
}

const _: () = assert!(size_of::<Code>() == 8 && Op::COUNT <= 256);
