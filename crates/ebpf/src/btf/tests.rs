use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::build::Builder;
use super::ext::BtfExt;
use super::value::{Value, decode};
use super::*;

fn member(b: &mut Builder, name: &str, ty: u32, bit_offset: u32, bitfield_size: u8) -> Member {
    Member { name_off: b.string(name), ty, bit_offset, bitfield_size }
}

/// One type of every kind; ids are 1 … 20 in the order of the list.
fn zoo() -> (Builder, Vec<Kind>) {
    let mut b = Builder::new();
    let (x, y, lo, hi) = (b.string("x"), b.string("y"), b.string("LO"), b.string("HI"));
    let m = |name_off, ty, bit_offset, bitfield_size| Member { name_off, ty, bit_offset, bitfield_size };
    let p = |name_off, ty| Param { name_off, ty };
    let kinds = vec![
        Kind::Int { size: 4, bits: 32, offset: 0, encoding: int_encoding::SIGNED },
        Kind::Ptr { ty: 0 },
        Kind::Array { elem: 1, index: 1, len: 6 },
        Kind::Struct(Composite { size: 16, members: Box::new([m(x, 1, 0, 3), m(y, 2, 64, 0)]) }),
        Kind::Union(Composite { size: 8, members: Box::new([m(x, 1, 0, 0), m(y, 2, 0, 0)]) }),
        Kind::Enum { size: 4, signed: true, values: Box::new([(lo, -1), (hi, 7)]) },
        Kind::Fwd { union: true },
        Kind::Typedef { ty: 4 },
        Kind::Volatile { ty: 8 },
        Kind::Const { ty: 9 },
        Kind::Restrict { ty: 2 },
        Kind::Func { proto: 13, linkage: Linkage::Global },
        Kind::FuncProto { ret: 1, params: Box::new([p(x, 2), p(0, 0)]) },
        Kind::Var { ty: 10, linkage: Linkage::Extern },
        Kind::Datasec { size: 16, vars: Box::new([(14, 0, 16)]) },
        Kind::Float { size: 8 },
        Kind::DeclTag { ty: 4, component: 1 },
        Kind::TypeTag { ty: 4 },
        Kind::Enum64 { size: 8, signed: false, values: Box::new([(lo, 0), (hi, i64::MIN)]) },
        Kind::DeclTag { ty: 4, component: -1 },
    ];
    for (i, k) in kinds.iter().enumerate() {
        b.add(&alloc::format!("t{}", i + 1), k);
    }
    (b, kinds)
}

#[test]
fn every_kind_round_trips() {
    let (b, kinds) = zoo();
    let btf = Btf::parse(&b.finish()).unwrap();
    assert_eq!(btf.len() as usize, kinds.len() + 1);
    assert_eq!(btf.kind(0), Some(&Kind::Void));
    for (id, k) in (1..).zip(&kinds) {
        assert_eq!(btf.kind(id), Some(k));
        assert_eq!(btf.name(id), alloc::format!("t{id}"));
        assert_eq!(btf.find(btf.name(id), |_| true), Some(id));
    }
    assert_eq!(btf.find("t4", |k| matches!(k, Kind::Int { .. })), None);
    assert_eq!(btf.ty(21), None);
    assert_eq!((btf.resolve(10), btf.resolve(18), btf.resolve(99)), (Some(4), Some(4), None));
    assert_eq!((btf.size_of(3), btf.size_of(14), btf.size_of(7)), (Some(24), Some(16), None));
    assert_eq!(btf.decl_tags(4).collect::<Vec<_>>(), [("t17", 1), ("t20", -1)]);
    assert_eq!(btf.iter().count(), 21);
}

#[test]
fn no_prefix_and_no_flipped_byte_panics() {
    let bytes = zoo().0.finish();
    for n in 0..bytes.len() {
        assert!(Btf::parse(&bytes[..n]).is_err(), "{n} bytes");
        for v in [0, 0x7f, 0xff, bytes[n] ^ 1] {
            let mut bad = bytes.clone();
            bad[n] = v;
            if let Ok(btf) = Btf::parse(&bad) {
                for id in 0..btf.len() {
                    btf.size_of(id);
                    decode(&btf, id, &[0x5a; 40]);
                    assert!(btf.decl_tags(id).count() <= 2);
                }
            }
        }
    }
}

#[test]
fn faults_are_named() {
    let parse = |kind: &Kind| {
        let mut b = Builder::new();
        b.add("bad", kind);
        Btf::parse(&b.finish())
    };
    assert_eq!(parse(&Kind::Ptr { ty: 2 }), Err(BtfError::TypeId { id: 1, refers: 2 }));
    assert_eq!(Btf::parse(&[0xeb, 0x9f, 1, 0]), Err(BtfError::BigEndian));
    assert_eq!(Btf::parse(b"\x7fELF"), Err(BtfError::Magic { found: 0x457f }));
    let mut bytes = zoo().0.finish();
    bytes[24 + 7] = 31;
    let e = Btf::parse(&bytes).unwrap_err();
    assert_eq!(e, BtfError::Kind { id: 1, kind: 31 });
    assert_eq!(e.to_string(), "BTF type 1 has unknown kind 31");
}

