//! Numbers of objects, and what they say of themselves.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType;

use super::Subsystem;
use super::attr::{Attr, enable_stats, fd_by_id, info, next_id as next};
use super::client::{Caps, Client};
use super::ids::Ids;
use super::jited::Jited;
use super::object::{BtfObject, MapObject, Object, ProgObject, StatsSwitch};
use super::token::TokenObject;
use super::xlated;

/// Sizes of the structures in Linux 6.18.
const PROG_INFO: usize = 232;
const MAP_INFO: usize = 104;
const BTF_INFO: usize = 32;
const TOKEN_INFO: usize = 32;
/// Callers may not give more than a page.
const MAX_INFO: u32 = 4096;

/// `BPF_*_GET_NEXT_ID`.
pub(super) fn next_id<T>(client: &Client, attr: &mut Attr<'_>, ids: &Ids<T>) -> Result<i32, Errno> {
    attr.ends_at(next::END)?;
    let start = attr.u32(next::START_ID);
    if start >= i32::MAX as u32 {
        return Err(Errno::EINVAL);
    }
    if !client.caps.has(Caps::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let id = ids.next(start).ok_or(Errno::ENOENT)?;
    attr.answer(next::NEXT_ID, &id.to_ne_bytes())?;
    Ok(0)
}

/// A structure of the user API that is filled in: what the caller gave, cut or padded to this kernel's size.
pub(super) struct Info<const N: usize> {
    bytes: [u8; N],
    given: usize,
    at: u64,
}

impl<const N: usize> Info<N> {
    pub fn take(client: &Client, attr: &Attr<'_>) -> Result<Info<N>, Errno> {
        let (len, at) = (attr.u32(info::INFO_LEN), attr.u64(info::INFO));
        if len > MAX_INFO {
            return Err(Errno::E2BIG);
        }
        let user = client.bytes(at, len as usize)?;
        if user.iter().skip(N).any(|b| *b != 0) {
            return Err(Errno::E2BIG);
        }
        let given = user.len().min(N);
        let mut bytes = [0; N];
        bytes[..given].copy_from_slice(&user[..given]);
        Ok(Info { bytes, given, at })
    }

    pub fn u32(&self, at: usize) -> u32 {
        self.bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
    }

    pub fn u64(&self, at: usize) -> u64 {
        self.bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_ne_bytes(*b))
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(to) = self.bytes.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    }

    pub fn put_u32(&mut self, at: usize, x: u32) {
        self.put(at, &x.to_ne_bytes());
    }

    pub fn put_u64(&mut self, at: usize, x: u64) {
        self.put(at, &x.to_ne_bytes());
    }

    /// A list for which the caller gave room: as many records as fit go to its address, their number to the structure.
    fn list(
        &mut self,
        client: &Client,
        (count_at, list_at): (usize, usize),
        record: usize,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let room = self.u32(count_at) as usize;
        let have = bytes.len() / record.max(1);
        self.put_u32(count_at, have as u32);
        let n = room.min(have);
        if n > 0 {
            client.memory.write(self.u64(list_at), &bytes[..n * record])?;
        }
        Ok(())
    }

    pub fn give(self, client: &Client, attr: &mut Attr<'_>) -> Result<i32, Errno> {
        client.memory.write(self.at, &self.bytes[..self.given])?;
        attr.answer(info::INFO_LEN, &(self.given as u32).to_ne_bytes())?;
        Ok(0)
    }
}

/// `BPF_OBJ_GET_INFO_BY_FD`.
pub(super) fn by_fd(subsystem: &Subsystem, client: &Client, attr: &mut Attr<'_>) -> Result<i32, Errno> {
    attr.ends_at(info::END)?;
    let object = client.files.get(attr.fd(info::BPF_FD)).map_err(|e| match e {
        Errno::EBADF => Errno::EBADFD,
        other => other,
    })?;
    match object {
        Object::Prog(prog) => prog_info(subsystem, client, attr, &prog),
        Object::Map(map, _) => map_info(client, attr, map.object()),
        Object::Btf(btf) => btf_info(client, attr, &btf),
        Object::Link(link) => super::link::info_by_fd(client, attr, &link),
        Object::Token(token) => token_info(client, attr, &token),
        Object::Stats(_) | Object::Perf(_) | Object::TraceFile(_) | Object::Iter(_) | Object::Folder(_) => {
            Err(Errno::EINVAL)
        }
    }
}

fn map_info(client: &Client, attr: &mut Attr<'_>, map: &Arc<MapObject>) -> Result<i32, Errno> {
    let mut i = Info::<MAP_INFO>::take(client, attr)?;
    let def = map.map.def();
    let (digest_at, digest_len) = (i.u64(88), i.u32(96));
    i.bytes = [0; MAP_INFO];
    i.put_u32(0, def.map_type as u32);
    i.put_u32(4, map.id.number());
    i.put_u32(8, def.key_size);
    i.put_u32(12, def.value_size);
    i.put_u32(16, def.max_entries);
    i.put_u32(20, def.flags);
    i.put(24, &name_bytes(&map.name));
    if let Some(types) = &map.btf {
        i.put_u32(64, types.btf.id.number());
        i.put_u32(68, types.key);
        i.put_u32(72, types.value);
    }
    i.put_u64(80, def.extra);
    match (digest_at, digest_len) {
        (0, 0) => {}
        (at, 32) if at != 0 && def.map_type == MapType::Array => {
            if !map.map.is_frozen() {
                return Err(Errno::EPERM);
            }
            client.memory.write(at, &digest(map))?;
        }
        _ => return Err(Errno::EINVAL),
    }
    i.put_u64(88, digest_at);
    i.put_u32(96, digest_len);
    i.give(client, attr)
}

