//! How an unwinder gets past a return stub.
//!
//! While a function with a return probe is active, its return address is that of a stub; the real one is in the stub's
//! `RetEntry`. C++ exceptions, `backtrace` and thread cancellation walk such frames, so the target's unwinder is given one
//! frame description that covers all stubs: it asks for it (`guards.rs`), or, where that cannot be, it is registered with it. Its rules, where `rsp` is that of the moment after the function returned:
//!
//! * CFA = rsp − 8: distinct from the CFAs of both neighbours; that word still holds the stub's address.
//! * rsp = rsp: the stub's frame takes no room.
//! * the return address is saved at `rets + 64 × k`, where `16 × k` is the stub's distance from the first one. Where the word
//!   below rsp is no stub's address (a signal came elsewhere in a stub) it is 0, saved in a place that always is: the end.

use std::ops::Range;
use std::time::{Duration, Instant};

use skep_runtime::session::RetEntry;

use super::AttachError;
use super::frames;
use super::procfs::Mapping;
use super::ptrace::Tid;
use super::remote::Remote;
use super::symbols::{Module, Modules};
use super::world::World;

const DW_CFA_NOP: u8 = 0x00;
const DW_CFA_DEF_CFA_EXPRESSION: u8 = 0x0f;
const DW_CFA_EXPRESSION: u8 = 0x10;
const DW_CFA_VAL_EXPRESSION: u8 = 0x16;
const DW_OP_DEREF: u8 = 0x06;
const DW_OP_CONST8U: u8 = 0x0e;
const DW_OP_DUP: u8 = 0x12;
const DW_OP_DROP: u8 = 0x13;
const DW_OP_MINUS: u8 = 0x1c;
const DW_OP_PLUS: u8 = 0x22;
const DW_OP_SHL: u8 = 0x24;
const DW_OP_SHR: u8 = 0x25;
const DW_OP_BRA: u8 = 0x28;
const DW_OP_SKIP: u8 = 0x2f;
const DW_OP_LIT0: u8 = 0x30;
const DW_OP_BREG7: u8 = 0x77;

/// Numbers of rsp and of the return address.
const RSP: u8 = 7;
const RA: u8 = 16;

/// Where in an entry a word stands that is always zero.
const ZERO: u64 = std::mem::offset_of!(RetEntry, reserved) as u64;

/// Bytes of the call in a stub: its return address is the stub's address plus this.
const CALL: u64 = 6;

/// An `.eh_frame` section with one description for the stubs in `stubs`, whose entries begin at `rets`.
///
/// Entries must be four times as large as stubs, which [`super::install`] asserts, and stubs a power of two in bytes.
pub fn eh_frame(stubs: Range<u64>, rets: u64) -> Vec<u8> {
    let mut rules = vec![
        DW_CFA_DEF_CFA_EXPRESSION,
        2,
        DW_OP_BREG7,
        0x78, // -8
        DW_CFA_VAL_EXPRESSION,
        RSP,
        2,
        DW_OP_BREG7,
        0,
    ];
    let length = stubs.end - stubs.start;
    let mut place = vec![DW_OP_BREG7, 0x78, DW_OP_DEREF, DW_OP_CONST8U];
    place.extend((stubs.start + CALL).to_le_bytes());
    // Distances below the length, a power of two, go on; others skip 15 bytes.
    place.extend([DW_OP_MINUS, DW_OP_DUP, DW_OP_LIT0 + length.ilog2() as u8, DW_OP_SHR, DW_OP_BRA, 15, 0]);
    place.extend([DW_OP_LIT0 + 2, DW_OP_SHL, DW_OP_CONST8U]);
    place.extend(rets.to_le_bytes());
    place.extend([DW_OP_PLUS, DW_OP_SKIP, 10, 0]);
    place.extend([DW_OP_DROP, DW_OP_CONST8U]);
    place.extend((rets + ZERO).to_le_bytes());
    rules.extend([DW_CFA_EXPRESSION, RA, place.len() as u8]);
    rules.extend(place);

    let mut section = Vec::new();
    // The common entry: version 1, no augmentation, code alignment 1, data alignment -8.
    record(&mut section, &[&[0u8; 4][..], &[1, 0, 1, 0x78, RA], &rules].concat());
    // A description's second word is the distance back to its common entry.
    let back = section.len() as u32 + 4;
    record(&mut section, &[&back.to_le_bytes()[..], &stubs.start.to_le_bytes(), &length.to_le_bytes()].concat());
    section.extend([0; 4]);
    section
}

