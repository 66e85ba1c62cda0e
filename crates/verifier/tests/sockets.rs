//! Random programs of every type over sockets, packets and kernel objects, judged here and by the live kernel: nothing
//! that it rejects may be accepted.
//!
//! `SKEP_FUZZ` is the number of programs (default 2000), `SKEP_SEED` the first seed. Needs `bpf(2)`; skipped without.

mod kernel;
mod loads;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use skep_ebpf::Insn;
use skep_ebpf::btf::Btf;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{CALL, EXIT, LD_IMM64, alu, class, jmp, mode, pseudo, size};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{AttachType, MapType, ProgType, map_flags};
use skep_verifier::{KernelProfile, Options, Outcome, verify};

const HASH: usize = 0;
const SOCKMAP: usize = 1;
const SOCKHASH: usize = 2;
const XSKMAP: usize = 3;
const STORAGE: usize = 4;
const CGROUP_STORAGE: usize = 5;

/// Maps, and the BTF that one of them needs.
struct Maps {
    defs: Arc<[MapDef]>,
    fds: Vec<OwnedFd>,
    btf: Arc<Btf>,
}

fn maps() -> Option<Maps> {
    let mut b = Builder::new();
    let (int, long) = (b.int("int", 4, 1), b.int("long", 8, 1));
    let raw = b.finish();
    let btf = kernel::btf(&raw)?;
    let mut storage = MapDef::new("storage", MapType::SkStorage, 4, 8, 0);
    storage.flags = map_flags::NO_PREALLOC;
    (storage.key_type_id, storage.value_type_id) = (int, long);
    let defs = vec![
        MapDef::new("hash", MapType::Hash, 4, 16, 4),
        MapDef::new("sockmap", MapType::Sockmap, 4, 4, 4),
        MapDef::new("sockhash", MapType::Sockhash, 4, 4, 4),
        MapDef::new("xsk", MapType::Xskmap, 4, 4, 4),
        storage,
        MapDef::new("cgroup", MapType::CgroupStorage, 8, 16, 0),
    ];
    let fds = defs.iter().map(|d| kernel::create_typed_map(d, (d.key_type_id != 0).then_some(&btf)));
    let fds = fds.collect::<Result<_, _>>().ok()?;
    Some(Maps { defs: defs.into(), fds, btf: Arc::new(Btf::parse(&raw).ok()?) })
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What the generator believes a register to hold. It may be wrong: then the program is, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thing {
    Number,
    Socket,
    Common,
    Tcp,
    Xdp,
    /// A kernel's socket.
    Kernel,
    Value,
    FlowKeys,
    Buffer,
    Packet,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    thing: Thing,
    nullable: bool,
    acquired: bool,
}

const NUMBER: Held = Held { thing: Thing::Number, nullable: false, acquired: false };

struct Gen<'r> {
    rng: &'r mut Rng,
    ty: ProgType,
    attach: AttachType,
    insns: Vec<Insn>,
    /// r7 to r9.
    regs: [Held; 3],
    /// Four slots of the stack, from -40 on.
    slots: [Option<Held>; 4],
}

/// Pointers in the contexts: offset and what is there.
fn fields(ty: ProgType) -> &'static [(i16, Thing, bool)] {
    use Thing::{Buffer, Common, FlowKeys, Kernel, Socket};
    match ty {
        ProgType::SocketFilter
        | ProgType::SchedCls
        | ProgType::SchedAct
        | ProgType::CgroupSkb
        | ProgType::LwtIn
        | ProgType::LwtOut
        | ProgType::LwtXmit
        | ProgType::LwtSeg6local
        | ProgType::SkSkb => &[(168, Common, true)],
        ProgType::CgroupSockAddr => &[(64, Socket, false)],
        ProgType::CgroupSockopt => &[(0, Socket, false)],
        ProgType::SkMsg => &[(72, Socket, false)],
        ProgType::SkReuseport => &[(40, Socket, false), (48, Common, true)],
        ProgType::SkLookup => &[(0, Socket, true)],
        ProgType::SockOps => &[(184, Socket, true)],
        ProgType::FlowDissector => &[(144, FlowKeys, false)],
        ProgType::RawTracepointWritable => &[(0, Buffer, false)],
        ProgType::Netfilter => &[(0, Kernel, false), (8, Kernel, false)],
        _ => &[],
    }
}

