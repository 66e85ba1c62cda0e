//! Hooks of an application: plug-ins attached, chained, replaced under load, limited and refused.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep::Engine;
use skep::host::{
    Bytes, BytesMut, Context, FieldDef, FieldType, Functions, Hook, HookOptions, Host, HostError, HostOptions,
    LoadError, Loader, Memory, MemoryMut, Object, OpResult, OverBudget, Plugin, Proceed, c_declaration, functions, ops,
};

#[derive(Context)]
#[repr(C)]
struct Request<'a> {
    // Not where the plug-in's own struct has it: its accesses are relocated.
    method: u32,
    #[context(write)]
    status: u32,
    path: Bytes<'a>,
    #[context(hidden)]
    served_by: Option<Box<str>>,
}

#[derive(Context, Default)]
#[repr(C)]
struct Sum {
    #[context(write)]
    total: u64,
    #[context(write)]
    version: u32,
    key: u32,
}

fn object(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf/hooks").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn host() -> Host {
    Host::new(HostOptions::default()).unwrap()
}

fn request(path: &str) -> Request<'_> {
    Request { method: 1, status: 200, path: path.into(), served_by: None }
}

/// A hook outlives what the requests borrow.
#[test]
fn a_hook_is_kept_and_requests_come_and_go() {
    struct Service {
        hook: Hook<Request<'static>>,
    }
    let host = host();
    let service = Service { hook: host.hook("request", HookOptions::default()) };
    let loader = Loader::new().hook(&service.hook);
    let plugin = loader.load(&host.tenant(1 << 20), "request.bpf.o", &object("request.bpf.o")).unwrap();
    let _attached = service.hook.attach(&plugin.program("deny_admin").unwrap(), 0).unwrap();
    for (name, status) in [("adminer", 403), ("about", 200)] {
        let path = format!("/{name}");
        let mut request = request(&path);
        service.hook.call(&mut request).unwrap();
        assert_eq!(request.status, status, "{path}");
    }
}

#[test]
fn a_policy_decides() {
    let host = host();
    let options = HookOptions { returns: Some(0..=1), proceed: Proceed::After(vec![0]), ..HookOptions::default() };
    let hook = host.hook::<Request>("request", options);
    let plugin =
        Loader::new().hook(&hook).load(&host.tenant(1 << 20), "request.bpf.o", &object("request.bpf.o")).unwrap();
    let program = plugin.program("deny_admin").unwrap();

    let mut before = request("/admin");
    assert_eq!(hook.call(&mut before).unwrap().value, None, "nothing is attached");
    let attached = hook.attach(&program, 0).unwrap();
    let ask = |path| {
        let mut request = request(path);
        let verdict = hook.call(&mut request).unwrap();
        assert!(request.served_by.is_none() && request.method == 1);
        (verdict.value, request.status)
    };
    assert_eq!(ask("/admin/users"), (Some(1), 403));
    assert_eq!(ask("/admin"), (Some(1), 403));
    assert_eq!(ask("/admit"), (Some(0), 200));
    assert_eq!(ask("/adm"), (Some(0), 200));
    assert_eq!(ask(""), (Some(0), 200));
    let seen = plugin.map("seen").unwrap().lookup(&0u32.to_ne_bytes(), 0).unwrap();
    assert_eq!(u64::from_ne_bytes(seen.try_into().unwrap()), 5);
    drop(attached);
    assert_eq!(ask("/admin").0, None);
}

