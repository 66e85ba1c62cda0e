use skep_ebpf::Insn;
use skep_ebpf::asm::assemble;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Kind, Linkage, Param};
use skep_ebpf::program::{InitialValue, MapDef};
use skep_ebpf::uapi::{MapType, ProgType, map_flags};

use crate::testing::*;
use crate::*;

fn parse(e: Elf) -> Result<Object, ElfError> {
    Object::parse("test.o", &e.finish())
}

fn code(object: &Object, program: &str) -> Vec<Insn> {
    object.program(program, &LoadOptions::default()).unwrap().insns
}

#[test]
fn sample_links() {
    let object = Object::parse("dir/my_sample.bpf.o", &sample()).unwrap();
    let program = object.program("prog", &LoadOptions::default()).unwrap();
    let expected = "r1 = map[idx:0]\nr2 = map[idx:1][0]+8\ncall pc+1\nexit\nr0 = 1\nexit";
    assert_eq!(program.insns, assemble(expected).unwrap());
    assert_eq!((program.license.as_str(), program.attach_to.as_str()), ("GPL", "do_x"));
    let names: Vec<&str> = object.maps().iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["counts", "my_sampl.bss"]);
    let [counts, bss] = &object.maps()[..] else { panic!() };
    assert_eq!((counts.map_type, counts.key_size, counts.value_size, counts.max_entries), (MapType::Hash, 4, 4, 16));
    assert_eq!((bss.map_type, bss.value_size, bss.flags), (MapType::Array, 16, map_flags::MMAPABLE));
    // The compiler left the layout of `.bss` open.
    let btf = object.btf().unwrap();
    assert!(matches!(btf.kind(bss.value_type_id), Some(Kind::Datasec { size: 16, vars }) if vars[0].1 == 8));
}

#[test]
fn truncated_and_foreign_objects_are_named() {
    let bytes = sample();
    for n in 0..bytes.len() {
        let e = Object::parse("cut.o", &bytes[..n]).expect_err("a part of an object");
        assert!(e.to_string().contains("cut.o"), "{n}: {e}");
    }
    let mut e = Elf::new();
    e.machine = 62;
    let e = parse(e).unwrap_err();
    assert_eq!(e.to_string(), "test.o: object for x86-64, not for BPF (clang -target bpf)");
    let mut big = sample();
    big[5] = 2;
    assert_eq!(Object::parse("b.o", &big).unwrap_err(), ElfError::BigEndian { object: "b.o".into() });
    let mut small = sample();
    small[4] = 1;
    assert_eq!(Object::parse("b.o", &small).unwrap_err(), ElfError::Class { object: "b.o".into() });
    assert_eq!(Object::parse("b.o", b"#!/bin/sh").unwrap_err(), ElfError::NotElf { object: "b.o".into() });
    let mut exe = sample();
    exe[16] = 2;
    assert_eq!(Object::parse("b.o", &exe).unwrap_err(), ElfError::FileType { object: "b.o".into(), found: 2 });
}

#[test]
fn types_of_any_file() {
    let object = Object::parse("s.o", &sample()).unwrap();
    let mut other = sample();
    other[18] = 62;
    let btf = read_btf("s", &other).unwrap();
    assert_eq!(btf.len(), object.btf().unwrap().len());
    let e = read_btf("cut", &other[..200]).unwrap_err();
    assert!(e.to_string().starts_with("cut: "), "{e}");
    assert!(matches!(read_btf("x", b"text"), Err(ElfError::Btf { .. })));
}

#[test]
fn an_unknown_section_is_its_programs_own_trouble() {
    let mut e = Elf::new();
    let odd = e.asm("my_own_section", "r0 = 0\nexit");
    e.func("odd", odd);
    let fine = e.asm("?xdp", "r0 = 2\nexit");
    e.func("fine", fine);
    let object = parse(e).unwrap();
    assert_eq!(code(&object, "fine"), assemble("r0 = 2\nexit").unwrap());
    let [odd, fine] = object.programs() else { panic!() };
    assert!(odd.unsupported.is_some() && odd.autoload);
    assert!(fine.unsupported.is_none() && !fine.autoload && fine.section == "xdp");
    let e = object.program("odd", &LoadOptions::default()).unwrap_err();
    assert!(e.is_unsupported() && e.to_string().contains("my_own_section"), "{e}");
    let given = LoadOptions { prog_type: Some((ProgType::SchedCls, None)), ..LoadOptions::default() };
    assert_eq!(object.program("odd", &given).unwrap().prog_type, ProgType::SchedCls);
    let e = object.program("none", &given).unwrap_err();
    assert_eq!(e.to_string(), "no program `none` in test.o; it has: odd, fine");
}

