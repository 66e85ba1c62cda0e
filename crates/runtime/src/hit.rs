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
use core::ptr::null;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use skep_ebpf::uapi::PtRegs;

use crate::env::{Env, PROCESS, SlotArea};
use crate::session::{
    Control, Link, LinkCount, NO_LINK, NONE, Proc, RetEntry, SEVERAL_LINKS, SITE_LINKS, STUB_SIZE, SampleRecord, Site,
    ThreadEntry, link_flags, link_kind, link_state,
};
use crate::thread::{self, Guards, Refusal, Thread};
use crate::{clock, native, ret_entry, sys, typed};

/// A probed place is reached; see [`HitFn`](crate::session::HitFn).
///
/// # Safety
/// `site` is a [`Site`] of this process, `regs` the registers there, on the stack of the calling thread.
#[inline(always)]
pub unsafe extern "C" fn hit(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise; the site's process block describes the process it is mapped in.
    unsafe {
        let site = &*site;
        let proc = &*(site.proc as *const Proc);
        if !proc.control().enabled() {
            return 0;
        }
        let Some(thread) = thread::seen(proc, regs as u64) else { return hit_any(site, regs) };
        match site.on_entry.load(Relaxed) {
            NO_LINK => enter_only(proc, thread.entry, site, regs),
            on_entry => hit_entry(proc, thread, site, on_entry, regs),
        }
    }
}

/// As [`hit`], of a site with an entry link.
///
/// # Safety
/// As [`hit`]; `on_entry` is the site's.
#[inline(always)]
unsafe fn hit_entry(proc: &Proc, thread: Thread<'_>, site: &Site, on_entry: u64, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let Some(over) = express(proc, thread, site, on_entry, link_kind::ENTRY, regs, regs.cast()) else {
            return hit_any(site, regs);
        };
        let site = &*over.site;
        match site.on_return.load(Relaxed) {
            NO_LINK => 0,
            _ => enter(&*(site.proc as *const Proc), over.thread, site, over.regs),
        }
    }
}

/// As [`hit`], in any case.
///
/// # Safety
/// As [`hit`].
#[cold]
#[inline(never)]
pub(crate) unsafe fn hit_any(site: &Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let proc = &*(site.proc as *const Proc);
        if !proc.control().enabled() || !proc.alive() {
            return 0;
        }
        let Some(thread) = thread::current(proc, regs as u64) else {
            all_missed(proc, site, link_kind::ENTRY);
            all_missed(proc, site, link_kind::RETURN);
            return 0;
        };
        let entry = any(proc, site, link_kind::ENTRY).is_some();
        if entry && !deliver(proc, thread, site, link_kind::ENTRY, regs, site.ip, null()) {
            all_missed(proc, site, link_kind::RETURN);
            return 0;
        }
        enter_any(proc, thread.entry, site, regs)
    }
}

/// Has the function return to us, if a return link is on: the address of a return stub.
///
/// # Safety
/// As [`hit`]; in a child forked from the process the entry of the thread is empty.
#[inline(always)]
unsafe fn enter(proc: &Proc, thread: &ThreadEntry, site: &Site, regs: *const PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let on_return = site.on_return.load(Relaxed);
        if on_return > SEVERAL_LINKS && is_on(&*(on_return as *const Link), link_kind::RETURN) {
            let sp = (*regs).rsp;
            if let Some(index) = ret_entry::take_first(proc, thread, site, sp, *(sp as *const u64)) {
                return proc.stubs + u64::from(index) * STUB_SIZE;
            }
        }
        enter_any(proc, thread, site, regs)
    }
}

/// As [`enter`], of a site with a return link alone. (Trampolines of sites that were made for one come here seldom.)
///
/// # Safety
/// As [`enter`].
#[cold]
#[inline(never)]
unsafe fn enter_only(proc: &Proc, thread: &ThreadEntry, site: &Site, regs: *const PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { enter(proc, thread, site, regs) }
}

