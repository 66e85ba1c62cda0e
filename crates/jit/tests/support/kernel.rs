//! Programs and maps of the running kernel.
#![allow(dead_code, reason = "not every suite uses all of it")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use skep_ebpf::Insn;
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{ProgType, prog_flags};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const OBJ_GET_INFO: libc::c_long = 15;

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

#[derive(Default)]
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct MapElem {
    fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map in the kernel.
pub struct Map {
    fd: OwnedFd,
    value_size: usize,
}

impl Map {
    pub fn create(def: &MapDef) -> io::Result<Map> {
        let mut attr = MapCreate {
            map_type: def.map_type as u32,
            key_size: def.key_size,
            value_size: def.value_size,
            max_entries: def.max_entries,
            flags: def.flags,
        };
        let fd = bpf(MAP_CREATE, &mut attr)?;
        // SAFETY: a new descriptor, nobody else's.
        let map = Map { fd: unsafe { OwnedFd::from_raw_fd(fd) }, value_size: def.value_size as usize };
        if let Some(value) = &def.initial {
            map.update(&0u32.to_ne_bytes(), value)?;
        }
        Ok(map)
    }

    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let (key, value) = (key.as_ptr() as u64, value.as_ptr() as u64);
        bpf(MAP_UPDATE, &mut MapElem { fd: self.fd.as_raw_fd() as u32, key, value, ..MapElem::default() })?;
        Ok(())
    }

    pub fn lookup(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = vec![0u8; self.value_size];
        let (key, value) = (key.as_ptr() as u64, out.as_mut_ptr() as u64);
        bpf(MAP_LOOKUP, &mut MapElem { fd: self.fd.as_raw_fd() as u32, key, value, ..MapElem::default() })?;
        Ok(out)
    }

    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// A program in the kernel.
pub struct Program(OwnedFd);

/// True if this user may load programs; says so if not.
pub fn available() -> bool {
    let exit = [Insn::new(0xb7, 0, 0, 0, 0), Insn::new(0x95, 0, 0, 0, 0)];
    let ok = Program::load(ProgType::Syscall, &exit).is_ok();
    if !ok {
        println!("skipped: the kernel does not let this user load programs");
    }
    ok
}

impl Program {
    pub fn load(prog_type: ProgType, insns: &[Insn]) -> Result<Program, String> {
        let bytes: Vec<u8> = insns.iter().flat_map(|i| i.to_bytes()).collect();
        let mut attr = Load {
            prog_type: prog_type as u32,
            insn_cnt: insns.len() as u32,
            insns: bytes.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            prog_flags: if prog_type == ProgType::Syscall { prog_flags::SLEEPABLE } else { 0 },
            ..Load::default()
        };
        if let Ok(fd) = bpf(PROG_LOAD, &mut attr) {
            // SAFETY: a new descriptor, nobody else's.
            return Ok(Program(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        // Once more, for the log.
        let mut log = vec![0u8; 1 << 24];
        (attr.log_level, attr.log_size, attr.log_buf) = (1, log.len() as u32, log.as_mut_ptr() as u64);
        let error = bpf(PROG_LOAD, &mut attr).map_or_else(|e| e.to_string(), |_| "no error with a log".into());
        let end = log.iter().position(|&b| b == 0).unwrap_or(0);
        Err(format!("{error}: {}", String::from_utf8_lossy(&log[..end])))
    }

    /// Loads a linked program: maps that it names by index are those given.
    pub fn load_linked(prog_type: ProgType, insns: &[Insn], maps: &[Map]) -> Result<Program, String> {
        let mut insns = insns.to_vec();
        for insn in insns.iter_mut().filter(|i| i.is_ld_imm64()) {
            let by_fd = match insn.src() {
                pseudo::MAP_IDX => pseudo::MAP_FD,
                pseudo::MAP_IDX_VALUE => pseudo::MAP_VALUE,
                _ => continue,
            };
            *insn = Insn::new(insn.code, insn.dst(), by_fd, insn.off, maps[insn.imm as usize].fd());
        }
        Program::load(prog_type, &insns)
    }

    pub fn fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Bytes of its machine code.
    pub fn code_size(&self) -> io::Result<u32> {
        // `struct bpf_prog_info`: type, id, tag, and the lengths of both kinds of code.
        let mut info = [0u32; 58];
        let mut attr = [self.0.as_raw_fd() as u32 as u64 | (size_of_val(&info) as u64) << 32, info.as_mut_ptr() as u64];
        bpf(OBJ_GET_INFO, &mut attr)?;
        Ok(info[4])
    }

    /// Runs a raw tracepoint program on its arguments.
    pub fn run_raw_tracepoint(&self, args: &[u64]) -> io::Result<u32> {
        let mut attr = TestRun {
            prog_fd: self.0.as_raw_fd() as u32,
            ctx_size_in: size_of_val(args) as u32,
            ctx_in: args.as_ptr() as u64,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attr)?;
        Ok(attr.retval)
    }

    /// Runs a `syscall` program on a context, which it may write.
    pub fn run_on(&self, ctx: &mut [u8]) -> io::Result<u32> {
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
    pub fn run_packet(&self, data: &[u8]) -> io::Result<u32> {
        self.run_repeatedly(data, 1).map(|(retval, _)| retval)
    }

    /// Runs a packet program on a packet, which it may write.
    pub fn run_packet_on(&self, data: &mut [u8]) -> io::Result<u32> {
        let mut out = vec![0u8; data.len()];
        let mut attr = TestRun {
            prog_fd: self.0.as_raw_fd() as u32,
            data_size_in: data.len() as u32,
            data_in: data.as_ptr() as u64,
            data_size_out: out.len() as u32,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attr)?;
        data.copy_from_slice(&out);
        Ok(attr.retval)
    }

    /// Runs a packet program so often; what it returned, and the mean duration in nanoseconds.
    pub fn run_repeatedly(&self, data: &[u8], repeat: u32) -> io::Result<(u32, u32)> {
        let mut attr = TestRun {
            prog_fd: self.0.as_raw_fd() as u32,
            data_size_in: data.len() as u32,
            data_in: data.as_ptr() as u64,
            repeat,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attr)?;
        Ok((attr.retval, attr.duration))
    }
}
