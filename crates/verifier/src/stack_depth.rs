//! Chains of calls: how much stack the deepest uses, and what must not happen at its end.

use skep_ebpf::Errno;
use skep_ebpf::uapi::{AttachType, ProgType};

use crate::env::Env;
use crate::fail::{Check, Failure, denied, invalid};
use crate::reason::Reason;
use crate::state::STACK_BYTES;

/// Frames at least this deep get a stack of their own where the kernel provides one.
const PRIVATE_STACK_MIN: u32 = 64;
/// What the callers of a function that tail-calls may use.
const TAIL_CALL_LIMIT: u32 = 256;

/// What the chain above a function makes of it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Above {
    /// Bytes of stack in use.
    depth: u32,
    frames: u32,
    /// It runs in a function that was called back.
    called_back: bool,
    /// It runs in the function for exceptions.
    exception: bool,
}

impl Above {
    /// Where this is fine, `other` is.
    fn covers(self, other: Above) -> bool {
        self.depth >= other.depth
            && self.frames >= other.frames
            && self.called_back >= other.called_back
            && self.exception >= other.exception
    }
}

/// Whether functions get stacks of their own.
struct Stacks {
    /// Functions that run outside of the main program, too: these share its stack.
    shared: Vec<bool>,
    /// For each function, how it was reached before: from less nothing new can follow, and chains are too many to
    /// follow all.
    known: Vec<Vec<Above>>,
}

impl Env<'_> {
    /// Checks every chain of calls, from the main function and from those that run on their own.
    pub fn check_stack_depth(&self) -> Check {
        let n = self.functions.len();
        let own_stacks = self.has_private_stacks();
        let mut stacks = Stacks { shared: vec![!own_stacks; n], known: vec![Vec::new(); n] };
        let nothing = Above { depth: 0, frames: 1, called_back: false, exception: false };
        let roots = (1..n).rev().filter(|f| self.functions[*f].is_async || self.is_exception_callback(*f));
        for root in roots.chain([0]) {
            let private = own_stacks && root == 0;
            stacks.known.iter_mut().for_each(Vec::clear);
            self.chain(root, nothing, private, &mut stacks).map_err(|f| f.whole())?;
        }
        Ok(())
    }

    /// Programs that can interrupt themselves have stacks of their own, unless they tail-call.
    fn has_private_stacks(&self) -> bool {
        let tracing = match self.prog.prog_type {
            ProgType::Kprobe | ProgType::Tracepoint | ProgType::PerfEvent | ProgType::RawTracepoint => true,
            ProgType::Tracing => self.prog.attach_type != Some(AttachType::TraceIter),
            _ => false,
        };
        tracing && !self.cfg.functions.iter().any(|f| f.tail_calls)
    }

    fn chain(&self, function: usize, above: Above, private: bool, stacks: &mut Stacks) -> Check {
        if stacks.known[function].iter().any(|k| k.covers(above)) {
            return Ok(());
        }
        stacks.known[function].push(above);
        if above.frames as usize > self.options.profile.max_frames {
            return Err(Failure::new(
                Errno::E2BIG,
                Reason::CallDepth,
                format!(
                    "a chain of calls is {} frames deep; {} are possible",
                    above.frames, self.options.profile.max_frames
                ),
            ));
        }
        if !private {
            stacks.shared[function] = true;
        }
        let (f, facts) = (&self.cfg.functions[function], &self.functions[function]);
        let here = Above {
            called_back: above.called_back || facts.called_back || self.is_exception_callback(function),
            exception: above.exception || self.is_exception_callback(function),
            ..above
        };
        if f.loads_packet && here.called_back && !self.options.profile.packet_loads_in_callbacks() {
            return invalid!(PacketAccess, "the function at {} loads packet data in a callback", f.start);
        }
        if function != 0 && f.tail_calls && above.depth >= TAIL_CALL_LIMIT {
            return denied!(
                TailCallStack,
                "the function at {} tail-calls while its callers use {} bytes of stack; {} are possible",
                f.start,
                above.depth,
                TAIL_CALL_LIMIT - 1
            );
        }
        if f.tail_calls && above.exception {
            return invalid!(TailCallStack, "the function at {} tail-calls after an exception", f.start);
        }
        if f.throws && here.called_back {
            return invalid!(Exception, "the function at {} throws, and is called back or after an exception", f.start);
        }
        let depth = self.depth_with(function, above, stacks)?;
        let below = Above { depth, frames: above.frames + 1, ..here };
        for &callee in &f.calls {
            let direct = f.calls_directly.contains(&callee);
            if direct && self.is_exception_callback(callee) {
                return invalid!(Exception, "the function at {} calls the function for exceptions", f.start);
            }
            // What runs on its own has a stack of its own.
            if self.functions[callee].is_async && !direct {
                continue;
            }
            self.chain(callee, below, private, stacks)?;
        }
        Ok(())
    }

    /// The stack in use while the function runs.
    fn depth_with(&self, function: usize, above: Above, stacks: &Stacks) -> Check<u32> {
        let facts = &self.functions[function];
        let own = facts.spill_area.counted(facts.stack_depth).next_multiple_of(16);
        let (depth, frames) = if !stacks.shared[function] && own >= PRIVATE_STACK_MIN {
            (own, 1)
        } else {
            (above.depth + own, above.frames)
        };
        if depth > STACK_BYTES as u32 {
            return denied!(
                StackDepth,
                "{} {depth} bytes of stack; {STACK_BYTES} are possible",
                match frames {
                    1 => format!("the function at {} uses", self.cfg.functions[function].start),
                    n => format!("a chain of {n} functions uses"),
                }
            );
        }
        Ok(if !stacks.shared[function] && own >= PRIVATE_STACK_MIN { above.depth } else { depth })
    }
}
