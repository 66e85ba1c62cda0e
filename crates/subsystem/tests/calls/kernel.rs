//! The two that answer: a [`Subsystem`] of ours, and the kernel that runs here.

#![allow(dead_code, reason = "shared by several tests, none of which uses all of it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use skep_ebpf::btf::Btf;
use skep_ebpf::uapi::PtRegs;
use skep_subsystem::front::link::Tracepoint;
use skep_subsystem::front::perf::PerfMapping;
use skep_subsystem::front::probe::Function;
use skep_subsystem::front::tracefs::{FieldDef, Open, TracepointDef};
use skep_subsystem::front::{Alive, Client, Config, OwnFiles, Subsystem};

/// The types of the kernel that runs here.
pub fn types() -> Option<Arc<Btf>> {
    static TYPES: OnceLock<Option<Arc<Btf>>> = OnceLock::new();
    TYPES.get_or_init(|| Btf::parse(&std::fs::read("/sys/kernel/btf/vmlinux").ok()?).ok().map(Arc::new)).clone()
}

/// Who answers calls. Answers are descriptors, 0, or negative errnos.
pub trait Kernel: Sync {
    /// `bpf(2)`.
    fn bpf(&self, cmd: u32, attr: &mut [u8]) -> i64;
    /// `close(2)`.
    fn close(&self, fd: i64);
    /// Possible CPUs.
    fn cpus(&self) -> usize;
    /// `perf_event_open(2)`; the attributes are at an address.
    fn perf_open(&self, attr: u64, pid: i32, cpu: i32, group: i32, flags: u64) -> i64;
    /// `ioctl(2)`.
    fn ioctl(&self, fd: i64, request: u32, arg: u64) -> i64;
    /// `read(2)` of an event: how many bytes, which are written to `to`.
    fn read(&self, fd: i64, to: &mut [u8]) -> i64;
    /// `mmap(2)` of an event's ring, shared or not; the address.
    fn map(&self, fd: i64, len: usize, offset: u64, shared: bool) -> i64;
    /// Takes a mapping away.
    fn unmap(&self, at: i64, len: usize);
    /// What a file of the tracefs, or one that tells of a PMU, says; `None` if it is not there.
    fn file(&self, path: &str) -> Option<String>;
    /// Writes to a file of the tracefs.
    fn write(&self, path: &str, text: &str, truncate: bool) -> i64;
    /// Takes a pin away.
    fn unpin(&self, path: &str);
    /// Has what the events of the script are on happen so many times.
    fn hit(&self, times: u32);
}

/// The kernel.
pub struct Live {
    cpus: usize,
}

impl Live {
    /// The kernel, if it answers this user.
    pub fn open() -> Option<Live> {
        let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").ok()?;
        let last: usize = possible.trim().rsplit(['-', ',']).next()?.parse().ok()?;
        let live = Live { cpus: last + 1 };
        let mut attr = [0u8; 72];
        attr[0..4].copy_from_slice(&1u32.to_ne_bytes());
        attr[4..8].copy_from_slice(&4u32.to_ne_bytes());
        attr[8..12].copy_from_slice(&8u32.to_ne_bytes());
        attr[12..16].copy_from_slice(&1u32.to_ne_bytes());
        let fd = live.bpf(0, &mut attr);
        if fd < 0 {
            return None;
        }
        live.close(fd);
        // Numbers of objects and programs of tracing are for root.
        rustix::process::geteuid().is_root().then_some(live)
    }
}

/// What uprobes are on: the entry and the return of a function of this program.
#[inline(never)]
pub extern "C" fn probed(x: u64) -> u64 {
    std::hint::black_box(x) + 1
}

/// Where that function is in the file of this program.
pub fn probed_offset() -> u64 {
    let at = probed as *const () as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let place = maps.lines().find_map(|line| {
        let mut parts = line.split_whitespace();
        let (start, end) = parts.next()?.split_once('-')?;
        let number = |s| u64::from_str_radix(s, 16).ok();
        let (start, end, offset) = (number(start)?, number(end)?, number(parts.nth(1)?)?);
        (start..end).contains(&at).then(|| at - start + offset)
    });
    place.expect("this program is mapped from a file")
}

