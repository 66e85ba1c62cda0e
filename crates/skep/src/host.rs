//! Hooks of an application, at which verified programs decide: plug-ins and policies that are replaced while it runs.
//!
//! ```
//! use skep::host::{Bytes, Context, Host, HostOptions, HookOptions, Loader, Proceed};
//!
//! #[derive(Context)]
//! #[repr(C)]
//! struct Request<'a> {
//!     path: Bytes<'a>,
//!     method: u32,
//!     #[context(write)]
//!     status: u32,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bpf/hooks/request.bpf.o");
//! let host = Host::new(HostOptions::default())?;
//! let options = HookOptions { returns: Some(0..=1), proceed: Proceed::After(vec![0]), ..HookOptions::default() };
//! let hook = host.hook::<Request>("request", options);
//!
//! let loader = Loader::new().hook(&hook);
//! let mut plugin = loader.load(&host.tenant(1 << 20), "request.bpf.o", &std::fs::read(object)?)?;
//! let _attached = hook.attach(&plugin.program("deny_admin")?, 10)?;
//!
//! let mut request = Request { path: "/admin/users".into(), method: 1, status: 0 };
//! assert_eq!(hook.call(&mut request)?.value, Some(1));
//! assert_eq!(request.status, 403);
//!
//! // While requests are served: a version that is not accepted changes nothing.
//! assert!(loader.reload(&mut plugin, "broken.bpf.o", b"not an object").is_err());
//! loader.reload(&mut plugin, "request.bpf.o", &std::fs::read(object)?)?;
//! # Ok(())
//! # }
//! ```
//!
//! A program says by its section which hook it is for: `SEC("hook/request")`. [`c_declaration`] writes the struct for it in C.

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use skep_derive::{Context, functions, ops};
pub use skep_subsystem::host::{
    Argument, Attachment, Busy, Bytes, BytesMut, Context, ContextDef, Field, FieldDef, FieldType, Function,
    FunctionDef, Functions, Hook, HookOptions, Host, HostError, HostFunctions, HostOptions, Memory, MemoryMut, Object,
    Op, OpError, OpResult, OpTable, OpTableBuilder, OverBudget, ParamType, Plugin, Proceed, Program, Registers,
    Registration, ReturnType, Returned, Tenant, Types, Verdict, c_declaration, c_functions,
};

use skep_ebpf::uapi::ProgType;
use skep_elf::{ElfError, LoadOptions};
use skep_verifier::{Explanation, HostContext, Options, Privilege, Rejection, Verified};

fn read(path: &Path) -> Result<(String, Vec<u8>), LoadError> {
    let bytes = std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    Ok((path.display().to_string(), bytes))
}

/// What the sections of programs for hooks begin with.
const SECTION: &str = "hook/";

/// Why an object file did not become a plug-in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no object, or cannot be linked with the hooks' types.
    #[error(transparent)]
    Object(#[from] ElfError),
    /// A program is for a hook that the loader does not know.
    #[error("program `{program}` is in section `{section}`; hooks here are: {known}")]
    UnknownHook {
        /// The program.
        program: String,
        /// Its section.
        section: String,
        /// The sections that would do.
        known: String,
    },
    /// A program calls a function that its hook does not have.
    #[error("program `{program}` calls `{function}`, which the hook `{hook}` does not have; it has: {known}")]
    NoFunction {
        /// The program.
        program: String,
        /// The function.
        function: String,
        /// The hook.
        hook: String,
        /// The functions that it has.
        known: String,
    },
    /// A program declares a function of its hook otherwise than it is.
    #[error("program `{program}` takes `{function}` for another one; for the hook `{hook}` it is: {declaration}")]
    FunctionType {
        /// The program.
        program: String,
        /// The function.
        function: String,
        /// The hook.
        hook: String,
        /// How it is declared in C.
        declaration: String,
    },
    /// A program is not safe.
    #[error("program `{program}`: {rejection}")]
    Rejected {
        /// The program.
        program: String,
        /// What the verifier says.
        rejection: Box<Rejection>,
        /// Why, with what led to it.
        explanation: Option<Box<Explanation>>,
    },
    /// It is safe, and cannot be loaded here.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A hook that programs can be for.
#[derive(Clone, Debug)]
struct Known {
    context: Arc<HostContext>,
    functions: Vec<FunctionDef>,
}

impl Known {
    /// What is wrong with a function that a program wants.
    fn explain(&self, program: &str, error: ElfError) -> LoadError {
        let ElfError::Extern { symbol, .. } = &error else { return error.into() };
        let (program, hook, function) = (program.to_owned(), self.context.hook.clone(), symbol.clone());
        match self.functions.iter().find(|f| f.name == symbol) {
            Some(def) => {
                let text = c_functions(std::slice::from_ref(def));
                let declaration = text.lines().last().unwrap_or_default().to_owned();
                LoadError::FunctionType { program, function, hook, declaration }
            }
            None => {
                let names: Vec<&str> = self.functions.iter().map(|f| f.name).collect();
                let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                LoadError::NoFunction { program, function, hook, known }
            }
        }
    }
}

/// Makes plug-ins of object files: knows the hooks that programs can be for, and judges programs by them.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    hooks: Vec<Known>,
    types: Types,
    privilege: Privilege,
}

