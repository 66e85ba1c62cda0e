//! Standard output, as a file that may be closed or full.

use std::fmt::Display;
use std::io::{self, Stdout, Write};

use serde::Serialize;

/// What ends output early.
#[derive(Debug, thiserror::Error)]
pub enum OutError {
    /// Whoever read it went away: end quietly.
    #[error("standard output is closed")]
    Closed,
    /// It cannot be written.
    #[error("standard output: {0}")]
    Write(io::Error),
}

/// Bytes that are written to a pipe in one piece (`PIPE_BUF`).
const PIECE: usize = 4096;

/// A writer of answers. What it writes are whole lines, in pieces that a pipe does not tear apart: a traced command may
/// write to the same one.
pub struct Out<W: Write = Stdout> {
    to: W,
    /// Whole lines.
    lines: Vec<u8>,
}

impl Out {
    pub fn stdout() -> Out {
        Out { to: io::stdout(), lines: Vec::with_capacity(2 * PIECE) }
    }
}

impl<W: Write> Out<W> {
    /// Prints a line of text.
    pub fn line(&mut self, line: impl Display) -> Result<(), OutError> {
        let before = self.lines.len();
        writeln!(self.lines, "{line}").map_err(cause)?;
        self.added(before)
    }

    /// Prints a JSON object on one line.
    pub fn json(&mut self, object: &impl Serialize) -> Result<(), OutError> {
        let before = self.lines.len();
        serde_json::to_writer(&mut self.lines, object).map_err(|e| cause(e.into()))?;
        self.lines.push(b'\n');
        self.added(before)
    }

    /// Writes the lines before the new one if they are a piece together.
    fn added(&mut self, before: usize) -> Result<(), OutError> {
        if self.lines.len() <= PIECE {
            return Ok(());
        }
        let new = self.lines.split_off(before);
        let done = self.flush();
        self.lines = new;
        done
    }

    /// Passes on what was printed.
    pub fn flush(&mut self) -> Result<(), OutError> {
        let done = self.to.write_all(&self.lines).and_then(|()| self.to.flush());
        self.lines.clear();
        done.map_err(cause)
    }
}

fn cause(error: io::Error) -> OutError {
    if error.kind() == io::ErrorKind::BrokenPipe { OutError::Closed } else { OutError::Write(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut out = Out { to: Full, lines: Vec::new() };
        out.line("text").unwrap();
        assert!(matches!(out.flush(), Err(OutError::Write(_))));
    }

    /// Notes how it was written to.
    #[derive(Default)]
    struct Pieces(Vec<Vec<u8>>);

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_not_torn() {
        let mut out = Out { to: Pieces::default(), lines: Vec::new() };
        for n in 0..1000 {
            out.line(format_args!("{n:>37}")).unwrap();
        }
        out.line("x".repeat(2 * PIECE)).unwrap();
        out.line("end").unwrap();
        out.flush().unwrap();
        let pieces = out.to.0;
        assert!(pieces.iter().all(|p| p.ends_with(b"\n") && (p.len() <= PIECE || p.starts_with(b"xx"))));
        assert_eq!(pieces.concat().len(), 38_000 + 2 * PIECE + 1 + 4);
    }
}
