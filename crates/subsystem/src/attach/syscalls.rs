//! System calls in the text of a process, and probes before and behind them.
//!
//! A probe before a call displaces the instructions that lead up to it, most often the one that loads its number; one behind it
//! those that come next. The `syscall` itself stays where it is: threads that the kernel has stopped in it come back behind it,
//! and begin it anew by going back two bytes. Both are boundaries of what is displaced, so such threads are left alone. A call
//! that the kernel begins anew is not seen a second time.
//!
//! What is not watched is told, with the reason: calls to which a branch leads, past the probe; those that do not return, or not
//! in the ordinary way; those whose number is not known, where they return; those of Go's runtime, which makes them on
//! goroutines' stacks; calls outside of functions; and code that is mapped later, or made by the process itself.

use std::collections::HashSet;
use std::ops::Range;

use skep_ebpf::syscall;
use skep_runtime::session::SITE_LINKS;

use super::AttachError;
use super::code::CallSide;
use super::jumps;
use super::plan::Plan;
use super::request::{
    Calls, Method, Placed, ProbeKind, ProbeOutcome, ProbeSpec, ProbeTarget, Registers, SyscallProbe, Unwatched,
};
use super::site::{self, Function, Refusal};
use super::symbols::{Found, Module, Modules};
use super::world::{Memory, World};

/// Bytes of the instruction.
const SYSCALL: u64 = 2;
/// Bytes of a function that are looked through at most.
const FUNCTION: u64 = 1 << 20;

const RT_SIGRETURN: u32 = 15;
/// Calls that do not come back: `exit`, `exit_group`.
const LEAVE: [u32; 2] = [60, 231];
/// Functions in which the C library tells by the instruction pointer whether a thread that is cancelled has made its call yet.
const CANCELLED: [&str; 3] = ["__syscall_cp_asm", "__syscall_cp_c", "__syscall_cancel_arch"];

/// A system call in a module's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemCall {
    /// Address of the instruction.
    at: u64,
    /// Its number, if it is always the same.
    number: Option<u32>,
    /// Addresses of the function that it is in.
    function: Range<u64>,
    /// The function's name, or its address in the file.
    name: String,
}

/// All of a module.
#[derive(Clone, Debug, Default)]
pub struct SystemCalls {
    calls: Vec<SystemCall>,
    /// Instructions that look like one, outside of all functions that are known.
    strays: Vec<(u64, u32)>,
}

impl SystemCalls {
    /// Looks for them.
    pub fn of(memory: &Memory, modules: &Modules, module: &Module) -> SystemCalls {
        let mut found = SystemCalls::default();
        let mut functions: Vec<(Range<u64>, String)> = Vec::new();
        for at in candidates(memory, module) {
            if functions.last().is_some_and(|(range, _)| range.contains(&at)) {
                continue;
            }
            match function_at(memory, modules, module, at) {
                Some(function) => functions.push(function),
                None => found.strays.extend(plain(memory, at).map(|number| (at, number))),
            }
        }
        for (range, name) in functions {
            let calls = with(memory, modules, module, &range, |function| {
                site::calls_in(function)
                    .into_iter()
                    .map(|at| (at, site::number_of(function, at - range.start)))
                    .collect::<Vec<_>>()
            });
            for (at, number) in calls {
                // Where descriptions begin in the middle of an instruction, as those of signal frames do.
                let number = match plain(memory, at) {
                    Some(RT_SIGRETURN) => Some(RT_SIGRETURN),
                    Some(plain) => number.filter(|number| *number == plain),
                    None => number,
                };
                found.calls.push(SystemCall { at, number, function: range.clone(), name: name.clone() });
            }
        }
        found.calls.sort_by_key(|call| call.at);
        found.calls.dedup_by_key(|call| call.at);
        found
    }
}

/// Where the bytes of the instruction stand, be they one or not.
fn candidates(memory: &Memory, module: &Module) -> Vec<u64> {
    let mut found = Vec::new();
    for text in module.code() {
        memory.scan(&text, |at, pair: &[u8; 2]| {
            if *pair == [0x0f, 0x05] {
                found.push(at);
            }
        });
    }
    found
}

/// The number of a call that comes right behind what loads it.
fn plain(memory: &Memory, at: u64) -> Option<u32> {
    match memory.read_up_to(at.wrapping_sub(7), 7)[..] {
        [.., 0xb8, a, b, 0, 0] | [0x48, 0xc7, 0xc0, a, b, 0, 0] => Some(u16::from_le_bytes([a, b]).into()),
        _ => None,
    }
}

/// Does a function begin by looking whether its thread is cancelled, as those of [`CANCELLED`] do? They need not have names.
fn looks_for_cancellation(text: &[u8]) -> bool {
    // mov eax, [rdi]; test
    matches!(text.strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa]).unwrap_or(text), [0x8b, 0x07, 0x85 | 0xa8, ..])
}

