//! From probes to sites: which functions, which windows, where their code goes. Nothing is changed in the target yet.

use std::collections::HashMap;
use std::ops::Range;

use skep_runtime::session::{SITE_LINKS, guard};
use skep_runtime::syscall::MAKE_CHILDREN;

use super::AttachError;
use super::agent_image::AgentImage;
use super::arrivals;
use super::code::{self, CallSide, Trampoline};
use super::frames;
use super::go;
use super::guards;
use super::jumps;
use super::patch::Change;
use super::place_code;
use super::procfs::Mapping;
use super::remote::Remote;
use super::request::{Method, Placed, ProbeKind, ProbeOutcome, ProbeSpec, ProbeTarget, Registers};
use super::site::{self, BodyCopy, Function, Refusal, Window};
use super::symbols::{Found, Module, Modules};
use super::syscalls::PlannedCall;
use super::world::World;

/// Bytes that a site's code may take; trampolines begin at multiples of it.
const SITE_CODE: u64 = 1024;
/// Bytes that a copy takes at most: 19 of instructions, each grown to its longest form, and the jump back.
const BODY_MAX: u64 = 256;
/// The instruction that functions may begin with as targets of indirect calls.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
const _: () = assert!(code::TRAMPOLINE_MAX + BODY_MAX <= SITE_CODE);

/// A place to patch.
#[derive(Clone)]
pub struct PlannedSite {
    /// What programs see as `ip`.
    pub ip: u64,
    /// The instructions that give way.
    pub window: Window,
    /// Links, with their kinds.
    pub links: Vec<(u32, ProbeKind)>,
    /// What programs read of the registers at its entry, and at its return.
    pub registers: [Registers; 2],
    /// The agent uses vector registers.
    vectors: bool,
    /// Its trampoline asks `skep_enter` first: it was made for return probes alone.
    asks: bool,
    /// Its trampoline calls `skep_quick_hit`: it was made for programs that change few registers.
    quick: bool,
    /// Name, for messages.
    pub symbol: String,
    /// The text at `ip` as it is.
    pub text: [u8; 16],
    /// Bytes from the start of the function if this is its entry.
    pub entry: Option<u32>,
    /// One of [`guard`].
    pub guard: u32,
    /// What it was found as.
    pub found: Found,
    /// What is written at the window's address.
    pub patch: Vec<u8>,
    /// Why a breakpoint is not a jump.
    pub why_no_jump: String,
    /// Where its trampoline goes.
    pub code: u64,
    /// What runs before the trampoline.
    lead: BodyCopy,
    /// The copy, which follows the trampoline.
    pub body: BodyCopy,
    /// Its function is Go's.
    pub(super) go: bool,
    /// Branches into its window have been looked for.
    checked: bool,
    /// It is before or behind a system call.
    pub call: Option<CallSide>,
}

impl PlannedSite {
    /// Address of the displaced instructions' copy.
    pub fn body_address(&self) -> u64 {
        self.code + (self.lead.code.len() + self.trampoline_code(0, 0, 0, 0).len()) as u64
    }

    /// Where its trampoline goes on behind `skep_enter`; 0 if it does not ask that.
    pub fn slow_address(&self) -> u64 {
        match self.trampoline(0, 0, 0, 0).map(|t| code::slow(&t)) {
            Some(slow) if slow != 0 => self.code + self.lead.code.len() as u64 + slow,
            _ => 0,
        }
    }

    /// The whole code of the site; `hit` is what its trampoline calls, `enter` what it asks first, if it does, `stacks` see
    /// [`Trampoline`].
    pub fn make_code(&self, site: u64, hit: u64, enter: u64, stacks: u64) -> Vec<u8> {
        let mut bytes = self.lead.code.clone();
        bytes.extend(self.trampoline_code(site, hit, enter, stacks));
        bytes.extend_from_slice(&self.body.code);
        bytes
    }

