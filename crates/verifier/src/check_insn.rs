//! One instruction: to each class its rules.

use skep_ebpf::insn::{Insn, alu, class, jmp, mode, pseudo, size};
use skep_ebpf::uapi::MapType;

use crate::env::{Env, Next};
use crate::fail::{Check, denied, invalid, unsupported};
use crate::prog_type::Exit;
use crate::reason::Reason;
use crate::reg::{Kind, Reg};

impl Env<'_> {
    pub fn check_insn(&mut self, i: Insn) -> Check<Next> {
        match i.class() {
            class::ALU | class::ALU64 => self.check_alu(i)?,
            class::LDX => self.check_load(i)?,
            class::STX if i.mode() == mode::ATOMIC => self.check_atomic(i)?,
            class::STX => self.check_store_reg(i)?,
            class::ST => self.check_store_imm(i)?,
            class::LD => return self.check_ld(i),
            _ => return self.check_flow(i),
        }
        Ok(Next::At(self.insn + 1))
    }

    fn check_flow(&mut self, i: Insn) -> Check<Next> {
        self.jumps += 1;
        match i.op() {
            jmp::CALL => self.check_call(i),
            jmp::JA => {
                let wide = i.class() == class::JMP32;
                if i.is_x() || i.src() != 0 || i.dst() != 0 || (if wide { i.off != 0 } else { i.imm != 0 }) {
                    return invalid!(ReservedField, "goto uses fields that must be zero");
                }
                let target = crate::cfg::jump_target(self.insn, i);
                match usize::try_from(target) {
                    Ok(t) => Ok(Next::At(t)),
                    Err(_) => invalid!(JumpOutOfRange, "the goto leads to instruction {target}"),
                }
            }
            jmp::EXIT => {
                if i.is_x() || i.imm != 0 || i.src() != 0 || i.dst() != 0 || i.class() == class::JMP32 {
                    return invalid!(ReservedField, "exit uses fields that must be zero");
                }
                self.check_exit()
            }
            _ => self.check_cond_jump(i),
        }
    }

    fn check_ld(&mut self, i: Insn) -> Check<Next> {
        match i.mode() {
            mode::ABS | mode::IND => {
                self.check_packet_load(i)?;
                // Behind the end of the packet the function ends, and returns 0.
                self.may_end_function(Reg::constant(0))
            }
            mode::IMM => {
                self.check_ld_imm64(i)?;
                Ok(Next::At(self.insn + 2))
            }
            _ => invalid!(InvalidOpcode, "opcode {:#04x} does not exist", i.code),
        }
    }

    fn check_ld_imm64(&mut self, i: Insn) -> Check {
        if i.size() != size::DW {
            return invalid!(InvalidOpcode, "opcode {:#04x} does not exist", i.code);
        }
        if i.off != 0 {
            return invalid!(ReservedField, "the 64-bit immediate uses fields that must be zero");
        }
        self.may_write_reg(i.dst())?;
        let high = self.insns.get(self.insn + 1).map_or(0, |n| n.imm);
        let value = match i.src() {
            0 => Reg::constant(i.imm as u32 as u64 | (high as u32 as u64) << 32),
            pseudo::MAP_IDX => Reg { what: i.imm as u32, ..Reg::pointer(Kind::Map) },
            pseudo::MAP_IDX_VALUE => {
                if self.maps.get(i.imm as usize).is_some_and(|m| m.def.map_type == MapType::Arena) {
                    self.set_unknown(i.dst());
                    return Ok(());
                }
                // There is only one value, so its locks need no id to tell them apart.
                Reg { what: i.imm as u32, off: high, ..Reg::pointer(Kind::MapValue) }
            }
            pseudo::FUNC => {
                if self.prog.btf.is_none() || self.prog.func_info.is_empty() {
                    return invalid!(BtfInfo, "the address of a function is taken; that needs BTF for the functions");
                }
                let Some(f) =
                    usize::try_from(crate::cfg::callee(self.insn, i)).ok().and_then(|t| self.cfg.function_at(t))
                else {
                    return invalid!(CallTarget, "the function pointer names no function");
                };
                if self.functions[f].global.is_some() {
                    return invalid!(CallTarget, "a callback is a static function, this one is global");
                }
                Reg { what: f as u32, ..Reg::pointer(Kind::Func) }
            }
            pseudo::BTF_ID => self.kernel_symbol(i, high)?,
            n => return invalid!(InvalidLoadImmediate, "a 64-bit immediate of kind {n} does not exist"),
        };
        *self.state.reg_mut(i.dst()) = value;
        Ok(())
    }

    fn check_packet_load(&mut self, i: Insn) -> Check {
        if !self.types.loads_packets {
            return invalid!(
                PacketAccess,
                "programs of type {} cannot load packet data by LD_ABS or LD_IND",
                self.prog.prog_type
            );
        }
        if i.dst() != 0 || i.off != 0 || i.size() == size::DW || (i.mode() == mode::ABS && i.src() != 0) {
            return invalid!(ReservedField, "the packet load uses fields that must be zero");
        }
        let ctx = *self.read_reg(6)?;
        self.check_nothing_held("a packet load, which may end the program,")?;
        if ctx.kind != Kind::Ctx {
            return invalid!(ArgumentType, "LD_ABS and LD_IND want the context in r6, which holds {}", ctx.describe());
        }
        if i.mode() == mode::IND {
            self.read_reg(i.src())?;
        }
        self.check_unmodified(6, &ctx)?;
        if self.state.frame().callback.is_sync() {
            // The kernel loses its way when it walks back over such an end, and mostly refuses the program.
            return unsupported!(UnsupportedFeature, "packet loads in callbacks are not judged");
        }
        self.clear_caller_saved();
        self.set_unknown(0);
        Ok(())
    }

    /// Goes on behind an instruction that may also end its function with this result: both ways are followed.
    pub fn may_end_function(&mut self, result: Reg) -> Check<Next> {
        let next = self.insn + 1;
        if self.state.depth() == 0 {
            return Ok(Next::At(next));
        }
        self.push_path(next)?;
        *self.state.reg_mut(0) = result;
        self.leave_function()
    }

    /// The pointer must be as it was made.
    pub fn check_unmodified(&self, r: u8, reg: &Reg) -> Check {
        if reg.off != 0 || reg.num.as_const() != Some(0) {
            return denied!(ContextModified, "r{r} is {}, but must be used unmodified", reg.describe());
        }
        Ok(())
    }

    fn check_exit(&mut self) -> Check<Next> {
        if self.state.depth() > 0 {
            return self.leave_function();
        }
        if let Some(id) = self.returned_reference() {
            self.state.held.retain(|h| h.id != id);
        }
        self.check_nothing_held("exit")?;
        if self.state.frame().callback.is_async {
            return self.leave_async_callback();
        }
        if self.state.frame().subprog == 0 && self.returns_nothing() {
            return Ok(Next::Done);
        }
        let r0 = *self.read_reg(0)?;
        self.check_not_shown(0, &r0, Reason::ReturnPointer, "returning")?;
        let function = self.state.frame().subprog;
        if function != 0 && !self.is_exception_callback(function) {
            if !r0.is_scalar() {
                return invalid!(SubprogramReturn, "a global function returns a number, r0 holds {}", r0.describe());
            }
            return Ok(Next::Done);
        }
        self.check_return_value(0)?;
        Ok(Next::Done)
    }

    /// Checks what the program returns, in r0 or by the number that it throws.
    pub fn check_return_value(&mut self, r: u8) -> Check {
        let reg = *self.read_reg(r)?;
        if let Some(host) = self.options.host.as_deref() {
            self.check_host_result(host, r, &reg)?;
        } else if self.has_hook_context() {
            self.check_hook_exit(r, &reg)?;
        } else if let Exit::Range(min, max) = self.types.exit(self.attach)
            && self.options.profile.knows(self.attach)
        {
            if !reg.is_scalar() {
                return invalid!(ReturnValue, "the program returns {}, not a number", reg.describe());
            }
            self.mark_precise(r)?;
            if reg.num.smin < min || reg.num.smax > max {
                let prog_type = self.prog.prog_type;
                let range = if min == max { format!("{min}") } else { format!("{min} to {max}") };
                return invalid!(ReturnValue, "{prog_type} programs return {range} here; r{r} holds {}", reg.num);
            }
        }
        Ok(())
    }
}

