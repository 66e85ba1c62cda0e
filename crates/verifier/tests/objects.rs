//! Random programs that allocate, lock, list, keep and drop objects: our verdict against the live kernel's.
//!
//! `SKEP_PROGRAMS` is how many (default 2,000), `SKEP_SEED` where to begin. Needs root, for `bpf(2)`.

mod kernel;
mod typed;

use std::fmt::Write;
use std::sync::Arc;

use skep_ebpf::asm::assemble;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::program::{FuncInfo, MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType, map_flags, prog_flags};
use skep_verifier::{KernelProfile, Options, Outcome, check_map_types, verify};
use typed::objects::Layout;

/// What the generator believes a register holds.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Thing {
    Number,
    /// A value of a map, by index.
    Value(u32),
    /// An object: its type, whether it is owned, and where in it the register points.
    Object {
        ty: usize,
        owned: bool,
        off: i32,
    },
    /// A `task_struct` with a reference.
    Task,
}

/// Types of objects, with the size of each, plain fields, and nodes.
const TYPES: [(&str, i32, &[i32]); 4] =
    [("item", 64, &[8, 32]), ("foo", 72, &[0, 24]), ("tree", 72, &[8]), ("own", 48, &[])];
/// Lists and trees: map, offset, type of objects, offset of their node, whether it is a tree.
const ROOTS: [(u32, i32, usize, i32, bool); 10] = [
    (0, 8, 0, 8, false),
    (0, 24, 0, 32, false),
    (0, 40, 2, 8, true),
    (1, 8, 1, 24, true),
    (1, 24, 1, 0, false),
    (2, 8, 0, 8, false),
    (3, 8, 0, 8, false),
    (3, 24, 2, 8, true),
    (OWN, 16, 0, 8, false),
    (OWN, 32, 2, 8, true),
];
/// Stands for an object with a lock where a map is named.
const OWN: u32 = 99;

struct Random(u64);

impl Random {
    fn next(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { from.get(self.next(from.len() as u64) as usize).copied() }
    }
}

struct Generator {
    random: Random,
    text: String,
    /// What r6 to r9 hold.
    regs: [Thing; 4],
    /// Locks held: map, and for values the register.
    locks: Vec<(u32, Option<usize>)>,
    rcu: bool,
    sleepable: bool,
    calls_less: bool,
    labels: u32,
}

impl Generator {
    fn line(&mut self, line: &str) {
        self.text += line;
        self.text.push('\n');
    }

    fn reg(n: usize) -> usize {
        n + 6
    }

    /// A register for a new thing: rather one whose loss does no harm.
    fn free(&mut self) -> usize {
        let plain: Vec<usize> = (0..4).filter(|n| !self.must_go(*n) && !self.locked_through(*n)).collect();
        match self.random.pick(&plain) {
            Some(n) if !self.random.one_in(60) => n,
            _ => self.random.next(4) as usize,
        }
    }

    fn must_go(&self, n: usize) -> bool {
        matches!(self.regs[n], Thing::Task | Thing::Object { owned: true, .. })
    }

    fn locked_through(&self, n: usize) -> bool {
        self.locks.iter().any(|(_, r)| *r == Some(n))
    }

    /// A register that holds something wanted; now and then any.
    fn find(&mut self, wanted: impl Fn(Thing) -> bool) -> Option<usize> {
        if self.random.one_in(40) {
            return Some(self.random.next(4) as usize);
        }
        let all: Vec<usize> = (0..4).filter(|n| wanted(self.regs[*n])).collect();
        self.random.pick(&all)
    }

    /// Gives everything back and ends.
    fn leave(&mut self) {
        for (map, reg) in self.locks.clone().into_iter().rev() {
            self.unlock(map, reg);
        }
        if self.rcu {
            self.line("call kfunc[bpf_rcu_read_unlock]");
        }
        for n in 0..4 {
            if self.must_go(n) && !self.random.one_in(100) {
                self.drop(n);
            }
        }
        self.line("r0 = 0");
        self.line("exit");
    }

    fn drop(&mut self, n: usize) {
        match self.regs[n] {
            Thing::Task => {
                let _ = writeln!(self.text, "r1 = r{}\ncall kfunc[bpf_task_release]", Self::reg(n));
            }
            Thing::Object { off, .. } => {
                let _ = writeln!(self.text, "r1 = r{}\nr1 += {}", Self::reg(n), -off);
                self.line("r2 = 0\ncall kfunc[bpf_obj_drop_impl]");
            }
            _ => {}
        }
    }

