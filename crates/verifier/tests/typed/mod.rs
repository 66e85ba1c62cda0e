//! Function types for test programs: the BTF that the kernel wants with global functions and callbacks.
#![allow(dead_code)] // not every test uses all of it

pub mod objects;

use std::sync::Arc;

use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Btf, Composite, Kind, Linkage, Member, Param};
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::{FuncInfo, Program};

/// A function behind the main one: what it takes, a letter each, what it returns, and whether it is global.
///
/// `i` is a number, `c` the context, `p` a pointer to 8 bytes, `n` one that is not null, `v` a pointer to nothing known,
/// `t` a trusted `struct task_struct`, `T` one that may be null, `u` an untrusted one, `U` untrusted numbers, `d` a
/// dynptr, `a` a pointer into an arena, `s` a struct by value; `x`, `N` and `q` have tags that make no sense. It returns `i`, `p`, or nothing (`v`).
#[derive(Clone, Debug)]
pub struct Function {
    pub params: String,
    pub returns: char,
    pub global: bool,
    /// Set for the function that exceptions end in: its first instruction.
    pub catches: Option<u32>,
}

impl Function {
    pub fn new(params: &str, global: bool) -> Function {
        Function { params: params.into(), returns: 'i', global, catches: None }
    }
}

/// Declaration tags of a parameter.
fn tags(letter: char) -> &'static [&'static str] {
    match letter {
        'c' => &["arg:ctx"],
        'n' => &["arg:nonnull"],
        't' => &["arg:trusted"],
        'x' => &["arg:trusted", "arg:nonnull"],
        'N' => &["arg:nullable"],
        'q' => &["arg:precious"],
        'T' => &["arg:trusted", "arg:nullable"],
        'u' | 'U' => &["arg:untrusted"],
        'a' => &["arg:arena"],
        _ => &[],
    }
}

/// BTF for a main function and these, and the ids of all of them.
pub fn blob(functions: &[Function]) -> (Vec<u8>, Vec<u32>) {
    let (raw, ids, _) = blob_with(functions, false);
    (raw, ids)
}

/// The same, perhaps with types that have special fields.
pub fn blob_with(functions: &[Function], with_objects: bool) -> (Vec<u8>, Vec<u32>, objects::Ids) {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let long = b.int("unsigned long", 8, 0);
    let pointer = b.add("", &Kind::Ptr { ty: long });
    let any = b.add("", &Kind::Ptr { ty: 0 });
    let own = if with_objects { objects::add(&mut b, int, long, any) } else { objects::Ids::default() };
    let name = b.string("pid");
    let member = Member { name_off: name, ty: int, bit_offset: 0, bitfield_size: 0 };
    let task = b.add("task_struct", &Kind::Struct(Composite { size: 4, members: [member].into() }));
    let task_pointer = b.add("", &Kind::Ptr { ty: task });
    let dynptr = b.add("bpf_dynptr", &Kind::Struct(Composite { size: 16, members: Box::new([]) }));
    let dynptr = b.add("", &Kind::Ptr { ty: dynptr });
    let mut ids = Vec::new();
    let main = Function::new("c", true);
    for (n, f) in std::iter::once(&main).chain(functions).enumerate() {
        let type_of = |letter| match letter {
            'i' => int,
            'c' | 'v' | 'a' => any,
            't' | 'T' | 'u' | 'x' => task_pointer,
            'd' => dynptr,
            's' => task,
            _ => pointer,
        };
        // Parameters have names; which does not matter. The first string of a blob is that of its first type, "int".
        let params = f.params.chars().map(|letter| Param { name_off: 1, ty: type_of(letter) }).collect();
        let ret = if f.returns == 'v' { 0 } else { type_of(f.returns) };
        let proto = b.add("", &Kind::FuncProto { ret, params });
        let linkage = if f.global { Linkage::Global } else { Linkage::Static };
        let func = b.add(&format!("f{n}"), &Kind::Func { proto, linkage });
        for (k, letter) in f.params.chars().enumerate().filter(|_| n > 0) {
            for tag in tags(letter) {
                b.add(tag, &Kind::DeclTag { ty: func, component: k as i32 });
            }
        }
        ids.push(func);
    }
    for n in (1..=functions.len()).filter(|n| functions[n - 1].catches.is_some()) {
        b.add(&format!("exception_callback:f{n}"), &Kind::DeclTag { ty: ids[0], component: -1 });
    }
    (b.finish(), ids, own)
}

/// Types the functions of a program, in order of their instructions; gives the blob for the kernel.
pub fn attach(program: &mut Program, functions: &[Function]) -> Vec<u8> {
    attach_with(program, functions, false)
}

/// The same, perhaps with types that have special fields.
pub fn attach_with(program: &mut Program, functions: &[Function], with_objects: bool) -> Vec<u8> {
    let mut starts = vec![0];
    starts.extend(functions.iter().filter_map(|f| f.catches));
    for (at, i) in program.insns.iter().enumerate() {
        if i.is_subprog_call() || i.is_ld_imm64() && i.src() == pseudo::FUNC {
            starts.push((at as i64 + 1 + i64::from(i.imm)) as u32);
        }
    }
    starts.sort_unstable();
    starts.dedup();
    let (raw, ids, _) = blob_with(functions, with_objects);
    program.btf = Some(Arc::new(Btf::parse(&raw).expect("BTF of the test")));
    program.func_info = starts.into_iter().zip(ids).map(|(insn, type_id)| FuncInfo { insn, type_id }).collect();
    raw
}
