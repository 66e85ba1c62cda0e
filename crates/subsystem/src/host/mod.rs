//! Hooks of an application: places where it lets verified programs decide, replaced while it runs.
//!
//! A [`Host`] holds the memory that programs and maps share; a [`Tenant`] is charged for them; a [`Plugin`] is the
//! programs and maps of one object, which can be reloaded; a [`Hook`] is where the application calls those that are
//! attached to it. Nothing is global, and everything can be used from any thread.

mod context;
mod function;
mod hook;
mod ops;
mod plugin;

use std::any::TypeId;
use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::{io, ptr};

use skep_ebpf::Errno;
use skep_ebpf::kfunc::Kfunc;
use skep_jit::{CompileError, Engine};
use skep_maps::control::{MapError, RingConsumer};
use skep_runtime::env::HostFn;
use skep_runtime::session::PrintkRecord;
use skep_verifier::HostFunction;

pub use context::{
    Bytes, BytesMut, Context, ContextDef, Field, FieldDef, FieldType, Types, c_declaration, c_functions,
};
pub use function::{
    Argument, Function, FunctionDef, Functions, Memory, MemoryMut, Object, ParamType, Registers, ReturnType, Returned,
};
pub use hook::{Attachment, Busy, Hook, HookOptions, OverBudget, Proceed, Verdict};
pub use ops::{Op, OpError, OpResult, OpTable, OpTableBuilder, Registration};
pub use plugin::{Plugin, Program};

use crate::front::account::Accounts;
use crate::front::{Config, Limits, Subsystem};
use crate::symbols::Symbols;

/// What a host has room for.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Programs that can run at the same time; by default four per CPU, at least 64. A thread that finds no room is told
    /// so ([`Busy`]); it never waits.
    pub slots: u32,
    /// Most maps, and most programs.
    pub objects: u32,
    /// Bytes for code, of all programs together: address space, memory only where there is code.
    pub code_bytes: usize,
    /// What runs programs.
    pub engine: Engine,
    /// Numbers in machine code are blinded.
    pub harden: bool,
    /// Bytes of each slot's ring in a perf event array.
    pub perf_ring_bytes: u32,
    /// Bytes of the ring for lines of `trace_printk`.
    pub printk_bytes: u32,
    /// Profilers and debuggers that are told of machine code.
    pub symbols: Symbols,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        HostOptions {
            slots: cpus.saturating_mul(4).clamp(64, 1024),
            objects: 1 << 14,
            code_bytes: 256 << 20,
            engine: Engine::default(),
            harden: false,
            perf_ring_bytes: 1 << 16,
            printk_bytes: 1 << 16,
            symbols: Symbols::default(),
        }
    }
}

/// Why a plug-in could not be loaded, reloaded or attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is nothing to run.
    #[error("no program to load")]
    NoPrograms,
    /// The programs are of different objects.
    #[error("program `{program}` belongs to another object than `{first}`")]
    OtherObject {
        /// The program.
        program: String,
        /// The first one.
        first: String,
    },
    /// The program was not verified for a hook.
    #[error("program `{program}` is not for a hook of an application")]
    NoHook {
        /// The program.
        program: String,
    },
    /// The program was verified for another hook.
    #[error("program `{program}` is for the hook `{its}`, not for `{hook}`")]
    OtherHook {
        /// The program.
        program: String,
        /// The hook that it was verified for.
        its: String,
        /// The hook that it is to be attached to.
        hook: String,
    },
    /// The plug-in lives in another host than the hook.
    #[error("program `{program}` and the hook `{hook}` belong to different hosts")]
    OtherHost {
        /// The program.
        program: String,
        /// The hook.
        hook: String,
    },
    /// There is no program of that name.
    #[error("the plug-in has no program `{program}`")]
    NoSuchProgram {
        /// The name asked for.
        program: String,
    },
    /// A reload must bring every program that is attached.
    #[error("the new object has no program `{program}`, which is attached to the hook `{hook}`")]
    StillAttached {
        /// The program.
        program: String,
        /// The hook.
        hook: String,
    },
    /// The tenant has no memory left.
    #[error("{what} needs {bytes} bytes more than the quota of {quota} bytes leaves")]
    Quota {
        /// The map or program.
        what: String,
        /// What it needs.
        bytes: u64,
        /// The quota.
        quota: u64,
    },
    /// A map of this kind works only inside of a kernel, or between processes.
    #[error("map `{map}`: maps of type {kind} are not for plug-ins")]
    MapType {
        /// The map.
        map: String,
        /// Its type.
        kind: String,
    },
    /// A context is none.
    #[error("{problem}")]
    Context {
        /// What is wrong with it.
        problem: String,
    },
    /// A plug-in lacks an operation.
    #[error("the plug-in has no program for `{op}`")]
    MissingOp {
        /// The operation, as in the section of its programs.
        op: String,
    },
    /// Another plug-in has the table.
    #[error("the operations `{table}` are another plug-in's")]
    OpsTaken {
        /// The table.
        table: String,
    },
    /// Programs could not call this function.
    #[error("function `{function}`: {problem}")]
    Function {
        /// The function.
        function: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A map could not be made.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A program cannot be run here.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The host is full, or the system gives no memory.
    #[error("no room for {what}: {source}")]
    Room {
        /// The map or program.
        what: String,
        /// The error.
        source: io::Error,
    },
}

