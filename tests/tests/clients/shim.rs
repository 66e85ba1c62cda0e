//! The C library's functions that loaders make system calls with, defined here: the linker gives these to libbpf, aya and
//! the standard library alike. What the subsystem answers is answered; everything else goes to the kernel.

use std::arch::asm;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use skep_ebpf::btf::Btf;
use skep_subsystem::front::{Config, Router, Subsystem};

static ROUTER: OnceLock<Router> = OnceLock::new();

thread_local! {
    /// The subsystem's own calls are for the kernel.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The subsystem that answers in this process, from the first call on.
pub fn router() -> &'static Router {
    ROUTER.get_or_init(|| {
        let traced = std::env::var("SKEP_TRACED").ok().and_then(|pid| pid.parse().ok());
        let config = Config { slots: 4, processes: true, traced, kernel_btf: types(), ..Config::default() };
        Router::own(Arc::new(Subsystem::new(config).expect("a subsystem"))).expect("a router")
    })
}

/// The types of the kernel that runs here, read without the C library's functions, which would ask the router.
fn types() -> Option<Arc<Btf>> {
    let fd = kernel(libc::SYS_open, [c"/sys/kernel/btf/vmlinux".as_ptr() as u64, 0, 0, 0, 0, 0]);
    if fd < 0 {
        return None;
    }
    let mut bytes = Vec::new();
    let mut part = vec![0u8; 1 << 16];
    loop {
        let n = kernel(libc::SYS_read, [fd as u64, part.as_mut_ptr() as u64, part.len() as u64, 0, 0, 0]);
        match usize::try_from(n) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&part[..n]),
            _ => break,
        }
    }
    kernel(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
    Btf::parse(&bytes).ok().map(Arc::new)
}

/// A system call, as the kernel has it: a negative errno is an error.
fn kernel(nr: i64, a: [u64; 6]) -> i64 {
    let r: i64;
    // SAFETY: whoever called the function of the C library that this stands for answers for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") nr => r, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3],
             in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    r
}

/// Our answer, or else the kernel's.
fn answer(nr: i64, args: [u64; 6]) -> i64 {
    let ours = ROUTER.get().filter(|_| !INSIDE.get()).and_then(|router| {
        INSIDE.set(true);
        let answer = router.dispatch(nr, args);
        INSIDE.set(false);
        answer
    });
    match ours {
        Some(Ok(r)) => r,
        Some(Err(e)) => e.neg(),
        None => kernel(nr, args),
    }
}

/// The answer as C functions give it.
fn result(r: i64) -> c_long {
    if (-4095..0).contains(&r) {
        // SAFETY: the address is this thread's own errno.
        unsafe { *libc::__errno_location() = -r as c_int };
        return -1;
    }
    r
}

fn call<const N: usize>(nr: i64, args: [u64; N]) -> c_long {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&args);
    result(answer(nr, all))
}

// Variadic in C; on x86-64 integers are passed the same way.

