//! Arguments of helpers, by the kind that the prototype names.

use skep_ebpf::helper::{self, Access as Use, Arg, Helper};
use skep_ebpf::uapi::{MapType, map_flags};

use crate::check_alu::MAX_OFFSET;
use crate::check_mem::Access;
use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::object::timer::MapIdentity;
use crate::object::{Field, FieldKind};
use crate::prog_type::Packet;
use crate::reason::Reason;
use crate::reg::{Kind, Reg, flag};
use crate::stack::locate;
use crate::stack_object::Dynptr;
use crate::state::Byte;

/// What is learnt while the arguments of one call are checked.
#[derive(Debug, Default)]
pub(crate) struct CallFacts {
    /// The map argument.
    pub map: Option<u32>,
    /// The reference behind an argument.
    pub reference: u32,
    /// Register and size of stack that the helper fills.
    pub fills: Option<(u8, u64)>,
    /// Upper bound of a size argument.
    pub size_max: u64,
    /// Size of the memory that is returned.
    pub alloc_size: u32,
    /// The key of a look-up in an array, where it is known.
    pub constant_key: Option<u64>,
    /// Function argument.
    pub function: Option<u32>,
    /// Dynptr argument.
    pub dynptr: Option<Dynptr>,
    /// Which of several inner maps the map is.
    pub map_uid: u32,
    /// The map that a timer is in.
    pub identity: Option<MapIdentity>,
    /// The field that `bpf_kptr_xchg` changes.
    pub kptr: Option<Field>,
    /// A per-CPU pointer.
    pub percpu: Option<Reg>,
}

