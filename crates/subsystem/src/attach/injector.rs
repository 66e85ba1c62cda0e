//! The controller's side: starting the injector process and talking to it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::AttachError;
use super::request::{AttachRequest, Attached, InjectorEvent};
use super::server;
use super::wire::{self, Answer, Job, MapPart, Request};

/// How the injector is called, and thereby recognised.
pub const NAME: &str = "skep-injector";
/// How long a dropped injector may take to undo everything.
const FAREWELL: Duration = Duration::from_secs(20);

/// Runs as an injector, and does not return, if this process was started as one. To be called first in `main`.
pub fn main_if_requested() {
    let mut args = std::env::args_os();
    if args.next().as_deref() != Some(OsStr::new(NAME)) {
        return;
    }
    let Some(number) = args.next().and_then(|arg| arg.to_str()?.parse::<i32>().ok()) else { std::process::exit(2) };
    // SAFETY: `Injector::spawn` has passed this descriptor for us alone to use.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    std::process::exit(server::run(socket));
}

/// The injector process: it does all that touches targets, and undoes it when the controller is gone.
#[derive(Debug)]
pub struct Injector {
    child: Child,
    socket: Option<OwnedFd>,
    pending: VecDeque<InjectorEvent>,
    gone: bool,
}

impl Injector {
    /// Starts it. The running program must call [`main_if_requested`] first in its `main`.
    pub fn spawn() -> Result<Injector, AttachError> {
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(|e| AttachError::os("socketpair", &e.into()))?;
        let raw = theirs.as_raw_fd();
        let mut command = Command::new("/proc/self/exe");
        command.arg0(NAME).arg(raw.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
        // A path given relative to here is resolved by the controller.
        let prepare = move || {
            // SAFETY: `raw` is open in the child: it is a copy of `theirs`, which lives until the child has been started.
            let socket = unsafe { BorrowedFd::borrow_raw(raw) };
            rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())?;
            rustix::process::setsid()?;
            Ok(())
        };
        // SAFETY: `prepare` makes system calls only.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().map_err(|e| AttachError::os("starting the injector process", &e))?;
        Ok(Injector { child, socket: Some(ours), pending: VecDeque::new(), gone: false })
    }

    /// Its process id: the tracer that a command to be followed must allow.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Attaches to a running process, which stands still until [`Injector::go`].
    pub fn attach(&mut self, request: &AttachRequest) -> Result<Attached, AttachError> {
        match self.submit(request, Request::Attach)? {
            Answer::Attached(result) => result,
            other => Err(unexpected(&other)),
        }
    }

    /// Has a process that [`Injector::attach`] was asked for carry these probes in place of those it has; it runs on. Probes
    /// that are in both stay in place, so none of their hits is lost, and functions that are active return through
    /// them. If one cannot be placed, which the answer says, all is as before.
    pub fn change(&mut self, request: &AttachRequest) -> Result<Attached, AttachError> {
        match self.submit(request, Request::Change)? {
            Answer::Attached(result) => result,
            other => Err(unexpected(&other)),
        }
    }

    /// Attaches to what a process will execute: a child that waits, before its `exec`, until this has returned. What
    /// becomes of it comes as [`InjectorEvent`]s, for each image that it executes.
    pub fn follow(&mut self, request: &AttachRequest) -> Result<(), AttachError> {
        match self.submit(request, Request::Follow)? {
            Answer::Done(result) => result,
            other => Err(unexpected(&other)),
        }
    }

    /// Lets a process run on.
    pub fn go(&mut self, pid: u32) -> Result<(), AttachError> {
        self.simple(Request::Go(pid))
    }

    /// Restores the process's text. Its links must be off by then; threads that are inside a program run it to its end.
    pub fn detach(&mut self, pid: u32) -> Result<(), AttachError> {
        self.simple(Request::Detach(pid))
    }

    /// What has happened; waits for it for so many milliseconds, for ever if negative.
    pub fn events(&mut self, timeout_ms: i32) -> Vec<InjectorEvent> {
        let deadline = u64::try_from(timeout_ms).ok().map(|ms| Instant::now() + Duration::from_millis(ms));
        while self.pending.is_empty() && !self.gone {
            if !self.wait(deadline) {
                break;
            }
            self.take_events();
        }
        while !self.gone && self.wait(Some(Instant::now())) {
            self.take_events();
        }
        self.pending.drain(..).collect()
    }

