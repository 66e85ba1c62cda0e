//! Extensions, and programs around functions of programs: the measured tables, row by row.
//!
//! `functions/answers.txt` has what Linux 6.12 answered to each call of the script. A subsystem of ours must answer the
//! same, with either engine; `functions/ledger.txt` has the reasons of the differences. Where the kernel that runs here
//! loads such programs (built static, this runs under `kernel-vm`), its answers are compared with the table, too.

#[path = "functions/corpus.rs"]
mod corpus;
#[path = "calls/kernel.rs"]
mod kernel;
#[path = "functions/make.rs"]
mod make;
#[path = "functions/rows.rs"]
mod rows;
#[path = "calls/script.rs"]
mod script;
#[path = "functions/special.rs"]
mod special;

use std::collections::BTreeMap;

use kernel::{Kernel, Live, Ours};
use script::Script;
use skep_jit::Engine;
use skep_subsystem::front::Config;

/// What Linux 6.12 answered: name of the call, and the answer.
const ANSWERS: &str = include_str!("functions/answers.txt");
/// Calls whose answer differs here: a prefix of the name, and why. One that begins with `interpreted: ` is of that engine.
const LEDGER: &str = include_str!("functions/ledger.txt");

fn lines(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).filter_map(|l| l.split_once(" | "))
}

fn run(kernel: &dyn Kernel) -> Vec<(String, String)> {
    let mut script = Script::new(kernel);
    rows::run(&mut script);
    script.finish().into_iter().map(|(name, answer)| (name, answer.to_string())).collect()
}

fn ours(engine: Engine) -> Ours {
    let btf = std::fs::read("/sys/kernel/btf/vmlinux").ok();
    let kernel_btf = btf.and_then(|b| skep_ebpf::btf::Btf::parse(&b).ok()).map(std::sync::Arc::new);
    Ours::with(Config { slots: 2, engine, kernel_btf, ..Config::default() })
}

/// Rows in which the answers are not those of the table.
fn differences(answers: &[(String, String)], forgive: Option<Engine>) -> Vec<String> {
    let table: Vec<_> = lines(ANSWERS).collect();
    let of_engine = |(prefix, why): (&'static str, _)| match (prefix.strip_prefix("interpreted: "), forgive) {
        (Some(prefix), Some(Engine::Interpreter)) => Some((prefix, why)),
        (None, Some(_)) => Some((prefix, why)),
        _ => None,
    };
    let ledger: Vec<_> = lines(LEDGER).filter_map(of_engine).collect();
    let names: Vec<&str> = answers.iter().map(|(n, _)| n.as_str()).collect();
    let wanted: Vec<&str> = table.iter().map(|(n, _)| *n).collect();
    let other = names.iter().zip(&wanted).find(|(name, wanted)| name != wanted);
    assert!(other.is_none() && names.len() == wanted.len(), "the table has other calls than the script: {other:?}");
    let mut used = vec![0; ledger.len()];
    let mut differ = Vec::new();
    for ((name, answer), (_, wanted)) in answers.iter().zip(&table) {
        if answer == wanted {
            continue;
        }
        match ledger.iter().position(|(prefix, _)| name.starts_with(prefix)) {
            Some(n) => used[n] += 1,
            None => differ.push(format!("{name}: {wanted} in the table, {answer} here")),
        }
    }
    let idle = ledger.iter().zip(&used).filter(|(_, n)| **n == 0).map(|((p, _), _)| *p);
    differ.extend(idle.map(|p| format!("{p}: in the ledger, but the same")));
    println!("{} calls, {} differ as the ledger says", answers.len(), used.iter().sum::<u32>());
    differ
}

#[test]
fn answers_are_the_tables() {
    for engine in [Engine::Interpreter, Engine::Jit] {
        let ours = ours(engine);
        let before = ours.left();
        let answers = run(&ours);
        if std::env::var_os("SKEP_PRINT").is_some() {
            answers.iter().for_each(|(name, answer)| println!("{engine:?} {name} | {answer}"));
        }
        let differ = differences(&answers, Some(engine));
        assert!(differ.is_empty(), "{engine:?}: {} differ:\n{}", differ.len(), differ.join("\n"));
        assert_eq!(ours.left(), before, "nothing is left");
    }
}

/// On a kernel that has such programs; `SKEP_PRINT` prints its answers, as the table has them.
#[test]
fn answers_are_the_kernels() {
    let Some(live) = Live::open() else {
        eprintln!("skipped: bpf(2) does not answer this user");
        return;
    };
    if !rows::kernel_has_extensions(&live) {
        println!("this kernel has no extensions: the table stands for one that has them");
        return;
    }
    let answers = run(&live);
    if std::env::var_os("SKEP_PRINT").is_some() || std::env::args().any(|a| a == "answers_are_the_kernels") {
        answers.iter().for_each(|(name, answer)| println!("= {name} | {answer}"));
    }
    let differ = differences(&answers, None);
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

/// The table has each call once.
#[test]
fn the_table_is_whole() {
    let mut seen = BTreeMap::new();
    for (name, _) in lines(ANSWERS) {
        *seen.entry(name).or_insert(0) += 1;
    }
    let twice: Vec<_> = seen.iter().filter(|(_, n)| **n > 1).map(|(name, _)| *name).collect();
    assert!(twice.is_empty(), "more than once: {twice:?}");
    assert!(seen.len() >= 140, "{} calls", seen.len());
}
