//! The smallest change that would satisfy the rule, as far as the values and the C lines show it.

use skep_ebpf::btf::Kind as Type;
use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{Insn, MAX_CALL_FRAMES, class, jmp};
use skep_ebpf::program::LineInfo;
use skep_ebpf::uapi::ProgType;

use super::{Addition, Case, c, slice};
use crate::ctx;
use crate::kfunc::Kfuncs;
use crate::prog_type::Exit;
use crate::reason::Reason;
use crate::recorder;
use crate::reg::{Kind, Reg};
use crate::state::{Byte, Place, STACK_BYTES};

/// A suggestion.
pub(super) struct Fix {
    pub text: String,
    pub addition: Option<Addition>,
}

impl Fix {
    fn say(text: impl Into<String>) -> Option<Fix> {
        Some(Fix { text: text.into(), addition: None })
    }
}

/// The suggestion for a rejection: of this case if its values and lines suffice, else what satisfies the rule in general.
pub(super) fn suggest(case: &Case<'_>, subjects: &[Place]) -> Fix {
    let facts = Facts::of(case, subjects);
    let special = match case.failure.reason {
        Reason::PossiblyNull => facts.null_check().filter(|_| !facts.is_null()).or_else(|| facts.null_passed()),
        Reason::LockHeld => facts.other_lock(),
        Reason::ContextModified => facts.moved(),
        Reason::PointerArithmetic => facts.packet_end_moved(),
        Reason::MapValueOutOfBounds
        | Reason::MapKeyOutOfBounds
        | Reason::MemoryOutOfBounds
        | Reason::StackOutOfBounds
        | Reason::UnboundedOffset
        | Reason::NegativeOffset
        | Reason::PointerOutOfRange => facts.size_check().or_else(|| facts.index_check()),
        Reason::ArgumentSize => facts.size_check(),
        Reason::PacketOutOfBounds => facts.packet_check(),
        Reason::UninitializedRegister => facts.initialise(),
        Reason::UnreleasedReference => facts.release(),
        Reason::HelperNotAllowed => facts.helper_types(),
        Reason::ContextAccess => facts.context_sizes(),
        Reason::TooComplex | Reason::JumpSequence => facts.hottest(),
        Reason::ReturnValue => facts.returns(),
        Reason::SpilledPointerCorrupt => facts.special_slot(),
        Reason::SpecialField => facts.special_field(),
        Reason::CallDepth => {
            Fix::say(format!("Inline functions (`static __always_inline`) until at most {MAX_CALL_FRAMES} are active."))
        }
        _ => None,
    };
    special.unwrap_or_else(|| Fix { text: case.failure.reason.fix().into(), addition: None })
}

/// What the suggestions are made of.
struct Facts<'c, 'p> {
    case: &'c Case<'p>,
    insn: Insn,
    line: Option<&'p LineInfo>,
    /// The first register at fault and what it holds.
    subject: Option<(u8, Reg)>,
}

/// A helper that is called, and its name in C.
fn called(i: Insn) -> Option<&'static Helper> {
    if i.class() == class::JMP && i.op() == jmp::CALL && i.is_helper_call() {
        Helper::by_id(i.imm as u32)
    } else {
        None
    }
}

/// The kernel function that gives back what another one acquires.
fn releaser(acquires: &str) -> Option<String> {
    if let Some(iter) = acquires.strip_suffix("_new").filter(|n| n.starts_with("bpf_iter_")) {
        return Some(format!("{iter}_destroy"));
    }
    if let Some(object) = acquires.strip_suffix("_acquire").filter(|n| *n != "bpf_refcount") {
        return Some(format!("{object}_release"));
    }
    let known = match acquires {
        "bpf_task_from_pid" | "bpf_task_from_vpid" => "bpf_task_release",
        "bpf_cgroup_from_id" | "bpf_cgroup_ancestor" | "bpf_task_get_cgroup1" => "bpf_cgroup_release",
        "bpf_cpumask_create" => "bpf_cpumask_release",
        "bpf_percpu_obj_new_impl" => "bpf_percpu_obj_drop",
        "bpf_obj_new_impl"
        | "bpf_refcount_acquire_impl"
        | "bpf_list_pop_front"
        | "bpf_list_pop_back"
        | "bpf_rbtree_remove" => "bpf_obj_drop",
        _ => return None,
    };
    Some(known.into())
}

