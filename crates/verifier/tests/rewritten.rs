//! What a verified program is rewritten to, and what is said of it.

mod typed;

use skep_ebpf::asm::assemble;
use skep_ebpf::disasm::Listing;
use skep_ebpf::program::{LineInfo, MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType};
use skep_verifier::rewrite::{MapArg, Memory, Range, RegSet};
use skep_verifier::{Options, Verified, verify};

fn program(ty: ProgType, text: &str) -> Program {
    let mut program = Program::new("t", ty, "GPL", assemble(text).expect("the program assembles"));
    let maps = [
        MapDef::new("array", MapType::Array, 4, 16, 4),
        MapDef::new("hash", MapType::Hash, 8, 16, 16),
        MapDef::new("progs", MapType::ProgArray, 4, 4, 4),
    ];
    program.maps = maps.into();
    program
}

fn verified(ty: ProgType, text: &str) -> Verified {
    verify(program(ty, text), &Options::default()).unwrap_or_else(|r| panic!("{r}"))
}

/// The instructions that are left, one a line.
fn left(v: &Verified) -> String {
    let listing = Listing { insns: v.rewritten().insns(), names: &() }.to_string();
    let text = |line: &str| line.split_once(") ").map_or("", |(_, text)| text).to_owned();
    listing.lines().map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn branches_that_go_one_way_only() {
    let v = verified(
        ProgType::SocketFilter,
        "r1 = 1
         if r1 == 1 goto there
         r0 = 5
         r0 += 1
         there:
         if r1 == 2 goto never
         r0 = 0
         exit
         never:
         r0 = 7
         exit",
    );
    assert_eq!(left(&v), "r1 = 1\nr0 = 0\nexit");
    let r = v.rewritten();
    assert_eq!((0..3).map(|n| r.origin(n)).collect::<Vec<_>>(), [Some(0), Some(5), Some(6)]);
    assert_eq!((r.place_of(2), r.place_of(5), r.place_of(7)), (1, 1, 3));
    assert_eq!(v.insns().len(), 9, "the other view keeps its places");
}

#[test]
fn jumps_over_what_is_gone_are_shorter() {
    let v = verified(
        ProgType::SocketFilter,
        "r0 = *(u32 *)(r1 + 0)
         r2 = 3
         if r0 == 9 goto out
         if r2 == 3 goto on
         r0 = 0x1122334455667788 ll
         on:
         r0 = 1
         out:
         exit",
    );
    assert_eq!(left(&v), "r0 = *(u32 *)(r1 +0)\nr2 = 3\nif r0 == 0x9 goto pc+1\nr0 = 1\nexit");
    assert!(v.rewritten().facts(4).target);
    assert!(!v.rewritten().facts(3).target);
}

#[test]
fn a_jump_over_an_empty_jump_stays() {
    // Linux takes out empty jumps in one pass, so the first of these is not yet empty when it is looked at.
    let v = verified(
        ProgType::SocketFilter,
        "r0 = *(u32 *)(r1 +0)\nif r0 == 0 goto pc+1\ngoto pc+1\ngoto pc+0\nr0 = 1\nexit",
    );
    assert_eq!(left(&v), "r0 = *(u32 *)(r1 +0)\nif r0 == 0x0 goto pc+1\ngoto pc+0\nr0 = 1\nexit");
}

#[test]
fn functions_that_nothing_calls_are_gone() {
    let v = verified(
        ProgType::SocketFilter,
        "r1 = 0
         if r1 == 0 goto pc+1
         call pc+3
         call pc+4
         r0 = 0
         exit
         r0 = 1
         exit
         r6 = 3
         r0 = r6
         exit",
    );
    let r = v.rewritten();
    assert_eq!(left(&v), "r1 = 0\ncall pc+2\nr0 = 0\nexit\nr6 = 3\nr0 = r6\nexit");
    let f: Vec<_> = r.functions().iter().map(|f| (f.start, f.end, f.origin, f.saves)).collect();
    assert_eq!(f, [(0, 4, 0, RegSet::NONE), (4, 7, 2, RegSet::of(6))]);
    assert_eq!(r.function_of(5), 1);
    assert!(r.functions()[0].calls && !r.functions()[1].calls);
}

#[test]
fn lines_move_to_what_is_left() {
    let mut p = program(ProgType::SocketFilter, "r1 = 1\nif r1 == 1 goto there\nr0 = 5\nr0 = 6\nthere:\nr0 = 0\nexit");
    let line = |insn, line| LineInfo { insn, file: "a.c".into(), text: "".into(), line, column: 1 };
    p.line_info = vec![line(0, 10), line(1, 11), line(2, 12), line(5, 15)];
    let v = verify(p, &Options::default()).expect("accepted");
    let lines: Vec<_> = v.rewritten().line_info().iter().map(|l| (l.insn, l.line)).collect();
    assert_eq!(lines, [(0, 10), (1, 12), (2, 15)]);
}

#[test]
fn where_accesses_go() {
    let v = verified(
        ProgType::SchedCls,
        "r6 = r1
             *(u32 *)(r10 - 8) = 2
             r2 = r10
             r2 += -8
             r1 = map[idx:0]
             call map_lookup_elem#1
             r1 = *(u32 *)(r0 + 4)
             r2 = *(u32 *)(r6 + 76)
             r3 = *(u32 *)(r6 + 80)
             r4 = r2
             r4 += 2
             if r4 > r3 goto out
             r1 = *(u16 *)(r2 + 0)
             out:
             r0 = 0
             exit",
    );
    let r = v.rewritten();
    assert_eq!(r.facts(1).memory, Memory::Stack(Some(-8)));
    let call = r.call(6);
    assert_eq!((call.map, call.key, call.found), (MapArg::One(0), Some(2), true));
    assert_eq!(call.args, [Memory::None, Memory::Stack(Some(-8)), Memory::None, Memory::None, Memory::None]);
    assert_eq!(r.facts(7).memory, Memory::MapValue(Some(0)));
    assert_eq!((r.facts(8).memory, r.facts(13).memory), (Memory::Ctx, Memory::Packet));
    assert!(!r.ctx_by_address());
    assert_eq!(r.facts(6).live_after, RegSet::of(0) | RegSet::of(6));
    assert_eq!(r.functions()[0].saves, RegSet::of(6));
    assert_eq!(r.functions()[0].args, RegSet::of(1));
}

#[test]
fn what_differs_between_paths_is_not_said() {
    let text = |index: &str| {
        format!(
            "r6 = r1
             r7 = *(u32 *)(r6 + 0)
             r2 = map[idx:2]
             r3 = 1
             if r7 == 0 goto call
             r3 = {index}
             call:
             r1 = r6
             call tail_call#12
             r0 = 0
             exit"
        )
    };
    let same = verified(ProgType::SchedCls, &text("1"));
    let call = same.rewritten().call(8);
    assert_eq!((call.map, call.key), (MapArg::One(2), Some(1)));
    assert!(same.rewritten().ctx_by_address());
    let other = verified(ProgType::SchedCls, &text("2"));
    assert_eq!(other.rewritten().call(8).key, None);
    let far = verified(ProgType::SchedCls, &text("4"));
    assert_eq!(far.rewritten().call(8).key, None);
}

#[test]
fn numbers_and_halves() {
    let v = verified(
        ProgType::SchedCls,
        "r2 = *(u32 *)(r1 + 0)
         r3 = *(u32 *)(r1 + 4)
         r3 &= 15
         r3 += 1
         r2 /= r3
         w4 = w2
         r4 += r3
         r0 = 0
         if r4 > 7 goto out
         r0 = r4
         out:
         exit",
    );
    let r = v.rewritten();
    let div = r.facts(4);
    assert_eq!((div.dst, div.src), (Range { min: 0, max: u64::from(u32::MAX) }, Range { min: 1, max: 16 }));
    assert!(div.dst.fits_32() && !div.src.may_be_zero());
    assert_eq!(r.facts(9).src, Range { min: 1, max: 7 });
    // Only the low half of the quotient is used.
    assert!(r.facts(4).live_after.has(2) && !r.facts(4).wide_after.has(2));
    assert!(r.facts(5).wide_after.has(4));
    assert!(r.facts(6).live_after.has(4) && !r.facts(6).live_after.has(3));
}

#[test]
fn a_loop_widens_what_it_counts() {
    let v = verified(
        ProgType::SchedCls,
        "r0 = 0
         again:
         r0 += 1
         if r0 < 100 goto again
         r2 = r0
         exit",
    );
    let r = v.rewritten();
    let counted = r.facts(1).dst;
    assert!(counted.has(0) && counted.has(99), "{counted:?}");
    assert!(r.facts(3).src.has(100) && r.facts(3).src.min >= 100);
}

#[test]
fn callbacks_and_plain_loops() {
    let text = "r1 = 4
        r2 = subprog[6]
        r3 = 0
        r4 = 0
        call loop#181
        r0 = 0
        exit
        r0 = 0
        exit";
    let mut p = program(ProgType::SchedCls, text);
    typed::attach(&mut p, &[typed::Function::new("ii", false)]);
    let v = verify(p, &Options::default()).unwrap_or_else(|r| panic!("{r}"));
    let call = v.rewritten().call(5);
    assert_eq!(v.rewritten().function_at(8), Some(1));
    assert_eq!((call.callback, call.plain_loop, call.map), (Some(1), true, MapArg::None));
    assert!(v.rewritten().functions()[1].called_back);
    assert_eq!(v.rewritten().func_info().len(), 2);
}
