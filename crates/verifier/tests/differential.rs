//! Random programs, judged here and by the live kernel: nothing that it rejects may be accepted.
//!
//! `SKEP_FUZZ` is the number of programs (default 1000), `SKEP_SEED` the first seed, `SKEP_FUZZ_THREADS` how many work
//! at once; `SKEP_FUZZ_SHOW` how many seeds of each kind are shown. With one program `SKEP_FUZZ_TEXT` prints it and
//! asks nobody, `SKEP_FUZZ_LOG` prints both logs, and `SKEP_FUZZ_MIN` makes a program that is judged differently as small as possible. A program of which more than
//! `SKEP_FUZZ_LIMIT` instructions are processed here is not put to the kernel: it would take seconds. Where the kernel
//! takes more than two seconds it is interrupted, and the program is listed as unanswered. `SKEP_FUZZ_LEAKS` judges
//! for a process without `CAP_PERFMON`, `SKEP_FUZZ_UNPRIVILEGED` for one without capabilities (which is asked only while
//! `kernel.unprivileged_bpf_disabled` is 0).
//!
//! A campaign: `SKEP_FUZZ=2000000 SKEP_FUZZ_THREADS=2 cargo test --release -p skep-verifier --test differential --
//! --nocapture`. Needs `bpf(2)`; skipped without.

#[path = "differential/generator/mod.rs"]
mod generator;
mod kernel;
#[path = "differential/minimise.rs"]
mod minimise;
mod typed;
#[path = "differential/watch.rs"]
mod watch;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use skep_ebpf::btf::Btf;
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::ProgType;
use skep_verifier::{KernelProfile, Options, Outcome, Privilege, verify};

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// The kernel's last word in its log; empty if the verifier had nothing to say against the program: it was refused
/// later, because its prog array belongs to another type, or by a fault of the kernel's own.
fn complaint(log: &str) -> &str {
    let last = log.lines().rev().find(|l| !l.starts_with("processed") && !l.trim().is_empty()).unwrap_or("");
    let own_fault = ["verifier bug: No program to jit", "verifier bug: static subprog leftover stack slots"];
    if last.ends_with("is safe for any args that match its prototype") || own_fault.iter().any(|f| last.starts_with(f))
    {
        return "";
    }
    last
}

/// How the two verdicts compare.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    BothAccept,
    BothReject(&'static str),
    Unsupported,
    /// Too long here to be put to the kernel.
    TooLong,
    /// The kernel was interrupted at work.
    Unanswered,
    WrongAccept(String),
    /// With the reason; the message is shown for a single program.
    WrongReject(&'static str),
}

/// True for a program with functions of its own.
fn has_calls(program: &Program) -> bool {
    program.insns.iter().any(|i| i.is_subprog_call() || i.is_ld_imm64() && i.src() == pseudo::FUNC)
}

/// The two judges.
struct Judges {
    maps: Arc<[MapDef]>,
    fds: Vec<OwnedFd>,
    options: Options,
}

impl Judges {
    fn open() -> Option<Judges> {
        if !kernel::available() {
            return None;
        }
        let maps: Arc<[MapDef]> = generator::maps().into();
        let leaks = std::env::var_os("SKEP_FUZZ_LEAKS").is_some();
        let unprivileged = std::env::var_os("SKEP_FUZZ_UNPRIVILEGED").is_some();
        let privilege = match (unprivileged, leaks) {
            (true, _) => Privilege::None,
            (false, true) => Privilege::Bpf,
            _ => Privilege::Full,
        };
        if privilege == Privilege::None && !kernel::lets_anybody_load() {
            eprintln!("not asked: kernel.unprivileged_bpf_disabled is not 0");
            return None;
        }
        // A kernel masks accesses to maps of such a process.
        let fds = if privilege == Privilege::Full {
            kernel::maps(&maps)
        } else {
            kernel::without_perfmon(|| kernel::maps(&maps))
        };
        let Some(fds) = fds else {
            eprintln!("skipped: the maps cannot be made here");
            return None;
        };
        let max_processed = env("SKEP_FUZZ_LIMIT", 8_000);
        let profile = KernelProfile { max_processed, ..kernel::profile() };
        let btf = std::fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|raw| Btf::parse(&raw).ok()).map(Arc::new);
        Some(Judges { maps, fds, options: Options { profile, privilege, btf, ..Options::default() } })
    }

    /// The program with this seed.
    fn make(&self, seed: u64) -> generator::Made {
        let mut rng = generator::Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // With fewer capabilities, the first that is not refused for its type or for calling functions.
        loop {
            let typed = seed % 2 == 1 && self.options.privilege != Privilege::None;
            let made = generator::program(&mut rng, &self.maps, typed);
            let ty = made.program.prog_type;
            let may = match self.options.privilege {
                Privilege::Full => true,
                Privilege::Bpf => matches!(ty, ProgType::SocketFilter | ProgType::SchedCls | ProgType::Xdp),
                Privilege::None => ty == ProgType::SocketFilter && !has_calls(&made.program),
            };
            if may {
                return made;
            }
        }
    }

    fn ask(&self, program: &Program, btf: Option<&OwnedFd>, level: u32) -> kernel::Answer {
        let ask = || kernel::load_typed(program, &self.fds, btf, level).expect("the kernel is asked");
        match self.options.privilege {
            Privilege::Full => ask(),
            Privilege::Bpf => kernel::without_perfmon(ask),
            Privilege::None => kernel::without_capabilities(ask),
        }
    }

    fn judge(&self, program: &Program, btf: Option<&[u8]>, watched: &watch::Watched) -> Verdict {
        let ours = verify(program.clone(), &self.options);
        match &ours {
            Err(r) if r.outcome == Outcome::Unsupported => return Verdict::Unsupported,
            Err(r) if r.reason == "too-complex" => return Verdict::TooLong,
            _ => {}
        }
        let btf = btf.map(|raw| kernel::btf(raw).expect("the kernel takes the BTF"));
        let answer = watched.during(|| self.ask(program, btf.as_ref(), 0));
        match (ours, answer.errno) {
            (_, libc::EAGAIN) => Verdict::Unanswered,
            (Ok(_), 0) => Verdict::BothAccept,
            (Ok(_), _) => match complaint(&self.ask(program, btf.as_ref(), 1).log) {
                // Refused after verification: not what is compared here.
                "" => Verdict::BothAccept,
                why => Verdict::WrongAccept(why.to_owned()),
            },
            (Err(r), 0) => Verdict::WrongReject(r.reason),
            (Err(r), _) => Verdict::BothReject(r.reason),
        }
    }
}