#[test]
fn what_is_declared_in_c_is_what_rust_has() {
    assert_eq!(
        c_declaration::<Request>(),
        "struct request {\n\t__u32 method;\n\t__u32 status;\n\tconst __u8 *path;\n\tconst __u8 *path_end;\n\
         } __attribute__((preserve_access_index));\n"
    );
    #[derive(Context)]
    #[repr(C)]
    #[context(name = "frame")]
    struct Mixed<'a> {
        kind: u8,
        #[context(hidden)]
        _secret: u32,
        #[context(write)]
        tag: [u16; 3],
        body: BytesMut<'a>,
    }
    let text = "struct frame {\n\t__u8 kind;\n\t__u8 __hidden_1[7];\n\t__u16 tag[3];\n\t__u8 *body;\n\t__u8 *body_end;\n\
                } __attribute__((preserve_access_index));\n";
    assert_eq!(c_declaration::<Mixed>(), text);
    let tag = FieldDef {
        name: "tag",
        offset: std::mem::offset_of!(Mixed, tag),
        ty: FieldType::Array { bytes: 2, signed: false, len: 3 },
        write: true,
    };
    assert_eq!(Mixed::FIELDS[1], tag);
}

fn sums(host: &Host, options: HookOptions) -> (skep::host::Hook<Sum>, Loader) {
    let hook = host.hook::<Sum>("sum", options);
    let loader = Loader::new().hook(&hook);
    (hook, loader)
}

fn count(plugin: &Plugin, version: u32) -> u64 {
    let value = plugin.map("calls").unwrap().lookup(&version.to_ne_bytes(), 0).unwrap();
    u64::from_ne_bytes(value.try_into().unwrap())
}

