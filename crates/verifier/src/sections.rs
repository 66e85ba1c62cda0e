//! Sections that a path enters and leaves: RCU read sections, disabled preemption, saved interrupts.

use skep_ebpf::kfunc::flag as kf;

use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::kfunc::KfuncCall;

impl Env<'_> {
    /// The section that the path is in and that forbids sleeping.
    pub fn section_without_sleep(&self) -> Option<&'static str> {
        let s = &self.state.sections;
        if self.state.rcu > 0 {
            Some("an RCU read section")
        } else if s.preempt > 0 {
            Some("a section without preemption")
        } else if !s.irqs.is_empty() {
            Some("a section without interrupts")
        } else {
            None
        }
    }

    /// Checks that every section is left.
    pub fn check_sections_left(&self, doing: &str) -> Check {
        let s = &self.state.sections;
        if let Some(irq) = s.irqs.last() {
            return invalid!(
                IrqSection,
                "the interrupts saved at instruction {} are not restored before {doing}",
                irq.insn
            );
        }
        if self.state.rcu > 0 {
            return invalid!(RcuSection, "the RCU read section is not left before {doing}");
        }
        if s.preempt > 0 {
            return invalid!(PreemptSection, "preemption is not enabled again before {doing}");
        }
        Ok(())
    }

    /// Enters or leaves sections, if that is what a call does; else checks that it is possible in those that are open.
    pub fn kfunc_sections(&mut self, call: &KfuncCall<'_>) -> Check {
        let name = call.name();
        let sleeps = call.has(kf::SLEEPABLE);
        match name {
            "bpf_rcu_read_lock" => self.enter_rcu()?,
            "bpf_rcu_read_unlock" => self.leave_rcu()?,
            _ => {}
        }
        let preempt = &mut self.state.sections.preempt;
        match name {
            "bpf_preempt_disable" => *preempt = preempt.saturating_add(1),
            "bpf_preempt_enable" => match preempt.checked_sub(1) {
                Some(less) => *preempt = less,
                None => return invalid!(PreemptSection, "preemption is enabled without having been disabled"),
            },
            _ => {}
        }
        if let (true, Some(section)) = (sleeps, self.section_without_sleep()) {
            return denied!(SleepInSection, "{name} may sleep, which is not possible in {section}");
        }
        if call.has(kf::RCU_PROTECTED) && !self.in_rcu_section() {
            return denied!(RcuSection, "{name} is called outside of an RCU read section");
        }
        Ok(())
    }
}
