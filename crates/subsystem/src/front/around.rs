//! Functions of programs that another program has taken the place of, or that programs run around.
//!
//! Each function is entered through a cell (`skep_runtime::session`). What the cell leads to follows from what is attached:
//! the function itself, an extension's main function, or an image that runs programs before and behind one of these. A
//! change works out the cell's new value and stores it once; what stood there before goes when no run can be in it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use skep_ebpf::Errno;
use skep_jit::{Around, Engine, Place};
use skep_runtime::around::{CONTEXT, Caller, MAX_ARGS};
use skep_runtime::env::{EXTENSION_STACK, STACK_BYTES};
use skep_runtime::image::CODE_OFFSET;
use skep_runtime::session::Arguments;

use super::object::{MapObject, ProgObject};
use super::targets::NewLink;
use super::world::{CodePlace, World};
use crate::place::When;

/// Programs that can be attached to one function, as the kernel's trampolines have room for.
const MAX_PROGRAMS: usize = 38;
/// Frames that an extension may have.
const EXTENSION_FRAMES: u32 = 8;

/// How a program is attached to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It takes the function's place.
    Extension,
    /// It runs before it.
    Before,
    /// It runs behind it.
    Behind,
}

/// A program that runs around a function.
#[derive(Debug)]
struct Tracer {
    number: u64,
    prog: Arc<ProgObject>,
    cookie: u64,
    behind: bool,
    change: u64,
}

/// A program in a function's place.
#[derive(Debug)]
struct Extension {
    number: u64,
    prog: Arc<ProgObject>,
    change: u64,
}

/// What is attached to one function.
#[derive(Debug, Default)]
struct Function {
    /// The program that it is of; whoever is attached to it holds that.
    of: Weak<ProgObject>,
    extension: Option<Extension>,
    /// The newest first, which is their order.
    tracers: Vec<Tracer>,
    code: Option<CodePlace>,
}

/// A function by its program's number and its own index.
type Key = (u32, usize);

#[derive(Debug, Default)]
struct State {
    functions: HashMap<Key, Function>,
    /// The functions, with their programs, that an extension stands in the place of, by the extension's number.
    extended: HashMap<u32, Vec<(Arc<ProgObject>, usize)>>,
    numbers: u64,
    changes: u64,
    /// Runs of programs around functions are counted.
    counting: bool,
}

/// All functions that something is attached to.
pub struct Arounds {
    world: Arc<World>,
    engine: Engine,
    state: Mutex<State>,
    elsewhere: OnceLock<Weak<dyn RunsPrograms>>,
}

impl std::fmt::Debug for Arounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arounds").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// Who runs programs in processes, which have only maps that their programs named.
pub trait RunsPrograms: Send + Sync {
    /// A program that runs around one of this program's functions has come with maps of its own.
    fn maps_arrived(&self, prog: &Arc<ProgObject>);
}

/// A program attached to a function, until this goes.
#[derive(Debug)]
pub struct Attachment {
    arounds: Arc<Arounds>,
    number: u64,
    how: How,
    /// The program that the function is of.
    pub target: Arc<ProgObject>,
    /// The function's type in that program's types.
    pub type_id: u32,
    /// The function's index.
    function: usize,
    /// What the program gets as its cookie.
    pub cookie: u64,
}

impl Attachment {
    /// The program that is attached now.
    pub fn program(&self) -> Option<Arc<ProgObject>> {
        let state = self.arounds.lock();
        let function = state.functions.get(&self.key())?;
        let extension = function.extension.as_ref().filter(|e| e.number == self.number).map(|e| &e.prog);
        let tracer = || function.tracers.iter().find(|t| t.number == self.number).map(|t| &t.prog);
        extension.or_else(tracer).cloned()
    }

    fn key(&self) -> Key {
        (self.target.id.number(), self.function)
    }

