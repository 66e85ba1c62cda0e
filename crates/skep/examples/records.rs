//! A log on its way through filters, a program for each tenant, which can be replaced while lines go through.
//!
//! ```sh
//! cargo run --release -p skep --example records -- --made-up 1000000 acme=bpf/hooks/record_loud.bpf.o initech=bpf/hooks/record_sample.bpf.o
//! ```
//!
//! Lines are `TENANT TIME LEVEL TEXT`, read from standard input. What is kept goes to standard output, with the output that the
//! filter chose in front. A tenant without a filter keeps everything. When a tenant's file changes it is loaded again; one that is
//! refused is explained, and the filter before it stays.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use skep::host::{Attachment, Bytes, Context, Hook, HookOptions, Host, HostOptions, Loader, Plugin};

/// A line, as filters see it.
#[derive(Context)]
#[context(name = "record")]
#[repr(C)]
struct Record<'a> {
    text: Bytes<'a>,
    time: u64,
    level: u32,
    bytes: u32,
    #[context(write)]
    route: u32,
}

const DROP: i32 = 0;
const KEEP: i32 = 1;
/// Bytes that the maps and the code of one tenant may take.
const QUOTA: u64 = 4 << 20;
/// Lines that are filtered at a time.
const BATCH: usize = 8192;

/// A tenant's filter and the file it comes from.
struct Filter {
    path: PathBuf,
    seen: Option<SystemTime>,
    hook: Hook<Record<'static>>,
    loader: Loader,
    loaded: Option<(Plugin, Attachment)>,
    host: Host,
    kept: u64,
    dropped: u64,
}

impl Filter {
    fn new(host: &Host, path: PathBuf) -> Filter {
        let options = HookOptions { returns: Some(DROP..=KEEP), ..HookOptions::default() };
        let hook = host.hook("record", options);
        let loader = Loader::new().hook(&hook);
        Filter { path, seen: None, hook, loader, loaded: None, host: host.clone(), kept: 0, dropped: 0 }
    }

    /// Loads the file if it has changed. What is wrong with it is said once.
    fn refresh(&mut self) {
        let changed = fs::metadata(&self.path).and_then(|m| m.modified()).ok();
        if changed.is_none() || changed == self.seen {
            return;
        }
        self.seen = changed;
        if let Err(error) = self.load() {
            eprintln!("{}: not loaded: {error}", self.path.display());
        }
    }

    fn load(&mut self) -> Result<(), Box<dyn Error>> {
        let (name, bytes) = (self.path.to_string_lossy(), fs::read(&self.path)?);
        if let Some((plugin, _)) = &mut self.loaded {
            return Ok(self.loader.reload(plugin, &name, &bytes)?);
        }
        let plugin = self.loader.load(&self.host.tenant(QUOTA), &name, &bytes)?;
        let program = plugin.programs().next().ok_or("it has no program")?;
        let attached = self.hook.attach(&program, 0)?;
        self.loaded = Some((plugin, attached));
        Ok(())
    }
}

/// What becomes of a line: the output, if it is kept.
fn judge(hook: &Hook<Record<'static>>, line: &str) -> Result<Option<u32>, Box<dyn Error + Send + Sync>> {
    let mut fields = line.splitn(4, ' ').skip(1);
    let mut number = || fields.next().and_then(|word| word.parse::<u64>().ok()).ok_or("a line has no time or level");
    let (time, level) = (number()?, number()? as u32);
    let text = fields.next().unwrap_or_default();
    let mut record = Record { text: text.into(), time, level, bytes: line.len() as u32, route: 0 };
    let verdict = hook.call(&mut record)?;
    // A filter that spends its budget says nothing: the line stays.
    Ok((verdict.value != Some(DROP)).then_some(record.route))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut made_up = None;
    let mut files = BTreeMap::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.split_once('=') {
            Some((tenant, path)) => drop(files.insert(tenant.to_owned(), PathBuf::from(path))),
            None if arg == "--made-up" => {
                made_up = Some(args.next().ok_or("--made-up needs a number of lines")?.parse()?)
            }
            None => return Err(format!("not TENANT=OBJECT: {arg}").into()),
        }
    }
    let host = Host::new(HostOptions::default())?;
    let mut filters: BTreeMap<String, Filter> =
        files.into_iter().map(|(tenant, path)| (tenant, Filter::new(&host, path))).collect();

    let stdin = io::stdin();
    let mut lines: Box<dyn Iterator<Item = io::Result<String>>> = match made_up {
        Some(count) => Box::new((0..count).map(|n| Ok(made_up_line(n)))),
        None => Box::new(stdin.lock().lines()),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let workers = std::thread::available_parallelism()?.get();
    let (begin, mut all, mut calls) = (Instant::now(), 0u64, std::time::Duration::ZERO);
    loop {
        filters.values_mut().for_each(Filter::refresh);
        let batch = lines.by_ref().take(BATCH).collect::<io::Result<Vec<String>>>()?;
        if batch.is_empty() {
            break;
        }
        all += batch.len() as u64;
        let asked = Instant::now();
        let judged: Vec<Result<Option<u32>, _>> = std::thread::scope(|scope| {
            let parts = batch.chunks(batch.len().div_ceil(workers));
            let threads: Vec<_> = parts
                .map(|part| {
                    let filters = &filters;
                    scope.spawn(move || {
                        let hook =
                            |line: &str| filters.get(line.split(' ').next().unwrap_or_default()).map(|f| &f.hook);
                        let one = |line: &String| hook(line).map_or(Ok(Some(0)), |hook| judge(hook, line));
                        part.iter().map(one).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().expect("a filter does not panic")).collect()
        });
        calls += asked.elapsed();
        for (line, verdict) in batch.iter().zip(judged) {
            let kept = match verdict {
                Ok(kept) => kept,
                Err(error) => {
                    eprintln!("{error}: {line}");
                    continue;
                }
            };
            if let Some(filter) = filters.get_mut(line.split(' ').next().unwrap_or_default()) {
                *if kept.is_some() { &mut filter.kept } else { &mut filter.dropped } += 1;
            }
            if let Some(route) = kept {
                writeln!(out, "{route} {line}")?;
            }
        }
    }
    out.flush()?;
    for (tenant, filter) in &filters {
        eprintln!("{tenant}: {} kept, {} dropped", filter.kept, filter.dropped);
        let levels = filter.loaded.as_ref().and_then(|(plugin, _)| plugin.map("levels"));
        for level in 0..levels.map_or(0, |m| m.def().max_entries) {
            let count = levels
                .and_then(|m| m.copy(&level.to_ne_bytes()))
                .and_then(|v| Some(u64::from_ne_bytes(*v.first_chunk()?)));
            if let Some(count) = count.filter(|c| *c > 0) {
                eprintln!("  level {level}: {count}");
            }
        }
    }
    eprintln!("{all} lines in {:.2?}, {:.2?} of it in filters", begin.elapsed(), calls);
    Ok(())
}

fn made_up_line(n: u64) -> String {
    let tenant = ["acme", "initech", "hooli"][n as usize % 3];
    let text = if n.is_multiple_of(7) { "upstream timeout, retrying" } else { "request served" };
    format!("{tenant} {} {} {text} id={n}", 1_700_000_000 + n / 1000, n % 8)
}
