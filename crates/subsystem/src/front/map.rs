//! The commands on maps.

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, map_flags};
use skep_maps::control::{Map, MapError, Options, layout_with};

use super::attr::{Attr, map_batch, map_create, map_elem, map_fd_by_id, map_freeze};
use super::client::{Caps, Client};
use super::faults::FaultPoint;
use super::hooks::{SecurityHooks, Told};
use super::object::{MapAccess, MapObject, MapTypes, MapUser, NewMap, Object, ProgObject};
use super::token::TOKEN_FD;
use super::{Command, Profile, Subsystem, nested};

/// The flag of look-ups and updates that takes the value's spin lock (`BPF_F_LOCK`).
const LOCK: u64 = 4;
/// The address that stands for "from the beginning".
const NO_KEY: u64 = 0;

/// Map types that anybody may make; the others take `CAP_BPF`, these two `CAP_NET_ADMIN`.
fn needed(map_type: MapType) -> Caps {
    match map_type {
        MapType::Array
        | MapType::PercpuArray
        | MapType::ProgArray
        | MapType::PerfEventArray
        | MapType::CgroupArray
        | MapType::ArrayOfMaps
        | MapType::Hash
        | MapType::PercpuHash
        | MapType::HashOfMaps
        | MapType::Ringbuf
        | MapType::UserRingbuf
        | MapType::CgroupStorage
        | MapType::PercpuCgroupStorage => Caps::NONE,
        MapType::Sockmap | MapType::Sockhash | MapType::Devmap | MapType::DevmapHash | MapType::Xskmap => {
            Caps::NET_ADMIN
        }
        _ => Caps::BPF,
    }
}

/// A map that a command names, and what its descriptor permits.
struct Named {
    map: MapUser,
    access: MapAccess,
}

impl Named {
    fn get(client: &Client, fd: i32) -> Result<Named, Errno> {
        match client.files.get(fd)? {
            Object::Map(map, access) => Ok(Named { map, access }),
            _ => Err(Errno::EINVAL),
        }
    }

