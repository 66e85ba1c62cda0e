//! What is put in front of a function of a program: programs that run around it, or another function in its place.
//!
//! It is an image of its own, which the function's cell leads to; see [`skep_runtime::around`].

use skep_ebpf::uapi::ProgType;
use skep_runtime::around::{self as layout, Caller};
use skep_runtime::image::{NATIVE, UNWINDS};
use skep_runtime::op::{Code, Op};

use crate::{Engine, Head, words};

/// Code in the control arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// How far from the head of the arena.
    pub at: u64,
    /// It is the main function of a program that is only ever entered as one.
    pub program: bool,
}

/// What is to run around a function, or in its place.
#[derive(Clone, Debug)]
pub struct Around<'a> {
    /// What runs the programs of the arena.
    pub engine: Engine,
    /// The function's name.
    pub name: &'a str,
    /// It is the main function of its program.
    pub main: bool,
    /// The type of the function's program.
    pub prog_type: ProgType,
    /// Arguments of the function.
    pub args: u8,
    /// What programs see as its address.
    pub ip: u64,
    /// The change with which maps came that are needed; 0 if none are.
    pub change: u64,
    /// What runs before it, in order.
    pub before: &'a [Caller],
    /// What runs behind it, in order.
    pub behind: &'a [Caller],
    /// The function.
    pub body: Place,
    /// What runs where the maps are not there, or where stack is short.
    pub otherwise: Place,
    /// Stack and frames that must be there below the function's frame pointer.
    pub room: (u32, u32),
    /// Stack, frames and map handles of what can be entered through it.
    pub takes: (u32, u32, u32),
}

/// Makes the image, to be placed at offset `at` of the control arena; and where in it the function's cell is to lead.
pub fn around(what: &Around<'_>, at: u64) -> (Vec<u64>, u32) {
    let (code, entry, flags) = match what.engine {
        Engine::Interpreter => (operations(what), 0, 0),
        #[cfg(target_arch = "x86_64")]
        Engine::Jit => {
            let (code, entry) = crate::x86_64::around::around(what, at);
            (code, entry, NATIVE | UNWINDS)
        }
        #[cfg(not(target_arch = "x86_64"))]
        Engine::Jit => unreachable!("programs do not compile to machine code here"),
    };
    let (stack, frames, nmaps) = what.takes;
    let head = Head {
        name: what.name,
        prog_type: what.prog_type,
        slots: code.len() as u32,
        stack,
        frames,
        flags,
        nmaps,
        may_goto: 0,
        entry: Some(entry),
    };
    (words(&head, &code), entry)
}

/// For the interpreter: two operations, and what they look up.
fn operations(what: &Around<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for (op, imm) in [(Op::Around, 2 * size_of::<Code>() as i32), (Op::Returned, 0)] {
        out.extend([op as u8, 0, 0, 0]);
        out.extend(imm.to_ne_bytes());
    }
    let around = layout::Around {
        change: what.change,
        body: what.body.at,
        otherwise: what.otherwise.at,
        ip: what.ip,
        stack: what.room.0,
        frames: what.room.1,
        nargs: u32::from(what.args),
        before: what.before.len() as u32,
        behind: what.behind.len() as u32,
        main: u32::from(what.main),
    };
    out.extend(around.bytes());
    out.extend(what.before.iter().chain(what.behind).flat_map(|c| c.bytes()));
    out
}
