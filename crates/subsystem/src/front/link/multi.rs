//! Links of one program to many places: `kprobe_multi` and `uprobe_multi`.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use skep_ebpf::Errno;
use skep_ebpf::uapi::AttachType;
use skep_runtime::At;

use super::LinkKind;
use crate::front::Subsystem;
use crate::front::attr::{Attr, link_create as f};
use crate::front::client::Client;
use crate::front::faults::FaultPoint;
use crate::front::object::ProgObject;
use crate::front::perf::open::file_len;
use crate::front::probe::{Armed, Attached, Consumer, Hit, Inside, Nesting, Point, Report, Runner, What, When, enter};

/// Most places of a link.
const MAX_PLACES: u32 = 1 << 20;
/// Longest name of a function, and longest path, with their ends.
const SYMBOL_LEN: usize = 512;
const PATH_LEN: usize = 4096;
/// `BPF_F_KPROBE_MULTI_RETURN`, `BPF_F_UPROBE_MULTI_RETURN`.
const RETURN: u32 = 1;

/// A place of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MultiPlace {
    /// The function's address, or the offset in the file.
    pub at: u64,
    /// Where the counter is (USDT).
    pub counter: u64,
    /// What the program gets as its cookie there.
    pub cookie: u64,
}

/// What all places of a link share.
#[derive(Debug)]
struct Shared {
    prog: Arc<ProgObject>,
    runner: Arc<Runner>,
    inside: Inside,
    missed: AtomicU64,
}

/// One place, as it is armed.
#[derive(Debug)]
struct Placed {
    shared: Arc<Shared>,
    cookie: u64,
}

impl Consumer for Placed {
    fn reached(&self, hit: &Hit<'_>) {
        let (nesting, _guard) = enter(self.shared.inside);
        if nesting != Nesting::Deliver {
            self.shared.prog.runs.miss();
            return;
        }
        let mut regs = *hit.regs;
        let at = At { cookie: 0, func_ip: hit.address, entry_ip: hit.address, regs: hit.regs };
        let programs = self.programs();
        // SAFETY: the program is a kprobe program, and these are registers.
        let ran = unsafe { self.shared.runner.run(&programs, (&raw mut regs).cast(), &at) };
        if ran.is_none() {
            self.missed(1);
        }
    }

    fn programs(&self) -> Vec<Attached> {
        vec![Attached { prog: Arc::clone(&self.shared.prog), cookie: self.cookie }]
    }

    fn reported(&self, _: &Report) {}

    fn missed(&self, count: u64) {
        self.shared.missed.fetch_add(count, Ordering::Relaxed);
    }
}

/// Many places of one program.
pub struct Multi {
    /// Its places: functions in the order of their addresses, places in files as they were given.
    pub places: Vec<MultiPlace>,
    /// True if cookies were given.
    pub with_cookies: bool,
    /// The flags.
    pub flags: u32,
    /// The file, for places in files.
    pub path: String,
    /// The process, if it is only one.
    pub pid: u32,
    shared: Arc<Shared>,
    #[expect(dead_code, reason = "held, not looked at")]
    armed: Vec<Box<dyn Armed>>,
}

impl std::fmt::Debug for Multi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Multi").field("places", &self.places.len()).finish_non_exhaustive()
    }
}

impl Multi {
    /// Hits that were not delivered.
    pub fn missed(&self) -> u64 {
        self.shared.missed.load(Ordering::Relaxed)
    }
}

/// Numbers of 64 bits in the caller's memory.
fn words(client: &Client, at: u64, count: u32) -> Result<Vec<u64>, Errno> {
    let bytes = client.bytes(at, count as usize * 8)?;
    Ok(bytes.chunks_exact(8).filter_map(|c| c.first_chunk()).map(|c| u64::from_ne_bytes(*c)).collect())
}

/// As [`words`], or zeros where none were given.
fn words_or_zeros(client: &Client, at: u64, count: u32) -> Result<Vec<u64>, Errno> {
    if at == 0 { Ok(vec![0; count as usize]) } else { words(client, at, count) }
}

