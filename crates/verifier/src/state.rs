//! The state of the machine at one point of one path: frames with registers and stack, and what is held.

use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use crate::liveness::InstanceId;
use crate::object::Lock;
use crate::reg::{Kind, Reg};

/// A value that copies of a state share until one of them changes it. Mind that every `&mut` access makes it one's own.
#[derive(Debug)]
pub(crate) struct Shared<T>(Rc<T>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared(Rc::clone(&self.0))
    }
}

impl<T> From<T> for Shared<T> {
    fn from(x: T) -> Shared<T> {
        Shared(Rc::new(x))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Rc::make_mut(&mut self.0)
    }
}

impl<'a, T> IntoIterator for &'a Shared<Vec<T>> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T: Clone> IntoIterator for &'a mut Shared<Vec<T>> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Shared<T>) -> bool {
        Rc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

/// Bytes of a frame's stack.
pub(crate) const STACK_BYTES: i32 = 512;
/// Number of registers.
pub(crate) const REGS: usize = 11;
/// The frame pointer.
pub(crate) const FP: usize = 10;

/// What one byte of stack holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Byte {
    /// Nothing yet.
    Invalid,
    /// Part of the spilled register of its slot.
    Spill,
    /// Some data.
    Misc,
    /// Zero.
    Zero,
    /// Part of a dynptr.
    Dynptr,
    /// Part of an open-coded iterator.
    Iter,
    /// Part of a saved state of interrupts.
    Irq,
}

/// Eight bytes of stack. `bytes[0]` is the one at the highest address.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Slot {
    pub bytes: [Byte; 8],
    /// The register saved here; meaningful while `bytes[7]` (the lowest byte) is `Spill`.
    pub reg: Reg,
}

impl Slot {
    /// Never written.
    pub const EMPTY: Slot = Slot { bytes: [Byte::Invalid; 8], reg: Reg::NOT_INIT };

    /// True if a register is saved here (perhaps only its low part).
    pub fn is_spill(&self) -> bool {
        self.bytes[7] == Byte::Spill
    }

    /// True if a whole register is saved here.
    pub fn is_full_spill(&self) -> bool {
        self.bytes[0] == Byte::Spill
    }

    /// True if a number is saved here.
    pub fn is_scalar_spill(&self) -> bool {
        self.is_spill() && self.reg.is_scalar()
    }

    /// True if an iterator or the like is here that is lost when something else is written.
    pub fn holds_object(&self) -> bool {
        self.bytes.iter().any(|b| matches!(b, Byte::Iter | Byte::Irq))
    }

    /// Makes a damaged spill, iterator or the like plain data, the zeros beside it included.
    pub fn scrub(&mut self) {
        for b in self.bytes.iter_mut().filter(|b| **b != Byte::Invalid) {
            *b = Byte::Misc;
        }
        self.reg = Reg::NOT_INIT;
    }

    /// The same for a write that may or may not hit: what is zero beside the spill stays so.
    pub fn scrub_spill(&mut self) {
        for b in &mut self.bytes {
            if matches!(*b, Byte::Spill | Byte::Iter | Byte::Irq) {
                *b = Byte::Misc;
            }
        }
        self.reg = Reg::NOT_INIT;
    }
}

/// What calls a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum CalledBy {
    /// The program itself, or the kernel for its entry.
    #[default]
    Code,
    /// A helper, by its number.
    Helper(u32),
    /// A kernel function, by its id in the kernel's BTF.
    Kfunc(u32),
}

/// What a function is to the one that called it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Callback {
    pub by: CalledBy,
    /// It runs on its own after the program: a timer's function, a work queue's.
    pub is_async: bool,
    /// Smallest and largest number that a callback returns.
    pub returns: (i32, i32),
}

impl Callback {
    /// True for a frame to which the helper or kernel function that called it returns.
    pub fn is_sync(&self) -> bool {
        self.by != CalledBy::Code && !self.is_async
    }
}

/// One active function.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Frame {
    pub regs: [Reg; REGS],
    /// From the top (highest address) down.
    pub stack: Shared<Vec<Slot>>,
    /// The call instruction in the frame below; meaningless for the first.
    pub callsite: usize,
    /// Index of the function.
    pub subprog: usize,
    /// The chain of calls that led here.
    pub instance: InstanceId,
    /// Set if a helper or kernel function calls this function.
    pub callback: Callback,
    /// How many asynchronous callbacks led to this one.
    pub async_entry: u32,
    /// How often the loop of callbacks at the call was unrolled.
    pub callback_depth: u32,
    /// Which loop of callbacks that is: another one once it is left.
    pub callback_loop: u32,
}

impl Frame {
    /// A frame with nothing but its frame pointer.
    pub fn new(depth: u8, subprog: usize, instance: InstanceId, callsite: usize) -> Frame {
        let mut regs = [Reg::NOT_INIT; REGS];
        regs[FP] = Reg { frame: depth, ..Reg::pointer(Kind::Stack) };
        Frame {
            regs,
            stack: Vec::new().into(),
            callsite,
            subprog,
            instance,
            callback: Callback::default(),
            async_entry: 0,
            callback_depth: 0,
            callback_loop: 0,
        }
    }

    /// Makes the stack at least `bytes` deep.
    pub fn grow_stack(&mut self, bytes: usize) {
        let slots = bytes.div_ceil(8);
        if self.stack.len() < slots {
            self.stack.resize(slots, Slot::EMPTY);
        }
    }
}

/// A reference that must be released before the program ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    pub id: u32,
    /// Where it was acquired.
    pub insn: usize,
}

