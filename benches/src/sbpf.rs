//! Workloads in solana-sbpf's JIT (`--features sbpf`), by its defaults: every access to memory is checked and translated,
//! instructions are counted, numbers of the program are blinded. The bytecode is the same, as its version 3, which has the
//! same instructions; a workload's buffer is its heap.

use std::ptr::NonNull;
use std::sync::Arc;

use skep_ebpf::Insn;
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::Program;
use solana_sbpf::ebpf::{MM_HEAP_START, MM_STACK_START, hash_symbol_name};
use solana_sbpf::elf::Executable;
use solana_sbpf::error::ProgramResult;
use solana_sbpf::memory_region::{MemoryMapping, MemoryRegion};
use solana_sbpf::program::{BuiltinProgram, FunctionRegistry, SBPFVersion};
use solana_sbpf::verifier::RequisiteVerifier;
use solana_sbpf::vm::{Config, ContextObject, EbpfVm, ExecutionMode};

const HELPER: &str = "bench_helper";
/// The helper that workloads call, as a number in their bytecode.
const HELPER_ID: i32 = 42;
/// Instructions that a run may take.
const BUDGET: u64 = 1 << 40;

struct Context {
    mapping: MemoryMapping,
    remaining: u64,
}

impl ContextObject for Context {
    fn consume(&mut self, amount: u64) {
        self.remaining = self.remaining.saturating_sub(amount);
    }

    fn get_remaining(&self) -> u64 {
        self.remaining
    }

    fn active_mapping_ptr(&mut self) -> NonNull<MemoryMapping> {
        NonNull::from(&mut self.mapping)
    }
}

solana_sbpf::declare_builtin_function! {
    Helper,
    fn rust(
        _vm: &mut Context,
        _a: u64,
        _b: u64,
        _c: u64,
        _d: u64,
        _e: u64,
    ) -> Result<u64, Box<dyn std::error::Error>> {
        Ok(0)
    }
}

/// A program and what it runs on.
pub struct Sbpf {
    executable: Executable<Context>,
    vm: EbpfVm<'static, Context>,
    registers: [u64; 12],
}

impl Sbpf {
    /// A workload whose buffer its other program has filled; or why there is none.
    pub fn new(maps: usize, setup: &Program, work: &Program) -> Result<Sbpf, String> {
        if maps > 1 {
            return Err("it has no maps".into());
        }
        let buffer: &'static mut [u64] = vec![0u64; 2048].leak();
        let buffer = &raw mut *buffer;
        Sbpf::program(setup, buffer)?.run()?;
        Sbpf::program(work, buffer)
    }

    fn program(program: &Program, buffer: *mut [u64]) -> Result<Sbpf, String> {
        let config = Config::default();
        let version = SBPFVersion::V3;
        let mut loader = BuiltinProgram::new_loader(config.clone());
        loader.register_definition::<Helper>(HELPER).map_err(|e| e.to_string())?;
        let loader = Arc::new(loader);
        let mut insns = program.insns.to_vec();
        for i in 0..insns.len() {
            let insn = insns[i];
            if insn.is_ld_imm64() && insn.src() == pseudo::MAP_IDX_VALUE {
                let at = MM_HEAP_START + u64::from(insns[i + 1].imm as u32);
                insns[i] = Insn::new(insn.code, insn.dst(), 0, 0, at as i32);
                insns[i + 1].imm = (at >> 32) as i32;
            } else if insn.is_helper_call() && insn.imm == HELPER_ID {
                insns[i].imm = hash_symbol_name(HELPER.as_bytes()) as i32;
            }
        }
        let text: Vec<u8> = insns.iter().flat_map(|i| i.to_bytes()).collect();
        let executable = Executable::from_text_bytes(&text, Arc::clone(&loader), version, FunctionRegistry::default())
            .map_err(|e| e.to_string())?;
        executable.verify::<RequisiteVerifier>().map_err(|e| e.to_string())?;
        executable.jit_compile().map_err(|e| e.to_string())?;
        let bytes = config.stack_size();
        let stack: &'static mut [u8] = vec![0u8; bytes].leak();
        let heap = std::ptr::slice_from_raw_parts_mut(buffer.cast::<u8>(), 8 * buffer.len());
        let regions = vec![MemoryRegion::new(&raw mut *stack, MM_STACK_START), MemoryRegion::new(heap, MM_HEAP_START)];
        // SAFETY: both are leaked, and plain bytes that may be anything.
        let mapping = unsafe { MemoryMapping::new(regions, &config, version) }.map_err(|e| e.to_string())?;
        let context = Box::leak(Box::new(Context { mapping, remaining: BUDGET }));
        let vm = EbpfVm::new(loader, version, context, bytes);
        let registers = vm.registers;
        Ok(Sbpf { executable, vm, registers })
    }

    /// What a run returns.
    pub fn run(&mut self) -> Result<u64, String> {
        self.vm.registers = self.registers;
        self.vm.context().remaining = BUDGET;
        match self.vm.execute_program(&self.executable, &mut ExecutionMode::Jit, &mut []).1 {
            ProgramResult::Ok(value) => Ok(value),
            ProgramResult::Err(e) => Err(e.to_string()),
        }
    }
}
