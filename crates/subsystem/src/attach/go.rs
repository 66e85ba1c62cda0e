//! Programs made by Go: goroutines, whose stacks are small, move, and are looked through by a runtime that knows every return
//! address on them.
//!
//! * Nothing of ours is ever on such a stack: trampolines take a stack of our own first (`code`).
//! * A return address is never changed. Returns are probed at each `ret` (`site::leaves`).
//! * A goroutine that a signal has preempted goes on later at the very instruction, whose address is on its stack. It cannot be
//!   changed to that of a copy, since the runtime looks it up. So text is patched when none is about to go on inside
//!   ([`await_clear`]). Once it is patched none can be: the runtime preempts in code that it knows only.
//! * There are no breakpoints: the runtime has `SIGTRAP` for itself, and sets actions and masks by system calls of its own.

use std::collections::HashSet;
use std::time::Duration;

use super::AttachError;
use super::patch;
use super::plan::{self, Plan};
use super::procfs;
use super::request::ProbeSpec;
use super::site::{self, Window};
use super::symbols::{Found, Module, Modules};
use super::world::{Memory, World};

use skep_runtime::session::SITE_LINKS;

/// Functions, by the start of their names, that are not called as Go's functions are, or that run where nothing else may.
const PECULIAR: [&str; 26] = [
    "runtime.asmcgocall",
    "runtime.asyncPreempt",
    "runtime.call",
    "runtime.cgo",
    "runtime.debugCall",
    "runtime.duff",
    "runtime.gcWriteBarrier",
    "runtime.goexit",
    "runtime.gogo",
    "runtime.gosave",
    "runtime.mcall",
    "runtime.morestack",
    "runtime.mstart",
    "runtime.newstack",
    "runtime.panic",
    "runtime.racecall",
    "runtime.reflectcall",
    "runtime.rt0_go",
    "runtime.sigpanic",
    "runtime.sigprof",
    "runtime.sigreturn",
    "runtime.sigtramp",
    "runtime.spillArgs",
    "runtime.systemstack",
    "runtime.unspillArgs",
    "runtime.wb",
];

/// Why a function of a Go program cannot be probed, by what it is.
pub fn peculiar(found: &Found) -> Option<&'static str> {
    match (found.offset, found.name.contains('.')) {
        (1.., _) => Some("in Go programs only functions' entries and returns can be probed"),
        (0, false) => Some("it is not written in Go, and may run on a goroutine's small stack"),
        _ => PECULIAR
            .iter()
            .any(|start| found.name.starts_with(start))
            .then_some("Go's runtime does not call it as other functions are called"),
    }
}

impl Plan {
    /// Probes the return from a function by its `ret`s, where return addresses must stay: Go's stacks move, and its runtime
    /// looks up who is on them. All or none.
    pub(super) fn add_leaves(
        &mut self,
        world: &World,
        modules: &Modules,
        module: &Module,
        found: Found,
        probe: &ProbeSpec,
    ) -> Result<(), AttachError> {
        let windows = plan::with_function(world, modules, module, &found, site::leaves)?;
        let known = |plan: &Plan, window: &Window| {
            plan.sites.iter().position(|site| site.window.leaves && site.ip == window.address)
        };
        for window in &windows {
            match known(self, window).and_then(|n| self.sites.get(n)) {
                Some(site) if site.links.len() >= SITE_LINKS => {
                    let (symbol, address) = (found.display(), window.address);
                    return Err(AttachError::TooManyLinks { symbol, address, limit: SITE_LINKS });
                }
                Some(_) => {}
                None => {
                    if let Some(reason) = self.too_near(window.address, window) {
                        return Err(plan::no_jump(module, &found, reason));
                    }
                }
            }
        }
        for window in windows {
            let n = match known(self, &window) {
                Some(n) => n,
                None => {
                    let offset = window.address - found.address;
                    let site = self.push(world, Found { offset, ..found.clone() }, window);
                    site.go = true;
                    site.entry = u32::try_from(offset).ok();
                    self.sites.len() - 1
                }
            };
            if let Some(site) = self.sites.get_mut(n) {
                site.add_link((probe.link, probe.kind), probe.registers);
            }
        }
        Ok(())
    }
}

/// Offsets in the runtime's `g`, the same since Go 1.5: bounds of its stack, its thread, and the stack pointer it goes on with.
const STACK: [usize; 2] = [0, 8];
const THREAD: usize = 48;
const POINTER: usize = 56;
/// Bytes of it that are read.
const HEAD: usize = 64;
/// Larger stacks than the runtime allows are none.
const STACK_MAX: u64 = 1 << 30;
/// Goroutines that are looked at.
const MOST: u64 = 1 << 20;
/// How long it is waited for that all goroutines are elsewhere.
const TRIES: u32 = 100;

/// Lets the process run until no goroutine is to go on at one of these addresses.
pub fn await_clear(world: &mut World, modules: &Modules, forbidden: &HashSet<u64>) -> Result<(), AttachError> {
    if forbidden.is_empty() {
        return Ok(());
    }
    for attempt in 0..TRIES {
        if is_clear(world, modules, forbidden)? {
            return Ok(());
        }
        world.breathe(Duration::from_micros(300 + 100 * u64::from(attempt)))?;
    }
    let status = procfs::status(world.pid)?;
    Err(AttachError::Unsuitable {
        pid: world.pid,
        command: status.name,
        reason: "a goroutine was preempted in the instructions to be patched, and does not go on; try again later"
            .into(),
    })
}

