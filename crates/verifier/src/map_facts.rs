//! What must be known of the maps that a program uses.

use std::borrow::Cow;

use skep_ebpf::Errno;
use skep_ebpf::btf::Btf;
use skep_ebpf::insn::{Insn, class, mode, pseudo, size};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType, map_flags, prog_flags};

use crate::fail::{Check, Failure, invalid};
use crate::object::timer::has_identity;
use crate::object::{self, FieldKind, Record, Structs, arena};
use crate::reason::Reason;
use crate::reg::{Kind, Reg, flag};
use crate::{Options, Privilege};

/// A map as the checker sees it.
#[derive(Debug)]
pub(crate) struct MapFacts<'p> {
    pub def: &'p MapDef,
    /// The special fields of its values.
    pub record: Record,
    /// Index of the inner map's definition.
    pub inner: Option<u32>,
}

impl MapFacts<'_> {
    /// True if a value holds a spin lock.
    pub fn has_lock(&self) -> bool {
        self.record.any(FieldKind::is_lock)
    }

    /// Programs cannot write it.
    pub fn program_read_only(&self) -> bool {
        // A device map's values are the kernel's own, whatever its flags say.
        let devices = matches!(self.def.map_type, MapType::Devmap | MapType::DevmapHash);
        self.def.flags & map_flags::RDONLY_PROG != 0 || devices
    }

    /// Programs cannot read it.
    pub fn program_write_only(&self) -> bool {
        self.def.flags & map_flags::WRONLY_PROG != 0
    }

    /// Nobody can write it any more.
    pub fn is_constant(&self) -> bool {
        self.def.frozen && self.def.flags & map_flags::RDONLY_PROG != 0
    }

    /// The contents that nobody will ever change.
    pub fn frozen_data(&self) -> Option<Cow<'_, [u8]>> {
        if !self.is_constant() || self.def.map_type != MapType::Array || self.def.max_entries != 1 {
            return None;
        }
        let (initial, size) = (self.def.initial.as_deref().unwrap_or_default(), self.def.value_size as usize);
        Some(match initial.get(..size) {
            Some(data) => data.into(),
            None => {
                let mut data = initial.to_vec();
                data.resize(size, 0);
                data.into()
            }
        })
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
    let names_functions = maps.get(what as usize).is_some_and(|m| m.record.any(has_identity));
    let uid = if kind == Kind::Map && names_functions { reg.id } else { 0 };
    (reg.kind, reg.what, reg.size) = (kind, what, uid);
}

/// Collects the facts, inner maps at the end.
pub(crate) fn collect<'p>(prog: &'p Program, kernel: Option<&Btf>, structs: &Structs) -> Vec<MapFacts<'p>> {
    let btf = prog.btf.as_deref();
    let facts = |def| MapFacts { def, record: object::map_record(def, btf, kernel, structs), inner: None };
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
pub(crate) fn check_references(prog: &Program, maps: &[MapFacts<'_>], options: &Options) -> Check {
    let mut used = vec![false; prog.maps.len()];
    let mut at = 0;
    while let Some(&i) = prog.insns.get(at) {
        crate::check_insn::check_encoding(i).map_err(|f| f.at(at))?;
        let narrow_atomic =
            i.class() == class::STX && i.mode() == mode::ATOMIC && matches!(i.size(), size::B | size::H);
        if narrow_atomic && !options.profile.has_ordered_accesses() {
            return invalid!(InvalidOpcode, "opcode {:#04x} does not exist yet", i.code)
                .map_err(|f: Box<Failure>| f.at(at));
        }
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
    let arena = prog.maps.iter().zip(&used).any(|(m, used)| *used && m.map_type == MapType::Arena);
    if arena && options.privilege != Privilege::Full {
        let text = "arenas need CAP_BPF and CAP_PERFMON".into();
        return Err(Failure::new(Errno::EPERM, Reason::CallNeedsPrivilege, text).whole());
    }
    check_storages(prog, &used)?;
    if used.iter().filter(|u| **u).count() > 64 {
        return Err(Failure::new(Errno::E2BIG, Reason::TooManyMaps, "the program uses more than 64 maps".into()));
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
            if !arena::in_bounds(def.max_entries, off) {
                return Err(Failure::new(
                    Errno::ERANGE,
                    Reason::BadMapReference,
                    format!("offset {} is beyond the {} pages of the arena {}", off as u32, def.max_entries, def.name),
                ));
            }
        } else if def.map_type != MapType::Array || def.max_entries != 1 {
            let why = format!(
                "only the value of an array with one element can be named directly; map {} is a {} with {} elements",
                def.name, def.map_type, def.max_entries
            );
            let array = def.map_type == MapType::Array;
            let errno = if array { skep_ebpf::Errno::ENOTSUPP } else { skep_ebpf::Errno::EINVAL };
            return Err(Failure::new(errno, crate::reason::Reason::BadMapReference, why));
        }
        if off as u32 >= def.value_size && def.map_type != MapType::Arena {
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
    check_compatible(prog, map)?;
    if def.map_type == MapType::Arena && arena::is_second(prog, i.imm as u32) {
        return Err(Failure::new(
            Errno::EBUSY,
            Reason::TooManyMaps,
            format!("the arena {} is the program's second; it can have one", def.name),
        ));
    }
    Ok(())
}

fn check_compatible(prog: &Program, map: &MapFacts<'_>) -> Check {
    let name = &map.def.name;
    let tracing = is_tracing(prog.prog_type);
    for f in &map.record.fields {
        let barred = match f.kind {
            FieldKind::SpinLock | FieldKind::ResSpinLock => tracing || prog.prog_type == ProgType::SocketFilter,
            FieldKind::ListHead | FieldKind::RbRoot | FieldKind::Timer | FieldKind::Workqueue => tracing,
            _ => false,
        };
        if barred {
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
