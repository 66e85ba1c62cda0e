//! A hook: the programs attached to it, and calls of them.

use std::marker::PhantomData;
use std::ops::{ControlFlow, RangeInclusive};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_runtime::Machine;
use skep_verifier::HostContext;

use super::context::{self, Context, ContextDef};
use super::function::{self, FunctionDef};
use super::plugin::{Program, ProgramCell};
use super::{Host, HostError, HostFunctions};
use crate::front::world::World;

/// What programs of a hook may return and take, and when the next one is asked.
#[derive(Clone, Debug)]
pub struct HookOptions {
    /// What programs may return; any number if `None`. The verifier holds them to it.
    pub returns: Option<RangeInclusive<i32>>,
    /// Most back edges, calls and helper calls of one run; 0 for no limit but the verifier's. A program above it ends
    /// there and then. Numbers below 1,024 stand for that: no program needs to count up to there that has no loops.
    pub budget: u64,
    /// Most time of one run, looked at every 4,096 back edges, calls and helper calls, from the first such look on: a run
    /// that needs no more than these costs nothing. Time in functions of the application counts. `None` for no limit.
    pub time: Option<Duration>,
    /// After which results the next program is asked.
    pub proceed: Proceed,
    /// What programs may call. A name that several have is the first one's.
    pub functions: Vec<HostFunctions>,
}

impl Default for HookOptions {
    fn default() -> HookOptions {
        HookOptions { returns: None, budget: 1 << 20, time: None, proceed: Proceed::Always, functions: Vec::new() }
    }
}

/// What no run is denied.
pub(super) const LEAST_BUDGET: u64 = 1024;

/// After which results [`Hook::call`] goes on to the next program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proceed {
    /// After any: all programs run.
    Always,
    /// After these numbers; any other one is the answer.
    After(Vec<i32>),
}

impl Proceed {
    fn goes_on(&self, value: i32) -> bool {
        match self {
            Proceed::Always => true,
            Proceed::After(values) => values.contains(&value),
        }
    }
}

/// What the programs of a hook said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What the last one that ran to its end returned; `None` if none did.
    pub value: Option<i32>,
    /// Programs that were run.
    pub ran: u32,
    /// Those of them that spent their budget. They say nothing: the next one is asked.
    pub over_budget: u32,
}

/// All slots of the host were taken ([`super::HostOptions::slots`]): more threads call hooks than it has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all slots of the host are taken")]
pub struct Busy;

/// A program spent its budget, and was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the program spent its budget")]
pub struct OverBudget;

/// A place where an application asks programs. A handle: clones are the same hook.
///
/// It is covariant in its context: a `Hook<Request<'static>>`, which can be kept anywhere, is called with requests that
/// borrow for shorter.
pub struct Hook<C> {
    core: Arc<Core>,
    context: PhantomData<fn() -> C>,
}

impl<C> Clone for Hook<C> {
    fn clone(&self) -> Hook<C> {
        Hook { core: Arc::clone(&self.core), context: PhantomData }
    }
}

impl<C> std::fmt::Debug for Hook<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("name", &self.core.context.hook).finish_non_exhaustive()
    }
}

pub(super) struct Core {
    host: Host,
    /// The host's, at hand.
    world: Arc<World>,
    context: Arc<HostContext>,
    options: HookOptions,
    /// Nanoseconds of one run, or 0.
    time: u64,
    /// What is attached, in order; null if nothing is. Runs look at it on their slot; what is replaced is retired.
    chain: AtomicPtr<Vec<Entry>>,
    /// Held by who changes the chain, or looks at it without a slot.
    changing: Mutex<()>,
    next: AtomicU64,
}

#[derive(Clone)]
struct Entry {
    number: u64,
    priority: i32,
    program: Arc<ProgramCell>,
}

/// A program is attached to a hook for as long as this lives.
#[must_use = "the program is detached when this is dropped"]
pub struct Attachment {
    core: Arc<Core>,
    number: u64,
    program: Arc<ProgramCell>,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (hook, program) = (&self.core.context.hook, self.program.name());
        f.debug_struct("Attachment").field("hook", hook).field("program", &program).finish_non_exhaustive()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.core.change(|chain| chain.retain(|e| e.number != self.number));
        self.program.detached(&self.core.context.hook);
    }
}

