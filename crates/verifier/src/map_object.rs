//! Reads of a map's own fields, through its address.

use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType as M;

use crate::check_mem::Access;
use crate::env::Env;
use crate::fail::{Check, Failure, denied};
use crate::kernel_object::refused;
use crate::kernel_types::FieldType;
use crate::reason::Reason;
use crate::reg::Reg;

/// The kernel's struct behind a map type.
fn structure(map: M) -> Option<&'static str> {
    Some(match map {
        M::Array | M::PercpuArray | M::ProgArray | M::PerfEventArray | M::CgroupArray | M::ArrayOfMaps => "bpf_array",
        M::Hash | M::PercpuHash | M::LruHash | M::LruPercpuHash | M::HashOfMaps => "bpf_htab",
        M::StackTrace => "bpf_stack_map",
        M::LpmTrie => "lpm_trie",
        M::Devmap | M::DevmapHash => "bpf_dtab",
        M::Cpumap => "bpf_cpu_map",
        M::Xskmap => "xsk_map",
        M::Sockmap => "bpf_stab",
        M::Sockhash => "bpf_shtab",
        M::ReuseportSockarray => "reuseport_array",
        M::CgroupStorage | M::PercpuCgroupStorage => "bpf_cgroup_storage_map",
        M::Queue | M::Stack => "bpf_queue_stack",
        M::SkStorage | M::InodeStorage | M::TaskStorage | M::CgrpStorage => "bpf_local_storage_map",
        M::StructOps => "bpf_struct_ops_map",
        M::Ringbuf | M::UserRingbuf => "bpf_ringbuf_map",
        M::BloomFilter => "bpf_bloom_filter",
        M::Arena => "bpf_arena",
        M::Unspec => return None,
    })
}

impl Env<'_> {
    /// Checks an access to a map itself; gives what a load yields.
    pub fn check_map_object(&mut self, a: Access, map: &Reg, off: i64) -> Check<Reg> {
        self.check_sees_kernel(map)?;
        self.note_need(Some(self.insn), || "it reads the fields of a map itself".into());
        let types = self.kernel_types()?;
        let map_type = self.maps.get(map.what as usize).map_or(M::Unspec, |m| m.def.map_type);
        let Some(id) = structure(map_type).and_then(|name| types.find_struct(name)) else {
            return Err(Failure::new(
                Errno::ENOTSUPP,
                Reason::MapPointerAccess,
                format!("maps of type {map_type} have no fields that programs can read"),
            ));
        };
        let Ok(at) = u32::try_from(off) else {
            return denied!(MapPointerAccess, "r{} is a map; offset {off} is in front of it", a.reg);
        };
        if a.write {
            return denied!(MapPointerAccess, "r{} is a map itself, which cannot be written", a.reg);
        }
        let field = types.walk(id, at, a.size).map_err(|e| {
            let mut f = refused("a map itself", a.reg, e);
            f.reason = Reason::MapPointerAccess;
            f
        })?;
        Ok(match field.what {
            FieldType::Number => Reg::UNKNOWN,
            FieldType::PlainPointer => self.plain_pointer(),
            FieldType::Pointer(to) => Reg::kernel_object(to, field.flags),
        })
    }
}
