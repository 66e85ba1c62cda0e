//! The live kernel as oracle: loads a program with `bpf(2)` and says what the verifier answered.
#![allow(dead_code)] // not every test uses all of it

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use skep_ebpf::insn::{Insn, pseudo};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::MapType;
use skep_verifier::KernelProfile;

const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const BTF_LOAD: i32 = 18;
const MAP_FREEZE: i32 = 22;

/// What the kernel said.
#[derive(Debug)]
pub struct Answer {
    /// 0 if it accepted the program.
    pub errno: i32,
    /// The verifier's log.
    pub log: String,
}

const LOG_SIZE: usize = 16 << 20;

thread_local! {
    /// The buffer for the kernel's log.
    static LOG: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
}

/// `union bpf_attr`, as 32-bit words.
struct Attr([u32; 36]);

impl Attr {
    fn new() -> Attr {
        Attr([0; 36])
    }

    fn set(&mut self, at: usize, x: u32) -> &mut Attr {
        self.0[at / 4] = x;
        self
    }

    fn set64(&mut self, at: usize, x: u64) -> &mut Attr {
        self.set(at, x as u32).set(at + 4, (x >> 32) as u32)
    }

    fn call(&mut self, cmd: i32) -> Result<i32, i32> {
        // SAFETY: the attribute outlives the call, and every address in it is of a buffer that does too.
        let r = unsafe { libc::syscall(libc::SYS_bpf, cmd, self.0.as_mut_ptr(), size_of_val(&self.0)) };
        if r >= 0 { Ok(r as i32) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)) }
    }
}

/// True if this process may ask.
pub fn available() -> bool {
    let map = MapDef::new("t", MapType::PercpuArray, 4, 8, 1);
    let ok = create_map(&map).is_ok();
    if !ok {
        eprintln!("skipped: bpf(2) is not available here");
    }
    ok
}

fn create_map(def: &MapDef) -> Result<OwnedFd, i32> {
    create_typed_map(def, None)
}

/// Makes a map whose keys and values are of types of this BTF; `Err` has the errno.
pub fn create_typed_map(def: &MapDef, btf: Option<&OwnedFd>) -> Result<OwnedFd, i32> {
    let inner = def.inner.as_deref().map(|inner| create_typed_map(inner, btf)).transpose()?;
    let mut attr = Attr::new();
    attr.set(0, def.map_type as u32).set(4, def.key_size).set(8, def.value_size).set(12, def.max_entries);
    attr.set(16, def.flags).set64(64, def.extra);
    if let Some(btf) = btf.filter(|_| def.value_type_id != 0) {
        attr.set(48, btf.as_raw_fd() as u32).set(52, def.key_type_id).set(56, def.value_type_id);
    }
    if let Some(inner) = &inner {
        attr.set(20, inner.as_raw_fd() as u32);
    }
    let fd = attr.call(MAP_CREATE)?;
    // SAFETY: the kernel just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if let Some(data) = &def.initial {
        let mut value = data.clone();
        value.resize(def.value_size as usize, 0);
        let key = 0u32;
        let mut attr = Attr::new();
        attr.set(0, fd.as_raw_fd() as u32).set64(8, &raw const key as u64).set64(16, value.as_ptr() as u64);
        attr.call(MAP_UPDATE_ELEM)?;
    }
    if def.frozen {
        let mut attr = Attr::new();
        attr.set(0, fd.as_raw_fd() as u32);
        attr.call(MAP_FREEZE)?;
    }
    Ok(fd)
}

/// Loads the program; `None` if a map of it cannot be made.
pub fn load(prog: &Program, log_level: u32) -> Option<Answer> {
    let maps: Vec<OwnedFd> = prog.maps.iter().map(create_map).collect::<Result<_, _>>().ok()?;
    load_with(prog, &maps, log_level)
}

/// Makes the maps of a program, to be used for many loads.
pub fn maps(defs: &[MapDef]) -> Option<Vec<OwnedFd>> {
    defs.iter().map(create_map).collect::<Result<_, _>>().ok()
}

/// Makes maps of types of this BTF.
pub fn typed_maps(defs: &[MapDef], btf: &OwnedFd) -> Option<Vec<OwnedFd>> {
    defs.iter().map(|def| create_typed_map(def, Some(btf))).collect::<Result<_, _>>().ok()
}

/// Loads BTF; `None` if the kernel refuses it.
pub fn btf(raw: &[u8]) -> Option<OwnedFd> {
    try_btf(raw).ok()
}

