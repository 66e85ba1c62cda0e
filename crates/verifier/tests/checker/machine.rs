//! A small machine that runs programs with random contexts, packets and maps, and notices accesses that go astray.
//!
//! It knows nothing of the verifier. Helpers that it has no model of do what their prototype says: memory that they
//! write has any bytes afterwards, pointers that they return lead to objects of which every field may be anything.
//! Functions of the kernel have no model: calls of them end the run early.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::HashMap;

use skep_ebpf::helper::{Access, Arg, Helper, Ret};
use skep_ebpf::insn::{Insn, alu, atomic, class, jmp, mode, pseudo, size};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::{MapType, ProgType};
use skep_verifier::record::Machine;
use skep_verifier::rewrite::RegSet;

const CONTEXT: u64 = 0x1000_0000;
const STACK: u64 = 0x7000_0000;
const PACKET: u64 = 0x9000_0000;
const VALUES: u64 = 1 << 40;
/// Keys given to callbacks, and memory that helpers return.
const KEYS: u64 = 1 << 42;
const RECORDS: u64 = 1 << 43;
const HANDLES: u64 = 1 << 44;
const FUNCTIONS: u64 = 1 << 45;
/// Objects of the kernel.
const OBJECTS: u64 = 1 << 46;
const FRAME: usize = 512;
/// Distance of two values of a map, and half of it.
const ROOM: u64 = 1 << 24;
const HALF: i64 = 1 << 23;

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
    /// A helper called this function.
    called_back: bool,
    /// The helper that calls back from here.
    rounds: Option<Rounds>,
}

