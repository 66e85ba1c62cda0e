//! The state of interrupts, saved in a variable on the stack while they are off.

use skep_ebpf::Errno;

use crate::check_mem::{Access, Operand};
use crate::env::Env;
use crate::fail::{Check, Failure, invalid};
use crate::kfunc::KfuncCall;
use crate::reason::Reason;
use crate::reg::{Kind, Reg};
use crate::stack_object::BadPlace;
use crate::state::{Byte, Held, Slot};

/// Interrupts that were saved, as the slot that keeps them knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SavedIrqs {
    /// Which of [`crate::state::Sections::irqs`].
    pub id: u32,
    /// Saved along with a lock, and restored with it.
    pub by_lock: bool,
}

impl SavedIrqs {
    /// The register that stands for it in a slot.
    fn to_reg(self) -> Reg {
        Reg { ref_id: self.id, what: u32::from(self.by_lock), ..Reg::NOT_INIT }
    }

    /// What a slot keeps.
    pub fn in_slot(slot: &Slot) -> Option<SavedIrqs> {
        let whole = slot.bytes == [Byte::Irq; 8];
        whole.then_some(SavedIrqs { id: slot.reg.ref_id, by_lock: slot.reg.what != 0 })
    }
}

impl<'p> Env<'p> {
    /// The variable that a call saves the state of interrupts in, or restores it from.
    pub fn kfunc_irq_flag(&mut self, call: &KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let name = call.name();
        if reg.kind != Kind::Stack {
            return invalid!(
                IrqSection,
                "{name} wants a variable on the stack in r{r}, which holds {}",
                reg.describe()
            );
        }
        match name {
            "bpf_local_irq_save" => self.save_irqs(r, reg, false),
            "bpf_res_spin_lock_irqsave" => self.save_irqs(r, reg, true),
            "bpf_local_irq_restore" => self.restore_irqs(r, reg, false),
            "bpf_res_spin_unlock_irqrestore" => self.restore_irqs(r, reg, true),
            _ => invalid!(IrqSection, "{name} does not say what it does to interrupts"),
        }
    }

    fn save_irqs(&mut self, r: u8, reg: &Reg, by_lock: bool) -> Check {
        let free = match self.object_place(reg, 1) {
            Ok(place) => !self.slot_at(place).is_some_and(|s| s.bytes.contains(&Byte::Irq)),
            Err(bad) => bad == BadPlace::Beyond,
        };
        if !free {
            return invalid!(IrqSection, "r{r} is {}, which is no free variable of eight bytes", reg.describe());
        }
        let access = Access { reg: r, off: 0, size: 8, write: true, signed: false, aligned: false };
        self.check_access(access, Operand::None)?;
        let Ok(place) = self.object_place(reg, 1) else {
            return invalid!(IrqSection, "r{r} is {}, which is no variable", reg.describe());
        };
        let id = self.new_id();
        self.state.sections.irqs.push(Held { id, insn: self.insn });
        self.set_slot(place, Byte::Irq, SavedIrqs { id, by_lock }.to_reg());
        Ok(())
    }

    fn restore_irqs(&mut self, r: u8, reg: &Reg, by_lock: bool) -> Check {
        let place = self.object_place(reg, 1).ok();
        let saved = place.and_then(|p| Some((p, SavedIrqs::in_slot(self.slot_at(p)?)?)));
        let Some((place, saved)) = saved else {
            return invalid!(IrqSection, "r{r} is {}, where no interrupts are saved", reg.describe());
        };
        self.mark_object_read(place, 1);
        if saved.by_lock != by_lock {
            return invalid!(
                IrqSection,
                "interrupts that were saved with a lock are restored with it, and others are not"
            );
        }
        if self.state.sections.irqs.pop_if(|last| last.id == saved.id).is_none() {
            return Err(Failure::new(
                Errno::EACCES,
                Reason::IrqSection,
                "the interrupts that were saved last are restored first".into(),
            ));
        }
        self.set_slot(place, Byte::Invalid, Reg::NOT_INIT);
        Ok(())
    }
}
