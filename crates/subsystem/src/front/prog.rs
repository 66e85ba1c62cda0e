//! `BPF_PROG_LOAD`: from a caller's instructions to a program that can run.

use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use skep_ebpf::Errno;
use skep_ebpf::insn::{Insn, pseudo};
use skep_ebpf::program::{FuncInfo, LineInfo, MapDef, Program};
use skep_ebpf::uapi::{AttachType, ProgType, prog_flags};
use skep_jit::MapIndices;
use skep_verifier::{Options, Outcome, Verified, verify};

use super::Subsystem;
use super::attr::{Attr, prog_bind_map, prog_load};
use super::btf::{self, finish_log};
use super::client::{Caps, Client};
use super::log::LogBuffer;
use super::object::{MapObject, Object, ProgObject, RunStats};
use crate::loaded::Loaded;

/// Most instructions of a program for those with `CAP_BPF`, and for others.
const MAX_INSNS: u32 = 1_000_000;
const MAX_INSNS_UNPRIVILEGED: u32 = 4096;
/// Most maps of a program.
const MAX_MAPS: usize = 64;
/// Licence bytes that are looked at.
const LICENSE_LEN: usize = 127;
/// Bytes of a record of `func_info` and `line_info`: what this kernel knows, and the most that it takes.
const FUNC_RECORD: u32 = 8;
const LINE_RECORD: u32 = 16;
const MAX_RECORD: u32 = 252;

const KNOWN_FLAGS: u32 = prog_flags::STRICT_ALIGNMENT
    | prog_flags::ANY_ALIGNMENT
    | prog_flags::TEST_STATE_FREQ
    | prog_flags::SLEEPABLE
    | prog_flags::TEST_RND_HI32
    | prog_flags::XDP_HAS_FRAGS
    | prog_flags::XDP_DEV_BOUND_ONLY
    | prog_flags::TEST_REG_INVARIANTS;

/// Types for which `CAP_NET_ADMIN` is needed.
fn handles_packets(t: ProgType) -> bool {
    use ProgType::*;
    matches!(
        t,
        SchedCls
            | SchedAct
            | Xdp
            | LwtIn
            | LwtOut
            | LwtXmit
            | LwtSeg6local
            | SkSkb
            | SkMsg
            | FlowDissector
            | CgroupDevice
            | CgroupSock
            | CgroupSockAddr
            | CgroupSockopt
            | CgroupSysctl
            | SockOps
            | Ext
            | Netfilter
    )
}

/// Types for which `CAP_PERFMON` is needed.
fn traces(t: ProgType) -> bool {
    use ProgType::*;
    matches!(
        t,
        Kprobe | Tracepoint | PerfEvent | RawTracepoint | RawTracepointWritable | Tracing | Lsm | StructOps | Ext
    )
}

/// Records of a table in the caller's memory.
struct Records {
    size: u32,
    bytes: Vec<u8>,
}

impl Records {
    fn read(client: &Client, at: u64, count: u32, size: u32, known: u32) -> Result<Records, Errno> {
        if count == 0 {
            return Ok(Records { size, bytes: Vec::new() });
        }
        if size < known || size > MAX_RECORD || !size.is_multiple_of(4) || count > i32::MAX as u32 / size {
            return Err(Errno::EINVAL);
        }
        let bytes = client.bytes(at, (count * size) as usize)?;
        let unknown = |r: &[u8]| r.iter().skip(known as usize).any(|b| *b != 0);
        if bytes.chunks_exact(size as usize).any(unknown) {
            return Err(Errno::E2BIG);
        }
        Ok(Records { size, bytes })
    }

    /// The words of each record.
    fn words<const N: usize>(&self) -> impl Iterator<Item = [u32; N]> + '_ {
        self.bytes.chunks_exact((self.size as usize).max(1)).map(|r| {
            std::array::from_fn(|n| r.get(n * 4..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b)))
        })
    }
}