    /// A breakpoint needs none.
    fn trampoline(&self, site: u64, hit: u64, enter: u64, stacks: u64) -> Option<Trampoline> {
        let trampoline = Trampoline {
            site,
            ip: self.ip,
            hit,
            enter: self.asks.then_some(enter),
            inside: !self.window.entry,
            guard: self.guard != guard::NONE,
            registers: self.stored(),
            quick: self.quick,
            vectors: self.vectors,
            stacks: self.go.then_some(stacks),
            leaves: self.window.leaves,
            call: self.call,
        };
        (!self.window.trap).then_some(trampoline)
    }

    fn trampoline_code(&self, site: u64, hit: u64, enter: u64, stacks: u64) -> Vec<u8> {
        self.trampoline(site, hit, enter, stacks).as_ref().map(code::trampoline).unwrap_or_default()
    }

    /// Where threads in its window go: addresses of its inner instructions and of their copies.
    pub fn moves(&self) -> impl Iterator<Item = (u64, u64)> {
        self.lead.moves.iter().chain(&self.body.moves).copied()
    }

    /// Addresses that nothing must lead to once it is patched.
    fn avoided(&self) -> Range<u64> {
        let behind = self.window.behind();
        match &self.call {
            // Nor where programs would not be told of the call.
            Some(call) if call.exit => self.window.address..behind.end,
            Some(_) => behind.start..self.window.address + self.window.len + 1,
            None => behind,
        }
    }

    /// Addresses that goroutines must not be about to go on at when it is patched.
    pub fn forbidden(&self) -> impl Iterator<Item = u64> {
        self.window.boundaries().filter(|_| self.go)
    }

    /// Is it Go's?
    pub fn is_go(&self) -> bool {
        self.go
    }

    /// The address that outcomes have.
    fn outcome(&self) -> u64 {
        if self.window.leaves { self.found.address } else { self.ip }
    }

    /// What its trampoline stores of the registers: what programs read at its entry, or all where any may read all.
    pub fn stored(&self) -> Registers {
        let [entry, ret] = self.registers;
        if ret == Registers::ALL || self.window.leaves { ret } else { entry }
    }

    pub(super) fn add_link(&mut self, link: (u32, ProbeKind), registers: Registers) {
        self.links.push(link);
        let [entry, ret] = &mut self.registers;
        let read = if link.1 == ProbeKind::Entry { entry } else { ret };
        *read = read.and(registers);
    }

    /// What patching it changes.
    pub fn change(&self) -> Change {
        let lead = (self.window.address - self.ip) as usize;
        let old = self.text.get(lead..lead + self.patch.len()).unwrap_or_default().to_vec();
        Change { address: self.window.address, old, new: self.patch.clone() }
    }

    /// Its trampoline calls `skep_quick_hit`.
    pub fn is_quick(&self) -> bool {
        self.quick
    }

    /// Its hits have nothing else to look at than the program: neither a guard's answer, nor which system call it is, nor whose.
    fn is_plain(&self) -> bool {
        let call = |call: &CallSide| call.number.is_some_and(|number| !call.exit || !MAKE_CHILDREN.contains(&number));
        !self.go
            && !self.window.leaves
            && !self.window.trap
            && self.guard == guard::NONE
            && self.call.as_ref().is_none_or(call)
    }

    /// Is it there for the sake of breakpoints alone?
    pub fn is_guard(&self) -> bool {
        self.links.is_empty() && self.guard < guard::UNWIND
    }

    /// Does it watch over `SIGTRAP`?
    pub fn watches(&self) -> bool {
        guard::is_for_traps(self.guard)
    }

    /// Do all of its links, of which there are some, fire at the function's return, by way of a stub?
    fn only_returns(&self) -> bool {
        self.has_return() && self.links.iter().all(|(_, kind)| *kind == ProbeKind::Return)
    }

    /// Does a link of it fire at the function's return, by way of a stub?
    pub fn has_return(&self) -> bool {
        !self.window.leaves && self.links.iter().any(|(_, kind)| *kind == ProbeKind::Return)
    }
}

