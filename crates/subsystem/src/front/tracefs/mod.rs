//! A virtual tracefs: files by which probe events are made and found, and those that tell of the kprobe and uprobe PMUs.
//!
//! A transport gives an untouched loader these files' contents where it would open them.

pub mod args;
pub mod event;
mod grammar;
mod number;
mod tree;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_ebpf::Errno;

use super::Subsystem;
use super::probe::{Missing, What, When};
pub use tree::Open;

use event::{Kind, Means, TraceEvent};
use grammar::{Definition, Line};

/// The first number that is given out.
const FIRST_ID: u32 = 32;
const LAST_ID: u32 = 65535;

/// A tracepoint as its owner describes it: how it is named, and the fields of its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracepointDef {
    /// Its group (`sched`).
    pub group: String,
    /// Its name (`sched_switch`), which is that of its raw tracepoint, too.
    pub name: String,
    /// Fields, in their order: C type and name, offset in the record, size, and whether it is signed. The first eight
    /// bytes of a record are not theirs.
    pub fields: Vec<FieldDef>,
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldDef {
    /// C type and name: `int fd`.
    pub declaration: String,
    /// Where it is in the record.
    pub offset: u32,
    /// Its bytes.
    pub size: u32,
    /// A signed number?
    pub signed: bool,
}

/// All trace events.
#[derive(Debug, Default)]
pub struct TraceFs(Mutex<Vec<Arc<TraceEvent>>>);

impl TraceFs {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<TraceEvent>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event of a number.
    pub fn by_id(&self, id: u64) -> Option<Arc<TraceEvent>> {
        self.lock().iter().find(|e| u64::from(e.id) == id).cloned()
    }

    /// The event of a name.
    pub fn by_name(&self, group: &str, name: &str) -> Option<Arc<TraceEvent>> {
        self.lock().iter().find(|e| e.group == group && e.name == name).cloned()
    }

    /// All events.
    pub fn events(&self) -> Vec<Arc<TraceEvent>> {
        self.lock().clone()
    }

    /// The lowest number that no event has.
    fn free_id(events: &[Arc<TraceEvent>]) -> Result<u32, Errno> {
        (FIRST_ID..=LAST_ID).find(|id| events.iter().all(|e| e.id != *id)).ok_or(Errno::ENOMEM)
    }

    /// Publishes a tracepoint.
    pub fn publish(&self, def: &TracepointDef, means: &Means) -> Result<Arc<TraceEvent>, Errno> {
        let mut events = self.lock();
        if events.iter().any(|e| e.group == def.group && e.name == def.name) {
            return Err(Errno::EEXIST);
        }
        let mut event = TraceEvent::new(Self::free_id(&events)?, &def.group, &def.name, Kind::Tracepoint, means);
        for f in &def.fields {
            event.fields += &format!(
                "\tfield:{};\toffset:{};\tsize:{};\tsigned:{};\n",
                f.declaration,
                f.offset,
                f.size,
                u8::from(f.signed)
            );
        }
        let end = def.fields.iter().map(|f| f.offset.saturating_add(f.size)).max().unwrap_or(0);
        event.record_size = (end as usize).max(event::COMMON);
        let event = Arc::new(event);
        events.push(Arc::clone(&event));
        Ok(event)
    }

    /// Takes a tracepoint back. `EBUSY` while somebody uses it.
    pub fn withdraw(&self, event: &Arc<TraceEvent>) -> Result<(), Errno> {
        let mut events = self.lock();
        if event.is_used() {
            return Err(Errno::EBUSY);
        }
        events.retain(|e| !Arc::ptr_eq(e, event));
        Ok(())
    }

    /// What was written to the file of a kind of events: lines, each of which makes or removes one.
    fn write(&self, text: &str, kind: Kind, means: &Means) -> Result<(), Errno> {
        for line in text.split('\n') {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            match grammar::parse(line, kind)? {
                Line::Add(definition) => self.add(*definition, kind, means)?,
                Line::Remove { group, name } => {
                    self.remove(kind, |e| e.name == name && group.as_ref().is_none_or(|g| *g == e.group))?
                }
            }
        }
        Ok(())
    }

    fn add(&self, definition: Definition, kind: Kind, means: &Means) -> Result<(), Errno> {
        let Definition { group, name, point, args } = definition;
        let address = match kind {
            Kind::Kprobe => means.sites.find(&point).map_err(|missing| match missing {
                Missing::InsideInstruction => Errno::EILSEQ,
                _ => Errno::EINVAL,
            })?,
            // Nobody need have mapped the file yet.
            _ => super::probe::Found { address: 0 },
        }
        .address;
        let mut events = self.lock();
        if let What::File { path, offset, counter } = &point.what {
            // A place has one counter, or none.
            let other = |what: &What| matches!(what, What::File { path: p, offset: o, counter: c } if p == path && o == offset && c != counter);
            if counter % 2 != 0 || events.iter().any(|e| e.probes().iter().any(|p| other(&p.point.what))) {
                return Err(Errno::EINVAL);
            }
        }
        if let Some(event) = events.iter().find(|e| e.group == group && e.name == name).cloned() {
            let probes = event.probes();
            let alike = event.kind == kind
                && event.is_return() == (point.when == When::Return)
                && probes
                    .first()
                    .is_some_and(|p| p.args.len() == args.len() && p.args.iter().zip(&args).all(|(a, b)| a.is_like(b)));
            // The same place with the same arguments would be counted twice.
            let there =
                probes.iter().any(|p| p.point == point && p.args.iter().zip(&args).all(|(a, b)| a.text == b.text));
            return if alike && !there { event.add_probe(point, address, args) } else { Err(Errno::EEXIST) };
        }
        let event = Arc::new(TraceEvent::new(Self::free_id(&events)?, &group, &name, kind, means));
        event.add_probe(point, address, args)?;
        events.push(event);
        Ok(())
    }

    fn remove(&self, kind: Kind, which: impl Fn(&TraceEvent) -> bool) -> Result<(), Errno> {
        let mut events = self.lock();
        let found: Vec<_> = events.iter().filter(|e| e.kind == kind && which(e)).cloned().collect();
        if found.is_empty() {
            return Err(Errno::ENOENT);
        }
        if found.iter().any(|e| e.is_used()) {
            return Err(Errno::EBUSY);
        }
        events.retain(|e| !found.iter().any(|f| Arc::ptr_eq(e, f)));
        Ok(())
    }

    /// Removes all events of a kind, as opening their file to be written anew does.
    fn clear(&self, kind: Kind) -> Result<(), Errno> {
        match self.remove(kind, |_| true) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }
}

/// A line that would make the probe again.
fn line(event: &TraceEvent, probe: &event::Probe) -> String {
    let letter = if probe.point.when == When::Return { 'r' } else { 'p' };
    let place = match &probe.point.what {
        What::Symbol { module, name, offset } => {
            let module = module.as_deref().map_or(String::new(), |m| format!("{m}:"));
            if *offset == 0 { format!("{module}{name}") } else { format!("{module}{name}+{offset}") }
        }
        What::Address(address) => format!("0x{address:x}"),
        What::File { path, offset, counter: 0 } => format!("{path}:0x{offset:016x}"),
        What::File { path, offset, counter } => format!("{path}:0x{offset:016x}(0x{counter:x})"),
    };
    let args: String = probe.args.iter().map(|a| format!(" {}={}", a.name, a.text)).collect();
    format!("{letter}:{}/{} {place}{args}\n", event.group, event.name)
}

impl Subsystem {
    /// The trace events.
    pub fn tracefs(&self) -> &TraceFs {
        &self.tracefs
    }
}
