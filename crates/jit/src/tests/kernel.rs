//! Programs run by the kernel.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use skep_ebpf::Insn;
use skep_ebpf::uapi::{ProgType, prog_flags};

const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` has the layout that the command expects, and the buffers it names live across the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret as i32) }
}

#[derive(Default)]
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// A program in the kernel.
pub(super) struct Program(OwnedFd);

/// True if this user may load programs; says so if not.
pub(super) fn available() -> bool {
    let exit = [Insn::new(0xb7, 0, 0, 0, 0), Insn::new(0x95, 0, 0, 0, 0)];
    let ok = Program::load(ProgType::Syscall, &exit).is_ok();
    if !ok {
        println!("skipped: the kernel does not let this user load programs");
    }
    ok
}

impl Program {
    pub(super) fn load(prog_type: ProgType, insns: &[Insn]) -> Result<Program, String> {
        let bytes: Vec<u8> = insns.iter().flat_map(|i| i.to_bytes()).collect();
        let mut log = vec![0u8; 1 << 20];
        let mut attr = Load {
            prog_type: prog_type as u32,
            insn_cnt: insns.len() as u32,
            insns: bytes.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 1,
            log_size: log.len() as u32,
            log_buf: log.as_mut_ptr() as u64,
            prog_flags: if prog_type == ProgType::Syscall { prog_flags::SLEEPABLE } else { 0 },
            ..Load::default()
        };
        match bpf(PROG_LOAD, &mut attr) {
            // SAFETY: a new descriptor, nobody else's.
            Ok(fd) => Ok(Program(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(e) => {
                let end = log.iter().position(|&b| b == 0).unwrap_or(0);
                Err(format!("{e}: {}", String::from_utf8_lossy(&log[..end])))
            }
        }
    }

    /// Runs a `syscall` program on a context, which it may write.
    pub(super) fn run_on(&self, ctx: &mut [u8]) -> io::Result<u32> {
        let mut attr = TestRun {
            prog_fd: self.0.as_raw_fd() as u32,
            ctx_size_in: ctx.len() as u32,
            ctx_in: ctx.as_mut_ptr() as u64,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attr)?;
        Ok(attr.retval)
    }

    /// Runs a packet program.
    pub(super) fn run_packet(&self, data: &[u8]) -> io::Result<u32> {
        let mut attr = TestRun {
            prog_fd: self.0.as_raw_fd() as u32,
            data_size_in: data.len() as u32,
            data_in: data.as_ptr() as u64,
            repeat: 1,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attr)?;
        Ok(attr.retval)
    }
}
