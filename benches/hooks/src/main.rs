//! A call of a plug-in, in nanoseconds: skep beside wasmtime, rhai and rbpf, all in one run, interleaved.
//!
//! `cargo run --release --manifest-path benches/hooks/Cargo.toml [ROUNDS]`
//!
//! Two plug-ins: one that returns 0, and a policy of about 20 instructions that looks a number up in a hash table of 10,000
//! entries. skep's table is a map that all threads may write; the others ask a function of the host, which has a
//! `HashMap` without a lock.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Instant;

use skep::host::{Context, Hook, HookOptions, Host, HostOptions, Loader};
use skep::{Engine, Map};

#[derive(Context, Clone, Copy)]
#[repr(C)]
struct PacketInfo {
    address: u32,
    port: u16,
    length: u16,
}

const ENTRIES: u32 = 10_000;
const CALLS: u32 = 200_000;

fn packet(n: u32) -> PacketInfo {
    // Addresses in no order that a cache could guess.
    PacketInfo { address: n.wrapping_mul(2_654_435_761) % ENTRIES, port: 80, length: (n % 1400) as u16 }
}

/// One contestant: what it is called, and a run of calls, of which it gives the sum of the results.
struct Contestant {
    name: &'static str,
    nothing: Box<dyn FnMut(u32) -> u64>,
    policy: Box<dyn FnMut(u32) -> u64>,
}

fn hook(host: &Host, loaded: &mut Vec<Box<dyn std::any::Any>>, program: &str) -> Hook<PacketInfo> {
    let hook = host.hook::<PacketInfo>("packet", HookOptions { returns: Some(0..=2), ..HookOptions::default() });
    let object = include_bytes!("../../../bpf/hooks/policy.bpf.o");
    let plugin = Loader::new().hook(&hook).load(&host.tenant(1 << 24), "policy.bpf.o", object).expect("a plug-in");
    let budgets: &Map = plugin.map("budgets").expect("its map");
    for n in 0..ENTRIES {
        budgets.update(&n.to_ne_bytes(), &(u64::MAX / 2).to_ne_bytes(), 0).expect("room");
    }
    loaded.push(Box::new(hook.attach(&plugin.program(program).expect("program"), 0).expect("attached")));
    loaded.push(Box::new(plugin));
    hook
}

fn skep(name: &'static str, engine: Engine) -> Contestant {
    let host = Host::new(HostOptions { engine, ..HostOptions::default() }).expect("a host");
    let mut loaded = Vec::new();
    let (nothing, policy) = (hook(&host, &mut loaded, "nothing"), hook(&host, &mut loaded, "policy"));
    std::mem::forget(loaded);
    let calls = |hook: Hook<PacketInfo>| {
        move |calls: u32| {
            let mut sum = 0;
            for n in 0..calls {
                let verdict = hook.call(black_box(&mut packet(n))).expect("a slot");
                sum += u64::from(verdict.value.expect("a result") as u32);
            }
            sum
        }
    };
    Contestant { name, nothing: Box::new(calls(nothing)), policy: Box::new(calls(policy)) }
}

static TABLE: OnceLock<HashMap<u32, u64>> = OnceLock::new();

fn table() -> &'static HashMap<u32, u64> {
    TABLE.get_or_init(|| (0..ENTRIES).map(|n| (n, u64::MAX / 2)).collect())
}

const WASM: &str = r#"(module
  (import "host" "budget" (func $budget (param i32) (result i64)))
  (func (export "nothing") (param i32 i32 i32) (result i32) i32.const 0)
  (func (export "policy") (param $address i32) (param $port i32) (param $length i32) (result i32)
    (local $left i64)
    (if (i32.or (i32.eq (local.get $port) (i32.const 22)) (i32.gt_u (local.get $length) (i32.const 1500)))
      (then (return (i32.const 1))))
    (local.set $left (call $budget (local.get $address)))
    (if (i64.eq (local.get $left) (i64.const -1)) (then (return (i32.const 1))))
    (if (i64.lt_u (local.get $left) (i64.extend_i32_u (local.get $length))) (then (return (i32.const 2))))
    (i32.const 0)))"#;

fn wasm() -> Contestant {
    use wasmtime::{Engine, Linker, Module, Store};
    let calls = |name: &'static str| {
        let engine = Engine::default();
        let module = Module::new(&engine, WASM).expect("a module");
        let mut linker = Linker::new(&engine);
        let budget = |address: i32| table().get(&(address as u32)).copied().unwrap_or(u64::MAX) as i64;
        linker.func_wrap("host", "budget", budget).expect("an import");
        let mut store = Store::new(&engine, ());
        let instance = linker.instantiate(&mut store, &module).expect("an instance");
        let function = instance.get_typed_func::<(i32, i32, i32), i32>(&mut store, name).expect("a function");
        move |calls: u32| {
            let mut sum = 0;
            for n in 0..calls {
                let p = black_box(packet(n));
                let of = (p.address as i32, i32::from(p.port), i32::from(p.length));
                sum += function.call(&mut store, of).expect("no trap") as u64;
            }
            sum
        }
    };
    Contestant { name: "wasmtime", nothing: Box::new(calls("nothing")), policy: Box::new(calls("policy")) }
}

