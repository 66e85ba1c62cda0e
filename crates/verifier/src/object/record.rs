//! Special fields: parts of a map value or an allocated object that only their helpers and kernel functions touch.

/// Kinds of special fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FieldKind {
    SpinLock,
    ResSpinLock,
    Timer,
    Workqueue,
    TaskWork,
    ListHead,
    ListNode,
    RbRoot,
    RbNode,
    Refcount,
    /// A pointer that is stored and loaded like data, and trusted by nobody.
    KptrUntrusted,
    /// A pointer with a reference, moved by `bpf_kptr_xchg`.
    Kptr,
    /// The same, to memory of which each CPU has its own.
    KptrPercpu,
    /// A pointer to memory that user space shares.
    Uptr,
}

impl FieldKind {
    /// The kinds that are known by the name of their struct.
    pub const STRUCTS: [FieldKind; 10] = [
        FieldKind::SpinLock,
        FieldKind::ResSpinLock,
        FieldKind::Timer,
        FieldKind::Workqueue,
        FieldKind::TaskWork,
        FieldKind::ListHead,
        FieldKind::ListNode,
        FieldKind::RbRoot,
        FieldKind::RbNode,
        FieldKind::Refcount,
    ];

    /// The type's name in C, or what the field is.
    pub fn name(self) -> &'static str {
        match self {
            FieldKind::SpinLock => "bpf_spin_lock",
            FieldKind::ResSpinLock => "bpf_res_spin_lock",
            FieldKind::Timer => "bpf_timer",
            FieldKind::Workqueue => "bpf_wq",
            FieldKind::TaskWork => "bpf_task_work",
            FieldKind::ListHead => "bpf_list_head",
            FieldKind::ListNode => "bpf_list_node",
            FieldKind::RbRoot => "bpf_rb_root",
            FieldKind::RbNode => "bpf_rb_node",
            FieldKind::Refcount => "bpf_refcount",
            FieldKind::KptrUntrusted => "untrusted kptr",
            FieldKind::Kptr => "kptr",
            FieldKind::KptrPercpu => "per-CPU kptr",
            FieldKind::Uptr => "uptr",
        }
    }

    /// Bytes.
    pub fn size(self) -> u32 {
        match self {
            FieldKind::SpinLock | FieldKind::ResSpinLock | FieldKind::Refcount => 4,
            FieldKind::Timer | FieldKind::Workqueue | FieldKind::ListHead | FieldKind::RbRoot => 16,
            FieldKind::ListNode => 24,
            FieldKind::RbNode => 32,
            FieldKind::TaskWork
            | FieldKind::KptrUntrusted
            | FieldKind::Kptr
            | FieldKind::KptrPercpu
            | FieldKind::Uptr => 8,
        }
    }

    /// What its offset is a multiple of.
    pub fn align(self) -> u32 {
        self.size().min(8)
    }

    /// True for pointers.
    pub fn is_pointer(self) -> bool {
        matches!(self, FieldKind::KptrUntrusted | FieldKind::Kptr | FieldKind::KptrPercpu | FieldKind::Uptr)
    }

    /// True for pointers that `bpf_kptr_xchg` moves.
    pub fn is_owning(self) -> bool {
        matches!(self, FieldKind::Kptr | FieldKind::KptrPercpu)
    }

    /// True for what holds other objects.
    pub fn is_root(self) -> bool {
        matches!(self, FieldKind::ListHead | FieldKind::RbRoot)
    }

    /// True for what an object is held by.
    pub fn is_node(self) -> bool {
        matches!(self, FieldKind::ListNode | FieldKind::RbNode)
    }

    /// True for locks.
    pub fn is_lock(self) -> bool {
        matches!(self, FieldKind::SpinLock | FieldKind::ResSpinLock)
    }

    /// True for what a value has one of at most.
    pub fn is_unique(self) -> bool {
        matches!(
            self,
            FieldKind::SpinLock
                | FieldKind::ResSpinLock
                | FieldKind::Timer
                | FieldKind::Workqueue
                | FieldKind::TaskWork
        )
    }
}

/// The struct that a pointer field leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pointee {
    /// A type of the kernel.
    Kernel(u32),
    /// A type that only the program's BTF has.
    Local(u32),
    /// Not known, because the kernel's types are not.
    Unknown,
}

/// What a field is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// Itself.
    Plain,
    /// The struct pointed to.
    Object(Pointee),
    /// Objects of a struct of the program's BTF, by their node at this offset.
    Nodes { of: u32, node: u32 },
}

/// A special field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Field {
    pub kind: FieldKind,
    pub off: u32,
    pub content: Content,
}

impl Field {
    /// The offset behind it.
    pub fn end(&self) -> u32 {
        self.off.saturating_add(self.kind.size())
    }

    /// What a pointer field leads to.
    pub fn pointee(&self) -> Option<Pointee> {
        match self.content {
            Content::Object(p) => Some(p),
            _ => None,
        }
    }
}

/// The special fields of a type, by offset.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub fields: Vec<Field>,
}

impl Record {
    /// The field that begins here, if it is of a kind that is wanted.
    pub fn at(&self, off: i64, wanted: impl Fn(FieldKind) -> bool) -> Option<&Field> {
        self.fields.iter().find(|f| i64::from(f.off) == off && wanted(f.kind))
    }

    /// The first field of this kind.
    pub fn first(&self, kind: FieldKind) -> Option<&Field> {
        self.fields.iter().find(|f| f.kind == kind)
    }

    /// True if there is a field of this kind.
    pub fn has(&self, kind: FieldKind) -> bool {
        self.first(kind).is_some()
    }

    /// True if there is a field of such a kind.
    pub fn any(&self, wanted: impl Fn(FieldKind) -> bool) -> bool {
        self.fields.iter().any(|f| wanted(f.kind))
    }

    /// True if it has no special field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }
}
