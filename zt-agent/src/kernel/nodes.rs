// SPDX-License-Identifier: Apache-2.0
//! Other nodes: who lives there, and the keys of handshakes with them. A node is a number of this agent's.

use std::collections::{BTreeSet, HashMap, HashSet};

use aya::maps::{HashMap as KernelMap, Map, MapData};
use zt_common::abi::{Homes, KeyId, MOST_HOMES, Node, ResidentKey};
use zt_common::handshake::EPOCH_MASK;
use zt_common::names;
use zt_common::siphash::Key;

use super::error::KernelError;
use super::host::Pins;
use super::keys::Keys;
use super::mirror::Mirror;
use super::{Kernel, load, versions};

/// The maps of other nodes, but for that of keys.
pub(super) struct Nodes {
    used: Mirror<u32, Node>,
    residents: Mirror<ResidentKey, u64>,
    homes: Mirror<u64, Homes>,
    /// Who lives where, by node.
    by_node: HashMap<u32, HashSet<u64>>,
    by_identity: HashMap<u64, BTreeSet<u32>>,
    /// Nodes and identities that moved there or away, where the homes of the identity were not written since.
    unwritten: BTreeSet<(u32, u64)>,
}

impl Nodes {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        fn map<K: aya::Pod, V: aya::Pod>(
            pins: &Pins,
            name: &'static str,
        ) -> Result<KernelMap<MapData, K, V>, KernelError> {
            let map = Map::HashMap(load::open(pins, name)?);
            map.try_into().map_err(KernelError::map(name))
        }
        let residents = map(pins, names::RESIDENTS)?;
        let residents: Mirror<ResidentKey, u64> =
            Mirror::new(names::RESIDENTS, residents, names::MAX_RESIDENTS)?;
        let mut by_node: HashMap<u32, HashSet<u64>> = HashMap::new();
        let mut by_identity: HashMap<u64, BTreeSet<u32>> = HashMap::new();
        for key in residents.content().keys() {
            by_node.entry(key.node).or_default().insert(key.identity);
            by_identity.entry(key.identity).or_default().insert(key.node);
        }
        Ok(Self {
            used: Mirror::new(names::NODES, map(pins, names::NODES)?, names::MAX_NODES)?,
            homes: Mirror::new(names::HOMES, map(pins, names::HOMES)?, names::MAX_HOMES)?,
            residents,
            by_node,
            by_identity,
            unwritten: BTreeSet::new(),
        })
    }

    /// Writes the homes that an earlier run could not write, and takes out those of identities that live nowhere.
    pub(super) fn mend_homes(&mut self) {
        let nobody_s = self.homes.content().keys();
        let nobody_s = nobody_s.filter(|identity| !self.by_identity.contains_key(identity));
        // First: what is to be written needs room. These have no node, and 0 is none.
        let mut homes: Vec<(u32, u64)> = nobody_s.map(|identity| (0, *identity)).collect();
        let living = self.by_identity.iter();
        homes.extend(living.filter_map(|(identity, nodes)| Some((*nodes.first()?, *identity))));
        let mut done = Ok(());
        for (node, identity) in homes {
            done = done.and(self.write_home(node, identity));
        }
        if let Err(error) = done {
            tracing::warn!(%error, "on which nodes identities live is not written whole: it is written when it is said who lives there");
        }
    }

    /// Says who lives on a node: those who are new first. What fails of it is done when this is said once more.
    fn live(&mut self, node: u32, identities: &HashSet<u64>) -> Result<(), KernelError> {
        let unwritten = self.unwritten.range((node, 0)..=(node, u64::MAX));
        let unwritten: Vec<u64> = unwritten.map(|(_, identity)| *identity).collect();
        if unwritten.is_empty() && self.by_node.get(&node) == Some(identities) {
            return Ok(());
        }
        let before = self.by_node.remove(&node).unwrap_or_default();
        let key = |identity: u64| ResidentKey {
            node,
            reserved: 0,
            identity,
        };
        let mut done = Ok(());
        let mut live = before.clone();
        for identity in identities.difference(&before) {
            let set = self.residents.set(key(*identity), 1).map(drop);
            if set.is_err() {
                // There is no room for more of them.
                done = done.and(set);
                break;
            }
            live.insert(*identity);
            self.by_identity.entry(*identity).or_default().insert(node);
            done = done.and(self.write_home(node, *identity));
        }
        for identity in before.difference(identities) {
            let removed = self.residents.remove(&key(*identity)).map(drop);
            if removed.is_err() {
                done = done.and(removed);
                continue;
            }
            live.remove(identity);
            if let Some(homes) = self.by_identity.get_mut(identity) {
                homes.remove(&node);
            }
            done = done.and(self.write_home(node, *identity));
        }
        for identity in unwritten {
            done = done.and(self.write_home(node, identity));
        }
        if !live.is_empty() {
            self.by_node.insert(node, live);
        }
        done
    }

    /// Says on which nodes an identity lives that moved to this one, or away from it.
    fn write_home(&mut self, node: u32, identity: u64) -> Result<(), KernelError> {
        let written = self.write_homes(identity);
        if written.is_ok() {
            self.unwritten.remove(&(node, identity));
        } else {
            self.unwritten.insert((node, identity));
        }
        written
    }

    fn write_homes(&mut self, identity: u64) -> Result<(), KernelError> {
        let Some(nodes) = self.by_identity.get(&identity).filter(|nodes| !nodes.is_empty()) else {
            self.by_identity.remove(&identity);
            return self.homes.remove(&identity).map(drop);
        };
        let mut homes = Homes {
            nodes: [0; MOST_HOMES],
        };
        for (slot, node) in homes.nodes.iter_mut().zip(nodes) {
            *slot = *node;
        }
        self.homes.set(identity, homes).map(drop)
    }
}

