//! What a register holds.

use crate::scalar::Scalar;

/// Kinds of values. What the other fields of [`Reg`] mean depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Nothing yet.
    NotInit,
    /// A number.
    Scalar,
    /// The program's context.
    Ctx,
    /// A map itself; `what` is its index.
    Map,
    /// A value of the map `what`.
    MapValue,
    /// A key of the map `what`.
    MapKey,
    /// Stack of frame `frame`; offset 0 is its r10.
    Stack,
    /// Packet data.
    Packet,
    /// Metadata in front of the packet.
    PacketMeta,
    /// The end of the packet.
    PacketEnd,
    /// Memory of `size` bytes.
    Mem,
    /// A full socket (`struct bpf_sock`).
    Socket,
    /// A socket of any family.
    SockCommon,
    /// A `struct bpf_tcp_sock`.
    TcpSock,
    /// A `struct bpf_xdp_sock`.
    XdpSock,
    /// The `struct bpf_flow_keys` that a flow dissector fills.
    FlowKeys,
    /// The buffer of a writable raw tracepoint, of a size that is known when the program is attached.
    TpBuffer,
    /// A function of the program, the one that starts at instruction `what`.
    Func,
    /// A dynptr: one handed to a global function or callback, or what a stack slot holds (see [`crate::stack_object`]).
    Dynptr,
    /// An open-coded iterator, in a stack slot only (see [`crate::stack_object`]).
    Iter,
    /// An address in the arena, at no offset in particular.
    Arena,
    /// An object of a BTF type: `what` is the type's id, in the kernel's BTF or (with [`flag::LOCAL_TYPE`]) the program's.
    Btf,
}

impl Kind {
    /// True for sockets as the user API shows them.
    pub fn is_socket(self) -> bool {
        matches!(self, Kind::Socket | Kind::SockCommon | Kind::TcpSock | Kind::XdpSock)
    }
}

/// What else is true of a pointer.
pub(crate) mod flag {
    /// May be null.
    pub const NULLABLE: u32 = 1;
    /// Memory that must not be written.
    pub const READ_ONLY: u32 = 1 << 1;
    /// A ring buffer record, as reserved.
    pub const RINGBUF: u32 = 1 << 2;
    /// A valid object for as long as the program holds it or its caller does: it can be passed to kernel functions.
    pub const TRUSTED: u32 = 1 << 3;
    /// Valid until the RCU read section ends.
    pub const RCU: u32 = 1 << 4;
    /// May point anywhere: loads through it are guarded, and nothing but loads is possible.
    pub const UNTRUSTED: u32 = 1 << 5;
    /// A per-CPU address, not to be followed as it is.
    pub const PERCPU: u32 = 1 << 6;
    /// An address of user space.
    pub const USER: u32 = 1 << 7;
    /// `what` is a type of the program's own BTF.
    pub const LOCAL_TYPE: u32 = 1 << 8;
    /// Allocated by the program (`bpf_obj_new` and its like).
    pub const ALLOCATED: u32 = 1 << 9;
    /// Seen in a list or tree, not owned: gone when its lock is.
    pub const NON_OWNING: u32 = 1 << 10;
    /// Memory of a size that is checked when the program is attached; offsets are constant.
    pub const BUFFER: u32 = 1 << 18;
    /// Memory that a kfunc gave of a dynptr's data; `what` is the dynptr's id.
    pub const SLICE: u32 = 1 << 16;
    /// Such memory in a packet.
    pub const PACKET_SLICE: u32 = 1 << 17;
}

/// One register, or one spilled to the stack.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Reg {
    pub kind: Kind,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Frame that a stack pointer points into.
    pub frame: u8,
    /// A number that must be compared when states are: something depended on it.
    pub precise: bool,
    /// The same, found on a way that the kernel does not follow: rounds of loops may forget it.
    pub relied: bool,
    /// `off` says by how much a linked number differs.
    pub linked_delta: bool,
    /// That delta was added with 32 bits.
    pub narrow_delta: bool,
    /// Constant part of a pointer's offset; for linked numbers the delta.
    pub off: i32,
    /// What this value shares with others: numbers known equal, pointers from one null check, packet pointers of one
    /// origin. 0 is none.
    pub id: u32,
    /// The acquired reference behind this pointer, 0 if none.
    pub ref_id: u32,
    /// Map index or function, by kind.
    pub what: u32,
    /// Size of memory; which of several inner maps a map is, or a value is of; readable bytes of packet pointers (from offset 0 of their id).
    pub size: u32,
    /// The number; for pointers the variable part of the offset.
    pub num: Scalar,
}

impl Reg {
    /// Never written.
    pub const NOT_INIT: Reg = Reg {
        kind: Kind::NotInit,
        flags: 0,
        frame: 0,
        precise: false,
        relied: false,
        linked_delta: false,
        narrow_delta: false,
        off: 0,
        id: 0,
        ref_id: 0,
        what: 0,
        size: 0,
        num: Scalar::UNKNOWN,
    };

    /// A number of which nothing is known.
    pub const UNKNOWN: Reg = Reg { kind: Kind::Scalar, ..Reg::NOT_INIT };

    /// A known number.
    pub const fn constant(x: u64) -> Reg {
        Reg { num: Scalar::constant(x), ..Reg::UNKNOWN }
    }

    /// A pointer with offset 0.
    pub const fn pointer(kind: Kind) -> Reg {
        Reg { kind, num: Scalar::constant(0), ..Reg::NOT_INIT }
    }