/// What is to be done to a process.
#[derive(Default)]
pub struct Plan {
    /// The places.
    pub sites: Vec<PlannedSite>,
    /// Areas for their code.
    pub areas: Vec<Range<u64>>,
    /// What to tell of each probe.
    pub outcomes: Vec<ProbeOutcome>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Address of the C library's `rt_sigreturn` code, if a site is a breakpoint.
    pub restorer: Option<u64>,
    /// Sites that guard.
    pub guards: usize,
    /// Where a thread may be on its way to change masks or actions unguarded.
    pub hazards: Vec<Range<u64>>,
    /// Go's runtime is in the process.
    pub(super) go: bool,
    /// Functions to watch by which the program may put itself under a seccomp filter.
    pub(super) confining: Vec<(&'static str, u64)>,
    /// The system calls that are asked for.
    pub(super) calls: Vec<PlannedCall>,
    /// Why places were given up.
    pub(super) given_up: HashMap<u64, AttachError>,
}

/// Makes the plan.
pub fn plan(
    world: &mut World,
    maps: &[Mapping],
    modules: &Modules,
    probes: &[ProbeSpec],
    agent: &AgentImage,
) -> Result<Plan, AttachError> {
    grow(world, maps, modules, probes, agent, Vec::new())
}

/// Makes the plan for a process that has sites already: they stay as they are but for their links. What of them is not
/// needed any more may be missing in the plan.
pub fn grow(
    world: &mut World,
    maps: &[Mapping],
    modules: &Modules,
    probes: &[ProbeSpec],
    agent: &AgentImage,
    earlier: Vec<PlannedSite>,
) -> Result<Plan, AttachError> {
    let go = modules.get(0).and_then(Module::loaded).is_some_and(|loaded| loaded.elf.go);
    let mut plan = Plan { sites: earlier, go, ..Plan::default() };
    plan.sites.iter_mut().for_each(|site| site.links.clear());
    for probe in probes.iter().filter(|probe| !matches!(probe.target, ProbeTarget::Syscall(_))) {
        match modules.find(&probe.target) {
            Ok(found) => {
                if let [first, _, ..] = &found[..] {
                    plan.notes.push(format!("`{}` is in {} places; probing all of them", first.name, found.len()));
                }
                for found in found {
                    let result = plan.add(world, maps, modules, probe, found);
                    plan.outcomes.push(ProbeOutcome { link: probe.link, result });
                }
            }
            Err(error) => plan.outcomes.push(ProbeOutcome { link: probe.link, result: Err(error) }),
        }
    }
    plan.add_calls(world, modules, probes);
    plan.check_arrivals(world, modules);
    if agent.traps.is_some() {
        plan.describe_stubs(world, modules);
        plan.watch_filters(world, modules);
    }
    plan.add_guards(world, modules);
    for site in &mut plan.sites {
        site.vectors = agent.vectors;
        // What is there stays as it is.
        if site.code == 0 {
            site.asks = agent.enter.is_some() && !site.go && site.only_returns();
            site.quick = agent.quick.is_some() && site.is_plain() && !site.only_returns() && !site.stored().calls();
        }
    }
    plan.place(maps, modules);
    plan.check_guards();
    plan.check_description();
    plan.check_filters();
    plan.tell_calls(modules, probes);
    Ok(plan)
}

/// What is stored of the registers when functions return: what programs read, or all where any may read all.
pub fn stored_at_return(sites: &[PlannedSite]) -> Registers {
    let stubs = || sites.iter().filter(|site| !site.window.leaves);
    match stubs().any(|site| site.registers.contains(&Registers::ALL)) {
        true => Registers::ALL,
        false => stubs().fold(Registers::NONE, |all, site| all.and(site.registers[1])),
    }
}

impl Plan {
    /// Adds a probe: to a site that is there already, or as a new one.
    fn add(
        &mut self,
        world: &mut World,
        maps: &[Mapping],
        modules: &Modules,
        probe: &ProbeSpec,
        mut found: Found,
    ) -> Result<Placed, AttachError> {
        let index = found.module;
        let module = modules.get(index).ok_or(AttachError::Exited { pid: world.pid })?;
        let refuse = |reason: &str| AttachError::Unprobeable {
            symbol: found.display(),
            module: module.path.clone(),
            reason: reason.to_owned(),
        };
        let loaded = module.loaded().ok_or_else(|| refuse("its file cannot be read"))?;
        if probe.kind == ProbeKind::Return && found.offset != 0 {
            return Err(refuse("a return probe belongs to a function, not to an instruction in it"));
        }
        if let Some(reason) = peculiar(&found.name, probe.kind) {
            return Err(refuse(reason));
        }
        self.go |= loaded.elf.go;
        if loaded.elf.go
            && let Some(reason) = go::peculiar(&found)
        {
            return Err(refuse(reason));
        }
        if probe.kind == ProbeKind::Return && !found.ifunc && !begins(world, module, &found) {
            return Err(refuse(
                "a return probe belongs to a function, and none begins there that is known to be called",
            ));
        }
        if found.ifunc {
            let implementation = choose(world, maps, found.address)
                .filter(|&address| module.has_code_at(address))
                .ok_or_else(|| refuse("it is chosen at load time, and the choice cannot be found out"))?;
            found.address = implementation;
        }
        let ip = found.address.wrapping_add(found.offset);
        let symbol = found.display();
        let placed = Placed {
            symbol: symbol.clone(),
            module: module.path.clone(),
            address: ip,
            method: Method::Jump,
            why_no_jump: None,
            calls: None,
        };
        let link = (probe.link, probe.kind);
        if loaded.elf.go && probe.kind == ProbeKind::Return {
            self.add_leaves(world, modules, module, found, probe)?;
            return Ok(placed);
        }
        if let Some(site) = self.sites.iter_mut().find(|site| site.ip == ip) {
            if site.call.is_some() {
                return Err(no_jump(module, &found, format!("the probe at `{}` is too near", site.symbol)));
            }
            if site.window.leaves {
                return Err(no_jump(module, &found, "its first instruction is the last of it, which is probed, too"));
            }
            if site.links.len() >= SITE_LINKS {
                return Err(AttachError::TooManyLinks { symbol, address: ip, limit: SITE_LINKS });
            }
            site.add_link(link, probe.registers);
            let why_no_jump = site.window.trap.then(|| site.why_no_jump.clone());
            return Ok(Placed { method: site.window.method(), why_no_jump, ..placed });
        }
        let (window, why_no_jump) = match self.find_jump(world, modules, module, &found) {
            Err(AttachError::NoJump { reason, .. }) => {
                (self.find_trap(world, modules, module, &found, &reason)?, reason)
            }
            other => (other?, String::new()),
        };
        let method = window.method();
        let site = self.push(world, found, window);
        site.add_link(link, probe.registers);
        site.why_no_jump.clone_from(&why_no_jump);
        site.go = loaded.elf.go;
        Ok(Placed { method, why_no_jump: (method == Method::Int3).then_some(why_no_jump), ..placed })
    }

