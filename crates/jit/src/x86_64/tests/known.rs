//! What the verifier found out shows in the code: by the names of the instructions that a verified program becomes.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use skep_ebpf::Insn;
use skep_ebpf::asm::assemble;
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType};
use skep_verifier::{Options, verify};

use crate::tuning::Tuning;
use crate::{Engine, compile_with};

/// Something that nobody knows into r0.
const RANDOM: &str = "call get_prandom_u32#7\n";

fn code(insns: Vec<Insn>) -> Vec<Instruction> {
    let mut program = Program::new("test", ProgType::SchedCls, "GPL", insns);
    program.maps =
        [MapDef::new("a", MapType::Array, 4, 8, 16), MapDef::new("p", MapType::PercpuArray, 4, 24, 16)].into();
    let verified = verify(program, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let options = crate::Options { engine: Engine::Jit, ..crate::Options::default() };
    let compiled = compile_with(&verified, &options, &Tuning::of(&options)).unwrap();
    Decoder::new(64, compiled.machine_code().unwrap(), DecoderOptions::NONE).iter().collect()
}

/// How often each of these stands in the code of a program.
fn count<const N: usize>(text: &str, of: [Mnemonic; N]) -> [usize; N] {
    let code = code(assemble(&format!("{RANDOM}{text}exit\n")).unwrap());
    of.map(|m| code.iter().filter(|i| i.mnemonic() == m).count())
}

#[test]
fn division_by_what_is_known() {
    let of = [Mnemonic::Div, Mnemonic::Idiv, Mnemonic::Test];
    let operands = "r1 = r0\nr1 &= 255\nr1 += 1\nr0 &= 65535\n";
    // 32 bits, and the divisor is never zero.
    assert_eq!(count(&format!("{operands}r0 /= r1\n"), of), [1, 0, 0]);
    // Numbers without a sign.
    assert_eq!(count(&format!("{operands}r0 s/= r1\n"), of), [1, 0, 0]);
    assert_eq!(count(&format!("{operands}w0 s%= w1\n"), of), [1, 0, 0]);
    // The divisor may be zero.
    assert_eq!(count("r1 = r0\nr1 &= 255\nr0 &= 65535\nr0 /= r1\n", of), [1, 0, 1]);
    // Nothing is known of the product: a division of each width, and of zero.
    assert_eq!(count("r1 = r0\nr1 *= r1\nr0 *= r1\nr0 /= r1\n", of), [2, 0, 1]);
    assert_eq!(count("r1 = r0\nr1 *= r1\nr0 *= r1\nr0 s/= r1\n", of), [0, 1, 1]);
}

#[test]
fn signs_and_halves_of_what_is_small() {
    let of = [Mnemonic::Movsx, Mnemonic::Movsxd];
    assert_eq!(count("r0 &= 127\nr0 = (s8)r0\n", of), [0, 0]);
    assert_eq!(count("r0 &= 255\nr0 = (s8)r0\n", of), [1, 0]);
    assert_eq!(count("r0 &= 0xffff\nr0 = (s32)r0\n", of), [0, 0]);
    // Compared in 32 bits: no instruction but the call's arguments is wide.
    let compares = |text: &str| {
        let code = code(assemble(&format!("{RANDOM}{text}exit\n")).unwrap());
        code.iter().find(|i| i.mnemonic() == Mnemonic::Cmp).map(|i| i.op0_register().size())
    };
    let sides = "r1 = r0\nr1 &= 255\nr0 &= 1023\n";
    assert_eq!(compares(&format!("{sides}if r0 s> r1 goto pc+2\nr0 = 9\nr0 *= r1\n")), Some(4));
    assert_eq!(compares("r1 = r0\nr1 *= r1\nr0 *= r0\nif r0 s> r1 goto pc+2\nr0 = 9\nr0 *= r1\n"), Some(8));
}

#[test]
fn numbers_in_place_of_registers() {
    // r6 is never written: the number is in the sum.
    let code = code(assemble(&format!("r6 = 7\n{RANDOM}r0 += r6\nexit\n")).unwrap());
    assert!(code.iter().any(|i| i.mnemonic() == Mnemonic::Add && i.immediate8() == 7), "{code:?}");
    assert!(!code.iter().any(|i| i.op0_register() == iced_x86::Register::RBX), "{code:?}");
}

#[test]
fn elements_with_known_keys_are_addresses() {
    let look_up = |map: i32| {
        let mut insns = assemble("*(u32 *)(r10 -8) = 3\nr2 = r10\nr2 += -8\n").unwrap();
        insns.extend([Insn::new(0x18, 1, pseudo::MAP_IDX, 0, map), Insn::default()]);
        insns.extend(assemble("call map_lookup_elem#1\nr0 = *(u64 *)(r0 +0)\nexit\n").unwrap());
        code(insns)
    };
    let [array, per_cpu] = [look_up(0), look_up(1)];
    for code in [&array, &per_cpu] {
        assert!(!code.iter().any(|i| matches!(i.mnemonic(), Mnemonic::Call | Mnemonic::Cmp)), "{code:?}");
    }
    // Three elements of eight bytes on.
    let loads = |code: &[Instruction], at: u64| {
        code.iter().any(|i| i.memory_displacement64() == at && i.mnemonic() == Mnemonic::Mov)
    };
    assert!(loads(&array, 24), "{array:?}");
}
