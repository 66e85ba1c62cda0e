//! Programs on statically defined probes (USDT): where these are, and what the programs are told of their arguments.
//!
//! Such programs find their arguments by a map that their loader fills (`__bpf_usdt_specs` of libbpf's `usdt.bpf.h`): an
//! element per list of arguments, whose number is the cookie of the place. Its layout is taken from the object's own types.

use std::path::{Path, PathBuf};

use skep::ebpf::btf::{Btf, Composite, Kind};
use skep::elf::{Argument, Operand, Usdt, usdt_arguments, usdt_probes};
use skep::subsystem::place::{Place, What, When};
use skep::subsystem::session::Session;

use crate::Failure;
use crate::args::Trace;

/// The map that describes arguments.
const SPECS: &str = "__bpf_usdt_specs";

/// A place of a probe that a program goes to.
pub struct Site {
    pub place: Place,
    /// The number of its arguments' description.
    pub cookie: u64,
    /// Offset in the file of the counter of who listens.
    pub counter: Option<u64>,
}

/// The descriptions of arguments that are needed: by their number.
#[derive(Default)]
pub struct Specs(Vec<(String, Vec<Argument>)>);

impl Specs {
    fn number(&mut self, text: &str) -> Result<u64, String> {
        if let Some(known) = self.0.iter().position(|(t, _)| t == text) {
            return Ok(known as u64);
        }
        self.0.push((text.to_owned(), usdt_arguments(text)?));
        Ok(self.0.len() as u64 - 1)
    }

    /// The places of `PATH:PROVIDER:NAME`.
    pub fn sites(&mut self, spec: &str, args: &Trace) -> Result<Vec<Site>, Failure> {
        let mut parts = spec.rsplitn(3, ':');
        let (Some(name), Some(provider), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Failure::Input(format!("usdt/{spec}: expected PATH:PROVIDER:NAME")));
        };
        let file = find(path, args).ok_or_else(|| Failure::Input(format!("usdt/{spec}: no file {path}")))?;
        let failed = |problem: String| Failure::Input(format!("usdt/{spec}: {}: {problem}", file.display()));
        let bytes = std::fs::read(&file).map_err(|e| failed(e.to_string()))?;
        let all = usdt_probes(&bytes).map_err(failed)?;
        let found: Vec<&Usdt> = all.iter().filter(|p| p.provider == provider && p.name == name).collect();
        if found.is_empty() {
            let mut there: Vec<String> = all.iter().map(|p| format!("{}:{}", p.provider, p.name)).collect();
            there.sort();
            there.dedup();
            let there = if there.is_empty() { "none".into() } else { there.join(", ") };
            return Err(failed(format!("no probe {provider}:{name}; it has {there}")));
        }
        // The mapping is named by the file's real path.
        let module = if path.contains('/') { real(Path::new(path)) } else { path.to_owned() };
        let site = |p: &Usdt| {
            let (module, what) = (Some(module.clone()), What::FileOffset(p.offset));
            let cookie = self.number(&p.arguments).map_err(failed)?;
            Ok(Site { place: Place { when: When::Entry, module, what, offset: 0 }, cookie, counter: p.counter })
        };
        found.into_iter().map(site).collect()
    }

    /// Tells the programs of a session.
    pub fn fill(&self, session: &Session, btf: Option<&Btf>) -> Result<(), Failure> {
        let Some(map) = session.map(SPECS).filter(|_| !self.0.is_empty()) else { return Ok(()) };
        let failed = |problem: String| Failure::Input(format!("map {SPECS}: {problem}"));
        let def = map.def();
        let layout = btf.and_then(|btf| Layout::of(btf, def.value_type_id));
        let layout = layout.ok_or_else(|| failed("its values are not described as libbpf's are".into()))?;
        for (number, (text, arguments)) in self.0.iter().enumerate() {
            let mut value = vec![0; def.value_size as usize];
            layout.write(&mut value, arguments).map_err(|problem| failed(format!("`{text}`: {problem}")))?;
            let key = (number as u32).to_ne_bytes();
            map.update(&key, &value, 0)
                .map_err(|e| failed(format!("no room for {} kinds of places: {e}", self.0.len())))?;
        }
        Ok(())
    }
}

/// The path without symbolic links, as `/proc/PID/maps` has it.
fn real(path: &Path) -> String {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}

