// SPDX-License-Identifier: Apache-2.0
//! The kernel side: the only module that knows aya. It loads the programs, keeps them attached, writes the desired state
//! into the maps, reads what comes back, and destroys what policy revokes.
//!
//! Everything is pinned. Dropping a [`Kernel`] changes nothing in the kernel: enforcement goes on, and the next agent
//! takes over where this one stopped.

mod adopt;
mod around;
mod attach;
mod capabilities;
mod census;
mod counters;
mod descriptors;
mod destroy;
mod error;
mod glass;
mod guard;
mod hooks;
mod host;
mod keys;
mod live;
mod load;
mod lock;
mod log;
mod lsm;
mod mirror;
pub mod netlink;
pub mod netns;
mod nodes;
mod older;
mod raw;
mod refused;
mod rehearse;
mod reset;
mod ring;
mod shares;
mod sock_diag;
mod survey;
mod sweep;
mod sys;
mod tables;
mod urgent;
mod versions;
mod waiting;

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::MapData;
use zt_common::abi::{Peer, Workload};
use zt_common::address::Address;
use zt_common::control::{Control, MAX_ROOTS, Root};
use zt_common::entry::{AllowEntry, AllowKey};
use zt_common::names;

pub use self::adopt::Adopted;
pub use self::around::Foreign;
pub use self::attach::Mended;
pub use self::capabilities::{CAPABILITIES, Capability, absent, absent_of, check_privileges};
pub use self::census::{CgroupPrograms, LoadedProgram, programs, tree};
pub use self::counters::CounterReader;
pub use self::error::KernelError;
pub use self::glass::set_observe_all;
pub use self::guard::Guards;
pub use self::hooks::HookStatus;
pub use self::host::check_bpffs;
pub use self::load::{LINKER, Rehearsal, Wanted, object, rehearse};
pub use self::lock::{Claim, Holder, Lock};
pub use self::log::KernelLog;
pub use self::older::{Older, Search};
pub use self::raw::{RawSocket, cut_off};
pub use self::refused::RefusedSocket;
pub use self::rehearse::{destroy_one, fast_open_of};
pub use self::ring::Ring;
pub use self::sock_diag::owner_of;
pub use self::survey::{
    Alone, MapShape, PinnedLink, PinnedMap, PinnedVersion, foreign_beside, hooks_at, in_the_way, is_guard,
    pinned,
};
pub use self::sweep::{Fate, Revoked, Sweep};
pub use self::tables::{Directed, Directory};
pub use self::versions::{Removal, detach};

use self::attach::Attached;
use self::host::Pins;
use self::keys::Keys;
use self::load::Loaded;
use self::netns::Namespaces;
use self::nodes::Nodes;
use self::shares::Shares;
use self::tables::Tables;
use self::urgent::Urgent;
use crate::policy::AllowTable;

/// A managed root: where the hooks are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedRoot {
    /// The cgroup's directory.
    pub path: PathBuf,
    /// Its id.
    pub id: u64,
    /// Its depth below the cgroup2 mount.
    pub level: u32,
}

/// Programs that the kernel has verified and that are attached nowhere.
pub struct Verified(Loaded);

impl Verified {
    /// Loads the programs beside an agent that runs, on the maps that it has pinned. Nothing where it has not pinned
    /// them all: two who make pins at a time would be in each other's way.
    pub fn beside(bpffs: &Path, wanted: Wanted) -> Result<Option<Self>, KernelError> {
        let pins = Pins::below(bpffs);
        if !names::MAPS.iter().all(|name| pins.map(name).exists()) {
            return Ok(None);
        }
        Ok(Some(Self(Loaded::load(&pins, wanted)?)))
    }
}