impl Core {
    fn change(&self, change: impl FnOnce(&mut Vec<Entry>)) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.chain.load(Ordering::Acquire);
        // SAFETY: only who holds the lock replaces it.
        let mut chain = unsafe { old.as_ref() }.cloned().unwrap_or_default();
        change(&mut chain);
        let new = if chain.is_empty() { ptr::null_mut() } else { Box::into_raw(Box::new(chain)) };
        self.chain.store(new, Ordering::SeqCst);
        if !old.is_null() {
            // SAFETY: it came from a box, and nobody finds it any more; runs that have are waited for.
            self.world.retire_value(unsafe { Box::from_raw(old) });
        }
    }
}

impl Core {
    #[inline]
    fn is_empty(&self) -> bool {
        self.chain.load(Ordering::Relaxed).is_null()
    }

    /// What is attached.
    ///
    /// # Safety
    /// Only in a run, and for as long as that goes on: what stands here is retired when it is replaced.
    #[inline]
    unsafe fn entries(&self) -> &[Entry] {
        // SAFETY: the caller's promise.
        unsafe { self.chain.load(Ordering::Acquire).as_ref() }.map_or(&[], Vec::as_slice)
    }

    /// Runs one program.
    ///
    /// # Safety
    /// As [`Core::entries`]; the context is one of the hook's, and nobody else's.
    #[inline]
    unsafe fn run(&self, machine: &mut Machine, program: &ProgramCell, context: *mut u8) -> Result<i32, OverBudget> {
        // SAFETY: the program was verified for such contexts; it was loaded into this host's world.
        let run = unsafe {
            match self.time {
                0 => machine.run_budgeted(program.image(), context, self.options.budget),
                time => machine.run_timed(program.image(), context, self.options.budget, time),
            }
        };
        if run.over_budget {
            program.count_over_budget();
            function::let_go(machine.env());
            return Err(OverBudget);
        }
        Ok(run.retval as i32)
    }

    /// Runs the programs until one gives an answer.
    ///
    /// # Safety
    /// As [`Core::run`].
    #[inline]
    unsafe fn verdict(&self, machine: &mut Machine, context: *mut u8) -> Words {
        // SAFETY: the caller's promises.
        unsafe {
            let entries = self.entries();
            let [only] = entries else { return self.verdict_of(entries, machine, context) };
            match self.run(machine, &only.program, context) {
                Ok(value) => Words::new(Some(value), 1, 0),
                Err(OverBudget) => Words::new(None, 1, 1),
            }
        }
    }

    /// As [`Core::verdict`], of any number of programs.
    ///
    /// # Safety
    /// As [`Core::run`].
    #[inline(never)]
    unsafe fn verdict_of(&self, entries: &[Entry], machine: &mut Machine, context: *mut u8) -> Words {
        let (mut last, mut ran, mut over_budget) = (None, 0, 0);
        for entry in entries {
            ran += 1;
            // SAFETY: the caller's promise.
            match unsafe { self.run(machine, &entry.program, context) } {
                Ok(value) => {
                    last = Some(value);
                    if !self.options.proceed.goes_on(value) {
                        break;
                    }
                }
                Err(OverBudget) => over_budget += 1,
            }
        }
        Words::new(last, ran, over_budget)
    }
}

/// A [`Verdict`] on its way out of a run. In whole words: halves that are stored apart and loaded together cost more than
/// all the rest.
#[derive(Clone, Copy)]
struct Words {
    /// The value, with a bit above it if there is one.
    value: u64,
    counts: u64,
}

impl Words {
    #[inline]
    fn new(value: Option<i32>, ran: u32, over_budget: u32) -> Words {
        let value = value.map_or(0, |v| 1 << 32 | u64::from(v as u32));
        Words { value, counts: u64::from(over_budget) << 32 | u64::from(ran) }
    }

    #[inline]
    fn verdict(self) -> Verdict {
        let value = (self.value >> 32 != 0).then_some(self.value as i32);
        Verdict { value, ran: self.counts as u32, over_budget: (self.counts >> 32) as u32 }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let chain = *self.chain.get_mut();
        if !chain.is_null() {
            // SAFETY: it came from a box; calls hold the core.
            drop(unsafe { Box::from_raw(chain) });
        }
    }
}

