//! What the owner of a subsystem, and security programs in it, may veto and are told of.

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::program::{MapDef, Program};

use super::Command;
use super::client::{Caps, Client};
use super::object::{MapAccess, MapObject, ProgObject};
use super::token::TokenObject;

/// A call of `bpf(2)`.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Who calls.
    pub client: &'a Client,
    /// The command.
    pub command: Command,
    /// Its attributes, as far as this kernel knows them.
    pub attr: &'a [u8],
    /// How many bytes the caller gave.
    pub size: u32,
}

/// Decides over what clients do, as a security module of the kernel does (`security_bpf_*`). What is vetoed leaves
/// nothing behind; what was permitted is told of again when it goes, also if a later step failed.
///
/// Programs on the hooks `lsm/bpf*` are such a module, too: see [`lsm`](super::lsm).
#[allow(unused_variables, reason = "named for those who implement them")]
pub trait SecurityHooks: Send + Sync {
    /// Any command, before anything else is looked at.
    fn command(&self, call: &Call<'_>) -> Result<(), Errno> {
        Ok(())
    }

    /// A map that is to be made, with a token or without.
    fn map_create(&self, call: &Call<'_>, map: &MapDef, token: Option<&TokenObject>) -> Result<(), Errno> {
        Ok(())
    }

    /// A descriptor of a map.
    fn map_open(&self, client: &Client, map: &MapObject, access: MapAccess) -> Result<(), Errno> {
        Ok(())
    }

    /// A map that was permitted has gone, or was not made after all.
    fn map_free(&self, name: &str) {}

    /// A program that is to be loaded, before it is verified.
    fn prog_load(&self, call: &Call<'_>, program: &Program, token: Option<&TokenObject>) -> Result<(), Errno> {
        Ok(())
    }

    /// A descriptor of a program.
    fn prog_open(&self, client: &Client, program: &ProgObject) -> Result<(), Errno> {
        Ok(())
    }

    /// A program that is to be attached to something.
    fn attach(&self, client: &Client, program: &ProgObject) -> Result<(), Errno> {
        Ok(())
    }

    /// A program that was permitted has gone, or was not loaded after all.
    fn prog_free(&self, name: &str) {}

    /// A token that is to be made.
    fn token_create(&self, call: &Call<'_>, token: &TokenObject) -> Result<(), Errno> {
        Ok(())
    }

    /// A command that a token is used for; a veto has it done without the token.
    fn token_command(&self, token: &TokenObject, command: Command) -> Result<(), Errno> {
        Ok(())
    }

    /// A capability that a token is to stand for.
    fn token_capable(&self, token: &TokenObject, caps: Caps) -> Result<(), Errno> {
        Ok(())
    }

    /// A token that was permitted has gone, or was not made after all.
    fn token_free(&self, token: &TokenObject) {}
}

/// Several that decide, one after the other. The first veto counts; who permitted what another one vetoed is told that it
/// has gone.
#[derive(Clone, Default)]
pub(super) struct AllHooks(Vec<Arc<dyn SecurityHooks>>);

impl std::fmt::Debug for AllHooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AllHooks").field(&self.0.len()).finish()
    }
}

impl AllHooks {
    /// In the order in which they are asked.
    pub fn new(hooks: impl IntoIterator<Item = Arc<dyn SecurityHooks>>) -> AllHooks {
        AllHooks(hooks.into_iter().collect())
    }

    fn all(
        &self,
        ask: impl Fn(&dyn SecurityHooks) -> Result<(), Errno>,
        undo: impl Fn(&dyn SecurityHooks),
    ) -> Result<(), Errno> {
        for (n, hooks) in self.0.iter().enumerate() {
            if let Err(veto) = ask(&**hooks) {
                self.0.iter().take(n).for_each(|earlier| undo(&**earlier));
                return Err(veto);
            }
        }
        Ok(())
    }
}

impl SecurityHooks for AllHooks {
    fn command(&self, call: &Call<'_>) -> Result<(), Errno> {
        self.all(|h| h.command(call), |_| {})
    }

    fn map_create(&self, call: &Call<'_>, map: &MapDef, token: Option<&TokenObject>) -> Result<(), Errno> {
        self.all(|h| h.map_create(call, map, token), |h| h.map_free(&map.name))
    }

    fn map_open(&self, client: &Client, map: &MapObject, access: MapAccess) -> Result<(), Errno> {
        self.all(|h| h.map_open(client, map, access), |_| {})
    }

    fn map_free(&self, name: &str) {
        self.0.iter().for_each(|h| h.map_free(name));
    }

    fn prog_load(&self, call: &Call<'_>, program: &Program, token: Option<&TokenObject>) -> Result<(), Errno> {
        self.all(|h| h.prog_load(call, program, token), |h| h.prog_free(&program.name))
    }

    fn prog_open(&self, client: &Client, program: &ProgObject) -> Result<(), Errno> {
        self.all(|h| h.prog_open(client, program), |_| {})
    }

    fn attach(&self, client: &Client, program: &ProgObject) -> Result<(), Errno> {
        self.all(|h| h.attach(client, program), |_| {})
    }

    fn prog_free(&self, name: &str) {
        self.0.iter().for_each(|h| h.prog_free(name));
    }

    fn token_create(&self, call: &Call<'_>, token: &TokenObject) -> Result<(), Errno> {
        self.all(|h| h.token_create(call, token), |h| h.token_free(token))
    }

    fn token_command(&self, token: &TokenObject, command: Command) -> Result<(), Errno> {
        self.all(|h| h.token_command(token, command), |_| {})
    }

    fn token_capable(&self, token: &TokenObject, caps: Caps) -> Result<(), Errno> {
        self.all(|h| h.token_capable(token, caps), |_| {})
    }

    fn token_free(&self, token: &TokenObject) {
        self.0.iter().for_each(|h| h.token_free(token));
    }
}

/// Tells the hooks that something has gone.
pub(super) struct Told {
    hooks: AllHooks,
    name: String,
    free: fn(&AllHooks, &str),
}

impl Told {
    /// Something of this name was permitted.
    pub fn new(hooks: &AllHooks, name: &str, free: fn(&AllHooks, &str)) -> Told {
        Told { hooks: hooks.clone(), name: name.to_owned(), free }
    }
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        (self.free)(&self.hooks, &self.name);
    }
}
