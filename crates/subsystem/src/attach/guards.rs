//! What breakpoints need besides themselves: `SIGTRAP` must reach our handler in every thread, whatever the target does.
//!
//! A thread that runs into a breakpoint while `SIGTRAP` is blocked, or has another action, dies. So the C library's functions
//! that change masks and actions get sites of their own, guards (`skep-runtime`'s `guard` module is what runs there). Where one
//! cannot be guarded there are no breakpoints. What cannot be known is a target that makes these system calls itself.
//!
//! A process may put itself under a seccomp filter, which may end it for a system call that the agent makes. So the functions by
//! which it does are guarded, too, and the agent makes none from then on (`calls` in the maps).

use std::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions};
use skep_runtime::session::guard;

use super::AttachError;
use super::plan::{Plan, PlannedSite};
use super::symbols::{Found, Module, Modules};
use super::world::{Memory, World};

/// The functions to guard; the last number is the argument that points to a mask.
const GUARDED: [(&str, u32); 9] = [
    ("sigaction", guard::SIGACTION),
    ("sigprocmask", guard::MASK + 1),
    ("pthread_sigmask", guard::MASK + 1),
    ("sigsuspend", guard::MASK),
    ("ppoll", guard::MASK + 3),
    ("pselect", guard::MASK + 5),
    ("epoll_pwait", guard::MASK + 4),
    ("epoll_pwait2", guard::MASK + 4),
    ("pthread_attr_setsigmask_np", guard::MASK + 1),
];
/// Those without which nothing is guarded.
const NEEDED: [&str; 2] = ["sigaction", "sigprocmask"];

/// The functions by which a process puts itself under a seccomp filter.
const CONFINING: [(&str, u32); 2] = [("prctl", guard::PRCTL), ("syscall", guard::SYSCALL)];

/// What libgcc's unwinder finds descriptions of frames with.
const FIND: &str = "_Unwind_Find_FDE";
/// What tells LLVM's unwinder from it.
const LLVM: [&str; 2] = ["unw_getcontext", "__unw_getcontext"];

/// Bytes of a function in which its system call is.
const HAZARD: u64 = 512;

/// `mov rax, 15; syscall`: unwinders know the frames of signals by these bytes, so every C library has them.
const RESTORER: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05];

/// Why a breakpoint in this module would kill.
pub fn traps_kill(module: &Module, index: usize) -> Option<&'static str> {
    // A static program is its own C library, and cannot be told from it.
    let libc = index != 0 && defines(module, "sigaction");
    let helper = ["libgcc_s", "libunwind"].iter().any(|prefix| module.file_name().starts_with(prefix));
    (libc || helper || is_system(module))
        .then_some("the C library and its helpers run with all signals blocked at times, when a breakpoint is deadly")
}

/// Is this the dynamic linker or a part of the C library?
fn is_system(module: &Module) -> bool {
    ["ld-", "ld.so", "libc.", "libc-", "libpthread"].iter().any(|prefix| module.file_name().starts_with(prefix))
}

/// Does a module define a function that others can call?
fn defines(module: &Module, name: &str) -> bool {
    module.loaded().is_some_and(|loaded| loaded.elf.find(name).iter().any(|symbol| symbol.global && symbol.function))
}

impl Plan {
    /// Adds the guards that breakpoints need. If one cannot be, the breakpoints are dropped.
    pub(super) fn add_guards(&mut self, world: &World, modules: &Modules) {
        if !self.has_traps() {
            return;
        }
        if let Err(why) = self.try_guards(world, modules) {
            self.drop_traps(&why);
        }
    }

    fn has_traps(&self) -> bool {
        self.sites.iter().any(|site| site.window.trap)
    }

