//! Each improvement shows in the code: the instructions that a small program becomes, by name.
//!
//! That they mean the same is for `tests/agree.rs`, whose random programs are made of these patterns.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind};
use skep_ebpf::asm::assemble;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, ProgType};

use super::super::translate;
use crate::calls::Subprog;
use crate::tuning::{Features, Tuning};
use crate::{Options, Source};

fn tuning() -> Tuning {
    let features = Features { bmi2: true, movbe: true };
    Tuning { features, optimise: true, budget: false, blinding: None, extends: false }
}

fn code(text: &str, tuning: &Tuning) -> Vec<u8> {
    let insns = assemble(text).unwrap();
    let maps = [MapDef::new("a", MapType::Array, 4, 8, 16), MapDef::new("p", MapType::PercpuArray, 4, 24, 16)];
    let subprogs = [Subprog { start: 0, stack: 64, args: 5, number: 0 }];
    let source = Source {
        name: "test",
        prog_type: ProgType::SchedCls,
        insns: &insns,
        subprogs: &subprogs,
        marks: &crate::marks::marks(&insns),
        maps: &maps,
        known: None,
        special: &crate::special::NONE,
    };
    translate(&source, &Options::default(), tuning).code
}

/// What the instructions are called, without pushes, pops and nops.
fn names(text: &str) -> Vec<String> {
    names_with(text, &tuning())
}

fn names_with(text: &str, tuning: &Tuning) -> Vec<String> {
    let code = code(text, tuning);
    let mut names = Vec::new();
    for insn in Decoder::new(64, &code, DecoderOptions::NONE).iter() {
        if matches!(insn.mnemonic(), Mnemonic::Push | Mnemonic::Pop | Mnemonic::Nop) {
            continue;
        }
        let mut name = format!("{:?}", insn.mnemonic()).to_lowercase();
        if (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory) {
            name.push_str(if insn.memory_index() == iced_x86::Register::None { "[]" } else { "[+]" });
        }
        names.push(name);
    }
    names
}

/// What a select would make wait for the load of the round before stays a branch: here r2 is where the next round loads.
#[test]
fn searches_branch() {
    let round = |dst: &str| {
        format!(
            "w2 = 0\nw3 = 128\ngoto pc+2\nw3 >>= 1\nif w3 == 0 goto pc+10\nw4 = w3\nw4 += w2\nr5 = r4\nr5 <<= 2\nr6 = r1\nr6 += r5\n\
             r5 = *(u32 *)(r6 +0)\nif w5 > 77 goto pc-10\n{dst} = w4\ngoto pc-12\nr0 = r2\nr0 += r7\nexit\n"
        )
    };
    let has_select = |text: &str| names(text).iter().any(|name| name.starts_with("cmov"));
    assert!(!has_select(&round("w2")));
    assert!(has_select(&format!("w7 = 0\n{}", round("w7"))));
}

#[track_caller]
fn becomes(text: &str, expected: &str) {
    assert_eq!(names(text).join(" "), expected, "{text}");
}

/// r1 is the context (a pointer), in rdi after the prologue's `mov`.
#[test]
fn rotations() {
    let load = "r2 = *(u32 *)(r1 +0)\n";
    let rotation = "w3 = w2\nw3 <<= 26\nw0 = w2\nw0 >>= 6\nw0 |= w3\nexit\n";
    becomes(&format!("{load}{rotation}"), "mov mov[] rorx ret");
    // Something in between does not matter.
    becomes(
        "r2 = *(u32 *)(r1 +0)\nw3 = w2\nw3 <<= 26\nr1 += 4\nw0 = w2\nr4 = *(u32 *)(r1 +0)\nw0 >>= 6\nw0 |= w3\nw0 ^= w4\nexit\n",
        "mov mov[] mov[] rorx xor ret",
    );
    // Not a rotation.
    becomes(
        "r2 = *(u32 *)(r1 +0)\nw3 = w2\nw3 <<= 26\nw0 = w2\nw0 >>= 7\nw0 |= w3\nexit\n",
        "mov mov[] mov shr mov shl or ret",
    );
}

#[test]
fn sums_are_one_instruction() {
    becomes("r2 = *(u64 *)(r1 +0)\nr0 = r1\nr0 += r2\nr0 += 7\nexit\n", "mov mov[] lea[+] ret");
    becomes("r2 = *(u64 *)(r1 +0)\nr0 = r2\nr0 *= 9\nexit\n", "mov mov[] lea[+] ret");
}

#[test]
fn addresses_are_folded() {
    becomes(
        "r2 = *(u64 *)(r1 +0)\nr2 &= 56\nr3 = r1\nr3 += r2\nr0 = *(u64 *)(r3 +8)\nexit\n",
        "mov mov[] and mov[+] ret",
    );
    // With a scale, and something in between.
    becomes(
        "r2 = *(u8 *)(r1 +0)\nr2 <<= 2\nr3 = r1\nr3 += r2\nr4 = *(u8 *)(r1 +1)\nr0 = *(u32 *)(r3 +8)\nw0 ^= w4\nexit\n",
        "mov movzx[] movzx[] mov[+] xor ret",
    );
    becomes("r2 = r10\nr2 += -16\n*(u64 *)(r2 +8) = r1\nr0 = 0\nexit\n", "mov mov mov[] xor ret");
}