impl Kernel {
    /// Begins with the keys of handshakes with other nodes that another version of the agent has left, where this one has none: those
    /// nodes go on with them. A version whose maps are laid out otherwise has left nothing that could be read.
    pub(super) fn take_over_node_keys(&mut self) -> Result<(), KernelError> {
        if !self.keys.nodes()?.is_empty() {
            return Ok(());
        }
        for directory in versions::others(&self.pins)? {
            let pins = Pins::at(directory);
            let (Ok(keys), Ok(nodes)) = (Keys::open(&pins), Nodes::open(&pins)) else {
                continue;
            };
            self.keys.take_over(&keys)?;
            for (node, used) in nodes.used.content() {
                self.nodes.used.set(*node, *used)?;
            }
        }
        Ok(())
    }

    /// Epochs of the keys in use towards other nodes, by node.
    pub fn node_epochs(&self) -> HashMap<u32, u64> {
        let nodes = self.nodes.used.content().iter();
        nodes.map(|(node, used)| (*node, used.epoch)).collect()
    }

    /// Forgets all other nodes but these.
    pub fn keep_nodes(&mut self, nodes: &HashSet<u32>) -> Result<(), KernelError> {
        let known = self.nodes.used.content().keys();
        let mut known: HashSet<u32> = known.chain(self.nodes.by_node.keys()).copied().collect();
        // Also of one towards which no key is in use.
        known.extend(self.keys.nodes()?);
        for node in known.difference(nodes) {
            self.forget_node_keys(*node)?;
            self.set_residents(*node, &HashSet::new())?;
        }
        Ok(())
    }

    /// Says which identities live on a node. Of what does not fit, some are left out, and the rest is there.
    pub fn set_residents(&mut self, node: u32, identities: &HashSet<u64>) -> Result<(), KernelError> {
        self.nodes.live(node, identities)
    }

    /// Verifies what a node sends with this key too, and with those in the places that are needed, and with no others.
    pub fn verify_node(
        &mut self,
        node: u32,
        epoch: u64,
        key: Key,
        needed: &[u64],
    ) -> Result<(), KernelError> {
        self.keys.place(KeyId::from(node, epoch), key)?;
        self.need_keys(node, needed)
    }

    /// Forgets keys of what a node sends that are in none of these places.
    pub fn need_keys(&mut self, node: u32, needed: &[u64]) -> Result<(), KernelError> {
        for slot in (0..=EPOCH_MASK).filter(|slot| !needed.contains(slot)) {
            self.keys.remove(KeyId::from(node, slot))?;
        }
        Ok(())
    }

    /// Sends to a node with this key from now on. The one before stays for who looks it up in this moment.
    pub fn use_key(&mut self, node: u32, epoch: u64, key: Key) -> Result<(), KernelError> {
        let before = self.nodes.used.content().get(&node).map_or(0, |node| node.epoch);
        self.keys.place(KeyId::to(node, epoch), key)?;
        self.nodes.used.set(node, Node { epoch, reserved: 0 })?;
        let needed = [before, epoch].map(|epoch| epoch & EPOCH_MASK);
        for slot in (0..=EPOCH_MASK).filter(|slot| !needed.contains(slot)) {
            // The new key is in use: what else is there is not sent with, and goes with the next one.
            if let Err(error) = self.keys.remove(KeyId::to(node, slot)) {
                tracing::warn!(%error, "an old key of handshakes with another node could not be removed");
            }
        }
        Ok(())
    }

