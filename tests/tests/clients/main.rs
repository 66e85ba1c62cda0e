//! Loaders as they are: libbpf (linked in) and aya, in a process whose system calls are answered by a subsystem.
//!
//! The subsystem lives in this process, as a kernel would for it, and all tests use the same one, one after the other.
//! Nothing here needs root.

mod aya_client;
mod features;
mod iters;
mod libbpf;
mod probes;
mod shim;
mod skeletons;
mod untouched;

use libtest_mimic::{Arguments, Trial};

type Test = fn();

fn main() {
    // The process that gets into others is this program, started anew.
    skep_subsystem::attach::main_if_requested();
    shim::router();
    libbpf::listen();
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    let suites = [features::TESTS, skeletons::TESTS, probes::TESTS, iters::TESTS, aya_client::TESTS, untouched::TESTS];
    let tests: Vec<(&str, Test)> = suites.concat();
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            left_nothing(name);
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    let _ = std::fs::remove_dir_all(skep_tests::scratch());
    conclusion.exit();
}

/// What a loader closed is gone.
fn left_nothing(test: &str) {
    let router = shim::router();
    let start = std::time::Instant::now();
    loop {
        router.handed().tidy();
        let alive = router.subsystem().alive();
        if (alive.maps, alive.progs, alive.btfs, alive.links, alive.pins) == (0, 0, 0, 0, 0) {
            return;
        }
        assert!(start.elapsed().as_secs() < 5, "{test} left {alive:?} behind");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
