//! Random programs that are mostly well-typed, so that the verifiers get past the first instructions.

mod calls;
mod loops;
mod maps;
mod numbers;
mod packets;
mod stack;

use skep_ebpf::Insn;
use skep_ebpf::insn::{CALL, EXIT, LD_IMM64, alu, class, jmp, mode, pseudo, size};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType, map_flags};

use crate::typed::{self, Function};

/// A small generator of numbers (xorshift64*).
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// The maps that every program can use.
pub fn maps() -> Vec<MapDef> {
    let mut frozen = MapDef::new("rodata", MapType::Array, 4, 32, 1);
    frozen.flags = map_flags::RDONLY_PROG;
    frozen.frozen = true;
    frozen.initial = Some((0..32u8).map(|n| n.wrapping_mul(37) ^ 0x85).collect());
    let mut write_only = MapDef::new("wronly", MapType::Array, 4, 16, 4);
    write_only.flags = map_flags::WRONLY_PROG;
    let mut outer = MapDef::new("outer", MapType::ArrayOfMaps, 4, 4, 4);
    outer.inner = Some(std::sync::Arc::new(MapDef::new("inner", MapType::Array, 4, 24, 4)));
    vec![
        MapDef::new("array", MapType::Array, 4, 48, 4),
        MapDef::new("hash", MapType::Hash, 8, 64, 16),
        frozen,
        MapDef::new("percpu", MapType::PercpuArray, 4, 24, 2),
        MapDef::new("ring", MapType::Ringbuf, 0, 0, 4096),
        MapDef::new("events", MapType::PerfEventArray, 4, 4, 4),
        MapDef::new("progs", MapType::ProgArray, 4, 4, 4),
        write_only,
        MapDef::new("data", MapType::Array, 4, 64, 1),
        MapDef::new("queue", MapType::Queue, 0, 16, 8),
        outer,
    ]
}

const VALUE_SIZES: [i64; 11] = [48, 64, 32, 24, 0, 4, 4, 16, 64, 16, 24];
const ARITH: [u8; 13] = [
    alu::ADD,
    alu::SUB,
    alu::MUL,
    alu::DIV,
    alu::OR,
    alu::AND,
    alu::LSH,
    alu::RSH,
    alu::NEG,
    alu::MOD,
    alu::XOR,
    alu::MOV,
    alu::ARSH,
];
const COMPARE: [u8; 11] =
    [jmp::JEQ, jmp::JGT, jmp::JGE, jmp::JSET, jmp::JNE, jmp::JSGT, jmp::JSGE, jmp::JLT, jmp::JLE, jmp::JSLT, jmp::JSLE];
const SIZES: [u8; 4] = [size::B, size::H, size::W, size::DW];
const WIDTH: [i16; 4] = [1, 2, 4, 8];

/// Registers that hold numbers most of the time.
const NUMBERS: [u8; 6] = [0, 1, 2, 3, 7, 8];

struct Gen<'r> {
    rng: &'r mut Rng,
    out: Vec<Insn>,
    ty: ProgType,
    /// Calls to patch: instruction, function.
    calls: Vec<(usize, usize)>,
    in_subprog: bool,
    /// Makes no mistakes on purpose.
    careful: bool,
    /// The functions behind the main one, chosen before it is made.
    plan: Vec<Role>,
    /// What the function that is being made is.
    role: Option<Role>,
}

/// What a function is there for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Called with the context (or not) and some numbers.
    Plain,
    /// Called with the context and a pointer to eight bytes of its caller's stack, or to packet data.
    Pointer,
    /// Global: the context and a number.
    Global,
    /// Global: a number and memory that is there.
    GlobalMemory,
    /// Global: a number and memory that may not be there.
    GlobalNullable,
    /// Called back by `bpf_loop`.
    Loop,
    /// Called back for each element of a map.
    Each,
}

