//! What a trace prints: one line per event, maps and a summary at the end.

use skep::ebpf::btf::Btf;
use skep::ebpf::btf::value::Value;
use skep::subsystem::attach::Placed;
use skep::subsystem::clock::monotonic_ns;
use skep::subsystem::events::Event;
use skep::subsystem::sampling::Event as Sampled;
use skep::subsystem::session::{Counts, Link, Session};

use crate::json::{Field, Line};
use crate::out::{Out, OutError};
use crate::places::Places;
use crate::value::{self, Typed};
use crate::{maps, say};

/// How a traced process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Its exit status, if it is known.
    pub status: Option<i32>,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
}

/// Prints a trace.
pub struct Report<'a> {
    pub out: Out,
    json: bool,
    btf: Option<&'a Btf>,
    /// Record type of each map.
    records: Vec<Option<u32>>,
    /// The traced process, if there is only one.
    pub only: Option<u32>,
    /// Its code, when it was last looked at, or all processes'.
    pub places: Places,
    reported: Vec<Counts>,
}

impl<'a> Report<'a> {
    pub fn new(json: bool, btf: Option<&'a Btf>, records: Vec<Option<u32>>) -> Report<'a> {
        Report { out: Out::stdout(), json, btf, records, only: None, places: Places::default(), reported: Vec::new() }
    }

    /// The object's types.
    pub fn btf(&self) -> Option<&'a Btf> {
        self.btf
    }

    /// A probe is in place.
    pub fn attached(&mut self, pid: u32, program: &str, placed: &Placed) -> Result<(), OutError> {
        let Placed { symbol, module, address, method, why_no_jump } = placed;
        if self.json {
            let mut line = vec![
                ("kind", "attached".into()),
                ("time_ns", monotonic_ns().into()),
                ("program", program.into()),
                ("pid", pid.into()),
                ("symbol", symbol.as_str().into()),
                ("module", module.as_str().into()),
                ("address", format!("{address:#x}").into()),
                ("method", method.name().into()),
            ];
            line.extend(why_no_jump.as_ref().map(|why| ("why_no_jump", why.as_str().into())));
            self.out.json(&Line(line))
        } else {
            let whose = if self.only.is_none() { format!(" of process {pid}") } else { String::new() };
            let why = why_no_jump.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            let how = method.name();
            say(format_args!("attached {program} to {symbol} in {module} at {address:#x}{whose} ({how}{why})"));
            Ok(())
        }
    }

    /// A program runs on samples of a process.
    pub fn sampled(&mut self, program: &str, pid: u32, event: Sampled) -> Result<(), OutError> {
        if !self.json {
            say(format_args!("{program} runs on samples of process {pid}: {event}"));
            return Ok(());
        }
        self.out.json(&Line(vec![
            ("kind", "attached".into()),
            ("time_ns", monotonic_ns().into()),
            ("program", program.into()),
            ("pid", pid.into()),
            ("event", event.to_string().into()),
            ("method", "sample".into()),
        ]))
    }

    fn read(&self, map: usize, data: &[u8]) -> Value {
        let ty = self.records.get(map).copied().flatten();
        value::read(self.btf.and_then(|btf| Some(Typed { btf, id: ty? })), data)
    }

    /// Something a program told.
    pub fn event(&mut self, session: &Session, event: &Event<'_>) -> Result<(), OutError> {
        let program = |link: Option<Link>| Some(session.program_at(link?.program())?.name());
        match *event {
            Event::Sample { link, record: r } => {
                let mut more = vec![
                    ("slot", Field::from(r.slot)),
                    ("ip", format!("{:#x}", r.ip).into()),
                    ("retval", (r.retval as u32).into()),
                ];
                if r.func != 0 {
                    more.push(("func", format!("{:#x}", r.func).into()));
                }
                self.line("sample", r.time_ns, program(link), (Some(r.pid), Some(r.tid)), more)
            }
            Event::Printk { link, record: r, text } => {
                let text = String::from_utf8_lossy(text.strip_suffix(b"\n").unwrap_or(text));
                let more = vec![("text", Field::from(&*text))];
                self.line("printk", r.time_ns, program(link), (Some(r.pid), Some(r.tid)), more)
            }
            Event::Ring { map, data } => {
                let value = self.read(map, data);
                // A ring buffer's record names no thread; its own members may.
                let ids = (member(&value, "pid").or(self.only), member(&value, "tid"));
                self.record("ringbuf", monotonic_ns(), session, map, ids, &value)
            }
            Event::Perf { map, pid, tid, time_ns, data, .. } => {
                let value = self.read(map, data);
                self.record("perf_output", time_ns, session, map, (Some(pid), Some(tid)), &value)
            }
            Event::Lost { map, count } => {
                let name = map_name(session, map);
                if self.json {
                    self.out.json(&Line(vec![
                        ("kind", "missed".into()),
                        ("time_ns", monotonic_ns().into()),
                        ("map", name.into()),
                        ("lost", count.into()),
                    ]))
                } else {
                    self.out.line(format_args!("{name}: {count} records lost: no room in the ring"))
                }
            }
            Event::Corrupt { map, error } => {
                let name = map.map_or("a ring of skep's own", |m| map_name(session, m));
                say(format_args!("{name}: {error}; its contents were skipped"));
                Ok(())
            }
        }
    }

