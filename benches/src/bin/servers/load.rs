//! Clients: how they are started for some seconds, and what they say.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How a client's report is read: requests per second, or what went wrong.
pub type Report = fn(&str) -> Result<f64, String>;

/// A client at work.
pub struct Client {
    child: Child,
    text: Receiver<String>,
    read: Report,
    limit: Duration,
}

impl Client {
    /// Starts one that is to work for so many seconds.
    pub fn start(mut command: Command, read: Report, seconds: u64) -> Result<Client, String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
        let (to, text) = channel();
        for from in [child.stdout.take().map(boxed), child.stderr.take().map(boxed)].into_iter().flatten() {
            let to = to.clone();
            std::thread::spawn(move || {
                BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| to.send(line))
            });
        }
        Ok(Client { child, text, read, limit: Duration::from_secs(seconds * 3 + 60) })
    }

    /// Waits for its end, and reads its report.
    pub fn rate(mut self) -> Result<f64, String> {
        let end = Instant::now() + self.limit;
        let status = loop {
            match self.child.try_wait().map_err(|e| e.to_string())? {
                Some(status) => break status,
                None if Instant::now() > end => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    return Err("the client waits for answers for ever".into());
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let text = self.text.iter().collect::<Vec<_>>().join("\n");
        if !status.success() {
            return Err(format!("the client ended with {status}: {text}"));
        }
        (self.read)(&text).map_err(|e| format!("{e}; the client says:\n{text}"))
    }
}

fn boxed(from: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(from)
}

fn number(text: &str) -> Option<f64> {
    let word = text.split_whitespace().next()?;
    word.trim_end_matches(',').parse().ok()
}

/// What stands behind a label.
fn after<'t>(text: &'t str, label: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.split_once(label)).map(|(_, rest)| rest.trim())
}

/// `ab`'s report: no failed request, no answer but 2xx.
pub fn ab(text: &str) -> Result<f64, String> {
    // Those that differ in length only are not failures of a server whose answers do.
    let broken = |label: &str| text.contains(label) && after(text, label).and_then(number) != Some(0.0);
    let complete = after(text, "Complete requests:").and_then(number).unwrap_or(0.0);
    match after(text, "Requests per second:").and_then(number) {
        _ if broken("Failed requests:") => Err("failed requests".into()),
        _ if broken("Non-2xx responses:") => Err("answers that are no success".into()),
        Some(rate) if complete > 0.0 => Ok(rate),
        _ => Err("no rate".into()),
    }
}

/// `pgbench -P 1`: the median of its seconds behind the first three.
pub fn pgbench(text: &str) -> Result<f64, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("progress: "));
    let mut rates: Vec<f64> = lines.skip(3).filter_map(|line| number(line.split_once(" s, ")?.1)).collect();
    if after(text, "number of failed transactions:").and_then(number) != Some(0.0) {
        return Err("failed transactions".into());
    }
    match rates.is_empty() {
        true => Err("no rate".into()),
        false => Ok(skep_benches::median(&mut rates)),
    }
}

/// `redis-benchmark --csv`: the mean of its tests' rates.
pub fn redis(text: &str) -> Result<f64, String> {
    if text.to_ascii_lowercase().contains("error") {
        return Err("an error".into());
    }
    let rates: Vec<f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("\"GET\",\"").or_else(|| line.strip_prefix("\"SET\",\"")))
        .filter_map(|rest| rest.split('"').next()?.parse().ok())
        .collect();
    match rates.len() {
        0 => Err("no rate".into()),
        n => Ok(rates.iter().sum::<f64>() / n as f64),
    }
}
