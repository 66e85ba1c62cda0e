//! Runs of programs in the own process, outside of probes.

use skep_ebpf::uapi::PtRegs;
use skep_maps::MapRef;

use crate::env::{Env, SlotArea};
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

/// A session's memory as the own process sees it, and the private memory of one slot.
///
/// The slot is the machine's: no thread may take it from the slot table meanwhile.
pub struct Machine {
    control: *const Control,
    shared: *const SharedHead,
    maps: *const MapRef,
    slot: u32,
    area: Box<SlotArea>,
}

impl Machine {
    /// A machine that runs on `slot`.
    ///
    /// # Safety
    /// `control` and `shared` are the session's arenas, and `maps` its table of `control.nmaps` handles; all are mapped
    /// and valid for as long as the machine lives. Nobody else runs programs on `slot`.
    pub unsafe fn new(control: *const Control, shared: *const SharedHead, maps: *const MapRef, slot: u32) -> Machine {
        // SAFETY: all zeros is a valid area.
        let area = unsafe { Box::<SlotArea>::new_zeroed().assume_init() };
        Machine { control, shared, maps, slot, area }
    }

    /// Runs program `prog` of the session on a context; `None` if it has no image.
    ///
    /// # Safety
    /// `ctx` is a context of the program's type, as the verifier laid it out (see [`packet`](crate::packet)).
    pub unsafe fn run(&mut self, prog: u32, ctx: *mut u8) -> Option<Run> {
        // SAFETY: the arenas are valid by the promise of `new`.
        let control = unsafe { &*self.control };
        let image = control.image(control.prog(prog)?)?;
        // SAFETY: images in the control arena are those of the session's maps.
        Some(unsafe { self.run_image(image, ctx) })
    }

    /// The slot.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// As [`Machine::run`], at a probe.
    ///
    /// # Safety
    /// As [`Machine::run`]; the registers, if there are any, are valid.
    pub unsafe fn run_at(&mut self, prog: u32, ctx: *mut u8, at: &At) -> Option<Run> {
        // SAFETY: the arenas are valid by the promise of `new`.
        let control = unsafe { &*self.control };
        let image = control.image(control.prog(prog)?)?;
        let mut env = self.env(ctx);
        (env.cookie, env.func_ip, env.entry_ip, env.regs) = (at.cookie, at.func_ip, at.entry_ip, at.regs);
        // SAFETY: images in the control arena are those of the session's maps.
        Some(unsafe { self.finish(env, image) })
    }

    fn env(&mut self, ctx: *mut u8) -> Env {
        let mut env = Env::new(self.control, self.shared, self.maps, self.slot, &raw mut *self.area);
        env.ctx = ctx;
        env
    }

    /// Runs an image on a context and returns the number of instructions that it executed.
    ///
    /// # Safety
    /// As [`Machine::run_image`].
    pub unsafe fn count_image(&mut self, image: *const Image, ctx: *mut u8) -> u64 {
        let mut env = self.env(ctx);
        // SAFETY: the promises of `new` and of the caller.
        unsafe { interp::count(&mut env, image) }
    }

    /// Runs an image on a context.
    ///
    /// # Safety
    /// As [`Machine::run`], and `image` was made for the maps of this session.
    pub unsafe fn run_image(&mut self, image: *const Image, ctx: *mut u8) -> Run {
        let env = self.env(ctx);
        // SAFETY: the caller's promise.
        unsafe { self.finish(env, image) }
    }

    /// # Safety
    /// As [`Machine::run_image`].
    unsafe fn finish(&mut self, mut env: Env, image: *const Image) -> Run {
        // SAFETY: the promises of `new` and of the caller.
        unsafe {
            let retval = native::run(&mut env, image, (*self.control).budget);
            if env.over_budget {
                SlotArea::discard_reserved(&raw mut *self.area);
            }
            Run { retval, over_budget: env.over_budget }
        }
    }
}
