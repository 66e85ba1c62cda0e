//! Programs for hooks of an application that has this verifier inside: their context is a struct of the application's,
//! described field by field.
//!
//! Byte regions are judged as packets are: what lies between a pointer and a comparison with its end can be accessed.
//! A context may have several; each has a number of its own (`Reg::what`), and the end of one says nothing of another.

use skep_ebpf::btf::{Btf, Kind as Type};
use skep_ebpf::helper::Helper;
use skep_ebpf::kfunc::Kfunc;

use crate::check_mem::Access;
use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::reg::{Kind, Reg, flag};

/// What the context of a hook's programs is, and what they return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostContext {
    /// The hook, for messages.
    pub hook: String,
    /// Name of the struct, as programs call it.
    pub struct_name: String,
    /// Its size in bytes.
    pub size: u32,
    /// Its fields, which do not overlap.
    pub fields: Vec<HostField>,
    /// What programs may return in the lower half of r0, both ends included; any number if `None`.
    pub returns: Option<(i32, i32)>,
    /// The application's functions that programs may call. Their prototypes are in the types that programs are verified
    /// with ([`Options::btf`](crate::Options::btf)), by these names.
    pub functions: Vec<HostFunction>,
}

/// A function of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFunction {
    /// Its name and flags.
    pub row: Kfunc,
    /// Its place among the application's functions.
    pub index: u32,
}

/// A field of a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostField {
    /// Its name.
    pub name: String,
    /// Bytes from the start of the struct.
    pub offset: u32,
    /// What it is.
    pub kind: HostKind,
}

/// What a field of a context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// Bytes without meaning to the verifier: a number, or an array of numbers.
    Data {
        /// How many.
        size: u32,
        /// Programs may write them.
        write: bool,
    },
    /// A pointer to bytes and, right behind it, the pointer to their end: 16 bytes.
    Bytes {
        /// Programs may write the bytes. The pointers themselves they never may.
        write: bool,
    },
}

impl HostKind {
    /// Bytes that such a field takes in the struct.
    pub fn size(self) -> u32 {
        match self {
            HostKind::Data { size, .. } => size,
            HostKind::Bytes { .. } => 16,
        }
    }
}

impl HostContext {
    /// The function of this name, if programs may call it.
    pub fn function(&self, name: &str) -> Option<&HostFunction> {
        self.functions.iter().find(|f| f.row.name == name)
    }

    /// True if a type is that of the context, by its name.
    pub(crate) fn is_named(&self, btf: &Btf, pointee: u32) -> bool {
        let Some(id) = btf.resolve(pointee) else { return false };
        matches!(btf.kind(id), Some(Type::Struct(_))) && btf.name(id) == self.struct_name
    }
}

/// Helpers that need nothing but what the caller's thread and maps have.
const HELPERS: &[u32] = &[
    1, 2, 3, // map elements
    5, 6, 7, 8, // clock, trace_printk, random numbers, CPU
    14, 15, 16, // the current process
    42, 87, 88, 89, // node; queues and stacks
    93, 94, // spin locks
    105, 106, 118, 125, // strings to numbers, clocks
    130, 131, 132, 133, 134, // ring buffers
    164, 165, 177, 181, 182, // for_each_map_elem, snprintf, trace_vprintk, loop, strncmp
    195, 197, 198, 199, 200, 201, 202, 203, // per-CPU elements, dynptrs
    208, 209, // a clock, user ring buffers
];

/// True if programs for hooks may call it.
pub(crate) fn allows(helper: &Helper) -> bool {
    HELPERS.contains(&helper.id)
}

impl Env<'_> {
    /// Checks an access to such a context; gives what a load yields.
    pub fn check_host_context(&self, host: &HostContext, a: Access, off: i64) -> Check<Reg> {
        let size = i64::from(a.size);
        let inside = |f: &&HostField| {
            let start = i64::from(f.offset);
            (start..start + i64::from(f.kind.size())).contains(&off)
        };
        let Some((index, field)) = host.fields.iter().enumerate().find(|(_, f)| inside(f)) else {
            return denied!(ContextAccess, "struct {} has no field at offset {off}", host.struct_name);
        };
        let (name, at) = (&field.name, off - i64::from(field.offset));
        let whole = at + size <= i64::from(field.kind.size());
        let region = |kind: Kind, write: bool| {
            let flags = if write { 0 } else { flag::READ_ONLY };
            Reg { what: index as u32 + 1, flags, ..Reg::pointer(kind) }
        };
        match field.kind {
            _ if off % size != 0 => denied!(Misaligned, "{size} bytes at offset {off} of the context are not aligned"),
            HostKind::Data { .. } if !whole => {
                denied!(
                    ContextAccess,
                    "{size} bytes at offset {off} go beyond the field {name} of struct {}",
                    host.struct_name
                )
            }
            HostKind::Data { write: false, .. } if a.write => {
                denied!(
                    ContextAccess,
                    "programs for {} cannot write the field {name} of struct {}",
                    host.hook,
                    host.struct_name
                )
            }
            HostKind::Data { .. } => Ok(Reg::UNKNOWN),
            HostKind::Bytes { .. } if a.write => {
                denied!(ContextAccess, "the pointer {name} of struct {} cannot be written", host.struct_name)
            }
            HostKind::Bytes { write } if size == 8 && !a.signed => match at {
                0 => Ok(region(Kind::Packet, write)),
                _ => Ok(region(Kind::PacketEnd, write)),
            },
            HostKind::Bytes { .. } => {
                denied!(
                    ContextAccess,
                    "the pointer {name} of struct {} is read as {size} bytes, not 8",
                    host.struct_name
                )
            }
        }
    }

    /// Checks what such a program returns.
    pub fn check_host_result(&mut self, host: &HostContext, r: u8, reg: &Reg) -> Check {
        if !reg.is_scalar() {
            return invalid!(ReturnValue, "the program returns {}, not a number", reg.describe());
        }
        let Some((min, max)) = host.returns else { return Ok(()) };
        self.mark_precise(r)?;
        if reg.num.smin32 < min || reg.num.smax32 > max {
            return invalid!(ReturnValue, "programs for {} return {min} to {max}; r{r} holds {}", host.hook, reg.num);
        }
        Ok(())
    }
}
