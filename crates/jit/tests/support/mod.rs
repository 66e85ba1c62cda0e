//! A session in the own process: arenas, maps, programs.
#![allow(dead_code, reason = "not every suite uses all of it")]

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;
use skep_jit::Compiled;
use skep_maps::control::Arena;
use skep_maps::{Map, MapHeader, MapRef};
use skep_runtime::image::IMAGE_ALIGN;
use skep_runtime::session::{
    Control, Link, LinkCount, MAGIC, ProgCell, SharedHead, counts_distance, link_state, shared_size,
};
use skep_runtime::{Machine, Run};

/// vCPU slots of a session.
pub const SLOTS: u32 = 4;
/// Programs that a session has room for.
const PROGS: u32 = 64;
/// Links that a session has room for.
const LINKS: u32 = 16;
/// What the control arena's enable word holds: a thread id.
const ENABLED: u32 = 1;

/// Memory aligned as the arenas are.
#[derive(Clone, Copy)]
#[repr(align(128))]
struct Line([u64; 16]);

fn memory(bytes: usize) -> Vec<Line> {
    vec![Line([0; 16]); bytes.div_ceil(size_of::<Line>())]
}

/// Maps, and an arena that programs and links are added to.
pub struct Session {
    arena: Arena,
    used: usize,
    shared: Vec<Line>,
    maps: Vec<Map>,
    refs: Vec<MapRef>,
    progs: u32,
    links: u32,
}

fn offset(n: usize) -> usize {
    n.next_multiple_of(IMAGE_ALIGN)
}

impl Session {
    /// A session with these maps and, behind them, ring buffers for samples and for the text of `trace_printk`.
    pub fn new(defs: &[MapDef]) -> Result<Session, skep_maps::MapError> {
        let mut maps = Vec::new();
        for def in defs {
            maps.push(Map::create(def, SLOTS)?);
        }
        for name in ["samples", "printk"] {
            maps.push(Map::create(&MapDef::new(name, MapType::Ringbuf, 0, 0, 1 << 16), SLOTS)?);
        }
        let headers = offset(size_of::<Control>());
        let progs = offset(headers + maps.len() * size_of::<MapHeader>());
        let links = offset(progs + PROGS as usize * size_of::<ProgCell>());
        let used = offset(links + LINKS as usize * size_of::<Link>());
        let size = 64 << 20;
        let mut session = Session {
            arena: Arena::sparse("test-control", size).expect("an arena"),
            used,
            shared: memory(shared_size(SLOTS, LINKS)),
            refs: Vec::new(),
            maps,
            progs: 0,
            links: 0,
        };
        let base = session.arena.ptr();
        // SAFETY: the arena is large enough for its head and tables, and zero is valid for all of them.
        unsafe {
            let control = &mut *base.cast::<Control>();
            (control.magic, control.size, control.nslots) = (MAGIC, size as u64, SLOTS);
            (control.progs, control.nprogs) = (progs as u32, PROGS);
            (control.map_headers, control.nmaps) = (headers as u32, session.maps.len() as u32);
            (control.links, control.nlinks) = (links as u32, LINKS);
            (control.samples_map, control.printk_map) = (control.nmaps - 2, control.nmaps - 1);
            *control.enable.get_mut() = ENABLED;
            control.keeps = 1;
            for (i, map) in session.maps.iter().enumerate() {
                let header = base.add(headers).cast::<MapHeader>().add(i);
                header.write(*map.header());
                session.refs.push(MapRef { hdr: header, data: map.map_ref().data });
            }
        }
        Ok(session)
    }

    /// Gives a program a cell; returns its index.
    pub fn add(&mut self, program: &Compiled) -> u32 {
        let (at, image) = (self.used, program.image());
        let bytecode = program.bytecode_image().unwrap_or_default();
        let second = offset(at + image.len());
        assert!(second + bytecode.len() <= self.arena.len() && self.progs < PROGS, "the arena is full");
        self.used = offset(second + bytecode.len());
        let index = self.progs;
        self.progs += 1;
        let base = self.arena.ptr();
        // SAFETY: in range, as just checked.
        unsafe {
            ptr::copy_nonoverlapping(image.as_ptr(), base.add(at), image.len());
            ptr::copy_nonoverlapping(bytecode.as_ptr(), base.add(second), bytecode.len());
            let control = &*base.cast::<Control>();
            let cell = &mut *base.add(control.progs as usize).cast::<ProgCell>().add(index as usize);
            cell.prog_type = program.prog_type() as u32;
            let second = if bytecode.is_empty() { 0 } else { second as u64 };
            (*cell.image.get_mut(), *cell.own.get_mut()) = (at as u64, at as u64);
            (*cell.bytecode.get_mut(), *cell.own_bytecode.get_mut()) = (second, second);
        }
        index
    }

