//! `BPF_PROG_LOAD`: from a caller's instructions to a program that can run.
//!
//! The load path is a list of steps, and each kernel has its own order of them ([`steps`]). A load on its way owns what
//! its steps have acquired, so a failure at any of them undoes all earlier ones.

use std::sync::{Arc, Mutex, OnceLock};

use sha2::{Digest, Sha256};
use skep_ebpf::Errno;
use skep_ebpf::btf::Kind;
use skep_ebpf::insn::Insn;
use skep_ebpf::program::{FuncInfo, LineInfo, Program};
use skep_ebpf::uapi::{AttachType, ProgType, prog_flags};
use skep_jit::MapIndices;
use skep_verifier::{Options, Outcome, Privilege, Target, Verified, verify};

use super::account::Charge;
use super::attr::{Attr, prog_bind_map, prog_load as f};
use super::btf::{self, finish_log};
use super::client::{Caps, Client};
use super::faults::FaultPoint;
use super::hooks::{SecurityHooks, Told};
use super::log::LogBuffer;
use super::object::{BtfObject, MapObject, Membership, Object, ProgObject, RunStats};
use super::offload::{OffloadDevice, Offloaded};
use super::resolve::{self, FdArray};
use super::token::{TOKEN_FD, TokenObject};
use super::world::CellsPlace;
use super::{Command, Profile, Subsystem, words};
use crate::loaded::Loaded;

/// Most instructions of a program for those with `CAP_BPF`, and for others (and for all, up to 5.1).
const MAX_INSNS: u32 = 1_000_000;
const MAX_INSNS_SMALL: u32 = 4096;
/// Licence bytes that are looked at.
const LICENSE_LEN: usize = 127;
/// Bytes of a record of `func_info` and `line_info` that this kernel knows.
const FUNC_RECORD: u32 = 8;
const LINE_RECORD: u32 = 16;
/// Key rings with numbers of their own, and the longest signature that is looked at.
const SYSTEM_KEYRINGS: u32 = 2;
const MAX_SIGNATURE: u32 = 1 << 20;
/// Bytes of the kernel's own structure in front of the instructions, which are charged with them (4.17).
const PROG_HEADER: u64 = 40;

const FLAGS_6_18: u32 = prog_flags::STRICT_ALIGNMENT
    | prog_flags::ANY_ALIGNMENT
    | prog_flags::TEST_STATE_FREQ
    | prog_flags::SLEEPABLE
    | prog_flags::TEST_RND_HI32
    | prog_flags::XDP_HAS_FRAGS
    | prog_flags::XDP_DEV_BOUND_ONLY
    | prog_flags::TEST_REG_INVARIANTS
    | TOKEN_FD;

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

/// A program on its way: what the caller said, and what the steps have acquired.
struct Load<'a, 'u> {
    subsystem: &'a Subsystem,
    client: &'a Client,
    attr: &'a Attr<'u>,
    prog_type: Option<ProgType>,
    attach: Option<AttachType>,
    license: Vec<u8>,
    code: Vec<u8>,
    name: String,
    device: Option<Arc<dyn OffloadDevice>>,
    target: Option<Arc<ProgObject>>,
    token: Option<Arc<TokenObject>>,
    charge: Option<Charge>,
    told: Option<Told>,
}

type Step<'a, 'u> = fn(&mut Load<'a, 'u>) -> Result<(), Errno>;

/// The steps in front of the verifier, in a kernel's order.
fn steps<'a, 'u>(profile: Profile) -> Vec<Step<'a, 'u>> {
    match profile {
        Profile::Linux6_18 => vec![
            Load::unknown_fields,
            Load::flags,
            Load::token,
            Load::size,
            Load::privilege,
            Load::target,
            Load::attach_type,
            Load::allocate,
            Load::charge_memory,
            Load::copy_instructions,
            Load::copy_license,
            Load::signature,
            Load::bind_device,
            Load::known_type,
            Load::take_name,
            Load::security,
        ],
        Profile::Linux4_17 => vec![
            Load::unknown_fields,
            Load::flags,
            Load::copy_license,
            Load::size,
            Load::version,
            Load::privilege,
            Load::attach_type,
            Load::allocate,
            Load::security,
            Load::charge_memory,
            Load::copy_instructions,
            Load::bind_device,
            Load::known_type,
            Load::take_name,
        ],
    }
}