    fn lock_address(&mut self, map: u32, reg: Option<usize>) {
        match reg {
            Some(n) => {
                let _ = writeln!(self.text, "r1 = r{}", Self::reg(n));
                if map == OWN {
                    self.line("r1 += 8");
                }
            }
            None => {
                let _ = writeln!(self.text, "r1 = map[idx:{map}][0]0");
            }
        }
    }

    fn unlock(&mut self, map: u32, reg: Option<usize>) {
        self.lock_address(map, reg);
        self.line(if map == 2 { "call kfunc[bpf_res_spin_unlock]" } else { "call spin_unlock#94" });
    }

    /// Takes r0 as a new thing, which may be null; what is held is given back where it is.
    fn take(&mut self, thing: Thing, checked: bool) {
        let n = self.free();
        let _ = writeln!(self.text, "r{} = r0", Self::reg(n));
        if checked || self.random.one_in(40) {
            self.regs[n] = thing;
            return;
        }
        self.regs[n] = Thing::Number;
        self.labels += 1;
        let label = self.labels;
        let _ = writeln!(self.text, "if r{} != 0 goto L{label}", Self::reg(n));
        let (regs, locks, rcu) = (self.regs, self.locks.clone(), self.rcu);
        self.leave();
        (self.regs, self.locks, self.rcu) = (regs, locks, rcu);
        let _ = writeln!(self.text, "L{label}:");
        self.regs[n] = thing;
    }

    fn allocate(&mut self) {
        let ty = self.random.next(4) as usize;
        let _ = writeln!(self.text, "r1 = local[{}] ll\nr2 = 0\ncall kfunc[bpf_obj_new_impl]", TYPES[ty].0);
        self.take(Thing::Object { ty, owned: true, off: 0 }, false);
    }

    fn look_up(&mut self) {
        let map = self.random.pick(&[3, 3, 4, 6]).unwrap_or(3);
        let key = self.random.next(5);
        let _ = writeln!(self.text, "*(u32 *)(r10 -8) = {key}\nr2 = r10\nr2 += -8\nr1 = map[idx:{map}]");
        self.line("call map_lookup_elem#1");
        let sure = matches!(map, 4 | 6) && key < 4;
        self.take(Thing::Value(map), sure);
    }

    fn access(&mut self) {
        let Some(n) = self.find(|t| t != Thing::Number) else { return };
        let size = match self.regs[n] {
            Thing::Object { ty, .. } => TYPES[ty].1,
            Thing::Task => 64,
            _ => 48,
        };
        let base = match self.regs[n] {
            Thing::Object { off, .. } => -off,
            _ => 0,
        };
        let (width, name) = self.random.pick(&[(8, "u64"), (4, "u32"), (1, "u8")]).unwrap_or((8, "u64"));
        let mut off = base + self.random.next(size as u64 / width as u64) as i32 * width;
        if self.random.one_in(30) {
            off = base + size - width + 1;
        }
        let r = Self::reg(n);
        let _ = match self.random.next(4) {
            0 => writeln!(self.text, "*({name} *)(r{r} {off:+}) = 1"),
            1 if width == 8 => writeln!(self.text, "r1 = 1\nlock *(u64 *)(r{r} {off:+}) += r1"),
            _ => writeln!(self.text, "r0 = *({name} *)(r{r} {off:+})"),
        };
    }

    fn load_kptr(&mut self) {
        let Some(n) = self.find(|t| matches!(t, Thing::Value(4 | 6))) else { return };
        let choice = match self.regs[n] {
            Thing::Value(6) => self.random.pick(&[(0, Thing::Number), (8, Thing::Number)]),
            _ => self.random.pick(&[
                (8, Thing::Object { ty: 2, owned: false, off: 0 }),
                (16, Thing::Number),
                (24, Thing::Object { ty: 1, owned: false, off: 0 }),
            ]),
        };
        let Some((off, thing)) = choice else { return };
        let _ = writeln!(self.text, "r0 = *(u64 *)(r{} +{off})", Self::reg(n));
        self.take(thing, false);
    }

