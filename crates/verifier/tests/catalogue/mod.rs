//! `docs/reasons.md` and `docs/explained.md`: written by these tests out of `bpf/reasons/` and `bpf/explained/`.
//!
//! They fail if a document is not what would be written, if a reason has no program, or if a program is rejected for another
//! reason than its name says, or its corrected form is not accepted. `BLESS=1` writes the documents. Where `bpf(2)` works the
//! kernel is asked as well. An entry that needs the kernel's types, where these are not there, stays as it is.

mod render;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_ebpf::btf::Btf;
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::{MapDef, Program};
use skep_elf::{LoadOptions, Object};
use skep_verifier::{KernelProfile, Options, Outcome, Privilege, Reason, Rejection, verify};

use crate::{cases, kernel, maps, program, typed};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A document that is compared, or written with `BLESS=1`.
struct Document {
    path: PathBuf,
    old: String,
    new: String,
}

impl Document {
    fn new(name: &str, head: &str) -> Document {
        let path = root().join("docs").join(name);
        Document { old: fs::read_to_string(&path).unwrap_or_default(), path, new: head.into() }
    }

    /// A section of the document as it was.
    fn keep(&mut self, title: &str) {
        let start = format!("\n## {title}\n");
        let at =
            self.old.find(&start).unwrap_or_else(|| panic!("{title} needs the kernel's types (BTF) to be written"));
        let section = &self.old[at..];
        let end = section[1..].find("\n## ").map_or(section.len(), |n| n + 1);
        self.new += &section[..end];
    }

    fn finish(self) {
        if std::env::var_os("BLESS").is_some() {
            fs::write(&self.path, self.new).expect("the document can be written");
            return;
        }
        if self.old != self.new {
            let (line, (old, new)) = self
                .old
                .lines()
                .chain(std::iter::repeat("(end)"))
                .zip(self.new.lines().chain(std::iter::repeat("(end)")))
                .enumerate()
                .find(|(_, (old, new))| old != new)
                .expect("a line that differs");
            panic!("{} line {}: {old:?} should be {new:?}; BLESS=1 writes it anew", self.path.display(), line + 1);
        }
    }
}

fn btf() -> Option<Arc<Btf>> {
    Some(Arc::new(Btf::parse(&fs::read("/sys/kernel/btf/vmlinux").ok()?).ok()?))
}

/// The options that a program is judged with: without the kernel's types, and with them.
fn options(btf: Option<&Arc<Btf>>) -> Vec<Options> {
    let profile = KernelProfile::LINUX_6_18;
    let with = btf.map(|b| Options { profile, btf: Some(b.clone()), ..Options::default() });
    std::iter::once(Options { profile, ..Options::default() }).chain(with).collect()
}

/// How a program is rejected for a reason. `Err` says what happens instead.
fn rejected(program: &Program, reason: &str, tries: Vec<Options>) -> Result<(Options, Box<Rejection>), String> {
    let mut instead = String::new();
    for options in tries {
        match verify(program.clone(), &options) {
            Err(rejection) if rejection.reason == reason => return Ok((options, rejection)),
            Err(rejection) => instead = format!("{}: {rejection}", rejection.reason),
            Ok(_) => instead = "accepted".into(),
        }
    }
    Err(instead)
}

/// What the kernel says of a program: true for yes; `None` if it cannot be asked, or not without types for the maps.
fn ask(program: &Program, source: &str) -> Option<bool> {
    let calls_back = program.insns.iter().any(|i| i.is_ld_imm64() && i.src() == pseudo::FUNC);
    if !kernel::available() || calls_back || source.contains("struct bpf_spin_lock") {
        return None;
    }
    kernel::load(program, 1).map(|a| a.errno == 0)
}

/// A C source with the program `rejected`, perhaps `accepted`, and what its first comment says.
struct Source {
    stem: String,
    object: Object,
    notes: Vec<String>,
    wrong: String,
    right: Option<String>,
}

