//! What the benchmarks share: medians, and kernel probes by the perf PMU.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

/// The median of some figures (the lower one of an even number).
pub fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// The least of some figures.
pub fn least(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::INFINITY, f64::min)
}

fn bpf(cmd: i32, attr: &mut [u8]) -> std::io::Result<OwnedFd> {
    // SAFETY: `attr` is a live buffer of that length; the call returns a new descriptor or an error.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, cmd, attr.as_mut_ptr(), attr.len());
        if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

/// A kprobe-type program of the kernel that counts in a per-CPU array, and the array.
pub fn kernel_count() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let mut attr = [0u8; 20];
    // BPF_MAP_TYPE_PERCPU_ARRAY; sizes of key and value; entries.
    for (to, word) in attr.chunks_exact_mut(4).zip([6u32, 4, 8, 1]) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let map = bpf(0, &mut attr)?;
    let insn = |code: u8, dst: u8, src: u8, off: i16, imm: i32| -> [u8; 8] {
        let ([o0, o1], [i0, i1, i2, i3]) = (off.to_ne_bytes(), imm.to_ne_bytes());
        [code, dst | src << 4, o0, o1, i0, i1, i2, i3]
    };
    let insns = [
        insn(0x62, 10, 0, -4, 0),             // *(u32 *)(r10 - 4) = 0
        insn(0x18, 1, 1, 0, map.as_raw_fd()), // r1 = map
        insn(0, 0, 0, 0, 0),
        insn(0xbf, 2, 10, 0, 0), // r2 = r10
        insn(0x07, 2, 0, 0, -4), // r2 -= 4
        insn(0x85, 0, 0, 0, 1),  // r0 = look-up
        insn(0x15, 0, 0, 3, 0),  // if r0
        insn(0x79, 1, 0, 0, 0),
        insn(0x07, 1, 0, 0, 1),
        insn(0x7b, 0, 1, 0, 0), // *r0 += 1
        insn(0xb7, 0, 0, 0, 0),
        insn(0x95, 0, 0, 0, 0),
    ];
    let license = b"GPL\0";
    let mut attr = [0u8; 48];
    attr[0..4].copy_from_slice(&2u32.to_ne_bytes()); // BPF_PROG_TYPE_KPROBE
    attr[4..8].copy_from_slice(&(insns.len() as u32).to_ne_bytes());
    attr[8..16].copy_from_slice(&(insns.as_ptr() as u64).to_ne_bytes());
    attr[16..24].copy_from_slice(&(license.as_ptr() as u64).to_ne_bytes());
    Ok((bpf(5, &mut attr)?, map))
}

/// What the program of [`kernel_count`] has counted, on all processors.
pub fn kernel_hits(map: &OwnedFd) -> std::io::Result<u64> {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last: usize = possible.trim().rsplit(['-', ',']).next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut counts = vec![0u64; last + 1];
    let mut attr = [0u8; 32];
    let key = 0u32;
    attr[0..4].copy_from_slice(&map.as_raw_fd().to_ne_bytes());
    attr[8..16].copy_from_slice(&(&raw const key as u64).to_ne_bytes());
    attr[16..24].copy_from_slice(&(counts.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: BPF_MAP_LOOKUP_ELEM reads the key and writes eight bytes for each possible processor.
    match unsafe { libc::syscall(libc::SYS_bpf, 1, attr.as_mut_ptr(), attr.len()) } {
        0 => Ok(counts.iter().sum()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The file offset of a function, from `nm` and the program headers of `readelf`.
pub fn file_offset(program: &Path, function: &str) -> u64 {
    let text = |tool: &str, flags: &[&str]| -> String {
        let out = Command::new(tool).args(flags).arg(program).output().unwrap_or_else(|e| panic!("{tool}: {e}"));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let hex = |s: &str| u64::from_str_radix(s.trim_start_matches("0x"), 16).expect("hex");
    let symbols = [text("nm", &["-p"]), text("nm", &["-pD"])].concat();
    let is = |line: &&str| line.rsplit(' ').next().and_then(|name| name.split('@').next()) == Some(function);
    let line = symbols.lines().find(is).unwrap_or_else(|| panic!("{} has no {function}", program.display()));
    let address = hex(line.split(' ').next().unwrap_or_default());
    let headers = text("readelf", &["-lW"]);
    let load = headers.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).filter(|f| f.first() == Some(&"LOAD"));
    load.map(|f| (hex(f[1]), hex(f[2]), hex(f[4])))
        .find(|(_, at, size)| (*at..at + size).contains(&address))
        .map(|(offset, at, _)| address - at + offset)
        .expect("a segment holds the function")
}

/// A kernel uprobe (or uretprobe) with a program, on a file offset, for one process; gone when dropped.
pub struct KernelProbe {
    _event: OwnedFd,
}

impl KernelProbe {
    /// Attaches `program` (perf PMU `uprobe`).
    pub fn attach(program: &OwnedFd, path: &Path, offset: u64, ret: bool, pid: u32) -> std::io::Result<KernelProbe> {
        let pmu = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
        let pmu: u32 = pmu.trim().parse().map_err(std::io::Error::other)?;
        let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
        let mut attr = [0u8; 128];
        attr[0..4].copy_from_slice(&pmu.to_ne_bytes());
        attr[4..8].copy_from_slice(&128u32.to_ne_bytes());
        attr[8..16].copy_from_slice(&u64::from(ret).to_ne_bytes());
        attr[16..24].copy_from_slice(&1u64.to_ne_bytes());
        attr[56..64].copy_from_slice(&(path.as_ptr() as u64).to_ne_bytes());
        attr[64..72].copy_from_slice(&offset.to_ne_bytes());
        // SAFETY: the attribute and the path outlive the call; ioctls take plain numbers.
        unsafe {
            let fd = libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), pid as i32, -1, -1, 8u64);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            let event = OwnedFd::from_raw_fd(fd as i32);
            const SET_BPF: libc::c_ulong = 0x4004_2408;
            const ENABLE: libc::c_ulong = 0x2400;
            if libc::ioctl(event.as_raw_fd(), SET_BPF, program.as_raw_fd()) < 0
                || libc::ioctl(event.as_raw_fd(), ENABLE, 0) < 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(KernelProbe { _event: event })
        }
    }
}