/// The function that an address is in.
fn function_at(memory: &Memory, modules: &Modules, module: &Module, at: u64) -> Option<(Range<u64>, String)> {
    let loaded = module.loaded()?;
    let own = at.wrapping_sub(loaded.bias);
    if let Some(symbol) = loaded.elf.function_at(own).filter(|symbol| symbol.size > 1) {
        let start = symbol.address.wrapping_add(loaded.bias);
        return Some((start..start.checked_add(symbol.size.min(FUNCTION))?, symbol.name.clone()));
    }
    let piece = module.pieces(memory, modules)?.at(at)?.range.clone();
    let start = piece.start.wrapping_sub(loaded.bias);
    // A label may name it.
    let label = loaded.elf.at(start).next().map(|symbol| symbol.name.clone());
    Some((piece.start..piece.end.min(piece.start + FUNCTION), label.unwrap_or_else(|| format!("{start:#x}"))))
}

/// Reads a function.
fn with<T>(
    memory: &Memory,
    modules: &Modules,
    module: &Module,
    range: &Range<u64>,
    look: impl FnOnce(&Function) -> T,
) -> T {
    let bias = module.loaded().map_or(0, |loaded| loaded.bias);
    let symbols = module.loaded().map(|loaded| &loaded.elf);
    let (start, end) = (range.start.wrapping_sub(bias), range.end.wrapping_sub(bias));
    let inner: Vec<u64> = symbols.map_or_else(Vec::new, |elf| elf.inside(start, end));
    let inner: Vec<u64> = inner.into_iter().map(|address| address.wrapping_add(bias)).collect();
    let text = memory.read_up_to(range.start, (range.end - range.start) as usize + 32);
    look(&Function {
        arrivals: &|| jumps::arrivals(memory, modules, module, range, &inner),
        range: range.clone(),
        text: &text,
        sized: true,
        next: &|| module.next_after(memory, modules, range.end.wrapping_sub(1)).unwrap_or(range.end),
        inner_symbols: &inner,
        // Calls are inside.
        begins: false,
        red_zone: true,
        thunk: &|address| module.loaded().is_some_and(|loaded| loaded.is_thunk(address)),
    })
}

/// A side of a system call that programs are to be told of.
pub struct PlannedCall {
    symbol: String,
    module: usize,
    number: Option<u32>,
    links: Vec<u32>,
    /// The site, or why there is none.
    result: Result<u64, String>,
}

impl Plan {
    /// Adds the sides of system calls that are asked for.
    pub(super) fn add_calls(&mut self, world: &World, modules: &Modules, probes: &[ProbeSpec]) {
        let wanted: Vec<(SyscallProbe, u32, Registers)> = probes
            .iter()
            .filter_map(|probe| match probe.target {
                ProbeTarget::Syscall(what) => Some((what, probe.link, probe.registers)),
                _ => None,
            })
            .collect();
        if wanted.is_empty() {
            return;
        }
        for (index, module) in modules.iter().enumerate() {
            let Some(found) = module.system_calls(&world.memory, modules) else { continue };
            for (call, exit) in found.calls.iter().flat_map(|call| [(call, false), (call, true)]) {
                let leaves = |number| number == RT_SIGRETURN || LEAVE.contains(&number);
                let of = |what: &SyscallProbe| {
                    what.exit == exit && (what.number == call.number || what.number.is_none() || call.number.is_none())
                };
                let links: Vec<_> = wanted.iter().filter(|(what, ..)| of(what)).copied().collect();
                if links.is_empty() || exit && call.number.is_some_and(leaves) {
                    continue;
                }
                let result = self.add_call(world, modules, (index, module), call, exit, &links);
                self.calls.push(PlannedCall {
                    symbol: format!("{}+{:#x}", call.name, call.at - call.function.start),
                    module: index,
                    number: call.number,
                    links: links.iter().map(|(_, link, _)| *link).collect(),
                    result,
                });
            }
            for (at, number) in &found.strays {
                let of = |what: &SyscallProbe| what.number.is_none_or(|wanted| wanted == *number);
                let bias = module.loaded().map_or(0, |loaded| loaded.bias);
                self.calls.push(PlannedCall {
                    symbol: format!("{:#x}", at.wrapping_sub(bias)),
                    module: index,
                    number: Some(*number),
                    links: wanted.iter().filter(|(what, ..)| of(what)).map(|(_, link, _)| *link).collect(),
                    result: Err("it is in no function that is known".into()),
                });
            }
        }
    }

