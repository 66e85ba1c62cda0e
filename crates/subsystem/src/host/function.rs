//! Functions of an application that its programs may call.
//!
//! A program holds what a function gave it as an [`Arc`] until it hands it back to one that takes an `Arc`: the verifier
//! sees to it that each path does, and exactly once. Of a run that is ended by its budget the host gives it back.

use std::any::TypeId;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use skep_ebpf::kfunc::Kfunc;
use skep_runtime::env::{Env, HostFn};

/// A type of the application's whose values programs hold and hand on, without looking into them.
pub trait Object: Send + Sync + 'static {
    /// Name of the struct in C.
    const NAME: &'static str;
}

/// What a parameter of a function is.
#[derive(Clone, Copy, Debug)]
pub enum ParamType {
    /// A number.
    Int {
        /// Its size: 1, 2, 4 or 8.
        bytes: u32,
        /// Two's complement.
        signed: bool,
    },
    /// Bytes and, in the next register, how many.
    Memory {
        /// The function may write them.
        write: bool,
    },
    /// An [`Object`].
    Object {
        /// Its struct.
        name: &'static str,
        /// Its type.
        id: fn() -> TypeId,
        /// Programs may pass null.
        nullable: bool,
        /// The program gives up what it holds.
        release: bool,
    },
}

/// What a function gives.
#[derive(Clone, Copy, Debug)]
pub enum ReturnType {
    /// Nothing.
    Void,
    /// A number.
    Int {
        /// Its size: 1, 2, 4 or 8.
        bytes: u32,
        /// Two's complement.
        signed: bool,
    },
    /// An [`Object`], which the program holds from then on.
    Object {
        /// Its struct.
        name: &'static str,
        /// Its type.
        id: fn() -> TypeId,
        /// It may be null.
        nullable: bool,
    },
}

/// What programs are told of a function.
#[derive(Clone, Copy, Debug)]
pub struct FunctionDef {
    /// Its name.
    pub name: &'static str,
    /// Names and types of its parameters.
    pub params: &'static [(&'static str, ParamType)],
    /// What it gives.
    pub returns: ReturnType,
}

/// A function of a `T`.
pub struct Function<T: ?Sized> {
    /// What programs are told.
    pub def: FunctionDef,
    /// Calls it with what stands in the registers.
    ///
    /// # Safety
    /// The registers are those of a verified program that calls the function by `def`.
    pub call: for<'r> unsafe fn(&T, &mut Registers<'r>) -> u64,
}

/// Functions that programs may call, on a value of this type. `#[skep::host::functions]` implements it for the methods of an
/// `impl` block.
///
/// # Safety
/// Each `call` takes from the registers what `def` says, in that order, and gives what it says.
pub unsafe trait Functions: Send + Sync + 'static {
    /// They.
    const FUNCTIONS: &'static [Function<Self>];
}

/// The arguments of a call.
#[derive(Debug)]
pub struct Registers<'r> {
    args: [u64; 5],
    next: usize,
    env: *const Env,
    of: PhantomData<&'r ()>,
}

impl<'r> Registers<'r> {
    fn word(&mut self) -> u64 {
        let word = self.args.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        word
    }

    /// The next argument.
    ///
    /// # Safety
    /// The verifier was told that it is of this type.
    pub unsafe fn take<A: Argument>(&mut self) -> A::Of<'r> {
        // SAFETY: the caller's promise.
        unsafe { A::take(self) }
    }

    /// A result, as the program gets it.
    pub fn give<R: Returned>(&self, result: R) -> u64 {
        result.give(self)
    }
}

/// A type that parameters of functions can have: integers, `bool`, [`Memory`], [`MemoryMut`], `&T`, `Option<&T>` and `Arc<T>`
/// of an [`Object`].
///
/// # Safety
/// `take` makes a valid value of what a program passes for `PARAM`.
pub unsafe trait Argument {
    /// What it is to programs.
    const PARAM: ParamType;
    /// As it is for the time of the call.
    type Of<'r>;

