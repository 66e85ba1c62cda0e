//! libbpf's public functions, no more than typed.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::Mutex;

use libbpf_sys as sys;
use skep_tests::object;

/// What libbpf warned of since the last look.
static WARNINGS: Mutex<String> = Mutex::new(String::new());

unsafe extern "C" {
    fn vsnprintf(to: *mut c_char, len: usize, format: *const c_char, args: *mut sys::__va_list_tag) -> c_int;
}

unsafe extern "C" fn warning(
    level: sys::libbpf_print_level,
    format: *const c_char,
    args: *mut sys::__va_list_tag,
) -> c_int {
    if level > sys::LIBBPF_INFO {
        return 0;
    }
    let mut line = vec![0u8; 4096];
    // SAFETY: libbpf gives a format and its arguments; the buffer is as long as told.
    unsafe { vsnprintf(line.as_mut_ptr().cast(), line.len(), format, args) };
    let text = CStr::from_bytes_until_nul(&line).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default();
    WARNINGS.lock().expect("no test has failed here").push_str(&text);
    0
}

/// Has libbpf's warnings kept.
pub fn listen() {
    // SAFETY: the function is as libbpf wants it.
    unsafe { sys::libbpf_set_print(Some(warning)) };
}

/// The warnings since the last call.
pub fn warnings() -> String {
    std::mem::take(&mut *WARNINGS.lock().expect("no test has failed here"))
}

/// The result of a call that answers with a negative errno.
pub fn check(what: &str, r: c_int) -> c_int {
    assert!(r >= 0, "{what}: errno {}\n{}", -r, warnings());
    r
}

/// An open object, closed when dropped.
pub struct Object(pub *mut sys::bpf_object);

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a successful open and is closed once.
        unsafe { sys::bpf_object__close(self.0) }
    }
}

fn name(text: &str) -> CString {
    CString::new(text).expect("a name")
}

impl Object {
    /// Opens an object of `bpf/test`.
    pub fn open(file: &str) -> Object {
        Object::open_path(&object(&format!("test/{file}.bpf.o")))
    }

    /// Opens any object.
    pub fn open_path(file: &Path) -> Object {
        warnings();
        let path = path(file);
        // SAFETY: the path is a C string.
        let object = unsafe { sys::bpf_object__open_file(path.as_ptr(), null()) };
        assert!(!object.is_null(), "{} cannot be opened: {}", file.display(), warnings());
        Object(object)
    }

    /// Loads it.
    pub fn load(self) -> Object {
        // SAFETY: the object is open.
        let r = unsafe { sys::bpf_object__load(self.0) };
        check("load", r);
        self
    }

    /// Opens and loads.
    pub fn loaded(file: &str) -> Object {
        Object::open(file).load()
    }

    /// A program.
    pub fn program(&self, program: &str) -> Program {
        // SAFETY: the object is open.
        let p = unsafe { sys::bpf_object__find_program_by_name(self.0, name(program).as_ptr()) };
        assert!(!p.is_null(), "no program {program}");
        Program(p)
    }

    /// A map.
    pub fn map(&self, map: &str) -> Map {
        // SAFETY: the object is open.
        let m = unsafe { sys::bpf_object__find_map_by_name(self.0, name(map).as_ptr()) };
        assert!(!m.is_null(), "no map {map}");
        Map(m)
    }

    /// A section of global data, where skeletons have it: the loader's own memory before loading, the map's afterwards.
    pub fn section<T>(&self, ending: &str) -> *mut T {
        let mut m = null_mut();
        loop {
            // SAFETY: iteration over an open object.
            m = unsafe { sys::bpf_object__next_map(self.0, m) };
            assert!(!m.is_null(), "no section {ending}");
            // SAFETY: names live as long as the object.
            let found = unsafe { CStr::from_ptr(sys::bpf_map__name(m)) }.to_bytes().ends_with(ending.as_bytes());
            if found {
                let mut size = 0;
                // SAFETY: a map of the object.
                let at = unsafe { sys::bpf_map__initial_value(m, &mut size) };
                assert!(!at.is_null() && size as usize >= size_of::<T>(), "{ending}: {size} bytes");
                return at.cast();
            }
        }
    }
}

/// A program of an open object.
#[derive(Clone, Copy)]
pub struct Program(pub *mut sys::bpf_program);

impl Program {
    /// Its descriptor.
    pub fn fd(self) -> c_int {
        // SAFETY: the object is open.
        unsafe { sys::bpf_program__fd(self.0) }
    }

    /// `BPF_PROG_TEST_RUN` on a packet: what it returned.
    pub fn test_run(self) -> u32 {
        let packet = [0u8; 64];
        let mut options = sys::bpf_test_run_opts { sz: size_of::<sys::bpf_test_run_opts>() as _, ..Default::default() };
        options.data_in = packet.as_ptr().cast();
        options.data_size_in = packet.len() as u32;
        options.repeat = 1;
        // SAFETY: the options and the packet live on.
        let r = unsafe { sys::bpf_prog_test_run_opts(self.fd(), &mut options) };
        check("test run", r);
        options.retval
    }
}

