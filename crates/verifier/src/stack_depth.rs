//! How much stack the deepest chain of calls uses.

use skep_ebpf::Errno;
use skep_ebpf::uapi::ProgType;

use crate::env::Env;
use crate::fail::{Check, Failure, denied, invalid};
use crate::reason::Reason;
use crate::state::STACK_BYTES;

/// Frames at least this deep get a stack of their own where the kernel provides one.
const PRIVATE_STACK_MIN: u32 = 64;
/// What the callers of a function that tail-calls may use.
const TAIL_CALL_LIMIT: u32 = 256;

impl Env<'_> {
    /// Checks every chain of calls from the main function.
    pub fn check_stack_depth(&self) -> Check {
        self.check_throws()?;
        let tail_calls = self.cfg.functions.iter().any(|f| f.tail_calls);
        let tracing = matches!(
            self.prog.prog_type,
            ProgType::Kprobe | ProgType::Tracepoint | ProgType::PerfEvent | ProgType::RawTracepoint
        );
        let private = tracing && !tail_calls;
        let mut deepest = vec![Vec::new(); self.functions.len()];
        self.chain(0, 0, 1, private, &mut deepest)?;
        // What runs on its own has a stack of its own.
        for n in (1..self.functions.len()).filter(|n| self.functions[*n].is_async) {
            self.chain(n, 0, 1, private, &mut deepest)?;
        }
        Ok(())
    }

    /// An exception cannot pass the helper or kernel function that calls back.
    fn check_throws(&self) -> Check {
        let mut inside: Vec<bool> = self.functions.iter().map(|f| f.called_back).collect();
        let mut todo: Vec<usize> = (0..inside.len()).filter(|n| inside[*n]).collect();
        while let Some(n) = todo.pop() {
            let f = &self.cfg.functions[n];
            if f.throws {
                return invalid!(
                    ExceptionInCallback,
                    "the function at {} throws an exception, and is called back by the kernel",
                    f.start
                )
                .map_err(|f: Box<Failure>| f.whole());
            }
            for &callee in &f.calls {
                if !std::mem::replace(&mut inside[callee], true) {
                    todo.push(callee);
                }
            }
        }
        Ok(())
    }

    fn rounded(&self, function: usize) -> u32 {
        self.functions[function].stack_depth.next_multiple_of(16)
    }

    /// Follows the chains through a function, with this much stack and these frames in use. `deepest` holds, for each
    /// function, how it was reached before: from less nothing new can follow, and chains are too many to follow all.
    fn chain(&self, function: usize, above: u32, frames: u32, private: bool, deepest: &mut [Vec<(u32, u32)>]) -> Check {
        let known = &mut deepest[function];
        if known.iter().any(|(a, f)| *a >= above && *f >= frames) {
            return Ok(());
        }
        known.push((above, frames));
        if frames as usize > self.options.profile.max_frames {
            return Err(Failure::new(
                Errno::E2BIG,
                Reason::CallDepth,
                format!("a chain of calls is {frames} frames deep; {} are possible", self.options.profile.max_frames),
            )
            .whole());
        }
        let f = &self.cfg.functions[function];
        if function != 0 && f.tail_calls && above >= TAIL_CALL_LIMIT {
            return denied!(
                TailCallStack,
                "the function at {} tail-calls while its callers use {above} bytes of stack; {} are possible",
                f.start,
                TAIL_CALL_LIMIT - 1
            )
            .map_err(|f: Box<Failure>| f.whole());
        }
        let own = self.rounded(function);
        let mut depth = above;
        if private && self.functions[function].stack_depth >= PRIVATE_STACK_MIN {
            if own > STACK_BYTES as u32 {
                return denied!(StackDepth, "the function at {} uses {own} bytes of stack", f.start)
                    .map_err(|f: Box<Failure>| f.whole());
            }
        } else {
            depth += own;
            if depth > STACK_BYTES as u32 {
                return denied!(
                    StackDepth,
                    "a chain of {frames} functions uses {depth} bytes of stack; {STACK_BYTES} are possible"
                )
                .map_err(|f: Box<Failure>| f.whole());
            }
        }
        let called = |c: &&usize| !self.functions[**c].is_async || f.calls_directly.contains(*c);
        for &callee in f.calls.iter().filter(called) {
            self.chain(callee, depth, frames + 1, private, deepest)?;
        }
        Ok(())
    }
}
