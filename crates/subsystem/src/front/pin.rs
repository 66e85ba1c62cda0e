//! Pins: objects held by a path, without a file system.
//!
//! The tree begins at `/sys/fs/bpf`, as loaders expect it. Folders are made as they are named.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_ebpf::Errno;
use skep_ebpf::uapi::map_flags;

use super::Subsystem;
use super::attr::{Attr, obj};
use super::client::Client;
use super::link::LinkKind;
use super::object::{MapAccess, Object};
use super::vfs::Node;

/// Longest path, with its end.
const PATH_MAX: usize = 4096;
/// A path that is relative to a descriptor (`BPF_F_PATH_FD`).
const PATH_FD: u32 = 1 << 14;
/// Where the tree hangs.
const ROOT: &str = "/sys/fs/bpf/";
pub(super) const TREE: &str = "/sys/fs/bpf";

/// Everything that is pinned.
#[derive(Debug, Default)]
pub struct Pins(Mutex<BTreeMap<String, Object>>);

impl Pins {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a pin away, as `unlink(2)` does; false if there is none.
    pub fn remove(&self, path: &str) -> bool {
        let Some(path) = normal(path) else { return false };
        // The object goes without the lock.
        let removed = self.lock().remove(&path);
        removed.is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }
}

/// The path without doubled slashes and `.`; `None` if it is not in the tree or goes upwards.
fn normal(path: &str) -> Option<String> {
    let inside = path.strip_prefix(ROOT)?;
    let mut parts = Vec::new();
    for part in inside.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            // As in bpffs, names with dots are kept for the kernel's own files.
            _ => parts.push(part),
        }
    }
    if parts.is_empty() { None } else { Some(format!("{ROOT}{}", parts.join("/"))) }
}

impl Subsystem {
    fn path(&self, client: &Client, attr: &Attr<'_>) -> Result<String, Errno> {
        let path = client.string(attr.u64(obj::PATHNAME), PATH_MAX)?;
        let path = String::from_utf8(path).map_err(|_| Errno::ENOENT)?;
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::EINVAL);
        }
        Ok(path)
    }

    pub(super) fn obj_pin(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(obj::END)?;
        let flags = attr.u32(obj::FILE_FLAGS);
        if flags & !PATH_FD != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & PATH_FD != 0 || attr.fd(obj::PATH_FD) != 0 {
            return Err(Errno::EINVAL);
        }
        let object = client.files.get(attr.fd(obj::BPF_FD)).map_err(|_| Errno::EINVAL)?;
        if !matches!(object, Object::Map(..) | Object::Prog(_) | Object::Link(_)) {
            return Err(Errno::EINVAL);
        }
        let path = self.path(client, attr)?;
        // Elsewhere there is no file system of this kind.
        let path = normal(&path).ok_or(Errno::EPERM)?;
        if path.rsplit('/').next().is_some_and(|name| name.contains('.')) {
            return Err(Errno::EPERM);
        }
        let mut pins = self.pins.lock();
        if pins.contains_key(&path) {
            return Err(Errno::EEXIST);
        }
        // A pin is not a folder.
        let under_a_pin = path.match_indices('/').any(|(at, _)| pins.contains_key(&path[..at]));
        if under_a_pin {
            return Err(Errno::ENOENT);
        }
        pins.insert(path, object);
        Ok(0)
    }

    pub(super) fn obj_get(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(obj::END)?;
        let both = map_flags::RDONLY | map_flags::WRONLY;
        let flags = attr.u32(obj::FILE_FLAGS);
        if attr.fd(obj::BPF_FD) != 0 || flags & !(both | PATH_FD) != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & PATH_FD != 0 || attr.fd(obj::PATH_FD) != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & both == both {
            return Err(Errno::EINVAL);
        }
        let path = self.path(client, attr)?;
        let path = normal(&path).ok_or(if path.starts_with(ROOT) { Errno::ENOENT } else { Errno::EACCES })?;
        let object = self.pins.lock().get(&path).cloned().ok_or(Errno::ENOENT)?;
        let object = match object {
            Object::Map(map, _) => Object::Map(map, MapAccess::from_flags(flags)),
            Object::Prog(_) | Object::Link(_) if flags & both != 0 => return Err(Errno::EINVAL),
            other => other,
        };
        self.install(client, object)
    }

    /// Opens a pin as a file, which can be done with iterators alone: the descriptor reads it.
    pub fn open_pin(&self, client: &Client, path: &str) -> Result<i32, Errno> {
        let path = normal(path).ok_or(Errno::ENOENT)?;
        let object = self.pins.lock().get(&path).cloned().ok_or(Errno::ENOENT)?;
        match object {
            Object::Link(link) => match &link.kind {
                LinkKind::Iter(iter) => self.open_iter(client, &iter.target, link.prog()),
                _ => Err(Errno::EIO),
            },
            _ => Err(Errno::EIO),
        }
    }

    /// A descriptor of a folder of the tree of pins, from which tokens can be made.
    pub fn open_folder(&self, client: &Client, path: &str) -> Result<i32, Errno> {
        match self.node(path) {
            Some(Ok(Node::Folder)) => {
                let path = path.trim_end_matches('/');
                self.install(client, Object::Folder(path.into()))
            }
            Some(Ok(_)) => Err(Errno::ENOTDIR),
            Some(Err(e)) => Err(e),
            None => Err(Errno::ENOENT),
        }
    }

    /// Takes a pin away, as `unlink(2)` of its path would; false if nothing is pinned there.
    pub fn unpin(&self, path: &str) -> bool {
        self.pins.remove(path)
    }

    /// The paths of all pins, sorted.
    pub fn pinned(&self) -> Vec<String> {
        self.pins.lock().keys().cloned().collect()
    }

    /// How many pins there are.
    pub fn pin_count(&self) -> usize {
        self.pins.len()
    }
}
