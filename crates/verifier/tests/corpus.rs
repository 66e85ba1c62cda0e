//! The kernel's selftest programs: our verdict against the one that Linux 6.18 gave.
//!
//! A second test asks for the verdict of Linux 6.12, which judged the kinds of programs that 6.18 refused there.
//!
//! `SKEP_CORPUS` names the corpus (default `../shared/corpus` beside the workspace); without it the test is skipped.
//! `SKEP_MODULE_BTF` names a folder with the types of the modules that 6.12 had loaded (default `modules-6.12` in the
//! corpus; `tests/module-btf` makes one); without it programs that need them are in the ledger.
//! `SKEP_CORPUS_SHOW=1` lists every disagreement. Each accepted program is run on the checker's machine (see checker.rs),
//! `SKEP_CHECK` times (default 2) with random inputs.

#[path = "checker/machine.rs"]
mod machine;
#[path = "checker/runs.rs"]
mod runs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skep_ebpf::btf::Btf;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{AttachType, ProgType};
use skep_elf::{Kconfig, Ksyms, LoadOptions, Object, kernel_version};
use skep_verifier::{KernelProfile, Options, Outcome, Rejection, Target, Verified, verify};

struct Corpus {
    dir: PathBuf,
    objects: PathBuf,
}

/// The folder with what is in an archive: unpacked once, in cargo's folder or, where that is another user's, in the system's.
fn unpacked(name: &str, archive: &Path, options: &[&str]) -> PathBuf {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    let cargo = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let new = format!("{name}.{}", std::process::id());
    // SAFETY: it takes nothing and touches no memory.
    let own = std::env::temp_dir().join(format!("skep-corpus-{}", unsafe { libc::geteuid() }));
    for base in [cargo, own] {
        let (out, new) = (base.join(name), base.join(&new));
        if out.exists() {
            return out;
        }
        if std::fs::create_dir_all(&new).is_err() {
            continue;
        }
        let done = Command::new("tar").arg("xJf").arg(archive).args(options).arg("-C").arg(&new).status();
        assert!(done.is_ok_and(|s| s.success()), "tar cannot unpack {}", archive.display());
        if std::fs::rename(&new, &out).is_err() {
            // Another run was first.
            std::fs::remove_dir_all(&new).expect("what was unpacked in vain");
        }
        return out;
    }
    panic!("no folder to unpack {} in", archive.display());
}

impl Corpus {
    fn open() -> Option<Corpus> {
        let dir = std::env::var_os("SKEP_CORPUS")
            .map(PathBuf::from)
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"));
        if !dir.join("truth.jsonl").exists() {
            eprintln!("skipped: no corpus at {} (set SKEP_CORPUS)", dir.display());
            return None;
        }
        let out = unpacked("corpus", &dir.join("objects.tar.xz"), &[]);
        Some(Corpus { objects: out.join("objects"), dir })
    }

    /// Unpacks the objects that only 6.12 has judged.
    fn open_6_12() -> Option<(Corpus, PathBuf)> {
        let corpus = Corpus::open()?;
        let tar = corpus.dir.join("objects-6.12.tar.xz");
        let out = unpacked("corpus-6.12", &tar, &["--strip-components=1"]);
        Some((corpus, out))
    }

    /// The types of the modules that 6.12 had loaded, if they are at hand.
    fn modules(&self) -> Option<Vec<(String, Vec<u8>)>> {
        let dir = std::env::var_os("SKEP_MODULE_BTF").map_or_else(|| self.dir.join("modules-6.12"), PathBuf::from);
        let found = skep_elf::modules_in(&dir).ok()?;
        Some(found.into_iter().map(|(name, path)| (name, std::fs::read(path).expect("a module's BTF"))).collect())
    }