impl Subsystem {
    pub(super) fn prog_load(&self, client: &Client, attr: &mut Attr<'_>) -> Result<i32, Errno> {
        use prog_load as f;
        attr.ends_at(f::END)?;
        let flags = attr.u32(f::PROG_FLAGS);
        if flags & !KNOWN_FLAGS != 0 {
            return Err(Errno::EINVAL);
        }
        let privileged = client.caps.has(Caps::BPF);
        let count = attr.u32(f::INSN_CNT);
        if count == 0 || count > if privileged { MAX_INSNS } else { MAX_INSNS_UNPRIVILEGED } {
            return Err(Errno::E2BIG);
        }
        let number = attr.u32(f::PROG_TYPE);
        let for_everybody = number == ProgType::SocketFilter as u32 || number == ProgType::CgroupSkb as u32;
        if !for_everybody && !privileged {
            return Err(Errno::EPERM);
        }
        let prog_type = ProgType::from_u32(number);
        if prog_type.is_some_and(handles_packets) && !client.caps.has(Caps::NET_ADMIN) {
            return Err(Errno::EPERM);
        }
        if prog_type.is_some_and(traces) && !client.caps.has(Caps::PERFMON) {
            return Err(Errno::EPERM);
        }
        let (attach_id, attach_fd) = (attr.u32(f::ATTACH_BTF_ID), attr.fd(f::ATTACH_PROG_FD));
        if attach_fd != 0 {
            // Targets of extension and of tracing of programs are not here yet.
            return Err(match client.files.get(attach_fd) {
                Ok(Object::Prog(_)) => Errno::EOPNOTSUPP,
                _ => Errno::EINVAL,
            });
        }
        let attach = attach_type(prog_type, attr.u32(f::EXPECTED_ATTACH_TYPE), attach_id)?;
        let code = client.bytes(attr.u64(f::INSNS), count as usize * 8)?;
        let license = client.string(attr.u64(f::LICENSE), LICENSE_LEN)?;
        if attr.u32(f::PROG_IFINDEX) != 0 {
            return Err(Errno::EINVAL);
        }
        let prog_type = prog_type.filter(|t| *t != ProgType::Unspec).ok_or(Errno::EINVAL)?;
        let name = attr.name(f::PROG_NAME)?;
        if attr.u32(f::CORE_RELO_CNT) != 0 || attr.u64(f::SIGNATURE) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }

        let mut log = LogBuffer::new(attr.u32(f::LOG_LEVEL), attr.u64(f::LOG_BUF), attr.u32(f::LOG_SIZE))?;
        let mut program = Program::new(&name, prog_type, &String::from_utf8_lossy(&license), insns(&code));
        program.attach_type = attach;
        program.flags = flags;
        program.kern_version = attr.u32(f::KERN_VERSION);
        program.attach_btf_id = attach_id;
        let judged = self.judge(client, attr, program, &mut log);
        let written = finish_log(client, attr, &log, f::LOG_TRUE_SIZE);
        let judged = judged?;
        written?;
        self.finish_load(client, judged, name, &code)
    }

    /// Resolves what the instructions refer to, and verifies.
    fn judge(
        &self,
        client: &Client,
        attr: &Attr<'_>,
        mut program: Program,
        log: &mut LogBuffer,
    ) -> Result<Judged, Errno> {
        use prog_load as f;
        let func_info = records(client, attr, f::FUNC_INFO, f::FUNC_INFO_CNT, f::FUNC_INFO_REC_SIZE, FUNC_RECORD)?;
        let line_info = records(client, attr, f::LINE_INFO, f::LINE_INFO_CNT, f::LINE_INFO_REC_SIZE, LINE_RECORD)?;
        // Without records nobody looks at the descriptor.
        let types = match attr.fd(f::PROG_BTF_FD) {
            _ if func_info.bytes.is_empty() && line_info.bytes.is_empty() => None,
            fd => Some(btf::by_fd(client, fd)?),
        };
        if let Some(types) = &types {
            program.func_info = func_info.words().map(|[insn, type_id]| FuncInfo { insn, type_id }).collect();
            program.line_info = line_info
                .words()
                .map(|[insn, file, text, line]| LineInfo {
                    insn,
                    file: types.btf.str_at(file).unwrap_or("").into(),
                    text: types.btf.str_at(text).unwrap_or("").trim().into(),
                    line: line >> 10,
                    column: line & 0x3ff,
                })
                .collect();
            program.btf = Some(Arc::clone(&types.btf));
        }
        let fds = FdArray { at: attr.u64(f::FD_ARRAY) };
        let bound = fds.bound(client, attr.u32(f::FD_ARRAY_CNT))?;
        let maps = resolve_maps(client, &mut program.insns, &fds, log)?;
        program.maps = maps.iter().map(|m| definition(m, types.as_ref())).collect::<Result<Vec<_>, _>>()?.into();

        let options = Options { btf: self.config.kernel_btf.clone(), log: log.detailed(), ..Options::default() };
        let verified = verify(program, &options).map_err(|r| {
            log.add(&r.log);
            log.add(&format!("{r}\n"));
            match r.outcome {
                Outcome::Rejected => r.errno,
                Outcome::Unsupported => Errno::EOPNOTSUPP,
            }
        })?;
        log.add(verified.log());
        Ok(Judged {
            verified,
            maps,
            bound,
            btf: types,
            func_info: (func_info.size, func_info.bytes),
            line_info: (line_info.size, line_info.bytes),
        })
    }

    /// Makes the program runnable and gives it a number, then a descriptor. A failure leaves nothing behind.
    fn finish_load(&self, client: &Client, judged: Judged, name: String, code: &[u8]) -> Result<i32, Errno> {
        let Judged { verified, mut maps, bound, btf, func_info, line_info } = judged;
        let indices: Arc<[u32]> = maps.iter().map(|m| m.place.index()).collect();
        let options = skep_jit::Options { engine: self.config.engine, maps: MapIndices::Each(indices) };
        let loaded = Loaded::new(&verified, &options).map_err(|_| Errno::ENOTSUPP)?;
        let place = self.world.add_program(&loaded, maps.clone())?;
        let named_maps = maps.len();
        for map in bound {
            if !maps.iter().any(|m| Arc::ptr_eq(m, &map)) {
                maps.push(map);
            }
        }
        let object = self.progs.add(|id| ProgObject {
            id,
            place,
            verified,
            loaded,
            name,
            maps: Mutex::new(maps),
            named_maps,
            btf,
            uid: client.uid,
            load_time: crate::clock::boot_ns(),
            tag: tag(code),
            func_info,
            line_info,
            runs: RunStats::default(),
        })?;
        client.files.install(Object::Prog(object))
    }

    pub(super) fn prog_bind_map(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        use prog_bind_map as f;
        attr.ends_at(f::END)?;
        if attr.u32(f::FLAGS) != 0 {
            return Err(Errno::EINVAL);
        }
        let Object::Prog(prog) = client.files.get(attr.fd(f::PROG_FD))? else { return Err(Errno::EINVAL) };
        let Object::Map(map, _) = client.files.get(attr.fd(f::MAP_FD))? else { return Err(Errno::EINVAL) };
        let mut maps = prog.maps();
        if !maps.iter().any(|m| Arc::ptr_eq(m, map.object())) {
            maps.push(Arc::clone(map.object()));
        }
        Ok(0)
    }
}

