//! Tokens: the right to some commands and types, which a mount of the tree of pins delegates to who may open it.
//!
//! In Linux a mount that belongs to a user name space delegates rights to processes in it. Here [`Config::delegate`] says
//! what the tree delegates; a subsystem without it is like a mount of the first name space, which has no tokens. Who uses
//! a token has the capabilities that it stands for: those for programs, tracing and packets.
//!
//! [`Config::delegate`]: super::Config::delegate

use std::sync::Arc;

use skep_ebpf::Errno;

use super::attr::{Attr, token_create};
use super::client::{Caps, Client};
use super::hooks::{AllHooks, Call, SecurityHooks};
use super::object::Object;
use super::{Command, Subsystem};

/// The flag of loads and maps that says that a token is named (`BPF_F_TOKEN_FD`).
pub(super) const TOKEN_FD: u32 = 1 << 16;

/// What is delegated: a bit for each command, type of map, type of program, and way to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delegation {
    /// By command (`delegate_cmds`).
    pub commands: u64,
    /// By type of map (`delegate_maps`).
    pub maps: u64,
    /// By type of program (`delegate_progs`).
    pub progs: u64,
    /// By expected attach type (`delegate_attachs`).
    pub attachs: u64,
}

impl Delegation {
    /// Everything.
    pub const ANY: Delegation = Delegation { commands: u64::MAX, maps: u64::MAX, progs: u64::MAX, attachs: u64::MAX };

    /// In the order in which they are told of.
    pub fn words(&self) -> [u64; 4] {
        [self.commands, self.maps, self.progs, self.attachs]
    }
}

/// A token.
#[derive(Debug)]
pub struct TokenObject {
    /// What it gives a right to.
    pub rights: Delegation,
    hooks: Option<AllHooks>,
}

impl Drop for TokenObject {
    fn drop(&mut self) {
        if let Some(hooks) = self.hooks.take() {
            hooks.token_free(self);
        }
    }
}

fn has(mask: u64, number: u32) -> bool {
    mask.checked_shr(number).is_some_and(|m| m & 1 != 0)
}

impl Subsystem {
    /// `BPF_TOKEN_CREATE`.
    pub(super) fn token_create(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(token_create::END)?;
        if attr.u32(token_create::FLAGS) != 0 {
            return Err(Errno::EINVAL);
        }
        match client.files.get(attr.fd(token_create::BPFFS_FD))? {
            Object::Folder(path) if &*path == super::pin::TREE => {}
            _ => return Err(Errno::EINVAL),
        }
        let rights = self.config.delegate.ok_or(Errno::EOPNOTSUPP)?;
        if rights == Delegation::default() {
            return Err(Errno::ENOENT);
        }
        let mut token = TokenObject { rights, hooks: None };
        self.hooks.token_create(&attr.call(client, Command::TokenCreate), &token)?;
        token.hooks = Some(self.hooks.clone());
        self.install(client, Object::Token(Arc::new(token)))
    }

    /// The token behind a descriptor, if it is for this command.
    pub(super) fn token(&self, client: &Client, fd: i32, command: Command) -> Result<Option<Arc<TokenObject>>, Errno> {
        let Object::Token(token) = client.files.get(fd)? else { return Err(Errno::EINVAL) };
        let permits = has(token.rights.commands, command as u32) && self.hooks.token_command(&token, command).is_ok();
        Ok(permits.then_some(token))
    }

    /// What the caller may do, with a token or without.
    pub(super) fn capable(&self, client: &Client, token: Option<&TokenObject>, caps: Caps) -> bool {
        match token {
            Some(token) => self.hooks.token_capable(token, caps).is_ok(),
            None => client.caps.has(caps),
        }
    }
}

impl TokenObject {
    /// True if maps of this type may be made with it.
    pub(super) fn permits_map(&self, map_type: u32) -> bool {
        has(self.rights.maps, map_type)
    }

    /// True if programs of this type, to be attached so, may be loaded with it.
    pub(super) fn permits_prog(&self, prog_type: u32, attach: u32) -> bool {
        has(self.rights.progs, prog_type) && has(self.rights.attachs, attach)
    }
}

/// What the attributes of a call are to those who decide over it.
impl Attr<'_> {
    pub(super) fn call<'a>(&'a self, client: &'a Client, command: Command) -> Call<'a> {
        Call { client, command, attr: self.known(), size: self.given() }
    }
}
