//! What the trampolines of probed functions call.
//!
//! # Invariants
//!
//! * Nothing here allocates, blocks or panics, and no lock is waited for. It may run in a signal handler, in the middle
//!   of itself, in a forked child, and while the controller is being killed.
//! * Every hit with the controller alive ends in exactly one counter of each link that is on: `hits`, `missed` or
//!   `no_slot`.
//! * What was begun in this process is finished in this process: a child forked from a signal handler returns through
//!   here without touching what its parent holds.

use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use skep_ebpf::uapi::PtRegs;

use crate::env::{Env, SlotArea};
use crate::session::{
    Control, Link, LinkCount, NONE, Proc, SITE_LINKS, STUB_SIZE, SampleRecord, Site, link_flags, link_kind, link_state,
};
use crate::thread::{self, Guards, Refusal, Thread};
use crate::{clock, native, ret_entry, sys};

/// A probed place is reached; see [`HitFn`](crate::session::HitFn).
///
/// # Safety
/// `site` is a [`Site`] of this process, `regs` the registers there, on the stack of the calling thread.
pub unsafe extern "C" fn hit(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise; the site's process block describes the process it is mapped in.
    unsafe {
        let site = &*site;
        let proc = &*(site.proc as *const Proc);
        let control = proc.control();
        if !control.enabled() || !proc.alive() {
            return 0;
        }
        let Some(thread) = thread::current(proc, regs as u64) else {
            all_missed(proc, site, link_kind::ENTRY);
            all_missed(proc, site, link_kind::RETURN);
            return 0;
        };
        if site.has_entry.load(Relaxed) != 0 && !deliver(proc, thread, site, link_kind::ENTRY, regs, site.ip) {
            all_missed(proc, site, link_kind::RETURN);
            return 0;
        }
        if site.has_return.load(Relaxed) == 0 || !any(proc, site, link_kind::RETURN) {
            return 0;
        }
        let sp = (*regs).rsp;
        match ret_entry::take(proc, thread.entry, site, sp, *(sp as *const u64)) {
            Some(index) => proc.stubs + u64::from(index) * STUB_SIZE,
            None => {
                all_missed(proc, site, link_kind::RETURN);
                0
            }
        }
    }
}

/// Counts a hit that no link of this kind was told of.
///
/// # Safety
/// As [`each`].
#[cold]
#[inline(never)]
unsafe fn all_missed(proc: &Proc, site: &Site, kind: u32) {
    // SAFETY: the caller's promise.
    unsafe { each(proc, site, kind, |_, index| lost(proc, index, |c| &c.missed)) };
}

/// A function with a return probe has returned; see [`ReturnFn`](crate::session::ReturnFn).
///
/// # Safety
/// `proc` is the block of this process, `entry` an entry that [`hit`] handed out and whose function has returned, and
/// `regs` are the registers then, on the stack of the calling thread; `rip` and `rsp` are written here.
pub unsafe extern "C" fn ret(proc: *const Proc, entry: u32, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let proc = &*proc;
        let Some(e) = proc.ret_entry(entry) else { return 0 };
        let (ret, sp) = (e.ret.load(Acquire), e.sp.load(Relaxed));
        let site = &*(e.site.load(Relaxed) as *const Site);
        (*regs).rip = ret;
        (*regs).rsp = sp.wrapping_add(8);
        // A function that returns twice is not to be probed so; if one is, its entry must not be freed twice.
        if e.used.load(Relaxed) & 1 == 0 {
            return ret;
        }
        if !proc.control().enabled() || !proc.alive() {
            ret_entry::free(proc, None, entry, e);
            return ret;
        }
        let thread = thread::current(proc, regs as u64);
        ret_entry::free(proc, thread.map(|t| t.entry), entry, e);
        match thread {
            Some(thread) => drop(deliver(proc, thread, site, link_kind::RETURN, regs, ret)),
            None => all_missed(proc, site, link_kind::RETURN),
        }
        ret
    }
}

/// Calls `f` for each link of the site that is on and of this kind.
///
/// # Safety
/// In the process of `proc`.
#[inline(always)]
unsafe fn each(proc: &Proc, site: &Site, kind: u32, mut f: impl FnMut(&Link, u32)) {
    // SAFETY: the caller's promise.
    let control = unsafe { proc.control() };
    for index in site_links(site) {
        if let Some(link) = on(control, index, kind) {
            f(link, index);
        }
    }
}

/// The link `index`, if it is on and of this kind.
#[inline(always)]
fn on(control: &Control, index: u32, kind: u32) -> Option<&Link> {
    control.link(index).filter(|link| link.state.load(Acquire) == link_state::ON && link.kind == kind)
}

/// Indices of the site's links.
#[inline(always)]
fn site_links(site: &Site) -> impl Iterator<Item = u32> {
    let n = (site.nlinks.load(Acquire) as usize).min(SITE_LINKS);
    // SAFETY: there are that many. Most sites have one link: a loop that compilers do not unroll.
    let (mut at, end) = unsafe { (site.links.as_ptr(), site.links.as_ptr().add(n)) };
    core::iter::from_fn(move || {
        // SAFETY: it lies before the end.
        (at != end).then(|| unsafe {
            let index = (*at).load(Relaxed);
            at = at.add(1);
            index
        })
    })
}

/// True if a link of this kind is on.
///
/// # Safety
/// As [`each`].
#[inline(always)]
unsafe fn any(proc: &Proc, site: &Site, kind: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { site_links(site).any(|index| on(proc.control(), index, kind).is_some()) }
}