    /// Takes it from the registers.
    ///
    /// # Safety
    /// What stands there was passed for `PARAM`.
    unsafe fn take<'r>(registers: &mut Registers<'r>) -> Self::Of<'r>;
}

/// A type that functions can give: integers, `bool`, `()`, `Arc<T>` and `Option<Arc<T>>` of an [`Object`].
///
/// # Safety
/// `give` makes what programs were told by `RETURN`.
pub unsafe trait Returned {
    /// What it is to programs.
    const RETURN: ReturnType;

    /// r0.
    fn give(self, registers: &Registers<'_>) -> u64;
}

macro_rules! numbers {
    ($($ty:ty, $bytes:expr, $signed:expr, $wide:ty;)*) => {$(
        // SAFETY: any bits are a number.
        unsafe impl Argument for $ty {
            const PARAM: ParamType = ParamType::Int { bytes: $bytes, signed: $signed };
            type Of<'r> = $ty;

            unsafe fn take<'r>(registers: &mut Registers<'r>) -> $ty {
                registers.word() as $ty
            }
        }
        // SAFETY: as above.
        unsafe impl Returned for $ty {
            const RETURN: ReturnType = ReturnType::Int { bytes: $bytes, signed: $signed };

            fn give(self, _: &Registers<'_>) -> u64 {
                self as $wide as u64
            }
        }
    )*};
}

numbers! {
    u8, 1, false, u64; u16, 2, false, u64; u32, 4, false, u64; u64, 8, false, u64;
    i8, 1, true, i64; i16, 2, true, i64; i32, 4, true, i64; i64, 8, true, i64;
}

// SAFETY: any bits are taken for one or the other.
unsafe impl Argument for bool {
    const PARAM: ParamType = ParamType::Int { bytes: 1, signed: false };
    type Of<'r> = bool;

    unsafe fn take<'r>(registers: &mut Registers<'r>) -> bool {
        registers.word() as u8 != 0
    }
}

// SAFETY: 0 or 1.
unsafe impl Returned for bool {
    const RETURN: ReturnType = ReturnType::Int { bytes: 1, signed: false };

    fn give(self, _: &Registers<'_>) -> u64 {
        self.into()
    }
}

// SAFETY: programs do not look at r0.
unsafe impl Returned for () {
    const RETURN: ReturnType = ReturnType::Void;

    fn give(self, _: &Registers<'_>) -> u64 {
        0
    }
}

/// Bytes of a program: of its stack, of a value of a map, of what its context points to. Others may write them meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'r> {
    bytes: &'r [AtomicU8],
}

impl Memory<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Copies as many as fit; gives their number.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        for (to, from) in to.iter_mut().zip(self.bytes) {
            *to = from.load(Ordering::Relaxed);
        }
        to.len().min(self.len())
    }

    /// A copy.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.iter().map(|b| b.load(Ordering::Relaxed)).collect()
    }
}

/// Bytes of a program that the function may write; see [`Memory`].
#[derive(Clone, Copy, Debug)]
pub struct MemoryMut<'r> {
    bytes: &'r [AtomicU8],
}

impl<'r> MemoryMut<'r> {
    /// To be read.
    pub fn as_memory(&self) -> Memory<'r> {
        Memory { bytes: self.bytes }
    }

    /// Writes as many as fit, to the beginning; gives their number.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        for (from, to) in from.iter().zip(self.bytes) {
            to.store(*from, Ordering::Relaxed);
        }
        from.len().min(self.bytes.len())
    }
}

/// The bytes in the next two registers.
///
/// # Safety
/// The verifier has seen that they are there.
unsafe fn bytes<'r>(registers: &mut Registers<'r>) -> &'r [AtomicU8] {
    let (at, len) = (registers.word() as *const AtomicU8, registers.word() as usize);
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise; what programs can reach they only access in ways that atomics allow for.
    unsafe { slice::from_raw_parts(at, len) }
}

