//! What one run of a program works with, and the private memory of a slot.

use core::ptr::{null, null_mut};
use core::sync::atomic::AtomicU64;

use skep_ebpf::insn::{MAX_CALL_FRAMES, MAX_TAIL_CALLS, STACK_SIZE};
use skep_ebpf::uapi::PtRegs;
use skep_maps::MapRef;

use crate::abi::{HelperFn, Table};
use crate::session::{Control, Link, LinkCount, NONE, Proc, SLOT_STACK, SharedHead, Site, link_flags};
use crate::{helpers, read, sys};

/// Bytes of BPF stack that programs may take, in all their frames: where one is entered, it is checked that they do.
pub const STACK_BYTES: usize = 8 * STACK_SIZE;
/// Bytes below them for what is entered without that check, or only once in a while: an extension in place of a function
/// ([`EXTENSION_STACK`]), and programs around functions.
pub const NESTED_STACK: usize = 4 * STACK_SIZE;
/// Bytes of stack that an extension may take: where its functions have a `may_goto`, they count its rounds in addition.
pub const EXTENSION_STACK: usize = STACK_SIZE + MAX_CALL_FRAMES * 16;
/// Bytes of BPF stack of a slot.
pub const STACK_TOTAL: usize = STACK_BYTES + NESTED_STACK;
/// Frames that calls may leave behind: a tail call keeps those of its callers, one at least if it is in a function.
pub(crate) const SAVED_FRAMES: usize = MAX_TAIL_CALLS as usize + MAX_CALL_FRAMES;
/// Frames for an extension, and for programs around functions, as [`NESTED_STACK`].
pub(crate) const NESTED_FRAMES: usize = 3 * MAX_CALL_FRAMES;
/// Ring buffer records that a program may hold at once.
pub(crate) const RESERVED: usize = 16;
/// Bytes that helpers may use for what is too large for the thread's stack.
pub(crate) const SCRATCH: usize = SLOT_STACK
    - STACK_TOTAL
    - (SAVED_FRAMES + NESTED_FRAMES) * size_of::<Frame>()
    - RESERVED * size_of::<Reservation>()
    - 72
    - size_of::<Env>();

/// In the place of the objects' bytes: programs may be given pointers to anything in the process.
pub(crate) const PROCESS: u64 = u64::MAX;

/// What a call keeps of its caller.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Frame {
    /// r6 to r10.
    pub(crate) saved: [u64; 5],
    /// Where the caller goes on.
    pub(crate) pc: *const crate::op::Code,
}

/// A ring buffer record that is reserved and not yet committed.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Reservation {
    pub(crate) map: *const MapRef,
    pub(crate) sample: *mut u8,
}

/// The private memory of a slot in one process.
#[repr(C, align(64))]
pub struct SlotArea {
    pub(crate) stack: [u8; STACK_TOTAL],
    /// What runs of probed places on this slot work with.
    pub(crate) env: Env,
    pub(crate) frames: [Frame; SAVED_FRAMES + NESTED_FRAMES],
    pub(crate) reserved: [Reservation; RESERVED],
    /// How many of `reserved` are in use; not zero after a run was left in the middle.
    pub(crate) nreserved: u32,
    /// What the run has written into `lock`.
    pub(crate) lock_word: u32,
    /// Address of the spin lock that it holds, or 0.
    pub(crate) lock: u64,
    /// State of `get_prandom_u32`; 0 before its first use.
    pub(crate) random: u64,
    /// What `get_current_pid_tgid` found last; 0 before.
    pub(crate) ids: u64,
    /// See `thread.rs`. This and the next three are what others than the slot's holder look at.
    pub(crate) claim: AtomicU64,
    /// Address of the holder's entry.
    pub(crate) thread: AtomicU64,
    /// Address of the slot's words, and what is its owner there for who has the claim.
    pub(crate) slot: AtomicU64,
    /// See `slot`.
    pub(crate) owner: AtomicU64,
    pub(crate) scratch: [u8; SCRATCH],
}

const _: () = assert!(size_of::<SlotArea>() == SLOT_STACK);

