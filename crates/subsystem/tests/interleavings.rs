//! How threads can come in each other's way where objects are counted and numbered: the files that do it, with primitives
//! that shuttle schedules. Each test is run with many schedules; `SKEP_SCHEDULES` says how many.

#[path = "../src/front/ids.rs"]
mod ids;
#[path = "../src/front/users.rs"]
mod users;

/// What takes the place of `front/sync.rs`.
mod sync {
    pub use shuttle::sync::atomic::{AtomicU64, Ordering};
    pub use shuttle::sync::{Arc, Mutex, MutexGuard, Weak};
    pub use std::sync::PoisonError;

    /// Runs a test with so many schedules.
    pub fn model(schedules: usize, test: impl Fn() + Send + Sync + 'static) {
        shuttle::check_random(test, schedules);
    }
}

use std::collections::BTreeSet;

use ids::{Id, Ids};
use shuttle::thread;
use sync::{Arc, AtomicU64, Mutex, Ordering, model};
use users::Users;

fn schedules() -> usize {
    std::env::var("SKEP_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

/// An object that has a number, counts itself, and has users.
struct Thing {
    id: Id<Thing>,
    users: Users,
    /// What is let go of with the last user.
    held: Mutex<u32>,
    alive: Arc<AtomicU64>,
}

impl Drop for Thing {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A user of a thing, as a descriptor is.
struct User(Arc<Thing>);

impl User {
    fn new(thing: Arc<Thing>) -> User {
        thing.users.add();
        User(thing)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.0.users.remove() {
            *self.0.held.lock().unwrap() = 0;
        }
    }
}

fn thing(ids: &Arc<Ids<Thing>>, alive: &Arc<AtomicU64>) -> Arc<Thing> {
    alive.fetch_add(1, Ordering::SeqCst);
    ids.add(|id| Thing { id, users: Users::default(), held: Mutex::new(0), alive: alive.clone() }).unwrap()
}

/// Whoever finds an object by its number holds it: it is not going, and the number is its own.
#[test]
fn what_is_found_stays() {
    model(schedules(), || {
        let (ids, alive): (Arc<Ids<Thing>>, Arc<AtomicU64>) = Default::default();
        let first = thing(&ids, &alive);
        let number = first.id.number();
        let finder = {
            let (ids, alive) = (ids.clone(), alive.clone());
            thread::spawn(move || {
                let found = ids.get(number);
                if let Some(found) = &found {
                    assert_eq!(found.id.number(), number);
                    assert!(alive.load(Ordering::SeqCst) > 0);
                    assert_eq!(ids.next(number - 1), Some(number), "it is in the table while it is held");
                }
                drop(found);
            })
        };
        drop(first);
        finder.join().unwrap();
        assert_eq!((ids.len(), ids.next(0), alive.load(Ordering::SeqCst)), (0, None, 0));
        assert!(ids.get(number).is_none() && ids.is_empty());
    });
}

/// Objects that are made at the same time have numbers of their own, and each number is free again in the end.
#[test]
fn numbers_are_unique() {
    model(schedules(), || {
        let (ids, alive): (Arc<Ids<Thing>>, Arc<AtomicU64>) = Default::default();
        let makers: Vec<_> = (0..3)
            .map(|_| {
                let (ids, alive) = (ids.clone(), alive.clone());
                thread::spawn(move || {
                    let (kept, gone) = (thing(&ids, &alive), thing(&ids, &alive));
                    drop(gone);
                    assert!(ids.get(kept.id.number()).is_some_and(|t| Arc::ptr_eq(&t, &kept)));
                    kept
                })
            })
            .collect();
        let kept: Vec<Arc<Thing>> = makers.into_iter().map(|m| m.join().unwrap()).collect();
        let numbers: BTreeSet<u32> = kept.iter().map(|t| t.id.number()).collect();
        assert_eq!((numbers.len(), ids.len()), (3, 3));
        let walked: Vec<u32> = std::iter::successors(ids.next(0), |n| ids.next(*n)).collect();
        assert!(walked.iter().eq(&numbers));
        drop(kept);
        assert_eq!((ids.len(), alive.load(Ordering::SeqCst)), (0, 0));
    });
}

/// What users put into an object goes with the last of them, also when one comes by number while another one leaves.
#[test]
fn the_last_user_clears() {
    model(schedules(), || {
        let (ids, alive): (Arc<Ids<Thing>>, Arc<AtomicU64>) = Default::default();
        // A program that uses it: holds it, and is no user.
        let program = thing(&ids, &alive);
        let number = program.id.number();
        let users: Vec<_> = (0..2)
            .map(|n| {
                let ids = ids.clone();
                let first = (n == 0).then(|| User::new(program.clone()));
                thread::spawn(move || {
                    let user = first.or_else(|| ids.get(number).map(User::new));
                    if let Some(user) = &user {
                        *user.0.held.lock().unwrap() += 1;
                    }
                    drop(user);
                })
            })
            .collect();
        users.into_iter().for_each(|u| u.join().unwrap());
        assert_eq!((program.users.count(), *program.held.lock().unwrap()), (0, 0));
        drop(program);
        assert_eq!((ids.len(), alive.load(Ordering::SeqCst)), (0, 0));
    });
}
