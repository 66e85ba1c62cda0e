//! Standard output, as a file that may be closed or full.

use std::fmt::Display;
use std::io::{self, BufWriter, Stdout, Write};

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

/// A writer of answers. Lines are passed on at once on a terminal, else when [`Out::flush`]ed.
pub struct Out<W: Write = Stdout> {
    to: BufWriter<W>,
}

impl Out {
    pub fn stdout() -> Out {
        Out { to: BufWriter::with_capacity(1 << 16, io::stdout()) }
    }
}

impl<W: Write> Out<W> {
    /// Prints a line of text.
    pub fn line(&mut self, line: impl Display) -> Result<(), OutError> {
        writeln!(self.to, "{line}").map_err(cause)
    }

    /// Prints a JSON object on one line.
    pub fn json(&mut self, object: &impl Serialize) -> Result<(), OutError> {
        serde_json::to_writer(&mut self.to, object).map_err(|e| cause(e.into()))?;
        self.to.write_all(b"\n").map_err(cause)
    }

    /// Passes on what was printed.
    pub fn flush(&mut self) -> Result<(), OutError> {
        self.to.flush().map_err(cause)
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
        let mut out = Out { to: BufWriter::new(Full) };
        out.line("text").unwrap();
        assert!(matches!(out.flush(), Err(OutError::Write(_))));
        std::mem::forget(out);
    }
}
