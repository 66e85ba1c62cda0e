//! The memory that a controller and the processes it traces share, and what each process has of its own.
//!
//! * **Control arena** ([`Control`], links, program cells, map headers, images): a sealed memfd that the controller alone
//!   writes; targets map it read-only. Everything that decides control flow, or that the verifier relied on, is here.
//! * **Shared arena** ([`SharedHead`], [`Slot`]s, [`LinkCount`]s): a memfd that all targets write. Nothing in it is
//!   trusted: it holds no pointers and no offsets that are used unchecked.
//! * **Map arenas**: one memfd per map, see `skep-maps`.
//! * **Process block** ([`Proc`], [`Site`]s, the table of map handles): a memfd per target, named [`PROC_NAME`], written by
//!   the controller, read-only in the target. A later controller finds a left-over one by that name and undoes it.
//! * **Private area** ([`ThreadEntry`]s, slot stacks, [`RetEntry`]s): anonymous memory of the target.
//!
//! All structures are `repr(C)` and position independent but for the addresses in [`Proc`], [`Site`] and [`RetEntry`],
//! which are addresses of that one process.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// First word of [`Control`] and [`Proc`]: `"skep"` and the version of these layouts.
pub const MAGIC: u64 = u64::from_le_bytes(*b"skep\0\0\0\x07");

/// Names of the memfds, as `/proc/PID/maps` shows them after `/memfd:`.
pub const CONTROL_NAME: &str = "skep-control";
/// See [`CONTROL_NAME`].
pub const SHARED_NAME: &str = "skep-shared";
/// See [`CONTROL_NAME`].
pub const PROC_NAME: &str = "skep-proc";

/// The bit that the kernel sets in a robust futex when its owner dies (`FUTEX_OWNER_DIED`).
pub const OWNER_DIED: u32 = 0x4000_0000;
/// The thread id in a robust futex (`FUTEX_TID_MASK`).
pub const TID_MASK: u32 = 0x3fff_ffff;

/// Index that stands for "none" in tables.
pub const NONE: u32 = u32::MAX;

/// Head of the control arena.
#[repr(C)]
pub struct Control {
    /// [`MAGIC`].
    pub magic: u64,
    /// The controller's robust futex: its keeper thread's id while it lives and wants hits delivered. Hits are delivered
    /// only while `enable & TID_MASK != 0`; the kernel clears the id when that thread dies, however it dies.
    pub enable: AtomicU32,
    /// Number of vCPU slots.
    pub nslots: u32,
    /// Node of the robust list that `enable` is linked with; used by the controller alone.
    pub robust_node: u64,
    /// Bytes of the control arena.
    pub size: u64,
    /// Offset of `[Link; nlinks]`.
    pub links: u32,
    /// Capacity of the link table.
    pub nlinks: u32,
    /// Offset of `[ProgCell; nprogs]`.
    pub progs: u32,
    /// Capacity of the program table.
    pub nprogs: u32,
    /// Offset of `[MapHeader; nmaps]`.
    pub map_headers: u32,
    /// Number of maps, the internal ones included.
    pub nmaps: u32,
    /// Index of the internal ring buffer that takes [`SampleRecord`]s.
    pub samples_map: u32,
    /// Index of the internal ring buffer that takes [`PrintkRecord`]s.
    pub printk_map: u32,
    /// Run-time budget of one run of a program in units of its back edges, calls and helper calls; 0 for none.
    pub budget: u64,
    /// 1 if threads may [keep](Proc::keeps) slots: who looks whether a slot is in use makes all processors agree first.
    pub keeps: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

/// Link states.
pub mod link_state {
    /// Not in use, or detached: hits fall through.
    pub const OFF: u32 = 0;
    /// Hits run the program. For a link that is [`TYPED`](super::link_flags::TYPED); the state of others is then their kind
    /// (see [`on`]), so that one look at a link tells both.
    pub const TYPED: u32 = 3;

