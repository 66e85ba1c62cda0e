//! Tables of operations: what an application leaves to one plug-in as a whole, as Linux does with `struct_ops`.

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use skep_verifier::HostContext;

use super::context::Context;
use super::hook::{Hook, HookOptions};
use super::plugin::{Plugin, ProgramCell};
use super::{Host, HostError};
use crate::front::world::World;

/// Why an operation gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// All slots of the host were taken; see [`super::Busy`].
    #[error("all slots of the host are taken")]
    Busy,
    /// The program spent its budget.
    #[error("the program spent its budget")]
    OverBudget,
}

/// What an operation gave; `None` if no plug-in has it.
pub type OpResult = Result<Option<i32>, OpError>;

/// An operation of a table, as programs are verified for it.
#[derive(Debug)]
struct OpDef {
    context: Arc<HostContext>,
    optional: bool,
}

/// Operations that one plug-in at a time has. A handle: clones are the same table.
#[derive(Clone, Debug)]
pub struct OpTable {
    core: Arc<Core>,
}

#[derive(Debug)]
struct Core {
    host: Host,
    world: Arc<World>,
    name: String,
    ops: Vec<OpDef>,
    /// The programs, by operation; null while there is no plug-in. Runs look at it on their slot; what is replaced is retired.
    programs: AtomicPtr<Vec<Option<Arc<ProgramCell>>>>,
    /// Held by who changes the table: true while it has a plug-in.
    taken: Mutex<bool>,
}

/// Makes an [`OpTable`]: operations are added, and then it is [finished](OpTableBuilder::finish).
pub struct OpTableBuilder {
    host: Host,
    name: String,
    ops: Vec<OpDef>,
    later: Arc<std::sync::OnceLock<Arc<Core>>>,
}

/// One operation. A handle: clones are the same operation. Covariant in its context, as a [`Hook`].
pub struct Op<C> {
    table: Arc<std::sync::OnceLock<Arc<Core>>>,
    index: usize,
    /// Only for its context and its options: no program is attached to it.
    hook: Hook<C>,
    context: PhantomData<fn() -> C>,
}

impl<C> Clone for Op<C> {
    fn clone(&self) -> Op<C> {
        Op { table: Arc::clone(&self.table), index: self.index, hook: self.hook.clone(), context: PhantomData }
    }
}

impl<C> std::fmt::Debug for Op<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Op").field("hook", &self.hook).finish_non_exhaustive()
    }
}

/// A plug-in has a table for as long as this lives.
#[must_use = "the table is given up when this is dropped"]
#[derive(Debug)]
pub struct Registration {
    core: Arc<Core>,
}

impl OpTableBuilder {
    pub(super) fn new(host: Host, name: &str) -> OpTableBuilder {
        OpTableBuilder { host, name: name.to_owned(), ops: Vec::new(), later: Arc::default() }
    }

    /// Adds an operation. Its programs are in section `hook/TABLE/OPERATION`. [`HookOptions::proceed`] says nothing here.
    pub fn op<C: Context>(&mut self, name: &str, optional: bool, options: HookOptions) -> Op<C> {
        let hook = self.host.hook::<C>(&format!("{}/{name}", self.name), options);
        self.ops.push(OpDef { context: Arc::clone(hook.context()), optional });
        Op { table: Arc::clone(&self.later), index: self.ops.len() - 1, hook, context: PhantomData }
    }

    /// The table; its operations can be called from now on.
    pub fn finish(self) -> OpTable {
        let core = Arc::new(Core {
            world: Arc::clone(self.host.subsystem().world()),
            host: self.host,
            name: self.name,
            ops: self.ops,
            programs: AtomicPtr::default(),
            taken: Mutex::new(false),
        });
        let core = Arc::clone(self.later.get_or_init(|| core));
        OpTable { core }
    }
}

impl Core {
    /// The plug-in's programs, by operation.
    fn programs_of(&self, plugin: &Plugin) -> Result<Vec<Option<Arc<ProgramCell>>>, HostError> {
        if !plugin.tenant().host().is(&self.host) {
            return Err(HostError::OtherHost { program: "all of them".into(), hook: self.name.clone() });
        }
        let program = |op: &OpDef| {
            let found = plugin.programs().find(|p| *p.cell().context() == op.context).map(|p| Arc::clone(p.cell()));
            if found.is_none() && !op.optional {
                return Err(HostError::MissingOp { op: op.context.hook.clone() });
            }
            Ok(found)
        };
        self.ops.iter().map(program).collect()
    }

    fn change(&self, programs: Option<Vec<Option<Arc<ProgramCell>>>>) {
        let note = |programs: &[Option<Arc<ProgramCell>>], each: fn(&ProgramCell, &str)| {
            for (program, op) in programs.iter().zip(&self.ops) {
                if let Some(program) = program {
                    each(program, &op.context.hook);
                }
            }
        };
        if let Some(programs) = &programs {
            note(programs, ProgramCell::attached);
        }
        let new = programs.map_or(ptr::null_mut(), |programs| Box::into_raw(Box::new(programs)));
        let old = self.programs.swap(new, Ordering::SeqCst);
        if !old.is_null() {
            // SAFETY: it came from a box, and nobody finds it any more; runs that have are waited for.
            let old = unsafe { Box::from_raw(old) };
            note(&old, ProgramCell::detached);
            self.world.retire_value(old);
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.change(None);
    }
}

impl OpTable {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Gives the table to a plug-in: its programs are what operations call from now on.
    ///
    /// # Errors
    /// [`HostError::OpsTaken`] while another one has it, [`HostError::MissingOp`] if the plug-in lacks an operation that is
    /// not optional.
    pub fn register(&self, plugin: &Plugin) -> Result<Registration, HostError> {
        let mut taken = self.core.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if *taken {
            return Err(HostError::OpsTaken { table: self.core.name.clone() });
        }
        self.core.change(Some(self.core.programs_of(plugin)?));
        *taken = true;
        Ok(Registration { core: Arc::clone(&self.core) })
    }
}

impl Registration {
    /// Gives the table to another plug-in, with all operations at one instant: calls that begin after this has returned run
    /// its programs. If this fails nothing has changed.
    ///
    /// # Errors
    /// As [`OpTable::register`].
    pub fn replace(&mut self, plugin: &Plugin) -> Result<(), HostError> {
        let _taken = self.core.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.core.change(Some(self.core.programs_of(plugin)?));
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut taken = self.core.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.core.change(None);
        *taken = false;
    }
}

impl<C: Context> Op<C> {
    /// The hook that programs for it are verified for.
    pub fn hook(&self) -> &Hook<C> {
        &self.hook
    }

    /// Calls the operation. Never blocks.
    #[inline]
    pub fn call(&self, context: &mut C) -> OpResult {
        let Some(core) = self.table.get() else { return Ok(None) };
        if core.programs.load(Ordering::Relaxed).is_null() {
            return Ok(None);
        }
        let context: *mut C = context;
        let done = core.world.enter(|machine| {
            // SAFETY: what stands here is retired when it is replaced, so not freed while this run goes on.
            let programs = unsafe { core.programs.load(Ordering::Acquire).as_ref() };
            let program = programs.and_then(|p| p.get(self.index)?.as_ref())?;
            // SAFETY: the program was verified for contexts as `C` describes itself, of which this is one, and nobody else
            // has it.
            Some(unsafe { self.hook.run(machine, program, context.cast()) })
        });
        match done {
            None => Err(OpError::Busy),
            Some(None) => Ok(None),
            Some(Some(result)) => result.map(Some).map_err(|_| OpError::OverBudget),
        }
    }
}
