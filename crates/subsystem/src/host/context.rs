//! Contexts of an application's hooks: plain structs of Rust, described for the verifier, for C, and as BTF.

use std::collections::HashMap;
use std::fmt::Write;
use std::marker::PhantomData;

use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Btf, BtfError, Composite, Kind, Linkage, Member, Param, int_encoding};
use skep_verifier::{HostContext, HostField, HostFunction, HostKind};

use super::function::{FunctionDef, ParamType, ReturnType};

/// A struct that programs of a hook get as their context. `#[derive(Context)]` implements it.
///
/// # Safety
/// The type is `repr(C)`; `FIELDS` are members of it, with their true offsets and types; those with `write` may hold
/// any bytes.
pub unsafe trait Context {
    /// Name of the struct in C.
    const NAME: &'static str;
    /// Its members that programs may access, in order of their offsets.
    const FIELDS: &'static [FieldDef];
}

/// A context that only the running application knows, as one that is not written in Rust: what [`Context`] says of a type.
#[derive(Clone, Copy, Debug)]
pub struct ContextDef<'a> {
    /// Name of the struct in C.
    pub name: &'a str,
    /// Its size in bytes.
    pub size: u32,
    /// Its members that programs may access, in order of their offsets.
    pub fields: &'a [FieldDef],
}

impl ContextDef<'static> {
    /// That of a type.
    pub fn of<C: Context>() -> ContextDef<'static> {
        ContextDef { name: C::NAME, size: size_of::<C>() as u32, fields: C::FIELDS }
    }
}

impl ContextDef<'_> {
    /// Why it is none: members go beyond its size, overlap or are not in order, or are not aligned.
    pub fn problem(&self) -> Option<String> {
        let mut at = 0;
        for f in self.fields {
            let (size, align) = (f.ty.kind(false).size() as usize, f.ty.align().max(1));
            let what = match f.offset.checked_add(size) {
                Some(end) if end > self.size as usize => "goes beyond the struct",
                None => "goes beyond the struct",
                _ if f.offset < at => "is not behind the member before it",
                _ if !f.offset.is_multiple_of(align) => "is not aligned",
                _ if size == 0 => "has no size",
                Some(end) => {
                    at = end;
                    continue;
                }
            };
            return Some(format!("member {} of struct {} {what}", f.name, self.name));
        }
        None
    }
}

/// A member of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldDef {
    /// Its name.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// What it is.
    pub ty: FieldType,
    /// Programs may write it. The bytes behind a [`BytesMut`] they always may, its pointers never.
    pub write: bool,
}

/// What a member of a context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A number.
    Int {
        /// Its size: 1, 2, 4 or 8.
        bytes: u32,
        /// Two's complement.
        signed: bool,
    },
    /// Numbers side by side.
    Array {
        /// The size of one.
        bytes: u32,
        /// Two's complement.
        signed: bool,
        /// How many.
        len: u32,
    },
    /// Two pointers: to the first byte, and behind the last.
    Bytes {
        /// Programs may write the bytes.
        write: bool,
    },
}

/// A type that members of contexts can have: integers, arrays of them, [`Bytes`] and [`BytesMut`].
///
/// # Safety
/// `TYPE` says how a value lies in memory; integers and arrays may hold any bytes.
pub unsafe trait Field {
    /// How it lies in memory.
    const TYPE: FieldType;
}

macro_rules! integers {
    ($($ty:ty, $signed:expr;)*) => {$(
        // SAFETY: an integer of that size and sign.
        unsafe impl Field for $ty {
            const TYPE: FieldType = FieldType::Int { bytes: size_of::<$ty>() as u32, signed: $signed };
        }
        // SAFETY: integers side by side.
        unsafe impl<const N: usize> Field for [$ty; N] {
            const TYPE: FieldType =
                FieldType::Array { bytes: size_of::<$ty>() as u32, signed: $signed, len: N as u32 };
        }
    )*};
}

integers! { u8, false; u16, false; u32, false; u64, false; i8, true; i16, true; i32, true; i64, true; }

/// Bytes that programs may read. In C two pointers, `NAME` and `NAME_end`: what lies between the first and a comparison
/// with the second can be read, up to 65,535 bytes behind the first.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a> {
    start: *const u8,
    end: *const u8,
    of: PhantomData<&'a [u8]>,
}

// SAFETY: it is a shared slice.
unsafe impl Send for Bytes<'_> {}
// SAFETY: as above.
unsafe impl Sync for Bytes<'_> {}
// SAFETY: two pointers, of which the second is not below the first.
unsafe impl Field for Bytes<'_> {
    const TYPE: FieldType = FieldType::Bytes { write: false };
}

impl<'a> From<&'a [u8]> for Bytes<'a> {
    fn from(bytes: &'a [u8]) -> Bytes<'a> {
        let range = bytes.as_ptr_range();
        Bytes { start: range.start, end: range.end, of: PhantomData }
    }
}