impl Subsystem {
    pub(super) fn kprobe_multi(&self, client: &Client, attr: &Attr<'_>, prog: &Arc<ProgObject>) -> Result<i32, Errno> {
        let program = prog.verified.program();
        let flags = attr.u32(f::KPROBE_FLAGS);
        if attr.u32(f::FLAGS) != 0
            || program.attach_type != Some(AttachType::TraceKprobeMulti)
            || super::super::is_sleepable(prog)
            || flags & !RETURN != 0
        {
            return Err(Errno::EINVAL);
        }
        let (symbols, addresses) = (attr.u64(f::KPROBE_SYMS), attr.u64(f::KPROBE_ADDRS));
        let count = attr.u32(f::KPROBE_CNT);
        if (symbols != 0) == (addresses != 0) || count == 0 {
            return Err(Errno::EINVAL);
        }
        if count > MAX_PLACES {
            return Err(Errno::E2BIG);
        }
        let cookies_at = attr.u64(f::KPROBE_COOKIES);
        let cookies = words_or_zeros(client, cookies_at, count)?;
        let when = if flags & RETURN != 0 { When::Return } else { When::Entry };
        let point = |what| Point { what, when, pid: None };
        let mut found = Vec::new();
        if symbols == 0 {
            for (address, cookie) in words(client, addresses, count)?.into_iter().zip(cookies) {
                let point = point(What::Address(address));
                let place = self.means.sites.find(&point).map_err(|_| Errno::EINVAL)?;
                found.push((point, MultiPlace { at: place.address, counter: 0, cookie }));
            }
        } else {
            let mut names = Vec::new();
            for at in words(client, symbols, count)? {
                let name = client.string(at, SYMBOL_LEN)?;
                if name.len() >= SYMBOL_LEN {
                    return Err(Errno::E2BIG);
                }
                names.push(String::from_utf8_lossy(&name).into_owned());
            }
            // Each is looked for once, so that one given twice is missing.
            if names.iter().collect::<HashSet<_>>().len() != names.len() {
                return Err(Errno::ESRCH);
            }
            for (name, cookie) in names.into_iter().zip(cookies) {
                let point = point(What::Symbol { module: None, name, offset: 0 });
                let place = self.means.sites.find(&point).map_err(|_| Errno::ESRCH)?;
                found.push((point, MultiPlace { at: place.address, counter: 0, cookie }));
            }
        }
        found.sort_by_key(|(_, place)| place.at);
        let multi = self.arm_multi(prog, found, Inside::Multi, |multi| {
            multi.flags = flags;
            multi.with_cookies = cookies_at != 0;
        })?;
        self.new_link(client, prog, LinkKind::KprobeMulti(multi))
    }

    pub(super) fn uprobe_multi(&self, client: &Client, attr: &Attr<'_>, prog: &Arc<ProgObject>) -> Result<i32, Errno> {
        let program = prog.verified.program();
        let flags = attr.u32(f::UPROBE_FLAGS);
        if attr.u32(f::FLAGS) != 0 || program.attach_type != Some(AttachType::TraceUprobeMulti) || flags & !RETURN != 0
        {
            return Err(Errno::EINVAL);
        }
        let (path_at, offsets_at) = (attr.u64(f::UPROBE_PATH), attr.u64(f::UPROBE_OFFSETS));
        let (count, pid) = (attr.u32(f::UPROBE_CNT), attr.u32(f::UPROBE_PID));
        if path_at == 0 || offsets_at == 0 || count == 0 || pid > i32::MAX as u32 {
            return Err(Errno::EINVAL);
        }
        if count > MAX_PLACES {
            return Err(Errno::E2BIG);
        }
        let path = client.string(path_at, PATH_LEN)?;
        if path.len() >= PATH_LEN {
            return Err(Errno::EINVAL);
        }
        let path = String::from_utf8(path).map_err(|_| Errno::ENOENT)?;
        let len = file_len(&path)?.ok_or(Errno::EBADF)?;
        if pid != 0 && !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            return Err(Errno::ESRCH);
        }
        let offsets = words(client, offsets_at, count)?;
        let counters = words_or_zeros(client, attr.u64(f::UPROBE_REF_CTRS), count)?;
        let cookies_at = attr.u64(f::UPROBE_COOKIES);
        let cookies = words_or_zeros(client, cookies_at, count)?;
        if offsets.iter().any(|o| *o > i64::MAX as u64) {
            return Err(Errno::EINVAL);
        }
        let when = if flags & RETURN != 0 { When::Return } else { When::Entry };
        let mut found = Vec::new();
        for ((offset, counter), cookie) in offsets.into_iter().zip(counters).zip(cookies) {
            if offset > len || !counter.is_multiple_of(2) {
                return Err(Errno::EINVAL);
            }
            let what = What::File { path: path.clone(), offset, counter };
            let point = Point { what, when, pid: (pid != 0).then_some(pid) };
            found.push((point, MultiPlace { at: offset, counter, cookie }));
        }
        let multi = self.arm_multi(prog, found, Inside::Uprobe, |multi| {
            multi.flags = flags;
            multi.with_cookies = cookies_at != 0;
            multi.path = path;
            multi.pid = pid;
        })?;
        self.new_link(client, prog, LinkKind::UprobeMulti(multi))
    }

    /// Arms all places. A failure disarms those before it.
    fn arm_multi(
        &self,
        prog: &Arc<ProgObject>,
        found: Vec<(Point, MultiPlace)>,
        inside: Inside,
        tell: impl FnOnce(&mut Multi),
    ) -> Result<Multi, Errno> {
        self.fault(FaultPoint::LinkAlloc)?;
        let runner = Arc::clone(&self.means.runner);
        let shared = Arc::new(Shared { prog: Arc::clone(prog), runner, inside, missed: AtomicU64::new(0) });
        let (mut armed, mut places) = (Vec::new(), Vec::new());
        for (point, place) in found {
            let consumer: Arc<dyn Consumer> = Arc::new(Placed { shared: Arc::clone(&shared), cookie: place.cookie });
            armed.extend(self.means.sites.arm(&point, &consumer)?);
            places.push(place);
        }
        let mut multi = Multi { places, with_cookies: false, flags: 0, path: String::new(), pid: 0, shared, armed };
        tell(&mut multi);
        Ok(multi)
    }
}
