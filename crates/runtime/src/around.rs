//! What stands in front of a function of a program: programs that run before it and after it, or another function.
//!
//! A function's cell ([`FunctionCell`](crate::session::FunctionCell)) leads to an image made for it: machine code, or for
//! the interpreter the operation [`Op::Around`](crate::op::Op::Around) with an [`Around`] behind the code.
//!
//! A process may have been attached to before a program that runs around one of its functions was: it does not have that
//! program's maps then. Each change that brings maps has a number, and a process knows the last one that it has the maps
//! of; where that is less, the function runs as if nothing were around it.

use core::sync::atomic::Ordering::Relaxed;

use crate::clock;
use crate::env::{Env, STACK_TOTAL};
use crate::interp::{self, Room};

/// Bytes of stack for what programs around a function get as their context, and what stands in front of it.
pub const CONTEXT: usize = 64;
/// Where the context begins in them.
pub const CONTEXT_HEAD: usize = 16;
/// Most arguments of a function.
pub const MAX_ARGS: usize = 5;
/// In the word in front of the context: the function has returned, its result is behind the arguments.
pub const RETURNED: u64 = 1 << 32;

/// A program that runs around a function.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Caller {
    /// What `get_attach_cookie` returns.
    pub cookie: u64,
    /// The index of its cell.
    pub prog: u32,
    /// Its runs are counted: the index, plus one, of the link that they are counted for. Else 0.
    pub counted: u32,
}

/// What runs around a function, for the interpreter; the [`Caller`]s follow: those before, then those behind.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Around {
    /// The number of the change: see the head of this module.
    pub change: u64,
    /// Where the function's code is, from the head of the control arena.
    pub body: u64,
    /// What is called where the change has not arrived, or where stack is short.
    pub otherwise: u64,
    /// What programs see as the function's address.
    pub ip: u64,
    /// Bytes of stack that must be there.
    pub stack: u32,
    /// Frames that must be there.
    pub frames: u32,
    /// Arguments of the function.
    pub nargs: u32,
    /// Programs that run before it.
    pub before: u32,
    /// Programs that run behind it.
    pub behind: u32,
    /// 1 if it is the main function of its program.
    pub main: u32,
}

impl Caller {
    /// As it stands in memory.
    pub fn bytes(&self) -> [u8; size_of::<Caller>()] {
        let words = [self.cookie, u64::from(self.prog) | u64::from(self.counted) << 32];
        let mut bytes = [0; size_of::<Caller>()];
        for (to, from) in bytes.iter_mut().zip(words.iter().flat_map(|w| w.to_ne_bytes())) {
            *to = from;
        }
        bytes
    }
}

impl Around {
    /// As it stands in memory.
    pub fn bytes(&self) -> [u8; size_of::<Around>()] {
        let pair = |a: u32, b: u32| u64::from(a) | u64::from(b) << 32;
        let words = [
            self.change,
            self.body,
            self.otherwise,
            self.ip,
            pair(self.stack, self.frames),
            pair(self.nargs, self.before),
            pair(self.behind, self.main),
        ];
        let mut bytes = [0; size_of::<Around>()];
        for (to, from) in bytes.iter_mut().zip(words.iter().flat_map(|w| w.to_ne_bytes())) {
            *to = from;
        }
        bytes
    }

    /// True if all of it can run here.
    ///
    /// # Safety
    /// `room` is below the function's caller.
    pub(crate) unsafe fn fits(&self, env: &Env, room: &Room) -> bool {
        // SAFETY: the area is the run's own.
        let (stack, frames) = unsafe { room.left(env) };
        env.change >= self.change && stack >= self.stack as usize && frames >= self.frames as usize
    }

    /// Fills in the context below `fp`, from the function's arguments; returns its address.
    ///
    /// # Safety
    /// There is room for it.
    pub(crate) unsafe fn enter(&self, fp: u64, args: *const u64) -> *mut u64 {
        // SAFETY: the caller's promise; arguments are r1 to r5.
        unsafe {
            let head = (fp - CONTEXT as u64) as *mut u64;
            *head = self.ip;
            *head.add(1) = u64::from(self.nargs);
            let ctx = head.add(CONTEXT_HEAD / 8);
            core::ptr::copy_nonoverlapping(args, ctx, MAX_ARGS);
            ctx
        }
    }

    /// The context that [`Around::enter`] filled in, now with what the function has returned.
    ///
    /// # Safety
    /// It was filled in below the same `fp`, and what ran since kept off it.
    pub(crate) unsafe fn leave(&self, fp: u64, result: u64) -> *mut u64 {
        // SAFETY: as above.
        unsafe {
            let head = (fp - CONTEXT as u64) as *mut u64;
            *head.add(1) |= RETURNED;
            let ctx = head.add(CONTEXT_HEAD / 8);
            *ctx.add((self.nargs as usize).min(MAX_ARGS)) = result;
            ctx
        }
    }

    /// Runs the programs before the function, or those behind it; false if the run is over.
    ///
    /// # Safety
    /// `this` is in the control arena, with its programs behind it; [`Around::fits`] was true; `ctx` is filled in.
    pub(crate) unsafe fn call(this: *const Around, behind: bool, env: &mut Env, ctx: *mut u64, room: Room) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let all = this.add(1).cast::<Caller>();
            let (first, count) = if behind { ((*this).before, (*this).behind) } else { (0, (*this).before) };
            let kept = (env.ctx, env.cookie, env.prog_type);
            env.ctx = ctx.cast();
            for n in first..first + count {
                let caller = &*all.add(n as usize);
                let control = &*env.control;
                let Some(image) = control.prog(caller.prog).and_then(|cell| control.image(cell, false)) else {
                    continue;
                };
                env.cookie = caller.cookie;
                env.prog_type = (*image).prog_type;
                let start = if caller.counted == 0 { 0 } else { clock::monotonic(env.proc) };
                if !interp::nested(env, image, room) {
                    return false;
                }
                if let Some(link) = caller.counted.checked_sub(1) {
                    tally(env, link, start);
                }
            }
            (env.ctx, env.cookie, env.prog_type) = kept;
        }
        true
    }
}

/// Counts a run that began at `start`.
///
/// # Safety
/// `env` is of a run.
unsafe fn tally(env: &Env, link: u32, start: u64) {
    // SAFETY: the arenas are mapped for as long as programs run, and the row is of the slot that the run has.
    unsafe {
        let Some(row) = (*env.shared).count(&*env.control, link, env.slot) else { return };
        let ns = clock::monotonic(env.proc).saturating_sub(start);
        row.hits.store(row.hits.load(Relaxed).wrapping_add(1), Relaxed);
        row.time_ns.store(row.time_ns.load(Relaxed).wrapping_add(ns), Relaxed);
    }
}

/// For machine code: the time before a run that is counted.
///
/// # Safety
/// `env` is of a run.
pub(crate) unsafe extern "sysv64" fn begun(_: u64, _: u64, _: u64, _: u64, _: u64, env: *mut Env) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { clock::monotonic((*env).proc) }
}

/// For machine code: counts a run for a link, which began at `start`.
///
/// # Safety
/// `env` is of a run.
pub(crate) unsafe extern "sysv64" fn ran(link: u64, start: u64, _: u64, _: u64, _: u64, env: *mut Env) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { tally(&*env, link as u32, start) };
    0
}

/// The top of a slot's stack.
pub(crate) fn top(env: &Env) -> u64 {
    (env.area as u64).wrapping_add(STACK_TOTAL as u64)
}
