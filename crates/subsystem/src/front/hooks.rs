//! What the owner of a subsystem may veto, and is told of.

use skep_ebpf::Errno;
use skep_ebpf::program::{MapDef, Program};

use super::client::Client;

/// Decides over what clients do, as a security module of the kernel does (`security_bpf_*`). What is vetoed leaves
/// nothing behind; what was permitted is told of again when it goes, also if a later step failed.
pub trait SecurityHooks: Send + Sync {
    /// Any command, before anything else is looked at.
    fn command(&self, client: &Client, command: super::Command) -> Result<(), Errno> {
        let _ = (client, command);
        Ok(())
    }

    /// A map that is to be made.
    fn map_create(&self, client: &Client, map: &MapDef) -> Result<(), Errno> {
        let _ = (client, map);
        Ok(())
    }

    /// A map that was permitted has gone, or was not made after all.
    fn map_free(&self, name: &str) {
        let _ = name;
    }

    /// A program that is to be loaded, before it is verified.
    fn prog_load(&self, client: &Client, program: &Program) -> Result<(), Errno> {
        let _ = (client, program);
        Ok(())
    }

    /// A program that is to be attached to something.
    fn attach(&self, client: &Client, program: &super::object::ProgObject) -> Result<(), Errno> {
        let _ = (client, program);
        Ok(())
    }

    /// A program that was permitted has gone, or was not loaded after all.
    fn prog_free(&self, name: &str) {
        let _ = name;
    }
}

/// Tells the hooks that something has gone.
pub(super) struct Told {
    hooks: Option<std::sync::Arc<dyn SecurityHooks>>,
    name: String,
    free: fn(&dyn SecurityHooks, &str),
}

impl Told {
    /// Something of this name was permitted.
    pub fn new(
        hooks: Option<&std::sync::Arc<dyn SecurityHooks>>,
        name: &str,
        free: fn(&dyn SecurityHooks, &str),
    ) -> Told {
        Told { hooks: hooks.cloned(), name: name.to_owned(), free }
    }
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(hooks) = &self.hooks {
            (self.free)(&**hooks, &self.name);
        }
    }
}
