//! JSON lines whose keys stay in the order in which they are given.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use skep::ebpf::btf::value::Value;

use crate::value::hex;

/// One value in a line.
pub enum Field<'a> {
    Number(u64),
    Signed(i64),
    Text(&'a str),
    Owned(String),
    Decoded(&'a Value),
    /// The values of a per-CPU map.
    All(&'a [Value]),
    Null,
}

impl From<u64> for Field<'_> {
    fn from(n: u64) -> Self {
        Field::Number(n)
    }
}

impl From<u32> for Field<'_> {
    fn from(n: u32) -> Self {
        Field::Number(n.into())
    }
}

impl From<i32> for Field<'_> {
    fn from(n: i32) -> Self {
        Field::Signed(n.into())
    }
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(s: &'a str) -> Self {
        Field::Text(s)
    }
}

impl From<String> for Field<'_> {
    fn from(s: String) -> Self {
        Field::Owned(s)
    }
}

impl<'a> From<&'a Value> for Field<'a> {
    fn from(v: &'a Value) -> Self {
        Field::Decoded(v)
    }
}

impl<'a, T: Into<Field<'a>>> From<Option<T>> for Field<'a> {
    fn from(v: Option<T>) -> Self {
        v.map_or(Field::Null, Into::into)
    }
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Field::Number(n) => s.serialize_u64(*n),
            Field::Signed(n) => s.serialize_i64(*n),
            Field::Text(t) => s.serialize_str(t),
            Field::Owned(t) => s.serialize_str(t),
            Field::Decoded(v) => Decoded(v).serialize(s),
            Field::All(values) => s.collect_seq(values.iter().map(Decoded)),
            Field::Null => s.serialize_unit(),
        }
    }
}

/// An object: keys and values in order.
pub struct Line<'a>(pub Vec<(&'a str, Field<'a>)>);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(k, v)| (k, v)))
    }
}

/// A decoded value: numbers as numbers, enumerators by name, pointers and bytes as hexadecimal text.
pub struct Decoded<'a>(pub &'a Value);

impl Serialize for Decoded<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Int(n) => s.serialize_i64(*n),
            Value::Uint(n) => s.serialize_u64(*n),
            Value::Wide(n) => s.collect_str(n),
            Value::Bool(b) => s.serialize_bool(*b),
            // What is not finite is written as null.
            Value::Float(f) => s.serialize_f64(*f),
            Value::Str(t) => s.serialize_str(t),
            Value::Enum { name: Some(name), .. } => s.serialize_str(name),
            Value::Enum { name: None, value } => s.serialize_i64(*value),
            Value::Ptr(p) => s.collect_str(&format_args!("{p:#x}")),
            Value::Bytes(bytes) => s.serialize_str(&hex(bytes)),
            Value::Array(all) => {
                let mut seq = s.serialize_seq(Some(all.len()))?;
                all.iter().try_for_each(|v| seq.serialize_element(&Decoded(v)))?;
                seq.end()
            }
            Value::Struct(members) => {
                let mut map = s.serialize_map(Some(members.len()))?;
                members.iter().try_for_each(|(name, v)| map.serialize_entry(name, &Decoded(v)))?;
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_order() {
        let value = Value::Struct(vec![
            ("pid".into(), Value::Uint(u64::MAX)),
            ("comm".into(), Value::Str("a\x1b[1m\"".into())),
            ("at".into(), Value::Ptr(0xbeef)),
            ("kind".into(), Value::Enum { name: Some("SENT".into()), value: 0 }),
            ("in".into(), Value::Struct(vec![("n".into(), Value::Int(-1)), ("f".into(), Value::Float(f64::NAN))])),
            ("raw".into(), Value::Bytes(vec![0, 0xff])),
        ]);
        let line = Line(vec![("kind", "x".into()), ("data", (&value).into()), ("a", Field::from(None::<u32>))]);
        let expected = r#"{"kind":"x","data":{"pid":18446744073709551615,"comm":"a\u001b[1m\"","at":"0xbeef","kind":"SENT","in":{"n":-1,"f":null},"raw":"00ff"},"a":null}"#;
        assert_eq!(serde_json::to_string(&line).unwrap(), expected);
    }
}
