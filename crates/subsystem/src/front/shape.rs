//! Kernel objects as programs see them: structs laid out by the kernel's BTF, filled with what is known of an object of
//! ours. Everything else in them is zero.

use std::collections::HashMap;

use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::prog_flags;

use super::link::LinkObject;
use super::object::{MapObject, ProgObject};

/// Members are searched so deep in structs without a name.
const MAX_DEPTH: u32 = 8;

/// Where a member is: bits from the start of its struct, and how many.
#[derive(Clone, Copy, Debug)]
struct Place {
    bit: u32,
    bits: u32,
}

/// A struct: its size, and the members that are filled.
#[derive(Debug, Default)]
struct Shape {
    size: usize,
    members: HashMap<&'static str, Place>,
}

impl Shape {
    /// A struct or union of these types. What they do not have is left out.
    fn of(btf: &Btf, name: &str, members: &[&'static str]) -> Shape {
        let found = btf.find(name, |k| k.composite().is_some());
        let Some((id, composite)) = found.and_then(|id| Some((id, btf.kind(id)?.composite()?))) else {
            return Shape::default();
        };
        let places = members.iter().filter_map(|m| Some((*m, place(btf, id, m, MAX_DEPTH)?)));
        Shape { size: composite.size as usize, members: places.collect() }
    }
}

fn place(btf: &Btf, id: u32, name: &str, depth: u32) -> Option<Place> {
    let composite = btf.kind(btf.resolve(id)?)?.composite()?;
    for m in &composite.members {
        match btf.str_at(m.name_off).unwrap_or("") {
            "" if depth > 0 => {
                if let Some(inner) = place(btf, m.ty, name, depth - 1) {
                    return Some(Place { bit: m.bit_offset.checked_add(inner.bit)?, ..inner });
                }
            }
            n if n == name => {
                let bits = match m.bitfield_size {
                    0 => u32::try_from(btf.size_of(m.ty)?.checked_mul(8)?).ok()?,
                    bits => bits.into(),
                };
                return Some(Place { bit: m.bit_offset, bits });
            }
            _ => {}
        }
    }
    None
}

/// All structs that programs are shown.
#[derive(Debug)]
pub(super) struct Shapes {
    meta: Shape,
    seq: Shape,
    map: Shape,
    prog: Shape,
    aux: Shape,
    link: Shape,
    attr: Shape,
    token: Shape,
    path: Shape,
}

impl Shapes {
    /// As they are in these types.
    pub fn new(btf: &Btf) -> Shapes {
        let map = [
            "map_type",
            "key_size",
            "value_size",
            "max_entries",
            "map_extra",
            "map_flags",
            "id",
            "numa_node",
            "btf_key_type_id",
            "btf_value_type_id",
            "name",
            "usercnt",
            "frozen",
        ];
        let prog =
            ["jited", "gpl_compatible", "sleepable", "type", "expected_attach_type", "len", "jited_len", "tag", "aux"];
        let aux = [
            "id",
            "name",
            "used_map_cnt",
            "func_cnt",
            "attach_btf_id",
            "verified_insns",
            "load_time",
            "prog",
            "dst_prog",
        ];
        let token = ["allowed_cmds", "allowed_maps", "allowed_progs", "allowed_attachs"];
        Shapes {
            meta: Shape::of(btf, "bpf_iter_meta", &["seq", "session_id", "seq_num"]),
            seq: Shape::of(btf, "seq_file", &[]),
            map: Shape::of(btf, "bpf_map", &map),
            prog: Shape::of(btf, "bpf_prog", &prog),
            aux: Shape::of(btf, "bpf_prog_aux", &aux),
            link: Shape::of(btf, "bpf_link", &["id", "type", "prog", "attach_type"]),
            attr: Shape::of(btf, "bpf_attr", &[]),
            token: Shape::of(btf, "bpf_token", &token),
            path: Shape::of(btf, "path", &[]),
        }
    }
}

/// Names the function that a program is on: that of its hook or iterator, without `prefix`.
pub(super) fn hook<'b>(btf: Option<&'b Btf>, prog: &ProgObject, prefix: &str) -> Option<&'b str> {
    let btf = btf?;
    let id = prog.verified.program().attach_btf_id;
    matches!(btf.kind(id), Some(Kind::Func { .. })).then(|| btf.name(id)).and_then(|n| n.strip_prefix(prefix))
}

