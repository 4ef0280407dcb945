// SPDX-License-Identifier: Apache-2.0
//! The desired state, written into the maps: what is added is added before anything can ask for it, and a change of
//! policy is one swap.

mod listeners;
mod modes;

use std::collections::HashMap;
use std::os::fd::AsFd as _;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, HashMap as KernelMap, LpmTrie, Map, MapData};
use ipnet::IpNet;
use zt_common::abi::{LocalKey, PEER_HERE, Peer, Service, ServiceKey, Workload};
use zt_common::address::Address;
use zt_common::control::Control;
use zt_common::entry::{AllowEntry, AllowKey, Shapes};
use zt_common::names;

use super::error::KernelError;
use super::load::Loaded;
use super::mirror::{Mirror, Replaced};
use super::sys;
use crate::policy::{AllowTable, Networks};

pub(super) use self::listeners::Noted;

const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_LPM_TRIE: u32 = 11;

/// Entries beyond those of a table for which room is left, so that new identities are added in place.
const HEADROOM: usize = 1024;

type Inner = KernelMap<MapData, AllowKey, AllowEntry>;
type NetworkTrie = LpmTrie<MapData, Address, u64>;

/// The maps that the agent writes.
pub(super) struct Tables {
    allow: ArrayOfMaps<MapData, Inner>,
    networks: ArrayOfMaps<MapData, NetworkTrie>,
    control: Array<MapData, Control>,
    workloads: Mirror<u64, Workload>,
    peers: Mirror<Address, Peer>,
    services: Mirror<ServiceKey, Service>,
    local: Mirror<LocalKey, u64>,
    listeners: MapData,
    /// The inner map in force, what it has room for, and where its networks are.
    in_force: Option<InForce>,
    /// The slot that a predecessor's table looks at.
    left_slot: u32,
}

struct InForce {
    map: Inner,
    room: usize,
    networks: Networks,
    slot: u32,
}

/// An entry as the kernel holds it: the header names the slot of the table's networks.
fn with_slot((key, mut entry): (AllowKey, AllowEntry), slot: u32) -> (AllowKey, AllowEntry) {
    if key == AllowKey::HEADER && slot == 1 {
        entry.bits |= Shapes::NETWORK_SLOT;
    }
    (key, entry)
}

/// Who is who, as the maps shall say it.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Cgroup id → identity and mode.
    pub workloads: HashMap<u64, Workload>,
    /// Address → identity.
    pub peers: HashMap<Address, Peer>,
    /// Virtual place → identity and target port.
    pub services: HashMap<ServiceKey, Service>,
}

/// What came of a new directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directed {
    /// It differs from the one before.
    pub changed: bool,
    /// A cgroup that was one workload is another one now, or in another mode.
    pub renamed: bool,
}

/// What came of each map. That one has no room for all hides nothing else that is wrong with another.
fn all_done<const N: usize>(
    outcomes: [Result<Replaced, KernelError>; N],
) -> Result<[Replaced; N], KernelError> {
    let mut done = [Replaced::default(); N];
    let mut failed = None;
    for (done, outcome) in done.iter_mut().zip(outcomes) {
        match outcome {
            Ok(replaced) => *done = replaced,
            Err(error) if matches!(failed, None | Some(KernelError::TooMany { .. })) => failed = Some(error),
            // One error is told at a time.
            Err(_) => {}
        }
    }
    failed.map_or(Ok(done), Err)
}