/// As [`enter`], in any case.
///
/// # Safety
/// As [`hit`].
#[cold]
#[inline(never)]
unsafe fn enter_any(proc: &Proc, thread: &ThreadEntry, site: &Site, regs: *const PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        if !proc.alive() {
            return 0;
        }
        let Some(flags) = any(proc, site, link_kind::RETURN) else { return 0 };
        let sp = (*regs).rsp;
        match ret_entry::take(proc, thread, site, sp, *(sp as *const u64)) {
            Some(index) => {
                if flags & link_flags::TYPED != 0
                    && let Some(entry) = proc.ret_entry(index)
                {
                    typed::keep(proc, index, entry.used.load(Relaxed), regs, flags);
                }
                proc.stubs + u64::from(index) * STUB_SIZE
            }
            None => {
                all_missed(proc, site, link_kind::RETURN);
                0
            }
        }
    }
}

/// What is needed of a hit when its program has run. It is looked up in the slot, where nobody else has written meanwhile: a
/// function that keeps it in registers saves as many of its callers'.
pub(crate) struct Over<'a> {
    thread: &'a ThreadEntry,
    site: *const Site,
    regs: *const PtRegs,
}

/// Delivers a hit to the only link of a kind, on the slot that the thread keeps: nearly all hits. `None` if it is not so,
/// and nothing was done.
///
/// # Safety
/// As [`hit`]; `link` is the site's [`on_entry`](Site::on_entry) or [`on_return`](Site::on_return), as `kind` says; `ctx` is
/// a context of its program's type.
#[inline(always)]
pub(crate) unsafe fn express<'a>(
    proc: &'a Proc,
    thread: Thread<'a>,
    site: &Site,
    link: u64,
    kind: u32,
    regs: *mut PtRegs,
    ctx: *mut u8,
) -> Option<Over<'a>> {
    let mut guards = MaybeUninit::<Guards>::uninit();
    // SAFETY: the caller's promise; the link is in the control arena, and the slot is held.
    unsafe {
        if link <= SEVERAL_LINKS || !is_on(&*(link as *const Link), kind) {
            return None;
        }
        let link = &*(link as *const Link);
        let Some(held) = thread.take_kept(regs as u64, guards.as_mut_ptr()) else {
            Guards::clear(guards.as_mut_ptr());
            return None;
        };
        let env = &mut (*held.area).env;
        // In one cache line, one after the other: of what a hit waits for, most is stores, of which the processor passes on one
        // at a time, or two if they go to the same line.
        (env.site, env.link, env.regs) = (site, link, regs);
        let retval = match link.image(proc.control()) {
            Some(image) => {
                bump(&row(env, link).hits);
                native::run_here(held.area, image, link, ctx, proc)
            }
            None => without_image(env, link),
        };
        if retval != 0 {
            conclude(env, retval);
        }
        let over = Over { thread: held.thread(), site: env.site, regs: env.regs };
        held.release_kept(over.thread);
        Some(over)
    }
}

/// The link's counters in the slot of a run.
///
/// # Safety
/// `env` is of a run at a probed place, `link` one of its process.
#[inline(always)]
unsafe fn row<'a>(env: &Env, link: &Link) -> &'a LinkCount {
    // SAFETY: a link has a row for each slot.
    unsafe { &*env.counts.byte_add(link.counts as usize) }
}

/// What a link without an image makes of a hit.
///
/// # Safety
/// As [`run`].
#[cold]
#[inline(never)]
unsafe fn without_image(env: &mut Env, link: &Link) -> u64 {
    env.modes.over_budget = false;
    if link.prog != NONE {
        return 0;
    }
    // A link that only counts.
    // SAFETY: the caller's promise.
    bump(unsafe { &row(env, link).hits });
    1
}

