//! The load path: every step provoked to fail in both profiles, and nothing left behind.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/script.rs"]
mod script;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use kernel::{Kernel, Ours};
use script::Attrs;
use skep_ebpf::Errno;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Composite, Kind, Linkage, Param as BtfParam};
use skep_ebpf::insn::Insn;
use skep_ebpf::program::{MapDef, Program};
use skep_subsystem::front::hooks::{Call, SecurityHooks};
use skep_subsystem::front::offload::{OffloadDevice, SoftwareDevice};
use skep_subsystem::front::token::TokenObject;
use skep_subsystem::front::{Caps, Config, Profile};
use skep_verifier::Verified;

const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const KERN_VERSION: u32 = 4 << 16 | 17 << 8;
const GPL: &[u8] = b"GPL\0";
/// An address where nothing is.
const BAD: u64 = 8;

/// `r0 = 2; exit`.
const CODE: [u64; 2] = [0xb7 | 2 << 32, 0x95];

fn config(profile: Profile) -> Config {
    Config { profile, kern_version: KERN_VERSION, slots: 4, ..Config::default() }
}

fn program(profile: Profile, ty: u32) -> Attrs {
    let size = if profile == Profile::Linux4_17 { 72 } else { 168 };
    Attrs::new(size).u32(0, ty).u32(4, 2).ptr(8, &CODE).ptr(16, GPL).u32(40, KERN_VERSION)
}

/// What a load answers: 0 for a descriptor, which is closed again.
fn load(ours: &Ours, attr: &Attrs) -> i64 {
    call(ours, PROG_LOAD, attr)
}

fn call(ours: &Ours, cmd: u32, attr: &Attrs) -> i64 {
    match ours.bpf(cmd, &mut attr.clone().0) {
        fd if fd >= 0 => {
            ours.close(fd);
            0
        }
        e => e,
    }
}

fn no(e: Errno) -> i64 {
    -i64::from(e.0)
}

/// Each step of the path fails in turn, all others being fine.
#[test]
fn every_step_can_fail() {
    for profile in [Profile::Linux6_18, Profile::Linux4_17] {
        let old = profile == Profile::Linux4_17;
        let ours = Ours::with(config(profile));
        let good = program(profile, 2);
        let check = |what: &str, attr: &Attrs, expected: i64| {
            assert_eq!(load(&ours, attr), expected, "{profile:?}: {what}");
            assert_eq!(ours.left(), Default::default(), "{profile:?}: {what} leaves something");
        };
        check("fine", &good, 0);
        let mut tail = good.clone();
        tail.0.resize(176, 0);
        tail.0[175] = 1;
        check("a tail that this kernel does not know", &tail, no(Errno::E2BIG));
        check("unknown flags", &good.clone().u32(44, 1 << 30), no(Errno::EINVAL));
        // Flags that came later are unknown to the old one.
        check("the flag of sleepable programs", &good.clone().u32(44, 2), if old { no(Errno::EINVAL) } else { 0 });
        check("no licence", &good.clone().u64(16, BAD), no(Errno::EFAULT));
        check("no instructions", &good.clone().u32(4, 0), no(Errno::E2BIG));
        check("too many instructions", &good.clone().u32(4, 1_000_001), no(Errno::E2BIG));
        check("4,097 instructions", &good.clone().u32(4, 4097).u64(8, BAD), {
            no(if old { Errno::E2BIG } else { Errno::EFAULT })
        });
        check("another kernel's version", &good.clone().u32(40, 1), if old { no(Errno::EINVAL) } else { 0 });
        check("the same for another type", &program(profile, 1).u32(40, 1), 0);
        check("an attach type that is not its own", &program(profile, 18).u32(68, 3), no(Errno::EINVAL));
        check("instructions at a bad address", &good.clone().u64(8, BAD), no(Errno::EFAULT));
        check("a device of another type of program", &good.clone().u32(64, 7), no(Errno::EINVAL));
        check("a device that is not there", &program(profile, 6).u32(64, 777), no(Errno::EINVAL));
        check("a type that is not there", &good.clone().u32(0, 99), no(Errno::EINVAL));
        check("no type", &good.clone().u32(0, 0), no(Errno::EINVAL));
        check("a bad name", &good.clone().bytes(48, b"a b"), no(Errno::EINVAL));
        check("a log without a buffer", &good.clone().u32(24, 1).u32(28, 4096), no(Errno::EINVAL));
        let falls = [0xb7u64];
        check("what the verifier refuses", &good.clone().u32(4, 1).ptr(8, &falls), no(Errno::EINVAL));
    }
}