/// A map of an open object.
#[derive(Clone, Copy)]
pub struct Map(pub *mut sys::bpf_map);

impl Map {
    /// Its descriptor.
    pub fn fd(self) -> c_int {
        // SAFETY: the object is open.
        unsafe { sys::bpf_map__fd(self.0) }
    }

    /// A value.
    pub fn get<V: Default>(self, key: u32) -> V {
        let mut value = V::default();
        // SAFETY: key and value are of the map's sizes, which libbpf checks.
        let r = unsafe {
            sys::bpf_map__lookup_elem(
                self.0,
                (&raw const key).cast(),
                4,
                (&raw mut value).cast(),
                size_of::<V>() as _,
                0,
            )
        };
        check("look-up", r);
        value
    }

    /// Sets a value.
    pub fn set<V>(self, key: u32, value: &V) -> c_int {
        let value = std::ptr::from_ref(value);
        // SAFETY: as above.
        unsafe { sys::bpf_map__update_elem(self.0, (&raw const key).cast(), 4, value.cast(), size_of::<V>() as _, 0) }
    }
}

/// A link, destroyed when dropped.
pub struct Link(pub *mut sys::bpf_link);

impl Link {
    /// The link that an attach function returned.
    pub fn new(what: &str, link: *mut sys::bpf_link) -> Link {
        assert!(!link.is_null(), "{what}: {}\n{}", std::io::Error::last_os_error(), warnings());
        Link(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // SAFETY: the link is destroyed once.
        unsafe { sys::bpf_link__destroy(self.0) };
    }
}

/// A perf buffer's reader: records as bytes, over all CPUs.
pub struct Perf {
    buffer: *mut sys::perf_buffer,
    records: Box<Records>,
}

unsafe extern "C" fn take_sample(to: *mut c_void, _cpu: c_int, data: *mut c_void, size: u32) {
    // SAFETY: as for records of ring buffers.
    unsafe { take(to, data, size.into()) };
}

impl Perf {
    /// Opens an event per CPU.
    pub fn new(map: Map) -> Perf {
        let mut records = Box::<Records>::default();
        let to = (&raw mut *records).cast();
        // SAFETY: the list is boxed and lives as long as the reader.
        let buffer = unsafe { sys::perf_buffer__new(map.fd(), 8, Some(take_sample), None, to, null()) };
        assert!(!buffer.is_null(), "perf buffer: {}\n{}", std::io::Error::last_os_error(), warnings());
        Perf { buffer, records }
    }

    /// Waits for records, and gives those that came.
    pub fn poll(&mut self, timeout_ms: i32) -> Vec<Vec<u8>> {
        // SAFETY: the reader is there, and so is its list.
        check("poll", unsafe { sys::perf_buffer__poll(self.buffer, timeout_ms) });
        std::mem::take(&mut self.records.0)
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::perf_buffer__free(self.buffer) };
    }
}

#[derive(Default)]
struct Records(Vec<Vec<u8>>);

/// A ring buffer's reader: records as bytes.
pub struct Ring {
    ring: *mut sys::ring_buffer,
    records: Box<Records>,
}

unsafe extern "C" fn take(to: *mut c_void, data: *mut c_void, size: sys::size_t) -> c_int {
    // SAFETY: the context is the list that the reader was made with; libbpf gives a whole record.
    unsafe {
        let record = std::slice::from_raw_parts(data.cast::<u8>(), size as usize);
        (*to.cast::<Records>()).0.push(record.to_vec());
    }
    0
}

impl Ring {
    /// Reads a map.
    pub fn new(map: Map) -> Ring {
        let mut records = Box::<Records>::default();
        // SAFETY: the list is boxed and lives as long as the reader.
        let ring = unsafe { sys::ring_buffer__new(map.fd(), Some(take), (&raw mut *records).cast(), null()) };
        assert!(!ring.is_null(), "ring buffer: {}\n{}", std::io::Error::last_os_error(), warnings());
        Ring { ring, records }
    }

    /// Waits for records, and gives those that came.
    pub fn poll(&mut self, timeout_ms: i32) -> Vec<Vec<u8>> {
        // SAFETY: the reader is there, and so is its list.
        let r = unsafe { sys::ring_buffer__poll(self.ring, timeout_ms) };
        check("poll", r);
        std::mem::take(&mut self.records.0)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::ring_buffer__free(self.ring) };
    }
}

/// The errno of a call that answered -1, as a path or name would make it.
pub fn path(p: &Path) -> CString {
    CString::new(p.as_os_str().as_encoded_bytes()).expect("a path")
}
