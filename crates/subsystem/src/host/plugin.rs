//! Plug-ins: the programs and maps of one object, which can be replaced by those of another.

use std::collections::HashMap;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;
use skep_jit::MapIndices;
use skep_maps::control::{Map, Options as MapOptions, is_hollow, layout_with};
use skep_runtime::image::Image;
use skep_verifier::{HostContext, Verified};

use super::hook::LEAST_BUDGET;
use super::{Host, HostError, Tenant, no_room};
use crate::front::account::Charge;
use crate::front::object::{MapUser, ProgObject};
use crate::loaded::Loaded;

/// A program of a plug-in, to be attached to a hook. After a reload it is the new object's program of that name.
#[derive(Clone, Debug)]
pub struct Program(Arc<ProgramCell>);

impl Program {
    pub(super) fn cell(&self) -> &Arc<ProgramCell> {
        &self.0
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The hook that it is for.
    pub fn hook(&self) -> &str {
        &self.0.context.hook
    }

    /// Runs that spent their budget.
    pub fn over_budget(&self) -> u64 {
        self.0.over_budget.load(Ordering::Relaxed)
    }
}

/// Where the code of a program stands, whichever it is just now.
#[derive(Debug)]
pub(super) struct ProgramCell {
    host: Host,
    name: String,
    context: Arc<HostContext>,
    /// Its code. Runs look at it on their slot; code that is replaced is retired.
    image: AtomicPtr<Image>,
    code: Mutex<Box<Code>>,
    over_budget: AtomicU64,
    /// The hooks that it is attached to, as often as it is.
    attached: Mutex<Vec<String>>,
}

/// Code of a program, with what it holds.
#[derive(Debug)]
pub(super) struct Code {
    program: Arc<ProgObject>,
    #[expect(dead_code, reason = "held, not looked at")]
    charge: Charge,
}

impl Code {
    fn image(&self, host: &Host) -> *mut Image {
        host.subsystem().world().image(&self.program.place).cast_mut()
    }
}

impl ProgramCell {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    pub(super) fn context(&self) -> &Arc<HostContext> {
        &self.context
    }

    /// To be run on a slot of the host, and there only. Never null.
    #[inline]
    pub(super) fn image(&self) -> *const Image {
        self.image.load(Ordering::Acquire)
    }

    fn replace(&self, code: Code) {
        let mut current = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        self.image.store(code.image(&self.host), Ordering::SeqCst);
        let old = std::mem::replace(&mut *current, Box::new(code));
        self.host.subsystem().world().retire_value(old);
    }

    pub(super) fn count_over_budget(&self) {
        self.over_budget.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn attached(&self, hook: &str) {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).push(hook.to_owned());
    }

    pub(super) fn detached(&self, hook: &str) {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = attached.iter().position(|h| h == hook) {
            attached.swap_remove(at);
        }
    }

    fn some_hook(&self) -> Option<String> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }
}

/// A map of a plug-in, and what its tenant is charged for it.
#[derive(Clone, Debug)]
struct PluginMap {
    user: MapUser,
    #[expect(dead_code, reason = "held, not looked at")]
    charge: Arc<Charge>,
}

/// The programs and maps of one object, loaded for a tenant. Its programs run where they are attached for as long as
/// their [`Attachment`](super::Attachment)s live.
#[derive(Debug)]
pub struct Plugin {
    tenant: Tenant,
    programs: Vec<Arc<ProgramCell>>,
    maps: HashMap<String, PluginMap>,
}

/// What a load has made, before anything is changed by it.
struct Loading {
    maps: HashMap<String, PluginMap>,
    codes: Vec<(String, Arc<HostContext>, Code)>,
}

impl Plugin {
    /// Loads the programs of one object, with the maps that they use.
    pub fn load(tenant: &Tenant, programs: Vec<Verified>) -> Result<Plugin, HostError> {
        let loading = make(tenant, programs, &HashMap::new())?;
        let programs = loading.codes.into_iter().map(|(name, context, code)| cell(tenant, name, context, code));
        Ok(Plugin { tenant: tenant.clone(), programs: programs.collect(), maps: loading.maps })
    }

    /// Replaces the programs by those of another object, wherever they are attached; each at one instant. Maps that are
    /// defined alike in both, by name, type, sizes and flags, stay as they are. If this fails nothing has changed.
    ///
    /// Calls of a hook that begin after this has returned run the new code.
    pub fn reload(&mut self, programs: Vec<Verified>) -> Result<(), HostError> {
        let loading = make(&self.tenant, programs, &self.maps)?;
        for cell in &self.programs {
            let new = loading.codes.iter().find(|(name, ..)| *name == cell.name);
            match (new, cell.some_hook()) {
                (None, Some(hook)) => return Err(HostError::StillAttached { program: cell.name.clone(), hook }),
                (Some((name, context, _)), Some(hook)) if *context != cell.context => {
                    return Err(HostError::OtherHook { program: name.clone(), its: context.hook.clone(), hook });
                }
                _ => {}
            }
        }
        let mut old = std::mem::take(&mut self.programs);
        for (name, context, code) in loading.codes {
            let same = old.iter().position(|c| c.name == name && c.context == context);
            let cell = match same {
                Some(at) => {
                    let cell = old.swap_remove(at);
                    cell.replace(code);
                    cell
                }
                None => cell(&self.tenant, name, context, code),
            };
            self.programs.push(cell);
        }
        self.maps = loading.maps;
        Ok(())
    }

    /// Its programs.
    pub fn programs(&self) -> impl Iterator<Item = Program> {
        self.programs.iter().map(|c| Program(Arc::clone(c)))
    }