impl SlotArea {
    /// Gives back the lock that a run left taken, and the records that it left reserved: the consumer of the ring would
    /// wait for them forever.
    ///
    /// # Safety
    /// The caller holds the slot, and the reservations are of this process.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn discard_reserved(this: *mut SlotArea) {
        // SAFETY: the slot is the caller's, so the area is not in use elsewhere.
        let (reserved, count) = unsafe { (&(*this).reserved, &mut (*this).nreserved) };
        // SAFETY: as above; a lock that is noted is there.
        unsafe {
            if (*this).lock != 0 {
                skep_maps::spin::release((*this).lock as *mut u8, (*this).lock_word);
                (*this).lock = 0;
            }
        }
        for r in reserved.iter().take(*count as usize) {
            // SAFETY: `map` is a handle of this process; a sample that is not of the ring is left alone.
            unsafe { (*r.map).ringbuf_commit(r.sample, 0, true) };
        }
        *count = 0;
    }
}

/// Text that an iterator's program writes. What does not fit marks it as full, which is an error of the read.
#[derive(Debug)]
#[repr(C)]
pub struct Seq {
    buf: *mut u8,
    size: usize,
    count: usize,
}

impl Seq {
    /// An empty text.
    ///
    /// # Safety
    /// `buf` is writable for `size` bytes, by nobody else, for as long as the value is used.
    pub unsafe fn new(buf: *mut u8, size: usize) -> Seq {
        Seq { buf, size, count: 0 }
    }

    /// Bytes that were written.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if nothing was written.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True once something did not fit.
    pub fn is_full(&self) -> bool {
        self.count == self.size
    }

    /// Forgets what was written behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.count = self.count.min(len);
    }

    /// The bytes that are left.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        // SAFETY: the promise of `new`; `count` is no more than `size`.
        unsafe { core::slice::from_raw_parts_mut(self.buf.add(self.count), self.size - self.count) }
    }

    /// Notes that `len` bytes were written to the room; false if that is all of it, or more.
    pub(crate) fn take(&mut self, len: usize) -> bool {
        let fits = len < self.size - self.count;
        self.count = if fits { self.count + len } else { self.size };
        fits
    }
}

/// How a run goes.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
pub(crate) struct Modes {
    /// True once the run was ended by its budget.
    pub(crate) over_budget: bool,
    /// The program is machine code.
    pub(crate) native: bool,
    /// Machine code can be run here.
    pub(crate) executes: bool,
    /// False.
    pub(crate) reserved: bool,
}

impl Modes {
    /// Machine code that can be run, and was not ended.
    pub(crate) const NATIVE: Modes = Modes { over_budget: false, native: true, executes: true, reserved: false };

    /// All of it, as machine code compares it.
    pub(crate) const fn word(self) -> u32 {
        u32::from_ne_bytes([self.over_budget as u8, self.native as u8, self.executes as u8, self.reserved as u8])
    }

    /// True if it is [`Modes::NATIVE`]: one comparison, which compilers do not find.
    #[inline(always)]
    pub(crate) fn is_native(&self) -> bool {
        // SAFETY: four initialised bytes, aligned.
        let word = |modes: &Modes| unsafe { (&raw const *modes).cast::<u32>().read() };
        word(self) == word(&Modes::NATIVE)
    }
}

/// The thread that a run is about, where that is not the one that runs it: a sampled thread of another process. Its memory
/// is "user" memory then, and the running process's own is the "kernel's".
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Task<'a> {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The thread's name, with its terminator.
    pub comm: [u8; 16],
    /// Its user stack: instruction pointers, innermost first.
    pub chain: &'a [u64],
}

