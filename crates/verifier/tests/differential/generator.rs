//! Random programs that are mostly well-typed, so that the verifiers get past the first instructions.

use skep_ebpf::Insn;
use skep_ebpf::insn::{CALL, EXIT, JA, LD_IMM64, alu, atomic, class, jmp, mode, pseudo, size};
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
    let mut g = Gen { rng, out: Vec::new(), ty, calls: Vec::new(), in_subprog: false, plan, role: None };
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
    if g.rng.chance(12) {
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

    fn number(&mut self) -> u8 {
        self.rng.pick(&NUMBERS)
    }

    fn main(&mut self) {
        self.mov(6, 1);
        self.prologue();
        let n = 4 + self.rng.below(14);
        self.body(n, 0);
        if self.rng.chance(95) {
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
        if matches!(role, Role::Loop | Role::Each) && self.rng.chance(92) {
            self.emit(class::ALU64 | alu::AND, 0, 0, 0, 1);
        }
        self.emit(EXIT, 0, 0, 0, 0);
        self.role = None;
    }

    /// Uses the pointers that a function is given, then goes on as all others do. The first one ends up in r9.
    fn enter(&mut self, role: Role) {
        let width = |g: &mut Self| g.rng.below(4) as usize;
        match role {
            Role::Pointer | Role::GlobalMemory | Role::GlobalNullable | Role::Loop => {
                self.mov(9, 2);
                if role == Role::GlobalNullable && self.rng.chance(85) {
                    self.emit(class::JMP | jmp::JNE, 9, 0, 2, 0);
                    self.mov_imm(0, 0);
                    self.emit(EXIT, 0, 0, 0, 0);
                }
                self.mov(8, 1);
                self.mov_imm(7, 2);
                for _ in 0..1 + self.rng.below(3) {
                    let n = width(self);
                    match self.rng.below(5) {
                        0 => self.emit(
                            class::STX | mode::MEM | SIZES[n],
                            9,
                            if role == Role::Pointer { 7 } else { 8 },
                            0,
                            0,
                        ),
                        1 => {
                            let imm = self.small();
                            self.emit(class::ST | mode::MEM | SIZES[n], 9, 0, 0, imm);
                        }
                        2 => {
                            // A counter of rounds, that may be masked.
                            self.emit(class::LDX | mode::MEM | size::DW, 7, 9, 0, 0);
                            self.add(7, 1);
                            if self.rng.chance(60) {
                                let mask = self.rng.pick(&[7, 15, 31, 63]);
                                self.emit(class::ALU64 | alu::AND, 7, 0, 0, mask);
                            }
                            self.emit(class::STX | mode::MEM | size::DW, 9, 7, 0, 0);
                        }
                        _ => self.emit(class::LDX | mode::MEM | SIZES[n], 7, 9, 0, 0),
                    }
                }
            }
            Role::Each => {
                let n = width(self);
                let read = self.rng.chance(50);
                let off = if self.rng.chance(90) { 0 } else { self.rng.pick(&[8i16, 16, 24]) };
                let r = if n < 3 { self.rng.pick(&[2u8, 3]) } else { 3 };
                self.mov(9, r);
                if read {
                    self.emit(class::LDX | mode::MEM | SIZES[n], 7, 9, off, 0);
                } else {
                    self.emit(class::ST | mode::MEM | SIZES[n], 3, 0, off, 1);
                }
            }
            _ => {}
        }
        if matches!(role, Role::Global | Role::Pointer) {
            self.mov(6, 1);
        } else {
            self.mov_imm(6, 5);
        }
        let keep = role == Role::Loop && self.rng.chance(40);
        let saved = [8u8, 7];
        for off in [-8i16, -16, -24, -32] {
            if self.rng.chance(80) {
                let imm = self.small();
                self.emit(class::ST | mode::MEM | size::DW, 10, 0, off, imm);
            }
        }
        for r in [0u8, 1, 2, 3, 7, 8] {
            if keep && saved.contains(&r) {
                self.mov_imm(r, 1);
            } else if self.rng.chance(50) || r < 7 || role == Role::Each {
                let n = self.small();
                self.mov_imm(r, n);
            } else {
                self.emit(CALL, 0, 0, 0, 7);
                self.mov(7, 0);
                self.mov(8, 0);
            }
        }
        for r in 0..=5 {
            let n = self.small();
            self.mov_imm(r, n);
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
        self.mov_imm(9, 0);
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

    fn load_ctx(&mut self, r: u8) {
        if self.in_subprog && self.rng.chance(60) {
            let n = self.small();
            return self.mov_imm(r, n);
        }
        match self.ty {
            ProgType::SocketFilter | ProgType::SchedCls => {
                let off = self.rng.pick(&[0i16, 4, 8, 16, 48, 52, 32]);
                self.emit(class::LDX | mode::MEM | size::W, r, 6, off, 0);
            }
            ProgType::Xdp => {
                let off = self.rng.pick(&[12i16, 16]);
                self.emit(class::LDX | mode::MEM | size::W, r, 6, off, 0);
            }
            _ => {
                let off = self.rng.pick(&[8i16, 16, 24, 80]);
                self.emit(class::LDX | mode::MEM | size::DW, r, 6, off, 0);
            }
        }
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
        match self.rng.below(24) {
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
            _ => self.pointer_mix(),
        }
    }

    fn arith(&mut self) {
        let op = self.rng.pick(&ARITH);
        let class = self.rng.pick(&[class::ALU, class::ALU64]);
        let width = if class == class::ALU { 32 } else { 64 };
        let dst = self.number();
        if op == alu::NEG {
            return self.emit(class | op, dst, 0, 0, 0);
        }
        if self.rng.chance(6) {
            let w = self.rng.pick(&[16, 32, 64]);
            let (c, x) = self.rng.pick(&[(class::ALU, 0), (class::ALU, 8), (class::ALU64, 0)]);
            return self.emit(c | alu::END | x, dst, 0, 0, w);
        }
        let signed = i16::from(matches!(op, alu::DIV | alu::MOD) && self.rng.chance(30));
        if self.rng.chance(50) {
            let src = self.number();
            let off = if op == alu::MOV && self.rng.chance(35) {
                self.rng.pick(if width == 32 { &[8, 16] } else { &[8, 16, 32] })
            } else {
                signed
            };
            self.emit(class | op | 8, dst, src, off, 0);
        } else {
            let imm = match op {
                alu::LSH | alu::RSH | alu::ARSH => self.rng.below(width) as i32,
                alu::DIV | alu::MOD => self.small() | 1,
                _ => self.small(),
            };
            self.emit(class | op, dst, 0, signed, imm);
        }
    }

    fn branch(&mut self, depth: u32) {
        let op = self.rng.pick(&COMPARE);
        let class = self.rng.pick(&[class::JMP, class::JMP, class::JMP32]);
        let dst = self.number();
        let at = self.out.len();
        if self.rng.chance(40) {
            let src = self.number();
            self.emit(class | op | 8, dst, src, 0, 0);
        } else {
            let imm = self.small();
            self.emit(class | op, dst, 0, 0, imm);
        }
        if depth < 2 {
            let n = 1 + self.rng.below(3);
            self.body(n, depth + 1);
        } else {
            self.arith();
        }
        if self.rng.chance(30) {
            let jump = self.out.len();
            self.emit(JA, 0, 0, 0, 0);
            self.out[at].off = (self.out.len() - at - 1) as i16;
            self.arith();
            self.arith();
            self.out[jump].off = (self.out.len() - jump - 1) as i16;
        } else {
            self.out[at].off = (self.out.len() - at - 1) as i16;
        }
        if self.rng.chance(25) && self.out.len() - at > 1 {
            // Use what was compared as an index.
            self.use_index(dst);
        }
    }

    /// Uses a number as an offset into a map value, without or with too little masking.
    fn use_index(&mut self, r: u8) {
        self.emit(LD_IMM64, 5, pseudo::MAP_IDX_VALUE, 0, 8);
        self.emit(0, 0, 0, 0, 0);
        self.mov(4, r);
        if self.rng.chance(85) {
            let mask = self.rng.pick(&[7, 15, 31, 63, 60]);
            self.emit(class::ALU64 | alu::AND, 4, 0, 0, mask);
        }
        self.emit(class::ALU64 | alu::ADD | 8, 5, 4, 0, 0);
        let dst = self.number();
        self.emit(class::LDX | mode::MEM | size::B, dst, 5, 0, 0);
    }

    fn stack(&mut self) {
        let n = self.rng.below(4) as usize;
        let off = -(WIDTH[n] * (1 + self.rng.below((32 / WIDTH[n]) as u64) as i16));
        let r = if self.rng.chance(15) { self.rng.pick(&[6, 9, 10]) } else { self.number() };
        match self.rng.below(4) {
            0 => {
                let imm = self.small();
                self.emit(class::ST | mode::MEM | SIZES[n], 10, 0, off, imm);
            }
            1 => self.emit(class::STX | mode::MEM | SIZES[n], 10, r, off, 0),
            2 if n < 3 && self.rng.chance(40) => {
                let dst = self.number();
                self.emit(class::LDX | mode::MEMSX | SIZES[n], dst, 10, off, 0);
            }
            _ => {
                let dst = self.number();
                self.emit(class::LDX | mode::MEM | SIZES[n], dst, 10, off, 0);
            }
        }
    }

    fn stack_variable(&mut self) {
        let r = self.number();
        self.mov(4, r);
        let mask = self.rng.pick(&[8, 16, 24, 24, 24, 16, 8, 7]);
        self.emit(class::ALU64 | alu::AND, 4, 0, 0, mask);
        self.mov(5, 10);
        self.add(5, -32);
        self.emit(class::ALU64 | alu::ADD | 8, 5, 4, 0, 0);
        let size = self.rng.pick(&SIZES);
        let other = self.number();
        if self.rng.chance(50) {
            self.emit(class::LDX | mode::MEM | size, other, 5, 0, 0);
        } else {
            self.emit(class::STX | mode::MEM | size, 5, other, 0, 0);
        }
    }

    fn key(&mut self) {
        let imm = self.rng.below(6) as i32;
        let size = self.rng.pick(&[size::W, size::DW]);
        self.emit(class::ST | mode::MEM | size, 10, 0, -8, imm);
        self.mov(2, 10);
        self.add(2, -8);
    }

    fn map_value(&mut self, depth: u32) {
        let map = self.rng.pick(&[0usize, 0, 0, 1, 1, 1, 3, 3, 8, 8, 8, 0, 1, 3, 2, 7]);
        self.key();
        self.map(1, map);
        self.call(1);
        let at = self.out.len();
        if self.rng.chance(92) {
            self.emit(class::JMP | jmp::JEQ, 0, 0, 0, 0);
        }
        self.mov(9, 0);
        let top = VALUE_SIZES[map];
        match self.rng.below(4) {
            0 => {
                // A bounded index.
                let r = self.rng.pick(&[1u8, 2, 3, 7, 8]);
                let mask = self.rng.pick(&[7, 15, 31, 63]);
                if self.rng.chance(60) {
                    self.emit(class::ALU64 | alu::AND, r, 0, 0, mask);
                } else {
                    let op = self.rng.pick(&[jmp::JGT, jmp::JSGT, jmp::JGE]);
                    let class = self.rng.pick(&[class::JMP, class::JMP32]);
                    self.emit(class | op, r, 0, 1, top as i32 - 8);
                    self.emit(JA, 0, 0, 1, 0);
                    self.mov_imm(r, 3);
                }
                self.emit(class::ALU64 | alu::ADD | 8, 9, r, 0, 0);
                self.access(9, top - i64::from(mask));
            }
            1 => {
                let k = self.rng.below(16) as i32;
                self.add(9, k);
                self.access(9, top - i64::from(k));
            }
            _ => self.access(9, top),
        }
        if depth < 2 && self.rng.chance(30) {
            self.body(1, depth + 1);
        }
        if self.out[at].code == class::JMP | jmp::JEQ {
            self.out[at].off = (self.out.len() - at - 1) as i16;
        }
        self.mov_imm(0, 1);
        self.mov_imm(9, 0);
    }

    /// A load or store in a region of about this size.
    fn access(&mut self, ptr: u8, room: i64) {
        let n = self.rng.below(4) as usize;
        let span = room.max(1) as u64;
        let mut off = self.rng.below(span) as i16;
        if self.rng.chance(85) {
            off = off / WIDTH[n] * WIDTH[n];
            if i64::from(off + WIDTH[n]) > room {
                off = 0;
            }
        }
        if self.rng.chance(55) {
            let dst = self.number();
            let m = if n < 3 && self.rng.chance(20) { mode::MEMSX } else { mode::MEM };
            self.emit(class::LDX | m | SIZES[n], if dst == ptr { 7 } else { dst }, ptr, off, 0);
        } else if self.rng.chance(50) {
            let src = self.number();
            self.emit(class::STX | mode::MEM | SIZES[n], ptr, src, off, 0);
        } else {
            let imm = self.small();
            self.emit(class::ST | mode::MEM | SIZES[n], ptr, 0, off, imm);
        }
    }

    fn direct_value(&mut self) {
        let map = self.rng.pick(&[2usize, 8]);
        let off = self.rng.below(VALUE_SIZES[map] as u64) as i32;
        self.emit(LD_IMM64, 9, pseudo::MAP_IDX_VALUE, 0, map as i32);
        self.emit(0, 0, 0, 0, off);
        self.access(9, VALUE_SIZES[map] - i64::from(off));
        self.mov_imm(9, 0);
    }

    fn packet(&mut self, depth: u32) {
        let (data, end) = match self.ty {
            ProgType::SchedCls => (76, 80),
            ProgType::Xdp => (0, 4),
            ProgType::SocketFilter => {
                let off = self.rng.below(40) as i32;
                let size = self.rng.pick(&[size::B, size::H, size::W]);
                self.emit(class::LD | mode::ABS | size, 0, 0, 0, off);
                for r in 1..=5 {
                    self.mov_imm(r, 0);
                }
                return;
            }
            _ => return self.arith(),
        };
        if self.in_subprog {
            return self.arith();
        }
        self.emit(class::LDX | mode::MEM | size::W, 4, 6, data, 0);
        self.emit(class::LDX | mode::MEM | size::W, 5, 6, end, 0);
        if self.rng.chance(30) {
            let r = self.rng.pick(&[1u8, 2, 3, 7, 8]);
            let mask = self.rng.pick(&[15, 63, 0xff, 0xffff, 0x7fff]);
            self.emit(class::ALU64 | alu::AND, r, 0, 0, mask);
            self.emit(class::ALU64 | alu::ADD | 8, 4, r, 0, 0);
        }
        self.mov(9, 4);
        let len = 1 + self.rng.below(40) as i32;
        self.add(9, len);
        let op = self.rng.pick(&[jmp::JGT, jmp::JGE, jmp::JLT, jmp::JLE]);
        let at = self.out.len();
        if self.rng.chance(50) {
            self.emit(class::JMP | op | 8, 9, 5, 0, 0);
        } else {
            self.emit(class::JMP | op | 8, 5, 9, 0, 0);
        }
        if self.rng.chance(50) {
            // The access stands behind a jump over it.
            self.emit(JA, 0, 0, 1, 0);
            self.out[at].off = 1;
            let n = self.rng.below(2) as i16;
            self.out[at + 1].off = n + 1;
        }
        let room = i64::from(len) - i64::from(self.rng.chance(20)) + i64::from(self.rng.chance(8));
        let through = if self.rng.chance(85) { 4 } else { 9 };
        self.access(through, room);
        if depth < 2 && self.rng.chance(25) {
            self.body(1, depth + 1);
        }
        if self.out[at].off == 0 {
            self.out[at].off = (self.out.len() - at - 1) as i16;
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
        self.mov_imm(9, 0);
    }

    fn helper(&mut self) {
        match self.rng.below(9) {
            0 => {
                self.key();
                self.mov(3, 10);
                self.add(3, -32);
                self.mov_imm(4, 0);
                let map = self.rng.pick(&[0usize, 1, 3, 7]);
                self.map(1, map);
                self.call(2);
            }
            1 => {
                self.key();
                self.map(1, 1);
                self.call(3);
            }
            2 => {
                // probe_read and friends, with a size that may be wrong.
                self.mov(1, 10);
                self.add(1, -32);
                let len = self.rng.pick(&[0, 4, 8, 32, 33, -1]);
                self.mov_imm(2, len);
                if self.rng.chance(40) {
                    let r = self.rng.pick(&[7u8, 8]);
                    self.mov(2, r);
                    let mask = self.rng.pick(&[7, 31, 63]);
                    self.emit(class::ALU64 | alu::AND, 2, 0, 0, mask);
                }
                let h = self.rng.pick(&[112, 113, 114, 115]);
                self.call(h);
            }
            3 => {
                self.mov(1, 6);
                self.map(2, 5);
                self.mov_imm(3, 0);
                self.mov(4, 10);
                self.add(4, -24);
                let len = self.rng.pick(&[8, 16, 24, 32]);
                self.mov_imm(5, len);
                self.call(25);
            }
            4 => {
                self.mov(1, 6);
                self.map(2, 6);
                self.mov_imm(3, 1);
                self.call(12);
            }
            5 => {
                self.mov(1, 10);
                self.add(1, -16);
                let len = self.rng.pick(&[16, 8, 0, 24]);
                self.mov_imm(2, len);
                self.call(16);
            }
            6 => {
                self.map(1, 4);
                self.mov(2, 10);
                self.add(2, -32);
                let len = self.rng.pick(&[8, 32, 40]);
                self.mov_imm(3, len);
                self.mov_imm(4, 0);
                self.call(130);
            }
            7 => {
                self.map(1, 9);
                self.mov(2, 10);
                self.add(2, -16);
                self.mov_imm(3, 0);
                let h = self.rng.pick(&[87, 88, 89]);
                self.call(h);
            }
            _ => {
                let h = self.rng.pick(&[5, 7, 8, 14, 125]);
                self.call(h);
            }
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
    }

    fn atomic(&mut self) {
        let size = self.rng.pick(&[size::W, size::DW]);
        let ops = [
            atomic::ADD,
            atomic::ADD | atomic::FETCH,
            atomic::OR,
            atomic::AND | atomic::FETCH,
            atomic::XOR,
            atomic::XCHG,
            atomic::CMPXCHG,
        ];
        let op = self.rng.pick(&ops);
        let off = self.rng.pick(&[-8i16, -16, -24, -4]);
        let src = self.number();
        self.emit(class::STX | mode::ATOMIC | size, 10, src, off, op);
    }

    fn looping(&mut self, depth: u32) {
        if depth > 0 {
            return self.arith();
        }
        let n = 1 + self.rng.below(12) as i32;
        self.mov_imm(7, 0);
        let head = self.out.len();
        self.body(1, 2);
        self.add(7, 1);
        let op = self.rng.pick(&[jmp::JLT, jmp::JSLT, jmp::JNE, jmp::JLE]);
        let back = head as i64 - self.out.len() as i64 - 1;
        self.emit(class::JMP | op, 7, 0, back as i16, n);
    }

    fn ringbuf(&mut self) {
        if self.in_subprog {
            return self.arith();
        }
        let len = self.rng.pick(&[8, 16, 24, 4]);
        self.map(1, 4);
        self.mov_imm(2, len);
        self.mov_imm(3, 0);
        self.call(131);
        let at = self.out.len();
        self.emit(class::JMP | jmp::JEQ, 0, 0, 0, 0);
        self.mov(9, 0);
        self.access(9, len.into());
        if self.rng.chance(92) {
            self.mov(1, 9);
            self.mov_imm(2, 0);
            let h = self.rng.pick(&[132, 133]);
            self.call(h);
        }
        self.out[at].off = (self.out.len() - at - 1) as i16;
        self.mov_imm(0, 0);
        self.mov_imm(9, 0);
    }

    /// Calls a function as its role wants it, mostly.
    fn role_call(&mut self) {
        let first = match self.role {
            None => 1,
            // A function calls one behind it at most.
            Some(_) => self.calls.iter().map(|c| c.1).max().unwrap_or(0) + 1,
        };
        if first > self.plan.len() || self.role.is_some() && self.rng.chance(60) {
            return self.arith();
        }
        let used = self.calls.iter().map(|c| c.1).max().unwrap_or(0);
        let last = (used + 1).min(self.plan.len());
        let f = if first >= last { last } else { first + self.rng.below((last - first + 1) as u64) as usize };
        if self.role.is_some() && self.calls.iter().any(|c| c.1 >= f && c.1 > used) {
            return self.arith();
        }
        let role = self.plan[f - 1];
        let word = self.rng.pick(&[-8i16, -16, -24]);
        let zero = self.small();
        match role {
            Role::Plain => self.mov(1, 6),
            Role::Global => self.mov(1, 6),
            Role::Pointer => {
                self.mov(1, 6);
                self.emit(class::ST | mode::MEM | size::DW, 10, 0, word, zero);
                self.mov(2, 10);
                self.add(2, word.into());
            }
            Role::GlobalMemory | Role::GlobalNullable => {
                match self.rng.below(4) {
                    0 => {
                        self.emit(LD_IMM64, 2, pseudo::MAP_IDX_VALUE, 0, 8);
                        let off = self.rng.pick(&[0, 8, 56, 57]);
                        self.emit(0, 0, 0, 0, off);
                    }
                    1 if role == Role::GlobalNullable => self.mov_imm(2, 0),
                    _ => {
                        self.emit(class::ST | mode::MEM | size::DW, 10, 0, word, zero);
                        self.mov(2, 10);
                        self.add(2, word.into());
                    }
                }
                self.mov_imm(1, 7);
            }
            Role::Loop | Role::Each => {
                if self.rng.chance(75) {
                    self.emit(class::ST | mode::MEM | size::DW, 10, 0, word, zero);
                } else {
                    let r = self.rng.pick(&[7u8, 8]);
                    self.emit(class::STX | mode::MEM | size::DW, 10, r, word, 0);
                }
                if role == Role::Loop {
                    let rounds = self.rng.pick(&[0, 1, 2, 7, 50, 1000]);
                    if self.rng.chance(60) {
                        self.mov_imm(1, rounds);
                    } else {
                        let r = self.rng.pick(&[7u8, 8]);
                        self.mov(1, r);
                    }
                } else {
                    let map = self.rng.pick(&[0usize, 1, 3, 7]);
                    self.map(1, map);
                }
                self.mov(3, 10);
                self.add(3, word.into());
                if role == Role::Each && self.rng.chance(40) {
                    self.mov_imm(3, 0);
                }
                self.mov_imm(4, 0);
                self.calls.push((self.out.len(), f));
                self.emit(LD_IMM64, 2, pseudo::FUNC, 0, 0);
                self.emit(0, 0, 0, 0, 0);
                self.call(if role == Role::Loop { 181 } else { 164 });
            }
        }
        if !matches!(role, Role::Loop | Role::Each) {
            for r in 3..=5 {
                self.mov_imm(r, 1);
            }
            if matches!(role, Role::Plain | Role::Global) {
                self.mov_imm(2, 9);
            }
            self.calls.push((self.out.len(), f));
            self.emit(CALL, 0, 1, 0, 0);
            for r in 1..=5 {
                self.mov_imm(r, 1);
            }
        }
        if self.rng.chance(50) {
            // What the function may have left is used as an index.
            self.emit(class::LDX | mode::MEM | size::DW, 7, 10, word, 0);
            self.use_index(7);
        } else if self.rng.chance(25) {
            self.use_index(0);
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
    }

    fn may_goto(&mut self, depth: u32) {
        if depth > 0 {
            return self.arith();
        }
        let start = self.small();
        let r = self.rng.pick(&[7u8, 8]);
        if self.rng.chance(60) {
            self.mov_imm(r, start);
        }
        let head = self.out.len();
        self.emit(class::JMP | jmp::JCOND, 0, 0, 0, 0);
        self.body(1, 2);
        if self.rng.chance(70) {
            self.add(r, 1);
        }
        let leave = self.out.len();
        if self.rng.chance(40) {
            let n = self.small();
            self.emit(class::JMP | jmp::JGT, r, 0, 1, n);
        }
        let back = head as i64 - self.out.len() as i64 - 1;
        self.emit(JA, 0, 0, back as i16, 0);
        if self.out[leave].op() == jmp::JGT {
            self.out[leave].off = 1;
        }
        self.out[head].off = (self.out.len() - head - 1) as i16;
        if self.rng.chance(60) {
            self.use_index(r);
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
    }

    fn tail_call(&mut self) {
        if matches!(self.role, Some(r) if !matches!(r, Role::Global | Role::Pointer)) {
            return self.arith();
        }
        self.mov(1, 6);
        self.map(2, 6);
        self.mov_imm(3, 1);
        self.call(12);
        let n = self.rng.below(40) as i32;
        self.mov_imm(0, n);
    }

    fn inner_map(&mut self) {
        self.key();
        self.map(1, 10);
        self.call(1);
        let at = self.out.len();
        self.emit(class::JMP | jmp::JEQ, 0, 0, 0, 0);
        self.mov(9, 0);
        self.key();
        let r = if self.rng.chance(90) { 9 } else { 0 };
        self.mov(1, r);
        self.call(1);
        let inner = self.out.len();
        if self.rng.chance(85) {
            self.emit(class::JMP | jmp::JEQ, 0, 0, 0, 0);
        }
        self.mov(9, 0);
        self.access(9, 24);
        if self.out[inner].code == class::JMP | jmp::JEQ {
            self.out[inner].off = (self.out.len() - inner - 1) as i16;
        }
        self.out[at].off = (self.out.len() - at - 1) as i16;
        self.mov_imm(0, 1);
        self.mov_imm(9, 0);
    }

    /// Loads and stores with an order.
    fn ordered(&mut self) {
        let n = self.rng.below(4) as usize;
        let off = if self.rng.chance(94) { self.rng.pick(&[-8i16, -16, -24]) } else { -12 };
        let r = self.rng.pick(&[7u8, 8]);
        self.emit(class::STX | mode::ATOMIC | SIZES[n], 10, r, off, atomic::STORE_REL);
        let r = self.number();
        self.emit(class::STX | mode::ATOMIC | SIZES[n], r, 10, off, atomic::LOAD_ACQ);
        let back = self.rng.pick(&[7u8, 8]);
        self.emit(class::LDX | mode::MEM | size::DW, back, 10, -16, 0);
    }

    fn function_call(&mut self) {
        if self.in_subprog || self.plan.len() != 2 || self.plan.iter().any(|r| *r != Role::Plain) {
            return self.arith();
        }
        let used = self.calls.iter().map(|c| c.1).max().unwrap_or(0);
        let f = 1 + self.rng.below(used.min(1) as u64 + 1) as usize;
        if self.rng.chance(60) {
            self.mov(1, 6);
        }
        for r in 2..=5 {
            if self.rng.chance(40) {
                let n = self.small();
                self.mov_imm(r, n);
            }
        }
        self.calls.push((self.out.len(), f));
        self.emit(CALL, 0, 1, 0, 0);
        for r in 1..=5 {
            self.mov_imm(r, 1);
        }
    }

    fn pointer_mix(&mut self) {
        let r = self.number();
        match self.rng.below(5) {
            0 => {
                self.emit(class::STX | mode::MEM | size::DW, 10, 6, -24, 0);
                self.emit(class::LDX | mode::MEM | size::DW, 9, 10, -24, 0);
                self.load_from(9);
            }
            1 => {
                self.mov(9, 10);
                self.emit(class::ALU64 | alu::SUB | 8, 9, 10, 0, 0);
            }
            2 => {
                self.mov(9, 6);
                let op = self.rng.pick(&ARITH);
                self.emit(
                    class::ALU64 | op | if op == alu::NEG { 0 } else { 8 },
                    9,
                    if op == alu::NEG { 0 } else { r },
                    0,
                    0,
                );
            }
            3 => {
                self.mov(9, r);
                self.emit(class::ALU | alu::MOV | 8, 9, 6, 0, 0);
            }
            _ => {
                self.emit(class::JMP | jmp::JEQ | 8, 6, r, 1, 0);
                self.arith();
            }
        }
        self.mov_imm(9, 0);
    }

    fn load_from(&mut self, ptr: u8) {
        let (size, off) = match self.ty {
            ProgType::SocketFilter | ProgType::SchedCls => (size::W, 0),
            ProgType::Xdp => (size::W, 12),
            _ => (size::DW, 16),
        };
        self.emit(class::LDX | mode::MEM | size, 7, ptr, off, 0);
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
