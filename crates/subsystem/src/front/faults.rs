//! Failures on demand: each place that can run out of something asks here first.

use std::sync::atomic::{AtomicU64, Ordering};

use skep_ebpf::Errno;

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        /// A place where something may be had no more.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FaultPoint { $($(#[$doc])* $name,)* }

        impl FaultPoint {
            /// Every one.
            pub const ALL: &'static [FaultPoint] = &[$(FaultPoint::$name,)*];
        }
    };
}

points! {
    /// Memory for a program.
    ProgAlloc;
    /// Memory for its instructions.
    ProgInsns;
    /// Its machine code or image.
    ProgCompile;
    /// Its place in the arena.
    ProgPlace;
    /// Its number.
    ProgId;
    /// A map's memory.
    MapAlloc;
    /// Its place in the tables.
    MapPlace;
    /// Memory for types.
    BtfAlloc;
    /// Memory for a perf event.
    PerfAlloc;
    /// Memory for its ring.
    PerfRing;
    /// Memory for a link.
    LinkAlloc;
    /// Its number.
    LinkId;
    /// A descriptor.
    Fd;
}

/// Which asking fails; the others succeed. For tests.
#[derive(Debug, Default)]
pub struct Faults {
    asked: AtomicU64,
    /// The asking, counted from 1, that fails; 0 for none.
    fails: AtomicU64,
}

impl Faults {
    /// Has the `n`th asking from now fail (from 1).
    pub fn arm(&self, n: u64) {
        self.fails.store(self.asked.load(Ordering::SeqCst) + n, Ordering::SeqCst);
    }

    /// Has none fail.
    pub fn disarm(&self) {
        self.fails.store(0, Ordering::SeqCst);
    }

    /// True if the armed failure was met.
    pub fn fired(&self) -> bool {
        let fails = self.fails.load(Ordering::SeqCst);
        fails != 0 && self.asked.load(Ordering::SeqCst) >= fails
    }

    pub(super) fn ask(&self, point: FaultPoint) -> Result<(), Errno> {
        let n = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        if n != self.fails.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(if point == FaultPoint::Fd { Errno::EMFILE } else { Errno::ENOMEM })
    }
}