    /// The state of a link that is on.
    pub const fn on(kind: u32, flags: u32) -> u32 {
        if flags & super::link_flags::TYPED == 0 { kind } else { TYPED }
    }
}

/// Kinds of links. None is a [`link_state`] of another meaning.
pub mod link_kind {
    /// At the entry of a function or at an instruction.
    pub const ENTRY: u32 = 1;
    /// When the function returns.
    pub const RETURN: u32 = 2;
}

/// Flags of links.
pub mod link_flags {
    /// `get_func_ip` answers as the kernel does for its own functions: where the function begins, or 0 if the place is not
    /// its entry. Without it, as for functions of processes: the probed address.
    pub const KERNEL: u32 = 1;
    /// It is of a perf event: results are combined as the kernel does, beginning with 1, and not only looked at for 0.
    pub const EVENT: u32 = 2;
    /// Its result is combined with that of the site's next link of the same kind, which tells for both.
    pub const CHAINED: u32 = 4;
    /// The program runs around a function whose types are known: its context is the function's [`Arguments`](super::Arguments).
    pub const TYPED: u32 = 8;
    /// At a system call: the context is a raw tracepoint's, the address of the registers and a word.
    pub const RAW: u32 = 16;
    /// It is for where system calls return, and not for where they are made.
    pub const EXIT: u32 = 32;
    /// So many words of the arguments are on the stack, at most: four bits from here.
    pub const STACK_WORDS: u32 = 8;
}

/// A program attached somewhere.
#[repr(C)]
pub struct Link {
    /// One of [`link_state`].
    pub state: AtomicU32,
    /// One of [`link_kind`].
    pub kind: u32,
    /// Index of the program cell; [`NONE`] for a link that only counts.
    pub prog: u32,
    /// Bits of [`link_flags`].
    pub flags: u32,
    /// What `bpf_get_attach_cookie` returns.
    pub cookie: u64,
    /// How far its rows of counters are from those of link 0, as [`counts_distance`] says.
    pub counts: u64,
    /// Offset of the program's cell in the control arena; 0 for none.
    pub cell: u64,
    /// Where the function's arguments are; looked at with [`link_flags::TYPED`].
    pub arguments: Arguments,
    /// The number of the system call that it is for; [`NONE`] for all, and where there is none.
    pub call: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

/// Words of a function's arguments that programs around it can see.
pub const MAX_WORDS: usize = 12;
/// Registers that arguments come in.
pub const ARGUMENT_REGISTERS: usize = 6;
/// Most words of arguments on the stack.
pub const MAX_STACK_WORDS: usize = 9;

/// Where the arguments of a function are, and how wide each is: a byte for each word of the context. Its low half says which
/// register, or, from [`ARGUMENT_REGISTERS`] on, which word of the stack behind the return address; its high half is a
/// [`width`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// The words.
    pub words: [u8; MAX_WORDS],
    /// How many there are.
    pub count: u8,
    /// The width of the result.
    pub result: u8,
    /// Reserved, zero.
    pub reserved: [u8; 2],
}

/// Widths of arguments: narrow ones come with anything above them.
pub mod width {
    /// All 64 bits.
    pub const WORD: u8 = 0;
    /// The low 8, 16 or 32 bits.
    pub const U8: u8 = 1;
    /// See above.
    pub const U16: u8 = 2;
    /// See above.
    pub const U32: u8 = 3;
    /// With this bit the sign is extended.
    pub const SIGNED: u8 = 4;
    /// There is no result.
    pub const NONE: u8 = 8;
}

/// What is kept of a function's arguments until it returns: which use of its return entry it is, the registers, and the
/// stack.
pub type KeptArguments = [u64; 1 + ARGUMENT_REGISTERS + MAX_STACK_WORDS];

/// The entry cell of a program: where every hit and every tail call finds its code.
#[repr(C)]
pub struct ProgCell {
    /// Offset in the control arena of the image that hits run, 0 if there is none: the program's own, or what was put in
    /// place of its main function or around it.
    pub image: AtomicU64,
    /// Offset of the image of bytecode, for where the first one is machine code that cannot be executed; 0 if there is
    /// none.
    pub bytecode: AtomicU64,
    /// Offset of the program's own image, which tail calls go to.
    pub own: AtomicU64,
    /// Offset of its own image of bytecode, as above.
    pub own_bytecode: AtomicU64,
    /// Program type (`enum bpf_prog_type`).
    pub prog_type: u32,
    /// Reserved, zero.
    pub reserved: [u32; 3],
}

/// The entry cell of a function of a program: how far from the head of the control arena its code begins. Calls of it go
/// where the cell says, so one store replaces it for all calls that begin later, in every process that runs such code.
#[repr(C)]
pub struct FunctionCell {
    /// Machine code.
    pub code: AtomicU64,
    /// Bytecode.
    pub bytecode: AtomicU64,
}

/// Head of the shared arena; [`Slot`]s follow at [`SLOTS_OFFSET`], then `[LinkCount; nlinks × (nslots + 1)]`, a link's
/// rows together; the last row of a link counts what had no slot.
#[repr(C)]
pub struct SharedHead {
    /// Set to 1 by a consumer before it sleeps on it (`FUTEX_WAIT`, shared); a producer that finds 1 stores 0 and wakes.
    pub doorbell: AtomicU32,
    /// Reserved, zero.
    pub reserved: [u32; 15],
}

/// Offset of the slots in the shared arena.
pub const SLOTS_OFFSET: usize = 4096;

/// A virtual CPU: a thread takes one for the time of a hit.
#[repr(C, align(128))]
pub struct Slot {
    /// 0 when free, else the owner as [`owner_word`] makes it.
    pub owner: AtomicU64,
    /// Counts runs: odd while one is under way, even between them. Only its owner writes it.
    pub taken: AtomicU64,
}

impl Slot {
    /// True if a run is under way on it, as far as this processor can see.
    pub fn is_busy(&self) -> bool {
        self.owner.load(Ordering::SeqCst) != 0 && self.taken.load(Ordering::SeqCst) & 1 != 0
    }
}

/// The owner word of a slot: the target's index in the session and the thread's TLS base (or, with bit 43 set in its place,
/// its thread id), never 0.
pub const fn owner_word(proc_index: u32, fs_base: u64) -> u64 {
    ((proc_index as u64 + 1) << 44) | ((fs_base >> 4) & ((1 << 44) - 1))
}

/// The target's index in an owner word.
pub const fn owner_proc(owner: u64) -> u32 {
    ((owner >> 44) as u32).wrapping_sub(1)
}

/// Counters of one link in one slot. Rows of a slot are written by its owner alone; the row without slot atomically.
#[repr(C, align(64))]
pub struct LinkCount {
    /// Runs of the program.
    pub hits: AtomicU64,
    /// Runs that returned non-zero and whose sample was stored.
    pub samples: AtomicU64,
    /// Runs that returned non-zero and whose sample found no room.
    pub lost: AtomicU64,
    /// Probe not delivered: a program ran already on this thread, no return slot, or state that cannot be used.
    pub missed: AtomicU64,
    /// Program skipped because it was running already on this slot.
    pub recursion_misses: AtomicU64,
    /// No vCPU slot was free.
    pub no_slot: AtomicU64,
    /// Runs that were ended by the run-time budget.
    pub over_budget: AtomicU64,
    /// Nanoseconds of runs around functions, while those are counted.
    pub time_ns: AtomicU64,
}

/// Bytes of a shared arena.
pub const fn shared_size(nslots: u32, nlinks: u32) -> usize {
    SLOTS_OFFSET
        + nslots as usize * size_of::<Slot>()
        + nlinks as usize * (nslots as usize + 1) * size_of::<LinkCount>()
}

/// Offset of a counter row in the shared arena; `slot == nslots` is the row without slot.
pub const fn count_offset(nslots: u32, link: u32, slot: u32) -> usize {
    SLOTS_OFFSET
        + nslots as usize * size_of::<Slot>()
        + (link as usize * (nslots as usize + 1) + slot as usize) * size_of::<LinkCount>()
}

/// How far the counters of a link are from those of link 0 in the same slot.
pub const fn counts_distance(nslots: u32, link: u32) -> u64 {
    link as u64 * (nslots as u64 + 1) * size_of::<LinkCount>() as u64
}

/// Head of a process block; the table of map handles and the [`Site`]s follow.
#[repr(C)]
pub struct Proc {
    /// [`MAGIC`].
    pub magic: u64,
    /// Index of this target in the session (for [`owner_word`]).
    pub index: u32,
    /// Process id, in the controller's namespace.
    pub pid: u32,
    /// Address of [`Control`].
    pub control: u64,
    /// Address of [`SharedHead`].
    pub shared: u64,
    /// Address of `[MapRef; nmaps]` (in this block).
    pub maps: u64,
    /// Address of the word that is 1 in this process and, being in a `MADV_WIPEONFORK` page, 0 in a forked child.
    pub alive: u64,
    /// Address of `[ThreadEntry; nthreads]`, which is empty in a forked child: `MADV_WIPEONFORK`, too.
    pub threads: u64,
    /// Address of `[[u8; SLOT_STACK]; nslots]`.
    pub stacks: u64,
    /// Address of `[RetEntry; nret]`.
    pub rets: u64,
    /// Address of the return stubs: stub `k` is at `stubs + k × STUB_SIZE`.
    pub stubs: u64,
    /// Entries of the thread table, a power of two.
    pub nthreads: u32,
    /// Return slots.
    pub nret: u32,
    /// Address of a [`RetHead`].
    pub ret_head: u64,
    /// 1 if `rdfsbase` may be used.
    pub fsgsbase: u32,
    /// Number of sites in the table.
    pub nsites: u32,
    /// Offset of the first [`Site`] from the head of this block.
    pub sites: u64,
    /// Address of a [`TrapState`]; 0 if no site is a breakpoint.
    pub trap_state: u64,
    /// Address of `[Trap; ntraps]` (in this block), by address.
    pub traps: u64,
    /// Number of breakpoints.
    pub ntraps: u32,
    /// Handles in the table of maps: programs that name others do not run in this process.
    pub nmaps: u32,
    /// Address of the description (FDE) by which an unwinder gets past the return stubs.
    pub description: u64,
    /// The last change around functions of programs whose maps are here: see [`around`](crate::around).
    pub change: u64,
    /// 1 if the control arena is mapped executable; else programs are interpreted.
    pub executes: u32,
    /// 1 if threads keep the slot of their last run: the process is registered for `membarrier`, by which others find out
    /// whether it is in use. Else, and in sessions that do not allow it, each run takes a slot and gives it back.
    pub keeps: u32,
    /// Address of `[Seen; SEEN]`.
    pub seen: u64,
    /// Address of the control arena's `[Link; nlinks]`.
    pub links: u64,
    /// Address of `[KeptArguments; nret]`.
    pub kept: u64,
}

/// Links that one site can carry.
pub const SITE_LINKS: usize = 16;

/// A patched place in the target's text.
#[repr(C)]
pub struct Site {
    /// Address of the [`Proc`].
    pub proc: u64,
    /// Address of the probed instruction (what programs see as `ip`).
    pub ip: u64,
    /// Address of the displaced instructions' copy, which ends in a jump back.
    pub body: u64,
    /// 1 while the text is patched.
    pub active: u32,
    /// Bytes of text replaced.
    pub len: u32,
    /// The text as it was.
    pub original: [u8; 16],
    /// The text as patched.
    pub patched: [u8; 16],
    /// Number of links.
    pub nlinks: AtomicU32,
    /// 1 if the place is where a function is left: it has return links only, and [`entry`](Site::entry) tells where the function begins.
    pub leaves: u32,
    /// The links, as indices into the control arena's table.
    pub links: [AtomicU32; SITE_LINKS],
    /// One of [`guard`].
    pub guard: u32,
    /// Bytes from the start of the function if `ip` is its entry (behind an `endbr64` it still is), or where it is left; else
    /// [`NONE`].
    pub entry: u32,
    /// Address of the only entry link; [`NO_LINK`] or [`SEVERAL_LINKS`] if that is not the number of them.
    pub on_entry: AtomicU64,
    /// Likewise of the only return link.
    pub on_return: AtomicU64,
    /// Where the trampoline goes on if [`EnterFn`] has nothing to say; 0 if it does not ask.
    pub slow: u64,
    /// The number of the system call that it is before or behind; [`NONE`] if that is not known, and where there is none.
    pub call: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

/// See [`Site::on_entry`].
pub const NO_LINK: u64 = 0;
/// See [`Site::on_entry`].
pub const SEVERAL_LINKS: u64 = 1;

/// What stands in [`Site::on_entry`] for the links of a kind, in the table of links at `table`.
pub fn only_link(table: u64, mut links: impl Iterator<Item = u32>) -> u64 {
    match (links.next(), links.next()) {
        (None, _) => NO_LINK,
        (Some(link), None) => table + u64::from(link) * size_of::<Link>() as u64,
        (Some(_), Some(_)) => SEVERAL_LINKS,
    }
}

/// What a site does besides running programs: guards keep `SIGTRAP` for the breakpoints of this process, lead
/// unwinders past return stubs, and see that a process puts itself under a seccomp filter.
pub mod guard {
    /// Nothing.
    pub const NONE: u32 = 0;
    /// It is a `sigaction`: the action for `SIGTRAP` is kept for later, `SIGTRAP` is taken out of all others' masks.
    pub const SIGACTION: u32 = 1;
    /// Plus `n`: argument `n` points to a set of signals to block, out of which `SIGTRAP` is taken.
    pub const MASK: u32 = 2;
    /// It is libgcc's `_Unwind_Find_FDE`: for an address in the return stubs the answer is their description.
    pub const UNWIND: u32 = 1 << 16;
    /// It is `prctl`, by which a process may put itself under a seccomp filter.
    pub const PRCTL: u32 = UNWIND + 1;
    /// It is `syscall`, by which it may do so, too.
    pub const SYSCALL: u32 = UNWIND + 2;

