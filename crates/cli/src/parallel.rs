//! Work on all cores, answers in order.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::Failure;

/// Jobs that each core may be ahead of the oldest that is not done.
const AHEAD: usize = 64;

/// As much as the main thread has.
const STACK: usize = 8 << 20;

/// How often `tick` is called.
const TICK: Duration = Duration::from_millis(100);

struct Queue<J> {
    jobs: J,
    /// Jobs handed out.
    begun: usize,
    /// Answers handed over.
    done: usize,
    closed: bool,
}

struct Shared<J> {
    queue: Mutex<Queue<J>>,
    room: Condvar,
    window: usize,
}

impl<J: Iterator> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job and its number, once it is not too far ahead.
    fn next(&self) -> Option<(usize, J::Item)> {
        let mut queue = self.lock();
        while !queue.closed && queue.begun >= queue.done + self.window {
            queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.closed {
            return None;
        }
        let Some(job) = queue.jobs.next() else {
            queue.closed = true;
            self.room.notify_all();
            return None;
        };
        queue.begun += 1;
        Some((queue.begun - 1, job))
    }

    fn close(&self) {
        self.lock().closed = true;
        self.room.notify_all();
    }
}

/// Lets nobody wait for the answer of a thread that panics.
struct Closing<'a, J: Iterator>(&'a Shared<J>);

impl<J: Iterator> Drop for Closing<'_, J> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.close();
        }
    }
}

/// What [`in_order`] has to tell.
pub enum News<A> {
    /// The answer to the next job.
    Answer(A),
    /// Some time has gone by.
    Tick,
}

/// Does `jobs` on all cores and gives their answers to `take` in the order of the jobs; few are held at a time. Ends
/// early when `take` fails.
pub fn in_order<J, A>(
    jobs: J,
    work: impl Fn(J::Item) -> A + Sync,
    mut take: impl FnMut(News<A>) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    J: Iterator + Send,
    J::Item: Send,
    A: Send,
{
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(Queue { jobs, begun: 0, done: 0, closed: false });
    let shared = Shared { queue, room: Condvar::new(), window: AHEAD * threads };
    thread::scope(|scope| {
        let (send, receive) = channel();
        for n in 0..threads {
            let (send, shared, work) = (send.clone(), &shared, &work);
            let body = move || {
                let _closing = Closing(shared);
                while let Some((n, job)) = shared.next() {
                    if send.send((n, work(job))).is_err() {
                        break;
                    }
                }
            };
            match thread::Builder::new().stack_size(STACK).spawn_scoped(scope, body) {
                Err(error) if n == 0 => return Err(Failure::Input(format!("cannot start a thread: {error}"))),
                // Fewer threads will do.
                Err(_) => break,
                Ok(_) => {}
            }
        }
        drop(send);
        let mut early = BTreeMap::new();
        let mut next = 0;
        let taken = loop {
            let taken = match receive.recv_timeout(TICK) {
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
                Err(RecvTimeoutError::Timeout) => take(News::Tick),
                Ok((n, answer)) => {
                    early.insert(n, answer);
                    let mut taken = Ok(());
                    while let (Ok(()), Some(answer)) = (&taken, early.remove(&next)) {
                        taken = take(News::Answer(answer));
                        next += 1;
                    }
                    shared.lock().done = next;
                    shared.room.notify_all();
                    taken
                }
            };
            if taken.is_err() {
                break taken;
            }
        };
        shared.close();
        taken
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn answers_come_in_order_and_few_are_held() {
        let (begun, held) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut next = 0;
        let work = |n: usize| {
            held.fetch_max(begun.fetch_add(1, Relaxed) + 1, Relaxed);
            if n.is_multiple_of(100) {
                thread::sleep(Duration::from_millis(2));
            }
            n
        };
        in_order(0..5000, work, |news| {
            if let News::Answer(n) = news {
                assert_eq!(n, next);
                next += 1;
                begun.fetch_sub(1, Relaxed);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(next, 5000);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        assert!(held.load(Relaxed) <= (AHEAD + 1) * threads, "{held:?}");
    }

    #[test]
    fn a_failure_ends_it() {
        let mut taken = 0;
        let done = in_order(
            0..,
            |n: u64| n,
            |news| match news {
                News::Answer(10) => Err(Failure::Input("enough".into())),
                _ => {
                    taken += 1;
                    Ok(())
                }
            },
        );
        assert!(done.is_err_and(|e| e.to_string() == "enough"));
        assert!(taken >= 10);
    }
}