/// Counts a hit that ran nothing.
///
/// # Safety
/// As [`each`].
#[cold]
unsafe fn lost(proc: &Proc, link: u32, counter: fn(&LinkCount) -> &AtomicU64) {
    // SAFETY: the caller's promise.
    unsafe {
        let control = proc.control();
        if let Some(row) = proc.shared().count(control, link, control.nslots) {
            counter(row).fetch_add(1, Relaxed);
        }
    }
}

/// Runs the site's programs of this kind. False if the thread runs a program already.
///
/// # Safety
/// As [`hit`]; in the process of `proc`, with the controller alive.
#[inline(always)]
unsafe fn deliver(proc: &Proc, thread: Thread<'_>, site: &Site, kind: u32, regs: *mut PtRegs, ip: u64) -> bool {
    let mut guards = MaybeUninit::<Guards>::uninit();
    // SAFETY: the caller's promise.
    unsafe {
        let held = match thread.take(proc, regs as u64, guards.as_mut_ptr()) {
            Ok(held) => held,
            Err(refusal) => return refused(proc, site, kind, refusal),
        };
        let env = &mut (*held.area).env;
        env.change = proc.change;
        env.ctx = regs.cast();
        env.regs = regs;
        env.entry_ip = if site.entry == NONE { 0 } else { site.ip };
        let control = proc.control();
        let mut verdict = u64::MAX;
        for index in site_links(site) {
            let Some(link) = on(control, index, kind) else { continue };
            env.func_ip = match (link.flags & link_flags::KERNEL, site.entry) {
                (0, _) => site.ip,
                (_, NONE) => 0,
                (_, bytes) => site.ip.wrapping_sub(u64::from(bytes)),
            };
            let Some(retval) = run(proc, control, env, link, index) else { break };
            verdict &= retval;
            if link.flags & link_flags::CHAINED != 0 {
                continue;
            }
            // The kernel begins an event's results with 1.
            if link.flags & link_flags::EVENT != 0 {
                verdict &= 1;
            }
            if verdict != 0 {
                tell(env, link, index, ip, verdict);
            }
            verdict = u64::MAX;
        }
        held.release();
        true
    }
}

/// Counts a hit whose programs did not run. False if the thread runs a program already.
///
/// # Safety
/// As [`each`].
#[cold]
#[inline(never)]
unsafe fn refused(proc: &Proc, site: &Site, kind: u32, refusal: Refusal) -> bool {
    let counter: fn(&LinkCount) -> &AtomicU64 = match refusal {
        Refusal::Missed => |c| &c.missed,
        Refusal::NoSlot => |c| &c.no_slot,
    };
    // SAFETY: the caller's promise.
    unsafe { each(proc, site, kind, |_, index| lost(proc, index, counter)) };
    !matches!(refusal, Refusal::Missed)
}

/// Adds one to a counter in a row that the calling thread owns.
#[inline(always)]
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Runs one link's program, and counts that. `None` in a child that was forked in the middle of one: it goes no further.
///
/// # Safety
/// `env` is complete but for the link, and of the process `proc`; `index` is in the table of `control`, its control arena.
#[inline(always)]
unsafe fn run(proc: &Proc, control: &Control, env: &mut Env, link: &Link, index: u32) -> Option<u64> {
    // SAFETY: arenas and process block are mapped, and the slot is held.
    unsafe {
        if !proc.alive() {
            return None;
        }
        let row = &*env.counts.add(index as usize * (control.nslots as usize + 1));
        let prog = link.prog.load(Acquire);
        env.link = index;
        env.cookie = link.cookie;
        // A run that was ended around a function may have left another one.
        env.ctx = env.regs.cast_mut().cast();
        if prog == NONE {
            // A link that only counts.
            bump(&row.hits);
            return Some(1);
        }
        let image = control.prog(prog).and_then(|cell| control.image(cell, env.executes));
        let Some(image) = image else { return Some(0) };
        bump(&row.hits);
        let retval = native::run(env, image, control.budget);
        if !proc.alive() {
            return None;
        }
        if env.over_budget {
            bump(&row.over_budget);
            SlotArea::discard_reserved(env.area);
        }
        Some(retval)
    }
}

/// Stores a sample of a link, and counts that.
///
/// # Safety
/// As [`run`].
#[cold]
#[inline(never)]
unsafe fn tell(env: &Env, link: &Link, index: u32, ip: u64, retval: u64) {
    // SAFETY: arenas are mapped, and the slot is held.
    unsafe {
        let Some(row) = (*env.shared).count(&*env.control, index, env.slot) else { return };
        let func = if link.kind == link_kind::RETURN { env.func_ip } else { 0 };
        let stored = sample(env, ip, func, retval);
        bump(if stored { &row.samples } else { &row.lost });
    }
}

/// Stores a sample. False if there was no room.
///
/// # Safety
/// As [`run`].
#[cold]
#[inline(never)]
unsafe fn sample(env: &Env, ip: u64, func: u64, retval: u64) -> bool {
    let record = SampleRecord {
        link: env.link,
        slot: env.slot,
        // SAFETY: the block of this process.
        time_ns: unsafe { clock::monotonic(env.proc) },
        pid: sys::getpid(),
        tid: sys::gettid(),
        ip,
        func,
        retval,
    };
    // SAFETY: arenas are mapped, and the slot is held.
    unsafe {
        let map = env.map((*env.control).samples_map);
        if map.is_null() {
            return false;
        }
        let size = size_of::<SampleRecord>() as u64;
        let (err, _) = (*map).ringbuf_output(env.slot, (&raw const record).cast(), size, 0);
        env.doorbell();
        err == 0
    }
}
