//! Programs for hooks of an application: what they may do with a context that is described field by field.

use std::sync::Arc;

use skep_ebpf::asm::assemble;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Btf, Composite, Kind, Linkage, Member, Param};
use skep_ebpf::kfunc::{Kfunc, flag};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType};
use skep_verifier::{HostContext, HostField, HostFunction, HostKind, Options, verify};

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

/// Functions of an application, by their numbers in its types.
struct Application {
    btf: Arc<Btf>,
    host: Arc<HostContext>,
}

/// Two kinds of objects, `a` and `b`, and functions on them: `get_a`, `new_b` (never null), `put_a`, `use_a`, `maybe_a`
/// (takes null), `use_b`; `read` and `write` of bytes with their number.
fn application() -> Application {
    let mut b = Builder::new();
    let u64_ = b.int("u64", 8, 0);
    let void_ptr = b.add("", &Kind::Ptr { ty: 0 });
    let const_void = b.add("", &Kind::Const { ty: 0 });
    let const_ptr = b.add("", &Kind::Ptr { ty: const_void });
    let object = |b: &mut Builder, name: &str| {
        let member = Member { name_off: b.string("hidden"), ty: void_ptr, bit_offset: 0, bitfield_size: 0 };
        let ty = b.add(name, &Kind::Struct(Composite { size: 8, members: Box::new([member]) }));
        b.add("", &Kind::Ptr { ty })
    };
    let (pa, pb) = (object(&mut b, "a"), object(&mut b, "b"));
    let (acquire, null, trusted) = (flag::ACQUIRE, flag::RET_NULL, flag::TRUSTED_ARGS);
    type Row<'a> = (&'static str, u32, u32, &'a [(&'a str, u32)]);
    let all: [Row<'_>; 8] = [
        ("get_a", acquire | null | trusted, pa, &[("key", u64_)]),
        ("new_b", acquire | trusted, pb, &[]),
        ("put_a", flag::RELEASE | trusted, 0, &[("a", pa)]),
        ("use_a", trusted, u64_, &[("a", pa)]),
        ("maybe_a", trusted, u64_, &[("a__nullable", pa)]),
        ("use_b", trusted, u64_, &[("b", pb)]),
        ("read", trusted, u64_, &[("p", const_ptr), ("p__sz", u64_)]),
        ("write", trusted, 0, &[("p", void_ptr), ("p__sz", u64_)]),
    ];
    let mut functions = Vec::new();
    for (index, (name, flags, ret, params)) in all.into_iter().enumerate() {
        let params = params.iter().map(|(name, ty)| Param { name_off: b.string(name), ty: *ty }).collect();
        let proto = b.add("", &Kind::FuncProto { ret, params });
        b.add(name, &Kind::Func { proto, linkage: Linkage::Global });
        functions.push(HostFunction { row: Kfunc { name, flags, types: !0 }, index: index as u32 });
    }
    // There, and not for this hook.
    let proto = b.add("", &Kind::FuncProto { ret: u64_, params: Box::new([]) });
    b.add("hidden_from_us", &Kind::Func { proto, linkage: Linkage::Global });
    // A kernel's function that is none of the application's.
    b.add("bpf_rcu_read_lock", &Kind::Func { proto, linkage: Linkage::Global });
    let btf = Arc::new(Btf::parse(&b.finish()).expect("types"));
    Application { btf, host: Arc::new(HostContext { functions, ..context() }) }
}

