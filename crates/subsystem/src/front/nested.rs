//! Maps of maps: what an inner map must be like, and putting them in and taking them out.

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, map_flags};

use super::Subsystem;
use super::client::Client;
use super::object::{MapObject, MapTypes, Object};

/// True for the types whose values are maps.
pub(super) fn is_nested(t: MapType) -> bool {
    matches!(t, MapType::ArrayOfMaps | MapType::HashOfMaps)
}

/// What the inner maps of a new map of maps are to be like.
pub(super) struct Inner {
    /// The definition of the map that was named.
    pub def: Arc<MapDef>,
    /// Its types.
    pub types: Option<MapTypes>,
}

/// The map behind a descriptor that a map of maps is to be made for.
pub(super) fn template(client: &Client, fd: i32) -> Result<Inner, Errno> {
    match client.files.get(fd)? {
        // Maps for one program alone cannot be found by others.
        Object::Map(map, _) if map.exclusive.is_some() => Err(Errno::ENOTSUPP),
        Object::Map(map, _) => Ok(Inner { def: Arc::new(map.map.def().clone()), types: map.object().btf.clone() }),
        _ => Err(Errno::EINVAL),
    }
}

impl Subsystem {
    /// True if a map is like those that an outer map was made for.
    fn fits(&self, outer: &MapObject, inner: &MapObject) -> bool {
        let (Some(want), have) = (outer.map.def().inner.as_deref(), inner.map.def()) else { return false };
        // Types count only where the values have something in them that is the kernel's business.
        let same_types = match (&outer.inner_types, &inner.btf) {
            (Some(a), Some(b)) if a.value == b.value && (Arc::ptr_eq(&a.btf, &b.btf) || a.btf.blob == b.btf.blob) => {
                true
            }
            (a, b) => {
                let special = |types: &Option<MapTypes>, def: &MapDef| {
                    let kernel = self.config.kernel_btf.as_deref();
                    types.as_ref().is_some_and(|t| skep_verifier::has_special_fields(def, &t.btf.btf, kernel))
                };
                !special(a, want) && !special(b, have)
            }
        };
        let any_size = want.map_type != MapType::Array || want.flags & map_flags::INNER_MAP != 0;
        want.map_type == have.map_type
            && want.key_size == have.key_size
            && want.value_size == have.value_size
            && want.flags == have.flags
            && (any_size || want.max_entries == have.max_entries)
            && same_types
    }

    /// Puts the map behind a descriptor into a map of maps.
    pub(super) fn put_inner(
        &self,
        client: &Client,
        outer: &MapObject,
        key: &[u8],
        value: &[u8],
        flags: u64,
    ) -> Result<(), Errno> {
        if outer.map.def().map_type == MapType::ArrayOfMaps {
            if flags != 0 {
                return Err(Errno::EINVAL);
            }
            let index = key.try_into().map_or(u32::MAX, u32::from_ne_bytes);
            if index >= outer.map.def().max_entries {
                return Err(Errno::E2BIG);
            }
        }
        let fd = value.try_into().map_or(-1, i32::from_ne_bytes);
        let Object::Map(inner, _) = client.files.get(fd)? else { return Err(Errno::EINVAL) };
        if inner.exclusive.is_some() {
            return Err(Errno::ENOTSUPP);
        }
        if !self.fits(outer, &inner) {
            return Err(Errno::EINVAL);
        }
        let inner = Arc::clone(inner.object());
        let old = {
            let mut maps = outer.inner_maps();
            outer.map.set_inner(key, Some(inner.place.index()), flags)?;
            maps.insert(key.to_vec(), inner)
        };
        self.world.let_go(old);
        Ok(())
    }

    /// Deletes an element of any map.
    pub(super) fn delete_element(&self, map: &MapObject, key: &[u8]) -> Result<(), Errno> {
        if !is_nested(map.map.def().map_type) {
            return map.delete(key);
        }
        let old = {
            let mut maps = map.inner_maps();
            map.map.set_inner(key, None, 0)?;
            maps.remove(key)
        };
        self.world.let_go(old);
        Ok(())
    }
}

/// The number of an inner map, which is what a look-up through `bpf(2)` gives.
pub(super) fn number(outer: &MapObject, key: &[u8]) -> Result<Vec<u8>, Errno> {
    outer.map.lookup(key, 0)?;
    let id = outer.inner_maps().get(key).map(|m| m.id.number());
    id.map(|id| id.to_ne_bytes().to_vec()).ok_or(Errno::ENOENT)
}