/// Sections that a path is inside of, besides those of RCU: they forbid sleeping, and must be left.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Sections {
    /// Times that preemption was disabled.
    pub preempt: u32,
    /// Saved states of interrupts, which are restored in reverse.
    pub irqs: Vec<Held>,
}

/// One step of a path that [`precision`](crate::precision) may have to walk back over.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Step {
    pub insn: u32,
    pub prev: u32,
    /// A stack slot that the instruction read or wrote although its operands do not say so: frame and slot.
    pub stack: Option<(u8, u8)>,
    /// Registers and slots whose bounds were refined together here.
    pub linked: Vec<Place>,
}

/// A register or a stack slot of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Reg { frame: u8, reg: u8 },
    Slot { frame: u8, slot: u8 },
}

/// Index of a saved state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StateId(pub u32);

/// The whole state.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub frames: Vec<Shared<Frame>>,
    pub held: Vec<Held>,
    /// Locks held, the last one taken at the end.
    pub locks: Vec<Lock>,
    /// RCU read sections open.
    pub rcu: u32,
    /// Sections without preemption or interrupts.
    pub sections: Sections,
    /// `may_goto` instructions passed.
    pub may_goto_depth: u32,
    /// Callback loops passed.
    pub callback_unroll: u32,
    /// What runs may sleep.
    pub sleepable: bool,
    /// Only a processor gets here, by a wrong guess.
    pub speculative: bool,

    /// Where the path since the last saved state began.
    pub first_insn: usize,
    /// The last instruction before that saved state's one.
    pub last_insn: usize,
    /// Where this state stands (for saved ones).
    pub insn: usize,
    /// The saved state this path continues.
    pub parent: Option<StateId>,
    /// Paths not finished that come from here (for saved states).
    pub branches: u32,
    /// What is not read any more has been removed (from saved states).
    pub cleaned: bool,
    /// The slots of each frame that were not (for cleaned states).
    pub kept: Vec<u64>,
    /// Steps since the last saved state.
    pub steps: Vec<Step>,
}

impl State {
    /// A state with these frames, at the beginning of a path.
    pub fn new(frame: Frame, insn: usize) -> State {
        State { frames: vec![frame.into()], ..State::empty(insn) }
    }

    /// A state without frames.
    fn empty(insn: usize) -> State {
        State {
            frames: Vec::new(),
            held: Vec::new(),
            locks: Vec::new(),
            rcu: 0,
            sections: Sections::default(),
            may_goto_depth: 0,
            callback_unroll: 0,
            sleepable: false,
            speculative: false,
            first_insn: insn,
            last_insn: insn,
            insn,
            parent: None,
            branches: 1,
            cleaned: false,
            kept: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Number of the active frame.
    pub fn depth(&self) -> usize {
        self.frames.len() - 1
    }

    /// The active frame.
    pub fn frame(&self) -> &Frame {
        &self.frames[self.frames.len() - 1]
    }

    /// The active frame.
    pub fn frame_mut(&mut self) -> &mut Frame {
        let last = self.frames.len() - 1;
        &mut self.frames[last]
    }

    /// Registers of the active frame.
    pub fn regs(&self) -> &[Reg; REGS] {
        &self.frame().regs
    }

    /// A register of the active frame.
    pub fn reg(&self, r: u8) -> &Reg {
        &self.frame().regs[usize::from(r).min(REGS - 1)]
    }

    /// What is at this place; nothing where a slot holds no saved register.
    pub fn at(&self, place: Place) -> Option<&Reg> {
        match place {
            Place::Reg { frame, reg } => self.frames.get(usize::from(frame))?.regs.get(usize::from(reg)),
            Place::Slot { frame, slot } => {
                let slot = self.frames.get(usize::from(frame))?.stack.get(usize::from(slot))?;
                slot.is_spill().then_some(&slot.reg)
            }
        }
    }

    /// A register of the active frame.
    pub fn reg_mut(&mut self, r: u8) -> &mut Reg {
        &mut self.frame_mut().regs[usize::from(r).min(REGS - 1)]
    }

    /// Calls `f` on every register of every frame, the spilled ones included.
    pub fn each_reg(&mut self, mut f: impl FnMut(&mut Reg)) {
        self.change_regs(|_| true, &mut f);
    }

    /// Calls `f` on every register (spilled ones included) that is `wanted`; true if there was one. What has none stays
    /// shared with other states.
    pub fn change_regs(&mut self, wanted: impl Fn(&Reg) -> bool, mut f: impl FnMut(&mut Reg)) -> bool {
        let mut any = false;
        for frame in &mut self.frames {
            if frame.regs.iter().any(&wanted) {
                any = true;
                frame.regs.iter_mut().filter(|r| wanted(r)).for_each(&mut f);
            }
            if frame.stack.iter().any(|s| s.is_spill() && wanted(&s.reg)) {
                any = true;
                let spills = frame.stack.iter_mut().filter(|s| s.is_spill() && wanted(&s.reg));
                spills.for_each(|s| f(&mut s.reg));
            }
        }
        any
    }

    /// Makes every packet pointer what a lost pointer is.
    pub fn forget_packet(&mut self, lost: Reg) {
        let gone = |r: &Reg| r.is_packet_any() || r.flags & crate::reg::flag::PACKET_SLICE != 0;
        self.change_regs(gone, |r| *r = lost);
    }
}

impl Default for State {
    /// A state without frames: a placeholder while the real one is moved about.
    fn default() -> State {
        State::empty(0)
    }
}