    /// Adds a side of a call: the address of its site.
    fn add_call(
        &mut self,
        world: &World,
        modules: &Modules,
        (index, module): (usize, &Module),
        call: &SystemCall,
        exit: bool,
        links: &[(SyscallProbe, u32, Registers)],
    ) -> Result<u64, String> {
        let loaded = module.loaded().ok_or("its file cannot be read")?;
        if loaded.elf.go {
            return Err("Go makes it on a goroutine's stack".into());
        }
        if call.number == Some(RT_SIGRETURN) {
            return Err("the kernel and unwinders know it by its bytes".into());
        }
        let start = world.memory.read_up_to(call.function.start, 8);
        if CANCELLED.contains(&call.name.as_str()) || call.number.is_none() && looks_for_cancellation(&start) {
            return Err("the C library looks whether a thread has come to it".into());
        }
        if exit && call.number.is_none() {
            return Err("it is not known of what call it returns".into());
        }
        let offset = call.at - call.function.start;
        let look = |function: &Function| match exit {
            false => {
                // What needs the flags behind the call needs them before it.
                let flags = site::behind_call(function, offset + SYSCALL, None).map_or(true, |(_, flags)| flags);
                Ok((site::before_call(function, offset)?, flags))
            }
            true => site::behind_call(function, offset + SYSCALL, call.number),
        };
        let found = with(&world.memory, modules, module, &call.function, look);
        let (window, flags) = found.map_err(|refusal| match refusal {
            Refusal::NoJump(reason) => reason,
            Refusal::MidInstruction { .. } => "what comes next cannot be decoded".into(),
        })?;
        let ip = window.address;
        let side = CallSide { number: call.number, exit, flags, back: call.at + SYSCALL };
        let there = self.sites.iter().position(|site| site.ip == ip);
        let site = match there.and_then(|n| self.sites.get_mut(n)) {
            Some(site) if site.call.is_some_and(|there| there.exit == exit && there.back == side.back) => site,
            Some(site) => return Err(format!("the probe at `{}` is too near", site.symbol)),
            None => {
                if let Some(reason) = self.too_near(ip, &window) {
                    return Err(reason);
                }
                let (address, offset) = (call.function.start, ip - call.function.start);
                let found =
                    Found { module: index, name: call.name.clone(), address, offset, ifunc: false, begins: false };
                let site = self.push(world, found, window);
                site.call = Some(side);
                site
            }
        };
        if site.links.len() + links.len() > SITE_LINKS {
            return Err(format!("it would have more than {SITE_LINKS} probes"));
        }
        for (_, link, registers) in links {
            site.add_link((*link, ProbeKind::Entry), *registers);
        }
        Ok(ip)
    }

    /// Tells what became of the probes on system calls.
    pub(super) fn tell_calls(&mut self, modules: &Modules, probes: &[ProbeSpec]) {
        let ips: HashSet<u64> = self.sites.iter().filter(|site| site.call.is_some()).map(|site| site.ip).collect();
        for probe in probes {
            let ProbeTarget::Syscall(what) = probe.target else { continue };
            let mut calls = Calls::default();
            let mut files: Vec<&str> = Vec::new();
            for call in self.calls.iter().filter(|call| call.links.contains(&probe.link)) {
                let module = modules.get(call.module);
                let reason = match &call.result {
                    Ok(ip) if ips.contains(ip) => {
                        calls.watched += 1;
                        files.extend(module.map(Module::file_name));
                        continue;
                    }
                    Ok(ip) => self.given_up.get(ip).map_or_else(String::new, |error| match error {
                        AttachError::NoJump { reason, .. } => reason.clone(),
                        other => other.to_string(),
                    }),
                    Err(reason) => reason.clone(),
                };
                calls.unwatched.push(Unwatched {
                    symbol: call.symbol.clone(),
                    module: module.map_or_else(String::new, |module| module.path.clone()),
                    number: call.number,
                    reason,
                });
            }
            files.dedup();
            let name = name(what);
            let result = match (calls.watched, calls.unwatched.first()) {
                (0, Some(first)) => Err(AttachError::Unprobeable {
                    symbol: name,
                    module: first.module.clone(),
                    reason: format!("none of {} places: {}: {}", calls.unwatched.len(), first.symbol, first.reason),
                }),
                (0, None) => Err(AttachError::NoSyscall { call: name }),
                _ => Ok(Placed {
                    symbol: name,
                    module: files.join(", "),
                    address: 0,
                    method: Method::Jump,
                    why_no_jump: None,
                    calls: Some(calls),
                }),
            };
            self.outcomes.push(ProbeOutcome { link: probe.link, result });
        }
    }
}

/// What the kernel calls its tracepoint.
fn name(what: SyscallProbe) -> String {
    let side = if what.exit { "exit" } else { "enter" };
    match what.number {
        None => format!("sys_{side}"),
        Some(number) => match syscall::numbered(number) {
            Some(call) => format!("sys_{side}_{}", call.name),
            None => format!("sys_{side} of call {number}"),
        },
    }
}