/// A program that was verified, with what it uses.
struct Judged {
    verified: Verified,
    maps: Vec<Arc<MapObject>>,
    /// Maps of `fd_array` that no instruction names.
    bound: Vec<Arc<MapObject>>,
    btf: Option<Arc<super::object::BtfObject>>,
    func_info: (u32, Vec<u8>),
    line_info: (u32, Vec<u8>),
}

fn records(
    client: &Client,
    attr: &Attr<'_>,
    at: super::attr::Field,
    count: super::attr::Field,
    size: super::attr::Field,
    known: u32,
) -> Result<Records, Errno> {
    Records::read(client, attr.u64(at), attr.u32(count), attr.u32(size), known)
}

/// The expected attach type, where the program type has one.
fn attach_type(prog_type: Option<ProgType>, number: u32, btf_id: u32) -> Result<Option<AttachType>, Errno> {
    use ProgType::*;
    let Some(prog_type) = prog_type else { return Ok(None) };
    let with_target = matches!(prog_type, Tracing | Lsm | StructOps | Ext);
    if btf_id != 0 && !with_target {
        return Err(Errno::EINVAL);
    }
    match AttachType::from_u32(number) {
        Some(t) => Ok((number != 0 || !matches!(prog_type, Kprobe)).then_some(t)),
        // Most types have no use for it, and do not look.
        None if with_target
            || matches!(
                prog_type,
                CgroupSock | CgroupSockAddr | CgroupSkb | CgroupSockopt | SkLookup | SkReuseport | Netfilter
            ) =>
        {
            Err(Errno::EINVAL)
        }
        None => Ok(None),
    }
}

fn insns(code: &[u8]) -> Vec<Insn> {
    code.chunks_exact(8).filter_map(|c| c.first_chunk()).map(|c| Insn::from_bytes(*c)).collect()
}

/// `fd_array`: descriptors that instructions name by their index.
struct FdArray {
    at: u64,
}

