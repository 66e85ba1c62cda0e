//! An HTTP service whose policy is a chain of eBPF plug-ins, replaced while it serves.

pub mod policies;
pub mod service;
