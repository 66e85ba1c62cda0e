//! A small machine that runs programs with random contexts, packets and maps, and notices accesses that go astray.
//!
//! It knows nothing of the verifier. Calls that it has no model of end the run early.

use std::collections::HashMap;

use skep_ebpf::insn::{Insn, alu, atomic, class, jmp, mode, pseudo, size};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::{MapType, ProgType};
use skep_verifier::record::Machine;
use skep_verifier::rewrite::RegSet;

const CONTEXT: u64 = 0x1000_0000;
const STACK: u64 = 0x7000_0000;
const PACKET: u64 = 0x9000_0000;
const VALUES: u64 = 1 << 40;
const HANDLES: u64 = 1 << 44;
const FRAME: usize = 512;

/// How a run ended.
pub enum End {
    /// At the exit of the main function.
    Exit,
    /// At something that is not modelled.
    Stopped,
    /// By what a verified program never does.
    Fault(String),
}

struct Frame {
    regs: [u64; 10],
    stack: Vec<u8>,
    /// The call in this function that led to the next one.
    call: usize,
}

/// The machine.
pub struct Computer<'p> {
    program: &'p Program,
    at: usize,
    frames: Vec<Frame>,
    packet: Vec<u8>,
    values: HashMap<u64, Vec<u8>>,
    random: u64,
    salt: u64,
}

fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// Numbers that meet limits more often than random ones do.
fn pick(x: u64) -> u64 {
    let h = mix(x);
    match h % 7 {
        0 => h >> 32 & 0x3f,
        1 => (h >> 32 & 0x3f).wrapping_neg(),
        2 => 1 << (h >> 32 & 63),
        3 => 0,
        4 => h >> 32,
        5 => h >> 8 & 0xff,
        _ => mix(h),
    }
}