#[track_caller]
fn check_calls(expected: &str, text: &str) {
    let app = application();
    let mut text = text.to_owned();
    for name in
        ["get_a", "new_b", "put_a", "use_a", "maybe_a", "use_b", "read", "write", "hidden_from_us", "bpf_rcu_read_lock"]
    {
        let id = app.btf.find(name, |k| matches!(k, Kind::Func { .. })).expect("a function");
        text = text.replace(&format!("do {name}\n"), &format!("call kernel-function#{id}\n"));
    }
    let insns = assemble(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    // Any licence will do: the functions are not the kernel's.
    let mut program = Program::new("p", ProgType::Unspec, "Proprietary", insns);
    program.maps = Arc::from([MapDef::new("counts", MapType::Hash, 8, 8, 16)]);
    let options = Options { host: Some(Arc::clone(&app.host)), btf: Some(Arc::clone(&app.btf)), ..Options::default() };
    let verdict = match verify(program, &options) {
        Ok(_) => "accept".to_owned(),
        Err(r) if expected == r.reason => r.reason.to_owned(),
        Err(r) => format!("{}: {}", r.reason, r.message),
    };
    assert_eq!(verdict, expected, "{text}");
}

const GET: &str = "r1 = 1\ndo get_a\nif r0 == 0 goto out\nr6 = r0\n";
const PUT: &str = "r1 = r6\ndo put_a\nout:\nr0 = 0\nexit";

#[test]
fn objects_of_the_application() {
    check_calls("accept", &format!("{GET}r1 = r6\ndo use_a\n{PUT}"));
    check_calls("accept", &format!("{GET}r1 = r6\ndo maybe_a\n{PUT}"));
    check_calls("accept", &format!("r1 = 0\ndo maybe_a\n{OK}"));
    // Held, and not given back; given back twice; used behind that.
    check_calls("unreleased-reference", &format!("{GET}out:\n{OK}"));
    check_calls("unreleased-reference", &format!("do new_b\n{OK}"));
    check_calls("uninitialized-register", &format!("{GET}r1 = r6\ndo put_a\nr1 = r0\ndo use_a\n{PUT}"));
    check_calls("argument-type", &format!("{GET}r1 = r6\ndo put_a\nr1 = r6\ndo put_a\nout:\n{OK}"));
    check_calls("argument-type", &format!("{GET}r1 = r6\ndo put_a\nr1 = r6\ndo use_a\nout:\n{OK}"));
    // Before it was compared with null; null; another object; moved.
    check_calls("possibly-null", &format!("r1 = 1\ndo get_a\nr1 = r0\ndo use_a\n{OK}"));
    check_calls("possibly-null", &format!("r1 = 0\ndo use_a\n{OK}"));
    check_calls("argument-type", &format!("{GET}r1 = r6\ndo use_b\n{PUT}"));
    check_calls("release-without-acquire", &format!("{GET}r1 = r6\nr1 += 8\ndo put_a\nout:\n{OK}"));
    check_calls("argument-type", &format!("{GET}r1 = r6\nr1 += 8\ndo use_a\n{PUT}"));
    // Memory that is no object.
    for other in ["r1 = r10\nr1 += -8", "r1 = 4096", "r1 = r1"] {
        check_calls("argument-type", &format!("*(u64 *)(r10 - 8) = 0\n{other}\ndo use_a\n{OK}"));
    }
    check_calls(
        "argument-type",
        &format!(
            "r2 = *(u64 *)(r1 + 24)\nr3 = *(u64 *)(r1 + 32)\nr4 = r2\nr4 += 8\nif r4 > r3 goto out\nr1 = r2\ndo use_a\nout:\n{OK}"
        ),
    );
    // Nobody looks inside, or writes.
    check_calls("kernel-object-access", &format!("{GET}r2 = *(u64 *)(r6 + 0)\n{PUT}"));
    check_calls("kernel-object-access", &format!("{GET}*(u64 *)(r6 + 0) = 0\n{PUT}"));
    check_calls("kernel-object-access", &format!("{GET}r2 = 1\nlock *(u64 *)(r6 + 0) += r2\n{PUT}"));
    for helper in ["r1 = r6\nr2 = 8\nr3 = 0\nr4 = r10\nr4 += -8\ncall 105", "r1 = r6\nr2 = 8\ncall 16"] {
        check_calls("argument-type", &format!("*(u64 *)(r10 - 8) = 0\n{GET}{helper}\n{PUT}"));
    }
    check_calls("argument-type", &format!("{GET}r1 = r6\nr2 = 8\ndo read\n{PUT}"));
    // On the stack it stays what it is.
    let spilled = "*(u64 *)(r10 - 8) = r6\nr1 = *(u64 *)(r10 - 8)\ndo use_a\n";
    check_calls("accept", &format!("{GET}{spilled}{PUT}"));
    let after = "*(u64 *)(r10 - 8) = r6\nr1 = r6\ndo put_a\nr1 = *(u64 *)(r10 - 8)\ndo use_a\nout:\nr0 = 0\nexit";
    check_calls("argument-type", &format!("{GET}{after}"));
}

#[test]
fn bytes_for_the_application() {
    let init = "*(u64 *)(r10 - 8) = 0\nr1 = r10\nr1 += -8\n";
    check_calls("accept", &format!("{init}r2 = 8\ndo read\n{OK}"));
    check_calls("accept", &format!("{init}r2 = 8\ndo write\n{OK}"));
    check_calls("stack-out-of-bounds", &format!("{init}r2 = 9\ndo read\n{OK}"));
    check_calls("argument-size", &format!("r6 = *(u64 *)(r1 + 48)\n{init}r2 = r6\ndo read\n{OK}"));
    check_calls("possibly-null", &format!("r1 = 0\nr2 = 0\ndo read\n{OK}"));
    // Bytes of the context: those that are only for reading are not written.
    check_calls("accept", &compared(8, 16, "r1 = r2\nr2 = 4\ndo read\n"));
    check_calls("accept", &compared(24, 32, "r1 = r2\nr2 = 4\ndo write\n"));
    check_calls("packet-out-of-bounds", &compared(8, 16, "r1 = r2\nr2 = 5\ndo read\n"));
    check_calls("read-only-memory", &compared(8, 16, "r1 = r2\nr2 = 4\ndo write\n"));
    // The context itself is no memory.
    check_calls("argument-type", &format!("r2 = 8\ndo read\n{OK}"));
    check_calls("argument-type", &format!("r2 = 8\ndo write\n{OK}"));
}

#[test]
fn only_functions_of_the_hook() {
    check_calls("kfunc-not-allowed", &format!("do hidden_from_us\n{OK}"));
    check_calls("kfunc-not-allowed", &format!("do bpf_rcu_read_lock\n{OK}"));
    check_calls("unknown-kfunc", &format!("call kernel-function#1\n{OK}"));
}
