//! Mapping the session into a process: its shared memory, the agent, the return stubs, the trampolines.
//!
//! All or nothing: if a step fails, what was mapped is unmapped and the process is as it was.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use skep_runtime::session::{RetEntry, RetHead, SLOT_STACK, STUB_SIZE, Site, ThreadEntry, TrapState, guard};

use super::AttachError;
use super::agent_image::AgentImage;
use super::block::{Addresses, Block};
use super::code::{self, Stubs};
use super::plan::Plan;
use super::procfs::{Auxv, Mapping, at};
use super::ptrace::Tid;
use super::remote::{Channel, Remote, SCRATCH};
use super::sigtrap::Handler;
use super::unwind;
use super::world::World;

const PAGE: u64 = 4096;
/// Threads that a process's table holds.
const NTHREADS: u32 = 4096;
/// Activations of probed functions that can be under way at once.
const NRET: u32 = 4096;
/// `MADV_WIPEONFORK`.
const WIPE_ON_FORK: u64 = 18;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const RX: i32 = libc::PROT_READ | libc::PROT_EXEC;

// The unwind rule multiplies a stub's distance by four; the real return address comes first in an entry.
const _: () = assert!(size_of::<RetEntry>() as u64 == 4 * STUB_SIZE && std::mem::offset_of!(RetEntry, ret) == 0);

/// A descriptor with its size.
pub struct SharedFd {
    /// The memfd.
    pub fd: OwnedFd,
    /// Bytes.
    pub size: u64,
}

/// A map's memory.
pub struct MapFd {
    /// The memfd.
    pub memory: SharedFd,
    /// Writable in the target?
    pub writable: bool,
    /// Offset of its header in the control arena.
    pub header_offset: u64,
}

/// What a session maps into each of its targets.
pub struct Session {
    /// Index of this target.
    pub proc_index: u32,
    /// Number of slots.
    pub nslots: u32,
    /// The control arena.
    pub control: SharedFd,
    /// The shared arena.
    pub shared: SharedFd,
    /// The maps.
    pub maps: Vec<MapFd>,
    /// The agent.
    pub agent: AgentImage,
}

/// What has been mapped into a process.
pub struct Installed {
    /// Its block.
    pub block: Block,
    /// All that was mapped.
    pub regions: Vec<Range<u64>>,
    /// What of that is code.
    pub code: Vec<Range<u64>>,
    /// Addresses.
    pub addresses: Addresses,
    /// Address of the unwind section.
    pub section: u64,
    /// Memory for the unwinder, zeroed.
    pub objects: u64,
    /// Free to use between stops.
    pub scratch: u64,
    /// The handler of breakpoints, if there are any.
    pub handler: Option<Handler>,
    /// See [`Plan::hazards`].
    pub hazards: Vec<Range<u64>>,
}

/// Maps everything. The text is not touched yet.
pub fn install(world: &mut World, maps: &[Mapping], session: &Session, plan: &Plan) -> Result<Installed, AttachError> {
    let mut breakpoints = plan.sites.iter().filter(|site| site.window.trap);
    if session.agent.traps.is_none()
        && let Some(site) = breakpoints.next()
    {
        let reason = format!(
            "`{}` can be probed by a breakpoint only ({}), for which the agent lacks `skep_trap` and `skep_guard`",
            site.symbol, site.why_no_jump
        );
        return Err(AttachError::Agent { reason });
    }
    let traps = breakpoints.count();
    let block = Block::new(session.maps.len(), plan.sites.len(), traps)?;
    let auxv = Auxv::read(world.pid)?;
    let worker: Option<Tid> = None;
    let mut remote = Remote::begin(world, worker, maps)?;
    let mut mapper = Mapper { remote: &mut remote, regions: Vec::new(), code: Vec::new() };
    let result = mapper.map_all(session, plan, &block, &auxv);
    match result {
        Ok((addresses, block_at, section, objects, scratch, map_refs, handler)) => {
            let Mapper { regions, code, .. } = mapper;
            remote.finish()?;
            block.fill(block_at, &addresses, &map_refs, &plan.sites);
            let hazards = plan.hazards.clone();
            Ok(Installed { block, regions, code, addresses, section, objects, scratch, handler, hazards })
        }
        Err(error) => {
            let regions = mapper.regions;
            undo(&mut remote, &regions);
            remote.finish()?;
            Err(error)
        }
    }
}

