//! The commands, and which code answers each.

use skep_ebpf::Errno;

use super::attr::Attr;
use super::client::Client;
use super::{Subsystem, info};

macro_rules! commands {
    ($($name:ident = $number:literal;)*) => {
        /// A command of `bpf(2)` (`enum bpf_cmd`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        #[allow(missing_docs, reason = "the names are the user API's")]
        pub enum Command { $($name = $number,)* }

        impl Command {
            /// Every command.
            pub const ALL: &'static [Command] = &[$(Command::$name,)*];

            /// The command with this number.
            pub const fn from_u32(n: u32) -> Option<Command> {
                match n { $($number => Some(Command::$name),)* _ => None }
            }
        }
    };
}

commands! {
    MapCreate = 0;
    MapLookupElem = 1;
    MapUpdateElem = 2;
    MapDeleteElem = 3;
    MapGetNextKey = 4;
    ProgLoad = 5;
    ObjPin = 6;
    ObjGet = 7;
    ProgAttach = 8;
    ProgDetach = 9;
    ProgTestRun = 10;
    ProgGetNextId = 11;
    MapGetNextId = 12;
    ProgGetFdById = 13;
    MapGetFdById = 14;
    ObjGetInfoByFd = 15;
    ProgQuery = 16;
    RawTracepointOpen = 17;
    BtfLoad = 18;
    BtfGetFdById = 19;
    TaskFdQuery = 20;
    MapLookupAndDeleteElem = 21;
    MapFreeze = 22;
    BtfGetNextId = 23;
    MapLookupBatch = 24;
    MapLookupAndDeleteBatch = 25;
    MapUpdateBatch = 26;
    MapDeleteBatch = 27;
    LinkCreate = 28;
    LinkUpdate = 29;
    LinkGetFdById = 30;
    LinkGetNextId = 31;
    EnableStats = 32;
    IterCreate = 33;
    LinkDetach = 34;
    ProgBindMap = 35;
    TokenCreate = 36;
}

impl Subsystem {
    pub(super) fn run_command(&self, client: &Client, command: Command, attr: &mut Attr<'_>) -> Result<i32, Errno> {
        match command {
            Command::MapCreate => self.map_create(client, attr),
            Command::MapLookupElem => self.map_lookup(client, attr),
            Command::MapUpdateElem => self.map_update(client, attr),
            Command::MapDeleteElem => self.map_delete(client, attr),
            Command::MapGetNextKey => self.map_next_key(client, attr),
            Command::MapLookupAndDeleteElem => self.map_lookup_and_delete(client, attr),
            Command::MapFreeze => self.map_freeze(client, attr),
            Command::MapLookupBatch => self.map_lookup_batch(client, attr, false),
            Command::MapLookupAndDeleteBatch => self.map_lookup_batch(client, attr, true),
            Command::MapUpdateBatch => self.map_update_batch(client, attr),
            Command::MapDeleteBatch => self.map_delete_batch(client, attr),
            Command::ProgLoad => self.prog_load(client, attr),
            Command::ProgTestRun => self.prog_test_run(client, attr),
            Command::ProgBindMap => self.prog_bind_map(client, attr),
            Command::BtfLoad => self.btf_load(client, attr),
            Command::ObjPin => self.obj_pin(client, attr),
            Command::ObjGet => self.obj_get(client, attr),
            Command::ObjGetInfoByFd => info::by_fd(self, client, attr),
            Command::ProgGetNextId => info::next_id(client, attr, &self.progs),
            Command::MapGetNextId => info::next_id(client, attr, &self.maps),
            Command::BtfGetNextId => info::next_id(client, attr, &self.btfs),
            Command::ProgGetFdById => self.prog_fd_by_id(client, attr),
            Command::MapGetFdById => self.map_fd_by_id(client, attr),
            Command::BtfGetFdById => self.btf_fd_by_id(client, attr),
            Command::EnableStats => self.enable_stats(client, attr),
            Command::ProgAttach => self.prog_attach(client, attr),
            Command::ProgDetach => self.prog_detach(client, attr),
            Command::ProgQuery => self.prog_query(client, attr),
            Command::RawTracepointOpen => self.raw_tracepoint_open(client, attr),
            Command::TaskFdQuery => self.task_fd_query(client, attr),
            Command::LinkCreate => self.link_create(client, attr),
            Command::LinkUpdate => self.link_update(client, attr),
            Command::LinkDetach => self.link_detach(client, attr),
            Command::LinkGetFdById => self.link_fd_by_id(client, attr),
            Command::LinkGetNextId => info::next_id(client, attr, &self.links),
            Command::IterCreate => self.iter_create(client, attr),
            Command::TokenCreate => self.token_create(client, attr),
        }
    }
}
