//! A program as it is run: position independent, in the control arena or in private memory.
//!
//! ```text
//! 0            Image
//! CODE_OFFSET  [Code; ncode], or machine code
//! ```

use crate::op::Code;

/// First word of an [`Image`].
pub const IMAGE_MAGIC: u32 = u32::from_le_bytes(*b"skim");

/// Where the code of an image begins.
pub const CODE_OFFSET: usize = size_of::<Image>();

/// Alignment of images in the control arena: that of a cache line.
pub const IMAGE_ALIGN: usize = 64;

/// Flag: the image holds machine code (see [`abi`](crate::abi)).
pub const NATIVE: u32 = 1;
/// Flag: its machine code may end the run in the middle.
pub const UNWINDS: u32 = 2;
/// Flag: its machine code calls nothing.
pub const ALONE: u32 = 4;
/// Flag: beyond what it preserves its machine code leaves r9, r10 and r11 alone, too. Only with [`ALONE`].
pub const FEW: u32 = 8;

/// Head of an image. Only `skep-jit` makes them, from verified programs; what runs them trusts them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Image {
    /// [`IMAGE_MAGIC`].
    pub magic: u32,
    /// Bytes of the image, this head included.
    pub size: u32,
    /// Slots of code, one per instruction slot of the bytecode; of machine code, its bytes.
    pub ncode: u32,
    /// Program type (`enum bpf_prog_type`).
    pub prog_type: u32,
    /// Bytes of stack that the deepest chain of its frames takes, tail calls not counted.
    pub stack: u32,
    /// Frames of its longest call chain, at least 1.
    pub frames: u32,
    /// Name, cut to 15 bytes, zero-terminated.
    pub name: [u8; 16],
    /// Bits of [`NATIVE`], [`UNWINDS`], [`ALONE`] and [`FEW`].
    pub flags: u32,
    /// Handles that the table of maps must have for it: the highest index of a map that it names, plus 1.
    pub nmaps: u32,
    /// A 16th of the main function's frame if that has a `may_goto`, else 0.
    pub may_goto: u32,
    /// Where its main function begins as one that other code calls, in bytes of code; `u32::MAX` if it is never called so.
    pub entry: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

const _: () = assert!(size_of::<Image>() == 64);

impl Image {
    /// The first instruction.
    #[inline]
    pub(crate) fn code(this: *const Image) -> *const Code {
        this.wrapping_add(1).cast()
    }
}
