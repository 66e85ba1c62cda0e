//! A script: named calls, and their answers.

#![allow(dead_code, reason = "shared by several tests, none of which uses all of it")]

use std::fmt;

use crate::kernel::Kernel;

/// What a call answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A descriptor: its number does not count.
    Fd,
    /// Another number.
    Number(i64),
    /// An errno.
    Errno(i64),
    /// Bytes that were written.
    Bytes(Vec<u8>),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Fd => write!(f, "a descriptor"),
            Answer::Number(n) => write!(f, "{n}"),
            Answer::Errno(e) => write!(f, "{}", skep_ebpf::Errno(*e as i32).name()),
            Answer::Bytes(b) => {
                b.iter().take(64).try_for_each(|x| write!(f, "{x:02x}"))?;
                write!(f, " ({} bytes)", b.len())
            }
        }
    }
}

/// Attributes of a call.
#[derive(Clone)]
pub struct Attrs(pub Vec<u8>);

impl Attrs {
    /// All zero.
    pub fn new(len: usize) -> Attrs {
        Attrs(vec![0; len])
    }

    /// With a 32-bit field.
    pub fn u32(mut self, at: usize, x: u32) -> Attrs {
        self.0[at..at + 4].copy_from_slice(&x.to_ne_bytes());
        self
    }

    /// With a 64-bit field.
    pub fn u64(mut self, at: usize, x: u64) -> Attrs {
        self.0[at..at + 8].copy_from_slice(&x.to_ne_bytes());
        self
    }

    /// With the address of bytes, which must outlive the call.
    pub fn ptr<T>(self, at: usize, to: &[T]) -> Attrs {
        self.u64(at, to.as_ptr() as u64)
    }

    /// With bytes.
    pub fn bytes(mut self, at: usize, b: &[u8]) -> Attrs {
        self.0[at..at + b.len()].copy_from_slice(b);
        self
    }
}

/// Calls and their answers, in order.
pub struct Script<'k> {
    /// Who answers.
    pub kernel: &'k dyn Kernel,
    answers: Vec<(String, Answer)>,
    open: Vec<i64>,
}

/// Commands that answer with a descriptor.
fn gives_fd(cmd: u32) -> bool {
    matches!(cmd, 0 | 5 | 7 | 13 | 14 | 17 | 18 | 19 | 28 | 30 | 32 | 33 | 36)
}

impl<'k> Script<'k> {
    /// An empty one.
    pub fn new(kernel: &'k dyn Kernel) -> Script<'k> {
        Script { kernel, answers: Vec::new(), open: Vec::new() }
    }

    /// Makes a call and notes its answer; descriptors stay open until the end.
    pub fn call(&mut self, name: &str, cmd: u32, attr: &mut Attrs) -> i64 {
        let r = self.kernel.bpf(cmd, &mut attr.0);
        let answer = match r {
            e if e < 0 => Answer::Errno(-e),
            _ if gives_fd(cmd) => {
                self.open.push(r);
                Answer::Fd
            }
            n => Answer::Number(n),
        };
        self.answers.push((name.to_owned(), answer));
        r
    }

    /// As [`Script::call`], for calls whose descriptor is not kept.
    pub fn try_call(&mut self, name: &str, cmd: u32, attr: &Attrs) {
        let r = self.call(name, cmd, &mut attr.clone());
        if r >= 0 && gives_fd(cmd) {
            self.open.pop();
            self.kernel.close(r);
        }
    }

    /// Notes what another call answered: a descriptor if it is to be one, which stays open until the end.
    pub fn answered(&mut self, name: &str, r: i64, gives_fd: bool) -> i64 {
        let answer = match r {
            e if e < 0 => Answer::Errno(-e),
            _ if gives_fd => {
                self.open.push(r);
                Answer::Fd
            }
            n => Answer::Number(n),
        };
        self.answers.push((name.to_owned(), answer));
        r
    }

    /// Opens an event.
    pub fn event(&mut self, name: &str, attr: &Attrs, pid: i32, cpu: i32, group: i64, flags: u64) -> i64 {
        let attr = attr.clone();
        let r = self.kernel.perf_open(attr.0.as_ptr() as u64, pid, cpu, group as i32, flags);
        self.answered(name, r, true)
    }

    /// As [`Script::event`], and closes it.
    pub fn try_event(&mut self, name: &str, attr: &Attrs, pid: i32, cpu: i32, group: i64, flags: u64) {
        let fd = self.event(name, attr, pid, cpu, group, flags);
        if fd >= 0 {
            self.close(fd);
        }
    }

    /// `ioctl(2)`.
    pub fn ioctl(&mut self, name: &str, fd: i64, request: u32, arg: u64) -> i64 {
        let r = self.kernel.ioctl(fd, request, arg);
        self.answered(name, r, false)
    }

    /// Notes bytes that a call wrote.
    pub fn note(&mut self, name: &str, bytes: &[u8]) {
        self.answers.push((name.to_owned(), Answer::Bytes(bytes.to_vec())));
    }

    /// Takes a pin away.
    pub fn unpin(&mut self, path: &str) {
        self.kernel.unpin(path);
    }

    /// Closes a descriptor now.
    pub fn close(&mut self, fd: i64) {
        self.open.retain(|f| *f != fd);
        self.kernel.close(fd);
    }

    /// Closes everything, and gives the answers.
    pub fn finish(mut self) -> Vec<(String, Answer)> {
        for fd in std::mem::take(&mut self.open) {
            self.kernel.close(fd);
        }
        self.answers
    }
}