    fn record(
        &mut self,
        kind: &str,
        time_ns: u64,
        session: &Session,
        map: usize,
        ids: (Option<u32>, Option<u32>),
        value: &Value,
    ) -> Result<(), OutError> {
        let mut writers = session.writers(map);
        let program = writers.next().filter(|_| writers.next().is_none());
        if !self.json {
            return self.out.line(value::text_in(value, &self.places));
        }
        let more = vec![("map", Field::from(map_name(session, map))), ("data", value.into())];
        self.line(kind, time_ns, program, ids, more)
    }

    fn line(
        &mut self,
        kind: &str,
        time_ns: u64,
        program: Option<&str>,
        (pid, tid): (Option<u32>, Option<u32>),
        more: Vec<(&str, Field<'_>)>,
    ) -> Result<(), OutError> {
        if self.json {
            let head = [
                ("kind", kind.into()),
                ("time_ns", time_ns.into()),
                ("program", program.into()),
                ("pid", pid.into()),
                ("tid", tid.into()),
            ];
            return self.out.json(&Line(head.into_iter().chain(more).collect()));
        }
        let mut text = format!("{}.{:06}", time_ns / 1_000_000_000, time_ns % 1_000_000_000 / 1000);
        for id in [pid, tid].into_iter().flatten() {
            text += &format!(" {id}");
        }
        text += &format!(" {}", program.unwrap_or("?"));
        for (name, value) in &more {
            match value {
                // What a target printed must not reach the terminal as it is.
                Field::Text(s) => text += &format!(": {}", s.escape_debug()),
                Field::Owned(s) => text += &format!(" {name}={s}"),
                Field::Number(n) => text += &format!(" {name}={n}"),
                _ => {}
            }
        }
        self.out.line(text)
    }

    /// Reports misses that are new.
    pub fn misses(&mut self, session: &Session) -> Result<(), OutError> {
        self.reported.resize(session.programs().len(), Counts::default());
        for (i, program) in session.programs().enumerate() {
            let now = session.program_counts(i);
            let bad = |c: &Counts| [c.missed, c.recursion_misses, c.no_slot, c.lost, c.over_budget];
            if self.reported.get(i).is_some_and(|before| bad(before) == bad(&now)) {
                continue;
            }
            self.reported[i] = now;
            if self.json {
                self.out.json(&Line(vec![
                    ("kind", "missed".into()),
                    ("time_ns", monotonic_ns().into()),
                    ("program", program.name().into()),
                    ("missed", now.missed.into()),
                    ("recursion_misses", now.recursion_misses.into()),
                    ("no_slot", now.no_slot.into()),
                    ("lost", now.lost.into()),
                    ("over_budget", now.over_budget.into()),
                ]))?;
            }
        }
        Ok(())
    }

    /// The contents of all maps.
    pub fn maps(&mut self, session: &Session) -> Result<(), OutError> {
        let time_ns = monotonic_ns();
        for map in session.maps().flatten() {
            match self.json {
                true => maps::print_json(&mut self.out, map, self.btf, time_ns)?,
                false => maps::print_text(&mut self.out, map, self.btf, &self.places)?,
            }
        }
        Ok(())
    }

    /// The counters of all programs, and how the process ended; of `processes` if it was not the only one.
    pub fn summary(&mut self, session: &Session, ending: Option<Ending>, processes: usize) -> Result<(), OutError> {
        let time_ns = monotonic_ns();
        if !self.json {
            say(format_args!(
                "{:24} {:>12} {:>8} {:>9} {:>8} {:>10} {:>8}",
                "program", "hits", "missed", "recursion", "no slot", "samples", "lost"
            ));
        }
        for (i, program) in session.programs().enumerate() {
            let c = session.program_counts(i);
            if self.json {
                let mut line = vec![
                    ("kind", Field::from("summary")),
                    ("time_ns", time_ns.into()),
                    ("program", program.name().into()),
                    ("hits", c.hits.into()),
                    ("missed", c.missed.into()),
                    ("recursion_misses", c.recursion_misses.into()),
                    ("no_slot", c.no_slot.into()),
                    ("samples", c.samples.into()),
                    ("lost", c.lost.into()),
                    ("over_budget", c.over_budget.into()),
                ];
                if let Some(ending) = ending {
                    line.push(("exit_status", ending.status.into()));
                    line.extend(ending.signal.map(|n| ("signal", n.into())));
                }
                if self.only.is_none() {
                    line.push(("processes", (processes as u64).into()));
                }
                self.out.json(&Line(line))?;
            } else {
                say(format_args!(
                    "{:24} {:>12} {:>8} {:>9} {:>8} {:>10} {:>8}",
                    program.name(),
                    c.hits,
                    c.missed,
                    c.recursion_misses,
                    c.no_slot,
                    c.samples,
                    c.lost
                ));
                if c.over_budget > 0 {
                    say(format_args!("{}: {} runs were ended by the run-time budget", program.name(), c.over_budget));
                }
            }
        }
        Ok(())
    }
}

fn map_name(session: &Session, map: usize) -> &str {
    session.maps().nth(map).flatten().map_or("?", |m| m.def().name.as_str())
}

/// A member of a struct that is a 32-bit number.
fn member(value: &Value, name: &str) -> Option<u32> {
    let Value::Struct(members) = value else { return None };
    let (_, found) = members.iter().find(|(n, _)| n == name)?;
    value::number(found).and_then(|n| u32::try_from(n).ok())
}