/// The digest of an array's values, each padded to eight bytes.
fn digest(map: &MapObject) -> [u8; 32] {
    let mut digest = Sha256::new();
    for index in 0..map.map.def().max_entries {
        let mut value = map.map.copy(&index.to_ne_bytes()).unwrap_or_default();
        value.resize(value.len().next_multiple_of(8), 0);
        digest.update(&value);
    }
    digest.finalize().into()
}

fn token_info(client: &Client, attr: &mut Attr<'_>, token: &TokenObject) -> Result<i32, Errno> {
    let mut i = Info::<TOKEN_INFO>::take(client, attr)?;
    for (n, word) in token.rights.words().into_iter().enumerate() {
        i.put_u64(n * 8, word);
    }
    i.give(client, attr)
}

fn btf_info(client: &Client, attr: &mut Attr<'_>, btf: &Arc<BtfObject>) -> Result<i32, Errno> {
    let mut i = Info::<BTF_INFO>::take(client, attr)?;
    let (at, room) = (i.u64(0), i.u32(8) as usize);
    let (name_at, name_len) = (i.u64(16), i.u32(24));
    if (name_at == 0) != (name_len == 0) {
        return Err(Errno::EINVAL);
    }
    let n = room.min(btf.blob.len());
    client.memory.write(at, &btf.blob[..n])?;
    if name_at != 0 {
        // Types that were loaded have no name.
        client.memory.write(name_at, &[0])?;
    }
    i.put_u32(8, btf.blob.len() as u32);
    i.put_u32(12, btf.id.number());
    i.put_u32(24, 0);
    i.put_u32(28, 0);
    i.give(client, attr)
}

fn prog_info(
    subsystem: &Subsystem,
    client: &Client,
    attr: &mut Attr<'_>,
    prog: &Arc<ProgObject>,
) -> Result<i32, Errno> {
    let mut i = Info::<PROG_INFO>::take(client, attr)?;
    let program = prog.verified.program();
    i.put_u32(0, program.prog_type as u32);
    i.put_u32(4, prog.id.number());
    i.put(8, &prog.tag);
    i.put_u64(40, prog.load_time);
    i.put_u32(48, prog.uid);
    let ids: Vec<u8> = prog.maps().iter().flat_map(|m| m.id.number().to_ne_bytes()).collect();
    i.list(client, (52, 56), 4, &ids)?;
    // Who wants records says how long he takes them to be.
    for (count_at, size_at, size) in [(144, 132, 8), (148, 172, 16), (168, 176, 8)] {
        if (i.u32(count_at) != 0 || i.u32(size_at) != 0) && i.u32(size_at) != size {
            return Err(Errno::EINVAL);
        }
        i.put_u32(size_at, size);
    }
    i.put(64, &name_bytes(&prog.name));
    i.put_u32(80, prog.offloaded.as_ref().map_or(0, |o| o.ifindex));
    i.put_u32(84, u32::from(program.gpl_compatible()));
    i.put_u64(88, 0);
    i.put_u64(96, 0);
    let code = xlated::instructions(prog);
    let (ns, runs) = prog.run_time();
    i.put_u64(192, ns);
    i.put_u64(200, runs);
    i.put_u64(208, prog.runs.misses());
    i.put_u32(216, u32::try_from(prog.verified.stats().insns_processed).unwrap_or(u32::MAX));
    i.put_u32(220, 0);
    i.put_u32(224, program.attach_btf_id);
    i.put_u32(128, prog.btf.as_ref().map_or(0, |b| b.id.number()));
    if !client.caps.has(Caps::BPF) {
        // Code and addresses are not for everybody.
        for at in [16, 20, 104, 108, 144, 148, 168, 180] {
            i.put_u32(at, 0);
        }
        return i.give(client, attr);
    }
    let room = i.u32(20) as usize;
    i.put_u32(20, code.len() as u32);
    if room > 0 {
        client.memory.write(i.u64(32), &code[..room.min(code.len())])?;
    }
    let jited = Jited::of(subsystem, prog);
    i.list(client, (16, 24), 1, jited.code)?;
    i.list(client, (104, 112), 8, &jited.symbols)?;
    i.list(client, (108, 120), 4, &jited.lengths)?;
    i.list(client, (168, 160), 8, &jited.lines)?;
    i.list(client, (144, 136), 8, &xlated::func_info(prog))?;
    i.list(client, (148, 152), 16, &xlated::line_info(prog))?;
    i.list(client, (180, 184), 8, &prog.tag)?;
    i.give(client, attr)
}

/// A name as it was given: Latin-1.
fn name_bytes(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.chars()) {
        *to = from as u32 as u8;
    }
    bytes
}

impl Subsystem {
    pub(super) fn prog_fd_by_id(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(fd_by_id::END)?;
        if !client.caps.has(Caps::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let prog = self.progs.get(attr.u32(fd_by_id::ID)).ok_or(Errno::ENOENT)?;
        self.install(client, Object::Prog(prog))
    }

    pub(super) fn enable_stats(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(enable_stats::END)?;
        if !client.caps.has(Caps::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        // Run time is the one kind of statistics.
        if attr.u32(enable_stats::TYPE) != 0 {
            return Err(Errno::EINVAL);
        }
        let switch = StatsSwitch::new(&self.stats_users, &self.arounds)?;
        self.install(client, Object::Stats(Arc::new(switch)))
    }
}
