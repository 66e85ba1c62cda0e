use skep_ebpf::btf::{Btf, Kind, Linkage};

/// Types from the debug information that the C compiler makes; C++ too where there is one.
#[test]
fn types_from_debug_information() {
    let dir = std::env::temp_dir().join(format!("skep-elf-dwarf-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let c = "struct list; enum kind { NONE, SOME = -2, MANY = 70000 };
typedef struct { unsigned a:3, :2, b:9; enum kind kind; } bits;
struct list { struct list *next; union { long n; char text[4][8]; }; const volatile bits *bits; int (*call)(struct list *, ...); };
static __attribute__((noinline)) int hidden(struct list *l) { __asm__ volatile(\"\" : \"+r\"(l)); return l->n; }
_Bool seen(struct list *l, const char *restrict text, double d, __int128 wide, bits by_value) {
\treturn hidden(l) + text[0] + d + wide + by_value.b;
}
int many(int n, ...) { return n; }
int main(void) { return 0; }
";
    let build = |name: &str, text: &str, compiler: &str, flags: &[&str]| {
        std::fs::write(dir.join(name), text).unwrap();
        let out = dir.join(format!("{name}.out"));
        let done = std::process::Command::new(compiler).args(flags).arg("-o").arg(&out).arg(dir.join(name)).status();
        done.is_ok_and(|s| s.success()).then(|| std::fs::read(&out).unwrap())
    };
    for flags in [&["-O1", "-g"][..], &["-O1", "-g", "-gdwarf-4"], &["-O0", "-g", "-gdwarf-3", "-gstrict-dwarf"]] {
        let bytes = build("a.c", c, "gcc", flags).expect("a C compiler");
        let made = crate::btf_from_dwarf("a", &bytes).unwrap();
        let btf = Btf::parse(&made.btf).unwrap();
        let of = |id: u32| btf.resolve(id).and_then(|id| btf.kind(id)).unwrap();
        let func = |name: &str| {
            let id = btf.find(name, |k| matches!(k, Kind::Func { .. })).unwrap_or_else(|| panic!("{flags:?}: {name}"));
            match btf.kind(id) {
                Some(Kind::Func { proto, linkage }) => match btf.kind(*proto) {
                    Some(Kind::FuncProto { ret, params }) => (*ret, params.clone(), *linkage),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(func("hidden").2, Linkage::Static);
        assert_eq!(func("many").1.last().map(|p| p.ty), Some(0), "an end without a type");
        let (ret, params, linkage) = func("seen");
        assert_eq!(linkage, Linkage::Global);
        assert!(matches!(of(ret), Kind::Int { size: 1, encoding: 4, .. }));
        let names: Vec<_> = params.iter().filter_map(|p| btf.str_at(p.name_off)).collect();
        assert_eq!(names, ["l", "text", "d", "wide", "by_value"], "{flags:?}");
        assert!(matches!(of(params[2].ty), Kind::Float { size: 8 }));
        assert!(matches!(of(params[3].ty), Kind::Int { size: 16, .. }));
        let Kind::Struct(bits) = of(params[4].ty) else { panic!() };
        let places: Vec<_> = bits.members.iter().map(|m| (m.bit_offset, m.bitfield_size)).collect();
        assert_eq!((bits.size, &places[..]), (8, &[(0, 3), (5, 9), (32, 0)][..]), "{flags:?}");
        let Kind::Enum { size: 4, signed: true, values } = of(bits.members[2].ty) else { panic!() };
        assert_eq!(values.iter().map(|v| v.1).collect::<Vec<_>>(), [0, -2, 70000]);
        let Kind::Ptr { ty } = of(params[0].ty) else { panic!() };
        let (Some(id), Kind::Struct(list)) = (btf.resolve(*ty), of(*ty)) else { panic!() };
        assert_eq!((btf.name(id), list.size, list.members.len()), ("list", 56, 4));
        let Kind::Ptr { ty: next } = of(list.members[0].ty) else { panic!() };
        assert_eq!(btf.resolve(*next), Some(id), "a struct leads back to itself");
        let Kind::Union(inner) = of(list.members[1].ty) else { panic!() };
        let Kind::Array { elem, len: 4, .. } = of(inner.members[1].ty) else { panic!() };
        assert!(matches!(of(*elem), Kind::Array { len: 8, .. }));
    }
    let cc = "struct Any { ~Any(); long n; }; Any::~Any() {}
template <class T> struct Box { T t; }; namespace n { int by_value(Any a, Box<int> &b) { return a.n + b.t; } }
int main() { Box<int> b{1}; return n::by_value(Any{}, b); }
";
    if let Some(bytes) = build("a.cc", cc, "g++", &["-O1", "-g"]) {
        let made = crate::btf_from_dwarf("a", &bytes).unwrap();
        let btf = Btf::parse(&made.btf).unwrap();
        let id =
            btf.find("_ZN1n8by_valueE3AnyR3BoxIiE", |k| matches!(k, Kind::Func { .. })).expect("the symbol's name");
        let Some(Kind::Func { proto, .. }) = btf.kind(id) else { panic!() };
        let Some(Kind::FuncProto { params, .. }) = btf.kind(*proto) else { panic!() };
        let pointer =
            |n: usize| matches!(btf.resolve(params[n].ty).and_then(|id| btf.kind(id)), Some(Kind::Ptr { .. }));
        // It is passed by its address; where the compiler does not say so, it is not known how.
        assert!(pointer(0) || params[0].ty == 0, "an object with a destructor");
        assert!(pointer(1));
        assert!(btf.find("Box_int_", |k| matches!(k, Kind::Struct(_))).is_some());
    }
    let bare = build("a.c", c, "gcc", &["-O1", "-s"]).unwrap();
    let error = crate::btf_from_dwarf("a", &bare).unwrap_err().to_string();
    assert!(error.contains("no debug information"), "{error}");
    // Damaged files are errors, or less types, and nothing worse.
    let good = build("a.c", c, "gcc", &["-O1", "-g"]).unwrap();
    for n in 0..400 {
        let mut bytes = good.clone();
        let at = (n * 7919) % bytes.len();
        bytes[at] ^= 1 << (n % 8);
        let at = bytes.len() - 1 - (n * 104_729) % (bytes.len() / 2);
        bytes[at] = n as u8;
        let _ = crate::btf_from_dwarf("a", &bytes).map(|made| Btf::parse(&made.btf).expect("types that can be read"));
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