    /// Forgets all keys of all nodes.
    pub fn forget_all_node_keys(&mut self) -> Result<(), KernelError> {
        let used: Vec<u32> = self.nodes.used.content().keys().copied().collect();
        let nodes: HashSet<u32> = used.into_iter().chain(self.keys.nodes()?).collect();
        nodes.into_iter().try_for_each(|node| self.forget_node_keys(node))
    }

    /// Forgets all keys of a node: no option is sent there any more, and none from there verifies.
    pub fn forget_node_keys(&mut self, node: u32) -> Result<(), KernelError> {
        self.nodes.used.remove(&node)?;
        for slot in 0..=EPOCH_MASK {
            self.keys.remove(KeyId::to(node, slot))?;
            self.keys.remove(KeyId::from(node, slot))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::mirror::fake::Fake;
    use super::*;

    const NODE: u32 = 3;

    /// The maps of a test, and what is written there.
    struct Written {
        residents: Fake<ResidentKey, u64>,
        homes: Fake<u64, Homes>,
        nodes: Nodes,
    }

    impl Written {
        fn new() -> Self {
            let (residents, homes) = (Fake::new(), Fake::new());
            let nodes = Nodes {
                used: Fake::new().mirror(8),
                residents: residents.mirror(8),
                homes: homes.mirror(8),
                by_node: HashMap::new(),
                by_identity: HashMap::new(),
                unwritten: BTreeSet::new(),
            };
            Self {
                residents,
                homes,
                nodes,
            }
        }

        /// Says who lives on the node. Whether that was written whole.
        fn live<const N: usize>(&mut self, identities: [u64; N]) -> bool {
            self.nodes.live(NODE, &HashSet::from(identities)).is_ok()
        }

        /// Who lives there by what is known, and by the maps of residents and of homes.
        fn who(&self) -> [BTreeSet<u64>; 3] {
            let known = self.nodes.by_node.get(&NODE).into_iter().flatten().copied();
            let residents = self.residents.content();
            let residents = residents.keys().filter(|key| key.node == NODE);
            let homes = self.homes.content();
            let homes = homes.iter().filter(|(_, homes)| homes.nodes.contains(&NODE));
            [
                known.collect(),
                residents.map(|key| key.identity).collect(),
                homes.map(|(identity, _)| *identity).collect(),
            ]
        }
    }

    fn each<const N: usize>(identities: [u64; N]) -> [BTreeSet<u64>; 3] {
        [(); 3].map(|()| BTreeSet::from(identities))
    }

    #[test]
    fn a_home_that_could_not_be_written_is_written_when_the_same_is_said_again() {
        let mut written = Written::new();
        written.homes.fail(true);
        assert!(!written.live([7, 8]));
        assert!(!written.live([7, 8]), "it still fails");
        written.homes.fail(false);
        assert!(written.live([7, 8]));
        assert_eq!(written.who(), each([7, 8]));
        // One that could not be taken out, too, when all have left.
        written.homes.fail(true);
        assert!(!written.live([]));
        written.homes.fail(false);
        assert!(written.live([]));
        assert_eq!(written.who(), each([]));
        assert!(written.homes.content().is_empty());
    }

    #[test]
    fn a_home_that_an_earlier_run_could_not_write_is_mended() {
        let mut written = Written::new();
        assert!(written.live([6, 7]));
        written.homes.fail(true);
        assert!(!written.live([7, 8]));
        // What was left to do went with that run.
        written.nodes.unwritten.clear();
        written.nodes.mend_homes();
        assert_eq!(written.nodes.unwritten, BTreeSet::from([(0, 6), (NODE, 8)]));
        written.nodes.unwritten.clear();
        written.homes.fail(false);
        written.nodes.mend_homes();
        assert_eq!(written.who(), each([7, 8]));
        assert!(written.nodes.unwritten.is_empty());
        assert_eq!(written.homes.content().len(), 2);
    }

    #[test]
    fn who_could_not_be_written_does_not_live_there_yet() {
        let mut written = Written::new();
        written.residents.fail(true);
        assert!(!written.live([7]));
        assert_eq!(written.who(), each([]));
        written.residents.fail(false);
        assert!(written.live([7]));
        written.residents.fail(true);
        assert!(!written.live([7, 8]));
        assert_eq!(written.who(), each([7]), "the others are there");
        written.residents.fail(false);
        assert!(written.live([7, 8]));
        assert_eq!(written.who(), each([7, 8]));
    }

    #[test]
    fn who_could_not_be_taken_out_still_lives_there_and_goes_next_time() {
        let mut written = Written::new();
        assert!(written.live([7, 8]));
        written.residents.fail(true);
        assert!(!written.live([8]));
        assert_eq!(written.who(), each([7, 8]));
        written.residents.fail(false);
        assert!(written.live([8]));
        assert_eq!(written.who(), each([8]));
    }
}
