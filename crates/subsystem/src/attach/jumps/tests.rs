//! What is found is compared with what the assembler was told, and with where programs really jump.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use super::super::arrivals::find;
use super::super::procfs::{self, Auxv};
use super::super::ptrace::{self, Regs, Stop};
use super::super::symbols::{Module, Modules};
use super::super::world::Memory;
use super::arrivals;

/// Tables of another kind, which is not understood.
const LARGE: &str = "-mcmodel=large";
/// How often a jump is looked at.
const LOOKS: u32 = 200;

fn full() -> bool {
    std::env::var_os("SKEP_JUMPS").is_some()
}

/// Compilers that are installed, with flags: a few, or very many.
fn compilers() -> Vec<(&'static str, Vec<&'static str>)> {
    let there = |name: &&str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
    let clang = ["clang", "clang-19"].into_iter().find(there);
    let mut all = Vec::new();
    for (name, few) in ["gcc"].into_iter().chain(clang).zip([&["-O0", "-O2"][..], &["-O2"]]) {
        let levels: &[&str] = if full() { &["-O0", "-O1", "-O2", "-O3", "-Os"] } else { few };
        let places: &[&[&str]] =
            if full() { &[&[], &["-fno-pie", "-no-pie"], &[LARGE], &["-fcf-protection=full"]] } else { &[&[]] };
        for level in levels {
            all.extend(places.iter().map(|place| (name, [&[*level], *place].concat())));
        }
    }
    if !full() {
        all.push(("gcc", vec!["-O2", "-fno-pie", "-no-pie"]));
    }
    all
}

/// Compiles the program of switches; returns it, with its labels kept, and the assembler's text.
fn switches(compiler: &str, flags: &[&str]) -> (PathBuf, String) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attach/switches.c");
    let stem = format!("skep-switches-{}-{compiler}{}", std::process::id(), flags.concat());
    let program = std::env::temp_dir().join(stem);
    let text = program.with_extension("s");
    let run = |args: &[&str], from: &Path, to: &Path| {
        let status = Command::new(compiler).args(flags).args(args).arg(from).arg("-o").arg(to).status().unwrap();
        assert!(status.success(), "{compiler} {flags:?} {args:?}");
    };
    run(&["-w", "-S"], Path::new(source), &text);
    run(&["-Wa,-L"], &text, &program);
    let listing = std::fs::read_to_string(&text).unwrap();
    std::fs::remove_file(text).unwrap();
    (program, listing)
}

/// The labels in tables.
fn labels(listing: &str) -> BTreeSet<&str> {
    fn entry(line: &str) -> Option<&str> {
        let words = line.trim().strip_prefix(".long").or_else(|| line.trim().strip_prefix(".quad"))?.trim();
        let end = words.find(|c: char| c == '-' || c.is_whitespace()).unwrap_or(words.len());
        words.get(..end).filter(|label| label.starts_with(".L"))
    }
    listing.lines().filter_map(entry).filter(|label| !label.starts_with(".Lfunc") && !label.contains("str")).collect()
}

/// A program, traced and standing still.
struct Tracee {
    child: Child,
    memory: Memory,
    modules: Modules,
}