impl Role {
    fn function(self) -> Function {
        let (params, global) = match self {
            Role::Plain => ("iiiii", false),
            Role::Pointer => ("cp", false),
            Role::Global => ("ci", true),
            Role::GlobalMemory => ("in", true),
            Role::GlobalNullable => ("ip", true),
            Role::Loop => ("ip", false),
            Role::Each => ("ippp", false),
        };
        Function::new(params, global)
    }
}

/// A program, and its BTF if it has functions that need it.
pub struct Made {
    pub program: Program,
    #[allow(dead_code, reason = "only the fuzzer asks the kernel")]
    pub btf: Option<Vec<u8>>,
}

/// Makes a program. Those with `typed` have functions of all roles, the others plain ones at most.
pub fn program(rng: &mut Rng, maps: &std::sync::Arc<[MapDef]>, typed: bool) -> Made {
    let types = [
        ProgType::SocketFilter,
        ProgType::SchedCls,
        ProgType::SchedCls,
        ProgType::Xdp,
        ProgType::Kprobe,
        ProgType::Tracepoint,
        ProgType::RawTracepoint,
        ProgType::PerfEvent,
    ];
    let ty = rng.pick(&types);
    let roles = [
        Role::Plain,
        Role::Pointer,
        Role::Pointer,
        Role::Global,
        Role::GlobalMemory,
        Role::GlobalNullable,
        Role::Loop,
        Role::Loop,
        Role::Loop,
        Role::Each,
        Role::Each,
    ];
    let plan = if typed { (0..1 + rng.below(3)).map(|_| rng.pick(&roles)).collect() } else { vec![Role::Plain; 2] };
    let careful = rng.chance(55);
    let mut g = Gen { rng, out: Vec::new(), ty, calls: Vec::new(), in_subprog: false, careful, plan, role: None };
    g.main();
    let mut starts = vec![0];
    let mut n = 1;
    // Functions may call those behind them.
    while n <= g.calls.iter().map(|c| c.1).max().unwrap_or(0) {
        starts.push(g.out.len());
        g.subprog(n);
        n += 1;
    }
    for (at, f) in std::mem::take(&mut g.calls) {
        let target = starts.get(f).copied().unwrap_or(0) as i32;
        g.out[at].imm = target - at as i32 - 1;
    }
    if g.slip(15) {
        g.mutate();
    }
    let functions: Vec<Function> = g.plan.iter().take(starts.len() - 1).map(|r| r.function()).collect();
    let mut p = Program::new("fuzz", ty, "GPL", std::mem::take(&mut g.out));
    p.maps = maps.clone();
    if rng.chance(10) {
        p.flags |= skep_ebpf::uapi::prog_flags::STRICT_ALIGNMENT;
    }
    if rng.chance(15) {
        p.flags |= skep_ebpf::uapi::prog_flags::TEST_STATE_FREQ;
    }
    let btf = typed.then(|| typed::attach(&mut p, &functions));
    Made { program: p, btf }
}

