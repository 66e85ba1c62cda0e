//! Values of BTF types, decoded and as text.

use std::fmt::Write;

use crate::places::Places;

use skep::ebpf::btf::Btf;
use skep::ebpf::btf::value::{Value, decode};

/// A BTF and a type in it.
#[derive(Clone, Copy)]
pub struct Typed<'a> {
    pub btf: &'a Btf,
    pub id: u32,
}

/// Decodes bytes by their type, or leaves them bytes where there is none.
pub fn read(ty: Option<Typed<'_>>, bytes: &[u8]) -> Value {
    match ty {
        Some(ty) => decode(ty.btf, ty.id, bytes),
        None => Value::Bytes(bytes.to_vec()),
    }
}

/// Hexadecimal digits of some bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// Text; the members of the outermost struct without braces.
pub fn text(value: &Value) -> String {
    text_in(value, &Places::default())
}

/// Text in which pointers to a process's code say where that is.
pub fn text_in(value: &Value, places: &Places) -> String {
    let mut out = String::new();
    match value {
        Value::Struct(members) => put_members(&mut out, members, places),
        _ => put(&mut out, value, places),
    }
    out
}

fn put_members(out: &mut String, members: &[(String, Value)], places: &Places) {
    for (i, (name, value)) in members.iter().enumerate() {
        if i > 0 {
            out.push(' ');
        }
        out.push_str(name);
        out.push('=');
        put(out, value, places);
    }
}

fn put(out: &mut String, value: &Value, places: &Places) {
    // Writing to a string does not fail.
    let _ = match value {
        Value::Int(n) => write!(out, "{n}"),
        Value::Uint(n) => write!(out, "{n}"),
        Value::Wide(n) => write!(out, "{n}"),
        Value::Bool(b) => write!(out, "{b}"),
        Value::Float(f) => write!(out, "{f}"),
        // Escaped: what a target puts into a string must not reach the terminal as it is.
        Value::Str(s) => write!(out, "{s:?}"),
        Value::Enum { name: Some(name), .. } => write!(out, "{name}"),
        Value::Enum { name: None, value } => write!(out, "{value}"),
        Value::Ptr(p) => match places.find(*p) {
            Some(place) => write!(out, "{p:#x} {place}"),
            None => write!(out, "{p:#x}"),
        },
        Value::Bytes(bytes) => write!(out, "{}", hex(bytes)),
        Value::Array(all) => {
            out.push('[');
            for (i, v) in all.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                put(out, v, places);
            }
            out.push(']');
            Ok(())
        }
        Value::Struct(members) => {
            out.push('{');
            put_members(out, members, places);
            out.push('}');
            Ok(())
        }
    };
}

/// The number that a value is, if it is one.
pub fn number(value: &Value) -> Option<u64> {
    match *value {
        Value::Uint(n) => Some(n),
        Value::Int(n) => u64::try_from(n).ok(),
        _ => None,
    }
}

/// Adds up values of one type, as per-CPU values want to be shown: numbers are added, member by member.
pub fn sum(values: &[Value]) -> Option<Value> {
    let (first, rest) = values.split_first()?;
    rest.iter().try_fold(first.clone(), add)
}

fn add(a: Value, b: &Value) -> Option<Value> {
    Some(match (a, b) {
        (Value::Int(x), Value::Int(y)) => Value::Int(x.wrapping_add(*y)),
        (Value::Uint(x), Value::Uint(y)) => Value::Uint(x.wrapping_add(*y)),
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            Value::Array(x.into_iter().zip(y).map(|(x, y)| add(x, y)).collect::<Option<_>>()?)
        }
        (Value::Struct(x), Value::Struct(y)) if x.len() == y.len() => {
            let members = x.into_iter().zip(y).map(|((name, x), (_, y))| Some((name, add(x, y)?)));
            Value::Struct(members.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Value {
        Value::Struct(vec![
            ("pid".into(), Value::Uint(7)),
            ("comm".into(), Value::Str("a\x1b[1m\"".into())),
            ("at".into(), Value::Ptr(0xbeef)),
            ("kind".into(), Value::Enum { name: Some("SENT".into()), value: 0 }),
            ("in".into(), Value::Struct(vec![("n".into(), Value::Int(-1))])),
            ("raw".into(), Value::Bytes(vec![0, 0xff])),
        ])
    }

    #[test]
    fn as_text() {
        assert_eq!(text(&event()), r#"pid=7 comm="a\u{1b}[1m\"" at=0xbeef kind=SENT in={n=-1} raw=00ff"#);
        assert_eq!(text(&Value::Array(vec![Value::Uint(1), Value::Uint(2)])), "[1, 2]");
    }

    #[test]
    fn sums() {
        let v = |n| Value::Struct(vec![("slots".into(), Value::Array(vec![Value::Uint(n), Value::Uint(1)]))]);
        assert_eq!(text(&sum(&[v(1), v(2), v(3)]).unwrap()), "slots=[6, 3]");
        assert!(sum(&[Value::Uint(1), Value::Str("x".into())]).is_none());
        assert!(sum(&[]).is_none());
    }
}
