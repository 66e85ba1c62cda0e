//! The objects of a subsystem. Each is counted: descriptors, pins, links and programs that use it hold it, and with the
//! last of them it goes, and its number becomes free.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use skep_ebpf::Errno;
use skep_ebpf::btf::Btf;
use skep_ebpf::uapi::{AttachType, MapType, ProgType, map_flags};
use skep_maps::control::Map;
use skep_verifier::Verified;

use super::account::Charge;
use super::around::Arounds;
use super::bells::Bell;
use super::hooks::Told;
use super::ids::Id;
use super::iter::IterFile;
use super::link::LinkObject;
use super::offload::Offloaded;
use super::perf::{Feed, PerfEvent};
use super::targets::LinkPlace;
use super::token::TokenObject;
use super::users::Users;
use super::world::{MapPlace, ProgPlace};
use crate::loaded::Loaded;
use crate::symbols::Published;

/// What a descriptor stands for.
#[derive(Clone, Debug)]
pub enum Object {
    /// A map, and what may be done to it through this descriptor.
    Map(MapUser, MapAccess),
    /// A program.
    Prog(Arc<ProgObject>),
    /// Types.
    Btf(Arc<BtfObject>),
    /// Run-time statistics are on while this is open.
    Stats(Arc<StatsSwitch>),
    /// A perf event.
    Perf(Arc<PerfEvent>),
    /// A link.
    Link(Arc<LinkObject>),
    /// A file of the virtual tracefs, to be written, by its path.
    TraceFile(Arc<str>),
    /// An iterator that is being read.
    Iter(Arc<IterFile>),
    /// A token.
    Token(Arc<TokenObject>),
    /// A folder of the tree of pins, by its path.
    Folder(Arc<str>),
}

impl Object {
    /// What Linux calls it where it lists descriptors.
    pub fn kind(&self) -> &'static str {
        match self {
            Object::Map(..) => "bpf-map",
            Object::Prog(_) => "bpf-prog",
            Object::Btf(_) => "btf",
            Object::Stats(_) => "bpf-stats",
            Object::Perf(_) => "[perf_event]",
            Object::Link(_) => "bpf_link",
            Object::TraceFile(_) => "tracefs",
            Object::Iter(_) => "bpf_iter",
            Object::Token(_) => "bpf-token",
            Object::Folder(_) => "bpf",
        }
    }

    /// The memory behind a descriptor, where it can be mapped.
    pub fn memory(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Object::Perf(event) => Some(event.memory()),
            Object::Map(map, _) if map.can_be_mapped() => Some(map.map.arena().fd()),
            _ => None,
        }
    }
}

/// What may be done to a map through a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapAccess {
    /// Look-ups.
    pub read: bool,
    /// Updates.
    pub write: bool,
}

impl MapAccess {
    /// Everything.
    pub const BOTH: MapAccess = MapAccess { read: true, write: true };

    /// As the flags of a new map, or of an opening, say.
    pub fn from_flags(flags: u32) -> MapAccess {
        MapAccess { read: flags & map_flags::WRONLY == 0, write: flags & map_flags::RDONLY == 0 }
    }
}

/// A map.
#[derive(Debug)]
pub struct MapObject {
    /// Its number.
    pub id: Id<MapObject>,
    /// Where programs find it.
    pub place: MapPlace,
    /// The map itself.
    pub map: Map,
    /// The name given to it, at most 15 bytes.
    pub name: String,
    /// The types that its key and value are of, with their ids.
    pub btf: Option<MapTypes>,
    /// The types of the inner maps of a map of maps.
    pub inner_types: Option<MapTypes>,
    /// The type of program in a prog array, once there was one.
    pub owner: Mutex<Option<ProgType>>,
    /// The digest of the one program that may use it.
    pub exclusive: Option<[u8; 32]>,
    /// What its owner is charged.
    #[expect(dead_code, reason = "held, not looked at")]
    pub(super) charge: Option<Charge>,
    /// Tells the security hooks when it goes.
    #[expect(dead_code, reason = "held, not looked at")]
    pub(super) told: Option<Told>,
    /// Descriptors and pins.
    users: Users,
    /// The maps in a map of maps, by key.
    inner: Mutex<HashMap<Vec<u8>, Arc<MapObject>>>,
    /// The programs in a prog array, by index.
    pub programs: Mutex<HashMap<u32, Arc<ProgObject>>>,
    /// The events in a perf event array.
    pub(super) events: Feed,
    /// Rung when there is something to read, once somebody waits for that.
    pub(super) bell: OnceLock<Arc<Bell>>,
}