    fn exchange(&mut self) {
        let Some(n) = self.find(|t| matches!(t, Thing::Value(4))) else { return };
        let (off, wanted) = self.random.pick(&[(8, 2), (24, 1), (16, 9)]).unwrap_or((8, 2));
        let fits = |t: Thing| match t {
            Thing::Task => wanted == 9,
            Thing::Object { ty, owned, off } => ty == wanted && owned && off == 0,
            _ => false,
        };
        let given = if self.random.one_in(3) { None } else { self.find(fits) };
        let _ = writeln!(self.text, "r1 = r{}\nr1 += {off}", Self::reg(n));
        match given {
            Some(g) => {
                let _ = writeln!(self.text, "r2 = r{}", Self::reg(g));
                self.regs[g] = Thing::Number;
            }
            None => self.line("r2 = 0"),
        }
        self.line("call kptr_xchg#194");
        let thing = if wanted == 9 { Thing::Task } else { Thing::Object { ty: wanted, owned: true, off: 0 } };
        self.take(thing, false);
    }

    fn acquire(&mut self) {
        let counted = |t| matches!(t, Thing::Object { ty: 1, .. });
        let Some(n) = self.find(counted) else { return };
        let _ = writeln!(self.text, "r1 = r{}\nr2 = 0\ncall kfunc[bpf_refcount_acquire_impl]", Self::reg(n));
        // One more reference to what is owned is surely had.
        let owned = matches!(self.regs[n], Thing::Object { owned: true, .. }) && !self.random.one_in(3);
        self.take(Thing::Object { ty: 1, owned: true, off: 0 }, owned);
    }

    fn lock(&mut self) {
        let value = self.find(|t| t == Thing::Value(3));
        let own = self.find(|t| matches!(t, Thing::Object { ty: 3, owned: true, .. }));
        let (map, reg) = match self.random.next(6) {
            0 | 1 if value.is_some() => (3, value),
            2 | 3 if own.is_some() => (OWN, own),
            n => ((n % 3) as u32, None),
        };
        self.lock_address(map, reg);
        if map == 2 {
            self.line("call kfunc[bpf_res_spin_lock]");
            self.labels += 1;
            let label = self.labels;
            let _ = writeln!(self.text, "if w0 == 0 goto L{label}");
            let (regs, locks, rcu) = (self.regs, self.locks.clone(), self.rcu);
            self.leave();
            (self.regs, self.locks, self.rcu) = (regs, locks, rcu);
            let _ = writeln!(self.text, "L{label}:");
        } else {
            self.line("call spin_lock#93");
        }
        self.locks.push((map, reg));
    }

    fn release_lock(&mut self) {
        let n = if self.random.one_in(30) {
            self.random.next(self.locks.len() as u64) as usize
        } else {
            self.locks.len() - 1
        };
        let (map, reg) = self.locks.remove(n);
        self.unlock(map, reg);
        for thing in &mut self.regs {
            if let Thing::Object { ty, owned: false, .. } = thing
                && (*ty != 1 || self.sleepable)
            {
                *thing = Thing::Number;
            }
        }
    }

    /// A list or tree whose lock is held, mostly.
    fn root(&mut self) -> Option<(u32, i32, usize, i32, bool)> {
        let held = self.locks.clone();
        let open: Vec<_> = ROOTS.into_iter().filter(|r| held.iter().any(|(map, _)| *map == r.0)).collect();
        if self.random.one_in(40) { self.random.pick(&ROOTS) } else { self.random.pick(&open) }
    }

    fn root_address(&mut self, map: u32, off: i32) {
        let held = self.locks.iter().rev().find(|l| l.0 == map).and_then(|l| l.1);
        match (map, held) {
            (3 | OWN, Some(n)) => {
                let _ = writeln!(self.text, "r1 = r{}\nr1 += {off}", Self::reg(n));
            }
            _ => {
                let _ = writeln!(self.text, "r1 = map[idx:{}][0]{off}", map.min(2));
            }
        }
    }

    fn insert(&mut self) {
        let Some((map, off, ty, node, tree)) = self.root() else { return };
        let Some(n) = self.find(|t| matches!(t, Thing::Object { ty: t, owned: true, .. } if t == ty)) else { return };
        let at = match self.regs[n] {
            Thing::Object { off, .. } => off,
            _ => 0,
        };
        self.root_address(map, off);
        let wrong = if self.random.one_in(40) { 8 } else { 0 };
        let _ = writeln!(self.text, "r2 = r{}\nr2 += {}", Self::reg(n), node - at + wrong);
        if tree {
            self.calls_less = true;
            self.line("r3 = subprog[less]\nr4 = 0\nr5 = 0\ncall kfunc[bpf_rbtree_add_impl]");
        } else {
            let end = if self.random.one_in(2) { "front" } else { "back" };
            let _ = writeln!(self.text, "r3 = 0\nr4 = 0\ncall kfunc[bpf_list_push_{end}_impl]");
        }
        if let Thing::Object { owned, .. } = &mut self.regs[n] {
            *owned = false;
        }
    }