#[test]
fn chains_run_by_priority_until_one_decides() {
    let host = host();
    let (hook, loader) = sums(&host, HookOptions::default());
    let tenant = host.tenant(1 << 20);
    let one = loader.load(&tenant, "one", &object("version_one.bpf.o")).unwrap();
    let two = loader.load(&tenant, "two", &object("version_two.bpf.o")).unwrap();
    let _last = hook.attach(&one.program("add").unwrap(), 5).unwrap();
    let _first = hook.attach(&two.program("add").unwrap(), -5).unwrap();
    let _middle = hook.attach(&two.program("add").unwrap(), 0).unwrap();
    let mut sum = Sum::default();
    let verdict = hook.call(&mut sum).unwrap();
    assert_eq!((verdict.ran, verdict.value, sum.total, sum.version), (3, Some(0), 3, 1));
    assert_eq!(hook.programs().iter().map(|p| p.0).collect::<Vec<_>>(), [-5, 0, 5]);
    // The host may stop wherever it likes.
    let mut asked = 0;
    hook.each(&mut sum, |name, result| {
        assert_eq!((name, result), ("add", Ok(0)));
        asked += 1;
        if asked == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!((asked, sum.total, sum.version), (2, 5, 2));
    let (decides, loader) = sums(&host, HookOptions { proceed: Proceed::After(vec![7]), ..HookOptions::default() });
    let plugin = loader.load(&tenant, "one", &object("version_one.bpf.o")).unwrap();
    let _a = decides.attach(&plugin.program("add").unwrap(), 0).unwrap();
    let _b = decides.attach(&plugin.program("add").unwrap(), 0).unwrap();
    assert_eq!(decides.call(&mut sum).unwrap().ran, 1, "0 is not among the results after which it goes on");
}

#[test]
fn a_budget_ends_what_takes_too_long() {
    let host = host();
    let (hook, loader) = sums(&host, HookOptions { budget: 1000, ..HookOptions::default() });
    let plugin = loader.load(&host.tenant(1 << 20), "one", &object("version_one.bpf.o")).unwrap();
    let endless = plugin.program("endless").unwrap();
    let _endless = hook.attach(&endless, 0).unwrap();
    let _add = hook.attach(&plugin.program("add").unwrap(), 1).unwrap();
    let mut sum = Sum::default();
    let verdict = hook.call(&mut sum).unwrap();
    assert_eq!((verdict.ran, verdict.over_budget, verdict.value), (2, 1, Some(0)));
    assert_eq!((sum.total, sum.version, endless.over_budget()), (1, 1, 1));
    let mut results = Vec::new();
    hook.each(&mut sum, |_, result| {
        results.push(result);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(results, [Err(OverBudget), Ok(0)]);
}

/// Replacements under load (`SKEP_RELOADS`): each call runs exactly one version, none is lost or done twice.
#[test]
fn versions_are_replaced_under_load() {
    let reloads: u64 = std::env::var("SKEP_RELOADS").map_or(300, |n| n.parse().expect("a number"));
    let host = host();
    let (hook, loader) = sums(&host, HookOptions::default());
    let tenant = host.tenant(1 << 22);
    let versions = [object("version_one.bpf.o"), object("version_two.bpf.o")];
    let verified = versions.each_ref().map(|bytes| {
        let all = loader.verify("version", bytes).unwrap();
        all.into_iter().filter(|p| p.program().name == "add").collect::<Vec<_>>()
    });
    let mut plugin = Plugin::load(&tenant, verified[0].clone()).unwrap();
    let attached = hook.attach(&plugin.program("add").unwrap(), 0).unwrap();
    let used = tenant.used();
    let stop = AtomicBool::new(false);
    let totals: Vec<[u64; 2]> = std::thread::scope(|scope| {
        let call = || {
            let mut seen = [0u64; 2];
            while !stop.load(Ordering::Relaxed) {
                let mut sum = Sum::default();
                let verdict = hook.call(&mut sum).unwrap();
                assert_eq!((verdict.ran, sum.total), (1, 1));
                seen[sum.version as usize - 1] += 1;
            }
            seen
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(call)).collect();
        for n in 1..=reloads {
            let version = (n % 2) as usize;
            plugin.reload(verified[version].clone()).unwrap();
            // What begins now runs the new code.
            let mut sum = Sum::default();
            hook.call(&mut sum).unwrap();
            assert_eq!(sum.version as usize, version + 1);
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let by = |n: usize| totals.iter().map(|t| t[n]).sum::<u64>();
    let own = [reloads / 2, reloads.div_ceil(2)];
    // The map stays through all reloads, so its counts are of all calls.
    assert_eq!(count(&plugin, 1), by(0) + own[0]);
    assert_eq!(count(&plugin, 2), by(1) + own[1]);
    assert_eq!(tenant.used(), used, "what was replaced is given back");
    drop(attached);
    drop(plugin);
    assert_eq!(tenant.used(), 0);
}

#[test]
fn a_failed_reload_changes_nothing() {
    let host = host();
    let (hook, loader) = sums(&host, HookOptions::default());
    let tenant = host.tenant(1 << 20);
    let mut plugin = loader.load(&tenant, "one", &object("version_one.bpf.o")).unwrap();
    let _add = hook.attach(&plugin.program("add").unwrap(), 0).unwrap();
    let _endless = hook.attach(&plugin.program("endless").unwrap(), 9).unwrap();
    let used = tenant.used();
    let fails = |plugin: &mut Plugin, bytes: &[u8]| loader.reload(plugin, "new", bytes).unwrap_err();
    assert!(matches!(fails(&mut plugin, b"junk"), LoadError::Object(_)));
    let gone = loader.reload_file(&mut plugin, "/nowhere/plugin.bpf.o").unwrap_err();
    assert_eq!(gone.to_string(), "/nowhere/plugin.bpf.o: No such file or directory (os error 2)");
    let missing = fails(&mut plugin, &object("version_two.bpf.o"));
    assert_eq!(missing.to_string(), "the new object has no program `endless`, which is attached to the hook `sum`");
    let other = fails(&mut plugin, &object("request.bpf.o"));
    assert_eq!(other.to_string(), "program `deny_admin` is in section `hook/request`; hooks here are: hook/sum");
    let mut sum = Sum::default();
    hook.each(&mut sum, |_, _| ControlFlow::Break(())).unwrap();
    assert_eq!((sum.version, tenant.used(), plugin.programs().count()), (1, used, 2));
}

#[test]
fn what_does_not_fit_is_refused() {
    let host = host();
    let (hook, loader) = sums(&host, HookOptions::default());
    let bytes = object("version_one.bpf.o");
    // A quota.
    let poor = host.tenant(4096);
    let error = loader.load(&poor, "one", &bytes).unwrap_err();
    assert!(matches!(&error, LoadError::Host(HostError::Quota { quota: 4096, .. })), "{error}");
    assert_eq!(poor.used(), 0);
    // Another host, another hook of the same context, a program that is not there.
    let other = self::host();
    let (foreign, _) = sums(&other, HookOptions::default());
    let plugin = loader.load(&host.tenant(1 << 20), "one", &bytes).unwrap();
    let add = plugin.program("add").unwrap();
    assert!(matches!(foreign.attach(&add, 0), Err(HostError::OtherHost { .. })));
    let narrow = host.hook::<Sum>("sum", HookOptions { returns: Some(0..=0), ..HookOptions::default() });
    assert!(matches!(narrow.attach(&add, 0), Err(HostError::OtherHook { .. })));
    assert!(matches!(plugin.program("sub"), Err(HostError::NoSuchProgram { .. })));
    assert!(hook.programs().is_empty());
    // What the verifier does not accept is explained.
    #[derive(Context)]
    #[repr(C)]
    #[context(name = "sum")]
    struct ReadOnly {
        total: u64,
        version: u32,
        key: u32,
    }
    let strict = host.hook::<ReadOnly>("sum", HookOptions::default());
    let error = Loader::new().hook(&strict).load(&host.tenant(1 << 20), "one", &bytes).unwrap_err();
    let LoadError::Rejected { program, rejection, explanation } = error else { panic!("{error}") };
    assert_eq!((program.as_str(), rejection.reason), ("add", "context-access"));
    assert!(rejection.message.contains("programs for sum cannot write the field total"), "{}", rejection.message);
    assert!(explanation.is_some());
    let _ = ReadOnly { total: 0, version: 0, key: 0 };
}

#[test]
fn more_threads_than_slots_are_told() {
    let host = Host::new(HostOptions { slots: 1, ..HostOptions::default() }).unwrap();
    let (hook, loader) = sums(&host, HookOptions::default());
    let plugin = loader.load(&host.tenant(1 << 20), "one", &object("version_one.bpf.o")).unwrap();
    let _attached = hook.attach(&plugin.program("add").unwrap(), 0).unwrap();
    let mut sum = Sum::default();
    hook.each(&mut sum, |_, _| {
        // The only slot is this call's.
        assert!(hook.call(&mut Sum::default()).is_err());
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(hook.call(&mut sum).unwrap().ran, 1);
}

#[test]
fn threads_come_and_go_hosts_too() {
    let versions = [object("version_one.bpf.o"), object("version_two.bpf.o")];
    let hosts: Vec<_> = (0..3)
        .map(|_| {
            let host = Host::new(HostOptions { slots: 8, ..HostOptions::default() }).unwrap();
            let (hook, loader) = sums(&host, HookOptions::default());
            let plugin = loader.load(&host.tenant(1 << 20), "one", &versions[0]).unwrap();
            let attached = hook.attach(&plugin.program("add").unwrap(), 0).unwrap();
            (host, hook, loader, plugin, attached)
        })
        .collect();
    // More threads than slots, one after the other and some at a time, on several hosts each.
    for round in 0..8u64 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (_, hook, ..) in &hosts {
                        let mut sum = Sum::default();
                        assert_eq!(hook.call(&mut sum).unwrap().ran, 1);
                    }
                });
            }
        });
        for (.., plugin, _) in &hosts {
            assert_eq!(count(plugin, 1), 4 * (round + 1));
        }
    }
    // A host that is gone leaves nothing in the threads that used it which a new one could meet.
    let mut sum = Sum::default();
    for (_, hook, ..) in &hosts {
        hook.call(&mut sum).unwrap();
    }
    drop(hosts);
    let host = host();
    let (hook, loader) = sums(&host, HookOptions::default());
    let tenant = host.tenant(1 << 20);
    let plugin = loader.load(&tenant, "two", &versions[1]).unwrap();
    let attached = hook.attach(&plugin.program("add").unwrap(), 0).unwrap();
    hook.call(&mut sum).unwrap();
    assert_eq!((count(&plugin, 2), sum.version), (1, 2));
    drop((attached, plugin));
    assert_eq!(tenant.used(), 0);
}

/// A hook that is called from within a call, and from within one of another host.
#[test]
fn calls_nest() {
    let (a, b) = (host(), host());
    let ((outer, loader), (inner, _)) = (sums(&a, HookOptions::default()), sums(&b, HookOptions::default()));
    let bytes = object("version_one.bpf.o");
    let plugins = [&a, &b].map(|h| loader.load(&h.tenant(1 << 20), "one", &bytes).unwrap());
    let _one = outer.attach(&plugins[0].program("add").unwrap(), 0).unwrap();
    let _two = inner.attach(&plugins[1].program("add").unwrap(), 0).unwrap();
    let mut sum = Sum::default();
    outer
        .each(&mut sum, |_, result| {
            assert_eq!(result, Ok(0));
            assert_eq!(outer.call(&mut Sum::default()).unwrap().ran, 1);
            assert_eq!(inner.call(&mut Sum::default()).unwrap().ran, 1);
            ControlFlow::Continue(())
        })
        .unwrap();
    // One that unwinds leaves its slot usable.
    let unwinds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = outer.each(&mut Sum::default(), |_, _| panic!("the application's own"));
    }));
    assert!(unwinds.is_err());
    assert_eq!(outer.call(&mut sum).unwrap().ran, 1);
    assert_eq!((count(&plugins[0], 1), count(&plugins[1], 1)), (4, 1));
}

