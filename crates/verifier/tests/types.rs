//! What the program type decides beside contexts and helpers, against the live kernel: which types of a global function's
//! parameter are its context, and which maps it may use.
//!
//! Needs `bpf(2)`; skipped without.

mod kernel;
mod loads;

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_ebpf::Insn;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Btf, Composite, Kind, Linkage, Member, Param};
use skep_ebpf::insn::{CALL, EXIT, LD_IMM64, alu, call, class, pseudo};
use skep_ebpf::program::{FuncInfo, MapDef, Program};
use skep_ebpf::uapi::{AttachType, MapType, ProgType, map_flags, prog_flags};
use skep_verifier::{Options, Outcome, verify};

const NAMES: [&str; 24] = [
    "__sk_buff",
    "sk_buff",
    "xdp_md",
    "xdp_buff",
    "bpf_sock",
    "sock",
    "bpf_sock_addr",
    "bpf_sock_ops",
    "bpf_sock_ops_kern",
    "sk_msg_md",
    "sk_msg",
    "bpf_user_pt_regs_t",
    "pt_regs",
    "user_pt_regs",
    "bpf_perf_event_data",
    "bpf_raw_tracepoint_args",
    "bpf_cgroup_dev_ctx",
    "bpf_sysctl",
    "bpf_sockopt",
    "bpf_sk_lookup",
    "sk_reuseport_md",
    "bpf_nf_ctx",
    "bpf_flow_dissector",
    "something_else",
];

/// Types of a parameter that a name can be part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    Struct,
    ConstStruct,
    Union,
    /// A typedef, with this name, of a struct with this name.
    Typedef,
    /// A typedef, with this name, of a struct that is called otherwise.
    TypedefOfOther,
    Forward,
    Number,
    LongNumber,
    Void,
    PointerToPointer,
}

const SHAPES: [Shape; 10] = [
    Shape::Struct,
    Shape::ConstStruct,
    Shape::Union,
    Shape::Typedef,
    Shape::TypedefOfOther,
    Shape::Forward,
    Shape::Number,
    Shape::LongNumber,
    Shape::Void,
    Shape::PointerToPointer,
];

/// BTF of a main function, and of a global one with one parameter.
fn parameter(name: &str, shape: Shape, tagged: bool) -> (Vec<u8>, [u32; 2]) {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let long = b.int("long", 8, 1);
    let member = b.string("member");
    let body = |ty| Composite {
        size: 8,
        members: Box::new([Member { name_off: member, ty, bit_offset: 0, bitfield_size: 0 }]),
    };
    let composite = |b: &mut Builder, name: &str| b.add(name, &Kind::Struct(body(long)));
    let target = match shape {
        Shape::Struct => composite(&mut b, name),
        Shape::ConstStruct => {
            let ty = composite(&mut b, name);
            b.add("", &Kind::Const { ty })
        }
        Shape::Union => b.add(name, &Kind::Union(body(long))),
        Shape::Typedef => {
            let ty = composite(&mut b, name);
            b.add(name, &Kind::Typedef { ty })
        }
        Shape::TypedefOfOther => {
            let ty = composite(&mut b, "other");
            b.add(name, &Kind::Typedef { ty })
        }
        Shape::Forward => b.add(name, &Kind::Fwd { union: false }),
        Shape::Number => int,
        Shape::LongNumber => long,
        Shape::Void => 0,
        Shape::PointerToPointer => {
            let ty = composite(&mut b, name);
            b.add("", &Kind::Ptr { ty })
        }
    };
    let pointer = b.add("", &Kind::Ptr { ty: target });
    let any = b.add("", &Kind::Ptr { ty: 0 });
    let mut function = |name: &str, ty| {
        let params = Box::new([Param { name_off: 1, ty }]);
        let proto = b.add("", &Kind::FuncProto { ret: int, params });
        b.add(name, &Kind::Func { proto, linkage: Linkage::Global })
    };
    let ids = [function("main", any), function("global", pointer)];
    if tagged {
        b.add("arg:ctx", &Kind::DeclTag { ty: ids[1], component: 0 });
    }
    (b.finish(), ids)
}