    fn load_options(&self, btf: &str, kernel_version: u32) -> LoadOptions {
        let btf = Command::new("xz").arg("-dc").arg(self.dir.join(btf)).output().expect("xz");
        let kernel = Arc::new(Btf::parse(&btf.stdout).expect("the kernel's BTF"));
        let newest = kernel_version >= skep_elf::kernel_version(6, 18, 0);
        let modules = if newest { None } else { self.modules() };
        // 6.18 had no modules; 6.12 had some.
        let all_types = newest || modules.is_some();
        let btf = match modules {
            Some(modules) => Arc::new(skep_elf::with_modules(kernel, modules).expect("the modules' BTF")),
            None => kernel,
        };
        let config = "CONFIG_BPF_SYSCALL=y\nCONFIG_BPF_JIT=y\nCONFIG_HZ=1000\nCONFIG_CGROUP_BPF=y\n";
        LoadOptions {
            btf: Some(btf),
            all_types,
            kconfig: Some(Kconfig::parse(config)),
            kernel_version,
            ksyms: Ksyms::assumed(),
            prog_type: None,
        }
    }
}

/// What the corpus changed in the maps before it asked the kernel.
fn fix_maps(program: &mut Program, fixups: u64) {
    let fixed = program.maps.iter().map(|m| {
        let mut m: MapDef = m.clone();
        if fixups & 1 != 0 && m.max_entries == 0 {
            m.max_entries = 1;
        }
        if fixups & 2 != 0 {
            m.key_size = if m.key_size == 0 { 8 } else { m.key_size };
            m.value_size = if m.value_size == 0 { 8 } else { m.value_size };
        }
        m
    });
    program.maps = fixed.collect();
}

#[derive(Default)]
struct Tally {
    kernel_accepts: u32,
    accepted: u32,
    kernel_rejects: u32,
    rejected: u32,
    same_insn: u32,
    with_insn: u32,
    same_errno: u32,
    unsupported: u32,
    wrong_accepts: u32,
    wrong_rejects: u32,
}

