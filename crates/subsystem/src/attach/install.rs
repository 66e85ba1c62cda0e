//! Mapping the session into a process: its shared memory, the agent, the return stubs, the trampolines.
//!
//! All or nothing: if a step fails, what was mapped is unmapped and the process is as it was.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use skep_runtime::session::{
    Control, KeptArguments, NO_CLOCK, RetEntry, RetHead, SEEN, SLOT_STACK, STUB_SIZE, Seen, Site, ThreadEntry,
    TrapState, guard,
};

use super::AttachError;
use super::agent_image::AgentImage;
use super::block::{Addresses, Block, Room};
use super::code::{self, Stubs};
use super::plan::{Plan, stored_at_return};
use super::procfs::{self, Auxv, Mapping, at};
use super::ptrace::Tid;
use super::remote::{Access, Channel, Remote, SCRATCH};
use super::sigtrap::Handler;
use super::unwind;
use super::world::World;

const PAGE: u64 = 4096;
/// Threads that a process's table holds.
const NTHREADS: u32 = 4096;
/// Activations of probed functions that can be under way at once.
const NRET: u32 = 4096;
/// Maps no larger than this are mapped with all of their pages: a hit that is the first on a page would take a fault, dearer than
/// ten others. A millisecond for 32 MiB.
const AT_ONCE: u64 = 64 << 20;
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

/// A map's memory: what of a memfd.
pub struct MapFd {
    /// The memfd, and the map's bytes.
    pub memory: SharedFd,
    /// Where in the memfd it begins.
    pub offset: u64,
    /// Writable in the target?
    pub writable: bool,
    /// Offset of its header in the control arena.
    pub header_offset: u64,
    /// The process does not have it.
    pub absent: bool,
}

/// What a session maps into each of its targets.
pub struct Session {
    /// Index of this target.
    pub proc_index: u32,
    /// The last change around functions whose maps are there.
    pub change: u64,
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
    /// See [`AttachRequest::marker`](super::AttachRequest::marker).
    pub marker: Option<OwnedFd>,
}

/// What has been mapped into a process.
pub struct Installed {
    /// Its block.
    pub block: Block,
    /// Where that is.
    pub block_at: u64,
    /// Where the agent is.
    pub agent: u64,
    /// The agent's code.
    pub agent_text: Vec<Range<u64>>,
    /// The maps as they are mapped, in the order of the session's.
    pub maps: Vec<MappedMap>,
    /// Maps that have gone, while a program may still be reaching them.
    pub stale: Vec<Range<u64>>,
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
    /// See [`Trampoline::stacks`](super::code::Trampoline::stacks); 0 if there are none.
    pub go_stacks: u64,
    /// The handler of breakpoints, if there are any.
    pub handler: Option<Handler>,
    /// See [`Plan::hazards`].
    pub hazards: Vec<Range<u64>>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Installed {
    /// Are the session's maps those that are mapped?
    pub fn has_maps_of(&self, session: &Session) -> bool {
        let same = |(there, map): (&MappedMap, &MapFd)| MappedMap::identity(map).is_ok_and(|of| there.is(of, map));
        self.maps.len() == session.maps.len() && self.maps.iter().zip(&session.maps).all(same)
    }

    /// Where the control arena is mapped for execution, if it is.
    pub fn executed_at(&self) -> Option<u64> {
        self.addresses.executes.then_some(self.addresses.control)
    }
}

/// A map in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedMap {
    /// Device and inode of its memfd, and the offset in it.
    of: (u64, u64, u64),
    /// Offset of its header in the control arena.
    header: u64,
    writable: bool,
    address: u64,
    size: u64,
}

impl MappedMap {
    /// What tells memory from other memory.
    fn identity(map: &MapFd) -> Result<(u64, u64, u64), AttachError> {
        let stat = rustix::fs::fstat(&map.memory.fd).map_err(|e| AttachError::os("fstat of a map", &e.into()))?;
        Ok((stat.st_dev, stat.st_ino, map.offset))
    }