    fn look_into(&mut self) {
        let Some((map, off, ty, node, tree)) = self.root() else { return };
        let seen = self.find(|t| matches!(t, Thing::Object { ty: t, .. } if t == ty));
        self.root_address(map, off);
        let (name, owned) = match (tree, self.random.next(5)) {
            (false, 0) => ("bpf_list_front", false),
            (false, 1) => ("bpf_list_back", false),
            (false, n) => (if n == 2 { "bpf_list_pop_front" } else { "bpf_list_pop_back" }, true),
            (true, 0) => ("bpf_rbtree_root", false),
            (true, 1) => ("bpf_rbtree_first", false),
            (true, 2) if seen.is_some() => ("bpf_rbtree_left", false),
            (true, 3) if seen.is_some() => ("bpf_rbtree_right", false),
            (true, _) if seen.is_some() => ("bpf_rbtree_remove", true),
            _ => ("bpf_rbtree_first", false),
        };
        if let (Some(n), "bpf_rbtree_left" | "bpf_rbtree_right" | "bpf_rbtree_remove") = (seen, name) {
            let at = match self.regs[n] {
                Thing::Object { off, .. } => off,
                _ => 0,
            };
            let _ = writeln!(self.text, "r2 = r{}\nr2 += {}", Self::reg(n), node - at);
        }
        let _ = writeln!(self.text, "call kfunc[{name}]");
        self.take(Thing::Object { ty, owned, off: node }, false);
    }

    /// Something that happens on one of two paths: what holds behind is what one of them left.
    fn perhaps(&mut self) {
        self.labels += 1;
        let (label, bound) = (self.labels, self.random.next(4));
        let _ = writeln!(self.text, "r0 = *(u64 *)(r10 -16)\nif r0 > {bound} goto L{label}");
        let before = (self.regs, self.locks.clone(), self.rcu);
        self.step();
        let _ = writeln!(self.text, "L{label}:");
        if self.random.one_in(2) {
            (self.regs, self.locks, self.rcu) = before;
        }
    }

    /// A loop of a few rounds, each of which leaves things as they were, mostly.
    fn repeat(&mut self) {
        self.labels += 1;
        let (label, rounds) = (self.labels, 2 + self.random.next(4));
        let _ = writeln!(self.text, "*(u64 *)(r10 -24) = 0\nL{label}:");
        let before = self.locks.len();
        match self.random.next(3) {
            0 if before == 0 => {
                self.lock();
                self.access();
                self.release_lock();
            }
            1 => self.look_into(),
            2 if before == 0 => self.load_kptr(),
            _ => self.access(),
        }
        let _ = writeln!(self.text, "r0 = *(u64 *)(r10 -24)\nr0 += 1\n*(u64 *)(r10 -24) = r0");
        let _ = writeln!(self.text, "if r0 < {rounds} goto L{label}");
    }

    fn step(&mut self) {
        let locked = !self.locks.is_empty() && !self.random.one_in(60);
        match self.random.next(12) {
            0 | 1 if locked => self.insert(),
            2 | 3 if locked => self.look_into(),
            4 | 5 if locked => self.release_lock(),
            0 | 1 => self.allocate(),
            2 => self.look_up(),
            3 => self.exchange(),
            4 => self.load_kptr(),
            5 | 10 => self.lock(),
            6 | 7 => self.access(),
            8 => self.acquire(),
            9 => {
                let (from, to) = (self.random.next(4) as usize, self.free());
                let _ = writeln!(self.text, "r{} = r{}", Self::reg(to), Self::reg(from));
                if from != to {
                    // A copy is not given back a second time.
                    self.regs[to] = match self.regs[from] {
                        Thing::Object { ty, off, .. } => Thing::Object { ty, owned: false, off },
                        Thing::Task => Thing::Number,
                        other => other,
                    };
                }
            }
            11 => match self.random.next(3) {
                0 => self.repeat(),
                _ => self.perhaps(),
            },
            _ => match self.random.next(4) {
                0 if self.sleepable && !self.rcu => {
                    self.line("call kfunc[bpf_rcu_read_lock]");
                    self.rcu = true;
                }
                1 if self.rcu => {
                    self.line("call kfunc[bpf_rcu_read_unlock]");
                    self.rcu = false;
                }
                2 => {
                    self.line("r1 = 1\ncall kfunc[bpf_task_from_pid]");
                    self.take(Thing::Task, false);
                }
                _ => {
                    if let Some(n) = self.find(|t| matches!(t, Thing::Task | Thing::Object { owned: true, .. })) {
                        self.drop(n);
                        self.regs[n] = Thing::Number;
                    }
                }
            },
        }
    }

