//! The injector process: a loop over the controller's requests and the targets' news.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::AttachError;
use super::agent_image::AgentImage;
use super::change::Changed;
use super::checks;
use super::follow::{self, Follow, Happened};
use super::install::{MapFd, Session, SharedFd};
use super::procfs;
use super::ptrace::{self, Stop, Tid};
use super::request::{Attached, InjectorEvent, ProbeSpec};
use super::target::{self, Point, Target};
use super::wire::{self, Answer, Job, MapPart, Request};
use super::world::{World, is_stray, release_strays};

/// How often processes that are not traced are looked at for an `exec`.
const LOOK: Duration = Duration::from_millis(250);

/// A process that the controller has named.
enum Tracee {
    /// A process that was running: traced only while it is changed.
    Running(Box<Running>),
    /// A command, or one of a family: traced as long as the session lasts.
    Followed(Box<Follow>),
    /// Made by one of a family; it stands still until the controller says what is to become of it.
    Born {
        parent: u32,
        /// It runs in its parent's memory.
        shares: bool,
    },
}

struct Running {
    target: Target,
    /// Held until the controller says go.
    world: Option<World>,
    pidfd: OwnedFd,
}

struct Server {
    socket: OwnedFd,
    children: OwnedFd,
    tracees: BTreeMap<u32, Tracee>,
}

/// Serves until the controller closes the socket, then undoes everything. Returns the exit status.
pub fn run(socket: OwnedFd) -> i32 {
    let _ = rustix::thread::set_name(c"skep-injector");
    hurry();
    let children = match prepare_signals() {
        Ok(fd) => fd,
        Err(error) => {
            eprintln!("skep-injector: {error}");
            return 1;
        }
    };
    // Each process that is traced takes some descriptors.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, ..limit },
    );
    let mut server = Server { socket, children, tracees: BTreeMap::new() };
    let result = server.serve();
    let pids: Vec<u32> = server.tracees.keys().copied().collect();
    for pid in pids {
        if let Err(error) = server.detach(pid)
            && !matches!(error, AttachError::Exited { .. } | AttachError::NoSuchProcess { .. })
        {
            eprintln!("skep-injector: {error}");
        }
    }
    i32::from(result.is_err())
}