impl<C> Hook<C> {
    pub(super) fn new(host: Host, name: &str, context: &ContextDef<'_>, mut options: HookOptions) -> Hook<C> {
        if options.budget != 0 {
            options.budget = options.budget.max(LEAST_BUDGET);
        }
        let functions = options.functions.iter().flat_map(HostFunctions::described).collect();
        let returns = options.returns.as_ref().map(|r| (*r.start(), *r.end()));
        let core = Core {
            world: Arc::clone(host.subsystem().world()),
            host,
            context: Arc::new(context::described(context, name, returns, functions)),
            time: options.time.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX).max(1)),
            options,
            chain: AtomicPtr::default(),
            changing: Mutex::default(),
            next: AtomicU64::new(0),
        };
        Hook { core: Arc::new(core), context: PhantomData }
    }

    /// Runs one program that was verified for this hook.
    ///
    /// # Safety
    /// The machine is one of the host's in a run; the program is of this hook, and found in this run; the context is a `C` that
    /// nobody else has.
    #[inline]
    pub(super) unsafe fn run(
        &self,
        machine: &mut Machine,
        program: &ProgramCell,
        context: *mut u8,
    ) -> Result<i32, OverBudget> {
        // SAFETY: the caller's promise.
        unsafe { self.core.run(machine, program, context) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.core.context.hook
    }

    /// What programs must be verified with: [`skep_verifier::Options::host`].
    pub fn context(&self) -> &Arc<HostContext> {
        &self.core.context
    }

    /// What programs may call.
    pub fn functions(&self) -> impl Iterator<Item = &FunctionDef> {
        self.core.options.functions.iter().flat_map(HostFunctions::definitions)
    }

    /// Attaches a program. Those with lower priority numbers run first; among equals, those attached first.
    ///
    /// Calls that begin after this has returned run it. `call`s are never made to wait.
    pub fn attach(&self, program: &Program, priority: i32) -> Result<Attachment, HostError> {
        let cell = program.cell();
        let (hook, name) = (self.name().to_owned(), cell.name().to_owned());
        if !cell.host().is(&self.core.host) {
            return Err(HostError::OtherHost { program: name, hook });
        }
        if **cell.context() != *self.core.context {
            let its = cell.context().hook.clone();
            return Err(HostError::OtherHook { program: name, its, hook });
        }
        let number = self.core.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { number, priority, program: Arc::clone(cell) };
        cell.attached(&hook);
        self.core.change(|chain| {
            let at = chain.partition_point(|e| e.priority <= priority);
            chain.insert(at, entry);
        });
        Ok(Attachment { core: Arc::clone(&self.core), number, program: Arc::clone(cell) })
    }

    /// Programs that are attached: priority and name, in the order in which they run.
    pub fn programs(&self) -> Vec<(i32, String)> {
        let _changing = self.core.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: it is replaced under the lock only.
        let chain = unsafe { self.core.chain.load(Ordering::Acquire).as_ref() };
        chain.into_iter().flatten().map(|e| (e.priority, e.program.name().to_owned())).collect()
    }

    /// As [`Hook::call`], for a context that only the application knows.
    ///
    /// # Safety
    /// `context` is one as the hook was made for, and nobody else accesses it meanwhile; pairs of pointers in it enclose
    /// bytes that can be read (written, if the member says so) and are not written by others meanwhile.
    #[inline]
    pub unsafe fn call_raw(&self, context: *mut u8) -> Result<Verdict, Busy> {
        let core = &*self.core;
        if core.is_empty() {
            return Ok(Verdict::default());
        }
        // SAFETY: as in `each`; of the context the caller promises it.
        let words = core.world.enter(move |machine| unsafe { core.verdict(machine, context) });
        words.map(Words::verdict).ok_or(Busy)
    }
}

impl<C: Context> Hook<C> {
    /// Runs the programs on a context, one after the other, and hands each one's name and result to `each`, which says
    /// whether to go on. Never blocks.
    pub fn each(
        &self,
        context: &mut C,
        mut each: impl FnMut(&str, Result<i32, OverBudget>) -> ControlFlow<()>,
    ) -> Result<(), Busy> {
        let core = &*self.core;
        if core.is_empty() {
            return Ok(());
        }
        let context: *mut C = context;
        let done = core.world.enter(|machine| {
            // SAFETY: the run is on the machine of this closure.
            for entry in unsafe { core.entries() } {
                // SAFETY: the program was verified for contexts as `C` describes itself, of which this is one, and
                // nobody else has it.
                let result = unsafe { core.run(machine, &entry.program, context.cast()) };
                if each(entry.program.name(), result).is_break() {
                    break;
                }
            }
        });
        done.ok_or(Busy)
    }

    /// Runs the programs on a context until one gives an answer ([`HookOptions::proceed`]). Never blocks.
    #[inline]
    pub fn call(&self, context: &mut C) -> Result<Verdict, Busy> {
        // SAFETY: it is a `C`, for which the hook was made, and this call has it alone.
        unsafe { self.call_raw(ptr::from_mut(context).cast()) }
    }
}