/// What remains to be done when the only program of a kind has returned something, or was ended.
///
/// # Safety
/// As [`express`]; `env` is that of the run.
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn conclude(env: &mut Env, retval: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let link = &*env.link;
        if !(*env.proc).alive() {
            return;
        }
        let mut retval = retval;
        if env.modes.over_budget {
            bump(&row(env, link).over_budget);
            SlotArea::discard_reserved(env.area);
            retval = 0;
        }
        if link.flags & link_flags::CHAINED == 0 {
            // Only behind a return the registers tell where it is.
            let ip = if link.kind == link_kind::RETURN { (*env.regs).rip } else { (*env.site).ip };
            judge(env, link, ip, retval);
        }
    }
}

/// Makes a sample if the programs of an event want one.
///
/// # Safety
/// As [`run`].
#[inline(always)]
pub(crate) unsafe fn judge(env: &Env, link: &Link, ip: u64, verdict: u64) {
    // The kernel begins an event's results with 1.
    let verdict = if link.flags & link_flags::EVENT == 0 { verdict } else { verdict & 1 };
    if verdict != 0 {
        // SAFETY: the caller's promise.
        unsafe { tell(env, link, ip, verdict) };
    }
}

/// As [`enter`], in any case, when the programs at the entry have run.
///
/// # Safety
/// As [`enter`].
#[cold]
#[inline(never)]
pub(crate) unsafe extern "C" fn enter_behind(site: &Site, thread: &ThreadEntry, regs: *const PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { enter_any(&*(site.proc as *const Proc), thread, site, regs) }
}

/// Counts a hit that no link of this kind was told of.
///
/// # Safety
/// As [`each`].
#[cold]
#[inline(never)]
pub(crate) unsafe fn all_missed(proc: &Proc, site: &Site, kind: u32) {
    // SAFETY: the caller's promise.
    unsafe { each(proc, site, kind, |_, index| lost(proc, index, |c| &c.missed)) };
}

/// A function with a return probe has returned; see [`ReturnFn`](crate::session::ReturnFn).
///
/// # Safety
/// `proc` is the block of this process, `entry` an entry that [`hit`] handed out and whose function has returned, and
/// `regs` are the registers then, on the stack of the calling thread; `rip` is written here.
pub unsafe extern "C" fn ret(proc: *const Proc, entry: u32, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let proc = &*proc;
        let Some(e) = proc.ret_entry(entry) else { return 0 };
        let ret = e.ret.load(Acquire);
        let site = &*(e.site.load(Relaxed) as *const Site);
        (*regs).rip = ret;
        // A function that returns twice is not to be probed so; if one is, its entry must not be freed twice.
        let used = e.used.load(Relaxed);
        if used & 1 == 0 {
            return ret;
        }
        if !proc.control().enabled() {
            ret_entry::free(proc, None, entry, e);
            return ret;
        }
        let Some(thread) = ret_entry::thread(e) else { return ret_any(proc, entry, e, regs) };
        ret_entry::free_own(thread.entry, e);
        match express(proc, thread, site, site.on_return.load(Relaxed), link_kind::RETURN, regs, regs.cast()) {
            Some(over) => (*over.regs).rip,
            None => deliver_any(proc, site, regs, entry, used),
        }
    }
}

/// A function is about to return, at a `ret` that is probed; see [`HitFn`](crate::session::HitFn). The answer is 0.
///
/// # Safety
/// As [`hit`]; the registers are those behind the `ret`, on a stack that is the calling thread's for now.
pub unsafe extern "C" fn leave(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let site = &*site;
        let proc = &*(site.proc as *const Proc);
        let on_return = site.on_return.load(Relaxed);
        if on_return == NO_LINK || !proc.control().enabled() || !proc.alive() {
            return 0;
        }
        match thread::current(proc, regs as u64) {
            Some(thread) if express(proc, thread, site, on_return, link_kind::RETURN, regs, regs.cast()).is_some() => {}
            Some(thread) => drop(deliver(proc, thread, site, link_kind::RETURN, regs, (*regs).rip, null())),
            None => all_missed(proc, site, link_kind::RETURN),
        }
        0
    }
}

