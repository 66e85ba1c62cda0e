//! What must be known of the maps that a program uses.

use skep_ebpf::btf::{Btf, Kind as Type};
use skep_ebpf::insn::{Insn, pseudo};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType, map_flags, prog_flags};

use crate::fail::{Check, Failure, invalid};
use crate::reg::{Kind, Reg, flag};

/// Kinds of fields that only helpers may touch.
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
    Kptr,
}

impl FieldKind {
    /// The type's name in C.
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
            FieldKind::Kptr => "kptr",
        }
    }

    fn by_struct(name: &str) -> Option<(FieldKind, u32)> {
        Some(match name {
            "bpf_spin_lock" => (FieldKind::SpinLock, 4),
            "bpf_res_spin_lock" => (FieldKind::ResSpinLock, 8),
            "bpf_timer" => (FieldKind::Timer, 16),
            "bpf_wq" => (FieldKind::Workqueue, 16),
            "bpf_task_work" => (FieldKind::TaskWork, 8),
            "bpf_list_head" => (FieldKind::ListHead, 16),
            "bpf_list_node" => (FieldKind::ListNode, 24),
            "bpf_rb_root" => (FieldKind::RbRoot, 16),
            "bpf_rb_node" => (FieldKind::RbNode, 32),
            "bpf_refcount" => (FieldKind::Refcount, 4),
            _ => return None,
        })
    }
}

/// A special field of a map's value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub kind: FieldKind,
    pub off: u32,
    pub size: u32,
}

impl Field {
    /// True for pointers to kernel objects.
    pub fn is_kptr(&self) -> bool {
        self.kind == FieldKind::Kptr
    }
}

/// A map as the checker sees it.
#[derive(Debug)]
pub(crate) struct MapFacts<'p> {
    pub def: &'p MapDef,
    pub fields: Vec<Field>,
    /// Index of the inner map's definition.
    pub inner: Option<u32>,
}

impl MapFacts<'_> {
    /// True if a value holds a spin lock.
    pub fn has_lock(&self) -> bool {
        self.fields.iter().any(|f| matches!(f.kind, FieldKind::SpinLock | FieldKind::ResSpinLock))
    }

    /// Programs cannot write it.
    pub fn program_read_only(&self) -> bool {
        // A device map's values are the kernel's own, whatever its flags say.
        let devices = matches!(self.def.map_type, MapType::Devmap | MapType::DevmapHash);
        self.def.flags & map_flags::RDONLY_PROG != 0 || self.def.frozen || devices
    }

    /// Programs cannot read it.
    pub fn program_write_only(&self) -> bool {
        self.def.flags & map_flags::WRONLY_PROG != 0
    }

    /// The contents that nobody will ever change.
    pub fn frozen_data(&self) -> Option<&[u8]> {
        let single = self.def.map_type == MapType::Array && self.def.max_entries == 1;
        if self.def.frozen && single && self.program_read_only() { self.def.initial.as_deref() } else { None }
    }
}

/// Makes what was a pointer or null the pointer that it is. A value of a map of maps is a map, one of a map of sockets a
/// socket.
pub(crate) fn make_not_null(maps: &[MapFacts<'_>], reg: &mut Reg) {
    reg.flags &= !flag::NULLABLE;
    if reg.kind != Kind::MapValue {
        return;
    }
    let Some(map) = maps.get(reg.what as usize) else { return };
    let (kind, what) = match (map.inner, map.def.map_type) {
        (Some(inner), _) => (Kind::Map, inner),
        (_, MapType::Sockmap | MapType::Sockhash) => (Kind::Socket, 0),
        (_, MapType::Xskmap) => (Kind::XdpSock, 0),
        _ => return,
    };
    (reg.kind, reg.what) = (kind, what);
}

/// Collects the facts, inner maps at the end.
pub(crate) fn collect(prog: &Program) -> Vec<MapFacts<'_>> {
    let btf = prog.btf.as_deref();
    let facts = |def| MapFacts { def, fields: fields(btf, def), inner: None };
    let mut maps: Vec<MapFacts<'_>> = prog.maps.iter().map(facts).collect();
    for n in 0..maps.len() {
        let def: &MapDef = maps[n].def;
        if let Some(inner) = &def.inner {
            maps[n].inner = Some(maps.len() as u32);
            maps.push(facts(inner));
        }
    }
    maps
}

