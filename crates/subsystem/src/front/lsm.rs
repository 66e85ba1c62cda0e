//! Programs on the hooks that `bpf(2)` itself calls (`lsm/bpf`, `lsm/bpf_map`, `lsm/bpf_prog_load` and so on): they are a
//! security module of the subsystem, [`LsmPrograms`], until their link goes.
//!
//! The programs of a hook are called in the order in which they were attached, and the first that does not return 0 decides.
//! A program that cannot be run, because every vCPU slot is taken or its budget is spent, vetoes (`EBUSY`, `EINTR`).
//! Where a hook is told of something that is going, only its name is known.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use skep_ebpf::Errno;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::AttachType;
use skep_runtime::Scene;

use super::attr::{Attr, link_create};
use super::client::{Caps, Client};
use super::faults::FaultPoint;
use super::hooks::{Call, SecurityHooks};
use super::link::LinkKind;
use super::object::{MapAccess, MapObject, ProgObject};
use super::shape::{self, Picture, Shapes};
use super::token::TokenObject;
use super::world::World;
use super::{Command, Subsystem};

/// Arguments of a hook, and what it returned before.
const MAX_ARGS: usize = 12;
/// `FMODE_READ` and `FMODE_WRITE`.
const READ: u64 = 1;
const WRITE: u64 = 2;

macro_rules! hooks {
    ($($name:ident = $text:literal;)*) => {
        /// A hook that `bpf(2)` calls.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Hook { $($name,)* }

        impl Hook {
            fn by_name(name: &str) -> Option<Hook> {
                match name { $($text => Some(Hook::$name),)* _ => None }
            }
        }
    };
}

hooks! {
    Command = "bpf";
    Map = "bpf_map";
    Prog = "bpf_prog";
    MapCreate = "bpf_map_create";
    MapFree = "bpf_map_free";
    ProgLoad = "bpf_prog_load";
    ProgFree = "bpf_prog_free";
    TokenCreate = "bpf_token_create";
    TokenFree = "bpf_token_free";
    TokenCommand = "bpf_token_cmd";
    TokenCapable = "bpf_token_capable";
}

#[derive(Clone, Debug)]
struct Attached {
    number: u64,
    hook: Hook,
    prog: Arc<ProgObject>,
}

/// The programs that are attached to hooks.
#[derive(Debug)]
pub(super) struct LsmPrograms {
    world: Arc<World>,
    shapes: Option<Arc<Shapes>>,
    stats_users: Arc<AtomicU64>,
    attached: RwLock<Vec<Attached>>,
    /// How many there are, to be looked at first.
    count: AtomicUsize,
    next: AtomicU64,
}

/// A program on a hook, until this goes.
#[derive(Debug)]
pub struct LsmLink {
    programs: Arc<LsmPrograms>,
    number: u64,
}

impl Drop for LsmLink {
    fn drop(&mut self) {
        let gone = {
            let mut attached = self.programs.attached.write().unwrap_or_else(PoisonError::into_inner);
            let at = attached.iter().position(|a| a.number == self.number);
            let gone = at.map(|at| attached.remove(at));
            self.programs.count.store(attached.len(), Ordering::Release);
            gone
        };
        // The program goes without the lock: hooks are told of that.
        drop(gone);
    }
}

impl LsmPrograms {
    /// None yet. Without the kernel's types there can be none.
    pub fn new(world: Arc<World>, shapes: Option<Arc<Shapes>>, stats_users: Arc<AtomicU64>) -> LsmPrograms {
        LsmPrograms {
            world,
            shapes,
            stats_users,
            attached: RwLock::default(),
            count: AtomicUsize::new(0),
            next: AtomicU64::new(0),
        }
    }

