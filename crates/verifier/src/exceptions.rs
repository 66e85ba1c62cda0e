//! Exceptions: `bpf_throw` ends the program, in the function that it names for that or with the number thrown.

use skep_ebpf::Errno;
use skep_ebpf::btf::{Kind as Type, Linkage};
use skep_ebpf::program::Program;

use crate::env::{Env, Next};
use crate::fail::{Check, Failure, invalid};
use crate::global_calls::Param;
use crate::reason::Reason;

/// Decl tag of the main function: the function that exceptions end in.
const TAG: &str = "exception_callback:";

/// First instruction of the function that the program's exceptions end in, which nothing calls.
pub(crate) fn callback(prog: &Program) -> Check<Option<usize>> {
    let (Some(btf), Some(main)) = (prog.btf.as_deref(), prog.func_info.first()) else { return Ok(None) };
    let mut names = btf.decl_tags(main.type_id).filter_map(|(tag, of)| tag.strip_prefix(TAG).filter(|_| of == -1));
    let Some(name) = names.next() else { return Ok(None) };
    let bad = |errno, text: String| Err(Failure::new(errno, Reason::Exception, text).whole());
    if names.next().is_some() {
        return bad(Errno::EEXIST, "the program names several functions for its exceptions".into());
    }
    let Some(id) = btf.find(name, |k| matches!(k, Type::Func { .. })) else {
        return bad(Errno::ENOENT, format!("the function for exceptions, {name}, does not exist"));
    };
    if !matches!(btf.kind(id), Some(Type::Func { linkage: Linkage::Global, .. })) {
        return bad(Errno::EINVAL, format!("the function for exceptions, {name}, is not global"));
    }
    match prog.func_info.iter().rev().find(|f| f.type_id == id) {
        Some(f) if f.insn != 0 => Ok(Some(f.insn as usize)),
        _ => bad(Errno::EINVAL, format!("the function for exceptions, {name}, is not part of the program")),
    }
}

impl Env<'_> {
    /// True in the function that exceptions end in: what it returns, the program returns.
    pub fn is_exception_callback(&self, function: usize) -> bool {
        self.cfg.exception_callback == Some(function)
    }

    /// Throws an exception: the program ends here, with what r1 holds unless it has a function for that.
    pub fn throw(&mut self) -> Check<Next> {
        // A global function may be called from anywhere, so nothing is said of what it throws.
        let main = self.state.frames.first().is_some_and(|f| f.subprog == 0);
        if main && self.cfg.exception_callback.is_none() {
            self.check_return_value(1)?;
        }
        self.check_left("the exception", true)?;
        Ok(Next::Done)
    }

    /// The function for exceptions takes one number.
    pub fn check_exception_prototype(&self, function: usize) -> Check {
        let Some(global) = &self.functions[function].global else { return Ok(()) };
        global.check_sound().map_err(|f| f.whole())?;
        match global.params[..] {
            [Param::Number] => Ok(()),
            _ => invalid!(
                Exception,
                "the function for exceptions, {}, takes something else than one number",
                global.name
            )
            .map_err(|f: Box<Failure>| f.whole()),
        }
    }
}
