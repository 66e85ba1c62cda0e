//! A map and what `bpf(2)` does with it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ptr::null;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;
use skep_ebpf::uapi::map_flags as f;
use skep_ebpf::uapi::update::{ANY, EXIST, LOCK, NOEXIST};

use super::{
    Arena, Layout, MapError, Options, PerfConsumer, RingConsumer, Slabs, hollow, is_hash, is_hollow, layout_with, lpm,
};
use crate::header::{CONTROL_SLOT, MapHeader, MapRef, View};
use crate::pool::Elem;
use crate::recover::Recovered;
use crate::sync::Ordering;
use crate::{array, hash, lru, mem, perf, pool, spin, stack};

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// A map: its definition, its header, and its data region.
///
/// The methods that take keys are the commands of `bpf(2)`: same errnos, in the same order of checks. Keys and values
/// are slices of exactly the map's sizes ([`Map::value_size`] for values); other lengths are `EINVAL`.
#[derive(Debug)]
pub struct Map {
    def: MapDef,
    header: Box<MapHeader>,
    arena: Arc<Arena>,
    frozen: AtomicBool,
    /// Held by who uses the controller's slot.
    control: Mutex<()>,
    /// The order of a longest-prefix map's keys.
    sorted: Mutex<lpm::Sorted>,
}

impl Map {
    /// Makes a map: validated, allocated, `initial` written, and frozen if the definition says so.
    pub fn create(def: &MapDef, nslots: u32) -> Result<Map, MapError> {
        Map::create_with(def, nslots, Options::default())
    }

    /// [`Map::create`] with options.
    pub fn create_with(def: &MapDef, nslots: u32, options: Options) -> Result<Map, MapError> {
        Map::create_in(None, def, nslots, options)
    }

    /// [`Map::create_with`]; a small map gets its memory from `slabs` unless user space may map it.
    pub fn create_in(slabs: Option<&Slabs>, def: &MapDef, nslots: u32, options: Options) -> Result<Map, MapError> {
        let Layout { mut header, data_size } = layout_with(def, nslots, options)?;
        let mut def = def.clone();
        if matches!(def.map_type, MapType::Devmap | MapType::DevmapHash) {
            // Values are the kernel's: it makes them read-only for programs.
            def.flags |= f::RDONLY_PROG;
            header.flags = def.flags;
        }
        let seeded = is_pool(def.map_type) || def.map_type == MapType::BloomFilter;
        if seeded && def.flags & f::ZERO_SEED == 0 {
            header.seed = RandomState::new().build_hasher().finish() as u32;
        }
        let memory = |(step, source)| MapError::Memory { map: def.name.clone(), size: data_size, step, source };
        let mapped = is_ring(def.map_type) || def.flags & f::MMAPABLE != 0;
        let arena = usize::try_from(data_size)
            .map_err(|_| ("check", std::io::ErrorKind::OutOfMemory.into()))
            .and_then(|len| {
                let own = || Arena::create(&format!("skep-map:{}", def.name), len);
                slabs.filter(|_| !mapped).and_then(|s| s.take(len, is_read_only(&def))).unwrap_or_else(own)
            })
            .map_err(memory)?;
        let map = Map {
            def: def.clone(),
            header: Box::new(header),
            arena: Arc::new(arena),
            frozen: AtomicBool::new(false),
            control: Mutex::new(()),
            sorted: Mutex::default(),
        };
        map.init();
        if let Some(initial) = &def.initial {
            if initial.len() > def.value_size as usize || def.map_type != MapType::Array {
                return Err(MapError::Refused {
                    map: def.name.clone(),
                    errno: Errno::EINVAL,
                    reason: format!("{} initial bytes for a value of {}", initial.len(), def.value_size),
                });
            }
            // SAFETY: the first value stands at the start of the region and is at least as long.
            unsafe { mem::copy(map.arena.ptr(), initial.as_ptr(), initial.len()) };
        }
        if def.frozen || names_objects(def.map_type) {
            map.arena.seal_future_writes().map_err(|e| memory(("seal", e)))?;
            map.frozen.store(def.frozen, Ordering::Release);
        }
        Ok(map)
    }

