//! Random programs on the interpreter, as they were loaded, on machine code of every kind, and on the kernel.
//!
//! `SKEP_JIT_PROGRAMS` says how many programs run on both engines, and `SKEP_JIT_KERNEL` how many on the kernel as well;
//! `SKEP_JIT_SEED` is where they start.

use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Register};
use skep_ebpf::Insn;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::ProgType;
use skep_verifier::Verified;

use super::maker::{self, CTX, Shape, TARGETS, Wish};
use super::rng::Rng;
use super::support::{Session, skb};
use super::{jit, kernel};
use crate::tuning::Tuning;
use crate::{Compiled, Engine, Options, Source, calls, translate_with};

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// A program as it was loaded, for the interpreter: nothing that was found out about it is used.
fn interpreted(verified: &Verified) -> Compiled {
    let program = verified.program();
    let subprogs: Vec<_> = { verified.subprogs().iter().zip(0..) }
        .map(|(s, number)| calls::Subprog { start: s.start, stack: s.stack_depth, args: 5, number })
        .collect();
    let source = Source {
        name: &program.name,
        prog_type: program.prog_type,
        insns: verified.insns(),
        subprogs: &subprogs,
        marks: &crate::marks::marks(verified.insns()),
        maps: &program.maps,
        known: None,
        special: &crate::special::NONE,
    };
    let options = Options { engine: Engine::Interpreter, ..Options::default() };
    translate_with(&source, &options, &Tuning::of(&options)).unwrap()
}

/// Kinds of machine code.
const KINDS: usize = 5;

/// Machine code of one of several kinds.
fn native(verified: &Verified, kind: usize) -> Compiled {
    let options = Options { harden: kind == 1, budget: kind == 2, ..jit() };
    let mut tuning = Tuning::of(&options);
    tuning.optimise = kind != 3;
    if kind == 4 {
        tuning.features = Default::default();
    }
    crate::compile_with(verified, &options, &tuning).unwrap()
}

/// True if the code leaves itself, or names r9, r10 or r11.
fn takes_more(program: &Compiled) -> bool {
    let mut infos = InstructionInfoFactory::new();
    Decoder::new(64, program.machine_code().unwrap(), DecoderOptions::NONE).iter().any(|insn| {
        let more = |r: Register| matches!(r.full_register(), Register::R9 | Register::R10 | Register::R11);
        let leaves = matches!(insn.flow_control(), FlowControl::IndirectCall | FlowControl::IndirectBranch);
        leaves || infos.info(&insn).used_registers().iter().any(|used| more(used.register()))
    })
}

/// Maps, and the programs of their prog array, of one engine.
struct World {
    session: Session,
}

impl World {
    fn new(maps: &[MapDef], targets: &[Compiled]) -> World {
        let mut session = Session::new(maps).unwrap();
        for (n, target) in targets.iter().enumerate() {
            let prog = session.add(target);
            session.maps()[maps.len() - 1].set_program(n as u32, Some(prog)).unwrap();
        }
        World { session }
    }

    fn run(&mut self, shape: Shape, program: &Compiled, data: &mut [u8; CTX]) -> u64 {
        let mut machine = self.session.machine(0);
        let image = program.image_ptr().unwrap();
        // SAFETY: a context of the program's type; the image was made for these maps.
        unsafe {
            match shape {
                Shape::Packet => machine.run_image(image, skb(data, 0).as_mut_ptr()).retval,
                _ => machine.run_image(image, data.as_mut_ptr()).retval,
            }
        }
    }
}

/// The kernel's maps, if it is asked.
struct Theirs {
    maps: Vec<kernel::Map>,
    _targets: Vec<kernel::Program>,
}

impl Theirs {
    fn new(maps: &[MapDef], targets: &[Vec<Insn>]) -> Theirs {
        let maps: Vec<_> = maps.iter().map(|m| kernel::Map::create(m).unwrap()).collect();
        let targets: Vec<_> =
            targets.iter().map(|t| kernel::Program::load_linked(ProgType::SchedCls, t, &maps).unwrap()).collect();
        for (n, target) in targets.iter().enumerate() {
            maps[maps.len() - 1].update(&(n as u32).to_ne_bytes(), &target.fd().to_ne_bytes()).unwrap();
        }
        Theirs { maps, _targets: targets }
    }
}

