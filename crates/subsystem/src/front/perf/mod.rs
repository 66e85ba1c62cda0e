//! Perf events: `perf_event_open(2)` and what is done with its descriptors.
//!
//! An event counts hits of a trace event, of its own probe (the kprobe and uprobe PMUs), what programs write to it, or a
//! clock. Its samples go to a ring that its reader maps. A CPU is a vCPU slot.

pub mod attr;
mod event;
mod feed;
mod ioctl;
pub(super) mod open;
mod record;
mod ring;

use std::sync::Arc;

use skep_ebpf::Errno;

pub use attr::PerfAttr;
pub use event::{PerfEvent, Source};
pub(super) use feed::Feed;
pub use record::Occurrence;
pub use ring::Ring;

use super::Subsystem;
use super::client::Client;
use super::object::Object;

const PAGE: u64 = 4096;
const POLLIN: u32 = 1;
const POLLHUP: u32 = 16;

/// The event behind a descriptor.
pub(super) fn by_fd(client: &Client, fd: i32) -> Result<Arc<PerfEvent>, Errno> {
    match client.files.get(fd)? {
        Object::Perf(event) => Ok(event),
        _ => Err(Errno::ENOTTY),
    }
}

/// Whether an event's samples may go to the ring of another.
fn may_redirect(event: &Arc<PerfEvent>, to: &Arc<PerfEvent>) -> Result<(), Errno> {
    let same_task = event.cpu != -1 || event.tid == to.tid;
    let fits = !Arc::ptr_eq(event, to)
        && event.cpu == to.cpu
        && same_task
        && event.attr.clock() == to.attr.clock()
        && event.attr.backward() == to.attr.backward()
        && event.ring().is_none()
        && to.ring().is_some();
    if fits { Ok(()) } else { Err(Errno::EINVAL) }
}

/// A mapping of an event's ring. While it lives the event does, as a mapped file would.
#[derive(Debug)]
pub struct PerfMapping {
    #[expect(dead_code, reason = "held, not looked at")]
    event: Arc<PerfEvent>,
    ring: Arc<Ring>,
}

impl PerfMapping {
    /// The memory to map, from its beginning.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }
}

impl Subsystem {
    /// `mmap(2)` of an event's ring: the memory that the caller is to map, shared.
    pub fn perf_mmap(
        &self,
        client: &Client,
        fd: i32,
        len: u64,
        offset: u64,
        shared: bool,
    ) -> Result<PerfMapping, Errno> {
        let event = by_fd(client, fd)?;
        if event.cpu == -1 && event.attr.inherit() || !shared || offset != 0 || len == 0 {
            return Err(Errno::EINVAL);
        }
        let pages = len.div_ceil(PAGE) - 1;
        if pages != 0 && !pages.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        self.fault(super::faults::FaultPoint::PerfRing)?;
        let ring = event.map(usize::try_from(pages).map_err(|_| Errno::ENOMEM)?)?;
        Ok(PerfMapping { event, ring })
    }

    /// `read(2)`: the count, and what else the event was made to tell. `ENOSPC` if it does not fit.
    pub fn perf_read(&self, client: &Client, fd: i32, room: usize) -> Result<Vec<u8>, Errno> {
        let values = by_fd(client, fd)?.values();
        if room < values.len() { Err(Errno::ENOSPC) } else { Ok(values) }
    }

    /// `poll(2)`: readable once after each wake-up; hung up while there is no ring.
    pub fn perf_poll(&self, client: &Client, fd: i32) -> Result<u32, Errno> {
        let event = by_fd(client, fd)?;
        let woken = event.take_wakeup();
        Ok(match event.ring() {
            None => POLLHUP,
            Some(_) if woken => POLLIN,
            Some(_) => 0,
        })
    }
}
