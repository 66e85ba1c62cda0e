//! `include/skep.h`: hooks of applications for those that are not written in Rust.
//!
//! Names and layouts here are those of the header; `tests/c.rs` compares them. Pointers are as the header says: objects are
//! boxes that the application frees, strings end in 0.
#![warn(missing_docs)]
#![allow(clippy::missing_safety_doc, reason = "the header says what callers promise")]
#![allow(non_camel_case_types, reason = "the names are those of C")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::slice;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use skep::host::{
    Attachment, ContextDef, FieldDef, FieldType, Hook, HookOptions, Host, HostOptions, LoadError, Loader, Plugin,
    Proceed,
};

/// What went wrong.
pub struct skep_error {
    message: CString,
    explanation: Option<CString>,
}

/// The memory that plug-ins and hooks share.
pub struct skep_host(Host);

/// A hook, and the context that it was made for.
pub struct skep_hook {
    hook: Hook<()>,
    context: ContextDef<'static>,
}

/// The programs and maps of an object, and what its next version is loaded by.
pub struct skep_plugin {
    plugin: RwLock<Plugin>,
    loader: Loader,
}

impl skep_plugin {
    fn read(&self) -> RwLockReadGuard<'_, Plugin> {
        self.plugin.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A program attached to a hook.
pub struct skep_attachment(#[expect(dead_code, reason = "held, not looked at")] Attachment);

/// A member of a context.
#[repr(C)]
pub struct skep_field {
    name: *const c_char,
    offset: u32,
    r#type: u32,
    count: u32,
    write: u32,
}

/// What a hook is.
#[repr(C)]
pub struct skep_hook_options {
    struct_name: *const c_char,
    size: u32,
    nfields: u32,
    fields: *const skep_field,
    bounded: u32,
    returns_min: i32,
    returns_max: i32,
    nproceed: u32,
    proceed: *const i32,
    budget: u64,
    time_ns: u64,
}

/// What the programs of a hook said.
#[repr(C)]
pub struct skep_verdict {
    value: i32,
    has_value: u32,
    ran: u32,
    over_budget: u32,
}

/// The error of a call, on its way out.
struct Failure {
    message: String,
    explanation: Option<String>,
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(e: E) -> Failure {
        Failure { message: e.to_string(), explanation: None }
    }
}

fn of_load(e: LoadError) -> Failure {
    let explanation = match &e {
        LoadError::Rejected { explanation: Some(x), .. } => {
            let values: String = x.values.iter().map(|v| format!("\n{}: {}", v.place, v.holds)).collect();
            Some(format!("{}{values}\nfix: {}", x.rule, x.suggestion))
        }
        _ => None,
    };
    Failure { message: e.to_string(), explanation }
}

fn c_string(text: String) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Gives the result, or `otherwise` and the error.
unsafe fn told<T>(result: Result<T, Failure>, error: *mut *mut skep_error, otherwise: T) -> T {
    match result {
        Ok(value) => value,
        Err(e) => {
            if !error.is_null() {
                let told = skep_error { message: c_string(e.message), explanation: e.explanation.map(c_string) };
                // SAFETY: the header's promise: a place for an error.
                unsafe { error.write(Box::into_raw(Box::new(told))) };
            }
            otherwise
        }
    }
}

/// As [`told`], of an object.
unsafe fn made<T>(result: Result<T, Failure>, error: *mut *mut skep_error) -> *mut T {
    // SAFETY: the caller's promise.
    unsafe { told(result.map(|value| Box::into_raw(Box::new(value))), error, null_mut()) }
}

unsafe fn freed<T>(object: *mut T) {
    if !object.is_null() {
        // SAFETY: the header's promise: it came from here, and is given back once.
        drop(unsafe { Box::from_raw(object) });
    }
}

unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(format!("{what} is NULL").into());
    }
    // SAFETY: the header's promise: a string that ends in 0.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| format!("{what} is not UTF-8").into())
}

/// The bytes, or numbers, at an address.
unsafe fn many<'a, T>(at: *const T, len: usize) -> &'a [T] {
    if at.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: the header's promise.
    unsafe { slice::from_raw_parts(at, len) }
}

unsafe fn object<'a, T>(at: *const T, what: &str) -> Result<&'a T, Failure> {
    // SAFETY: the header's promise: NULL, or one of ours.
    unsafe { at.as_ref() }.ok_or_else(|| format!("the {what} is NULL").into())
}

/// What went wrong, in a line.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_error_message(error: *const skep_error) -> *const c_char {
    // SAFETY: the header's promise.
    unsafe { error.as_ref() }.map_or(null(), |e| e.message.as_ptr())
}