    /// True if the program stands in the function's place.
    pub fn extends(&self) -> bool {
        self.how == How::Extension
    }

    /// Puts another extension in place of this one: calls that begin from now on go to it.
    pub fn replace(&self, prog: &Arc<ProgObject>) -> Result<(), Errno> {
        check_engines(prog, &self.target)?;
        let mut gone = Vec::new();
        let mut state = self.arounds.lock();
        let change = change_for(&mut state, self.arounds.elsewhere.get().is_some(), &self.target, prog);
        let key = self.key();
        let extension = state.functions.get_mut(&key).and_then(|f| f.extension.as_mut());
        let Some(extension) = extension.filter(|e| e.number == self.number) else { return Err(Errno::EINVAL) };
        let old = std::mem::replace(extension, Extension { number: self.number, prog: Arc::clone(prog), change });
        state.forget_extended(&old.prog, key);
        state.extended.entry(prog.id.number()).or_default().push((Arc::clone(&self.target), self.function));
        let done = self.arounds.lead(&mut state, &self.target, self.function, &mut gone);
        if done.is_err() {
            state.forget_extended(prog, key);
            state.extended.entry(old.prog.id.number()).or_default().push((Arc::clone(&self.target), self.function));
            if let Some(extension) = state.functions.get_mut(&key).and_then(|f| f.extension.as_mut()) {
                *extension = Extension { number: old.number, prog: Arc::clone(&old.prog), change: old.change };
            }
        }
        drop(state);
        // What goes may be a program, which has attachments of its own.
        drop((old, gone));
        done.map(|()| self.arounds.arrived(&self.target, change))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let gone = self.arounds.detach(self);
        drop(gone);
    }
}

/// What a change may leave behind, to be dropped without the lock.
#[derive(Default)]
struct Left {
    programs: Vec<Arc<ProgObject>>,
    code: Vec<CodePlace>,
}

impl State {
    fn forget_extended(&mut self, extension: &ProgObject, key: Key) {
        let number = extension.id.number();
        if let Some(all) = self.extended.get_mut(&number) {
            if let Some(at) = all.iter().position(|(p, n)| (p.id.number(), *n) == key) {
                // The program lives: the attachment that goes holds it.
                all.swap_remove(at);
            }
            if all.is_empty() {
                self.extended.remove(&number);
            }
        }
    }
}

/// The number of a change, if it brings maps that processes which run the target may not have.
fn change_for(state: &mut State, elsewhere: bool, target: &ProgObject, prog: &ProgObject) -> u64 {
    if !elsewhere {
        return 0;
    }
    let theirs = target.maps();
    let named = |maps: &[Arc<MapObject>], map: &Arc<MapObject>| maps.iter().any(|m| Arc::ptr_eq(m, map));
    let own = prog.maps();
    let all_there = own.iter().take(prog.named_maps).all(|m| named(&theirs[..target.named_maps.min(theirs.len())], m));
    if all_there {
        return 0;
    }
    state.changes += 1;
    state.changes
}

/// The code of a function itself: machine code, if that is asked for and there is any.
fn own_code(prog: &ProgObject, n: usize, engine: Engine) -> Way {
    let native = engine == Engine::Jit && prog.loaded.engine() == Engine::Jit;
    let second = !native && prog.loaded.engine() == Engine::Jit;
    let functions = if second { prog.loaded.bytecode_functions() } else { prog.loaded.functions() };
    let image = prog.place.image(engine);
    let at = image + functions.get(n).copied().map_or(CODE_OFFSET as u64, u64::from);
    let program = n == 0 && native && !prog.extends();
    Way { code: Place { at: if program { image + CODE_OFFSET as u64 } else { at }, program }, image }
}