#[test]
fn agrees_with_the_kernel() {
    let Some(corpus) = Corpus::open() else { return };
    let show = std::env::var_os("SKEP_CORPUS_SHOW").is_some();
    let only = std::env::var("SKEP_CORPUS_ONLY").ok();
    let load = corpus.load_options("vmlinux.btf.xz", kernel_version(6, 18, 44));
    let options = Options { btf: load.btf.clone(), ..Options::default() };
    let rows = std::fs::read_to_string(corpus.dir.join("truth.jsonl")).expect("truth.jsonl");
    let mut objects: BTreeMap<String, Object> = BTreeMap::new();
    let mut types: BTreeMap<String, Tally> = BTreeMap::new();
    let mut reasons: BTreeMap<(&str, String), u32> = BTreeMap::new();
    let (mut wrong_accepts, mut wrong_rejects, mut slow) = (Vec::new(), Vec::new(), Vec::new());
    let mut total = Duration::ZERO;
    let count: u64 = std::env::var("SKEP_CHECK").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    let mut runs = runs::Tally::default();
    let mut checked = Duration::ZERO;
    let (mut rows_judged, mut ledger) = (0, Ledger::open("ledger-6.18.txt"));

    for row in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(row).expect("a row of truth.jsonl");
        let field = |name: &str| row[name].as_str().expect("a text field");
        let (name, program) = (field("object"), field("program"));
        if only.as_ref().is_some_and(|o| !format!("{name}/{program}").contains(o.as_str())) {
            continue;
        }
        let tally = types.entry(field("type").to_owned()).or_default();
        let kernel_accepts = field("verdict") == "accepted";
        rows_judged += 1;
        *(if kernel_accepts { &mut tally.kernel_accepts } else { &mut tally.kernel_rejects }) += 1;

        let object = objects.entry(name.to_owned()).or_insert_with(|| {
            let bytes = std::fs::read(corpus.objects.join(format!("{name}.o"))).expect("object");
            Object::parse(name, &bytes).unwrap_or_else(|e| panic!("{name}: {e}"))
        });
        let given = match ProgType::from_name(field("type")) {
            Some(t) if row["guessed_type"].as_bool() == Some(true) => {
                LoadOptions { prog_type: Some((t, AttachType::from_name(field("attach_type")))), ..load.clone() }
            }
            // Tests of CO-RE, judged with the BTF of a partner that declares the very structs that the object does.
            _ if row["fixups"].as_u64().unwrap_or(0) & 4 != 0 || name == "verifier_bitfield_write" => {
                LoadOptions { btf: object.btf().cloned(), ..load.clone() }
            }
            _ => load.clone(),
        };
        let mut linked = match object.program(program, &given) {
            Ok(p) => p,
            Err(e) => {
                tally.unsupported += 1;
                ledger.disagrees(name, program);
                *reasons.entry(("link", e.to_string().chars().take(60).collect())).or_default() += 1;
                continue;
            }
        };
        linked.flags |= row["prog_flags"].as_u64().unwrap_or(0) as u32;
        fix_maps(&mut linked, row["fixups"].as_u64().unwrap_or(0));

        let started = Instant::now();
        let verdict = verify(linked, &options);
        let took = started.elapsed();
        total += took;
        if took > Duration::from_secs(10) {
            slow.push(format!("{name}/{program}: {took:?}"));
        }
        match verdict {
            Ok(v) if kernel_accepts => {
                let started = Instant::now();
                runs.run(&format!("{name}/{program}"), v.program(), &options, 0..count);
                checked += started.elapsed();
                tally.accepted += 1;
                if show {
                    println!(
                        "same {name}/{program}: {} insns, kernel {}",
                        v.stats().insns_processed,
                        row["insns_processed"]
                    );
                }
            }
            Ok(_) => {
                tally.wrong_accepts += 1;
                ledger.disagrees(name, program);
                wrong_accepts.push(format!(
                    "{name}/{program} ({}): {} at {}",
                    field("type"),
                    row["errno"],
                    row["insn"]
                ));
            }
            Err(r) if r.outcome == Outcome::Unsupported => {
                tally.unsupported += 1;
                ledger.disagrees(name, program);
                if show {
                    println!("unsupported {name}/{program} ({}): {r}", field("type"));
                }
                if kernel_accepts {
                    *reasons.entry((r.reason, r.message.clone())).or_default() += 1;
                }
            }
            Err(r) if kernel_accepts => {
                tally.wrong_rejects += 1;
                ledger.disagrees(name, program);
                wrong_rejects.push(format!("{name}/{program} ({}): {} {r}", field("type"), r.reason));
            }
            Err(r) => {
                tally.rejected += 1;
                tally.same_errno += u32::from(row["errno"].as_str() == Some(r.errno.name()));
                if let Some(insn) = row["insn"].as_u64() {
                    tally.with_insn += 1;
                    let same = r.insn.map(u64::from) == Some(insn);
                    tally.same_insn += u32::from(same);
                    if show && !same {
                        println!(
                            "insn {name}/{program}: kernel {insn} {}, here {:?} {} {r}",
                            row["errno"], r.insn, r.reason
                        );
                    }
                }
                if show && row["errno"].as_str() != Some(r.errno.name()) {
                    println!(
                        "errno {name}/{program}: kernel {} at {}, here {:?} {} {r}",
                        row["errno"], row["insn"], r.errno, r.reason
                    );
                }
            }
        }
    }

    println!(
        "{:<24}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "type", "accepts", "same", "rejects", "same", "unsupp", "w.acc", "w.rej", "insn%"
    );
    let (mut agree, mut same_insn, mut with_insn) = (0, 0, 0);
    for (ty, t) in &types {
        println!(
            "{ty:<24}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>5}/{:<4}",
            t.kernel_accepts,
            t.accepted,
            t.kernel_rejects,
            t.rejected,
            t.unsupported,
            t.wrong_accepts,
            t.wrong_rejects,
            t.same_insn,
            t.with_insn
        );
        agree += t.accepted + t.rejected;
        (same_insn, with_insn) = (same_insn + t.same_insn, with_insn + t.with_insn);
    }
    println!(
        "6.18: {rows_judged} rows, {agree} agree ({:.2} %); same instruction in {same_insn} of {with_insn} rejections ({:.2} %); {total:?} in all",
        percent(agree, rows_judged),
        percent(same_insn, with_insn)
    );
    if show {
        let mut sorted: Vec<_> = reasons.into_iter().collect();
        sorted.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        for ((reason, message), n) in sorted {
            println!("{n:>5} {reason}: {message}");
        }
    }
    println!("wrong rejects ({}):\n{}", wrong_rejects.len(), wrong_rejects.join("\n"));
    print!("{checked:?}: ");
    runs.finish();
    assert!(
        wrong_accepts.is_empty(),
        "accepted, but the kernel rejects ({}):\n{}",
        wrong_accepts.len(),
        wrong_accepts.join("\n")
    );
    assert!(slow.is_empty(), "too slow: {slow:?}");
    if only.is_none() {
        ledger.check();
        assert!(percent(agree, rows_judged) >= 99.5, "{agree} of {rows_judged} agree");
        assert!(percent(same_insn, with_insn) >= 95.0, "{same_insn} of {with_insn} at the same instruction");
    }
}

