//! Each step of an attach made to fail: nothing is left, and nothing runs. Alone in its process, so that descriptors can be
//! counted.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/script.rs"]
mod script;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kernel::{Kernel, Ours, probed_offset};
use script::Attrs;
use skep_subsystem::front::faults::Faults;
use skep_subsystem::front::probe::{Armed, Consumer, Found, Missing, Point, ProbeSites, What};
use skep_subsystem::front::{Config, Errno};

const SET_BPF: u32 = 0x4004_2408;
const NAME: &[u8] = b"__x64_sys_getpgid\0";
const SELF: &[u8] = b"/proc/self/exe\0";
/// `r0 = 1; exit`.
const CODE: [u64; 2] = [0xb7 | 1 << 32, 0x95];

fn program(ty: u32, attach: u32) -> Attrs {
    Attrs::new(168).u32(0, ty).u32(4, 2).ptr(8, &CODE).ptr(16, b"GPL\0").u32(68, attach)
}

/// Everything that can be attached, step by step, until one of them fails. Descriptors that were given are in `open`.
fn attach_all(ours: &Ours, programs: &[i64; 4], open: &mut Vec<i64>, maps: &mut Vec<i64>) -> Result<(), i64> {
    let [kprobe, raw, kprobe_multi, uprobe_multi] = *programs;
    let mut given = |r: i64| {
        if r < 0 {
            return Err(r);
        }
        open.push(r);
        Ok(r)
    };
    let sampling =
        |kind: u32, config: u64| Attrs::new(136).u32(0, kind).u32(4, 136).u64(8, config).u64(16, 1).u64(24, 1 << 10);
    for attr in [
        sampling(8, 0).ptr(56, NAME),
        sampling(8, 1).ptr(56, NAME),
        sampling(9, 0).ptr(56, SELF).u64(64, probed_offset()),
    ] {
        let event = given(ours.perf_open(attr.0.as_ptr() as u64, 0, -1, -1, 0))?;
        let ring = ours.map(event, 2 * 4096, 0, true);
        if ring < 0 {
            return Err(ring);
        }
        maps.push(ring);
        let link = Attrs::new(64).u32(0, kprobe as u32).u32(4, event as u32).u32(8, 41);
        given(ours.bpf(28, &mut link.clone().0))?;
    }
    let by_ioctl = sampling(8, 0).ptr(56, NAME);
    let event = given(ours.perf_open(by_ioctl.0.as_ptr() as u64, 0, -1, -1, 0))?;
    match ours.ioctl(event, SET_BPF, kprobe as u64) {
        0 => {}
        e => return Err(e),
    }
    given(ours.bpf(17, &mut Attrs::new(24).ptr(0, b"sys_enter\0").u32(8, raw as u32).0))?;
    let (names, offsets) = ([NAME.as_ptr() as u64], [probed_offset()]);
    let many = Attrs::new(64).u32(0, kprobe_multi as u32).u32(8, 42).u32(20, 1).ptr(24, &names);
    given(ours.bpf(28, &mut many.clone().0))?;
    let many = Attrs::new(64).u32(0, uprobe_multi as u32).u32(8, 48).ptr(16, SELF).ptr(24, &offsets).u32(48, 1);
    given(ours.bpf(28, &mut many.clone().0))?;
    Ok(())
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn runs(ours: &Ours) -> u64 {
    let mut attr = Attrs::new(8);
    let mut runs = 0;
    while ours.bpf(11, &mut attr.0) == 0 {
        let id = u32::from_ne_bytes(*attr.0[4..].first_chunk().unwrap());
        let fd = ours.bpf(13, &mut Attrs::new(4).u32(0, id).0);
        let info = [0u64; 29];
        assert_eq!(ours.bpf(15, &mut Attrs::new(16).u32(0, fd as u32).u32(4, 232).ptr(8, &info).0), 0);
        // SAFETY: the call has written it.
        runs += unsafe { info.as_ptr().add(25).read_volatile() };
        ours.close(fd);
        attr = Attrs::new(8).u32(0, id);
    }
    runs
}

/// What places may refuse: to be armed, and to run other programs.
#[derive(Default)]
struct Refusing {
    arm: AtomicBool,
    change: Arc<AtomicBool>,
}

struct Place(Arc<AtomicBool>);

impl Armed for Place {
    fn programs_changed(&self) -> Result<(), Errno> {
        if self.0.load(Ordering::SeqCst) { Err(Errno::EIO) } else { Ok(()) }
    }
}

impl ProbeSites for Refusing {
    fn find(&self, point: &Point) -> Option<Result<Found, Missing>> {
        matches!(&point.what, What::Symbol { name, .. } if name == "stubborn").then_some(Ok(Found { address: 1 }))
    }

    fn arm(&self, point: &Point, _: &Arc<dyn Consumer>) -> Option<Result<Box<dyn Armed>, Errno>> {
        self.find(point)?.ok()?;
        Some(if self.arm.load(Ordering::SeqCst) { Err(Errno::EIO) } else { Ok(Box::new(Place(self.change.clone()))) })
    }
}

/// A failure at every place that can run out of something; `SKEP_FAULTS` is the number of attaches.
#[test]
fn failing_attaches_leave_nothing() {
    let rounds: u64 = std::env::var("SKEP_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let faults: Arc<Faults> = Arc::default();
    let sites = Arc::new(Refusing::default());
    let ours =
        Ours::with(Config { faults: Some(faults.clone()), slots: 4, sites: vec![sites.clone()], ..Config::default() });
    let programs = [(2, 0), (17, 0), (2, 42), (2, 48)].map(|(ty, attach)| ours.bpf(5, &mut program(ty, attach).0));
    assert!(programs.iter().all(|p| *p >= 0), "{programs:?}");
    // From here on runs are counted.
    let stats = ours.bpf(32, &mut Attrs::new(4).0);
    assert!(stats >= 0);
    ours.hit(1);
    let (before, files, ran) = (ours.left(), open_files(), runs(&ours));
    let (mut failed, mut point, mut whole) = (0u64, 1, 0);
    while failed < rounds {
        let (mut open, mut maps) = (Vec::new(), Vec::new());
        faults.arm(point);
        let done = attach_all(&ours, &programs, &mut open, &mut maps);
        if faults.fired() {
            assert!(done.is_err(), "the failure at {point} is not seen");
            failed += 1;
            point += 1;
        } else {
            assert_eq!(done, Ok(()));
            assert!(point > 20, "only {point} places can fail");
            (point, whole) = (1, whole + 1);
        }
        faults.disarm();
        maps.into_iter().for_each(|at| ours.unmap(at, 2 * 4096));
        open.into_iter().for_each(|fd| ours.close(fd));
        ours.hit(1);
    }
    assert_eq!((ours.left(), open_files(), runs(&ours)), (before, files, ran), "after {whole} whole attaches");

    // A place that will not be armed, and one that will not run another program.
    let attr = Attrs::new(136).u32(0, 8).u32(4, 136).ptr(56, b"stubborn\0");
    sites.arm.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        assert_eq!(ours.perf_open(attr.0.as_ptr() as u64, 0, -1, -1, 0), -5);
    }
    assert_eq!((ours.left(), open_files()), (before, files));
    sites.arm.store(false, Ordering::SeqCst);
    let event = ours.perf_open(attr.0.as_ptr() as u64, 0, -1, -1, 0);
    sites.change.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        assert_eq!(ours.ioctl(event, SET_BPF, programs[0] as u64), -5);
        let link = Attrs::new(64).u32(0, programs[0] as u32).u32(4, event as u32).u32(8, 41);
        assert_eq!(ours.bpf(28, &mut link.clone().0), -5);
    }
    sites.change.store(false, Ordering::SeqCst);
    assert_eq!(ours.ioctl(event, SET_BPF, programs[0] as u64), 0);
    ours.close(event);
    assert_eq!((ours.left(), open_files()), (before, files));
}
