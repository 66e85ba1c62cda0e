//! The files of the virtual tracefs by their paths.

use skep_ebpf::Errno;

use super::event::{COMMON, Kind, TraceEvent};
use super::{TraceFs, args, line};
use crate::front::Subsystem;
use crate::front::perf::attr::kind;
use crate::front::probe::When;

const ROOTS: [&str; 2] = ["/sys/kernel/tracing/", "/sys/kernel/debug/tracing/"];
const PMUS: &str = "/sys/bus/event_source/devices/";

/// How a file is opened to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// `O_APPEND`, or without any flag.
    Append,
    /// `O_TRUNC`: what is there goes first.
    Truncate,
}

fn in_tracefs(path: &str) -> Option<&str> {
    ROOTS.iter().find_map(|root| path.strip_prefix(root))
}

fn probe_file(name: &str) -> Option<Kind> {
    match name {
        "kprobe_events" => Some(Kind::Kprobe),
        "uprobe_events" => Some(Kind::Uprobe),
        _ => None,
    }
}

/// What a PMU says of itself.
fn pmu(path: &str) -> Option<String> {
    let number = |n: u32| format!("{n}\n");
    Some(match path {
        "software/type" => number(kind::SOFTWARE),
        "tracepoint/type" => number(kind::TRACEPOINT),
        "kprobe/type" => number(kind::KPROBE),
        "uprobe/type" => number(kind::UPROBE),
        "kprobe/format/retprobe" | "uprobe/format/retprobe" => "config:0\n".into(),
        "uprobe/format/ref_ctr_offset" => "config:32-63\n".into(),
        _ => return None,
    })
}

/// The format file of an event.
fn format(event: &TraceEvent) -> String {
    let mut text = format!(
        "name: {}\nID: {}\nformat:\n\
         \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
         \tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n\
         \tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n\
         \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n",
        event.name, event.id
    );
    let probes = event.probes();
    let Some(probe) = probes.first() else {
        return text + &event.fields + "\nprint fmt: \"\"\n";
    };
    let word = |name: &str, at: usize| format!("\tfield:unsigned long {name};\toffset:{at};\tsize:8;\tsigned:0;\n");
    let (head, print, values) = match probe.point.when {
        When::Entry => (word("__probe_ip", COMMON), "(%lx)", "REC->__probe_ip"),
        When::Return => (
            word("__probe_func", COMMON) + &word("__probe_ret_ip", COMMON + 8),
            "(%lx <- %lx)",
            "REC->__probe_func, REC->__probe_ret_ip",
        ),
    };
    let at = if probe.point.when == When::Return { COMMON + 16 } else { COMMON + 8 };
    let (fields, more, more_values) = args::describe(&probe.args, at as u32);
    text += &format!("{head}{fields}\nprint fmt: \"{print}{more}\", {values}{more_values}\n");
    text
}

fn profile(fs: &TraceFs, wanted: Kind) -> String {
    let events = fs.events();
    let lines = events.iter().filter(|e| e.kind == wanted).map(|e| {
        let (hits, misses) = e.counts();
        match wanted {
            Kind::Kprobe => format!("  {:<44} {hits:>15} {misses:>15}\n", e.name),
            _ => {
                let path = e.probes().first().and_then(|p| match &p.point.what {
                    crate::front::probe::What::File { path, .. } => Some(path.clone()),
                    _ => None,
                });
                format!("  {} {:<44} {hits:>15}\n", path.unwrap_or_default(), e.name)
            }
        }
    });
    lines.collect()
}