fn percent(part: u32, of: u32) -> f64 {
    100.0 * f64::from(part) / f64::from(of.max(1))
}

/// Disagreements that are known, each with its reason: lines of `object/program | reason`.
struct Ledger {
    file: &'static str,
    known: BTreeMap<String, String>,
    seen: BTreeMap<String, u32>,
}

/// How the reason begins where a program needs the types of a kernel's module, which are not in the corpus.
const MODULE: &str = "module";

impl Ledger {
    fn open(file: &'static str) -> Ledger {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
        let text = std::fs::read_to_string(path).expect("a ledger");
        let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
        let known = lines.map(|l| {
            let (name, reason) = l.split_once(" | ").unwrap_or_else(|| panic!("{file}: {l:?} has no reason"));
            (name.to_owned(), reason.to_owned())
        });
        Ledger { file, known: known.collect(), seen: BTreeMap::new() }
    }

    fn disagrees(&mut self, object: &str, program: &str) {
        *self.seen.entry(format!("{object}/{program}")).or_default() += 1;
    }

    /// True for a program that needs a module's types.
    fn needs_module(&self, object: &str, program: &str) -> bool {
        self.known.get(&format!("{object}/{program}")).is_some_and(|r| r.starts_with(MODULE))
    }

    /// What disagrees is listed, and nothing else.
    fn check(&self) {
        let unlisted: Vec<_> = self.seen.keys().filter(|n| !self.known.contains_key(*n)).collect();
        let stale: Vec<_> = self.known.keys().filter(|n| !self.seen.contains_key(*n)).collect();
        assert!(unlisted.is_empty(), "disagreements that {} does not list: {unlisted:#?}", self.file);
        assert!(stale.is_empty(), "{} lists what agrees: {stale:#?}", self.file);
    }
}

/// The programs that 6.12 judged.
struct Linux612 {
    corpus: Corpus,
    more: PathBuf,
    load: LoadOptions,
    objects: BTreeMap<String, Object>,
}

impl Linux612 {
    fn link(&mut self, object: &str, program: &str) -> Result<Program, String> {
        let (more, objects) = (&self.more, &self.corpus.objects);
        let parsed = self.objects.entry(object.to_owned()).or_insert_with(|| {
            let file = format!("{object}.o");
            let bytes =
                std::fs::read(more.join(&file)).or_else(|_| std::fs::read(objects.join(&file))).expect("object");
            Object::parse(object, &bytes).unwrap_or_else(|e| panic!("{object}: {e}"))
        });
        parsed.program(program, &self.load).map_err(|e| e.to_string())
    }

