//! Iterators over the subsystem's own objects: links that hold a program and what it is called for, and descriptors that
//! are read.

mod read;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_ebpf::Errno;
use skep_ebpf::uapi::{MapType, prog_flags};

pub use read::IterFile;

use super::Subsystem;
use super::attr::{Attr, iter_create, link_create};
use super::client::Client;
use super::faults::FaultPoint;
use super::link::{LinkKind, by_fd};
use super::object::{MapUser, Object, ProgObject};
use super::shape;

/// Bytes of `union bpf_iter_link_info`, and of a page.
const INFO: usize = 16;
const PAGE: u32 = 4096;

/// What is iterated over.
#[derive(Clone, Debug)]
pub enum Target {
    /// All maps.
    Maps,
    /// All programs.
    Progs,
    /// All links.
    Links,
    /// The elements of a map.
    Elements(MapUser),
}

impl Target {
    /// What the kernel calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Target::Maps => "bpf_map",
            Target::Progs => "bpf_prog",
            Target::Links => "bpf_link",
            Target::Elements(_) => "bpf_map_elem",
        }
    }
}

/// What a link of an iterator is made of, besides its program.
#[derive(Debug)]
pub struct IterLink {
    /// What it goes over.
    pub target: Target,
}

impl Subsystem {
    /// `BPF_LINK_CREATE` of an iterator.
    pub(super) fn iter_link(&self, client: &Client, attr: &Attr<'_>, prog: &Arc<ProgObject>) -> Result<i32, Errno> {
        use link_create as f;
        if attr.u32(f::TARGET_FD) != 0 || attr.u32(f::FLAGS) != 0 {
            return Err(Errno::EINVAL);
        }
        let (at, len) = (attr.u64(f::ITER_INFO), attr.u32(f::ITER_INFO_LEN));
        if (at == 0) != (len == 0) {
            return Err(Errno::EINVAL);
        }
        let mut info = [0u8; INFO];
        if at != 0 {
            if len > PAGE {
                return Err(Errno::E2BIG);
            }
            let given = client.bytes(at, len as usize)?;
            if given.iter().skip(INFO).any(|b| *b != 0) {
                return Err(Errno::E2BIG);
            }
            info.iter_mut().zip(given).for_each(|(to, from)| *to = from);
        }
        let name = shape::hook(self.config.kernel_btf.as_deref(), prog, "bpf_iter_").ok_or(Errno::ENOENT)?;
        // None of these may be called by a program that sleeps.
        if prog.verified.program().flags & prog_flags::SLEEPABLE != 0 {
            return Err(Errno::EINVAL);
        }
        self.fault(FaultPoint::LinkAlloc)?;
        let target = match name {
            "bpf_map" => Target::Maps,
            "bpf_prog" => Target::Progs,
            "bpf_link" => Target::Links,
            "bpf_map_elem" => Target::Elements(elements(client, prog, &info)?),
            _ => return Err(Errno::ENOENT),
        };
        self.new_link(client, prog, LinkKind::Iter(IterLink { target }))
    }

    /// `BPF_ITER_CREATE`.
    pub(super) fn iter_create(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(iter_create::END)?;
        if attr.u32(iter_create::FLAGS) != 0 {
            return Err(Errno::EINVAL);
        }
        let link = by_fd(client, attr.fd(iter_create::LINK_FD))?;
        let LinkKind::Iter(iter) = &link.kind else { return Err(Errno::EINVAL) };
        self.open_iter(client, &iter.target, link.prog())
    }

    /// A new descriptor that reads an iterator from its beginning.
    pub(super) fn open_iter(&self, client: &Client, target: &Target, prog: Arc<ProgObject>) -> Result<i32, Errno> {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        self.install(client, Object::Iter(Arc::new(IterFile::new(target.clone(), prog, session))))
    }

    /// `read(2)` of an iterator: how many bytes were written to the caller's address.
    pub fn iter_read(&self, client: &Client, fd: i32, to: u64, len: u64) -> Result<i32, Errno> {
        let Object::Iter(file) = client.files.get(fd)? else { return Err(Errno::EINVAL) };
        file.read(self, client, to, usize::try_from(len).unwrap_or(usize::MAX))
    }
}

/// The map whose elements are to be gone over. What the program accesses of keys and values must be there.
fn elements(client: &Client, prog: &ProgObject, info: &[u8; INFO]) -> Result<MapUser, Errno> {
    let fd = info.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
    if fd == 0 {
        return Err(Errno::EBADF);
    }
    let Object::Map(map, _) = client.files.get(fd)? else { return Err(Errno::EINVAL) };
    let def = map.map.def();
    let known = matches!(
        def.map_type,
        MapType::Array
            | MapType::PercpuArray
            | MapType::Hash
            | MapType::LruHash
            | MapType::PercpuHash
            | MapType::LruPercpuHash
    );
    if !known {
        return Err(Errno::EINVAL);
    }
    let [key, value] = prog.verified.buffers();
    if key > def.key_size || value as usize > map.map.value_size() {
        return Err(Errno::EACCES);
    }
    Ok(map)
}