    /// A window for a jump that is clear of all other sites.
    pub(super) fn find_jump(
        &self,
        world: &World,
        modules: &Modules,
        module: &Module,
        found: &Found,
    ) -> Result<Window, AttachError> {
        let window = find_window(world, modules, module, found, site::window)?;
        match self.too_near(found.address.wrapping_add(found.offset), &window) {
            None => Ok(window),
            Some(reason) => Err(no_jump(module, found, reason)),
        }
    }

    /// A window for a breakpoint, where for `reason` no jump fits.
    fn find_trap(
        &self,
        world: &World,
        modules: &Modules,
        module: &Module,
        found: &Found,
        reason: &str,
    ) -> Result<Window, AttachError> {
        if self.go {
            // Its runtime has `SIGTRAP` for itself, and sets actions and masks by system calls of its own.
            return Err(no_jump(module, found, format!("{reason}; nor do breakpoints live in a Go program")));
        }
        let why_not = match guards::traps_kill(module, found.module) {
            Some(why) => why.to_owned(),
            None => match find_window(world, modules, module, found, site::trap_window) {
                Ok(window) => match self.too_near(found.address.wrapping_add(found.offset), &window) {
                    None => return Ok(window),
                    // The same that keeps a jump away.
                    Some(_) => return Err(no_jump(module, found, reason)),
                },
                Err(AttachError::NoJump { reason: why, .. }) if why == reason => {
                    return Err(no_jump(module, found, reason));
                }
                Err(AttachError::NoJump { reason: why, .. }) => why,
                Err(other) => return Err(other),
            },
        };
        Err(no_jump(module, found, format!("{reason}; nor a breakpoint: {why_not}")))
    }

