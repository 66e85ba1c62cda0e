//! What a trace prints: one line per event, maps and a summary at the end.

use std::collections::{BTreeMap, BTreeSet};

use skep::ebpf::btf::Btf;
use skep::ebpf::btf::value::Value;
use skep::ebpf::syscall;
use skep::subsystem::attach::{Calls, Placed};
use skep::subsystem::clock::monotonic_ns;
use skep::subsystem::events::Event;
use skep::subsystem::sampling::Event as Sampled;
use skep::subsystem::session::{Counts, Link, Session};

use crate::json::{Field, Line};
use crate::out::{Out, OutError};
use crate::places::Places;
use crate::value::{self, Typed};
use crate::{maps, say};

/// Places that are named which are not watched.
const SHOWN: usize = 5;

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
    /// Counts at the last look, and whether it was told that they are not true.
    looked: Vec<(Counts, bool)>,
    /// How often a ring was found corrupt, by map; `None` is one of skep's own.
    corrupt: BTreeMap<Option<usize>, u64>,
    /// Maps that were found damaged.
    damaged: BTreeSet<usize>,
}

impl<'a> Report<'a> {
    pub fn new(json: bool, btf: Option<&'a Btf>, records: Vec<Option<u32>>) -> Report<'a> {
        Report {
            out: Out::stdout(),
            json,
            btf,
            records,
            only: None,
            places: Places::default(),
            reported: Vec::new(),
            looked: Vec::new(),
            corrupt: BTreeMap::new(),
            damaged: BTreeSet::new(),
        }
    }

    /// The object's types.
    pub fn btf(&self) -> Option<&'a Btf> {
        self.btf
    }

    /// A probe is in place.
    pub fn attached(&mut self, pid: u32, program: &str, placed: &Placed) -> Result<(), OutError> {
        let Placed { symbol, module, address, method, why_no_jump, calls } = placed;
        if let Some(calls) = calls {
            return self.attached_to_calls(pid, program, placed, calls);
        }
        if self.json {
            let mut line = place_line("attached", program, pid, symbol, module);
            line.push(("address", format!("{address:#x}").into()));
            line.push(("method", method.name().into()));
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

    /// A program is told of system calls.
    fn attached_to_calls(&mut self, pid: u32, program: &str, placed: &Placed, calls: &Calls) -> Result<(), OutError> {
        let Placed { symbol, module, method, .. } = placed;
        let (watched, all) = (u64::from(calls.watched), u64::from(calls.watched) + calls.unwatched.len() as u64);
        if self.json {
            let mut line = place_line("attached", program, pid, symbol, module);
            line.push(("places", watched.into()));
            line.push(("method", method.name().into()));
            self.out.json(&Line(line))?;
            for place in &calls.unwatched {
                let mut line = place_line("unwatched", program, pid, &place.symbol, &place.module);
                line.push(("reason", place.reason.as_str().into()));
                line.extend(place.number.map(|number| ("call", name(number).into())));
                self.out.json(&Line(line))?;
            }
            return Ok(());
        }
        let whose = if self.only.is_none() { format!(" of process {pid}") } else { String::new() };
        say(format_args!("attached {program} to {symbol} at {watched} of {all} places{whose}, in {module}"));
        let (known, unknown): (Vec<_>, Vec<_>) = calls.unwatched.iter().partition(|place| place.number.is_some());
        for place in known.iter().take(SHOWN) {
            let call = place.number.map_or_else(String::new, name);
            say(format_args!("note: {call} at {} in {} is not watched: {}", place.symbol, place.module, place.reason));
        }
        match known.len().saturating_sub(SHOWN) {
            0 => {}
            more => say(format_args!("note: nor are {more} others (--json names them)")),
        }
        if let Some(first) = unknown.first() {
            let (n, at, module, why) = (unknown.len(), &first.symbol, &first.module, &first.reason);
            say(format_args!("note: not watched: {n} of no fixed number, like that at {at} in {module}: {why}"));
        }
        Ok(())
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
                let times = self.corrupt.entry(map).or_default();
                *times += 1;
                if *times == 1 {
                    let name = ring_name(session, map);
                    say(format_args!("{name}: {error}; its contents were skipped: a traced process has written there"));
                }
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

    /// Tells, once for each, of maps that hold what no program writes, and of counters that cannot be true.
    pub fn damage(&mut self, session: &Session) {
        for (n, map) in session.maps().enumerate() {
            if let Some(damage) = map.filter(|_| !self.damaged.contains(&n)).and_then(|map| map.damage()) {
                let name = map_name(session, n);
                say(format_args!("{name}: corrupt map: {damage}: a traced process has written there"));
                self.damaged.insert(n);
            }
        }
        self.looked.resize(session.programs().len(), Default::default());
        for (i, (program, (before, told))) in session.programs().zip(&mut self.looked).enumerate() {
            let now = session.program_counts(i);
            if !*told && !may_follow(before, &now) {
                say(format_args!("counters of {} are not true: a traced process has written there", program.name()));
                *told = true;
            }
            *before = now;
        }
    }

    /// Tells how often rings were corrupt.
    pub fn corrupt(&self, session: &Session) {
        for (map, times) in self.corrupt.iter().filter(|(_, times)| **times > 1) {
            say(format_args!("{}: corrupt {times} times in all", ring_name(session, *map)));
        }
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

/// How lines about a program at a place begin.
fn place_line<'a>(
    kind: &'a str,
    program: &'a str,
    pid: u32,
    symbol: &'a str,
    module: &'a str,
) -> Vec<(&'static str, Field<'a>)> {
    vec![
        ("kind", kind.into()),
        ("time_ns", monotonic_ns().into()),
        ("program", program.into()),
        ("pid", pid.into()),
        ("symbol", symbol.into()),
        ("module", module.into()),
    ]
}

fn ring_name(session: &Session, map: Option<usize>) -> &str {
    map.map_or("a ring of skep's own", |m| map_name(session, m))
}

/// Can counters that were so be these within a minute? They only grow, and not by that much.
fn may_follow(before: &Counts, now: &Counts) -> bool {
    let all = |c: &Counts| [c.hits, c.missed, c.recursion_misses, c.no_slot, c.samples, c.lost, c.over_budget];
    all(before).into_iter().zip(all(now)).all(|(before, now)| now >= before && now - before < 1 << 42)
}

/// The name of a system call.
fn name(number: u32) -> String {
    syscall::numbered(number).map_or_else(|| format!("call {number}"), |call| call.name.to_owned())
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