    fn try_guards(&mut self, world: &World, modules: &Modules) -> Result<(), String> {
        let mut there: Vec<&str> = Vec::new();
        for (index, module) in modules.iter().enumerate() {
            // A library that stands before the C library's functions ends up in those.
            if index != 0 && !is_system(module) {
                continue;
            }
            let Some(loaded) = module.loaded() else { continue };
            for (name, guard) in GUARDED {
                for symbol in loaded.elf.find(name).into_iter().filter(|s| s.global && s.function && !s.ifunc) {
                    let address = symbol.address.wrapping_add(loaded.bias);
                    let found =
                        Found { module: index, name: name.to_owned(), address, offset: 0, ifunc: false, begins: true };
                    self.guard(world, modules, module, found, guard)?;
                    there.push(name);
                }
            }
            if self.restorer.is_none() && defines(module, "sigaction") {
                self.restorer = find_restorer(&world.memory, module);
            }
        }
        if let Some(missing) = NEEDED.iter().find(|name| !there.contains(name)) {
            return Err(format!("no C library with a `{missing}` to watch is known"));
        }
        if self.restorer.is_none() {
            return Err("the C library's way back from signal handlers is not known".into());
        }
        self.guards = self.count_guards();
        self.check_arrivals(world, modules);
        match self.count_guards() == self.guards {
            true => Ok(()),
            false => Err("a function of the C library that changes signal masks cannot take a jump".into()),
        }
    }

    /// Has unwinders find the return stubs: a site answers for libgcc's `_Unwind_Find_FDE`. One that cannot be asked so is told
    /// in another way, see [`Unwinders`](super::unwind::Unwinders).
    pub(super) fn describe_stubs(&mut self, world: &World, modules: &Modules) {
        if !self.sites.iter().any(PlannedSite::has_return) {
            return;
        }
        for (index, module) in modules.iter().enumerate() {
            let Some(loaded) = module.loaded() else { continue };
            // LLVM's unwinder has the function for others and does not use it.
            if LLVM.iter().any(|name| !loaded.elf.find(name).is_empty()) {
                continue;
            }
            for symbol in loaded.elf.find(FIND).into_iter().filter(|s| s.function && !s.ifunc) {
                let address = symbol.address.wrapping_add(loaded.bias);
                let found =
                    Found { module: index, name: FIND.to_owned(), address, offset: 0, ifunc: false, begins: true };
                let _ = self.guard(world, modules, module, found, guard::UNWIND);
            }
        }
        self.check_arrivals(world, modules);
    }

    /// Watches for seccomp filters, if there is anything to run in the process.
    pub(super) fn watch_filters(&mut self, world: &World, modules: &Modules) {
        if self.sites.iter().all(|site| site.links.is_empty()) {
            return;
        }
        for (index, module) in modules.iter().enumerate() {
            // The program may have a library's functions in itself.
            if index != 0 && !is_system(module) {
                continue;
            }
            let Some(loaded) = module.loaded() else { continue };
            for (name, guard) in CONFINING {
                for symbol in loaded.elf.find(name).into_iter().filter(|s| s.global && s.function && !s.ifunc) {
                    let address = symbol.address.wrapping_add(loaded.bias);
                    let found =
                        Found { module: index, name: name.to_owned(), address, offset: 0, ifunc: false, begins: true };
                    self.confining.push((name, address));
                    if self.guard(world, modules, module, found, guard).is_err() {
                        // One that was watched until now.
                        self.sites.iter_mut().filter(|s| s.ip == address).for_each(|site| site.guard = guard::NONE);
                    }
                }
            }
        }
        self.check_arrivals(world, modules);
    }

    /// Drops that again if nothing else is left, and tells what is not watched.
    pub(super) fn check_filters(&mut self) {
        let confines = |site: &PlannedSite| matches!(site.guard, guard::PRCTL | guard::SYSCALL);
        if self.sites.iter().all(|site| site.links.is_empty()) {
            self.sites.retain(|site| !confines(site));
            self.tidy();
            return;
        }
        for (name, address) in std::mem::take(&mut self.confining) {
            if !self.sites.iter().any(|site| site.ip == address && confines(site)) {
                self.notes.push(format!(
                    "`{name}` cannot be watched: if the program puts itself under a seccomp filter by it, that may end the program \
                     for a system call of skep's"
                ));
            }
        }
    }

    /// Drops that again if no return probe is left.
    pub(super) fn check_description(&mut self) {
        if !self.sites.iter().any(PlannedSite::has_return) {
            self.sites.retain(|site| !site.links.is_empty() || site.guard != guard::UNWIND);
            self.tidy();
        }
    }