impl Env<'_> {
    pub fn check_arg(&mut self, h: &Helper, r: u8, arg: Arg, facts: &mut CallFacts) -> Check {
        let reg = *self.read_reg(r)?;
        let arg = match (arg, facts.map.and_then(|m| self.maps.get(m as usize)).map(|m| m.def.map_type)) {
            // The value of a socket map is a socket.
            (Arg::MapValue, Some(MapType::Sockmap | MapType::Sockhash)) => Arg::BtfSock,
            // Asking a bloom filter reads the value.
            (Arg::UninitMapValue, Some(MapType::BloomFilter)) => Arg::MapValue,
            _ => arg,
        };
        if arg == Arg::Anything {
            return self.check_not_shown(r, &reg, Reason::PointerStore, "passing");
        }
        if let (Some(field), Arg::BtfOrNull) = (facts.kptr, arg) {
            facts.reference = self.check_kptr_source(r, &reg, &field)?;
            return Ok(());
        }
        if matches!(arg, Arg::MapValueOrNull | Arg::UninitMapValue)
            && let Some(map) = facts.map.and_then(|m| self.maps.get(m as usize))
            && matches!(map.def.map_type, MapType::Sockmap | MapType::Sockhash)
        {
            return invalid!(
                MapNotForHelper,
                "bpf_{} does not work on map {}, which holds sockets",
                h.name,
                map.def.name
            );
        }
        if reg.is_packet() && !self.takes_packet(h) {
            return denied!(
                PacketAccess,
                "bpf_{} does not take packet data in r{r}; copy it to the stack first",
                h.name
            );
        }
        let may_be_null = matches!(
            arg,
            Arg::MemOrNull(_)
                | Arg::MapValueOrNull
                | Arg::CtxOrNull
                | Arg::StackOrNull
                | Arg::BtfOrNull
                | Arg::BtfSockOrNull
                | Arg::SocketOrNull
        );
        if !(may_be_null && reg.is_null()) {
            self.check_arg_kind(h, r, arg, &reg, may_be_null)?;
            self.check_arg_offset(r, &reg)?;
        }
        if arg == Arg::RingbufRecord && h.has(helper::RELEASE) || arg == Arg::BtfSock && h.has(helper::RELEASE) {
            if reg.off != 0 {
                return invalid!(
                    ReleaseWithoutAcquire,
                    "r{r} was moved by {}; a reference is released as it was acquired",
                    reg.off
                );
            }
            self.check_unmodified(r, &reg)?;
            if reg.ref_id == 0 {
                return invalid!(
                    ReleaseWithoutAcquire,
                    "r{r} is {}, which is not an acquired reference",
                    reg.describe()
                );
            }
        }
        if reg.ref_id != 0 && arg != Arg::KptrDest {
            if facts.reference != 0 {
                return denied!(ArgumentType, "two arguments of bpf_{} are acquired references", h.name);
            }
            facts.reference = reg.ref_id;
        }
        match arg {
            Arg::MapPtr => {
                if let Some(owner) = facts.identity {
                    self.check_same_map(r, &reg, owner)?;
                }
                (facts.map, facts.map_uid) = (Some(reg.what), reg.size);
            }
            Arg::SpinLock => self.check_spin_lock(h.id, r, &reg)?,
            Arg::Timer => {
                let owner = self.check_async_field(r, &reg, FieldKind::Timer)?;
                (facts.map, facts.map_uid, facts.identity) = (Some(owner.map), owner.uid, Some(owner));
            }
            Arg::KptrDest => facts.kptr = Some(self.check_kptr_destination(r, &reg)?),
            Arg::MapKey => self.check_key(h, r, &reg, facts)?,
            Arg::MapValueOrNull if reg.is_null() => {}
            Arg::MapValue | Arg::MapValueOrNull => {
                let size = self.value_size(h, facts)?;
                self.check_helper_memory(r, size, false, false, None, false)?;
            }
            Arg::UninitMapValue => {
                let size = self.value_size(h, facts)?;
                self.check_helper_memory(r, size, true, false, Some(facts), false)?;
            }
            Arg::Fixed(access, size) => {
                let fills = if access == Use::Write { Some(facts) } else { None };
                self.check_helper_memory(r, size.into(), access != Use::Read, false, fills, false)?;
                if access != Use::Read {
                    self.check_alignment(&reg, r, 0, size.into(), true)?;
                }
            }
            Arg::Size | Arg::SizeOrZero => {
                let before = self.helper_args(h).get(usize::from(r).wrapping_sub(2)).copied();
                let access = match before {
                    Some(Arg::Mem(a) | Arg::MemOrNull(a)) => a,
                    _ => Use::Read,
                };
                self.check_size(h, r, &reg, access, arg == Arg::SizeOrZero, facts)?;
            }
            Arg::AllocSize => {
                let Some(size) = reg.num.as_const() else {
                    return denied!(ArgumentConstant, "r{r} of bpf_{} is a constant; it holds {}", h.name, reg.num);
                };
                facts.alloc_size = size as u32;
                self.mark_precise(r)?;
            }
            Arg::ConstStr => self.check_const_str(h.name, r, &reg)?,
            Arg::Func => facts.function = Some(reg.what),
            Arg::PercpuBtf => facts.percpu = Some(reg),
            Arg::Dynptr(kind) => facts.dynptr = Some(self.check_dynptr_arg(h, r, kind)?),
            _ => {}
        }
        Ok(())
    }

    /// The register holds the kind of value that the argument wants.
    fn check_arg_kind(&self, h: &Helper, r: u8, arg: Arg, reg: &Reg, may_be_null: bool) -> Check {
        let memory = |write: bool| {
            matches!(
                reg.kind,
                Kind::Stack | Kind::Packet | Kind::PacketMeta | Kind::MapKey | Kind::MapValue | Kind::Mem
            ) && !(reg.read_only() && write)
                && !reg.is_untrusted_memory()
        };
        // Memory that is only for reading fits only where the helper says that it only reads.
        let reads_only = |a: Use| a == Use::Read;
        let ok = match arg {
            Arg::MapPtr => reg.kind == Kind::Map,
            // A slice that a kfunc gave is no place for keys and values.
            Arg::MapKey | Arg::MapValue | Arg::MapValueOrNull | Arg::UninitMapValue => {
                memory(true) && reg.flags & flag::SLICE == 0
            }
            Arg::Mem(a) | Arg::MemOrNull(a) | Arg::Fixed(a, _) => memory(!reads_only(a)),
            Arg::Size | Arg::SizeOrZero | Arg::AllocSize => reg.is_scalar(),
            Arg::Ctx | Arg::CtxOrNull => reg.kind == Kind::Ctx,
            Arg::SockCommon | Arg::BtfSock | Arg::BtfSockOrNull => reg.is_socket(),
            Arg::SocketOrNull => reg.kind == Kind::Socket,
            Arg::RingbufRecord => reg.kind == Kind::Mem && reg.flags & flag::RINGBUF != 0,
            Arg::Func => reg.kind == Kind::Func,
            Arg::StackOrNull => reg.kind == Kind::Stack,
            Arg::ConstStr | Arg::Timer => reg.kind == Kind::MapValue,
            Arg::SpinLock | Arg::KptrDest => reg.kind == Kind::MapValue || reg.is_plain_allocated(),
            Arg::Anything => true,
            Arg::Btf | Arg::BtfOrNull | Arg::PercpuBtf => false,
            Arg::Dynptr(_) => matches!(reg.kind, Kind::Stack | Kind::Dynptr),
        };
        if reg.nullable() && !may_be_null {
            return denied!(PossiblyNull, "r{r} of bpf_{} is {}; check it for null first", h.name, reg.describe());
        }
        if !ok && reg.kind == Kind::Btf {
            return self.check_object_arg(h, r, arg, reg);
        }
        if !ok {
            return denied!(
                ArgumentType,
                "bpf_{} wants {} in r{r}, which holds {}",
                h.name,
                wanted(arg),
                reg.describe()
            );
        }
        Ok(())
    }

    /// The helper takes pointers to packet data in programs of this type.
    fn takes_packet(&self, h: &Helper) -> bool {
        match self.types.packet {
            Packet::No => false,
            Packet::Reads | Packet::Writes => h.has(helper::PKT),
            Packet::Buffer => true,
        }
    }

    /// Pointers that have no inside must be passed as they are; those to objects may have been moved to a member.
    pub fn check_arg_offset(&self, r: u8, reg: &Reg) -> Check {
        if reg.is_movable_object() {
            if reg.off < 0 {
                return denied!(NegativeOffset, "r{r} is {}, in front of the object", reg.describe());
            }
            return self.check_unmodified(r, &Reg { off: 0, ..*reg });
        }
        let free = matches!(
            reg.kind,
            Kind::Stack
                | Kind::Packet
                | Kind::PacketMeta
                | Kind::MapKey
                | Kind::MapValue
                | Kind::Mem
                | Kind::Scalar
                | Kind::NotInit
        );
        if free || reg.kind == Kind::Arena { Ok(()) } else { self.check_unmodified(r, reg) }
    }

    fn value_size(&self, h: &Helper, facts: &CallFacts) -> Check<u64> {
        let Some(map) = facts.map.and_then(|m| self.maps.get(m as usize)) else {
            return invalid!(UnknownMap, "bpf_{} has no map", h.name);
        };
        Ok(map.def.value_size.into())
    }

    fn check_key(&mut self, h: &Helper, r: u8, reg: &Reg, facts: &mut CallFacts) -> Check {
        let Some(map) = facts.map.and_then(|m| self.maps.get(m as usize)) else {
            return invalid!(UnknownMap, "bpf_{} has no map", h.name);
        };
        let (size, map_type) = (u64::from(map.def.key_size), map.def.map_type);
        // An inner map made with this flag may have fewer elements than its definition says.
        let sized = map.def.flags & map_flags::INNER_MAP == 0;
        self.check_helper_memory(r, size, false, false, None, false)?;
        let elides = self.tracks_numbers() && self.options.profile.since(6, 14);
        if elides && sized && matches!(map_type, MapType::Array | MapType::PercpuArray) {
            facts.constant_key = self.constant_key(reg, size as usize)?;
        }
        Ok(())
    }

    /// The key on the stack, if it is one known number; relying on it makes it precise.
    fn constant_key(&mut self, key: &Reg, size: usize) -> Check<Option<u64>> {
        if key.kind != Kind::Stack {
            return Ok(None);
        }
        let Some(var) = key.num.as_const() else { return Ok(None) };
        let (slot, byte) = locate(i64::from(key.off).wrapping_add(var as i64));
        let Some(s) = self.state.frames.get(usize::from(key.frame)).and_then(|f| f.stack.get(slot)).copied() else {
            return Ok(None);
        };
        let run = |kind| (0..=byte).rev().take_while(|n| s.bytes[*n] == kind).count();
        if run(Byte::Zero) >= size {
            return Ok(Some(0));
        }
        if !s.is_scalar_spill() || run(Byte::Spill) != size {
            return Ok(None);
        }
        let Some(value) = s.reg.num.as_const() else { return Ok(None) };
        self.mark_slot_precise(key.frame, slot as u8)?;
        Ok(Some(value))
    }

    fn check_size(&mut self, h: &Helper, r: u8, reg: &Reg, access: Use, zero_ok: bool, facts: &mut CallFacts) -> Check {
        let n = reg.num;
        facts.size_max = n.umax;
        let constant = n.bits.is_const();
        if n.smin < 0 {
            return denied!(ArgumentSize, "the size in r{r} of bpf_{} may be negative: it is {n}", h.name);
        }
        if n.umin == 0 && !zero_ok {
            return denied!(ArgumentSize, "the size in r{r} of bpf_{} may be zero: it is {n}", h.name);
        }
        if n.umax >= MAX_OFFSET as u64 {
            return denied!(ArgumentSize, "the size in r{r} of bpf_{} has no upper bound: it is {n}", h.name);
        }
        // Only memory that is surely filled whole may be uninitialised before.
        let fills = if constant && access == Use::Write { Some(facts) } else { None };
        self.check_helper_memory(r - 1, n.umax, access != Use::Read, zero_ok, fills, false)?;
        self.mark_precise(r)
    }

    /// A helper accesses `size` bytes behind a register. With `fills` the memory need not be initialised and is
    /// afterwards.
    pub fn check_helper_memory(
        &mut self,
        r: u8,
        size: u64,
        write: bool,
        zero_ok: bool,
        fills: Option<&mut CallFacts>,
        any: bool,
    ) -> Check {
        let reg = *self.state.reg(r);
        let off = i64::from(reg.off);
        match reg.kind {
            Kind::Packet | Kind::PacketMeta => {
                if write && reg.read_only() {
                    return denied!(ReadOnlyMemory, "r{r} is {}, which cannot be written", reg.describe());
                }
                self.check_packet(r, &reg, off, size, zero_ok)
            }
            Kind::MapKey => {
                if write {
                    return denied!(ReadOnlyMemory, "r{r} is a map key, which cannot be written");
                }
                let region = self.maps.get(reg.what as usize).map_or(0, |m| m.def.key_size);
                self.check_region(r, &reg, off, size, region.into(), zero_ok)
            }
            Kind::MapValue => {
                self.check_map_permission(&reg, write)?;
                self.check_map_value(r, &reg, off, size, zero_ok, false)
            }
            Kind::Mem => {
                if write && reg.read_only() {
                    return denied!(ReadOnlyMemory, "r{r} points to read-only memory");
                }
                if reg.flags & flag::BUFFER != 0 {
                    return self.check_buffer(r, &reg, off, size);
                }
                self.check_region(r, &reg, off, size, reg.size.into(), zero_ok)
            }
            Kind::Stack => {
                if size == 0 && !zero_ok {
                    return denied!(ArgumentSize, "a size of zero is not possible here");
                }
                match fills {
                    Some(facts) if reg.num.bits.is_const() => {
                        facts.fills = Some((r, size));
                        self.check_stack_filled(r, &reg, off, size)
                    }
                    _ => self.check_stack_region(r, &reg, off, size, write),
                }
            }
            Kind::Btf if !write => self.check_object_memory(r, &reg, size),
            // A context as it is can be handed on; that its last byte is there says enough.
            Kind::Ctx if self.types.context.plain => {
                let Some(last) = size.checked_sub(1) else {
                    return if zero_ok { Ok(()) } else { denied!(ArgumentSize, "a size of zero is not possible here") };
                };
                let a = Access { reg: r, off: 0, size: 1, write, signed: false, aligned: false };
                self.check_ctx(a, &reg, off.saturating_add(last as i64)).map(|_| ())
            }
            Kind::Btf if !write => self.check_object_memory(r, &reg, size),
            _ if zero_ok && size == 0 && reg.is_null() => Ok(()),
            _ => {
                let _ = any;
                denied!(ArgumentType, "r{r} must point to {size} bytes of memory; it holds {}", reg.describe())
            }
        }
    }
}