impl FdArray {
    /// The maps among the first `count` descriptors, each of which must be a map or types.
    fn bound(&self, client: &Client, count: u32) -> Result<Vec<Arc<MapObject>>, Errno> {
        let mut maps = Vec::new();
        if count >= u32::MAX / 4 {
            return Err(Errno::EINVAL);
        }
        for n in 0..u64::from(count) {
            let at = self.at.checked_add(n * 4).ok_or(Errno::EFAULT)?;
            let bytes = client.bytes(at, 4)?;
            match client.files.get(bytes.first_chunk().map_or(-1, |b| i32::from_ne_bytes(*b)))? {
                Object::Map(map, _) => maps.push(Arc::clone(map.object())),
                Object::Btf(_) => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(maps)
    }

    fn get(&self, client: &Client, index: i32) -> Result<i32, Errno> {
        if self.at == 0 {
            return Err(Errno::EPROTO);
        }
        let index = u64::try_from(index).map_err(|_| Errno::EFAULT)?;
        let bytes = client.bytes(self.at.checked_add(index * 4).ok_or(Errno::EFAULT)?, 4)?;
        Ok(bytes.first_chunk().map_or(-1, |b| i32::from_ne_bytes(*b)))
    }
}

/// Has instructions name maps by their index in a list, which is returned.
fn resolve_maps(
    client: &Client,
    insns: &mut [Insn],
    fds: &FdArray,
    log: &mut LogBuffer,
) -> Result<Vec<Arc<MapObject>>, Errno> {
    let mut maps: Vec<Arc<MapObject>> = Vec::new();
    let mut at = 0;
    while at < insns.len() {
        let insn = insns[at];
        if !insn.is_ld_imm64() {
            at += 1;
            continue;
        }
        let (fd, value) = match insn.src() {
            pseudo::MAP_FD => (insn.imm, false),
            pseudo::MAP_VALUE => (insn.imm, true),
            pseudo::MAP_IDX => (fds.get(client, insn.imm)?, false),
            pseudo::MAP_IDX_VALUE => (fds.get(client, insn.imm)?, true),
            _ => {
                at += 2;
                continue;
            }
        };
        let object = client.files.get(fd).inspect_err(|_| {
            log.add(&format!("instruction {at}: descriptor {fd} is not open, or no map\n"));
        })?;
        let Object::Map(map, _) = object else { return Err(Errno::EINVAL) };
        let index = maps.iter().position(|m| Arc::ptr_eq(m, map.object())).unwrap_or_else(|| {
            maps.push(Arc::clone(map.object()));
            maps.len() - 1
        });
        if index >= MAX_MAPS {
            return Err(Errno::E2BIG);
        }
        let kind = if value { pseudo::MAP_IDX_VALUE } else { pseudo::MAP_IDX };
        insns[at] = Insn::new(insn.code, insn.dst(), kind, insn.off, index as i32);
        at += 2;
    }
    Ok(maps)
}

/// The map as the verifier is to see it. Types that are not the program's own say nothing to it.
fn definition(map: &Arc<MapObject>, types: Option<&Arc<super::object::BtfObject>>) -> Result<MapDef, Errno> {
    let mut def = map.map.def().clone();
    let own = match (&map.btf, types) {
        (Some(m), Some(p)) => Arc::ptr_eq(&m.btf, p) || m.btf.blob == p.blob,
        _ => false,
    };
    if !own {
        (def.key_type_id, def.value_type_id) = (0, 0);
    }
    if map.map.is_frozen() && !map.map.target_writable() {
        def.frozen = true;
        if def.map_type == skep_ebpf::uapi::MapType::Array && def.max_entries == 1 {
            def.initial = map.map.lookup(&0u32.to_ne_bytes(), 0).ok();
        }
    }
    Ok(def)
}

/// A short digest over the instructions; descriptors in them do not count.
fn tag(code: &[u8]) -> [u8; 8] {
    let mut plain = code.to_vec();
    let mut wide = false;
    for insn in plain.chunks_exact_mut(8) {
        let map = matches!(insn[1] >> 4, 1 | 2 | 5 | 6);
        if wide {
            insn[4..8].fill(0);
            wide = false;
        } else if insn[0] == skep_ebpf::insn::LD_IMM64 && map {
            insn[4..8].fill(0);
            wide = true;
        }
    }
    let digest = Sha256::digest(&plain);
    std::array::from_fn(|n| digest.get(n).copied().unwrap_or(0))
}
