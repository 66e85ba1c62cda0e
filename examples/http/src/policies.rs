//! The chain of plug-ins: objects in a folder, `PRIORITY-NAME.bpf.o`, that come and go while requests are served.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use skep::host::{
    Attachment, Busy, Bytes, Context, Hook, HookOptions, Host, HostOptions, Loader, Plugin, Proceed, Verdict,
};

/// A request, as policies see it.
#[derive(Context)]
#[context(name = "http_request")]
#[repr(C)]
pub struct HttpRequest<'a> {
    /// Path and query.
    pub path: Bytes<'a>,
    /// The header of that name; empty without one.
    pub user_agent: Bytes<'a>,
    /// A number for the client's address.
    pub client: u64,
    /// 1 GET, 2 HEAD, 3 POST, 0 any other.
    pub method: u32,
    /// What to answer, if a policy answers.
    #[context(write)]
    pub status: u32,
    /// Seconds after which the client may come back; 0 to say nothing of it.
    #[context(write)]
    pub retry_after: u32,
}

const PASS: i32 = 0;
const ANSWER: i32 = 1;
/// Bytes that maps and code of one plug-in may take.
const QUOTA: u64 = 32 << 20;

/// The hook that each request goes through.
pub type Policy = Hook<HttpRequest<'static>>;

struct Loaded {
    /// What was there when it was looked at; it is looked at again when this changes.
    seen: Option<SystemTime>,
    plugin: Option<(Plugin, Attachment)>,
}

/// The plug-ins of a folder.
pub struct Policies {
    folder: PathBuf,
    host: Host,
    hook: Policy,
    loader: Loader,
    loaded: BTreeMap<OsString, Loaded>,
}

impl Policies {
    /// Those of a folder; none is loaded yet.
    pub fn new(folder: &Path) -> Result<Policies, Box<dyn Error + Send + Sync>> {
        let host = Host::new(HostOptions::default())?;
        let options =
            HookOptions { returns: Some(PASS..=ANSWER), proceed: Proceed::After(vec![PASS]), ..HookOptions::default() };
        let hook: Policy = host.hook("request", options);
        let loader = Loader::new().hook(&hook);
        Ok(Policies { folder: folder.to_owned(), host, hook, loader, loaded: BTreeMap::new() })
    }

    /// The hook.
    pub fn hook(&self) -> Policy {
        self.hook.clone()
    }

    /// Loads what is new, replaces what has changed, takes out what is gone. What is said of it: a line each.
    ///
    /// A version that is refused changes nothing: the one before it stays.
    pub fn refresh(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        let mut there = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().ends_with(b".bpf.o") {
                there.insert(entry.file_name(), entry.metadata().and_then(|m| m.modified()).ok());
            }
        }
        self.loaded.retain(|name, loaded| {
            let stays = there.contains_key(name);
            if !stays && loaded.plugin.is_some() {
                said.push(format!("{}: out", name.display()));
            }
            stays
        });
        for (name, modified) in there {
            let loaded = self.loaded.entry(name.clone()).or_insert(Loaded { seen: None, plugin: None });
            if modified.is_some() && loaded.seen == modified {
                continue;
            }
            loaded.seen = modified;
            let text = name.display().to_string();
            let done = load(&self.folder.join(&name), &text, &self.loader, &self.host, &self.hook, &mut loaded.plugin);
            said.push(match done {
                Ok(what) => format!("{text}: {what}"),
                Err(error) => format!("{text}: refused: {error}"),
            });
        }
        said
    }
}

fn load(
    path: &Path,
    name: &str,
    loader: &Loader,
    host: &Host,
    hook: &Policy,
    loaded: &mut Option<(Plugin, Attachment)>,
) -> Result<&'static str, Box<dyn Error + Send + Sync>> {
    let bytes = fs::read(path)?;
    if let Some((plugin, _)) = loaded {
        loader.reload(plugin, name, &bytes)?;
        return Ok("replaced");
    }
    let priority = name.split('-').next().and_then(|n| n.parse().ok()).ok_or("it is not called PRIORITY-NAME.bpf.o")?;
    let plugin = loader.load(&host.tenant(QUOTA), name, &bytes)?;
    let program = plugin.programs().next().ok_or("it has no program")?;
    let attached = hook.attach(&program, priority)?;
    *loaded = Some((plugin, attached));
    Ok("in")
}

/// What the policies say of a request: the status to answer with, if one of them answers.
pub fn ask(hook: &Policy, request: &mut HttpRequest<'_>) -> Result<Option<u16>, Busy> {
    let Verdict { value, .. } = hook.call(request)?;
    Ok((value == Some(ANSWER)).then_some(request.status as u16))
}