/// Most functions of a host.
const MAX_FUNCTIONS: usize = 1024;

fn no_room(what: &str) -> impl FnOnce(Errno) -> HostError + '_ {
    move |e| HostError::Room { what: what.to_owned(), source: io::Error::from_raw_os_error(e.0) }
}

/// The memory that plug-ins and hooks share. A handle: clones are the same host.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    subsystem: Subsystem,
    options: HostOptions,
    accounts: Arc<Accounts>,
    tenants: AtomicU32,
    printk: Mutex<Option<RingConsumer>>,
    functions: Mutex<Bindings>,
    /// The functions by number. Rows are written once, before a program that names them is verified.
    table: Box<[UnsafeCell<MaybeUninit<HostFn>>]>,
}

// SAFETY: rows of the table are written under the lock, before anybody is given their numbers; what they point to is
// `Send` and `Sync`.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// What stands behind the table of functions.
#[derive(Debug, Default)]
struct Bindings {
    kept: Vec<function::Keep>,
    objects: HashMap<&'static str, TypeId>,
}

/// Functions of the application, for hooks whose programs may call them ([`HookOptions::functions`]). A handle: clones are
/// the same functions.
#[derive(Clone, Debug)]
pub struct HostFunctions {
    host: Weak<Inner>,
    first: u32,
    defs: Arc<[FunctionDef]>,
}

impl HostFunctions {
    /// What programs are told of them.
    pub fn definitions(&self) -> &[FunctionDef] {
        &self.defs
    }

    /// What they are called in C.
    pub fn c_declarations(&self) -> String {
        c_functions(&self.defs)
    }

    /// What the verifier is told of them.
    fn described(&self) -> impl Iterator<Item = HostFunction> {
        let row = |def: &FunctionDef| Kfunc { name: def.name, flags: def.flags(), types: !0 };
        self.defs.iter().zip(self.first..).map(move |(def, index)| HostFunction { row: row(def), index })
    }
}

/// Who is charged for plug-ins: maps, and code. A handle: clones are the same tenant.
#[derive(Clone, Debug)]
pub struct Tenant {
    host: Host,
    number: u32,
    quota: u64,
}

impl Host {
    /// A host without plug-ins.
    pub fn new(options: HostOptions) -> io::Result<Host> {
        let limits = Limits {
            slots: options.slots.max(1),
            objects: options.objects.max(8),
            links: 16,
            functions: 0,
            images: options.code_bytes.next_multiple_of(4096),
            budget: 0,
            samples_bytes: 4096,
            printk_bytes: options.printk_bytes,
        };
        let symbols = options.symbols.clone();
        let config = Config { slots: limits.slots, engine: options.engine, symbols, ..Config::default() };
        let subsystem = Subsystem::with_limits(config, limits)?;
        let printk = subsystem.world().rings[1].ring_consumer().ok();
        let table: Box<[_]> = (0..MAX_FUNCTIONS).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
        subsystem.world().set_functions(table.as_ptr().cast());
        Ok(Host(Arc::new(Inner {
            functions: Mutex::default(),
            table,
            subsystem,
            options,
            accounts: Arc::default(),
            tenants: AtomicU32::new(0),
            printk: Mutex::new(printk),
        })))
    }

