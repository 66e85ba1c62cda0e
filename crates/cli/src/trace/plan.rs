//! What a trace attaches, and where.

use skep::ebpf::program::InitialValue;
use skep::ebpf::uapi::ProgType;
use skep::elf::Object;
use skep::subsystem::place::{Place, Unplaceable, named, place};

use crate::Failure;

/// A program and a place for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Placement {
    /// C function name.
    pub program: String,
    /// Where it goes.
    pub place: Place,
    /// It is given the function's arguments by their types, and not the registers.
    pub typed: bool,
    /// Its program's index in the session.
    pub index: usize,
    /// What the program is told of the place.
    pub cookie: u64,
    /// Offset in the place's file of a counter of who listens.
    pub counter: Option<u64>,
}

/// What an object's programs come to.
#[derive(Debug, Default)]
pub struct Plan {
    /// What is attached.
    pub placements: Vec<Placement>,
    /// Programs on statically defined probes, with `PATH:PROVIDER:NAME`.
    pub usdt: Vec<(String, String)>,
    /// Programs that run on samples.
    pub sampled: Vec<String>,
    /// Programs that are not, with the reason.
    pub left_out: Vec<(String, String)>,
}

/// Places every program of an object; those whose section names no function go to `funcs`.
pub fn plan(object: &Object, funcs: &[String]) -> Result<Plan, Failure> {
    let mut plan = Plan::default();
    let called = called(object);
    let mut bound = false;
    for info in object.programs() {
        let name = || info.name.clone();
        let Some(prog_type) = info.prog_type.filter(|_| info.unsupported.is_none()) else {
            let why = info.unsupported.clone().unwrap_or_else(|| format!("section \"{}\" is unknown", info.section));
            plan.left_out.push((name(), format!("not supported: {why}")));
            continue;
        };
        if !info.autoload {
            plan.left_out.push((name(), "its section begins with `?`: it is not loaded unless asked for".into()));
            continue;
        }
        if prog_type == ProgType::PerfEvent {
            plan.sampled.push(name());
            continue;
        }
        if let Some(spec) = usdt(&info.section) {
            match (spec, funcs) {
                (Some(spec), _) => plan.usdt.push((name(), spec.to_owned())),
                (None, []) => {
                    plan.left_out
                        .push((name(), "its section names no probe: give one with --func PATH:PROVIDER:NAME".into()));
                }
                (None, funcs) => {
                    bound = true;
                    plan.usdt.extend(funcs.iter().map(|f| (name(), f.clone())));
                }
            }
            continue;
        }
        let typed = prog_type == ProgType::Tracing;
        match place(&info.section, prog_type) {
            Ok(place) => {
                plan.placements.push(Placement { program: name(), place, typed, index: 0, cookie: 0, counter: None })
            }
            // It runs by tail calls.
            Err(Unplaceable::Unbound { .. }) if called.contains(&info.name) => {}
            Err(Unplaceable::Unbound { when, .. }) if !funcs.is_empty() => {
                bound = true;
                for func in funcs {
                    let (module, symbol) = match func.rsplit_once(':') {
                        Some((module, symbol)) => (Some(module.to_owned()), symbol),
                        None => (None, func.as_str()),
                    };
                    let place = named(symbol, when, module);
                    let place = place.map_err(|problem| Failure::Input(format!("--func {func}: {problem}")))?;
                    if typed && !place.is_function() {
                        return Err(Failure::Input(format!("--func {func}: {} runs around functions only", info.name)));
                    }
                    plan.placements.push(Placement {
                        program: name(),
                        place,
                        typed,
                        index: 0,
                        cookie: 0,
                        counter: None,
                    });
                }
            }
            Err(why) => plan.left_out.push((name(), why.to_string())),
        }
    }
    if !funcs.is_empty() && !bound {
        return Err(Failure::Input(format!(
            "--func {}: every program of {} names its function itself",
            funcs.join(" --func "),
            object.name()
        )));
    }
    Ok(plan)
}

/// What a section of a statically defined probe names; none for other sections.
fn usdt(section: &str) -> Option<Option<&str>> {
    let (kind, rest) = match section.split_once('/') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (section, None),
    };
    matches!(kind, "usdt" | "usdt.s").then_some(rest.filter(|r| !r.is_empty()))
}

/// The programs that the object's prog arrays name.
pub fn called(object: &Object) -> Vec<String> {
    let values = object.maps().iter().flat_map(|m| &m.values);
    values
        .filter_map(|(_, value)| match value {
            InitialValue::Program(name) => Some(name.clone()),
            InitialValue::Map(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str) -> Object {
        let path = format!("{}/../../bpf/test/{name}", env!("CARGO_MANIFEST_DIR"));
        Object::parse(name, &std::fs::read(path).unwrap()).unwrap()
    }

    fn placed(name: &str, funcs: &[&str]) -> Result<Vec<String>, Failure> {
        let funcs: Vec<String> = funcs.iter().map(|f| (*f).to_owned()).collect();
        let plan = plan(&object(name), &funcs)?;
        Ok(plan.placements.iter().map(|p| format!("{} {:?} {}", p.program, p.place.when, p.place)).collect())
    }

    #[test]
    fn functions_of_the_sections_and_given_ones() {
        assert_eq!(placed("count.bpf.o", &[]).unwrap(), ["on_entry Entry probed", "on_return Return probed"]);
        let two =
            ["on_entry Entry f", "on_entry Entry /lib/x.so:g", "on_return Return f", "on_return Return /lib/x.so:g"];
        assert_eq!(placed("two.bpf.o", &["f", "/lib/x.so:g"]).unwrap(), two);
        assert_eq!(placed("two_entry.bpf.o", &["f+0x10"]).unwrap(), ["on_entry Entry f+0x10"]);
        assert!(placed("two.bpf.o", &["f+0x10"]).is_err(), "a return probe has no offset");
        assert!(placed("count.bpf.o", &["f"]).is_err(), "all name their function");
    }

    #[test]
    fn what_runs_on_samples_has_no_place() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bpf/profile.bpf.o");
        let object = Object::parse("profile.bpf.o", &std::fs::read(path).unwrap()).unwrap();
        let plan = plan(&object, &[]).unwrap();
        assert_eq!((plan.placements.len(), plan.sampled, plan.left_out.len()), (0, vec!["on_tick".into()], 0));
    }

    #[test]
    fn what_runs_by_tail_calls_is_not_placed() {
        let plan = plan(&object("tail.bpf.o"), &[]).unwrap();
        assert_eq!((plan.placements.len(), plan.left_out.len()), (1, 0));
        assert_eq!(called(&object("tail.bpf.o")), ["counted"]);
    }

    #[test]
    fn what_cannot_be_placed_is_left_out_with_a_reason() {
        let plan = plan(&object("packet.bpf.o"), &[]).unwrap();
        assert!(plan.placements.is_empty());
        assert!(plan.left_out.iter().any(|(name, why)| name == "swap" && why.contains("inside the kernel")));
    }
}