    /// True for a number.
    pub fn is_scalar(&self) -> bool {
        self.kind == Kind::Scalar
    }

    /// True for anything but numbers and uninitialised registers.
    pub fn is_pointer(&self) -> bool {
        !matches!(self.kind, Kind::Scalar | Kind::NotInit)
    }

    /// The number, if only one is possible.
    pub fn as_const(&self) -> Option<u64> {
        if self.is_scalar() { self.num.as_const() } else { None }
    }

    /// True if this is the number zero.
    pub fn is_null(&self) -> bool {
        self.as_const() == Some(0)
    }

    /// True if this pointer may be null.
    pub fn nullable(&self) -> bool {
        self.flags & flag::NULLABLE != 0
    }

    /// True for an object that the program allocated, owned or not.
    pub fn is_allocated(&self) -> bool {
        self.kind == Kind::Btf && self.flags & flag::ALLOCATED != 0
    }

    /// True for an object that the program allocated, and nothing else can be said of.
    pub fn is_plain_allocated(&self) -> bool {
        self.kind == Kind::Btf && self.flags & !flag::LOCAL_TYPE == flag::ALLOCATED
    }

    /// True for an object that is passed to functions also by the address of one of its members.
    pub fn is_movable_object(&self) -> bool {
        const SEEN: u32 = flag::ALLOCATED | flag::NON_OWNING;
        const COUNTED: u32 = SEEN | flag::RCU;
        let flags = self.flags & !flag::LOCAL_TYPE;
        self.kind == Kind::Btf && matches!(flags, 0 | flag::ALLOCATED | flag::TRUSTED | flag::RCU | SEEN | COUNTED)
    }

    /// True for an object that was only seen in a list or tree.
    pub fn is_non_owning(&self) -> bool {
        self.is_allocated() && self.flags & flag::NON_OWNING != 0
    }

    /// True if this memory must not be written.
    pub fn read_only(&self) -> bool {
        self.flags & flag::READ_ONLY != 0
    }

    /// True for `data`, `data_meta` pointers.
    pub fn is_packet(&self) -> bool {
        matches!(self.kind, Kind::Packet | Kind::PacketMeta)
    }

    /// True for the packet pointers, the end included.
    pub fn is_packet_any(&self) -> bool {
        self.is_packet() || self.kind == Kind::PacketEnd
    }

    /// True if the pointer moved by something that is not known.
    pub fn has_variable_offset(&self) -> bool {
        !self.num.bits.is_const()
    }

    /// True for pointers that can never be null as they stand.
    pub fn never_null(&self) -> bool {
        match self.kind {
            _ if self.nullable() => false,
            Kind::Socket | Kind::TcpSock | Kind::MapValue | Kind::MapKey | Kind::SockCommon | Kind::Map => true,
            Kind::Mem => self.flags & flag::UNTRUSTED == 0,
            Kind::Btf => self.is_trusted(),
            _ => false,
        }
    }

    /// Breaks the link with other registers that hold the same number.
    pub fn unlink(&mut self) {
        self.id = 0;
        self.off = 0;
        self.linked_delta = false;
        self.narrow_delta = false;
    }

    /// True for sockets as the user API shows them.
    pub fn is_socket(&self) -> bool {
        self.kind.is_socket()
    }

    /// What the register holds, for messages.
    pub fn describe(&self) -> String {
        let what = match self.kind {
            Kind::NotInit => return "nothing".into(),
            Kind::Scalar => return self.num.to_string(),
            Kind::Ctx => "the context",
            Kind::Map => "a map",
            Kind::MapValue => "a map value",
            Kind::MapKey => "a map key",
            Kind::Stack => "the stack",
            Kind::Packet => "packet data",
            Kind::PacketMeta => "packet metadata",
            Kind::PacketEnd => "the end of the packet",
            Kind::Mem if self.flags & flag::RINGBUF != 0 => "a ring buffer record",
            Kind::Mem => "memory",
            Kind::Socket => "a socket",
            Kind::SockCommon => "a socket of any family",
            Kind::TcpSock => "a TCP socket",
            Kind::XdpSock => "an XDP socket",
            Kind::FlowKeys => "the flow keys",
            Kind::TpBuffer => "the buffer of the tracepoint",
            Kind::Func => "a function",
            Kind::Dynptr => "a dynptr",
            Kind::Iter => "an iterator",
            Kind::Arena => return "a pointer into the arena".into(),
            Kind::Btf if self.flags & flag::NON_OWNING != 0 => "an object that is only seen, not owned",
            Kind::Btf if self.flags & flag::ALLOCATED != 0 => "an allocated object",
            Kind::Btf if self.flags & flag::PERCPU != 0 => "a per-CPU kernel object",
            Kind::Btf if self.flags & flag::USER != 0 => "a user-space object",
            Kind::Btf if self.flags & flag::UNTRUSTED != 0 => "an untrusted kernel object",
            Kind::Btf if self.flags & flag::RCU != 0 => "an RCU-protected kernel object",
            Kind::Btf if self.flags & flag::TRUSTED != 0 => "a trusted kernel object",
            Kind::Btf => "a kernel object",
        };
        let null = if self.nullable() { " or null" } else { "" };
        let fixed = i64::from(self.off).wrapping_add(self.num.as_const().map_or(0, |x| x as i64));
        let mut text = format!("a pointer to {what}{null}");
        if fixed != 0 {
            text += &format!(" at offset {fixed}");
        }
        if self.has_variable_offset() {
            text += &format!(" plus {}", self.num);
        }
        text
    }
}