#[unsafe(no_mangle)]
extern "C" fn syscall(nr: c_long, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> c_long {
    // Locks of the standard library come this way, too.
    match nr {
        libc::SYS_futex => result(kernel(nr, [a, b, c, d, e, f])),
        _ => call(nr, [a, b, c, d, e, f]),
    }
}

#[unsafe(no_mangle)]
extern "C" fn ioctl(fd: c_int, request: u64, arg: u64) -> c_int {
    call(libc::SYS_ioctl, [fd as u64, request, arg]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn open(path: u64, flags: c_int, mode: c_uint) -> c_int {
    call(libc::SYS_openat, [libc::AT_FDCWD as u64, path, flags as u64, mode.into()]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn open64(path: u64, flags: c_int, mode: c_uint) -> c_int {
    open(path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn openat(at: c_int, path: u64, flags: c_int, mode: c_uint) -> c_int {
    call(libc::SYS_openat, [at as u64, path, flags as u64, mode.into()]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn openat64(at: c_int, path: u64, flags: c_int, mode: c_uint) -> c_int {
    openat(at, path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn access(path: u64, mode: c_int) -> c_int {
    call(libc::SYS_access, [path, mode as u64]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn faccessat(at: c_int, path: u64, mode: c_int, flags: c_int) -> c_int {
    call(libc::SYS_faccessat2, [at as u64, path, mode as u64, flags as u64]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn statfs(path: u64, to: u64) -> c_int {
    call(libc::SYS_statfs, [path, to]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn statfs64(path: u64, to: u64) -> c_int {
    statfs(path, to)
}

#[unsafe(no_mangle)]
extern "C" fn stat(path: u64, to: u64) -> c_int {
    call(libc::SYS_stat, [path, to]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn stat64(path: u64, to: u64) -> c_int {
    stat(path, to)
}

#[unsafe(no_mangle)]
extern "C" fn unlink(path: u64) -> c_int {
    call(libc::SYS_unlink, [path]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn mkdir(path: u64, mode: c_uint) -> c_int {
    call(libc::SYS_mkdir, [path, mode.into()]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn mmap(at: u64, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void {
    call(libc::SYS_mmap, [at, len as u64, prot as u64, flags as u64, fd as u64, offset as u64]) as *mut c_void
}

#[unsafe(no_mangle)]
extern "C" fn mmap64(at: u64, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void {
    mmap(at, len, prot, flags, fd, offset)
}

#[unsafe(no_mangle)]
extern "C" fn epoll_ctl(set: c_int, op: c_int, fd: c_int, event: u64) -> c_int {
    call(libc::SYS_epoll_ctl, [set as u64, op as u64, fd as u64, event]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn poll(entries: u64, count: u64, timeout: c_int) -> c_int {
    call(libc::SYS_poll, [entries, count, timeout as u64]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn ppoll(entries: u64, count: u64, timeout: u64, mask: u64) -> c_int {
    call(libc::SYS_ppoll, [entries, count, timeout, mask, 8]) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn write(fd: c_int, from: u64, len: usize) -> isize {
    call(libc::SYS_write, [fd as u64, from, len as u64]) as isize
}

type Fopen = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut libc::FILE;

/// The C library opens a stream's file by itself. Only files of ours come by here; all others are for the real one.
#[unsafe(no_mangle)]
extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    static REAL: OnceLock<usize> = OnceLock::new();
    // SAFETY: both are C strings, as for the function that this stands for.
    let (text, reads) = unsafe { (CStr::from_ptr(path).to_bytes(), *mode == b'r' as c_char) };
    let virtual_path = text.starts_with(b"/sys/") && reads;
    if virtual_path && ROUTER.get().is_some() && !INSIDE.get() {
        let fd = open(path as u64, libc::O_RDONLY | libc::O_CLOEXEC, 0);
        if fd < 0 {
            return std::ptr::null_mut();
        }
        // SAFETY: the descriptor is open and ours; the mode is a C string.
        return unsafe { libc::fdopen(fd, c"r".as_ptr()) };
    }
    // SAFETY: asks the linker for the next function of this name.
    let real = *REAL.get_or_init(|| unsafe { libc::dlsym(libc::RTLD_NEXT, c"fopen".as_ptr()) as usize });
    // SAFETY: the C library's own function, with the caller's arguments.
    unsafe { std::mem::transmute::<usize, Fopen>(real)(path, mode) }
}

#[unsafe(no_mangle)]
extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    fopen(path, mode)
}

/// Runs something as the subsystem would: its calls are for the kernel.
#[allow(dead_code, reason = "for tests in this process")]
pub fn unrouted<T>(run: impl FnOnce() -> T) -> T {
    let before = INSIDE.replace(true);
    let done = run();
    INSIDE.set(before);
    done
}

/// True if a descriptor is one of the subsystem's.
#[allow(dead_code, reason = "for tests in this process")]
pub fn is_ours(fd: &impl AsRawFd) -> bool {
    use skep_subsystem::front::client::Files;
    unrouted(|| router().handed().get(fd.as_raw_fd()).is_ok())
}
