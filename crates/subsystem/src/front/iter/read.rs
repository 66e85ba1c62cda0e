//! Reading an iterator: the program is called for one object after the other, and what it writes is handed out.
//!
//! A read ends when as much as was asked for is there, with what fitted into the text, or when there are no more objects;
//! then the program is called once more, without one. An object at which the program failed, or that wrote too much, is
//! tried again by the next read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType;
use skep_runtime::env::Seq;
use skep_runtime::{Machine, Scene};

use super::Target;
use crate::front::Subsystem;
use crate::front::client::Client;
use crate::front::ids::Ids;
use crate::front::link::LinkObject;
use crate::front::object::{MapObject, MapUser, ProgObject};
use crate::front::shape::Picture;

/// Bytes of the text.
const TEXT: usize = 8 * 4096;
/// Objects that one read looks at.
const MAX_OBJECTS: u32 = 1_000_000;

/// An iterator that is open.
#[derive(Debug)]
pub struct IterFile {
    target: Target,
    prog: Arc<ProgObject>,
    session: u64,
    state: Mutex<State>,
}

/// How far the reads got.
#[derive(Debug, Default)]
struct State {
    /// What was written, and which part of it is still to be handed out.
    text: Vec<u8>,
    from: usize,
    left: usize,
    cursor: Cursor,
    /// How many objects came before the present one.
    number: u64,
    /// The program was told of the end.
    ended: bool,
}

/// Where the present object is.
#[derive(Debug, Default)]
struct Cursor {
    /// Its number or index, or the bucket of its key.
    at: u32,
    /// How many keys of the bucket come before it.
    skip: usize,
    /// The keys of the bucket.
    keys: Option<Vec<Vec<u8>>>,
}

/// What the program is called for.
enum Item {
    Map(Arc<MapObject>),
    Prog(Arc<ProgObject>),
    Link(Arc<LinkObject>),
    Element(Vec<u8>),
}

/// The first object from this number on, which becomes the present one.
fn from_number<T>(ids: &Ids<T>, at: &mut u32) -> Option<Arc<T>> {
    loop {
        *at = match at.checked_sub(1) {
            Some(before) => ids.next(before)?,
            None => ids.next(0)?,
        };
        // It may just have gone.
        match ids.get(*at) {
            Some(object) => return Some(object),
            None => *at = at.checked_add(1)?,
        }
    }
}

impl Cursor {
    /// The present object, or the next one that there is.
    fn item(&mut self, subsystem: &Subsystem, target: &Target) -> Option<Item> {
        match target {
            Target::Maps => from_number(&subsystem.maps, &mut self.at).map(Item::Map),
            Target::Progs => from_number(&subsystem.progs, &mut self.at).map(Item::Prog),
            Target::Links => from_number(&subsystem.links, &mut self.at).map(Item::Link),
            Target::Elements(map) => self.element(map).map(Item::Element),
        }
    }

    fn element(&mut self, map: &MapUser) -> Option<Vec<u8>> {
        let def = map.map.def();
        if matches!(def.map_type, MapType::Array | MapType::PercpuArray) {
            return (self.at < def.max_entries).then(|| self.at.to_ne_bytes().to_vec());
        }
        loop {
            if self.keys.is_none() {
                self.keys = Some(map.map.bucket_keys(self.at)?);
            }
            if let Some(key) = self.keys.as_ref().and_then(|keys| keys.get(self.skip)) {
                return Some(key.clone());
            }
            *self = Cursor { at: self.at.checked_add(1)?, ..Cursor::default() };
        }
    }

    /// Goes past the present object.
    fn step(&mut self) {
        match self.keys {
            Some(_) => self.skip += 1,
            None => self.at = self.at.saturating_add(1),
        }
    }

    /// A new read looks at the bucket anew.
    fn refresh(&mut self) {
        self.keys = None;
    }
}

/// What calls the program.
struct Caller<'a, 'p> {
    subsystem: &'a Subsystem,
    file: &'a IterFile,
    machine: &'a mut Machine,
    picture: &'a mut Picture<'p>,
    seq: Seq,
}

