//! Function types for test programs: the BTF that the kernel wants with global functions and callbacks.
#![allow(dead_code)] // not every test uses all of it

use std::sync::Arc;

use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Btf, Composite, Kind, Linkage, Param};
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::{FuncInfo, Program};

/// A function behind the main one: what it takes, a letter each, and whether it is global.
///
/// `i` is a number, `c` the context, `p` a pointer to 8 bytes, `n` one that is not null, `d` a dynptr.
#[derive(Clone, Debug)]
pub struct Function {
    pub params: String,
    pub global: bool,
}

/// BTF for a main function and these, and the ids of all of them.
pub fn blob(functions: &[Function]) -> (Vec<u8>, Vec<u32>) {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let long = b.int("unsigned long", 8, 0);
    let pointer = b.add("", &Kind::Ptr { ty: long });
    let any = b.add("", &Kind::Ptr { ty: 0 });
    let dynptr = b.add("bpf_dynptr", &Kind::Struct(Composite { size: 16, members: Box::new([]) }));
    let dynptr = b.add("", &Kind::Ptr { ty: dynptr });
    let mut ids = Vec::new();
    let main = Function { params: "c".into(), global: true };
    for (n, f) in std::iter::once(&main).chain(functions).enumerate() {
        let param = |(k, letter)| Param {
            name_off: b_name(k),
            ty: match letter {
                'i' => int,
                'c' => any,
                'd' => dynptr,
                _ => pointer,
            },
        };
        let params = f.params.chars().enumerate().map(param).collect();
        let proto = b.add("", &Kind::FuncProto { ret: int, params });
        let linkage = if f.global { Linkage::Global } else { Linkage::Static };
        let func = b.add(&format!("f{n}"), &Kind::Func { proto, linkage });
        for (k, letter) in f.params.chars().enumerate().filter(|_| n > 0) {
            let tag = match letter {
                'c' => "arg:ctx",
                'n' => "arg:nonnull",
                _ => continue,
            };
            b.add(tag, &Kind::DeclTag { ty: func, component: k as i32 });
        }
        ids.push(func);
    }
    (b.finish(), ids)
}

/// Parameters have names; which does not matter. The first string of a blob is that of its first type, "int".
fn b_name(_: usize) -> u32 {
    1
}

/// Types the functions of a program, in order of their instructions; gives the blob for the kernel.
pub fn attach(program: &mut Program, functions: &[Function]) -> Vec<u8> {
    let mut starts = vec![0];
    for (at, i) in program.insns.iter().enumerate() {
        if i.is_subprog_call() || i.is_ld_imm64() && i.src() == pseudo::FUNC {
            starts.push((at as i64 + 1 + i64::from(i.imm)) as u32);
        }
    }
    starts.sort_unstable();
    starts.dedup();
    let (raw, ids) = blob(functions);
    program.btf = Some(Arc::new(Btf::parse(&raw).expect("BTF of the test")));
    program.func_info = starts.into_iter().zip(ids).map(|(insn, type_id)| FuncInfo { insn, type_id }).collect();
    raw
}
