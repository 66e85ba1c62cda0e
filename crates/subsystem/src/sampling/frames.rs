//! From registers and a piece of stack to a call chain, outside of the process: by the unwind tables of its files
//! (`.eh_frame`), by frame pointers where there are none.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Module, Unwinder};
use object::{Object, ObjectSection, ObjectSegment};

use super::ring::Sample;
use crate::code_map::{CodeFile, CodeMap, Mapping};

/// Deepest chain, as the kernel's default (`kernel.perf_event_max_stack`).
const MAX_DEPTH: usize = 127;
/// Files above that are not read.
const MAX_FILE: u64 = 1 << 31;

type Bytes = Arc<[u8]>;

/// What unwinding needs of a file.
struct Tables {
    /// Offset in the file, address in the file's own counting, bytes: of what is executable.
    segments: Vec<(u64, u64, u64)>,
    text: Option<(Range<u64>, Bytes)>,
    eh_frame: Option<(Range<u64>, Bytes)>,
    eh_frame_hdr: Option<(Range<u64>, Bytes)>,
    got: Option<Range<u64>>,
}

impl Tables {
    fn read(file: &File) -> Option<Tables> {
        if file.metadata().ok()?.len() > MAX_FILE {
            return None;
        }
        let cache = object::ReadCache::new(file);
        let elf = object::File::parse(&cache).ok()?;
        let range = |name: &str| {
            let section = elf.section_by_name(name)?;
            Some(section.address()..section.address().checked_add(section.size())?)
        };
        let section = |name: &str| {
            let data = elf.section_by_name(name)?.data().ok()?;
            Some((range(name)?, Bytes::from(data)))
        };
        let executable = |flags| match flags {
            object::SegmentFlags::Elf { p_flags, .. } => p_flags.0 & object::elf::PF_X.0 != 0,
            _ => false,
        };
        let segments = elf.segments().filter(|s| executable(s.flags()));
        Some(Tables {
            segments: segments.map(|s| (s.file_range().0, s.address(), s.file_range().1)).collect(),
            text: section(".text"),
            eh_frame: section(".eh_frame"),
            eh_frame_hdr: section(".eh_frame_hdr"),
            got: range(".got"),
        })
    }

    /// What is to be added to the file's addresses in a process that has it mapped so.
    fn bias(&self, mapping: &Mapping) -> Option<u64> {
        // A mapping begins at a page, a segment anywhere in it.
        let covers = |&&(offset, _, len): &&(u64, u64, u64)| (offset & !0xfff..offset + len).contains(&mapping.offset);
        let (offset, address, _) = self.segments.iter().find(covers)?;
        let there = address.wrapping_sub(*offset).wrapping_add(mapping.offset);
        Some(mapping.range.start.wrapping_sub(there))
    }

    fn module(&self, mapping: &Mapping) -> Option<Module<Bytes>> {
        let part = |part: &Option<(Range<u64>, Bytes)>| part.clone().unzip();
        let ((text_svma, text), (eh_frame_svma, eh_frame)) = (part(&self.text), part(&self.eh_frame));
        let (eh_frame_hdr_svma, eh_frame_hdr) = part(&self.eh_frame_hdr);
        let info = ExplicitModuleSectionInfo {
            text_svma,
            text,
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            got_svma: self.got.clone(),
            ..Default::default()
        };
        Some(Module::new(mapping.name.clone(), mapping.range.clone(), self.bias(mapping)?, info))
    }
}

/// Unwinds threads of processes.
#[derive(Default)]
pub struct Unwinders {
    cache: CacheX86_64,
    /// By device and inode.
    files: HashMap<(u64, u64), Option<Arc<Tables>>>,
    /// By process, with the number of the state of its mappings.
    processes: HashMap<u32, (u64, UnwinderX86_64<Bytes>)>,
}

impl Unwinders {
    /// The instruction pointers of a sample's user stack, innermost first.
    pub fn chain(&mut self, sample: &Sample, code: &CodeMap) -> Vec<u64> {
        let version = code.version();
        if self.processes.get(&sample.pid).is_none_or(|known| known.0 != version) {
            let mut unwinder = UnwinderX86_64::new();
            for mapping in code.iter() {
                if let Some(module) = self.tables(code, mapping).and_then(|t| t.module(mapping)) {
                    unwinder.add_module(module);
                }
            }
            self.processes.insert(sample.pid, (version, unwinder));
        }
        let Some((_, unwinder)) = self.processes.get(&sample.pid) else { return Vec::new() };
        let regs = &sample.regs;
        let mut word = |at: u64| {
            let offset = at.checked_sub(regs.rsp).and_then(|o| usize::try_from(o).ok()).ok_or(())?;
            let bytes = sample.stack.get(offset..).and_then(|b| b.first_chunk()).ok_or(())?;
            Ok(u64::from_ne_bytes(*bytes))
        };
        let start = UnwindRegsX86_64::new(regs.rip, regs.rsp, regs.rbp);
        let mut frames = unwinder.iter_frames(regs.rip, start, &mut self.cache, &mut word);
        let mut chain = Vec::new();
        // An error is the end of what is known of the stack.
        while let Ok(Some(frame)) = frames.next() {
            chain.push(frame.address());
            if chain.len() == MAX_DEPTH {
                break;
            }
        }
        chain
    }

    fn tables(&mut self, code: &CodeMap, mapping: &Mapping) -> Option<Arc<Tables>> {
        let CodeFile { file, id } = code.open(mapping)?;
        let tables = self.files.entry(id);
        tables.or_insert_with(|| Tables::read(&file).map(Arc::new)).clone()
    }

    /// A process has ended, or executed another program.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }
}
