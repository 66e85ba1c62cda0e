//! From a verified program to one that runs.
//!
//! [`compile`] is the only way to a [`Compiled`], and takes a [`Verified`]: what was not verified cannot be run. A
//! [`Compiled`] holds decoded bytecode for the interpreter, or machine code.

mod around;
mod calls;
mod error;
#[cfg(target_arch = "x86_64")]
mod exec;
mod fuse;
mod lower;
mod marks;
mod special;
mod tuning;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::io;
use std::sync::{Arc, OnceLock};

use skep_ebpf::Insn;
use skep_ebpf::insn::{EXIT, alu, class};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::ProgType;
use skep_runtime::around::MAX_ARGS;
use skep_runtime::env::{EXTENSION_STACK, STACK_BYTES};
use skep_runtime::image::{ALONE, CODE_OFFSET, FEW, IMAGE_MAGIC, Image, NATIVE, UNWINDS};
use skep_runtime::session::FunctionCell;
use skep_verifier::rewrite::Memory;
use skep_verifier::{Rewritten, Verified};

pub use around::{Around, Place, around};
pub use error::CompileError;
use tuning::Tuning;

/// What runs a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// The interpreter.
    #[cfg_attr(not(target_arch = "x86_64"), default)]
    Interpreter,
    /// Machine code.
    #[cfg_attr(target_arch = "x86_64", default)]
    Jit,
}

impl Engine {
    /// The name that the command line uses.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Interpreter => "interp",
            Engine::Jit => "jit",
        }
    }
}

/// How to compile.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// What is to run the program.
    pub engine: Engine,
    /// Where the program's maps stand in the table of maps that it runs with.
    pub maps: MapIndices,
    /// Machine code obeys the run-time budget: it ends at its next jump back, call or helper when that is spent. (The
    /// interpreter always does.)
    pub budget: bool,
    /// With `budget`: the time of runs may be limited, too.
    pub time: bool,
    /// Machine code without loops that takes no more than this from the budget is not counted.
    pub uncounted: u32,
    /// Numbers of the program do not stand in machine code as they are, so that nobody can smuggle in instructions.
    pub harden: bool,
    /// A program of machine code gets an image of bytecode, too, for processes where machine code cannot be executed.
    pub bytecode: bool,
    /// Functions of the program are called through cells, so that others can take their place: where that of the first
    /// one behind the main function is, from the head of the control arena. The others' follow.
    pub cells: Option<u32>,
    /// The program takes the place of a function: other code calls its main function, with that function's arguments.
    /// What it is run as: the type of the program that it extends.
    pub extends: Option<ProgType>,
}

impl Options {
    /// Where the cell of function `n` is, if it has one.
    fn cell_of(&self, n: usize) -> Option<i32> {
        let behind_main = i32::try_from(n).ok()?.checked_sub(1).filter(|n| *n >= 0)?;
        i32::try_from(self.cells?).ok()?.checked_add(behind_main.checked_mul(size_of::<FunctionCell>() as i32)?)
    }
}

/// Indices of a program's maps in the table of maps that it runs with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapIndices {
    /// All of them, in their order, from this one on.
    From(u32),
    /// Each one's.
    Each(Arc<[u32]>),
}

impl Default for MapIndices {
    fn default() -> MapIndices {
        MapIndices::From(0)
    }
}

impl MapIndices {
    /// The index of the program's map `n`.
    fn of(&self, n: u32) -> Option<u32> {
        match self {
            MapIndices::From(first) => first.checked_add(n),
            MapIndices::Each(all) => all.get(n as usize).copied(),
        }
    }
}

/// A program that can be run: an image, and what its owner needs to know of it.
#[derive(Clone, Debug)]
pub struct Compiled {
    words: Vec<u64>,
    /// Of a program of machine code, its image of bytecode.
    bytecode: Vec<u64>,
    /// See [`Compiled::context`].
    context: Context,
    name: String,
    prog_type: ProgType,
    engine: Engine,
    helpers: Vec<u32>,
    maps: Vec<u32>,
    /// Where its functions begin, in the image, and in that of bytecode.
    functions: Vec<u32>,
    bytecode_functions: Vec<u32>,
    few: bool,
    native: Option<Native>,
    /// It only stands in for the program.
    idle: bool,
    /// The image where it can be executed.
    exec: Arc<OnceLock<exec::Exec>>,
}