fn read(fs: &TraceFs, path: &str) -> Option<String> {
    if let Some(kind) = probe_file(path) {
        let events = fs.events();
        let of_kind = events.iter().filter(|e| e.kind == kind);
        return Some(of_kind.flat_map(|e| e.probes().into_iter().map(|p| line(e, &p))).collect());
    }
    match path {
        "dynamic_events" => return Some(read(fs, "kprobe_events")? + &read(fs, "uprobe_events")?),
        "kprobe_profile" => return Some(profile(fs, Kind::Kprobe)),
        "uprobe_profile" => return Some(profile(fs, Kind::Uprobe)),
        "available_events" => {
            return Some(fs.events().iter().map(|e| format!("{}:{}\n", e.group, e.name)).collect());
        }
        _ => {}
    }
    let mut parts = path.strip_prefix("events/")?.split('/');
    let event = fs.by_name(parts.next()?, parts.next()?)?;
    match (parts.next()?, parts.next()) {
        ("id", None) => Some(format!("{}\n", event.id)),
        ("format", None) => Some(format(&event)),
        ("enable", None) => Some(if event.is_enabled() { "1\n" } else { "0\n" }.into()),
        ("filter", None) => Some("none\n".into()),
        _ => None,
    }
}

impl Subsystem {
    /// True if a path is of the virtual tree, which [`Subsystem::read_file`] answers for.
    pub(in crate::front) fn is_tracefs(&self, path: &str) -> bool {
        self.in_tracefs(path) || path.strip_prefix(PMUS).is_some_and(|p| pmu(p).is_some())
    }

    /// True if a path is below the tracefs, or the tracefs itself.
    pub(in crate::front) fn in_tracefs(&self, path: &str) -> bool {
        in_tracefs(path).is_some() || ROOTS.iter().any(|root| root.trim_end_matches('/') == path)
    }

    /// True if there is a folder.
    pub(in crate::front) fn is_tracefs_folder(&self, path: &str) -> bool {
        let Some(path) = in_tracefs(path) else { return self.in_tracefs(path) };
        let mut parts = path.split('/').filter(|p| !p.is_empty());
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("events"), None, ..) => true,
            (Some("events"), Some(group), None, _) => self.tracefs.events().iter().any(|e| e.group == group),
            (Some("events"), Some(group), Some(name), None) => self.tracefs.by_name(group, name).is_some(),
            _ => false,
        }
    }

    /// True for files that can be written.
    pub(in crate::front) fn may_write(&self, path: &str) -> bool {
        let Some(path) = in_tracefs(path) else { return false };
        probe_file(path).is_some() || path.ends_with("/enable") || path.ends_with("/filter")
    }

    /// The contents of a file of the virtual tree.
    pub fn read_file(&self, path: &str) -> Result<String, Errno> {
        let functions = || self.means.sites.functions().into_iter();
        let contents = match in_tracefs(path) {
            Some("available_filter_functions") => Some(functions().map(|(_, name)| name + "\n").collect()),
            Some("available_filter_functions_addrs") => {
                Some(functions().map(|(address, name)| format!("{address:016x} {name}\n")).collect())
            }
            Some(path) => read(&self.tracefs, path),
            None => path.strip_prefix(PMUS).and_then(pmu),
        };
        contents.ok_or(Errno::ENOENT)
    }

    /// `write(2)` to a file of the virtual tree.
    pub fn write_file(&self, path: &str, text: &str, open: Open) -> Result<(), Errno> {
        let path = in_tracefs(path).ok_or(Errno::EACCES)?;
        if let Some(kind) = probe_file(path) {
            if open == Open::Truncate {
                self.tracefs.clear(kind)?;
            }
            return self.tracefs.write(text, kind, &self.means);
        }
        let mut parts = path.strip_prefix("events/").ok_or(Errno::EACCES)?.split('/');
        let names = parts.next().zip(parts.next()).zip(parts.next());
        let Some(((group, name), file)) = names else { return Err(Errno::ENOENT) };
        let event = self.tracefs.by_name(group, name).ok_or(Errno::ENOENT)?;
        match (file, text.trim()) {
            ("enable", "0") => event.set_enabled(false),
            ("enable", "1") => event.set_enabled(true),
            ("enable", _) => Err(Errno::EINVAL),
            ("filter", "0" | "") => Ok(()),
            ("filter", _) => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::EACCES),
        }
    }
}