impl Load<'_, '_> {
    /// Bytes behind the last field that this kernel knows must be zero.
    fn unknown_fields(&mut self) -> Result<(), Errno> {
        self.attr.ends_at(match self.subsystem.config.profile {
            Profile::Linux6_18 => f::END,
            Profile::Linux4_17 => f::END_4_17,
        })
    }

    fn flags(&mut self) -> Result<(), Errno> {
        let known = match self.subsystem.config.profile {
            Profile::Linux6_18 => FLAGS_6_18,
            Profile::Linux4_17 => prog_flags::STRICT_ALIGNMENT,
        };
        if self.attr.u32(f::PROG_FLAGS) & !known != 0 { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// The token that it is loaded with. Without the right to it the token does not count.
    fn token(&mut self) -> Result<(), Errno> {
        if self.attr.u32(f::PROG_FLAGS) & TOKEN_FD != 0 {
            let token = self.subsystem.token(self.client, self.attr.fd(f::PROG_TOKEN_FD), Command::ProgLoad)?;
            let (number, attach) = (self.attr.u32(f::PROG_TYPE), self.attr.u32(f::EXPECTED_ATTACH_TYPE));
            self.token = token.filter(|t| t.permits_prog(number, attach));
        }
        Ok(())
    }

    fn has(&self, caps: Caps) -> bool {
        self.subsystem.capable(self.client, self.token.as_deref(), caps)
    }

    /// The licence, cut at 127 bytes.
    fn copy_license(&mut self) -> Result<(), Errno> {
        self.license = self.client.string(self.attr.u64(f::LICENSE), LICENSE_LEN)?;
        Ok(())
    }

    fn size(&mut self) -> Result<(), Errno> {
        let large = self.subsystem.config.profile == Profile::Linux6_18 && self.has(Caps::BPF);
        let most = if large { MAX_INSNS } else { MAX_INSNS_SMALL };
        let count = self.attr.u32(f::INSN_CNT);
        if count == 0 || count > most { Err(Errno::E2BIG) } else { Ok(()) }
    }

    /// Programs that look into the kernel must have been made for it (up to 4.20).
    fn version(&mut self) -> Result<(), Errno> {
        let kprobe = self.prog_type == Some(ProgType::Kprobe);
        if kprobe && self.attr.u32(f::KERN_VERSION) != self.subsystem.config.kern_version {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    fn privilege(&mut self) -> Result<(), Errno> {
        let for_everybody = matches!(self.prog_type, Some(ProgType::SocketFilter | ProgType::CgroupSkb));
        if self.subsystem.config.profile == Profile::Linux4_17 {
            return if for_everybody || self.has(Caps::SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) };
        }
        if !for_everybody && !self.has(Caps::BPF)
            || self.prog_type.is_some_and(handles_packets) && !self.has(Caps::NET_ADMIN)
            || self.prog_type.is_some_and(traces) && !self.has(Caps::PERFMON)
        {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    /// The program whose function this one traces or replaces. The descriptor may also be one of types, of the kernel's.
    fn target(&mut self) -> Result<(), Errno> {
        let fd = self.attr.fd(f::ATTACH_PROG_FD);
        if fd != 0 {
            match self.client.files.get(fd) {
                Ok(Object::Prog(prog)) => self.target = Some(prog),
                Ok(Object::Btf(_)) => return Err(Errno::ENOTSUPP),
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(())
    }

    /// The expected attach type: old loaders leave it out, and some types insist on it.
    fn attach_type(&mut self) -> Result<(), Errno> {
        use ProgType::*;
        let number = self.attr.u32(f::EXPECTED_ATTACH_TYPE);
        let Some(prog_type) = self.prog_type else { return Ok(()) };
        let with_target = matches!(prog_type, Tracing | Lsm | StructOps | Ext);
        let btf_id = match self.subsystem.config.profile {
            Profile::Linux6_18 => self.attr.u32(f::ATTACH_BTF_ID),
            Profile::Linux4_17 => 0,
        };
        if prog_type == Ext && number != 0 {
            return Err(Errno::EINVAL);
        }
        if btf_id != 0 && !with_target || self.target.is_some() && !matches!(prog_type, Tracing | Ext) {
            return Err(Errno::EINVAL);
        }
        let number = match (prog_type, number) {
            (CgroupSock, 0) => AttachType::CgroupInetSockCreate as u32,
            (_, n) => n,
        };
        self.attach = match AttachType::from_u32(number) {
            Some(t) => (number != 0 || prog_type != Kprobe).then_some(t),
            None if with_target => return Err(Errno::EINVAL),
            // Most types have no use for it, and do not look.
            None if !insists(prog_type) => None,
            None => return Err(Errno::EINVAL),
        };
        if self.subsystem.config.profile == Profile::Linux4_17 && !fits_4_17(prog_type, self.attach) {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    fn allocate(&mut self) -> Result<(), Errno> {
        self.subsystem.fault(FaultPoint::ProgAlloc)
    }

    /// What the owner of the subsystem says to it.
    fn security(&mut self) -> Result<(), Errno> {
        let hooks = &self.subsystem.hooks;
        let Some(prog_type) = self.prog_type else { return Ok(()) };
        let name = self.attr.name(f::PROG_NAME).unwrap_or_default();
        let license = String::from_utf8_lossy(&self.license);
        let mut program = Program::new(&name, prog_type, &license, insns(&self.code));
        program.attach_type = self.attach;
        program.flags = self.attr.u32(f::PROG_FLAGS);
        hooks.prog_load(&self.attr.call(self.client, Command::ProgLoad), &program, self.token.as_deref())?;
        self.told = Some(Told::new(hooks, &name, |h, name| h.prog_free(name)));
        Ok(())
    }

    /// Memory against the owner's limit.
    fn charge_memory(&mut self) -> Result<(), Errno> {
        let bytes = PROG_HEADER + u64::from(self.attr.u32(f::INSN_CNT)) * 8;
        self.charge = Some(self.subsystem.charge(self.client, bytes)?);
        Ok(())
    }

    fn copy_instructions(&mut self) -> Result<(), Errno> {
        self.subsystem.fault(FaultPoint::ProgInsns)?;
        self.code = self.client.bytes(self.attr.u64(f::INSNS), self.attr.u32(f::INSN_CNT) as usize * 8)?;
        Ok(())
    }

    /// There are no keys here that a signature could be checked with, as in a kernel that was built without them.
    fn signature(&mut self) -> Result<(), Errno> {
        let (at, size, keys) =
            (self.attr.u64(f::SIGNATURE), self.attr.u32(f::SIGNATURE_SIZE), self.attr.u32(f::KEYRING_ID));
        if at == 0 {
            return Ok(());
        }
        // The system's key rings, and those that every process has.
        if keys > SYSTEM_KEYRINGS && !(-8..=-1).contains(&keys.cast_signed()) || size > i32::MAX as u32 {
            return Err(Errno::EINVAL);
        }
        if size > MAX_SIGNATURE {
            return Err(Errno::ENOMEM);
        }
        self.client.bytes(at, size as usize).map_err(|_| Errno::ENOMEM)?;
        Err(Errno::EOPNOTSUPP)
    }

    fn bind_device(&mut self) -> Result<(), Errno> {
        let ifindex = self.attr.u32(f::PROG_IFINDEX);
        if ifindex == 0 {
            return Ok(());
        }
        let flags = self.attr.u32(f::PROG_FLAGS);
        let only_bound = flags & prog_flags::XDP_DEV_BOUND_ONLY != 0;
        let packets = matches!(self.prog_type, Some(ProgType::SchedCls | ProgType::Xdp));
        let others = flags & !(prog_flags::XDP_DEV_BOUND_ONLY | prog_flags::XDP_HAS_FRAGS);
        let frags = flags & prog_flags::XDP_HAS_FRAGS != 0 && !only_bound;
        if !packets || others != 0 || frags || only_bound && self.prog_type == Some(ProgType::SchedCls) {
            return Err(Errno::EINVAL);
        }
        let device = self.subsystem.devices.find(self.prog_type, ifindex)?;
        // What is only bound to a device runs here, not on it.
        self.device = (!only_bound).then_some(device);
        Ok(())
    }

    fn known_type(&mut self) -> Result<(), Errno> {
        let newest = match self.subsystem.config.profile {
            Profile::Linux6_18 => ProgType::Netfilter,
            Profile::Linux4_17 => ProgType::CgroupSockAddr,
        };
        match self.prog_type {
            None | Some(ProgType::Unspec) => Err(Errno::EINVAL),
            Some(t) if t > newest => Err(Errno::EINVAL),
            Some(_) => Ok(()),
        }
    }

    fn take_name(&mut self) -> Result<(), Errno> {
        self.name = self.attr.name(f::PROG_NAME)?;
        Ok(())
    }
}

/// Types that do not load with an attach type that is not theirs.
fn insists(t: ProgType) -> bool {
    use ProgType::*;
    matches!(t, CgroupSock | CgroupSockAddr | CgroupSkb | CgroupSockopt | SkLookup | SkReuseport | Netfilter)
}

fn fits_4_17(prog_type: ProgType, attach: Option<AttachType>) -> bool {
    use AttachType::*;
    match prog_type {
        ProgType::CgroupSock => {
            matches!(attach, Some(CgroupInetSockCreate | CgroupInet4PostBind | CgroupInet6PostBind))
        }
        ProgType::CgroupSockAddr => {
            matches!(attach, Some(CgroupInet4Bind | CgroupInet6Bind | CgroupInet4Connect | CgroupInet6Connect))
        }
        _ => true,
    }
}

/// What a program is made for.
struct Bound {
    device: Option<Arc<dyn OffloadDevice>>,
    target: Option<Arc<ProgObject>>,
    privilege: Privilege,
}

/// What the verifier is to hold the caller to.
fn privilege(has: impl Fn(Caps) -> bool) -> Privilege {
    match (has(Caps::BPF), has(Caps::PERFMON)) {
        (true, true) => Privilege::Full,
        (true, false) => Privilege::Bpf,
        (false, _) => Privilege::None,
    }
}

/// The function of a program that a type of its own names.
pub(super) fn function_of(prog: &ProgObject, type_id: u32) -> Result<Target, Errno> {
    let btf = prog.verified.program().btf.as_deref().ok_or(Errno::EINVAL)?;
    let is_func = matches!(btf.kind(type_id), Some(Kind::Func { .. }));
    if !is_func {
        return Err(Errno::EINVAL);
    }
    Ok(Target { program: Arc::clone(&prog.verified), function: btf.name(type_id).to_owned() })
}

/// A program that was verified, with what it uses.
struct Judged {
    verified: Arc<Verified>,
    loaded: Loaded,
    cells: Option<CellsPlace>,
    target: Option<Arc<ProgObject>>,
    maps: Vec<Arc<MapObject>>,
    /// Maps of `fd_array` that no instruction names.
    bound: Vec<Arc<MapObject>>,
    btf: Option<Arc<BtfObject>>,
    offloaded: Option<Offloaded>,
    func_info: (u32, Vec<u8>),
    line_info: (u32, Vec<u8>),
}

impl Subsystem {
    pub(super) fn prog_load(&self, client: &Client, attr: &mut Attr<'_>) -> Result<i32, Errno> {
        let mut load = Load {
            subsystem: self,
            client,
            attr,
            prog_type: ProgType::from_u32(attr.u32(f::PROG_TYPE)),
            attach: None,
            license: Vec::new(),
            code: Vec::new(),
            name: String::new(),
            device: None,
            target: None,
            token: None,
            charge: None,
            told: None,
        };
        for step in steps(self.config.profile) {
            step(&mut load)?;
        }
        let privilege = privilege(|caps| load.has(caps));
        let Load { prog_type, attach, license, code, name, device, target, charge, told, .. } = load;
        let prog_type = prog_type.ok_or(Errno::EINVAL)?;
        let modern = self.config.profile == Profile::Linux6_18;
        if modern && attr.u32(f::CORE_RELO_CNT) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }

        let mut log = LogBuffer::new(attr.u32(f::LOG_LEVEL), attr.u64(f::LOG_BUF), attr.u32(f::LOG_SIZE))?;
        let mut program = Program::new(&name, prog_type, &String::from_utf8_lossy(&license), insns(&code));
        program.attach_type = attach;
        program.flags = attr.u32(f::PROG_FLAGS) & !TOKEN_FD;
        program.kern_version = attr.u32(f::KERN_VERSION);
        let judged = self.judge(client, attr, program, Bound { device, target, privilege }, &mut log);
        let written = if modern { finish_log(client, attr, &log, f::LOG_TRUE_SIZE) } else { log.write(client) };
        let judged = judged?;
        written?;
        self.finish_load(client, judged, Owned { name, charge, told }, &code)
    }

    /// Resolves what the instructions refer to, and verifies.
    fn judge(
        &self,
        client: &Client,
        attr: &Attr<'_>,
        mut program: Program,
        Bound { device, target, privilege }: Bound,
        log: &mut LogBuffer,
    ) -> Result<Judged, Errno> {
        let modern = self.config.profile == Profile::Linux6_18;
        let mut func_info = (FUNC_RECORD, Vec::new());
        let mut line_info = (LINE_RECORD, Vec::new());
        let mut types = None;
        let mut bound = Vec::new();
        let mut fds = FdArray { at: 0 };
        if modern {
            program.attach_btf_id = attr.u32(f::ATTACH_BTF_ID);
            let funcs =
                resolve::records(client, attr, f::FUNC_INFO, f::FUNC_INFO_CNT, f::FUNC_INFO_REC_SIZE, FUNC_RECORD)?;
            let lines =
                resolve::records(client, attr, f::LINE_INFO, f::LINE_INFO_CNT, f::LINE_INFO_REC_SIZE, LINE_RECORD)?;
            // Without records nobody looks at the descriptor.
            if !funcs.bytes.is_empty() || !lines.bytes.is_empty() {
                let object = btf::by_fd(client, attr.fd(f::PROG_BTF_FD))?;
                program.func_info = funcs.words().map(|[insn, type_id]| FuncInfo { insn, type_id }).collect();
                program.line_info = lines.words().map(|words| line(&object, words)).collect();
                program.btf = Some(Arc::clone(&object.btf));
                types = Some(object);
            }
            (func_info, line_info) = ((funcs.size, funcs.bytes), (lines.size, lines.bytes));
            fds = FdArray { at: attr.u64(f::FD_ARRAY) };
            bound = fds.bound(client, attr.u32(f::FD_ARRAY_CNT))?;
        }
        let code: Vec<u8> = program.insns.iter().flat_map(|i| i.to_bytes()).collect();
        let maps = resolve::resolve_maps(client, &mut program.insns, &fds, modern, log)?;
        let digest = digest(&code);
        let others = |m: &Arc<MapObject>| m.exclusive.is_some_and(|only| only != digest);
        if maps.iter().chain(&bound).any(others) {
            log.add("a map is for one program alone, which is another one\n");
            return Err(Errno::EACCES);
        }
        let defs = maps.iter().map(|m| resolve::definition(m, types.as_ref())).collect::<Result<Vec<_>, _>>()?;
        program.maps = defs.into();

        let ifindex = attr.u32(f::PROG_IFINDEX);
        let offloaded = device.map(|d| Offloaded::prepare(ifindex, d, &program)).transpose()?;
        let options = Options {
            profile: self.config.profile.rules(),
            btf: self.config.kernel_btf.clone(),
            privilege,
            target: target.as_ref().map(|t| function_of(t, program.attach_btf_id)).transpose()?,
            device_bound: ifindex != 0 && program.flags & prog_flags::XDP_DEV_BOUND_ONLY != 0,
            log: log.detailed(),
            ..Options::default()
        };
        let cannot_run = if log.wanted() { words::of_helpers(&program.insns) } else { String::new() };
        let verified = verify(program, &options).map_err(|r| {
            log.add(&r.log);
            log.add(&format!("{r}\n"));
            log.add(words::of_rejection(&r));
            log.add(&cannot_run);
            match r.outcome {
                Outcome::Rejected => r.errno,
                Outcome::Unsupported => Errno::EOPNOTSUPP,
            }
        })?;
        log.add(verified.log());
        let prog_type = verified.program().prog_type;
        // Only functions that have types can be attached to.
        let typed = verified.program().btf.is_some() && !verified.program().func_info.is_empty();
        let functions = if typed { verified.subprogs().len().saturating_sub(1) } else { 0 };
        let cells = (functions > 0).then(|| self.world.reserve_cells(functions)).transpose()?;
        let indices: Arc<[u32]> = maps.iter().map(|m| m.place.index()).collect();
        let options = skep_jit::Options {
            engine: self.config.engine,
            maps: MapIndices::Each(indices),
            budget: true,
            bytecode: true,
            cells: cells.as_ref().and_then(CellsPlace::offset),
            extends: if prog_type == ProgType::Ext { verified.runs_as().map(|(t, _)| t) } else { None },
            ..skep_jit::Options::default()
        };
        self.fault(FaultPoint::ProgCompile)?;
        // Programs for functions cannot follow pointers that may lead nowhere.
        let follows = target.is_some() && verified.rewritten().reads_guarded();
        let runs = if self.config.idle && follows {
            Loaded::idle(&verified, &options)
        } else {
            Loaded::new(&verified, &options)
        };
        let loaded = runs.or_else(|e| {
            log.add(&format!("{e}\n"));
            log.add(&cannot_run);
            let idle = if self.config.idle { Loaded::idle(&verified, &options).ok() } else { None };
            idle.ok_or(Errno::ENOTSUPP)
        })?;
        if let Some(offloaded) = &offloaded {
            offloaded.translate(&verified)?;
        }
        Ok(Judged {
            verified: Arc::new(verified),
            loaded,
            cells,
            target,
            maps,
            bound,
            btf: types,
            offloaded,
            func_info,
            line_info,
        })
    }

    /// Makes the program runnable and gives it a number, then a descriptor. A failure leaves nothing behind.
    fn finish_load(&self, client: &Client, judged: Judged, owned: Owned, code: &[u8]) -> Result<i32, Errno> {
        let Judged { verified, loaded, cells, target, mut maps, bound, btf, offloaded, func_info, line_info } = judged;
        self.fault(FaultPoint::ProgPlace)?;
        let place = self.world.add_program(&loaded, maps.clone(), cells)?;
        let named_maps = maps.len();
        for map in bound {
            if !maps.iter().any(|m| Arc::ptr_eq(m, &map)) {
                maps.push(map);
            }
        }
        self.fault(FaultPoint::ProgId)?;
        let object = self.progs.add(|id| ProgObject {
            id,
            place,
            verified,
            loaded,
            target: Mutex::new(target),
            membership: Membership::default(),
            name: owned.name,
            maps: Mutex::new(maps),
            named_maps,
            btf,
            offloaded,
            uid: client.uid,
            load_time: crate::clock::boot_ns(),
            tag: tag(code),
            func_info,
            line_info,
            runs: RunStats::default(),
            counted: OnceLock::new(),
            charge: owned.charge,
            told: owned.told,
            symbols: OnceLock::new(),
        })?;
        self.publish(&object);
        // The number is public: from here on the program is put, not freed.
        self.install(client, Object::Prog(object))
    }

    /// Takes a program that was verified elsewhere, on its way from an object file: the same road, without attributes.
    /// `maps` are those that its instructions name, by index.
    pub(crate) fn take_program(
        &self,
        verified: Verified,
        loaded: Loaded,
        maps: Vec<Arc<MapObject>>,
    ) -> Result<Arc<ProgObject>, Errno> {
        let place = self.world.add_program(&loaded, maps.clone(), None)?;
        let code: Vec<u8> = verified.insns().iter().flat_map(|i| i.to_bytes()).collect();
        let object = self.progs.add(|id| ProgObject {
            id,
            place,
            name: short_name(loaded.name()),
            verified: Arc::new(verified),
            loaded,
            target: Mutex::new(None),
            membership: Membership::default(),
            named_maps: maps.len(),
            maps: Mutex::new(maps),
            btf: None,
            offloaded: None,
            uid: rustix::process::getuid().as_raw(),
            load_time: crate::clock::boot_ns(),
            tag: tag(&code),
            func_info: (FUNC_RECORD, Vec::new()),
            line_info: (LINE_RECORD, Vec::new()),
            runs: RunStats::default(),
            counted: OnceLock::new(),
            charge: None,
            told: None,
            symbols: OnceLock::new(),
        })?;
        self.publish(&object);
        Ok(object)
    }

    /// Tells profilers and debuggers of a program's machine code.
    fn publish(&self, prog: &ProgObject) {
        let (offset, base) = (self.world.code_offset(&prog.place), self.world.code_base());
        if let Some(published) = self.symbols.add_program((&prog.verified, &prog.loaded, prog.tag), offset, base) {
            let _ = prog.symbols.set(published);
        }
    }

    pub(super) fn prog_bind_map(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(prog_bind_map::END)?;
        if attr.u32(prog_bind_map::FLAGS) != 0 {
            return Err(Errno::EINVAL);
        }
        let Object::Prog(prog) = client.files.get(attr.fd(prog_bind_map::PROG_FD))? else {
            return Err(Errno::EINVAL);
        };
        let Object::Map(map, _) = client.files.get(attr.fd(prog_bind_map::MAP_FD))? else {
            return Err(Errno::EINVAL);
        };
        let mut maps = prog.maps();
        if !maps.iter().any(|m| Arc::ptr_eq(m, map.object())) {
            maps.push(Arc::clone(map.object()));
        }
        Ok(0)
    }
}

/// A name as objects bear it.
pub(super) fn short_name(name: &str) -> String {
    name.chars().take(15).collect()
}

/// What a load hands on to the program.
struct Owned {
    name: String,
    charge: Option<Charge>,
    told: Option<Told>,
}

fn line(types: &BtfObject, [insn, file, text, line]: [u32; 4]) -> LineInfo {
    let text_at = |off| types.btf.str_at(off).unwrap_or("");
    LineInfo {
        insn,
        file: text_at(file).into(),
        text: text_at(text).trim().into(),
        line: line >> 10,
        column: line & 0x3ff,
    }
}

fn insns(code: &[u8]) -> Vec<Insn> {
    code.chunks_exact(8).filter_map(|c| c.first_chunk()).map(|c| Insn::from_bytes(*c)).collect()
}

/// The first bytes of the [`digest`].
fn tag(code: &[u8]) -> [u8; 8] {
    let digest = digest(code);
    std::array::from_fn(|n| digest.get(n).copied().unwrap_or(0))
}

/// A digest over the instructions; descriptors in them do not count.
fn digest(code: &[u8]) -> [u8; 32] {
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
    Sha256::digest(&plain).into()
}
