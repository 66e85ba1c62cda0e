//! From probes to sites: which functions, which windows, where their code goes. Nothing is changed in the target yet.

use std::collections::HashMap;
use std::ops::Range;

use skep_runtime::session::SITE_LINKS;

use super::AttachError;
use super::arrivals;
use super::code::{self, Trampoline};
use super::place_code;
use super::procfs::Mapping;
use super::remote::Remote;
use super::request::{Method, Placed, ProbeKind, ProbeOutcome, ProbeSpec};
use super::site::{self, BodyCopy, Function, JUMP, Refusal, Window};
use super::symbols::{Found, Loaded, Module, Modules};
use super::world::World;

/// Bytes that a site's code may take; trampolines begin at multiples of it.
const SITE_CODE: u64 = 1024;
/// Bytes that a copy takes at most: 19 of instructions, each grown to its longest form, and the jump back.
const BODY_MAX: u64 = 256;
const _: () = assert!(code::TRAMPOLINE_MAX + BODY_MAX <= SITE_CODE);

/// A place to patch.
pub struct PlannedSite {
    /// What programs see as `ip`.
    pub ip: u64,
    /// The instructions that give way.
    pub window: Window,
    /// Links, with their kinds.
    pub links: Vec<(u32, ProbeKind)>,
    /// Name, for messages.
    pub symbol: String,
    /// The text at `ip` as it is.
    pub text: [u8; 16],
    module: usize,
    /// Where its trampoline goes.
    pub code: u64,
    /// The copy, which follows the trampoline.
    pub body: BodyCopy,
}

impl PlannedSite {
    /// Address of the displaced instructions' copy.
    pub fn body_address(&self) -> u64 {
        self.code + trampoline_len(!self.window.entry)
    }

    /// The whole code of the site.
    pub fn make_code(&self, site: u64, hit: u64) -> Vec<u8> {
        let mut bytes = code::trampoline(&Trampoline { site, ip: self.ip, hit, inside: !self.window.entry });
        bytes.extend_from_slice(&self.body.code);
        bytes
    }
}

fn trampoline_len(inside: bool) -> u64 {
    code::trampoline(&Trampoline { site: 0, ip: 0, hit: 0, inside }).len() as u64
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
}

