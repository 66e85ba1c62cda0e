//! Helpers that take and give pointers to the kernel's own objects: which types, and how far they must be trusted.

use skep_ebpf::btf::Kind as Type;
use skep_ebpf::helper::{self, Arg, Helper};

use crate::check_mem::Access;
use crate::env::Env;
use crate::fail::{Check, denied, unsupported};
use crate::helper_args::CallFacts;
use crate::reg::{Kind, Reg, flag};

/// Helpers, by number.
mod id {
    pub const SK_RELEASE: u32 = 86;
    pub const SK_FULLSOCK: u32 = 95;
    pub const TCP_SOCK: u32 = 96;
    pub const SKB_OUTPUT: u32 = 111;
    pub const TCP_SEND_ACK: u32 = 116;
    pub const XDP_OUTPUT: u32 = 121;
    pub const SEQ_PRINTF: u32 = 126;
    pub const SEQ_WRITE: u32 = 127;
    pub const SKC_TO_TCP6_SOCK: u32 = 136;
    pub const SKC_TO_TCP_SOCK: u32 = 137;
    pub const SKC_TO_TCP_TIMEWAIT_SOCK: u32 = 138;
    pub const SKC_TO_TCP_REQUEST_SOCK: u32 = 139;
    pub const SKC_TO_UDP6_SOCK: u32 = 140;
    pub const GET_TASK_STACK: u32 = 141;
    pub const INODE_STORAGE_GET: u32 = 145;
    pub const INODE_STORAGE_DELETE: u32 = 146;
    pub const D_PATH: u32 = 147;
    pub const SEQ_PRINTF_BTF: u32 = 150;
    pub const PER_CPU_PTR: u32 = 153;
    pub const THIS_CPU_PTR: u32 = 154;
    pub const TASK_STORAGE_GET: u32 = 156;
    pub const TASK_STORAGE_DELETE: u32 = 157;
    pub const GET_CURRENT_TASK_BTF: u32 = 158;
    pub const BPRM_OPTS_SET: u32 = 159;
    pub const IMA_INODE_HASH: u32 = 161;
    pub const SOCK_FROM_FILE: u32 = 162;
    pub const TASK_PT_REGS: u32 = 175;
    pub const SKC_TO_UNIX_SOCK: u32 = 178;
    pub const FIND_VMA: u32 = 180;
    pub const XDP_GET_BUFF_LEN: u32 = 188;
    pub const COPY_FROM_USER_TASK: u32 = 191;
    pub const IMA_FILE_HASH: u32 = 193;
    pub const SKC_TO_MPTCP_SOCK: u32 = 196;
    pub const CGRP_STORAGE_GET: u32 = 210;
    pub const CGRP_STORAGE_DELETE: u32 = 211;
}

use id::*;

/// The struct that a helper takes; where it takes sockets, what all of them begin with.
fn taken(h: &Helper, arg: Arg) -> Option<&'static str> {
    if matches!(arg, Arg::BtfSock | Arg::BtfSockOrNull) {
        return Some("sock_common");
    }
    Some(match h.id {
        SKB_OUTPUT => "sk_buff",
        XDP_OUTPUT | XDP_GET_BUFF_LEN => "xdp_buff",
        TCP_SEND_ACK => "tcp_sock",
        SEQ_PRINTF | SEQ_WRITE | SEQ_PRINTF_BTF => "seq_file",
        GET_TASK_STACK | TASK_STORAGE_GET | TASK_STORAGE_DELETE | TASK_PT_REGS | FIND_VMA | COPY_FROM_USER_TASK => {
            "task_struct"
        }
        INODE_STORAGE_GET | INODE_STORAGE_DELETE | IMA_INODE_HASH => "inode",
        D_PATH => "path",
        BPRM_OPTS_SET => "linux_binprm",
        SOCK_FROM_FILE | IMA_FILE_HASH => "file",
        CGRP_STORAGE_GET | CGRP_STORAGE_DELETE => "cgroup",
        helper::SK_STORAGE_GET | helper::SK_STORAGE_DELETE => "sock_common",
        _ => return None,
    })
}

/// The struct that a helper gives, and whether that is surely valid.
fn given(h: &Helper) -> Option<(&'static str, u32)> {
    Some(match h.id {
        SKC_TO_TCP6_SOCK => ("tcp6_sock", 0),
        SKC_TO_TCP_SOCK => ("tcp_sock", 0),
        SKC_TO_TCP_TIMEWAIT_SOCK => ("tcp_timewait_sock", 0),
        SKC_TO_TCP_REQUEST_SOCK => ("tcp_request_sock", 0),
        SKC_TO_UDP6_SOCK => ("udp6_sock", 0),
        SKC_TO_UNIX_SOCK => ("unix_sock", 0),
        SKC_TO_MPTCP_SOCK => ("mptcp_sock", 0),
        GET_CURRENT_TASK_BTF => ("task_struct", flag::TRUSTED),
        SOCK_FROM_FILE => ("socket", 0),
        TASK_PT_REGS => ("pt_regs", 0),
        _ => return None,
    })
}

/// True if what the helper gives is its argument seen otherwise: it goes when the reference is released.
pub(crate) fn casts(helper: u32) -> bool {
    matches!(
        helper,
        SK_FULLSOCK
            | TCP_SOCK
            | SKC_TO_TCP6_SOCK
            | SKC_TO_TCP_SOCK
            | SKC_TO_TCP_TIMEWAIT_SOCK
            | SKC_TO_TCP_REQUEST_SOCK
            | SKC_TO_UDP6_SOCK
            | SKC_TO_MPTCP_SOCK
    )
}