fn answer(r: i64) -> i64 {
    if r < 0 { -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { r }
}

impl Kernel for Live {
    fn bpf(&self, cmd: u32, attr: &mut [u8]) -> i64 {
        // SAFETY: the attributes are a slice of this length; addresses in them are the test's own, or bad on purpose.
        let r = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.as_mut_ptr(), attr.len()) };
        if r < 0 { -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { r }
    }

    fn close(&self, fd: i64) {
        // SAFETY: the descriptor is one that the kernel gave to this test.
        unsafe { libc::close(fd as i32) };
    }

    fn cpus(&self) -> usize {
        self.cpus
    }

    fn perf_open(&self, attr: u64, pid: i32, cpu: i32, group: i32, flags: u64) -> i64 {
        // SAFETY: the kernel reads the attributes, and writes their size at most; the address is the test's.
        answer(unsafe { libc::syscall(libc::SYS_perf_event_open, attr, pid, cpu, group, flags) })
    }

    fn ioctl(&self, fd: i64, request: u32, arg: u64) -> i64 {
        // SAFETY: as above.
        answer(unsafe { libc::syscall(libc::SYS_ioctl, fd, request, arg) })
    }

    fn read(&self, fd: i64, to: &mut [u8]) -> i64 {
        // SAFETY: the buffer has this length.
        answer(unsafe { libc::read(fd as i32, to.as_mut_ptr().cast(), to.len()) } as i64)
    }

    fn map(&self, fd: i64, len: usize, offset: u64, shared: bool) -> i64 {
        let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, kind, fd as i32, offset as i64)
        };
        if at == libc::MAP_FAILED { answer(-1) } else { at as i64 }
    }

    fn unmap(&self, at: i64, len: usize) {
        // SAFETY: a mapping of the test's own.
        unsafe { libc::munmap(at as *mut libc::c_void, len) };
    }

    fn file(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }

    fn write(&self, path: &str, text: &str, truncate: bool) -> i64 {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().write(true).append(!truncate).truncate(truncate).open(path);
        let errno = |e: std::io::Error| -i64::from(e.raw_os_error().unwrap_or(0));
        match file {
            Ok(mut file) => file.write_all(text.as_bytes()).map_or_else(errno, |()| 0),
            Err(e) => errno(e),
        }
    }

    fn unpin(&self, path: &str) {
        let _ = std::fs::remove_file(path);
    }

    fn hit(&self, times: u32) {
        for n in 0..times {
            std::hint::black_box(probed(n.into()));
            // SAFETY: the call takes no memory.
            unsafe { libc::syscall(libc::SYS_getpgid, 0) };
        }
    }
}

/// Ours.
pub struct Ours {
    pub subsystem: Subsystem,
    pub files: Arc<OwnFiles>,
    pub client: Client,
    maps: Mutex<HashMap<i64, PerfMapping>>,
    published: OnceLock<Published>,
}

/// What happens in this process that events are on.
struct Published {
    uprobe: Arc<Function>,
    kprobe: Arc<Function>,
    enter: Tracepoint,
    exit: Tracepoint,
}

impl Ours {
    /// An empty subsystem with as many CPUs as the kernel has.
    pub fn new(cpus: usize) -> Ours {
        Ours::with(Config { slots: cpus as u32, kernel_btf: types(), ..Config::default() })
    }

    /// An empty subsystem.
    pub fn with(config: Config) -> Ours {
        let subsystem = Subsystem::new(config).expect("memory for a subsystem");
        let files = Arc::new(OwnFiles::new());
        let client = Client::own(Arc::clone(&files));
        Ours { subsystem, client, files, maps: Mutex::default(), published: OnceLock::new() }
    }