    /// Puts a program on a hook; `EBUSY` if it is on it already.
    fn attach(self: &Arc<Self>, hook: Hook, prog: &Arc<ProgObject>) -> Result<LsmLink, Errno> {
        let mut attached = self.attached.write().unwrap_or_else(PoisonError::into_inner);
        if attached.iter().any(|a| Arc::ptr_eq(&a.prog, prog)) {
            return Err(Errno::EBUSY);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        attached.push(Attached { number, hook, prog: Arc::clone(prog) });
        self.count.store(attached.len(), Ordering::Release);
        Ok(LsmLink { programs: Arc::clone(self), number })
    }

    /// Calls the programs of a hook with these arguments.
    fn call<const N: usize>(&self, hook: Hook, arguments: impl Fn(&mut Picture<'_>) -> [u64; N]) -> Result<(), Errno> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let Some(shapes) = &self.shapes else { return Ok(()) };
        let programs: Vec<Arc<ProgObject>> = {
            let attached = self.attached.read().unwrap_or_else(PoisonError::into_inner);
            attached.iter().filter(|a| a.hook == hook).map(|a| Arc::clone(&a.prog)).collect()
        };
        let mut picture = Picture::new(shapes);
        for prog in &programs {
            picture.clear();
            let mut ctx = [0u64; MAX_ARGS];
            ctx.iter_mut().zip(arguments(&mut picture)).for_each(|(to, from)| *to = from);
            self.run(prog, &mut ctx, &picture)?;
        }
        Ok(())
    }

    fn run(&self, prog: &ProgObject, ctx: &mut [u64; MAX_ARGS], picture: &Picture<'_>) -> Result<(), Errno> {
        let start = (self.stats_users.load(Ordering::Relaxed) > 0).then(std::time::Instant::now);
        let run = self.world.with_machine(|machine| {
            let mut scene = Scene { objects: picture.words(), seq: None };
            // SAFETY: the context has the hook's arguments, and more room than any hook has; what they point to is in
            // the picture, whole.
            unsafe { machine.run_with(prog.place.index(), ctx.as_mut_ptr().cast(), &mut scene) }
        });
        if let Some(start) = start {
            prog.runs.add(1, u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        prog.feed();
        match run {
            Some(Some(run)) if run.over_budget => Err(Errno::EINTR),
            Some(Some(run)) => match run.retval as i32 {
                0 => Ok(()),
                error => Err(Errno(error.checked_neg().filter(|e| *e > 0).unwrap_or(Errno::EPERM.0))),
            },
            Some(None) | None => Err(Errno::EBUSY),
        }
    }
}

/// The capabilities' numbers in Linux.
fn number(caps: Caps) -> u64 {
    match caps {
        Caps::BPF => 39,
        Caps::PERFMON => 38,
        Caps::NET_ADMIN => 12,
        _ => 21,
    }
}

fn rights(token: Option<&TokenObject>) -> [u64; 4] {
    token.map_or([0; 4], |t| t.rights.words())
}

impl SecurityHooks for LsmPrograms {
    fn command(&self, call: &Call<'_>) -> Result<(), Errno> {
        self.call(Hook::Command, |p| [call.command as u64, p.attr(call.attr), call.size.into()])
    }

    fn map_create(&self, call: &Call<'_>, map: &MapDef, token: Option<&TokenObject>) -> Result<(), Errno> {
        self.call(Hook::MapCreate, |p| [p.new_map(map), p.attr(call.attr), p.token(rights(token))])
    }

    fn map_open(&self, _: &Client, map: &MapObject, access: MapAccess) -> Result<(), Errno> {
        let mode = if access.read { READ } else { 0 } | if access.write { WRITE } else { 0 };
        self.call(Hook::Map, |p| [p.map(map), mode])
    }

    fn map_free(&self, name: &str) {
        let _ = self.call(Hook::MapFree, |p| [p.gone_map(name)]);
    }

    fn prog_load(&self, call: &Call<'_>, program: &Program, token: Option<&TokenObject>) -> Result<(), Errno> {
        self.call(Hook::ProgLoad, |p| [p.loading(program), p.attr(call.attr), p.token(rights(token))])
    }

    fn prog_open(&self, _: &Client, program: &ProgObject) -> Result<(), Errno> {
        self.call(Hook::Prog, |p| [p.prog(program)])
    }

    fn prog_free(&self, name: &str) {
        let _ = self.call(Hook::ProgFree, |p| [p.gone_prog(name)]);
    }

    fn token_create(&self, call: &Call<'_>, token: &TokenObject) -> Result<(), Errno> {
        self.call(Hook::TokenCreate, |p| [p.token(token.rights.words()), p.attr(call.attr), p.path()])
    }

    fn token_command(&self, token: &TokenObject, command: Command) -> Result<(), Errno> {
        self.call(Hook::TokenCommand, |p| [p.token(token.rights.words()), command as u64])
    }

    fn token_capable(&self, token: &TokenObject, caps: Caps) -> Result<(), Errno> {
        self.call(Hook::TokenCapable, |p| [p.token(token.rights.words()), number(caps)])
    }

    fn token_free(&self, token: &TokenObject) {
        let _ = self.call(Hook::TokenFree, |p| [p.token(token.rights.words())]);
    }
}

impl Subsystem {
    /// Attaches an LSM program to the hook that it was loaded for.
    pub(super) fn lsm_link(&self, client: &Client, prog: &Arc<ProgObject>) -> Result<i32, Errno> {
        if prog.verified.program().attach_type != Some(AttachType::LsmMac) {
            return Err(Errno::EINVAL);
        }
        let name = shape::hook(self.config.kernel_btf.as_deref(), prog, "bpf_lsm_");
        // Programs on other hooks do not get here: they cannot be run.
        let hook = name.and_then(Hook::by_name).ok_or(Errno::EOPNOTSUPP)?;
        self.fault(FaultPoint::LinkAlloc)?;
        let link = self.lsm.attach(hook, prog)?;
        self.new_link(client, prog, LinkKind::Lsm(link))
    }

    /// As [`Subsystem::lsm_link`], by `BPF_LINK_CREATE`.
    pub(super) fn lsm_link_create(
        &self,
        client: &Client,
        attr: &Attr<'_>,
        prog: &Arc<ProgObject>,
    ) -> Result<i32, Errno> {
        // Only functions of programs are named with a descriptor, and these programs are not for them.
        let named = attr.u32(link_create::TARGET_FD) != 0 || attr.u32(link_create::TARGET_BTF_ID) != 0;
        if named {
            return Err(Errno::EINVAL);
        }
        self.lsm_link(client, prog)
    }
}
