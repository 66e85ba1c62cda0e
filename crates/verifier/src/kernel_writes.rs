//! The members of kernel objects that programs may write.

use skep_ebpf::uapi::ProgType;

use crate::kernel_types::Types;

/// How an access must lie in the member.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// From its start.
    Start,
    /// Anywhere in it.
    Inside,
    /// Anywhere in it but for the last byte, which ends the text.
    Text,
}

/// One writable member.
struct Row {
    /// The struct whose operations the programs implement; empty for traffic control and XDP.
    ops: &'static str,
    /// The object.
    object: &'static str,
    /// A struct that the object begins with, which has the member.
    holder: &'static str,
    /// The member: names from the outside in. Empty for the whole object.
    member: &'static [&'static str],
    fit: Fit,
}

const fn row(
    ops: &'static str,
    object: &'static str,
    holder: &'static str,
    member: &'static [&'static str],
    fit: Fit,
) -> Row {
    Row { ops, object, holder, member, fit }
}

const fn tcp(holder: &'static str, member: &'static [&'static str], fit: Fit) -> Row {
    row("tcp_congestion_ops", "tcp_sock", holder, member, fit)
}

use Fit::{Inside, Start, Text};

static ROWS: &[Row] = &[
    row("", "nf_conn", "nf_conn", &["mark"], Start),
    row("", "nf_conn___init", "nf_conn", &["mark"], Start),
    tcp("sock", &["sk_pacing_rate"], Start),
    tcp("sock", &["sk_pacing_status"], Start),
    tcp("inet_connection_sock", &["icsk_ca_priv"], Inside),
    tcp("inet_connection_sock", &["icsk_ack", "pending"], Start),
    tcp("tcp_sock", &["snd_cwnd"], Start),
    tcp("tcp_sock", &["snd_cwnd_cnt"], Start),
    tcp("tcp_sock", &["snd_cwnd_stamp"], Start),
    tcp("tcp_sock", &["snd_ssthresh"], Start),
    tcp("tcp_sock", &["ecn_flags"], Start),
    tcp("tcp_sock", &["app_limited"], Start),
    row("bpf_dummy_ops", "bpf_dummy_ops_state", "bpf_dummy_ops_state", &[], Inside),
    row("bpf_testmod_st_ops", "st_ops_args", "st_ops_args", &[], Inside),
    row("hid_bpf_ops", "hid_bpf_ctx", "hid_bpf_ctx", &["retval"], Inside),
    row("hid_bpf_ops", "hid_device", "hid_device", &["name"], Text),
    row("hid_bpf_ops", "hid_device", "hid_device", &["uniq"], Text),
    row("hid_bpf_ops", "hid_device", "hid_device", &["phys"], Text),
    row("sched_ext_ops", "task_struct", "task_struct", &["scx", "slice"], Inside),
    row("sched_ext_ops", "task_struct", "task_struct", &["scx", "dsq_vtime"], Inside),
    row("sched_ext_ops", "task_struct", "task_struct", &["scx", "disallow"], Inside),
];

/// True if programs of this kind (`ops`: the struct of operations that they implement) may write `size` bytes at `off` of
/// an object of the type `id`.
pub(crate) fn permitted(prog: ProgType, ops: Option<&str>, types: Types<'_>, id: u32, off: u32, size: u32) -> bool {
    let ops = match prog {
        ProgType::SchedCls | ProgType::SchedAct | ProgType::Xdp => "",
        ProgType::StructOps => match ops {
            Some(ops) => ops,
            None => return false,
        },
        _ => return false,
    };
    let end = off.saturating_add(size);
    ROWS.iter().filter(|r| r.ops == ops && types.find_struct(r.object) == Some(id)).any(|r| {
        let Some((start, len)) = types.find_struct(r.holder).and_then(|h| types.member(h, r.member)) else {
            return false;
        };
        let last = start.saturating_add(len);
        match r.fit {
            Start => off == start && end <= last,
            Inside => off >= start && end <= last,
            Text => off >= start && end < last,
        }
    })
}
