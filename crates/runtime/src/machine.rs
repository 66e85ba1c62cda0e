//! Runs of programs in the own process, outside of probes.

use core::ptr::{null, null_mut};

use skep_ebpf::uapi::PtRegs;
use skep_maps::MapRef;

use crate::env::{Env, HostFn, Seq, SlotArea, Task};
use crate::image::Image;
use crate::session::{Control, SharedHead};
use crate::{interp, native};

/// What a run gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// r0.
    pub retval: u64,
    /// True if the run was ended by `Control::budget`.
    pub over_budget: bool,
}

/// Where a program runs, for the helpers that tell of it.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// What `get_attach_cookie` returns.
    pub cookie: u64,
    /// What `get_func_ip` returns.
    pub func_ip: u64,
    /// The instruction pointer of a function's entry, if the program runs there; else 0.
    pub entry_ip: u64,
    /// Registers that stack traces start from; may be null.
    pub regs: *const PtRegs,
}

/// The kernel objects that a program is given, and where it writes its text.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The objects. Loads from them outside of these bytes give 0.
    pub objects: &'a [u64],
    /// The text; `None` for programs that are no iterators.
    pub seq: Option<&'a mut Seq>,
}

/// A session's memory as the own process sees it, and the private memory of one slot.
///
/// The slot is the machine's: no thread may take it from the slot table meanwhile.
pub struct Machine {
    /// The environment of its runs; between them it is that of a run outside of probes.
    env: Env,
    area: Box<SlotArea>,
}

impl Machine {
    /// A machine that runs on `slot`.
    ///
    /// # Safety
    /// `control` and `shared` are the session's arenas, and `maps` its table of `control.nmaps` handles; all are mapped
    /// and valid for as long as the machine lives. Nobody else runs programs on `slot`.
    pub unsafe fn new(control: *const Control, shared: *const SharedHead, maps: *const MapRef, slot: u32) -> Machine {
        // SAFETY: all zeros is a valid area; the rest is the caller's promise.
        unsafe { Machine::with_area(control, shared, maps, slot, Box::<SlotArea>::new_zeroed().assume_init()) }
    }

    /// As [`Machine::new`], with the memory of an earlier machine ([`Machine::into_area`]), which spares making some.
    ///
    /// # Safety
    /// As [`Machine::new`].
    pub unsafe fn with_area(
        control: *const Control,
        shared: *const SharedHead,
        maps: *const MapRef,
        slot: u32,
        area: Box<SlotArea>,
    ) -> Machine {
        let mut machine = Machine { env: Env::new(control, shared, maps, slot, null_mut()), area };
        machine.env.area = &raw mut *machine.area;
        machine
    }

    /// Says whether `control` is mapped executable; if not, programs are interpreted. It is taken to be.
    pub fn set_executes(&mut self, executes: bool) {
        self.env.modes.executes = executes;
    }

    /// The functions of the application that programs of this machine may call.
    ///
    /// # Safety
    /// Each program names only rows of this table, which stay as they are for as long as such programs run.
    pub unsafe fn set_functions(&mut self, functions: *const HostFn) {
        self.env.functions = functions;
    }

    /// The address of what its runs work with, which functions of the application are given.
    pub fn env(&self) -> *const Env {
        &raw const self.env
    }

    /// Runs program `prog` of the session on a context; `None` if it has no image.
    ///
    /// # Safety
    /// `ctx` is a context of the program's type, as the verifier laid it out (see [`packet`](crate::packet)).
    #[inline]
    pub unsafe fn run(&mut self, prog: u32, ctx: *mut u8) -> Option<Run> {
        // SAFETY: the arenas are valid by the promise of `new`.
        let control = unsafe { &*self.env.control };
        let image = control.image(control.prog(prog)?, self.env.modes.executes)?;
        // SAFETY: images in the control arena are those of the session's maps.
        Some(unsafe { self.run_image(image, ctx) })
    }

    /// The private memory, for a later machine.
    pub fn into_area(self) -> Box<SlotArea> {
        self.area
    }

    /// The slot.
    pub fn slot(&self) -> u32 {
        self.env.slot
    }

