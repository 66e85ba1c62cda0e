//! Programs attached to functions of programs. The verdicts were measured on Linux 6.12, which loads such programs.

use std::sync::Arc;

use skep_ebpf::asm::assemble;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Btf, Composite, Kind, Linkage, Param};
use skep_ebpf::program::{FuncInfo, Program};
use skep_ebpf::uapi::{AttachType, ProgType, prog_flags};
use skep_verifier::{KernelProfile, Options, Rejection, Target, Verified, verify};

/// A function: name, parameters, result, and whether it is global. `i` is `int`, `u` unsigned, `l` long, `p` a pointer to
/// `int`, `s` one to the context of traffic control, `x` to that of XDP, `a` to that of socket addresses, `v` nothing.
type Function = (&'static str, &'static str, char, bool);

fn types(functions: &[Function]) -> (Arc<Btf>, Vec<u32>) {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let unsigned = b.int("unsigned int", 4, 0);
    let long = b.int("long", 8, 1);
    let int_pointer = b.add("", &Kind::Ptr { ty: int });
    let mut context = |name: &str| {
        let id = b.add(name, &Kind::Struct(Composite { size: 4, members: Box::new([]) }));
        b.add("", &Kind::Ptr { ty: id })
    };
    let (skb, xdp, addr) = (context("__sk_buff"), context("xdp_md"), context("bpf_sock_addr"));
    let type_of = |letter| match letter {
        'i' => int,
        'u' => unsigned,
        'l' => long,
        'p' => int_pointer,
        's' => skb,
        'x' => xdp,
        'a' => addr,
        _ => 0,
    };
    let mut ids = Vec::new();
    for (name, params, ret, global) in functions {
        let params = params.chars().map(|letter| Param { name_off: 1, ty: type_of(letter) }).collect();
        let proto = b.add("", &Kind::FuncProto { ret: type_of(*ret), params });
        let linkage = if *global { Linkage::Global } else { Linkage::Static };
        ids.push(b.add(name, &Kind::Func { proto, linkage }));
    }
    (Arc::new(Btf::parse(&b.finish()).expect("valid BTF")), ids)
}

/// A program whose functions start where its calls lead.
fn program(prog_type: ProgType, functions: &[Function], text: &str) -> Program {
    let mut program = Program::new("p", prog_type, "GPL", assemble(text).expect("a program"));
    let (btf, ids) = types(functions);
    let mut starts = vec![0];
    let calls = program.insns.iter().enumerate().filter(|(_, i)| i.is_subprog_call());
    starts.extend(calls.map(|(at, i)| (at as i64 + 1 + i64::from(i.imm)) as u32));
    starts.sort_unstable();
    program.btf = Some(btf);
    program.func_info = starts.into_iter().zip(ids).map(|(insn, type_id)| FuncInfo { insn, type_id }).collect();
    program
}

fn check(program: Program, target: Option<(&Arc<Verified>, &str)>) -> Result<Arc<Verified>, Box<Rejection>> {
    let target = target.map(|(p, f)| Target { program: p.clone(), function: f.to_owned() });
    let profile = KernelProfile::LINUX_6_12;
    verify(program, &Options { profile, target, ..Options::default() }).map(Arc::new)
}

fn verdict(result: Result<Arc<Verified>, Box<Rejection>>) -> &'static str {
    match result {
        Ok(_) => "accept",
        Err(r) => r.reason,
    }
}

/// Global `f(int)`, global `g(ctx)` and static `h(int)` behind a main function.
const FUNCTIONS: [Function; 4] =
    [("main", "s", 'i', true), ("f", "i", 'i', true), ("g", "s", 'i', true), ("h", "i", 'i', false)];

const TEXT: &str = "r6 = r1
r1 = 5
call f
r1 = r6
call g
r1 = 6
call h
exit
f:
r0 = r1
exit
g:
r0 = 1
exit
h:
r0 = r1
exit
";

fn traffic_control() -> Arc<Verified> {
    check(program(ProgType::SchedCls, &FUNCTIONS, TEXT), None).expect("the target")
}

/// An extension with this prototype and text.
fn extension(params: &'static str, ret: char, text: &str) -> Program {
    program(ProgType::Ext, &[("e", params, ret, true)], text)
}

const RETURN: &str = "r0 = 1\nexit\n";

#[test]
fn extensions_have_the_prototype() {
    let target = traffic_control();
    let cases = [
        ("f", "i", 'i', "accept"),
        ("f", "u", 'i', "accept"),
        ("f", "i", 'u', "accept"),
        ("f", "l", 'i', "attach-target"),
        ("f", "ii", 'i', "attach-target"),
        ("f", "", 'i', "attach-target"),
        ("f", "i", 'v', "attach-target"),
        ("f", "p", 'i', "attach-target"),
        ("f", "s", 'i', "attach-target"),
        ("g", "s", 'i', "accept"),
        ("g", "i", 'i', "attach-target"),
        ("g", "x", 'i', "attach-target"),
        ("h", "i", 'i', "attach-target"),
        ("main", "s", 'i', "accept"),
        ("", "s", 'i', "accept"),
        ("absent", "i", 'i', "attach-target"),
    ];
    for (function, params, ret, wanted) in cases {
        let found = verdict(check(extension(params, ret, RETURN), Some((&target, function))));
        assert_eq!(found, wanted, "{function}: ({params}) -> {ret}");
    }
    let mut own_static = extension("i", 'i', RETURN);
    (own_static.btf, _) = {
        let (btf, ids) = types(&[("e", "i", 'i', false)]);
        (Some(btf), ids)
    };
    assert_eq!(verdict(check(own_static, Some((&target, "f")))), "attach-target");
    let mut untyped = extension("i", 'i', RETURN);
    untyped.func_info.clear();
    assert_eq!(verdict(check(untyped, Some((&target, "f")))), "attach-target");
    assert_eq!(verdict(check(extension("i", 'i', RETURN), None)), "attach-target");
}