    /// True if an unwinder of this module finds the return stubs.
    pub fn describes(&self, modules: &Modules, module: &Module) -> bool {
        let sites = self.sites.iter().filter(|site| site.guard == guard::UNWIND);
        { sites }.any(|site| modules.get(site.found.module).is_some_and(|m| m.path == module.path))
    }

    fn count_guards(&self) -> usize {
        self.sites.iter().filter(|site| site.watches()).count()
    }

    /// Guards one function.
    fn guard(
        &mut self,
        world: &World,
        modules: &Modules,
        module: &Module,
        found: Found,
        guard: u32,
    ) -> Result<(), String> {
        if guard::is_for_traps(guard) {
            self.hazards.extend(hazards(&world.memory, found.address));
        }
        let name = &found.name;
        if let Some(site) = self.sites.iter_mut().find(|site| site.ip == found.address) {
            if site.window.trap || site.has_return() || !matches!(site.guard, guard::NONE) && site.guard != guard {
                return Err(format!("`{name}` must be watched, and has another probe that is in the way"));
            }
            site.guard = guard;
            return Ok(());
        }
        let window = self.find_jump(world, modules, module, &found).map_err(|error| error.to_string())?;
        self.push(world, found, window).guard = guard;
        Ok(())
    }

    /// Drops the breakpoints if a guard has been dropped, and the guards if there are no breakpoints.
    pub(super) fn check_guards(&mut self) {
        if !self.has_traps() || self.count_guards() != self.guards {
            self.drop_traps("there is no room for the code that watches the C library");
        }
    }

    /// Drops breakpoints and guards; `why` is for the user.
    fn drop_traps(&mut self, why: &str) {
        let mut failed = Vec::new();
        for site in self.sites.iter().filter(|site| site.window.trap) {
            let placed = self.outcomes.iter().filter_map(|o| o.result.as_ref().ok()).find(|p| p.address == site.ip);
            let module = placed.map_or_else(String::new, |placed| placed.module.clone());
            let reason = format!("{}; nor a breakpoint: {why}", site.why_no_jump);
            let symbol = site.symbol.clone();
            failed.push((site.ip, AttachError::NoJump { symbol, module, address: site.ip, reason }));
        }
        self.fail(failed);
        self.sites.retain(|site| !site.is_guard());
        // One with probes, too, keeps the code that has been made for it; without breakpoints it does nothing more.
        for site in self.sites.iter_mut().filter(|site| site.code == 0 && site.watches()) {
            site.guard = guard::NONE;
        }
        self.restorer = None;
        self.hazards.clear();
        self.tidy();
    }
}

/// The first part of a guarded function, and of the functions that it calls or goes on in: all that is run before the system
/// call, and some more.
fn hazards(memory: &Memory, address: u64) -> Vec<Range<u64>> {
    let text = memory.read_up_to(address, HAZARD as usize);
    let insns = Decoder::with_ip(64, &text, address, DecoderOptions::NONE).into_iter();
    let targets = insns.take_while(|insn| !insn.is_invalid()).filter_map(|insn| {
        let away = matches!(insn.code(), Code::Call_rel32_64 | Code::Jmp_rel32_64);
        away.then(|| insn.near_branch_target())
    });
    let mut starts: Vec<u64> = targets.filter(|target| target.wrapping_sub(address) >= HAZARD).collect();
    starts.push(address);
    starts.into_iter().map(|start| start..start + HAZARD).collect()
}

/// Finds the code that signal handlers return to.
fn find_restorer(memory: &Memory, module: &Module) -> Option<u64> {
    for range in module.code() {
        let mut at = range.start;
        while at < range.end {
            let bytes = memory.read_up_to(at, (range.end - at).min(1 << 20) as usize);
            if let Some(offset) = bytes.windows(RESTORER.len()).position(|window| window == RESTORER) {
                return Some(at + offset as u64);
            }
            // Some bytes again, for a sequence across the chunks.
            match (bytes.len() as u64).checked_sub(RESTORER.len() as u64) {
                Some(step) if step > 0 => at += step,
                _ => break,
            }
        }
    }
    None
}