/// The kernel's per-CPU maps are those of the CPU that it happens to run on.
fn stay() {
    // SAFETY: reads the set that it is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

fn verified(shape: Shape, insns: &[Insn], maps: &Arc<[MapDef]>) -> Result<Verified, String> {
    let prog_type = if shape == Shape::Packet { ProgType::SchedCls } else { ProgType::Syscall };
    let mut program = Program::new("test", prog_type, "GPL", insns.to_vec());
    if prog_type == ProgType::Syscall {
        program.flags = skep_ebpf::uapi::prog_flags::SLEEPABLE;
    }
    program.maps = maps.clone();
    skep_verifier::verify(program, &skep_verifier::Options::default()).map_err(|r| r.to_string())
}

/// Found by random programs.
#[test]
fn what_once_went_wrong() {
    const LOAD: &str = "r0 = *(u64 *)(r6 +0)\nr1 = *(u64 *)(r6 +8)\nr5 = *(u64 *)(r6 +16)\n";
    let cases = [
        // The comparison loaded a number where a copy that was to be moved still had its value.
        "r1 = r5\nw5 = -5\nr2 = r0\nif r1 > r5 goto pc+1\nr2 = r1\n*(u64 *)(r6 +0) = r2\n*(u64 *)(r6 +8) = r1\n",
        // The flags of a comparison were taken for those of what was moved on it.
        "r2 = r0\nr2 &= 1\nif w2 != 0 goto pc+1\nr2 = r5\nif r2 == 0 goto pc+1\nr0 = 1\n*(u64 *)(r6 +0) = r0\n",
        // A shift by a register that is known to hold more than 63 counted as one by so many.
        "r4 = 77\nr0 >>= r4\nr4 = r0\nr4 |= 95816897\nr0 *= 127\nr4 >>= 34\n*(u64 *)(r6 +0) = r0\n*(u64 *)(r6 +8) = r4\n",
        // The flags of a sum were taken for those of what was then made of it.
        "r0 += r1\nw0 %= -4\nif r0 != 0 goto pc+1\nr1 = 5\n*(u64 *)(r6 +0) = r0\n*(u64 *)(r6 +8) = r1\n",
        "r0 += r1\nr0 *= 6\nif r0 != 0 goto pc+1\nr1 = 5\n*(u64 *)(r6 +0) = r0\n*(u64 *)(r6 +8) = r1\n",
        "r7 = r0\nr7 += r1\ncall get_current_pid_tgid#14\nr0 = 5\nif r7 != 0 goto pc+1\nr0 = 6\n*(u64 *)(r6 +0) = r0\n*(u64 *)(r6 +8) = r7\n",
        // With numbers blinded, an address was forgotten that refers to the register that is loaded.
        "*(u64 *)(r10 -16) = r0\n*(u64 *)(r10 -8) = r1\nr1 &= 7\nr2 = r10\nr2 += -16\nr2 += r1\nr1 = *(u8 *)(r2 +0)\n\
         r1 += 128\n*(u8 *)(r2 +0) = r1\nr0 = *(u64 *)(r10 -16)\n*(u64 *)(r6 +0) = r0\n",
        // A quotient with a sign was taken for one without: its upper half is not zero.
        "r0 s/= -3\nw1 = w0\n*(u64 *)(r6 +0) = r0\n*(u64 *)(r6 +8) = r1\n",
        // An array's key was loaded after what its address was relative to had changed.
        "r0 &= 1\n*(u32 *)(r10 -12) = r0\n*(u32 *)(r10 -4) = 100\nr7 = r10\nr7 += -16\n*(u64 *)(r10 -24) = r7\n\
         r2 = r7\nr2 += 4\nr7 += 8\nr1 = map[idx:1]\ncall 1\nif r0 == 0 goto pc+2\nr3 = *(u32 *)(r7 +4)\n\
         *(u64 *)(r6 +0) = r3\n",
    ];
    let maps: Arc<[MapDef]> = maker::maps().into();
    let mut world = World::new(&maps, &[]);
    let mut rng = Rng::new(3);
    for case in cases {
        let insns = skep_ebpf::asm::assemble(&format!("r6 = r1\n{LOAD}{case}r0 = 0\nexit\n")).unwrap();
        let verified = verified(Shape::Plain, &insns, &maps).unwrap();
        let interp = interpreted(&verified);
        for kind in 0..KINDS {
            let native = native(&verified, kind);
            for _ in 0..100 {
                let start = context(&mut rng);
                let (mut a, mut b) = (start, start);
                world.run(Shape::Plain, &interp, &mut a);
                world.run(Shape::Plain, &native, &mut b);
                assert_eq!(a, b, "kind {kind}, from {start:x?}: {case}");
            }
        }
    }
}

fn context(rng: &mut Rng) -> [u8; CTX] {
    let mut start = [0u8; CTX];
    for word in start.as_chunks_mut().0 {
        *word = rng.word().to_ne_bytes();
    }
    start
}

/// Runs so many programs on the interpreter, on machine code, and if asked for on the kernel.
fn campaign(seed: u64, programs: usize, with_kernel: bool) {
    let mut rng = Rng::new(seed);
    let maps: Arc<[MapDef]> = maker::maps().into();
    let wish = Wish { shape: Shape::Packet, for_kernel: with_kernel, last: true };
    // What is tail-called.
    let targets: Vec<_> = (0..TARGETS).map(|_| maker::program(&mut rng, wish)).collect();
    let checked: Vec<_> = targets.iter().map(|t| verified(Shape::Packet, t, &maps).unwrap()).collect();
    let compiled = |of: &dyn Fn(&Verified) -> Compiled| -> Vec<Compiled> { checked.iter().map(of).collect() };
    let mut ours = World::new(&maps, &compiled(&interpreted));
    let mut natives = World::new(&maps, &compiled(&|v| native(v, 0)));
    let theirs = with_kernel.then(|| Theirs::new(&maps, &targets));
    if with_kernel {
        stay();
    }
    let (mut runs, mut refused, mut few) = (0u64, 0u64, 0u64);
    for round in 0..programs {
        // Long ones are stopped in the middle.
        if round > 0 && round % 100_000 == 0 {
            println!(
                "seed {seed}: {round} programs, kernel: {with_kernel}; {runs} runs compared, {refused} refused, so far"
            );
        }
        let shape = rng.one(&[Shape::Plain, Shape::Plain, Shape::Maps, Shape::Packet]);
        let insns = maker::program(&mut rng, Wish { shape, for_kernel: with_kernel, last: false });
        let at = || format!("round {round}, seed {seed}, {shape:?}");
        let theirs = theirs.as_ref().map(|t| {
            let prog_type = if shape == Shape::Packet { ProgType::SchedCls } else { ProgType::Syscall };
            kernel::Program::load_linked(prog_type, &insns, &t.maps)
        });
        let verified = match verified(shape, &insns, &maps) {
            Ok(v) => v,
            Err(e) => {
                assert!(!matches!(theirs, Some(Ok(_))), "only skep refuses, {}: {e}: {insns:#?}", at());
                refused += 1;
                if std::env::var_os("SKEP_JIT_SHOW").is_some() {
                    println!("{}: {e}", at());
                }
                assert!(refused < 20 + round as u64 / 10, "most programs are refused, {}: {e}: {insns:#?}", at());
                continue;
            }
        };
        let theirs = theirs.map(|t| t.unwrap_or_else(|e| panic!("only the kernel refuses, {}: {e}: {insns:#?}", at())));
        let interp = interpreted(&verified);
        let native = native(&verified, if rng.once_in(2) { 0 } else { rng.below(KINDS) });
        // A hit would keep too little for it.
        assert!(!native.changes_few() || !takes_more(&native), "{}: {insns:#?}", at());
        few += u64::from(native.changes_few());
        for _ in 0..3 {
            let start = context(&mut rng);
            let (mut a, mut b) = (start, start);
            let results = (ours.run(shape, &interp, &mut a), natives.run(shape, &native, &mut b));
            assert_eq!(a, b, "{}, from {start:x?}: {insns:#?}", at());
            assert_eq!(results.0, results.1, "result, {}, from {start:x?}: {insns:#?}", at());
            if let Some(theirs) = &theirs {
                let mut c = start;
                let result = match shape {
                    Shape::Packet => theirs.run_packet_on(&mut c).unwrap(),
                    _ => theirs.run_on(&mut c).unwrap(),
                };
                assert_eq!(a, c, "kernel, {}, from {start:x?}: {insns:#?}", at());
                assert_eq!(results.0 as u32, result, "kernel's result, {}, from {start:x?}: {insns:#?}", at());
            }
            runs += 1;
        }
    }
    println!(
        "seed {seed}: {programs} programs, {few} of few registers, kernel: {with_kernel}; {runs} runs compared, {refused} refused"
    );
    assert!(few > 0 || programs < 1000);
}

#[test]
fn random_programs_end_alike_on_both_engines() {
    campaign(setting("SKEP_JIT_SEED", 1) as u64, setting("SKEP_JIT_PROGRAMS", 20_000), false);
}

#[test]
fn random_programs_end_alike_in_the_kernel() {
    if kernel::available() {
        campaign(setting("SKEP_JIT_SEED", 2) as u64, setting("SKEP_JIT_KERNEL", 300), true);
    }
}
