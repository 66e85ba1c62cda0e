//! The live line on a terminal: hits and rates.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use skep::subsystem::session::{Counts, Session};

/// How often the line is renewed.
pub const PERIOD: Duration = Duration::from_millis(500);
/// Programs that the line names.
const SHOWN: usize = 4;

/// The line, if standard error is a terminal.
pub struct Status {
    on: bool,
    start: Instant,
    last: Instant,
    before: Vec<Counts>,
    visible: bool,
}

impl Status {
    pub fn new(json: bool) -> Status {
        let now = Instant::now();
        let on = !json && std::io::stderr().is_terminal();
        Status { on, start: now, last: now, before: Vec::new(), visible: false }
    }

    /// How long to wait until the line is due, if there is one.
    pub fn due(&self) -> Option<Duration> {
        self.on.then(|| PERIOD.saturating_sub(self.last.elapsed()))
    }

    /// Takes the line away, before something else is printed.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.visible) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    /// Renews the line if it is due.
    pub fn renew(&mut self, session: &Session) {
        if self.due() != Some(Duration::ZERO) {
            return;
        }
        let counts: Vec<Counts> = (0..session.programs().len()).map(|i| session.program_counts(i)).collect();
        let seconds = self.last.elapsed().as_secs_f64();
        let names = session.programs().map(|p| p.name());
        let line = line(self.start.elapsed(), seconds, names, &counts, &self.before);
        self.last = Instant::now();
        self.before = counts;
        self.visible = true;
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        let _ = std::io::stderr().flush();
    }
}

fn line<'a>(
    elapsed: Duration,
    seconds: f64,
    names: impl Iterator<Item = &'a str>,
    now: &[Counts],
    before: &[Counts],
) -> String {
    let mut line = format!("{:>4} s", elapsed.as_secs());
    let mut bad = Counts::default();
    for (i, (name, now)) in names.zip(now).enumerate() {
        bad += *now;
        if i < SHOWN {
            let gained = now.hits.saturating_sub(before.get(i).map_or(0, |c| c.hits));
            line += &format!("  {name} {} ({}/s)", short(now.hits as f64), short(gained as f64 / seconds.max(1e-3)));
        }
    }
    for (what, n) in [
        ("missed", bad.missed),
        ("recursion", bad.recursion_misses),
        ("no slot", bad.no_slot),
        ("lost", bad.lost),
        ("over budget", bad.over_budget),
    ] {
        if n > 0 {
            line += &format!("  {what} {}", short(n as f64));
        }
    }
    line
}

/// A number in few characters.
fn short(n: f64) -> String {
    match n {
        n if n < 10_000.0 => format!("{n:.0}"),
        n if n < 10_000_000.0 => format!("{:.1}k", n / 1e3),
        n => format!("{:.1}M", n / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_losses() {
        let now = [Counts { hits: 20_000, missed: 3, ..Counts::default() }, Counts::default()];
        let before = [Counts { hits: 10_000, ..Counts::default() }];
        let text = line(Duration::from_secs(7), 0.5, ["a", "b"].into_iter(), &now, &before);
        assert_eq!(text, "   7 s  a 20.0k (20.0k/s)  b 0 (0/s)  missed 3");
    }
}