#[test]
fn short_branches_become_moves() {
    becomes(
        "r2 = *(u64 *)(r1 +0)\nr0 = *(u64 *)(r1 +8)\nif r2 > 5 goto pc+1\nr0 = r2\nexit\n",
        "mov mov[] mov[] cmp cmovbe ret",
    );
}

#[test]
fn extensions_of_what_is_zero_are_left_out() {
    becomes("r2 = *(u32 *)(r1 +0)\nw0 = w2\nr0 += r1\nexit\n", "mov mov[] lea[+] ret");
    becomes("r2 = *(u64 *)(r1 +0)\nr2 <<= 32\nr2 >>= 32\nr0 = r2\nexit\n", "mov mov[] mov ret");
    becomes("r2 = *(u64 *)(r1 +0)\nr2 <<= 48\nr2 s>>= 48\nr0 = r2\nexit\n", "mov mov[] movsx mov ret");
}

#[test]
fn masks_and_tests_are_one() {
    becomes(
        "r2 = *(u64 *)(r1 +0)\nr0 = 1\nr2 &= 6\nif r2 == 0 goto pc+1\nr0 += r1\nexit\n",
        "mov mov[] mov test je add ret",
    );
    // A count sets the flags that the loop looks at.
    becomes("r2 = 8\nr0 = 0\nr0 += 3\nr2 += -1\nif r2 != 0 goto pc-3\nexit\n", "xor mov add add jne ret");
}

#[test]
fn bytes_are_swapped_by_the_load() {
    becomes("r0 = *(u32 *)(r1 +0)\nr0 = be32 r0\nexit\n", "mov movbe[] ret");
    let old = Tuning { features: Features::default(), ..tuning() };
    assert_eq!(names_with("r0 = *(u32 *)(r1 +0)\nr0 = be32 r0\nexit\n", &old).join(" "), "mov mov[] bswap ret");
}

#[test]
fn memory_operands() {
    becomes("r2 = *(u64 *)(r1 +0)\nr2 += 1\n*(u64 *)(r1 +0) = r2\nr0 = 0\nexit\n", "mov add[] xor ret");
    becomes("r0 = *(u64 *)(r1 +0)\nr2 = *(u64 *)(r1 +8)\nr0 ^= r2\nexit\n", "mov mov[] xor[] ret");
}

#[test]
fn neighbouring_numbers_are_stored_at_once() {
    becomes(
        "*(u32 *)(r10 -8) = 1\n*(u32 *)(r10 -4) = 0\n*(u8 *)(r10 -12) = 1\n*(u8 *)(r10 -11) = 2\nr0 = 0\nexit\n",
        "mov mov[] mov[] xor ret",
    );
}

#[test]
fn division() {
    // By a constant, where the dividend is small.
    becomes("r0 = *(u32 *)(r1 +0)\nr0 /= 10\nexit\n", "mov mov[] mov mov imul shr mov ret");
    becomes("r0 = *(u32 *)(r1 +0)\nr0 %= 8\nexit\n", "mov mov[] and ret");
    // Of 32 bits where both are small.
    let small = names("r0 = *(u32 *)(r1 +0)\nr2 = *(u32 *)(r1 +4)\nr0 /= r2\nexit\n");
    assert_eq!(small.iter().filter(|n| *n == "div").count(), 1, "{small:?}");
    // Two ways where nobody knows.
    let any = names("r0 = *(u64 *)(r1 +0)\nr2 = *(u64 *)(r1 +8)\nr0 /= r2\nexit\n");
    assert_eq!(any.iter().filter(|n| *n == "div").count(), 2, "{any:?}");
}

#[test]
fn look_ups_in_arrays_are_no_calls() {
    let look_up = |map: u32| {
        let head = "*(u32 *)(r10 -4) = 3\nr2 = r10\nr2 += -4\n";
        let mut insns = assemble(head).unwrap();
        insns.extend([skep_ebpf::Insn::new(0x18, 1, 5, 0, map as i32), skep_ebpf::Insn::default()]);
        insns.extend(assemble("call 1\nif r0 == 0 goto pc+2\nr0 = *(u64 *)(r0 +0)\nexit\nr0 = 1\nexit\n").unwrap());
        let maps = [MapDef::new("a", MapType::Array, 4, 8, 16), MapDef::new("p", MapType::PercpuArray, 4, 24, 16)];
        let hash = MapDef::new("h", MapType::Hash, 4, 8, 16);
        let maps = [maps[0].clone(), maps[1].clone(), hash];
        let subprogs = [Subprog { start: 0, stack: 64, args: 5, number: 0 }];
        let source = Source {
            name: "test",
            prog_type: ProgType::SchedCls,
            insns: &insns,
            subprogs: &subprogs,
            marks: &crate::marks::marks(&insns),
            maps: &maps,
            known: None,
            special: &crate::special::NONE,
        };
        let code = translate(&source, &Options::default(), &tuning()).code;
        let all: Vec<_> = Decoder::new(64, &code, DecoderOptions::NONE).iter().map(|i| i.mnemonic()).collect();
        (all.contains(&Mnemonic::Call), all.contains(&Mnemonic::Test))
    };
    assert_eq!(look_up(0), (false, false));
    assert_eq!(look_up(1), (false, false));
    assert_eq!(look_up(2), (true, true));
}

