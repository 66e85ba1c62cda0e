//! BTF, the type format of BPF (`Documentation/bpf/btf.rst`).

/// A parsed BTF blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Btf {}
