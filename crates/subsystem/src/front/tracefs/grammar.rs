//! The lines that make probe events: `p[:[GROUP/][EVENT]] PLACE [ARGUMENTS]`, `r…`, and `-:[GROUP/]EVENT`.

use skep_ebpf::Errno;

use super::args::{self, Argument, Side, is_identifier};
use super::event::Kind;
use super::number::unsigned;
use crate::front::perf::open::file_len;
use crate::front::probe::{Point, What, When};

/// Longest name of an event or group, with its end.
const MAX_NAME: usize = 64;
/// Most return probes that wait at a time, if a number is given.
const MAX_ACTIVE: u64 = 4096;

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A new event, or another place of one.
    Add(Box<Definition>),
    /// Events to be removed.
    Remove {
        /// The group; `None` for any.
        group: Option<String>,
        /// The name.
        name: String,
    },
}

/// A place of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The event's group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// The place.
    pub point: Point,
    /// What is fetched there.
    pub args: Vec<Argument>,
}

/// Reads a line that was written to the file of a kind of events.
pub fn parse(line: &str, kind: Kind) -> Result<Line, Errno> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let Some((head, rest)) = words.split_first() else { return Err(Errno::EINVAL) };
    if head.starts_with('-') {
        return remove(head, rest);
    }
    let mut when = match head.as_bytes().first() {
        Some(b'p') => When::Entry,
        Some(b'r') => When::Return,
        _ => return Err(Errno::EINVAL),
    };
    let Some((place, words)) = rest.split_first() else { return Err(Errno::EINVAL) };
    let (most, name) = match head[1..].split_once(':') {
        Some((most, name)) => (most, Some(name)),
        None => (&head[1..], None),
    };
    match kind {
        Kind::Uprobe if !most.is_empty() => return Err(Errno::EINVAL),
        Kind::Kprobe if most.starts_with(|c: char| c.is_ascii_digit()) => {
            let most = unsigned(most).filter(|n| (1..=MAX_ACTIVE).contains(n));
            if when == When::Entry || most.is_none() {
                return Err(Errno::EINVAL);
            }
        }
        _ => {}
    }
    let what = match kind {
        Kind::Uprobe => in_file(place, &mut when)?,
        _ => in_kernel(place, &mut when)?,
    };
    let (group, name) = match name {
        Some(name) => event_name(name)?,
        None => (None, None),
    };
    let name = name.unwrap_or_else(|| default_name(&what, when));
    let group = group.unwrap_or_else(|| if kind == Kind::Uprobe { "uprobes" } else { "kprobes" }.to_owned());
    if !is_identifier(&name) {
        return Err(Errno::EINVAL);
    }
    let side = Side {
        kernel: kind == Kind::Kprobe,
        ret: when == When::Return,
        entry: when == When::Entry && matches!(what, What::Symbol { offset: 0, .. }),
    };
    let args = args::parse(words, side)?;
    Ok(Line::Add(Box::new(Definition { group, name, point: Point { what, when, pid: None }, args })))
}

fn remove(head: &str, rest: &[&str]) -> Result<Line, Errno> {
    let name = head.strip_prefix("-:").ok_or(Errno::EINVAL)?;
    // Words behind it would have to be the place and the arguments of the one to remove.
    if !rest.is_empty() {
        return Err(Errno::ENOENT);
    }
    let (group, name) = event_name(name)?;
    Ok(Line::Remove { group, name: name.ok_or(Errno::EINVAL)? })
}

/// `[GROUP/][EVENT]`, or with a dot.
fn event_name(text: &str) -> Result<(Option<String>, Option<String>), Errno> {
    let split = text.split_once('/').or_else(|| text.split_once('.'));
    let (group, name) = match split {
        Some((group, name)) => {
            if group.is_empty() || group.len() + 1 > MAX_NAME || !is_group(group) {
                return Err(Errno::EINVAL);
            }
            (Some(group.to_owned()), name)
        }
        None => (None, text),
    };
    if name.is_empty() {
        return if group.is_some() { Ok((group, None)) } else { Err(Errno::EINVAL) };
    }
    if name.len() >= MAX_NAME || !is_identifier(name) {
        return Err(Errno::EINVAL);
    }
    Ok((group, Some(name.to_owned())))
}

/// Groups may have hyphens, too.
fn is_group(name: &str) -> bool {
    is_identifier(&name.replace('-', "_"))
}

fn default_name(what: &What, when: When) -> String {
    let letter = if when == When::Return { 'r' } else { 'p' };
    let name = match what {
        What::Symbol { module, name, offset } => {
            let module = module.as_deref().map_or(String::new(), |m| format!("{m}_"));
            format!("{letter}_{module}{name}_{offset}")
        }
        What::Address(address) => format!("{letter}_0x{address:x}"),
        What::File { path, offset, .. } => {
            let base = path.rsplit('/').next().unwrap_or(path);
            let stem = base.split(['.', '-', '_']).next().unwrap_or(base);
            format!("p_{stem}_0x{offset:x}")
        }
    };
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    name.chars().take(MAX_NAME - 1).collect()
}