/// main → a → c, then b: depth first, each once; a static function is reached through its section.
#[test]
fn subprograms_follow_in_order_of_first_use() {
    let mut e = Elf::new();
    let main = e.asm("tc", "call pc-1\ncall pc+2\ncall pc-1\nexit");
    // a at 0 calls c by distance, b at 3, c at 5.
    let text = e.asm(".text", "r0 = 1\ncall pc+3\nexit\nr0 = 2\nexit\nr0 = 3\nexit");
    e.func("main", main);
    let a = e.symbol("a", FUNC, GLOBAL, text, 0, 24);
    e.symbol("b", FUNC, LOCAL, text, 24, 16);
    e.symbol("c", FUNC, LOCAL, text, 40, 16);
    let section = e.symbol("", SECTION, LOCAL, text, 0, 0);
    e.reloc(main, 0, a);
    // Against a section, the call's distance plus one is the function's place in it: 3.
    e.reloc(main, 8, section);
    e.reloc(main, 16, a);
    let bytes = e.finish();
    let object = Object::parse("test.o", &bytes).unwrap();
    assert_eq!(object.programs().len(), 1);
    let linked = code(&object, "main");
    let expected = "
        call a
        call b
        call a
        exit
        a:
        r0 = 1
        call c
        exit
        c:
        r0 = 3
        exit
        b:
        r0 = 2
        exit";
    assert_eq!(linked, assemble(expected).unwrap());
}

#[test]
fn addresses_of_functions() {
    let mut e = Elf::new();
    let main = e.asm("tc", "r2 = 0x0\nr3 = 0x10\nexit");
    let text = e.asm(".text", "r0 = 1\nexit\nr0 = 2\nexit");
    e.func("main", main);
    let a = e.symbol("a", FUNC, GLOBAL, text, 0, 16);
    e.symbol("b", FUNC, LOCAL, text, 16, 16);
    let section = e.symbol("", SECTION, LOCAL, text, 0, 0);
    e.reloc(main, 0, a);
    e.reloc(main, 16, section);
    let object = parse(e).unwrap();
    let expected = "r2 = subprog[+4]\nr3 = subprog[+4]\nexit\nr0 = 1\nexit\nr0 = 2\nexit";
    assert_eq!(code(&object, "main"), assemble(expected).unwrap());
}

#[test]
fn faults_of_relocations_hit_only_their_programs() {
    let mut e = Elf::new();
    let (good, bad) = (e.asm("xdp", "r0 = 2\nexit"), e.asm("tc", "r1 = 0x0\nexit"));
    let lost = e.asm("socket", "call pc+40\nexit");
    e.func("good", good);
    e.func("bad", bad);
    e.func("lost", lost);
    let undefined = e.symbol("thing", NOTYPE, GLOBAL, 0, 0, 0);
    e.reloc(bad, 0, undefined);
    let object = parse(e).unwrap();
    code(&object, "good");
    let e = object.program("bad", &LoadOptions::default()).unwrap_err();
    assert_eq!(e.to_string(), "extern `thing`: the object has no BTF to say what it is");
    let e = object.program("lost", &LoadOptions::default()).unwrap_err();
    assert_eq!(e, ElfError::CallTarget { section: "socket".into(), offset: 0 });
}

/// Compilers of 2018 wrote neither function symbols nor BTF.
#[test]
fn old_objects() {
    let words = |w: &[u32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let mut e = Elf::new();
    let prog = e.asm("kprobe/sys_x", "r1 = 0x0\ncall 1\nexit");
    let bare = e.asm("socket", "r0 = 0\nexit");
    let maps = e.data("maps", &words(&[1, 4, 8, 100, 0, 2, 8, 8, 1, 1]));
    let version = e.data("version", &words(&[0x0004_1100]));
    e.symbol("prog", NOTYPE, GLOBAL, prog, 0, 0);
    let first = e.symbol("first", OBJECT, GLOBAL, maps, 0, 20);
    let second = e.symbol("second", NOTYPE, GLOBAL, maps, 20, 0);
    e.reloc(prog, 0, second);
    let _ = (bare, version, first);
    let object = parse(e).unwrap();
    let names: Vec<&str> = object.programs().iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["prog", "socket"]);
    let p = object.program("prog", &LoadOptions::default()).unwrap();
    assert_eq!((p.kern_version, p.insns[0]), (0x0004_1100, assemble("r1 = map[idx:1]").unwrap()[0]));
    let expected = [MapDef::new("first", MapType::Hash, 4, 8, 100), {
        let mut m = MapDef::new("second", MapType::Array, 8, 8, 1);
        m.flags = 1;
        m
    }];
    assert_eq!(object.maps()[..], expected);
}