/// What a map begins with, besides its number and place.
#[derive(Debug)]
pub struct NewMap {
    /// The map itself.
    pub map: Map,
    /// Its name.
    pub name: String,
    /// The types of its key and value.
    pub btf: Option<MapTypes>,
    /// The types of the inner maps of a map of maps.
    pub inner_types: Option<MapTypes>,
    /// What its owner is charged.
    pub(super) charge: Option<Charge>,
    /// Tells the security hooks when it goes.
    pub(super) told: Option<Told>,
    /// The digest of the one program that may use it.
    pub exclusive: Option<[u8; 32]>,
}

/// A map as user space holds it: through a descriptor or a pin.
///
/// A prog array holds programs that may hold the array. When nothing in user space holds it any more, its programs go.
#[derive(Debug)]
pub struct MapUser(Arc<MapObject>);

impl MapUser {
    /// Holds the map.
    pub fn new(map: Arc<MapObject>) -> MapUser {
        map.users.add();
        MapUser(map)
    }

    /// The map, as programs hold it.
    pub fn object(&self) -> &Arc<MapObject> {
        &self.0
    }
}

impl Clone for MapUser {
    fn clone(&self) -> MapUser {
        MapUser::new(Arc::clone(&self.0))
    }
}

impl Drop for MapUser {
    fn drop(&mut self) {
        if self.0.users.remove() {
            self.0.clear_programs();
            self.0.events.clear(&self.0.map);
        }
    }
}

impl std::ops::Deref for MapUser {
    type Target = MapObject;

    fn deref(&self) -> &MapObject {
        &self.0
    }
}

/// The types of a map's key and value.
#[derive(Clone, Debug)]
pub struct MapTypes {
    /// Where they are.
    pub btf: Arc<BtfObject>,
    /// The key's, 0 if none was named.
    pub key: u32,
    /// The value's.
    pub value: u32,
}

impl MapObject {
    /// A map with its number and place.
    pub fn new(id: Id<MapObject>, place: MapPlace, new: NewMap) -> MapObject {
        let NewMap { map, name, btf, inner_types, charge, told, exclusive } = new;
        MapObject {
            id,
            place,
            map,
            name,
            btf,
            inner_types,
            charge,
            told,
            exclusive,
            inner: Mutex::default(),
            owner: Mutex::default(),
            users: Users::default(),
            programs: Mutex::default(),
            events: Feed::default(),
            bell: OnceLock::new(),
        }
    }

    /// Descriptors, pins and links that hold it.
    pub fn users(&self) -> u64 {
        self.users.count()
    }

    fn clear_programs(&self) {
        let programs = std::mem::take(&mut *self.programs());
        for (index, program) in &programs {
            // It was there: the table and the map are changed together.
            let _ = self.map.set_program(*index, None);
            program.membership().leave();
        }
        // Dropped here, not under the lock: one of them may hold this map.
    }

    /// The programs in a prog array.
    pub fn programs(&self) -> MutexGuard<'_, HashMap<u32, Arc<ProgObject>>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The maps in a map of maps.
    pub fn inner_maps(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Arc<MapObject>>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn can_be_mapped(&self) -> bool {
        let def = self.map.def();
        matches!(def.map_type, MapType::Ringbuf | MapType::UserRingbuf) || def.flags & map_flags::MMAPABLE != 0
    }
}

/// A program.
#[derive(Debug)]
pub struct ProgObject {
    /// Its number.
    pub id: Id<ProgObject>,
    /// Where its code stands.
    pub place: ProgPlace,
    /// What the verifier proved.
    pub verified: Arc<Verified>,
    /// The program whose function it was loaded for, until it is first attached.
    pub target: Mutex<Option<Arc<ProgObject>>>,
    /// The prog arrays that it is in, and its functions that are replaced.
    pub(super) membership: Membership,
    /// What runs.
    pub loaded: Loaded,
    /// The name given to it, at most 15 bytes.
    pub name: String,
    /// Maps that its instructions name, in their order, and those bound to it.
    pub maps: Mutex<Vec<Arc<MapObject>>>,
    /// How many of `maps` the instructions name.
    pub named_maps: usize,
    /// The types it was loaded with.
    pub btf: Option<Arc<BtfObject>>,
    /// Who loaded it.
    pub uid: u32,
    /// When, in nanoseconds since boot.
    pub load_time: u64,
    /// First bytes of the digest over its instructions.
    pub tag: [u8; 8],
    /// `func_info` as it was given: record size and records.
    pub func_info: (u32, Vec<u8>),
    /// `line_info` as it was given.
    pub line_info: (u32, Vec<u8>),
    /// Runs and their time, while statistics are on.
    pub runs: RunStats,
    /// What its runs around functions are counted for, once they are.
    pub(super) counted: OnceLock<LinkPlace>,
    /// The device that it was made for.
    pub offloaded: Option<Offloaded>,
    /// What its owner is charged.
    #[expect(dead_code, reason = "held, not looked at")]
    pub(super) charge: Option<Charge>,
    /// Tells the security hooks when it goes.
    #[expect(dead_code, reason = "held, not looked at")]
    pub(super) told: Option<Told>,
    /// Profilers and debuggers know it as long as it lives.
    pub(super) symbols: OnceLock<Arc<Published>>,
}

/// Programs in prog arrays have no functions that are replaced: a tail call would go past an extension of the main one.
#[derive(Debug, Default)]
pub struct Membership {
    /// How many prog arrays it is in, and how many of its functions are replaced.
    counts: Mutex<(u32, u32)>,
}

impl Membership {
    fn counts(&self) -> MutexGuard<'_, (u32, u32)> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A prog array has it. `EBUSY` if one of its functions is replaced.
    pub fn join(&self) -> Result<(), Errno> {
        let mut counts = self.counts();
        if counts.1 > 0 {
            return Err(Errno::EBUSY);
        }
        counts.0 += 1;
        Ok(())
    }