    fn program(seed: u64) -> Generator {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next(2);
        let sleepable = random.one_in(3);
        let mut g = Generator {
            random,
            text: String::new(),
            regs: [Thing::Number; 4],
            locks: Vec::new(),
            rcu: false,
            sleepable,
            calls_less: false,
            labels: 0,
        };
        g.line("r6 = 0\nr7 = 0\nr8 = 0\nr9 = 0\ncall get_prandom_u32#7\n*(u64 *)(r10 -16) = r0");
        for _ in 0..2 + g.random.next(14) {
            g.step();
        }
        g.leave();
        if g.calls_less {
            g.line("less:\nr0 = 0\nexit");
        }
        g
    }
}

/// Puts numbers for names: own types, kernel functions, the function `less`.
fn resolve(text: &str, ids: &typed::objects::Ids, btf: &Btf) -> Option<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut slots = Vec::new();
    let (mut slot, mut less) = (0i64, 0i64);
    for line in text.lines() {
        let mut line = line.to_owned();
        if let Some((before, rest)) = line.split_once("local[") {
            let (name, behind) = rest.split_once(']')?;
            line = format!("{before}{}{behind}", ids.get(name));
        }
        if let Some((before, rest)) = line.split_once("kfunc[") {
            let id = btf.find(rest.strip_suffix(']')?, |k| matches!(k, Kind::Func { .. }))?;
            line = format!("{before}kernel-function#{id}");
        }
        slots.push(slot);
        if line == "less:" {
            less = slot;
        } else if !line.ends_with(':') {
            slot += if line.contains("map[") || line.contains("subprog[") || line.ends_with("ll") { 2 } else { 1 };
        }
        lines.push(line);
    }
    let named = |(line, at): (String, i64)| line.replace("subprog[less]", &format!("subprog[{}]", less - at - 1));
    Some(lines.into_iter().zip(slots).map(named).collect::<Vec<_>>().join("\n"))
}