impl<'a> From<&'a str> for Bytes<'a> {
    fn from(text: &'a str) -> Bytes<'a> {
        text.as_bytes().into()
    }
}

impl Default for Bytes<'_> {
    fn default() -> Self {
        Bytes::from(&[][..])
    }
}

/// Bytes that programs may read and write; in C as [`Bytes`].
#[repr(C)]
#[derive(Debug)]
pub struct BytesMut<'a> {
    start: *mut u8,
    end: *mut u8,
    of: PhantomData<&'a mut [u8]>,
}

// SAFETY: it is an exclusive slice.
unsafe impl Send for BytesMut<'_> {}
// SAFETY: as above; a shared reference to it gives no access.
unsafe impl Sync for BytesMut<'_> {}
// SAFETY: two pointers, of which the second is not below the first.
unsafe impl Field for BytesMut<'_> {
    const TYPE: FieldType = FieldType::Bytes { write: true };
}

impl<'a> From<&'a mut [u8]> for BytesMut<'a> {
    fn from(bytes: &'a mut [u8]) -> BytesMut<'a> {
        let range = bytes.as_mut_ptr_range();
        BytesMut { start: range.start, end: range.end, of: PhantomData }
    }
}

impl FieldType {
    fn kind(self, write: bool) -> HostKind {
        match self {
            FieldType::Int { bytes, .. } => HostKind::Data { size: bytes, write },
            FieldType::Array { bytes, len, .. } => HostKind::Data { size: bytes.saturating_mul(len), write },
            FieldType::Bytes { write } => HostKind::Bytes { write },
        }
    }
}

/// What the verifier is told of a context.
pub(super) fn described(
    context: &ContextDef<'_>,
    hook: &str,
    returns: Option<(i32, i32)>,
    functions: Vec<HostFunction>,
) -> HostContext {
    let field = |f: &FieldDef| HostField { name: f.name.into(), offset: f.offset as u32, kind: f.ty.kind(f.write) };
    HostContext {
        hook: hook.into(),
        struct_name: context.name.into(),
        size: context.size,
        fields: context.fields.iter().map(field).collect(),
        returns,
        functions,
    }
}

fn c_int(bytes: u32, signed: bool) -> &'static str {
    match (bytes, signed) {
        (1, true) => "__s8",
        (1, false) => "__u8",
        (2, true) => "__s16",
        (2, false) => "__u16",
        (4, true) => "__s32",
        (4, false) => "__u32",
        (_, true) => "__s64",
        (_, false) => "__u64",
    }
}

/// The C declaration of a context, for programs. Accesses are relocated (CO-RE), so that a program built with it runs
/// with other layouts, too, as long as what it uses is still there.
pub fn c_declaration<C: Context>() -> String {
    let mut text = format!("struct {} {{\n", C::NAME);
    let mut at = 0;
    for f in C::FIELDS {
        // Members that programs do not see; the compiler's own padding needs no name.
        let (size, align) = (f.ty.kind(false).size() as usize, f.ty.align());
        if f.offset > usize::next_multiple_of(at, align) {
            let _ = writeln!(text, "\t__u8 __hidden_{at}[{}];", f.offset - at);
        }
        let _ = match f.ty {
            FieldType::Int { bytes, signed } => writeln!(text, "\t{} {};", c_int(bytes, signed), f.name),
            FieldType::Array { bytes, signed, len } => {
                writeln!(text, "\t{} {}[{len}];", c_int(bytes, signed), f.name)
            }
            FieldType::Bytes { write } => {
                let constant = if write { "" } else { "const " };
                writeln!(text, "\t{constant}__u8 *{0};\n\t{constant}__u8 *{0}_end;", f.name)
            }
        };
        at = f.offset + size;
    }
    text.push_str("} __attribute__((preserve_access_index));\n");
    text
}

impl FieldType {
    fn align(self) -> usize {
        match self {
            FieldType::Int { bytes, .. } | FieldType::Array { bytes, .. } => bytes as usize,
            FieldType::Bytes { .. } => 8,
        }
    }
}

/// The C declarations of functions that programs may call.
pub fn c_functions(defs: &[FunctionDef]) -> String {
    let mut text = String::new();
    let mut objects: Vec<&str> = defs.iter().flat_map(FunctionDef::objects).map(|o| o.0).collect();
    objects.sort_unstable();
    objects.dedup();
    for object in objects {
        let _ = writeln!(text, "struct {object} {{}};");
    }
    for def in defs {
        let returns = match def.returns {
            ReturnType::Void => "void ".into(),
            ReturnType::Int { bytes, signed } => format!("{} ", c_int(bytes, signed)),
            ReturnType::Object { name, .. } => format!("struct {name} *"),
        };
        let param = |(name, ty): &(&str, ParamType)| match ty {
            ParamType::Int { bytes, signed } => format!("{} {name}", c_int(*bytes, *signed)),
            ParamType::Memory { write } => {
                format!("{}void *{name}, __u64 {name}__sz", if *write { "" } else { "const " })
            }
            ParamType::Object { name: object, nullable, .. } => {
                format!("struct {object} *{name}{}", if *nullable { "__nullable" } else { "" })
            }
        };
        let params: Vec<String> = def.params.iter().map(param).collect();
        let params = if params.is_empty() { "void".into() } else { params.join(", ") };
        let _ = writeln!(text, "extern {returns}{}({params}) __ksym;", def.name);
    }
    text
}