impl<'c, 'p> Facts<'c, 'p> {
    fn of(case: &'c Case<'p>, subjects: &[Place]) -> Facts<'c, 'p> {
        let insn = case.program.insns.get(case.insn).copied().unwrap_or(Insn::new(0, 0, 0, 0, 0));
        let frames = case.walk.as_ref().map(|w| w.frames.as_slice()).unwrap_or_default();
        let subject = subjects.iter().find_map(|p| match *p {
            Place::Reg { reg, .. } => Some((reg, recorder::at(frames, *p)?)),
            Place::Slot { .. } => None,
        });
        let line = case.program.line_of(case.insn).filter(|l| !l.text.is_empty());
        Facts { case, insn, line, subject }
    }

    fn reg(&self, r: u8) -> Option<Reg> {
        let frames = &self.case.walk.as_ref()?.frames;
        frames.last()?.regs.get(usize::from(r)).copied()
    }

    /// A check in C in front of the failing line.
    fn add(&self, code: String, why: &str) -> Option<Fix> {
        let line = self.line?;
        let addition = Addition { file: line.file.to_string(), line: line.line, code: code.clone() };
        Some(Fix { text: format!("Add `{code}` before line {}{why}.", line.line), addition: Some(addition) })
    }

    /// The variable that holds a value, by the line that made it.
    fn made_as(&self, place: Place) -> Option<(&'p LineInfo, &'p str)> {
        let walk = self.case.walk.as_ref()?;
        // Back to the newest instruction that could have made it: a call or a load that is assigned.
        let reg = match place {
            Place::Reg { reg, .. } => self.reg(reg)?,
            Place::Slot { .. } => return None,
        };
        let program = self.case.program;
        for at in walk.path().rev().skip(1) {
            let Some(&i) = program.insns.get(at) else { break };
            let makes = match reg.kind {
                Kind::MapValue
                | Kind::Map
                | Kind::Mem
                | Kind::Socket
                | Kind::SockCommon
                | Kind::TcpSock
                | Kind::XdpSock
                | Kind::Btf => i.class() == class::JMP && i.op() == jmp::CALL || i.class() == class::LDX,
                _ => false,
            };
            if makes
                && let Some(line) = program.line_of(at)
                && let Some(name) = c::assigned(&line.text, line.column)
            {
                return Some((line, name));
            }
        }
        None
    }

    fn is_null(&self) -> bool {
        self.subject.is_some_and(|(_, reg)| reg.is_null())
    }

    fn null_passed(&self) -> Option<Fix> {
        let (r, _) = self.subject.filter(|_| self.is_null())?;
        Fix::say(format!("Pass an object: r{r} is NULL on this path."))
    }

    /// A lock is given back that is another than the one that is held.
    fn other_lock(&self) -> Option<Fix> {
        let unlock = called(self.insn)?.name == "spin_unlock";
        unlock.then_some(())?;
        Fix::say("Unlock what was locked: the same lock, of the value that the same look-up gave.")
    }

    /// A pointer that is passed on with an offset.
    fn moved(&self) -> Option<Fix> {
        let (r, reg) = self.subject.filter(|(_, reg)| reg.kind != Kind::Ctx && reg.is_pointer())?;
        let _ = reg;
        Fix::say(format!("Pass the pointer in r{r} as it came, with no offset added."))
    }

    fn packet_end_moved(&self) -> Option<Fix> {
        self.subject.filter(|(_, reg)| reg.kind == Kind::PacketEnd)?;
        Fix::say("Leave data_end as it is: add to the packet pointer, and compare the sum with data_end.")
    }

    fn null_check(&self) -> Option<Fix> {
        let (r, _) = self.subject?;
        let frame = self.case.walk.as_ref()?.frames.len().saturating_sub(1) as u8;
        let named = self.made_as(Place::Reg { frame, reg: r }).map(|(_, name)| name);
        let here = self.line.and_then(|l| c::expression(&l.text, l.column));
        let name = named.or_else(|| here.and_then(|e| e.split(['-', '[', '.']).next()))?;
        self.add(format!("if (!{name}) return 0;"), "")
    }

