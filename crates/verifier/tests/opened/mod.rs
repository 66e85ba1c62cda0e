//! One program of an object, as libbpf would load it by itself.

use std::ffi::{CStr, CString};
use std::path::Path;

use libbpf_sys as sys;

/// An open object of which one program is to be loaded; closed when dropped.
pub struct Opened {
    /// The object.
    pub object: *mut sys::bpf_object,
    /// The program.
    pub program: *mut sys::bpf_program,
}

impl Opened {
    /// Opens an object for one of its programs; `None` if libbpf cannot read it, or there is no such program. Nothing is
    /// pinned, and maps whose size the loader would say have one element.
    pub fn for_program(path: &Path, wanted: &str) -> Option<Opened> {
        let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
        // SAFETY: the path is a C string; null is checked; all else belongs to the open object.
        unsafe {
            let object = sys::bpf_object__open_file(path.as_ptr(), std::ptr::null());
            if object.is_null() {
                return None;
            }
            let mut opened = Opened { object, program: std::ptr::null_mut() };
            let mut program = sys::bpf_object__next_program(object, std::ptr::null_mut());
            while !program.is_null() {
                let this = CStr::from_ptr(sys::bpf_program__name(program)).to_str() == Ok(wanted);
                sys::bpf_program__set_autoload(program, this);
                if this {
                    opened.program = program;
                }
                program = sys::bpf_object__next_program(object, program);
            }
            let mut map = sys::bpf_object__next_map(object, std::ptr::null());
            while !map.is_null() {
                sys::bpf_map__set_pin_path(map, std::ptr::null());
                if sys::bpf_map__max_entries(map) == 0 && sys::bpf_map__type(map) != sys::BPF_MAP_TYPE_PERF_EVENT_ARRAY
                {
                    sys::bpf_map__set_max_entries(map, 1);
                }
                map = sys::bpf_object__next_map(object, map);
            }
            (!opened.program.is_null()).then_some(opened)
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: the object came from a successful open and is closed once.
        unsafe { sys::bpf_object__close(self.object) }
    }
}