fn fields(btf: Option<&Btf>, def: &MapDef) -> Vec<Field> {
    let mut found = Vec::new();
    if let Some(btf) = btf
        && def.value_type_id != 0
    {
        walk(btf, def.value_type_id, 0, 0, &mut found);
    }
    found
}

/// Most elements of an array that are looked into: as many fields as the kernel would ever take.
const MAX_ELEMENTS: u32 = 64;

fn walk(btf: &Btf, id: u32, at: u32, depth: u32, found: &mut Vec<Field>) {
    if depth > 16 || found.len() > 256 {
        return;
    }
    let mut id = id;
    // A tag on the pointee makes a pointer a kptr.
    for _ in 0..32 {
        match btf.kind(id) {
            Some(k) => match k.modified() {
                Some(next) => id = next,
                None => break,
            },
            None => return,
        }
    }
    match btf.kind(id) {
        Some(Type::Struct(s)) => {
            if let Some((kind, size)) = FieldKind::by_struct(btf.name(id)) {
                found.push(Field { kind, off: at, size: size.max(s.size) });
                return;
            }
            for m in &s.members {
                if m.bit_offset % 8 == 0 {
                    walk(btf, m.ty, at.saturating_add(m.bit_offset / 8), depth + 1, found);
                }
            }
        }
        Some(Type::Array { elem, len, .. }) => {
            let Some(size) = btf.size_of(*elem).and_then(|s| u32::try_from(s).ok()) else { return };
            let before = found.len();
            for n in 0..(*len).min(MAX_ELEMENTS) {
                walk(btf, *elem, at.saturating_add(n.saturating_mul(size)), depth + 1, found);
                if found.len() == before {
                    break;
                }
            }
        }
        Some(Type::Datasec { vars, .. }) => {
            for &(var, off, _) in vars.iter() {
                if let Some(Type::Var { ty, .. }) = btf.kind(var) {
                    walk(btf, *ty, at.saturating_add(off), depth + 1, found);
                }
            }
        }
        Some(Type::Ptr { ty }) if tagged(btf, *ty) => found.push(Field { kind: FieldKind::Kptr, off: at, size: 8 }),
        _ => {}
    }
}

fn tagged(btf: &Btf, mut id: u32) -> bool {
    for _ in 0..32 {
        match btf.kind(id) {
            Some(Type::TypeTag { ty }) => {
                if matches!(btf.name(id), "kptr" | "kptr_untrusted" | "percpu_kptr" | "uptr") {
                    return true;
                }
                id = *ty;
            }
            Some(Type::Const { ty } | Type::Volatile { ty } | Type::Restrict { ty }) => id = *ty,
            _ => return false,
        }
    }
    false
}

/// True for programs that may run anywhere in the kernel.
pub(crate) fn is_tracing(prog: ProgType) -> bool {
    matches!(
        prog,
        ProgType::Kprobe
            | ProgType::Tracepoint
            | ProgType::PerfEvent
            | ProgType::RawTracepoint
            | ProgType::RawTracepointWritable
    )
}