impl Caller<'_, '_> {
    /// Calls the program for an object, or for the end.
    fn show(&mut self, item: Option<&Item>, number: u64) -> Result<(), Errno> {
        self.picture.clear();
        let mut ctx = [self.picture.meta(self.file.session, number), 0, 0, 0];
        // Holds what the program sees of a value that it must not change in place.
        let mut copy = Vec::new();
        match item {
            Some(Item::Map(map)) => ctx[1] = self.picture.map(map),
            Some(Item::Prog(prog)) => ctx[1] = self.picture.prog(prog),
            Some(Item::Link(link)) => ctx[1] = self.picture.link(link),
            Some(Item::Element(_)) | None => {}
        }
        if let Target::Elements(map) = &self.file.target {
            ctx[1] = self.picture.map(map);
            if let Some(Item::Element(key)) = item {
                // It may have been deleted since the bucket was looked at.
                let Some(value) = place(map, key, &mut copy) else { return Ok(()) };
                (ctx[2], ctx[3]) = (key.as_ptr() as u64, value as u64);
            }
        }
        let counts = self.subsystem.counts_runs();
        let start = counts.then(Instant::now);
        let mut scene = Scene { objects: self.picture.words(), seq: Some(&mut self.seq) };
        let index = self.file.prog.place.index();
        // SAFETY: the context is that of the iterator, as its prototype has it; its objects are in the picture, and key
        // and value are as large as the map says, which is no less than the program accesses.
        let run = unsafe { self.machine.run_with(index, ctx.as_mut_ptr().cast(), &mut scene) };
        if let Some(start) = start {
            self.file.prog.runs.add(1, u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        match run {
            Some(run) if run.over_budget => Err(Errno::EINTR),
            Some(run) if run.retval as u32 != 0 => Err(Errno::EAGAIN),
            _ => Ok(()),
        }
    }

    fn is_full(&self) -> bool {
        self.seq.is_full()
    }
}

/// Where the program finds a value: in the map itself, unless it is made of several or is not to be written.
fn place(map: &MapObject, key: &[u8], copy: &mut Vec<u8>) -> Option<*mut u8> {
    let per_cpu = matches!(map.map.def().map_type, MapType::PercpuArray | MapType::PercpuHash | MapType::LruPercpuHash);
    if !per_cpu && map.map.target_writable() {
        return map.map.place(key);
    }
    *copy = map.map.copy(key)?;
    Some(copy.as_mut_ptr())
}

impl IterFile {
    /// At its beginning.
    pub(super) fn new(target: Target, prog: Arc<ProgObject>, session: u64) -> IterFile {
        IterFile { target, prog, session, state: Mutex::default() }
    }

    pub(super) fn read(&self, subsystem: &Subsystem, client: &Client, to: u64, len: usize) -> Result<i32, Errno> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = Ok(());
        if state.left == 0 {
            outcome = self.fill(subsystem, &mut state, len);
        }
        let n = state.left.min(len);
        if n > 0 {
            let part = state.text.get(state.from..state.from + n).unwrap_or_default();
            client.memory.write(to, part)?;
            state.from += n;
            state.left -= n;
            return Ok(n as i32);
        }
        outcome.map(|()| 0)
    }

    /// Calls the program until there is as much text as is wanted.
    fn fill(&self, subsystem: &Subsystem, state: &mut State, wanted: usize) -> Result<(), Errno> {
        let shapes = subsystem.shapes().ok_or(Errno::EINVAL)?;
        state.text.resize(TEXT, 0);
        state.from = 0;
        let mut text = std::mem::take(&mut state.text);
        let mut picture = Picture::new(shapes);
        let done = subsystem.world().with_machine(|machine| {
            // SAFETY: the text is this call's own, and outlives it.
            let seq = unsafe { Seq::new(text.as_mut_ptr(), text.len()) };
            let mut caller = Caller { subsystem, file: self, machine, picture: &mut picture, seq };
            let outcome = self.walk(&mut caller, state, wanted);
            (outcome, caller.seq.len())
        });
        state.text = text;
        self.prog.feed();
        let (outcome, len) = done.ok_or(Errno::EBUSY)?;
        state.left = len;
        outcome
    }

    /// Objects from the present one on. An error counts only where there is no text before it.
    fn walk(&self, caller: &mut Caller<'_, '_>, state: &mut State, wanted: usize) -> Result<(), Errno> {
        let subsystem = caller.subsystem;
        state.cursor.refresh();
        let mut before = 0;
        let mut item = state.cursor.item(subsystem, &self.target);
        let mut first = true;
        let mut seen = 0u32;
        while let Some(present) = &item {
            if !first {
                state.number += 1;
                if caller.seq.len() >= wanted {
                    return Ok(());
                }
                if seen >= MAX_OBJECTS {
                    return if before == 0 { Err(Errno::EAGAIN) } else { Ok(()) };
                }
            }
            let shown = caller.show(Some(present), state.number);
            if shown.is_err() || caller.is_full() {
                caller.seq.truncate(before);
                return if before == 0 { Err(shown.err().unwrap_or(Errno::E2BIG)) } else { Ok(()) };
            }
            first = false;
            seen += 1;
            before = caller.seq.len();
            state.cursor.step();
            item = state.cursor.item(subsystem, &self.target);
        }
        if state.ended {
            return Ok(());
        }
        // What the program returns for the end does not count.
        let _ = caller.show(None, state.number);
        if !caller.is_full() {
            state.ended = true;
            return Ok(());
        }
        caller.seq.truncate(before);
        if before == 0 { Err(Errno::E2BIG) } else { Ok(()) }
    }
}