    /// Why a window cannot be beside those that there are.
    pub(super) fn too_near(&self, ip: u64, window: &Window) -> Option<String> {
        let taken = window.taken();
        let overlap = |other: &&PlannedSite| {
            let others = other.window.taken();
            other.ip != ip && taken.start < others.end && others.start < taken.end
        };
        let other = self.sites.iter().find(overlap)?;
        Some(format!("the probe at `{}` is too near", other.symbol))
    }

    /// Adds a site.
    pub(super) fn push(&mut self, world: &World, found: Found, window: Window) -> &mut PlannedSite {
        let ip = found.address.wrapping_add(found.offset);
        let mut text = [0; 16];
        let read = world.memory.read_up_to(ip, text.len());
        text[..read.len()].copy_from_slice(&read);
        let body = BodyCopy { code: Vec::new(), moves: Vec::new() };
        let symbol = found.display();
        self.sites.push_mut(PlannedSite {
            ip,
            window,
            links: Vec::new(),
            registers: [Registers::NONE; 2],
            vectors: true,
            asks: false,
            quick: false,
            symbol,
            text,
            entry: entry(world, &found),
            guard: guard::NONE,
            found,
            why_no_jump: String::new(),
            patch: Vec::new(),
            code: 0,
            lead: body.clone(),
            body,
            go: false,
            checked: false,
            call: None,
        })
    }

    /// Gives the sites whose inner bytes a branch of some other function leads to a breakpoint instead, or drops them.
    pub(super) fn check_arrivals(&mut self, world: &World, modules: &Modules) {
        let mut failed: Vec<(u64, AttachError)> = Vec::new();
        let mut changed: Vec<(u64, Window, String)> = Vec::new();
        for index in self.modules() {
            let Some(module) = modules.get(index) else { continue };
            let jumps = self.sites.iter().filter(|site| !site.window.trap && !site.checked);
            let of_module = jumps.filter(|site| site.found.module == index);
            let windows: Vec<_> = of_module.clone().map(|site| (site.window.address, site.avoided())).collect();
            let pointed = of_module.clone().any(|site| !site.window.entry || site.window.indirect);
            let branches = arrivals::find(&world.memory, module, &windows, pointed);
            for site in of_module {
                let Some(branch) = branches.get(&site.window.address) else { continue };
                let reason = format!("a branch or pointer at {branch:#x} leads into it");
                let instead = match site.guard {
                    guard::NONE if site.call.is_none() => self.find_trap(world, modules, module, &site.found, &reason),
                    _ => Err(no_jump(module, &site.found, &reason)),
                };
                match instead {
                    Ok(window) => changed.push((site.ip, window, reason)),
                    Err(error) => failed.push((site.ip, error)),
                }
            }
        }
        for (ip, window, reason) in changed {
            if let Some(site) = self.sites.iter_mut().find(|site| site.ip == ip) {
                site.window = window;
                site.why_no_jump.clone_from(&reason);
            }
            for placed in self.outcomes.iter_mut().filter_map(|outcome| outcome.result.as_mut().ok()) {
                if placed.address == ip {
                    placed.method = Method::Int3;
                    placed.why_no_jump = Some(reason.clone());
                }
            }
        }
        for site in &mut self.sites {
            site.checked = true;
        }
        self.fail(failed);
    }

    /// Needs no room where nothing is to be put.
    pub(super) fn tidy(&mut self) {
        if self.sites.is_empty() {
            self.areas.clear();
        }
    }

    /// Indices of the modules that have sites.
    fn modules(&self) -> Vec<usize> {
        let mut indices: Vec<usize> = self.sites.iter().map(|site| site.found.module).collect();
        indices.sort_unstable();
        indices.dedup();
        indices
    }

