//! Programs for hooks of an application: what they may do with a context that is described field by field.

use std::sync::Arc;

use skep_ebpf::asm::assemble;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType};
use skep_verifier::{HostContext, HostField, HostKind, Options, verify};

/// `struct request { u32 kind; u32 status; struct { void *data, *end; } path, body; u64 tag[2]; }`
fn context() -> HostContext {
    let field = |name: &str, offset, kind| HostField { name: name.into(), offset, kind };
    HostContext {
        functions: Vec::new(),
        hook: "request".into(),
        struct_name: "request".into(),
        size: 56,
        fields: vec![
            field("kind", 0, HostKind::Data { size: 4, write: false }),
            field("status", 4, HostKind::Data { size: 4, write: true }),
            field("path", 8, HostKind::Bytes { write: false }),
            field("body", 24, HostKind::Bytes { write: true }),
            field("tag", 40, HostKind::Data { size: 16, write: false }),
        ],
        returns: Some((0, 2)),
    }
}

/// `accept`, or the rule that it is refused by.
fn verdict(text: &str) -> &'static str {
    let insns = assemble(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let mut program = Program::new("p", ProgType::Unspec, "GPL", insns);
    program.maps = Arc::from([MapDef::new("counts", MapType::Hash, 8, 8, 16)]);
    let options = Options { host: Some(Arc::new(context())), ..Options::default() };
    match verify(program, &options) {
        Ok(_) => "accept",
        Err(rejection) => rejection.reason,
    }
}

#[track_caller]
fn check(expected: &str, text: &str) {
    assert_eq!(verdict(text), expected, "{text}");
}

const OK: &str = "r0 = 0\nexit";

#[test]
fn fields() {
    check("accept", &format!("r2 = *(u32 *)(r1 + 0)\nr2 = *(u16 *)(r1 + 2)\nr2 = *(u64 *)(r1 + 48)\n{OK}"));
    check("accept", &format!("*(u32 *)(r1 + 4) = r1\n{OK}").replace("= r1", "= 7"));
    check("context-access", &format!("*(u32 *)(r1 + 0) = 7\n{OK}"));
    check("context-access", &format!("r2 = *(u64 *)(r1 + 0)\n{OK}"));
    check("context-access", &format!("r2 = *(u64 *)(r1 + 56)\n{OK}"));
    check("context-access", &format!("r2 = *(u64 *)(r1 - 8)\n{OK}"));
    check("misaligned", &format!("r2 = *(u16 *)(r1 + 1)\n{OK}"));
}

#[test]
fn pointers() {
    check("context-access", &format!("r2 = *(u32 *)(r1 + 8)\n{OK}"));
    check("context-access", &format!("*(u64 *)(r1 + 8) = 0\n{OK}"));
    check("context-access", &format!("*(u64 *)(r1 + 16) = 0\n{OK}"));
    check("not-a-pointer", &format!("r2 = *(u64 *)(r1 + 16)\nr3 = *(u8 *)(r2 + 0)\n{OK}"));
}

/// Loads start and end of two regions, and compares `start + 4` of one with the end of the other.
fn compared(start: u32, end: u32, access: &str) -> String {
    format!(
        "r2 = *(u64 *)(r1 + {start})\nr3 = *(u64 *)(r1 + {end})\nr4 = r2\nr4 += 4\nif r4 > r3 goto out\n{access}\n\
         out:\nr0 = 0\nexit"
    )
}

#[test]
fn bytes_are_behind_a_comparison_with_their_own_end() {
    let read = "r5 = *(u32 *)(r2 + 0)";
    check("accept", &compared(8, 16, read));
    check("accept", &compared(24, 32, read));
    check("packet-out-of-bounds", &compared(8, 32, read));
    check("packet-out-of-bounds", &compared(24, 16, read));
    check("packet-out-of-bounds", &compared(8, 16, "r5 = *(u32 *)(r2 + 1)"));
    // What is known of one region says nothing of another.
    check("packet-out-of-bounds", &compared(8, 16, "r6 = *(u64 *)(r1 + 24)\nr5 = *(u8 *)(r6 + 0)"));
    // Nor when both paths meet.
    let meet = "r2 = *(u64 *)(r1 + 8)\nr3 = *(u64 *)(r1 + 16)\nr4 = r2\nr4 += 4\nif r4 > r3 goto out\n\
                r5 = *(u32 *)(r1 + 0)\nif r5 == 0 goto next\nr2 = *(u64 *)(r1 + 24)\n\
                next:\nr5 = *(u8 *)(r2 + 0)\nout:\nr0 = 0\nexit";
    check("packet-out-of-bounds", meet);
}

#[test]
fn only_what_is_writable_is_written() {
    check("accept", &compared(24, 32, "*(u32 *)(r2 + 0) = 1"));
    check("read-only-memory", &compared(8, 16, "*(u32 *)(r2 + 0) = 1"));
    // Helpers that write: get_current_comm.
    check("accept", &compared(24, 32, "r1 = r2\nr2 = 4\ncall 16"));
    check("argument-type", &compared(8, 16, "r1 = r2\nr2 = 4\ncall 16"));
    // One that reads: strtol.
    check("accept", &compared(8, 16, "r1 = r2\nr2 = 4\nr3 = 0\nr4 = r10\nr4 += -8\ncall 105"));
    // Either, where paths meet.
    let meet = "r2 = *(u64 *)(r1 + 24)\nr3 = *(u64 *)(r1 + 32)\nr5 = *(u32 *)(r1 + 0)\nif r5 == 0 goto next\n\
                r2 = *(u64 *)(r1 + 8)\nr3 = *(u64 *)(r1 + 16)\nnext:\nr4 = r2\nr4 += 4\nif r4 > r3 goto out\n\
                *(u32 *)(r2 + 0) = 1\nout:\nr0 = 0\nexit";
    check("read-only-memory", meet);
}

/// A dynptr would outlive what is known of the bytes behind it: only values of maps can be behind one, as in Linux.
#[test]
fn dynptrs_are_not_made_of_bytes() {
    let make = "r1 = r2\nr2 = 4\nr3 = 0\nr4 = r10\nr4 += -16\ncall 197";
    check("argument-type", &compared(24, 32, make));
    check("argument-type", &compared(8, 16, make));
}

#[test]
fn the_context_itself_is_no_memory() {
    check("argument-type", &format!("r2 = 8\ncall 16\n{OK}"));
    check("argument-type", "r2 = r1\nr1 = map[idx:0]\ncall 1\nr0 = 0\nexit");
}

#[test]
fn helpers_and_results() {
    check("accept", "call 5\nr0 &= 1\nexit");
    check("helper-not-allowed", "r1 = 9\ncall 109\nr0 = 0\nexit");
    check("helper-not-allowed", "r1 = r10\nr1 += -8\nr2 = 8\nr3 = 0\ncall 113\nr0 = 0\nexit");
    check("return-value", "r0 = 3\nexit");
    check("return-value", "call 7\nexit");
    check("return-value", "r0 = r10\nexit");
    check("accept", "r0 = 2\nexit");
    // The lower half counts: what C returns as `int`.
    check("accept", "r0 = 0x100000001 ll\nexit");
}

#[test]
fn the_type_is_none_of_the_kernel() {
    let mut program = Program::new("p", ProgType::Xdp, "GPL", assemble(OK).unwrap());
    let options = Options { host: Some(Arc::new(context())), ..Options::default() };
    assert_eq!(verify(program.clone(), &options).unwrap_err().reason, "program-type");
    program.prog_type = ProgType::Unspec;
    assert_eq!(verify(program, &Options::default()).unwrap_err().reason, "program-type");
}