/// A helper between two calls of a function.
struct Rounds {
    at: usize,
    done: u64,
    of: u64,
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
    /// Global functions and callbacks are run, and helpers without a model.
    all: bool,
    records: u64,
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
        let mut computer = Computer {
            program,
            at: 0,
            frames: Vec::new(),
            packet,
            values: HashMap::new(),
            random: salt,
            salt,
            all: false,
            records: 0,
        };
        computer.enter(0);
        computer.frames[0].regs[1] = CONTEXT;
        computer
    }

    /// A machine that also enters callbacks and global functions, and goes on behind helpers that it has no model of.
    pub fn with_all(program: &'p Program, seed: u64) -> Computer<'p> {
        Computer { all: true, ..Computer::new(program, seed) }
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
        self.frames.push(Frame { regs, stack, call: 0, called_back: false, rounds: None });
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
            let base = address & !(ROOM - 1);
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
        // A map can be read as the kernel's object, too.
        if self.all && (address >= OBJECTS || (HANDLES..FUNCTIONS).contains(&address)) {
            // A field may be a pointer to another object.
            let x = if len == 8 { OBJECTS + (self.random() & 0xffff) * 0x1_0000 } else { self.random() };
            return Ok(x & (u64::MAX >> (64 - len * 8)));
        }
        let mut bytes = [0u8; 8];
        bytes[..len].copy_from_slice(self.memory(address, len)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// A number for a key of any length.
    fn key(&mut self, address: u64, len: usize) -> Result<u64, String> {
        if len <= 8 {
            return self.load(address, len);
        }
        Ok(self.memory(address, len)?.iter().fold(0, |x, b| mix(x ^ u64::from(*b))))
    }

    fn context_field(&self, off: u64, len: usize) -> u64 {
        use ProgType::{
            CgroupSkb, CgroupSockopt, FlowDissector, Kprobe, LwtIn, LwtOut, LwtSeg6local, LwtXmit, PerfEvent,
            RawTracepoint, SchedAct, SchedCls, SkMsg, SkReuseport, SkSkb, Tracepoint, Xdp,
        };
        let end = PACKET + self.packet.len() as u64;
        match (self.program.prog_type, off) {
            (
                SchedCls | SchedAct | CgroupSkb | LwtIn | LwtOut | LwtXmit | LwtSeg6local | SkSkb | FlowDissector,
                76 | 80 | 140,
            ) => {
                if off == 80 {
                    end
                } else {
                    PACKET
                }
            }
            (Xdp, 0 | 8) | (SkMsg | SkReuseport, 0) | (CgroupSockopt, 8) => PACKET,
            (Xdp, 4) | (SkMsg | SkReuseport, 8) | (CgroupSockopt, 16) => end,
            (Kprobe | Tracepoint | PerfEvent | RawTracepoint, _) => {
                pick(self.salt ^ off << 16) & (u64::MAX >> (64 - len * 8))
            }
            _ if len == 8 && self.all => OBJECTS + (mix(self.salt ^ off) & 0xffff) * 0x1_0000,
            _ => pick(self.salt ^ off << 16) & (u64::MAX >> (64 - len * 8)),
        }
    }

    fn store(&mut self, address: u64, len: usize, x: u64) -> Result<(), String> {
        if (CONTEXT..CONTEXT + 0x1000).contains(&address) || self.all && address >= OBJECTS {
            return Ok(());
        }
        self.memory(address, len)?.copy_from_slice(&x.to_le_bytes()[..len]);
        Ok(())
    }

    /// The address of a map's value, which is made if it is not there yet.
    fn value(&mut self, map: usize, element: u64) -> u64 {
        let address = VALUES + ((map as u64) << 32) + element * ROOM;
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
                    pseudo::MAP_IDX_VALUE if self.is_arena(i.imm as usize) => return Ok(Some(End::Stopped)),
                    pseudo::MAP_IDX_VALUE => self.value(i.imm as usize, 0).wrapping_add(high as i64 as u64),
                    pseudo::FUNC if self.all => FUNCTIONS + (self.at as i64 + 1 + i64::from(i.imm)) as u64,
                    pseudo::BTF_ID if self.all => OBJECTS + (u64::from(i.imm as u32) << 16),
                    _ => return Ok(Some(End::Stopped)),
                };
                self.set(i.dst(), x);
                self.at += 2;
                return Ok(None);
            }
            class::LD if self.all => return Ok(self.load_packet(i)),
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
            jmp::EXIT => return Ok(self.leave(self.get(0))),
            jmp::CALL if i.is_subprog_call() => {
                let target = jump(self.at, i.imm.into());
                if self.is_global(target) && !self.all || self.frames.len() >= 16 {
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

    /// Ends the active function.
    fn leave(&mut self, r0: u64) -> Option<End> {
        let gone = self.frames.pop();
        let Some(f) = self.frames.last_mut() else { return Some(End::Exit) };
        if gone.is_some_and(|g| g.called_back) {
            if let Some(rounds) = &mut f.rounds {
                rounds.done += 1;
                rounds.of = if r0 != 0 { rounds.done } else { rounds.of };
            }
            self.at = f.call;
            return None;
        }
        f.regs[0] = r0;
        self.at = f.call + 1;
        self.scramble();
        None
    }

    /// A call leaves anything in the registers of its arguments.
    fn scramble(&mut self) {
        for r in 1..=5 {
            let x = self.random();
            self.set(r, x);
        }
    }

    /// `LD_ABS` and `LD_IND`: behind the end of the packet they end the function.
    fn load_packet(&mut self, i: Insn) -> Option<End> {
        let index = if i.mode() == mode::IND { self.get(i.src()) as u32 } else { 0 };
        let from = index.wrapping_add(i.imm as u32) as usize;
        let Some(bytes) = from.checked_add(i.bytes() as usize).and_then(|end| self.packet.get(from..end)) else {
            return self.leave(0);
        };
        let x = bytes.iter().fold(0, |x, b| x << 8 | u64::from(*b));
        self.set(0, x);
        self.scramble();
        self.at += 1;
        None
    }

    fn is_arena(&self, map: usize) -> bool {
        self.program.maps.get(map).is_some_and(|m| m.map_type == MapType::Arena)
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
                let key = self.key(self.get(2), def.key_size as usize)?;
                let found = match def.map_type {
                    MapType::Hash => mix(key ^ self.salt) & 1 == 0,
                    _ => key < u64::from(def.max_entries),
                };
                if found { self.value(map, key & 0xff) } else { 0 }
            }
            (2 | 3, Some(def)) => {
                self.key(self.get(2), def.key_size as usize)?;
                0
            }
            // The number of this CPU: there is one.
            (8, _) => 0,
            (5 | 7 | 14 | 125, _) => self.random(),
            (LOOP | FOR_EACH, _) if self.all => match self.call_back(i.imm)? {
                Some(done) => done,
                None => return Ok(None),
            },
            _ if self.all => match self.by_prototype(i, map)? {
                Some(r0) => r0,
                None => return Ok(Some(End::Stopped)),
            },
            _ => return Ok(Some(End::Stopped)),
        };
        self.set(0, r0);
        self.scramble();
        self.at += 1;
        Ok(None)
    }

    /// Calls a function back once more; the helper's result when that is over.
    fn call_back(&mut self, helper: i32) -> Result<Option<u64>, String> {
        let [function, given] = [2, 3].map(|r| self.get(r));
        let map = self.get(1).wrapping_sub(HANDLES) as usize;
        let at = self.at;
        let of = match helper {
            LOOP if self.get(1) as u32 > 1 << 23 => return Ok(Some(-7i64 as u64)),
            LOOP => self.get(1) as u32 as u64,
            _ => self.program.maps.get(map).map_or(0, |m| m.max_entries.min(3).into()),
        };
        let frame = self.frames.last_mut().ok_or("no function runs")?;
        let rounds = frame.rounds.take().filter(|r| r.at == at).unwrap_or(Rounds { at, done: 0, of });
        let round = rounds.done;
        if round >= rounds.of {
            return Ok(Some(round));
        }
        if self.frames.len() >= 16 {
            return Err("too many functions are active".into());
        }
        let args = if helper == LOOP {
            [round, given, 0]
        } else {
            let len = self.program.maps.get(map).map_or(0, |m| m.key_size as usize);
            let key = KEYS + ((map as u64) << 32) + round * ROOM;
            let bytes = (0..len).map(|_| self.random() as u8).collect();
            self.values.insert(key, bytes);
            [self.get(1), key, self.value(map, round)]
        };
        if let Some(frame) = self.frames.last_mut() {
            frame.rounds = Some(rounds);
        }
        self.enter(at);
        (1u8..).zip(args).for_each(|(r, x)| self.set(r, x));
        if helper == FOR_EACH {
            self.set(4, given);
        }
        if let Some(frame) = self.frames.last_mut() {
            frame.called_back = true;
        }
        self.at = function.wrapping_sub(FUNCTIONS) as usize;
        Ok(None)
    }

    /// Does what a helper's prototype says; its result. Nothing if that does not say enough.
    fn by_prototype(&mut self, i: Insn, map: usize) -> Result<Option<u64>, String> {
        let Some(h) = Helper::by_id(i.imm as u32).filter(|_| i.is_helper_call()) else { return Ok(None) };
        let (key, value) = self.program.maps.get(map).map_or((0, 0), |m| (m.key_size as usize, m.value_size as usize));
        let mut size = 0;
        for (n, arg) in h.args.iter().enumerate() {
            let at = self.get(n as u8 + 1);
            let next = || self.get(n as u8 + 2) as u32 as usize;
            let (access, len) = match *arg {
                Arg::Mem(access) => (access, next()),
                Arg::MemOrNull(access) if at != 0 => (access, next()),
                Arg::Fixed(access, len) => (access, len.into()),
                Arg::MapKey => (Access::Read, key),
                Arg::MapValueOrNull if at == 0 => continue,
                Arg::MapValue | Arg::MapValueOrNull => (Access::Read, value),
                Arg::UninitMapValue => (Access::Write, value),
                Arg::Size | Arg::SizeOrZero => {
                    size = at as u32;
                    continue;
                }
                Arg::AllocSize => {
                    size = at as u32;
                    continue;
                }
                // What a timer and the like call runs later; what a dynptr is is the kernel's matter.
                Arg::Func | Arg::Timer | Arg::Dynptr(_) | Arg::KptrDest => return Ok(None),
                _ => continue,
            };
            if len == 0 || at >= OBJECTS || (CONTEXT..CONTEXT + 0x1000).contains(&at) {
                continue;
            }
            self.memory(at, len)?;
            if access != Access::Read {
                let bytes: Vec<u8> = (0..len).map(|_| self.random() as u8).collect();
                self.memory(at, len)?.copy_from_slice(&bytes);
            }
        }
        let null = self.random() & 1 == 0;
        let object = OBJECTS + (self.random() & 0xffff) * 0x1_0000;
        Ok(Some(match h.ret {
            // How much was read, or an error.
            Ret::Integer if matches!(i.imm, 45 | 67 | 114 | 115 | 141) => {
                if null {
                    -14i64 as u64
                } else {
                    self.random() % (u64::from(size) + 1)
                }
            }
            Ret::Integer | Ret::Void => self.random(),
            Ret::MapValue => self.value(map, 0),
            Ret::MapValueOrNull if null || self.program.maps.get(map).is_none_or(|m| !plain(m.map_type)) => 0,
            Ret::MapValueOrNull => self.value(map, 0),
            Ret::RingbufRecordOrNull if null => 0,
            Ret::RingbufRecordOrNull => {
                self.records += 1;
                let address = RECORDS + self.records * ROOM;
                let bytes = (0..size.min(ROOM as u32)).map(|_| self.random() as u8).collect();
                self.values.insert(address, bytes);
                address
            }
            Ret::DynptrMemOrNull => 0,
            Ret::Btf => object,
            _ if null => 0,
            _ => object,
        }))
    }
}

const LOOP: i32 = 181;
const FOR_EACH: i32 = 164;

/// Look-ups in maps of this type give plain memory.
fn plain(map: MapType) -> bool {
    matches!(
        map,
        MapType::Array
            | MapType::PercpuArray
            | MapType::Hash
            | MapType::PercpuHash
            | MapType::LruHash
            | MapType::LruPercpuHash
            | MapType::LpmTrie
            | MapType::SkStorage
            | MapType::TaskStorage
            | MapType::InodeStorage
            | MapType::CgrpStorage
    )
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
        (-HALF..1 << 32).contains(&distance).then(|| (distance + HALF).rem_euclid(ROOM as i64) - HALF)
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
