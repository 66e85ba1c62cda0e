//! A failed check on its way out: what it will become in the public [`Rejection`](crate::Rejection).

use skep_ebpf::Errno;

use crate::reason::Reason;

/// A check that did not pass.
#[derive(Debug)]
pub(crate) struct Failure {
    pub unsupported: bool,
    pub errno: Errno,
    pub reason: Reason,
    pub message: String,
    /// The instruction, where it is not the one being looked at.
    pub insn: Option<usize>,
    /// True where no instruction is to blame.
    pub whole_program: bool,
}

/// Result of a check.
pub(crate) type Check<T = ()> = Result<T, Box<Failure>>;

impl Failure {
    /// The kernel would refuse this, with this errno.
    pub fn new(errno: Errno, reason: Reason, message: String) -> Box<Failure> {
        Box::new(Failure { unsupported: false, errno, reason, message, insn: None, whole_program: false })
    }

    /// Skep cannot judge this yet.
    pub fn unsupported(reason: Reason, message: String) -> Box<Failure> {
        let errno = Errno::EOPNOTSUPP;
        Box::new(Failure { unsupported: true, errno, reason, message, insn: None, whole_program: false })
    }

    /// Puts the blame on another instruction.
    pub fn at(mut self: Box<Self>, insn: usize) -> Box<Failure> {
        self.insn = Some(insn);
        self
    }

    /// Puts the blame on no instruction.
    pub fn whole(mut self: Box<Self>) -> Box<Failure> {
        self.whole_program = true;
        self
    }
}

/// Rejects with `EACCES`: `denied!(Reason, "format", …)`.
macro_rules! denied {
    ($reason:ident, $($arg:tt)*) => {
        Err($crate::fail::Failure::new(skep_ebpf::Errno::EACCES, $crate::reason::Reason::$reason, format!($($arg)*)))
    };
}

/// Rejects with `EINVAL`.
macro_rules! invalid {
    ($reason:ident, $($arg:tt)*) => {
        Err($crate::fail::Failure::new(skep_ebpf::Errno::EINVAL, $crate::reason::Reason::$reason, format!($($arg)*)))
    };
}

/// Gives up: not judged yet.
macro_rules! unsupported {
    ($reason:ident, $($arg:tt)*) => {
        Err($crate::fail::Failure::unsupported($crate::reason::Reason::$reason, format!($($arg)*)))
    };
}

pub(crate) use {denied, invalid, unsupported};
