//! The suite of hits, with all programs that can be run in few registers run so; the others go the long way from there.

#[path = "hits.rs"]
mod hits;

use hits::world::quick::long_ways;
use hits::world::{World, counting, percpu, total};
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
