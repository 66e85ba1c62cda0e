//! Which type the records of a ring buffer or perf event array have.

use skep::ebpf::btf::{Btf, Kind};
use skep::ebpf::program::MapDef;
use skep::ebpf::uapi::MapType;

/// A wrong `--event`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    #[error("--event {map}={ty}: the object has no ring buffer or perf event array {map:?}{}", list("it has", .have))]
    UnknownMap { map: String, ty: String, have: Vec<String> },
    #[error("--event {map}={ty}: the object's BTF has no struct, union or typedef {ty:?}")]
    UnknownType { map: String, ty: String },
    #[error("--event {map}={ty}: the object has no BTF")]
    Untyped { map: String, ty: String },
}

fn list(lead: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" ({lead}: {})", names.join(", ")) }
}

/// True for maps that carry events.
pub fn carries_events(map: &MapDef) -> bool {
    matches!(map.map_type, MapType::Ringbuf | MapType::PerfEventArray)
}

/// The record type of each map, by the map's index: what the user says, else a decl tag on the map, else an otherwise
/// unused variable that is named for it.
pub fn types(btf: Option<&Btf>, maps: &[MapDef], given: &[(String, String)]) -> Result<Vec<Option<u32>>, RecordError> {
    for (map, ty) in given {
        let own = || (map.clone(), ty.clone());
        if !maps.iter().any(|m| carries_events(m) && m.name == *map) {
            let ((map, ty), have) =
                (own(), maps.iter().filter(|m| carries_events(m)).map(|m| m.name.clone()).collect());
            return Err(RecordError::UnknownMap { map, ty, have });
        }
        let (map, ty) = own();
        match btf {
            None => return Err(RecordError::Untyped { map, ty }),
            Some(btf) if record(btf, &ty).is_none() => return Err(RecordError::UnknownType { map, ty }),
            Some(_) => {}
        }
    }
    let Some(btf) = btf else { return Ok(vec![None; maps.len()]) };
    let single = maps.iter().filter(|m| carries_events(m)).count() == 1;
    let of = |map: &MapDef| {
        let asked = given.iter().find(|(name, _)| *name == map.name).and_then(|(_, ty)| record(btf, ty));
        asked
            .or_else(|| tagged(btf, &map.name))
            .or_else(|| pointed_to(btf, &format!("unused_{}", map.name)))
            .or_else(|| if single { pointed_to(btf, "unused") } else { None })
    };
    Ok(maps.iter().map(|m| if carries_events(m) { of(m) } else { None }).collect())
}

/// A struct, union or typedef by its name, with or without the keyword.
fn record(btf: &Btf, name: &str) -> Option<u32> {
    let name = name.strip_prefix("struct ").or_else(|| name.strip_prefix("union ")).unwrap_or(name).trim();
    btf.find(name, |k| k.composite().is_some()).or_else(|| btf.find(name, |k| matches!(k, Kind::Typedef { .. })))
}

/// The struct that a decl tag `event:STRUCT` on the map's variable names.
fn tagged(btf: &Btf, map: &str) -> Option<u32> {
    let var = btf.find(map, |k| matches!(k, Kind::Var { .. }))?;
    btf.decl_tags(var).find_map(|(text, _)| record(btf, text.strip_prefix("event:")?))
}

/// The struct that a variable points to: `const struct STRUCT *NAME`.
fn pointed_to(btf: &Btf, variable: &str) -> Option<u32> {
    let var = btf.find(variable, |k| matches!(k, Kind::Var { .. }))?;
    let Kind::Var { ty, .. } = *btf.kind(var)? else { return None };
    let Kind::Ptr { ty } = *btf.kind(btf.resolve(ty)?)? else { return None };
    let id = btf.resolve(ty)?;
    btf.kind(id)?.composite().map(|_| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::elf::Object;

    fn events() -> Object {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bpf/test/events.bpf.o");
        Object::parse("events", &std::fs::read(path).unwrap()).unwrap()
    }

    fn found(given: &[(&str, &str)]) -> Result<Vec<String>, RecordError> {
        let object = events();
        let given: Vec<_> = given.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let (btf, maps) = (object.btf().unwrap(), object.maps());
        let types = types(Some(btf), maps, &given)?;
        let named = |i: usize| Some(btf.name(types[i]?).to_owned());
        let lines = (0..maps.len()).filter_map(|i| Some(format!("{} {}", maps[i].name, named(i)?)));
        Ok(lines.collect())
    }

    #[test]
    fn by_variable_tag_and_option() {
        assert_eq!(found(&[]).unwrap(), ["ring record", "perf record"]);
        assert_eq!(found(&[("raw", "record")]).unwrap(), ["ring record", "perf record", "raw record"]);
        assert_eq!(found(&[("raw", "u64")]).unwrap()[2], "raw u64");
    }

    #[test]
    fn wrong_options_are_named() {
        let error = found(&[("rng", "record")]).unwrap_err().to_string();
        assert!(error.contains("\"rng\"") && error.contains("ring, perf, raw"), "{error}");
        let error = found(&[("ring", "recrod")]).unwrap_err().to_string();
        assert!(error.contains("recrod"), "{error}");
    }
}