/// Start and end of the packet, and the width of these fields.
fn packet(ty: ProgType) -> Option<(i16, i16, u8)> {
    Some(match ty {
        ProgType::SchedCls
        | ProgType::SchedAct
        | ProgType::CgroupSkb
        | ProgType::LwtIn
        | ProgType::LwtOut
        | ProgType::LwtXmit
        | ProgType::LwtSeg6local
        | ProgType::SkSkb
        | ProgType::FlowDissector => (76, 80, size::W),
        ProgType::Xdp => (0, 4, size::W),
        ProgType::SkMsg | ProgType::SkReuseport => (0, 8, size::DW),
        ProgType::SockOps => (192, 200, size::DW),
        ProgType::CgroupSockopt => (8, 16, size::DW),
        _ => return None,
    })
}

impl Gen<'_> {
    fn emit(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn::new(code, dst, src, off, imm));
    }

    fn mov(&mut self, dst: u8, src: u8) {
        self.emit(class::ALU64 | alu::MOV | 8, dst, src, 0, 0);
    }

    fn set(&mut self, dst: u8, imm: i32) {
        self.emit(class::ALU64 | alu::MOV, dst, 0, 0, imm);
    }

    fn stack(&mut self, dst: u8, off: i32) {
        self.mov(dst, 10);
        self.emit(class::ALU64 | alu::ADD, dst, 0, 0, off);
    }

    fn map(&mut self, dst: u8, map: usize) {
        self.emit(LD_IMM64, dst, pseudo::MAP_IDX, 0, map as i32);
        self.emit(0, 0, 0, 0, 0);
    }

    fn call(&mut self, id: i32) {
        self.emit(CALL, 0, 0, 0, id);
    }

    /// One of r7 to r9, of this kind if there is one (or not, at times).
    fn find(&mut self, things: &[Thing]) -> Option<usize> {
        let fits: Vec<usize> =
            (0..3).filter(|n| things.contains(&self.regs[*n].thing) && !self.regs[*n].nullable).collect();
        match fits.as_slice() {
            _ if self.rng.chance(3) => Some(self.rng.below(3) as usize),
            [] => None,
            fits => Some(self.rng.pick(fits)),
        }
    }

    /// Whether to call this helper: if it can be called, and at times if it cannot.
    fn may_call(&mut self, id: i32) -> bool {
        let allowed = Helper::by_id(id as u32).is_some_and(|h| h.allowed_for(self.ty, self.attach));
        allowed || self.rng.chance(1)
    }

    /// A register to overwrite: rather not one that must be released.
    fn spare(&mut self) -> usize {
        let fits: Vec<usize> = (0..3).filter(|n| !self.regs[*n].acquired).collect();
        if fits.is_empty() || self.rng.chance(5) { self.rng.below(3) as usize } else { self.rng.pick(&fits) }
    }

    fn keep(&mut self, from: u8, held: Held) {
        let n = self.spare();
        self.mov(n as u8 + 7, from);
        self.regs[n] = held;
        if held.nullable && self.rng.chance(75) {
            self.check_null(n);
        }
    }

    fn check_null(&mut self, n: usize) {
        let r = n as u8 + 7;
        if self.regs[n].acquired || self.rng.chance(60) {
            // Out, if it is null; what else is held must be given back first.
            let others: Vec<usize> = (0..3).filter(|o| *o != n && self.regs[*o].acquired).collect();
            let len = others.len() as i16 * 2 + 2;
            self.emit(class::JMP | jmp::JNE, r, 0, len, 0);
            for o in others {
                self.mov(1, o as u8 + 7);
                self.call(86);
            }
            self.set(0, 1);
            self.emit(EXIT, 0, 0, 0, 0);
        } else {
            let before = self.regs;
            let slots = self.slots;
            let at = self.insns.len();
            self.emit(class::JMP | jmp::JEQ, r, 0, 0, 0);
            self.regs[n].nullable = false;
            self.step(0);
            self.insns[at].off = (self.insns.len() - at - 1) as i16;
            self.regs = before;
            self.slots = slots;
            return;
        }
        self.regs[n].nullable = false;
    }

    fn program(&mut self) {
        self.mov(6, 1);
        for r in 7..=9 {
            self.set(r, 0);
        }
        for off in 1..=8 {
            self.emit(class::ST | mode::MEM | size::DW, 10, 0, -8 * off, 0);
        }
        let steps = 3 + self.rng.below(14);
        for _ in 0..steps {
            self.step(2);
        }
        for n in 0..3 {
            if self.regs[n].acquired && self.rng.chance(96) {
                self.mov(1, n as u8 + 7);
                self.call(86);
            }
        }
        let result = if self.rng.chance(90) { 1 } else { self.rng.below(4) as i32 };
        self.set(0, result);
        self.emit(EXIT, 0, 0, 0, 0);
    }

    fn step(&mut self, depth: u32) {
        match self.rng.below(if depth == 0 { 7 } else { 13 }) {
            0 | 1 => self.access(),
            2 => self.spill(),
            3 => self.moved(),
            4 => self.storage(),
            5 => self.consume(),
            6 => self.packet(),
            7 | 8 => self.take(),
            9 => self.cast(),
            10 => self.lookup(),
            11 => {
                if let Some(n) = (0..3).find(|n| self.regs[*n].nullable) {
                    self.check_null(n);
                }
            }
            _ => self.either(depth),
        }
    }

    fn take(&mut self) {
        let fields = fields(self.ty);
        if fields.is_empty() {
            return;
        }
        let (off, thing, nullable) = self.rng.pick(fields);
        self.emit(class::LDX | mode::MEM | size::DW, 0, 6, off, 0);
        self.keep(0, Held { thing, nullable, acquired: false });
    }

    fn cast(&mut self) {
        use Thing::{Common, Kernel, Socket, Tcp};
        let Some(n) = self.find(&[Socket, Common, Tcp]) else { return };
        let (helper, thing) = self.rng.pick(&[
            (95, Socket),
            (96, Tcp),
            (98, Socket),
            (136, Kernel),
            (137, Kernel),
            (138, Kernel),
            (139, Kernel),
            (140, Kernel),
            (178, Kernel),
            (196, Kernel),
        ]);
        if !self.may_call(helper) {
            return;
        }
        self.mov(1, n as u8 + 7);
        self.call(helper);
        self.keep(0, Held { thing, nullable: true, acquired: false });
    }

    fn lookup(&mut self) {
        let acquired = |thing| Held { thing, nullable: true, acquired: true };
        match self.rng.below(5) {
            // Only where it can be released.
            0 if self.may_call(86) => {
                let map = self.rng.pick(&[SOCKMAP, SOCKHASH]);
                self.find_in(map);
                self.keep(0, acquired(Thing::Socket));
            }
            1 => {
                let map = self.rng.pick(&[XSKMAP, XSKMAP, HASH]);
                self.find_in(map);
                let thing = if map == HASH { Thing::Value } else { Thing::Xdp };
                self.keep(0, Held { thing, nullable: true, acquired: false });
            }
            _ => {
                let (helper, thing) = self.rng.pick(&[(84, Thing::Socket), (85, Thing::Socket), (99, Thing::Common)]);
                if !self.may_call(helper) {
                    return;
                }
                self.mov(1, 6);
                self.stack(2, -64);
                self.set(3, 12);
                self.set(4, -1);
                self.set(5, 0);
                self.call(helper);
                self.keep(0, acquired(thing));
            }
        }
    }

    fn find_in(&mut self, map: usize) {
        self.map(1, map);
        self.stack(2, -8);
        self.call(1);
    }

    fn storage(&mut self) {
        use Thing::{Common, Kernel, Socket, Tcp};
        if self.rng.chance(30) {
            if !self.may_call(81) {
                return;
            }
            self.map(1, CGROUP_STORAGE);
            self.set(2, 0);
            self.call(81);
            return self.keep(0, Held { thing: Thing::Value, nullable: false, acquired: false });
        }
        let n = self.find(&[Socket, Common, Tcp, Kernel]);
        let Some(n) = n.or((self.ty == ProgType::CgroupSock).then_some(0)) else { return };
        if !self.may_call(107) {
            return;
        }
        self.map(1, STORAGE);
        self.mov(2, if self.ty == ProgType::CgroupSock { 6 } else { n as u8 + 7 });
        if self.rng.chance(20) {
            return self.call(108);
        }
        self.set(3, 0);
        self.set(4, 1);
        self.call(107);
        self.keep(0, Held { thing: Thing::Value, nullable: true, acquired: false });
    }

    fn access(&mut self) {
        use Thing::{Buffer, Common, FlowKeys, Kernel, Packet, Socket, Tcp, Value, Xdp};
        let all = [Socket, Common, Tcp, Xdp, Kernel, Value, FlowKeys, Buffer, Packet];
        let Some(n) = self.find(&all) else { return };
        let r = n as u8 + 7;
        let (width, aligned) = self.rng.pick(&[(size::B, 1), (size::H, 2), (size::W, 4), (size::W, 4), (size::DW, 8)]);
        let room = match self.regs[n].thing {
            Thing::Value => 16,
            Thing::Xdp => 8,
            Thing::FlowKeys => 56,
            Thing::Tcp => 112,
            Thing::Packet => 12,
            _ => 80,
        };
        let off = self.rng.below(room / aligned) as i16 * aligned as i16;
        match self.rng.below(10) {
            0 if self.rng.chance(20) => self.emit(class::STX | mode::MEM | width, r, 6, off, 0),
            1 | 2 if matches!(self.regs[n].thing, Thing::Value | Thing::Packet | Thing::Buffer | Thing::FlowKeys) => {
                self.emit(class::ST | mode::MEM | width, r, 0, off, 1);
            }
            3 if width != size::DW => self.emit(class::LDX | mode::MEMSX | width, 0, r, off, 0),
            _ => self.emit(class::LDX | mode::MEM | width, 0, r, off, 0),
        }
    }

    fn spill(&mut self) {
        let n = self.rng.below(3) as usize;
        let slot = self.rng.below(4) as usize;
        let off = -40 + 8 * slot as i16;
        if self.rng.chance(50) || self.slots[slot].is_none() {
            self.emit(class::STX | mode::MEM | size::DW, 10, n as u8 + 7, off, 0);
            self.slots[slot] = Some(Held { acquired: false, ..self.regs[n] });
        } else if !self.regs[n].acquired {
            self.emit(class::LDX | mode::MEM | size::DW, n as u8 + 7, 10, off, 0);
            self.regs[n] = self.slots[slot].unwrap_or(NUMBER);
        }
    }

    fn moved(&mut self) {
        let from = self.rng.below(3) as usize;
        if self.rng.chance(60) {
            let to = self.spare();
            self.mov(to as u8 + 7, from as u8 + 7);
            self.regs[to] = Held { acquired: false, ..self.regs[from] };
        } else if matches!(self.regs[from].thing, Thing::Value | Thing::Packet | Thing::Kernel | Thing::Buffer)
            || self.rng.chance(10)
        {
            let by = self.rng.pick(&[0, 4, 8, -4]);
            self.emit(class::ALU64 | alu::ADD, from as u8 + 7, 0, 0, by);
        }
    }

    /// A call that uses a socket up, or only uses it.
    fn consume(&mut self) {
        use Thing::{Common, Kernel, Socket, Tcp, Value};
        let Some(n) = self.find(&[Socket, Common, Tcp, Kernel]) else { return };
        let r = n as u8 + 7;
        match self.rng.below(9) {
            0 | 1 if self.regs.iter().any(|h| h.acquired) || self.rng.chance(2) => {
                let held = (0..3).find(|n| self.regs[*n].acquired && !self.regs[*n].nullable);
                let n = held.filter(|_| self.rng.chance(95)).unwrap_or(n);
                self.mov(1, n as u8 + 7);
                self.call(86);
                if self.rng.chance(90) {
                    self.set(n as u8 + 7, 0);
                }
                self.regs[n] = NUMBER;
            }
            2 if self.may_call(124) => {
                self.mov(1, 6);
                self.mov(2, r);
                self.set(3, 0);
                self.call(124);
            }
            3 if self.updates_sockets() || self.rng.chance(2) => {
                let map = self.rng.pick(&[SOCKMAP, SOCKHASH]);
                self.map(1, map);
                self.stack(2, -8);
                self.mov(3, r);
                self.set(4, 0);
                self.call(2);
            }
            4 => {
                let helper = self.rng.pick(&[49, 57]);
                if !self.may_call(helper) {
                    return;
                }
                self.mov(1, if self.ty == ProgType::CgroupSockopt { r } else { 6 });
                self.set(2, 1);
                self.set(3, 2);
                self.stack(4, -64);
                self.set(5, 8);
                self.call(helper);
            }
            5 => {
                let helper = self.rng.pick(&[128, 46, 122, 47]);
                if !self.may_call(helper) {
                    return;
                }
                let from = if matches!(helper, 128) { r } else { 6 };
                self.mov(1, from);
                self.call(helper);
            }
            6 => {
                let Some(value) = self.find(&[Value]) else { return };
                self.map(1, HASH);
                self.stack(2, -8);
                self.mov(3, value as u8 + 7);
                self.set(4, 0);
                self.call(2);
            }
            7 => {
                // Packet pointers do not outlive these.
                let helper = self.rng.pick(&[39, 63, 44]);
                if !self.may_call(helper) {
                    return;
                }
                self.mov(1, 6);
                self.set(2, 0);
                if helper == 63 {
                    self.set(3, 8);
                    self.set(4, 0);
                }
                self.call(helper);
            }
            _ => {
                let helper = self.rng.pick(&[53, 52, 60, 82]);
                if !self.may_call(helper) {
                    return;
                }
                self.mov(1, 6);
                self.map(2, SOCKMAP);
                self.stack(3, -8);
                self.set(4, 0);
                if matches!(helper, 52 | 60) {
                    self.set(3, 0);
                }
                self.call(helper);
            }
        }
    }

    fn updates_sockets(&self) -> bool {
        use ProgType::{FlowDissector, SchedAct, SchedCls, SkLookup, SkReuseport, SocketFilter, Xdp};
        matches!(self.ty, SocketFilter | SchedCls | SchedAct | Xdp | SkReuseport | FlowDissector | SkLookup)
    }

    fn packet(&mut self) {
        let Some((data, end, width)) = packet(self.ty) else { return };
        let n = self.spare();
        let r = n as u8 + 7;
        self.emit(class::LDX | mode::MEM | width, r, 6, data, 0);
        self.emit(class::LDX | mode::MEM | width, 2, 6, end, 0);
        self.mov(3, r);
        let room = self.rng.pick(&[1, 4, 8, 14, 20]);
        self.emit(class::ALU64 | alu::ADD, 3, 0, 0, room);
        self.regs[n] = Held { thing: Thing::Packet, nullable: false, acquired: false };
        let op = self.rng.pick(&[jmp::JGT, jmp::JGT, jmp::JGE, jmp::JLT, jmp::JLE]);
        let at = self.insns.len();
        self.emit(class::JMP | op | 8, 3, 2, 0, 0);
        let (regs, slots) = (self.regs, self.slots);
        self.access();
        self.emit(class::LDX | mode::MEM | size::B, 0, r, 0, 0);
        self.insns[at].off = (self.insns.len() - at - 1) as i16;
        (self.regs, self.slots) = (regs, slots);
        self.set(r, 0);
        self.regs[n] = NUMBER;
    }

    /// One of two things happens.
    fn either(&mut self, depth: u32) {
        let (regs, slots) = (self.regs, self.slots);
        self.call(7);
        let at = self.insns.len();
        self.emit(class::JMP | jmp::JGT, 0, 0, 0, 5);
        self.step(depth - 1);
        let other = self.insns.len();
        self.emit(class::JMP | jmp::JA, 0, 0, 0, 0);
        self.insns[at].off = (self.insns.len() - at - 1) as i16;
        let after = (self.regs, self.slots);
        (self.regs, self.slots) = (regs, slots);
        if self.rng.chance(50) {
            self.step(depth - 1);
        }
        self.insns[other].off = (self.insns.len() - other - 1) as i16;
        if self.rng.chance(50) {
            (self.regs, self.slots) = after;
        }
    }
}

