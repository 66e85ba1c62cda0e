//! What the blob may contain.

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use object::{Object, ObjectSymbol};
use skep_agent::{BLOB, Blob, BlobError};

/// System calls that the data plane may make.
const SYSCALLS: &[(u64, &str)] = &[
    (13, "rt_sigaction"),
    (14, "rt_sigprocmask"),
    (35, "nanosleep"),
    (39, "getpid"),
    (102, "getuid"),
    (104, "getgid"),
    (131, "sigaltstack"),
    (157, "prctl"),
    (186, "gettid"),
    (202, "futex"),
    (228, "clock_gettime"),
    (297, "rt_tgsigqueueinfo"),
    (310, "process_vm_readv"),
    (324, "membarrier"),
];

fn instructions(blob: &Blob) -> Vec<Instruction> {
    let text = blob.segments.iter().filter(|s| s.prot.exec);
    text.flat_map(|s| Decoder::with_ip(64, &s.bytes, s.vaddr, DecoderOptions::NONE).into_iter().collect::<Vec<_>>())
        .collect()
}

#[test]
fn needs_no_loader() {
    let blob = Blob::parse().unwrap();
    println!("{} bytes in the file, {} in memory, {} relocations", BLOB.len(), blob.size(), blob.relocs.len());
    assert!(blob.size() < 256 << 10);
    // Writable is at most what the linker fills in: no state.
    let writable: u64 = blob.segments.iter().filter(|s| s.prot.write).map(|s| s.memsz).sum();
    assert!(writable <= 4096, "{writable} writable bytes");
    for base in [0x1000, 0x7fff_1234_5000] {
        for piece in blob.image_at(base) {
            assert_eq!((piece.offset % 4096, piece.bytes.len() % 4096), (0, 0));
        }
    }
}

#[test]
fn has_no_panic() {
    let file = object::File::parse(BLOB).unwrap();
    let panics: Vec<_> = file.symbols().filter_map(|s| s.name().ok()).filter(|n| n.contains("panic")).collect();
    assert!(panics.is_empty(), "panicking paths: {panics:?}");
}

#[test]
fn touches_only_registers_that_trampolines_save() {
    let mut infos = InstructionInfoFactory::new();
    let file = object::File::parse(BLOB).unwrap();
    // Saves what it may change.
    let keeper = file.symbols().find(|s| s.name() == Ok("skep_keep_vectors")).unwrap();
    let keeper = keeper.address()..keeper.address() + keeper.size();
    for insn in instructions(&Blob::parse().unwrap()).iter().filter(|i| !keeper.contains(&i.ip())) {
        assert_ne!(insn.mnemonic(), Mnemonic::INVALID, "at {:#x}", insn.ip());
        for used in infos.info(insn).used_registers() {
            let r = used.register();
            let saved = r.is_gpr() || r.is_segment_register() || r == Register::RIP;
            assert!(saved, "{r:?} at {:#x}", insn.ip());
        }
    }
}

/// Trampolines leave the direction flag as they find it.
#[test]
fn string_instructions_know_their_direction() {
    let insns = instructions(&Blob::parse().unwrap());
    let strings = insns.windows(2).filter(|w| w[1].is_string_instruction());
    assert!(strings.clone().count() > 0);
    for w in strings {
        assert!(matches!(w[0].mnemonic(), Mnemonic::Cld | Mnemonic::Std), "at {:#x}", w[1].ip());
    }
}

#[test]
fn makes_no_other_system_calls() {
    let mut number = None;
    let mut seen = std::collections::BTreeSet::new();
    for insn in instructions(&Blob::parse().unwrap()) {
        match insn.mnemonic() {
            Mnemonic::Mov if matches!(insn.op0_register(), Register::EAX | Register::RAX) => {
                let immediate = !matches!(insn.op1_kind(), OpKind::Register | OpKind::Memory);
                number = immediate.then(|| insn.immediate(1));
            }
            Mnemonic::Syscall => {
                let n = number.unwrap_or_else(|| panic!("a system call of unknown number at {:#x}", insn.ip()));
                let known = SYSCALLS.iter().find(|(nr, _)| *nr == n);
                seen.insert(known.unwrap_or_else(|| panic!("system call {n} at {:#x}", insn.ip())).1);
                number = None;
            }
            _ => {}
        }
    }
    println!("system calls: {seen:?}");
}

#[test]
fn damaged_blobs_are_refused() {
    assert!(matches!(Blob::parse_bytes(&BLOB[..40]), Err(BlobError::Malformed { .. })));
    assert!(matches!(Blob::parse_bytes(b"no blob"), Err(BlobError::Malformed { .. })));
    for cut in [64, 200, BLOB.len() / 2, BLOB.len() - 1] {
        assert!(Blob::parse_bytes(&BLOB[..cut]).is_err(), "cut at {cut}");
    }
    // A library among what it needs.
    let mut damaged = BLOB.to_vec();
    let word = |at: usize| u64::from_le_bytes(BLOB[at..at + 8].try_into().unwrap()) as usize;
    // The program header of type PT_DYNAMIC.
    let mut headers = (word(32)..).step_by(56);
    let header = headers.find(|&at| word(at) as u32 == 2).unwrap();
    let at = word(header + 8);
    damaged[at..at + 8].copy_from_slice(&1u64.to_le_bytes());
    assert!(matches!(Blob::parse_bytes(&damaged), Err(BlobError::NotFreestanding { .. })));
}