    /// A program by its name.
    pub fn program(&self, name: &str) -> Result<Program, HostError> {
        let found = self.programs().find(|p| p.name() == name);
        found.ok_or_else(|| HostError::NoSuchProgram { program: name.to_owned() })
    }

    /// A map by its name.
    pub fn map(&self, name: &str) -> Option<&Map> {
        self.maps.get(name).map(|m| &m.user.object().map)
    }

    /// Who is charged for it.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }
}

fn cell(tenant: &Tenant, name: String, context: Arc<HostContext>, code: Code) -> Arc<ProgramCell> {
    Arc::new(ProgramCell {
        host: tenant.host.clone(),
        name,
        context,
        image: AtomicPtr::new(code.image(&tenant.host)),
        code: Mutex::new(Box::new(code)),
        over_budget: AtomicU64::new(0),
        attached: Mutex::default(),
    })
}

fn charge(tenant: &Tenant, what: &str, bytes: u64) -> Result<Charge, HostError> {
    let charge = tenant.host.0.accounts.charge(tenant.number, bytes, tenant.quota);
    charge.map_err(|_| HostError::Quota { what: what.to_owned(), bytes, quota: tenant.quota })
}

/// Compiles programs and makes their maps; those in `kept` that are defined alike are used again.
fn make(tenant: &Tenant, programs: Vec<Verified>, kept: &HashMap<String, PluginMap>) -> Result<Loading, HostError> {
    let first = programs.first().ok_or(HostError::NoPrograms)?.program();
    let defs = Arc::clone(&first.maps);
    if let Some(other) = programs.iter().map(Verified::program).find(|p| p.maps != defs) {
        return Err(HostError::OtherObject { program: other.name.clone(), first: first.name.clone() });
    }
    let subsystem = tenant.host.subsystem();
    let mut maps = HashMap::new();
    let mut held = Vec::new();
    let mut indices = vec![u32::MAX; defs.len()];
    for (n, def) in defs.iter().enumerate() {
        if !programs.iter().any(|p| p.maps().contains(&(n as u32))) {
            continue;
        }
        // Where its values have a lock, the types of the object say.
        let types = programs.first().and_then(|p| Some((p.program().btf.as_deref()?, p.kernel_types())));
        let lock = types.and_then(|(btf, kernel)| skep_verifier::spin_lock_of(def, btf, kernel));
        let map = match kept.get(&def.name).filter(|m| alike(&m.user.object().map, def, lock)) {
            Some(map) => map.clone(),
            None => make_map(tenant, def, lock)?,
        };
        if let Some(index) = indices.get_mut(n) {
            *index = map.user.object().place.index();
        }
        held.push(Arc::clone(map.user.object()));
        maps.insert(def.name.clone(), map);
    }
    let options = skep_jit::Options {
        engine: tenant.host.0.options.engine,
        maps: MapIndices::Each(indices.into()),
        budget: true,
        time: true,
        uncounted: LEAST_BUDGET as u32,
        harden: tenant.host.0.options.harden,
        ..skep_jit::Options::default()
    };
    let mut codes = Vec::with_capacity(programs.len());
    for verified in programs {
        let name = verified.program().name.clone();
        let Some(context) = verified.host().cloned() else { return Err(HostError::NoHook { program: name }) };
        let loaded = Loaded::new(&verified, &options)?;
        let what = format!("program `{name}`");
        let charge = charge(tenant, &what, loaded.image().len() as u64)?;
        let program = subsystem.take_program(verified, loaded, held.clone()).map_err(no_room(&what))?;
        codes.push((name, context, Code { program, charge }));
    }
    Ok(Loading { maps, codes })
}

/// True if a map can go on as the other one. All that the verifier relied on is compared; numbers of types are each object's own.
fn alike(map: &Map, def: &MapDef, spin_lock: Option<u32>) -> bool {
    let old = map.def();
    let types = |d: &MapDef| MapDef { key_type_id: old.key_type_id, value_type_id: old.value_type_id, ..d.clone() };
    // A perf event array without a size got one.
    let entries = if def.max_entries == 0 { old.max_entries } else { def.max_entries };
    MapDef { max_entries: entries, ..types(def) } == *old && map.header().spin_lock() == spin_lock.map(|at| at as usize)
}

fn make_map(tenant: &Tenant, def: &MapDef, spin_lock: Option<u32>) -> Result<PluginMap, HostError> {
    let refused = || HostError::MapType { map: def.name.clone(), kind: def.map_type.to_string() };
    let nested = matches!(def.map_type, MapType::ProgArray | MapType::ArrayOfMaps | MapType::HashOfMaps);
    if nested || is_hollow(def.map_type) {
        return Err(refused());
    }
    let host = &tenant.host;
    let slots = host.subsystem().slots();
    let options = MapOptions { perf_ring_bytes: host.0.options.perf_ring_bytes, spin_lock, ..MapOptions::default() };
    let mut def = def.clone();
    if def.map_type == MapType::PerfEventArray && def.max_entries == 0 {
        def.max_entries = slots;
    }
    let what = format!("map `{}`", def.name);
    let charge = charge(tenant, &what, layout_with(&def, slots, options)?.data_size)?;
    let map = Map::create_with(&def, slots, options)?;
    if def.map_type == MapType::PerfEventArray {
        map.set_all_perf_events().map_err(no_room(&what))?;
    }
    let user = host.subsystem().take_map(map).map_err(no_room(&what))?;
    Ok(PluginMap { user, charge: Arc::new(charge) })
}
