//! The interpreter against the running kernel, instruction by instruction, and the rules of compilation.

mod agree;
mod isa;
#[path = "../../tests/support/kernel.rs"]
mod kernel;
mod maker;
mod random;
mod rng;
mod rules;
#[path = "../../tests/support/mod.rs"]
mod support;

use skep_ebpf::Insn;
use skep_ebpf::uapi::ProgType;
use skep_runtime::Machine;
use skep_runtime::session::{Control, MAGIC, NONE, SharedHead};

use crate::calls::Subprog;
use crate::{CompileError, Compiled, Engine, Options, Source, translate};

/// Compiles bytecode that the test answers for.
fn compile(prog_type: ProgType, insns: &[Insn]) -> Result<Compiled, CompileError> {
    compile_for(prog_type, insns, &Options { engine: Engine::Interpreter, ..Options::default() })
}

/// Options for machine code.
fn jit() -> Options {
    Options { engine: Engine::Jit, ..Options::default() }
}

/// Compiles for an engine.
fn compile_for(prog_type: ProgType, insns: &[Insn], options: &Options) -> Result<Compiled, CompileError> {
    let mut starts = vec![0u32];
    for (i, insn) in insns.iter().enumerate().filter(|(_, x)| x.is_subprog_call()) {
        starts.push((i as i32 + 1 + insn.imm) as u32);
    }
    starts.sort_unstable();
    starts.dedup();
    let subprogs: Vec<_> =
        starts.into_iter().zip(0..).map(|(start, number)| Subprog { start, stack: 128, args: 5, number }).collect();
    let special = &crate::special::NONE;
    let marks = &crate::marks::marks(insns);
    let subprogs = &subprogs;
    translate(&Source { name: "test", prog_type, insns, subprogs, marks, maps: &[], known: None, special }, options)
}

/// A session without maps, links and programs.
struct Session {
    control: Box<Control>,
    shared: Box<SharedHead>,
}

impl Session {
    fn new(budget: u64) -> Session {
        // SAFETY: all zeros is a valid head.
        let mut control = unsafe { Box::<Control>::new_zeroed().assume_init() };
        // SAFETY: as above.
        let shared = unsafe { Box::<SharedHead>::new_zeroed().assume_init() };
        (control.magic, control.nslots, control.budget) = (MAGIC, 1, budget);
        (control.samples_map, control.printk_map) = (NONE, NONE);
        control.size = size_of::<Control>() as u64;
        Session { control, shared }
    }

    fn run(&self, program: &Compiled, ctx: &mut [u8]) -> skep_runtime::Run {
        // SAFETY: the session has no maps, and lives longer than the machine; the test answers for its bytecode.
        unsafe {
            let mut machine = Machine::new(&raw const *self.control, &raw const *self.shared, core::ptr::null(), 0);
            machine.run_image(program.image_ptr().unwrap(), ctx.as_mut_ptr())
        }
    }
}