    /// A prog array has it no more.
    pub fn leave(&self) {
        let mut counts = self.counts();
        counts.0 = counts.0.saturating_sub(1);
    }

    /// One of its functions is replaced. `EBUSY` if it is in a prog array.
    pub fn extend(&self) -> Result<(), Errno> {
        let mut counts = self.counts();
        if counts.0 > 0 {
            return Err(Errno::EBUSY);
        }
        counts.1 += 1;
        Ok(())
    }

    /// It is not replaced any more.
    pub fn restore(&self) {
        let mut counts = self.counts();
        counts.1 = counts.1.saturating_sub(1);
    }
}

impl ProgObject {
    /// Prog arrays and extensions.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Nanoseconds and runs while statistics were on.
    pub fn run_time(&self) -> (u64, u64) {
        let (ns, runs) = self.runs.get();
        let (around_ns, around) = self.counted.get().map_or((0, 0), LinkPlace::ran);
        (ns.wrapping_add(around_ns), runs.wrapping_add(around))
    }

    /// True if it takes the place of functions of other programs.
    pub fn extends(&self) -> bool {
        self.verified.program().prog_type == ProgType::Ext
    }

    /// True if it runs around functions (of programs: those of the kernel are not here).
    pub fn is_around(&self) -> bool {
        let program = self.verified.program();
        let around = matches!(
            program.attach_type,
            Some(AttachType::TraceFentry | AttachType::TraceFexit | AttachType::ModifyReturn)
        );
        program.prog_type == ProgType::Tracing && around
    }

    /// The program that it was loaded for; once it is attached nowhere else it is not held any more.
    pub fn target(&self) -> MutexGuard<'_, Option<Arc<ProgObject>>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on what its runs wrote to perf event arrays.
    pub(crate) fn feed(&self) {
        for map in self.maps().iter() {
            map.events.deliver();
        }
    }

    /// The maps that it holds.
    pub fn maps(&self) -> MutexGuard<'_, Vec<Arc<MapObject>>> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Run-time statistics of a program.
#[derive(Debug, Default)]
pub struct RunStats {
    ns: AtomicU64,
    count: AtomicU64,
    misses: AtomicU64,
}

impl RunStats {
    /// Counts runs that took `ns` together.
    pub fn add(&self, count: u64, ns: u64) {
        self.count.fetch_add(count, Ordering::Relaxed);
        self.ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Counts a run that was skipped: the program, or one that keeps it out, was running already.
    pub fn miss(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs that were skipped.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Nanoseconds and runs.
    pub fn get(&self) -> (u64, u64) {
        (self.ns.load(Ordering::Relaxed), self.count.load(Ordering::Relaxed))
    }
}

/// Types that were loaded.
#[derive(Debug)]
pub struct BtfObject {
    /// Its number.
    pub id: Id<BtfObject>,
    /// The types.
    pub btf: Arc<Btf>,
    /// The blob as it was given.
    pub blob: Vec<u8>,
}

/// While one lives, statistics are counted.
#[derive(Debug)]
pub struct StatsSwitch {
    users: Arc<AtomicU64>,
    arounds: Arc<Arounds>,
}

impl StatsSwitch {
    /// Switches on. `ENOMEM` if there is no room for counting.
    pub fn new(users: &Arc<AtomicU64>, arounds: &Arc<Arounds>) -> Result<StatsSwitch, Errno> {
        users.fetch_add(1, Ordering::Relaxed);
        let switch = StatsSwitch { users: Arc::clone(users), arounds: Arc::clone(arounds) };
        arounds.count(users)?;
        Ok(switch)
    }
}

impl Drop for StatsSwitch {
    fn drop(&mut self) {
        self.users.fetch_sub(1, Ordering::Relaxed);
        // What is left counting is only slower.
        let _ = self.arounds.count(&self.users);
    }
}