    fn may_read(&self) -> Result<(), Errno> {
        if self.access.read { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// `BPF_F_LOCK` is for values that have a lock.
    fn may_lock(&self, flags: u64) -> Result<(), Errno> {
        let has_lock = self.map.map.header().spin_lock().is_some();
        if flags & LOCK == 0 || has_lock { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn may_write(&self) -> Result<(), Errno> {
        if self.access.write && !self.map.map.is_frozen() { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// The key at the caller's address. Maps without keys must be given none.
    fn key(&self, client: &Client, at: u64) -> Result<Vec<u8>, Errno> {
        match self.map.map.def().key_size {
            0 if at != 0 => Err(Errno::EINVAL),
            size => client.bytes(at, size as usize),
        }
    }

    fn map_type(&self) -> MapType {
        self.map.map.def().map_type
    }
}

/// The digest of the one program that may use the map, if there is only one.
fn exclusive(client: &Client, attr: &Attr<'_>) -> Result<Option<[u8; 32]>, Errno> {
    let mut digest = [0; 32];
    match (attr.u64(map_create::EXCL_PROG_HASH), attr.u32(map_create::EXCL_PROG_HASH_SIZE)) {
        (0, 0) => return Ok(None),
        (at, 32) if at != 0 => client.memory.read(at, &mut digest)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(Some(digest))
}

impl Subsystem {
    pub(super) fn map_create(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        use map_create as f;
        let modern = self.config.profile == Profile::Linux6_18;
        attr.ends_at(if modern { f::END } else { f::END_4_17 })?;
        let given = attr.u32(f::MAP_FLAGS);
        let flags = if modern { given & !TOKEN_FD } else { given };
        let number = attr.u32(f::MAP_TYPE);
        let (key_type, value_type) = (attr.u32(f::BTF_KEY_TYPE_ID), attr.u32(f::BTF_VALUE_TYPE_ID));
        if attr.u32(f::BTF_VMLINUX_VALUE_TYPE_ID) != 0 {
            if number != MapType::StructOps as u32 || key_type != 0 || value_type != 0 {
                return Err(Errno::EINVAL);
            }
        } else if key_type != 0 && value_type == 0 {
            return Err(Errno::EINVAL);
        }
        let with_extra = number == MapType::BloomFilter as u32 || number == MapType::Arena as u32;
        if attr.u64(f::MAP_EXTRA) != 0 && !with_extra {
            return Err(Errno::EINVAL);
        }
        let both = map_flags::RDONLY | map_flags::WRONLY;
        if flags & both == both {
            return Err(Errno::EINVAL);
        }
        // There is one node here.
        if flags & map_flags::NUMA_NODE != 0 && attr.u32(f::NUMA_NODE) != 0 {
            return Err(Errno::EINVAL);
        }
        let newest = if modern { MapType::Arena } else { MapType::Cpumap };
        let known = |t: &MapType| *t != MapType::Unspec && *t <= newest;
        let map_type = MapType::from_u32(number).filter(known).ok_or(Errno::EINVAL)?;
        let mut def =
            MapDef::new("", map_type, attr.u32(f::KEY_SIZE), attr.u32(f::VALUE_SIZE), attr.u32(f::MAX_ENTRIES));
        def.flags = flags;
        def.extra = attr.u64(f::MAP_EXTRA);
        (def.key_type_id, def.value_type_id) = (key_type, value_type);
        let inner = if nested::is_nested(map_type) {
            let inner = nested::template(client, attr.fd(f::INNER_MAP_FD));
            // The kernel looks at the map itself first.
            let any = || Arc::new(MapDef::new("", MapType::Array, 4, 4, 1));
            def.inner = Some(inner.as_ref().map_or_else(|_| any(), |i| Arc::clone(&i.def)));
            Some(inner)
        } else {
            None
        };
        skep_maps::control::validate(&def, self.slots()).map_err(|e| e.errno())?;
        match attr.u32(f::MAP_IFINDEX) {
            0 => {}
            // No device here has maps of its own.
            index if crate::testrun::device(index) => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::EINVAL),
        }
        let token = match given & TOKEN_FD {
            0 => None,
            // Without the right to it the token does not count.
            _ => self.token(client, attr.fd(f::MAP_TOKEN_FD), Command::MapCreate)?.filter(|t| t.permits_map(number)),
        };
        let cap = needed(map_type);
        if cap != Caps::NONE && !self.capable(client, token.as_deref(), cap) {
            return Err(Errno::EPERM);
        }
        let name = attr.name(f::MAP_NAME)?;
        let types = match (key_type, value_type) {
            (0, 0) => None,
            (key, value) => Some(self.map_types(client, attr.fd(f::BTF_FD), &def, key, value)?),
        };
        def.name.clone_from(&name);
        let inner_types = inner.transpose()?.and_then(|i| i.types);
        let exclusive = exclusive(client, attr)?;
        self.hooks.map_create(&attr.call(client, Command::MapCreate), &def, token.as_deref())?;
        let told = Some(Told::new(&self.hooks, &name, |h, name| h.map_free(name)));
        let kernel = self.config.kernel_btf.as_deref();
        let spin_lock = types.as_ref().and_then(|t| skep_verifier::spin_lock_of(&def, &t.btf.btf, kernel));
        let options = Options { perf_ring_bytes: 1 << 16, spin_lock, ..Options::default() };
        let bytes = layout_with(&def, self.slots(), options).map_err(|e| e.errno())?.data_size;
        let charge = self.charge(client, bytes)?;
        self.fault(FaultPoint::MapAlloc)?;
        let map = Map::create_in(Some(&self.slabs), &def, self.slots(), options).map_err(|e| match e {
            MapError::Memory { .. } => Errno::ENOMEM,
            other => other.errno(),
        })?;
        self.fault(FaultPoint::MapPlace)?;
        let new = NewMap { map, name, btf: types, inner_types, charge: Some(charge), told, exclusive };
        let object = self.world.add_map(&self.maps, |id, place| MapObject::new(id, place, new))?;
        self.install(client, Object::Map(MapUser::new(object), MapAccess::from_flags(flags)))
    }

    /// Takes a map that was made elsewhere, for an object file.
    pub(crate) fn take_map(&self, map: Map) -> Result<MapUser, Errno> {
        let name = super::prog::short_name(&map.def().name);
        let new = NewMap { map, name, btf: None, inner_types: None, charge: None, told: None, exclusive: None };
        self.world.add_map(&self.maps, |id, place| MapObject::new(id, place, new)).map(MapUser::new)
    }

    fn map_types(&self, client: &Client, fd: i32, def: &MapDef, key: u32, value: u32) -> Result<MapTypes, Errno> {
        let btf = super::btf::by_fd(client, fd)?;
        super::map_types::check(def, &btf.btf, key, value)?;
        skep_verifier::check_map_types(def, &btf.btf, self.config.kernel_btf.as_deref())?;
        Ok(MapTypes { btf, key, value })
    }

    pub(super) fn map_lookup(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(map_elem::END)?;
        let flags = attr.u64(map_elem::FLAGS);
        if flags & !LOCK != 0 {
            return Err(Errno::EINVAL);
        }
        let named = Named::get(client, attr.fd(map_elem::MAP_FD))?;
        named.may_read()?;
        named.may_lock(flags)?;
        let key = named.key(client, attr.u64(map_elem::KEY))?;
        if named.map_type() == MapType::BloomFilter {
            let value = client.bytes(attr.u64(map_elem::VALUE), named.map.map.value_size())?;
            return named.map.map.contains(&value).map(|()| 0);
        }
        let value = self.value_for_user(&named.map, &key, flags)?;
        client.memory.write(attr.u64(map_elem::VALUE), &value)?;
        Ok(0)
    }

    /// A value as the caller sees it: of a prog array the program's number, of a map of maps the map's.
    fn value_for_user(&self, map: &MapObject, key: &[u8], flags: u64) -> Result<Vec<u8>, Errno> {
        if nested::is_nested(map.map.def().map_type) {
            return nested::number(map, key);
        }
        if map.map.def().map_type != MapType::ProgArray {
            return map.map.lookup(key, flags);
        }
        let index = key.try_into().map_or(u32::MAX, u32::from_ne_bytes);
        let id = map.programs().get(&index).map(|p| p.id.number());
        id.map(|id| id.to_ne_bytes().to_vec()).ok_or(Errno::ENOENT)
    }

    pub(super) fn map_update(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(map_elem::END)?;
        let named = Named::get(client, attr.fd(map_elem::MAP_FD))?;
        named.may_write()?;
        let flags = attr.u64(map_elem::FLAGS);
        named.may_lock(flags)?;
        let key = named.key(client, attr.u64(map_elem::KEY))?;
        let value = client.bytes(attr.u64(map_elem::VALUE), named.map.map.value_size())?;
        self.put(client, &named, &key, &value, flags)?;
        Ok(0)
    }

    fn put(&self, client: &Client, named: &Named, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        if nested::is_nested(named.map_type()) {
            return self.put_inner(client, &named.map, key, value, flags);
        }
        if named.map_type() == MapType::PerfEventArray {
            return put_event(client, &named.map, key, value, flags);
        }
        if named.map_type() != MapType::ProgArray {
            return named.map.map.update(key, value, flags);
        }
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        let index = key.try_into().map_or(u32::MAX, u32::from_ne_bytes);
        if index >= named.map.map.def().max_entries {
            return Err(Errno::E2BIG);
        }
        let fd = value.try_into().map_or(-1, i32::from_ne_bytes);
        let Object::Prog(program) = client.files.get(fd)? else { return Err(Errno::EINVAL) };
        named.map.set_program(index, program)
    }

    pub(super) fn map_delete(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(map_elem::KEY.0 + 8)?;
        let named = Named::get(client, attr.fd(map_elem::MAP_FD))?;
        named.may_write()?;
        let key = named.key(client, attr.u64(map_elem::KEY))?;
        self.delete_element(&named.map, &key)?;
        if let Some(index) = key.first_chunk() {
            named.map.events.remove(u32::from_ne_bytes(*index));
        }
        Ok(0)
    }

    pub(super) fn map_next_key(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(map_elem::NEXT_KEY.0 + 8)?;
        let named = Named::get(client, attr.fd(map_elem::MAP_FD))?;
        named.may_read()?;
        let key = match attr.u64(map_elem::KEY) {
            NO_KEY => None,
            at => Some(named.key(client, at)?),
        };
        let next = named.map.map.next_key(key.as_deref())?;
        client.memory.write(attr.u64(map_elem::NEXT_KEY), &next)?;
        Ok(0)
    }

    pub(super) fn map_lookup_and_delete(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(map_elem::END)?;
        let flags = attr.u64(map_elem::FLAGS);
        if flags & !LOCK != 0 {
            return Err(Errno::EINVAL);
        }
        let named = Named::get(client, attr.fd(map_elem::MAP_FD))?;
        named.may_read()?;
        named.may_write()?;
        if flags & LOCK != 0 {
            return Err(Errno::EINVAL);
        }
        let key = named.key(client, attr.u64(map_elem::KEY))?;
        let value = named.map.map.lookup_and_delete(&key, flags)?;
        client.memory.write(attr.u64(map_elem::VALUE), &value)?;
        Ok(0)
    }

    pub(super) fn map_freeze(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(map_freeze::END)?;
        let named = Named::get(client, attr.fd(map_freeze::MAP_FD))?;
        named.may_write()?;
        named.map.map.freeze()?;
        Ok(0)
    }

    pub(super) fn map_fd_by_id(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(map_fd_by_id::END)?;
        let flags = attr.u32(map_fd_by_id::OPEN_FLAGS);
        let both = map_flags::RDONLY | map_flags::WRONLY;
        if flags & !both != 0 {
            return Err(Errno::EINVAL);
        }
        if !client.caps.has(Caps::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        if flags == both {
            return Err(Errno::EINVAL);
        }
        let map = self.maps.get(attr.u32(map_fd_by_id::ID)).ok_or(Errno::ENOENT)?;
        self.install(client, Object::Map(MapUser::new(map), MapAccess::from_flags(flags)))
    }

    pub(super) fn map_lookup_batch(&self, client: &Client, attr: &mut Attr<'_>, delete: bool) -> Result<i32, Errno> {
        use map_batch as f;
        attr.ends_at(f::END)?;
        let named = Named::get(client, attr.fd(f::MAP_FD))?;
        named.may_read()?;
        if delete {
            named.may_write()?;
        }
        if !is_hash(named.map_type()) && (!walks_keys(named.map_type()) || delete) {
            return Err(Errno::ENOTSUPP);
        }
        if attr.u64(f::ELEM_FLAGS) & !LOCK != 0 {
            return Err(Errno::EINVAL);
        }
        if attr.u64(f::ELEM_FLAGS) & LOCK != 0 || attr.u64(f::FLAGS) != 0 && is_hash(named.map_type()) {
            return Err(Errno::EINVAL);
        }
        let count = attr.u32(f::COUNT);
        if count == 0 {
            return Ok(0);
        }
        attr.answer(f::COUNT, &0u32.to_ne_bytes())?;
        let walked = if is_hash(named.map_type()) {
            self.walk_buckets(client, attr, &named.map, count, delete)?
        } else {
            self.walk_keys(client, attr, &named.map, count)?
        };
        attr.answer(f::COUNT, &walked.done.to_ne_bytes())?;
        if let Some(position) = &walked.position {
            client.memory.write(attr.u64(f::OUT_BATCH), position)?;
        }
        if walked.ended { Err(Errno::ENOENT) } else { Ok(0) }
    }

    /// Whole buckets, as many as fit. The position is the number of the next bucket, 4 bytes.
    fn walk_buckets(
        &self,
        client: &Client,
        attr: &Attr<'_>,
        map: &MapObject,
        count: u32,
        delete: bool,
    ) -> Result<Walked, Errno> {
        let mut bucket = match attr.u64(map_batch::IN_BATCH) {
            NO_KEY => 0,
            at => client.bytes(at, 4)?.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b)),
        };
        if map.map.bucket(bucket).is_none() {
            return Ok(Walked { done: 0, position: None, ended: true });
        }
        let mut done = 0;
        while let Some(entries) = map.map.bucket(bucket) {
            if entries.len() as u64 > u64::from(count - done) {
                // A bucket is not cut in two.
                if done == 0 {
                    return Err(Errno::ENOSPC);
                }
                break;
            }
            for (key, value) in &entries {
                let number = nested::is_nested(map.map.def().map_type).then(|| nested::number(map, key));
                // What was taken out meanwhile has the number 0.
                let number = number.map(|n| n.unwrap_or_else(|_| vec![0; 4]));
                give_entry(client, attr, done, key, number.as_ref().unwrap_or(value))?;
                done += 1;
            }
            if delete {
                for (key, _) in &entries {
                    match self.delete_element(map, key) {
                        // Another one took it meanwhile.
                        Ok(()) | Err(Errno::ENOENT) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
            bucket += 1;
        }
        let ended = map.map.bucket(bucket).is_none();
        Ok(Walked { done, position: Some(bucket.to_ne_bytes().to_vec()), ended })
    }

    /// Key by key. The position is the last key.
    fn walk_keys(&self, client: &Client, attr: &Attr<'_>, map: &MapObject, count: u32) -> Result<Walked, Errno> {
        let mut key = match attr.u64(map_batch::IN_BATCH) {
            NO_KEY => None,
            at => Some(client.bytes(at, map.map.def().key_size as usize)?),
        };
        let mut walked = Walked { done: 0, position: None, ended: false };
        while walked.done < count {
            let next = match map.map.next_key(key.as_deref()) {
                Ok(next) => next,
                Err(Errno::ENOENT) => {
                    walked.ended = true;
                    break;
                }
                Err(e) => return Err(e),
            };
            match self.value_for_user(map, &next, 0) {
                Ok(value) => {
                    give_entry(client, attr, walked.done, &next, &value)?;
                    walked.done += 1;
                }
                // Gone since: the walk goes on behind it.
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
            key = Some(next);
        }
        walked.position = key;
        Ok(walked)
    }

    pub(super) fn map_update_batch(&self, client: &Client, attr: &mut Attr<'_>) -> Result<i32, Errno> {
        use map_batch as f;
        attr.ends_at(f::END)?;
        let named = Named::get(client, attr.fd(f::MAP_FD))?;
        named.may_write()?;
        if !walks_keys(named.map_type()) && !is_hash(named.map_type()) {
            return Err(Errno::ENOTSUPP);
        }
        if attr.u64(f::ELEM_FLAGS) & LOCK != 0 {
            return Err(Errno::EINVAL);
        }
        let map = &named.map.map;
        self.each_of_batch(attr, |attr, n| {
            let (key_size, value_size) = (u64::from(map.def().key_size), map.value_size() as u64);
            let key = client.bytes(attr.u64(f::KEYS).wrapping_add(n * key_size), key_size as usize)?;
            let value = client.bytes(attr.u64(f::VALUES).wrapping_add(n * value_size), value_size as usize)?;
            self.put(client, &named, &key, &value, attr.u64(f::ELEM_FLAGS))
        })
    }

    pub(super) fn map_delete_batch(&self, client: &Client, attr: &mut Attr<'_>) -> Result<i32, Errno> {
        use map_batch as f;
        attr.ends_at(f::END)?;
        let named = Named::get(client, attr.fd(f::MAP_FD))?;
        named.may_write()?;
        if !is_hash(named.map_type()) && named.map_type() != MapType::LpmTrie {
            return Err(Errno::ENOTSUPP);
        }
        if attr.u64(f::ELEM_FLAGS) != 0 {
            return Err(Errno::EINVAL);
        }
        let key_size = u64::from(named.map.map.def().key_size);
        self.each_of_batch(attr, |attr, n| {
            let key = client.bytes(attr.u64(f::KEYS).wrapping_add(n * key_size), key_size as usize)?;
            self.delete_element(&named.map, &key)
        })
    }

    /// Does something for each element of a batch; how many were done is told also when one fails.
    fn each_of_batch(
        &self,
        attr: &mut Attr<'_>,
        mut one: impl FnMut(&Attr<'_>, u64) -> Result<(), Errno>,
    ) -> Result<i32, Errno> {
        let count = attr.u32(map_batch::COUNT);
        if count == 0 {
            return Ok(0);
        }
        let (mut done, mut result) = (0u32, Ok(0));
        while done < count {
            if let Err(e) = one(attr, u64::from(done)) {
                result = Err(e);
                break;
            }
            done += 1;
        }
        attr.answer(map_batch::COUNT, &done.to_ne_bytes())?;
        result
    }
}

/// How far the walk of a batch got.
struct Walked {
    done: u32,
    position: Option<Vec<u8>>,
    ended: bool,
}

/// Writes entry `n` of a batch to its places in the caller's memory.
fn give_entry(client: &Client, attr: &Attr<'_>, n: u32, key: &[u8], value: &[u8]) -> Result<(), Errno> {
    let place = |base: u64, size: usize| base.wrapping_add(u64::from(n).wrapping_mul(size as u64));
    client.memory.write(place(attr.u64(map_batch::KEYS), key.len()), key)?;
    client.memory.write(place(attr.u64(map_batch::VALUES), value.len()), value)
}

/// Types whose batches go by buckets.
fn is_hash(t: MapType) -> bool {
    matches!(t, MapType::Hash | MapType::PercpuHash | MapType::LruHash | MapType::LruPercpuHash | MapType::HashOfMaps)
}

/// Types whose batches go from key to key.
fn walks_keys(t: MapType) -> bool {
    matches!(t, MapType::Array | MapType::PercpuArray | MapType::ArrayOfMaps | MapType::LpmTrie)
}

impl MapObject {
    /// Puts a program into a prog array. It must be of the type, and of the kind, of those that were there.
    pub fn set_program(&self, index: u32, program: Arc<ProgObject>) -> Result<(), Errno> {
        if program.extends() {
            return Err(Errno::EINVAL);
        }
        let prog_type = program.loaded.prog_type();
        let mut owner = self.owner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if owner.is_some_and(|o| o != prog_type) {
            return Err(Errno::EINVAL);
        }
        *owner = Some(prog_type);
        program.membership().join()?;
        let mut programs = self.programs();
        self.map.set_program(index, Some(program.place.index())).inspect_err(|_| program.membership().leave())?;
        let before = programs.insert(index, program);
        drop(programs);
        if let Some(before) = before {
            before.membership().leave();
        }
        Ok(())
    }

    /// Deletes an element.
    pub fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        if self.map.def().map_type != MapType::ProgArray {
            return self.map.delete(key);
        }
        let index = key.try_into().map_or(u32::MAX, u32::from_ne_bytes);
        let mut programs = self.programs();
        self.map.set_program(index, None)?;
        let before = programs.remove(&index);
        drop(programs);
        if let Some(before) = before {
            before.membership().leave();
        }
        Ok(())
    }
}

/// Puts a perf event into an array of them.
fn put_event(client: &Client, map: &MapObject, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let index = key.try_into().map_or(u32::MAX, u32::from_ne_bytes);
    if index >= map.map.def().max_entries {
        return Err(Errno::E2BIG);
    }
    let fd = value.try_into().map_or(-1, i32::from_ne_bytes);
    // What is open but no event is a bad descriptor to this.
    let Ok(Object::Perf(event)) = client.files.get(fd) else { return Err(Errno::EBADF) };
    map.events.put(&map.map, index, event)
}