/// Has the kernel give this process its turn soon. It works for microseconds at a time, while threads of a target stand still or
/// are about to: among many that never pause each of its steps would wait for all of theirs. What is not allowed is left.
fn hurry() {
    /// `struct sched_attr`, its first version.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let _ = rustix::process::setpriority_process(None, -20);
    // Anybody may ask for short turns, which come earlier (since Linux 6.12; before, it is ignored).
    let nice = rustix::process::getpriority_process(None).unwrap_or(0);
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { size, nice, runtime: 100_000, ..Attributes::default() };
    // SAFETY: the calls read a structure of ours, or numbers.
    unsafe {
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        // Waits are of microseconds.
        libc::prctl(libc::PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    }
}

/// Ignores the signals that end the controller; returns a descriptor that tells of SIGCHLD, which stops of traced threads raise.
fn prepare_signals() -> io::Result<OwnedFd> {
    // SAFETY: plain system calls on a signal set of our own; this process has one thread.
    unsafe {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGUSR1] {
            libc::signal(signal, libc::SIG_IGN);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

impl Server {
    fn serve(&mut self) -> io::Result<()> {
        let mut looked = Instant::now();
        loop {
            let (requests, children, ended) = self.wait()?;
            if children {
                self.drain_children();
                release_strays();
            }
            self.follow_all()?;
            for pid in ended {
                self.tracees.remove(&pid);
                self.tell(InjectorEvent::Exited { pid })?;
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.look_for_execs()?;
            }
            if requests {
                match wire::receive::<Request>(self.socket.as_fd())? {
                    Some((request, fds)) => {
                        let answer = self.answer(request, fds);
                        wire::send(self.socket.as_fd(), &answer, &[])?;
                        // What a process did while it was let go or taken over.
                        self.follow_all()?;
                    }
                    None => return Ok(()),
                }
            }
        }
    }

    /// Waits for news: is there a request, has a child stopped, which processes have ended?
    fn wait(&self) -> io::Result<(bool, bool, Vec<u32>)> {
        let running = || {
            self.tracees.iter().filter_map(|(pid, tracee)| match tracee {
                Tracee::Running(running) => Some((*pid, &running.pidfd)),
                Tracee::Followed(_) | Tracee::Born { .. } => None,
            })
        };
        let fds = [&self.socket, &self.children].into_iter().chain(running().map(|(_, fd)| fd));
        let mut polls: Vec<PollFd> = fds.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
        let timeout = running().next().map(|_| &timeout);
        match rustix::event::poll(&mut polls, timeout) {
            Err(rustix::io::Errno::INTR) => return Ok((false, false, Vec::new())),
            other => other?,
        };
        let ready: Vec<bool> = polls.iter().map(|poll| !poll.revents().is_empty()).collect();
        let ended = running().zip(ready.iter().skip(2)).filter(|(_, ready)| **ready).map(|((pid, _), _)| pid).collect();
        let is_ready = |n: usize| ready.get(n).copied().unwrap_or(false);
        Ok((is_ready(0), is_ready(1), ended))
    }

    fn drain_children(&self) {
        if let Ok(fd) = self.children.try_clone() {
            let mut file = File::from(fd);
            let mut record = [0; 128];
            while matches!(file.read(&mut record), Ok(n) if n > 0) {}
        }
    }

    /// Handles what followed processes have done.
    fn follow_all(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        let families = |tracee: &Tracee| matches!(tracee, Tracee::Followed(follow) if follow.is_family());
        if self.tracees.values().any(families) {
            // Each may be of a thread that is not known yet.
            while ptrace::collect().into_iter().filter(|&tid| self.family_step(tid, &mut events)).count() != 0 {}
        }
        self.tracees.retain(|&pid, tracee| {
            let Tracee::Followed(follow) = tracee else { return true };
            if follow.is_family() {
                return true;
            }
            loop {
                match follow.step(pid as Tid) {
                    Happened::Nothing => return true,
                    Happened::Handled => {}
                    Happened::Event(event) => events.push(event),
                    Happened::Ended => {
                        events.push(InjectorEvent::Exited { pid });
                        return false;
                    }
                }
            }
        });
        events.into_iter().try_for_each(|event| self.tell(event))
    }

    /// Deals with one thing that a thread of a family has done, or that a thread is one; false if there is nothing to do.
    fn family_step(&mut self, tid: Tid, events: &mut Vec<InjectorEvent>) -> bool {
        if is_stray(tid) {
            return false;
        }
        let of = |(_, tracee): &(&u32, &Tracee)| matches!(tracee, Tracee::Followed(follow) if follow.has(tid));
        let Some(pid) = self.tracees.iter().find(of).map(|(pid, _)| *pid) else { return self.stranger(tid, events) };
        let Some(Tracee::Followed(follow)) = self.tracees.get_mut(&pid) else { return false };
        match follow.step(tid) {
            Happened::Nothing => return false,
            Happened::Handled => {}
            Happened::Event(event) => events.push(event),
            Happened::Ended => {
                self.tracees.remove(&pid);
                events.push(InjectorEvent::Exited { pid });
            }
        }
        true
    }

    /// A thread that is not known has stopped, or ended.
    fn stranger(&mut self, tid: Tid, events: &mut Vec<InjectorEvent>) -> bool {
        match self.tracees.get(&(tid as u32)) {
            // Held, or it is looked at elsewhere.
            Some(Tracee::Running(_) | Tracee::Followed(_)) => return false,
            Some(Tracee::Born { .. }) => {
                if matches!(ptrace::poll(tid), Ok(Some(Stop::Gone)) | Err(_)) {
                    self.tracees.remove(&(tid as u32));
                    events.push(InjectorEvent::Exited { pid: tid as u32 });
                }
                return true;
            }
            None => {}
        }
        let status = procfs::status(tid as u32);
        let Some(status) = status.ok().filter(|s| s.tracer == std::process::id() && !matches!(s.state, 'X' | 'Z'))
        else {
            ptrace::forget(tid);
            return true;
        };
        match self.tracees.get_mut(&status.tgid) {
            Some(Tracee::Followed(follow)) if follow.is_family() => follow.add(tid),
            // A thread of a process that stands still for other reasons.
            Some(_) => return false,
            None if status.tgid != tid as u32 => {
                ptrace::forget(tid);
                let _ = ptrace::detach(tid);
            }
            None => {
                // Its first stop.
                let _ = ptrace::poll(tid);
                let pid = tid as u32;
                let shares = shares_memory(pid, status.parent);
                self.tracees.insert(pid, Tracee::Born { parent: status.parent, shares });
                events.push(InjectorEvent::Forked { pid, parent: status.parent });
            }
        }
        true
    }

    fn look_for_execs(&mut self) -> io::Result<()> {
        let mut gone = Vec::new();
        for (pid, tracee) in &self.tracees {
            if let Tracee::Running(running) = tracee
                && running.world.is_none()
            {
                let now = procfs::image_identity(*pid);
                if now.is_some() && now != running.target.identity {
                    gone.push(*pid);
                }
            }
        }
        for pid in gone {
            self.tracees.remove(&pid);
            self.tell(InjectorEvent::Exec { pid })?;
        }
        Ok(())
    }

    fn tell(&self, event: InjectorEvent) -> io::Result<()> {
        wire::send(self.socket.as_fd(), &Answer::Event(event), &[])
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Answer {
        match request {
            Request::Attach(job) => Answer::Attached(self.attach(job, fds)),
            Request::Change(job) => Answer::Attached(self.change(job, fds)),
            Request::Follow(job) => Answer::Done(self.follow(job, fds)),
            Request::Go(pid) => Answer::Done(self.go(pid)),
            Request::Detach(pid) => Answer::Done(self.detach(pid)),
        }
    }

    fn attach(&mut self, job: Job, fds: Vec<OwnedFd>) -> Result<Attached, AttachError> {
        let pid = job.pid;
        if job.children {
            return self.join(job, fds);
        }
        self.check_new(pid)?;
        let (session, probes) = unpack(job, fds)?;
        checks::check(pid)?;
        let pidfd = Pid::from_raw(pid as i32)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .ok_or(AttachError::NoSuchProcess { pid })?;
        let prepared = target::prepare(pid, &probes);
        let mut world = World::stop(pid)?;
        let (target, attached) = Target::attach(&mut world, &session, &probes, Point::Running, prepared)?;
        self.tracees.insert(pid, Tracee::Running(Box::new(Running { target, world: Some(world), pidfd })));
        Ok(attached)
    }

    /// Attaches to a process whose children are to be traced, too, or to such a child.
    fn join(&mut self, job: Job, fds: Vec<OwnedFd>) -> Result<Attached, AttachError> {
        let pid = job.pid;
        let (session, probes) = unpack(job, fds)?;
        let (follow, attached) = match self.tracees.get(&pid) {
            Some(&Tracee::Born { parent, shares }) => {
                self.tracees.remove(&pid);
                if shares {
                    let attached = Attached { pid, probes: Vec::new(), notes: Vec::new(), code: None };
                    (Follow::await_exec(pid, session, probes), attached)
                } else {
                    let parent = match self.tracees.get(&parent) {
                        Some(Tracee::Followed(follow)) => follow.target(),
                        _ => None,
                    };
                    Follow::adopt(pid, session, probes, parent)?
                }
            }
            Some(_) => return Err(AttachError::AlreadyProbed { pid }),
            None => {
                checks::check(pid)?;
                Follow::join(pid, session, probes)?
            }
        };
        self.tracees.insert(pid, Tracee::Followed(Box::new(follow)));
        Ok(attached)
    }

    fn change(&mut self, job: Job, fds: Vec<OwnedFd>) -> Result<Attached, AttachError> {
        let pid = job.pid;
        let (session, probes) = unpack(job, fds)?;
        let Some(Tracee::Running(running)) = self.tracees.get_mut(&pid) else {
            return Err(AttachError::NotAttached { pid });
        };
        let mut world = match running.world.take() {
            Some(world) => world,
            None => World::stop(pid)?,
        };
        if procfs::image_identity(pid) != running.target.identity {
            self.tracees.remove(&pid);
            return Err(AttachError::NotAttached { pid });
        }
        match running.target.change(&mut world, &session, &probes)? {
            Changed::Done(attached) => Ok(attached),
            Changed::Anew => {
                world.check_free()?;
                running.target.detach(&mut world)?;
                let attached = Target::attach(&mut world, &session, &probes, Point::Running, None);
                match attached {
                    Ok((target, attached)) => {
                        running.target = target;
                        Ok(attached)
                    }
                    Err(error) => {
                        self.tracees.remove(&pid);
                        Err(error)
                    }
                }
            }
        }
    }

    fn follow(&mut self, job: Job, fds: Vec<OwnedFd>) -> Result<(), AttachError> {
        let pid = job.pid;
        self.check_new(pid)?;
        let children = job.children;
        let (session, probes) = unpack(job, fds)?;
        checks::check(pid)?;
        let follow = Follow::begin(pid, session, probes, children)?;
        self.tracees.insert(pid, Tracee::Followed(Box::new(follow)));
        Ok(())
    }

    fn check_new(&self, pid: u32) -> Result<(), AttachError> {
        match self.tracees.contains_key(&pid) {
            true => Err(AttachError::AlreadyProbed { pid }),
            false => Ok(()),
        }
    }

    fn go(&mut self, pid: u32) -> Result<(), AttachError> {
        match self.tracees.get_mut(&pid) {
            None => Err(AttachError::NotAttached { pid }),
            Some(Tracee::Running(running)) => {
                running.world = None;
                Ok(())
            }
            Some(Tracee::Followed(follow)) => follow.go(),
            Some(Tracee::Born { .. }) => self.detach(pid),
        }
    }

    fn detach(&mut self, pid: u32) -> Result<(), AttachError> {
        // A process does not stop while it waits for a child that runs in its memory.
        let of = |tracee: &Tracee| matches!(tracee, Tracee::Born { parent, .. } if *parent == pid);
        for child in self.tracees.extract_if(.., |_, tracee| of(tracee)).collect::<Vec<_>>() {
            if let (child, Tracee::Born { shares, .. }) = child {
                let _ = follow::let_go(child, shares);
            }
        }
        match self.tracees.remove(&pid) {
            None => Err(AttachError::NotAttached { pid }),
            Some(Tracee::Followed(follow)) => follow.detach(),
            Some(Tracee::Born { shares, .. }) => follow::let_go(pid, shares),
            Some(Tracee::Running(running)) => {
                let Running { mut target, world, .. } = *running;
                if procfs::image_identity(pid) != target.identity {
                    // Another image, or no process: what was patched is gone.
                    return Ok(());
                }
                let mut world = match world {
                    Some(world) => world,
                    None => World::stop(pid)?,
                };
                // It stands still now; meanwhile it may have executed something else.
                if procfs::image_identity(pid) != target.identity {
                    return Ok(());
                }
                target.detach(&mut world).map(drop)
            }
        }
    }
}

/// Do two processes run in the same memory?
fn shares_memory(pid: u32, other: u32) -> bool {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: the call takes numbers only.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, pid, other, KCMP_VM, 0, 0) };
    // Where it cannot be asked for it is taken to be so: nothing is done to such a process until it executes something.
    answer <= 0
}

/// Takes a job's descriptors apart.
fn unpack(job: Job, fds: Vec<OwnedFd>) -> Result<(Session, Vec<ProbeSpec>), AttachError> {
    let mut fds = fds.into_iter();
    let mut take = |size: u64| match fds.next() {
        Some(fd) => Ok(SharedFd { fd, size }),
        None => Err(AttachError::Injector { reason: "a descriptor is missing".into() }),
    };
    let control = take(job.control)?;
    let shared = take(job.shared)?;
    let mut maps = Vec::new();
    for MapPart { offset, size, writable, header, absent } in job.maps {
        maps.push(MapFd { memory: take(size)?, offset, writable, header_offset: header, absent });
    }
    let agent = match job.agent {
        Some(size) => {
            let memory = take(size)?;
            let mut bytes = vec![0; size as usize];
            let read = File::from(memory.fd).read_exact_at(&mut bytes, 0);
            read.map_err(|e| AttachError::os("reading the agent", &e))?;
            AgentImage::parse(&bytes)?
        }
        None => AgentImage::built_in()?,
    };
    let marker = job.marker.then(|| take(0)).transpose()?.map(|memory| memory.fd);
    let (proc_index, change, nslots) = (job.proc_index, job.change, job.nslots);
    let session = Session { proc_index, change, nslots, control, shared, maps, agent, marker };
    Ok((session, job.probes))
}