/// What is known of a program's machine code.
#[derive(Clone, Debug)]
struct Native {
    /// Its bytes.
    len: usize,
    /// Where that of each instruction begins: by what was noted, and for those who ask.
    #[cfg(target_arch = "x86_64")]
    places: Arc<x86_64::Places>,
    insns: usize,
    offsets: OnceLock<Arc<[Option<u32>]>>,
    /// Where that of each function begins.
    functions: Arc<[u32]>,
}

impl Native {
    fn offsets(&self) -> &[Option<u32>] {
        #[cfg(target_arch = "x86_64")]
        return self.offsets.get_or_init(|| self.places.of_insns(self.insns).collect());
        #[cfg(not(target_arch = "x86_64"))]
        return self.offsets.get_or_init(|| vec![None; self.insns].into());
    }
}

impl Compiled {
    /// The image: position independent, to be placed at a multiple of
    /// [`IMAGE_ALIGN`](skep_runtime::image::IMAGE_ALIGN) in a control arena.
    pub fn image(&self) -> &[u8] {
        bytes(&self.words)
    }

    /// For a program of machine code: an image that does the same where machine code cannot be executed.
    pub fn bytecode_image(&self) -> Option<&[u8]> {
        (!self.bytecode.is_empty()).then(|| bytes(&self.bytecode))
    }

    /// True if its machine code calls nothing and leaves r9, r10 and r11 as they are.
    pub fn changes_few(&self) -> bool {
        self.few
    }

    /// What it reads of its context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The image in private memory, as [`Machine::run_image`](skep_runtime::Machine::run_image) takes it. Valid for as
    /// long as this value or a clone of it is. The first call of a program of machine code maps memory for it.
    pub fn image_ptr(&self) -> io::Result<*const Image> {
        if self.native.is_none() {
            return Ok(self.words.as_ptr().cast());
        }
        if let Some(exec) = self.exec.get() {
            return Ok(exec.ptr().cast());
        }
        let exec = exec::Exec::new(self.image())?;
        Ok(self.exec.get_or_init(|| exec).ptr().cast())
    }

    /// Its machine code, if it has any.
    pub fn machine_code(&self) -> Option<&[u8]> {
        let len = self.native.as_ref()?.len;
        self.image().get(CODE_OFFSET..CODE_OFFSET + len)
    }

    /// Where the machine code of each instruction of the rewritten program begins; none for those that have none.
    pub fn code_offsets(&self) -> &[Option<u32>] {
        self.native.as_ref().map_or(&[], Native::offsets)
    }

    /// Where the machine code of each function begins, in order.
    pub fn function_offsets(&self) -> &[u32] {
        self.native.as_ref().map_or(&[], |n| &n.functions)
    }

    /// Where the code of each function begins, from the head of the image, by their numbers in the program as loaded; the
    /// main one's is where other code calls it.
    pub fn functions(&self) -> &[u32] {
        &self.functions
    }

    /// The same in the image of bytecode.
    pub fn bytecode_functions(&self) -> &[u32] {
        &self.bytecode_functions
    }

    /// The head of the image.
    pub fn head(&self) -> Image {
        // SAFETY: an image begins with its head, and the words are aligned.
        unsafe { self.words.as_ptr().cast::<Image>().read_unaligned() }
    }

    /// C function name of the program.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Program type.
    pub fn prog_type(&self) -> ProgType {
        self.prog_type
    }

    /// True if it only stands in for a program ([`compile_idle`]).
    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// What runs it.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Numbers of the helpers that it calls, sorted.
    pub fn helpers(&self) -> &[u32] {
        &self.helpers
    }

    /// Indices of the maps that it names, in the program's own list, sorted.
    pub fn maps(&self) -> &[u32] {
        &self.maps
    }
}

/// What a program reads of its context.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Context {
    /// Perhaps all of it: its address goes to helpers or other programs.
    #[default]
    All,
    /// These bytes: the first, and the one behind the last.
    Parts(Vec<(u32, u32)>),
}

fn bytes(words: &[u64]) -> &[u8] {
    // SAFETY: the bytes of the words; any byte is a valid `u8`.
    unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8) }
}

/// Makes a verified program ready to run.
pub fn compile(verified: &Verified, options: &Options) -> Result<Compiled, CompileError> {
    compile_with(verified, options, &Tuning::of(options))
}