impl Loader {
    /// One that knows no hooks.
    pub fn new() -> Loader {
        Loader::default()
    }

    /// Programs can be for this hook.
    #[must_use]
    pub fn hook<C: Context>(self, hook: &Hook<C>) -> Loader {
        self.hook_of(hook, &ContextDef::of::<C>())
    }

    /// As [`Loader::hook`], of a hook that was made by [`Host::hook_of`] for this context.
    #[must_use]
    pub fn hook_of<C>(mut self, hook: &Hook<C>, context: &ContextDef<'_>) -> Loader {
        // Several hooks may have contexts of one type.
        if !self.hooks.iter().any(|h| h.context.struct_name == context.name) {
            self.types.context(context);
        }
        self.hooks.push(Known { context: Arc::clone(hook.context()), functions: hook.functions().copied().collect() });
        self
    }

    /// What programs may do. Below [`Privilege::Full`] they cannot learn addresses, and are guarded against speculation.
    #[must_use]
    pub fn privilege(mut self, privilege: Privilege) -> Loader {
        self.privilege = privilege;
        self
    }

    /// Verifies all programs of an object file. `name` is for messages.
    pub fn verify(&self, name: &str, bytes: &[u8]) -> Result<Vec<Verified>, LoadError> {
        let object = skep_elf::Object::parse(name, bytes)?;
        let one = |info: &skep_elf::ProgramInfo| {
            let hook = info.section.strip_prefix(SECTION);
            let Some(known) = self.hooks.iter().find(|k| Some(k.context.hook.as_str()) == hook) else {
                let known: Vec<String> = self.hooks.iter().map(|k| format!("{SECTION}{}", k.context.hook)).collect();
                return Err(LoadError::UnknownHook {
                    program: info.name.clone(),
                    section: info.section.clone(),
                    known: known.join(", "),
                });
            };
            // Each hook has functions of its own.
            let mut types = self.types.clone();
            known.functions.iter().for_each(|f| types.function(f));
            let btf = types.to_btf().map_err(|source| ElfError::Btf { section: "types of hooks", source })?;
            let btf = Some(Arc::new(btf));
            let load = LoadOptions {
                btf: btf.clone(),
                all_types: true,
                prog_type: Some((ProgType::Unspec, None)),
                ..LoadOptions::default()
            };
            let program = object.program(&info.name, &load).map_err(|e| known.explain(&info.name, e))?;
            let options = Options {
                host: Some(Arc::clone(&known.context)),
                btf: btf.filter(|_| !known.functions.is_empty()),
                privilege: self.privilege,
                ..Options::default()
            };
            skep_verifier::verify(program.clone(), &options).map_err(|rejection| LoadError::Rejected {
                program: info.name.clone(),
                rejection,
                explanation: skep_verifier::explain(&program, &options).map(Box::new),
            })
        };
        object.programs().iter().map(one).collect()
    }

    /// Loads an object file as a plug-in.
    pub fn load(&self, tenant: &Tenant, name: &str, bytes: &[u8]) -> Result<Plugin, LoadError> {
        Ok(Plugin::load(tenant, self.verify(name, bytes)?)?)
    }

    /// Replaces a plug-in's programs by those of another object file; see [`Plugin::reload`]. If this fails the plug-in is as
    /// it was.
    pub fn reload(&self, plugin: &mut Plugin, name: &str, bytes: &[u8]) -> Result<(), LoadError> {
        Ok(plugin.reload(self.verify(name, bytes)?)?)
    }

    /// As [`Loader::load`], from a file.
    pub fn load_file(&self, tenant: &Tenant, path: impl AsRef<Path>) -> Result<Plugin, LoadError> {
        let (name, bytes) = read(path.as_ref())?;
        self.load(tenant, &name, &bytes)
    }

    /// As [`Loader::reload`], from a file.
    pub fn reload_file(&self, plugin: &mut Plugin, path: impl AsRef<Path>) -> Result<(), LoadError> {
        let (name, bytes) = read(path.as_ref())?;
        self.reload(plugin, &name, &bytes)
    }
}
