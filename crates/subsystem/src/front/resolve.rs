//! What a program that is to be loaded refers to: maps by descriptors, and records about its functions and lines.

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::insn::{Insn, pseudo};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;

use super::attr::{Attr, Field};
use super::client::Client;
use super::log::LogBuffer;
use super::object::{BtfObject, MapObject, Object};

/// Most maps of a program.
const MAX_MAPS: usize = 64;
/// Largest record of `func_info` and `line_info` that is taken, in bytes.
const MAX_RECORD: u32 = 252;

/// Records of a table in the caller's memory.
pub(super) struct Records {
    pub size: u32,
    pub bytes: Vec<u8>,
}

impl Records {
    pub fn read(client: &Client, at: u64, count: u32, size: u32, known: u32) -> Result<Records, Errno> {
        if count == 0 {
            return Ok(Records { size, bytes: Vec::new() });
        }
        if size < known || size > MAX_RECORD || !size.is_multiple_of(4) || count > i32::MAX as u32 / size {
            return Err(Errno::EINVAL);
        }
        let bytes = client.bytes(at, (count * size) as usize)?;
        let unknown = |r: &[u8]| r.iter().skip(known as usize).any(|b| *b != 0);
        if bytes.chunks_exact(size as usize).any(unknown) {
            return Err(Errno::E2BIG);
        }
        Ok(Records { size, bytes })
    }

    /// The words of each record.
    pub fn words<const N: usize>(&self) -> impl Iterator<Item = [u32; N]> + '_ {
        self.bytes.chunks_exact((self.size as usize).max(1)).map(|r| {
            std::array::from_fn(|n| r.get(n * 4..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b)))
        })
    }
}

/// The records that three fields of the attributes tell of.
pub(super) fn records(
    client: &Client,
    attr: &Attr<'_>,
    at: Field,
    count: Field,
    size: Field,
    known: u32,
) -> Result<Records, Errno> {
    Records::read(client, attr.u64(at), attr.u32(count), attr.u32(size), known)
}

/// `fd_array`: descriptors that instructions name by their index.
pub(super) struct FdArray {
    pub at: u64,
}

impl FdArray {
    /// The maps among the first `count` descriptors, each of which must be a map or types.
    pub fn bound(&self, client: &Client, count: u32) -> Result<Vec<Arc<MapObject>>, Errno> {
        let mut maps = Vec::new();
        if count >= u32::MAX / 4 {
            return Err(Errno::EINVAL);
        }
        for n in 0..u64::from(count) {
            let at = self.at.checked_add(n * 4).ok_or(Errno::EFAULT)?;
            let bytes = client.bytes(at, 4)?;
            match client.files.get(bytes.first_chunk().map_or(-1, |b| i32::from_ne_bytes(*b)))? {
                Object::Map(map, _) => maps.push(Arc::clone(map.object())),
                Object::Btf(_) => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(maps)
    }

    fn get(&self, client: &Client, index: i32) -> Result<i32, Errno> {
        if self.at == 0 {
            return Err(Errno::EPROTO);
        }
        let index = u64::try_from(index).map_err(|_| Errno::EFAULT)?;
        let bytes = client.bytes(self.at.checked_add(index * 4).ok_or(Errno::EFAULT)?, 4)?;
        Ok(bytes.first_chunk().map_or(-1, |b| i32::from_ne_bytes(*b)))
    }
}

/// Has instructions name maps by their index in a list, which is returned.
pub(super) fn resolve_maps(
    client: &Client,
    insns: &mut [Insn],
    fds: &FdArray,
    modern: bool,
    log: &mut LogBuffer,
) -> Result<Vec<Arc<MapObject>>, Errno> {
    let mut maps: Vec<Arc<MapObject>> = Vec::new();
    let mut at = 0;
    while at < insns.len() {
        let insn = insns[at];
        if !insn.is_ld_imm64() {
            at += 1;
            continue;
        }
        let (fd, value) = match insn.src() {
            pseudo::MAP_FD => (insn.imm, false),
            // Other ways to name a map came later.
            _ if insn.src() != 0 && !modern => return Err(Errno::EINVAL),
            pseudo::MAP_VALUE => (insn.imm, true),
            pseudo::MAP_IDX => (fds.get(client, insn.imm)?, false),
            pseudo::MAP_IDX_VALUE => (fds.get(client, insn.imm)?, true),
            _ => {
                at += 2;
                continue;
            }
        };
        let object = client.files.get(fd).inspect_err(|_| {
            log.add(&format!("instruction {at}: descriptor {fd} is not open, or no map\n"));
        })?;
        let Object::Map(map, _) = object else { return Err(Errno::EINVAL) };
        let index = maps.iter().position(|m| Arc::ptr_eq(m, map.object())).unwrap_or_else(|| {
            maps.push(Arc::clone(map.object()));
            maps.len() - 1
        });
        if index >= MAX_MAPS {
            return Err(Errno::E2BIG);
        }
        let kind = if value { pseudo::MAP_IDX_VALUE } else { pseudo::MAP_IDX };
        insns[at] = Insn::new(insn.code, insn.dst(), kind, insn.off, index as i32);
        at += 2;
    }
    Ok(maps)
}

/// The map as the verifier is to see it. Types that are not the program's own say nothing to it.
pub(super) fn definition(map: &Arc<MapObject>, types: Option<&Arc<BtfObject>>) -> Result<MapDef, Errno> {
    let mut def = map.map.def().clone();
    let own = match (&map.btf, types) {
        (Some(m), Some(p)) => Arc::ptr_eq(&m.btf, p) || m.btf.blob == p.blob,
        _ => false,
    };
    if !own {
        (def.key_type_id, def.value_type_id) = (0, 0);
    }
    if let Some(inner) = &mut def.inner {
        let own = match (&map.inner_types, types) {
            (Some(m), Some(p)) => Arc::ptr_eq(&m.btf, p) || m.btf.blob == p.blob,
            _ => false,
        };
        if !own {
            let inner = Arc::make_mut(inner);
            (inner.key_type_id, inner.value_type_id) = (0, 0);
        }
    }
    if map.map.is_frozen() && !map.map.target_writable() {
        def.frozen = true;
        if def.map_type == MapType::Array && def.max_entries == 1 {
            def.initial = map.map.lookup(&0u32.to_ne_bytes(), 0).ok();
        }
    }
    Ok(def)
}