/// Where two things are wrong the errno tells which is looked at first.
#[test]
fn order_of_checks() {
    let pairs: &[(Profile, &str, Attrs, Errno)] = &[
        (
            Profile::Linux4_17,
            "flags before the licence",
            program(Profile::Linux4_17, 2).u32(44, 2).u64(16, BAD),
            Errno::EINVAL,
        ),
        (
            Profile::Linux4_17,
            "the licence before the size",
            program(Profile::Linux4_17, 2).u64(16, BAD).u32(4, 0),
            Errno::EFAULT,
        ),
        (
            Profile::Linux6_18,
            "the size before the licence",
            program(Profile::Linux6_18, 2).u64(16, BAD).u32(4, 0),
            Errno::E2BIG,
        ),
        (
            Profile::Linux4_17,
            "the size before the version",
            program(Profile::Linux4_17, 2).u32(4, 0).u32(40, 1),
            Errno::E2BIG,
        ),
        (
            Profile::Linux4_17,
            "the attach type before the instructions",
            program(Profile::Linux4_17, 18).u32(68, 3).u64(8, BAD),
            Errno::EINVAL,
        ),
        (
            Profile::Linux4_17,
            "the instructions before the name",
            program(Profile::Linux4_17, 2).u64(8, BAD).bytes(48, b"a b"),
            Errno::EFAULT,
        ),
        (
            Profile::Linux6_18,
            "the instructions before the type",
            program(Profile::Linux6_18, 99).u64(8, BAD),
            Errno::EFAULT,
        ),
    ];
    for (profile, what, attr, expected) in pairs {
        assert_eq!(load(&Ours::with(config(*profile)), attr), no(*expected), "{profile:?}: {what}");
    }
}

#[test]
fn privilege_is_asked_for() {
    for profile in [Profile::Linux6_18, Profile::Linux4_17] {
        let mut ours = Ours::with(config(profile));
        ours.client.caps = Caps::NONE;
        assert_eq!(load(&ours, &program(profile, 1)), 0, "socket filters are for everybody");
        assert_eq!(load(&ours, &program(profile, 2)), no(Errno::EPERM));
        // The version is looked at first, then who asks.
        let expected = if profile == Profile::Linux4_17 { Errno::EINVAL } else { Errno::EPERM };
        assert_eq!(load(&ours, &program(profile, 2).u32(40, 1)), no(expected));
        ours.client.caps = Caps::BPF;
        let expected = no(Errno::EPERM);
        assert_eq!(load(&ours, &program(profile, 2)), expected, "tracing takes more");
        ours.client.caps = Caps::BPF.with(Caps::PERFMON);
        let expected = if profile == Profile::Linux4_17 { no(Errno::EPERM) } else { 0 };
        assert_eq!(load(&ours, &program(profile, 2)), expected);
        ours.client.caps = Caps::SYS_ADMIN;
        assert_eq!(load(&ours, &program(profile, 2)), 0);
    }
}

/// 4.17 charges pages against the owner's limit, exactly, until the last reference is gone.
#[test]
fn memory_is_charged_and_given_back() {
    let mut ours = Ours::with(config(Profile::Linux4_17));
    ours.client.memlock = 2 * 4096;
    let uid = ours.client.uid;
    let pages = |ours: &Ours| ours.subsystem.accounts().pages(uid);
    let attr = program(Profile::Linux4_17, 1);
    let first = ours.bpf(PROG_LOAD, &mut attr.clone().0);
    let second = ours.bpf(PROG_LOAD, &mut attr.clone().0);
    assert!(first >= 0 && second >= 0);
    assert_eq!(pages(&ours), 2);
    assert_eq!(load(&ours, &attr), no(Errno::EPERM), "the limit is reached");
    assert_eq!(pages(&ours), 2, "a failure is not charged");
    let again = ours.files.duplicate(first as i32).unwrap();
    ours.close(first);
    assert_eq!(pages(&ours), 2, "another descriptor holds it");
    ours.close(i64::from(again));
    assert_eq!(pages(&ours), 1);
    // Behind the charge: instructions, type, name, verifier.
    assert_eq!(load(&ours, &attr.clone().u64(8, BAD)), no(Errno::EFAULT));
    assert_eq!(load(&ours, &attr.clone().bytes(48, b"a b")), no(Errno::EINVAL));
    assert_eq!(pages(&ours), 1);
    ours.close(second);
    assert_eq!(pages(&ours), 0);
    let mut newer = Ours::with(config(Profile::Linux6_18));
    newer.client.memlock = 0;
    assert_eq!(load(&newer, &program(Profile::Linux6_18, 1)), no(Errno::ENOMEM), "the limit of a control group");
}

/// Counts what was permitted and has not gone; vetoes names that begin with `veto`.
#[derive(Default)]
struct Guard {
    progs: AtomicI64,
    maps: AtomicI64,
}