/// Why a program was not accepted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_error_explanation(error: *const skep_error) -> *const c_char {
    // SAFETY: the header's promise.
    unsafe { error.as_ref() }.and_then(|e| e.explanation.as_ref()).map_or(null(), |e| e.as_ptr())
}

/// Frees an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_error_free(error: *mut skep_error) {
    // SAFETY: the header's promise.
    unsafe { freed(error) };
}

/// Makes a host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_host_new(slots: u32, error: *mut *mut skep_error) -> *mut skep_host {
    let mut options = HostOptions::default();
    if slots != 0 {
        options.slots = slots;
    }
    // SAFETY: the header's promise.
    unsafe { made(Host::new(options).map(skep_host).map_err(Failure::from), error) }
}

/// Frees a host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_host_free(host: *mut skep_host) {
    // SAFETY: the header's promise.
    unsafe { freed(host) };
}

/// The type of a member, by its number in the header.
fn field_type(number: u32, count: u32) -> Option<FieldType> {
    let (bytes, signed) = match number {
        0..4 => (1 << number, false),
        4..8 => (1 << (number - 4), true),
        8 | 9 if count == 0 => return Some(FieldType::Bytes { write: number == 9 }),
        _ => return None,
    };
    Some(match count {
        0 => FieldType::Int { bytes, signed },
        len => FieldType::Array { bytes, signed, len },
    })
}

/// The context. Its names stay for as long as the process: hooks are few.
unsafe fn context(options: &skep_hook_options) -> Result<ContextDef<'static>, Failure> {
    // SAFETY: the header's promise.
    let (name, given) =
        unsafe { (text(options.struct_name, "the struct's name")?, many(options.fields, options.nfields as usize)) };
    let field = |f: &skep_field| {
        // SAFETY: the header's promise.
        let name = unsafe { text(f.name, "a member's name")? };
        let ty = field_type(f.r#type, f.count).ok_or_else(|| format!("member {name} has no type {}", f.r#type))?;
        let write = f.write != 0 && !matches!(ty, FieldType::Bytes { .. });
        Ok(FieldDef { name: name.to_owned().leak(), offset: f.offset as usize, ty, write })
    };
    let fields: Vec<FieldDef> = given.iter().map(field).collect::<Result<_, Failure>>()?;
    Ok(ContextDef { name: name.to_owned().leak(), size: options.size, fields: fields.leak() })
}

/// Makes a hook.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_hook_new(
    host: *mut skep_host,
    name: *const c_char,
    options: *const skep_hook_options,
    error: *mut *mut skep_error,
) -> *mut skep_hook {
    let make = || {
        // SAFETY: the header's promise.
        let (host, name, given) =
            unsafe { (object(host, "host")?, text(name, "the hook's name")?, object(options, "hook's options")?) };
        // SAFETY: as above.
        let context = unsafe { context(given)? };
        let options = HookOptions {
            returns: (given.bounded != 0).then_some(given.returns_min..=given.returns_max),
            budget: given.budget,
            time: (given.time_ns != 0).then(|| Duration::from_nanos(given.time_ns)),
            proceed: match given.proceed.is_null() {
                true => Proceed::Always,
                // SAFETY: as above.
                false => Proceed::After(unsafe { many(given.proceed, given.nproceed as usize) }.to_vec()),
            },
            ..HookOptions::default()
        };
        Ok(skep_hook { hook: host.0.hook_of(name, &context, options)?, context })
    };
    // SAFETY: the header's promise.
    unsafe { made(make(), error) }
}

/// Frees a hook.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_hook_free(hook: *mut skep_hook) {
    // SAFETY: the header's promise.
    unsafe { freed(hook) };
}

/// Loads an object.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_plugin_load(
    host: *mut skep_host,
    hooks: *const *mut skep_hook,
    nhooks: usize,
    quota: u64,
    name: *const c_char,
    bytes: *const c_void,
    size: usize,
    error: *mut *mut skep_error,
) -> *mut skep_plugin {
    let load = || {
        // SAFETY: the header's promise.
        let (host, name, hooks) =
            unsafe { (object(host, "host")?, text(name, "the object's name")?, many(hooks, nhooks)) };
        let mut loader = Loader::new();
        for hook in hooks {
            // SAFETY: as above.
            let hook = unsafe { object(*hook, "hook")? };
            loader = loader.hook_of(&hook.hook, &hook.context);
        }
        // SAFETY: as above.
        let bytes = unsafe { many(bytes.cast(), size) };
        let plugin = loader.load(&host.0.tenant(quota), name, bytes).map_err(of_load)?;
        Ok(skep_plugin { plugin: RwLock::new(plugin), loader })
    };
    // SAFETY: the header's promise.
    unsafe { made(load(), error) }
}

