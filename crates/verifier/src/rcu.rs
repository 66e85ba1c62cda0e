//! RCU read sections: for as long as one lasts, what RCU protects stays valid.

use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::reg::flag;
use crate::stack_object::Iter;
use crate::state::Slot;

impl Env<'_> {
    /// True if the program (or this function of it) may sleep.
    pub fn may_sleep(&self) -> bool {
        self.state.sleepable
    }

    /// True if RCU-protected objects stay valid here: always in programs that do not sleep.
    pub fn in_rcu_section(&self) -> bool {
        self.state.rcu > 0 || !self.state.locks.is_empty() || !self.may_sleep()
    }

    /// Begins an RCU read section.
    pub fn enter_rcu(&mut self) -> Check {
        if self.state.rcu > 0 {
            return invalid!(RcuSection, "an RCU read section is begun inside of another");
        }
        self.state.rcu += 1;
        Ok(())
    }

    /// Ends the RCU read section: what it protected may be gone.
    pub fn leave_rcu(&mut self) -> Check {
        if self.state.rcu == 0 {
            return invalid!(RcuSection, "no RCU read section is open here");
        }
        self.state.rcu -= 1;
        self.state.each_reg(|r| {
            if r.is_rcu() {
                r.flags = r.flags & !(flag::RCU | flag::NULLABLE) | flag::UNTRUSTED;
            }
        });
        let guarded = |s: &Slot| Iter::in_slot(s).is_some_and(|i| i.protection & flag::RCU != 0);
        for frame in &mut self.state.frames {
            if frame.stack.iter().any(guarded) {
                for slot in frame.stack.iter_mut().filter(|s| guarded(s)) {
                    slot.reg.flags = slot.reg.flags & !flag::RCU | flag::UNTRUSTED;
                }
            }
        }
        Ok(())
    }
}