    /// Is it there for the sake of breakpoints?
    pub const fn is_for_traps(guard: u32) -> bool {
        guard != NONE && guard < UNWIND
    }
}

/// A breakpoint: where it is, and its site.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Address of the byte `0xcc`.
    pub address: u64,
    /// Address of the [`Site`].
    pub site: u64,
}

/// Actions for `SIGTRAP` that are kept: the present one and those that a handler on its way may still be reading.
pub const TRAP_ACTIONS: usize = 64;
/// Sets of signals that are kept, a power of two.
pub const TRAP_MASKS: usize = 1024;

/// A signal's action as the kernel has it.
#[repr(C)]
#[derive(Default)]
pub struct TrapAction {
    /// Address of the handler, or `SIG_DFL` or `SIG_IGN`.
    pub handler: AtomicU64,
    /// Flags.
    pub flags: AtomicU64,
    /// Where the handler returns to.
    pub restorer: AtomicU64,
    /// Signals blocked while it runs.
    pub mask: AtomicU64,
}

/// What a process with breakpoints keeps of its signals, in its private area.
#[repr(C)]
pub struct TrapState {
    /// Index (modulo [`TRAP_ACTIONS`]) of the action that the target believes `SIGTRAP` has.
    pub current: AtomicU32,
    /// Where the next action goes.
    pub next: AtomicU32,
    /// Process id, as the process itself sees it.
    pub pid: u32,
    /// Reserved, zero.
    pub reserved: u32,
    /// Address of the real handler.
    pub handler: u64,
    /// Address of the C library's `rt_sigreturn` code.
    pub restorer: u64,
    /// See `current`.
    pub actions: [TrapAction; TRAP_ACTIONS],
    /// Sets of signals without `SIGTRAP`, each with the zeroes that a `sigset_t` ends in; the first one is empty, in the
    /// others a zero means that the place is free. Written once.
    pub masks: [[AtomicU64; 16]; TRAP_MASKS],
}

/// What a process knows of one of its threads, found by the thread's TLS base.
#[repr(C, align(64))]
pub struct ThreadEntry {
    /// TLS base (or thread id with bit 63 set); 0 when unused.
    pub key: AtomicU64,
    /// The slot that the thread runs a program on, or is about to take, plus one; 0 for none, or the one that it keeps.
    pub active: AtomicU32,
    /// The slot that it held last.
    pub last: AtomicU32,
    /// Address of the guards, on the thread's stack, of the run that has the thread; 0 for none.
    pub guards: AtomicU64,
    /// Address of the private memory of the slot that the thread keeps between runs; 0 for none. The slot is the thread's as
    /// long as its claim says so.
    pub kept: AtomicU64,
    /// Key of the thread from which it is about to take a kept slot.
    pub keeper: AtomicU64,
    /// Which of the return entries that the thread keeps are free: bits by their places.
    pub rets_free: AtomicU32,
    /// Whether the TLS base stands at the TLS base, too: 0 if nobody has looked, 1 if so, 2 if not.
    pub tls: AtomicU32,
    /// The return entries that the thread keeps, as numbers plus one; 0 for none.
    pub rets: [AtomicU32; KEPT_RETS],
}

/// Return entries that a thread keeps at most.
pub const KEPT_RETS: usize = 4;

/// A page of a stack, and the thread that was hit there last. Only threads whose TLS base stands at the base itself.
#[repr(C)]
pub struct Seen {
    /// Number of the page; 0 for none.
    pub page: AtomicU64,
    /// Address of the [`ThreadEntry`].
    pub thread: AtomicU64,
}

/// Pages of stacks that a process remembers, a power of two.
pub const SEEN: usize = 1024;

/// Bytes of private memory per slot: BPF frames, the environment of runs, scratch for helpers.
pub const SLOT_STACK: usize = 12800;

/// An activation of a function with a return probe.
#[repr(C, align(64))]
pub struct RetEntry {
    /// The function's real return address. The unwind rule of the stubs reads it at offset 0.
    pub ret: AtomicU64,
    /// Where the displaced copy of the function's entry is: the stub calls it.
    pub body: AtomicU64,
    /// Address of the stack slot that held the return address.
    pub sp: AtomicU64,
    /// Address of the [`Site`].
    pub site: AtomicU64,
    /// Counts uses: odd while in use, even when free.
    pub used: AtomicU32,
    /// Next free entry plus one, while free.
    pub next: AtomicU32,
    /// Address of the [`ThreadEntry`] that keeps it, plus its place there; 0 for none.
    pub home: AtomicU64,
    /// The bit of that place in [`ThreadEntry::rets_free`].
    pub place: AtomicU32,
    /// Reserved.
    pub reserved: [AtomicU32; 3],
}

/// Head of the free list of return entries.
#[repr(C, align(64))]
pub struct RetHead {
    /// Low half: index plus one of the first free entry; high half: a tag against ABA.
    pub free: AtomicU64,
    /// Where the next search for abandoned entries starts.
    pub sweep: AtomicU32,
    /// Entries below this one have been handed out at least once; the rest is free and not on the list.
    pub fresh: AtomicU32,
    /// Address of the vDSO's clock function: 0 before it was looked for, or [`NO_CLOCK`].
    pub clock: AtomicU64,
}

/// There is no clock that is read without a system call.
pub const NO_CLOCK: u64 = 1;

/// Distance between return stubs in bytes.
pub const STUB_SIZE: u64 = 16;

/// A run that returned non-zero, as the samples ring holds it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SampleRecord {
    /// Index of the link.
    pub link: u32,
    /// Slot the program ran on.
    pub slot: u32,
    /// `CLOCK_MONOTONIC`, ns.
    pub time_ns: u64,
    /// Process id as the target sees it.
    pub pid: u32,
    /// Thread id as the target sees it.
    pub tid: u32,
    /// Probed address; for return probes the return address.
    pub ip: u64,
    /// Entry of the function, for return probes; else 0.
    pub func: u64,
    /// What the program returned.
    pub retval: u64,
}

