//! Every program that the kernel judged links here too, or is reported as unsupported.

mod corpus;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use skep_ebpf::btf::Btf;
use skep_ebpf::uapi::{AttachType, ProgType};
use skep_elf::{Kconfig, Ksyms, LoadOptions, Object, kernel_version};

/// The kernel that judged the corpus. Its configuration and addresses are not in it; any will do to link.
fn options(corpus: &corpus::Corpus) -> LoadOptions {
    let btf = Command::new("xz").arg("-dc").arg(corpus.file("vmlinux.btf.xz")).output().expect("xz");
    let config = "CONFIG_BPF_SYSCALL=y\nCONFIG_BPF_JIT=y\nCONFIG_HZ=1000\nCONFIG_CGROUP_BPF=y\n";
    LoadOptions {
        btf: Some(Arc::new(Btf::parse(&btf.stdout).expect("the kernel's BTF"))),
        all_types: true,
        kconfig: Some(Kconfig::parse(config)),
        kernel_version: kernel_version(6, 18, 44),
        ksyms: Ksyms::host(),
        prog_type: None,
    }
}

#[test]
fn truth_links() {
    let Some(corpus) = corpus::Corpus::open("truth") else { return };
    let options = options(&corpus);
    let rows = std::fs::read_to_string(corpus.file("truth.jsonl")).expect("truth.jsonl");
    let mut objects: BTreeMap<String, Object> = BTreeMap::new();
    let (mut linked, mut unsupported, mut wrong) = (0, 0, Vec::new());
    for row in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(row).expect("a row of truth.jsonl");
        let field = |name: &str| row[name].as_str().expect("a text field");
        let (name, program) = (field("object"), field("program"));
        let object = objects.entry(name.to_owned()).or_insert_with(|| {
            let bytes = std::fs::read(corpus.object(name)).expect("object");
            Object::parse(name, &bytes).unwrap_or_else(|e| panic!("{name}: {e}"))
        });
        let ty = (ProgType::from_name(field("type")), AttachType::from_name(field("attach_type")));
        let guessed = row["guessed_type"].as_bool().expect("a truth value");
        let given = match ty.0 {
            Some(t) if guessed => LoadOptions { prog_type: Some((t, ty.1)), ..options.clone() },
            _ => options.clone(),
        };
        // Attach type 0 is both that of programs without one and cgroup_inet_ingress.
        let number = |a: Option<AttachType>| a.map_or(0, |a| a as u32);
        match object.program(program, &given) {
            Ok(p)
                if (Some(p.prog_type), number(p.attach_type)) == (ty.0, number(ty.1))
                    && p.section == field("section") =>
            {
                linked += 1
            }
            Ok(p) => wrong.push(format!("{name}/{program}: {:?} {:?} `{}`", p.prog_type, p.attach_type, p.section)),
            Err(e) if e.is_unsupported() => unsupported += 1,
            Err(e) => wrong.push(format!("{name}/{program}: {e}")),
        }
    }
    eprintln!("{linked} programs linked, {unsupported} unsupported");
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.lines().count(), wrong.join("\n"));
}