fn mov(dst: u8, imm: i32) -> Insn {
    Insn::new(class::ALU64 | alu::MOV, dst, 0, 0, imm)
}

/// What differs from the kernel's verdict; `Ok(true)` if both accept.
fn compare(program: &Program, answer: i32, what: String) -> Result<bool, String> {
    let options = Options { btf: loads::kernel_types(), ..Options::default() };
    match verify(program.clone(), &options) {
        Ok(_) if answer == 0 => Ok(true),
        Err(r) if r.outcome == Outcome::Rejected && answer != 0 => Ok(false),
        Ok(_) => Err(format!("{what}: accepted, kernel {answer}")),
        Err(r) => Err(format!("{what}: {r}, kernel {answer}")),
    }
}

#[test]
fn contexts_of_global_functions() {
    if !kernel::available() {
        return;
    }
    let mut faults = Vec::new();
    let mut accepted = BTreeSet::new();
    for shape in SHAPES {
        for name in NAMES {
            if matches!(shape, Shape::Number | Shape::LongNumber | Shape::Void) && name != NAMES[0] {
                continue;
            }
            for tagged in [false, true] {
                let (raw, ids) = parameter(name, shape, tagged);
                let fd = kernel::btf(&raw).expect("the kernel takes the BTF");
                let btf = Arc::new(Btf::parse(&raw).expect("BTF of the test"));
                for &(ty, attaches, _) in loads::TYPES {
                    let call = Insn::new(CALL, 0, call::SUBPROG, 0, 2);
                    let exit = Insn::new(EXIT, 0, 0, 0, 0);
                    let insns = vec![call, mov(0, 1), exit, mov(0, 0), exit];
                    let mut program = loads::load(ty, attaches[0], "GPL", insns);
                    program.btf = Some(btf.clone());
                    let info = [(0, ids[0]), (3, ids[1])];
                    program.func_info = info.map(|(insn, type_id)| FuncInfo { insn, type_id }).to_vec();
                    let answer = kernel::load_typed(&program, &[], Some(&fd), 0).expect("no maps").errno;
                    match compare(&program, answer, format!("{ty}: {shape:?} {name}, tagged: {tagged}")) {
                        Ok(true) => _ = accepted.insert(ty),
                        Ok(false) => {}
                        Err(fault) => faults.push(fault),
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(accepted.len(), loads::TYPES.len());
}

/// A program that names a map.
fn names_map(ty: ProgType, attach: AttachType, maps: Arc<[MapDef]>, map: usize) -> Program {
    let insns = vec![
        Insn::new(LD_IMM64, 1, pseudo::MAP_IDX, 0, map as i32),
        Insn::new(0, 0, 0, 0, 0),
        mov(0, 1),
        Insn::new(EXIT, 0, 0, 0, 0),
    ];
    let mut program = loads::load(ty, attach, "GPL", insns);
    program.maps = maps;
    program
}

#[test]
fn maps_of_programs() {
    let mut faults = Vec::new();
    if !kernel::available() {
        return;
    }
    for &(ty, attaches, _) in loads::TYPES {
        for def in loads::maps() {
            let name = def.name.clone();
            let defs: Arc<[MapDef]> = [def].into();
            for sleepable in [false, true] {
                let mut program = names_map(ty, attaches[0], defs.clone(), 0);
                if sleepable {
                    program.flags |= prog_flags::SLEEPABLE;
                }
                // A map of its own for each load: some belong to the first type of program that names them.
                let answer = kernel::load(&program, 0).expect("maps").errno;
                faults.extend(compare(&program, answer, format!("{ty}, sleepable: {sleepable}, map {name}")).err());
            }
        }
    }
    assert!(faults.is_empty(), "{}:\n{}", faults.len(), faults.join("\n"));
}

/// A value with a special field at its start, and the map's type.
fn special(kind: &str) -> (Vec<u8>, MapDef) {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let long = b.int("long", 8, 1);
    let name = b.string("member");
    let at = |ty, bit_offset| Member { name_off: name, ty, bit_offset, bitfield_size: 0 };
    let composite = |b: &mut Builder, name: &str, size: u32, members: Vec<Member>| {
        b.add(name, &Kind::Struct(Composite { size, members: members.into() }))
    };
    let size = match kind {
        "bpf_spin_lock" | "bpf_res_spin_lock" => 4,
        "bpf_task_work" | "kptr" => 8,
        _ => 16,
    };
    let (ty, extra) = match kind {
        "kptr" => {
            let task = b.add("task_struct", &Kind::Fwd { union: false });
            let tag = b.add("kptr_untrusted", &Kind::TypeTag { ty: task });
            (b.add("", &Kind::Ptr { ty: tag }), None)
        }
        "bpf_list_head" | "bpf_rb_root" => {
            let (inner, node_size) = if kind == "bpf_list_head" { ("bpf_list_node", 24) } else { ("bpf_rb_node", 32) };
            let members = (0..node_size / 8).map(|n| at(long, n * 64)).collect();
            let node = composite(&mut b, inner, node_size, members);
            let owner = composite(&mut b, "owner", node_size, vec![at(node, 0)]);
            let _ = owner;
            let lock = composite(&mut b, "bpf_spin_lock", 4, vec![at(int, 0)]);
            let head = composite(&mut b, kind, 16, vec![at(long, 0), at(long, 64)]);
            (head, Some(lock))
        }
        "bpf_spin_lock" | "bpf_res_spin_lock" => (composite(&mut b, kind, 4, vec![at(int, 0)]), None),
        _ => {
            let members = (0..size / 8).map(|n| at(long, n * 64)).collect();
            (composite(&mut b, kind, size, members), None)
        }
    };
    let mut members = vec![at(ty, 0)];
    let mut total = size;
    if let Some(lock) = extra {
        members.push(at(lock, size * 8));
        total += 8;
    }
    let value = composite(&mut b, "value", total.max(8), members);
    if extra.is_some() {
        b.add("contains:owner:member", &Kind::DeclTag { ty: value, component: 0 });
    }
    let mut def = MapDef::new(kind, MapType::Hash, 4, total.max(8), 4);
    def.flags = map_flags::NO_PREALLOC;
    (def.key_type_id, def.value_type_id) = (int, value);
    (b.finish(), def)
}

#[test]
fn special_fields_of_programs() {
    if !kernel::available() {
        return;
    }
    let kinds = [
        "bpf_spin_lock",
        "bpf_res_spin_lock",
        "bpf_timer",
        "bpf_wq",
        "bpf_task_work",
        "kptr",
        "bpf_list_head",
        "bpf_rb_root",
    ];
    let mut faults = Vec::new();
    let mut made = 0;
    for kind in kinds {
        let (raw, def) = special(kind);
        let fd = kernel::btf(&raw).expect("the kernel takes the BTF");
        let map = match kernel::create_typed_map(&def, Some(&fd)) {
            Ok(map) => [map],
            Err(errno) => {
                println!("no map with a {kind}: {errno}");
                continue;
            }
        };
        made += 1;
        let defs: Arc<[MapDef]> = [def].into();
        let btf = Arc::new(Btf::parse(&raw).expect("BTF of the test"));
        for &(ty, attaches, _) in loads::TYPES {
            let mut program = names_map(ty, attaches[0], defs.clone(), 0);
            program.btf = Some(btf.clone());
            let answer = kernel::load_with(&program, &map, 0).expect("maps").errno;
            faults.extend(compare(&program, answer, format!("{ty}, a map with a {kind}")).err());
        }
    }
    assert!(faults.is_empty(), "{}:\n{}", faults.len(), faults.join("\n"));
    assert!(made >= 4, "{made} maps could be made");
}