    fn init(&self) {
        let v = self.view();
        match self.def.map_type {
            t if is_pool(t) || t == MapType::StackTrace => {
                hash::init(v);
                pool::init(v, self.def.max_entries);
            }
            MapType::PerfEventArray => perf::init(v),
            _ => {}
        }
    }

    pub(super) fn view(&self) -> View<'_> {
        View { h: &self.header, data: self.arena.ptr() }
    }

    pub(super) fn lock_control(&self) -> MutexGuard<'_, ()> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it was made from.
    pub fn def(&self) -> &MapDef {
        &self.def
    }

    /// The header, to be copied to where traced processes can read it.
    pub fn header(&self) -> &MapHeader {
        &self.header
    }

    /// The data region.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The map as this process sees it; valid as long as `self`.
    pub fn map_ref(&self) -> MapRef {
        MapRef { hdr: &raw const *self.header, data: self.arena.ptr() }
    }

    /// True if traced processes get a writable mapping of the data region: programs may write it, and it is not what a
    /// verdict or the control flow relies on.
    pub fn target_writable(&self) -> bool {
        !is_read_only(&self.def)
    }

    /// True once [`Map::freeze`] has succeeded.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Bytes of a value as `bpf(2)` moves it: for per-CPU maps the values of all slots, each padded to eight bytes.
    pub fn value_size(&self) -> usize {
        hash::values_size(self.view())
    }

    fn may_read(&self) -> Result<(), Errno> {
        if self.def.flags & f::WRONLY != 0 { Err(Errno::EPERM) } else { Ok(()) }
    }

    fn may_write(&self) -> Result<(), Errno> {
        if self.def.flags & f::RDONLY != 0 || self.is_frozen() { Err(Errno::EPERM) } else { Ok(()) }
    }

    fn check_len(slice: &[u8], len: usize) -> Result<(), Errno> {
        if slice.len() == len { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The index that the key of an array is.
    fn index(key: &[u8]) -> u32 {
        key.try_into().map_or(u32::MAX, u32::from_ne_bytes)
    }

    /// [`MapRef::recover`]: gives back what a slot held that will not go on.
    pub fn recover(&self, slot: u32) -> Recovered {
        // SAFETY: the map is ours; that the slot is at rest is what the caller says.
        unsafe { self.map_ref().recover(slot) }
    }

    /// `BPF_MAP_LOOKUP_ELEM`.
    pub fn lookup(&self, key: &[u8], flags: u64) -> Result<Vec<u8>, Errno> {
        if flags & !LOCK != 0 {
            return Err(Errno::EINVAL);
        }
        self.may_read()?;
        if flags & LOCK != 0 && self.header.spin_lock().is_none() {
            return Err(Errno::EINVAL);
        }
        Self::check_len(key, self.def.key_size as usize)?;
        if flags & LOCK == 0 {
            return self.get(key);
        }
        let mut value = Err(Errno::ENOENT);
        self.with_locked(key, |at| value = Ok(self.read(at)))?;
        value
    }

    /// Does something with the value of a key under its spin lock, if the key is there.
    fn with_locked(&self, key: &[u8], mut with: impl FnMut(*mut u8)) -> Result<(), Errno> {
        let off = self.header.spin_lock().ok_or(Errno::EINVAL)?;
        let _control = self.lock_control();
        // SAFETY: the key has the map's key size; the value lives as long as the map.
        unsafe {
            let at = self.map_ref().lookup(CONTROL_SLOT, key.as_ptr());
            if at.is_null() {
                return Ok(());
            }
            let lock = at.wrapping_add(off);
            // Who runs programs is not known here: a dead holder's lock is taken over by the next program.
            if !spin::acquire(lock, spin::CONTROLLER, |_| false) {
                return Err(Errno::EBUSY);
            }
            with(at);
            spin::release(lock, spin::CONTROLLER);
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Vec<u8>, Errno> {
        let (v, map) = (self.view(), self.map_ref());
        let at = match self.def.map_type {
            MapType::Array => array::lookup(v, Self::index(key)),
            MapType::PercpuArray => array::lookup_cpu(v, Self::index(key), 0),
            // The first slot's value is where all of them start. SAFETY: the key has the map's key size.
            t if is_hash(t) => unsafe { hash::lookup(v, key.as_ptr()) },
            // SAFETY: the key has the map's key size.
            MapType::LpmTrie => unsafe { map.lookup(CONTROL_SLOT, key.as_ptr()) },
            MapType::ProgArray => {
                let id = array::prog(v, Self::index(key)).ok_or(Errno::ENOENT)?;
                return Ok(id.to_ne_bytes().to_vec());
            }
            MapType::ArrayOfMaps | MapType::HashOfMaps => {
                // SAFETY: the key has the map's key size.
                let inner = unsafe { map.inner(key.as_ptr()) }.ok_or(Errno::ENOENT)?;
                return Ok(inner.to_ne_bytes().to_vec());
            }
            MapType::Queue | MapType::Stack => {
                let mut out = vec![0; self.value_size()];
                let at = out.as_mut_ptr();
                // SAFETY: `out` has the size of a value.
                self.control(|| unsafe { map.peek(CONTROL_SLOT, at) })?;
                return Ok(out);
            }
            t if is_hollow(t) => return Err(hollow::lookup(&self.def)),
            MapType::StackTrace => {
                let mut out = vec![0; self.value_size()];
                // SAFETY: `out` has the size of a value.
                let found = unsafe { stack::read(v, Self::index(key), out.as_mut_ptr()) };
                return if found { Ok(out) } else { Err(Errno::ENOENT) };
            }
            _ => return Err(Errno::ENOTSUPP),
        };
        if at.is_null() { Err(Errno::ENOENT) } else { Ok(self.read(at)) }
    }

    /// A look-up in a bloom filter, which is one of a value.
    pub fn contains(&self, value: &[u8]) -> Result<(), Errno> {
        self.may_read()?;
        Self::check_len(value, self.value_size())?;
        if self.def.map_type != MapType::BloomFilter {
            return Err(Errno::ENOTSUPP);
        }
        // SAFETY: the value has the map's value size, and is only read.
        match unsafe { self.map_ref().peek(CONTROL_SLOT, value.as_ptr().cast_mut()) } {
            0 => Ok(()),
            _ => Err(Errno::ENOENT),
        }
    }

    /// The value, or all slots' values, at an address in the region.
    fn read(&self, at: *const u8) -> Vec<u8> {
        let mut out = vec![0; self.value_size()];
        // SAFETY: the callers pass where a value of this size stands.
        unsafe {
            mem::copy(out.as_mut_ptr(), at, out.len());
            // The state of a lock is nobody's business.
            spin::clear(self.view(), out.as_mut_ptr());
        }
        out
    }

    /// `BPF_MAP_UPDATE_ELEM`. The value of a prog array is the program's number (see [`Map::set_program`]).
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.may_write()?;
        if flags & LOCK != 0 && self.header.spin_lock().is_none() {
            return Err(Errno::EINVAL);
        }
        match self.def.map_type {
            MapType::Ringbuf | MapType::UserRingbuf => return Err(Errno::ENOTSUPP),
            MapType::StackTrace => return Err(Errno::EINVAL),
            _ => {}
        }
        Self::check_len(key, self.def.key_size as usize)?;
        Self::check_len(value, self.value_size())?;
        let rest = flags & !LOCK;
        if flags & LOCK != 0 && matches!(rest, ANY | EXIST) {
            let mut done = false;
            self.with_locked(key, |at| {
                // SAFETY: both are a value long.
                unsafe { spin::copy_value(self.view(), at, value.as_ptr()) };
                done = true;
            })?;
            if done {
                return Ok(());
            }
        }
        self.put(key, value, rest)
    }

    fn put(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        let (v, map) = (self.view(), self.map_ref());
        match self.def.map_type {
            MapType::PercpuArray => {
                if flags > EXIST {
                    return Err(Errno::EINVAL);
                }
                let at = array::lookup_cpu(v, Self::index(key), 0);
                if at.is_null() {
                    return Err(Errno::E2BIG);
                }
                if flags == NOEXIST {
                    return Err(Errno::EEXIST);
                }
                // SAFETY: the values of all slots stand from `at` on, and `value` has their size.
                unsafe { mem::copy(at, value.as_ptr(), value.len()) };
                Ok(())
            }
            MapType::PercpuHash => self.control(|| {
                let values = hash::Values::All(value.as_ptr());
                // SAFETY: key and values have the map's sizes.
                unsafe { hash::update_cpu(v, CONTROL_SLOT, key.as_ptr(), values, flags) }
            }),
            MapType::LruPercpuHash => self.control(|| {
                let values = hash::Values::All(value.as_ptr());
                // SAFETY: key and values have the map's sizes.
                unsafe { lru::update(v, CONTROL_SLOT, key.as_ptr(), values, flags) }
            }),
            MapType::ProgArray => {
                if flags != ANY {
                    return Err(Errno::EINVAL);
                }
                self.set_program(Self::index(key), Some(Self::index(value)))
            }
            MapType::ArrayOfMaps | MapType::HashOfMaps => self.set_inner(key, Some(Self::index(value)), flags),
            MapType::Queue | MapType::Stack | MapType::BloomFilter => {
                // SAFETY: the value has the map's value size.
                self.control(|| unsafe { map.push(CONTROL_SLOT, value.as_ptr(), flags) })
            }
            t if is_hollow(t) => hollow::update(&self.def, Self::index(key), value, flags),
            // What stands there is an event, which a number does not name: `Map::set_perf_event`.
            MapType::PerfEventArray if flags != ANY => Err(Errno::EINVAL),
            MapType::PerfEventArray if Self::index(key) >= self.def.max_entries => Err(Errno::E2BIG),
            MapType::PerfEventArray => Err(Errno::EBADF),
            // SAFETY: key and value have the map's sizes.
            _ => self.control(|| unsafe { map.update(CONTROL_SLOT, key.as_ptr(), value.as_ptr(), flags) }),
        }
    }

    /// Runs an operation on the controller's slot, again while a lock is held elsewhere.
    fn control(&self, op: impl Fn() -> i64) -> Result<(), Errno> {
        let _control = self.lock_control();
        for _ in 0..64 {
            match op() {
                0 => return Ok(()),
                e if e == Errno::EBUSY.neg() => std::thread::yield_now(),
                e => return Err(Errno(e.unsigned_abs() as i32)),
            }
        }
        Err(Errno::EBUSY)
    }

    /// `BPF_MAP_DELETE_ELEM`.
    pub fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.may_write()?;
        if is_ring(self.def.map_type) {
            return Err(Errno::ENOTSUPP);
        }
        Self::check_len(key, self.def.key_size as usize)?;
        let (v, map) = (self.view(), self.map_ref());
        match self.def.map_type {
            MapType::ProgArray => self.set_program(Self::index(key), None),
            MapType::PerfEventArray => self.set_perf_event(Self::index(key), None),
            MapType::ArrayOfMaps | MapType::HashOfMaps => self.set_inner(key, None, ANY),
            t if is_hollow(t) => hollow::delete(&self.def, Self::index(key)),
            MapType::StackTrace => self.control(|| stack::delete(v, CONTROL_SLOT, Self::index(key))),
            // SAFETY: the key has the map's key size.
            _ => self.control(|| unsafe { map.delete(CONTROL_SLOT, key.as_ptr()) }),
        }
    }

    /// `BPF_MAP_LOOKUP_AND_DELETE_ELEM`.
    pub fn lookup_and_delete(&self, key: &[u8], flags: u64) -> Result<Vec<u8>, Errno> {
        if flags & !LOCK != 0 {
            return Err(Errno::EINVAL);
        }
        self.may_read()?;
        self.may_write()?;
        if flags & LOCK != 0 {
            return Err(Errno::EINVAL);
        }
        let v = self.view();
        match self.def.map_type {
            t if is_hash(t) => Self::check_len(key, self.def.key_size as usize)?,
            MapType::Queue | MapType::Stack => {
                let mut out = vec![0; self.value_size()];
                let at = out.as_mut_ptr();
                // SAFETY: `out` has the size of a value.
                self.control(|| unsafe { self.map_ref().pop(CONTROL_SLOT, at) })?;
                return Ok(out);
            }
            MapType::StackTrace => {
                let value = self.get(key)?;
                self.control(|| stack::delete(v, CONTROL_SLOT, Self::index(key)))?;
                return Ok(value);
            }
            _ => return Err(Errno::ENOTSUPP),
        }
        let mut out = vec![0u8; self.value_size()];
        let at = out.as_mut_ptr();
        // SAFETY: the key has the map's key size, and `out` the size of its values.
        self.control(|| unsafe { hash::delete(v, CONTROL_SLOT, key.as_ptr(), Some(at)) })?;
        // SAFETY: it has the size of the map's values.
        unsafe { spin::clear(v, at) };
        Ok(out)
    }

    /// `BPF_MAP_GET_NEXT_KEY`; without a key, or with one that is not there, the first.
    pub fn next_key(&self, key: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        self.may_read()?;
        match self.def.map_type {
            t if is_ring(t) => return Err(Errno::ENOTSUPP),
            MapType::Queue | MapType::Stack => return Err(Errno::EINVAL),
            MapType::BloomFilter => return Err(Errno::EOPNOTSUPP),
            _ => {}
        }
        if let Some(key) = key {
            Self::check_len(key, self.def.key_size as usize)?;
        }
        let v = self.view();
        let next = match self.def.map_type {
            MapType::LpmTrie => {
                let mut sorted = self.sorted.lock().unwrap_or_else(PoisonError::into_inner);
                return sorted.next(v, key).ok_or(Errno::ENOENT);
            }
            t if is_hollow(t) => hollow::next_key(&self.def, key.map(Self::index))?,
            t if is_pool(t) => {
                // SAFETY: null, or of the map's key size.
                let e = unsafe { hash::next(v, key.map_or(null(), <[u8]>::as_ptr)) };
                return e.map(|e| self.key_of(e)).ok_or(Errno::ENOENT);
            }
            MapType::StackTrace => {
                let used = |id: &u32| stack::bucket(v, *id).is_some_and(|b| stack::elem(v, b).is_some());
                let start = match key.map(Self::index) {
                    Some(id) if used(&id) => id + 1,
                    _ => 0,
                };
                (start..=v.h.mask).find(used).ok_or(Errno::ENOENT)?
            }
            _ => match key.map(Self::index) {
                Some(i) if i == self.def.max_entries - 1 => return Err(Errno::ENOENT),
                Some(i) if i < self.def.max_entries => i + 1,
                _ => 0,
            },
        };
        Ok(next.to_ne_bytes().to_vec())
    }

    fn key_of(&self, e: Elem<'_>) -> Vec<u8> {
        if self.def.map_type == MapType::LpmTrie {
            return lpm::key_of(self.view(), e);
        }
        let mut key = vec![0; self.def.key_size as usize];
        // SAFETY: `key_size` bytes stand behind an element's node.
        unsafe { mem::copy(key.as_mut_ptr(), e.key(), key.len()) };
        key
    }

    /// Where the value of a key of an array or hash map stands, that of the first slot in per-CPU maps, for those who look
    /// at it in place. Nothing is marked as used.
    pub fn place(&self, key: &[u8]) -> Option<*mut u8> {
        if key.len() != self.def.key_size as usize {
            return None;
        }
        let v = self.view();
        let at = match self.def.map_type {
            MapType::Array => array::lookup(v, Self::index(key)),
            MapType::PercpuArray => array::lookup_cpu(v, Self::index(key), 0),
            // SAFETY: the key has the map's key size.
            t if is_hash(t) => unsafe { hash::lookup(v, key.as_ptr()) },
            _ => return None,
        };
        (!at.is_null()).then_some(at)
    }

    /// A copy of what stands at [`Map::place`]; the values of all slots of a per-CPU map.
    pub fn copy(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.place(key).map(|at| self.read(at))
    }

    /// The keys in a bucket of a hash map, in the order in which batches go over them; `None` behind the last bucket.
    pub fn bucket_keys(&self, n: u32) -> Option<Vec<Vec<u8>>> {
        Some(self.bucket(n)?.into_iter().map(|(key, _)| key).collect())
    }

    /// All entries that there are: every index of an array, the set ones of a prog array, the stacks of a stack trace
    /// map. Not of rings, nor of maps without keys.
    pub fn entries(&self) -> Vec<Entry> {
        let v = self.view();
        let mut all = Vec::new();
        match self.def.map_type {
            MapType::HashOfMaps => hash::for_each(v, |e| {
                let key = self.key_of(e);
                if let Ok(value) = self.get(&key) {
                    all.push((key, value));
                }
                true
            }),
            t if is_pool(t) => hash::for_each(v, |e| {
                all.push((self.key_of(e), self.read(v.value(e))));
                true
            }),
            MapType::Ringbuf | MapType::PerfEventArray | MapType::UserRingbuf => {}
            MapType::Queue | MapType::Stack | MapType::BloomFilter => {}
            t if is_hollow(t) => {}
            _ => {
                let ids = if self.def.map_type == MapType::StackTrace { v.h.mask } else { self.def.max_entries - 1 };
                all.extend((0..=ids).filter_map(|i| {
                    let key = i.to_ne_bytes().to_vec();
                    let value = self.get(&key).ok()?;
                    Some((key, value))
                }));
            }
        }
        all
    }

    /// The entries in a bucket of a hash map; `None` behind the last one. Walks of batches go by buckets.
    pub fn bucket(&self, n: u32) -> Option<Vec<Entry>> {
        let v = self.view();
        if !is_pool(self.def.map_type) || n > v.h.mask {
            return None;
        }
        let mut all = Vec::new();
        hash::for_each_in(v, n, |e| {
            all.push((self.key_of(e), self.read(v.value(e))));
            true
        });
        Some(all)
    }

    /// `BPF_MAP_FREEZE`: no more changes through `bpf(2)`. If programs cannot write the map either
    /// (`BPF_F_RDONLY_PROG`), there will be no new writable mapping of it.
    pub fn freeze(&self) -> Result<(), Errno> {
        self.may_write()?;
        if !self.target_writable() {
            self.arena.seal_future_writes().map_err(|_| Errno::EBUSY)?;
        }
        self.frozen.store(true, Ordering::Release);
        Ok(())
    }

    /// Puts a program into a prog array, or takes it out, with the errnos of update and delete. `program` is the number
    /// that [`MapRef::prog_array_get`] gives, below `u32::MAX`.
    pub fn set_program(&self, index: u32, program: Option<u32>) -> Result<(), Errno> {
        if self.def.map_type != MapType::ProgArray {
            return Err(Errno::EINVAL);
        }
        let entry = array::entry(self.view(), index).ok_or(Errno::E2BIG)?;
        let word = match program {
            Some(p) => p.checked_add(1).ok_or(Errno::EBADF)?,
            None => 0,
        };
        let old = entry.swap(word, Ordering::AcqRel);
        if program.is_none() && old == 0 { Err(Errno::ENOENT) } else { Ok(()) }
    }

    /// Puts a map into a map of maps, or takes it out, with the errnos of update and delete. `inner` is the number that
    /// [`MapRef::inner`] gives, below `u32::MAX`.
    pub fn set_inner(&self, key: &[u8], inner: Option<u32>, flags: u64) -> Result<(), Errno> {
        Self::check_len(key, self.def.key_size as usize)?;
        let word = match inner {
            Some(n) => n.checked_add(1).ok_or(Errno::EBADF)?,
            None => 0,
        };
        let (v, key_at, value) = (self.view(), key.as_ptr(), word.to_ne_bytes());
        match (self.def.map_type, inner) {
            (MapType::ArrayOfMaps, _) if flags != ANY => Err(Errno::EINVAL),
            (MapType::ArrayOfMaps, _) => {
                let old = array::entry(v, Self::index(key)).ok_or(Errno::E2BIG)?.swap(word, Ordering::AcqRel);
                if inner.is_none() && old == 0 { Err(Errno::ENOENT) } else { Ok(()) }
            }
            (MapType::HashOfMaps, Some(_)) => {
                // SAFETY: the key has the map's key size, and the value four bytes.
                self.control(|| unsafe { hash::update(v, CONTROL_SLOT, key_at, value.as_ptr(), flags) })
            }
            // SAFETY: as above.
            (MapType::HashOfMaps, None) => self.control(|| unsafe { hash::delete(v, CONTROL_SLOT, key_at, None) }),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Puts the event of slot `cpu` at an index of a perf event array, or takes it out, with the errnos of update and
    /// delete. An index has the ring of the slot of the same number, so only `cpu == index` is supported.
    pub fn set_perf_event(&self, index: u32, cpu: Option<u32>) -> Result<(), Errno> {
        if self.def.map_type != MapType::PerfEventArray {
            return Err(Errno::EINVAL);
        }
        if index >= self.def.max_entries {
            return Err(Errno::E2BIG);
        }
        let state = perf::state(self.view(), index);
        match (state, cpu) {
            (Some(state), Some(cpu)) if cpu == index => state.store(cpu + 1, Ordering::Release),
            (_, Some(_)) => return Err(Errno::EINVAL),
            (Some(state), None) if state.swap(0, Ordering::AcqRel) != 0 => {}
            (_, None) => return Err(Errno::ENOENT),
        }
        Ok(())
    }

    /// Gives every slot its event, as loaders do for every CPU.
    pub fn set_all_perf_events(&self) -> Result<(), Errno> {
        (0..self.header.elems).try_for_each(|i| self.set_perf_event(i, Some(i)))
    }

    /// The frames of a stack, innermost first.
    pub fn stack(&self, id: u32) -> Result<Vec<u64>, Errno> {
        if self.def.map_type != MapType::StackTrace {
            return Err(Errno::EINVAL);
        }
        let value = self.lookup(&id.to_ne_bytes(), 0)?;
        let words = value.chunks_exact(8).map(|w| w.try_into().map_or(0, u64::from_ne_bytes));
        Ok(words.take_while(|&ip| ip != 0).collect())
    }

    /// The consumer of a ring buffer. There should be one at a time.
    pub fn ring_consumer(&self) -> Result<RingConsumer, Errno> {
        if self.def.map_type != MapType::Ringbuf {
            return Err(Errno::EINVAL);
        }
        Ok(RingConsumer::new(Arc::clone(&self.arena), *self.header))
    }

    /// The consumer of one ring of a perf event array. There should be one at a time.
    pub fn perf_consumer(&self, index: u32) -> Result<PerfConsumer, Errno> {
        if self.def.map_type != MapType::PerfEventArray {
            return Err(Errno::EINVAL);
        }
        PerfConsumer::new(Arc::clone(&self.arena), *self.header, index).ok_or(Errno::E2BIG)
    }
}

/// True for the types that keep elements in buckets.
pub(super) fn is_pool(t: MapType) -> bool {
    is_hash(t) || matches!(t, MapType::LpmTrie | MapType::HashOfMaps)
}

fn is_ring(t: MapType) -> bool {
    matches!(t, MapType::Ringbuf | MapType::UserRingbuf)
}

/// True if programs do not write the map.
fn is_read_only(def: &MapDef) -> bool {
    let lookups_write = matches!(def.map_type, MapType::LruHash | MapType::LruPercpuHash);
    names_objects(def.map_type) || def.frozen || (def.flags & f::RDONLY_PROG != 0 && !lookups_write)
}

/// True for the types whose values are indices of programs or maps, which programs must not write.
fn names_objects(t: MapType) -> bool {
    matches!(t, MapType::ProgArray | MapType::ArrayOfMaps | MapType::HashOfMaps)
}