impl Source {
    fn read(folder: &str, stem: &str) -> Option<Source> {
        let path = root().join("bpf").join(folder).join(format!("{stem}.bpf.c"));
        let text = fs::read_to_string(&path).ok()?;
        let bytes = fs::read(path.with_extension("o")).unwrap_or_else(|e| panic!("{stem}.bpf.o: {e}; run bpf/build"));
        let object = Object::parse(stem, &bytes).unwrap_or_else(|e| panic!("{stem}: {e}"));
        let comments = text.lines().map_while(|l| l.strip_prefix("//")).skip(1).map(|l| l.trim().to_owned()).collect();
        let (_, body) = text.split_once("SEC(\"license\")").expect("a licence");
        let body = body.split_once('\n').map_or("", |(_, b)| b);
        let (wrong, right) = match body.split_once("/* Fixed. */\n") {
            Some((wrong, right)) => (wrong, Some(right.trim().to_owned())),
            None => (body, None),
        };
        Some(Source { stem: stem.into(), object, notes: comments, wrong: wrong.trim().into(), right })
    }

    fn program(&self, name: &str) -> Program {
        self.object.program(name, &LoadOptions::default()).unwrap_or_else(|e| panic!("{} {name}: {e}", self.stem))
    }

    /// The rejection, rendered, and the corrected form, verified.
    fn write(&self, reason: &str, btf: Option<&Arc<Btf>>, out: &mut String) -> Result<(), String> {
        let wrong = self.program("rejected");
        let (used, rejection) = rejected(&wrong, reason, options(btf))?;
        if rejection.outcome == Outcome::Rejected && ask(&wrong, &self.wrong) == Some(true) {
            return Err("the kernel accepts it".into());
        }
        let _ = writeln!(
            out,
            "\n```c\n{}\n```\n\n```text\n{}```",
            self.wrong,
            render::rejection(&wrong, &used, &rejection)
        );
        what_helps(reason_of(reason), out);
        if let Some(right) = &self.right {
            let program = self.program("accepted");
            let verdicts: Vec<_> = options(btf).iter().map(|o| verify(program.clone(), o)).collect();
            if verdicts.iter().all(Result::is_err) {
                return Err(format!("the corrected form: {:?}", verdicts.last().and_then(|v| v.as_ref().err())));
            }
            if ask(&program, &self.wrong) == Some(false) {
                return Err("the kernel rejects the corrected form".into());
            }
            let _ = writeln!(out, "\n```c\n{right}\n```");
        }
        Ok(())
    }
}

/// What helps in general, unless that was just said of the program.
fn what_helps(reason: Reason, out: &mut String) {
    if !out.contains(reason.fix()) {
        let _ = writeln!(out, "\nWhat helps: {}", reason.fix());
    }
}

fn reason_of(id: &str) -> Reason {
    Reason::by_id(id).unwrap_or_else(|| panic!("no reason {id:?}"))
}

/// The programs in assembler: those of plain maps, and those whose maps hold objects.
const PLAIN: &str = include_str!("../../../../bpf/reasons/assembler.txt");
const OBJECTS: &str = include_str!("../../../../bpf/reasons/objects.txt");
/// Those that would be let in with another capability, or with the kernel's types.
const LACKING: &str = include_str!("../../../../bpf/reasons/lacking.txt");
/// What stands for helpers and types that a later kernel may have: none of today's brings it.
const LATER: [Reason; 4] = [
    Reason::UnsupportedProgramType,
    Reason::UnsupportedHelper,
    Reason::UnsupportedMapType,
    Reason::UnsupportedArgument,
];