/// What stands in for a program that cannot be run: it returns 0. Its functions are there for what is attached to them, and
/// nobody calls them.
pub fn compile_idle(verified: &Verified, options: &Options) -> Result<Compiled, CompileError> {
    let program = verified.program();
    let insns = [Insn::new(class::ALU64 | alu::MOV, 0, 0, 0, 0), Insn::new(EXIT, 0, 0, 0, 0)];
    let subprogs = [calls::Subprog { start: 0, stack: 0, args: MAX_ARGS as u8, number: 0 }];
    let source = Source {
        name: &program.name,
        prog_type: options.extends.unwrap_or(program.prog_type),
        insns: &insns,
        subprogs: &subprogs,
        marks: &marks::marks(&insns),
        maps: &program.maps,
        known: None,
        special: &special::NONE,
    };
    let mut compiled = translate_with(&source, options, &Tuning::of(options))?;
    compiled.idle = true;
    compiled.context = Context::Parts(Vec::new());
    let all = verified.subprogs().len().max(1);
    for functions in [&mut compiled.functions, &mut compiled.bytecode_functions] {
        if !functions.is_empty() {
            functions.resize(all, CODE_OFFSET as u32);
        }
    }
    Ok(compiled)
}

fn compile_with(verified: &Verified, options: &Options, tuning: &Tuning) -> Result<Compiled, CompileError> {
    let program = verified.program();
    if let Some(need) = verified.needs_kernel() {
        let (program, what) = (program.name.clone(), need.what.clone());
        return Err(CompileError::Kernel { program, insn: need.insn, what });
    }
    let known = verified.rewritten();
    let at_origin = |insn: u32| known.origin(insn as usize);
    let marks = marks::marks(known.insns());
    let special = special::Special::of(verified, &marks).map_err(|e| e.at(at_origin))?;
    let all = verified.subprogs();
    let subprog = |f: &skep_verifier::rewrite::Function| {
        let rounds = if f.may_goto { calls::MAY_GOTO_STACK } else { 0 };
        let origin = known.origin(f.start as usize).unwrap_or(0);
        let number = all.partition_point(|s| s.start <= origin).saturating_sub(1);
        // A global function's type says what its arguments are.
        let args = verified.function_args(number).filter(|_| all.get(number).is_some_and(|s| s.global));
        let args = args.unwrap_or(MAX_ARGS as u8);
        calls::Subprog { start: f.start, stack: f.stack_depth + rounds, args, number: number as u32 }
    };
    let subprogs: Vec<calls::Subprog> = known.functions().iter().map(subprog).collect();
    let source = Source {
        name: &program.name,
        prog_type: options.extends.unwrap_or(program.prog_type),
        insns: known.insns(),
        subprogs: &subprogs,
        marks: &marks,
        maps: &program.maps,
        known: Some(known),
        special: &special,
    };
    // Pointers of a process may lead anywhere in it: such loads are made with care, by the interpreter.
    let anywhere = verified.is_for_process() && known.reads_guarded();
    let options = &Options { engine: if anywhere { Engine::Interpreter } else { options.engine }, ..options.clone() };
    // What is said of instructions is for those who wrote them.
    let mut compiled = translate_with(&source, options, tuning).map_err(|e| e.at(at_origin))?;
    if !known.ctx_by_address() {
        compiled.context = Context::Parts(verified.ctx_reads().to_vec());
    }
    Ok(compiled)
}

/// What is compiled.
struct Source<'a> {
    name: &'a str,
    prog_type: ProgType,
    insns: &'a [skep_ebpf::Insn],
    subprogs: &'a [calls::Subprog],
    /// Those that are more than arithmetic and accesses to memory.
    marks: &'a [u32],
    maps: &'a [MapDef],
    /// What the verifier knows of the instructions.
    known: Option<&'a Rewritten>,
    special: &'a special::Special,
}

impl Source<'_> {
    /// True if an instruction accesses a kernel object, which may not be there.
    fn is_object_access(&self, insn: usize) -> bool {
        self.known.is_some_and(|known| known.facts(insn).memory == Memory::Guarded)
    }
}

/// Compiles bytecode that nothing is known of.
#[cfg(test)]
fn translate(source: &Source<'_>, options: &Options) -> Result<Compiled, CompileError> {
    translate_with(source, options, &Tuning::of(options))
}