// SAFETY: the verifier has seen that the bytes are there.
unsafe impl Argument for Memory<'_> {
    const PARAM: ParamType = ParamType::Memory { write: false };
    type Of<'r> = Memory<'r>;

    unsafe fn take<'r>(registers: &mut Registers<'r>) -> Memory<'r> {
        // SAFETY: the caller's promise.
        Memory { bytes: unsafe { bytes(registers) } }
    }
}

// SAFETY: as above, and that they may be written.
unsafe impl Argument for MemoryMut<'_> {
    const PARAM: ParamType = ParamType::Memory { write: true };
    type Of<'r> = MemoryMut<'r>;

    unsafe fn take<'r>(registers: &mut Registers<'r>) -> MemoryMut<'r> {
        // SAFETY: the caller's promise.
        MemoryMut { bytes: unsafe { bytes(registers) } }
    }
}

/// What a run holds: the environment of the run, the object, and how it is let go.
type Held = (usize, usize, unsafe fn(usize));

thread_local! {
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

/// Lets go of what a run held that was ended.
#[cold]
pub(super) fn let_go(env: *const Env) {
    let of_run: Vec<Held> = HELD.with(|held| held.borrow_mut().extract_if(.., |h| h.0 == env.addr()).collect());
    for (_, object, drop) in of_run {
        // SAFETY: it was noted when the run got it, and is not in the list any more.
        unsafe { drop(object) };
    }
}

/// # Safety
/// It came from `Arc::into_raw` of this type.
unsafe fn drop_arc<T>(object: usize) {
    // SAFETY: the caller's promise.
    drop(unsafe { Arc::from_raw(object as *const T) });
}

// SAFETY: the verifier has seen that the program holds it, or was given it for the time of its run.
unsafe impl<T: Object> Argument for &T {
    const PARAM: ParamType = ParamType::Object { name: T::NAME, id: TypeId::of::<T>, nullable: false, release: false };
    type Of<'r> = &'r T;

    unsafe fn take<'r>(registers: &mut Registers<'r>) -> &'r T {
        // SAFETY: the caller's promise.
        unsafe { &*(registers.word() as *const T) }
    }
}

// SAFETY: as above, or null.
unsafe impl<T: Object> Argument for Option<&T> {
    const PARAM: ParamType = ParamType::Object { name: T::NAME, id: TypeId::of::<T>, nullable: true, release: false };
    type Of<'r> = Option<&'r T>;

    unsafe fn take<'r>(registers: &mut Registers<'r>) -> Option<&'r T> {
        // SAFETY: the caller's promise.
        unsafe { (registers.word() as *const T).as_ref() }
    }
}

// SAFETY: the verifier has seen that the program holds it, and takes it from it.
unsafe impl<T: Object> Argument for Arc<T> {
    const PARAM: ParamType = ParamType::Object { name: T::NAME, id: TypeId::of::<T>, nullable: false, release: true };
    type Of<'r> = Arc<T>;

    unsafe fn take<'r>(registers: &mut Registers<'r>) -> Arc<T> {
        let (object, env) = (registers.word(), registers.env.addr());
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if let Some(at) = held.iter().rposition(|h| (h.0, h.1) == (env, object as usize)) {
                held.swap_remove(at);
            }
        });
        // SAFETY: the caller's promise: it came from `give`.
        unsafe { Arc::from_raw(object as *const T) }
    }
}

// SAFETY: the program holds it until it is taken from it.
unsafe impl<T: Object> Returned for Arc<T> {
    const RETURN: ReturnType = ReturnType::Object { name: T::NAME, id: TypeId::of::<T>, nullable: false };

    fn give(self, registers: &Registers<'_>) -> u64 {
        let object = Arc::into_raw(self).addr();
        HELD.with(|held| held.borrow_mut().push((registers.env.addr(), object, drop_arc::<T>)));
        object as u64
    }
}

// SAFETY: as above, or null.
unsafe impl<T: Object> Returned for Option<Arc<T>> {
    const RETURN: ReturnType = ReturnType::Object { name: T::NAME, id: TypeId::of::<T>, nullable: true };