fn is_clear(world: &World, modules: &Modules, forbidden: &HashSet<u64>) -> Result<bool, AttachError> {
    let maps = procfs::maps(world.pid)?;
    let mut clear = true;
    // A handler of Go's may be about to put the address on the goroutine's stack.
    patch::for_each_frame(world, &maps, |world, at| {
        clear &= !world.memory.word(at).is_ok_and(|rip| forbidden.contains(&rip));
        Ok(())
    })?;
    let runtimes = modules.iter().filter_map(Module::known).filter(|loaded| loaded.elf.go);
    for loaded in runtimes {
        let all = loaded.elf.data_symbol("runtime.allgs").ok_or_else(|| AttachError::Unsuitable {
            pid: world.pid,
            command: procfs::status(world.pid).map_or_else(|_| String::new(), |status| status.name),
            reason: "where Go's runtime has its goroutines is not known: its symbols are stripped".into(),
        })?;
        let all = all.wrapping_add(loaded.bias);
        let (list, count) = (world.memory.word(all)?, world.memory.word(all.wrapping_add(8))?);
        for n in 0..count.min(MOST) {
            let goroutine = world.memory.word(list.wrapping_add(n * 8))?;
            clear = clear && !goes_on_at(&world.memory, goroutine, forbidden);
        }
    }
    Ok(clear)
}

/// Is one of these addresses on the goroutine's stack?
fn goes_on_at(memory: &Memory, goroutine: u64, forbidden: &HashSet<u64>) -> bool {
    let head = memory.read_up_to(goroutine, HEAD);
    let word = |bytes: &[u8], at: usize| bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b));
    let words = [STACK[0], STACK[1], THREAD, POINTER].map(|at| word(&head, at).unwrap_or(0));
    let [low, high, thread, pointer] = words;
    if low >= high || high - low > STACK_MAX {
        return false;
    }
    // Of one that runs the stack pointer is elsewhere.
    let from = if thread == 0 && (low..high).contains(&pointer) { pointer & !7 } else { low };
    let live = memory.read_up_to(from, (high - from) as usize);
    live.chunks_exact(8).filter_map(|bytes| word(bytes, 0)).any(|address| forbidden.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let found =
            |name: &str, offset| Found { module: 0, name: name.into(), address: 0, offset, ifunc: false, begins: true };
        assert_eq!(peculiar(&found("main.Hot", 0)), None);
        assert_eq!(peculiar(&found("net/http.(*conn).serve", 0)), None);
        for (name, offset) in [("main.Hot", 4), ("crosscall2", 0), ("runtime.asyncPreempt.abi0", 0)] {
            assert!(peculiar(&found(name, offset)).is_some(), "{name}");
        }
    }

    /// How many functions of a Go program can be probed at their entry, and at all of their `ret`s.
    #[test]
    fn share_of_functions() {
        let Some(path) = std::env::var_os("SKEP_GO") else { return };
        let elf = crate::attach::elf_file::ElfFile::read(&std::fs::File::open(&path).unwrap()).unwrap();
        let file = std::fs::read(&path).unwrap();
        let mut reasons = std::collections::BTreeMap::<String, u32>::new();
        let (mut entries, mut returns, mut rets, mut never, mut all) = (0u32, 0u32, 0usize, 0u32, 0u32);
        for symbol in elf.symbols.iter().filter(|s| s.function && s.size != 0 && s.name.contains('.')) {
            let Some(segment) = elf.segments.iter().find(|s| symbol.address.wrapping_sub(s.address) < s.size) else {
                continue;
            };
            let at = (symbol.address - segment.address + segment.offset) as usize;
            let end = symbol.address + symbol.size;
            let inner = elf.inside(symbol.address, end);
            let function = site::Function {
                range: symbol.address..end,
                text: &file[at..file.len().min(at + symbol.size as usize + 32)],
                sized: true,
                next: &|| elf.next_after(end - 1).unwrap_or(end + 64),
                arrivals: &|| Ok(Vec::new()),
                inner_symbols: &inner,
                begins: true,
                red_zone: false,
                thunk: &|_| false,
            };
            all += 1;
            entries += u32::from(site::window(&function, 0).is_ok());
            match site::leaves(&function) {
                Ok(windows) => {
                    returns += 1;
                    rets += windows.len();
                }
                Err(site::Refusal::NoJump(why)) if why.contains("never") => never += 1,
                Err(site::Refusal::NoJump(why)) => {
                    let words = why.split_whitespace().filter(|w| !w.starts_with('+'));
                    *reasons.entry(words.collect::<Vec<_>>().join(" ")).or_default() += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        println!(
            "{all} functions: {entries} entries; {returns} of {} returns, {rets} `ret`s; {reasons:#?}",
            all - never
        );
        assert!(all != 0);
    }
}