impl<'p> Computer<'p> {
    /// A machine at the beginning of the program; `seed` makes its inputs.
    pub fn new(program: &'p Program, seed: u64) -> Computer<'p> {
        let salt = mix(seed ^ 0x5eed);
        let packet = (0..mix(salt) % 96).map(|n| mix(salt ^ n << 8) as u8).collect();
        let mut computer =
            Computer { program, at: 0, frames: Vec::new(), packet, values: HashMap::new(), random: salt, salt };
        computer.enter(0);
        computer.frames[0].regs[1] = CONTEXT;
        computer
    }

    /// Overwrites registers of the active frame (bits of a set), of others the upper half.
    #[allow(dead_code)] // not every test does
    pub fn poison(&mut self, whole: RegSet, upper: u64) {
        for r in 0..10u8 {
            let (old, junk) = (self.get(r), mix(self.salt ^ u64::from(r) ^ (self.at as u64) << 8));
            if whole.has(r) {
                self.set(r, junk);
            } else if upper >> r & 1 != 0 {
                self.set(r, old & 0xffff_ffff | junk << 32);
            }
        }
    }

    /// The map that a handle is of.
    #[allow(dead_code)] // not every test asks
    pub fn handle(&self, x: u64) -> Option<u32> {
        x.checked_sub(HANDLES).and_then(|n| u32::try_from(n).ok())
    }

    /// Four bytes of memory.
    #[allow(dead_code)] // not every test asks
    pub fn word(&self, address: u64) -> Option<u32> {
        let frame = (0..self.frames.len())
            .find(|f| self.stack_top(*f) - FRAME as u64 <= address && address < self.stack_top(*f))?;
        let start = (address + FRAME as u64 - self.stack_top(frame)) as usize;
        let bytes = self.frames[frame].stack.get(start..start + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// The instruction that comes next.
    pub fn at(&self) -> usize {
        self.at
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        pick(self.random)
    }

    fn enter(&mut self, call: usize) {
        if let Some(f) = self.frames.last_mut() {
            f.call = call;
        }
        let mut regs = [0; 10];
        regs.iter_mut().for_each(|r| *r = self.random());
        let stack = (0..FRAME).map(|_| self.random() as u8).collect();
        self.frames.push(Frame { regs, stack, call: 0 });
    }

    fn get(&self, r: u8) -> u64 {
        match self.frames.last() {
            Some(f) if r < 10 => f.regs[usize::from(r)],
            _ => self.stack_top(self.frames.len() - 1),
        }
    }

    fn set(&mut self, r: u8, x: u64) {
        if let Some(f) = self.frames.last_mut() {
            f.regs[usize::from(r)] = x;
        }
    }

    /// The memory behind an address, and the offset in it.
    fn memory(&mut self, address: u64, len: usize) -> Result<&mut [u8], String> {
        let stray = || format!("{len} bytes at {address:#x} are not there");
        let (memory, offset): (&mut [u8], u64) = if address >= VALUES {
            let base = address & !0xffff;
            (self.values.get_mut(&base).ok_or_else(stray)?, address - base)
        } else if address >= PACKET {
            (&mut self.packet, address - PACKET)
        } else if address >= STACK {
            let n = (address - STACK) / 0x1000;
            let f = self.frames.get_mut(n as usize).ok_or_else(stray)?;
            let bottom = STACK + n * 0x1000 + 0x800 - FRAME as u64;
            (&mut f.stack, address.checked_sub(bottom).ok_or_else(stray)?)
        } else {
            return Err(stray());
        };
        let start = usize::try_from(offset).map_err(|_| stray())?;
        start.checked_add(len).and_then(|end| memory.get_mut(start..end)).ok_or_else(stray)
    }

    fn load(&mut self, address: u64, len: usize) -> Result<u64, String> {
        if (CONTEXT..CONTEXT + 0x1000).contains(&address) {
            return Ok(self.context_field(address - CONTEXT, len));
        }
        let mut bytes = [0u8; 8];
        bytes[..len].copy_from_slice(self.memory(address, len)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn context_field(&self, off: u64, len: usize) -> u64 {
        let end = PACKET + self.packet.len() as u64;
        match (self.program.prog_type, off) {
            (ProgType::SchedCls, 76) | (ProgType::Xdp, 0) => PACKET,
            (ProgType::SchedCls, 80) | (ProgType::Xdp, 4) => end,
            _ => pick(self.salt ^ off << 16) & (u64::MAX >> (64 - len * 8)),
        }
    }

    fn store(&mut self, address: u64, len: usize, x: u64) -> Result<(), String> {
        if (CONTEXT..CONTEXT + 0x1000).contains(&address) {
            return Ok(());
        }
        self.memory(address, len)?.copy_from_slice(&x.to_le_bytes()[..len]);
        Ok(())
    }

    /// The address of a map's value, which is made if it is not there yet.
    fn value(&mut self, map: usize, element: u64) -> u64 {
        let address = VALUES + ((map as u64) << 32) + (element << 16);
        let def = &self.program.maps[map];
        let mut seed = self.salt ^ address;
        let fresh = || -> Vec<u8> {
            let mut bytes = def.initial.clone().unwrap_or_else(|| {
                let mut next = || {
                    seed = seed.wrapping_add(1);
                    pick(seed).to_le_bytes()
                };
                (0..def.value_size.div_ceil(8)).flat_map(|_| next()).collect()
            });
            bytes.resize(def.value_size as usize, 0);
            bytes
        };
        self.values.entry(address).or_insert_with(fresh);
        address
    }

    /// Runs one instruction; the end, if this is it.
    pub fn step(&mut self) -> Option<End> {
        let Some(&i) = self.program.insns.get(self.at) else {
            return Some(End::Fault(format!("instruction {} does not exist", self.at)));
        };
        match self.run(i) {
            Ok(end) => end,
            Err(why) => Some(End::Fault(format!("instruction {}: {why}", self.at))),
        }
    }

    fn run(&mut self, i: Insn) -> Result<Option<End>, String> {
        let offset = i64::from(i.off) as u64;
        match i.class() {
            class::ALU | class::ALU64 => {
                let src = if i.is_x() { self.get(i.src()) } else { i.imm as i64 as u64 };
                let x = arithmetic(i, self.get(i.dst()), src);
                self.set(i.dst(), x);
            }
            class::LDX => {
                let address = self.get(i.src()).wrapping_add(offset);
                let len = i.bytes() as usize;
                let mut x = self.load(address, len)?;
                if i.mode() == mode::MEMSX {
                    let shift = 64 - len * 8;
                    x = ((x << shift) as i64 >> shift) as u64;
                }
                self.set(i.dst(), x);
            }
            class::ST | class::STX if i.mode() == mode::MEM => {
                let x = if i.class() == class::STX { self.get(i.src()) } else { i.imm as i64 as u64 };
                self.store(self.get(i.dst()).wrapping_add(offset), i.bytes() as usize, x)?;
            }
            class::STX => self.atomic(i, offset)?,
            class::LD if i.mode() == mode::IMM && i.size() == size::DW => {
                let high = self.program.insns.get(self.at + 1).map_or(0, |n| n.imm);
                let x = match i.src() {
                    0 => i.imm as u32 as u64 | (high as u32 as u64) << 32,
                    pseudo::MAP_IDX => HANDLES + i.imm as u64,
                    pseudo::MAP_IDX_VALUE => self.value(i.imm as usize, 0).wrapping_add(high as i64 as u64),
                    _ => return Ok(Some(End::Stopped)),
                };
                self.set(i.dst(), x);
                self.at += 2;
                return Ok(None);
            }
            class::LD => return Ok(Some(End::Stopped)),
            _ => return self.flow(i),
        }
        self.at += 1;
        Ok(None)
    }

    fn atomic(&mut self, i: Insn, offset: u64) -> Result<(), String> {
        let len = i.bytes() as usize;
        if i.imm == atomic::LOAD_ACQ {
            let x = self.load(self.get(i.src()).wrapping_add(offset), len)?;
            self.set(i.dst(), x);
            return Ok(());
        }
        let address = self.get(i.dst()).wrapping_add(offset);
        let (old, src) = (self.load(address, len)?, self.get(i.src()));
        let low = u64::MAX >> (64 - len * 8);
        let new = match i.imm & !atomic::FETCH {
            _ if i.imm == atomic::STORE_REL => src,
            _ if i.imm == atomic::XCHG => src,
            _ if i.imm == atomic::CMPXCHG && old == self.get(0) & low => src,
            _ if i.imm == atomic::CMPXCHG => old,
            atomic::ADD => old.wrapping_add(src),
            atomic::OR => old | src,
            atomic::AND => old & src,
            _ => old ^ src,
        };
        self.store(address, len, new)?;
        if i.imm == atomic::CMPXCHG {
            self.set(0, old);
        } else if i.imm != atomic::STORE_REL && i.imm & atomic::FETCH != 0 {
            self.set(i.src(), old);
        }
        Ok(())
    }

    fn flow(&mut self, i: Insn) -> Result<Option<End>, String> {
        let jump = |at: usize, by: i64| (at as i64 + 1 + by) as usize;
        match i.op() {
            jmp::EXIT => {
                let r0 = self.get(0);
                self.frames.pop();
                let Some(f) = self.frames.last_mut() else { return Ok(Some(End::Exit)) };
                f.regs[0] = r0;
                self.at = f.call + 1;
                for r in 1..=5 {
                    let x = self.random();
                    self.set(r, x);
                }
            }
            jmp::CALL if i.is_subprog_call() => {
                let target = jump(self.at, i.imm.into());
                if self.is_global(target) || self.frames.len() >= 8 {
                    return Ok(Some(End::Stopped));
                }
                let args: Vec<u64> = (1..=5).map(|r| self.get(r)).collect();
                self.enter(self.at);
                (1u8..).zip(args).for_each(|(r, x)| self.set(r, x));
                self.at = target;
            }
            jmp::CALL => return self.helper(i),
            jmp::JA => self.at = jump(self.at, if i.class() == class::JMP32 { i.imm.into() } else { i.off.into() }),
            jmp::JCOND => self.at = if self.random() & 3 == 0 { jump(self.at, i.off.into()) } else { self.at + 1 },
            op => {
                let src = if i.is_x() { self.get(i.src()) } else { i.imm as i64 as u64 };
                let taken = compare(op, self.get(i.dst()), src, i.class() == class::JMP32);
                self.at = jump(self.at, if taken { i.off.into() } else { 0 });
            }
        }
        Ok(None)
    }

    fn is_global(&self, start: usize) -> bool {
        use skep_ebpf::btf::{Kind, Linkage};
        let info = self.program.func_info.iter().find(|f| f.insn as usize == start);
        let kind = info.and_then(|f| self.program.btf.as_ref()?.kind(f.type_id));
        matches!(kind, Some(Kind::Func { linkage: Linkage::Global, .. }))
    }

    fn helper(&mut self, i: Insn) -> Result<Option<End>, String> {
        let map = self.get(1).wrapping_sub(HANDLES) as usize;
        let def = self.program.maps.get(map);
        let r0 = match (i.imm, def) {
            (1, Some(def)) if matches!(def.map_type, MapType::Array | MapType::PercpuArray | MapType::Hash) => {
                let key = self.load(self.get(2), def.key_size as usize)?;
                let found = match def.map_type {
                    MapType::Hash => mix(key ^ self.salt) & 1 == 0,
                    _ => key < u64::from(def.max_entries),
                };
                if found { self.value(map, key & 0xff) } else { 0 }
            }
            (2 | 3, Some(def)) => {
                self.load(self.get(2), def.key_size as usize)?;
                0
            }
            // The number of this CPU: there is one.
            (8, _) => 0,
            (5 | 7 | 14 | 125, _) => self.random(),
            _ => return Ok(Some(End::Stopped)),
        };
        self.set(0, r0);
        for r in 1..=5 {
            let x = self.random();
            self.set(r, x);
        }
        self.at += 1;
        Ok(None)
    }
}

impl Machine for Computer<'_> {
    fn frames(&self) -> usize {
        self.frames.len()
    }

    fn reg(&self, frame: usize, reg: usize) -> u64 {
        self.frames[frame].regs[reg]
    }

    fn callsite(&self, frame: usize) -> usize {
        self.frames[frame].call
    }

    fn stack_top(&self, frame: usize) -> u64 {
        STACK + frame as u64 * 0x1000 + 0x800
    }

    fn stack_byte(&self, frame: usize, below: usize) -> u8 {
        self.frames[frame].stack[FRAME - below]
    }

    fn map_offset(&self, map: u32, address: u64) -> Option<i64> {
        let base = VALUES + (u64::from(map) << 32);
        // Values are far apart; an address a little in front of one belongs to it.
        let distance = address.wrapping_sub(base) as i64;
        (-0x8000..1 << 32).contains(&distance).then(|| (distance + 0x8000).rem_euclid(0x1_0000) - 0x8000)
    }

    fn packet(&self) -> (u64, u64) {
        (PACKET, PACKET + self.packet.len() as u64)
    }

    fn context(&self) -> u64 {
        CONTEXT
    }
}

fn arithmetic(i: Insn, a: u64, b: u64) -> u64 {
    let wide = i.class() == class::ALU64;
    let (x, y) = (a as u32, b as u32);
    let signed = i.off == 1;
    if i.op() == alu::END {
        let turn = wide || i.is_x();
        return match (i.imm, turn) {
            (16, false) => a & 0xffff,
            (32, false) => a & 0xffff_ffff,
            (64, false) => a,
            (16, true) => u64::from((a as u16).swap_bytes()),
            (32, true) => u64::from(x.swap_bytes()),
            _ => a.swap_bytes(),
        };
    }
    if i.op() == alu::MOV {
        let moved = match i.off {
            8 => b as i8 as i64 as u64,
            16 => b as i16 as i64 as u64,
            32 => b as i32 as i64 as u64,
            _ => b,
        };
        return if wide { moved } else { moved as u32 as u64 };
    }
    if !wide {
        return u64::from(match i.op() {
            alu::ADD => x.wrapping_add(y),
            alu::SUB => x.wrapping_sub(y),
            alu::MUL => x.wrapping_mul(y),
            alu::DIV if y == 0 => 0,
            alu::DIV if signed => (x as i32).wrapping_div(y as i32) as u32,
            alu::DIV => x / y,
            alu::MOD if y == 0 => x,
            alu::MOD if signed => (x as i32).wrapping_rem(y as i32) as u32,
            alu::MOD => x % y,
            alu::OR => x | y,
            alu::AND => x & y,
            alu::XOR => x ^ y,
            alu::LSH => x.wrapping_shl(y),
            alu::RSH => x.wrapping_shr(y),
            alu::ARSH => (x as i32).wrapping_shr(y) as u32,
            _ => x.wrapping_neg(),
        });
    }
    match i.op() {
        alu::ADD => a.wrapping_add(b),
        alu::SUB => a.wrapping_sub(b),
        alu::MUL => a.wrapping_mul(b),
        alu::DIV if b == 0 => 0,
        alu::DIV if signed => (a as i64).wrapping_div(b as i64) as u64,
        alu::DIV => a / b,
        alu::MOD if b == 0 => a,
        alu::MOD if signed => (a as i64).wrapping_rem(b as i64) as u64,
        alu::MOD => a % b,
        alu::OR => a | b,
        alu::AND => a & b,
        alu::XOR => a ^ b,
        alu::LSH => a.wrapping_shl(b as u32),
        alu::RSH => a.wrapping_shr(b as u32),
        alu::ARSH => (a as i64).wrapping_shr(b as u32) as u64,
        _ => a.wrapping_neg(),
    }
}

fn compare(op: u8, a: u64, b: u64, narrow: bool) -> bool {
    let (a, b) = if narrow { (a as u32 as u64, b as u32 as u64) } else { (a, b) };
    let (x, y) = if narrow { (a as i32 as i64, b as i32 as i64) } else { (a as i64, b as i64) };
    match op {
        jmp::JEQ => a == b,
        jmp::JNE => a != b,
        jmp::JSET => a & b != 0,
        jmp::JGT => a > b,
        jmp::JGE => a >= b,
        jmp::JLT => a < b,
        jmp::JLE => a <= b,
        jmp::JSGT => x > y,
        jmp::JSGE => x >= y,
        jmp::JSLT => x < y,
        _ => x <= y,
    }
}
