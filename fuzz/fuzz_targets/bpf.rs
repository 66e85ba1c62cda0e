//! Commands of `bpf(2)` with any attributes, on a client whose memory is bytes of the input: nothing may panic, hang, or
//! be left behind. With `SKEP_FUZZ_COMMAND=N` every other call is that command, so that a campaign can go command by
//! command (the calls between make the objects that it works on).
#![no_main]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use skep_ebpf::btf::Btf;
use skep_subsystem::front::client::{Files, Memory};
use skep_subsystem::front::object::Object;
use skep_subsystem::front::token::Delegation;
use skep_subsystem::front::{Alive, Caps, Client, Config, Errno, Subsystem};

/// Where the client's memory begins.
const BASE: u64 = 0x1_0000;
const SIZE: usize = 1 << 14;

struct Space(Mutex<Vec<u8>>);

impl Memory for Space {
    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), Errno> {
        let memory = self.0.lock().unwrap();
        let at = usize::try_from(from.wrapping_sub(BASE)).map_err(|_| Errno::EFAULT)?;
        let end = at.checked_add(to.len()).ok_or(Errno::EFAULT)?;
        to.copy_from_slice(memory.get(at..end).ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&self, to: u64, from: &[u8]) -> Result<(), Errno> {
        let mut memory = self.0.lock().unwrap();
        let at = usize::try_from(to.wrapping_sub(BASE)).map_err(|_| Errno::EFAULT)?;
        let end = at.checked_add(from.len()).ok_or(Errno::EFAULT)?;
        memory.get_mut(at..end).ok_or(Errno::EFAULT)?.copy_from_slice(from);
        Ok(())
    }
}

#[derive(Default)]
struct Table(Mutex<HashMap<i32, Object>>);

impl Files for Table {
    fn install(&self, object: Object) -> Result<i32, Errno> {
        let mut table = self.0.lock().unwrap();
        let fd = table.len() as i32 + 3;
        table.insert(fd, object);
        Ok(fd)
    }

    fn get(&self, fd: i32) -> Result<Object, Errno> {
        self.0.lock().unwrap().get(&fd).cloned().ok_or(Errno::EBADF)
    }
}

/// The command that is to be called more than others.
fn chosen() -> Option<u32> {
    static CHOSEN: OnceLock<Option<u32>> = OnceLock::new();
    *CHOSEN.get_or_init(|| std::env::var("SKEP_FUZZ_COMMAND").ok()?.parse().ok())
}

/// With the types of the kernel that runs here, if it tells them, and a tree of pins that delegates everything.
fn subsystem() -> Subsystem {
    let types = std::fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|b| Btf::parse(&b).ok());
    let config = Config {
        slots: 2,
        kernel_btf: types.map(Arc::new),
        delegate: Some(Delegation::ANY),
        ..Config::default()
    };
    Subsystem::new(config).expect("memory for a subsystem")
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    thread_local! {
        static SUBSYSTEM: Subsystem = subsystem();
    }
    SUBSYSTEM.with(|subsystem| {
        let Some((&calls, rest)) = bytes.split_first() else { return };
        let mut rest = rest;
        let mut commands = Vec::new();
        for _ in 0..calls % 8 {
            let Some((&[cmd, words], tail)) = rest.split_first_chunk() else { break };
            let len = usize::from(words % 48) * 4;
            let attr = tail.get(..len).unwrap_or(tail);
            let number = chosen().filter(|_| commands.len() % 2 == 1).unwrap_or(u32::from(cmd % 38));
            commands.push((number, attr.to_vec()));
            rest = tail.get(len..).unwrap_or_default();
        }
        let mut memory = rest.to_vec();
        memory.resize(SIZE, 0);
        let files: Arc<Table> = Arc::default();
        let client = Client {
            memory: Box::new(Space(Mutex::new(memory))),
            files: Box::new(files.clone()),
            caps: Caps::ALL,
            uid: 1,
            memlock: 1 << 24,
            task: None,
        };
        // Tokens are made of the first descriptor.
        let _ = subsystem.open_folder(&client, "/sys/fs/bpf");
        for (cmd, mut attr) in commands {
            // Four billion rounds of a test run would be right, and long.
            if cmd == 10 && attr.len() >= 36 {
                attr[33..36].fill(0);
            }
            let _ = subsystem.bpf(&client, cmd, &mut attr);
        }
        let last = files.0.lock().unwrap().len() as i32 + 3;
        for fd in 3..last {
            // Most are no iterators.
            let _ = subsystem.iter_read(&client, fd, BASE, 4096);
        }
        drop(client);
        files.0.lock().unwrap().clear();
        let pins: Vec<String> = subsystem.pinned();
        pins.iter().for_each(|path| assert!(subsystem.unpin(path)));
        assert_eq!(subsystem.alive(), Alive::default());
        assert_eq!(subsystem.accounts().pages(1), 0);
    });
});
