//! `poll(2)` of descriptors of which some are the subsystem's: those are as readable as their rings are, at any moment, and
//! their bells are what is slept on.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType;

use super::bells::Bell;
use super::object::Object;
use super::route::{Answer, Router};

/// Bytes of a `struct pollfd`.
const ENTRY: usize = 8;
/// More descriptors than a process has by default are not looked at.
const MOST: u64 = 1 << 16;
const READABLE: i16 = libc::POLLIN | libc::POLLRDNORM;
/// Told whether asked for or not.
const ALWAYS: i16 = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;

/// One of the caller's entries.
struct Entry {
    fd: i32,
    events: i16,
    /// The object, if it is one of ours, and its bell.
    ours: Option<(Object, Option<Arc<Bell>>)>,
    /// What is polled in its place.
    polled: Option<OwnedFd>,
}

/// What can be told of an object now.
fn ready(object: &Object, bell: Option<&Arc<Bell>>) -> i16 {
    match object {
        Object::Map(map, _) if map.map.def().map_type == MapType::Ringbuf => {
            if bell.is_some_and(|b| b.unread()) {
                READABLE
            } else {
                0
            }
        }
        // Nobody can wait for other maps.
        Object::Map(..) => libc::POLLERR,
        Object::Perf(event) => match (event.take_wakeup(), event.ring()) {
            (_, None) => libc::POLLHUP,
            (true, _) => READABLE,
            (false, _) => 0,
        },
        _ => READABLE | libc::POLLOUT | libc::POLLWRNORM,
    }
}

fn halfword(bytes: &[u8], at: usize) -> i16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| i16::from_ne_bytes(*b))
}

impl Router {
    /// `poll(2)`: milliseconds, for ever if negative.
    pub(super) fn poll(&self, at: u64, count: u64, timeout: i32) -> Option<Answer> {
        let timeout = u64::try_from(timeout).ok().map(Duration::from_millis);
        self.poll_for(at, count, timeout, None)
    }

    /// `ppoll(2)`.
    pub(super) fn ppoll(&self, at: u64, count: u64, timeout: u64, (mask, size): (u64, u64)) -> Option<Answer> {
        let word = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().map(|b| i64::from_ne_bytes(*b));
        // What the kernel would refuse is for the kernel.
        let timeout = match timeout {
            0 => None,
            at => {
                let bytes = self.client.bytes(at, 16).ok()?;
                let (seconds, nanos) = (u64::try_from(word(&bytes, 0)?).ok()?, u32::try_from(word(&bytes, 8)?).ok()?);
                (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos)).map(Some)?
            }
        };
        let mask = match (mask, size) {
            (0, _) => None,
            (at, 8) => Some(word(&self.client.bytes(at, 8).ok()?, 0)?.cast_unsigned()),
            _ => return None,
        };
        self.poll_for(at, count, timeout, mask)
    }

    fn poll_for(&self, at: u64, count: u64, timeout: Option<Duration>, mask: Option<u64>) -> Option<Answer> {
        if count == 0 || count > MOST {
            return None;
        }
        let bytes = self.client.bytes(at, count as usize * ENTRY).ok()?;
        let entry = |bytes: &[u8]| {
            let fd = bytes.first_chunk().map_or(-1, |b| i32::from_ne_bytes(*b));
            let ours = u64::try_from(fd).ok().and_then(|fd| self.object(fd)).map(|object| {
                let bell = self.subsystem.bell(&object).ok().flatten();
                (object, bell)
            });
            Entry { fd, events: halfword(bytes, 4), ours, polled: None }
        };
        let mut entries: Vec<Entry> = bytes.chunks_exact(ENTRY).map(entry).collect();
        if !entries.iter().any(|e| e.ours.is_some()) {
            return None;
        }
        // Duplicates: what the caller closes meanwhile must not become another file.
        for entry in entries.iter_mut().filter(|e| e.ours.is_none()) {
            entry.polled = self.handed.process().take(entry.fd).ok();
        }
        Some(self.wait_on(at, bytes, &entries, timeout, mask))
    }

    fn wait_on(
        &self,
        at: u64,
        mut bytes: Vec<u8>,
        entries: &[Entry],
        timeout: Option<Duration>,
        mask: Option<u64>,
    ) -> Answer {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            let mut told: Vec<i16> = entries.iter().map(Entry::told).collect();
            let mut polls: Vec<libc::pollfd> = entries.iter().map(Entry::pollfd).collect();
            let left = match (told.iter().any(|t| *t != 0), deadline) {
                (true, _) => Some(Duration::ZERO),
                (false, Some(end)) => Some(end.saturating_duration_since(Instant::now())),
                (false, None) => None,
            };
            let woken = sleep(&mut polls, left, mask)?;
            for ((told, entry), poll) in told.iter_mut().zip(entries).zip(&polls) {
                *told |= if entry.ours.is_some() { entry.told() } else { poll.revents };
            }
            let count = told.iter().filter(|t| **t != 0).count();
            // A bell may ring for what another reader has taken meanwhile.
            if count != 0 || !woken && left.is_some() {
                for (told, place) in told.iter().zip(bytes.chunks_exact_mut(ENTRY)) {
                    place.iter_mut().skip(6).zip(told.to_ne_bytes()).for_each(|(to, from)| *to = from);
                }
                self.client.memory.write(at, &bytes)?;
                return Ok(count as i64);
            }
        }
    }
}

impl Entry {
    /// What of it can be told now, if it is ours. The bell is as readable then as the ring is.
    fn told(&self) -> i16 {
        let Some((object, bell)) = &self.ours else { return 0 };
        if let Some(bell) = bell {
            bell.settle();
        }
        ready(object, bell.as_ref()) & (self.events | ALWAYS)
    }

    fn pollfd(&self) -> libc::pollfd {
        match &self.ours {
            Some((_, Some(bell))) => libc::pollfd { fd: bell.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 },
            Some((_, None)) => libc::pollfd { fd: -1, events: 0, revents: 0 },
            // One that is not open stays what it is, for the kernel to say so.
            None => {
                let fd = self.polled.as_ref().map_or(self.fd, AsRawFd::as_raw_fd);
                libc::pollfd { fd, events: self.events, revents: 0 }
            }
        }
    }
}

/// Sleeps until something happens: false at the end of the time.
fn sleep(polls: &mut [libc::pollfd], left: Option<Duration>, mask: Option<u64>) -> Result<bool, Errno> {
    let left = left
        .map(|left| libc::timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) });
    let time = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let signals = mask.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the entries are as many as told; time and mask live until the call returns.
    let n = unsafe { libc::syscall(libc::SYS_ppoll, polls.as_mut_ptr(), polls.len(), time, signals, 8usize) };
    match n {
        -1 => Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))),
        n => Ok(n > 0),
    }
}