fn translate_with(source: &Source<'_>, options: &Options, tuning: &Tuning) -> Result<Compiled, CompileError> {
    let chain = calls::longest_chain(source, if options.extends.is_some() { EXTENSION_STACK } else { STACK_BYTES })?;
    let mut lowered = lower::lower(source, options)?;
    let (mut image, mut functions) = (Vec::new(), Vec::new());
    let mut head = Head {
        name: source.name,
        prog_type: source.prog_type,
        slots: 0,
        stack: chain.stack,
        frames: chain.frames,
        flags: 0,
        nmaps: lowered.nmaps,
        may_goto: lowered.may_goto,
        entry: None,
    };
    let extends = options.extends.is_some();
    if options.engine == Engine::Interpreter || options.bytecode {
        fuse::fuse(&mut lowered.code);
        functions = lower::entries(source, options, &mut lowered.code);
        let mut code = Vec::with_capacity(lowered.code.len() * 8);
        for c in &lowered.code {
            code.extend([c.op as u8, c.dst]);
            code.extend(c.a.to_ne_bytes());
            code.extend(c.imm.to_ne_bytes());
        }
        head.slots = lowered.code.len() as u32;
        head.entry = functions.first().copied().filter(|_| extends);
        image = words(&head, &code);
    }
    let (mut bytecode, mut bytecode_functions, mut native) = (Vec::new(), Vec::new(), None);
    match options.engine {
        Engine::Interpreter => {}
        #[cfg(target_arch = "x86_64")]
        Engine::Jit => {
            let made = x86_64::translate(source, options, tuning);
            let flags = [(true, NATIVE), (made.unwinds, UNWINDS), (made.alone, ALONE), (made.few, FEW)];
            let flags = flags.iter().filter(|(is, _)| *is).fold(0, |all, (_, flag)| all | flag);
            let code = made.code;
            native = Some(Native {
                len: code.len(),
                places: made.places.into(),
                insns: source.insns.len(),
                offsets: OnceLock::new(),
                functions: made.functions.into(),
            });
            (head.slots, head.flags) = (code.len() as u32, flags);
            head.entry = made.entries.first().copied().filter(|_| extends);
            bytecode = std::mem::replace(&mut image, words(&head, &code));
            bytecode_functions = std::mem::replace(&mut functions, made.entries);
        }
        #[cfg(not(target_arch = "x86_64"))]
        Engine::Jit => return Err(CompileError::NoMachineCode { program: source.name.into() }),
    }
    Ok(Compiled {
        words: image,
        bytecode,
        context: Context::All,
        name: source.name.into(),
        prog_type: source.prog_type,
        engine: options.engine,
        helpers: lowered.helpers.into_iter().collect(),
        maps: lowered.maps.into_iter().collect(),
        functions: by_number(source, &functions),
        bytecode_functions: by_number(source, &bytecode_functions),
        few: head.flags & FEW != 0,
        native,
        idle: false,
        exec: Arc::default(),
    })
}

/// Where the functions are that there are, by their numbers in the program as loaded.
fn by_number(source: &Source<'_>, functions: &[u32]) -> Vec<u32> {
    let last = source.subprogs.iter().map(|s| s.number as usize).max().unwrap_or(0);
    let mut all = vec![CODE_OFFSET as u32; last + 1];
    for (subprog, at) in source.subprogs.iter().zip(functions) {
        if let Some(place) = all.get_mut(subprog.number as usize) {
            *place = at + CODE_OFFSET as u32;
        }
    }
    all
}

/// What stands in the head of an image.
struct Head<'a> {
    name: &'a str,
    prog_type: ProgType,
    slots: u32,
    stack: u32,
    frames: u32,
    flags: u32,
    nmaps: u32,
    may_goto: u8,
    /// Where other code calls its main function.
    entry: Option<u32>,
}

/// Head and code of an image.
fn words(head: &Head<'_>, code: &[u8]) -> Vec<u64> {
    let mut name = [0u8; 16];
    for (to, from) in name.iter_mut().take(15).zip(head.name.bytes()) {
        *to = from;
    }
    let size = (CODE_OFFSET + code.len()).next_multiple_of(8);
    let mut bytes = Vec::with_capacity(size);
    for field in [IMAGE_MAGIC, size as u32, head.slots, head.prog_type as u32, head.stack, head.frames] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(name);
    for field in [head.flags, head.nmaps, u32::from(head.may_goto), head.entry.unwrap_or(u32::MAX)] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.resize(CODE_OFFSET, 0);
    bytes.extend(code);
    bytes.resize(size, 0xcc);
    bytes.as_chunks().0.iter().map(|c| u64::from_ne_bytes(*c)).collect()
}

// The suites' support names this crate as others do.
#[cfg(test)]
extern crate self as skep_jit;
#[cfg(test)]
mod tests;