#[test]
fn legacy_maps_of_maps() {
    let words = |w: &[u32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    // Layout of iproute2: …, id, pinning, id of the inner map, its index.
    let mut e = Elf::new();
    let maps = e.data("maps", &words(&[2, 4, 8, 1, 0, 77, 2, 0, 0, 12, 4, 4, 9, 0, 78, 0, 77, 0]));
    e.symbol("inner", OBJECT, GLOBAL, maps, 0, 36);
    e.symbol("outer", OBJECT, GLOBAL, maps, 36, 36);
    let object = parse(e).unwrap();
    let [inner, outer] = &object.maps()[..] else { panic!() };
    assert_eq!((inner.pinning, outer.inner.as_deref()), (1, Some(inner)));
    let mut e = Elf::new();
    e.data("maps", &words(&[2, 4, 8]));
    let maps = e.data("maps2", &[]);
    e.symbol("m", OBJECT, GLOBAL, maps - 1, 0, 12);
    assert!(matches!(parse(e), Err(ElfError::SectionSize { section, .. }) if section == "maps"));
}

/// A prog array and a map of maps with initial values.
#[test]
fn initial_values() {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let (ty, inner_ty, jumps_ty) = (uint(&mut b, int, 12), uint(&mut b, int, 2), uint(&mut b, int, 3));
    let entries = uint(&mut b, int, 3);
    let int_ptr = b.add("", &Kind::Ptr { ty: int });
    let inner = structure(
        &mut b,
        "inner",
        &[("type", inner_ty), ("max_entries", entries), ("key", int_ptr), ("value", int_ptr)],
    );
    let proto = b.add("", &Kind::FuncProto { ret: int, params: Box::new([Param { name_off: 0, ty: 0 }]) });
    let slots = |b: &mut Builder, ty| {
        let ptr = b.add("", &Kind::Ptr { ty });
        b.add("", &Kind::Array { elem: ptr, index: int, len: 0 })
    };
    let (of_maps, of_progs) = (slots(&mut b, inner), slots(&mut b, proto));
    let head = [("type", ty), ("max_entries", entries), ("key", int_ptr)];
    let outer = structure(&mut b, "", &[&head[..], &[("values", of_maps)]].concat());
    let jumps =
        structure(&mut b, "", &[("type", jumps_ty), ("max_entries", entries), ("key", int_ptr), ("values", of_progs)]);
    let vars = [("one", inner, 0, 32), ("outer", outer, 32, 48), ("jumps", jumps, 80, 48)];
    let vars: Box<[_]> = vars.map(|(n, ty, off, size)| (variable(&mut b, n, ty), off, size)).into();
    b.add(".maps", &Kind::Datasec { size: 128, vars });

    let mut e = Elf::new();
    let prog = e.asm("tc", "r0 = 0\nexit");
    let maps = e.data(".maps", &[0; 128]);
    e.data(".BTF", &b.finish());
    let tail = e.func("tail", prog);
    let one = e.symbol("one", OBJECT, GLOBAL, maps, 0, 32);
    // `values` begins 24 bytes into each: slots 2 and 0.
    e.reloc(maps, 32 + 24 + 16, one);
    e.reloc(maps, 80 + 24, tail);
    let object = parse(e).unwrap();
    let [one, outer, jumps] = &object.maps()[..] else { panic!() };
    assert_eq!((one.map_type, outer.value_size), (MapType::Array, 4));
    assert_eq!(outer.inner.as_ref().map(|m| (m.name.as_str(), m.max_entries)), Some(("outer.inner", 3)));
    assert_eq!(outer.values, [(2, InitialValue::Map("one".into()))]);
    assert_eq!(jumps.values, [(0, InitialValue::Program("tail".into()))]);
}

/// Configuration values and kernel functions, present and absent.
#[test]
fn externs() {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let bool_ = b.int("_Bool", 1, 4);
    let ext = |b: &mut Builder, name, ty| b.add(name, &Kind::Var { ty, linkage: Linkage::Extern });
    let vars = [("CONFIG_ON", bool_), ("LINUX_KERNEL_VERSION", int)].map(|(n, ty)| (ext(&mut b, n, ty), 0, 4));
    b.add(".kconfig", &Kind::Datasec { size: 0, vars: Box::new(vars) });
    let proto = b.add("", &Kind::FuncProto { ret: int, params: Box::new([]) });
    let func = |b: &mut Builder, name| b.add(name, &Kind::Func { proto, linkage: Linkage::Extern });
    let vars = ["kernel_fn", "gone"].map(|n| (func(&mut b, n), 0, 0));
    let addr = ext(&mut b, "symbol", 0);
    b.add(".ksyms", &Kind::Datasec { size: 0, vars: Box::new([vars[0], vars[1], (addr, 0, 0)]) });
    let mut e = Elf::new();
    let prog = e.asm("tc", "r1 = 0x0\nr2 = 0x0\nr3 = 0x0\ncall pc-1\ncall pc-1\nexit");
    e.data(".BTF", &b.finish());
    e.func("prog", prog);
    for (offset, name, binding) in [
        (0, "CONFIG_ON", WEAK),
        (16, "LINUX_KERNEL_VERSION", GLOBAL),
        (32, "symbol", GLOBAL),
        (48, "kernel_fn", GLOBAL),
        (56, "gone", WEAK),
    ] {
        let symbol = e.symbol(name, NOTYPE, binding, 0, 0, 0);
        e.reloc(prog, offset, symbol);
    }
    let object = parse(e).unwrap();

    let mut kernel = Builder::new();
    let int = kernel.int("int", 4, 1);
    let proto = kernel.add("", &Kind::FuncProto { ret: int, params: Box::new([]) });
    let id = kernel.add("kernel_fn", &Kind::Func { proto, linkage: Linkage::Static });
    let options = LoadOptions {
        btf: Some(std::sync::Arc::new(skep_ebpf::btf::Btf::parse(&kernel.finish()).unwrap())),
        all_types: true,
        kconfig: Some(Kconfig::parse("CONFIG_ON=y\n")),
        kernel_version: kernel_version(6, 18, 0),
        ksyms: Ksyms::new([("symbol".to_owned(), 0xffff_ffff_8100_0000)].into()),
        prog_type: None,
    };
    let program = object.program("prog", &options).unwrap();
    // Sorted by alignment: the version comes first in the map; `gone` is the third extern, after the two of `.kconfig`.
    let expected = format!(
        "r1 = map[idx:0][0]+4\nr2 = map[idx:0][0]+0\nr3 = 0xffffffff81000000
         call kernel-function#{id}\ncall 2002000002\nexit"
    );
    assert_eq!(program.insns, assemble(&expected).unwrap());
    let map = &program.maps[0];
    assert_eq!(
        (map.name.as_str(), map.frozen, map.initial.as_deref()),
        ("test.kconfig", true, Some(&[0, 18, 6, 0, 1][..]))
    );

    let e = object.program("prog", &LoadOptions { btf: None, ..options.clone() }).unwrap_err();
    assert!(matches!(&e, ElfError::NoBtf { what, .. } if what.contains("kernel_fn")), "{e}");
    let e = object.program("prog", &LoadOptions { ksyms: Ksyms::default(), ..options }).unwrap_err();
    assert_eq!(e.to_string(), "extern `symbol`: the kernel has no such symbol");
}

#[test]
fn hidden_functions_are_static() {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let proto = b.add("", &Kind::FuncProto { ret: int, params: Box::new([]) });
    let id = b.add("helper", &Kind::Func { proto, linkage: Linkage::Global });
    let mut e = Elf::new();
    let main = e.asm("tc", "call pc-1\nexit");
    let text = e.asm(".text", "r0 = 1\nexit");
    e.data(".BTF", &b.finish());
    e.func("main", main);
    let helper = e.func("helper", text);
    e.hide(helper);
    e.reloc(main, 0, helper);
    let object = parse(e).unwrap();
    assert!(matches!(object.btf().unwrap().kind(id), Some(Kind::Func { linkage: Linkage::Static, .. })));
}
