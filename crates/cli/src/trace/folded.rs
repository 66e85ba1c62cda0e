//! Folded stacks: what maps count by call chain, a line per chain, as flame graph tools read it.

use std::collections::{BTreeMap, HashMap};

use skep::ebpf::btf::Btf;
use skep::ebpf::btf::value::Value;
use skep::ebpf::uapi::MapType;
use skep::subsystem::code_map::CodeMap;
use skep::subsystem::names::Names;
use skep::subsystem::session::Session;

use crate::maps::elements;
use crate::value;

/// The code of processes, and the names in it.
#[derive(Default)]
pub struct Folded {
    names: Names,
    code: HashMap<u32, CodeMap>,
}

/// What a map's key says of the thing that is counted.
#[derive(Default)]
struct Counted<'a> {
    pid: Option<u32>,
    comm: Option<&'a str>,
    /// Chains, innermost frame first; the outermost chain (user space's) first.
    chains: Vec<Vec<u64>>,
}

impl Folded {
    /// Looks where the code of a process is, as long as it can be seen.
    pub fn look(&mut self, pid: u32) {
        let code = CodeMap::of(pid);
        if code.iter().next().is_some() {
            self.code.insert(pid, code);
        }
    }

    /// The lines; `sampled` knows the code of processes that were sampled, `only` is the process of what names none.
    pub fn lines<'a>(
        &'a mut self,
        session: &Session,
        btf: Option<&Btf>,
        only: Option<u32>,
        sampled: impl Fn(u32) -> Option<&'a CodeMap>,
    ) -> BTreeMap<String, u64> {
        let stacks = stacks(session);
        let mut lines = BTreeMap::new();
        for map in session.maps().flatten() {
            let def = map.def();
            if def.map_type == MapType::StackTrace || def.key_size < 4 {
                continue;
            }
            for element in elements(map, btf) {
                let Some(counted) = counted(&element.key, &def.name, &stacks) else { continue };
                let Some(count) = value::sum(&element.values).as_ref().and_then(first_number) else { continue };
                let of = counted.pid.or(only).unwrap_or(0);
                let code = sampled(of).or_else(|| self.code.get(&of));
                let mut frames: Vec<String> = Vec::new();
                for (n, &address) in counted.chains.iter().flatten().enumerate() {
                    let Some(code) = code else {
                        frames.push(format!("{address:#x}"));
                        continue;
                    };
                    // But for the innermost one they are return addresses: the call is before them.
                    frames.extend(self.names.at(code, address - u64::from(n > 0 && address > 0)));
                }
                let who = counted.comm.map_or_else(|| of.to_string(), str::to_owned);
                let line: Vec<String> = [who].into_iter().chain(frames.into_iter().rev()).map(clean).collect();
                *lines.entry(line.join(";")).or_default() += count;
            }
        }
        lines
    }
}

/// What separates frames and lines must not be in them.
fn clean(frame: String) -> String {
    frame.replace(';', ":").replace(|c: char| c.is_control(), "?")
}

/// The chains of all stack trace maps, by map and number.
fn stacks(session: &Session) -> Vec<HashMap<u32, Vec<u64>>> {
    let maps = session.maps().flatten().filter(|m| m.def().map_type == MapType::StackTrace);
    let chain = |bytes: &[u8]| {
        let words = bytes.as_chunks().0.iter().map(|w| u64::from_ne_bytes(*w));
        words.take_while(|ip| *ip != 0).collect()
    };
    let number = |key: &[u8]| key.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
    maps.map(|m| m.entries().iter().map(|(key, value)| (number(key), chain(value))).collect()).collect()
}

/// Reads a key: `None` if there is no call chain in it.
fn counted<'a>(key: &'a Value, map: &str, stacks: &[HashMap<u32, Vec<u64>>]) -> Option<Counted<'a>> {
    let mut counted = Counted::default();
    let mut named = false;
    let mut member = |name: &str, value: &'a Value| {
        if name.contains("stack") {
            named = true;
            let chain = chain(value, stacks);
            if !chain.is_empty() {
                // The kernel's, if there is one, is called from the user's.
                let at = if name.contains("kern") { 0 } else { counted.chains.len() };
                counted.chains.insert(at, chain);
            }
        }
        match (name, value) {
            ("pid" | "tgid", value) => counted.pid = value::number(value).and_then(|n| u32::try_from(n).ok()),
            ("comm" | "name" | "task", Value::Str(text)) => counted.comm = Some(text),
            _ => {}
        }
    };
    match key {
        Value::Struct(members) => members.iter().for_each(|(name, value)| member(name, value)),
        value => member(map, value),
    }
    named.then_some(counted)
}

/// A chain that is in the key itself, or that has the number that is in it.
fn chain(value: &Value, stacks: &[HashMap<u32, Vec<u64>>]) -> Vec<u64> {
    let address = |v: &Value| match v {
        Value::Ptr(p) => Some(*p),
        other => value::number(other),
    };
    match value {
        Value::Array(all) => all.iter().map_while(address).take_while(|ip| *ip != 0).collect(),
        other => {
            let number = value::number(other).and_then(|n| u32::try_from(n).ok());
            number.and_then(|n| stacks.iter().find_map(|s| s.get(&n))).cloned().unwrap_or_default()
        }
    }
}

/// A number, or the first one in a struct.
fn first_number(value: &Value) -> Option<u64> {
    match value {
        Value::Struct(members) => members.iter().find_map(|(_, v)| first_number(v)),
        other => value::number(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let stacks = [HashMap::from([(7, vec![1, 2])]), HashMap::from([(9, vec![3])])];
        let member = |name: &str, value| (name.to_owned(), value);
        let key = Value::Struct(vec![
            member("pid", Value::Uint(5)),
            member("user_stack_id", Value::Int(7)),
            member("kern_stack_id", Value::Int(9)),
            member("name", Value::Str("x".into())),
        ]);
        let found = counted(&key, "counts", &stacks).unwrap();
        assert_eq!((found.pid, found.comm, found.chains), (Some(5), Some("x"), vec![vec![3], vec![1, 2]]));
        // An errno is no chain.
        let key = Value::Struct(vec![member("stack_id", Value::Int(-14))]);
        assert!(counted(&key, "counts", &stacks).unwrap().chains.is_empty());
        assert!(counted(&Value::Uint(7), "counts", &stacks).is_none(), "a number that names no stack");
        assert_eq!(counted(&Value::Uint(7), "by_stack", &stacks).unwrap().chains, [[1, 2]]);
        let own = Value::Struct(vec![member("stack", Value::Array(vec![Value::Uint(4), Value::Uint(0)]))]);
        assert_eq!(counted(&own, "counts", &stacks).unwrap().chains, [[4]]);
    }

    #[test]
    fn what_separates_is_not_in_frames() {
        assert_eq!(clean("a;b\nc".into()), "a:b?c");
    }
}
