//! Functions of this process that its owner publishes: places that fire when he says so.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use skep_ebpf::Errno;
use skep_ebpf::uapi::PtRegs;

use super::{Armed, Consumer, Found, Hit, Missing, Point, ProbeSites, What, When};

/// What is to be told of hits, by the number of its arming.
type Consumers = Vec<(u64, Arc<dyn Consumer>)>;

/// A published function. The owner of the process calls [`Function::enter`] and [`Function::leave`] where it runs.
pub struct Function {
    name: String,
    address: u64,
    /// Where it is in a file, for uprobes.
    file: Option<(String, u64)>,
    /// How many probes name its USDT semaphore.
    wanted: AtomicU64,
    entry: RwLock<Consumers>,
    exit: RwLock<Consumers>,
    next: AtomicU64,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Function {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the semaphore of its USDT probe is: 1 if there are probes on it that name one (`ref_ctr_offset`), however many.
    pub fn wanted(&self) -> u64 {
        u64::from(self.wanted.load(Ordering::Relaxed) != 0)
    }

    fn list(&self, when: When) -> &RwLock<Consumers> {
        match when {
            When::Entry => &self.entry,
            When::Return => &self.exit,
        }
    }

    fn tell(&self, when: When, regs: &PtRegs) {
        // A copy: a consumer may go while it is being told.
        let consumers = match self.list(when).read() {
            Ok(list) if list.is_empty() => return,
            Ok(list) => list.clone(),
            Err(_) => return,
        };
        for (_, consumer) in consumers {
            consumer.reached(&Hit { regs, address: self.address });
        }
    }

    /// The function is entered with these registers.
    pub fn enter(&self, regs: &PtRegs) {
        self.tell(When::Entry, regs);
    }

    /// The function returns: its value is in `rax`, and `rip` is where it returns to.
    pub fn leave(&self, regs: &PtRegs) {
        self.tell(When::Return, regs);
    }
}

/// The functions of this process that are published. They are found by name, address, and place in a file.
#[derive(Debug, Default)]
pub struct Functions(Mutex<HashMap<String, Arc<Function>>>);

struct ArmedFunction {
    function: Weak<Function>,
    when: When,
    number: u64,
    counted: bool,
}

impl Armed for ArmedFunction {}

impl Drop for ArmedFunction {
    fn drop(&mut self) {
        let Some(function) = self.function.upgrade() else { return };
        if self.counted {
            function.wanted.fetch_sub(1, Ordering::Relaxed);
        }
        let gone = {
            let mut list = function.list(self.when).write().unwrap_or_else(PoisonError::into_inner);
            let at = list.iter().position(|(n, _)| *n == self.number);
            at.map(|at| list.remove(at))
        };
        // The consumer goes without the lock.
        drop(gone);
    }
}

impl Functions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Function>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a function at an address; `file` is where it is in a file, for probes that name it so.
    pub fn publish(&self, name: &str, address: u64, file: Option<(&str, u64)>) -> Arc<Function> {
        let function = Arc::new(Function {
            name: name.to_owned(),
            address,
            file: file.map(|(path, offset)| (path.to_owned(), offset)),
            wanted: AtomicU64::new(0),
            entry: RwLock::default(),
            exit: RwLock::default(),
            next: AtomicU64::new(0),
        });
        self.lock().insert(name.to_owned(), Arc::clone(&function));
        function
    }

    /// Takes a function back; what is armed on it never fires again.
    pub fn withdraw(&self, name: &str) -> bool {
        self.lock().remove(name).is_some()
    }

    fn look_up(&self, point: &Point) -> Option<Result<Arc<Function>, Missing>> {
        if point.pid.is_some_and(|pid| pid != std::process::id()) {
            return None;
        }
        let functions = self.lock();
        let (function, offset) = match &point.what {
            What::Symbol { module: None, name, offset } => (functions.get(name)?, *offset),
            What::Symbol { .. } => return None,
            What::Address(address) => (functions.values().find(|f| f.address == *address)?, 0),
            What::File { path, offset, .. } => {
                let here = |f: &&Arc<Function>| f.file.as_ref().is_some_and(|(p, o)| o == offset && same(p, path));
                (functions.values().find(here)?, 0)
            }
        };
        // What is published is an entry; what lies behind it nobody knows.
        Some(match (offset, point.when) {
            (0, _) => Ok(Arc::clone(function)),
            (_, When::Return) => Err(Missing::NotTheStart),
            _ => Err(Missing::InsideInstruction),
        })
    }
}

/// The same file?
fn same(a: &str, b: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    a == b || id(a).is_some_and(|a| Some(a) == id(b))
}

impl ProbeSites for Functions {
    fn find(&self, point: &Point) -> Option<Result<Found, Missing>> {
        Some(self.look_up(point)?.map(|f| Found { address: f.address }))
    }

    fn arm(&self, point: &Point, consumer: &Arc<dyn Consumer>) -> Option<Result<Box<dyn Armed>, Errno>> {
        let function = match self.look_up(point)? {
            Ok(function) => function,
            Err(_) => return Some(Err(Errno::EINVAL)),
        };
        let number = function.next.fetch_add(1, Ordering::Relaxed);
        function.list(point.when).write().unwrap_or_else(PoisonError::into_inner).push((number, Arc::clone(consumer)));
        let counted = matches!(point.what, What::File { counter, .. } if counter != 0);
        if counted {
            function.wanted.fetch_add(1, Ordering::Relaxed);
        }
        Some(Ok(Box::new(ArmedFunction { function: Arc::downgrade(&function), when: point.when, number, counted })))
    }

    fn functions(&self) -> Vec<(u64, String)> {
        let mut functions: Vec<_> = self.lock().values().map(|f| (f.address, f.name.clone())).collect();
        functions.sort_unstable();
        functions
    }
}
