//! Loads, stores and atomic operations: where each pointer may lead.

use skep_ebpf::insn::{Insn, atomic, mode, size};
use skep_ebpf::uapi::{MapType, prog_flags};

use crate::check_alu::MAX_OFFSET;
use crate::ctx::{self, Loaded};
use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::object::{Field, FieldKind, arena};
use crate::prog_type::Packet;
use crate::reason::Reason;
use crate::reg::{Kind, Reg, flag};

/// One access through a register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// The pointer's register.
    pub reg: u8,
    /// Offset in the instruction.
    pub off: i16,
    /// Bytes.
    pub size: u32,
    /// A store.
    pub write: bool,
    /// A sign-extending load.
    pub signed: bool,
    /// Must be naturally aligned, whatever the machine can do.
    pub aligned: bool,
}

/// What is stored, or where a load goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operand {
    /// This register.
    Reg(u8),
    /// This number (a store).
    Imm(i32),
    /// Nothing in particular.
    None,
}

impl Env<'_> {
    pub fn check_load(&mut self, i: Insn) -> Check {
        let signed = match i.mode() {
            mode::MEM => false,
            mode::MEMSX if i.size() != size::DW => true,
            _ => return invalid!(InvalidOpcode, "opcode {:#04x} does not exist", i.code),
        };
        self.read_reg(i.src())?;
        self.may_write_reg(i.dst())?;
        let ptr = *self.state.reg(i.src());
        let a = Access { reg: i.src(), off: i.off, size: i.bytes(), write: false, signed, aligned: false };
        self.check_access(a, Operand::Reg(i.dst()))?;
        self.same_pointer_kind(ptr, true)
    }

    pub fn check_store_reg(&mut self, i: Insn) -> Check {
        if i.imm != 0 || i.mode() != mode::MEM {
            return invalid!(ReservedField, "the store uses fields that must be zero");
        }
        self.read_reg(i.src())?;
        self.read_reg(i.dst())?;
        let ptr = *self.state.reg(i.dst());
        let a = Access { reg: i.dst(), off: i.off, size: i.bytes(), write: true, signed: false, aligned: false };
        self.check_access(a, Operand::Reg(i.src()))?;
        self.same_pointer_kind(ptr, false)
    }

    pub fn check_store_imm(&mut self, i: Insn) -> Check {
        if i.mode() != mode::MEM || i.src() != 0 {
            return invalid!(ReservedField, "the store uses fields that must be zero");
        }
        self.read_reg(i.dst())?;
        let ptr = *self.state.reg(i.dst());
        let a = Access { reg: i.dst(), off: i.off, size: i.bytes(), write: true, signed: false, aligned: false };
        self.check_access(a, Operand::Imm(i.imm))?;
        self.same_pointer_kind(ptr, false)
    }

    pub fn check_atomic(&mut self, i: Insn) -> Check {
        match i.imm {
            atomic::LOAD_ACQ | atomic::STORE_REL if !self.options.profile.has_ordered_accesses() => {
                return invalid!(InvalidOpcode, "loads that acquire and stores that release do not exist yet");
            }
            atomic::LOAD_ACQ => return self.check_load_acquire(i),
            atomic::STORE_REL => return self.check_store_release(i),
            _ => {}
        }
        let fetch = i.imm & atomic::FETCH != 0;
        let known = matches!(i.imm, atomic::XCHG | atomic::CMPXCHG)
            || matches!(i.imm & !atomic::FETCH, atomic::ADD | atomic::AND | atomic::OR | atomic::XOR);
        if !known {
            return invalid!(InvalidOpcode, "atomic operation {:#x} does not exist", i.imm);
        }
        if !matches!(i.size(), size::W | size::DW) {
            return invalid!(AtomicAccess, "atomic operations are on 4 or 8 bytes");
        }
        self.read_reg(i.src())?;
        self.read_reg(i.dst())?;
        let compare = i.imm == atomic::CMPXCHG;
        if compare {
            self.read_reg(0)?;
        }
        self.check_not_shown(i.src(), self.state.reg(i.src()), Reason::PointerStore, "storing")?;
        if compare {
            self.check_not_shown(0, self.state.reg(0), Reason::PointerStore, "comparing")?;
        }
        self.atomic_pointer_ok(i.dst(), i.imm)?;
        let result = if compare { 0 } else { i.src() };
        if fetch {
            self.may_write_reg(result)?;
        }
        let a = Access { reg: i.dst(), off: i.off, size: i.bytes(), write: false, signed: false, aligned: true };
        if fetch && result == i.dst() {
            // The old value would stand where the pointer is needed for the write.
            return denied!(NotAPointer, "the old value is fetched into r{result}, which holds the address");
        }
        self.check_no_pointer_saved(a)?;
        // The old value is read first; then the slot holds something that is not known.
        self.check_access(a, if fetch { Operand::Reg(result) } else { Operand::None })?;
        self.check_access(Access { write: true, ..a }, Operand::None)
    }

    fn atomic_pointer_ok(&self, r: u8, op: i32) -> Check {
        let reg = self.state.reg(r);
        let barred = matches!(reg.kind, Kind::Ctx | Kind::FlowKeys) || reg.is_socket() || reg.is_packet();
        if barred || reg.kind == Kind::Arena && !arena::supports_atomic(op) {
            return denied!(AtomicAccess, "atomic operations do not work on r{r}, {}", reg.describe());
        }
        Ok(())
    }

    fn check_load_acquire(&mut self, i: Insn) -> Check {
        self.read_reg(i.src())?;
        self.may_write_reg(i.dst())?;
        self.atomic_pointer_ok(i.src(), i.imm)?;
        let ptr = *self.state.reg(i.src());
        let a = Access { reg: i.src(), off: i.off, size: i.bytes(), write: false, signed: false, aligned: true };
        self.check_access(a, Operand::Reg(i.dst()))?;
        self.same_pointer_kind(ptr, false)
    }

    fn check_store_release(&mut self, i: Insn) -> Check {
        self.read_reg(i.src())?;
        self.read_reg(i.dst())?;
        self.atomic_pointer_ok(i.dst(), i.imm)?;
        let ptr = *self.state.reg(i.dst());
        let a = Access { reg: i.dst(), off: i.off, size: i.bytes(), write: true, signed: false, aligned: true };
        self.check_access(a, Operand::Reg(i.src()))?;
        self.same_pointer_kind(ptr, false)
    }

    /// Accesses that are rewritten for one kind of pointer must have that kind on every path. Plain loads from objects
    /// are guarded where some path needs it, so those may differ.
    fn same_pointer_kind(&mut self, ptr: Reg, plain_load: bool) -> Check {
        let special = |k: Kind| k.is_socket() || matches!(k, Kind::Ctx | Kind::Btf | Kind::Arena);
        let object = |k| k == Kind::Btf || k == Kind::Mem && self.options.profile.untrusted_memory();
        let new = (ptr.kind, if ptr.kind == Kind::Btf { ptr.flags } else { 0 });
        let fact = &mut self.facts[self.insn];
        match fact.pointer {
            None => fact.pointer = Some(new),
            Some(old) if old != new && (special(old.0) || special(new.0)) => {
                if !(plain_load && object(old.0) && object(new.0)) {
                    return invalid!(
                        ContextAccess,
                        "one instruction accesses different kinds of pointers on different paths"
                    );
                }
                fact.pointer = Some((new.0, flag::UNTRUSTED));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Checks an access; for loads sets the destination.
    pub fn check_access(&mut self, a: Access, operand: Operand) -> Check {
        let ptr = *self.state.reg(a.reg);
        self.note_access(&ptr, a.off);
        if ptr.is_pointer() && ptr.kind != Kind::Arena {
            self.check_alignment(&ptr, a.reg, i64::from(a.off), a.size, a.aligned)?;
        }
        let off = i64::from(a.off) + i64::from(ptr.off);
        if ptr.nullable() && ptr.is_pointer() {
            return denied!(PossiblyNull, "r{} is {}; check it for null before the access", a.reg, ptr.describe());
        }
        if let (Operand::Reg(r), true) = (operand, a.write)
            && matches!(ptr.kind, Kind::MapValue | Kind::Mem | Kind::Packet | Kind::PacketMeta | Kind::Ctx)
        {
            self.check_not_shown(r, self.state.reg(r), Reason::PointerStore, "storing")?;
        }
        let mut loaded = Reg::UNKNOWN;
        match ptr.kind {
            Kind::NotInit => return denied!(UninitializedRegister, "r{} is accessed before it was written", a.reg),
            Kind::MapValue => {
                self.check_map_permission(&ptr, a.write)?;
                self.check_map_value(a.reg, &ptr, off, a.size.into(), false, true)?;
                if let Some(field) = self.pointer_field(&ptr, off) {
                    loaded = self.check_kptr_access(a, operand, field)?;
                } else if !a.write
                    && let Some(x) = self.frozen_value(&ptr, off, a)?
                {
                    loaded = Reg::constant(x);
                }
            }
            Kind::MapKey => {
                if a.write {
                    return denied!(ReadOnlyMemory, "a map key cannot be written");
                }
                let size = self.maps.get(ptr.what as usize).map_or(0, |m| m.def.key_size);
                self.check_region(a.reg, &ptr, off, a.size.into(), size.into(), false)?;
            }
            Kind::Mem => {
                if a.write && ptr.read_only() {
                    return denied!(ReadOnlyMemory, "r{} points to read-only memory", a.reg);
                }
                if ptr.flags & flag::BUFFER != 0 {
                    self.check_buffer(a.reg, &ptr, off, a.size.into())?;
                } else if !ptr.is_untrusted_memory() {
                    self.check_region(a.reg, &ptr, off, a.size.into(), ptr.size.into(), false)?;
                }
            }
            Kind::Ctx => loaded = self.check_ctx(a, &ptr, off)?,
            Kind::Stack => {
                return if a.write {
                    self.stack_write(a, &ptr, off, operand)
                } else {
                    self.stack_read(a, &ptr, off, operand)
                };
            }
            Kind::Packet | Kind::PacketMeta => {
                if a.write && !matches!(self.types.packet, Packet::Writes | Packet::Buffer) {
                    return denied!(PacketAccess, "{} programs cannot write packet data", self.prog.prog_type);
                }
                if a.write && ptr.read_only() {
                    return denied!(ReadOnlyMemory, "r{} points to bytes that cannot be written", a.reg);
                }
                self.check_packet(a.reg, &ptr, off, a.size.into(), false)?;
            }
            Kind::FlowKeys => {
                if off < 0 || off as u64 + u64::from(a.size) > ctx::FLOW_KEYS_SIZE {
                    return denied!(MemoryOutOfBounds, "the flow keys have no {} bytes at offset {off}", a.size);
                }
            }
            Kind::TpBuffer => {
                if off < 0 {
                    return denied!(NegativeOffset, "offset {off} of r{} is in front of the buffer", a.reg);
                }
                if ptr.num.as_const() != Some(0) {
                    return denied!(UnboundedOffset, "the buffer of a tracepoint is accessed at constant offsets");
                }
            }
            Kind::Socket | Kind::SockCommon | Kind::TcpSock | Kind::XdpSock => {
                if a.write {
                    return denied!(ReadOnlyMemory, "sockets cannot be written");
                }
                if ptr.num.smin < 0 {
                    return denied!(NegativeOffset, "r{} may be moved backwards", a.reg);
                }
                let access = ctx::Access { off, size: a.size, write: false, signed: a.signed };
                if ctx::socket_access(ptr.kind, access).is_none() {
                    return denied!(
                        ContextAccess,
                        "{} has no field of {} bytes at offset {off}",
                        ptr.describe(),
                        a.size
                    );
                }
            }
            Kind::Btf => loaded = self.check_kernel_object(a, &ptr, off)?,
            Kind::Arena => {}
            Kind::Map => loaded = self.check_map_object(a, &ptr, off)?,
            Kind::Scalar => {
                return denied!(NotAPointer, "r{} holds {}, not a pointer", a.reg, ptr.num);
            }
            Kind::PacketEnd | Kind::Func | Kind::Dynptr | Kind::Iter => {
                return denied!(NotAPointer, "{} cannot be dereferenced", ptr.describe());
            }
        }
        if !a.write {
            self.finish_load(a, operand, loaded);
        }
        Ok(())
    }

    /// Puts a loaded value into its register, cut to the width of the load.
    pub fn finish_load(&mut self, a: Access, operand: Operand, mut loaded: Reg) {
        let Operand::Reg(dst) = operand else { return };
        if loaded.is_scalar() && a.size < 8 {
            if a.signed {
                loaded.num.sext64(a.size);
            } else {
                loaded.num.truncate(a.size);
            }
        }
        *self.state.reg_mut(dst) = loaded;
    }

    /// Alignment: strict for the stack, else only where the program asked for it.
    pub fn check_alignment(&self, ptr: &Reg, r: u8, off: i64, size: u32, must: bool) -> Check {
        let strict = must || ptr.kind == Kind::Stack || self.strict_alignment();
        if !strict || size == 1 {
            return Ok(());
        }
        // Network headers start two bytes off a word on the machines that care.
        let base = if ptr.is_packet() { 2 } else { 0 };
        let fixed = i64::from(ptr.off).wrapping_add(off).wrapping_add(base);
        let sum = ptr.num.bits.add(crate::tnum::Tnum::constant(fixed as u64));
        if !sum.is_aligned(size.into()) {
            return denied!(Misaligned, "{size} bytes at offset {off} of r{r} ({}) are not aligned", ptr.describe());
        }
        Ok(())
    }

    /// The program asked for natural alignment everywhere, and not for the contrary as well.
    fn strict_alignment(&self) -> bool {
        self.prog.flags & (prog_flags::STRICT_ALIGNMENT | prog_flags::ANY_ALIGNMENT) == prog_flags::STRICT_ALIGNMENT
    }

    /// Both ends of where `off` plus the variable part can be lie in `[0, region)`.
    pub fn check_region(&self, r: u8, ptr: &Reg, off: i64, size: u64, region: u64, zero_ok: bool) -> Check {
        let what = ptr.describe();
        let fits = |at: i64| {
            (size > 0 || zero_ok) && at >= 0 && (at as u64).checked_add(size).is_some_and(|end| end <= region)
        };
        let reason = |at: i64, side: &str| -> Check {
            let text = format!("r{r} is {what}; {size} bytes at {side}offset {at} are outside of its {region} bytes");
            let reason = match ptr.kind {
                Kind::MapValue => crate::reason::Reason::MapValueOutOfBounds,
                Kind::MapKey => crate::reason::Reason::MapKeyOutOfBounds,
                Kind::Packet | Kind::PacketMeta => crate::reason::Reason::PacketOutOfBounds,
                _ => crate::reason::Reason::MemoryOutOfBounds,
            };
            Err(crate::fail::Failure::new(skep_ebpf::Errno::EACCES, reason, text))
        };
        let min = off.checked_add(ptr.num.smin);
        let bad_min =
            ptr.num.smin < 0 && (ptr.num.smin == i64::MIN || min.is_none_or(|m| m < 0 || i64::from(m as i32) != m));
        if bad_min {
            return denied!(NegativeOffset, "r{r} is {what}: its offset may be negative");
        }
        let min = min.unwrap_or(i64::MAX);
        if !fits(min) {
            return reason(min, if ptr.has_variable_offset() { "the lowest " } else { "" });
        }
        if ptr.num.umax >= MAX_OFFSET as u64 {
            return denied!(UnboundedOffset, "r{r} is {what}: its offset has no upper bound");
        }
        let max = off.saturating_add(ptr.num.umax as i64);
        if !fits(max) {
            return reason(max, if ptr.has_variable_offset() { "the highest " } else { "" });
        }
        Ok(())
    }

    /// A map value is accessed inside its bounds, and not where special fields are.
    pub fn check_map_value(&self, r: u8, ptr: &Reg, off: i64, size: u64, zero_ok: bool, direct: bool) -> Check {
        let Some(map) = self.maps.get(ptr.what as usize) else {
            return invalid!(UnknownMap, "r{r} points into a map that does not exist");
        };
        self.check_region(r, ptr, off, size, map.def.value_size.into(), zero_ok)?;
        let low = off.saturating_add(ptr.num.smin);
        let high = off.saturating_add(ptr.num.umax as i64).saturating_add(size as i64);
        for f in &map.record.fields {
            if low < i64::from(f.end()) && high > i64::from(f.off) {
                if f.kind.is_pointer() && direct {
                    let there = off.wrapping_add(ptr.num.smin) == i64::from(f.off) && size == 8;
                    if there && !ptr.has_variable_offset() {
                        continue;
                    }
                    return denied!(
                        SpecialField,
                        "the {} at offset {} of the value of map {} is accessed whole, at a constant offset",
                        f.kind.name(),
                        f.off,
                        map.def.name
                    );
                }
                return denied!(
                    SpecialField,
                    "the {} at offset {} of the value of map {} is only for its helpers",
                    f.kind.name(),
                    f.off,
                    map.def.name
                );
            }
        }
        Ok(())
    }

    /// The pointer field of a map value at this offset.
    fn pointer_field(&self, ptr: &Reg, off: i64) -> Option<Field> {
        let off = off.wrapping_add(ptr.num.as_const()? as i64);
        self.record_of(ptr)?.at(off, FieldKind::is_pointer).copied()
    }

    /// The map's flags permit the access.
    pub fn check_map_permission(&self, ptr: &Reg, write: bool) -> Check {
        let Some(map) = self.maps.get(ptr.what as usize) else { return Ok(()) };
        let name = &map.def.name;
        if write && map.program_read_only() {
            return denied!(ReadOnlyMemory, "map {name} is read-only for programs");
        }
        if !write && map.program_write_only() {
            return denied!(WriteOnlyMemory, "map {name} is write-only for programs");
        }
        Ok(())
    }

    /// What a load from a frozen map gives, where that is known.
    fn frozen_value(&self, ptr: &Reg, off: i64, a: Access) -> Check<Option<u64>> {
        let Some(var) = ptr.num.as_const() else { return Ok(None) };
        let Some(map) = self.maps.get(ptr.what as usize) else { return Ok(None) };
        if map.is_constant() && map.def.map_type == MapType::Array && map.def.max_entries != 1 {
            return Err(crate::fail::Failure::new(
                skep_ebpf::Errno::ENOTSUPP,
                crate::reason::Reason::ConstantMap,
                format!(
                    "map {} never changes and has several elements, so nothing can be loaded from it",
                    map.def.name
                ),
            ));
        }
        let Some(data) = map.frozen_data() else { return Ok(None) };
        let start = usize::try_from(off.wrapping_add(var as i64)).unwrap_or(usize::MAX);
        let mut value = [0u8; 8];
        let bytes = start.checked_add(a.size as usize).and_then(|end| data.get(start..end));
        let Some(bytes) = bytes else { return Ok(None) };
        value[..bytes.len()].copy_from_slice(bytes);
        // Truncation or sign extension to the width of the load comes later, for all loads.
        Ok(Some(u64::from_le_bytes(value)))
    }

    /// Checks an access to the context; gives what a load yields.
    pub fn check_ctx(&mut self, a: Access, ptr: &Reg, off: i64) -> Check<Reg> {
        self.check_unmodified(a.reg, ptr)?;
        if self.has_hook_context() {
            return self.check_hook_context(a, off);
        }
        if let Some(host) = self.options.host.as_deref() {
            return self.check_host_context(host, a, off);
        }
        let access = ctx::Access { off, size: a.size, write: a.write, signed: a.signed };
        let permitted = self.check_context_privilege(off, a.write);
        let Some(loaded) = ctx::access(self.prog.prog_type, self.attach, access).filter(|_| permitted) else {
            let verb = if a.write { "written" } else { "read" };
            return denied!(
                ContextAccess,
                "the context of {} programs has no field of {} bytes at offset {off} that can be {verb}",
                self.prog.prog_type,
                a.size
            );
        };
        if !a.write {
            let span = (off as u32, off as u32 + a.size);
            if !self.ctx_reads.contains(&span) {
                self.ctx_reads.push(span);
            }
        }
        Ok(match loaded {
            Loaded::Number => Reg::UNKNOWN,
            Loaded::Pointer { kind, nullable } => {
                if a.size == 4 {
                    self.facts[self.insn].pointer_load = ctx::pointer_field(self.prog.prog_type, off as i32);
                }
                let mut reg = Reg::pointer(kind);
                if nullable {
                    reg.flags |= flag::NULLABLE;
                    reg.id = self.new_id();
                }
                reg
            }
            Loaded::Trusted(name) => self.kernel_struct(name)?,
        })
    }

    /// A trusted pointer to a kernel struct.
    fn kernel_struct(&self, name: &str) -> Check<Reg> {
        match self.kernel_types()?.find_struct(name) {
            Some(id) => Ok(Reg::kernel_object(id, flag::TRUSTED)),
            None => denied!(ContextAccess, "the kernel has no struct {name}"),
        }
    }

    /// The packet is known to be long enough.
    pub fn check_packet(&self, r: u8, ptr: &Reg, off: i64, size: u64, zero_ok: bool) -> Check {
        if ptr.num.smin < 0 {
            return denied!(NegativeOffset, "r{r} is {}: its offset may be negative", ptr.describe());
        }
        let range = ptr.size as i32;
        if range < 0 {
            return invalid!(PacketOutOfBounds, "r{r} is known to stand at the end of the packet");
        }
        let fits =
            (size > 0 || zero_ok) && off >= 0 && (off as u64).checked_add(size).is_some_and(|e| e <= range as u64);
        if !fits {
            return denied!(
                PacketOutOfBounds,
                "r{r} is {}; {size} bytes at offset {off} are not behind a comparison with the end ({range} bytes are known to exist)",
                ptr.describe()
            );
        }
        Ok(())
    }
}