#[test]
fn cycles_end() {
    let mut b = Builder::new();
    b.add("a", &Kind::Typedef { ty: 2 });
    b.add("b", &Kind::Const { ty: 1 });
    b.add("c", &Kind::Array { elem: 3, index: 1, len: 9 });
    let btf = Btf::parse(&b.finish()).unwrap();
    assert_eq!((btf.resolve(1), btf.size_of(2), btf.size_of(3)), (None, None, None));
}

#[test]
fn split_continues_its_base() {
    let base = Arc::new(Btf::parse(&zoo().0.finish()).unwrap());
    let mut b = Builder::new();
    // A split blob's offsets count on from the base's: only the anonymous type can be built without that.
    b.add("", &Kind::Const { ty: 4 });
    b.add("", &Kind::DeclTag { ty: 4, component: 0 });
    let mut bytes = b.finish();
    bytes.truncate(bytes.len() - 1);
    bytes[20..24].copy_from_slice(&0u32.to_le_bytes());
    let btf = Btf::parse_split(base.clone(), &bytes).unwrap();
    assert_eq!((btf.len(), btf.resolve(21), btf.size_of(21)), (23, Some(4), Some(16)));
    assert_eq!((btf.find("t4", |_| true), btf.name(4), btf.name(21)), (Some(4), "t4", ""));
    assert_eq!(btf.decl_tags(4).count(), 3);
}

#[test]
fn flavors() {
    for (name, essential) in
        [("a___b", "a"), ("a", "a"), ("a__b", "a__b"), ("___b", "___b"), ("a___", "a___"), ("a___b___c", "a___b")]
    {
        assert_eq!(essential_name(name), essential, "{name}");
    }
    let mut b = Builder::new();
    for name in ["s___old", "other", "s", "s___new"] {
        b.add(name, &Kind::Struct(Composite { size: 0, members: Box::new([]) }));
    }
    let btf = Btf::parse(&b.finish()).unwrap();
    assert_eq!(btf.find_essential("s"), [1, 3, 4]);
    assert_eq!(btf.find("s", |_| true), Some(3));
}

#[test]
fn values() {
    let mut b = Builder::new();
    let int = b.int("int", 4, int_encoding::SIGNED);
    let ch = b.int("char", 1, int_encoding::SIGNED);
    let u8_ = b.int("unsigned char", 1, 0);
    let bool_ = b.int("_Bool", 1, int_encoding::BOOL);
    let (on, neg) = (b.string("ON"), b.string("NEG"));
    let en = b.add("e", &Kind::Enum { size: 4, signed: true, values: Box::new([(on, 1), (neg, -1)]) });
    let comm = b.add("", &Kind::Array { elem: ch, index: int, len: 4 });
    let raw = b.add("", &Kind::Array { elem: u8_, index: int, len: 2 });
    let members = Box::new([member(&mut b, "in_a", int, 0, 0)]);
    let anon = b.add("", &Kind::Union(Composite { size: 4, members }));
    let members = Box::new([
        member(&mut b, "n", int, 0, 0),
        member(&mut b, "comm", comm, 32, 0),
        member(&mut b, "raw", raw, 64, 0),
        member(&mut b, "ok", bool_, 80, 0),
        member(&mut b, "bits", int, 88, 3),
        member(&mut b, "e", en, 96, 0),
        member(&mut b, "", anon, 128, 0),
    ]);
    let s = b.add("s", &Kind::Struct(Composite { size: 20, members }));
    let btf = Btf::parse(&b.finish()).unwrap();
    let bytes = [0xfe, 0xff, 0xff, 0xff, b'h', b'i', 0, 9, 1, 2, 1, 0b1111_1100, 255, 255, 255, 255, 5, 0, 0, 0];
    let e = Value::Enum { name: Some("NEG".into()), value: -1 };
    let expected: Vec<(alloc::string::String, Value)> = vec![
        ("n".into(), Value::Int(-2)),
        ("comm".into(), Value::Str("hi".into())),
        ("raw".into(), Value::Array(vec![Value::Uint(1), Value::Uint(2)])),
        ("ok".into(), Value::Bool(true)),
        ("bits".into(), Value::Int(-4)),
        ("e".into(), e),
        ("in_a".into(), Value::Int(5)),
    ];
    assert_eq!(decode(&btf, s, &bytes), Value::Struct(expected));
    assert_eq!(decode(&btf, s, &bytes[..3]), Value::Bytes(bytes[..3].to_vec()));
}

#[test]
fn ext_tables() {
    let words = |w: &[u32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    // Header of 32 bytes; func_info with records of 12 bytes, the last word unknown; no lines; one CO-RE record.
    let mut bytes = words(&[0x0001_eb9f, 32, 0, 4 + 8 + 24, 36, 0, 36, 4 + 8 + 16]);
    bytes.extend(words(&[12, 7, 2, 0, 1, 99, 8, 2, 99]));
    bytes.extend(words(&[16, 7, 1, 8, 3, 5, 12]));
    let ext = BtfExt::parse(&bytes).unwrap();
    assert_eq!(ext.funcs.len(), 1);
    assert_eq!(ext.funcs[0].records.iter().map(|r| (r.insn_off, r.type_id)).collect::<Vec<_>>(), [(0, 1), (8, 2)]);
    let relo = ext.relos[0].records[0];
    assert_eq!((relo.insn_off, relo.type_id, relo.access_str_off, relo.kind), (8, 3, 5, 12));
    for n in 0..bytes.len() {
        assert!(BtfExt::parse(&bytes[..n]).is_err(), "{n} bytes");
    }
}