    fn is(&self, of: (u64, u64, u64), map: &MapFd) -> bool {
        self.of == of
            && self.header == map.header_offset
            && self.writable == map.writable
            && self.size == map.memory.size.next_multiple_of(PAGE)
    }

    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.address..self.address + self.size
    }
}

/// Addresses of each map's header and data.
fn map_refs(control: u64, maps: &[MappedMap]) -> Vec<(u64, u64)> {
    maps.iter().map(|map| (control + map.header, map.address)).collect()
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
    let room = Room { maps: session.maps.len(), sites: plan.sites.len(), traps: traps + 1 };
    let block = Block::new(room.to_grow())?;
    let auxv = Auxv::read(world.pid)?;
    let worker: Option<Tid> = None;
    let mut remote = Remote::begin(world, worker, maps)?;
    let mut mapper = Mapper { remote: &mut remote, regions: Vec::new(), code: Vec::new(), notes: Vec::new() };
    let result = mapper.map_all(session, plan, &block, &auxv);
    match result {
        Ok(Mapped { addresses, block_at, agent, agent_text, section, objects, scratch, go_stacks, maps, handler }) => {
            let Mapper { regions, code, notes, .. } = mapper;
            remote.finish()?;
            block.fill(block_at, &addresses, &map_refs(addresses.control, &maps), &plan.sites);
            let hazards = plan.hazards.clone();
            Ok(Installed {
                block,
                block_at,
                agent,
                agent_text,
                maps,
                stale: Vec::new(),
                regions,
                code,
                addresses,
                section,
                objects,
                scratch,
                go_stacks,
                handler,
                hazards,
                notes,
            })
        }
        Err(error) => {
            let regions = mapper.regions;
            undo(&mut remote, &regions);
            remote.finish()?;
            Err(error)
        }
    }
}

/// Where the table of links is in a control arena.
fn links_offset(control: &SharedFd) -> Result<u64, AttachError> {
    let mut offset = [0; 4];
    let at = std::mem::offset_of!(Control, links) as u64;
    let read = rustix::io::pread(&control.fd, &mut offset, at).map_err(std::io::Error::from);
    match read {
        Ok(4) => Ok(u64::from(u32::from_le_bytes(offset))),
        Ok(_) => Err(AttachError::os("reading the control arena", &std::io::ErrorKind::UnexpectedEof.into())),
        Err(e) => Err(AttachError::os("reading the control arena", &e)),
    }
}

/// Maps what a changed plan needs besides: code of the sites behind the first `known` ones, and maps. The block gets the
/// maps; nothing names the sites yet. Nothing of it is used if this fails. Unless the process is calm, a program may be
/// running, and what it reaches stays.
pub fn grow(
    world: &mut World,
    maps: &[Mapping],
    session: &Session,
    installed: &mut Installed,
    plan: &Plan,
    known: usize,
    calm: bool,
) -> Result<(), AttachError> {
    let nothing_new = plan.areas.is_empty() && plan.sites.len() <= known;
    if nothing_new && installed.stale.is_empty() && installed.has_maps_of(session) {
        installed.block.set_change(session.change);
        return Ok(());
    }
    let mut remote = Remote::begin(world, None, maps)?;
    let mut mapper = Mapper { remote: &mut remote, regions: Vec::new(), code: Vec::new(), notes: Vec::new() };
    let result = mapper.map_more(session, installed, plan, known, calm);
    let Mapper { regions, code, .. } = mapper;
    let mapped = match result {
        Ok(mapped) => mapped,
        Err(error) => {
            undo(&mut remote, &regions);
            remote.finish()?;
            return Err(error);
        }
    };
    installed.block.set_maps(&map_refs(installed.addresses.control, &mapped));
    installed.block.set_change(session.change);
    let old = std::mem::replace(&mut installed.maps, mapped);
    installed.stale.extend(old.iter().filter(|m| !installed.maps.contains(m)).map(MappedMap::range));
    if calm {
        let gone = std::mem::take(&mut installed.stale);
        undo(&mut remote, &gone);
        installed.regions.retain(|region| !gone.contains(region));
    }
    remote.finish()?;
    installed.regions.extend(regions);
    installed.code.extend(code);
    Ok(())
}

