//! The repository's own objects link to what stands in `golden`: checked with libbpf when they were made, and by
//! anybody since. `BLESS=1` writes the files anew after the objects have changed.

mod corpus;

use std::fmt::Write;
use std::path::Path;

use skep_ebpf::disasm::{Listing, Names};
use skep_ebpf::program::Program;
use skep_elf::{LoadOptions, Object};

struct Named<'a>(&'a Program);

impl Names for Named<'_> {
    fn map(&self, index: i32) -> Option<&str> {
        self.0.maps.get(usize::try_from(index).ok()?).map(|m| m.name.as_str())
    }
}

fn dump(path: &Path) -> String {
    let name = path.file_name().expect("file name").to_string_lossy();
    let object = Object::parse(&name, &std::fs::read(path).expect("object")).expect("a good object");
    let mut out = format!("license {}\n", object.license());
    for m in object.maps().iter() {
        let sizes = format!("key {} value {} entries {}", m.key_size, m.value_size, m.max_entries);
        writeln!(out, "map {}: {} {sizes} flags {:#x}", m.name, m.map_type, m.flags).expect("text");
    }
    // Its own types stand for those of the process that it is for.
    let options = LoadOptions { btf: object.btf().cloned(), ..LoadOptions::default() };
    for info in object.programs() {
        let program = object.program(&info.name, &options).expect("a good program");
        let (functions, lines) = (program.func_info.len(), program.line_info.len());
        let head = format!("{} {} `{}`", info.name, program.prog_type, program.section);
        writeln!(out, "\nprogram {head}: {functions} functions, {lines} lines").expect("text");
        write!(out, "{}", Listing { insns: &program.insns, names: &Named(&program) }).expect("text");
    }
    out
}

#[test]
fn own_objects() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    let paths = corpus::own_objects();
    assert!(!paths.is_empty(), "the repository has objects");
    for path in paths {
        let golden = here.join("tests/golden").join(path.with_extension("txt").file_name().expect("file name"));
        let found = dump(&path);
        if bless {
            std::fs::write(&golden, &found).expect("golden file");
        } else if std::fs::read_to_string(&golden).ok().as_deref() != Some(&found) {
            wrong.push(golden.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "differ; BLESS=1 accepts the new ones: {}", wrong.join(", "));
}
