//! Memory that is handed to kernel functions: buffers, plain structs, strings.

use crate::check_alu::MAX_OFFSET;
use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::kfunc::KfuncCall;
use crate::reg::{Kind, Reg};

impl<'p> Env<'p> {
    /// A plain type of `size` bytes; null passes where nothing else is said.
    pub(super) fn kfunc_memory(&mut self, _call: &KfuncCall<'p>, r: u8, size: u64) -> Check {
        if self.state.reg(r).is_null() {
            return Ok(());
        }
        self.with_not_null(r, |env| {
            env.check_helper_memory(r, size, false, true, None, false)?;
            env.check_helper_memory(r, size, true, true, None, false)
        })
    }

    /// A buffer in `r` and its size in the next register.
    pub(super) fn kfunc_sized_memory(&mut self, call: &mut KfuncCall<'p>, n: usize, r: u8) -> Check {
        let size = *self.state.reg(r + 1);
        if !(self.state.reg(r).is_null() && call.marked(n, "__opt")) {
            self.with_not_null(r, |env| {
                env.check_sized(call, r, &size, false)?;
                // The kernel's functions may write whatever they are given.
                if env.options.host.is_some() && call.only_reads(n) {
                    return Ok(());
                }
                env.check_sized(call, r, &size, true)
            })?;
        }
        if call.marked(n + 1, "__szk") {
            let Some(x) = size.as_const() else {
                return invalid!(
                    ArgumentConstant,
                    "{} wants a size in r{} that is known at load time; it holds {}",
                    call.name(),
                    r + 1,
                    size.num
                );
            };
            call.constant = Some(x);
        }
        Ok(())
    }

    fn check_sized(&mut self, call: &KfuncCall<'p>, r: u8, size: &Reg, write: bool) -> Check {
        let (n, name, at) = (size.num, call.name(), r + 1);
        if n.smin < 0 {
            return denied!(ArgumentSize, "the size in r{at} of {name} may be negative: it is {n}");
        }
        if n.umax >= MAX_OFFSET as u64 {
            return denied!(ArgumentSize, "the size in r{at} of {name} has no upper bound: it is {n}");
        }
        self.check_helper_memory(r, n.umax, write, true, None, false)?;
        self.mark_precise(at)
    }

    /// Looks at a register as if it had been compared with null.
    fn with_not_null(&mut self, r: u8, check: impl FnOnce(&mut Self) -> Check) -> Check {
        let reg = *self.state.reg(r);
        let mut checked = reg;
        if checked.nullable() {
            self.make_not_null(&mut checked);
        }
        *self.state.reg_mut(r) = checked;
        let result = check(self);
        *self.state.reg_mut(r) = reg;
        result
    }

    pub(super) fn kfunc_const_string(&mut self, call: &KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        if reg.kind != Kind::MapValue || reg.nullable() {
            return invalid!(
                ConstantString,
                "{} wants a string constant in r{r}, which holds {}",
                call.name(),
                reg.describe()
            );
        }
        self.check_const_str(call.name(), r, reg)
    }
}