/// `%return` behind a place.
fn suffix<'a>(place: &'a str, when: &mut When) -> Result<&'a str, Errno> {
    match place.split_once('%') {
        Some((place, "return")) => {
            *when = When::Return;
            Ok(place)
        }
        Some(_) => Err(Errno::EINVAL),
        None => Ok(place),
    }
}

/// `[MODULE:]SYMBOL[+OFFSET][%return]`, or an address.
fn in_kernel(place: &str, when: &mut When) -> Result<What, Errno> {
    if let Some(address) = unsigned(place) {
        return Ok(What::Address(address));
    }
    let place = suffix(place, when)?;
    let (symbol, offset) = match place.split_once('+') {
        Some((symbol, offset)) => (symbol, unsigned(offset).ok_or(Errno::EINVAL)?),
        // An offset must not lead out of the function at its start.
        None if place.contains('-') => return Err(Errno::EINVAL),
        None => (place, 0),
    };
    if offset > u64::from(u32::MAX) || symbol.is_empty() {
        return Err(Errno::EINVAL);
    }
    let (module, name) = match symbol.split_once(':') {
        Some((module, name)) => (Some(module.to_owned()), name.to_owned()),
        None => (None, symbol.to_owned()),
    };
    Ok(What::Symbol { module, name, offset })
}

/// `PATH:OFFSET[(COUNTER)][%return]`.
fn in_file(place: &str, when: &mut When) -> Result<What, Errno> {
    let (path, rest) = place.rsplit_once(':').ok_or(Errno::EINVAL)?;
    if !place.contains('/') || !rest.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Errno::EINVAL);
    }
    file_len(path)?.ok_or(Errno::EINVAL)?;
    let (rest, counter) = match rest.split_once('(') {
        Some((offset, counter)) => {
            let counter = counter.strip_suffix(')').and_then(unsigned).ok_or(Errno::EINVAL)?;
            (offset, counter)
        }
        None => (rest, 0),
    };
    let offset = unsigned(suffix(rest, when)?).ok_or(Errno::EINVAL)?;
    Ok(What::File { path: path.to_owned(), offset, counter })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(line: &str) -> Result<String, Errno> {
        parse(line, Kind::Kprobe).map(|l| match l {
            Line::Add(d) => format!("{}/{} {:?} {}", d.group, d.name, d.point.when, d.args.len()),
            Line::Remove { group, name } => format!("-{}/{name}", group.unwrap_or_default()),
        })
    }

    #[test]
    fn lines() {
        for (line, expected) in [
            ("p:kprobes/ev1 malloc regs=%di:x64 n=+112(%di):s32", "kprobes/ev1 Entry 2"),
            ("p malloc+16", "kprobes/p_malloc_16 Entry 0"),
            ("r:g/ malloc $retval", "g/r_malloc_0 Return 1"),
            ("r10:x malloc", "kprobes/x Return 0"),
            ("p:x malloc%return r=$retval", "kprobes/x Return 1"),
            ("p:x 0x1000 $stack3 $comm \\5", "kprobes/x Entry 3"),
            ("p:x m a=+0(+8(%si)):string b=b4@2/32:u", "error"),
            ("p:x m b=+0(%di):b4@2/32 c=+0(%di):u8[4]", "kprobes/x Entry 2"),
            ("-:kprobes/ev1", "-kprobes/ev1"),
            ("-:ev1", "-/ev1"),
        ] {
            let found = name(line).unwrap_or("error".into());
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn wrong_lines() {
        for line in [
            "",
            "p",
            "x:y malloc",
            "p:1x malloc",
            "p:a/b/c malloc",
            "p: malloc",
            "p:/x malloc",
            "p10:x malloc",
            "r0:x malloc",
            "r5000:x malloc",
            "p:x malloc+z",
            "p:x malloc%foo",
            "p:x malloc $retval",
            "p:x malloc %zz",
            "p:x malloc a=%di a=%si",
            "p:x malloc common_pid=%di",
            "p:x malloc 1a=%di",
            "p:x malloc a=%di:foo",
            "p:x malloc a=+0(%di",
            "p:x malloc a=+z(%di)",
            "p:x malloc a=%di:string",
            "p:x malloc a=",
            "p:x malloc a=+0($comm)",
            "p:x malloc a=%di:u8[0]",
            "p:x malloc a=+0(%di):u8[65]",
            "-x",
            "- x",
        ] {
            assert!(name(line).is_err(), "{line}: {:?}", name(line));
        }
    }
}