impl Tables {
    pub(super) fn new(loaded: &mut Loaded) -> Result<Self, KernelError> {
        fn typed<T: TryFrom<Map>>(loaded: &mut Loaded, name: &'static str) -> Result<T, KernelError>
        where
            T::Error: std::fmt::Display,
        {
            T::try_from(loaded.take(name)?).map_err(KernelError::map(name))
        }
        Ok(Self {
            allow: typed(loaded, names::ALLOW)?,
            networks: typed(loaded, names::NETWORKS)?,
            control: typed(loaded, names::CONTROL)?,
            workloads: Mirror::new(
                names::WORKLOADS,
                typed(loaded, names::WORKLOADS)?,
                names::MAX_WORKLOADS,
            )?,
            peers: Mirror::new(names::PEERS, typed(loaded, names::PEERS)?, names::MAX_PEERS)?,
            services: Mirror::new(
                names::SERVICES,
                typed(loaded, names::SERVICES)?,
                names::MAX_SERVICES,
            )?,
            local: Mirror::new(names::LOCAL, typed(loaded, names::LOCAL)?, names::MAX_LOCAL)?,
            listeners: listeners::open(loaded)?,
            in_force: None,
            left_slot: 0,
        })
    }

    /// The table that a predecessor left in force.
    pub(super) fn left_in_force(&mut self) -> Result<HashMap<AllowKey, AllowEntry>, KernelError> {
        match self.allow.get(&0, 0) {
            Ok(inner) => {
                let mut entries: HashMap<AllowKey, AllowEntry> = inner
                    .iter()
                    .collect::<Result<_, _>>()
                    .map_err(KernelError::map(names::ALLOW))?;
                if let Some(header) = entries.get_mut(&AllowKey::HEADER) {
                    self.left_slot = u32::from(Shapes(header.bits).has(Shapes::NETWORK_SLOT));
                    header.bits &= !Shapes::NETWORK_SLOT;
                }
                Ok(entries)
            }
            Err(aya::maps::MapError::KeyNotFound) => Ok(HashMap::new()),
            Err(error) => Err(KernelError::map(names::ALLOW)(error)),
        }
    }

    /// Puts a whole new table in force: built off-line, then one swap. The kernel's answer comes when no program uses
    /// the old table any more. `modes`: workloads change theirs with it, which [`Self::prepare_modes`] has written.
    pub(super) fn swap(&mut self, table: &AllowTable, modes: bool) -> Result<(), KernelError> {
        let limit = names::MAX_ALLOW_ENTRIES as usize;
        if table.len() > limit {
            return Err(KernelError::TooLarge {
                needed: table.len(),
                limit,
            });
        }
        let room = (table.len() + HEADROOM).min(limit);
        let fd = sys::create_map(
            MAP_TYPE_HASH,
            "zt_allow_table",
            size_of::<AllowKey>(),
            size_of::<AllowEntry>(),
            room as u32,
            0,
            true,
        )
        .map_err(KernelError::map(names::ALLOW))?;
        let slot = self.place_networks(table.networks(), modes)?;
        let (keys, values): (Vec<_>, Vec<_>) = table.entries().map(|entry| with_slot(entry, slot)).unzip();
        sys::update_batch(fd.as_fd(), &keys, &values).map_err(KernelError::map(names::ALLOW))?;
        let inner = MapData::from_fd(fd).map_err(KernelError::map(names::ALLOW))?;
        let inner = Inner::try_from(Map::HashMap(inner)).map_err(KernelError::map(names::ALLOW))?;
        self.allow
            .set(0, &inner, 0)
            .map_err(KernelError::map(names::ALLOW))?;
        self.in_force = Some(InForce {
            map: inner,
            room,
            networks: table.networks().clone(),
            slot,
        });
        Ok(())
    }

    /// Writes new entries into the table in force, in the order given. Whether there was room; else swap.
    pub(super) fn add(
        &mut self,
        additions: &[(AllowKey, AllowEntry)],
        total: usize,
    ) -> Result<bool, KernelError> {
        let Some(in_force) = self.in_force.as_mut().filter(|in_force| total <= in_force.room) else {
            return Ok(false);
        };
        for addition in additions {
            let (key, entry) = with_slot(*addition, in_force.slot);
            in_force
                .map
                .insert(key, entry, 0)
                .map_err(KernelError::map(names::ALLOW))?;
        }
        Ok(true)
    }

    /// Puts the networks of the table to come where the table in force does not look, and says where. Networks that
    /// stay the same stay where they are: each slot written costs a wait for every program that runs. `wait`: just that is
    /// wanted, so that no program that has read something before uses it under the table to come.
    fn place_networks(&mut self, networks: &Networks, wait: bool) -> Result<u32, KernelError> {
        const NO_PREALLOC: u32 = 1;
        let slot = match &self.in_force {
            Some(in_force) if !wait && in_force.networks == *networks => return Ok(in_force.slot),
            Some(in_force) => 1 - in_force.slot,
            None => 1 - self.left_slot,
        };
        let entries: Vec<(IpNet, u64)> = networks.entries().collect();
        let fd = sys::create_map(
            MAP_TYPE_LPM_TRIE,
            "zt_network_trie",
            size_of::<Key<Address>>(),
            size_of::<u64>(),
            entries.len().max(1) as u32,
            NO_PREALLOC,
            // Its values are numbers, of which the kernel knows all.
            false,
        )
        .map_err(KernelError::map(names::NETWORKS))?;
        let trie = MapData::from_fd(fd).map_err(KernelError::map(names::NETWORKS))?;
        let mut trie =
            NetworkTrie::try_from(Map::LpmTrie(trie)).map_err(KernelError::map(names::NETWORKS))?;
        for (network, number) in entries {
            let (bits, address) = match network {
                IpNet::V4(v4) => (
                    96 + u32::from(v4.prefix_len()),
                    Address::from_v4(v4.network().octets()),
                ),
                IpNet::V6(v6) => (u32::from(v6.prefix_len()), Address(v6.network().octets())),
            };
            trie.insert(&Key::new(bits, address), number, 0)
                .map_err(KernelError::map(names::NETWORKS))?;
        }
        self.networks
            .set(slot, &trie, 0)
            .map_err(KernelError::map(names::NETWORKS))?;
        Ok(slot)
    }

    /// Says who is who. Addresses before cgroups: a new workload can be named by the others before it can speak.
    /// (Groups are in the table by then, so that what a place leads to has its entries before the place does.) What one map has no
    /// room for keeps nothing as it was in the others. Of addresses, those of this node come first.
    pub(super) fn set_directory(&mut self, directory: &Directory) -> Result<Directed, KernelError> {
        let peers = self
            .peers
            .replace_with(&directory.peers, |peer| peer.flags & PEER_HERE != 0);
        let services = self.services.replace(&directory.services);
        let workloads = self.workloads.replace(&directory.workloads);
        let [peers, services, workloads] = all_done([peers, services, workloads])?;
        Ok(Directed {
            changed: peers.changed || services.changed || workloads.changed,
            renamed: workloads.altered,
        })
    }

    /// One more workload, at once. Whether it was not known as that.
    pub(super) fn set_workload(&mut self, cgroup: u64, workload: Workload) -> Result<bool, KernelError> {
        self.workloads.set(cgroup, workload)
    }

    /// A workload whose cgroup has gone. Whether it was known.
    pub(super) fn remove_workload(&mut self, cgroup: u64) -> Result<bool, KernelError> {
        self.workloads.remove(&cgroup)
    }

    /// The workloads in the map.
    pub(super) fn workloads(&self) -> &HashMap<u64, Workload> {
        self.workloads.content()
    }

    /// The addresses in the map.
    pub(super) fn peers(&self) -> &HashMap<Address, Peer> {
        self.peers.content()
    }

    /// Who is at some addresses: what goes, goes first, and whoever is new comes last, as there may be no room for him. Whether anything
    /// changed.
    pub(super) fn set_peers(
        &mut self,
        peers: impl Iterator<Item = (Address, Option<Peer>)>,
    ) -> Result<bool, KernelError> {
        let mut changed = false;
        let mut wanted = Vec::new();
        for (address, peer) in peers {
            match peer {
                Some(peer) => wanted.push((address, peer)),
                None => changed |= self.peers.remove(&address)?,
            }
        }
        wanted.sort_by_key(|(address, _)| !self.peers.content().contains_key(address));
        for (address, peer) in wanted {
            changed |= self.peers.set(address, peer)?;
        }
        Ok(changed)
    }

    /// What stands behind a virtual place, by the map.
    pub(super) fn service(&self, address: Address, port: u16, protocol: u8) -> Option<Service> {
        let key = ServiceKey {
            address,
            port,
            protocol,
            reserved: 0,
        };
        self.services.content().get(&key).copied()
    }

    /// How many virtual places the map has.
    pub(super) fn services(&self) -> usize {
        self.services.content().len()
    }

    /// The namespaces' own addresses. Whether anything changed.
    pub(super) fn set_local(
        &mut self,
        local: impl Iterator<Item = (u64, Address)>,
    ) -> Result<bool, KernelError> {
        let wanted = local
            .map(|(netns, address)| (LocalKey { netns, address }, 1))
            .collect();
        Ok(self.local.replace(&wanted)?.changed)
    }

    /// Whether an address is a namespace's own.
    pub(super) fn is_local(&self, netns: u64, address: &Address) -> bool {
        address.is_loopback()
            || address.is_unspecified()
            || self.local.content().contains_key(&LocalKey {
                netns,
                address: *address,
            })
    }

    /// The switches in force.
    pub(super) fn control(&self) -> Result<Control, KernelError> {
        self.control.get(&0, 0).map_err(KernelError::map(names::CONTROL))
    }

    /// Sets the switches: one write, seen by every later decision.
    pub(super) fn set_control(&mut self, control: Control) -> Result<(), KernelError> {
        self.control
            .set(0, control, 0)
            .map_err(KernelError::map(names::CONTROL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_room_in_one_map_hides_nothing_that_is_wrong_with_another() {
        let done = Replaced {
            changed: true,
            altered: false,
        };
        let full = || {
            Err(KernelError::TooMany {
                map: names::PEERS,
                needed: 2,
                limit: 1,
            })
        };
        let broken = || Err(KernelError::map(names::SERVICES)("gone"));
        assert!(
            all_done([Ok(done), Ok(Replaced::default())]).is_ok_and(|all| all == [done, Replaced::default()])
        );
        for outcomes in [[full(), Ok(done)], [Ok(done), full()]] {
            assert!(matches!(all_done(outcomes), Err(KernelError::TooMany { .. })));
        }
        for outcomes in [[full(), broken()], [broken(), full()]] {
            assert!(matches!(all_done(outcomes), Err(KernelError::Map { .. })));
        }
    }
}