/// Checks that the instruction exists and leaves unused fields zero, as far as that does not depend on its operands.
pub(crate) fn check_encoding(i: Insn) -> Check {
    let exists = match i.class() {
        class::ALU | class::ALU64 => match i.op() {
            alu::END => i.class() == class::ALU || !i.is_x(),
            alu::NEG => !i.is_x(),
            op => op <= alu::ARSH,
        },
        class::LDX => matches!(i.mode(), mode::MEM) || i.mode() == mode::MEMSX && i.size() != size::DW,
        class::ST => i.mode() == mode::MEM,
        class::STX => i.mode() == mode::MEM || i.mode() == mode::ATOMIC,
        class::LD => match i.mode() {
            mode::IMM => i.size() == size::DW,
            mode::ABS | mode::IND => i.size() != size::DW,
            _ => false,
        },
        class::JMP => match i.op() {
            jmp::JA | jmp::CALL | jmp::EXIT | jmp::JCOND => !i.is_x(),
            op => op <= jmp::JSLE,
        },
        _ => match i.op() {
            jmp::JA => !i.is_x(),
            jmp::CALL | jmp::EXIT => false,
            op => op <= jmp::JSLE,
        },
    };
    if !exists {
        return invalid!(InvalidOpcode, "opcode {:#04x} does not exist", i.code);
    }
    if i.class() == class::LDX && i.imm != 0 {
        return invalid!(ReservedField, "the load uses fields that must be zero");
    }
    Ok(())
}