    /// Bytes of the memory behind a pointer, and a word for it.
    fn region(&self, ptr: &Reg) -> Option<(i64, String)> {
        let map = || self.case.program.maps.get(ptr.what as usize);
        Some(match ptr.kind {
            Kind::MapValue => (map()?.value_size.into(), format!("the value of map {}", map()?.name)),
            Kind::MapKey => (map()?.key_size.into(), format!("the key of map {}", map()?.name)),
            Kind::Mem => (ptr.size.into(), "the memory".into()),
            Kind::Stack => (0, "the stack".into()),
            _ => return None,
        })
    }

    fn index_check(&self) -> Option<Fix> {
        let (_, ptr) = self.subject?;
        if ptr.is_scalar() {
            return self.number_check(&ptr);
        }
        let (size, what) = self.region(&ptr)?;
        slice::base(self.insn)?;
        let bytes = i64::from(self.insn.bytes());
        let fixed = i64::from(ptr.off) + i64::from(self.insn.off);
        let room = size - fixed - bytes;
        if !ptr.has_variable_offset() {
            let at = fixed.checked_add(ptr.num.as_const()? as i64)?;
            return match ptr.kind {
                Kind::Stack => Fix::say(format!(
                    "Access the stack from −{STACK_BYTES} to −{bytes}: offset {at} lies outside of it."
                )),
                _ if size < bytes => {
                    Fix::say(format!("Access at most {size} bytes of {what}, or make it {bytes} bytes or more."))
                }
                _ if at < 0 => Fix::say(format!("Access {what} at an offset from 0 to {}.", size - bytes)),
                _ => Fix::say(format!(
                    "Access {what} at an offset of at most {}, or make it {} bytes or more.",
                    size - bytes,
                    at.saturating_add(bytes)
                )),
            };
        }
        if room < 0 || fixed < 0 && ptr.kind != Kind::Stack {
            return Fix::say(format!("Access {what} inside its {size} bytes, whatever the index is."));
        }
        let lowest = ptr.num.bits.mask | ptr.num.bits.value;
        let stride = 1i64.checked_shl(lowest.trailing_zeros()).filter(|s| *s > 0).unwrap_or(1);
        let count = match ptr.kind {
            // The object's size is not known, only where it begins.
            Kind::Stack => (-fixed - bytes) / stride + 1,
            _ => room / stride + 1,
        };
        if count < 1 {
            return None;
        }
        let line = self.line?;
        let at_column = c::expression(&line.text, line.column).filter(|e| e.contains('['));
        let index = at_column.or_else(|| c::element(&line.text)).and_then(c::index);
        let negative = ptr.num.smin < 0;
        match index.filter(|i| c::is_plain(i)).map(c::operand_of) {
            Some(i) if negative => {
                let signed = format!(" (or make `{i}` unsigned and check the upper bound alone)");
                self.add(format!("if ({i} < 0 || {i} >= {count}) return 0;"), &signed)
            }
            Some(i) => self.add(format!("if ({i} >= {count}) return 0;"), ""),
            None => Fix::say(format!(
                "Before line {}, leave if the index is not in 0 to {}: {what} has room for {count} {} here.",
                line.line,
                count - 1,
                if stride == 1 { "bytes".into() } else { format!("elements of {stride} bytes") }
            )),
        }
    }

    /// A number that is too large to be added to a pointer.
    fn number_check(&self, number: &Reg) -> Option<Fix> {
        let line = self.line?;
        let i = c::element(&line.text).and_then(c::index).filter(|i| c::is_plain(i)).map(c::operand_of)?;
        let low = if number.num.smin < 0 { format!("{i} < 0 || ") } else { String::new() };
        Fix::say(format!(
            "Compare `{i}` with the number of elements before line {}: `if ({low}{i} >= N) return 0;`.",
            line.line
        ))
    }

