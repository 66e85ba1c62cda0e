//! Look-ups in arrays: no calls, and where the value is known to be near, no instruction but the access.
//!
//! The base of the array goes to the place of r5, which no program can read behind a call (and few write soon). So the value's address is a
//! formula like any other, and becomes part of the accesses behind the check for null: that check ends a block, but who
//! goes on behind it comes from nowhere else, and takes the formula along ([`Emitter::carry`]).

use skep_ebpf::uapi::MapType;
use skep_runtime::abi;

use super::asm::{Alu, Cc, Mem, Shift, Size};
use super::emit::Emitter;
use super::ir::{Cond, Op, Src, Test};
use super::layout::Label;
use super::lazy::{Lazy, Sum, bits};
use super::regs::{self, ENV, R8, R9, R10, R11, RAX};

/// The register whose place holds the base: [`R8`].
const BASE: u8 = 5;

/// The branch behind a look-up that asks whether there is a value.
#[derive(Clone, Copy)]
struct NullCheck {
    /// It is taken if there is none.
    if_null: bool,
    target: Label,
}

impl Emitter<'_> {
    /// A look-up in an array: where the value is follows from the key. The test for null that comes next is that of the
    /// key. `None` if the map is not such a one.
    pub(crate) fn array_lookup(&mut self, i: usize, end: usize) -> Option<usize> {
        let (known, key) = self.call_site(i);
        let index = match self.lazy(1) {
            Lazy::Map { index } => index,
            _ => known?,
        };
        let map = self.maps.get(index as usize)?;
        let per_cpu = match map.map_type {
            MapType::Array => false,
            MapType::PercpuArray => true,
            _ => return None,
        };
        let (entries, stride) = (map.max_entries, i32::try_from(map.value_size.checked_next_multiple_of(8)?).ok()?);
        let at = self.handle(index);
        if let Some(key) = key.filter(|k| *k < u64::from(entries) && known == Some(index))
            && let Some(done) = self.array_element(i, end, at, per_cpu, stride, key as i32)
        {
            return Some(done);
        }
        let checked = self.null_check(i, end);
        if checked.is_some() {
            self.look_at(i + 1);
            // What a call preserves; before the key's address is made, which speaks of what registers hold then.
            while let Some(r) = bits(self.pending & self.after & !0x3f).next() {
                self.force(r);
            }
        }
        let key = self.key_address();
        self.arguments(0);
        self.asm().load(Size::W, RAX, key);
        let (null, done) = (self.layout.label(), self.layout.label());
        let asm = &mut self.layout.asm;
        asm.load(Size::Dw, R8, Mem::at(ENV, abi::MAPS));
        asm.alu_ri(Alu::Cmp, false, RAX, entries as i32);
        self.layout.jcc(Cc::Ae, null);
        let asm = &mut self.layout.asm;
        if per_cpu {
            // How far elements are apart depends on how many slots there are: the header says it.
            asm.load(Size::Dw, R10, Mem::at(R8, at + abi::MAP_REF_HEADER));
            asm.load(Size::Dw, R9, Mem::at(R10, abi::HEADER_STRIDE));
            asm.load(Size::Dw, R8, Mem::at(R8, at + abi::MAP_REF_DATA));
            asm.imul_rr(true, RAX, R9);
            asm.load(Size::W, R11, Mem::at(ENV, abi::SLOT));
            asm.alu_rr(Alu::Add, true, R8, RAX);
            asm.mov_rr(false, RAX, R11);
        } else {
            asm.load(Size::Dw, R8, Mem::at(R8, at + abi::MAP_REF_DATA));
        }
        let scale = self.scaled(stride);
        self.put_off(0, Lazy::Sum(Sum { index: Some((0, scale)), ..Sum::of(BASE) }));
        let back = match checked {
            Some(NullCheck { if_null: true, target }) => {
                self.carry(end);
                target
            }
            Some(NullCheck { target, .. }) => {
                self.force(0);
                self.jump_to(i + 1, target.0);
                Label(i as u32 + 2)
            }
            None => {
                self.force(0);
                done
            }
        };
        self.layout.bind(done);
        // The way without a value is at the end of the function.
        self.nulls.push((null, back));
        Some(if checked.is_some() { 2 } else { 1 })
    }

    /// Makes rax, the number of a value of `stride` bytes, an index that is to be scaled by the power of two returned.
    fn scaled(&mut self, stride: i32) -> u8 {
        match stride {
            8 => return 3,
            s if s.count_ones() == 1 => self.asm().shift_ri(Shift::Shl, true, RAX, s.trailing_zeros() as u8),
            s => self.asm().imul_rri(true, RAX, RAX, s),
        }
        0
    }

    /// An element of an array that is there, by its known index: nothing is checked, and the place in the array becomes
    /// part of the addresses that are made of it.
    fn array_element(&mut self, i: usize, end: usize, at: i32, per_cpu: bool, stride: i32, key: i32) -> Option<usize> {
        let disp = if per_cpu { 0 } else { key.checked_mul(stride)? };
        self.arguments(0);
        let asm = &mut self.layout.asm;
        if per_cpu {
            asm.load(Size::Dw, R8, Mem::at(ENV, abi::MAPS));
            asm.load(Size::W, RAX, Mem::at(ENV, abi::SLOT));
            if key != 0 {
                asm.load(Size::Dw, R10, Mem::at(R8, at + abi::MAP_REF_HEADER));
                asm.load(Size::Dw, R10, Mem::at(R10, abi::HEADER_STRIDE));
                asm.imul_rri(true, R10, R10, key);
            }
            asm.load(Size::Dw, R8, Mem::at(R8, at + abi::MAP_REF_DATA));
            if key != 0 {
                asm.alu_rr(Alu::Add, true, R8, R10);
            }
            let scale = self.scaled(stride);
            self.put_off(0, Lazy::Sum(Sum { index: Some((0, scale)), ..Sum::of(BASE) }));
        } else {
            asm.load(Size::Dw, R11, Mem::at(ENV, abi::MAPS));
            asm.load(Size::Dw, RAX, Mem::at(R11, at + abi::MAP_REF_DATA));
            if disp != 0 {
                self.put_off(0, Lazy::Sum(Sum { disp, ..Sum::of(0) }));
            }
        }
        // The value is there: a check is none.
        let Some(NullCheck { if_null, target }) = self.null_check(i, end) else {
            self.forget(self.after);
            return Some(1);
        };
        self.look_at(i + 1);
        self.forget(self.after);
        self.settle_others();
        if if_null {
            self.carry(end);
        } else {
            self.force(0);
            self.jump_to(i + 1, target.0);
        }
        Some(2)
    }

    /// Puts every value but r0's that is live behind this instruction in its place.
    fn settle_others(&mut self) {
        while let Some(r) = bits(self.pending & self.after & !1).next() {
            self.force(r);
        }
    }

    /// The branch behind a look-up, if it asks whether there is a value.
    fn null_check(&self, i: usize, end: usize) -> Option<NullCheck> {
        if i + 1 >= end {
            return None;
        }
        let Op::Branch { cond: Cond { test, wide, a, b }, target } = self.ops.op(i + 1) else { return None };
        let Test::Cmp(cc @ (Cc::E | Cc::Ne)) = test else { return None };
        let back = target as usize <= i + 1;
        let fits = wide && (a, b) == (0, Src::Imm(0)) && !(self.budget && back);
        fits.then_some(NullCheck { if_null: cc == Cc::E, target: Label(target) })
    }

    /// The address in r2, without putting it in its place.
    fn key_address(&mut self) -> Mem {
        let sum = self.sum(2);
        if !sum.wide || sum.base.is_none() {
            self.force(2);
        }
        let Sum { base, index, disp, .. } = self.sum(2);
        Mem { base: base.map(regs::of), index: index.map(|(i, k)| (regs::of(i), k)), disp }
    }
}