    /// As [`Machine::run`], at a probe.
    ///
    /// # Safety
    /// As [`Machine::run`]; the registers, if there are any, are valid.
    pub unsafe fn run_at(&mut self, prog: u32, ctx: *mut u8, at: &At) -> Option<Run> {
        // SAFETY: the arenas are valid by the promise of `new`.
        let control = unsafe { &*self.env.control };
        let image = control.image(control.prog(prog)?, self.env.modes.executes)?;
        let env = &mut self.env;
        (env.cookie, env.func_ip, env.entry_ip, env.regs) = (at.cookie, at.func_ip, at.entry_ip, at.regs);
        // SAFETY: images in the control arena are those of the session's maps.
        let run = unsafe { self.run_image(image, ctx) };
        let env = &mut self.env;
        (env.cookie, env.func_ip, env.entry_ip, env.regs) = (0, 0, 0, null());
        Some(run)
    }

    /// As [`Machine::run_at`], of a program that is about a thread of another process.
    ///
    /// # Safety
    /// As [`Machine::run_at`].
    pub unsafe fn run_about(&mut self, prog: u32, ctx: *mut u8, at: &At, task: &Task<'_>) -> Option<Run> {
        self.env.task = (&raw const *task).cast();
        // SAFETY: the caller's promise; `task` is there until the run is over.
        let run = unsafe { self.run_at(prog, ctx, at) };
        self.env.task = null();
        run
    }

    /// As [`Machine::run`], of a program that is given kernel objects.
    ///
    /// # Safety
    /// As [`Machine::run`]; pointers to objects in the context, and in objects, point into the scene or are null. Those
    /// that the verifier trusts are not null, and what they point to is there whole.
    pub unsafe fn run_with(&mut self, prog: u32, ctx: *mut u8, scene: &mut Scene<'_>) -> Option<Run> {
        // SAFETY: the arenas are valid by the promise of `new`.
        let control = unsafe { &*self.env.control };
        let image = control.image(control.prog(prog)?, self.env.modes.executes)?;
        let env = &mut self.env;
        (env.objects, env.objects_len) = (scene.objects.as_ptr() as u64, size_of_val(scene.objects) as u64);
        env.seq = scene.seq.as_deref_mut().map_or(null_mut(), |seq| seq);
        // SAFETY: images in the control arena are those of the session's maps.
        let run = unsafe { self.run_image(image, ctx) };
        let env = &mut self.env;
        (env.objects, env.objects_len, env.seq) = (0, 0, null_mut());
        Some(run)
    }

    /// Runs an image on a context and returns the number of instructions that it executed.
    ///
    /// # Safety
    /// As [`Machine::run_image`].
    pub unsafe fn count_image(&mut self, image: *const Image, ctx: *mut u8) -> u64 {
        self.env.ctx = ctx;
        // SAFETY: the promises of `new` and of the caller.
        unsafe { interp::count(&mut self.env, image) }
    }

    /// As [`Machine::run_budgeted`], and for no more than about so many nanoseconds. Only programs that were compiled with a
    /// time keep to it.
    ///
    /// # Safety
    /// As [`Machine::run_image`].
    pub unsafe fn run_timed(&mut self, image: *const Image, ctx: *mut u8, budget: u64, nanoseconds: u64) -> Run {
        let first = self.env.limit(budget, nanoseconds.max(1));
        // SAFETY: the caller's promise.
        let run = unsafe { self.run_budgeted(image, ctx, first) };
        self.env.time_limit = 0;
        run
    }

    /// Runs an image on a context.
    ///
    /// # Safety
    /// As [`Machine::run`], and `image` was made for the maps of this session.
    #[inline]
    pub unsafe fn run_image(&mut self, image: *const Image, ctx: *mut u8) -> Run {
        // SAFETY: the promises of `new` and of the caller.
        unsafe { self.run_budgeted(image, ctx, (*self.env.control).budget) }
    }

    /// As [`Machine::run_image`], with this budget: back edges, calls and helper calls; 0 for none. Only programs that were
    /// compiled with a budget keep to it.
    ///
    /// # Safety
    /// As [`Machine::run_image`].
    #[inline]
    pub unsafe fn run_budgeted(&mut self, image: *const Image, ctx: *mut u8, budget: u64) -> Run {
        let env = &mut self.env;
        env.ctx = ctx;
        // SAFETY: the promises of `new` and of the caller.
        unsafe {
            let retval = native::run(env, image, budget);
            if env.modes.over_budget {
                SlotArea::discard_reserved(env.area);
                return Run { retval, over_budget: true };
            }
            Run { retval, over_budget: false }
        }
    }
}
