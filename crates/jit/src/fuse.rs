//! Pairs of operations that compilers emit again and again, done by one dispatch.
//!
//! The first operation of a pair is replaced by the fused one; the second stays where it is, since a jump may lead there.

use skep_runtime::op::{Code, Op};

/// Replaces the first of each pair.
pub(crate) fn fuse(code: &mut [Code]) {
    let mut i = 0;
    while let Some(&[a, b]) = code.get(i..).and_then(|c| c.first_chunk::<2>()) {
        let wide = matches!(a.op, Op::LdImm64 | Op::LdMap | Op::LdMapValue);
        if !wide && let Some(op) = pair(a, b) {
            code[i].op = op;
            // The second half may not start a pair of its own when reached from here, but when jumped to it may.
        }
        i += if wide { 2 } else { 1 };
    }
}

/// The operation that does both, if there is one.
fn pair(a: Code, b: Code) -> Option<Op> {
    if a.dst != b.dst {
        return None;
    }
    Some(match (a.op, b.op) {
        (Op::Mov64X, Op::Add64K) => Op::MovAdd64,
        (Op::Lsh64K, Op::Rsh64K) => Op::LshRsh64,
        (Op::Lsh64K, Op::Arsh64K) => Op::LshArsh64,
        (Op::Add64K, Op::Jne64K) => Op::AddJne64K,
        (Op::Add64K, Op::Jne64X) => Op::AddJne64X,
        (Op::Add64K, Op::Jlt64X) => Op::AddJlt64X,
        (Op::And64K, Op::Jeq64K) => Op::AndJeq64K,
        (Op::And64K, Op::Jne64K) => Op::AndJne64K,
        _ => return None,
    })
}