/// Unmaps what was mapped.
pub fn undo(remote: &mut Remote, regions: &[Range<u64>]) {
    for region in regions {
        let _ = remote.unmap(region.start, region.end - region.start);
    }
}

struct Mapped {
    addresses: Addresses,
    block_at: u64,
    agent: u64,
    agent_text: Vec<Range<u64>>,
    section: u64,
    objects: u64,
    scratch: u64,
    go_stacks: u64,
    maps: Vec<MappedMap>,
    handler: Option<Handler>,
}

struct Mapper<'r, 'w> {
    remote: &'r mut Remote<'w>,
    regions: Vec<Range<u64>>,
    code: Vec<Range<u64>>,
    notes: Vec<String>,
}

impl Mapper<'_, '_> {
    fn map_all(&mut self, session: &Session, plan: &Plan, block: &Block, auxv: &Auxv) -> Result<Mapped, AttachError> {
        // Code areas first: the gaps they were planned for must still be free.
        self.map_code(plan)?;
        let scratch = self.anonymous(SCRATCH.max(PAGE), RW)?;
        let before = self.code.len();
        let agent = self.load_agent(&session.agent)?;
        let agent_text = self.code.get(before..).unwrap_or_default().to_vec();
        // `check_guards` leaves a restorer where there are breakpoints only.
        let traps = plan.restorer.zip(session.agent.traps);
        let private = self.map_private(session.nslots, traps.is_some(), plan.go)?;
        let wiped = private.wiped.end - private.wiped.start;
        self.remote.syscall("madvise", libc::SYS_madvise, [private.wiped.start, wiped, WIPE_ON_FORK, 0, 0, 0])?;
        self.remote.world.memory.write(private.alive, &1u64.to_le_bytes())?;
        if !procfs::reads_clock() {
            let clock = private.ret_head + std::mem::offset_of!(RetHead, clock) as u64;
            self.remote.world.memory.write(clock, &NO_CLOCK.to_le_bytes())?;
        }

        let channel = Channel::open(self.remote, scratch)?;
        let shared = self.map_shared(&channel, session, block);
        channel.close(self.remote)?;
        let SharedAt { control, executes, shared, maps, block: block_at } = shared?;
        let keeps = self.register_barriers();

        let mut addresses = Addresses {
            index: session.proc_index,
            change: session.change,
            pid: self.remote.world.pid,
            control,
            shared,
            alive: private.alive,
            threads: private.threads,
            nthreads: NTHREADS,
            seen: private.seen,
            kept: private.kept,
            stacks: private.stacks,
            rets: private.rets,
            nret: NRET,
            ret_head: private.ret_head,
            stubs: private.stubs,
            fsgsbase: auxv.get(at::HWCAP2).unwrap_or(0) & 2 != 0,
            trap_state: private.trap_state,
            description: 0,
            executes,
            keeps,
            links: control + links_offset(&session.control)?,
        };
        let registers = stored_at_return(&plan.sites);
        let quick = session.agent.quick.filter(|_| !registers.calls());
        let mut stubs = code::stubs(&Stubs {
            stubs: private.stubs,
            count: NRET,
            rets: private.rets,
            ret_size: size_of::<RetEntry>() as u64,
            body: std::mem::offset_of!(RetEntry, body) as u64,
            proc: block_at,
            ret: agent + quick.map_or(session.agent.ret, |quick| quick.ret),
            quick: quick.is_some(),
            registers,
            vectors: session.agent.vectors,
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
        let (section, objects, go_stacks) = (private.section, private.objects, private.go_stacks);
        self.write_sites((&session.agent, agent), (block, block_at), plan, 0, private.go_stacks)?;
        Ok(Mapped { addresses, block_at, agent, agent_text, section, objects, scratch, go_stacks, maps, handler })
    }

    fn map_code(&mut self, plan: &Plan) -> Result<(), AttachError> {
        for area in &plan.areas {
            self.remote.map_at(area.start, area.end - area.start, RX, false)?;
            self.regions.push(area.clone());
            self.code.push(area.clone());
        }
        Ok(())
    }

    /// Writes the code of the sites behind the first `known` ones.
    fn write_sites(
        &self,
        (image, agent): (&AgentImage, u64),
        (block, block_at): (&Block, u64),
        plan: &Plan,
        known: usize,
        stacks: u64,
    ) -> Result<(), AttachError> {
        for (n, site) in plan.sites.iter().enumerate().skip(known) {
            let hit = match (site.guard, image.traps) {
                _ if let Some(quick) = image.quick.filter(|_| site.is_quick()) => match &site.call {
                    None => quick.hit,
                    Some(call) if call.exit => quick.calls.1,
                    Some(_) => quick.calls.0,
                },
                _ if let Some(call) = &site.call => {
                    let calls = image.calls.ok_or_else(|| AttachError::Agent {
                        reason: format!("`{}` is probed at a system call, for which it lacks functions", site.symbol),
                    })?;
                    if call.exit { calls.1 } else { calls.0 }
                }
                _ if site.window.leaves => image.leave.ok_or_else(|| AttachError::Agent {
                    reason: format!("`{}` is probed at each `ret`, for which it lacks `skep_leave`", site.symbol),
                })?,
                (guard::NONE, _) | (_, None) => image.hit,
                (_, Some((guard, _))) => guard,
            };
            // A site asks only if there is something to be asked.
            let enter = agent + image.enter.unwrap_or(image.hit);
            let code = site.make_code(block.site_address(block_at, n), agent + hit, enter, stacks);
            self.remote.world.memory.write(site.code, &code)?;
        }
        Ok(())
    }

    fn map_more(
        &mut self,
        session: &Session,
        installed: &Installed,
        plan: &Plan,
        known: usize,
        calm: bool,
    ) -> Result<Vec<MappedMap>, AttachError> {
        self.map_code(plan)?;
        let Installed { block, block_at, agent, go_stacks, .. } = installed;
        self.write_sites((&session.agent, *agent), (block, *block_at), plan, known, *go_stacks)?;
        let mut channel = None;
        let mut maps = Vec::new();
        for (n, map) in session.maps.iter().enumerate() {
            let identity = MappedMap::identity(map)?;
            let keeps = |there: &&MappedMap| there.is(identity, map) || map.absent && !calm;
            match installed.maps.get(n).filter(keeps) {
                Some(there) => maps.push(*there),
                None => {
                    let channel = match &mut channel {
                        Some(channel) => channel,
                        none => none.insert(Channel::open(self.remote, installed.scratch)?),
                    };
                    maps.push(self.share_map(channel, map)?);
                }
            }
        }
        // Nor does the table get shorter under a program.
        maps.extend(installed.maps.iter().skip(session.maps.len()).filter(|_| !calm));
        match channel {
            Some(channel) => channel.close(self.remote).map(|()| maps),
            None => Ok(maps),
        }
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
    fn map_private(&mut self, nslots: u32, traps: bool, go: bool) -> Result<Private, AttachError> {
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
        let alive = take(PAGE);
        let threads = take(u64::from(NTHREADS) * size_of::<ThreadEntry>() as u64);
        let seen = take((SEEN * size_of::<Seen>()) as u64);
        let kept = take(u64::from(NRET) * size_of::<KeptArguments>() as u64);
        let trap_state = if traps { take(size_of::<TrapState>() as u64) } else { 0 };
        // A guard page below the stacks, which programs' frames must not leave downwards.
        take(PAGE);
        let stacks = take(u64::from(nslots) * SLOT_STACK as u64);
        let go_stacks = if go { take(code::GO_STACKS * code::GO_STACK) } else { 0 };
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
            alive: base + alive,
            threads: base + threads,
            wiped: base + alive..base + seen,
            seen: base + seen,
            kept: base + kept,
            trap_state: if traps { base + trap_state } else { 0 },
            stacks: base + stacks,
            go_stacks: if go { base + go_stacks } else { 0 },
        })
    }

    fn map_shared(&mut self, channel: &Channel, session: &Session, block: &Block) -> Result<SharedAt, AttachError> {
        let (control, executes) = self.share_control(channel, &session.control)?;
        let shared = self.share(channel, &session.shared, 0, Access::Write)?;
        let mut maps = Vec::new();
        for map in &session.maps {
            maps.push(self.share_map(channel, map)?);
        }
        let block_at = channel.map(self.remote, block.fd(), 0..block.size(), Access::Read)?;
        self.regions.push(block_at..block_at + block.size());
        if let Some(marker) = session.marker.as_ref().filter(|_| executes) {
            match channel.map(self.remote, marker.as_fd(), 0..PAGE, Access::Execute) {
                Ok(at) => self.regions.push(at..at + PAGE),
                Err(error) => self.notes.push(format!("profilers are not told of the programs' code: {error}")),
            }
        }
        Ok(SharedAt { control, executes, shared, maps, block: block_at })
    }

    /// The control arena holds the programs' machine code. Where the process may not map it executable, bytecode is run.
    fn share_control(&mut self, channel: &Channel, memory: &SharedFd) -> Result<(u64, bool), AttachError> {
        match self.share(channel, memory, 0, Access::Execute) {
            // Not noted as code: whoever is in it has the agent on his stack.
            Ok(control) => Ok((control, true)),
            Err(AttachError::Remote { pid, call, errno }) if call == "mmap" => {
                self.notes.push(format!(
                    "process {pid}: its programs are interpreted, since it may not map machine code ({errno})"
                ));
                Ok((self.share(channel, memory, 0, Access::Read)?, false))
            }
            Err(error) => Err(error),
        }
    }

    /// Lets its own threads, and the controller, ask for barriers on the processors that run it; false if it may not.
    fn register_barriers(&mut self) -> bool {
        const REGISTER_GLOBAL_EXPEDITED: u64 = 1 << 2;
        let args = [REGISTER_GLOBAL_EXPEDITED, 0, 0, 0, 0, 0];
        self.remote.syscall("membarrier", libc::SYS_membarrier, args).is_ok()
    }

    fn share(&mut self, channel: &Channel, memory: &SharedFd, offset: u64, access: Access) -> Result<u64, AttachError> {
        let size = memory.size.next_multiple_of(PAGE);
        let address = channel.map(self.remote, memory.fd.as_fd(), offset..offset + size, access)?;
        self.regions.push(address..address + size);
        Ok(address)
    }

    fn share_map(&mut self, channel: &Channel, map: &MapFd) -> Result<MappedMap, AttachError> {
        let (of, writable) = (MappedMap::identity(map)?, map.writable);
        let access = match writable {
            true if map.memory.size <= AT_ONCE => Access::WriteAtOnce,
            true => Access::Write,
            false => Access::Read,
        };
        let address = self.share(channel, &map.memory, map.offset, access)?;
        let (header, size) = (map.header_offset, map.memory.size.next_multiple_of(PAGE));
        Ok(MappedMap { of, header, writable, address, size })
    }
}

/// Addresses of what is shared.
struct SharedAt {
    control: u64,
    executes: bool,
    shared: u64,
    maps: Vec<MappedMap>,
    block: u64,
}

struct Private {
    stubs: u64,
    rets: u64,
    ret_head: u64,
    section: u64,
    objects: u64,
    alive: u64,
    threads: u64,
    /// What children that are forked find empty: the word that says whether this is the process, and its threads.
    wiped: Range<u64>,
    seen: u64,
    kept: u64,
    trap_state: u64,
    stacks: u64,
    go_stacks: u64,
}

// The unwinder's objects share a page with the head of the free list; a site's text fits its arrays.
const _: () = assert!(size_of::<RetHead>() as u64 + unwind::OBJECT * unwind::OBJECTS <= PAGE);
const _: () = assert!(size_of::<Site>() >= 64);