#[test]
fn random_programs_with_objects() {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (count, first): (u64, u64) = (number("SKEP_PROGRAMS", 2000), number("SKEP_SEED", 1));
    let Some(vmlinux) = std::fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|raw| Btf::parse(&raw).ok()) else {
        return;
    };
    if !kernel::available() {
        return;
    }
    let vmlinux = Arc::new(vmlinux);
    let options = Options {
        btf: Some(vmlinux.clone()),
        profile: KernelProfile { cpus: kernel::cpus(), ..KernelProfile::LINUX_6_18 },
        ..Options::default()
    };
    let less = [typed::Function::new("pp", false)];
    let (raw, functions, ids) = typed::blob_with(&less, true);
    let types = Arc::new(Btf::parse(&raw).expect("BTF of the test"));
    let maps: Arc<[MapDef]> = typed::objects::maps(&ids).into();
    let btf = kernel::btf(&raw).expect("the kernel takes the BTF");
    let fds = kernel::typed_maps(&maps, &btf).expect("the kernel makes the maps");

    let (mut accepted, mut wrong) = (0, Vec::new());
    for seed in first..first + count {
        let g = Generator::program(seed);
        let text = resolve(&g.text, &ids, &vmlinux).expect("kernel functions of 6.18");
        let insns = assemble(&text).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{text}"));
        let ty = if g.sleepable { ProgType::Syscall } else { ProgType::SchedCls };
        let mut program = Program::new("objects", ty, "GPL", insns);
        program.flags |= if g.sleepable { prog_flags::SLEEPABLE } else { 0 };
        program.maps = maps.clone();
        program.btf = Some(types.clone());
        let behind = program.insns.len() as u32 - 2;
        let starts = if g.calls_less { vec![0, behind] } else { vec![0] };
        program.func_info =
            starts.iter().zip(&functions).map(|(insn, id)| FuncInfo { insn: *insn, type_id: *id }).collect();
        let ours = verify(program.clone(), &options);
        let theirs = kernel::load_typed(&program, &fds, Some(&btf), 1).expect("maps");
        accepted += u64::from(theirs.errno == 0);
        let same = match &ours {
            Ok(_) => theirs.errno == 0,
            Err(r) => r.outcome == Outcome::Rejected && theirs.errno != 0,
        };
        if !same {
            let log: Vec<&str> = theirs.log.lines().rev().take(4).collect();
            let ours = ours.map_or_else(|r| format!("{} {r}", r.reason), |_| "accepted".into());
            wrong.push(format!("seed {seed}: here {ours}, kernel {} {log:?}", theirs.errno));
        }
    }
    println!("{count} programs, the kernel accepts {accepted}, {} differ", wrong.len());
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// What a map's values are: structs, the last of which is the value.
const VALUES: &[(&str, MapType, &[Layout])] = &[
    ("a lock", MapType::Array, &[("v", 8, &[("l", "bpf_spin_lock", 0), ("x", "int", 4)])]),
    ("two locks", MapType::Array, &[("v", 8, &[("l", "bpf_spin_lock", 0), ("k", "bpf_spin_lock", 4)])]),
    ("locks of both kinds", MapType::Array, &[("v", 8, &[("l", "bpf_spin_lock", 0), ("k", "bpf_res_spin_lock", 4)])]),
    ("a lock per CPU", MapType::PercpuArray, &[("v", 8, &[("l", "bpf_res_spin_lock", 0), ("x", "int", 4)])]),
    ("a lock that is recycled", MapType::LruHash, &[("v", 8, &[("l", "bpf_spin_lock", 0), ("x", "int", 4)])]),
    ("a timer that is recycled", MapType::LruHash, &[("v", 16, &[("t", "bpf_timer", 0)])]),
    ("a timer per CPU", MapType::PercpuHash, &[("v", 16, &[("t", "bpf_timer", 0)])]),
    ("two timers", MapType::Array, &[("v", 32, &[("t", "bpf_timer", 0), ("u", "bpf_timer", 16)])]),
    ("a lock in the middle of a word", MapType::Array, &[("v", 12, &[("x", "int", 0), ("l", "bpf_spin_lock", 6)])]),
    ("a count per CPU", MapType::PercpuArray, &[("v", 4, &[("c", "bpf_refcount", 0)])]),
    ("two counts", MapType::Array, &[("v", 8, &[("c", "bpf_refcount", 0), ("d", "bpf_refcount", 4)])]),
    ("a kptr per CPU", MapType::PercpuArray, &[("v", 8, &[("k", "task_struct kptr*", 0)])]),
    ("a kptr in a trie", MapType::LpmTrie, &[("v", 8, &[("k", "task_struct kptr*", 0)])]),
    ("eleven kptrs", MapType::Array, &[("v", 88, &[("k", "task_struct kptr*[11]", 0)])]),
    ("twelve kptrs", MapType::Array, &[("v", 96, &[("k", "task_struct kptr*[12]", 0)])]),
    (
        "a kptr without destructor",
        MapType::Array,
        &[("file", 4, &[("x", "int", 0)]), ("v", 8, &[("k", "file kptr*", 0)])],
    ),
    (
        "an untrusted kptr without destructor",
        MapType::Array,
        &[("file", 4, &[("x", "int", 0)]), ("v", 8, &[("k", "file kptr_untrusted*", 0)])],
    ),
    ("a pointer with another tag", MapType::Array, &[("v", 8, &[("k", "task_struct kptr_of_old*", 0)])]),
    ("user memory in an array", MapType::Array, &[("u", 8, &[("x", "long", 0)]), ("v", 8, &[("k", "u uptr*", 0)])]),
    ("user memory of tasks", MapType::TaskStorage, &[("u", 8, &[("x", "long", 0)]), ("v", 8, &[("k", "u uptr*", 0)])]),
    ("user memory of a kernel type", MapType::TaskStorage, &[("v", 8, &[("k", "task_struct uptr*", 0)])]),
    (
        "user memory of more than a page",
        MapType::TaskStorage,
        &[("u", 4104, &[("x", "long[513]", 0)]), ("v", 8, &[("k", "u uptr*", 0)])],
    ),
    ("a list", MapType::Hash, &[NODE, ("v", 24, &[("l", "bpf_spin_lock", 0), ("h", "bpf_list_head < node:n", 8)])]),
    ("a list without a lock", MapType::Hash, &[NODE, ("v", 16, &[("h", "bpf_list_head < node:n", 0)])]),
    (
        "a list of something else",
        MapType::Hash,
        &[NODE, ("v", 24, &[("l", "bpf_spin_lock", 0), ("h", "bpf_list_head < nodes:n", 8)])],
    ),
    (
        "a list by something else",
        MapType::Hash,
        &[NODE, ("v", 24, &[("l", "bpf_spin_lock", 0), ("h", "bpf_list_head < node:x", 8)])],
    ),
    (
        "a tree of list nodes",
        MapType::Hash,
        &[NODE, ("v", 24, &[("l", "bpf_spin_lock", 0), ("h", "bpf_rb_root < node:n", 8)])],
    ),
    (
        "a list that is stored",
        MapType::SkStorage,
        &[NODE, ("v", 24, &[("l", "bpf_spin_lock", 0), ("h", "bpf_list_head < node:n", 8)])],
    ),
    (
        "both nodes without a count",
        MapType::Array,
        &[("n", 56, &[("l", "bpf_list_node", 0), ("r", "bpf_rb_node", 24)]), ("v", 4, &[("x", "int", 0)])],
    ),
    (
        "lists of lists of lists",
        MapType::Array,
        &[
            NODE,
            ("b", 48, &[("n", "bpf_list_node", 0), ("l", "bpf_spin_lock", 24), ("h", "bpf_list_head < node:n", 32)]),
            ("c", 48, &[("n", "bpf_list_node", 0), ("l", "bpf_spin_lock", 24), ("h", "bpf_list_head < b:n", 32)]),
            ("v", 4, &[("x", "int", 0)]),
        ],
    ),
    ("a node in a value", MapType::Array, &[("v", 24, &[("n", "bpf_list_node", 0)])]),
    ("a lock in a struct", MapType::Array, &[LOCK, ("v", 12, &[("x", "int", 0), ("l", "lock", 4)])]),
    ("locks in an array", MapType::Array, &[LOCK, ("v", 16, &[("l", "lock[2]", 0)])]),
];
const NODE: Layout = ("node", 32, &[("n", "bpf_list_node", 0), ("x", "long", 24)]);
const LOCK: Layout = ("lock", 8, &[("l", "bpf_spin_lock", 0), ("x", "int", 4)]);

