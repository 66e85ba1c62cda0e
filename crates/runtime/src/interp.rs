//! The interpreter.
//!
//! # Invariants
//!
//! * An [`Image`] is made by `skep-jit` from a verified program: opcodes, register numbers, jump distances and the end
//!   of the code are valid, and every memory access that it does is allowed. Nothing of that is checked here.
//! * The stack of a run and the frames its calls leave behind lie in the [`SlotArea`](crate::env::SlotArea). An image
//!   says how much of both its longest call chain takes; that bound is checked where an image is entered: at the start
//!   ([`run`]) and at a tail call. So a call needs no check.
//! * A run ends: verified loops are finite, and each back edge, call and helper call takes one from the budget.

use core::ptr;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use skep_ebpf::insn::MAX_TAIL_CALLS;

use crate::abi::MAY_GOTO_ROUNDS;
use crate::around::{self, Around};
use crate::callback::FRAME_SHIFT;
use crate::env::{Env, Frame, NESTED_FRAMES, NESTED_STACK, SAVED_FRAMES, STACK_BYTES};
use crate::image::{self, Image};
use crate::op::{Code, Op};
use crate::{helpers, packet};

/// Runs an image on `env.ctx` and returns its r0; 0 if the budget was spent (`env.over_budget`).
///
/// # Safety
/// `image` is an image of `skep-jit` whose map indices are those of `env.maps`; `env` points to live memory, and its
/// slot is the caller's; `env.ctx` is a context of the image's program type.
pub(crate) unsafe fn run(env: &mut Env, image: *const Image, budget: u64) -> u64 {
    // SAFETY: the caller's promises, and the invariants at the head of this module.
    unsafe {
        if !fits(env, image, STACK_BYTES, SAVED_FRAMES + 1) {
            return 0;
        }
        begin(env, image, budget);
        execute::<false>(env, &Start::of(env, image)).0
    }
}

/// The number of instructions that a run of the image executes.
///
/// # Safety
/// As [`run`].
#[cfg(feature = "control")]
pub(crate) unsafe fn count(env: &mut Env, image: *const Image) -> u64 {
    // SAFETY: as in `run`.
    unsafe {
        if !fits(env, image, STACK_BYTES, SAVED_FRAMES + 1) {
            return 0;
        }
        begin(env, image, 0);
        env.counting = true;
        let (_, executed) = execute::<true>(env, &Start::of(env, image));
        env.counting = false;
        executed + env.executed
    }
}

/// Makes an environment ready for a run.
///
/// # Safety
/// As [`run`].
unsafe fn begin(env: &mut Env, image: *const Image, budget: u64) {
    // SAFETY: the caller's promise.
    env.prog_type = unsafe { (*image).prog_type };
    env.modes.over_budget = false;
    env.modes.native = false;
    env.tail_calls = 0;
    env.executed = 0;
    env.fuel = if budget == 0 { u64::MAX } else { budget };
}

/// Where and with what the interpreter begins: a program, or a function that a helper calls.
pub(crate) struct Start {
    pub(crate) pc: *const Code,
    pub(crate) fp: u64,
    /// The frames from here on are free.
    pub(crate) frame: *mut Frame,
    /// r1 to r5.
    pub(crate) args: [u64; 5],
    /// Of a function that has a `may_goto`: bytes of its frame, divided by 16.
    pub(crate) may_goto: u8,
}

impl Start {
    /// The begin of a program in an empty slot.
    ///
    /// # Safety
    /// As [`run`].
    unsafe fn of(env: &Env, image: *const Image) -> Start {
        // SAFETY: the caller's promise.
        unsafe { Start::program(image, env.ctx as u64, around::top(env), (&raw mut (*env.area).frames).cast()) }
    }

    /// The begin of a program with this context, on frames from here on.
    ///
    /// # Safety
    /// `image` must be readable.
    unsafe fn program(image: *const Image, ctx: u64, fp: u64, frame: *mut Frame) -> Start {
        // SAFETY: the caller's promise.
        let (pc, may_goto) = unsafe { (Image::code(image), (*image).may_goto as u8) };
        Start { pc, fp, frame, args: [ctx, 0, 0, 0, 0], may_goto }
    }
}

/// Where frames are free.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// The frame pointer of what is called there.
    pub(crate) fp: u64,
    /// Where it keeps its callers.
    pub(crate) frame: *mut Frame,
}

