//! Longest-prefix maps: a hash map of prefixes, and which lengths of prefix there are.
//!
//! ```text
//! …             as a hash map (hash.rs); a key is its length u32 and its data with zeros behind the prefix
//! prefix_off    changes u64, then a bit per length of prefix that there ever was
//! elems_off     elements: Node, key, the data as they were given, value at `value_off`
//! ```
//!
//! A look-up tries the lengths that there are, the longest first. So it takes no lock, every chain is a hash map's, and
//! what can happen to it in shared memory is what can happen to one.

use core::mem::MaybeUninit;
use core::ptr::null_mut;

use skep_ebpf::Errno;
use skep_ebpf::uapi::update::EXIST;

use crate::hash;
use crate::header::View;
use crate::key::Bytes;
use crate::mem;
use crate::sync::{AtomicU64, Ordering};

/// Most bytes of data that a prefix is taken from.
pub(crate) const MAX_DATA: usize = 256;
/// Bytes of a key in front of its data: the length.
pub(crate) const LENGTH: usize = 4;
/// Words of the bits for lengths 0 to 8 × [`MAX_DATA`].
const WORDS: u32 = (MAX_DATA as u32 * 8) / 64 + 1;
/// Bytes at `prefix_off`.
#[cfg(feature = "control")]
pub(crate) const PREFIXES: u64 = (8 + WORDS as u64 * 8).next_multiple_of(64);

/// A key of our own, to be cut shorter step by step.
#[repr(C, align(8))]
struct Key {
    len: u32,
    data: [u8; MAX_DATA],
}

impl Key {
    /// A program's key, copied to `room`; `None` if its length is more than the map's.
    ///
    /// # Safety
    /// `key` is readable for `key_size` bytes.
    unsafe fn read<'k>(v: View<'_>, key: *const u8, room: &'k mut MaybeUninit<Key>) -> Option<&'k mut Key> {
        let size = (v.h.key_size as usize).min(size_of::<Key>());
        let at = room.as_mut_ptr().cast::<u8>();
        // SAFETY: all bytes are written before the reference is made, in the data plane's own way (it has no `memset`);
        // the rest is the caller's promise.
        let own = unsafe {
            mem::zero(at, size_of::<Key>());
            mem::copy(at, key, size);
            room.assume_init_mut()
        };
        if own.len > max_len(v) { None } else { Some(own) }
    }

    /// Clears what is behind the first `len` bits; nothing is set behind the present length, rounded up to bytes.
    fn cut(&mut self, len: u32, size: usize) {
        let (byte, bits) = ((len / 8) as usize, len % 8);
        for (n, b) in self.data.iter_mut().enumerate().take(size).skip(byte) {
            *b = if n == byte && bits != 0 { *b & !(0xff_u8 >> bits) } else { 0 };
        }
        self.len = len;
    }

    fn ptr(&self) -> *const u8 {
        (&raw const *self).cast()
    }
}

/// Bits of the longest prefix.
fn max_len(v: View<'_>) -> u32 {
    v.h.key_size.saturating_sub(LENGTH as u32).saturating_mul(8)
}

fn data_size(v: View<'_>) -> usize {
    (v.h.key_size as usize).saturating_sub(LENGTH).min(MAX_DATA)
}

/// How often the map was changed.
pub(crate) fn changes(v: View<'_>) -> &AtomicU64 {
    // SAFETY: there is an aligned word.
    unsafe { AtomicU64::from_ptr(v.at(v.h.prefix_off).cast()) }
}

/// A word of the lengths that there are.
fn lengths(v: View<'_>, n: u32) -> &AtomicU64 {
    // SAFETY: there are `WORDS` aligned words behind the first.
    unsafe { AtomicU64::from_ptr(v.at(v.h.prefix_off + 8 + u64::from(n.min(WORDS - 1)) * 8).cast()) }
}

/// # Safety
/// `key` is readable for `key_size` bytes.
pub(crate) unsafe fn lookup(v: View<'_>, key: *const u8) -> *mut u8 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's promise.
    let Some(key) = (unsafe { Key::read(v, key, &mut room) }) else { return null_mut() };
    let (from, mut size) = (key.len, data_size(v));
    let mut steps = v.max_walk();
    let mut word = from / 64;
    let mut bits = lengths(v, word).load(Ordering::Acquire) & (u64::MAX >> (63 - from % 64));
    loop {
        while bits != 0 {
            let top = 63 - bits.leading_zeros();
            bits &= !(1u64 << top);
            let len = word * 64 + top;
            key.cut(len, size);
            size = size.min(len.div_ceil(8) as usize);
            // SAFETY: a key of `key_size` bytes.
            if let Some(e) = unsafe { hash::find_within(v, v.key::<Bytes>(key.ptr()), &mut steps) } {
                return e.at(u64::from(v.h.value_off));
            }
        }
        let Some(below) = word.checked_sub(1) else { return null_mut() };
        word = below;
        bits = lengths(v, word).load(Ordering::Acquire);
    }
}

/// # Safety
/// `key` and `value` are readable for the map's sizes, the region is writable, `slot` is the caller's.
pub(crate) unsafe fn update(v: View<'_>, slot: u32, key: *const u8, value: *const u8, flags: u64) -> i64 {
    if flags > EXIST {
        return Errno::EINVAL.neg();
    }
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's promise.
    let Some(own) = (unsafe { Key::read(v, key, &mut room) }) else { return Errno::EINVAL.neg() };
    own.cut(own.len, data_size(v));
    let word = lengths(v, own.len / 64);
    let bit = 1u64 << (own.len % 64);
    if word.load(Ordering::Relaxed) & bit == 0 {
        word.fetch_or(bit, Ordering::SeqCst);
    }
    let given = key.wrapping_add(LENGTH);
    // SAFETY: the caller's promises; `data_size` bytes stand behind the length.
    let err = unsafe {
        hash::put::<Bytes>(v, slot, own.ptr(), flags, |e| {
            mem::copy(e.at(u64::from(v.h.value_off)), value, v.h.value_size as usize);
            mem::copy(hash::behind_key(v, e), given, data_size(v));
        })
    };
    if err == 0 {
        changes(v).fetch_add(1, Ordering::Release);
    }
    if err == Errno::E2BIG.neg() { Errno::ENOSPC.neg() } else { err }
}

/// # Safety
/// As [`update`].
pub(crate) unsafe fn delete(v: View<'_>, slot: u32, key: *const u8) -> i64 {
    let mut room = MaybeUninit::uninit();
    // SAFETY: the caller's promise.
    let Some(own) = (unsafe { Key::read(v, key, &mut room) }) else { return Errno::EINVAL.neg() };
    own.cut(own.len, data_size(v));
    // SAFETY: as above.
    let err = unsafe { hash::delete_as::<Bytes>(v, slot, own.ptr(), None) };
    if err == 0 {
        changes(v).fetch_add(1, Ordering::Release);
    }
    err
}