/// Checks every map reference of the program, and that the map can be used by it.
pub(crate) fn check_references(prog: &Program, maps: &[MapFacts<'_>]) -> Check {
    let mut used = vec![false; prog.maps.len()];
    let mut at = 0;
    while let Some(&i) = prog.insns.get(at) {
        crate::check_insn::check_encoding(i).map_err(|f| f.at(at))?;
        if i.is_ld_imm64() {
            let next = prog.insns.get(at + 1).copied();
            check_wide(i, next).map_err(|f| f.at(at))?;
            if matches!(i.src(), pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE) {
                check_map(prog, maps, i, next.map_or(0, |n| n.imm), &mut used).map_err(|f| f.at(at))?;
            }
            at += 1;
        }
        at += 1;
    }
    check_storages(prog, &used)?;
    if used.iter().filter(|u| **u).count() > 64 {
        return Err(Failure::new(
            skep_ebpf::Errno::E2BIG,
            crate::reason::Reason::TooManyMaps,
            "the program uses more than 64 maps".into(),
        ));
    }
    Ok(())
}

/// A program has one storage of its own for each control group, and one for each CPU there.
fn check_storages(prog: &Program, used: &[bool]) -> Check {
    for storage in [MapType::CgroupStorage, MapType::PercpuCgroupStorage] {
        let mut maps = prog.maps.iter().zip(used).filter(|(m, used)| **used && m.map_type == storage);
        if let (Some((first, _)), Some((second, _))) = (maps.next(), maps.next()) {
            return Err(Failure::new(
                skep_ebpf::Errno::EBUSY,
                crate::reason::Reason::MapNotForProgram,
                format!("a program uses one map of type {storage}, not both {} and {}", first.name, second.name),
            ));
        }
    }
    Ok(())
}

fn check_wide(i: Insn, next: Option<Insn>) -> Check {
    let Some(next) = next else {
        return invalid!(InvalidLoadImmediate, "the 64-bit immediate at the end has no second half");
    };
    if next.code != 0 || next.regs != 0 || next.off != 0 {
        return invalid!(InvalidLoadImmediate, "the second half of the 64-bit immediate uses fields that must be zero");
    }
    match i.src() {
        0 | pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE | pseudo::BTF_ID | pseudo::FUNC => Ok(()),
        pseudo::MAP_FD | pseudo::MAP_VALUE => {
            invalid!(BadMapReference, "a map is named by file descriptor; programs name their maps by index here")
        }
        n => invalid!(InvalidLoadImmediate, "a 64-bit immediate of kind {n} does not exist"),
    }
}

fn check_map(prog: &Program, maps: &[MapFacts<'_>], i: Insn, off: i32, used: &mut [bool]) -> Check {
    let index = usize::try_from(i.imm).unwrap_or(usize::MAX);
    let (Some(map), Some(used)) = (maps.get(index), used.get_mut(index)) else {
        return invalid!(BadMapReference, "map {} does not exist; the program has {}", i.imm, prog.maps.len());
    };
    let def = map.def;
    if i.src() == pseudo::MAP_IDX {
        if off != 0 {
            return invalid!(InvalidLoadImmediate, "the reference of map {} has an offset", def.name);
        }
    } else {
        if def.map_type == MapType::Arena {
            return crate::fail::unsupported!(UnsupportedMapType, "arenas are not judged yet");
        }
        if def.map_type != MapType::Array || def.max_entries != 1 {
            return invalid!(
                BadMapReference,
                "only the value of an array with one element can be named directly; map {} is a {} with {} elements",
                def.name,
                def.map_type,
                def.max_entries
            );
        }
        if off as u32 >= def.value_size {
            return invalid!(
                BadMapReference,
                "offset {} is beyond the {} bytes of map {}",
                off as u32,
                def.value_size,
                def.name
            );
        }
    }
    if std::mem::replace(used, true) {
        return Ok(());
    }
    check_compatible(prog, map)
}

fn check_compatible(prog: &Program, map: &MapFacts<'_>) -> Check {
    let name = &map.def.name;
    for f in &map.fields {
        let tracing_barred = matches!(
            f.kind,
            FieldKind::SpinLock
                | FieldKind::ResSpinLock
                | FieldKind::ListHead
                | FieldKind::RbRoot
                | FieldKind::Timer
                | FieldKind::Workqueue
        );
        if tracing_barred && f.kind != FieldKind::ResSpinLock && is_tracing(prog.prog_type) {
            return invalid!(
                MapNotForProgram,
                "map {name} holds a {}, which {} programs cannot use",
                f.kind.name(),
                prog.prog_type
            );
        }
        if f.kind == FieldKind::SpinLock && prog.prog_type == ProgType::SocketFilter {
            return invalid!(
                MapNotForProgram,
                "map {name} holds a {}, which {} programs cannot use",
                f.kind.name(),
                prog.prog_type
            );
        }
    }
    if map.def.map_type == MapType::StructOps {
        return invalid!(MapNotForProgram, "programs cannot use the struct_ops map {name}");
    }
    if prog.flags & prog_flags::SLEEPABLE != 0 {
        let ok = matches!(
            map.def.map_type,
            MapType::Hash
                | MapType::LruHash
                | MapType::Array
                | MapType::PercpuHash
                | MapType::PercpuArray
                | MapType::LruPercpuHash
                | MapType::ArrayOfMaps
                | MapType::HashOfMaps
                | MapType::Ringbuf
                | MapType::UserRingbuf
                | MapType::InodeStorage
                | MapType::SkStorage
                | MapType::TaskStorage
                | MapType::CgrpStorage
                | MapType::Queue
                | MapType::Stack
                | MapType::Arena
        );
        if !ok {
            return invalid!(MapNotForProgram, "sleepable programs cannot use map {name}, a {}", map.def.map_type);
        }
    }
    Ok(())
}
