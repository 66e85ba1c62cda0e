//! The structs of the program's BTF that have special fields, and what may own what.

use skep_ebpf::Errno;
use skep_ebpf::btf::{Btf, Kind as Type};

use super::parse::{self, Holder};
use super::record::{Content, FieldKind, Record};

/// Records of the program's structs.
#[derive(Debug, Default)]
pub(crate) struct Structs {
    /// By type id, sorted.
    records: Vec<(u32, Record)>,
}

impl Structs {
    /// Collects the records; fails as `BPF_BTF_LOAD` does.
    pub fn collect(btf: &Btf, kernel: Option<&Btf>) -> Result<Structs, Errno> {
        let object_field = |id: u32| {
            let named = matches!(btf.kind(id), Some(Type::Struct(_)))
                && FieldKind::STRUCTS.iter().any(|k| k.name() == btf.name(id) && Holder::Object.holds(*k));
            named || matches!(parse::kptr(btf, id), Ok(Some((kind, _))) if Holder::Object.holds(kind))
        };
        let mut records = Vec::new();
        for (id, ty) in btf.iter() {
            let Type::Struct(s) = &ty.kind else { continue };
            if !s.members.iter().any(|m| object_field(m.ty)) {
                continue;
            }
            let record = parse::record(btf, kernel, id, s.size, Holder::Object)?;
            // A field that is not where it could be used.
            if record.is_empty() {
                return Err(Errno::EFAULT);
            }
            records.push((id, record));
        }
        let structs = Structs { records };
        for (_, record) in &structs.records {
            structs.check_roots(record)?;
        }
        Ok(structs)
    }

    /// The record of a struct; `None` if it has no special fields.
    pub fn record(&self, id: u32) -> Option<&Record> {
        let n = self.records.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.records.get(n).map(|(_, record)| record)
    }

    /// What is held by lists and trees has a record; and what is held itself holds nothing that holds others.
    pub fn check_roots(&self, record: &Record) -> Result<(), Errno> {
        for field in &record.fields {
            let Content::Nodes { of, .. } = field.content else { continue };
            let Some(held) = self.record(of) else { return Err(Errno::EFAULT) };
            if record.any(FieldKind::is_node) && held.any(FieldKind::is_root) {
                return Err(Errno::ELOOP);
            }
        }
        Ok(())
    }
}
