//! Programs that handle the kernel's own objects are verified, but never run.

use std::sync::Arc;

use skep_ebpf::asm::assemble;
use skep_ebpf::btf::{Btf, Composite, Kind, Member, build::Builder};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::ProgType;
use skep_jit::{CompileError, compile};
use skep_verifier::{Options, verify};

fn kernel() -> Btf {
    let mut b = Builder::new();
    let int = b.add("int", &Kind::Int { size: 4, bits: 32, offset: 0, encoding: 1 });
    let members = Box::new([Member { name_off: b.string("pid"), ty: int, bit_offset: 0, bitfield_size: 0 }]);
    b.add("task_struct", &Kind::Struct(Composite { size: 4, members }));
    Btf::parse(&b.finish()).expect("valid BTF")
}

#[test]
fn are_refused() {
    let insns = assemble("call 158\nr0 = *(u32 *)(r0 +0)\nexit\n").expect("a program");
    let options = Options { btf: Some(Arc::new(kernel())), ..Options::default() };
    let program = Program::new("current", ProgType::Kprobe, "GPL", insns);
    let verified = verify(program, &options).expect("a kernel accepts it");
    let refusal = compile(&verified, &skep_jit::Options::default()).expect_err("not run");
    assert!(matches!(refusal, CompileError::Kernel { insn: Some(0), .. }), "{refusal}");
    assert_eq!(
        refusal.to_string(),
        "program current, instruction 0: only a kernel could run it: \
         it handles a pointer to a trusted kernel object (struct task_struct)"
    );
}
