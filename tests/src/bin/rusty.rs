//! A Rust program with a function to trace.

/// What is traced.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probed(a: u64, b: u64) -> u64 {
    std::hint::black_box(a.wrapping_mul(3) ^ b)
}

fn main() {
    let mut s = 0;
    for i in 0..1000 {
        s ^= probed(i, s);
    }
    println!("{s}");
}