    /// Publishes what the script of events is on.
    fn published(&self) -> &Published {
        self.published.get_or_init(|| {
            let at = probed as *const () as u64;
            let field = |declaration: &str, offset, size, signed| FieldDef {
                declaration: declaration.into(),
                offset,
                size,
                signed,
            };
            let tracepoint = |name: &str, last: FieldDef| {
                let fields = vec![field("long id", 8, 8, true), last];
                let def = TracepointDef { group: "raw_syscalls".into(), name: name.into(), fields };
                self.subsystem.publish_tracepoint(&def).expect("a tracepoint")
            };
            Published {
                uprobe: self.subsystem.functions().publish("probed", at, Some(("/proc/self/exe", probed_offset()))),
                kprobe: self.subsystem.functions().publish("__x64_sys_getpgid", 0xffff_ffff_8100_0000, None),
                enter: tracepoint("sys_enter", field("unsigned long args[6]", 16, 48, false)),
                exit: tracepoint("sys_exit", field("long ret", 16, 8, true)),
            }
        })
    }

    /// What is left, descriptors included.
    pub fn left(&self) -> (Alive, usize) {
        (self.subsystem.alive(), self.files.len())
    }
}

impl Kernel for Ours {
    fn bpf(&self, cmd: u32, attr: &mut [u8]) -> i64 {
        match self.subsystem.bpf(&self.client, cmd, attr) {
            Ok(r) => r.into(),
            Err(e) => -i64::from(e.0),
        }
    }

    fn close(&self, fd: i64) {
        self.files.close(fd as i32);
    }

    fn cpus(&self) -> usize {
        self.subsystem.slots() as usize
    }

    fn perf_open(&self, attr: u64, pid: i32, cpu: i32, group: i32, flags: u64) -> i64 {
        self.published();
        number(self.subsystem.perf_event_open(&self.client, attr, pid, cpu, group, flags))
    }

    fn ioctl(&self, fd: i64, request: u32, arg: u64) -> i64 {
        number(self.subsystem.perf_ioctl(&self.client, fd as i32, request, arg))
    }

    fn read(&self, fd: i64, to: &mut [u8]) -> i64 {
        match self.subsystem.perf_read(&self.client, fd as i32, to.len()) {
            Ok(bytes) => {
                to[..bytes.len()].copy_from_slice(&bytes);
                bytes.len() as i64
            }
            Err(e) if e != skep_subsystem::front::Errno::ENOTTY => e.neg(),
            Err(_) => {
                number(self.subsystem.iter_read(&self.client, fd as i32, to.as_mut_ptr() as u64, to.len() as u64))
            }
        }
    }

    fn map(&self, fd: i64, len: usize, offset: u64, shared: bool) -> i64 {
        match self.subsystem.perf_mmap(&self.client, fd as i32, len as u64, offset, shared) {
            Ok(mapping) => {
                let at = mapping.ring().arena().ptr() as i64;
                self.maps.lock().unwrap().insert(at, mapping);
                at
            }
            Err(e) => e.neg(),
        }
    }

    fn unmap(&self, at: i64, _: usize) {
        self.maps.lock().unwrap().remove(&at);
    }

    fn file(&self, path: &str) -> Option<String> {
        self.published();
        self.subsystem.read_file(path).ok()
    }

    fn write(&self, path: &str, text: &str, truncate: bool) -> i64 {
        self.published();
        let open = if truncate { Open::Truncate } else { Open::Append };
        self.subsystem.write_file(path, text, open).map_or_else(|e| e.neg(), |()| 0)
    }

    fn unpin(&self, path: &str) {
        self.subsystem.unpin(path);
    }

    fn hit(&self, times: u32) {
        let published = self.published();
        for n in 0..times {
            let regs = PtRegs { rdi: n.into(), rip: probed as *const () as u64, ..PtRegs::default() };
            published.uprobe.enter(&regs);
            published.uprobe.leave(&PtRegs { rax: u64::from(n) + 1, ..regs });
            published.enter.fire(&[0, 121], &121u64.to_ne_bytes());
            published.kprobe.enter(&regs);
            published.kprobe.leave(&regs);
            published.exit.fire(&[0, 0], &121u64.to_ne_bytes());
        }
    }
}

fn number(r: Result<i32, skep_subsystem::front::Errno>) -> i64 {
    r.map_or_else(|e| e.neg(), i64::from)
}
