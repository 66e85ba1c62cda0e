//! Where a function's arguments are when it is entered, by its prototype: the calling convention of System V for x86-64.

use skep_ebpf::btf::{Btf, Composite, Kind};
use skep_runtime::session::{ARGUMENT_REGISTERS, Arguments, MAX_STACK_WORDS, MAX_WORDS, width};

/// How deep types are followed.
const DEPTH: u32 = 16;

/// Where the arguments of a function are, by the id of its type; and how many words of the stack they reach into.
pub(crate) fn arguments(btf: &Btf, function: u32) -> Result<(Arguments, usize), String> {
    let proto = match btf.kind(function) {
        Some(Kind::Func { proto, .. }) => btf.kind(*proto),
        _ => None,
    };
    let Some(Kind::FuncProto { ret, params }) = proto else { return Err("it has no prototype".into()) };
    let mut found = Arguments { result: width_of(btf, *ret), ..Arguments::default() };
    let (mut registers, mut stack, mut count) = (0, 0, 0);
    for (n, param) in params.iter().enumerate() {
        let n = n + 1;
        let shape = shape(btf, param.ty).map_err(|why| format!("parameter {n} {why}"))?;
        let in_registers = !shape.memory && registers + shape.words <= ARGUMENT_REGISTERS;
        if !in_registers {
            // What is aligned to 16 bytes begins there.
            stack += usize::from(shape.wide && stack % 2 == 1);
        }
        for _ in 0..shape.words {
            let at = if in_registers { &mut registers } else { &mut stack };
            let source = if in_registers { *at } else { ARGUMENT_REGISTERS + *at };
            *at += 1;
            if stack > MAX_STACK_WORDS {
                return Err(format!("parameter {n} is too far up the stack"));
            }
            let Some(word) = found.words.get_mut(count) else {
                return Err(format!("its parameters take more than {} bytes", MAX_WORDS * 8));
            };
            *word = source as u8 | shape.width << 4;
            count += 1;
        }
    }
    found.count = count as u8;
    Ok((found, stack))
}

/// How an argument is passed.
struct Shape {
    words: usize,
    width: u8,
    /// On the stack, even if there are registers.
    memory: bool,
    /// It is aligned to 16 bytes.
    wide: bool,
}

fn shape(btf: &Btf, ty: u32) -> Result<Shape, String> {
    let resolved = btf.resolve(ty).and_then(|id| Some((id, btf.kind(id)?)));
    let Some((id, kind)) = resolved else { return Err("has no type".into()) };
    let size = btf.size_of(id).unwrap_or(0);
    match kind {
        Kind::Struct(c) | Kind::Union(c) => {
            if !(1..=16).contains(&size) {
                return Err(format!("has {size} bytes"));
            }
            if has_float(btf, c, DEPTH) {
                return Err("is a struct with floating-point numbers, which comes in vector registers".into());
            }
            let memory = !is_aligned(btf, c, DEPTH);
            Ok(Shape {
                words: size.div_ceil(8) as usize,
                width: width::WORD,
                memory,
                wide: align(btf, id, DEPTH) == 16,
            })
        }
        Kind::Float { .. } => Err("is a floating-point number, which comes in a vector register".into()),
        Kind::Int { .. } if size == 16 => Ok(Shape { words: 2, width: width::WORD, memory: false, wide: true }),
        Kind::Int { .. } | Kind::Ptr { .. } | Kind::Enum { .. } | Kind::Enum64 { .. } => {
            Ok(Shape { words: 1, width: width_of(btf, id), memory: false, wide: false })
        }
        _ => Err("has no type that is known".into()),
    }
}

/// The width of a number or pointer.
fn width_of(btf: &Btf, ty: u32) -> u8 {
    let resolved = btf.resolve(ty).and_then(|id| Some((id, btf.kind(id)?)));
    let (size, signed) = match resolved {
        Some((_, Kind::Int { size, encoding, .. })) => (*size, encoding & 1 != 0),
        Some((_, Kind::Enum { size, signed, .. })) => (*size, *signed),
        Some((_, Kind::Void)) | None => return width::NONE,
        _ => return width::WORD,
    };
    let narrow = match size {
        1 => width::U8,
        2 => width::U16,
        4 => width::U32,
        _ => return width::WORD,
    };
    if signed { narrow | width::SIGNED } else { narrow }
}

/// The types of a struct's members, arrays' elements in their place.
fn members<'b>(btf: &'b Btf, c: &'b Composite) -> impl Iterator<Item = (u32, &'b Kind, &'b skep_ebpf::btf::Member)> {
    c.members.iter().filter_map(move |m| {
        let mut id = btf.resolve(m.ty)?;
        for _ in 0..DEPTH {
            match btf.kind(id)? {
                Kind::Array { elem, .. } => id = btf.resolve(*elem)?,
                kind => return Some((id, kind, m)),
            }
        }
        None
    })
}

fn has_float(btf: &Btf, c: &Composite, depth: u32) -> bool {
    depth == 0
        || members(btf, c).any(|(_, kind, _)| match kind {
            Kind::Float { .. } => true,
            Kind::Struct(c) | Kind::Union(c) => has_float(btf, c, depth - 1),
            _ => false,
        })
}