/// As [`ret`], by a thread that does not keep the entry, or in a child forked from the process that entered the function.
///
/// # Safety
/// As [`ret`].
#[cold]
#[inline(never)]
unsafe fn ret_any(proc: &Proc, index: u32, entry: &RetEntry, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        if !proc.alive() {
            ret_entry::free(proc, None, index, entry);
            return (*regs).rip;
        }
        let site = &*(entry.site.load(Relaxed) as *const Site);
        let thread = thread::current(proc, regs as u64);
        let used = entry.used.load(Relaxed);
        ret_entry::free(proc, thread.map(|t| t.entry), index, entry);
        deliver_any(proc, site, regs, index, used)
    }
}

/// Delivers a return in any case, and answers where to. The entry may be free again: `used` says which use of it this was.
///
/// # Safety
/// As [`ret`].
#[cold]
#[inline(never)]
unsafe fn deliver_any(proc: &Proc, site: &Site, regs: *mut PtRegs, entry: u32, used: u32) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        if !proc.alive() {
            return (*regs).rip;
        }
        let mut words = MaybeUninit::<typed::Words>::uninit();
        let Some(flags) = any(proc, site, link_kind::RETURN) else { return (*regs).rip };
        let typed = flags & link_flags::TYPED != 0;
        let kept = if typed && typed::take(proc, entry, used, &mut words) { words.as_ptr() } else { null() };
        match thread::current(proc, regs as u64) {
            Some(thread) => drop(deliver(proc, thread, site, link_kind::RETURN, regs, (*regs).rip, kept)),
            None => all_missed(proc, site, link_kind::RETURN),
        }
        (*regs).rip
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
pub(crate) fn on(control: &Control, index: u32, kind: u32) -> Option<&Link> {
    control.link(index).filter(|link| link.kind == kind && link.state.load(Acquire) != link_state::OFF)
}

/// True if the link is on, of this kind, and its program is given the registers.
#[inline(always)]
fn is_on(link: &Link, kind: u32) -> bool {
    link.state.load(Acquire) == kind
}

