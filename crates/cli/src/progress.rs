//! A line on the terminal that says how far a long check is.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Short checks show none.
const PATIENCE: Duration = Duration::from_millis(300);

/// Cells of the bar.
const WIDTH: usize = 24;

/// The line, where standard error is a terminal.
pub struct Progress {
    terminal: bool,
    start: Instant,
    drawn: bool,
}

impl Progress {
    /// Nothing is drawn yet.
    pub fn new() -> Progress {
        Progress { terminal: std::io::stderr().is_terminal(), start: Instant::now(), drawn: false }
    }

    /// Draws how many objects are done, and what else there is to say.
    pub fn draw(&mut self, done: usize, of: usize, rest: &str) {
        if self.terminal && self.start.elapsed() >= PATIENCE {
            self.drawn = true;
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", line(done, of, rest));
        }
    }

    /// Takes it away, before something else is printed.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(done: usize, of: usize, rest: &str) -> String {
    let full = (done.min(of) * WIDTH).checked_div(of).unwrap_or(0);
    format!("[{}{}] {done}/{of} objects, {rest}", "=".repeat(full), " ".repeat(WIDTH - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills() {
        assert_eq!(line(0, 0, "x"), format!("[{}] 0/0 objects, x", " ".repeat(WIDTH)));
        assert_eq!(
            line(1, 2, "3 accepted"),
            format!("[{0}{1}] 1/2 objects, 3 accepted", "=".repeat(12), " ".repeat(12))
        );
        assert_eq!(line(2, 2, ""), format!("[{}] 2/2 objects, ", "=".repeat(WIDTH)));
    }
}