    fn give(self, registers: &Registers<'_>) -> u64 {
        self.map_or(0, |object| object.give(registers))
    }
}

/// A function and what it is called on. Programs reach it by [`HostFn::data`].
struct Bound<T: ?Sized> {
    this: Arc<T>,
    call: for<'r> unsafe fn(&T, &mut Registers<'r>) -> u64,
}

/// Keeps what the rows of the table point to.
pub(super) type Keep = Box<dyn std::any::Any + Send + Sync>;

/// A row of the table for a function, and what keeps it valid.
pub(super) fn bind<T: Functions>(this: &Arc<T>, function: &Function<T>) -> (HostFn, Keep) {
    let bound = Box::new(Bound { this: Arc::clone(this), call: function.call });
    let data = (&raw const *bound).cast::<()>();
    (HostFn { call: enter::<T>, data }, bound)
}

/// What machine code and the interpreter call. A panic ends the process: there is no way back through the program.
///
/// # Safety
/// Called by a verified program, for a row that [`bind`] has made of a `T`.
unsafe extern "sysv64" fn enter<T: Functions>(r1: u64, r2: u64, r3: u64, r4: u64, r5: u64, env: *mut Env) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let bound = &*Env::function_data(env).cast::<Bound<T>>();
        let mut registers = Registers { args: [r1, r2, r3, r4, r5], next: 0, env, of: PhantomData };
        (bound.call)(&bound.this, &mut registers)
    }
}

impl FunctionDef {
    /// Registers that its arguments take.
    fn registers(&self) -> usize {
        self.params.iter().map(|(_, ty)| if matches!(ty, ParamType::Memory { .. }) { 2 } else { 1 }).sum()
    }

    /// The objects that it takes and gives.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&'static str, TypeId)> {
        let of_param = |p: &(&str, ParamType)| match p.1 {
            ParamType::Object { name, id, .. } => Some((name, id())),
            _ => None,
        };
        let returned = match self.returns {
            ReturnType::Object { name, id, .. } => Some((name, id())),
            _ => None,
        };
        self.params.iter().filter_map(of_param).chain(returned)
    }

    /// Why programs could not call it.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let released = |p: &&(&str, ParamType)| matches!(p.1, ParamType::Object { release: true, .. });
        // The verifier reads meanings into such names, of the kernel's functions, structs and parameters.
        let meant = |name: &str| name.starts_with("bpf_") || name.contains("__");
        let kernels = ["sk_buff", "xdp_md", "xdp_buff", "sock", "sock_common", "tcp_sock"];
        let param = |p: &(&str, ParamType)| meant(p.0) || matches!(p.0, "rdonly_buf_size" | "rdwr_buf_size");
        match () {
            () if meant(self.name) || Kfunc::by_name(self.name).is_some() => Some("its name is one of the kernel's"),
            () if self.params.iter().any(param) => Some("a parameter's name says something else to the verifier"),
            () if self.objects().any(|(name, _)| meant(name) || kernels.contains(&name)) => {
                Some("a struct's name is one of the kernel's")
            }
            () if self.registers() > 5 => Some("its arguments take more than five registers (bytes take two)"),
            () if self.params.iter().filter(released).count() > 1 => {
                Some("it takes more than one object from the program")
            }
            () => None,
        }
    }

    /// Flags that the verifier goes by.
    pub(super) fn flags(&self) -> u32 {
        use skep_ebpf::kfunc::flag::{ACQUIRE, RELEASE, RET_NULL, TRUSTED_ARGS};
        let release = self.params.iter().any(|p| matches!(p.1, ParamType::Object { release: true, .. }));
        TRUSTED_ARGS
            | if release { RELEASE } else { 0 }
            | match self.returns {
                ReturnType::Object { nullable: true, .. } => ACQUIRE | RET_NULL,
                ReturnType::Object { nullable: false, .. } => ACQUIRE,
                _ => 0,
            }
    }
}