/// A line of `bpf_trace_printk`, as the printk ring holds it; the text follows the head.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PrintkRecord {
    /// Index of the link, [`NONE`] outside of probes.
    pub link: u32,
    /// Bytes of text.
    pub len: u32,
    /// `CLOCK_MONOTONIC`, ns.
    pub time_ns: u64,
    /// Process id as the target sees it.
    pub pid: u32,
    /// Thread id as the target sees it.
    pub tid: u32,
}

/// What the trampoline of a site calls; see the `skep-agent` crate. Of the registers it has stored the stack pointer, those that
/// a call may change, and what the site's programs read of the others. Returns 0 to run on at [`Site::body`], or the address of
/// the return stub to go through (the trampoline then drops the return address from the stack and jumps there).
pub type HitFn = unsafe extern "C" fn(site: *const Site, regs: *mut skep_ebpf::uapi::PtRegs) -> u64;

/// What the trampoline of a site calls whose programs change few registers: as [`HitFn`], with the site in `rdi` and the registers
/// where the stack pointer is at the call. Of those that a call may change the trampoline has stored rax, rcx, rdx, rsi, rdi and r8, the
/// others come back as they were. The answer is in `rax`.
pub type QuickHitFn = unsafe extern "C" fn();

/// What the common part of the return stubs calls, in the same way, with the process block in `rdi` and the stub's number in `esi`
/// and, once more, behind the registers: as [`ReturnFn`].
pub type QuickReturnFn = unsafe extern "C" fn();