/// Makes the plan.
pub fn plan(world: &mut World, maps: &[Mapping], modules: &Modules, probes: &[ProbeSpec]) -> Result<Plan, AttachError> {
    let mut plan = Plan::default();
    for probe in probes {
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
    plan.check_arrivals(world, modules);
    plan.place(maps, modules);
    Ok(plan)
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
        if found.ifunc {
            let implementation = choose(world, maps, found.address)
                .filter(|&address| module.has_code_at(address))
                .ok_or_else(|| refuse("it is chosen at load time, and the choice cannot be found out"))?;
            found.address = implementation;
        }
        let ip = found.address.wrapping_add(found.offset);
        let symbol = found.display();
        let placed = Placed { symbol: symbol.clone(), module: module.path.clone(), address: ip, method: Method::Jump };
        let link = (probe.link, probe.kind);
        if let Some(site) = self.sites.iter_mut().find(|site| site.ip == ip) {
            if site.links.len() >= SITE_LINKS {
                return Err(AttachError::TooManyLinks { symbol, address: ip, limit: SITE_LINKS });
            }
            site.links.push(link);
            return Ok(placed);
        }
        let window = find_window(world, module, loaded, &found)?;
        if let Some(other) = self.sites.iter().find(|other| overlap(&other.window, &window)) {
            return Err(AttachError::NoJump {
                symbol,
                module: module.path.clone(),
                address: ip,
                reason: format!("the jump of the probe at `{}` is too near", other.symbol),
            });
        }
        let mut text = [0; 16];
        let read = world.memory.read_up_to(ip, text.len());
        text[..read.len()].copy_from_slice(&read);
        let body = BodyCopy { code: Vec::new(), moves: Vec::new() };
        self.sites.push(PlannedSite { ip, window, links: vec![link], symbol, text, module: index, code: 0, body });
        Ok(placed)
    }

    /// Drops the sites whose inner bytes a branch of some other function leads to.
    fn check_arrivals(&mut self, world: &World, modules: &Modules) {
        let mut failed: Vec<(u64, AttachError)> = Vec::new();
        for index in self.modules() {
            let Some(module) = modules.get(index) else { continue };
            let of_module = self.sites.iter().filter(|site| site.module == index);
            let windows: Vec<_> = of_module.clone().map(|site| (site.window.address, site.window.inner())).collect();
            let branches = arrivals::find(&world.memory, module, &windows);
            for site in of_module {
                if let Some(branch) = branches.get(&site.window.address) {
                    let (symbol, module) = (site.symbol.clone(), module.path.clone());
                    let reason = format!("the branch at {branch:#x} leads into it");
                    failed.push((site.ip, AttachError::NoJump { symbol, module, address: site.ip, reason }));
                }
            }
        }
        self.fail(failed);
    }

    /// Indices of the modules that have sites.
    fn modules(&self) -> Vec<usize> {
        let mut indices: Vec<usize> = self.sites.iter().map(|site| site.module).collect();
        indices.sort_unstable();
        indices.dedup();
        indices
    }

    /// Takes sites out again, and tells their probes why.
    fn fail(&mut self, failed: Vec<(u64, AttachError)>) {
        let failed: HashMap<u64, AttachError> = failed.into_iter().collect();
        self.sites.retain(|site| !failed.contains_key(&site.ip));
        for outcome in &mut self.outcomes {
            let error = outcome.result.as_ref().ok().and_then(|placed| failed.get(&placed.address));
            if let Some(error) = error {
                outcome.result = Err(error.clone());
            }
        }
    }

    /// Finds room for the code of all sites, and makes their copies.
    fn place(&mut self, maps: &[Mapping], modules: &Modules) {
        let mut failed: Vec<(u64, AttachError)> = Vec::new();
        for index in self.modules() {
            let Some(module) = modules.get(index) else { continue };
            let sites: Vec<&mut PlannedSite> = self.sites.iter_mut().filter(|site| site.module == index).collect();
            let size = (sites.len() as u64 * SITE_CODE).next_multiple_of(4096);
            let Some(area) = place_code::find(maps, &self.areas, &module.range, size) else {
                let error = AttachError::NoRoom { module: module.path.clone(), bytes: size };
                failed.extend(sites.iter().map(|site| (site.ip, error.clone())));
                continue;
            };
            self.areas.push(area..area + size);
            for (site, n) in sites.into_iter().zip(0u64..) {
                site.code = area + n * SITE_CODE;
                match site.window.copy_to(site.body_address()) {
                    Ok(body) if body.code.len() as u64 <= BODY_MAX => site.body = body,
                    Ok(_) => {
                        failed.push((site.ip, AttachError::NoRoom { module: module.path.clone(), bytes: SITE_CODE }))
                    }
                    Err(reason) => {
                        let symbol = site.symbol.clone();
                        let module = module.path.clone();
                        failed.push((site.ip, AttachError::NoJump { symbol, module, address: site.ip, reason }));
                    }
                }
            }
        }
        self.fail(failed);
        if self.sites.is_empty() {
            self.areas.clear();
        }
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
        ("dlopen" | "dlmopen" | "dlsym" | "dlvsym", ProbeKind::Return) => {
            Some("it finds its caller by the return address, which a return probe replaces; probe its entry")
        }
        _ => None,
    }
}

fn overlap(a: &Window, b: &Window) -> bool {
    let end = |w: &Window| w.address + w.len.max(JUMP as u64);
    a.address < end(b) && b.address < end(a)
}

/// Calls a chooser (`STT_GNU_IFUNC`), which looks at the processor's features only.
fn choose(world: &mut World, maps: &[Mapping], chooser: u64) -> Option<u64> {
    let mut remote = Remote::begin(world, None, maps).ok()?;
    let address = remote.call(chooser, [0; 3], false);
    remote.finish().ok()?;
    address.ok()
}

/// Reads a function and finds the window in it.
fn find_window(world: &World, module: &Module, loaded: &Loaded, found: &Found) -> Result<Window, AttachError> {
    let start = found.address.wrapping_sub(loaded.bias);
    let symbols = loaded.elf.symbols.iter();
    let size = symbols.filter(|s| s.address == start).map(|s| s.size).max().unwrap_or(0);
    let next = loaded.elf.next_after(start + size.saturating_sub(1)).unwrap_or(start + size + 64);
    let end = match size {
        0 => next.min(start + 4096),
        size => start + size,
    };
    let inner: Vec<u64> =
        loaded.elf.inside(start, end).into_iter().map(|address| address.wrapping_add(loaded.bias)).collect();
    let text = world.memory.read_up_to(found.address, (end - start) as usize + 32);
    let function = Function {
        range: found.address..found.address + (end - start),
        text: &text,
        sized: size != 0,
        next: next.wrapping_add(loaded.bias),
        exceptions: loaded.elf.exceptions,
        inner_symbols: &inner,
    };
    site::window(&function, found.offset).map_err(|refusal| match refusal {
        Refusal::MidInstruction { before, after } => {
            AttachError::MidInstruction { symbol: found.display(), module: module.path.clone(), before, after }
        }
        Refusal::NoJump(reason) => AttachError::NoJump {
            symbol: found.display(),
            module: module.path.clone(),
            address: found.address.wrapping_add(found.offset),
            reason,
        },
    })
}