/// True if every member is where its type wants it: a packed struct goes to the stack.
fn is_aligned(btf: &Btf, c: &Composite, depth: u32) -> bool {
    depth != 0
        && members(btf, c).all(|(id, kind, m)| {
            let inner = match kind {
                Kind::Struct(c) | Kind::Union(c) => is_aligned(btf, c, depth - 1),
                _ => true,
            };
            inner && (m.bitfield_size != 0 || u64::from(m.bit_offset).is_multiple_of(align(btf, id, depth - 1) * 8))
        })
}

/// Bytes that a type is aligned to.
fn align(btf: &Btf, id: u32, depth: u32) -> u64 {
    match btf.kind(id) {
        Some(Kind::Struct(c) | Kind::Union(c)) if depth > 0 => {
            members(btf, c).map(|(id, ..)| align(btf, id, depth - 1)).max().unwrap_or(1)
        }
        _ => btf.size_of(id).filter(|n| matches!(n, 1 | 2 | 4 | 8 | 16)).unwrap_or(1),
    }
}

#[cfg(test)]
mod tests {
    use skep_ebpf::btf::build::Builder;
    use skep_ebpf::btf::{Linkage, Member, Param};

    use super::*;

    /// The words of a function's arguments, registers by number and the stack as `s0`…, with how they are extended.
    fn words(params: &[&str]) -> Result<String, String> {
        let mut b = Builder::new();
        let int = b.int("int", 4, 1);
        let unsigned = b.int("unsigned char", 1, 0);
        let short = b.int("short", 2, 1);
        let long = b.int("long", 8, 1);
        let wide = b.int("__int128", 16, 1);
        let double = b.add("double", &Kind::Float { size: 8 });
        let pointer = b.add("", &Kind::Ptr { ty: int });
        let mut pair = |size, members: &[(u32, u32)]| {
            let member = |&(ty, at): &(u32, u32)| Member { name_off: 0, ty, bit_offset: at * 8, bitfield_size: 0 };
            b.add("", &Kind::Struct(Composite { size, members: members.iter().map(member).collect() }))
        };
        let two = pair(16, &[(long, 0), (int, 8)]);
        let packed = pair(12, &[(int, 0), (long, 4)]);
        let mixed = pair(16, &[(long, 0), (double, 8)]);
        let large = pair(24, &[(long, 0), (long, 8), (long, 16)]);
        let by_name = |name: &str| match name {
            "int" => int,
            "u8" => unsigned,
            "short" => short,
            "long" => long,
            "i128" => wide,
            "double" => double,
            "ptr" => pointer,
            "two" => two,
            "packed" => packed,
            "mixed" => mixed,
            "large" => large,
            _ => 0,
        };
        let params = params.iter().map(|p| Param { name_off: 0, ty: by_name(p) }).collect();
        let proto = b.add("", &Kind::FuncProto { ret: unsigned, params });
        let func = b.add("f", &Kind::Func { proto, linkage: Linkage::Global });
        let btf = Btf::parse(&b.finish()).expect("types");
        let (found, _) = arguments(&btf, func)?;
        assert_eq!(found.result, width::U8);
        let word = |w: &u8| {
            let (from, how) = (usize::from(w & 15), w >> 4);
            let from = match from.checked_sub(ARGUMENT_REGISTERS) {
                Some(n) => format!("s{n}"),
                None => from.to_string(),
            };
            let sign = if how & width::SIGNED != 0 { "i" } else { "u" };
            match how & 3 {
                0 => from,
                n => format!("{from}:{sign}{}", 4 << n),
            }
        };
        Ok(found.words.iter().take(found.count.into()).map(word).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn arguments_are_where_the_convention_says() {
        for (params, wanted) in [
            (&["int", "u8", "short", "long", "ptr"][..], "0:i32 1:u8 2:i16 3 4"),
            (&[], ""),
            (&["long"; 8], "0 1 2 3 4 5 s0 s1"),
            (&["int", "two", "int"], "0:i32 1 2 3:i32"),
            // A struct that has no room in registers leaves them to what comes behind it.
            (&["long", "long", "long", "long", "long", "two", "int", "int"], "0 1 2 3 4 s0 s1 5:i32 s2:i32"),
            (&["packed", "int"], "s0 s1 0:i32"),
            (&["i128", "int"], "0 1 2:i32"),
            (
                &["int", "int", "int", "int", "int", "int", "int", "i128"],
                "0:i32 1:i32 2:i32 3:i32 4:i32 5:i32 s0:i32 s2 s3",
            ),
        ] {
            assert_eq!(words(params).as_deref(), Ok(wanted), "{params:?}");
        }
    }

    #[test]
    fn what_comes_elsewhere_is_refused() {
        for (params, part) in [
            (&["int", "double"][..], "parameter 2 is a floating-point number"),
            (&["mixed"], "vector registers"),
            (&["large"], "24 bytes"),
            (&["int", "..."], "parameter 2 has no type"),
            (&["long"; 13], "more than 96 bytes"),
        ] {
            let error = words(params).unwrap_err();
            assert!(error.contains(part), "{params:?}: {error}");
        }
    }
}
