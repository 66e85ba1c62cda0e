//! The log that a load leaves in its caller's memory.

use skep_ebpf::Errno;

use super::client::Client;

/// Levels: 1 what went wrong, 2 every instruction, 4 statistics, 8 the end is dropped instead of the beginning.
const LEVELS: u32 = 15;
const FIXED: u32 = 8;
const MAX_SIZE: u32 = u32::MAX >> 2;

/// A log on its way into a buffer.
///
/// The kernel keeps the last part of a log that does not fit (as in a ring), or with the fixed level the first, and then
/// answers `ENOSPC`.
#[derive(Debug)]
pub struct LogBuffer {
    level: u32,
    at: u64,
    size: u32,
    text: Vec<u8>,
}

impl LogBuffer {
    /// Takes what the caller said. A buffer needs a level, and memory if it has a size.
    pub fn new(level: u32, at: u64, size: u32) -> Result<LogBuffer, Errno> {
        let good = (at != 0) == (size != 0) && (at == 0 || level != 0) && level & !LEVELS == 0 && size <= MAX_SIZE;
        if good { Ok(LogBuffer { level, at, size, text: Vec::new() }) } else { Err(Errno::EINVAL) }
    }

    /// True if every instruction is to be told of.
    pub fn detailed(&self) -> bool {
        self.level & 2 != 0
    }

    /// True if anything is to be told.
    pub fn wanted(&self) -> bool {
        self.level != 0
    }

    /// Adds text, if any is wanted.
    pub fn add(&mut self, text: &str) {
        if self.level != 0 {
            self.text.extend_from_slice(text.as_bytes());
        }
    }

    /// Bytes that the whole log takes, with its end.
    pub fn true_size(&self) -> u32 {
        if self.level == 0 { 0 } else { u32::try_from(self.text.len() + 1).unwrap_or(u32::MAX) }
    }

    /// Writes what fits. `ENOSPC` if that is not all.
    pub fn write(&self, client: &Client) -> Result<(), Errno> {
        if self.at == 0 || self.level == 0 {
            return Ok(());
        }
        let room = self.size as usize - 1;
        let text = match self.text.len().checked_sub(room) {
            Some(over) if self.level & FIXED == 0 => &self.text[over..],
            Some(_) => &self.text[..room],
            None => &self.text,
        };
        let mut out = text.to_vec();
        out.push(0);
        client.memory.write(self.at, &out)?;
        if self.text.len() > room { Err(Errno::ENOSPC) } else { Ok(()) }
    }
}
