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

use std::sync::Arc;

pub use skep_derive::Context;
pub use skep_subsystem::host::{
    Attachment, Busy, Bytes, BytesMut, Context, Field, FieldDef, FieldType, Hook, HookOptions, Host, HostError,
    HostOptions, OverBudget, Plugin, Proceed, Program, Tenant, Types, Verdict, c_declaration,
};

use skep_ebpf::uapi::ProgType;
use skep_elf::{ElfError, LoadOptions, Object};
use skep_verifier::{Explanation, HostContext, Options, Privilege, Rejection, Verified};

/// What the sections of programs for hooks begin with.
const SECTION: &str = "hook/";

/// Why an object file did not become a plug-in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
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

/// Makes plug-ins of object files: knows the hooks that programs can be for, and judges programs by them.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    contexts: Vec<Arc<HostContext>>,
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
    pub fn hook<C: Context>(mut self, hook: &Hook<C>) -> Loader {
        // Several hooks may have contexts of one type.
        if !self.contexts.iter().any(|c| c.struct_name == C::NAME) {
            self.types.of::<C>();
        }
        self.contexts.push(Arc::clone(hook.context()));
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
        let object = Object::parse(name, bytes)?;
        let btf = self.types.to_btf().map_err(|source| ElfError::Btf { section: "types of hooks", source })?;
        let load = LoadOptions {
            btf: Some(Arc::new(btf)),
            all_types: true,
            prog_type: Some((ProgType::Unspec, None)),
            ..LoadOptions::default()
        };
        let one = |info: &skep_elf::ProgramInfo| {
            let hook = info.section.strip_prefix(SECTION);
            let Some(context) = self.contexts.iter().find(|c| Some(c.hook.as_str()) == hook) else {
                let known: Vec<String> = self.contexts.iter().map(|c| format!("{SECTION}{}", c.hook)).collect();
                return Err(LoadError::UnknownHook {
                    program: info.name.clone(),
                    section: info.section.clone(),
                    known: known.join(", "),
                });
            };
            let program = object.program(&info.name, &load)?;
            let options = Options { host: Some(Arc::clone(context)), privilege: self.privilege, ..Options::default() };
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
}