/// The objects of one run, side by side. Their addresses stay while the picture lives.
#[derive(Debug)]
pub(super) struct Picture<'s> {
    shapes: &'s Shapes,
    words: Vec<u64>,
    used: usize,
}

/// Words that a picture has room for: more than the objects of any run take.
const WORDS: usize = 1024;

impl<'s> Picture<'s> {
    /// Nothing yet.
    pub fn new(shapes: &'s Shapes) -> Picture<'s> {
        Picture { shapes, words: vec![0; WORDS], used: 0 }
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.words[..self.used].fill(0);
        self.used = 0;
    }

    /// The memory.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds an empty struct; where it is, in bytes from the start. There is a word more than it has, so that what
    /// follows never begins where it ends.
    fn add(&mut self, shape: &Shape) -> usize {
        let (at, len) = (self.used, shape.size.div_ceil(8) + 1);
        if at + len > self.words.len() {
            debug_assert!(false, "a picture has room for all objects of a run");
            return 0;
        }
        self.used = at + len;
        at * 8
    }

    fn address(&self, at: usize) -> u64 {
        self.words.as_ptr() as u64 + at as u64
    }

    fn set_bits(&mut self, from: usize, bits: usize, value: u64) {
        for n in 0..bits {
            let bit = from + n;
            if value >> n & 1 != 0
                && let Some(word) = self.words.get_mut(bit / 64)
            {
                *word |= 1 << (bit % 64);
            }
        }
    }

    /// Fills a member, if the struct has it.
    fn put(&mut self, shape: &Shape, at: usize, member: &str, value: u64) {
        if let Some(place) = shape.members.get(member) {
            self.set_bits(at * 8 + place.bit as usize, place.bits.min(64) as usize, value);
        }
    }

    /// Fills an array of bytes.
    fn put_bytes(&mut self, shape: &Shape, at: usize, member: &str, bytes: impl Iterator<Item = u8>) {
        if let Some(place) = shape.members.get(member) {
            for (n, byte) in bytes.take(place.bits as usize / 8).enumerate() {
                self.set_bits(at * 8 + place.bit as usize + n * 8, 8, byte.into());
            }
        }
    }

    fn put_name(&mut self, shape: &Shape, at: usize, name: &str) {
        self.put_bytes(shape, at, "name", name.chars().map(|c| c as u32 as u8).take(15));
    }

    /// What an iterator tells of itself.
    pub fn meta(&mut self, session: u64, number: u64) -> u64 {
        let Shapes { meta, seq, .. } = self.shapes;
        let (file, at) = (self.add(seq), self.add(meta));
        self.put(meta, at, "seq", self.address(file));
        self.put(meta, at, "session_id", session);
        self.put(meta, at, "seq_num", number);
        self.address(at)
    }

    /// A map.
    pub fn map(&mut self, map: &MapObject) -> u64 {
        let at = self.map_as(map.map.def(), &map.name, map.id.number());
        let shape = &self.shapes.map;
        self.put(shape, at, "usercnt", map.users());
        self.put(shape, at, "frozen", map.map.is_frozen().into());
        if let Some(types) = &map.btf {
            self.put(shape, at, "btf_key_type_id", types.key.into());
            self.put(shape, at, "btf_value_type_id", types.value.into());
        }
        self.address(at)
    }

    /// A map that has no number yet.
    pub fn new_map(&mut self, def: &MapDef) -> u64 {
        let at = self.map_as(def, &def.name, 0);
        self.address(at)
    }

    fn map_as(&mut self, def: &MapDef, name: &str, id: u32) -> usize {
        let shape = &self.shapes.map;
        let at = self.add(shape);
        self.put(shape, at, "map_type", def.map_type as u64);
        self.put(shape, at, "key_size", def.key_size.into());
        self.put(shape, at, "value_size", def.value_size.into());
        self.put(shape, at, "max_entries", def.max_entries.into());
        self.put(shape, at, "map_extra", def.extra);
        self.put(shape, at, "map_flags", def.flags.into());
        self.put(shape, at, "id", id.into());
        self.put(shape, at, "numa_node", u64::MAX);
        self.put_name(shape, at, name);
        at
    }

    /// A map or program of which only the name is known: it is going.
    pub fn gone_map(&mut self, name: &str) -> u64 {
        let at = self.add(&self.shapes.map);
        self.put_name(&self.shapes.map, at, name);
        self.address(at)
    }

    /// A program that was loaded.
    pub fn prog(&mut self, prog: &ProgObject) -> u64 {
        let program = prog.verified.program();
        let at = self.new_prog(&prog.name, program, prog.verified.rewritten().insns().len());
        let (shape, aux) = (&self.shapes.prog, at + self.step(&self.shapes.prog));
        self.put_bytes(shape, at, "tag", prog.tag.iter().copied());
        let code = prog.loaded.machine_code().map_or(0, <[u8]>::len);
        self.put(shape, at, "jited", (code != 0).into());
        self.put(shape, at, "jited_len", code as u64);
        let shape = &self.shapes.aux;
        self.put(shape, aux, "id", prog.id.number().into());
        self.put(shape, aux, "used_map_cnt", prog.maps().len() as u64);
        self.put(shape, aux, "func_cnt", prog.verified.subprogs().len() as u64);
        self.put(shape, aux, "verified_insns", prog.verified.stats().insns_processed);
        self.put(shape, aux, "load_time", prog.load_time);
        self.address(at)
    }

    /// Bytes between a struct and the next one.
    fn step(&self, shape: &Shape) -> usize {
        (shape.size.div_ceil(8) + 1) * 8
    }

    fn new_prog(&mut self, name: &str, program: &Program, len: usize) -> usize {
        let Shapes { prog: shape, aux: aux_shape, .. } = self.shapes;
        let at = self.add(shape);
        let aux = self.add(aux_shape);
        self.put(shape, at, "aux", self.address(aux));
        self.put(shape, at, "gpl_compatible", program.gpl_compatible().into());
        self.put(shape, at, "sleepable", (program.flags & prog_flags::SLEEPABLE != 0).into());
        self.put(shape, at, "type", program.prog_type as u64);
        self.put(shape, at, "expected_attach_type", program.attach_type.map_or(0, |a| a as u64));
        self.put(shape, at, "len", len as u64);
        self.put(aux_shape, aux, "attach_btf_id", program.attach_btf_id.into());
        self.put(aux_shape, aux, "prog", self.address(at));
        self.put_name(aux_shape, aux, name);
        at
    }

    /// A program that is to be loaded.
    pub fn loading(&mut self, program: &Program) -> u64 {
        let at = self.new_prog(&program.name, program, program.insns.len());
        self.address(at)
    }

    /// A program of which only the name is known: it is going.
    pub fn gone_prog(&mut self, name: &str) -> u64 {
        let Shapes { prog, aux, .. } = self.shapes;
        let at = self.add(prog);
        let more = self.add(aux);
        self.put(prog, at, "aux", self.address(more));
        self.put(aux, more, "prog", self.address(at));
        self.put_name(aux, more, name);
        self.address(at)
    }

    /// A link, and its program.
    pub fn link(&mut self, link: &LinkObject) -> u64 {
        let owner = link.prog();
        let prog = self.prog(&owner);
        let shape = &self.shapes.link;
        let at = self.add(shape);
        self.put(shape, at, "id", link.id.number().into());
        self.put(shape, at, "type", link.kind.number().into());
        self.put(shape, at, "prog", prog);
        self.put(shape, at, "attach_type", owner.verified.program().attach_type.map_or(0, |a| a as u64));
        self.address(at)
    }

    /// What a command was given.
    pub fn attr(&mut self, bytes: &[u8]) -> u64 {
        let at = self.add(&self.shapes.attr);
        for (n, byte) in bytes.iter().take(self.shapes.attr.size).enumerate() {
            self.set_bits((at + n) * 8, 8, (*byte).into());
        }
        self.address(at)
    }

    /// A token with these rights: commands, maps, programs, ways to attach. Programs are told of one where there is none:
    /// they may take it to be there.
    pub fn token(&mut self, rights: [u64; 4]) -> u64 {
        let shape = &self.shapes.token;
        let at = self.add(shape);
        for (member, value) in
            ["allowed_cmds", "allowed_maps", "allowed_progs", "allowed_attachs"].into_iter().zip(rights)
        {
            self.put(shape, at, member, value);
        }
        self.address(at)
    }

    /// A path, of which nothing is known.
    pub fn path(&mut self) -> u64 {
        let at = self.add(&self.shapes.path);
        self.address(at)
    }
}