/// Locks in values of maps hold between threads, and functions of a plug-in are called back.
#[test]
fn locks_and_callbacks() {
    let host = host();
    let (hook, loader) = sums(&host, HookOptions::default());
    let plugin = loader.load(&host.tenant(1 << 20), "locked", &object("locked.bpf.o")).unwrap();
    let _attached = hook.attach(&plugin.program("add").unwrap(), 0).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let mut sum = Sum::default();
                    assert_eq!(hook.call(&mut sum).unwrap().over_budget, 0);
                    assert_eq!(sum.total, 45);
                }
            });
        }
    });
    let value = plugin.map("pairs").unwrap().lookup(&0u32.to_ne_bytes(), 0).unwrap();
    let number = |at: usize| u64::from_ne_bytes(value[at..at + 8].try_into().unwrap());
    assert_eq!((number(8), number(16)), (6000, 12000));
}

/// What the application lets programs call.
struct Sessions {
    made: AtomicU64,
    dropped: Arc<AtomicU64>,
}

struct Session {
    key: u32,
    dropped: Arc<AtomicU64>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Object for Session {
    const NAME: &'static str = "session";
}

#[functions]
impl Sessions {
    fn level(&self, key: u32) -> u32 {
        key / 10
    }

    fn signed_sum(&self, a: i8, b: i64) -> i64 {
        i64::from(a) + b
    }

