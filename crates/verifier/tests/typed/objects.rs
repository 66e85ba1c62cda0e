//! Types with special fields for test programs, and maps of them.

use std::sync::Arc;

use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Composite, Kind, Linkage, Member};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, map_flags};

/// Ids of the types, by the names that programs and maps use.
#[derive(Clone, Debug, Default)]
pub struct Ids(Vec<(&'static str, u32)>);

impl Ids {
    /// The type with this name.
    pub fn get(&self, name: &str) -> u32 {
        self.0.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no type {name}")).1
    }
}

/// A struct: its name, its size, and its members as name, type and offset.
pub type Layout = (&'static str, u32, &'static [(&'static str, &'static str, u32)]);

/// `T kptr*` and the like are tagged pointers, `T[3]` is an array; behind ` < ` stands what a list or tree contains.
const LAYOUTS: &[Layout] = &[
    ("bpf_spin_lock", 4, &[("val", "int", 0)]),
    ("bpf_res_spin_lock", 4, &[("val", "int", 0)]),
    ("bpf_timer", 16, &[("a", "long", 0), ("b", "long", 8)]),
    ("bpf_wq", 16, &[("a", "long", 0), ("b", "long", 8)]),
    ("bpf_list_head", 16, &[("a", "long", 0), ("b", "long", 8)]),
    ("bpf_list_node", 24, &[("a", "long", 0), ("b", "long", 8), ("c", "long", 16)]),
    ("bpf_rb_root", 16, &[("a", "long", 0), ("b", "long", 8)]),
    ("bpf_rb_node", 32, &[("a", "long", 0), ("b", "long", 8), ("c", "long", 16), ("d", "long", 24)]),
    ("bpf_refcount", 4, &[("a", "int", 0)]),
    ("task_struct", 4, &[("pid", "int", 0)]),
    ("item", 64, &[("x", "int", 0), ("n", "bpf_list_node", 8), ("n2", "bpf_list_node", 32), ("p", "*", 56)]),
    (
        "foo",
        72,
        &[("n", "bpf_list_node", 0), ("r", "bpf_rb_node", 24), ("rc", "bpf_refcount", 56), ("key", "long", 64)],
    ),
    ("tree", 72, &[("key", "long", 0), ("r", "bpf_rb_node", 8), ("d", "long", 40), ("e", "long", 48)]),
    (
        "own",
        48,
        &[
            ("a", "long", 0),
            ("l", "bpf_spin_lock", 8),
            ("h", "bpf_list_head < item:n", 16),
            ("t", "bpf_rb_root < tree:r", 32),
        ],
    ),
    ("scal", 24, &[("a", "long", 0), ("b", "long", 8), ("c", "long", 16)]),
    ("kp", 32, &[("a", "long", 0), ("t", "tree kptr*", 8), ("task", "task_struct kptr*", 16), ("f", "foo kptr*", 24)]),
    ("pk", 16, &[("p", "scal percpu_kptr*", 0), ("x", "long", 8)]),
    ("uk", 16, &[("u", "task_struct kptr_untrusted*", 0), ("r", "task_struct kptr*", 8)]),
    (
        "mv",
        48,
        &[
            ("l", "bpf_spin_lock", 0),
            ("h", "bpf_list_head < item:n", 8),
            ("t", "bpf_rb_root < tree:r", 24),
            ("x", "int", 40),
        ],
    ),
    ("wv", 48, &[("x", "int", 0), ("w", "bpf_wq", 8), ("t", "bpf_timer", 24), ("y", "int", 40)]),
    (
        "A",
        56,
        &[
            ("l", "bpf_spin_lock", 0),
            ("h", "bpf_list_head < item:n", 8),
            ("h2", "bpf_list_head < item:n2", 24),
            ("t", "bpf_rb_root < tree:r", 40),
        ],
    ),
    ("B", 40, &[("l", "bpf_spin_lock", 0), ("t", "bpf_rb_root < foo:r", 8), ("h", "bpf_list_head < foo:n", 24)]),
    ("C", 24, &[("l", "bpf_res_spin_lock", 0), ("h", "bpf_list_head < item:n", 8)]),
];

/// Adds the types; `int`, `long` and an address are given. Sections `.data.A` and so on hold one variable each.
pub fn add(b: &mut Builder, int: u32, long: u32, any: u32) -> Ids {
    let mut ids = Ids::plain(int, long, any);
    add_layouts(b, &mut ids, LAYOUTS);
    ids
}

/// The types that are special by their name.
pub fn special() -> &'static [Layout] {
    &LAYOUTS[..10]
}

/// Adds structs.
pub fn add_layouts(b: &mut Builder, ids: &mut Ids, layouts: &[Layout]) {
    for &(name, size, members) in layouts {
        let mut tags = Vec::new();
        let mut typed = Vec::new();
        for (n, &(member, ty, off)) in members.iter().enumerate() {
            let (ty, contains) = ty.split_once(" < ").map_or((ty, None), |(t, c)| (t, Some(c)));
            tags.extend(contains.map(|c| (n, c)));
            let (ty, len) = match ty.strip_suffix(']').and_then(|t| t.split_once('[')) {
                Some((ty, len)) => (ty, len.parse().ok()),
                None => (ty, None),
            };
            let mut id = match ty.strip_suffix('*').and_then(|t| t.split_once(' ')) {
                Some((target, tag)) => {
                    let tag = b.add(tag, &Kind::TypeTag { ty: ids.get(target) });
                    b.add("", &Kind::Ptr { ty: tag })
                }
                None => ids.get(ty),
            };
            if let Some(len) = len {
                id = b.add("", &Kind::Array { elem: id, index: ids.get("int"), len });
            }
            typed.push((member, id, off));
        }
        let member = |(name, ty, off): (&str, u32, u32)| Member {
            name_off: b.string(name),
            ty,
            bit_offset: off * 8,
            bitfield_size: 0,
        };
        let members = typed.into_iter().map(member).collect();
        let id = b.add(name, &Kind::Struct(Composite { size, members }));
        for (n, contains) in tags {
            b.add(&format!("contains:{contains}"), &Kind::DeclTag { ty: id, component: n as i32 });
        }
        ids.0.push((name, id));
        if name.len() == 1 {
            let var = b.add(&format!("the{name}"), &Kind::Var { ty: id, linkage: Linkage::Global });
            let vars = Box::new([(var, 0, size)]);
            let section = b.add(&format!(".data.{name}"), &Kind::Datasec { size, vars });
            let data = match name {
                "A" => ".data.A",
                "B" => ".data.B",
                _ => ".data.C",
            };
            ids.0.push((data, section));
        }
    }
}

impl Ids {
    /// Numbers and an address.
    pub fn plain(int: u32, long: u32, any: u32) -> Ids {
        Ids(vec![("int", int), ("long", long), ("*", any)])
    }
}

/// The maps of the cases, by index.
pub fn maps(ids: &Ids) -> Vec<MapDef> {
    let size = |ty: &str| LAYOUTS.iter().find(|l| l.0 == ty).map_or(0, |l| l.1);
    let of = |map_type, ty: &str| {
        let mut m = MapDef::new(&ty.to_lowercase(), map_type, 4, size(ty), 4);
        (m.key_type_id, m.value_type_id) = (ids.get("int"), ids.get(ty));
        if map_type == MapType::Hash {
            m.flags = map_flags::NO_PREALLOC;
        }
        m
    };
    let section = |name: &str| {
        let mut m = MapDef::new(name, MapType::Array, 4, size(name), 1);
        m.value_type_id = ids.get(&format!(".data.{name}"));
        m
    };
    let outer = |inner: MapDef| {
        let mut m = MapDef::new("outer", MapType::ArrayOfMaps, 4, 4, 2);
        m.inner = Some(Arc::new(inner));
        m
    };
    let mut arena = MapDef::new("arena", MapType::Arena, 0, 0, 100);
    (arena.flags, arena.extra) = (map_flags::MMAPABLE, 1 << 44);
    vec![
        section("A"),
        section("B"),
        section("C"),
        of(MapType::Hash, "mv"),
        of(MapType::Array, "kp"),
        of(MapType::Array, "pk"),
        of(MapType::Array, "uk"),
        of(MapType::Array, "wv"),
        of(MapType::Hash, "wv"),
        outer(of(MapType::Array, "mv")),
        outer(of(MapType::Array, "wv")),
        arena,
    ]
}
