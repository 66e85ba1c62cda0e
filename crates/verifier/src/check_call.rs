//! Calls: of functions of the program, global ones by their BTF types, and of helpers.

use skep_ebpf::Errno;
use skep_ebpf::helper::{self, Helper, Ret};
use skep_ebpf::insn::{Insn, MAX_CALL_FRAMES, call};
use skep_ebpf::uapi::{AttachType, MapType, ProgType};

use crate::env::{Env, Next};
use crate::fail::{Check, Failure, denied, invalid, unsupported};
use crate::helper_args::CallFacts;
use crate::reason::Reason;
use crate::reg::{Kind, Reg, flag};
use crate::state::Frame;

impl Env<'_> {
    pub fn check_call(&mut self, i: Insn) -> Check<Next> {
        if i.is_x() || i.dst() != 0 || (i.src() != call::KFUNC && i.off != 0) || i.src() > call::KFUNC {
            return invalid!(ReservedField, "the call uses fields that must be zero");
        }
        match i.src() {
            call::HELPER => {
                self.note_tail_call(i.imm as u32 == TAIL_CALL);
                self.check_helper(i.imm as u32)?;
                if i.imm as u32 == TAIL_CALL {
                    return self.check_tail_call();
                }
                Ok(Next::At(self.insn + 1))
            }
            call::SUBPROG => self.check_subprog_call(i),
            _ => self.check_kfunc_call(i),
        }
    }

    /// The program that is called returns to the caller of this function, with whatever it likes.
    fn check_tail_call(&mut self) -> Check<Next> {
        let next = self.may_end_function(Reg::UNKNOWN)?;
        if !matches!(next, Next::At(n) if n == self.insn + 1) {
            self.forget_packet();
        }
        Ok(next)
    }

    fn check_subprog_call(&mut self, i: Insn) -> Check<Next> {
        let target = crate::cfg::callee(self.insn, i);
        let function = usize::try_from(target).ok().and_then(|t| self.cfg.function_at(t));
        let Some(function) = function else {
            return invalid!(CallTarget, "the call leads to instruction {target}, which starts no function");
        };
        if let Some(global) = self.functions[function].global.clone() {
            self.check_global_call(function, &global)?;
            return Ok(Next::At(self.insn + 1));
        }
        if self.state.frames.len() >= MAX_CALL_FRAMES {
            return Err(Failure::new(
                Errno::E2BIG,
                Reason::CallDepth,
                format!(
                    "the call is the {}th in a row; {MAX_CALL_FRAMES} frames are possible",
                    self.state.frames.len() + 1
                ),
            ));
        }
        let (start, end) = (self.cfg.functions[function].start, self.cfg.functions[function].end);
        let instance = self.live.enter(self.state.frame().instance, self.insn, start, end);
        let mut frame = Frame::new(self.state.frames.len() as u8, function, instance, self.insn);
        frame.regs[1..=5].copy_from_slice(&self.state.regs()[1..=5]);
        frame.callback_loop = self.step_number();
        self.clear_caller_saved();
        self.state.frames.push(frame.into());
        Ok(Next::At(start))
    }

    /// Returns from a function of the program to its caller.
    pub fn leave_function(&mut self) -> Check<Next> {
        let r0 = *self.state.reg(0);
        if r0.kind == Kind::Stack {
            return invalid!(StackEscape, "a function returns a pointer to its stack, or its caller's");
        }
        if self.state.frame().callback.is_sync() {
            return self.leave_callback(&r0);
        }
        let Some(frame) = self.state.frames.pop() else {
            return invalid!(SubprogramReturn, "there is no caller to return to");
        };
        *self.state.reg_mut(0) = r0;
        Ok(Next::At(frame.callsite + 1))
    }

    fn check_helper(&mut self, id: u32) -> Check {
        let prog_type = self.prog.prog_type;
        self.check_helper_under_lock(id)?;
        let Some(h) = Helper::by_id(id) else {
            return invalid!(UnknownHelper, "helper {id} does not exist");
        };
        let profile = &self.options.profile;
        let barred = matches!(id, PROBE_WRITE_USER | OVERRIDE_RETURN) && !profile.host_changes
            || id == OVERRIDE_RETURN && !profile.error_injection
            || !profile.has_helper(id, prog_type);
        let by_hook = self.hook_allows(id);
        if let Some(host) = &self.options.host
            && !crate::host::allows(h)
        {
            return invalid!(HelperNotAllowed, "programs for {} cannot call bpf_{}", host.hook, h.name);
        }
        if barred || !by_hook.unwrap_or(h.allowed_in(prog_type)) {
            return invalid!(HelperNotAllowed, "programs of type {prog_type} cannot call bpf_{}", h.name);
        }
        self.check_helper_privilege(h)?;
        if by_hook.is_none() && !h.allowed_for(prog_type, self.attach) {
            return invalid!(HelperNotAllowed, "{prog_type} programs for {} cannot call bpf_{}", self.attach, h.name);
        }
        if h.needs_gpl(prog_type, self.attach) && !self.prog.gpl_compatible() {
            return invalid!(
                HelperNeedsGpl,
                "bpf_{} is for programs with a GPL-compatible licence; this one's is {:?}",
                h.name,
                self.prog.license
            );
        }
        if h.has(helper::SLEEPS) {
            if !self.may_sleep() {
                return invalid!(HelperSleeps, "bpf_{} may sleep, this program must not", h.name);
            }
            if let Some(section) = self.section_without_sleep() {
                return invalid!(SleepInSection, "bpf_{} may sleep, which is not possible in {section}", h.name);
            }
        }
        self.check_helper_place(h)?;
        if !self.helpers.contains(&id) {
            self.helpers.push(id);
        }

        let mut facts = CallFacts::default();
        for (n, arg) in self.helper_args(h).iter().enumerate() {
            self.check_arg(h, n as u8 + 1, *arg, &mut facts)?;
        }
        self.note_helper(h, &facts);
        if let Some(map) = facts.map {
            let map_type = self.maps.get(map as usize).map_or(MapType::Unspec, |m| m.def.map_type);
            // A program that walks over a map's sockets may change it.
            let walks = prog_type == ProgType::Tracing && self.attach == AttachType::TraceIter;
            if !crate::map_helpers::fit(id, map_type)
                || !(crate::map_helpers::may_change_sockmap(id, map_type, prog_type) || walks)
            {
                let why = format!("bpf_{} does not work on map {}, a {map_type}", h.name, self.map_name(map));
                // Walks ask the map for what its elements look like first.
                let errno = if id == FOR_EACH { Errno::ENOTSUPP } else { Errno::EINVAL };
                return Err(Failure::new(errno, Reason::MapNotForHelper, why));
            }
            let changes = matches!(id, MAP_UPDATE | MAP_DELETE | MAP_PUSH | MAP_POP);
            if changes && self.maps.get(map as usize).is_some_and(|m| m.program_read_only()) {
                return denied!(
                    ReadOnlyMemory,
                    "bpf_{} changes map {}, which is read-only for programs",
                    h.name,
                    self.map_name(map)
                );
            }
            if h.ret == Ret::MapValueOrNull && !crate::map_helpers::lookup_known(map_type) {
                return unsupported!(UnsupportedMapType, "look-ups in maps of type {map_type} are not judged yet");
            }
        }
        if let Some((r, size)) = facts.fills {
            let reg = *self.state.reg(r);
            if reg.kind == Kind::Stack {
                self.fill_stack(&reg, reg.off.into(), size);
            }
        }
        if id == DYNPTR_FROM_MEM && self.state.reg(1).kind != Kind::MapValue {
            return denied!(
                ArgumentType,
                "bpf_{} wants a map value in r1, which holds {}",
                h.name,
                self.state.reg(1).describe()
            );
        }
        let released = match facts.dynptr {
            Some(dynptr) if h.has(helper::RELEASE) => self.release_dynptr(dynptr),
            _ => !h.has(helper::RELEASE) || self.release(facts.reference),
        };
        if !released {
            return invalid!(ReleaseWithoutAcquire, "bpf_{} is given a reference that is not held", h.name);
        }
        if facts.kptr.is_some() && facts.reference != 0 && !self.give_kptr(facts.reference) {
            return invalid!(ReleaseWithoutAcquire, "bpf_{} is given a reference that is not held", h.name);
        }
        if id == TAIL_CALL {
            self.check_nothing_held("the tail call")?;
            // A known index is compiled in.
            let entries = facts.map.and_then(|m| self.maps.get(m as usize)).map_or(0, |m| m.def.max_entries);
            if self.state.reg(3).as_const().is_some_and(|k| k < u64::from(entries)) {
                self.mark_precise(3)?;
            }
        }
        if id == GET_LOCAL_STORAGE && !self.state.reg(2).is_null() {
            return invalid!(ArgumentConstant, "the flags in r2 of bpf_{} must be 0", h.name);
        }
        match id {
            // That the flags are zero is relied on.
            GET_LOCAL_STORAGE => self.mark_precise(2)?,
            SNPRINTF => self.check_snprintf()?,
            _ => {}
        }
        if h.has(helper::CALLBACK) {
            self.call_back(h, &facts)?;
        }
        self.clear_caller_saved();
        let r0 = self.helper_result(h, &facts)?;
        *self.state.reg_mut(0) = r0;
        if h.has(helper::MOVES_PKT) || facts.dynptr.is_some_and(|d| self.moves_packet(id, d)) {
            self.forget_packet();
        }
        Ok(())
    }

    fn helper_result(&mut self, h: &Helper, facts: &CallFacts) -> Check<Reg> {
        let mut r0 = match h.ret {
            Ret::Integer => self.number_result(h, facts),
            Ret::Void => return Ok(Reg::NOT_INIT),
            Ret::MapValue | Ret::MapValueOrNull => {
                let Some(map) = facts.map else {
                    return invalid!(UnknownMap, "bpf_{} has no map to return a value of", h.name);
                };
                let mut r = Reg { what: map, size: facts.map_uid, ..Reg::pointer(Kind::MapValue) };
                let Some(m) = self.maps.get(map as usize) else {
                    return invalid!(UnknownMap, "map {map} does not exist");
                };
                let present = h.ret == Ret::MapValue
                    || h.id == MAP_LOOKUP && facts.constant_key.is_some_and(|k| k < u64::from(m.def.max_entries));
                if !present {
                    r.flags |= flag::NULLABLE;
                } else {
                    if m.has_lock() {
                        r.id = self.new_id();
                    }
                    self.make_not_null(&mut r);
                }
                r
            }
            Ret::SocketOrNull => nullable(Kind::Socket),
            Ret::SockCommonOrNull => nullable(Kind::SockCommon),
            Ret::TcpSockOrNull => nullable(Kind::TcpSock),
            Ret::RingbufRecordOrNull => {
                let mut r = nullable(Kind::Mem);
                r.flags |= flag::RINGBUF;
                r.size = facts.alloc_size;
                r
            }
            Ret::DynptrMemOrNull => {
                let Some(dynptr) = facts.dynptr else {
                    return invalid!(DynptrState, "bpf_{} has no dynptr to give data of", h.name);
                };
                self.dynptr_data(dynptr, facts.alloc_size)
            }
            Ret::BtfOrNull if facts.kptr.is_some() => match &facts.kptr {
                Some(field) => self.taken_kptr(field)?,
                None => Reg::UNKNOWN,
            },
            Ret::Btf | Ret::BtfOrNull => self.object_result(h, facts)?,
        };
        if r0.nullable() {
            r0.id = self.new_id();
        }
        if crate::helper_objects::casts(h.id) {
            r0.ref_id = facts.reference;
        } else if h.has(helper::ACQUIRE) || h.id == MAP_LOOKUP && self.holds_sockets(facts.map) {
            let id = self.acquire();
            r0.id = id;
            r0.ref_id = id;
        }
        Ok(r0)
    }

    /// The values of the map are sockets; looking one up acquires it.
    fn holds_sockets(&self, map: Option<u32>) -> bool {
        let map = map.and_then(|m| self.maps.get(m as usize));
        map.is_some_and(|m| matches!(m.def.map_type, MapType::Sockmap | MapType::Sockhash))
    }

    /// Numbers that some helpers return are bounded.
    fn number_result(&self, h: &Helper, facts: &CallFacts) -> Reg {
        const MAX_ERRNO: i64 = 4095;
        let mut r = Reg::UNKNOWN;
        match h.id {
            GET_STACK | GET_TASK_STACK | PROBE_READ_STR | PROBE_READ_USER_STR | PROBE_READ_KERNEL_STR => {
                r.num.smax = facts.size_max as i64;
                r.num.smax32 = facts.size_max as i32;
                r.num.smin = -MAX_ERRNO;
                r.num.smin32 = -MAX_ERRNO as i32;
                r.num.sync();
            }
            GET_SMP_PROCESSOR_ID => {
                r.num = crate::scalar::Scalar::between(0, u64::from(self.options.profile.cpus.saturating_sub(1)));
            }
            _ => {}
        }
        r
    }
}

fn nullable(kind: Kind) -> Reg {
    Reg { flags: flag::NULLABLE, ..Reg::pointer(kind) }
}

const PROBE_WRITE_USER: u32 = 36;
const OVERRIDE_RETURN: u32 = 58;
const MAP_LOOKUP: u32 = 1;
const MAP_UPDATE: u32 = 2;
const MAP_DELETE: u32 = 3;
const GET_LOCAL_STORAGE: u32 = 81;
const MAP_PUSH: u32 = 87;
const MAP_POP: u32 = 88;
const GET_SMP_PROCESSOR_ID: u32 = 8;
const TAIL_CALL: u32 = 12;
const PROBE_READ_STR: u32 = 45;
const GET_STACK: u32 = 67;
const PROBE_READ_USER_STR: u32 = 114;
const PROBE_READ_KERNEL_STR: u32 = 115;
const GET_TASK_STACK: u32 = 141;
const SNPRINTF: u32 = 165;
const DYNPTR_FROM_MEM: u32 = 197;
const FOR_EACH: u32 = 164;
