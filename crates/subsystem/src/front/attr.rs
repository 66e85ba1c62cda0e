//! `union bpf_attr`: what a caller gives with a command, field by field.
//!
//! A caller compiled against older headers gives less, and the rest counts as zero; one compiled against newer headers
//! gives more, and what this kernel does not know must be zero. Offsets are those of Linux 6.18 (`include/uapi/linux/bpf.h`).

use skep_ebpf::Errno;

/// Bytes of the union in Linux 6.18, and in 4.17.
pub const SIZE: usize = 168;
/// See [`SIZE`].
pub const SIZE_4_17: usize = 72;
/// Callers may not give more than a page.
const MAX_GIVEN: usize = 4096;

/// A field: where it begins, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(pub usize);

/// The attributes of one call: a copy of what the caller gave, and the caller's own bytes for answers.
#[derive(Debug)]
pub struct Attr<'a> {
    bytes: [u8; SIZE],
    user: &'a mut [u8],
}

impl<'a> Attr<'a> {
    /// Takes a caller's bytes. `E2BIG` if there are more than the `size` that this kernel knows and they are not zero.
    pub fn new(user: &'a mut [u8], size: usize) -> Result<Attr<'a>, Errno> {
        let size = size.min(SIZE);
        if user.len() > MAX_GIVEN || user.iter().skip(size).any(|b| *b != 0) {
            return Err(Errno::E2BIG);
        }
        let mut bytes = [0; SIZE];
        let known = user.len().min(size);
        bytes[..known].copy_from_slice(&user[..known]);
        Ok(Attr { bytes, user })
    }

    fn get<const N: usize>(&self, at: Field) -> [u8; N] {
        self.bytes.get(at.0..).and_then(|b| b.first_chunk()).copied().unwrap_or([0; N])
    }

    /// A 32-bit field.
    pub fn u32(&self, at: Field) -> u32 {
        u32::from_ne_bytes(self.get(at))
    }

    /// A file descriptor.
    pub fn fd(&self, at: Field) -> i32 {
        i32::from_ne_bytes(self.get(at))
    }

    /// A 64-bit field; also an address.
    pub fn u64(&self, at: Field) -> u64 {
        u64::from_ne_bytes(self.get(at))
    }

    /// An object's name: letters (of Latin-1), digits, `_` and `.`, ended by a zero in its 16 bytes; what follows that
    /// does not count. `EINVAL` for others.
    pub fn name(&self, at: Field) -> Result<String, Errno> {
        let bytes: [u8; 16] = self.get(at);
        let len = bytes.iter().position(|b| *b == 0).ok_or(Errno::EINVAL)?;
        let good = |b: &u8| char::from(*b).is_alphanumeric() && !matches!(b, 0x80..0xc0) || matches!(b, b'_' | b'.');
        let name = bytes.get(..len).unwrap_or_default();
        if name.iter().all(good) { Ok(name.iter().map(|b| char::from(*b)).collect()) } else { Err(Errno::EINVAL) }
    }

    /// All fields, as bytes.
    pub fn known(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes the caller gave.
    pub fn given(&self) -> u32 {
        self.user.len() as u32
    }

    /// `EINVAL` unless everything behind the last field of the command, which ends at `end`, is zero.
    pub fn ends_at(&self, end: usize) -> Result<(), Errno> {
        if self.bytes.iter().skip(end).any(|b| *b != 0) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// True if the caller's attributes reach to `end`: fields that came later are answered only to those who know them.
    pub fn reaches(&self, end: usize) -> bool {
        self.user.len() >= end
    }

    /// Answers in the caller's own attributes. `EFAULT` if they do not reach so far.
    pub fn answer(&mut self, at: Field, bytes: &[u8]) -> Result<(), Errno> {
        let to = self.user.get_mut(at.0..at.0 + bytes.len()).ok_or(Errno::EFAULT)?;
        to.copy_from_slice(bytes);
        Ok(())
    }
}

/// Declares the fields of a command: `name { FIELD = offset, … ; end, end in 4.17 }`.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident { $($field:ident = $at:literal,)* ; $end:literal $(, $old:literal)? })*) => {
        $(
            $(#[$doc])*
            pub mod $name {
                #![allow(missing_docs, reason = "the names are the user API's")]
                use super::Field;
                $(pub const $field: Field = Field($at);)*
                /// Where the last field ends.
                pub const END: usize = $end;
                $(
                    /// Where it ended in Linux 4.17.
                    pub const END_4_17: usize = $old;
                )?
            }
        )*
    };
}

fields! {
    /// `BPF_MAP_CREATE`.
    map_create {
        MAP_TYPE = 0, KEY_SIZE = 4, VALUE_SIZE = 8, MAX_ENTRIES = 12, MAP_FLAGS = 16, INNER_MAP_FD = 20, NUMA_NODE = 24,
        MAP_NAME = 28, MAP_IFINDEX = 44, BTF_FD = 48, BTF_KEY_TYPE_ID = 52, BTF_VALUE_TYPE_ID = 56,
        BTF_VMLINUX_VALUE_TYPE_ID = 60, MAP_EXTRA = 64, VALUE_TYPE_BTF_OBJ_FD = 72, MAP_TOKEN_FD = 76,
        EXCL_PROG_HASH = 80, EXCL_PROG_HASH_SIZE = 88,
        ; 92, 48
    }
    /// The commands on one element of a map.
    map_elem { MAP_FD = 0, KEY = 8, VALUE = 16, NEXT_KEY = 16, FLAGS = 24, ; 32 }
    /// The commands on many elements of a map.
    map_batch {
        IN_BATCH = 0, OUT_BATCH = 8, KEYS = 16, VALUES = 24, COUNT = 32, MAP_FD = 36, ELEM_FLAGS = 40, FLAGS = 48,
        ; 56
    }
    /// `BPF_MAP_FREEZE`.
    map_freeze { MAP_FD = 0, ; 4 }
    /// `BPF_PROG_LOAD`.
    prog_load {
        PROG_TYPE = 0, INSN_CNT = 4, INSNS = 8, LICENSE = 16, LOG_LEVEL = 24, LOG_SIZE = 28, LOG_BUF = 32,
        KERN_VERSION = 40, PROG_FLAGS = 44, PROG_NAME = 48, PROG_IFINDEX = 64, EXPECTED_ATTACH_TYPE = 68,
        PROG_BTF_FD = 72, FUNC_INFO_REC_SIZE = 76, FUNC_INFO = 80, FUNC_INFO_CNT = 88, LINE_INFO_REC_SIZE = 92,
        LINE_INFO = 96, LINE_INFO_CNT = 104, ATTACH_BTF_ID = 108, ATTACH_PROG_FD = 112, CORE_RELO_CNT = 116,
        FD_ARRAY = 120, CORE_RELOS = 128, CORE_RELO_REC_SIZE = 136, LOG_TRUE_SIZE = 140, PROG_TOKEN_FD = 144,
        FD_ARRAY_CNT = 148, SIGNATURE = 152, SIGNATURE_SIZE = 160, KEYRING_ID = 164,
        ; 168, 72
    }
    /// `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
    obj { PATHNAME = 0, BPF_FD = 8, FILE_FLAGS = 12, PATH_FD = 16, ; 20 }
    /// `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
    prog_attach {
        TARGET_FD = 0, ATTACH_BPF_FD = 4, ATTACH_TYPE = 8, ATTACH_FLAGS = 12, REPLACE_BPF_FD = 16, RELATIVE_FD = 20,
        EXPECTED_REVISION = 24,
        ; 32
    }
    /// `BPF_PROG_TEST_RUN`.
    test_run {
        PROG_FD = 0, RETVAL = 4, DATA_SIZE_IN = 8, DATA_SIZE_OUT = 12, DATA_IN = 16, DATA_OUT = 24, REPEAT = 32,
        DURATION = 36, CTX_SIZE_IN = 40, CTX_SIZE_OUT = 44, CTX_IN = 48, CTX_OUT = 56, FLAGS = 64, CPU = 68,
        BATCH_SIZE = 72,
        ; 76
    }
    /// `BPF_*_GET_NEXT_ID`.
    next_id { START_ID = 0, NEXT_ID = 4, ; 8 }
    /// `BPF_PROG_GET_FD_BY_ID`, `BPF_LINK_GET_FD_BY_ID`.
    fd_by_id { ID = 0, ; 4 }
    /// `BPF_MAP_GET_FD_BY_ID`.
    map_fd_by_id { ID = 0, OPEN_FLAGS = 8, ; 12 }
    /// `BPF_BTF_GET_FD_BY_ID`.
    btf_fd_by_id { ID = 0, OPEN_FLAGS = 8, FD_BY_ID_TOKEN_FD = 12, ; 16 }
    /// `BPF_OBJ_GET_INFO_BY_FD`.
    info { BPF_FD = 0, INFO_LEN = 4, INFO = 8, ; 16 }
    /// `BPF_BTF_LOAD`.
    btf_load {
        BTF = 0, BTF_LOG_BUF = 8, BTF_SIZE = 16, BTF_LOG_SIZE = 20, BTF_LOG_LEVEL = 24, BTF_LOG_TRUE_SIZE = 28,
        BTF_FLAGS = 32, BTF_TOKEN_FD = 36,
        ; 40
    }
    /// `BPF_ENABLE_STATS`.
    enable_stats { TYPE = 0, ; 4 }
    /// `BPF_LINK_CREATE`.
    link_create {
        PROG_FD = 0, TARGET_FD = 4, ATTACH_TYPE = 8, FLAGS = 12, COOKIE = 16,
        KPROBE_FLAGS = 16, KPROBE_CNT = 20, KPROBE_SYMS = 24, KPROBE_ADDRS = 32, KPROBE_COOKIES = 40,
        UPROBE_PATH = 16, UPROBE_OFFSETS = 24, UPROBE_REF_CTRS = 32, UPROBE_COOKIES = 40, UPROBE_CNT = 48,
        UPROBE_FLAGS = 52, UPROBE_PID = 56,
        TARGET_BTF_ID = 16, TRACING_COOKIE = 24, ITER_INFO = 16, ITER_INFO_LEN = 24,
        ; 60
    }
    /// `BPF_ITER_CREATE`.
    iter_create { LINK_FD = 0, FLAGS = 4, ; 8 }
    /// `BPF_TOKEN_CREATE`.
    token_create { FLAGS = 0, BPFFS_FD = 4, ; 8 }
    /// `BPF_LINK_UPDATE`.
    link_update { LINK_FD = 0, NEW_PROG_FD = 4, FLAGS = 8, OLD_PROG_FD = 12, ; 16 }
    /// `BPF_LINK_DETACH`.
    link_detach { LINK_FD = 0, ; 4 }
    /// `BPF_RAW_TRACEPOINT_OPEN`.
    raw_tracepoint { NAME = 0, PROG_FD = 8, COOKIE = 16, ; 24 }
    /// `BPF_TASK_FD_QUERY`.
    task_fd_query {
        PID = 0, FD = 4, FLAGS = 8, BUF_LEN = 12, BUF = 16, PROG_ID = 24, FD_TYPE = 28, PROBE_OFFSET = 32,
        PROBE_ADDR = 40,
        ; 48
    }
    /// `BPF_PROG_QUERY`.
    prog_query {
        TARGET_FD = 0, ATTACH_TYPE = 4, QUERY_FLAGS = 8, ATTACH_FLAGS = 12, PROG_IDS = 16, COUNT = 24,
        PROG_ATTACH_FLAGS = 32, LINK_IDS = 40, LINK_ATTACH_FLAGS = 48, REVISION = 56,
        ; 64
    }
    /// `BPF_PROG_BIND_MAP`.
    prog_bind_map { PROG_FD = 0, MAP_FD = 4, FLAGS = 8, ; 12 }
}
