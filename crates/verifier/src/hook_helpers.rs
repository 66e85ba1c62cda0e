//! Which helpers a program that attaches by BTF may call, by what it hangs on.

use skep_ebpf::Errno;
use skep_ebpf::helper::{Arg, Helper};
use skep_ebpf::uapi::{AttachType as A, ProgType};

use crate::env::Env;
use crate::fail::{Check, Failure, invalid};
use crate::hook_facts as facts;
use crate::reason::Reason;

/// Helpers, by number.
mod id {
    pub const SETSOCKOPT: u32 = 49;
    pub const GETSOCKOPT: u32 = 57;
    pub const GET_LOCAL_STORAGE: u32 = 81;
    pub const SK_STORAGE_GET: u32 = 107;
    pub const SK_STORAGE_DELETE: u32 = 108;
    pub const TCP_SEND_ACK: u32 = 116;
    pub const SEQ_PRINTF: u32 = 126;
    pub const SEQ_WRITE: u32 = 127;
    pub const INODE_STORAGE_GET: u32 = 145;
    pub const INODE_STORAGE_DELETE: u32 = 146;
    pub const D_PATH: u32 = 147;
    pub const SEQ_PRINTF_BTF: u32 = 150;
    pub const IMA_INODE_HASH: u32 = 161;
    pub const GET_FUNC_IP: u32 = 173;
    pub const GET_ATTACH_COOKIE: u32 = 174;
    pub const GET_FUNC_ARG: u32 = 183;
    pub const GET_FUNC_RET: u32 = 184;
    pub const GET_FUNC_ARG_CNT: u32 = 185;
    pub const GET_RETVAL: u32 = 186;
    pub const SET_RETVAL: u32 = 187;
    pub const IMA_FILE_HASH: u32 = 193;
}

use id::*;

/// What every program may call that implements an operation.
#[rustfmt::skip]
static OPERATIONS: &[u32] = &[
    1, 2, 3, 5, 6, 7, 8, 12, 14, 15, 16, 17, 22, 35, 37, 42, 55, 80, 87, 88, 89, 93, 94, 105, 106, 109, 112, 113, 114,
    115, 117, 118, 120, 123, 125, 130, 131, 132, 133, 134, 141, 148, 149, 153, 154, 156, 157, 158, 160, 164, 165, 169,
    170, 171, 172, 175, 176, 177, 180, 181, 182, 191, 194, 195, 197, 198, 199, 200, 201, 202, 203, 208, 209, 210, 211,
];

impl Env<'_> {
    /// True if the program is called by a trampoline, which keeps all arguments of the function.
    fn has_trampoline(&self) -> bool {
        matches!(
            (self.prog.prog_type, self.prog.attach_type),
            (ProgType::Tracing, Some(A::TraceFentry | A::TraceFexit | A::ModifyReturn))
                | (ProgType::Lsm, Some(A::LsmMac))
        )
    }

    /// Whether the program may call the helper, where what it hangs on decides that; `None` if the table does.
    pub fn hook_allows(&self, helper: u32) -> Option<bool> {
        let attach = self.prog.attach_type;
        let iter = attach == Some(A::TraceIter);
        match (self.prog.prog_type, helper) {
            (ProgType::StructOps, _) => Some(self.operation_allows(helper)),
            (ProgType::Tracing | ProgType::Lsm, GET_FUNC_ARG | GET_FUNC_RET | GET_FUNC_ARG_CNT) => {
                Some(self.has_trampoline())
            }
            (ProgType::Tracing, GET_ATTACH_COOKIE) => Some(self.has_trampoline() || attach == Some(A::TraceRawTp)),
            (ProgType::Lsm, GET_ATTACH_COOKIE) => Some(self.has_trampoline()),
            (ProgType::Tracing, SEQ_PRINTF | SEQ_WRITE | SEQ_PRINTF_BTF) => Some(iter),
            (ProgType::Lsm, SEQ_PRINTF | SEQ_WRITE | SEQ_PRINTF_BTF) => Some(false),
            (ProgType::Tracing, INODE_STORAGE_GET | INODE_STORAGE_DELETE) => Some(false),
            (ProgType::Tracing, SETSOCKOPT | GETSOCKOPT) => Some(iter && matches!(self.hook.name, "tcp" | "unix")),
            (ProgType::Lsm, SETSOCKOPT | GETSOCKOPT) => {
                Some(attach == Some(A::LsmCgroup) && facts::LSM_SOCKOPT.contains(&self.hook.name))
            }
            (ProgType::Lsm, GET_LOCAL_STORAGE | GET_RETVAL | SET_RETVAL) => Some(attach == Some(A::LsmCgroup)),
            _ => None,
        }
    }

    fn operation_allows(&self, helper: u32) -> bool {
        match self.hook.ops {
            Some("bpf_dummy_ops") | None => false,
            Some("tcp_congestion_ops") => match helper {
                // While the socket is released, its options are no longer for programs.
                SETSOCKOPT | GETSOCKOPT => self.hook.name != "release",
                SK_STORAGE_GET | SK_STORAGE_DELETE | TCP_SEND_ACK => true,
                _ => OPERATIONS.contains(&helper),
            },
            Some(_) => OPERATIONS.contains(&helper),
        }
    }

    /// Checks what some helpers ask of the place that calls them.
    pub fn check_helper_place(&self, h: &Helper) -> Check {
        let attach = self.prog.attach_type;
        let name = self.hook.name;
        let ok = match (self.prog.prog_type, h.id) {
            (ProgType::Tracing, D_PATH) => attach == Some(A::TraceIter) || facts::D_PATH.contains(&name),
            (ProgType::Lsm, D_PATH | IMA_INODE_HASH | IMA_FILE_HASH) => facts::LSM_SLEEPABLE.contains(&name),
            (ProgType::Tracing, SK_STORAGE_GET | SK_STORAGE_DELETE) => match attach {
                Some(A::TraceIter | A::TraceRawTp) => true,
                // The storage's own functions would call the program again.
                Some(A::TraceFentry | A::TraceFexit) => !name.starts_with("bpf_sk_storage"),
                _ => false,
            },
            (ProgType::Kprobe, GET_FUNC_IP) => true,
            (_, GET_FUNC_IP) => {
                if self.prog.prog_type == ProgType::Tracing && self.has_trampoline() {
                    return Ok(());
                }
                return Err(Failure::new(
                    Errno::ENOTSUPP,
                    Reason::HelperNotAllowed,
                    format!("bpf_{} does not work in programs of type {}", h.name, self.prog.prog_type),
                ));
            }
            _ => true,
        };
        if ok { Ok(()) } else { invalid!(HelperNotAllowed, "bpf_{} cannot be called from {name}", h.name) }
    }

    /// What the helper takes in this program.
    pub fn helper_args(&self, h: &Helper) -> &'static [Arg] {
        match (self.prog.prog_type, h.id) {
            // Hooks hand out sockets that are there.
            (ProgType::Lsm | ProgType::StructOps, SK_STORAGE_GET) => {
                &[Arg::MapPtr, Arg::BtfSock, Arg::MapValueOrNull, Arg::Anything]
            }
            (ProgType::Lsm | ProgType::StructOps, SK_STORAGE_DELETE) => &[Arg::MapPtr, Arg::BtfSock],
            (ty, _) => h.args_in(ty),
        }
    }
}