    /// Size arguments of helpers.
    fn size_check(&self) -> Option<Fix> {
        let helper = called(self.insn)?;
        let (r, number) = self.subject?;
        // A pointer at fault: the size is in the next register.
        let (r, number) = if number.is_scalar() { (r, number) } else { (r + 1, self.reg(r + 1)?) };
        let buffer = self.reg(r.checked_sub(1)?).filter(Reg::is_pointer);
        let room = buffer.and_then(|b| {
            let (size, _) = self.region(&b)?;
            let var = if b.has_variable_offset() { b.num.smax } else { b.num.as_const()? as i64 };
            size.checked_sub(i64::from(b.off))?.checked_sub(var)
        });
        let line = self.line?;
        let name = c::argument(&line.text, helper.name, usize::from(r.checked_sub(1)?));
        let room = room.filter(|n| *n > 0);
        if let Some(known) = number.as_const() {
            let room = room?;
            let wanted = if known == 0 { format!("from 1 to {room}") } else { format!("of at most {room}") };
            return Fix::say(format!(
                "Pass a size {wanted} instead of {}: {room} is what the memory in r{} has.",
                known as i64,
                r - 1
            ));
        }
        let name = name.filter(|n| c::is_plain(n)).map(c::operand_of);
        let low = if number.num.smin < 0 { "signed, so it may be negative" } else { "" };
        match (name, room) {
            (Some(n), Some(room)) if low.is_empty() => self.add(format!("if ({n} > {room}) return 0;"), ""),
            (Some(n), Some(room)) => {
                self.add(format!("if ({n} < 0 || {n} > {room}) return 0;"), &format!(" (`{n}` is {low})"))
            }
            (Some(n), None) => {
                Fix::say(format!("Compare `{n}` with the size of the buffer before line {}.", line.line))
            }
            (None, Some(room)) => {
                Fix::say(format!("Before line {}, make sure that the size in r{r} is from 0 to {room}.", line.line))
            }
            (None, None) => None,
        }
    }

    fn packet_check(&self) -> Option<Fix> {
        let (_, ptr) = self.subject?;
        if !ptr.is_packet() {
            return None;
        }
        let end = if ptr.kind == Kind::Packet { self.packet_end() } else { "data" };
        if slice::base(self.insn).is_none() {
            return Fix::say(format!(
                "Compare the pointer plus the size with {end} before the call, and leave if it is beyond."
            ));
        }
        let needed = i64::from(ptr.off) + i64::from(self.insn.off) + i64::from(self.insn.bytes());
        let known = ptr.size as i32;
        let why = match known {
            1.. if needed > i64::from(known) => format!(": {known} bytes are checked, {needed} are needed"),
            _ => String::new(),
        };
        let expression = self.line.and_then(|l| c::expression(&l.text, l.column));
        match expression.filter(|e| e.contains(['[', '-', '.'])) {
            Some(e) => self.add(format!("if ((void *)(&{e} + 1) > {end}) return 0;"), &why),
            None => {
                let name = expression?;
                self.add(format!("if ((void *)({name} + 1) > {end}) return 0;"), &why)
            }
        }
    }