/// The value's place in the array is part of its first access, behind the check; not where others come, too.
#[test]
fn values_of_arrays_are_addressed_in_them() {
    let look_up = |behind: &str| {
        format!("*(u32 *)(r10 -4) = 3\nr2 = r10\nr2 += -4\nr1 = map[idx:0]\ncall 1\n{behind}r0 = 1\nexit\n")
    };
    let element = "mov mov mov[] mov[] mov[] cmp jae mov[]";
    becomes(
        &look_up("if r0 == 0 goto pc+2\nr3 = *(u64 *)(r0 +0)\n*(u64 *)(r10 -16) = r3\n"),
        &format!("{element} mov[+] mov[] mov ret xor jmp"),
    );
    becomes(
        &look_up("if r0 == 0 goto pc+3\nr3 = *(u64 *)(r0 +0)\nr3 += 1\n*(u64 *)(r0 +0) = r3\n"),
        &format!("{element} add[+] mov ret xor jmp"),
    );
    // Somebody comes from elsewhere.
    let other = look_up("if r0 == 0 goto pc+1\nr3 = *(u64 *)(r0 +0)\nif r3 != 0 goto pc-2\n");
    becomes(&other, &format!("{element} lea[+] mov[] test jne mov ret xor jmp"));
}

/// What goes on from a sum is not made to wait for what is made of its copy.
#[test]
fn sums_are_made_before_they_are_copied() {
    let text = |last: &str| format!("r2 = *(u64 *)(r1 +0)\nr2 += 5\nr0 = r2\nr0 >>= 3\n{last}exit\n");
    becomes(&text("*(u64 *)(r1 +8) = r2\n"), "mov mov[] add mov[] mov shr ret");
    // Nobody goes on from it.
    becomes(&text(""), "mov mov[] lea[] shr ret");
}

#[test]
fn without_bmi2_shifts_go_through_cl() {
    let old = Tuning { features: Features::default(), ..tuning() };
    let text = "r0 = *(u64 *)(r1 +0)\nr2 = *(u64 *)(r1 +8)\nr0 <<= r2\nexit\n";
    assert_eq!(names(text).join(" "), "mov mov[] mov[] shlx ret");
    assert_eq!(names_with(text, &old).join(" "), "mov mov[] mov[] mov mov shl mov ret");
}

#[test]
fn what_nobody_needs_is_not_there() {
    becomes("r2 = *(u64 *)(r1 +0)\nr3 = 5\nr0 = 0\nexit\n", "xor ret");
}

/// No number of the program is in code whose numbers are blinded.
#[test]
fn blinding() {
    let text = "r2 = 0x13371337 ll\nr3 = 0x1234567887654321 ll\nr2 ^= 0x55aa55aa\nr0 = *(u64 *)(r1 +0)\n\
                if r0 > 0x66bb66bb goto pc+1\nr0 += 0x11ee11ee\n*(u32 *)(r10 -8) = 0x77cc77cc\nr0 ^= r2\nr0 ^= r3\nexit\n";
    let numbers: [u32; 7] = [0x1337_1337, 0x1234_5678, 0x8765_4321, 0x55aa_55aa, 0x66bb_66bb, 0x11ee_11ee, 0x77cc_77cc];
    let found = |code: &[u8]| numbers.iter().filter(|n| code.windows(4).any(|w| w == n.to_le_bytes())).count();
    assert!(found(&code(text, &tuning())) >= 4);
    for seed in 0..64 {
        assert_eq!(found(&code(text, &Tuning { blinding: Some(seed), ..tuning() })), 0, "seed {seed}");
    }
}

#[test]
fn what_goes_on_with_other_code_may_end_in_it() {
    let unwinds = |text: &str| {
        let insns = assemble(text).unwrap();
        let source = Source {
            name: "test",
            prog_type: ProgType::SchedCls,
            insns: &insns,
            subprogs: &[Subprog { start: 0, stack: 64, args: 5, number: 0 }],
            marks: &crate::marks::marks(&insns),
            maps: &[],
            known: None,
            special: &crate::special::NONE,
        };
        translate(&source, &Options::default(), &tuning()).unwinds
    };
    assert!(unwinds("r2 = 0\nr3 = 0\ncall 12\nr0 = 0\nexit\n"));
    assert!(!unwinds("r2 = 0\nr3 = 0\ncall 5\nr0 = 0\nexit\n"));
}