    /// Readable when [`Injector::events`] has something to tell.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("the socket is open until the injector is dropped").as_fd()
    }

    fn take_events(&mut self) {
        match self.receive() {
            Ok(Answer::Event(event)) => self.pending.push_back(event),
            Ok(_) => {}
            // Told by the event of its end.
            Err(_) => {}
        }
    }

    /// Waits until there is something to read; false at the deadline.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| rustix::event::Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let fd = self.fd();
        let mut poll = [PollFd::new(&fd, PollFlags::IN)];
        match rustix::event::poll(&mut poll, timeout.as_ref()) {
            Ok(n) => n > 0,
            // A signal: the caller may have something to do.
            Err(_) => false,
        }
    }

    fn submit(&mut self, request: &AttachRequest, kind: fn(Job) -> Request) -> Result<Answer, AttachError> {
        let agent = match request.agent {
            Some(bytes) => Some((store(bytes)?, bytes.len() as u64)),
            None => None,
        };
        let job = Job {
            pid: request.pid,
            proc_index: request.proc_index,
            change: request.change,
            nslots: request.nslots,
            control: request.control.size,
            shared: request.shared.size,
            maps: request.maps.iter().map(part).collect(),
            probes: request.probes.iter().map(absolute).collect(),
            agent: agent.as_ref().map(|(_, size)| *size),
            children: request.children,
            marker: request.marker.is_some(),
        };
        let mut fds = vec![request.control.fd, request.shared.fd];
        fds.extend(request.maps.iter().map(|map| map.fd));
        fds.extend(agent.iter().map(|(fd, _)| fd.as_fd()));
        fds.extend(request.marker.iter().map(|fd| fd.as_fd()));
        self.ask(kind(job), &fds)
    }

    fn simple(&mut self, request: Request) -> Result<(), AttachError> {
        match self.ask(request, &[])? {
            Answer::Done(result) => result,
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, request: Request, fds: &[BorrowedFd]) -> Result<Answer, AttachError> {
        wire::send(self.fd(), &request, fds).map_err(|e| AttachError::Injector { reason: e.to_string() })?;
        loop {
            match self.receive()? {
                Answer::Event(event) => self.pending.push_back(event),
                answer => return Ok(answer),
            }
        }
    }

    fn receive(&mut self) -> Result<Answer, AttachError> {
        let result = wire::receive(self.fd());
        match result {
            Ok(Some((answer, _))) => Ok(answer),
            Ok(None) => Err(self.lost("it has ended".into())),
            Err(error) => Err(self.lost(error.to_string())),
        }
    }

    /// It is gone, which is an event, too: who finds out by a request must not wait for others.
    fn lost(&mut self, reason: String) -> AttachError {
        if !std::mem::replace(&mut self.gone, true) {
            self.pending.push_back(InjectorEvent::InjectorGone);
        }
        AttachError::Injector { reason }
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        // Without its socket it undoes everything and ends.
        self.socket = None;
        let deadline = Instant::now() + FAREWELL;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn unexpected(answer: &Answer) -> AttachError {
    AttachError::Injector { reason: format!("unexpected answer {answer:?}") }
}

fn part(map: &super::MapMemory) -> MapPart {
    let (header, absent) = (map.header_offset, map.absent);
    MapPart { offset: map.offset, size: map.size, writable: map.writable, header, absent }
}

/// The probe with its module's path made independent of the current directory.
fn absolute(probe: &super::ProbeSpec) -> super::ProbeSpec {
    use super::request::ProbeTarget;
    let mut probe = probe.clone();
    if let ProbeTarget::Symbol { module: Some(module), .. } | ProbeTarget::FileOffset { module, .. } = &mut probe.target
        && module.contains('/')
        && !module.starts_with('/')
        && let Ok(path) = std::fs::canonicalize(&*module)
    {
        *module = path.to_string_lossy().into_owned();
    }
    probe
}

/// A memfd with these bytes.
fn store(bytes: &[u8]) -> Result<OwnedFd, AttachError> {
    let os = |e: rustix::io::Errno| AttachError::os("storing the agent", &e.into());
    let fd = rustix::fs::memfd_create("skep-agent", rustix::fs::MemfdFlags::CLOEXEC).map_err(os)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rustix::io::write(&fd, rest).map_err(os)?;
        rest = rest.get(n..).unwrap_or_default();
    }
    Ok(fd)
}
