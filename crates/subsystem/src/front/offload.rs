//! Devices that run programs of their own: a registry by interface number, and the callbacks of the kernel's offload
//! (`Documentation/networking`, `struct bpf_prog_offload_ops`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use skep_ebpf::insn::Insn;
use skep_ebpf::program::Program;
use skep_ebpf::{Errno, uapi::ProgType};
use skep_verifier::Verified;

/// A device that takes programs. The calls for one program come in the order of the methods here; after `prepare` has
/// succeeded `destroy` always comes.
pub trait OffloadDevice: Send + Sync {
    /// A program is to be verified for this device.
    fn prepare(&self, program: &Program) -> Result<(), Errno>;
    /// An instruction that some path runs, in order of their indices.
    fn insn(&self, index: usize, insn: Insn) -> Result<(), Errno>;
    /// All instructions were passed.
    fn finalize(&self) -> Result<(), Errno>;
    /// The verified program is to become the device's own code.
    fn translate(&self, program: &Verified) -> Result<(), Errno>;
    /// The program has gone, or never came to be.
    fn destroy(&self);
}

/// The devices of a subsystem.
#[derive(Default)]
pub struct Devices(Mutex<HashMap<u32, Arc<dyn OffloadDevice>>>);

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Devices")
    }
}

impl Devices {
    /// Makes a device known by an interface number. `EEXIST` if there is one.
    pub fn register(&self, ifindex: u32, device: Arc<dyn OffloadDevice>) -> Result<(), Errno> {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.contains_key(&ifindex) {
            return Err(Errno::EEXIST);
        }
        devices.insert(ifindex, device);
        Ok(())
    }

    /// Forgets a device; its programs stay with it until they go.
    pub fn unregister(&self, ifindex: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&ifindex).is_some()
    }

    /// The device that a program of this type is bound to. `EINVAL` for other types and unknown devices, `EOPNOTSUPP` for
    /// devices of this machine, none of which takes programs here.
    pub(super) fn find(&self, prog_type: Option<ProgType>, ifindex: u32) -> Result<Arc<dyn OffloadDevice>, Errno> {
        if !matches!(prog_type, Some(ProgType::SchedCls | ProgType::Xdp)) {
            return Err(Errno::EINVAL);
        }
        let device = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&ifindex).cloned();
        match device {
            Some(device) => Ok(device),
            None if crate::testrun::device(ifindex) => Err(Errno::EOPNOTSUPP),
            None => Err(Errno::EINVAL),
        }
    }
}

/// A program on a device; the device is told when it goes.
pub struct Offloaded {
    /// The interface number.
    pub ifindex: u32,
    device: Arc<dyn OffloadDevice>,
}

impl std::fmt::Debug for Offloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offloaded").field("ifindex", &self.ifindex).finish_non_exhaustive()
    }
}

impl Offloaded {
    /// Prepares a device for a program.
    pub(super) fn prepare(ifindex: u32, device: Arc<dyn OffloadDevice>, program: &Program) -> Result<Offloaded, Errno> {
        device.prepare(program)?;
        Ok(Offloaded { ifindex, device })
    }

    /// Passes the verified program to the device.
    pub(super) fn translate(&self, verified: &Verified) -> Result<(), Errno> {
        let mut wide = false;
        for (index, insn) in verified.program().insns.iter().enumerate() {
            if !wide {
                self.device.insn(index, *insn)?;
            }
            wide = !wide && insn.is_ld_imm64();
        }
        self.device.finalize()?;
        self.device.translate(verified)
    }
}

impl Drop for Offloaded {
    fn drop(&mut self) {
        self.device.destroy();
    }
}

/// A device without hardware: it takes every program and counts what it holds.
#[derive(Debug, Default)]
pub struct SoftwareDevice {
    held: std::sync::atomic::AtomicUsize,
    insns: std::sync::atomic::AtomicUsize,
}

impl SoftwareDevice {
    /// Programs on it.
    pub fn programs(&self) -> usize {
        self.held.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Instructions that were ever passed to it.
    pub fn insns(&self) -> usize {
        self.insns.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl OffloadDevice for SoftwareDevice {
    fn prepare(&self, _: &Program) -> Result<(), Errno> {
        self.held.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    fn insn(&self, _: usize, _: Insn) -> Result<(), Errno> {
        self.insns.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    fn finalize(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn translate(&self, _: &Verified) -> Result<(), Errno> {
        Ok(())
    }

    fn destroy(&self) {
        self.held.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}