impl Gen<'_> {
    fn emit(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.out.push(Insn::new(code, dst, src, off, imm));
    }

    fn mov(&mut self, dst: u8, src: u8) {
        self.emit(class::ALU64 | alu::MOV | 8, dst, src, 0, 0);
    }

    fn mov_imm(&mut self, dst: u8, imm: i32) {
        self.emit(class::ALU64 | alu::MOV, dst, 0, 0, imm);
    }

    fn add(&mut self, dst: u8, imm: i32) {
        self.emit(class::ALU64 | alu::ADD, dst, 0, 0, imm);
    }

    fn map(&mut self, dst: u8, map: usize) {
        self.emit(LD_IMM64, dst, pseudo::MAP_IDX, 0, map as i32);
        self.emit(0, 0, 0, 0, 0);
    }

    fn call(&mut self, helper: i32) {
        self.emit(CALL, 0, 0, 0, helper);
        // Arguments are gone.
        for r in 1..=3 {
            let n = self.small();
            self.mov_imm(r, n);
        }
    }

    fn small(&mut self) -> i32 {
        match self.rng.below(8) {
            0 => 0,
            1 => -1,
            2 => 1 << self.rng.below(32),
            3 => self.rng.next() as i32,
            4 => -(self.rng.below(64) as i32),
            _ => self.rng.below(64) as i32,
        }
    }

    /// A mistake on purpose.
    fn slip(&mut self, percent: u64) -> bool {
        !self.careful && self.rng.chance(percent)
    }

    fn number(&mut self) -> u8 {
        self.rng.pick(&NUMBERS)
    }

    fn main(&mut self) {
        self.mov(6, 1);
        self.prologue();
        let n = 4 + self.rng.below(14);
        self.body(n, 0);
        if !self.slip(8) {
            self.mov_imm(0, 0);
        }
        self.emit(EXIT, 0, 0, 0, 0);
    }

    fn subprog(&mut self, n: usize) {
        self.in_subprog = true;
        let role = self.plan.get(n - 1).copied().unwrap_or(Role::Plain);
        self.role = Some(role);
        match role {
            Role::Plain => {
                self.mov(6, 1);
                self.prologue();
            }
            _ => self.enter(role),
        }
        let items = 2 + self.rng.below(6);
        self.body(items, 0);
        if matches!(role, Role::Loop | Role::Each) && !self.slip(12) {
            self.emit(class::ALU64 | alu::AND, 0, 0, 0, 1);
        }
        self.emit(EXIT, 0, 0, 0, 0);
        self.role = None;
    }

    /// Gives every register something.
    fn prologue(&mut self) {
        for off in [-8i16, -16, -24, -32] {
            if self.rng.chance(80) {
                let imm = self.small();
                self.emit(class::ST | mode::MEM | size::DW, 10, 0, off, imm);
            }
        }
        self.emit(CALL, 0, 0, 0, 7);
        for r in [0u8, 1, 2, 3, 7, 8, 9] {
            match self.rng.below(4) {
                0 => {
                    let n = self.small();
                    self.mov_imm(r, n);
                }
                1 if r != 0 => self.mov(r, 0),
                2 => self.load_ctx(r),
                _ => {
                    self.emit(CALL, 0, 0, 0, 7);
                    self.mov(if r == 0 { 7 } else { r }, 0);
                }
            }
        }
        for r in 1..=3 {
            let n = self.small();
            self.mov_imm(r, n);
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
    }

    fn body(&mut self, n: u64, depth: u32) {
        for _ in 0..n {
            self.item(depth);
        }
    }

    fn item(&mut self, depth: u32) {
        if self.plan.len() != 2 || self.plan[0] != Role::Plain {
            match self.rng.below(30) {
                0..=3 => return self.role_call(),
                4 => return self.may_goto(depth),
                5 => return self.tail_call(),
                6 => return self.inner_map(),
                7 => return self.ordered(),
                _ => {}
            }
        }
        match self.rng.below(26) {
            0..=5 => self.arith(),
            6..=8 => self.branch(depth),
            9 | 10 => self.stack(),
            11 => self.stack_variable(),
            12..=14 => self.map_value(depth),
            15 => self.direct_value(),
            16 | 17 => self.packet(depth),
            18 => self.helper(),
            19 => self.atomic(),
            20 => self.looping(depth),
            21 => self.ringbuf(),
            22 => self.function_call(),
            23 | 24 => self.linked(),
            _ => self.pointer_mix(),
        }
    }

    /// Damages one instruction.
    fn mutate(&mut self) {
        let at = self.rng.below(self.out.len() as u64) as usize;
        let r = self.rng.below(11) as u8;
        let k = self.small();
        let i = &mut self.out[at];
        if i.is_ld_imm64() || i.code == 0 || i.is_subprog_call() {
            return;
        }
        match self.rng.below(5) {
            0 => i.regs = (i.regs & 0xf0) | r,
            1 => i.regs = (i.regs & 0x0f) | r << 4,
            2 => i.off = i.off.wrapping_add(k as i16 & 15),
            3 => i.imm = k,
            _ => i.code ^= 1 << self.rng.below(8),
        }
    }
}