/// The kernel side of this node.
pub struct Kernel {
    pins: Pins,
    lock: Arc<Lock>,
    loaded: Loaded,
    tables: Tables,
    keys: Keys,
    nodes: Nodes,
    connections: MapData,
    shares: Shares,
    /// The socket storage of other versions, as long as there are listeners that only they know.
    elders: Vec<OwnedFd>,
    /// Whether programs of another version have judged the handshakes of what is older than these.
    succeeds: bool,
    attached: Vec<Attached>,
    /// What came of attaching the program of packet sockets, as it was tried last.
    socket_create: Result<(), String>,
    guards: Guards,
    table: Option<Arc<AllowTable>>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Takes over what is pinned below the directory of the lock, with programs that are verified already or are verified now.
    /// Hooks that a predecessor left go on with its programs until [`Self::attach`].
    pub fn load(lock: Arc<Lock>, wanted: Wanted, verified: Option<Verified>) -> Result<Self, KernelError> {
        let pins = Pins::below(lock.bpffs());
        pins.prepare()?;
        let verified = verified.map(|verified| verified.0);
        let mut loaded = match verified.filter(|loaded| loaded.is_pinned(&pins)) {
            Some(loaded) => loaded,
            None => Loaded::load(&pins, wanted)?,
        };
        let tables = Tables::new(&mut loaded)?;
        let keys = Keys::open(&pins)?;
        let mut nodes = Nodes::open(&pins)?;
        nodes.mend_homes();
        let connections = load::open(&pins, names::CONNECTIONS)?;
        let shares = Shares::open(&pins)?;
        let guards = Guards::new(&pins)?;
        let elders = versions::sockets_of_others(&pins);
        let mut kernel = Self {
            pins,
            lock,
            loaded,
            tables,
            keys,
            nodes,
            connections,
            shares,
            elders,
            succeeds: false,
            attached: Vec::new(),
            socket_create: Ok(()),
            guards,
            table: None,
        };
        kernel.succeeds = kernel.is_beside();
        kernel.take_over_node_keys()?;
        Ok(kernel)
    }

    /// The table that a predecessor left in force; empty on a first start.
    pub fn left_in_force(&mut self) -> Result<HashMap<AllowKey, AllowEntry>, KernelError> {
        self.tables.left_in_force()
    }

    /// The workloads that a predecessor left in the map.
    pub fn workloads(&self) -> &HashMap<u64, Workload> {
        self.tables.workloads()
    }

    /// Ends what a predecessor began that died while it changed the modes of workloads. `revision` is that of the table in force.
    pub fn settle_modes(&mut self, revision: u64) -> Result<(), KernelError> {
        self.tables.settle_modes(revision)
    }

    /// How many virtual places are in the map.
    pub fn services(&self) -> usize {
        self.tables.services()
    }

    /// Puts a policy in force, whole. A table of the revision in force that only adds to it is added in place.
    ///
    /// Returns whether the table was swapped.
    pub fn enforce(&mut self, table: Arc<AllowTable>) -> Result<bool, KernelError> {
        self.enforce_with(table, &HashMap::new())
    }

    /// [`Self::enforce`], with the modes that workloads have from then on: policy and modes change in one step. Cgroup ids, and
    /// whether the workload enforces; a revision of its own is theirs. What the caller says of them afterwards
    /// ([`Self::direct`]) says the same.
    pub fn enforce_with(
        &mut self,
        table: Arc<AllowTable>,
        enforced: &HashMap<u64, bool>,
    ) -> Result<bool, KernelError> {
        if let Some(additions) = self
            .table
            .as_ref()
            .and_then(|in_force| table.additions_over(in_force))
            && self.tables.add(&additions, table.len())?
        {
            self.table = Some(table);
            return Ok(false);
        }
        if let Some(in_force) = &self.table {
            self.tables.settle_modes(in_force.revision())?;
        }
        let modes = self.tables.prepare_modes(enforced, table.revision())?;
        let _urgent = Urgent::begin();
        self.tables.swap(&table, modes)?;
        let revision = table.revision();
        self.table = Some(table);
        // No program uses the old table any more.
        if let Err(error) = self.tables.settle_modes(revision) {
            tracing::warn!(%error, "modes that changed with the policy are not written as they are now: they hold, and are written with the next change");
        }
        Ok(true)
    }