impl Tracee {
    /// Starts a program that waits for a line.
    fn start(command: &mut Command, pause: Duration) -> Tracee {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        // It waits when it is asleep.
        let end = Instant::now() + Duration::from_secs(20);
        std::thread::sleep(pause);
        while procfs::thread_state(pid, pid as i32) != 'S' {
            assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "{command:?} does not wait");
            std::thread::sleep(Duration::from_millis(1));
        }
        ptrace::seize(pid as i32, ptrace::Watch::Stops).unwrap();
        ptrace::interrupt(pid as i32).unwrap();
        let stop = ptrace::wait(pid as i32, end).unwrap();
        assert_eq!(stop, Some(Stop::Interrupted));
        let maps = procfs::maps(pid).unwrap();
        let modules = Modules::of(pid, &maps, &Auxv::read(pid).unwrap());
        Tracee { child, memory: Memory::open(pid).unwrap(), modules }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the linker says that an address may be jumped to.
fn is_pointed_to(tracee: &Tracee, module: &Module, address: u64) -> bool {
    !find(&tracee.memory, module, &[(address, address..address + 1)], true).is_empty()
}

#[test]
fn switches_lead_to_where_they_were_said_to() {
    for (compiler, flags) in compilers() {
        let (program, listing) = switches(compiler, &flags);
        let tracee = Tracee::start(Command::new(&program).args(["6", "wait"]), Duration::ZERO);
        let out = Command::new("nm").arg(&program).output().unwrap();
        let module = tracee.modules.get(0).unwrap();
        let loaded = module.loaded().unwrap();
        let symbols: HashMap<String, u64> =
            String::from_utf8(out.stdout).unwrap().lines().fold(HashMap::new(), |mut all, line| {
                if let [at, _, name] = line.split_whitespace().collect::<Vec<_>>()[..] {
                    all.insert(name.to_owned(), u64::from_str_radix(at, 16).unwrap().wrapping_add(loaded.bias));
                }
                all
            });
        let (mut found, mut functions, mut understood) = (HashMap::new(), 0, 0);
        for symbol in loaded.elf.symbols.iter().filter(|s| s.function && s.size > 0 && !s.name.contains(".cold")) {
            let start = symbol.address.wrapping_add(loaded.bias);
            let places = arrivals(&tracee.memory, &tracee.modules, module, &(start..start + symbol.size), &[]);
            functions += 1;
            understood += usize::from(places.is_ok());
            if let Err(why) = &places {
                println!("{compiler} {flags:?}: {}: {why}", symbol.name);
            }
            found.insert(start..start + symbol.size, (&symbol.name, places));
        }
        let all: BTreeSet<u64> = found.values().flat_map(|(_, places)| places.iter().flatten().copied()).collect();
        let wanted = labels(&listing);
        assert!(wanted.len() > 50, "{compiler} {flags:?}: {} labels", wanted.len());
        let mut told = 0;
        for label in wanted {
            let Some(&address) = symbols.get(label) else { panic!("{compiler} {flags:?}: no address of {label}") };
            if !module.has_code_at(address) {
                continue;
            }
            let of = found.iter().find(|(range, _)| range.contains(&address));
            match of {
                Some((_, (_, Err(_)))) => continue,
                // The table of a function leads into it.
                Some((_, (_, Ok(places)))) if places.contains(&address) => {}
                // Or to a part of it that stands elsewhere.
                None if all.contains(&address) || flags.contains(&LARGE) => {}
                _ => assert!(
                    is_pointed_to(&tracee, module, address),
                    "{compiler} {flags:?}: {label} at {address:#x} in {:?} was not found",
                    of.map(|(_, (name, _))| name)
                ),
            }
            told += 1;
        }
        println!(
            "{compiler} {flags:?}: {understood} of {functions} functions, {told} places in tables, {} found",
            all.len()
        );
        assert!(told > 50 || flags.contains(&LARGE), "{compiler} {flags:?}: {told}");
        let seen = watch(tracee, b"\n", Duration::from_secs(20));
        println!("{compiler} {flags:?}: {seen:?}");
        assert_eq!(seen.wrong, [""; 0], "{compiler} {flags:?}");
        assert!(seen.within > 500 && (seen.known > 12 || flags.contains(&LARGE)), "{compiler} {flags:?}: {seen:?}");
        std::fs::remove_file(program).unwrap();
    }
}

/// An indirect jump.
struct Jump {
    insn: Instruction,
    piece: Range<u64>,
    module: usize,
    original: u8,
    looks: u32,
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    jumps: usize,
    within: usize,
    known: usize,
    functions: usize,
    wrong: Vec<String>,
}

fn register(regs: &Regs, register: Register, next: u64) -> Option<u64> {
    Some(match register {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RBP => regs.rbp,
        Register::RSP => regs.rsp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        Register::RIP => next,
        Register::None => 0,
        _ => return None,
    })
}

/// Where a jump leads now.
fn target(memory: &Memory, insn: &Instruction, regs: &Regs) -> Option<u64> {
    if insn.op0_kind() == OpKind::Register {
        return register(regs, insn.op0_register(), 0);
    }
    if insn.segment_prefix() != Register::None {
        return None;
    }
    let address = match insn.is_ip_rel_memory_operand() {
        true => insn.ip_rel_memory_address(),
        false => {
            let index = register(regs, insn.memory_index(), 0)?.wrapping_mul(insn.memory_index_scale().into());
            register(regs, insn.memory_base(), 0)?.wrapping_add(index).wrapping_add(insn.memory_displacement64())
        }
    };
    memory.word(address).ok()
}

/// Runs a program, with a breakpoint at each indirect jump, and compares where they lead with where they were said to.
fn watch(mut tracee: Tracee, input: &[u8], limit: Duration) -> Seen {
    let pid = tracee.pid();
    let mut jumps: HashMap<u64, Jump> = HashMap::new();
    for (index, module) in tracee.modules.iter().enumerate() {
        let Some(pieces) = module.pieces(&tracee.memory, &tracee.modules) else { continue };
        let code: Vec<Range<u64>> = module.code().collect();
        for piece in code.iter().flat_map(|code| pieces.touching(code)) {
            let len = (piece.range.end - piece.range.start).min(1 << 20) as usize;
            let text = tracee.memory.read_up_to(piece.range.start, len);
            for insn in Decoder::with_ip(64, &text, piece.range.start, DecoderOptions::NONE) {
                if insn.flow_control() == FlowControl::IndirectBranch {
                    let original = text[(insn.ip() - piece.range.start) as usize];
                    let jump = Jump { insn, piece: piece.range.clone(), module: index, original, looks: 0 };
                    jumps.insert(insn.ip(), jump);
                }
            }
        }
    }
    let mut seen = Seen::default();
    // What the text is without breakpoints.
    let plain: Vec<(u64, Vec<u8>)> = jumps.iter().map(|(at, jump)| (*at, vec![jump.original])).collect();
    jumps.keys().for_each(|at| tracee.memory.write(*at, &[0xcc]).unwrap());
    tracee.memory.show(plain);
    let mut stdin = tracee.child.stdin.take().unwrap();
    let mut stdout = tracee.child.stdout.take().unwrap();
    let drain = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let input = input.to_vec();
    let feed = std::thread::spawn(move || stdin.write_all(&input));
    let mut places: HashMap<u64, Result<Vec<u64>, String>> = HashMap::new();
    let (tid, end) = (pid as i32, Instant::now() + limit);
    ptrace::cont(tid, 0).unwrap();
    while Instant::now() < end {
        let mut signal = 0;
        match ptrace::wait(tid, end).unwrap() {
            None | Some(Stop::Gone) => break,
            Some(Stop::Signal(libc::SIGTRAP)) => {
                let mut regs = ptrace::regs(tid).unwrap();
                let at = regs.rip - 1;
                let Some(jump) = jumps.get_mut(&at) else { break };
                jump.looks += 1;
                regs.rip = at;
                let to = target(&tracee.memory, &jump.insn, &regs).filter(|_| jump.looks < LOOKS);
                match to {
                    Some(to) => regs.rip = to,
                    None => tracee.memory.write(at, &[jump.original]).unwrap(),
                }
                ptrace::set_regs(tid, &regs).unwrap();
                if let Some(to) = to {
                    look(&tracee, jump, to, &mut places, &mut seen);
                }
            }
            Some(Stop::Signal(other)) => signal = other,
            Some(_) => {}
        }
        if ptrace::cont(tid, signal).is_err() {
            break;
        }
    }
    drop(tracee);
    let _ = (feed.join(), drain.join());
    seen.functions = places.len();
    seen.known = places.values().filter(|places| places.is_ok()).count();
    seen
}

fn look(tracee: &Tracee, jump: &Jump, to: u64, places: &mut HashMap<u64, Result<Vec<u64>, String>>, seen: &mut Seen) {
    seen.jumps += 1;
    let module = tracee.modules.get(jump.module).unwrap();
    let pieces = module.pieces(&tracee.memory, &tracee.modules).unwrap();
    let bias = module.loaded().unwrap().bias;
    let elf = &module.loaded().unwrap().elf;
    let begins = pieces.at(to).is_none_or(|piece| piece.range.start == to && !jump.piece.contains(&to));
    if begins || elf.at(to.wrapping_sub(bias)).any(|symbol| symbol.function && !symbol.name.contains(".cold")) {
        return;
    }
    seen.within += 1;
    let of = places
        .entry(jump.piece.start)
        .or_insert_with(|| arrivals(&tracee.memory, &tracee.modules, module, &jump.piece, &[]));
    if let Ok(of) = of
        && of.binary_search(&to).is_err()
        && !is_pointed_to(tracee, module, to)
    {
        let at = jump.insn.ip().wrapping_sub(bias);
        seen.wrong.push(format!("{}: the jump at {at:#x} leads to {:#x}", module.path, to.wrapping_sub(bias)));
    }
}

#[test]
fn programs_jump_to_where_they_were_said_to() {
    let words: String = (0..20_000u32).map(|n| format!("{:x} \n", n.wrapping_mul(2_654_435_761))).collect();
    let python = "input()\nimport json, re, random, decimal, zlib, hashlib\nfor i in range(30):\n x = json.loads(json.dumps(\
                  {str(k): [k, str(k), k * 0.5, None] for k in range(50)}))\n re.sub(r'(a|b+)*c', 'x', 'abbc' * 20)\n \
                  zlib.decompress(zlib.compress(bytes(range(256)) * 40))\n decimal.Decimal(2).sqrt()\n \
                  '%s %5.2f %x' % (x, 2.5, 77)\n hashlib.sha256(b'x').hexdigest()\n";
    let perl = "<STDIN>; my %h; for (1..3000) { $h{$_ % 77} .= sprintf('%d %s %.3f', $_, 'x' x ($_ % 9), $_ / 7); } print \
                join(',', sort { $h{$a} cmp $h{$b} } keys %h); $_ = 'a1b22c333' x 50; s/([a-z])(\\d+)/$2$1/g; print;";
    let code = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attach/switches.c")).unwrap();
    let mut compile = Command::new("gcc");
    let compile = compile.args(["-print-prog-name=cc1"]).output().unwrap();
    let compiler = String::from_utf8(compile.stdout).unwrap().trim().to_owned();
    let mut programs: Vec<(&str, Vec<&str>, String)> = vec![("/usr/bin/sort", vec!["-k1"], words.clone())];
    if full() {
        programs.extend([
            ("/usr/bin/python3", vec!["-c", python], "\n".to_owned()),
            ("/usr/bin/perl", vec!["-e", perl], "\n".to_owned()),
            (&compiler, vec!["-O2", "-quiet", "-", "-o", "/dev/null"], code.clone()),
            ("/usr/bin/openssl", vec!["dgst", "-sha512"], words.clone()),
            ("/usr/bin/clang-19", vec!["-cc1", "-O2", "-S", "-x", "c", "-", "-o", "/dev/null"], "int f(int x) { switch (x) { case 0: return 3; case 1: return 7; case 2: return x * x; case 3: return 8; case 4: return 0; } return x / 3; }".into()),
            ("/bin/bash", vec![], "for i in $(seq 300); do case $i in 1*) x=${i//1/2};; *) x=$((i * 3));; esac; printf '%d %s\\n' $i $x; done".into()),
            ("/usr/bin/awk", vec!["{ n[length($1)]++; s = s substr($1, 2, 1) } END { for (i in n) print i, n[i]; print toupper(s) }"], words.clone()),
            ("/usr/bin/sed", vec!["-E", "s/([0-9]+)([a-f]*)/\\2\\1/g; y/abc/xyz/; 5,10d"], words.clone()),
            ("/usr/bin/gzip", vec!["-c"], words.clone()),
            ("/usr/bin/jq", vec![".", "-c"], "[1,2,{\"a\":\"b\"}]".into()),
            ("/usr/bin/sqlite3", vec![], "create table t(a, b); insert into t values (1, 'x'), (2, 'y'); select a, upper(b), printf('%05d', a) from t where b like '%y' order by 1; with recursive c(x) as (select 1 union all select x + 1 from c where x < 500) select sum(x * x) from c;".into()),
        ]);
    }
    for (program, args, input) in programs {
        if !Path::new(program).exists() {
            println!("{program} is not installed");
            continue;
        }
        let tracee =
            Tracee::start(Command::new(program).args(&args), Duration::from_millis(if full() { 400 } else { 30 }));
        let seen = watch(tracee, input.as_bytes(), Duration::from_secs(if full() { 120 } else { 10 }));
        println!("{program}: {seen:?}");
        assert_eq!(seen.wrong, [""; 0], "{program}");
        assert!(seen.jumps > 0, "{program}");
    }
}
