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
    user_probe: bool,
}

impl Loaded {
    /// Compiles a verified program.
    pub fn new(verified: &Verified, options: &Options) -> Result<Loaded, CompileError> {
        let program = verified.program();
        let section = program.section.strip_prefix('?').unwrap_or(&program.section);
        let user_probe = ["uprobe", "uretprobe", "usdt"].iter().any(|kind| section.starts_with(kind));
        Ok(Loaded { compiled: compile(verified, options)?, maps: program.maps.clone(), user_probe })
    }

    /// What stands in for a verified program that cannot be run here; see [`skep_jit::compile_idle`].
    pub(crate) fn idle(verified: &Verified, options: &Options) -> Result<Loaded, CompileError> {
        let maps = verified.program().maps.clone();
        Ok(Loaded { compiled: skep_jit::compile_idle(verified, options)?, maps, user_probe: false })
    }

    /// True if its section asks for a probe of a process's function, not of the kernel's (which here is the process's, too).
    pub fn is_user_probe(&self) -> bool {
        self.user_probe
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