/// What an argument wants, in words.
fn wanted(arg: Arg) -> &'static str {
    match arg {
        Arg::Anything => "any value",
        Arg::MapPtr => "a map",
        Arg::MapKey => "memory with a key",
        Arg::MapValue | Arg::MapValueOrNull | Arg::UninitMapValue => "memory for a value",
        Arg::Mem(_) | Arg::Fixed(..) => "memory",
        Arg::MemOrNull(_) => "memory or null",
        Arg::Size | Arg::SizeOrZero | Arg::AllocSize => "a number",
        Arg::Ctx => "the context",
        Arg::CtxOrNull => "the context or null",
        Arg::SpinLock => "a spin lock in a map value",
        Arg::SockCommon | Arg::BtfSock => "a socket",
        Arg::BtfSockOrNull => "a socket or null",
        Arg::SocketOrNull => "a full socket or null",
        Arg::Btf | Arg::BtfOrNull | Arg::PercpuBtf => "a pointer to a kernel type",
        Arg::RingbufRecord => "a reserved ring buffer record",
        Arg::Func => "a function",
        Arg::StackOrNull => "stack memory or null",
        Arg::ConstStr => "a constant string in a map value",
        Arg::Timer => "a timer in a map value",
        Arg::KptrDest => "a kptr in a map value",
        Arg::Dynptr(_) => "a dynptr",
    }
}
