//! The control plane: creating maps, what `bpf(2)` does with them, reading rings, and cleaning up after the dead.

mod arena;
mod damage;
mod hollow;
mod layout;
mod lpm;
mod map;
mod perf;
mod ringbuf;
mod slab;
mod validate;

use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType;

pub use arena::{Arena, near};
pub use damage::Damage;
pub use hollow::is_hollow;
pub use layout::{Layout, Options, layout, layout_with};
pub use map::Map;
pub use perf::{PerfConsumer, PerfRecord};
pub use ringbuf::RingConsumer;
pub use slab::Slabs;
pub use validate::validate;

/// True for the types that are hash maps.
fn is_hash(t: MapType) -> bool {
    matches!(t, MapType::Hash | MapType::PercpuHash | MapType::LruHash | MapType::LruPercpuHash)
}

/// Why a map could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel would refuse it, with this errno.
    #[error("map `{map}`: {reason} ({})", errno.name())]
    Refused {
        /// The map's name.
        map: String,
        /// The kernel's errno.
        errno: Errno,
        /// What is wrong.
        reason: String,
    },
    /// The kernel knows the type; skep does not yet.
    #[error("map `{map}`: maps of type {map_type} are not supported")]
    UnsupportedType {
        /// The map's name.
        map: String,
        /// Its type.
        map_type: MapType,
    },
    /// The kernel knows the flag; skep does not.
    #[error("map `{map}`: {flag} is not supported for maps of type {map_type}")]
    UnsupportedFlag {
        /// The map's name.
        map: String,
        /// Its type.
        map_type: MapType,
        /// The flag's name.
        flag: &'static str,
    },
    /// Memory for it could not be had.
    #[error("map `{map}`: {size} bytes of memory: {step}: {source}")]
    Memory {
        /// The map's name.
        map: String,
        /// Bytes asked for.
        size: u64,
        /// What failed.
        step: &'static str,
        /// How.
        source: std::io::Error,
    },
}

impl MapError {
    /// The errno that `BPF_MAP_CREATE` answers with.
    pub fn errno(&self) -> Errno {
        match self {
            MapError::Refused { errno, .. } => *errno,
            MapError::UnsupportedType { .. } | MapError::UnsupportedFlag { .. } => Errno::EINVAL,
            MapError::Memory { .. } => Errno::ENOMEM,
        }
    }
}

/// What a ring holds is not what its writers write: something else wrote there. The consumer has skipped to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("corrupt ring at position {position}: a record of {length} bytes where {available} are available")]
pub struct RingError {
    /// Position of the record.
    pub position: u64,
    /// The length it claims.
    pub length: u64,
    /// Bytes between the consumer's and the producer's position.
    pub available: u64,
}