/// What a run of a program can reach. At a probed place it lies in the memory of the slot, and what does not change from hit
/// to hit stays there for as long as the same thread has the slot; what does is in the first cache line.
#[repr(C, align(64))]
pub struct Env {
    /// At a probed place: the site and the link.
    pub(crate) site: *const Site,
    pub(crate) link: *const Link,
    /// Registers that stack traces start from; null if the program has none.
    pub(crate) regs: *const PtRegs,
    pub(crate) ctx: *mut u8,
    pub(crate) cookie: u64,
    /// The last change around functions that this process has the maps of.
    pub(crate) change: u64,
    /// What is left of the budget (the interpreter keeps it here while a helper calls back).
    pub(crate) fuel: u64,
    pub(crate) prog_type: u32,
    pub(crate) modes: Modes,
    /// What machine code mostly loads comes next: offsets below 128 are short.
    pub(crate) control: *const Control,
    pub(crate) maps: *const MapRef,
    pub(crate) area: *mut SlotArea,
    /// What machine code calls.
    pub(crate) table: *const Table,
    pub(crate) shared: *const SharedHead,
    /// Null outside of probed processes.
    pub(crate) proc: *const Proc,
    /// At a probed place: the slot's counters of link 0; those of a next link are one more than there are slots behind.
    pub(crate) counts: *const LinkCount,
    pub(crate) slot: u32,
    /// Tail calls so far.
    pub(crate) tail_calls: u32,
    /// Elsewhere: what `get_func_ip` returns.
    pub(crate) func_ip: u64,
    /// Elsewhere: the instruction pointer of a function's entry, if the program runs there; else 0.
    pub(crate) entry_ip: u64,
    /// Machine code: where a run that is ended returns to.
    pub(crate) entry_sp: u64,
    /// Machine code: the stack pointer at the run's first tail call; 0 before.
    pub(crate) stack_top: u64,
    /// Interpreter: instructions are counted.
    pub(crate) counting: bool,
    /// Where the frame of a function begins that the helper calls which is called now.
    pub(crate) callback_fp: u64,
    /// Interpreter: where the frames begin that such a function leaves behind.
    pub(crate) frame: *mut Frame,
    /// Machine code: the stack pointer of the main function that exceptions end in.
    pub(crate) throw_sp: u64,
    /// Interpreter: instructions that such functions executed, if they are counted.
    pub(crate) executed: u64,
    /// The kernel objects that the program was given: where they begin, and their bytes. See [`Env::object`].
    pub(crate) objects: u64,
    pub(crate) objects_len: u64,
    /// What `seq_write` and `seq_printf` write to; null if there is nothing.
    pub(crate) seq: *mut Seq,
    /// The application's functions; null if it has none.
    pub(crate) functions: *const HostFn,
    /// Which of them is called.
    pub(crate) function: u32,
    /// What a spent budget calls, where machine code was made so.
    pub(crate) refuel: HelperFn,
    /// What the run may take: nanoseconds, or 0 if its time is not limited; and what is left besides `fuel`.
    pub(crate) time_limit: u64,
    pub(crate) reserve: u64,
    /// When its time is up; 0 until somebody has looked at the clock.
    pub(crate) deadline: u64,
    /// The thread that the run is about; null if that is the one that runs it.
    pub(crate) task: *const Task<'static>,
}

/// A function of an application, as programs call it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct HostFn {
    /// Gets r1 to r5 and the environment, by which it finds `data` ([`Env::function_data`]).
    pub call: HelperFn,
    /// What it belongs to.
    pub data: *const (),
}

impl Env {
    /// What belongs to the function that is called.
    ///
    /// # Safety
    /// Only in a function of an application, before it does anything else; `env` is what it was given.
    pub unsafe fn function_data(env: *const Env) -> *const () {
        // SAFETY: the caller's promise; the call named a row of the table.
        unsafe { (*(*env).functions.add((*env).function as usize)).data }
    }

    /// An environment that runs on `slot` with its private memory `area`.
    pub(crate) fn new(
        control: *const Control,
        shared: *const SharedHead,
        maps: *const MapRef,
        slot: u32,
        area: *mut SlotArea,
    ) -> Env {
        Env {
            control,
            shared,
            maps,
            proc: null(),
            area,
            ctx: null_mut(),
            counts: null(),
            regs: null(),
            cookie: 0,
            site: null(),
            link: null(),
            func_ip: 0,
            entry_ip: 0,
            slot,
            prog_type: 0,
            modes: Modes { over_budget: false, native: false, executes: true, reserved: false },
            change: u64::MAX,
            table: &raw const helpers::TABLE,
            fuel: 0,
            entry_sp: 0,
            stack_top: 0,
            tail_calls: 0,
            counting: false,
            callback_fp: 0,
            frame: null_mut(),
            throw_sp: 0,
            executed: 0,
            objects: 0,
            objects_len: 0,
            seq: null_mut(),
            functions: null(),
            function: 0,
            refuel: crate::fuel::refuel,
            time_limit: 0,
            reserve: 0,
            deadline: 0,
            task: null(),
        }
    }