impl Room {
    /// Bytes of stack and frames that there are.
    ///
    /// # Safety
    /// It is of this environment's area.
    pub(crate) unsafe fn left(&self, env: &Env) -> (usize, usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let frames = (&raw mut (*env.area).frames).cast::<Frame>();
            let used = self.frame.offset_from_unsigned(frames);
            (self.fp.wrapping_sub(env.area as u64) as usize, SAVED_FRAMES + NESTED_FRAMES - used)
        }
    }
}

/// Runs an image on `env.ctx` in the middle of another run, which `env` is as after; false if that is over.
///
/// # Safety
/// As [`run`]; the image's stack and frames are in `room`.
pub(crate) unsafe fn nested(env: &mut Env, image: *const Image, room: Room) -> bool {
    let tail_calls = core::mem::take(&mut env.tail_calls);
    // SAFETY: the caller's promise.
    unsafe { call(env, &Start::program(image, env.ctx as u64, room.fp, room.frame)) };
    env.tail_calls = tail_calls;
    !env.modes.over_budget
}

/// Calls a function, and returns its r0.
///
/// # Safety
/// As [`run`]; there is room for the function's frame and what it leaves behind.
pub(crate) unsafe fn call(env: &mut Env, start: &Start) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(feature = "control")]
        if env.counting {
            let (r0, executed) = execute::<true>(env, start);
            env.executed += executed;
            return r0;
        }
        execute::<false>(env, start).0
    }
}

/// Lets a function that is entered with this frame pointer go through its loops.
///
/// # Safety
/// The frame is `16 * frame` bytes of the slot's stack.
#[inline(always)]
unsafe fn allow_loops(fp: u64, frame: u8) {
    if frame != 0 {
        // SAFETY: the lowest word of the frame.
        unsafe { *(fp.wrapping_sub(16 * u64::from(frame)) as *mut u64) = u64::from(MAY_GOTO_ROUNDS) };
    }
}

/// Set in a saved address: what runs above is the main function of a program, which its exceptions end in.
const MAIN: usize = 1;

/// Says of what runs on the topmost frame that it is a main function; the first one of a run always is.
///
/// # Safety
/// Frames from `base` to `frame` are in use.
#[inline(always)]
unsafe fn enter_main(base: *mut Frame, frame: *mut Frame) {
    if frame != base {
        // SAFETY: the caller's promise.
        unsafe {
            let caller = &raw mut (*frame.sub(1)).pc;
            *caller = (*caller).map_addr(|a| a | MAIN);
        }
    }
}

/// True if the image's longest call chain fits in this much stack and this many frames, and its maps are here: a program
/// may be newer than the memory of a traced process.
///
/// # Safety
/// `image` must be readable; a process block that the environment names is this process's.
pub(crate) unsafe fn fits(env: &Env, image: *const Image, stack: usize, frames: usize) -> bool {
    // SAFETY: the caller's promise.
    let (image, proc) = unsafe { (&*image, env.proc.as_ref()) };
    let known = proc.is_none_or(|p| image.nmaps <= p.nmaps);
    image.stack as usize <= stack && image.frames as usize <= frames && known
}

/// The image that index `index` of the prog array `map` names, if it may be called from here: of machine code if there is
/// one and `native` asks for it.
///
/// # Safety
/// `map` is a prog array's handle.
#[inline(never)]
pub(crate) unsafe fn tail_call_target(
    env: &Env,
    map: u64,
    index: u32,
    stack: usize,
    frames: usize,
    count: u32,
    native: bool,
) -> Option<*const Image> {
    if count >= MAX_TAIL_CALLS {
        return None;
    }
    // SAFETY: the caller's promise on `map`; the control arena is mapped and its tables are as its head says.
    unsafe {
        let prog = (*(map as *const skep_maps::MapRef)).prog_array_get(index)?;
        let cell = (*env.control).prog(prog)?;
        let image = (*env.control).own_image(cell, native)?;
        (cell.prog_type == env.prog_type && fits(env, image, stack, frames)).then_some(image)
    }
}

