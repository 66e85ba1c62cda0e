//! Places of jumps, calls and aligned instructions in the code: chosen once all of it is there.
//!
//! While code is emitted, a jump is no bytes but an [`Item`] between bytes. [`Layout::finish`] first assumes that every
//! jump is long and every gap as large as it may get, makes those short that reach their target even so, a few times or until
//! nothing changes (each round only brings code closer together), and then writes everything.

use super::asm::{Asm, Cc};
use super::regs::Reg;

/// A place in the code that jumps can lead to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Label(pub(crate) u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Jmp,
    Jcc(Cc),
    Call,
    /// The address of the target into this register.
    Lea(Reg),
    /// The next byte is at a multiple of this.
    Align(u8),
}

#[derive(Clone, Copy)]
struct Item {
    /// Bytes in front of it.
    at: u32,
    kind: Kind,
    target: Label,
    size: u8,
}

/// Where a label is: behind so many bytes and so many items.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u32,
    items: u32,
}

/// How often all jumps are looked at. In the end each round finds a few more that can be short, so that long programs would
/// take many for little.
const ROUNDS: usize = 6;

const NOWHERE: Place = Place { at: u32::MAX, items: 0 };

/// Code, its jumps and their targets.
pub(crate) struct Layout {
    pub(crate) asm: Asm,
    items: Vec<Item>,
    labels: Vec<Place>,
}

/// The finished code.
pub(crate) struct Placed {
    pub(crate) code: Vec<u8>,
    /// See [`Asm::named`].
    pub(crate) named: u32,
    /// See [`Asm::leaves`].
    pub(crate) leaves: bool,
    pub(crate) places: Places,
}

/// Where everything is in the finished code.
#[derive(Debug)]
pub(crate) struct Places {
    labels: Vec<Place>,
    before: Vec<u32>,
}

impl Places {
    /// Where a label ended up; `None` if it never had a place.
    fn offset(&self, label: Label) -> Option<u32> {
        let place = self.labels.get(label.0 as usize).filter(|p| p.at != u32::MAX)?;
        Some(place.at + self.before[place.items as usize])
    }

    /// Where the code of each of so many instructions begins; that of instructions without code is `None`.
    pub(crate) fn of_insns(&self, insns: usize) -> impl Iterator<Item = Option<u32>> {
        (0..insns as u32).map(|n| self.offset(Label(n)))
    }
}

impl Placed {
    /// Where a label ended up; `None` if it never had a place.
    pub(crate) fn offset(&self, label: Label) -> Option<u32> {
        self.places.offset(label)
    }
}

impl Layout {
    /// Empty code with room for labels `0..labels`.
    pub(crate) fn new(labels: usize) -> Layout {
        let asm = Asm { bytes: Vec::with_capacity(labels * 4 + 256), ..Asm::default() };
        Layout { asm, items: Vec::new(), labels: vec![NOWHERE; labels] }
    }

    /// A new label.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(NOWHERE);
        Label(self.labels.len() as u32 - 1)
    }

    /// The label is here.
    #[inline]
    pub(crate) fn bind(&mut self, label: Label) {
        let place = Place { at: self.asm.bytes.len() as u32, items: self.items.len() as u32 };
        if let Some(l) = self.labels.get_mut(label.0 as usize) {
            *l = place;
        }
    }

    #[inline]
    fn item(&mut self, kind: Kind, target: Label, size: u8) {
        self.items.push(Item { at: self.asm.bytes.len() as u32, kind, target, size });
    }

    #[inline]
    pub(crate) fn jmp(&mut self, target: Label) {
        self.item(Kind::Jmp, target, 5);
    }

    #[inline]
    pub(crate) fn jcc(&mut self, cc: Cc, target: Label) {
        self.item(Kind::Jcc(cc), target, 6);
    }

    pub(crate) fn call(&mut self, target: Label) {
        self.item(Kind::Call, target, 5);
    }

    /// Loads the address of a label.
    pub(crate) fn lea(&mut self, dst: Reg, target: Label) {
        self.asm.named |= 1 << dst.0;
        self.item(Kind::Lea(dst), target, 7);
    }

    /// What follows starts at a multiple of `n`, a power of two.
    pub(crate) fn align(&mut self, n: u8) {
        self.item(Kind::Align(n), Label(0), n - 1);
    }

    /// Bytes of items in front of each item, and of all.
    fn sums(items: &[Item], before: &mut Vec<u32>) {
        before.clear();
        let mut sum = 0;
        for item in items {
            before.push(sum);
            sum += u32::from(item.size);
        }
        before.push(sum);
    }

    fn address(&self, label: Label, before: &[u32]) -> i64 {
        let place = self.labels.get(label.0 as usize).copied().unwrap_or(NOWHERE);
        i64::from(place.at) + i64::from(before[place.items as usize])
    }

    /// Chooses sizes and writes the code. A jump to a label without a place is a bug of the caller.
    pub(crate) fn finish(mut self) -> Placed {
        let mut before = Vec::with_capacity(self.items.len() + 1);
        for _ in 0..ROUNDS {
            Layout::sums(&self.items, &mut before);
            let mut changed = false;
            for i in 0..self.items.len() {
                let item = self.items[i];
                if matches!(item.kind, Kind::Jmp | Kind::Jcc(_)) && item.size > 2 {
                    let start = i64::from(item.at) + i64::from(before[i]);
                    let target = self.address(item.target, &before);
                    let end = start + if target > start { i64::from(item.size) } else { 2 };
                    if i8::try_from(target - end).is_ok() {
                        self.items[i].size = 2;
                        changed = true;
                    }
                }
            }
            if !changed {
                break;
            }
        }
        let mut shift = 0;
        for (i, item) in self.items.iter_mut().enumerate() {
            before[i] = shift;
            if let Kind::Align(n) = item.kind {
                item.size = ((item.at + shift).wrapping_neg() & (u32::from(n) - 1)) as u8;
            }
            shift += u32::from(item.size);
        }
        before[self.items.len()] = shift;

        let raw = &self.asm.bytes;
        let mut out = Asm { bytes: Vec::with_capacity(raw.len() + shift as usize), ..Asm::default() };
        let mut from = 0;
        for item in &self.items {
            out.bytes.extend_from_slice(&raw[from..item.at as usize]);
            from = item.at as usize;
            let end = out.bytes.len() as i64 + i64::from(item.size);
            let distance = (self.address(item.target, &before) - end) as i32;
            let long = distance.to_le_bytes();
            match (item.kind, item.size) {
                (Kind::Align(_), n) => out.nops(usize::from(n)),
                (Kind::Jmp, 2) => out.bytes.extend_from_slice(&[0xeb, distance as u8]),
                (Kind::Jcc(cc), 2) => out.bytes.extend_from_slice(&[0x70 | cc as u8, distance as u8]),
                (Kind::Jmp, _) => out.bytes.push(0xe9),
                (Kind::Jcc(cc), _) => out.bytes.extend_from_slice(&[0x0f, 0x80 | cc as u8]),
                (Kind::Call, _) => out.bytes.push(0xe8),
                (Kind::Lea(r), _) => out.bytes.extend_from_slice(&[0x48 | (r.0 >> 3) << 2, 0x8d, (r.0 & 7) << 3 | 5]),
            }
            if item.size > 2 && !matches!(item.kind, Kind::Align(_)) {
                out.bytes.extend_from_slice(&long);
            }
        }
        out.bytes.extend_from_slice(&raw[from..]);
        Placed {
            code: out.bytes,
            named: self.asm.named,
            leaves: self.asm.leaves,
            places: Places { labels: self.labels, before },
        }
    }
}