    /// The variable that holds the end of the packet.
    fn packet_end(&self) -> &'p str {
        let program = self.case.program;
        let off = match program.prog_type {
            ProgType::Xdp => 4,
            _ => 80,
        };
        let path = self.case.walk.as_ref().map(|w| w.path().collect::<Vec<_>>()).unwrap_or_default();
        let loads =
            |at: &usize| program.insns.get(*at).is_some_and(|i| i.class() == class::LDX && i32::from(i.off) == off);
        let named = |at: usize| {
            let line = program.line_of(at).filter(|l| l.text.contains("data_end"))?;
            c::assigned(&line.text, line.column)
        };
        path.into_iter().rev().filter(loads).find_map(named).unwrap_or("data_end")
    }

    fn initialise(&self) -> Option<Fix> {
        let (r, _) = self.subject?;
        if self.insn.class() == class::JMP && self.insn.op() == jmp::EXIT {
            return Fix::say("Return a value on every path: `return 0;`.");
        }
        if called(self.insn).is_some() && (1..=5).contains(&r) {
            let name = called(self.insn)?.name;
            return Fix::say(format!(
                "Pass argument {r} of bpf_{name}(): {} are wanted.",
                called(self.insn)?.args_in(self.case.program.prog_type).len()
            ));
        }
        let walk = self.case.walk.as_ref()?;
        let forgot = walk.path().rev().skip(1).find_map(|at| {
            let i = self.case.program.insns.get(at)?;
            (i.class() == class::JMP && i.op() == jmp::CALL).then_some(at)
        });
        match forgot {
            Some(at) if (1..=5).contains(&r) => Fix::say(format!(
                "Keep the value in r6 to r9 or on the stack: the call at instruction {at} does not preserve r1 to r5."
            )),
            _ => None,
        }
    }

    fn release(&self) -> Option<Fix> {
        let walk = self.case.walk.as_ref()?;
        let held = walk.held.first()?;
        let acquire = *self.case.program.insns.get(held.insn)?;
        let with = match called(acquire).map(|h| h.name) {
            Some("ringbuf_reserve") => "bpf_ringbuf_discard({}, 0);".to_owned(),
            Some("ringbuf_reserve_dynptr") => "bpf_ringbuf_discard_dynptr({}, 0);".to_owned(),
            Some(name) if name.starts_with("sk_lookup") || name.starts_with("skc_lookup") => {
                "bpf_sk_release({});".to_owned()
            }
            Some(_) => return None,
            None => format!("{}({{}});", releaser(Kfuncs::new(self.case.options).row(acquire)?.name)?),
        };
        let line = self.case.program.line_of(held.insn)?;
        let name = c::assigned(&line.text, line.column).unwrap_or("…");
        let call = with.replace("{}", name);
        match self.line {
            Some(here) if here.line != line.line => {
                Fix::say(format!("Call `{call}` on the path that reaches line {} without it.", here.line))
            }
            _ => Fix::say(format!("Call `{call}` on every path.")),
        }
    }

    /// What a program of this type may return.
    fn returns(&self) -> Option<Fix> {
        let (ty, given) = (self.case.program.prog_type, self.case.program.attach_type);
        let types = crate::prog_type::of_type(ty);
        match types.exit(types.attach_type(given)) {
            Exit::Range(min, max) if min == max => Fix::say(format!("Return {min}.")),
            Exit::Range(min, max) => Fix::say(format!("Return a number from {min} to {max}.")),
            Exit::Anything => None,
        }
    }

    /// The stack where something else than data lies.
    fn special_slot(&self) -> Option<Fix> {
        let off = i64::from(self.insn.off);
        let base = slice::base(self.insn)?;
        let ptr = self.reg(base)?;
        let at = i64::from(ptr.off).checked_add(off)?.checked_add(ptr.num.as_const()? as i64)?;
        let frames = &self.case.walk.as_ref()?.frames;
        let slot = frames.get(usize::from(ptr.frame))?.stack.get(crate::stack::locate(at).0)?;
        if slot.bytes.contains(&Byte::Dynptr) {
            return Fix::say(
                "A dynptr is only for its functions: read what it is of with bpf_dynptr_read(), bpf_dynptr_data() or \
                 bpf_dynptr_slice().",
            );
        }
        if slot.bytes.contains(&Byte::Iter) {
            return Fix::say("An iterator is only for its functions: leave its memory alone until it is destroyed.");
        }
        None
    }

    /// A field of a map value that is only for its helpers, reached by a call.
    fn special_field(&self) -> Option<Fix> {
        let helper = called(self.insn)?;
        if self.subject.is_some_and(|(_, reg)| reg.kind == Kind::Stack) {
            return Fix::say(format!("Pass memory to bpf_{}() that holds plain data only.", helper.name));
        }
        Fix::say(format!(
            "bpf_{}() gets memory that the field lies in: let the memory end in front of the field, or begin behind it.",
            helper.name
        ))
    }

    fn helper_types(&self) -> Option<Fix> {
        let helper = called(self.insn)?;
        let known: Vec<&str> = ProgType::ALL.iter().filter(|t| helper.allowed_in(**t)).map(|t| t.name()).collect();
        if known.is_empty() || helper.allowed_in(self.case.program.prog_type) {
            return None;
        }
        Fix::say(format!("bpf_{}() can be called by programs of these types: {}.", helper.name, known.join(", ")))
    }

    fn context_sizes(&self) -> Option<Fix> {
        let (_, ptr) = self.subject?;
        if ptr.kind != Kind::Ctx {
            return None;
        }
        let off = i64::from(ptr.off) + i64::from(self.insn.off);
        let (ty, given) = (self.case.program.prog_type, self.case.program.attach_type);
        let types = crate::prog_type::of_type(ty);
        let attach = types.attach_type(given);
        let can = |size: u32, write: bool| {
            let a = ctx::Access { off, size, write, signed: false };
            ctx::access(ty, attach, a).is_some()
        };
        let sizes = |write| -> Vec<String> {
            [1, 2, 4, 8].into_iter().filter(|s| can(*s, write)).map(|s| s.to_string()).collect()
        };
        let (read, write) = (sizes(false), sizes(true));
        let is_write = self.insn.class() != class::LDX;
        let wanted = if is_write { &write } else { &read };
        if !wanted.is_empty() {
            let verb = if is_write { "written" } else { "read" };
            return Fix::say(format!(
                "At offset {off} {} bytes can be {verb}: use a type of that size.",
                wanted.join(" or ")
            ));
        }
        if is_write && !read.is_empty() {
            return Fix::say(format!("The field at offset {off} can only be read."));
        }
        if let Some((name, start, len)) = self.context_member(off) {
            let readable = |at: i64, size: u32| {
                ctx::access(ty, attach, ctx::Access { off: at, size, write: is_write, signed: false }).is_some()
            };
            let whole = u32::try_from(len).is_ok_and(|len| readable(start, len));
            return Fix::say(match whole {
                true => format!("Access `{name}` whole: {len} bytes at offset {start}."),
                false if start == off => format!("`{name}` (offset {off}) is not for {ty} programs."),
                false => format!("Offset {off} lies inside of `{name}` ({len} bytes at offset {start})."),
            });
        }
        let others = ProgType::ALL.iter().filter(|t| {
            let theirs = crate::prog_type::of_type(**t);
            let a = ctx::Access { off, size: self.insn.bytes(), write: is_write, signed: false };
            !types.context.name.is_empty()
                && theirs.context.name == types.context.name
                && ctx::access(**t, theirs.attach_type(None), a).is_some()
        });
        let others: Vec<&str> = others.map(|t| t.name()).collect();
        if !others.is_empty() {
            return Fix::say(format!(
                "That field is not for {ty} programs; programs of these types have it: {}.",
                others.join(", ")
            ));
        }
        Fix::say(format!(
            "{ty} programs have nothing at offset {off} of their context: check the type of the context argument."
        ))
    }

    /// The member of the context's struct at an offset: its name, where it begins, its bytes. By the program's own types.
    fn context_member(&self, off: i64) -> Option<(String, i64, i64)> {
        let btf = self.case.program.btf.as_deref()?;
        let name = crate::prog_type::of_type(self.case.program.prog_type).context.name;
        let id = btf.find(name, |k| matches!(k, Type::Struct(_)))?;
        let members = &btf.kind(id)?.composite()?.members;
        let found = members.iter().rev().find(|m| i64::from(m.bit_offset / 8) <= off)?;
        let (start, len) = (i64::from(found.bit_offset / 8), i64::try_from(btf.size_of(found.ty)?).ok()?);
        (off < start.checked_add(len)?).then_some(())?;
        let member = btf.str_at(found.name_off).filter(|n| !n.is_empty());
        // Pointers stand in unions without a name.
        let member = member.or_else(|| {
            let inner = btf.kind(btf.resolve(found.ty)?)?.composite()?.members.first()?;
            btf.str_at(inner.name_off)
        })?;
        Some((format!("{name}.{member}"), start, len))
    }

    /// Where the complexity is.
    fn hottest(&self) -> Option<Fix> {
        let program = self.case.program;
        let mut lines = std::collections::BTreeMap::<(&str, u32), (u64, &LineInfo)>::new();
        for (at, n) in self.case.visits.iter().enumerate() {
            if let Some(l) = program.line_of(at) {
                lines.entry((&l.file, l.line)).or_insert((0, l)).0 += u64::from(*n);
            }
        }
        let (count, line) = lines.into_values().max_by_key(|(n, _)| *n)?;
        let total: u64 = self.case.visits.iter().map(|n| u64::from(*n)).sum();
        let limit = self.case.options.profile.max_processed;
        Fix::say(format!(
            "Most of the work is in line {} (`{}`: {count} of {total} instructions; the limit is {limit}): bound its loop \
             with a smaller constant, put the body into a global function, or use bpf_loop().",
            line.line,
            line.text.trim(),
        ))
    }
}
