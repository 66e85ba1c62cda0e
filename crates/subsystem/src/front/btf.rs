//! `BPF_BTF_LOAD` and what goes with it.

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::btf::Btf;

use super::attr::{Attr, Field, btf_fd_by_id, btf_load};
use super::client::{Caps, Client};
use super::faults::FaultPoint;
use super::log::LogBuffer;
use super::object::{BtfObject, Object};
use super::token::TOKEN_FD as TOKEN;
use super::{Command, Subsystem};

/// Largest blob: the kernel's `BTF_MAX_SIZE`.
const MAX_SIZE: u32 = 16 << 20;

/// The types behind a descriptor.
pub(super) fn by_fd(client: &Client, fd: i32) -> Result<Arc<BtfObject>, Errno> {
    match client.files.get(fd)? {
        Object::Btf(btf) => Ok(btf),
        _ => Err(Errno::EINVAL),
    }
}

impl Subsystem {
    pub(super) fn btf_load(&self, client: &Client, attr: &mut Attr<'_>) -> Result<i32, Errno> {
        use btf_load as f;
        attr.ends_at(f::END)?;
        let flags = attr.u32(f::BTF_FLAGS);
        if flags & !TOKEN != 0 {
            return Err(Errno::EINVAL);
        }
        let token = match flags & TOKEN {
            0 => None,
            _ => self.token(client, attr.fd(f::BTF_TOKEN_FD), Command::BtfLoad)?,
        };
        if !self.capable(client, token.as_deref(), Caps::BPF) {
            return Err(Errno::EPERM);
        }
        let size = attr.u32(f::BTF_SIZE);
        if size > MAX_SIZE {
            return Err(Errno::E2BIG);
        }
        let mut log = LogBuffer::new(attr.u32(f::BTF_LOG_LEVEL), attr.u64(f::BTF_LOG_BUF), attr.u32(f::BTF_LOG_SIZE))?;
        let blob = client.bytes(attr.u64(f::BTF), size as usize)?;
        let parsed = Btf::parse(&blob).map_err(|e| {
            log.add(&format!("{e}\n"));
            Errno::EINVAL
        });
        // A blob without types is none.
        let parsed = parsed.and_then(|btf| if btf.len() <= 1 { Err(Errno::EINVAL) } else { Ok(btf) });
        let written = finish_log(client, attr, &log, f::BTF_LOG_TRUE_SIZE);
        let btf = parsed?;
        written?;
        self.fault(FaultPoint::BtfAlloc)?;
        let object = self.btfs.add(|id| BtfObject { id, btf: Arc::new(btf), blob })?;
        self.install(client, Object::Btf(object))
    }

    pub(super) fn btf_fd_by_id(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(btf_fd_by_id::END)?;
        let flags = attr.u32(btf_fd_by_id::OPEN_FLAGS);
        if flags & !TOKEN != 0 {
            return Err(Errno::EINVAL);
        }
        let token = match flags & TOKEN {
            0 => None,
            _ => self.token(client, attr.fd(btf_fd_by_id::FD_BY_ID_TOKEN_FD), Command::BtfGetFdById)?,
        };
        if !self.capable(client, token.as_deref(), Caps::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let btf = self.btfs.get(attr.u32(btf_fd_by_id::ID)).ok_or(Errno::ENOENT)?;
        self.install(client, Object::Btf(btf))
    }
}

/// Gives the log to the caller, and how long it would be whole.
pub(super) fn finish_log(client: &Client, attr: &mut Attr<'_>, log: &LogBuffer, true_size: Field) -> Result<(), Errno> {
    let written = log.write(client);
    if attr.reaches(true_size.0 + 4) {
        attr.answer(true_size, &log.true_size().to_ne_bytes())?;
    }
    written
}