/// Indices of the site's links.
#[inline(always)]
pub(crate) fn site_links(site: &Site) -> impl Iterator<Item = u32> {
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

/// The flags of all links of this kind that are on, if there are any.
///
/// # Safety
/// As [`each`].
#[inline(always)]
unsafe fn any(proc: &Proc, site: &Site, kind: u32) -> Option<u32> {
    // SAFETY: the caller's promise.
    let control = unsafe { proc.control() };
    let flags = site_links(site).filter_map(|index| on(control, index, kind)).map(|link| link.flags);
    flags.fold(None, |all, flags| Some(all.unwrap_or(0) | flags))
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
/// As [`hit`]; in the process of `proc`, with the controller alive; `kept` is null or what a function that has returned was
/// called with.
#[inline(always)]
unsafe fn deliver(
    proc: &Proc,
    thread: Thread<'_>,
    site: &Site,
    kind: u32,
    regs: *mut PtRegs,
    ip: u64,
    kept: *const typed::Words,
) -> bool {
    let mut guards = MaybeUninit::<Guards>::uninit();
    // SAFETY: the caller's promise.
    unsafe {
        let held = match thread.take(proc, regs as u64, guards.as_mut_ptr()) {
            Ok(held) => held,
            Err(refusal) => return refused(proc, site, kind, refusal),
        };
        let env = &mut (*held.area).env;
        let control = proc.control();
        let mut verdict = u64::MAX;
        for index in site_links(site) {
            let Some(link) = on(control, index, kind) else { continue };
            prepare(proc, env, site, link, regs);
            let run = match link.flags & link_flags::TYPED {
                0 => run(proc, control, env, link),
                _ => run_typed(proc, control, env, link, kept),
            };
            let Some(retval) = run else { break };
            verdict &= retval;
            if link.flags & link_flags::CHAINED != 0 {
                continue;
            }
            judge(env, link, ip, verdict);
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
pub(crate) unsafe fn refused(proc: &Proc, site: &Site, kind: u32, refusal: Refusal) -> bool {
    let counter: fn(&LinkCount) -> &AtomicU64 = match refusal {
        Refusal::Missed => |c| &c.missed,
        Refusal::NoSlot => |c| &c.no_slot,
    };
    // SAFETY: the caller's promise.
    unsafe {
        if !proc.alive() {
            return false;
        }
        each(proc, site, kind, |_, index| lost(proc, index, counter));
    }
    !matches!(refusal, Refusal::Missed)
}

/// Adds one to a counter in a row that the calling thread owns.
#[inline(always)]
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Completes the environment of a run. A run that was ended around a function may have left any of it.
///
/// # Safety
/// As [`run`].
pub(crate) unsafe fn prepare(proc: &Proc, env: &mut Env, site: &Site, link: &Link, regs: *mut PtRegs) {
    (env.site, env.link, env.regs) = (site, link, regs);
    env.settle(proc, link);
}

/// Runs one link's program, and counts that. `None` in a child that was forked in the middle of one: it goes no further.
///
/// # Safety
/// `env` is complete, and of the process `proc`; `link` is in the table of `control`, its control arena.
#[inline(always)]
pub(crate) unsafe fn run(proc: &Proc, control: &Control, env: &mut Env, link: &Link) -> Option<u64> {
    // SAFETY: arenas and process block are mapped, and the slot is held.
    unsafe {
        if !proc.alive() {
            return None;
        }
        let image = control.prog(link.prog).and_then(|cell| control.image(cell, env.modes.executes));
        let Some(image) = image else { return Some(without_image(env, link)) };
        bump(&row(env, link).hits);
        let retval = native::run_in(proc, env, image, control.budget);
        if !proc.alive() {
            return None;
        }
        if env.modes.over_budget {
            bump(&row(env, link).over_budget);
            SlotArea::discard_reserved(env.area);
        }
        Some(retval)
    }
}

/// As [`run`], for a program whose context is the function's arguments.
///
/// # Safety
/// As [`run`]; `kept` as in [`deliver`].
#[cold]
#[inline(never)]
unsafe fn run_typed(
    proc: &Proc,
    control: &Control,
    env: &mut Env,
    link: &Link,
    kept: *const typed::Words,
) -> Option<u64> {
    let mut at_entry: typed::Words = [0; _];
    let mut context: typed::Context = [0; _];
    // SAFETY: the caller's promise.
    unsafe {
        // Not copied: compilers do that by string instructions, and the direction flag is the target's here.
        let (words, result) = match link.kind {
            link_kind::RETURN if kept.is_null() => {
                // It was switched on after the function had been entered.
                lost(proc, env.link_index(), |c| &c.missed);
                return Some(0);
            }
            link_kind::RETURN => (&*kept, Some((*env.regs).rax)),
            _ => {
                typed::at_entry(env.regs, link.flags, &raw mut at_entry);
                (&at_entry, None)
            }
        };
        typed::fill(&mut context, &link.arguments, words, env.func_ip(), result);
        env.ctx = context.as_mut_ptr().add(typed::HEAD).cast();
        env.objects_len = PROCESS;
        let retval = run(proc, control, env, link);
        env.objects_len = 0;
        retval
    }
}

/// Stores a sample of a link, and counts that.
///
/// # Safety
/// As [`run`].
#[cold]
#[inline(never)]
unsafe fn tell(env: &Env, link: &Link, ip: u64, retval: u64) {
    // SAFETY: arenas are mapped, and the slot is held.
    unsafe {
        let row = row(env, link);
        let func = if link.kind == link_kind::RETURN { env.func_ip() } else { 0 };
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
        link: env.link_index(),
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
