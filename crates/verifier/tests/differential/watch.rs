//! Interrupts the kernel where it takes too long over a program.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(2);

/// What each worker is at: its thread, and since when it waits for the kernel (in milliseconds, 0 if it does not).
#[derive(Default)]
struct Slot {
    thread: AtomicI32,
    since: AtomicU64,
}

/// Watches the workers.
pub struct Watch {
    slots: Arc<Vec<Slot>>,
    began: Instant,
}

/// One worker as the watch knows it.
pub struct Watched {
    slots: Arc<Vec<Slot>>,
    worker: usize,
    began: Instant,
}

extern "C" fn ignore(_: i32) {}

impl Watch {
    /// Starts to watch this many workers, for as long as the process lives.
    pub fn start(workers: usize) -> Watch {
        // SAFETY: the action is all zeroes but for a handler that does nothing; without SA_RESTART the call it
        // interrupts ends.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        }
        let watch = Watch { slots: Arc::new((0..workers).map(|_| Slot::default()).collect()), began: Instant::now() };
        let (slots, began) = (watch.slots.clone(), watch.began);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(100));
                let now = began.elapsed().as_millis() as u64;
                for s in slots.iter() {
                    let since = s.since.load(Ordering::Relaxed);
                    if since != 0 && now.saturating_sub(since) > PATIENCE.as_millis() as u64 {
                        let thread = s.thread.load(Ordering::Relaxed);
                        // SAFETY: a signal with a harmless handler, to a thread of this process.
                        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
                    }
                }
            }
        });
        watch
    }

    /// The calling thread is this worker.
    pub fn worker(&self, worker: usize) -> Watched {
        // SAFETY: the call only tells the thread's id.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) } as i32;
        self.slots[worker].thread.store(thread, Ordering::Relaxed);
        Watched { slots: self.slots.clone(), worker, began: self.began }
    }
}

impl Watched {
    /// Does something that must not take too long.
    pub fn during<T>(&self, f: impl FnOnce() -> T) -> T {
        let since = &self.slots[self.worker].since;
        since.store(self.began.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        let result = f();
        since.store(0, Ordering::Relaxed);
        result
    }
}
