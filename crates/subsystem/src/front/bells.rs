//! Bells: descriptors that become readable when a ring has something to read.
//!
//! Rings are memory, which nobody can wait for, and all producers of a world ring one doorbell. A thread listens to it and
//! passes it on: each ring that somebody waits for has an eventfd. It is written each time there may be something new, so
//! it is to be waited for edge-triggered; its count means nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::keeper::Keeper;

/// The bell of one ring.
pub struct Bell {
    event: OwnedFd,
    unread: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bell").field("event", &self.event).finish_non_exhaustive()
    }
}

impl Bell {
    /// A bell that nobody but its owner rings.
    pub(super) fn new(unread: impl Fn() -> bool + Send + Sync + 'static) -> io::Result<Arc<Bell>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Bell { event, unread: Box::new(unread) }))
    }

    /// Readable when the ring may have got something to read.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// True if there is something to read.
    pub fn unread(&self) -> bool {
        (self.unread)()
    }

    /// Makes the descriptor as readable as the ring is: for who begins to wait.
    pub fn settle(&self) {
        // Nothing written since: not an error.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        self.ring();
    }

    pub(super) fn ring(&self) {
        if self.unread() {
            // A count that is full is readable, which is all it is for.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

type List = Arc<Mutex<Vec<Weak<Bell>>>>;

fn lock(list: &List) -> MutexGuard<'_, Vec<Weak<Bell>>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All bells of a world, and the thread that rings them.
#[derive(Debug)]
pub struct Bells {
    list: List,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Bells {
    /// Starts to listen; nobody else may [hear](Keeper::hear) the same keeper.
    pub fn start(keeper: &Keeper) -> io::Result<Bells> {
        let list = List::default();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let doorbell = keeper.fd().try_clone_to_owned()?;
        let thread = std::thread::Builder::new().name("skep-bells".into()).spawn({
            let (list, stop) = (Arc::clone(&list), Arc::clone(&stop));
            move || listen(&list, &doorbell, &stop)
        })?;
        Ok(Bells { list, stop, thread: Some(thread) })
    }

    /// A new bell, silent once it is dropped; `unread` says whether there is something to read.
    pub fn add(&self, unread: impl Fn() -> bool + Send + Sync + 'static) -> io::Result<Arc<Bell>> {
        let bell = Bell::new(unread)?;
        let mut list = lock(&self.list);
        list.retain(|b| b.strong_count() > 0);
        list.push(Arc::downgrade(&bell));
        Ok(bell)
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        // The thread itself may hold the last ring of a world that has gone.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

fn listen(list: &List, doorbell: &OwnedFd, stop: &OwnedFd) {
    loop {
        let mut fds = [PollFd::new(doorbell, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        if poll(&mut fds, None).is_err_and(|e| e != rustix::io::Errno::INTR) {
            return;
        }
        let [rung, stopped] = fds.each_ref().map(|fd| !fd.revents().is_empty());
        if stopped {
            return;
        }
        if rung {
            let _ = rustix::io::read(doorbell, &mut [0; 8]);
            // Rung without the lock: a bell may be the last to hold its ring.
            let bells: Vec<_> = lock(list).iter().filter_map(Weak::upgrade).collect();
            bells.iter().for_each(|bell| bell.ring());
        }
    }
}