#[test]
fn extensions_are_programs_of_the_targets_type() {
    let target = traffic_control();
    let on = |function, params, text: &str| verdict(check(extension(params, 'i', text), Some((&target, function))));
    assert_eq!(on("g", "s", "r0 = *(u32 *)(r1 +0)\nexit\n"), "accept");
    assert_eq!(on("f", "i", "r0 = *(u32 *)(r1 +0)\nexit\n"), "not-a-pointer");
    assert_eq!(on("f", "i", "exit\n"), "uninitialized-register");
    // bpf_xdp_get_buff_len and bpf_skb_pull_data.
    assert_eq!(on("g", "s", "call 188\nr0 = 0\nexit\n"), "helper-not-allowed");
    assert_eq!(on("g", "s", "r2 = 8\ncall 39\nr0 = 0\nexit\n"), "attach-target");
    let mut sleeping = extension("i", 'i', RETURN);
    sleeping.flags |= prog_flags::SLEEPABLE;
    assert_eq!(verdict(check(sleeping, Some((&target, "f")))), "program-type");
    let mut other_licence = extension("i", 'i', RETURN);
    other_licence.license = "MIT".into();
    assert_eq!(verdict(check(other_licence, Some((&target, "f")))), "accept");

    let functions = [("main", "a", 'i', true), ("f", "i", 'i', true)];
    let text = "r1 = 1\ncall f\nr0 &= 1\nexit\nf:\nr0 = r1\nexit\n";
    let mut connect = program(ProgType::CgroupSockAddr, &functions, text);
    connect.attach_type = Some(AttachType::CgroupInet4Connect);
    let connect = check(connect, None).expect("the target");
    let returns = |n| verdict(check(extension("i", 'i', &format!("r0 = {n}\nexit\n")), Some((&connect, "f"))));
    assert_eq!((returns(1), returns(255)), ("accept", "return-value"));
}

fn around(how: AttachType, text: &str) -> Program {
    let functions = [("main", "i", 'i', true), ("f", "i", 'i', true)];
    let mut program = program(ProgType::Tracing, &functions, text);
    program.attach_type = Some(how);
    program
}

const TRACER: &str = "r1 = 5\ncall f\nr0 = 0\nexit\nf:\nr0 = r1\nexit\n";

#[test]
fn programs_are_traced_once() {
    let target = traffic_control();
    let on =
        |how, text: &str, target: &Arc<Verified>, function: &str| check(around(how, text), Some((target, function)));
    let entry = on(AttachType::TraceFentry, TRACER, &target, "f").expect("fentry of a global function");
    assert!(on(AttachType::TraceFentry, TRACER, &target, "h").is_ok());
    assert!(on(AttachType::TraceFexit, TRACER, &target, "g").is_ok());
    assert_eq!(verdict(on(AttachType::ModifyReturn, TRACER, &target, "f")), "attach-target");
    assert_eq!(verdict(on(AttachType::TraceRawTp, TRACER, &target, "f")), "attach-target");
    // An extension of a program that is called around functions, and one of another extension.
    assert_eq!(verdict(check(extension("i", 'i', RETURN), Some((&entry, "f")))), "attach-target");
    let first = check(extension("i", 'i', RETURN), Some((&target, "f"))).expect("an extension");
    assert_eq!(verdict(check(extension("i", 'i', RETURN), Some((&first, "e")))), "attach-target");
    assert!(on(AttachType::TraceFentry, TRACER, &first, "e").is_ok());
    // Tracers of tracers, but no more.
    let second = on(AttachType::TraceFentry, TRACER, &entry, "f").expect("fentry of fentry");
    assert_eq!(verdict(on(AttachType::TraceFentry, TRACER, &second, "f")), "attach-target");
}

#[test]
fn tracers_see_arguments() {
    let target = traffic_control();
    let extension = check(extension("i", 'i', RETURN), Some((&target, "f"))).expect("an extension");
    let read = |how, function: &str, off: i32, size: u32| {
        let text = format!("r1 = *(u{size} *)(r1 +{off})\nr0 = 0\nexit\n");
        let mut tracer = program(ProgType::Tracing, &[("main", "i", 'i', true)], &text);
        tracer.attach_type = Some(how);
        let target = if function == "e" { &extension } else { &target };
        verdict(check(tracer, Some((target, function))))
    };
    assert_eq!(read(AttachType::TraceFentry, "f", 0, 64), "accept");
    assert_eq!(read(AttachType::TraceFentry, "f", 0, 32), "accept");
    assert_eq!(read(AttachType::TraceFentry, "f", 8, 64), "context-access");
    assert_eq!(read(AttachType::TraceFexit, "f", 8, 64), "accept");
    assert_eq!(read(AttachType::TraceFexit, "f", 16, 64), "context-access");
    // What an extension is called with is what its type says, too.
    assert_eq!(read(AttachType::TraceFentry, "e", 0, 64), "accept");
    assert_eq!(read(AttachType::TraceFentry, "e", 8, 64), "context-access");
    assert_eq!(read(AttachType::TraceFexit, "e", 8, 64), "accept");
    assert_eq!(read(AttachType::TraceFexit, "e", 16, 64), "context-access");
    // The context is the kernel's own struct, which needs the kernel's types.
    assert_eq!(read(AttachType::TraceFentry, "g", 0, 64), "kernel-types");
}