/// What the trampoline of a function jumps to that had only return links when it was made: `rax` is the site, and the function's own
/// `rax` stands 8 bytes below its stack pointer; all else is as at its entry. It goes on at a return stub, with all registers
/// as at the function's entry and the return address dropped from the stack, or at [`Site::slow`], with nothing changed.
pub type EnterFn = unsafe extern "C" fn();

/// What the common part of the return stubs calls, with the stub's number. Returns the real return address; the entry is free
/// from then on.
pub type ReturnFn = unsafe extern "C" fn(proc: *const Proc, entry: u32, regs: *mut skep_ebpf::uapi::PtRegs) -> u64;

/// What the trampoline of a site with a [`guard`] calls. Returns 0 to run on at [`Site::body`], with the registers as they
/// are then, or 1 to return to the caller with `rax` as it is then.
pub type GuardFn = unsafe extern "C" fn(site: *const Site, regs: *mut skep_ebpf::uapi::PtRegs) -> u64;

/// What the handler of `SIGTRAP` calls, with the kernel's arguments for a handler. Returns 0 if the signal is dealt with, or
/// the address of the target's own handler, which is to be run in place of ours.
pub type TrapFn =
    unsafe extern "C" fn(signal: i32, info: *mut SigInfo, context: *mut SigContext, proc: *const Proc) -> u64;

