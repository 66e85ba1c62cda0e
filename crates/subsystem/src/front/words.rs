//! Words in the log of a load by which libbpf tells what a kernel can do. They are an interface: the messages around them
//! are for people.

use std::fmt::Write;

use skep_ebpf::helper::Helper;
use skep_ebpf::insn::Insn;
use skep_verifier::Rejection;

/// `call`, with the number of a helper.
const CALL: u8 = 0x85;

/// A line with the words that stand for a rejection, if there are any.
pub(super) fn of_rejection(rejection: &Rejection) -> &'static str {
    match rejection.reason {
        "unknown-helper" => "invalid func unknown\n",
        "helper-not-allowed" => "program of this type cannot use helper \n",
        "bad-map-reference" if rejection.message.starts_with("offset ") => "invalid access to map value pointer\n",
        _ => "",
    }
}

/// Lines for helpers that exist but cannot be run here. A loader that tries a helper with arguments that do not fit wants to
/// know that before anything else.
pub(super) fn of_helpers(insns: &[Insn]) -> String {
    let mut lines = String::new();
    let calls = insns.iter().filter(|i| i.code == CALL && i.src() == 0);
    for helper in calls.filter_map(|i| Helper::by_id(u32::try_from(i.imm).ok()?)) {
        if !skep_runtime::helpers::supported(helper.id) {
            let _ = writeln!(lines, "unknown func bpf_{}#{}: it cannot be run here", helper.name, helper.id);
        }
    }
    lines
}