/// Unmaps what was mapped.
pub fn undo(remote: &mut Remote, regions: &[Range<u64>]) {
    for region in regions {
        let _ = remote.unmap(region.start, region.end - region.start);
    }
}

type Mapped = (Addresses, u64, u64, u64, u64, Vec<(u64, u64)>, Option<Handler>);

struct Mapper<'r, 'w> {
    remote: &'r mut Remote<'w>,
    regions: Vec<Range<u64>>,
    code: Vec<Range<u64>>,
}

impl Mapper<'_, '_> {
    fn map_all(&mut self, session: &Session, plan: &Plan, block: &Block, auxv: &Auxv) -> Result<Mapped, AttachError> {
        // Code areas first: the gaps they were planned for must still be free.
        for area in &plan.areas {
            self.remote.map_at(area.start, area.end - area.start, RX, false)?;
            self.regions.push(area.clone());
            self.code.push(area.clone());
        }
        let scratch = self.anonymous(SCRATCH.max(PAGE), RW)?;
        let agent = self.load_agent(&session.agent)?;
        // `check_guards` leaves a restorer where there are breakpoints only.
        let traps = plan.restorer.zip(session.agent.traps);
        let private = self.map_private(session.nslots, traps.is_some())?;
        let alive = self.anonymous(PAGE, RW)?;
        self.remote.syscall("madvise", libc::SYS_madvise, [alive, PAGE, WIPE_ON_FORK, 0, 0, 0])?;
        self.remote.world.memory.write(alive, &1u64.to_le_bytes())?;

        let channel = Channel::open(self.remote, scratch)?;
        let shared = self.map_shared(&channel, session, block);
        channel.close(self.remote)?;
        let (control, shared, maps, block_at) = shared?;

        let mut addresses = Addresses {
            index: session.proc_index,
            pid: self.remote.world.pid,
            control,
            shared,
            alive,
            threads: private.threads,
            nthreads: NTHREADS,
            stacks: private.stacks,
            rets: private.rets,
            nret: NRET,
            ret_head: private.ret_head,
            stubs: private.stubs,
            fsgsbase: auxv.get(at::HWCAP2).unwrap_or(0) & 2 != 0,
            trap_state: private.trap_state,
            description: 0,
        };
        let mut stubs = code::stubs(&Stubs {
            stubs: private.stubs,
            count: NRET,
            rets: private.rets,
            ret_size: size_of::<RetEntry>() as u64,
            body: std::mem::offset_of!(RetEntry, body) as u64,
            proc: block_at,
            ret: agent + session.agent.ret,
        });
        let handler = traps.map(|(restorer, (_, trap))| {
            stubs.resize(stubs.len().next_multiple_of(16), 0xcc);
            let address = private.stubs + stubs.len() as u64;
            stubs.extend(code::trap_handler(block_at, agent + trap));
            Handler { state: private.trap_state, address, restorer }
        });
        let memory = &self.remote.world.memory;
        memory.write(private.stubs, &stubs)?;
        let range = private.stubs..private.stubs + u64::from(NRET) * STUB_SIZE;
        let section = unwind::eh_frame(range, private.rets);
        memory.write(private.section, &section)?;
        addresses.description = private.section + unwind::description(&section);
        for (n, site) in plan.sites.iter().enumerate() {
            let hit = match (site.guard, session.agent.traps) {
                (guard::NONE, _) | (_, None) => session.agent.hit,
                (_, Some((guard, _))) => guard,
            };
            memory.write(site.code, &site.make_code(block.site_address(block_at, n), agent + hit))?;
        }
        let map_refs = session.maps.iter().zip(maps).map(|(map, data)| (control + map.header_offset, data)).collect();
        Ok((addresses, block_at, private.section, private.objects, scratch, map_refs, handler))
    }

