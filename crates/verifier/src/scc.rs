//! Loops of the control flow graph: its strongly connected components, by Tarjan's algorithm without recursion.

use skep_ebpf::insn::Insn;

use crate::cfg::{Point, successors};

/// For each instruction the number of the loop it is in, 0 for none. An instruction on its own is a loop if it can
/// follow itself, or if it calls back functions again and again.
pub(crate) fn find(insns: &[Insn], points: &[Point]) -> Vec<u32> {
    let n = insns.len();
    let mut found = vec![0u32; n];
    // Order of first visit, 0 for none; the earliest instruction on the stack that can be reached.
    let mut order = vec![0u32; n];
    let mut low = vec![0u32; n];
    let mut on_stack = vec![false; n];
    let mut stack = Vec::new();
    let mut work: Vec<(usize, usize)> = Vec::new();
    let (mut visits, mut loops) = (0, 0);
    for root in 0..n {
        if order[root] != 0 || points[root].second_half {
            continue;
        }
        work.push((root, 0));
        while let Some((at, step)) = work.pop() {
            if step == 0 {
                visits += 1;
                (order[at], low[at]) = (visits, visits);
                stack.push(at);
                on_stack[at] = true;
            }
            let next = successors(insns, at);
            let edges = [next.next, next.target];
            if step > 0
                && let Some(done) = edges[step - 1]
                && on_stack[done]
            {
                low[at] = low[at].min(low[done]);
            }
            if step < 2 {
                work.push((at, step + 1));
                if let Some(to) = edges[step]
                    && order[to] == 0
                {
                    work.push((to, 0));
                }
                continue;
            }
            if low[at] != order[at] {
                continue;
            }
            let start = stack.iter().rposition(|x| *x == at).unwrap_or(0);
            let members = stack.split_off(start);
            let is_loop = members.len() > 1 || edges.contains(&Some(at)) || points[at].calls_back;
            loops += u32::from(is_loop);
            for m in members {
                on_stack[m] = false;
                found[m] = if is_loop { loops } else { 0 };
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ebpf::asm::assemble;

    fn loops(text: &str) -> Vec<u32> {
        let insns = assemble(text).expect("a program");
        find(&insns, &vec![Point::default(); insns.len()])
    }

    #[test]
    fn straight_code_has_none() {
        assert_eq!(loops("r0 = 0\nif r0 == 0 goto out\nr0 = 1\nout:\nexit"), [0; 4]);
    }

    #[test]
    fn a_loop_has_its_body_and_no_more() {
        assert_eq!(loops("r0 = 0\nhead:\nr0 += 1\nif r0 < 9 goto head\nexit"), [0, 1, 1, 0]);
    }

    #[test]
    fn loops_in_loops_are_one_and_the_next_is_another() {
        let text = "r0 = 0\na:\nr1 = 0\nb:\nr1 += 1\nif r1 < 9 goto b\nr0 += 1\nif r0 < 9 goto a\nc:\nr0 += -1\nif r0 != 0 goto c\nexit";
        let found = loops(text);
        assert!(found[1..=5].iter().all(|l| *l == found[1] && *l != 0), "{found:?}");
        assert!(found[6] != 0 && found[6] == found[7] && found[6] != found[1], "{found:?}");
        assert_eq!((found[0], found[8]), (0, 0));
    }

    #[test]
    fn an_instruction_that_follows_itself_is_a_loop() {
        assert_eq!(loops("r0 = 0\na:\nif r0 == 0 goto a\nexit"), [0, 1, 0]);
    }
}