fn record(section: &mut Vec<u8>, body: &[u8]) {
    let padded = (body.len() + 4).next_multiple_of(8);
    section.extend((padded as u32 - 4).to_le_bytes());
    section.extend(body);
    section.resize(section.len() + padded - 4 - body.len(), DW_CFA_NOP);
}

/// Offset of the description in that section: behind the common entry.
pub fn description(section: &[u8]) -> u64 {
    section.first_chunk().map_or(0, |length| u64::from(u32::from_le_bytes(*length)) + 4)
}

/// Bytes of memory that an unwinder keeps about a registered section (48 in libgcc, with room to grow).
pub const OBJECT: u64 = 128;
/// Copies of the unwinder that a process may have (libgcc_s, statically linked ones).
pub const OBJECTS: u64 = 8;

/// The unwinders of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwinders {
    /// Addresses of `__register_frame_info` and `__deregister_frame_info`, of each copy that must be told.
    Known(Vec<(u64, Option<u64>)>),
    /// None yet, but `dlopen` at this address can load one, and the program's libraries will do so when they need it.
    Loadable(u64),
    /// None: nothing in the process unwinds.
    None,
}

/// Finds them; those that are `described` need not be known.
pub fn unwinders(modules: &Modules, described: impl Fn(&Module) -> bool) -> Unwinders {
    let removers = modules.all_definitions("__deregister_frame_info");
    let mut known = Vec::new();
    let definitions = modules.all_definitions("__register_frame_info");
    let none = definitions.is_empty();
    for (module, register) in definitions.into_iter().filter(|(module, _)| !described(module)) {
        let remove = removers.iter().find(|(m, _)| m.path == module.path).map(|&(_, address)| address);
        known.push((register, remove));
    }
    known.truncate(OBJECTS as usize);
    if !none {
        return Unwinders::Known(known);
    }
    // Only glibc loads libgcc_s behind the program's back.
    let in_libc = |m: &Module| m.file_name().starts_with("libc.so.6") || m.file_name().starts_with("libc-2.");
    match modules.all_definitions("dlopen").into_iter().find(|(module, _)| in_libc(module)) {
        Some((_, dlopen)) => Unwinders::Loadable(dlopen),
        None => Unwinders::None,
    }
}

/// Code in which a thread may hold a lock that the loader, the allocator or the unwinder needs.
struct Hazards {
    ranges: Vec<Range<u64>>,
}

/// Functions of the C library that take such locks.
const LOCKERS: &[&str] = &[
    "dlopen",
    "dlmopen",
    "dlsym",
    "dlvsym",
    "dlclose",
    "dladdr",
    "dladdr1",
    "dl_iterate_phdr",
    "_dl_find_object",
    "fork",
    "pthread_create",
];

/// Functions of the allocator. What it has in between them, unnamed in a stripped library, belongs to it, too.
const ALLOCATORS: &[&str] = &[
    "malloc",
    "free",
    "calloc",
    "realloc",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "malloc_trim",
    "malloc_usable_size",
    "mallinfo",
    "mallinfo2",
    "mallopt",
    "malloc_info",
];
/// The allocator's code before the first and after the last of these.
const ALLOCATOR_MARGIN: u64 = 0x4000;
/// More than this apart, they do not belong together.
const ALLOCATOR_SPAN: u64 = 0x2_0000;

impl Hazards {
    fn of(modules: &Modules, maps: &[Mapping]) -> Hazards {
        let mut ranges = Vec::new();
        let whole =
            |name: &str| ["ld-linux", "ld-2.", "ld-musl", "libgcc_s", "libunwind"].iter().any(|p| name.starts_with(p));
        for module in modules.iter() {
            if whole(module.file_name()) {
                let code = maps.iter().filter(|m| m.executable() && m.name == module.path);
                ranges.extend(code.map(|m| m.range.clone()));
            }
            let of_module = |name: &&str| {
                let loaded = module.loaded()?;
                let symbol = *loaded.elf.find(name).first()?;
                let start = symbol.address.wrapping_add(loaded.bias);
                Some(start..start + symbol.size.max(16))
            };
            ranges.extend(LOCKERS.iter().filter_map(of_module));
            let allocator: Vec<Range<u64>> = ALLOCATORS.iter().filter_map(of_module).collect();
            let start = allocator.iter().map(|r| r.start).min().unwrap_or(0);
            let end = allocator.iter().map(|r| r.end).max().unwrap_or(0);
            match end - start {
                1..=ALLOCATOR_SPAN => ranges.push(start.saturating_sub(ALLOCATOR_MARGIN)..end + ALLOCATOR_MARGIN),
                _ => ranges.extend(allocator),
            }
        }
        Hazards { ranges }
    }