    /// Takes a program's image of bytecode out of its cell.
    pub fn forget_bytecode(&mut self, index: u32) {
        // SAFETY: the cell is one that `add` has filled; nobody runs programs meanwhile.
        unsafe {
            let base = self.arena.ptr();
            let control = &*base.cast::<Control>();
            let cell = &mut *base.add(control.progs as usize).cast::<ProgCell>().add(index as usize);
            *cell.bytecode.get_mut() = 0;
        }
    }

    /// Makes a link that is on; returns its index.
    pub fn link(&mut self, prog: u32, kind: u32) -> u32 {
        assert!(self.links < LINKS, "the link table is full");
        let index = self.links;
        self.links += 1;
        let base = self.arena.ptr();
        // SAFETY: the table has room for it.
        unsafe {
            let control = &*base.cast::<Control>();
            let link = &mut *base.add(control.links as usize).cast::<Link>().add(index as usize);
            (link.kind, link.cookie) = (kind, u64::from(index) + 100);
            link.counts = counts_distance(SLOTS, index);
            link.prog = prog;
            link.cell = u64::from(control.progs) + u64::from(prog) * size_of::<ProgCell>() as u64;
            *link.state.get_mut() = link_state::on(kind, 0);
        }
        index
    }

    /// A counter of a link, over all slots.
    pub fn count_of(&self, link: u32, counter: impl Fn(&LinkCount) -> &AtomicU64) -> u64 {
        let (control, shared) = (self.control(), self.shared());
        let rows = (0..=SLOTS).map(|slot| shared.count(control, link, slot).expect("a row"));
        rows.map(|row| counter(row).load(Ordering::Relaxed)).sum()
    }

    pub fn control(&self) -> &Control {
        // SAFETY: the arena begins with its head.
        unsafe { &*self.arena.ptr().cast() }
    }

    /// The control arena where programs can be executed.
    pub fn executable(&self) -> *const Control {
        self.arena.code().expect("memory for code").cast()
    }

    pub fn shared(&self) -> &SharedHead {
        // SAFETY: as above.
        unsafe { &*self.shared.as_ptr().cast() }
    }

    pub fn refs(&self) -> &[MapRef] {
        &self.refs
    }

    /// The maps; the samples ring and the printk ring are the last.
    pub fn maps(&self) -> &[Map] {
        &self.maps
    }

    pub fn set_budget(&mut self, budget: u64) {
        // SAFETY: the arena begins with its head.
        unsafe { (*self.arena.ptr().cast::<Control>()).budget = budget };
    }

    /// Something that runs programs of this session; it must not outlive it.
    pub fn machine(&mut self, slot: u32) -> Machine {
        let (control, shared) =
            (self.arena.code().expect("memory for code").cast(), self.shared.as_mut_ptr().cast::<SharedHead>());
        // SAFETY: the arenas stay where they are for as long as the session lives.
        unsafe { Machine::new(control, shared, self.refs.as_ptr(), slot) }
    }

    /// Runs a program on slot 0.
    pub fn run(&mut self, prog: u32, ctx: &mut [u8]) -> Run {
        // SAFETY: the test passes a context of the program's type.
        unsafe { self.machine(0).run(prog, ctx.as_mut_ptr()).expect("the program has an image") }
    }

    /// The number of instructions that a run of the program executes.
    pub fn count(&mut self, program: &Compiled, ctx: &mut [u8]) -> u64 {
        // SAFETY: as in `run`.
        unsafe { self.machine(0).count_image(program.image_ptr().unwrap(), ctx.as_mut_ptr()) }
    }
}

/// A `__sk_buff` context of a packet, with the given headroom before what the program sees.
pub fn skb(packet: &[u8], skip: usize) -> Vec<u8> {
    let mut ctx = vec![0u8; skep_runtime::packet::SKB_CTX_SIZE];
    let data = &packet[skip.min(packet.len())..];
    ctx[0..4].copy_from_slice(&(data.len() as u32).to_ne_bytes());
    let range = data.as_ptr_range();
    for (i, p) in [range.start, range.end, packet.as_ptr()].into_iter().enumerate() {
        let at = skep_runtime::packet::SKB_POINTERS + i * 8;
        ctx[at..at + 8].copy_from_slice(&(p as u64).to_ne_bytes());
    }
    ctx
}