/// Has a function's cell lead where calls are to go, in machine code and in bytecode.
fn put(prog: &ProgObject, n: usize, way: impl Fn(Engine) -> Way) {
    let bytecode = way(Engine::Interpreter);
    let code = if prog.loaded.engine() == Engine::Jit { way(Engine::Jit) } else { bytecode };
    match n {
        0 => prog.place.lead(n, code.image, bytecode.image),
        _ => prog.place.lead(n, code.code.at, bytecode.code.at),
    }
}

/// Machine code calls nothing that is only interpreted, and who follows pointers into objects is given none here: all that
/// they lead to would read as 0.
fn check_engines(prog: &ProgObject, target: &ProgObject) -> Result<(), Errno> {
    let mixed = target.loaded.engine() == Engine::Jit && prog.loaded.engine() == Engine::Interpreter;
    if mixed || !prog.loaded.is_idle() && prog.verified.rewritten().reads_guarded() {
        Err(Errno::EOPNOTSUPP)
    } else {
        Ok(())
    }
}

/// Where calls of a function lead now.
#[derive(Clone, Copy)]
struct Way {
    code: Place,
    /// The image, for what runs it as a program.
    image: u64,
}

impl Arounds {
    /// Nothing is attached yet.
    pub fn new(world: &Arc<World>, engine: Engine) -> Arounds {
        Arounds { world: Arc::clone(world), engine, state: Mutex::default(), elsewhere: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches a program to the function that a type of the target's names. `EBUSY` where an extension and others would
    /// meet, or where it is attached already.
    pub fn attach(
        self: &Arc<Self>,
        prog: &Arc<ProgObject>,
        target: &Arc<ProgObject>,
        type_id: u32,
        how: How,
        cookie: u64,
    ) -> Result<Attachment, Errno> {
        let function = target.verified.function_of_type(type_id).ok_or(Errno::EINVAL)?;
        if !target.place.can_replace(function) {
            return Err(Errno::EINVAL);
        }
        check_engines(prog, target)?;
        let mut gone = Left::default();
        let mut state = self.lock();
        let key = (target.id.number(), function);
        if let Some(there) = state.functions.get(&key) {
            let busy = there.extension.is_some() || how == How::Extension && !there.tracers.is_empty();
            if busy || there.tracers.iter().any(|t| Arc::ptr_eq(&t.prog, prog)) {
                return Err(Errno::EBUSY);
            }
            if there.tracers.len() >= MAX_PROGRAMS {
                return Err(Errno::E2BIG);
            }
        }
        if how == How::Extension {
            target.membership().extend()?;
        }
        let change = change_for(&mut state, self.elsewhere.get().is_some(), target, prog);
        state.numbers += 1;
        let number = state.numbers;
        let there = state.functions.entry(key).or_default();
        there.of = Arc::downgrade(target);
        match how {
            How::Extension => there.extension = Some(Extension { number, prog: Arc::clone(prog), change }),
            How::Before | How::Behind => {
                let behind = how == How::Behind;
                there.tracers.insert(0, Tracer { number, prog: Arc::clone(prog), cookie, behind, change });
            }
        }
        if how == How::Extension {
            state.extended.entry(prog.id.number()).or_default().push((Arc::clone(target), function));
        }
        // From here on dropping it takes everything back.
        let attachment = Attachment {
            arounds: Arc::clone(self),
            number,
            how,
            target: Arc::clone(target),
            type_id,
            function,
            cookie,
        };
        let done = self.lead(&mut state, target, function, &mut gone.code);
        drop(state);
        drop(gone);
        done.map(|()| {
            self.arrived(target, change);
            attachment
        })
    }

    fn detach(&self, attachment: &Attachment) -> Left {
        let mut left = Left::default();
        let mut state = self.lock();
        let key = attachment.key();
        let Some(there) = state.functions.get_mut(&key) else { return left };
        let mut extension = None;
        if there.extension.as_ref().is_some_and(|e| e.number == attachment.number) {
            extension = there.extension.take().map(|e| e.prog);
        }
        if let Some(at) = there.tracers.iter().position(|t| t.number == attachment.number) {
            left.programs.push(there.tracers.remove(at).prog);
        }
        if let Some(extension) = extension {
            state.forget_extended(&extension, key);
            attachment.target.membership().restore();
            left.programs.push(extension);
        }
        if self.lead(&mut state, &attachment.target, attachment.function, &mut left.code).is_err() {
            // Without memory for what is left around it, the function itself is better than what is gone.
            put(&attachment.target, attachment.function, |engine| {
                own_code(&attachment.target, attachment.function, engine)
            });
            left.code.extend(state.functions.get_mut(&key).and_then(|f| f.code.take()));
        }
        if state.functions.get(&key).is_some_and(|f| f.extension.is_none() && f.tracers.is_empty()) {
            state.functions.remove(&key);
        }
        left
    }

    /// Where calls of a function lead.
    fn way(&self, state: &State, prog: &ProgObject, n: usize, engine: Engine) -> Way {
        let own = own_code(prog, n, engine);
        let Some(there) = state.functions.get(&(prog.id.number(), n)) else { return own };
        match (&there.code, &there.extension) {
            (Some(code), _) => {
                let (image, at) = code.image_and_entry(engine);
                Way { code: Place { at, program: false }, image }
            }
            (None, Some(extension)) => self.way(state, &extension.prog, 0, engine),
            (None, None) => own,
        }
    }

    /// Has a function's cell lead where it is to lead; what led there before goes to `gone`.
    fn lead(
        &self,
        state: &mut State,
        prog: &Arc<ProgObject>,
        n: usize,
        gone: &mut Vec<CodePlace>,
    ) -> Result<(), Errno> {
        let key = (prog.id.number(), n);
        let code = match state.functions.get(&key) {
            Some(there) => self.code(state, there, prog, n)?,
            None => None,
        };
        if let Some(there) = state.functions.get_mut(&key) {
            gone.extend(std::mem::replace(&mut there.code, code));
        }
        put(prog, n, |engine| self.way(state, prog, n, engine));
        if n == 0 {
            // Wherever it stands in a function's place.
            for (target, function) in state.extended.get(&prog.id.number()).cloned().unwrap_or_default() {
                self.lead(state, &target, function, gone)?;
            }
        }
        Ok(())
    }

    /// Code for what cannot be entered as it is.
    fn code(
        &self,
        state: &State,
        there: &Function,
        prog: &Arc<ProgObject>,
        n: usize,
    ) -> Result<Option<CodePlace>, Errno> {
        let extension_change = there.extension.as_ref().map_or(0, |e| e.change);
        let change = { there.tracers.iter().map(|t| t.change) }.fold(extension_change, u64::max);
        if there.tracers.is_empty() && change == 0 {
            return Ok(None);
        }
        let body_head = there.extension.as_ref().map_or(prog, |e| &e.prog).loaded.head();
        let caller = |t: &Tracer| {
            let counted = if state.counting { self.counted(&t.prog)? + 1 } else { 0 };
            Ok(Caller { cookie: t.cookie, prog: t.prog.place.index(), counted })
        };
        let callers = |behind: bool| -> Result<Vec<Caller>, Errno> {
            there.tracers.iter().filter(|t| t.behind == behind).map(caller).collect()
        };
        let heads = || there.tracers.iter().map(|t| t.prog.loaded.head());
        let room = (heads().map(|h| h.stack).max().unwrap_or(0), heads().map(|h| h.frames).max().unwrap_or(0));
        let head = prog.loaded.head();
        let takes =
            (head.stack.max(body_head.stack).min(STACK_BYTES as u32), head.frames.max(body_head.frames), head.nmaps);
        let (before, behind) = (callers(false)?, callers(true)?);
        let mut what = Around {
            engine: Engine::Jit,
            main: n == 0,
            name: &prog.name,
            prog_type: prog.loaded.prog_type(),
            args: prog.verified.function_args(n).unwrap_or(MAX_ARGS as u8),
            ip: own_code(prog, n, Engine::Jit).code.at,
            change,
            before: &before,
            behind: &behind,
            body: Place { at: 0, program: false },
            otherwise: Place { at: 0, program: false },
            room,
            takes,
        };
        let lead = |what: &mut Around<'_>, engine: Engine| {
            what.engine = engine;
            what.otherwise = own_code(prog, n, engine).code;
            what.body = match &there.extension {
                Some(extension) => self.way(state, &extension.prog, 0, engine).code,
                None => what.otherwise,
            };
        };
        lead(&mut what, Engine::Jit);
        let native = (prog.loaded.engine() == Engine::Jit).then(|| what.clone());
        lead(&mut what, Engine::Interpreter);
        if !there.tracers.is_empty() {
            // The context is on the stack, and what the function needs below it.
            let body = (body_head.stack + EXTENSION_STACK as u32, body_head.frames + EXTENSION_FRAMES);
            what.room = (room.0.max(body.0) + CONTEXT as u32, room.1.max(body.1) + 1);
        }
        self.world.add_around(native.as_ref(), &what).map(Some)
    }

    /// The link that runs of a program around functions are counted for.
    fn counted(&self, prog: &ProgObject) -> Result<u32, Errno> {
        if let Some(place) = prog.counted.get() {
            return Ok(place.index());
        }
        let place = self.world.add_link(NewLink {
            prog: None,
            when: When::Entry,
            flags: 0,
            cookie: 0,
            arguments: Arguments::default(),
            call: None,
        })?;
        Ok(prog.counted.get_or_init(|| place).index())
    }

    /// Has runs of programs around functions counted while there are users of that, and else not.
    pub fn count(&self, users: &AtomicU64) -> Result<(), Errno> {
        let mut gone = Vec::new();
        let mut held = Vec::new();
        let mut state = self.lock();
        let wanted = users.load(Ordering::Relaxed) > 0;
        if state.counting == wanted {
            return Ok(());
        }
        state.counting = wanted;
        let traced = state.functions.iter().filter(|(_, there)| !there.tracers.is_empty());
        let traced: Vec<_> = traced.map(|((_, n), there)| (there.of.clone(), *n)).collect();
        let mut done = Ok(());
        for (of, n) in traced {
            if let Some(of) = of.upgrade() {
                done = done.and(self.lead(&mut state, &of, n, &mut gone));
                held.push(of);
            }
        }
        drop(state);
        drop((held, gone));
        done
    }

    /// Programs that came to a target with maps of their own: processes that run it get them now.
    fn arrived(&self, target: &Arc<ProgObject>, change: u64) {
        if change != 0
            && let Some(elsewhere) = self.elsewhere.get().and_then(Weak::upgrade)
        {
            elsewhere.maps_arrived(target);
        }
    }

    /// Who is to be told of changes that bring maps; the first one counts.
    pub fn tell(&self, who: Weak<dyn RunsPrograms>) {
        let _ = self.elsewhere.set(who);
    }

    /// What is attached to functions of a program, and to functions of that.
    pub fn programs_around(&self, prog: &ProgObject) -> Vec<Arc<ProgObject>> {
        let state = self.lock();
        let mut found: Vec<Arc<ProgObject>> = Vec::new();
        let mut look = vec![prog.id.number()];
        while let Some(number) = look.pop() {
            for (_, there) in state.functions.iter().filter(|((p, _), _)| *p == number) {
                let all = there.extension.iter().map(|e| &e.prog).chain(there.tracers.iter().map(|t| &t.prog));
                for prog in all {
                    if !found.iter().any(|p| Arc::ptr_eq(p, prog)) {
                        found.push(Arc::clone(prog));
                        look.push(prog.id.number());
                    }
                }
            }
        }
        found
    }

    /// The last change whose maps a process has that is attached to from now on.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }
}