    /// Takes sites out again, and tells their probes why.
    pub(super) fn fail(&mut self, failed: Vec<(u64, AttachError)>) {
        let failed: HashMap<u64, AttachError> = failed.into_iter().collect();
        self.given_up.extend(failed.iter().map(|(ip, error)| (*ip, error.clone())));
        // A function that is probed at each `ret` is probed at all of them or none.
        let whole: HashMap<u64, AttachError> = self
            .sites
            .iter()
            .filter(|site| site.window.leaves)
            .filter_map(|site| Some((site.outcome(), failed.get(&site.ip)?.clone())))
            .collect();
        let lost = |site: &PlannedSite| match site.window.leaves {
            true => whole.get(&site.outcome()),
            false => failed.get(&site.ip),
        };
        for outcome in &mut self.outcomes {
            let of = |site: &&PlannedSite, placed: &Placed| {
                site.outcome() == placed.address && site.links.iter().any(|(link, _)| *link == outcome.link)
            };
            let error = outcome
                .result
                .as_ref()
                .ok()
                .and_then(|placed| self.sites.iter().filter(|site| of(site, placed)).find_map(lost));
            if let Some(error) = error {
                outcome.result = Err(error.clone());
            }
        }
        let lost: Vec<u64> = self.sites.iter().filter(|site| lost(site).is_some()).map(|site| site.ip).collect();
        self.sites.retain(|site| !lost.contains(&site.ip));
    }

    /// Finds room for the code of all sites, and makes their copies.
    fn place(&mut self, maps: &[Mapping], modules: &Modules) {
        let mut failed: Vec<(u64, AttachError)> = Vec::new();
        for index in self.modules() {
            let Some(module) = modules.get(index) else { continue };
            let sites: Vec<&mut PlannedSite> =
                self.sites.iter_mut().filter(|site| site.found.module == index && site.code == 0).collect();
            if sites.is_empty() {
                continue;
            }
            let size = (sites.len() as u64 * SITE_CODE).next_multiple_of(4096);
            let Some(area) = place_code::find(maps, &self.areas, &module.span(), size) else {
                let error = AttachError::NoRoom { module: module.path.clone(), bytes: size };
                failed.extend(sites.iter().map(|site| (site.ip, error.clone())));
                continue;
            };
            self.areas.push(area..area + size);
            for (site, n) in sites.into_iter().zip(0u64..) {
                site.code = area + n * SITE_CODE;
                match site.window.lead_at(site.code) {
                    Ok(lead) => site.lead = lead,
                    Err(reason) => {
                        failed.push((site.ip, no_jump(module, &site.found, reason)));
                        continue;
                    }
                }
                match (site.window.copy_to(site.body_address()), site.window.patch(site.code)) {
                    (Ok(body), Some(patch)) if { body.code.len() + site.lead.code.len() } as u64 <= BODY_MAX => {
                        site.body = body;
                        site.patch = patch;
                    }
                    (Ok(_), _) => {
                        failed.push((site.ip, AttachError::NoRoom { module: module.path.clone(), bytes: SITE_CODE }))
                    }
                    (Err(reason), _) => failed.push((site.ip, no_jump(module, &site.found, reason))),
                }
            }
        }
        self.fail(failed);
        self.tidy();
    }
}

/// Is it a function, entered by calls? Where its frames are described, they begin with nothing but a return address.
fn begins(world: &World, module: &Module, found: &Found) -> bool {
    found.begins && frames::is_entry(&world.memory, module, found.address) != Some(false)
}

/// Bytes from the start of a function to a place that is its entry: none, or an `endbr64`.
fn entry(world: &World, found: &Found) -> Option<u32> {
    match found.offset {
        0 => Some(0),
        4 if world.memory.read_up_to(found.address, 4) == ENDBR64 => Some(4),
        _ => None,
    }
}

/// Functions that break if they are probed so, by name.
fn peculiar(name: &str, kind: ProbeKind) -> Option<&'static str> {
    let name = name.split('@').next().unwrap_or(name);
    match (name, kind) {
        ("__restore_rt" | "__restore", _) => Some("the kernel and unwinders know it by its bytes"),
        (
            "setjmp" | "_setjmp" | "__setjmp" | "sigsetjmp" | "__sigsetjmp" | "getcontext" | "swapcontext",
            ProbeKind::Return,
        )
        | ("vfork" | "__vfork", ProbeKind::Return) => Some("it returns more than once"),
        (
            "_start"
            | "_dl_start_user"
            | "_dl_runtime_resolve_xsave"
            | "_dl_runtime_resolve_xsavec"
            | "_dl_runtime_resolve_fxsave"
            | "_dl_runtime_profile_avx"
            | "_dl_runtime_profile_avx512"
            | "_dl_runtime_profile_sse"
            | "__morestack",
            ProbeKind::Return,
        ) => Some("what is on the stack at its entry is not a return address"),
        ("_Unwind_Find_FDE", ProbeKind::Return) => Some("unwinders ask it for the frames of return probes"),
        ("dlopen" | "dlmopen" | "dlsym" | "dlvsym", ProbeKind::Return) => {
            Some("it finds its caller by the return address, which a return probe replaces; probe its entry")
        }
        _ => None,
    }
}

