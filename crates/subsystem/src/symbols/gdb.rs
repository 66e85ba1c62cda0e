//! Registers code with debuggers (GDB manual, "JIT Compilation Interface").
//!
//! Debuggers have a breakpoint on `__jit_debug_register_code` and read `__jit_debug_descriptor` when it is hit. Both symbols
//! are weak: a process has one of each, whoever else generates code in it. The interface has no lock for what several
//! generators of one process do at the same time; ours is for ourselves.

use std::ptr;
use std::sync::Mutex;

use super::{Names, lock, object_file};

core::arch::global_asm!(
    ".pushsection .text.__jit_debug_register_code,\"ax\",@progbits",
    ".weak __jit_debug_register_code",
    ".type __jit_debug_register_code,@function",
    "__jit_debug_register_code:",
    "ret",
    ".size __jit_debug_register_code, . - __jit_debug_register_code",
    ".popsection",
    ".pushsection .data.__jit_debug_descriptor,\"aw\",@progbits",
    ".weak __jit_debug_descriptor",
    ".type __jit_debug_descriptor,@object",
    ".balign 8",
    "__jit_debug_descriptor:",
    ".long 1, 0",
    ".quad 0, 0",
    ".size __jit_debug_descriptor, . - __jit_debug_descriptor",
    ".popsection",
);

unsafe extern "C" {
    fn __jit_debug_register_code();
    static mut __jit_debug_descriptor: Descriptor;
}

#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut CodeEntry,
    first: *mut CodeEntry,
}

#[repr(C)]
struct CodeEntry {
    next: *mut CodeEntry,
    prev: *mut CodeEntry,
    file: *const u8,
    len: u64,
}

const REGISTER: u32 = 1;
const UNREGISTER: u32 = 2;

/// Only one at a time changes the list.
static LIST: Mutex<()> = Mutex::new(());

/// A program that debuggers know, until this is dropped.
#[derive(Debug)]
pub struct Entry {
    entry: *mut CodeEntry,
    /// The object file that the entry shows.
    _file: Box<[u8]>,
}

// SAFETY: the entry is changed under `LIST` only.
unsafe impl Send for Entry {}
// SAFETY: nothing can be done with a shared one.
unsafe impl Sync for Entry {}

impl Entry {
    /// Registers a program whose code is executed at an address; `None` if it cannot be described.
    pub fn new(names: &Names, address: u64) -> Option<Entry> {
        let file = object_file::describe(names, address)?.into_boxed_slice();
        let entry =
            CodeEntry { next: ptr::null_mut(), prev: ptr::null_mut(), file: file.as_ptr(), len: file.len() as u64 };
        let entry = Box::into_raw(Box::new(entry));
        let _list = lock(&LIST);
        // SAFETY: the list is ours alone as long as the lock is held; its entries live until they are taken out.
        unsafe {
            let descriptor = &raw mut __jit_debug_descriptor;
            let first = (*descriptor).first;
            (*entry).next = first;
            if !first.is_null() {
                (*first).prev = entry;
            }
            (*descriptor).first = entry;
            say(REGISTER, entry);
        }
        Some(Entry { entry, _file: file })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _list = lock(&LIST);
        // SAFETY: as in `new`; the entry is in the list, and was made by `Box::into_raw`.
        unsafe {
            let descriptor = &raw mut __jit_debug_descriptor;
            let CodeEntry { next, prev, .. } = *self.entry;
            match prev.is_null() {
                true => (*descriptor).first = next,
                false => (*prev).next = next,
            }
            if !next.is_null() {
                (*next).prev = prev;
            }
            say(UNREGISTER, self.entry);
            drop(Box::from_raw(self.entry));
        }
    }
}

/// # Safety
/// `LIST` is held.
unsafe fn say(action: u32, entry: *mut CodeEntry) {
    // SAFETY: the caller's promise. A debugger reads memory, so what is stored must be there when the function is called,
    // which the compiler cannot see through.
    unsafe {
        let descriptor = &raw mut __jit_debug_descriptor;
        (*descriptor).action = action;
        (*descriptor).relevant = entry;
        __jit_debug_register_code();
        (*descriptor).action = 0;
        (*descriptor).relevant = ptr::null_mut();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::Function;

    fn registered() -> Vec<(u64, usize)> {
        let _list = lock(&LIST);
        let mut found = Vec::new();
        // SAFETY: as in `Entry::new`.
        unsafe {
            let descriptor = &raw const __jit_debug_descriptor;
            let mut at = (*descriptor).first;
            while !at.is_null() {
                found.push(((*at).len, at as usize));
                assert!((*at).next.is_null() || (*(*at).next).prev == at, "the list is linked both ways");
                at = (*at).next;
            }
        }
        found
    }

    #[test]
    fn entries_come_and_go_in_any_order() {
        let function = Function { name: "f".into(), start: 0, end: 1, lines: Vec::new() };
        let names = Names { code: vec![0xc3], len: 1, functions: vec![function] };
        let mut entries: Vec<Entry> = (0..3).map(|n| Entry::new(&names, 0x1000 * (n + 1)).unwrap()).collect();
        let ours: Vec<usize> = entries.iter().map(|e| e.entry as usize).collect();
        let here = |wanted: &[usize]| {
            let found: Vec<usize> = registered().into_iter().map(|(_, at)| at).filter(|at| ours.contains(at)).collect();
            assert_eq!(found, wanted);
        };
        here(&[ours[2], ours[1], ours[0]]);
        drop(entries.remove(1));
        here(&[ours[2], ours[0]]);
        drop(entries.remove(1));
        here(&[ours[0]]);
        drop(entries);
        here(&[]);
    }
}