fn program(rng: &mut Rng) -> Program {
    let (ty, attaches, _) = rng.pick(loads::TYPES);
    let attach: AttachType = rng.pick(attaches);
    let mut r#gen = Gen { rng, ty, attach, insns: Vec::new(), regs: [NUMBER; 3], slots: [None; 4] };
    r#gen.program();
    let insns = r#gen.insns;
    loads::load(ty, attach, "GPL", insns)
}

#[test]
fn agrees_on_sockets() {
    if !kernel::available() {
        return;
    }
    let Some(Maps { defs, fds, btf }) = maps() else {
        eprintln!("skipped: the maps cannot be made here");
        return;
    };
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default);
    let (count, seed) = (number("SKEP_FUZZ", 2000), number("SKEP_SEED", 1));
    let profile = KernelProfile { cpus: kernel::cpus(), ..KernelProfile::LINUX_6_18 };
    let options = Options { profile, btf: loads::kernel_types(), ..Options::default() };
    let (mut accepted, mut rejected, mut unsupported) = (0u64, 0u64, 0u64);
    let mut wrong: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for n in seed..seed + count {
        let mut rng = Rng(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut program = program(&mut rng);
        program.maps = defs.clone();
        program.btf = Some(btf.clone());
        let Some(answer) = kernel::load_with(&program, &fds, 0) else { continue };
        let log = |level| kernel::load_with(&program, &fds, level).map_or(String::new(), |a| a.log);
        let why = || {
            let log = log(1);
            log.lines().rev().find(|l| !l.starts_with("processed")).unwrap_or("").to_owned()
        };
        let verdict = verify(program.clone(), &options);
        if count == 1 {
            println!("{}\n{:?}", log(2), verdict.as_ref().map(|_| ()));
        }
        match (verdict, answer.errno) {
            (Ok(_), 0) => accepted += 1,
            (Ok(_), _) => match why() {
                // Refused for something else than what it does.
                none if none.is_empty() => {}
                why => wrong.entry(format!("accepted, kernel: {why}")).or_default().push(n),
            },
            (Err(r), _) if r.outcome == Outcome::Unsupported => unsupported += 1,
            (Err(r), 0) => wrong.entry(format!("{} {}", r.reason, r.message)).or_default().push(n),
            (Err(r), _) => {
                rejected += 1;
                *reasons.entry(r.reason).or_default() += 1;
            }
        }
    }
    println!("{accepted} accepted, {rejected} rejected by both, {unsupported} unsupported; {reasons:?}");
    let shown: Vec<String> =
        wrong.iter().map(|(why, seeds)| format!("{} {why}: {:?}", seeds.len(), &seeds[..seeds.len().min(4)])).collect();
    assert!(wrong.is_empty(), "{}", shown.join("\n"));
}