const SCRIPT: &str = "fn nothing(address, port, length) { 0 }
fn policy(address, port, length) {
    if port == 22 || length > 1500 { return 1; }
    let left = budget(address);
    if left < 0 { return 1; }
    if left < length { return 2; }
    0
}";

fn script() -> Contestant {
    use rhai::{AST, Engine, INT, Scope};
    let calls = |name: &'static str| {
        let mut engine = Engine::new();
        engine.register_fn("budget", |address: INT| table().get(&(address as u32)).map_or(-1, |left| *left as INT));
        let ast: AST = engine.compile(SCRIPT).expect("a script");
        move |calls: u32| {
            let mut scope = Scope::new();
            let mut sum = 0;
            for n in 0..calls {
                let p = black_box(packet(n));
                let of = (INT::from(p.address), INT::from(p.port), INT::from(p.length));
                sum += engine.call_fn::<INT>(&mut scope, &ast, name, of).expect("no error") as u64;
            }
            sum
        }
    };
    Contestant { name: "rhai", nothing: Box::new(calls("nothing")), policy: Box::new(calls("policy")) }
}

fn budget_for_rbpf(address: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    table().get(&(address as u32)).copied().unwrap_or(u64::MAX)
}

fn rbpf() -> Contestant {
    use rbpf::assembler::assemble;
    let calls = |text: &str| {
        let code: &'static [u8] = Box::leak(assemble(text).expect("assembly").into_boxed_slice());
        let mut vm = rbpf::EbpfVmRaw::new(Some(code)).expect("a machine");
        vm.register_helper(1, budget_for_rbpf).expect("a helper");
        vm.jit_compile().expect("machine code");
        move |calls: u32| {
            let mut sum = 0;
            for n in 0..calls {
                let mut p = black_box(packet(n));
                let bytes: &mut [u8; 8] = (&mut p).into();
                // SAFETY: the code was compiled; it is trusted, since nothing verifies it.
                sum += unsafe { vm.execute_program_jit(bytes) }.expect("no error");
            }
            sum
        }
    };
    let policy = "ldxh r2, [r1+4]
        jeq r2, 22, +11
        ldxh r6, [r1+6]
        jgt r6, 1500, +9
        ldxw r1, [r1+0]
        call 1
        lddw r3, 0xffffffffffffffff
        jeq r0, r3, +5
        jgt r6, r0, +2
        mov r0, 0
        exit
        mov r0, 2
        exit
        mov r0, 1
        exit";
    Contestant { name: "rbpf (not verified)", nothing: Box::new(calls("mov r0, 0\nexit")), policy: Box::new(calls(policy)) }
}

impl From<&mut PacketInfo> for &mut [u8; 8] {
    fn from(p: &mut PacketInfo) -> Self {
        // SAFETY: eight bytes without padding, of which any are valid.
        unsafe { &mut *std::ptr::from_mut(p).cast() }
    }
}

fn time(run: &mut dyn FnMut(u32) -> u64) -> f64 {
    let start = Instant::now();
    assert_eq!(black_box(run(CALLS)), 0);
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(21, |n| n.parse().expect("a number of rounds"));
    // SAFETY: the set is this thread's own.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
    let mut all = [skep("skep, machine code", Engine::Jit), skep("skep, interpreter", Engine::Interpreter), wasm(), script(), rbpf()];
    let mut empty = |calls: u32| (0..calls).map(|n| u64::from(black_box(packet(n)).port / 100)).sum();
    let mut times = vec![(Vec::new(), Vec::new()); all.len()];
    let mut loops = Vec::new();
    for _ in 0..rounds {
        loops.push(time(&mut empty));
        for (contestant, (nothing, policy)) in all.iter_mut().zip(&mut times) {
            nothing.push(time(&mut *contestant.nothing));
            policy.push(time(&mut *contestant.policy));
        }
    }
    let base = median(loops);
    println!("| a call, ns (without the loop around it: {base:.1}) | `return 0` | policy |\n|---|---|---|");
    for (contestant, (nothing, policy)) in all.iter().zip(times) {
        println!("| {} | {:.1} | {:.1} |", contestant.name, median(nothing) - base, median(policy) - base);
    }
}