#[test]
fn types_of_maps() {
    let vmlinux = std::fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|raw| Btf::parse(&raw).ok());
    let (Some(vmlinux), true) = (vmlinux, kernel::available()) else { return };
    let mut wrong = Vec::new();
    for &(what, map_type, layouts) in VALUES {
        let mut b = Builder::new();
        let (int, long) = (b.int("int", 4, 1), b.int("unsigned long", 8, 0));
        let any = b.add("", &Kind::Ptr { ty: 0 });
        let mut ids = typed::objects::Ids::plain(int, long, any);
        typed::objects::add_layouts(&mut b, &mut ids, typed::objects::special());
        typed::objects::add_layouts(&mut b, &mut ids, layouts);
        let raw = b.finish();
        let size = layouts.last().map_or(0, |l| l.1);
        let mut def = MapDef::new("m", map_type, 4, size, 4);
        (def.key_type_id, def.value_type_id) = (int, ids.get("v"));
        let storage = matches!(map_type, MapType::TaskStorage | MapType::SkStorage);
        if storage || map_type == MapType::LpmTrie {
            (def.flags, def.max_entries) = (map_flags::NO_PREALLOC, if storage { 0 } else { 4 });
        }
        if map_type == MapType::LpmTrie {
            (def.key_size, def.key_type_id) = (8, long);
        }
        let theirs = kernel::try_btf(&raw).and_then(|btf| kernel::create_typed_map(&def, Some(&btf)).map(drop));
        let types = Btf::parse(&raw).expect("BTF of the test");
        let ours = check_map_types(&def, &types, Some(&vmlinux)).map_err(|e| e.0);
        if ours != theirs {
            wrong.push(format!("{what}: here {ours:?}, kernel {theirs:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