    /// A hook by which the application asks programs; `C` is the struct that they get.
    ///
    /// # Panics
    /// If `options` has functions of another host.
    pub fn hook<C: Context>(&self, name: &str, options: HookOptions) -> Hook<C> {
        let own = |f: &HostFunctions| ptr::eq(f.host.as_ptr(), &raw const *self.0);
        assert!(options.functions.iter().all(own), "hook {name}: functions of another host");
        Hook::new(self.clone(), name, &ContextDef::of::<C>(), options)
    }

    /// A hook for a context that only the application knows; it is called by [`Hook::call_raw`].
    ///
    /// # Errors
    /// [`HostError::Context`] if the context is none.
    pub fn hook_of(&self, name: &str, context: &ContextDef<'_>, options: HookOptions) -> Result<Hook<()>, HostError> {
        if let Some(problem) = context.problem() {
            return Err(HostError::Context { problem });
        }
        Ok(Hook::new(self.clone(), name, context, options))
    }

    /// A table of operations that one plug-in has at a time; `#[skep::host::ops]` makes one of a trait.
    pub fn op_table(&self, name: &str) -> OpTableBuilder {
        OpTableBuilder::new(self.clone(), name)
    }

    /// Functions of the application that programs may call, where a hook allows it ([`HookOptions::functions`]). They, and
    /// what they are called on, stay for as long as the host lives.
    ///
    /// # Errors
    /// [`HostError::Function`]: a function has more arguments than programs can pass, an object's name stands for another
    /// type already, or the host has no room for more functions (1,024).
    pub fn functions<T: Functions>(&self, this: &Arc<T>) -> Result<HostFunctions, HostError> {
        let mut bindings = self.0.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let first = bindings.kept.len();
        let mut objects = bindings.objects.clone();
        for (n, function) in T::FUNCTIONS.iter().enumerate() {
            let fault = |problem: String| HostError::Function { function: function.def.name, problem };
            if let Some(problem) = function.def.problem() {
                return Err(fault(problem.into()));
            }
            if first + n >= MAX_FUNCTIONS {
                return Err(fault(format!("the host has {MAX_FUNCTIONS} functions already")));
            }
            for (name, id) in function.def.objects() {
                if *objects.entry(name).or_insert(id) != id {
                    return Err(fault(format!("struct {name} stands for another type of this host's functions")));
                }
            }
        }
        bindings.objects = objects;
        for function in T::FUNCTIONS {
            let (row, keep) = function::bind(this, function);
            if let Some(place) = self.0.table.get(bindings.kept.len()) {
                // SAFETY: rows are written under the lock; no program knows of this one.
                unsafe { (*place.get()).write(row) };
            }
            bindings.kept.push(keep);
        }
        let defs = T::FUNCTIONS.iter().map(|f| f.def).collect();
        Ok(HostFunctions { host: Arc::downgrade(&self.0), first: first as u32, defs })
    }

    /// A tenant who may use this many bytes for maps and code.
    pub fn tenant(&self, quota: u64) -> Tenant {
        Tenant { host: self.clone(), number: self.0.tenants.fetch_add(1, Ordering::Relaxed), quota }
    }

    /// Hands on the lines that programs wrote by `trace_printk` since the last call; gives their number.
    pub fn printed(&self, mut each: impl FnMut(&PrintkRecord, &[u8])) -> usize {
        let mut ring = self.0.printk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = 0;
        if let Some(ring) = ring.as_mut() {
            // A ring that is out of order stays silent: nobody but this process writes it.
            let _ = ring.poll(|bytes| {
                if let Some((record, text)) = crate::events::printk(bytes) {
                    lines += 1;
                    each(&record, text);
                }
            });
        }
        lines
    }

    fn subsystem(&self) -> &Subsystem {
        &self.0.subsystem
    }

    fn is(&self, other: &Host) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Tenant {
    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Bytes that the tenant uses, in whole pages. Code that was replaced counts until no call is inside it.
    pub fn used(&self) -> u64 {
        self.host.subsystem().world().collect();
        self.host.0.accounts.pages(self.number) * crate::front::account::PAGE
    }

    /// Bytes that the tenant may use.
    pub fn quota(&self) -> u64 {
        self.quota
    }
}
