//! struct_ops: structs of function pointers that the kernel calls, defined as variables of `.struct_ops` sections.
//!
//! Each such variable is a map; a program belongs to the member that its address initialises, and the kernel is told
//! that member's number in *its* declaration of the struct.

use skep_ebpf::btf::{Btf, Kind, essential_name};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;

use crate::ElfError;
use crate::container::{Container, Place, SectionKind};
use crate::functions::{Function, containing};
use crate::maps::Placed;
use crate::sections::{DataKind, data_kind};

/// A program as a member of a struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub function: usize,
    /// Name of the struct, without flavor.
    pub structure: String,
    pub member: String,
}

fn is_struct_ops(name: &str) -> bool {
    data_kind(name) == Some(DataKind::StructOps)
}

/// The maps that `.struct_ops` sections define, their values as the object has them.
pub(crate) fn maps(container: &Container<'_>, btf: &Btf) -> Result<Vec<Placed>, ElfError> {
    let mut maps = Vec::new();
    for (section, sec) in container.sections.iter().enumerate() {
        if !is_struct_ops(sec.name) || sec.kind != SectionKind::Contents {
            continue;
        }
        let Some(id) = btf.find(sec.name, |k| matches!(k, Kind::Datasec { .. })) else { continue };
        let Some(Kind::Datasec { vars, .. }) = btf.kind(id) else { continue };
        for &(var, offset, _) in vars {
            let fault = |problem: &str| ElfError::Map { map: btf.name(var).to_owned(), problem: problem.to_owned() };
            let ty = match btf.kind(var) {
                Some(&Kind::Var { ty, .. }) => btf.resolve(ty),
                _ => None,
            };
            let Some((ty, Kind::Struct(c))) = ty.and_then(|ty| Some((ty, btf.kind(ty)?))) else {
                return Err(fault("is not a struct"));
            };
            let data = sec.data.get(offset as usize..).and_then(|d| d.get(..c.size as usize));
            let data = data.ok_or_else(|| fault("lies outside of its section"))?;
            let mut def = MapDef::new(btf.name(var), MapType::StructOps, 4, c.size, 1);
            def.initial = Some(data.to_vec());
            def.value_type_id = ty;
            if sec.name.ends_with(".link") {
                def.flags = skep_ebpf::uapi::map_flags::LINK;
            }
            maps.push(Placed { def, section, offset: offset.into() });
        }
    }
    Ok(maps)
}

/// Which function stands in which member.
pub(crate) fn operations(
    container: &Container<'_>,
    btf: &Btf,
    maps: &[Placed],
    functions: &[Function],
) -> Vec<Operation> {
    let mut out = Vec::new();
    for (number, sec) in container.sections.iter().enumerate().filter(|(_, s)| is_struct_ops(s.name)) {
        for r in &sec.relocs {
            let function = container.symbols.get(r.symbol).and_then(|s| match s.place {
                Place::Section(code) => containing(functions, code, usize::try_from(s.value / 8).ok()?),
                _ => None,
            });
            let map = maps.iter().find(|m| {
                m.section == number
                    && r.offset.checked_sub(m.offset).is_some_and(|rel| rel < u64::from(m.def.value_size))
            });
            let member = map.and_then(|m| {
                let bits = (r.offset - m.offset).checked_mul(8)?;
                let members = &btf.kind(m.def.value_type_id)?.composite()?.members;
                let member = members.iter().find(|member| u64::from(member.bit_offset) == bits)?;
                Some((btf.name(m.def.value_type_id), btf.str_at(member.name_off)?))
            });
            if let (Some(function), Some((structure, member))) = (function, member) {
                let structure = essential_name(structure).to_owned();
                out.push(Operation { function, structure, member: member.to_owned() });
            }
        }
    }
    out
}

/// The kernel's struct, and the member's number in it.
pub(crate) fn kernel_member(kernel: &Btf, op: &Operation) -> Option<(u32, u32)> {
    let id = kernel.find(&op.structure, |k| matches!(k, Kind::Struct(_)))?;
    let members = &kernel.kind(id)?.composite()?.members;
    let index = members.iter().position(|m| kernel.str_at(m.name_off) == Some(&op.member))?;
    Some((id, index as u32))
}