/// The dispatch loop; with `COUNT` it counts instructions.
///
/// # Safety
/// As [`run`], and the image has been checked to fit.
#[inline(never)]
unsafe fn execute<const COUNT: bool>(env: &mut Env, start: &Start) -> (u64, u64) {
    let mut executed = 0u64;
    let mut pc: *const Code = start.pc;
    let mut budget = env.fuel;
    let mut regs = [0u64; 11];
    let r = regs.as_mut_ptr();

    // SAFETY: for the whole body: the invariants at the head of this module. Registers are 0 to 10; the code ends in an
    // exit or a jump; loads and stores are those that the verifier has allowed, unaligned ones among them.
    unsafe {
        let frames_base = start.frame;
        let mut frame = frames_base;
        ptr::copy_nonoverlapping(start.args.as_ptr(), r.add(1), 5);
        *r.add(10) = start.fp;
        allow_loops(start.fp, start.may_goto);

        // The destination register.
        macro_rules! d {
            () => {
                *r.add(usize::from((*pc).dst))
            };
        }
        // The source register.
        macro_rules! s {
            () => {
                *r.add(usize::from((*pc).a))
            };
        }
        // The immediate, sign-extended.
        macro_rules! k {
            () => {
                (*pc).imm as i64 as u64
            };
        }
        macro_rules! next {
            () => {
                pc = pc.add(1)
            };
        }
        macro_rules! set {
            ($v:expr) => {{
                d!() = $v;
                next!();
            }};
        }
        macro_rules! set32 {
            ($v:expr) => {{
                let v: u32 = $v;
                d!() = u64::from(v);
                next!();
            }};
        }
        macro_rules! spend {
            () => {
                budget -= 1;
                if budget == 0 {
                    budget = env.refuel();
                    if budget == 0 {
                        break;
                    }
                }
            };
        }
        // `distance` counts from the instruction behind the jump at `from`.
        macro_rules! jump {
            ($from:expr, $distance:expr) => {{
                let distance = $distance as isize;
                pc = $from.offset(distance + 1);
                if distance < 0 {
                    spend!();
                }
            }};
        }
        macro_rules! jump_x {
            ($t:ty: $a:ident, $b:ident => $cond:expr) => {{
                let ($a, $b) = (d!() as $t, s!() as $t);
                if $cond { jump!(pc, (*pc).imm) } else { next!() }
            }};
        }
        macro_rules! jump_k {
            ($t:ty: $a:ident, $b:ident => $cond:expr) => {{
                let ($a, $b) = (d!() as $t, k!() as $t);
                if $cond { jump!(pc, (*pc).a as i16) } else { next!() }
            }};
        }
        // Address of a load: base register and offset.
        macro_rules! at {
            ($t:ty) => {
                s!().wrapping_add(k!()) as *mut $t
            };
        }
        // Address of a store from a register and of an atomic operation.
        macro_rules! to {
            ($t:ty) => {
                d!().wrapping_add(k!()) as *mut $t
            };
        }
        macro_rules! load {
            ($t:ty) => {
                set!(ptr::read_unaligned(at!($t)) as u64)
            };
        }
        macro_rules! load_signed {
            ($t:ty) => {
                set!(ptr::read_unaligned(at!($t)) as i64 as u64)
            };
        }
        // A load from a kernel object.
        macro_rules! load_object {
            ($t:ty as $wide:ty) => {{ set!(env.load_object(s!().wrapping_add(k!()), size_of::<$t>()) as $t as $wide as u64) }};
        }
        macro_rules! store_x {
            ($t:ty) => {{
                ptr::write_unaligned(to!($t), s!() as $t);
                next!();
            }};
        }
        macro_rules! store_k {
            ($t:ty) => {{
                let to = d!().wrapping_add((*pc).a as i16 as i64 as u64) as *mut $t;
                ptr::write_unaligned(to, k!() as $t);
                next!();
            }};
        }
        // A locked operation: without result, or fetching the old value.
        macro_rules! atomic {
            ($atomic:ident, $t:ty, $op:ident) => {{
                $atomic::from_ptr(to!($t)).$op(s!() as $t, Ordering::SeqCst);
                next!();
            }};
        }
        macro_rules! fetch {
            ($atomic:ident, $t:ty, $op:ident) => {{
                s!() = u64::from($atomic::from_ptr(to!($t)).$op(s!() as $t, Ordering::SeqCst));
                next!();
            }};
        }
        macro_rules! cmpxchg {
            ($atomic:ident, $t:ty) => {{
                let (old, new) = (*r as $t, s!() as $t);
                let was =
                    match $atomic::from_ptr(to!($t)).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                        Ok(v) | Err(v) => v,
                    };
                *r = u64::from(was);
                next!();
            }};
        }
        macro_rules! load_acquire {
            ($atomic:ident, $t:ty) => {
                set!($atomic::from_ptr(at!($t)).load(Ordering::Acquire) as u64)
            };
        }
        macro_rules! store_release {
            ($atomic:ident, $t:ty) => {{
                $atomic::from_ptr(to!($t)).store(s!() as $t, Ordering::Release);
                next!();
            }};
        }
        // Leaves the current function; the program, if it was the first.
        macro_rules! leave {
            () => {{
                if frame == frames_base {
                    env.fuel = budget;
                    return (*r, executed);
                }
                frame = frame.sub(1);
                ptr::copy_nonoverlapping((*frame).saved.as_ptr(), r.add(6), 5);
                pc = (*frame).pc.map_addr(|a| a & !MAIN);
            }};
        }
        // Where a cell leads.
        macro_rules! cell {
            () => {{
                let control = env.control.cast::<u8>();
                let cell = control.add((*pc).imm as u32 as usize).cast::<AtomicU64>();
                control.add((*cell).load(Ordering::Acquire) as usize).cast()
            }};
        }
        // Programs around a function, with the budget of this run.
        macro_rules! around {
            ($behind:literal, $what:expr, $ctx:expr, $room:expr) => {{
                env.fuel = budget;
                if !Around::call($what, $behind, env, $ctx, $room) {
                    break;
                }
                budget = env.fuel;
            }};
        }
        // A load from the packet; where there is none the function ends with 0.
        macro_rules! packet {
            ($size:expr, $index:expr) => {{
                let at = ((*pc).imm as u32).wrapping_add($index as u32) as i32;
                match packet::load(*r.add(6) as *const u8, env.prog_type, at, $size) {
                    Some(v) => {
                        *r = u64::from(v);
                        next!();
                    }
                    None => {
                        *r = 0;
                        leave!();
                    }
                }
            }};
        }

        loop {
            if COUNT {
                executed += 1 + u64::from((*pc).op as u8 >= Op::MovAdd64 as u8);
            }
            match (*pc).op {
                Op::Trap => {
                    env.fuel = budget;
                    return (0, executed);
                }

                Op::Add64X => set!(d!().wrapping_add(s!())),
                Op::Add64K => set!(d!().wrapping_add(k!())),
                Op::Add32X => set32!((d!() as u32).wrapping_add(s!() as u32)),
                Op::Add32K => set32!((d!() as u32).wrapping_add(k!() as u32)),
                Op::Sub64X => set!(d!().wrapping_sub(s!())),
                Op::Sub64K => set!(d!().wrapping_sub(k!())),
                Op::Sub32X => set32!((d!() as u32).wrapping_sub(s!() as u32)),
                Op::Sub32K => set32!((d!() as u32).wrapping_sub(k!() as u32)),
                Op::Mul64X => set!(d!().wrapping_mul(s!())),
                Op::Mul64K => set!(d!().wrapping_mul(k!())),
                Op::Mul32X => set32!((d!() as u32).wrapping_mul(s!() as u32)),
                Op::Mul32K => set32!((d!() as u32).wrapping_mul(k!() as u32)),
                Op::Div64X => set!(d!().checked_div(s!()).unwrap_or(0)),
                Op::Div64K => set!(d!().checked_div(k!()).unwrap_or(0)),
                Op::Div32X => set32!((d!() as u32).checked_div(s!() as u32).unwrap_or(0)),
                Op::Div32K => set32!((d!() as u32).checked_div(k!() as u32).unwrap_or(0)),
                Op::Mod64X => set!(d!().checked_rem(s!()).unwrap_or(d!())),
                Op::Mod64K => set!(d!().checked_rem(k!()).unwrap_or(d!())),
                Op::Mod32X => set32!((d!() as u32).checked_rem(s!() as u32).unwrap_or(d!() as u32)),
                Op::Mod32K => set32!((d!() as u32).checked_rem(k!() as u32).unwrap_or(d!() as u32)),
                Op::SDiv64X => set!(sdiv64(d!(), s!())),
                Op::SDiv64K => set!(sdiv64(d!(), k!())),
                Op::SDiv32X => set32!(sdiv32(d!() as u32, s!() as u32)),
                Op::SDiv32K => set32!(sdiv32(d!() as u32, k!() as u32)),
                Op::SMod64X => set!(smod64(d!(), s!())),
                Op::SMod64K => set!(smod64(d!(), k!())),
                Op::SMod32X => set32!(smod32(d!() as u32, s!() as u32)),
                Op::SMod32K => set32!(smod32(d!() as u32, k!() as u32)),

                Op::Or64X => set!(d!() | s!()),
                Op::Or64K => set!(d!() | k!()),
                Op::Or32X => set32!(d!() as u32 | s!() as u32),
                Op::Or32K => set32!(d!() as u32 | k!() as u32),
                Op::And64X => set!(d!() & s!()),
                Op::And64K => set!(d!() & k!()),
                Op::And32X => set32!(d!() as u32 & s!() as u32),
                Op::And32K => set32!(d!() as u32 & k!() as u32),
                Op::Xor64X => set!(d!() ^ s!()),
                Op::Xor64K => set!(d!() ^ k!()),
                Op::Xor32X => set32!(d!() as u32 ^ s!() as u32),
                Op::Xor32K => set32!(d!() as u32 ^ k!() as u32),
                Op::Lsh64X => set!(d!().wrapping_shl(s!() as u32)),
                Op::Lsh64K => set!(d!().wrapping_shl(k!() as u32)),
                Op::Lsh32X => set32!((d!() as u32).wrapping_shl(s!() as u32)),
                Op::Lsh32K => set32!((d!() as u32).wrapping_shl(k!() as u32)),
                Op::Rsh64X => set!(d!().wrapping_shr(s!() as u32)),
                Op::Rsh64K => set!(d!().wrapping_shr(k!() as u32)),
                Op::Rsh32X => set32!((d!() as u32).wrapping_shr(s!() as u32)),
                Op::Rsh32K => set32!((d!() as u32).wrapping_shr(k!() as u32)),
                Op::Arsh64X => set!((d!() as i64).wrapping_shr(s!() as u32) as u64),
                Op::Arsh64K => set!((d!() as i64).wrapping_shr(k!() as u32) as u64),
                Op::Arsh32X => set32!((d!() as i32).wrapping_shr(s!() as u32) as u32),
                Op::Arsh32K => set32!((d!() as i32).wrapping_shr(k!() as u32) as u32),
                Op::Mov64X => set!(s!()),
                Op::Mov64K => set!(k!()),
                Op::Mov32X => set32!(s!() as u32),
                Op::Mov32K => set32!(k!() as u32),
                Op::Neg64 => set!(d!().wrapping_neg()),
                Op::Neg32 => set32!((d!() as u32).wrapping_neg()),
                Op::MovSx8To64 => set!(s!() as i8 as i64 as u64),
                Op::MovSx16To64 => set!(s!() as i16 as i64 as u64),
                Op::MovSx32To64 => set!(s!() as i32 as i64 as u64),
                Op::MovSx8To32 => set32!(s!() as i8 as i32 as u32),
                Op::MovSx16To32 => set32!(s!() as i16 as i32 as u32),
                Op::Zext8 => set!(d!() as u8 as u64),
                Op::Zext16 => set!(d!() as u16 as u64),
                Op::Swap16 => set!(u64::from((d!() as u16).swap_bytes())),
                Op::Swap32 => set32!((d!() as u32).swap_bytes()),
                Op::Swap64 => set!(d!().swap_bytes()),

                Op::ObjB => load_object!(u8 as u64),
                Op::ObjH => load_object!(u16 as u64),
                Op::ObjW => load_object!(u32 as u64),
                Op::ObjDw => load_object!(u64 as u64),
                Op::ObjSB => load_object!(i8 as i64),
                Op::ObjSH => load_object!(i16 as i64),
                Op::ObjSW => load_object!(i32 as i64),
                Op::LdxB => load!(u8),
                Op::LdxH => load!(u16),
                Op::LdxW => load!(u32),
                Op::LdxDw => load!(u64),
                Op::LdxSB => load_signed!(i8),
                Op::LdxSH => load_signed!(i16),
                Op::LdxSW => load_signed!(i32),
                Op::StB => store_k!(u8),
                Op::StH => store_k!(u16),
                Op::StW => store_k!(u32),
                Op::StDw => store_k!(u64),
                Op::StxB => store_x!(u8),
                Op::StxH => store_x!(u16),
                Op::StxW => store_x!(u32),
                Op::StxDw => store_x!(u64),

                Op::AtomicAdd32 => atomic!(AtomicU32, u32, fetch_add),
                Op::AtomicOr32 => atomic!(AtomicU32, u32, fetch_or),
                Op::AtomicAnd32 => atomic!(AtomicU32, u32, fetch_and),
                Op::AtomicXor32 => atomic!(AtomicU32, u32, fetch_xor),
                Op::FetchAdd32 => fetch!(AtomicU32, u32, fetch_add),
                Op::FetchOr32 => fetch!(AtomicU32, u32, fetch_or),
                Op::FetchAnd32 => fetch!(AtomicU32, u32, fetch_and),
                Op::FetchXor32 => fetch!(AtomicU32, u32, fetch_xor),
                Op::Xchg32 => fetch!(AtomicU32, u32, swap),
                Op::CmpXchg32 => cmpxchg!(AtomicU32, u32),
                Op::AtomicAdd64 => atomic!(AtomicU64, u64, fetch_add),
                Op::AtomicOr64 => atomic!(AtomicU64, u64, fetch_or),
                Op::AtomicAnd64 => atomic!(AtomicU64, u64, fetch_and),
                Op::AtomicXor64 => atomic!(AtomicU64, u64, fetch_xor),
                Op::FetchAdd64 => fetch!(AtomicU64, u64, fetch_add),
                Op::FetchOr64 => fetch!(AtomicU64, u64, fetch_or),
                Op::FetchAnd64 => fetch!(AtomicU64, u64, fetch_and),
                Op::FetchXor64 => fetch!(AtomicU64, u64, fetch_xor),
                Op::Xchg64 => fetch!(AtomicU64, u64, swap),
                Op::CmpXchg64 => cmpxchg!(AtomicU64, u64),
                Op::LoadAcqB => load_acquire!(AtomicU8, u8),
                Op::LoadAcqH => load_acquire!(AtomicU16, u16),
                Op::LoadAcqW => load_acquire!(AtomicU32, u32),
                Op::LoadAcqDw => load_acquire!(AtomicU64, u64),
                Op::StoreRelB => store_release!(AtomicU8, u8),
                Op::StoreRelH => store_release!(AtomicU16, u16),
                Op::StoreRelW => store_release!(AtomicU32, u32),
                Op::StoreRelDw => store_release!(AtomicU64, u64),

                Op::LdAbsB => packet!(1, 0u64),
                Op::LdAbsH => packet!(2, 0u64),
                Op::LdAbsW => packet!(4, 0u64),
                Op::LdIndB => packet!(1, s!()),
                Op::LdIndH => packet!(2, s!()),
                Op::LdIndW => packet!(4, s!()),

                Op::LdImm64 => {
                    d!() = u64::from((*pc).imm as u32) | ((*pc.add(1)).imm as u64) << 32;
                    pc = pc.add(2);
                }
                Op::LdMap => {
                    d!() = env.maps.add((*pc).imm as usize) as u64;
                    pc = pc.add(2);
                }
                Op::LdMapValue => {
                    let data = (*env.maps.add((*pc).imm as usize)).data;
                    d!() = data as u64 + u64::from((*pc.add(1)).imm as u32);
                    pc = pc.add(2);
                }

                Op::Ja => jump!(pc, (*pc).imm),
                Op::Jeq64X => jump_x!(u64: a, b => a == b),
                Op::Jeq64K => jump_k!(u64: a, b => a == b),
                Op::Jeq32X => jump_x!(u32: a, b => a == b),
                Op::Jeq32K => jump_k!(u32: a, b => a == b),
                Op::Jne64X => jump_x!(u64: a, b => a != b),
                Op::Jne64K => jump_k!(u64: a, b => a != b),
                Op::Jne32X => jump_x!(u32: a, b => a != b),
                Op::Jne32K => jump_k!(u32: a, b => a != b),
                Op::Jset64X => jump_x!(u64: a, b => a & b != 0),
                Op::Jset64K => jump_k!(u64: a, b => a & b != 0),
                Op::Jset32X => jump_x!(u32: a, b => a & b != 0),
                Op::Jset32K => jump_k!(u32: a, b => a & b != 0),
                Op::Jgt64X => jump_x!(u64: a, b => a > b),
                Op::Jgt64K => jump_k!(u64: a, b => a > b),
                Op::Jgt32X => jump_x!(u32: a, b => a > b),
                Op::Jgt32K => jump_k!(u32: a, b => a > b),
                Op::Jge64X => jump_x!(u64: a, b => a >= b),
                Op::Jge64K => jump_k!(u64: a, b => a >= b),
                Op::Jge32X => jump_x!(u32: a, b => a >= b),
                Op::Jge32K => jump_k!(u32: a, b => a >= b),
                Op::Jlt64X => jump_x!(u64: a, b => a < b),
                Op::Jlt64K => jump_k!(u64: a, b => a < b),
                Op::Jlt32X => jump_x!(u32: a, b => a < b),
                Op::Jlt32K => jump_k!(u32: a, b => a < b),
                Op::Jle64X => jump_x!(u64: a, b => a <= b),
                Op::Jle64K => jump_k!(u64: a, b => a <= b),
                Op::Jle32X => jump_x!(u32: a, b => a <= b),
                Op::Jle32K => jump_k!(u32: a, b => a <= b),
                Op::Jsgt64X => jump_x!(i64: a, b => a > b),
                Op::Jsgt64K => jump_k!(i64: a, b => a > b),
                Op::Jsgt32X => jump_x!(i32: a, b => a > b),
                Op::Jsgt32K => jump_k!(i32: a, b => a > b),
                Op::Jsge64X => jump_x!(i64: a, b => a >= b),
                Op::Jsge64K => jump_k!(i64: a, b => a >= b),
                Op::Jsge32X => jump_x!(i32: a, b => a >= b),
                Op::Jsge32K => jump_k!(i32: a, b => a >= b),
                Op::Jslt64X => jump_x!(i64: a, b => a < b),
                Op::Jslt64K => jump_k!(i64: a, b => a < b),
                Op::Jslt32X => jump_x!(i32: a, b => a < b),
                Op::Jslt32K => jump_k!(i32: a, b => a < b),
                Op::Jsle64X => jump_x!(i64: a, b => a <= b),
                Op::Jsle64K => jump_k!(i64: a, b => a <= b),
                Op::Jsle32X => jump_x!(i32: a, b => a <= b),
                Op::Jsle32K => jump_k!(i32: a, b => a <= b),

                Op::CallSub => {
                    spend!();
                    ptr::copy_nonoverlapping(r.add(6), (&raw mut (*frame).saved).cast::<u64>(), 5);
                    (*frame).pc = pc.add(1);
                    frame = frame.add(1);
                    *r.add(10) -= u64::from((*pc).a);
                    allow_loops(*r.add(10), (*pc).dst);
                    pc = pc.offset((*pc).imm as isize + 1);
                }
                Op::CallCell => {
                    spend!();
                    ptr::copy_nonoverlapping(r.add(6), (&raw mut (*frame).saved).cast::<u64>(), 5);
                    (*frame).pc = pc.add(1);
                    frame = frame.add(1);
                    *r.add(10) -= u64::from((*pc).a);
                    pc = cell!();
                }
                Op::GoCell => pc = cell!(),
                Op::Enter => {
                    if (*pc).dst != 0 {
                        enter_main(frames_base, frame);
                    }
                    allow_loops(*r.add(10), (*pc).a as u8);
                    pc = pc.offset((*pc).imm as isize + 1);
                }
                Op::Around => {
                    let what = pc.cast::<u8>().add((*pc).imm as u32 as usize).cast::<Around>();
                    let fp = *r.add(10);
                    if !(*what).fits(env, &Room { fp, frame }) {
                        pc = env.control.cast::<u8>().add((*what).otherwise as usize).cast();
                        continue;
                    }
                    if (*what).before + (*what).behind > 0 {
                        let ctx = (*what).enter(fp, r.add(1));
                        let below = Room { fp: fp - around::CONTEXT as u64, frame };
                        around!(false, what, ctx, below);
                    }
                    if (*what).behind > 0 {
                        ptr::copy_nonoverlapping(r.add(6), (&raw mut (*frame).saved).cast::<u64>(), 5);
                        (*frame).pc = pc.add(1);
                        frame = frame.add(1);
                        *r.add(10) -= around::CONTEXT as u64;
                        if (*what).main != 0 {
                            enter_main(frames_base, frame);
                        }
                    }
                    pc = env.control.cast::<u8>().add((*what).body as usize).cast();
                }
                Op::Returned => {
                    let first = pc.sub(1);
                    let what = first.cast::<u8>().add((*first).imm as u32 as usize).cast::<Around>();
                    let fp = *r.add(10);
                    let ctx = (*what).leave(fp, *r);
                    around!(true, what, ctx, Room { fp: fp - around::CONTEXT as u64, frame });
                    leave!();
                }
                Op::CallHelper => {
                    spend!();
                    *r = helpers::call((*pc).imm as u32, env, *r.add(1), *r.add(2), *r.add(3), *r.add(4), *r.add(5));
                    next!();
                }
                Op::CallLookup => {
                    spend!();
                    *r = helpers::map_lookup_elem(env, *r.add(1), *r.add(2));
                    next!();
                }
                Op::TailCall => {
                    spend!();
                    let area = &raw mut *env.area;
                    let stack = ((*r.add(10) - area as u64) as usize).saturating_sub(NESTED_STACK);
                    let used = frame.offset_from_unsigned((&raw mut (*area).frames).cast());
                    let left = (SAVED_FRAMES + 1).saturating_sub(used);
                    match tail_call_target(env, *r.add(2), *r.add(3) as u32, stack, left, env.tail_calls, false) {
                        Some(image) if (*image).flags & image::NATIVE == 0 => {
                            env.tail_calls += 1;
                            *r.add(1) = env.ctx as u64;
                            allow_loops(*r.add(10), (*image).may_goto as u8);
                            enter_main(frames_base, frame);
                            pc = Image::code(image);
                        }
                        _ => next!(),
                    }
                }
                Op::Exit => leave!(),

                Op::CallEntry => {
                    spend!();
                    let f = helpers::function((*pc).imm as usize);
                    *r = f(*r.add(1), *r.add(2), *r.add(3), *r.add(4), *r.add(5), env);
                    next!();
                }
                Op::CallHost => {
                    spend!();
                    env.function = (*pc).imm as u32;
                    let f = (*env.functions.add((*pc).imm as usize)).call;
                    *r = f(*r.add(1), *r.add(2), *r.add(3), *r.add(4), *r.add(5), env);
                    next!();
                }
                Op::CallBack => {
                    spend!();
                    env.callback_fp = *r.add(10) - u64::from((*pc).a);
                    env.frame = frame;
                    env.fuel = budget;
                    let f = helpers::function((*pc).imm as usize);
                    *r = f(*r.add(1), *r.add(2), *r.add(3), *r.add(4), *r.add(5), env);
                    budget = env.fuel;
                    if env.modes.over_budget {
                        break;
                    }
                    next!();
                }
                Op::LdFunc => {
                    let may_goto = (*pc.add(1)).imm as u64;
                    d!() = pc.offset((*pc).imm as isize + 1) as u64 | may_goto << FRAME_SHIFT;
                    pc = pc.add(2);
                }
                Op::MayGoto => {
                    let left = (*r.add(10) - u64::from((*pc).a)) as *mut i64;
                    *left -= 1;
                    if *left < 0 { jump!(pc, (*pc).imm) } else { next!() }
                }
                Op::Throw => {
                    // All that this program has called is left behind.
                    while frame != frames_base && (*frame.sub(1)).pc.addr() & MAIN == 0 {
                        frame = frame.sub(1);
                        *r.add(10) = (*frame).saved[4];
                    }
                    *r = *r.add(1);
                    if (*pc).imm == -1 {
                        leave!();
                    } else {
                        allow_loops(*r.add(10), (*pc).dst);
                        pc = pc.offset((*pc).imm as isize + 1);
                    }
                }

                Op::MovAdd64 => {
                    d!() = s!().wrapping_add((*pc.add(1)).imm as i64 as u64);
                    pc = pc.add(2);
                }
                Op::LshRsh64 => {
                    d!() = d!().wrapping_shl((*pc).imm as u32).wrapping_shr((*pc.add(1)).imm as u32);
                    pc = pc.add(2);
                }
                Op::LshArsh64 => {
                    let left = d!().wrapping_shl((*pc).imm as u32) as i64;
                    d!() = left.wrapping_shr((*pc.add(1)).imm as u32) as u64;
                    pc = pc.add(2);
                }
                Op::AddJne64K => {
                    let (jump, v) = (pc.add(1), d!().wrapping_add(k!()));
                    d!() = v;
                    if v != (*jump).imm as i64 as u64 { jump!(jump, (*jump).a as i16) } else { pc = pc.add(2) }
                }
                Op::AddJne64X => {
                    let (jump, v) = (pc.add(1), d!().wrapping_add(k!()));
                    d!() = v;
                    if v != *r.add(usize::from((*jump).a)) { jump!(jump, (*jump).imm) } else { pc = pc.add(2) }
                }
                Op::AddJlt64X => {
                    let (jump, v) = (pc.add(1), d!().wrapping_add(k!()));
                    d!() = v;
                    if v < *r.add(usize::from((*jump).a)) { jump!(jump, (*jump).imm) } else { pc = pc.add(2) }
                }
                Op::AndJeq64K => {
                    let (jump, v) = (pc.add(1), d!() & k!());
                    d!() = v;
                    if v == (*jump).imm as i64 as u64 { jump!(jump, (*jump).a as i16) } else { pc = pc.add(2) }
                }
                Op::AndJne64K => {
                    let (jump, v) = (pc.add(1), d!() & k!());
                    d!() = v;
                    if v != (*jump).imm as i64 as u64 { jump!(jump, (*jump).a as i16) } else { pc = pc.add(2) }
                }
            }
        }
    }
    env.modes.over_budget = true;
    (0, executed)
}

#[inline(always)]
fn sdiv64(a: u64, b: u64) -> u64 {
    if b == 0 { 0 } else { (a as i64).wrapping_div(b as i64) as u64 }
}

#[inline(always)]
fn sdiv32(a: u32, b: u32) -> u32 {
    if b == 0 { 0 } else { (a as i32).wrapping_div(b as i32) as u32 }
}

#[inline(always)]
fn smod64(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }
}

#[inline(always)]
fn smod32(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }
}