    fn anonymous(&mut self, len: u64, prot: i32) -> Result<u64, AttachError> {
        let len = len.next_multiple_of(PAGE);
        let address = self.remote.map_anonymous(len, prot)?;
        self.regions.push(address..address + len);
        Ok(address)
    }

    fn load_agent(&mut self, agent: &AgentImage) -> Result<u64, AttachError> {
        let base = self.anonymous(agent.span(), libc::PROT_NONE)?;
        for (start, prot, bytes) in agent.at(base)? {
            self.remote.map_at(start, bytes.len() as u64, prot, true)?;
            self.remote.world.memory.write(start, &bytes)?;
            if prot & libc::PROT_EXEC != 0 {
                self.code.push(start..start + bytes.len() as u64);
            }
        }
        Ok(base)
    }

    /// The private area, in one piece, so that stubs reach their entries: stubs, entries, threads, signals, stacks.
    fn map_private(&mut self, nslots: u32, traps: bool) -> Result<Private, AttachError> {
        let mut end = 0u64;
        let mut take = |bytes: u64| {
            let start = end;
            end += bytes.next_multiple_of(PAGE);
            start
        };
        let stubs = take(code::stubs_size(NRET));
        let rets = take(u64::from(NRET) * size_of::<RetEntry>() as u64);
        let heads = take(PAGE);
        let section = take(PAGE);
        let threads = take(u64::from(NTHREADS) * size_of::<ThreadEntry>() as u64);
        let trap_state = if traps { take(size_of::<TrapState>() as u64) } else { 0 };
        // A guard page below the stacks, which programs' frames must not leave downwards.
        take(PAGE);
        let stacks = take(u64::from(nslots) * SLOT_STACK as u64);
        let base = self.anonymous(end, libc::PROT_NONE)?;
        self.remote.map_at(base + stubs, rets - stubs, RX, true)?;
        self.code.push(base + stubs..base + rets);
        self.remote.map_at(base + rets, stacks - PAGE - rets, RW, true)?;
        self.remote.map_at(base + stacks, end - stacks, RW, true)?;
        Ok(Private {
            stubs: base + stubs,
            rets: base + rets,
            ret_head: base + heads,
            section: base + section,
            objects: base + heads + size_of::<RetHead>() as u64,
            threads: base + threads,
            trap_state: if traps { base + trap_state } else { 0 },
            stacks: base + stacks,
        })
    }

    fn map_shared(&mut self, channel: &Channel, session: &Session, block: &Block) -> Result<SharedAt, AttachError> {
        let control = self.share(channel, &session.control, false)?;
        let shared = self.share(channel, &session.shared, true)?;
        let mut maps = Vec::new();
        for map in &session.maps {
            maps.push(self.share(channel, &map.memory, map.writable)?);
        }
        let block_at = channel.map(self.remote, block.fd(), block.size(), false)?;
        self.regions.push(block_at..block_at + block.size());
        Ok((control, shared, maps, block_at))
    }

    fn share(&mut self, channel: &Channel, memory: &SharedFd, writable: bool) -> Result<u64, AttachError> {
        let size = memory.size.next_multiple_of(PAGE);
        let address = channel.map(self.remote, memory.fd.as_fd(), size, writable)?;
        self.regions.push(address..address + size);
        Ok(address)
    }
}

type SharedAt = (u64, u64, Vec<u64>, u64);

struct Private {
    stubs: u64,
    rets: u64,
    ret_head: u64,
    section: u64,
    objects: u64,
    threads: u64,
    trap_state: u64,
    stacks: u64,
}

// The unwinder's objects share a page with the head of the free list; a site's text fits its arrays.
const _: () = assert!(size_of::<RetHead>() as u64 + unwind::OBJECT * unwind::OBJECTS <= PAGE);
const _: () = assert!(size_of::<Site>() >= 64);