    /// The thread that the run is about, if that is not the one that runs it.
    pub(crate) fn task(&self) -> Option<&Task<'_>> {
        // SAFETY: who sets it keeps the thread's description for as long as the run goes on.
        unsafe { self.task.as_ref() }
    }

    /// The process and the thread that the run is about.
    pub(crate) fn ids(&self) -> (u32, u32) {
        self.task().map_or_else(|| (sys::getpid(), sys::gettid()), |t| (t.pid, t.tid))
    }

    /// At a probed place, with registers and link set: what helpers, and programs around functions, look at.
    #[inline(always)]
    pub(crate) fn settle(&mut self, proc: &Proc, link: &Link) {
        self.ctx = self.regs.cast_mut().cast();
        self.cookie = link.cookie;
        self.change = proc.change;
    }

    /// The index of the link; [`NONE`] outside of probes.
    pub(crate) fn link_index(&self) -> u32 {
        if self.link.is_null() {
            return NONE;
        }
        // SAFETY: links are in the table of the process that has the site.
        let table = unsafe { self.proc.as_ref().map_or(0, |p| p.links) };
        ((self.link as u64).wrapping_sub(table) / size_of::<Link>() as u64) as u32
    }

    /// The instruction pointer of a function's entry, if the program runs there; else 0.
    pub(crate) fn entry_ip(&self) -> u64 {
        // SAFETY: sites are mapped for as long as programs run.
        match unsafe { self.site.as_ref() } {
            None => self.entry_ip,
            Some(site) if site.entry == NONE => 0,
            Some(site) => site.ip,
        }
    }

    /// What `get_func_ip` returns.
    pub(crate) fn func_ip(&self) -> u64 {
        // SAFETY: as above; so are links.
        let Some((site, link)) = (unsafe { self.site.as_ref().zip(self.link.as_ref()) }) else { return self.func_ip };
        match (link.flags & link_flags::KERNEL, site.entry) {
            (0, _) if site.leaves == 0 => site.ip,
            (_, NONE) => 0,
            (_, bytes) => site.ip.wrapping_sub(u64::from(bytes)),
        }
    }

    /// The handle of a map by its index; null if there is no such map.
    pub(crate) fn map(&self, index: u32) -> *const MapRef {
        // SAFETY: the control arena and the block of this process are mapped for as long as programs run.
        let handles = unsafe { self.proc.as_ref().map_or((*self.control).nmaps, |p| p.nmaps) };
        if index < handles { self.maps.wrapping_add(index as usize) } else { null() }
    }

    /// What a program loads from a kernel object, or from an object of the process; 0 if it is not there.
    #[inline]
    pub(crate) fn load_object(&self, at: u64, size: usize) -> u64 {
        let mut word = [0u8; 8];
        if self.objects_len == PROCESS {
            // SAFETY: as many bytes as there are at most; what is there is read with care.
            if !unsafe { read::read(word.as_mut_ptr(), at, size.min(8)) } {
                return 0;
            }
        } else if let Some(from) = self.object(at, size as u64) {
            // SAFETY: these bytes are of an object that the program was given.
            unsafe { core::ptr::copy_nonoverlapping(from, word.as_mut_ptr(), size.min(8)) };
        }
        u64::from_le_bytes(word)
    }

    /// The address of `size` bytes of a kernel object that a program loads from, if they are among the objects that it was
    /// given. Pointers in objects may be null, and programs follow them unchecked: then the load gives 0.
    #[inline]
    pub(crate) fn object(&self, at: u64, size: u64) -> Option<*const u8> {
        let off = at.wrapping_sub(self.objects);
        let inside = off < self.objects_len && self.objects_len - off >= size;
        inside.then_some(at as *const u8)
    }

    /// Wakes the consumer of events if it sleeps.
    pub(crate) fn doorbell(&self) {
        // SAFETY: the shared arena is mapped for as long as programs run.
        unsafe { (*self.shared).ring_doorbell() };
    }
}
