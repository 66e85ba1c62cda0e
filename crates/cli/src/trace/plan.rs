//! What a trace attaches, and where.

use skep::ebpf::program::InitialValue;
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
}

/// What an object's programs come to.
#[derive(Debug, Default)]
pub struct Plan {
    /// What is attached.
    pub placements: Vec<Placement>,
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
        match place(&info.section, prog_type) {
            Ok(place) => plan.placements.push(Placement { program: name(), place }),
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
                    plan.placements.push(Placement { program: name(), place });
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