/// The part of a `siginfo_t` that matters here.
#[repr(C)]
pub struct SigInfo {
    /// The signal.
    pub signo: i32,
    /// Its errno.
    pub errno: i32,
    /// Where it comes from.
    pub code: i32,
}

/// A `ucontext_t` as the kernel writes it for a handler.
#[repr(C)]
pub struct SigContext {
    /// Flags, link and alternate stack.
    pub head: [u64; 5],
    /// r8 to r15.
    pub r8_r15: [u64; 8],
    /// As named.
    pub rdi: u64,
    /// As named.
    pub rsi: u64,
    /// As named.
    pub rbp: u64,
    /// As named.
    pub rbx: u64,
    /// As named.
    pub rdx: u64,
    /// As named.
    pub rax: u64,
    /// As named.
    pub rcx: u64,
    /// As named.
    pub rsp: u64,
    /// As named.
    pub rip: u64,
    /// As named.
    pub eflags: u64,
    /// cs, gs, fs, ss: 16 bits each.
    pub segments: u64,
    /// Error code of the exception.
    pub err: u64,
    /// Number of the exception.
    pub trapno: u64,
    /// Mask of old, and address of a fault.
    pub tail: [u64; 2],
    /// Address of the saved vector registers.
    pub fpstate: u64,
    /// Reserved by the kernel.
    pub reserved: [u64; 8],
    /// Signals blocked before, and again after the handler.
    pub mask: u64,
}

const _: () = assert!(core::mem::offset_of!(SigContext, mask) == 296);
