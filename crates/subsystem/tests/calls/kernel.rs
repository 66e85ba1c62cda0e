//! The two that answer: a [`Subsystem`] of ours, and the kernel that runs here.

#![allow(dead_code, reason = "shared by several tests, none of which uses all of it")]

use std::sync::Arc;

use skep_subsystem::front::{Alive, Client, Config, OwnFiles, Subsystem};

/// Who answers calls. Answers are descriptors, 0, or negative errnos.
pub trait Kernel {
    /// `bpf(2)`.
    fn bpf(&self, cmd: u32, attr: &mut [u8]) -> i64;
    /// `close(2)`.
    fn close(&self, fd: i64);
    /// Possible CPUs.
    fn cpus(&self) -> usize;
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
}

/// Ours.
pub struct Ours {
    pub subsystem: Subsystem,
    pub files: Arc<OwnFiles>,
    pub client: Client,
}

impl Ours {
    /// An empty subsystem with as many CPUs as the kernel has.
    pub fn new(cpus: usize) -> Ours {
        Ours::with(Config { slots: cpus as u32, ..Config::default() })
    }

    /// An empty subsystem.
    pub fn with(config: Config) -> Ours {
        let subsystem = Subsystem::new(config).expect("memory for a subsystem");
        let files = Arc::new(OwnFiles::new());
        Ours { subsystem, client: Client::own(Arc::clone(&files)), files }
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
}