    /// Says who is who. Decisions that were cached under another directory are asked again.
    pub fn direct(&mut self, directory: &Directory) -> Result<Directed, KernelError> {
        let directed = self.tables.set_directory(directory);
        // Also where it was carried out in part: the next try does not see what this one changed.
        self.directory_changed(directed.as_ref().map_or(true, |directed| directed.changed))?;
        directed
    }

    /// Names one more cgroup at once.
    pub fn add_workload(&mut self, cgroup: u64, workload: Workload) -> Result<bool, KernelError> {
        let changed = self.tables.set_workload(cgroup, workload)?;
        self.directory_changed(changed)
    }

    /// Forgets a cgroup that has gone. Nobody asks for it any more.
    pub fn remove_workload(&mut self, cgroup: u64) -> Result<bool, KernelError> {
        self.tables.remove_workload(cgroup)
    }

    /// The addresses in the map.
    pub fn peers(&self) -> &HashMap<Address, Peer> {
        self.tables.peers()
    }

    /// Says who is at some addresses, and leaves all others as they are. Whether anything changed.
    pub fn set_peers(
        &mut self,
        peers: impl Iterator<Item = (Address, Option<Peer>)>,
    ) -> Result<bool, KernelError> {
        let changed = self.tables.set_peers(peers);
        // Also where it was carried out in part.
        self.directory_changed(*changed.as_ref().unwrap_or(&true))?;
        changed
    }

    /// Says which addresses are the namespaces' own.
    pub fn set_local(&mut self, namespaces: &Namespaces) -> Result<bool, KernelError> {
        let changed = self.tables.set_local(namespaces.local())?;
        self.directory_changed(changed)
    }

    fn directory_changed(&mut self, changed: bool) -> Result<bool, KernelError> {
        if changed {
            let mut control = self.tables.control()?;
            control.directory += 1;
            self.tables.set_control(control)?;
        }
        Ok(changed)
    }

    /// Sets the flags of [`zt_common::control`] and the managed roots. One write: every later decision sees all of it.
    pub fn set_control(
        &mut self,
        flags: u64,
        host_netns: u64,
        roots: &[ManagedRoot],
    ) -> Result<(), KernelError> {
        let before = self.tables.control()?;
        let mut control = Control {
            flags,
            host_netns,
            ..before
        };
        control.roots = [Root::default(); MAX_ROOTS];
        for (slot, root) in control.roots.iter_mut().zip(roots) {
            *slot = Root {
                id: root.id,
                level: root.level,
                reserved: 0,
            };
        }
        if control == before {
            return Ok(());
        }
        self.tables.set_control(control)
    }

    /// Guards the datagrams that a workload receives.
    pub fn guard(&mut self, cgroup: &Path, id: u64) -> Result<bool, KernelError> {
        self.hold_place()?;
        let program = self.loaded.program(hooks::UDP_GUARD.program)?.as_fd();
        self.guards.add(program, cgroup, id)
    }

    /// Takes the guard of a cgroup that is gone away.
    pub fn unguard(&mut self, id: u64) {
        self.guards.remove(id);
    }

    /// How many workloads' datagrams are guarded.
    pub fn guarded(&self) -> usize {
        self.guards.len()
    }

    /// The consuming end of the ring buffer.
    pub fn ring(&self) -> Result<Ring, KernelError> {
        Ring::open(&self.pins)
    }

    /// The kernel side's own log, if anybody wants it.
    pub fn log(&mut self) -> Result<KernelLog, KernelError> {
        KernelLog::new(self.loaded.ebpf())
    }

    /// A reader of the kernel's counters, for whoever wants to know.
    pub fn counter_reader(&self) -> Result<CounterReader, KernelError> {
        CounterReader::open(&self.pins)
    }

    /// The table in force, once there is one.
    pub fn table(&self) -> Option<&Arc<AllowTable>> {
        self.table.as_ref()
    }

    /// The flags in force.
    pub fn flags(&self) -> Result<u64, KernelError> {
        Ok(self.tables.control()?.flags)
    }
}

/// The workload of a cgroup, among those of the map.
pub type Owner<'a> = dyn Fn(u64, &HashMap<u64, Workload>) -> Option<u64> + 'a;