/// The types of contexts, which CO-RE relocations of programs are resolved with: what [`Types::of`] collects.
#[derive(Clone, Debug, Default)]
pub struct Types {
    blob: Builder,
    void_pointer: Option<u32>,
    index: Option<u32>,
    objects: HashMap<&'static str, u32>,
}

impl Types {
    /// None yet.
    pub fn new() -> Types {
        Types::default()
    }

    fn int(&mut self, bytes: u32, signed: bool) -> u32 {
        let encoding = if signed { int_encoding::SIGNED } else { 0 };
        self.blob.int(c_int(bytes, signed), bytes, encoding)
    }

    /// Adds a context.
    pub fn of<C: Context>(&mut self) {
        self.context(&ContextDef::of::<C>());
    }

    /// Adds a context.
    pub fn context(&mut self, context: &ContextDef<'_>) {
        let mut members = Vec::new();
        for f in context.fields {
            let mut add = |types: &mut Types, name: &str, ty: u32, offset: usize| {
                let bit_offset = u32::try_from(offset * 8).unwrap_or(u32::MAX);
                members.push(Member { name_off: types.blob.string(name), ty, bit_offset, bitfield_size: 0 });
            };
            match f.ty {
                FieldType::Int { bytes, signed } => {
                    let ty = self.int(bytes, signed);
                    add(self, f.name, ty, f.offset);
                }
                FieldType::Array { bytes, signed, len } => {
                    let index = match self.index {
                        Some(index) => index,
                        None => *self.index.insert(self.blob.int("int", 4, int_encoding::SIGNED)),
                    };
                    let elem = self.int(bytes, signed);
                    let ty = self.blob.add("", &Kind::Array { elem, index, len });
                    add(self, f.name, ty, f.offset);
                }
                FieldType::Bytes { .. } => {
                    let ty = match self.void_pointer {
                        Some(ty) => ty,
                        None => *self.void_pointer.insert(self.blob.add("", &Kind::Ptr { ty: 0 })),
                    };
                    add(self, f.name, ty, f.offset);
                    add(self, &format!("{}_end", f.name), ty, f.offset + 8);
                }
            }
        }
        let size = context.size;
        self.blob.add(context.name, &Kind::Struct(Composite { size, members: members.into() }));
    }

    /// Adds a function that programs may call.
    pub fn function(&mut self, def: &FunctionDef) {
        let mut params = Vec::new();
        for &(name, ty) in def.params {
            let mut add = |types: &mut Types, name: &str, ty: u32| {
                params.push(Param { name_off: types.blob.string(name), ty });
            };
            match ty {
                ParamType::Int { bytes, signed } => {
                    let ty = self.int(bytes, signed);
                    add(self, name, ty);
                }
                ParamType::Memory { write } => {
                    let bytes = if write { 0 } else { self.blob.add("", &Kind::Const { ty: 0 }) };
                    let (at, size) = (self.blob.add("", &Kind::Ptr { ty: bytes }), self.int(8, false));
                    add(self, name, at);
                    // By this ending the verifier knows that the number is the size of what is before it.
                    add(self, &format!("{name}__sz"), size);
                }
                ParamType::Object { name: object, nullable, .. } => {
                    let ty = self.pointer_to(object);
                    add(self, &format!("{name}{}", if nullable { "__nullable" } else { "" }), ty);
                }
            }
        }
        let ret = match def.returns {
            ReturnType::Void => 0,
            ReturnType::Int { bytes, signed } => self.int(bytes, signed),
            ReturnType::Object { name, .. } => self.pointer_to(name),
        };
        let proto = self.blob.add("", &Kind::FuncProto { ret, params: params.into() });
        self.blob.add(def.name, &Kind::Func { proto, linkage: Linkage::Global });
    }

    /// A pointer to an object: a struct with a member that is neither a number nor plain, so that no other memory passes for it.
    fn pointer_to(&mut self, object: &'static str) -> u32 {
        if let Some(&ty) = self.objects.get(object) {
            return ty;
        }
        let inside = self.blob.add("", &Kind::Ptr { ty: 0 });
        let member = Member { name_off: self.blob.string("hidden"), ty: inside, bit_offset: 0, bitfield_size: 0 };
        let ty = self.blob.add(object, &Kind::Struct(Composite { size: 8, members: Box::new([member]) }));
        let ty = self.blob.add("", &Kind::Ptr { ty });
        self.objects.insert(object, ty);
        ty
    }

    /// What was collected, as BTF.
    pub fn to_btf(&self) -> Result<Btf, BtfError> {
        Btf::parse(&self.blob.finish())
    }
}