/// The file to read: the target's own view of a path, or a library or program by its name.
fn find(path: &str, args: &Trace) -> Option<PathBuf> {
    let there = |p: &PathBuf| p.is_file();
    if path.contains('/') {
        let inside = args.pid.first().map(|pid| PathBuf::from(format!("/proc/{pid}/root{path}")));
        return inside.filter(|_| path.starts_with('/')).into_iter().chain([PathBuf::from(path)]).find(there);
    }
    let mapped = args.pid.first().and_then(|pid| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
        let line = maps.lines().find(|line| line.rsplit('/').next() == Some(path) && line.contains('/'))?;
        Some(PathBuf::from(format!("/proc/{pid}/root{}", line.get(line.find('/')?..)?)))
    });
    let programs = std::env::var_os("PATH").unwrap_or_default();
    let libraries = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];
    let folders = libraries.map(PathBuf::from).into_iter().chain(std::env::split_paths(&programs));
    mapped.into_iter().chain(folders.map(|folder| folder.join(path))).find(there)
}

/// Where a description's parts are, in bits.
struct Layout<'a> {
    btf: &'a Btf,
    outer: &'a Composite,
    argument: &'a Composite,
    /// Where the list of arguments begins, how many fit, and bits of one.
    list: (u32, u32, u32),
}

impl<'a> Layout<'a> {
    fn of(btf: &'a Btf, id: u32) -> Option<Layout<'a>> {
        let composite = |id| btf.kind(btf.resolve(id)?)?.composite();
        let outer = composite(id)?;
        let args = outer.members.iter().find(|m| btf.str_at(m.name_off) == Some("args"))?;
        let &Kind::Array { elem, len, .. } = btf.kind(btf.resolve(args.ty)?)? else { return None };
        let argument = composite(elem)?;
        Some(Layout { btf, outer, argument, list: (args.bit_offset, len, argument.size * 8) })
    }

    /// Writes a member at `base` bits; an older layout may lack it, which is an error unless it is to be 0.
    fn put(&self, value: &mut [u8], of: &Composite, base: u32, name: &str, number: u64) -> Result<(), String> {
        let lacking = || if number == 0 { Ok(()) } else { Err(format!("the object's usdt.bpf.h has no `{name}`")) };
        let Some(m) = of.members.iter().find(|m| self.btf.str_at(m.name_off) == Some(name)) else { return lacking() };
        let bits = match m.bitfield_size {
            0 => self.btf.size_of(m.ty).unwrap_or(0) as u32 * 8,
            bits => u32::from(bits),
        };
        for bit in 0..bits.min(64) {
            let at = base + m.bit_offset + bit;
            if number >> bit & 1 != 0
                && let Some(byte) = value.get_mut(at as usize / 8)
            {
                *byte |= 1 << (at % 8);
            }
        }
        Ok(())
    }

    fn write(&self, value: &mut [u8], arguments: &[Argument]) -> Result<(), String> {
        let (base, room, bits) = self.list;
        if arguments.len() > room as usize {
            return Err(format!("{} arguments; the object's usdt.bpf.h has room for {room}", arguments.len()));
        }
        for (argument, base) in arguments.iter().zip((base..).step_by(bits as usize)) {
            let (kind, offset, register, index, scale) = match argument.operand {
                Operand::Constant(n) => (0, n, 0, 0, 0),
                Operand::Register(r) => (1, 0, r, 0, 0),
                Operand::Memory { base, index: None, offset } => (2, offset, base, 0, 0),
                Operand::Memory { base, index: Some((index, shift)), offset } => (3, offset, base, index, shift),
            };
            let index_known = self.argument.members.iter().any(|m| self.btf.str_at(m.name_off) == Some("idx_reg_off"));
            if kind == 3 && !index_known {
                return Err("an argument with an index register; the object's usdt.bpf.h is too old for that".into());
            }
            let mut put = |name, number| self.put(value, self.argument, base, name, number);
            put("val_off", offset.cast_unsigned())?;
            put("arg_type", kind)?;
            put("reg_off", register.into())?;
            put("idx_reg_off", index.into())?;
            put("scale_bitshift", scale.into())?;
            put("arg_signed", argument.signed.into())?;
            put("arg_bitshift", 64 - 8 * u64::from(argument.bytes))?;
        }
        self.put(value, self.outer, 0, "arg_cnt", arguments.len() as u64)
    }
}
