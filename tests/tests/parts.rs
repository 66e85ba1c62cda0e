//! Parts of functions that stand elsewhere, and code without symbols.

use std::path::Path;
use std::process::Command;

use skep_tests::{Finished, Trace, build, object, scratch};

const TIMES: u64 = 1000;

fn text(command: &str, args: &[&str], file: &Path) -> String {
    let out = Command::new(command).args(args).arg(file).output().unwrap_or_else(|e| panic!("{command}: {e}"));
    assert!(out.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Traces `program` at a place.
fn trace(program: &Path, object: &Path, place: &str) -> Finished {
    let name = program.file_name().expect("name").to_string_lossy().into_owned();
    let place = format!("{name}:{place}");
    let (program, times) = (program.as_os_str(), TIMES.to_string());
    Trace::start([object.as_os_str(), "--func".as_ref(), place.as_ref(), "--".as_ref(), program, times.as_ref()])
        .finish()
}

/// As [`trace`], and compares what it prints with a run of its own.
fn at(program: &Path, object: &Path, place: &str) -> Finished {
    let want = text(&program.to_string_lossy(), &[], Path::new(&TIMES.to_string()));
    let done = trace(program, object, place);
    assert_eq!(done.plain.join("\n"), want.trim(), "{place}: {}", done.stderr);
    done
}

/// Traces it at a place where that is refused.
fn refused(program: &Path, object: &Path, place: &str, why: &str) {
    let done = trace(program, object, place);
    assert!(done.stderr.contains(why), "{place}: {}", done.stderr);
    assert!(done.kind("attached").is_empty() && !done.status.success(), "{place}: {}", done.stderr);
}

const NO_FUNCTION: &str = "none begins there that is known to be called";

#[test]
fn parts_that_stand_elsewhere_are_entered_with_flags_and_a_red_zone() {
    let program = build("parts.c", &["-O2"]);
    let entry = object("test/cost_entry.bpf.o");
    for (place, hits) in [("flags", TIMES), ("flags.cold", TIMES / 2), ("flags.cold+3", TIMES / 2)] {
        let done = at(&program, &entry, place);
        assert_eq!(done.count("on_entry", "hits"), hits, "{place}: {}", done.stderr);
    }
}

#[test]
fn a_part_that_only_a_table_leads_to() {
    let program = build("parts.c", &["-O2"]);
    for (place, hits) in [(0, 1), (2, 2), (4, 3), (6, 4), (8, 4)] {
        let name = if place == 0 { "table.cold".to_owned() } else { format!("table.cold+{place}") };
        let done = at(&program, &object("test/cost_entry.bpf.o"), &name);
        assert_eq!(done.count("on_entry", "hits"), TIMES * hits / 4, "{name}: {}", done.stderr);
        // A jump at the last place that the table leads to takes nothing else of it.
        let method = if place < 6 { "int3" } else { "jump" };
        assert_eq!(done.kind("attached")[0]["method"], method, "{name}");
    }
}

#[test]
fn a_part_has_no_return_address_of_its_own() {
    let program = build("parts.c", &["-O2"]);
    for place in ["table.cold", "flags.cold"] {
        refused(&program, &object("test/cost_return.bpf.o"), place, NO_FUNCTION);
    }
    let done = at(&program, &object("test/cost_return.bpf.o"), "table");
    assert_eq!(done.count("on_return", "hits"), TIMES, "{}", done.stderr);
}

#[test]
fn code_without_symbols() {
    let program = build("parts.c", &["-O2", "-fasynchronous-unwind-tables"]);
    let stripped = scratch().join("parts-stripped");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(&program).status().expect("strip");
    assert!(status.success());
    // Where it is: text is mapped as it stands in the file, but for the segment's distance.
    let symbols = text("nm", &["-S"], &program);
    let symbol = symbols.lines().find(|l| l.ends_with(" hidden")).unwrap_or_else(|| panic!("{symbols}"));
    let number = |n: usize| u64::from_str_radix(symbol.split(' ').nth(n).expect("field"), 16).expect("number");
    let (start, size) = (number(0), number(1));
    let headers = text("readelf", &["-lW"], &program);
    let segment = headers.lines().find(|l| l.contains("LOAD") && l.contains("R E")).expect("text");
    let field = |n: usize| {
        let field = segment.split_whitespace().nth(n).and_then(|f| f.strip_prefix("0x")).expect("field");
        u64::from_str_radix(field, 16).expect("number")
    };
    let distance = field(2) - field(1);
    let (from, to) = (format!("--start-address={start}"), format!("--stop-address={}", start + size));
    let listing = text("objdump", &["-d", "--no-show-raw-insn", &from, &to], &program);
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    let places: Vec<u64> = listing.lines().filter_map(|l| hex(l.split_once(":\t")?.0.trim())).collect();
    assert!(places.len() >= 3, "{listing}");
    let entry = object("test/cost_entry.bpf.o");
    for place in &places {
        let done = at(&stripped, &entry, &format!("{:#x}", place - distance));
        assert_eq!(done.count("on_entry", "hits"), TIMES, "{place:#x}: {}", done.stderr);
        let inside = place - start;
        let name = if inside == 0 { format!("{start:#x}") } else { format!("{start:#x}+{inside:#x}") };
        assert_eq!(done.kind("attached")[0]["symbol"], name.as_str());
    }
    let long = places.windows(2).find(|p| p[1] - p[0] > 1).expect("a long instruction");
    refused(&stripped, &entry, &format!("{:#x}", long[0] + 1 - distance), "lies inside an instruction");
    refused(&stripped, &object("test/cost_return.bpf.o"), &format!("{:#x}", start - distance), NO_FUNCTION);
}

#[test]
fn first_instructions_that_are_more_than_that() {
    const FUNCTIONS: [&str; 5] = ["again", "rounds", "labels", "distances", "packed"];
    let flags: [&[&str]; 6] = [
        &["-O2", "-fcf-protection=none"],
        &["-Os", "-fcf-protection=none"],
        &["-O2", "-no-pie", "-fcf-protection=none"],
        &["-O3", "-no-pie", "-fno-pie", "-fcf-protection=none"],
        &["-O2", "-mindirect-branch=thunk", "-fcf-protection=none"],
        &["-O2", "-fPIE", "-mcmodel=large"],
    ];
    for flags in flags {
        let program = build("corners.c", flags);
        for function in FUNCTIONS {
            let done = at(&program, &object("test/cost_both.bpf.o"), function);
            // A loop that leads to the beginning calls it, for all that a probe can tell.
            assert!(done.count("on_entry", "hits") >= TIMES, "{flags:?}: {function}: {}", done.stderr);
            assert_eq!(done.count("on_entry", "hits"), done.count("on_return", "hits"), "{flags:?}: {function}");
        }
        // Every fourth instruction of what jumps by its data.
        let listing = text("objdump", &["-d", "--no-show-raw-insn", "--disassemble=packed"], &program);
        let hex = |s: &str| u64::from_str_radix(s, 16).ok();
        let places: Vec<u64> = listing.lines().filter_map(|l| hex(l.split_once(":\t")?.0.trim())).collect();
        for place in places.iter().step_by(4) {
            at(&program, &object("test/cost_entry.bpf.o"), &format!("packed+{}", place - places[0]));
        }
    }
}
