//! Errnos with the kernel's names and numbers (x86-64; `include/uapi/asm-generic/errno*.h`).

/// A Linux error number, positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $num:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Errno = Errno($num);)*

            /// The symbolic name (`"EINVAL"`), or `"errno"` for a number that is not in the table.
            pub const fn name(self) -> &'static str {
                match self.0 { $($num => stringify!($name),)* _ => "errno" }
            }

            /// A short description.
            pub const fn text(self) -> &'static str {
                match self.0 { $($num => $text,)* _ => "unknown error" }
            }
        }
    };
}

errnos! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such file or entry";
    ESRCH = 3, "no such process";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "is a directory";
    EINTR = 4, "interrupted";
    EIO = 5, "input/output error";
    ENXIO = 6, "no such device or address";
    E2BIG = 7, "too big";
    EBADF = 9, "bad file descriptor";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    EBUSY = 16, "busy";
    EEXIST = 17, "exists already";
    ENODEV = 19, "no such device";
    EINVAL = 22, "invalid argument";
    EMFILE = 24, "too many open files";
    ENOTTY = 25, "not a request of this kind of file";
    ENOSPC = 28, "no space left";
    EROFS = 30, "read-only";
    EDOM = 33, "argument out of domain";
    ERANGE = 34, "out of range";
    EDEADLK = 35, "deadlock";
    ENAMETOOLONG = 36, "name too long";
    ENOSYS = 38, "not implemented";
    ELOOP = 40, "too many levels";
    ENODATA = 61, "no data";
    EPROTO = 71, "protocol error";
    EOVERFLOW = 75, "value too large";
    EBADFD = 77, "file descriptor in bad state";
    EILSEQ = 84, "illegal byte sequence";
    EPROTONOSUPPORT = 93, "protocol not supported";
    EOPNOTSUPP = 95, "operation not supported";
    EAFNOSUPPORT = 97, "address family not supported";
    EADDRNOTAVAIL = 99, "address not available";
    ETIMEDOUT = 110, "timed out";
    ESTALE = 116, "stale handle";
    ENOTSUPP = 524, "not supported";
}

impl Errno {
    /// The negative number, as helpers and system calls return it.
    pub const fn neg(self) -> i64 {
        -(self.0 as i64)
    }
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({})", self.text(), self.name())
    }
}

impl core::error::Error for Errno {}