    /// Verifies a program, attached to the last of `targets`, each of which is attached to the one before.
    fn verify(
        &mut self,
        object: &str,
        program: &str,
        flags: u32,
        targets: &[serde_json::Value],
        is_target: bool,
    ) -> Result<Result<Verified, Box<Rejection>>, String> {
        let mut linked = self.link(object, program)?;
        linked.flags |= flags;
        let target = match targets.split_last() {
            None => None,
            Some((last, before)) => {
                let text = |name: &str| last[name].as_str().expect("a text field");
                let verified = self.verify(text("object"), text("program"), 0, before, true)?;
                let verified = verified.map_err(|r| format!("target {}: {r}", text("program")))?;
                let function = if text("function").is_empty() { linked.attach_to.as_str() } else { text("function") };
                Some(Target { program: Arc::new(verified), function: function.to_owned() })
            }
        };
        let profile = KernelProfile::LINUX_6_12;
        // Programs that others extend may be bound to a device, as the tests of its metadata do it.
        let options =
            Options { profile, btf: self.load.btf.clone(), target, device_bound: is_target, ..Options::default() };
        Ok(verify(linked, &options))
    }
}

#[test]
fn agrees_with_linux_6_12() {
    let Some((corpus, more)) = Corpus::open_6_12() else { return };
    let only = std::env::var("SKEP_CORPUS_ONLY").ok();
    let rows = std::fs::read_to_string(corpus.dir.join("truth-6.12.jsonl")).expect("truth-6.12.jsonl");
    let load = corpus.load_options("vmlinux-6.12.btf.xz", kernel_version(6, 12, 117));
    let mut kernel = Linux612 { corpus, more, load, objects: BTreeMap::new() };
    let mut ledger = Ledger::open("ledger-6.12.txt");
    if kernel.load.all_types {
        ledger.known.retain(|_, reason| !reason.starts_with(MODULE));
    }
    let (mut agree, mut of, mut modules) = (0, 0, 0);
    let (mut wrong_accepts, mut others, mut slow) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(row).expect("a row of truth-6.12.jsonl");
        let field = |name: &str| row[name].as_str().expect("a text field");
        let name = format!("{}/{}", field("object"), field("program"));
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        let targets = row["targets"].as_array().map_or(&[][..], Vec::as_slice);
        let flags = row["prog_flags"].as_u64().unwrap_or(0) as u32;
        let started = Instant::now();
        let verdict = kernel.verify(field("object"), field("program"), flags, targets, false);
        if started.elapsed() > Duration::from_secs(10) {
            slow.push(name.clone());
        }
        let (kernel_accepts, kind) = (field("verdict") == "accepted", field("attach_type"));
        of += 1;
        let same = matches!(&verdict, Ok(Ok(_)) if kernel_accepts)
            || matches!(&verdict, Ok(Err(r)) if r.outcome == Outcome::Rejected && !kernel_accepts);
        if !same {
            ledger.disagrees(field("object"), field("program"));
            modules += u32::from(ledger.needs_module(field("object"), field("program")));
        }
        match verdict {
            Ok(Ok(_)) if kernel_accepts => agree += 1,
            Ok(Ok(_)) => wrong_accepts.push(format!("{name} ({kind}): {} {targets:?}", row["errno"])),
            Ok(Err(r)) if r.outcome == Outcome::Rejected && !kernel_accepts => agree += 1,
            Ok(Err(r)) => others.push(format!("{name} ({kind}), kernel {}: {} {r}", field("verdict"), r.reason)),
            Err(e) => others.push(format!("{name} ({kind}), kernel {}: not linked: {e}", field("verdict"))),
        }
    }
    println!("6.12: others:\n{}", others.join("\n"));
    println!(
        "6.12: {of} rows, {agree} agree ({:.2} %); {modules} others need a module's types, without them {:.2} %",
        percent(agree, of),
        percent(agree, of - modules)
    );
    assert!(wrong_accepts.is_empty(), "accepted, but 6.12 rejects:\n{}", wrong_accepts.join("\n"));
    assert!(slow.is_empty(), "too slow: {slow:?}");
    if only.is_none() {
        ledger.check();
        assert!(percent(agree, of - modules) >= 99.5, "{agree} of {} agree", of - modules);
    }
}