/// Writes the entry of a reason from its program in assembler. `Ok(false)` if it needs types that are not there.
fn assembler(reason: Reason, btf: Option<&Arc<Btf>>, out: &mut String) -> Result<bool, String> {
    let plain: Arc<[MapDef]> = maps().into();
    let (_, _, ids) = typed::blob_with(&[], true);
    let special: Arc<[MapDef]> = typed::objects::maps(&ids).into();
    let files = [(PLAIN, &plain, None), (OBJECTS, &special, Some(&ids)), (LACKING, &plain, None)];
    let found = files.into_iter().find_map(|(file, maps, ids)| {
        let text = file.split("\n=== ").skip(1).find(|c| c.split(" | ").next() == Some(reason.id()))?;
        cases(file).into_iter().find(|c| c.name == reason.id()).map(|c| (c, file, text, maps, ids))
    });
    let Some((case, file, text, maps, ids)) = found else {
        return Err(format!("no bpf/reasons/{}.bpf.c, and not in bpf/reasons/*.txt", reason.id()));
    };
    let Some((program, _)) = program(&case, maps, ids, btf.map(|b| &**b)) else { return Ok(false) };
    let mut tries = options(btf);
    if file == LACKING {
        tries = [Privilege::Full, Privilege::Bpf, Privilege::None]
            .map(|privilege| Options { privilege, ..Options::default() })
            .into();
    }
    match rejected(&program, reason.id(), tries) {
        Ok((options, rejection)) => {
            let note = match (file == LACKING, options.privilege) {
                (false, _) => "",
                (true, Privilege::Full) => ", without the kernel's types",
                (true, Privilege::Bpf) => ", without CAP_PERFMON",
                (true, Privilege::None) => ", without capabilities",
            };
            let (head, body) = text.split_once('\n').unwrap_or((text, ""));
            let kind = head.split(" | ").nth(1).unwrap_or("").trim();
            let _ = writeln!(
                out,
                "\nProgram type: {kind}{note}.\n\n```text\n{}\n```\n\n```text\n{}```",
                if body.trim().is_empty() { "(no instructions)" } else { body.trim() },
                render::rejection(&program, &options, &rejection)
            );
            what_helps(reason, out);
            Ok(true)
        }
        Err(_) if btf.is_none() => Ok(false),
        Err(instead) => Err(instead),
    }
}

#[test]
fn reasons() {
    let btf = btf();
    let mut document = Document::new("reasons.md", REASONS);
    let mut faults = Vec::new();
    for &reason in Reason::ALL {
        let mut text = format!("\n## {}\n\n{}\n", reason.id(), reason.rule());
        if LATER.contains(&reason) {
            text += "\nNo program brings this about today: it stands for what a later kernel may have, and is never accepted.\n";
            document.new += &text;
            continue;
        }
        let done = match Source::read("reasons", reason.id()) {
            Some(source) => source.write(reason.id(), btf.as_ref(), &mut text).map(|()| true),
            None => assembler(reason, btf.as_ref(), &mut text),
        };
        match done {
            Ok(true) => document.new += &text,
            Ok(false) => document.keep(reason.id()),
            Err(why) => faults.push(format!("{}: {why}", reason.id())),
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
    document.finish();
}

#[test]
fn explained() {
    let btf = btf();
    let mut document = Document::new("explained.md", EXPLAINED);
    let mut stems: Vec<String> = fs::read_dir(root().join("bpf/explained"))
        .expect("bpf/explained")
        .filter_map(|e| e.ok()?.file_name().to_str()?.strip_suffix(".bpf.c").map(str::to_owned))
        .collect();
    stems.sort_unstable();
    for stem in stems {
        let source = Source::read("explained", &stem).expect("a source");
        let (reason, notes) = source.notes.split_first().expect("its reason");
        let (title, notes) = notes.split_first().expect("its title");
        let mut text = format!("\n## {title}\n\n{}\n", notes.join("\n"));
        if let Err(why) = source.write(reason, btf.as_ref(), &mut text) {
            panic!("{stem}: {why}");
        }
        document.new += &text;
    }
    document.finish();
}

/// What is in assembler is put to the kernel like all other cases.
#[test]
fn in_assembler() {
    crate::run(PLAIN);
    crate::run_objects(OBJECTS);
}

const REASONS: &str = "# Reasons for a rejection

Each reason that `skep check` can give: the rule, a small program that breaks it, what skep finds, and what helps. The programs
are in `bpf/reasons/`: in C where C can break the rule, else in the assembler of `crates/verifier/tests/cases/`. This file is
written by a test (`BLESS=1 cargo test --release -p skep-verifier --test cases catalogue`), which also checks that the corrected
programs are accepted. [explained.md](explained.md) goes through five rejections that people meet.
";

const EXPLAINED: &str = "# Five rejections, explained

Programs that the kernel refuses, as people have reported them or as the documentation of eBPF projects warns of them: what the
kernel says, what skep says, and the corrected program. The programs are in `bpf/explained/`; this file is written by the test
that writes [reasons.md](reasons.md), which has all reasons.
";