    fn weigh(&self, bytes: Memory<'_>) -> u64 {
        bytes.to_vec().iter().map(|b| u64::from(*b)).sum()
    }

    fn fill(&self, bytes: MemoryMut<'_>) {
        let len = bytes.as_memory().len() as u8;
        bytes.copy_from(&(1..=len).collect::<Vec<_>>());
    }

    fn session_get(&self, key: u32) -> Option<Arc<Session>> {
        (key != 0).then(|| self.session(key))
    }

    fn session_new(&self) -> Arc<Session> {
        self.session(77)
    }

    fn session_put(&self, session: Arc<Session>) {
        assert!(session.key > 0);
    }

    fn session_key(&self, session: &Session) -> u32 {
        session.key
    }

    fn session_known(&self, session: Option<&Session>) -> bool {
        session.is_some()
    }
}

impl Sessions {
    fn session(&self, key: u32) -> Arc<Session> {
        self.made.fetch_add(1, Ordering::Relaxed);
        Arc::new(Session { key, dropped: Arc::clone(&self.dropped) })
    }
}

fn with_functions(host: &Host) -> (Arc<Sessions>, Hook<Sum>, Loader) {
    let sessions = Arc::new(Sessions { made: AtomicU64::new(0), dropped: Arc::default() });
    let functions = host.functions(&sessions).unwrap();
    let (hook, loader) = sums(host, HookOptions { budget: 2000, functions: vec![functions], ..HookOptions::default() });
    (sessions, hook, loader)
}

/// Programs call functions of the application, in both engines; what they hold is given back, even by a run that is ended.
#[test]
fn programs_call_the_application() {
    for engine in [Engine::Interpreter, Engine::Jit] {
        let host = Host::new(HostOptions { engine, ..HostOptions::default() }).unwrap();
        let (sessions, hook, loader) = with_functions(&host);
        let plugin = loader.load(&host.tenant(1 << 20), "functions", &object("functions.bpf.o")).unwrap();
        let run = |program: &str, key: u32| {
            let _attached = hook.attach(&plugin.program(program).unwrap(), 0).unwrap();
            let mut sum = Sum { key, ..Sum::default() };
            let verdict = hook.call(&mut sum).unwrap();
            (verdict.value, sum.total as i64, sum.version)
        };
        assert_eq!(run("numbers", 29), (Some(0), -7, 2));
        assert_eq!(run("numbers", 30), (Some(1), -7, 3));
        assert_eq!(run("bytes", 0), (Some(8), 36, 0));
        let held = || {
            let dropped = sessions.dropped.load(Ordering::Relaxed);
            sessions.made.load(Ordering::Relaxed) - dropped
        };
        assert_eq!(run("objects", 0), (Some(0), 0, 0), "nothing is known of no session");
        assert_eq!(run("objects", 9), (Some(2), 109, 77));
        assert_eq!((sessions.made.load(Ordering::Relaxed), held()), (2, 0));
        assert_eq!(run("spends", 0).0, None, "over its budget");
        assert_eq!((sessions.made.load(Ordering::Relaxed), held()), (3, 0));
        // Functions stay as long as the host does, whoever else has let go.
        assert_eq!(Arc::strong_count(&sessions), 1 + Sessions::FUNCTIONS.len());
        let still = Arc::downgrade(&sessions);
        drop((plugin, hook, loader, host, sessions));
        assert!(still.upgrade().is_none());
    }
}

#[test]
fn functions_are_described_and_checked() {
    let host = host();
    let (sessions, hook, _) = with_functions(&host);
    let text = "struct session {};\nextern __u32 level(__u32 key) __ksym;\n\
                extern __s64 signed_sum(__s8 a, __s64 b) __ksym;\n\
                extern __u64 weigh(const void *bytes, __u64 bytes__sz) __ksym;\n\
                extern void fill(void *bytes, __u64 bytes__sz) __ksym;\n\
                extern struct session *session_get(__u32 key) __ksym;\n\
                extern struct session *session_new(void) __ksym;\n\
                extern void session_put(struct session *session) __ksym;\n\
                extern __u32 session_key(struct session *session) __ksym;\n\
                extern __u8 session_known(struct session *session__nullable) __ksym;\n";
    assert_eq!(host.functions(&sessions).unwrap().c_declarations(), text);
    assert_eq!(hook.functions().count(), Sessions::FUNCTIONS.len());

    struct Wide;
    #[functions]
    impl Wide {
        fn wide(&self, _a: Memory<'_>, _b: Memory<'_>, _c: Memory<'_>) {}
    }
    let error = host.functions(&Arc::new(Wide)).unwrap_err().to_string();
    assert_eq!(error, "function `wide`: its arguments take more than five registers (bytes take two)");
    // Names by which the verifier would check less, or something else.
    struct Throws;
    #[functions]
    impl Throws {
        fn bpf_throw(&self, _cookie: u64) {}
    }
    let error = host.functions(&Arc::new(Throws)).unwrap_err().to_string();
    assert_eq!(error, "function `bpf_throw`: its name is one of the kernel's");
    struct Unlooked;
    #[functions]
    impl Unlooked {
        #[expect(non_snake_case, reason = "the name is what is refused")]
        fn look(&self, session__ign: &Session) -> u32 {
            session__ign.key
        }
    }
    let error = host.functions(&Arc::new(Unlooked)).unwrap_err().to_string();
    assert_eq!(error, "function `look`: a parameter's name says something else to the verifier");
    struct Dynptr;
    impl Object for Dynptr {
        const NAME: &'static str = "bpf_dynptr";
    }
    struct Dynptrs;
    #[functions]
    impl Dynptrs {
        fn look(&self, _dynptr: &Dynptr) {}
    }
    let error = host.functions(&Arc::new(Dynptrs)).unwrap_err().to_string();
    assert_eq!(error, "function `look`: a struct's name is one of the kernel's");
    // A name of an object is one type's: programs could mix them up else.
    struct Impostor;
    impl Object for Impostor {
        const NAME: &'static str = "session";
    }
    struct Other;
    #[functions]
    impl Other {
        fn look(&self, _session: &Impostor) {}
    }
    let error = host.functions(&Arc::new(Other)).unwrap_err().to_string();
    assert_eq!(error, "function `look`: struct session stands for another type of this host's functions");
}

/// Each wrong plug-in is refused with its reason, and the one that runs goes on.
#[test]
fn wrong_plugins_are_refused_and_the_running_one_stays() {
    let host = host();
    let (_, hook, loader) = with_functions(&host);
    let tenant = host.tenant(1 << 20);
    let mut plugin = loader.load(&tenant, "one", &object("version_one.bpf.o")).unwrap();
    let _add = hook.attach(&plugin.program("add").unwrap(), 0).unwrap();
    let used = tenant.used();
    let mut refused = |name: &str| {
        let file = format!("wrong_{name}.bpf.o");
        let error = loader.reload(&mut plugin, &file, &object(&file)).unwrap_err();
        let mut sum = Sum::default();
        assert_eq!((hook.call(&mut sum).unwrap().value, sum.version, tenant.used()), (Some(0), 1, used), "{name}");
        match error {
            LoadError::Rejected { rejection, explanation, .. } => {
                assert!(explanation.is_some(), "{name}: {rejection}");
                (rejection.reason, rejection.message)
            }
            other => ("", other.to_string()),
        }
    };
    for (name, reason, part) in [
        ("leak", "unreleased-reference", "the reference acquired at instruction 2 is not released"),
        ("bounds", "stack-out-of-bounds", "1 bytes at offset 7 of the stack"),
        ("endless", "too-complex", "1000000 instructions"),
        ("stack", "stack-depth", "608 bytes of stack"),
        ("missing", "", "`add` calls `nowhere`, which the hook `sum` does not have; it has: level, signed_sum, weigh"),
        ("prototype", "", "it is: extern __u64 weigh(const void *bytes, __u64 bytes__sz) __ksym;"),
    ] {
        let (is, message) = refused(name);
        assert!(is == reason && message.contains(part), "{name}: {is}: {message}");
    }
    // A function that the hook does not have, although another one of the host has it.
    let (poor, loader) = sums(&host, HookOptions::default());
    let error = loader.load(&tenant, "functions", &object("functions.bpf.o")).unwrap_err().to_string();
    assert_eq!(error, "program `numbers` calls `signed_sum`, which the hook `sum` does not have; it has: none");
    assert!(poor.programs().is_empty());
}

/// What a plug-in does for the application as a whole.
#[ops]
trait Counter {
    fn add(&self, sum: &mut Sum) -> OpResult;
    #[optional]
    fn clear(&self, sum: &mut Sum) -> OpResult;
}

#[test]
fn operations_are_one_plugins_at_a_time() {
    let host = host();
    let counter = CounterOps::new(&host, "counter", &HookOptions::default());
    let loader = counter.loader(Loader::new());
    let tenant = host.tenant(1 << 20);
    let load = |name: &str| loader.load(&tenant, name, &object(&format!("{name}.bpf.o"))).unwrap();
    let (one, ten, not) = (load("counter_one"), load("counter_ten"), load("counter_not"));
    let mut sum = Sum::default();
    assert_eq!(counter.add(&mut sum), Ok(None), "nobody has it");
    let error = counter.table().register(&not).unwrap_err();
    assert_eq!(error.to_string(), "the plug-in has no program for `counter/add`");
    let mut held = counter.table().register(&one).unwrap();
    let error = counter.table().register(&ten).unwrap_err();
    assert_eq!(error.to_string(), "the operations `counter` are another plug-in's");
    assert_eq!((counter.add(&mut sum), counter.add(&mut sum), sum.total), (Ok(Some(1)), Ok(Some(1)), 2));
    assert_eq!((counter.clear(&mut sum), sum.total), (Ok(Some(1)), 0));
    assert!(matches!(held.replace(&not), Err(HostError::MissingOp { .. })));
    assert_eq!(counter.add(&mut sum), Ok(Some(1)), "as it was");
    held.replace(&ten).unwrap();
    assert_eq!((counter.add(&mut sum), counter.clear(&mut sum), sum.total), (Ok(Some(10)), Ok(None), 11));
    drop(held);
    assert_eq!((counter.add(&mut sum), sum.total), (Ok(None), 11));
    drop((one, ten, not));
    assert_eq!(tenant.used(), 0);
}

/// Operations change hands while threads call them: each call goes to one implementation, and none is lost.
#[test]
fn operations_change_hands_under_load() {
    let host = host();
    let counter = CounterOps::new(&host, "counter", &HookOptions::default());
    let loader = counter.loader(Loader::new());
    let tenant = host.tenant(1 << 20);
    let load = |name: &str| loader.load(&tenant, name, &object(&format!("{name}.bpf.o"))).unwrap();
    let plugins = [load("counter_one"), load("counter_ten")];
    let mut held = counter.table().register(&plugins[0]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let (mut sum, mut expected) = (Sum::default(), 0u64);
                while !stop.load(Ordering::Relaxed) {
                    let step = counter.add(&mut sum).unwrap().expect("somebody has it");
                    expected += step as u64;
                    assert_eq!((sum.total, sum.version), (expected, step as u32));
                }
            });
        }
        for n in 0..2000usize {
            let (next, step) = (&plugins[(n + 1) % 2], [10, 1][n % 2]);
            held.replace(next).unwrap();
            assert_eq!(counter.add(&mut Sum::default()), Ok(Some(step)), "what begins now runs the new code");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A run whose time is up ends, in loops of either kind and in both engines; one that is quick is none the worse.
#[test]
fn time_is_limited() {
    for engine in [Engine::Interpreter, Engine::Jit] {
        let host = Host::new(HostOptions { engine, ..HostOptions::default() }).unwrap();
        let sessions = Arc::new(Sessions { made: AtomicU64::new(0), dropped: Arc::default() });
        let functions = vec![host.functions(&sessions).unwrap()];
        let time = Some(Duration::from_millis(200));
        let (hook, loader) = sums(&host, HookOptions { budget: 0, time, functions, ..HookOptions::default() });
        let plugin = loader.load(&host.tenant(1 << 20), "functions", &object("functions.bpf.o")).unwrap();
        let run = |program: &str, key: u32| {
            let _attached = hook.attach(&plugin.program(program).unwrap(), 0).unwrap();
            hook.call(&mut Sum { key, ..Sum::default() }).unwrap().value
        };
        let began = Instant::now();
        assert_eq!((run("lasts", 0), run("lasts_too", 3)), (None, None), "they would take days");
        assert!(began.elapsed() >= Duration::from_millis(400));
        assert_eq!(sessions.dropped.load(Ordering::Relaxed), 1);
        // Several portions, and done in time; and what is left of the time is not the next run's.
        assert_eq!((run("spends", 0), run("spends", 0), run("numbers", 30)), (Some(0), Some(0), Some(1)));
    }
}