/// How far an object is trusted decides which arguments it can be.
fn trust_fits(arg: Arg, flags: u32) -> bool {
    let trust = flags & !flag::NULLABLE;
    match arg {
        Arg::Btf | Arg::BtfOrNull => matches!(trust, 0 | flag::TRUSTED | flag::RCU),
        Arg::BtfSock | Arg::BtfSockOrNull => matches!(trust, 0 | flag::TRUSTED),
        Arg::PercpuBtf => {
            trust & flag::PERCPU != 0
                && matches!(trust & !(flag::PERCPU | flag::LOCAL_TYPE), 0 | flag::TRUSTED | flag::RCU)
        }
        // Memory that is only read.
        _ => trust == flag::TRUSTED,
    }
}

impl Env<'_> {
    /// An object of a BTF type is what the argument wants.
    pub fn check_object_arg(&self, h: &Helper, r: u8, arg: Arg, reg: &Reg) -> Check {
        let takes_objects = matches!(
            arg,
            Arg::Btf
                | Arg::BtfOrNull
                | Arg::BtfSock
                | Arg::BtfSockOrNull
                | Arg::PercpuBtf
                | Arg::Mem(helper::Access::Read)
                | Arg::MemOrNull(helper::Access::Read)
                | Arg::Fixed(helper::Access::Read, _)
        );
        if !takes_objects || !trust_fits(arg, reg.flags) {
            return denied!(ArgumentType, "r{r} of bpf_{} is {}, which it does not take", h.name, self.describe(reg));
        }
        if matches!(arg, Arg::PercpuBtf | Arg::Mem(_) | Arg::MemOrNull(_) | Arg::Fixed(..)) {
            return Ok(());
        }
        let Some(name) = taken(h, arg) else {
            return unsupported!(UnsupportedHelper, "what bpf_{} takes in r{r} is not judged yet", h.name);
        };
        let kernel = self.kernel_types()?;
        let strict = h.has(helper::RELEASE) && h.id != SK_RELEASE;
        let off = u32::try_from(reg.off).unwrap_or(u32::MAX);
        let fits = kernel.find_struct(name).is_some_and(|need| {
            self.types_of(reg).is_ok_and(|types| types.points_to(reg.what, off, kernel, need, strict))
        });
        if !fits {
            return denied!(
                ArgumentType,
                "bpf_{} wants a pointer to a {name} in r{r}, which holds {}",
                h.name,
                self.describe(reg)
            );
        }
        Ok(())
    }

    /// Memory that is a kernel object: the bytes are a member of it, or lie in one.
    pub fn check_object_memory(&mut self, r: u8, reg: &Reg, size: u64) -> Check {
        let Some(size) = u32::try_from(size).ok().filter(|s| *s != 0) else {
            return unsupported!(UnsupportedArgument, "{size} bytes of a kernel object in r{r} are not judged yet");
        };
        let a = Access { reg: r, off: 0, size, write: false, signed: false, aligned: false };
        self.check_kernel_object(a, reg, reg.off.into()).map(|_| ())
    }

    /// The kernel object that a helper gives.
    pub fn object_result(&mut self, h: &Helper, facts: &CallFacts) -> Check<Reg> {
        if matches!(h.id, PER_CPU_PTR | THIS_CPU_PTR) {
            return self.cpu_object(h, facts);
        }
        let Some((name, trust)) = given(h) else {
            return unsupported!(UnsupportedHelper, "what bpf_{} returns is not judged yet", h.name);
        };
        let Some(id) = self.kernel_types()?.find_struct(name) else {
            return unsupported!(KernelTypes, "the kernel's types have no {name}, which bpf_{} returns", h.name);
        };
        let null = if h.ret == helper::Ret::BtfOrNull { flag::NULLABLE } else { 0 };
        Ok(Reg::kernel_object(id, trust | null))
    }

    /// One CPU's copy of what a per-CPU pointer names.
    fn cpu_object(&self, h: &Helper, facts: &CallFacts) -> Check<Reg> {
        let Some(object) = facts.percpu else {
            return denied!(ArgumentType, "bpf_{} wants a per-CPU pointer in r1", h.name);
        };
        let types = self.types_of(&object)?;
        let null = if h.id == PER_CPU_PTR { flag::NULLABLE } else { 0 };
        if object.flags & flag::RCU != 0 {
            let kept = object.flags & flag::LOCAL_TYPE;
            return Ok(Reg::kernel_object(object.what, kept | flag::ALLOCATED | flag::RCU | null));
        }
        match types.resolved(object.what) {
            Some((id, Type::Struct(_) | Type::Union(_))) => Ok(Reg::kernel_object(id, null)),
            Some((id, _)) => match types.member(id, &[]).map(|(_, size)| size) {
                Some(size) => Ok(Reg { flags: flag::READ_ONLY | null, size, ..Reg::pointer(Kind::Mem) }),
                None => denied!(ArgumentType, "the size of what r1 of bpf_{} points to is not known", h.name),
            },
            None => denied!(ArgumentType, "what r1 of bpf_{} points to has no type", h.name),
        }
    }
}
