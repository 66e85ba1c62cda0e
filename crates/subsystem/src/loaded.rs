//! A compiled program with what it was verified against.

use std::ops::Deref;
use std::sync::Arc;

use skep_ebpf::program::MapDef;
use skep_jit::{CompileError, Compiled, Options, compile};
use skep_verifier::Verified;

/// A [`Compiled`] that knows the maps it was verified with, so that a session cannot give it others.
#[derive(Clone, Debug)]
pub struct Loaded {
    compiled: Compiled,
    maps: Arc<[MapDef]>,
}

impl Loaded {
    /// Compiles a verified program.
    pub fn new(verified: &Verified, options: &Options) -> Result<Loaded, CompileError> {
        Ok(Loaded { compiled: compile(verified, options)?, maps: verified.program().maps.clone() })
    }

    /// The maps of its object.
    pub fn definitions(&self) -> &Arc<[MapDef]> {
        &self.maps
    }

    /// True if the program names the map of this index.
    pub fn uses(&self, map: usize) -> bool {
        self.compiled.maps().iter().any(|&m| m as usize == map)
    }
}

impl Deref for Loaded {
    type Target = Compiled;

    fn deref(&self) -> &Compiled {
        &self.compiled
    }
}