/// The error for a place that cannot be patched.
pub(super) fn no_jump(module: &Module, found: &Found, reason: impl Into<String>) -> AttachError {
    let address = found.address.wrapping_add(found.offset);
    AttachError::NoJump { symbol: found.display(), module: module.path.clone(), address, reason: reason.into() }
}

/// Calls a chooser (`STT_GNU_IFUNC`), which looks at the processor's features only.
fn choose(world: &mut World, maps: &[Mapping], chooser: u64) -> Option<u64> {
    let mut remote = Remote::begin(world, None, maps).ok()?;
    let address = remote.call(chooser, [0; 3], false);
    remote.finish().ok()?;
    address.ok()
}

/// Reads a function and finds the window in it.
fn find_window(
    world: &World,
    modules: &Modules,
    module: &Module,
    found: &Found,
    finder: fn(&Function, u64) -> Result<Window, Refusal>,
) -> Result<Window, AttachError> {
    with_function(world, modules, module, found, |function| finder(function, found.offset))
}

/// Bytes of a function that are looked at, at most.
const TEXT: u64 = 16 << 20;

/// Reads a function and finds something in it.
pub(super) fn with_function<T>(
    world: &World,
    modules: &Modules,
    module: &Module,
    found: &Found,
    finder: impl FnOnce(&Function) -> Result<T, Refusal>,
) -> Result<T, AttachError> {
    let loaded = module.loaded().ok_or_else(|| no_jump(module, found, "its file cannot be read"))?;
    let start = found.address.wrapping_sub(loaded.bias);
    let size = match loaded.elf.at(start).map(|symbol| symbol.size).max() {
        Some(size) => size,
        None => {
            let piece = module.pieces(&world.memory, modules).and_then(|pieces| pieces.at(found.address));
            piece.filter(|p| p.range.start == found.address).map_or(0, |p| p.range.end - p.range.start)
        }
    };
    let end = match size {
        0 => {
            let next = loaded.elf.next_after(start).unwrap_or(start.saturating_add(64));
            next.min(start.saturating_add(4096))
        }
        size => start.saturating_add(size),
    };
    let inner: Vec<u64> =
        loaded.elf.inside(start, end).into_iter().map(|address| address.wrapping_add(loaded.bias)).collect();
    let text = world.memory.read_up_to(found.address, (end - start).min(TEXT) as usize + 32);
    let range = found.address..found.address.saturating_add(end - start);
    let function = Function {
        arrivals: &|| match loaded.elf.go && found.offset == 0 && !loaded.elf.describes() {
            // They begin with a look at how much stack is left, which no table leads into.
            true => Ok(Vec::new()),
            false => jumps::arrivals(&world.memory, modules, module, &range, &inner),
        },
        range: range.clone(),
        text: &text,
        sized: size != 0,
        next: &|| module.next_after(&world.memory, modules, range.end.wrapping_sub(1)).unwrap_or(u64::MAX),
        inner_symbols: &inner,
        begins: begins(world, module, found),
        red_zone: !loaded.elf.go,
        thunk: &|address| loaded.is_thunk(address),
    };
    finder(&function).map_err(|refusal| match refusal {
        Refusal::MidInstruction { before, after } => {
            AttachError::MidInstruction { symbol: found.display(), module: module.path.clone(), before, after }
        }
        Refusal::NoJump(reason) => no_jump(module, found, reason),
    })
}
