//! The keeper: a thread that holds the enable word of a session, and listens to its doorbell.
//!
//! The enable word is a robust futex: the kernel marks it when the thread that is named in it ends, whatever ends it,
//! so a controller that is killed takes all its probes out of action at once. For that the thread registers a robust
//! list of its own with the one node in the control arena.
//!
//! The doorbell is a futex that producers ring; what waits for events waits for file descriptors. So the keeper sleeps on
//! the doorbell and passes it on to an eventfd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, ptr};

use rustix::event::EventfdFlags;
use rustix::thread::futex::{self, Timespec};
use skep_runtime::session::{Control, SharedHead};

use skep_maps::control::Arena;

/// After a ring the doorbell stays silent for this long, so that a storm of events costs its producers few wake-ups.
const QUIET: Duration = Duration::from_millis(1);
/// How long the bell is waited for before a look at it: a process under a seccomp filter rings it without waking anybody.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// `struct robust_list_head` of the kernel's interface.
#[repr(C)]
struct RobustListHead {
    list: *const u64,
    futex_offset: isize,
    list_op_pending: *const u64,
}

/// The memory that the keeper works on; [`Control`] and [`SharedHead`] stand at offset 0.
struct Ward {
    control: Arc<Arena>,
    shared: Arc<Arena>,
    event: OwnedFd,
    stop: AtomicBool,
}

impl Ward {
    fn enable(&self) -> &AtomicU32 {
        // SAFETY: `Control` stands at offset 0, the field is an atomic, and the memory lives as long as `self`.
        unsafe { &(*self.control.ptr().cast::<Control>()).enable }
    }

    fn doorbell(&self) -> &AtomicU32 {
        // SAFETY: as above, for the shared arena.
        unsafe { &(*self.shared.ptr().cast::<SharedHead>()).doorbell }
    }
}

/// A running keeper. Dropping it disables the session.
pub struct Keeper {
    ward: Arc<Ward>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread; hits are delivered from here on.
    pub fn start(control: Arc<Arena>, shared: Arc<Arena>) -> io::Result<Keeper> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let ward = Arc::new(Ward { control, shared, event, stop: AtomicBool::new(false) });
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("skep-keeper".into()).spawn({
            let ward = ward.clone();
            move || {
                let held = Held::take(&ward);
                let ok = held.is_ok();
                let _ = ready.send(held.as_ref().map(|_| ()).map_err(|e| io::Error::from(e.kind())));
                if ok {
                    listen(&ward);
                }
            }
        })?;
        started.recv().map_err(|_| io::Error::other("the keeper thread ended"))??;
        Ok(Keeper { ward, thread: Some(thread) })
    }

    /// Readable when there may be events; see [`Keeper::hear`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ward.event.as_fd()
    }

    /// Makes [`Keeper::fd`] unreadable until the doorbell rings again. Call it before looking for events.
    pub fn hear(&self) {
        let _ = rustix::io::read(&self.ward.event, &mut [0; 8]);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ward.stop.store(true, Ordering::Release);
        self.ward.enable().store(0, Ordering::Release);
        self.ward.doorbell().store(0, Ordering::Release);
        let _ = futex::wake(self.ward.doorbell(), futex::Flags::empty(), u32::MAX);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The enable word, held by the current thread through its robust list.
struct Held<'a> {
    ward: &'a Ward,
    before: (*mut RobustListHead, usize),
    // Boxed: the kernel keeps its address.
    _head: Box<RobustListHead>,
}

impl<'a> Held<'a> {
    fn take(ward: &'a Ward) -> io::Result<Held<'a>> {
        let control = ward.control.ptr().cast::<Control>();
        // SAFETY: fields of the control arena, whose addresses only are taken.
        let (node, enable) = unsafe { (&raw mut (*control).robust_node, &raw const (*control).enable) };
        let head = Box::new(RobustListHead {
            list: node,
            futex_offset: (enable as isize).wrapping_sub(node as isize),
            list_op_pending: ptr::null(),
        });
        // SAFETY: `robust_node` is written by us alone; as a list it has one node that leads back to the head.
        unsafe { node.write((&raw const head.list) as u64) };
        let mut before = (ptr::null_mut::<RobustListHead>(), 0usize);
        // SAFETY: asks for the list that libc registered for this thread; it is put back in `drop`.
        let got = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut before.0, &raw mut before.1) };
        // SAFETY: the head is boxed, its node is in memory that outlives the thread, and `drop` takes both out again.
        let set = unsafe { libc::syscall(libc::SYS_set_robust_list, &raw const *head, size_of::<RobustListHead>()) };
        if got != 0 || set != 0 {
            return Err(io::Error::last_os_error());
        }
        let held = Held { ward, before, _head: head };
        held.ward.enable().store(rustix::thread::gettid().as_raw_nonzero().get() as u32, Ordering::Release);
        Ok(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.ward.enable().store(0, Ordering::Release);
        // SAFETY: libc's own list for this thread, as it was.
        unsafe { libc::syscall(libc::SYS_set_robust_list, self.before.0, self.before.1) };
    }
}

/// Passes the doorbell on until told to stop.
fn listen(ward: &Ward) {
    let bell = ward.doorbell();
    while !ward.stop.load(Ordering::Acquire) {
        bell.store(1, Ordering::SeqCst);
        // What came before the bell was armed rang nothing: have it looked at.
        let _ = rustix::io::write(&ward.event, &1u64.to_ne_bytes());
        while bell.load(Ordering::SeqCst) == 1 && !ward.stop.load(Ordering::Acquire) {
            let _ = futex::wait(bell, futex::Flags::empty(), 1, Some(&LOOK));
        }
        let _ = rustix::io::write(&ward.event, &1u64.to_ne_bytes());
        if !ward.stop.load(Ordering::Acquire) {
            std::thread::sleep(QUIET);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn arenas() -> (Arc<Arena>, Arc<Arena>) {
        let new = || Arc::new(Arena::new("skep-test", 4096).unwrap());
        (new(), new())
    }

    fn readable(k: &Keeper, ms: i64) -> bool {
        let t = Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
        poll(&mut [PollFd::from_borrowed_fd(k.fd(), PollFlags::IN)], Some(&t)).unwrap() == 1
    }

    #[test]
    fn the_bell_is_heard() {
        let (control, shared) = arenas();
        let keeper = Keeper::start(control, shared).unwrap();
        assert_ne!(keeper.ward.enable().load(Ordering::Acquire), 0);
        for _ in 0..3 {
            while readable(&keeper, 20) {
                keeper.hear();
            }
            assert_eq!(keeper.ward.doorbell().swap(0, Ordering::SeqCst), 1);
            futex::wake(keeper.ward.doorbell(), futex::Flags::empty(), 1).unwrap();
            assert!(readable(&keeper, 500));
        }
        let ward = keeper.ward.clone();
        drop(keeper);
        assert_eq!(ward.enable().load(Ordering::Acquire), 0);
    }

    #[test]
    fn the_kernel_marks_the_word_of_a_killed_controller() {
        let (control, shared) = arenas();
        // SAFETY: the child only starts a keeper and sleeps; it is killed at once.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let _keeper = Keeper::start(control, shared);
            std::thread::sleep(Duration::from_secs(20));
            // SAFETY: leaves the forked copy without running the harness.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: `Control` stands at offset 0.
        let enable = unsafe { &(*control.ptr().cast::<Control>()).enable };
        while enable.load(Ordering::Acquire) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: our own child.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, ptr::null_mut(), 0);
        }
        assert_eq!(enable.load(Ordering::Acquire), skep_runtime::session::OWNER_DIED);
    }
}
