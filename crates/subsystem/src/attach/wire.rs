//! Messages between controller and injector: JSON with descriptors, in packets.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::AttachError;
use super::request::{Attached, InjectorEvent, ProbeSpec};

/// Bytes of a message in one packet; the kernel takes some 200 KiB.
const CHUNK: usize = 32 << 10;
/// Descriptors in one packet; the kernel takes 253.
const FDS: usize = 128;

/// A session and probes, as sent; the descriptors are: control, shared, the maps, the agent if there is one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The process.
    pub pid: u32,
    /// Its index.
    pub proc_index: u32,
    /// See [`AttachRequest`](super::AttachRequest).
    pub change: u64,
    /// Slots.
    pub nslots: u32,
    /// Bytes of the control arena.
    pub control: u64,
    /// Bytes of the shared arena.
    pub shared: u64,
    /// The maps.
    pub maps: Vec<MapPart>,
    /// The probes.
    pub probes: Vec<ProbeSpec>,
    /// Bytes of an agent to use.
    pub agent: Option<u64>,
    /// See [`AttachRequest`](super::AttachRequest).
    pub children: bool,
    /// A file to map a page of comes last.
    pub marker: bool,
}

/// A map's memory: a part of the memfd that comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapPart {
    /// Where it begins.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Mapped writable?
    pub writable: bool,
    /// Offset of its header in the control arena.
    pub header: u64,
    /// See [`MapMemory`](super::MapMemory).
    pub absent: bool,
}

/// To the injector.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Attach to a running process.
    Attach(Job),
    /// Have a process that is attached to carry these probes in place of those it has.
    Change(Job),
    /// Attach to what a process will execute.
    Follow(Job),
    /// Let a process run.
    Go(u32),
    /// Take the probes out of a process.
    Detach(u32),
}

/// From the injector.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::Attach`] and [`Request::Change`].
    Attached(Result<Attached, AttachError>),
    /// To any other.
    Done(Result<(), AttachError>),
    /// On its own.
    Event(InjectorEvent),
}

/// Sends a message.
pub fn send(socket: BorrowedFd, message: &impl Serialize, fds: &[BorrowedFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut chunks = bytes.chunks(CHUNK).peekable();
    let mut groups = fds.chunks(FDS).peekable();
    loop {
        let chunk = chunks.next().unwrap_or_default();
        let group = groups.next().unwrap_or_default();
        let more = [u8::from(chunks.peek().is_some() || groups.peek().is_some())];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !group.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(group));
        }
        let packet = [IoSlice::new(&more), IoSlice::new(chunk)];
        rustix::io::retry_on_intr(|| sendmsg(socket, &packet, &mut control, SendFlags::NOSIGNAL))?;
        if more == [0] {
            return Ok(());
        }
    }
}

/// Receives a message; `None` if the other side has closed.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = Vec::new();
    let mut fds = Vec::new();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut more = [0];
        let mut chunk = vec![0; CHUNK];
        let mut packet = [IoSliceMut::new(&mut more), IoSliceMut::new(&mut chunk)];
        let got =
            rustix::io::retry_on_intr(|| recvmsg(socket, &mut packet, &mut control, RecvFlags::CMSG_CLOEXEC))?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        let Some(len) = got.checked_sub(1) else { return Ok(None) };
        bytes.extend_from_slice(chunk.get(..len).unwrap_or_default());
        if more == [0] {
            return Ok(Some((serde_json::from_slice(&bytes)?, fds)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::request::Registers;
    use super::*;
    use crate::attach::request::{ProbeKind, ProbeTarget};

    #[test]
    fn long_messages_with_many_descriptors() {
        let (a, b) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let target = ProbeTarget::FileOffset { module: "m".repeat(100), offset: 7 };
        let probes: Vec<ProbeSpec> = (0..700)
            .map(|link| ProbeSpec { link, kind: ProbeKind::Return, target: target.clone(), registers: Registers::ALL })
            .collect();
        let part = MapPart { offset: 4096, size: 1, writable: true, header: 2, absent: false };
        let request = Request::Attach(Job {
            pid: 1,
            proc_index: 2,
            change: 5,
            nslots: 3,
            control: 4,
            shared: 5,
            maps: vec![part],
            probes: probes.clone(),
            agent: None,
            children: false,
            marker: false,
        });
        let file = std::fs::File::open("/dev/null").unwrap();
        let fds = vec![file.as_fd(); 300];
        let sender = std::thread::scope(|scope| {
            let sent = scope.spawn(|| send(a.as_fd(), &request, &fds));
            let (received, got) = receive::<Request>(b.as_fd()).unwrap().unwrap();
            assert_eq!(got.len(), 300);
            match received {
                Request::Attach(job) => assert_eq!((job.probes, job.maps), (probes, vec![part])),
                other => panic!("{other:?}"),
            }
            sent.join()
        });
        sender.unwrap().unwrap();
        drop(a);
        assert!(receive::<Request>(b.as_fd()).unwrap().is_none());
    }
}