impl SecurityHooks for Guard {
    fn map_create(&self, _: &Call<'_>, map: &MapDef, _: Option<&TokenObject>) -> Result<(), Errno> {
        if map.name.starts_with("veto") {
            return Err(Errno::EACCES);
        }
        self.maps.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn map_free(&self, _: &str) {
        self.maps.fetch_sub(1, Ordering::SeqCst);
    }

    fn prog_load(&self, _: &Call<'_>, program: &Program, _: Option<&TokenObject>) -> Result<(), Errno> {
        if program.name.starts_with("veto") {
            return Err(Errno::EACCES);
        }
        self.progs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn prog_free(&self, _: &str) {
        self.progs.fetch_sub(1, Ordering::SeqCst);
    }
}

fn map() -> Attrs {
    Attrs::new(44).u32(0, 1).u32(4, 4).u32(8, 8).u32(12, 4)
}

#[test]
fn hooks_veto_and_are_told() {
    for profile in [Profile::Linux6_18, Profile::Linux4_17] {
        let guard: Arc<Guard> = Arc::default();
        let ours = Ours::with(Config { hooks: Some(guard.clone()), ..config(profile) });
        let (vetoed, fine) = (program(profile, 1).bytes(48, b"veto_1"), program(profile, 1).bytes(48, b"fine"));
        assert_eq!(load(&ours, &vetoed), no(Errno::EACCES));
        assert_eq!(call(&ours, MAP_CREATE, &map().bytes(28, b"veto_2")), no(Errno::EACCES));
        let (prog, map) = (ours.bpf(PROG_LOAD, &mut fine.clone().0), ours.bpf(MAP_CREATE, &mut map().0));
        assert_eq!((guard.progs.load(Ordering::SeqCst), guard.maps.load(Ordering::SeqCst)), (1, 1));
        // Permitted, and then refused by the verifier.
        let falls = [0xb7u64];
        assert_eq!(load(&ours, &fine.u32(4, 1).ptr(8, &falls)), no(Errno::EINVAL));
        assert_eq!(guard.progs.load(Ordering::SeqCst), 1);
        ours.close(prog);
        ours.close(map);
        assert_eq!((guard.progs.load(Ordering::SeqCst), guard.maps.load(Ordering::SeqCst)), (0, 0));
        assert_eq!(ours.left(), Default::default());
    }
}

/// A device that refuses at one of its callbacks, and writes down all of them.
struct Picky {
    refuses: &'static str,
    calls: Mutex<Vec<&'static str>>,
}

impl Picky {
    fn called(&self, what: &'static str) -> Result<(), Errno> {
        self.calls.lock().unwrap().push(what);
        if what == self.refuses { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
    }
}

impl OffloadDevice for Picky {
    fn prepare(&self, _: &Program) -> Result<(), Errno> {
        self.called("prepare")
    }

    fn insn(&self, _: usize, _: Insn) -> Result<(), Errno> {
        self.called("insn")
    }

    fn finalize(&self) -> Result<(), Errno> {
        self.called("finalize")
    }

    fn translate(&self, _: &Verified) -> Result<(), Errno> {
        self.called("translate")
    }

    fn destroy(&self) {
        let _ = self.called("destroy");
    }
}

#[test]
fn devices_take_programs() {
    for profile in [Profile::Linux6_18, Profile::Linux4_17] {
        let ours = Ours::with(config(profile));
        let software: Arc<SoftwareDevice> = Arc::default();
        ours.subsystem.devices().register(5, software.clone()).unwrap();
        let attr = program(profile, 6).u32(64, 5);
        let fd = ours.bpf(PROG_LOAD, &mut attr.clone().0);
        assert!(fd >= 0, "{fd}");
        assert_eq!((software.programs(), software.insns()), (1, 2));
        ours.close(fd);
        assert_eq!(software.programs(), 0);
        let all = ["prepare", "insn", "insn", "finalize", "translate", "destroy"];
        for (n, refuses) in [(1, "prepare"), (2, "insn"), (4, "finalize"), (5, "translate"), (6, "none")] {
            let device = Arc::new(Picky { refuses, calls: Mutex::default() });
            ours.subsystem.devices().register(6, device.clone()).unwrap();
            let expected = if refuses == "none" { 0 } else { no(Errno::EOPNOTSUPP) };
            assert_eq!(load(&ours, &attr.clone().u32(64, 6)), expected, "{refuses}");
            let mut calls = all[..n].to_vec();
            if n > 1 && n < 6 {
                calls.push("destroy");
            }
            assert_eq!(*device.calls.lock().unwrap(), calls, "{refuses}");
            assert!(ours.subsystem.devices().unregister(6));
        }
        assert_eq!(ours.left(), Default::default());
    }
}

/// The types of a program with one function, `name(struct __sk_buff *)`; the function's id is 5.
fn types(name: &str) -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let skb = b.add("__sk_buff", &Kind::Struct(Composite { size: 4, members: Box::new([]) }));
    let ptr = b.add("", &Kind::Ptr { ty: skb });
    let ctx = BtfParam { name_off: b.string("ctx"), ty: ptr };
    let proto = b.add("", &Kind::FuncProto { ret: int, params: Box::new([ctx]) });
    assert_eq!(b.add(name, &Kind::Func { proto, linkage: Linkage::Global }), FUNCTION);
    b.finish()
}

const FUNCTION: u32 = 5;
const BTF_LOAD: u32 = 18;

#[test]
fn programs_are_made_for_functions_of_programs() {
    let ours = Ours::with(config(Profile::Linux6_18));
    let blob = types("work");
    let btf = ours.bpf(BTF_LOAD, &mut Attrs::new(40).ptr(0, &blob).u32(16, blob.len() as u32).0);
    assert!(btf >= 0, "{btf}");
    let info = [0u32, FUNCTION];
    // What traces returns 0.
    let nothing = [0xb7u64, 0x95];
    let typed =
        |ty| program(Profile::Linux6_18, ty).ptr(8, &nothing).u32(72, btf as u32).u32(76, 8).ptr(80, &info).u32(88, 1);
    let target = ours.bpf(PROG_LOAD, &mut typed(1).0);
    let bare = ours.bpf(PROG_LOAD, &mut program(Profile::Linux6_18, 1).0);
    assert!(target >= 0 && bare >= 0, "{target} {bare}");
    let attach = |ty, id, fd: i64| typed(ty).u32(108, id).u32(112, fd as u32);
    let fentry = |id, fd| attach(26, id, fd).u32(68, 24);
    assert_eq!(load(&ours, &fentry(FUNCTION, target)), 0);
    assert_eq!(load(&ours, &attach(28, FUNCTION, target)), 0);
    // A type that is no function, one that is not there, a program without types, other types of program.
    for wrong in [fentry(1, target), fentry(99, target), fentry(FUNCTION, bare), attach(1, FUNCTION, target)] {
        assert_eq!(load(&ours, &wrong), no(Errno::EINVAL));
    }
    assert_eq!(load(&ours, &attach(28, FUNCTION, btf)), no(Errno::ENOTSUPP));
    assert_eq!(load(&ours, &attach(28, FUNCTION, 999)), no(Errno::EINVAL));
    // Who is attached to lives as long as what was made for it.
    let extension = ours.bpf(PROG_LOAD, &mut attach(28, FUNCTION, target).0);
    assert!(extension >= 0);
    ours.close(target);
    ours.close(bare);
    assert_eq!(ours.subsystem.alive().progs, 2);
    ours.close(extension);
    ours.close(btf);
    assert_eq!(ours.left(), Default::default());
}

/// Linux 4.17 has its own limits for programs and maps.
#[test]
fn the_old_profile_judges_by_its_own_rules() {
    let imm = |code: u64, x: i32| code | u64::from(x as u32) << 32;
    let looping = [0xb7u64, imm(0x07, 1), imm(0x55 | 0xfffe << 16, 10), imm(0xb7, 0), 0x95];
    let late_helper = [imm(0x85, 125), imm(0xb7, 0), 0x95];
    let by_index = [0x18u64 | 0x51 << 8, 0, 0xb7, 0x95];
    let halves = [0xb7u64, 0x16, 0x95];
    let old_helper = [imm(0x85, 5), imm(0xb7, 0), 0x95];
    let with = |profile, code: &[u64]| {
        let ours = Ours::with(config(profile));
        load(&ours, &program(profile, 1).u32(4, code.len() as u32).ptr(8, code))
    };
    for code in [&looping[..], &late_helper, &halves] {
        assert_eq!(with(Profile::Linux6_18, code), 0, "{code:x?}");
        assert_eq!(with(Profile::Linux4_17, code), no(Errno::EINVAL), "{code:x?}");
    }
    assert_eq!(with(Profile::Linux4_17, &by_index), no(Errno::EINVAL));
    assert_eq!(with(Profile::Linux4_17, &old_helper), 0);
    let ours = Ours::with(config(Profile::Linux4_17));
    let map = |ty| Attrs::new(48).u32(0, ty).u32(4, if ty == 22 { 0 } else { 4 }).u32(8, 4).u32(12, 1);
    assert_eq!(call(&ours, MAP_CREATE, &map(16)), 0);
    assert_eq!(call(&ours, MAP_CREATE, &map(22)), no(Errno::EINVAL));
}
