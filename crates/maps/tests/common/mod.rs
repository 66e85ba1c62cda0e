//! The live kernel as oracle: maps and test runs through `bpf(2)`.
#![allow(dead_code)] // each suite uses its part

pub mod asm;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use skep_ebpf::Errno;
use skep_ebpf::insn::Insn;
use skep_ebpf::program::MapDef;

pub const MAP_CREATE: i32 = 0;
pub const MAP_LOOKUP: i32 = 1;
pub const MAP_UPDATE: i32 = 2;
pub const MAP_DELETE: i32 = 3;
pub const MAP_NEXT_KEY: i32 = 4;
pub const PROG_LOAD: i32 = 5;
pub const PROG_TEST_RUN: i32 = 10;
pub const MAP_LOOKUP_AND_DELETE: i32 = 21;
pub const MAP_FREEZE: i32 = 22;

/// `union bpf_attr`, filled by offset.
#[repr(C, align(8))]
pub struct Attr([u8; 144]);

impl Attr {
    pub fn new() -> Attr {
        Attr([0; 144])
    }

    pub fn u32(mut self, at: usize, v: u32) -> Attr {
        self.0[at..at + 4].copy_from_slice(&v.to_ne_bytes());
        self
    }

    pub fn u64(mut self, at: usize, v: u64) -> Attr {
        self.0[at..at + 8].copy_from_slice(&v.to_ne_bytes());
        self
    }

    pub fn get(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().unwrap())
    }
}

pub fn bpf(cmd: i32, attr: &mut Attr) -> Result<i32, Errno> {
    // SAFETY: the attribute is as large as said; addresses in it are of live buffers of the sizes the kernel uses.
    let r = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr as *mut Attr, size_of::<Attr>()) };
    if r < 0 { Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap())) } else { Ok(r as i32) }
}

/// True if `bpf(2)` answers here; else says on standard error that the suite is skipped.
pub fn have_kernel() -> bool {
    let can = KernelMap::create(&MapDef::new("probe", skep_ebpf::uapi::MapType::Array, 4, 4, 1));
    if let Err(e) = can {
        eprintln!("skipped: bpf(2) answers {}", e.name());
        return false;
    }
    true
}

/// CPUs that the kernel counts as possible: the values of its per-CPU maps.
pub fn possible_cpus() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    text.trim().rsplit(['-', ',']).next().unwrap().parse::<u32>().unwrap() + 1
}

/// A map of the kernel.
pub struct KernelMap {
    pub fd: OwnedFd,
    pub def: MapDef,
}

impl KernelMap {
    pub fn create(def: &MapDef) -> Result<KernelMap, Errno> {
        let inner = def.inner.as_deref().map(KernelMap::create).transpose()?;
        let mut attr = Attr::new()
            .u32(20, inner.as_ref().map_or(u32::MAX, |inner| inner.raw() as u32))
            .u32(0, def.map_type as u32)
            .u32(4, def.key_size)
            .u32(8, def.value_size)
            .u32(12, def.max_entries)
            .u32(16, def.flags)
            .u64(64, def.extra);
        let fd = bpf(MAP_CREATE, &mut attr)?;
        // SAFETY: a new descriptor.
        Ok(KernelMap { fd: unsafe { OwnedFd::from_raw_fd(fd) }, def: def.clone() })
    }

    pub fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn elem(&self, key: Option<&[u8]>, value: *const u8, flags: u64) -> Attr {
        let key = key.map_or(0, |k| if k.is_empty() { 0 } else { k.as_ptr() as u64 });
        Attr::new().u32(0, self.raw() as u32).u64(8, key).u64(16, value as u64).u64(24, flags)
    }

    pub fn lookup(&self, key: &[u8], flags: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let mut out = vec![0; size.max(8)];
        bpf(MAP_LOOKUP, &mut self.elem(Some(key), out.as_mut_ptr(), flags))?;
        out.truncate(size);
        Ok(out)
    }

    /// A look-up of a value, in a map without keys.
    pub fn contains(&self, value: &[u8], flags: u64) -> Result<(), Errno> {
        let mut value = value.to_vec();
        bpf(MAP_LOOKUP, &mut self.elem(None, value.as_mut_ptr(), flags)).map(drop)
    }

    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        bpf(MAP_UPDATE, &mut self.elem(Some(key), value.as_ptr(), flags)).map(drop)
    }

    pub fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        bpf(MAP_DELETE, &mut self.elem(Some(key), std::ptr::null(), 0)).map(drop)
    }

    pub fn next_key(&self, key: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        let mut out = vec![0u8; self.def.key_size.max(8) as usize];
        bpf(MAP_NEXT_KEY, &mut self.elem(key, out.as_mut_ptr(), 0))?;
        out.truncate(self.def.key_size as usize);
        Ok(out)
    }

    pub fn lookup_and_delete(&self, key: &[u8], flags: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let mut out = vec![0; size.max(8)];
        bpf(MAP_LOOKUP_AND_DELETE, &mut self.elem(Some(key), out.as_mut_ptr(), flags))?;
        out.truncate(size);
        Ok(out)
    }

    pub fn freeze(&self) -> Result<(), Errno> {
        bpf(MAP_FREEZE, &mut Attr::new().u32(0, self.raw() as u32)).map(drop)
    }
}

/// A program of the kernel, to be test-run.
pub struct KernelProg(OwnedFd);

impl KernelProg {
    /// Loads a program; panics with the verifier's log if that fails.
    pub fn load(prog_type: u32, insns: &[Insn]) -> KernelProg {
        let code: Vec<u8> = insns.iter().flat_map(|i| i.to_bytes()).collect();
        let mut log = vec![0u8; 1 << 16];
        let mut attr = Attr::new()
            .u32(0, prog_type)
            .u32(4, insns.len() as u32)
            .u64(8, code.as_ptr() as u64)
            .u64(16, c"GPL".as_ptr() as u64)
            .u32(24, 1)
            .u32(28, log.len() as u32)
            .u64(32, log.as_mut_ptr() as u64);
        if prog_type == skep_ebpf::uapi::ProgType::Syscall as u32 {
            attr = attr.u32(44, skep_ebpf::uapi::prog_flags::SLEEPABLE);
        }
        match bpf(PROG_LOAD, &mut attr) {
            // SAFETY: a new descriptor.
            Ok(fd) => KernelProg(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(e) => panic!("{e}: {}", String::from_utf8_lossy(&log)),
        }
    }

    pub fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Runs it once on a context of words; returns r0 (32 bits).
    pub fn run(&self, ctx: &[u64]) -> i32 {
        let mut attr =
            Attr::new().u32(0, self.raw() as u32).u32(40, size_of_val(ctx) as u32).u64(48, ctx.as_ptr() as u64);
        bpf(PROG_TEST_RUN, &mut attr).unwrap();
        attr.get(4) as i32
    }
}
