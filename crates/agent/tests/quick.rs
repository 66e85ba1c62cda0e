//! The suite of hits, with all programs that can be run in few registers run so; the others go the long way from there.

#[path = "hits.rs"]
mod hits;

use hits::world::quick::long_ways;
use hits::world::{World, counting, insn, percpu, total};
use skep_runtime::session::link_kind;

#[test]
fn programs_that_call_nothing_take_the_short_way() {
    let count = counting(0);
    let links = [(count.as_slice(), link_kind::ENTRY), (count.as_slice(), link_kind::RETURN)];
    let world = World::new(&[percpu()], &links, 4);
    let mut rounds = 0;
    // Other tests run beside this one, and what they count counts here.
    let short = || {
        let before = long_ways();
        (0..10).for_each(|_| world.call());
        long_ways() == before
    };
    while !short() {
        rounds += 1;
        assert!(rounds < 10_000, "all went the long way");
    }
    assert_eq!(total(&world.session), 20 * (rounds + 1));
}

/// What cannot be run so is known only once the run has begun: it is as if it had not.
#[test]
fn programs_that_call_something_take_the_long_way_from_there() {
    let mut calling = counting(0);
    // Calls bpf_ktime_get_ns first.
    calling.insert(0, insn(0x85, 0, 0, 0, 5));
    let world = World::new(&[percpu()], &[(&calling, link_kind::ENTRY), (&calling, link_kind::RETURN)], 4);
    let before = long_ways();
    for calls in 1..100 {
        world.call();
        assert!(world.all_slots_free(), "a run has been left under way");
        assert_eq!(total(&world.session), 2 * calls);
    }
    assert!(long_ways() >= before + 2 * 99);
    assert_eq!([0, 1].map(|link| world.count(link, |c| &c.hits)), [99, 99]);
}