    fn contains(&self, address: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }
}

/// How often to try until a thread stands well.
const TRIES: u32 = 400;

/// Finds a thread that holds no lock of the loader, allocator or unwinder: by its call frames it is in none of their
/// functions and in no signal handler. Lets the process run for moments in between.
pub fn safe_thread(world: &mut World, modules: &Modules, maps: &[Mapping]) -> Result<Tid, AttachError> {
    let hazards = Hazards::of(modules, maps);
    let start = Instant::now();
    for attempt in 0..TRIES {
        let tids: Vec<Tid> = world.threads().collect();
        if let Some(tid) = tids.into_iter().find(|&tid| stands_well(world, modules, tid, &hazards)) {
            return Ok(tid);
        }
        if start.elapsed() > Duration::from_secs(10) {
            break;
        }
        world.breathe(Duration::from_micros(500 + u64::from(attempt) * 50))?;
    }
    Err(AttachError::Unwinder {
        pid: world.pid,
        reason:
            "no thread was seen outside of the loader, the allocator and signal handlers, so that its unwinder cannot \
                 be told about them; try again, or start the program with `-- COMMAND`"
                .into(),
    })
}

fn stands_well(world: &World, modules: &Modules, tid: Tid, hazards: &Hazards) -> bool {
    let Some(regs) = world.regs(tid) else { return false };
    // A stack with little room below is a signal stack or a coroutine's.
    let room = world.memory.read_up_to(regs.rsp.saturating_sub(16384), 64).len() == 64;
    let mut clear = true;
    let known = frames::walk(&world.memory, modules, &regs, |pc| {
        clear &= !hazards.contains(pc);
        clear
    });
    room && known && clear
}

/// rip, eflags and cs as a signal frame has them in a row: the code segment with plausible flags before it.
pub fn signal_frame(words: &[u64]) -> bool {
    match words {
        [rip, flags, segments] => {
            *rip > 0xffff && *rip < 1 << 47 && segments & 0xffff == 0x33 && flags & !0x3f_7fd7 == 0 && flags & 2 != 0
        }
        _ => false,
    }
}

/// Calls `dlopen("libgcc_s.so.1", RTLD_NOW)` in the target. `scratch` is memory of the target.
pub fn load_unwinder(remote: &mut Remote, dlopen: u64, scratch: u64) -> Result<(), AttachError> {
    remote.world.memory.write(scratch, b"libgcc_s.so.1\0")?;
    remote.call(dlopen, [scratch, libc::RTLD_NOW as u64, 0], true).map(drop)
}

/// Registers the section at `section` with each unwinder; `objects` is zeroed memory of the target.
pub fn register(
    remote: &mut Remote,
    unwinders: &[(u64, Option<u64>)],
    section: u64,
    objects: u64,
) -> Result<(), AttachError> {
    for (&(register, _), n) in unwinders.iter().zip(0u64..) {
        remote.call(register, [section, objects + n * OBJECT, 0], true)?;
    }
    Ok(())
}

/// Takes it back. False if an unwinder has no function for that.
pub fn deregister(remote: &mut Remote, unwinders: &[(u64, Option<u64>)], section: u64) -> Result<bool, AttachError> {
    if unwinders.iter().any(|(_, remove)| remove.is_none()) {
        return Ok(false);
    }
    for remove in unwinders.iter().filter_map(|(_, remove)| *remove) {
        remote.call(remove, [section, 0, 0], true)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_is_well_formed() {
        let bytes = eh_frame(0x1000..0x2000, 0x8000);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let cie = word(0) as usize + 4;
        assert_eq!(cie % 8, 0);
        assert_eq!(word(4), 0);
        assert_eq!(word(cie + 4) as usize, cie + 4);
        assert_eq!(description(&bytes), cie as u64);
        assert_eq!(u64::from_le_bytes(bytes[cie + 8..cie + 16].try_into().unwrap()), 0x1000);
        assert_eq!(word(cie + word(cie) as usize + 4), 0);
    }

    #[test]
    fn signal_frames() {
        assert!(signal_frame(&[0x5555_0000_1234, 0x246, 0x2b_0000_0000_0033]));
        assert!(!signal_frame(&[0x5555_0000_1234, 0x246, 0x34]));
        assert!(!signal_frame(&[0, 0x246, 0x33]));
    }
}
