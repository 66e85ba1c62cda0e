//! A library to preload into untouched programs (`LD_PRELOAD`): their system calls are answered by a subsystem that lives in
//! their process. `SKEP_TRACED` is the process whose functions kprobe events mean.

#[path = "../tests/clients/shim.rs"]
mod shim;

/// Run before the program's `main`.
extern "C" fn begin() {
    // The program started anew to get into processes is the same one, with this library.
    skep_subsystem::attach::main_if_requested();
    shim::router();
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;
