//! A hook: the programs attached to it, and calls of them.

use std::marker::PhantomData;
use std::ops::{ControlFlow, RangeInclusive};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use skep_verifier::HostContext;

use super::context::{self, Context};
use super::plugin::{Program, ProgramCell};
use super::{Host, HostError};

/// What programs of a hook may return and take, and when the next one is asked.
#[derive(Clone, Debug)]
pub struct HookOptions {
    /// What programs may return; any number if `None`. The verifier holds them to it.
    pub returns: Option<RangeInclusive<i32>>,
    /// Most back edges, calls and helper calls of one run; 0 for no limit but the verifier's. A program above it ends
    /// there and then.
    pub budget: u64,
    /// After which results the next program is asked.
    pub proceed: Proceed,
}

impl Default for HookOptions {
    fn default() -> HookOptions {
        HookOptions { returns: None, budget: 1 << 20, proceed: Proceed::Always }
    }
}

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
    context: Arc<HostContext>,
    options: HookOptions,
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
            self.host.subsystem().world().retire_value(unsafe { Box::from_raw(old) });
        }
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

impl<C: Context> Hook<C> {
    pub(super) fn new(host: Host, name: &str, options: HookOptions) -> Hook<C> {
        let returns = options.returns.as_ref().map(|r| (*r.start(), *r.end()));
        let core = Core {
            host,
            context: Arc::new(context::described::<C>(name, returns)),
            options,
            chain: AtomicPtr::default(),
            changing: Mutex::default(),
            next: AtomicU64::new(0),
        };
        Hook { core: Arc::new(core), context: PhantomData }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.core.context.hook
    }

    /// What programs must be verified with: [`skep_verifier::Options::host`].
    pub fn context(&self) -> &Arc<HostContext> {
        &self.core.context
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

    /// Runs the programs on a context, one after the other, and hands each one's name and result to `each`, which says
    /// whether to go on. Never blocks.
    pub fn each(
        &self,
        context: &mut C,
        mut each: impl FnMut(&str, Result<i32, OverBudget>) -> ControlFlow<()>,
    ) -> Result<(), Busy> {
        if self.core.chain.load(Ordering::Relaxed).is_null() {
            return Ok(());
        }
        let context: *mut C = context;
        let budget = self.core.options.budget;
        let done = self.core.host.subsystem().world().enter(|machine| {
            // SAFETY: what stands here is retired when it is replaced, so not freed while this run goes on.
            let chain = unsafe { self.core.chain.load(Ordering::Acquire).as_ref() };
            for entry in chain.into_iter().flatten() {
                // SAFETY: the program was verified for contexts as `C` describes itself, of which this is one, and
                // nobody else has it.
                let run = unsafe { machine.run_within(entry.program.place(), context.cast(), budget) };
                let Some(run) = run else { continue };
                let result = if run.over_budget { Err(OverBudget) } else { Ok(run.retval as i32) };
                if result.is_err() {
                    entry.program.count_over_budget();
                }
                if each(entry.program.name(), result).is_break() {
                    break;
                }
            }
        });
        done.ok_or(Busy)
    }

    /// Runs the programs on a context until one gives an answer ([`HookOptions::proceed`]). Never blocks.
    pub fn call(&self, context: &mut C) -> Result<Verdict, Busy> {
        let mut verdict = Verdict::default();
        self.each(context, |_, result| {
            verdict.ran += 1;
            match result {
                Ok(value) => {
                    verdict.value = Some(value);
                    if self.core.options.proceed.goes_on(value) {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                }
                Err(OverBudget) => {
                    verdict.over_budget += 1;
                    ControlFlow::Continue(())
                }
            }
        })?;
        Ok(verdict)
    }
}
