use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Composite, Kind, Member, Param, int_encoding::SIGNED};
use skep_ebpf::insn::CALL;

use super::*;

/// A blob under construction whose ids count from 1: 1 is `int`, 2 `unsigned int`, 3 `unsigned long`.
struct Types(Builder);

/// Name, type, bit offset, bits.
type Field = (&'static str, u32, u32, u8);

const INT: u32 = 1;
const UINT: u32 = 2;
const ULONG: u32 = 3;

impl Types {
    fn new() -> Types {
        let mut b = Builder::new();
        b.int("int", 4, SIGNED);
        b.int("unsigned int", 4, 0);
        b.int("unsigned long", 8, 0);
        Types(b)
    }

    fn members(&mut self, fields: &[Field]) -> Box<[Member]> {
        let member = |&(name, ty, bit_offset, bitfield_size): &Field| Member {
            name_off: self.0.string(name),
            ty,
            bit_offset,
            bitfield_size,
        };
        fields.iter().map(member).collect()
    }

    fn structure(&mut self, name: &str, size: u32, fields: &[Field]) -> u32 {
        let members = self.members(fields);
        self.0.add(name, &Kind::Struct(Composite { size, members }))
    }

    fn union(&mut self, name: &str, size: u32, fields: &[Field]) -> u32 {
        let members = self.members(fields);
        self.0.add(name, &Kind::Union(Composite { size, members }))
    }

    fn add(&mut self, name: &str, kind: Kind) -> u32 {
        self.0.add(name, &kind)
    }

    fn enumeration(&mut self, name: &str, wide: bool, values: &[(&str, i64)]) -> u32 {
        let values = values.iter().map(|&(n, v)| (self.0.string(n), v)).collect();
        match wide {
            false => self.add(name, Kind::Enum { size: 4, signed: false, values }),
            true => self.add(name, Kind::Enum64 { size: 8, signed: false, values }),
        }
    }

    fn finish(self) -> Btf {
        Btf::parse(&self.0.finish()).unwrap()
    }
}

/// Relocates one instruction, with the access path `path` from type `id`.
fn apply(
    local: Types,
    target: &Btf,
    id: u32,
    path: &str,
    kind: CoreKind,
    code: &[Insn],
) -> Result<Vec<Insn>, CoreError> {
    let mut local = local;
    let access_str_off = local.0.string(path);
    let local = local.finish();
    let number = CoreKind::ALL.iter().position(|k| k.0 == kind).unwrap() as u32;
    let mut code = code.to_vec();
    let record = CoreRecord { insn_off: 0, type_id: id, access_str_off, kind: number };
    Relocator::new(&local, target).apply(&mut code, 0, &record)?;
    Ok(code)
}

fn mov(imm: i32) -> [Insn; 1] {
    [Insn::new(0xb7, 1, 0, 0, imm)]
}

fn load(code: u8, off: i16) -> [Insn; 1] {
    [Insn::new(code, 0, 1, off, 0)]
}

fn poison() -> Vec<Insn> {
    vec![Insn::new(CALL, 0, 0, 0, POISON)]
}

/// The object knows `struct s { int a; unsigned b; }` as `s___mine`.
fn local() -> (Types, u32) {
    let mut t = Types::new();
    let s = t.structure("s___mine", 8, &[("a", INT, 0, 0), ("b", UINT, 32, 0)]);
    (t, s)
}

/// The kernel's `struct s` has them elsewhere, `b` in an anonymous union and wider.
fn kernel() -> Btf {
    let mut t = Types::new();
    let anon = t.union("", 8, &[("b", ULONG, 0, 0), ("c", INT, 0, 0)]);
    t.structure("s", 24, &[("x", ULONG, 0, 0), ("a", INT, 64, 0), ("", anon, 128, 0)]);
    t.finish()
}

#[test]
fn fields_move() {
    let k = kernel();
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0:0", CoreKind::FieldByteOffset, &load(0x61, 0)), Ok(load(0x61, 8).to_vec()));
    // Unsigned and wider: the load grows with it.
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0:1", CoreKind::FieldByteOffset, &load(0x61, 4)), Ok(load(0x79, 16).to_vec()));
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0:1", CoreKind::FieldByteOffset, &mov(4)), Ok(mov(16).to_vec()));
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0:1", CoreKind::FieldByteSize, &mov(4)), Ok(mov(8).to_vec()));
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0:0", CoreKind::FieldSigned, &mov(1)), Ok(mov(1).to_vec()));
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0:0", CoreKind::FieldLshiftU64, &mov(32)), Ok(mov(32).to_vec()));
    let (t, s) = local();
    // The element after the first: two steps of the kernel's size.
    assert_eq!(apply(t, &k, s, "2:0", CoreKind::FieldByteOffset, &mov(16)), Ok(mov(56).to_vec()));
}

#[test]
fn what_is_absent() {
    let mut t = Types::new();
    t.structure("s", 4, &[("other", INT, 0, 0)]);
    let k = t.finish();
    let answer = |kind, code: &[Insn]| {
        let (t, s) = local();
        apply(t, &k, s, if kind == CoreKind::TypeSize { "0" } else { "0:0" }, kind, code)
    };
    assert_eq!(answer(CoreKind::FieldExists, &mov(1)), Ok(mov(0).to_vec()));
    assert_eq!(answer(CoreKind::FieldByteOffset, &load(0x61, 0)), Ok(poison()));
    assert_eq!(answer(CoreKind::TypeSize, &mov(8)), Ok(mov(4).to_vec()));
    let wide = [Insn::new(0x18, 1, 0, 0, 0), Insn::default()];
    assert_eq!(answer(CoreKind::FieldByteOffset, &wide), Ok([poison(), poison()].concat()));
    // A member of the same name that is something else is not the one that is meant.
    let mut t = Types::new();
    let ptr = t.add("", Kind::Ptr { ty: 0 });
    t.structure("s", 8, &[("a", ptr, 0, 0)]);
    let (l, s) = local();
    assert_eq!(apply(l, &t.finish(), s, "0:0", CoreKind::FieldExists, &mov(1)), Ok(mov(0).to_vec()));
    // A signed member of another size cannot be read by a load that is merely wider.
    let mut t = Types::new();
    let long = t.0.int("long", 8, SIGNED);
    t.structure("s", 8, &[("a", long, 0, 0)]);
    let (l, s) = local();
    assert_eq!(apply(l, &t.finish(), s, "0:0", CoreKind::FieldByteOffset, &load(0x61, 0)), Ok(poison()));
}

#[test]
fn types_and_enumerators() {
    let k = kernel();
    let of = |name: &str| k.find(name, |_| true).unwrap() as i32;
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0", CoreKind::TypeIdTarget, &mov(77)), Ok(mov(of("s")).to_vec()));
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0", CoreKind::TypeIdLocal, &mov(77)), Ok(mov(s as i32).to_vec()));
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0", CoreKind::TypeExists, &mov(1)), Ok(mov(1).to_vec()));

    let mut t = Types::new();
    t.enumeration("e", true, &[("X", 5), ("BIG", 0x1_0000_0002)]);
    let k = t.finish();
    let local = || {
        let mut t = Types::new();
        let e = t.enumeration("e___v2", false, &[("BIG___old", 2), ("GONE", 9)]);
        (t, e)
    };
    let wide = |n: u64| [Insn::new(0x18, 1, 0, 0, n as i32), Insn::new(0, 0, 0, 0, (n >> 32) as i32)];
    let (t, e) = local();
    let value = apply(t, &k, e, "0", CoreKind::EnumvalValue, &wide(2));
    assert_eq!(value, Ok(wide(0x1_0000_0002).to_vec()));
    let (t, e) = local();
    assert_eq!(apply(t, &k, e, "1", CoreKind::EnumvalExists, &mov(1)), Ok(mov(0).to_vec()));
    let (t, e) = local();
    assert_eq!(apply(t, &k, e, "1", CoreKind::EnumvalValue, &mov(9)), Ok(poison()));
}

#[test]
fn bit_fields() {
    let fields = |at| [("pad", UINT, 0, 4), ("f", UINT, at, 3)];
    let local = || {
        let mut t = Types::new();
        let s = t.structure("s", 8, &fields(4));
        (t, s)
    };
    let mut t = Types::new();
    t.structure("s", 8, &fields(42));
    let k = t.finish();
    let answer = |kind, old| {
        let (t, s) = local();
        apply(t, &k, s, "0:1", kind, &mov(old)).map(|code| code[0].imm)
    };
    assert_eq!(answer(CoreKind::FieldByteOffset, 0), Ok(4));
    assert_eq!(answer(CoreKind::FieldByteSize, 4), Ok(4));
    assert_eq!(answer(CoreKind::FieldLshiftU64, 57), Ok(51));
    assert_eq!(answer(CoreKind::FieldRshiftU64, 61), Ok(61));
    assert_eq!(answer(CoreKind::FieldSigned, 0), Ok(0));
}

#[test]
fn matching_types() {
    let function = |t: &mut Types, ret| {
        let proto = t.add("", Kind::FuncProto { ret, params: Box::new([Param { name_off: 0, ty: ULONG }]) });
        t.add("", Kind::Ptr { ty: proto })
    };
    let build = |flavor: &str, ret: u32, extra: &[Field]| {
        let mut t = Types::new();
        let f = function(&mut t, ret);
        let mut fields = vec![("call", f, 0, 0)];
        fields.extend(extra);
        let s = t.structure(flavor, 16, &fields);
        (t, s)
    };
    let matches = |ret, local_extra: &[Field], target_extra: &[Field]| {
        let (k, _) = build("s", ret, target_extra);
        let (t, s) = build("s___x", INT, local_extra);
        apply(t, &k.finish(), s, "0", CoreKind::TypeMatches, &mov(1)).map(|code| code[0].imm)
    };
    let extra = [("n", INT, 64, 0)];
    assert_eq!(matches(INT, &[], &extra), Ok(1));
    assert_eq!(matches(INT, &extra, &[]), Ok(0));
    assert_eq!(matches(UINT, &[], &[]), Ok(0));
    assert_eq!(matches(INT, &extra, &[("n", UINT, 64, 0)]), Ok(0));
}

#[test]
fn faults() {
    let k = kernel();
    let (t, s) = local();
    let e = apply(t, &k, s, "0:0", CoreKind::FieldByteOffset, &load(0x61, 3));
    assert_eq!(e, Err(CoreError::Mismatch { found: 3, expected: 0 }));
    let (t, s) = local();
    assert!(matches!(apply(t, &k, s, "0:9", CoreKind::FieldExists, &mov(1)), Err(CoreError::Path { .. })));
    let (t, s) = local();
    assert!(matches!(apply(t, &k, s, "0:x", CoreKind::FieldExists, &mov(1)), Err(CoreError::Path { .. })));
    let (t, s) = local();
    let e = apply(t, &k, s, "0:0", CoreKind::FieldByteOffset, &[Insn::new(CALL, 0, 0, 0, 1)]);
    assert_eq!(e, Err(CoreError::Insn { code: CALL }));
    let (t, s) = local();
    assert_eq!(apply(t, &k, s, "0:0", CoreKind::FieldByteOffset, &[]), Err(CoreError::NoInsn));
    // Two types of the name, with the member in different places.
    let mut t = Types::new();
    let first = t.structure("s", 8, &[("a", INT, 0, 0)]);
    let second = t.structure("s___b", 8, &[("a", INT, 32, 0)]);
    let (l, s) = local();
    let e = apply(l, &t.finish(), s, "0:0", CoreKind::FieldByteOffset, &load(0x61, 0));
    assert_eq!(e, Err(CoreError::Ambiguous { first, second }));
}

/// A relocation settles which of several types is meant; others of the same type follow.
#[test]
fn candidates_are_narrowed() {
    let mut k = Types::new();
    k.structure("s", 8, &[("a", INT, 0, 0), ("b", INT, 32, 0)]);
    k.structure("s", 8, &[("b", INT, 0, 0)]);
    let k = k.finish();
    let mut t = Types::new();
    let s = t.structure("s", 8, &[("a", INT, 0, 0), ("b", INT, 32, 0)]);
    let (a, b) = (t.0.string("0:0"), t.0.string("0:1"));
    let local = t.finish();
    let record = |access_str_off| CoreRecord { insn_off: 0, type_id: s, access_str_off, kind: 0 };
    let mut alone = load(0x61, 4);
    assert!(Relocator::new(&local, &k).apply(&mut alone, 0, &record(b)).is_err());
    let mut both = Relocator::new(&local, &k);
    both.apply(&mut load(0x61, 0), 0, &record(a)).unwrap();
    both.apply(&mut alone, 0, &record(b)).unwrap();
    assert_eq!(alone, load(0x61, 4));
}