/// Prints what both judges say of each instruction.
fn print_logs(judges: &Judges, program: &Program, btf: Option<&[u8]>) {
    let btf = btf.map(|raw| kernel::btf(raw).expect("the kernel takes the BTF"));
    let answer = judges.ask(program, btf.as_ref(), 2);
    let ours = match verify(program.clone(), &Options { log: true, ..judges.options.clone() }) {
        Ok(v) => format!("{}\n{:?}", v.log(), v.stats()),
        Err(r) => format!("{}\n{} {r}", r.log, r.reason),
    };
    println!("{:?} flags {} errno {}\n{}\nhere:\n{ours}", program.prog_type, program.flags, answer.errno, answer.log);
}

#[test]
fn agrees_with_the_live_kernel() {
    let Some(judges) = Judges::open() else { return };
    let (count, seed) = (env("SKEP_FUZZ", 1000), env("SKEP_SEED", 1));
    let show = env("SKEP_FUZZ_SHOW", 3) as usize;
    let workers = env("SKEP_FUZZ_THREADS", 1).max(1);
    let watch = watch::Watch::start(workers as usize + 1);
    if count == 1 {
        let watched = watch.worker(workers as usize);
        let made = judges.make(seed);
        if std::env::var_os("SKEP_FUZZ_TEXT").is_some() {
            println!("{:?} flags {}\n{}", made.program.prog_type, made.program.flags, minimise::text(&made.program));
            return;
        }
        let verdict = judges.judge(&made.program, made.btf.as_deref(), &watched);
        let minimise = std::env::var_os("SKEP_FUZZ_MIN").is_some();
        if minimise && matches!(verdict, Verdict::WrongAccept(_) | Verdict::WrongReject(_)) {
            let same = |p: &Program, btf: Option<&[u8]>| {
                std::mem::discriminant(&judges.judge(p, btf, &watched)) == std::mem::discriminant(&verdict)
            };
            let small = minimise::minimise(&made, &same);
            println!("{}", minimise::text(&small.program));
            print_logs(&judges, &small.program, small.btf.as_deref());
        } else if std::env::var_os("SKEP_FUZZ_LOG").is_some() || matches!(verdict, Verdict::WrongReject(_)) {
            print_logs(&judges, &made.program, made.btf.as_deref());
        }
    }
    let next = AtomicU64::new(seed);
    let work = &|worker: usize| {
        let watched = watch.worker(worker);
        let mut found: BTreeMap<Verdict, Vec<u64>> = BTreeMap::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= seed + count {
                return found;
            }
            let made = judges.make(n);
            let seeds = found.entry(judges.judge(&made.program, made.btf.as_deref(), &watched)).or_default();
            seeds.push(n);
        }
    };
    let mut found: BTreeMap<Verdict, Vec<u64>> = BTreeMap::new();
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..workers).map(|n| s.spawn(move || work(n as usize))).collect();
        for t in threads {
            for (verdict, seeds) in t.join().expect("a worker") {
                found.entry(verdict).or_default().extend(seeds);
            }
        }
    });
    let total = |fits: fn(&Verdict) -> bool| -> usize {
        found.iter().filter(|(v, _)| fits(v)).map(|(_, seeds)| seeds.len()).sum()
    };
    let wrong_accepts = total(|v| matches!(v, Verdict::WrongAccept(_)));
    println!(
        "{count} programs: {} accepted and {} rejected by both; {wrong_accepts} wrong accepts, {} wrong rejects, {} unsupported, {} too long to ask, {} unanswered",
        total(|v| *v == Verdict::BothAccept),
        total(|v| matches!(v, Verdict::BothReject(_))),
        total(|v| matches!(v, Verdict::WrongReject(_))),
        total(|v| *v == Verdict::Unsupported),
        total(|v| *v == Verdict::TooLong),
        total(|v| *v == Verdict::Unanswered),
    );
    for (verdict, seeds) in &mut found {
        seeds.sort_unstable();
        println!("{:>8} {verdict:?} seeds {:?}", seeds.len(), &seeds[..seeds.len().min(show)]);
    }
    assert_eq!(wrong_accepts, 0, "accepted here, rejected by the kernel");
}