/// Loads BTF; `Err` has the errno.
pub fn try_btf(raw: &[u8]) -> Result<OwnedFd, i32> {
    let mut attr = Attr::new();
    attr.set64(0, raw.as_ptr() as u64).set(16, raw.len() as u32);
    let fd = attr.call(BTF_LOAD)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads the program with maps made before.
pub fn load_with(prog: &Program, maps: &[OwnedFd], log_level: u32) -> Option<Answer> {
    load_typed(prog, maps, None, log_level)
}

/// Loads the program with maps and BTF made before; the program's function records name types of that BTF.
pub fn load_typed(prog: &Program, maps: &[OwnedFd], btf: Option<&OwnedFd>, log_level: u32) -> Option<Answer> {
    let (loaded, log) = load_fd(prog, maps, btf, log_level)?;
    Some(Answer { errno: loaded.err().unwrap_or(0), log })
}

/// The same; the loaded program or the errno, and the log.
pub fn load_fd(
    prog: &Program,
    maps: &[OwnedFd],
    btf: Option<&OwnedFd>,
    log_level: u32,
) -> Option<(Result<OwnedFd, i32>, String)> {
    let mut insns = prog.insns.clone();
    let mut at = 0;
    while at < insns.len() {
        let i = insns[at];
        if i.is_ld_imm64() {
            let kind = match i.src() {
                pseudo::MAP_IDX => Some(pseudo::MAP_FD),
                pseudo::MAP_IDX_VALUE => Some(pseudo::MAP_VALUE),
                _ => None,
            };
            if let Some(kind) = kind {
                insns[at].regs = i.dst() | kind << 4;
                insns[at].imm = maps.get(i.imm as usize).map_or(-1, |m| m.as_raw_fd());
            }
            at += 1;
        }
        at += 1;
    }
    let bytes: Vec<u8> = insns.iter().flat_map(|i| i.to_bytes()).collect();
    let license = std::ffi::CString::new(prog.license.as_str()).ok()?;
    // Taken for the call; a fresh one each time would cost more than the call.
    let mut log = Vec::new();
    if log_level > 0 {
        log = LOG.take();
        log.resize(LOG_SIZE, 0);
        log[0] = 0;
    }
    let mut attr = Attr::new();
    attr.set(0, prog.prog_type as u32).set(4, insns.len() as u32);
    attr.set64(8, bytes.as_ptr() as u64).set64(16, license.as_ptr() as u64);
    if log_level > 0 {
        attr.set(24, log_level).set(28, log.len() as u32).set64(32, log.as_mut_ptr() as u64);
    }
    attr.set(44, prog.flags).set(68, prog.attach_type.map_or(0, |a| a as u32));
    attr.set(108, prog.attach_btf_id);
    let func_info: Vec<[u32; 2]> = prog.func_info.iter().map(|f| [f.insn, f.type_id]).collect();
    if let Some(btf) = btf {
        attr.set(72, btf.as_raw_fd() as u32).set(76, 8);
        attr.set64(80, func_info.as_ptr() as u64).set(88, func_info.len() as u32);
    }
    // SAFETY: the kernel just made this descriptor for us.
    let loaded = attr.call(PROG_LOAD).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]).into_owned();
    if !log.is_empty() {
        LOG.set(log);
    }
    Some((loaded, text))
}

/// The instructions of a loaded program as the kernel left them.
pub fn xlated(prog: BorrowedFd<'_>) -> Option<Vec<Insn>> {
    // `struct bpf_prog_info`: the length of the instructions is at 20, their address at 32.
    let mut info = [0u64; 29];
    let ask = |info: &mut [u64; 29]| {
        let mut attr = Attr::new();
        attr.set(0, prog.as_raw_fd() as u32).set(4, size_of_val(info) as u32).set64(8, info.as_mut_ptr() as u64);
        attr.call(OBJ_GET_INFO_BY_FD).ok()
    };
    ask(&mut info)?;
    let len = (info[2] >> 32) as usize;
    let mut code = vec![0u8; len];
    info = [0; 29];
    info[2] = (len as u64) << 32;
    info[4] = code.as_mut_ptr() as u64;
    ask(&mut info)?;
    Some(code.chunks_exact(8).filter_map(|c| Some(Insn::from_bytes(c.try_into().ok()?))).collect())
}

/// The rules of the running kernel, if there is a profile of its version: else the newest.
pub fn profile() -> KernelProfile {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = release.split('.').take(2).collect::<Vec<_>>().join(".");
    KernelProfile { cpus: cpus(), ..KernelProfile::by_name(&version).unwrap_or_default() }
}

/// Number of CPUs that this kernel counts with.
pub fn cpus() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit(['-', ',']).next().and_then(|n| n.parse::<u32>().ok());
    last.map_or(1, |n| n + 1)
}

/// True if processes without capabilities may load programs.
pub fn lets_anybody_load() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").is_ok_and(|s| s.trim() == "0")
}

const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;

/// Runs without `CAP_PERFMON` and `CAP_SYS_ADMIN`, which stand for it: this thread, until `f` is done.
pub fn without_perfmon<T>(f: impl FnOnce() -> T) -> T {
    without(1 << SYS_ADMIN | 1 << PERFMON, f)
}

/// Runs without any capability: this thread, until `f` is done.
pub fn without_capabilities<T>(f: impl FnOnce() -> T) -> T {
    without(u64::MAX, f)
}

fn without<T>(dropped: u64, f: impl FnOnce() -> T) -> T {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    // Effective, permitted and inheritable, low words first.
    let mut caps = [0u32; 6];
    // SAFETY: both are as large as this version of the call wants them, and live until it returns.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), caps.as_mut_ptr()) };
    assert_eq!(got, 0, "capget");
    let mut fewer = caps;
    fewer[0] &= !(dropped as u32);
    fewer[3] &= !((dropped >> 32) as u32);
    // SAFETY: as above; only this thread's effective set changes.
    let set = |caps: &[u32; 6]| unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), caps.as_ptr()) };
    assert_eq!(set(&fewer), 0, "capset");
    let result = f();
    assert_eq!(set(&caps), 0, "capset");
    result
}
