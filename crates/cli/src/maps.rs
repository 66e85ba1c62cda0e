//! The contents of maps, at the end of a trace.

use std::cmp::Ordering;

use skep::ebpf::btf::Btf;
use skep::ebpf::btf::value::Value;
use skep::ebpf::program::MapDef;
use skep::ebpf::uapi::MapType;
use skep::maps::Map;

use crate::histogram::{Histogram, draw, histogram};
use crate::json::{Field, Line};
use crate::out::{Out, OutError};
use crate::places::Places;
use crate::value::{self, Typed};

/// An element: its key, and its value or (per-CPU) values.
pub struct Element {
    pub key: Value,
    pub values: Vec<Value>,
    zero: bool,
}

fn per_cpu(def: &MapDef) -> bool {
    matches!(def.map_type, MapType::PercpuArray | MapType::PercpuHash | MapType::LruPercpuHash)
}

/// True for maps whose contents say something: not rings, tables of programs, constants, or what loaders tell programs.
fn shown(def: &MapDef) -> bool {
    !def.frozen
        && !def.name.starts_with("__bpf_usdt_")
        && !matches!(def.map_type, MapType::Ringbuf | MapType::PerfEventArray | MapType::ProgArray)
}

/// True for maps that stand for a data section of the object.
fn is_data(def: &MapDef) -> bool {
    def.name.contains('.')
}

fn typed(btf: Option<&Btf>, id: u32) -> Option<Typed<'_>> {
    btf.filter(|_| id != 0).map(|btf| Typed { btf, id })
}

/// What is in a map.
pub fn elements(map: &Map, btf: Option<&Btf>) -> Vec<Element> {
    let def = map.def();
    let data = is_data(def);
    let stack = def.map_type == MapType::StackTrace;
    let mut all = Vec::new();
    for (key, bytes) in map.entries() {
        let key = match typed(btf, def.key_type_id) {
            Some(ty) => value::read(Some(ty), &key),
            None => plain(&key),
        };
        let size = def.value_size as usize;
        let chunk = if per_cpu(def) { size.next_multiple_of(8) } else { bytes.len() };
        let read = |bytes: &[u8]| {
            if stack {
                return addresses(bytes);
            }
            let bytes = bytes.get(..size).unwrap_or(bytes);
            match typed(btf, def.value_type_id) {
                Some(ty) => without_markers(value::read(Some(ty), bytes), data),
                None => plain(bytes),
            }
        };
        let values: Vec<_> = bytes.chunks(chunk.max(1)).map(read).collect();
        all.push(Element { key, values, zero: bytes.iter().all(|&b| b == 0) });
    }
    all
}

/// Bytes without a type: numbers of the usual sizes as numbers.
fn plain(bytes: &[u8]) -> Value {
    let number = |b: &[u8]| b.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    if matches!(bytes.len(), 4 | 8) { Value::Uint(number(bytes)) } else { Value::Bytes(bytes.to_vec()) }
}

/// The frames of a stack.
fn addresses(bytes: &[u8]) -> Value {
    let words = bytes.as_chunks().0.iter().map(|w| u64::from_ne_bytes(*w));
    Value::Array(words.take_while(|&ip| ip != 0).map(Value::Ptr).collect())
}

/// Drops variables of a data section that are there only to name an event's type.
fn without_markers(value: Value, data: bool) -> Value {
    match value {
        Value::Struct(members) if data => Value::Struct(
            members.into_iter().filter(|(name, v)| !(name.starts_with("unused") && *v == Value::Ptr(0))).collect(),
        ),
        other => other,
    }
}

/// True if nothing is in the value that could be shown.
fn nothing(value: &Value) -> bool {
    matches!(value, Value::Struct(members) if members.is_empty())
}

/// Prints a map's elements as JSON lines, in the map's order.
pub fn print_json(out: &mut Out, map: &Map, btf: Option<&Btf>, time_ns: u64) -> Result<(), OutError> {
    if !shown(map.def()) {
        return Ok(());
    }
    for e in elements(map, btf) {
        if e.values.iter().all(nothing) && !e.values.is_empty() {
            continue;
        }
        let value = match (per_cpu(map.def()), &e.values[..]) {
            (false, [one]) => Field::Decoded(one),
            (_, all) => Field::All(all),
        };
        let name = map.def().name.as_str();
        let head = [("kind", "map".into()), ("time_ns", time_ns.into()), ("name", name.into())];
        out.json(&Line(head.into_iter().chain([("key", (&e.key).into()), ("value", value)]).collect()))?;
    }
    Ok(())
}

/// Prints a map's elements as text: those that are not zero, the least first, per-CPU values added up.
pub fn print_text(out: &mut Out, map: &Map, btf: Option<&Btf>, places: &Places) -> Result<(), OutError> {
    let def = map.def();
    if !shown(def) {
        return Ok(());
    }
    let mut all: Vec<(Value, Value)> = Vec::new();
    for e in elements(map, btf).into_iter().filter(|e| !e.zero) {
        let one = match (per_cpu(def), &e.values[..]) {
            (false, [one]) => one.clone(),
            (_, values) => value::sum(values).unwrap_or_else(|| Value::Array(values.to_vec())),
        };
        if !nothing(&one) {
            all.push((e.key, one));
        }
    }
    let single = def.max_entries == 1 && def.map_type != MapType::Hash;
    if all.is_empty() {
        if !is_data(def) {
            out.line(format_args!("{}: empty", def.name))?;
        }
        return Ok(());
    }
    all.sort_by(|a, b| order(&a.1, &b.1).then_with(|| order(&a.0, &b.0)));
    for (key, value) in &all {
        let name = if single { def.name.clone() } else { format!("{}[{}]", def.name, value::text_in(key, places)) };
        match histogram(value) {
            Some(Histogram { counts, others }) => {
                out.line(format_args!("{name}: {}", value::text(&others)))?;
                draw(&counts).iter().try_for_each(|line| out.line(line))?;
            }
            None => out.line(format_args!("{name}: {}", value::text_in(value, places)))?,
        }
    }
    Ok(())
}

fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Uint(a), Value::Uint(b)) | (Value::Ptr(a), Value::Ptr(b)) => a.cmp(b),
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Enum { value: a, .. }, Value::Enum { value: b, .. }) => a.cmp(b),
        (Value::Str(a), Value::Str(b)) => a.cmp(b),
        _ => Ordering::Equal,
    }
}