/// Replaces the programs of a plug-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_plugin_reload(
    plugin: *mut skep_plugin,
    name: *const c_char,
    bytes: *const c_void,
    size: usize,
    error: *mut *mut skep_error,
) -> c_int {
    let reload = || {
        // SAFETY: the header's promise.
        let (plugin, name) = unsafe { (object(plugin, "plug-in")?, text(name, "the object's name")?) };
        // SAFETY: the header's promise.
        let bytes = unsafe { many(bytes.cast(), size) };
        let mut programs = plugin.plugin.write().unwrap_or_else(PoisonError::into_inner);
        plugin.loader.reload(&mut programs, name, bytes).map_err(of_load)?;
        Ok(0)
    };
    // SAFETY: the header's promise.
    unsafe { told(reload(), error, -1) }
}

/// Frees a plug-in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_plugin_free(plugin: *mut skep_plugin) {
    // SAFETY: the header's promise.
    unsafe { freed(plugin) };
}

/// Does something with a map: 0, or a negative error number.
unsafe fn with_map(
    plugin: *const skep_plugin,
    name: *const c_char,
    work: impl FnOnce(&skep::Map) -> Result<(), skep::ebpf::Errno>,
) -> c_int {
    // SAFETY: the header's promise.
    let found = unsafe { (plugin.as_ref(), text(name, "the map's name")) };
    let (Some(plugin), Ok(name)) = found else { return -libc::EINVAL };
    let plugin = plugin.read();
    let Some(map) = plugin.map(name) else { return -libc::ENOENT };
    work(map).map_or_else(|e| -e.0, |()| 0)
}

/// Reads an element.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_map_lookup(
    plugin: *const skep_plugin,
    map: *const c_char,
    key: *const c_void,
    key_size: usize,
    value: *mut c_void,
    value_size: usize,
) -> c_int {
    // SAFETY: the header's promise.
    unsafe {
        with_map(plugin, map, |map| {
            if value.is_null() || map.value_size() != value_size {
                return Err(skep::ebpf::Errno::EINVAL);
            }
            let found = map.lookup(many(key.cast(), key_size), 0)?;
            value.cast::<u8>().copy_from_nonoverlapping(found.as_ptr(), found.len().min(value_size));
            Ok(())
        })
    }
}

/// Writes an element.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_map_update(
    plugin: *const skep_plugin,
    map: *const c_char,
    key: *const c_void,
    key_size: usize,
    value: *const c_void,
    value_size: usize,
    flags: u64,
) -> c_int {
    // SAFETY: the header's promise.
    unsafe {
        with_map(plugin, map, |map| map.update(many(key.cast(), key_size), many(value.cast(), value_size), flags))
    }
}

/// Removes an element.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_map_delete(
    plugin: *const skep_plugin,
    map: *const c_char,
    key: *const c_void,
    key_size: usize,
) -> c_int {
    // SAFETY: the header's promise.
    unsafe { with_map(plugin, map, |map| map.delete(many(key.cast(), key_size))) }
}

/// Attaches a program.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_attach(
    hook: *mut skep_hook,
    plugin: *const skep_plugin,
    program: *const c_char,
    priority: i32,
    error: *mut *mut skep_error,
) -> *mut skep_attachment {
    let attach = || {
        // SAFETY: the header's promise.
        let (hook, plugin, name) =
            unsafe { (object(hook, "hook")?, object(plugin, "plug-in")?, text(program, "the program's name")?) };
        Ok(skep_attachment(hook.hook.attach(&plugin.read().program(name)?, priority)?))
    };
    // SAFETY: the header's promise.
    unsafe { made(attach(), error) }
}

/// Detaches a program.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_attachment_free(attachment: *mut skep_attachment) {
    // SAFETY: the header's promise.
    unsafe { freed(attachment) };
}

/// Calls a hook.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skep_call(hook: *const skep_hook, context: *mut c_void, verdict: *mut skep_verdict) -> c_int {
    // SAFETY: the header's promise.
    let Some(hook) = (unsafe { hook.as_ref() }) else { return -libc::EINVAL };
    // SAFETY: as above.
    match unsafe { hook.hook.call_raw(context.cast()) } {
        Ok(v) => {
            if !verdict.is_null() {
                let said = skep_verdict {
                    value: v.value.unwrap_or(0),
                    has_value: v.value.is_some().into(),
                    ran: v.ran,
                    over_budget: v.over_budget,
                };
                // SAFETY: as above.
                unsafe { verdict.write(said) };
            }
            0
        }
        Err(_) => -libc::EBUSY,
    }
}
