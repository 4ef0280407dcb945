// SPDX-License-Identifier: Apache-2.0
//! Who is who, into the kernel's maps: cgroups and addresses.

mod claim;

use std::collections::HashMap;

use zt_common::abi::{MODE_ENFORCE, MODE_OBSERVE, PEER_HERE, Peer, Workload};
use zt_common::address::Address;
use zt_common::identity;

use self::claim::claim;
use super::cgroups::Cgroups;
use super::modes::{ModeChange, untold};
use super::numbers::Numbers;
use super::unnamed::Unnamed;
use super::workloads::entry;
use super::{AppError, Node};
use crate::identity::Mode;
use crate::kernel::{Directory, netns};
use crate::state::Placed;

/// What came of writing who is who.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes {
    /// A cgroup is another workload than it was, or in another mode.
    pub renamed: bool,
    /// A cgroup inside a workload's became one of its own.
    pub resettled: bool,
}

/// What stays as the kernel knows it when it is told who is who.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing.
    Nothing,
    /// The modes of those that it knows: they change with the policy that is about to be swapped in.
    Modes,
}

impl Node {
    /// Writes who is who into the kernel, by the numbers of the table in force.
    pub(super) fn direct(&mut self) -> Result<Changes, AppError> {
        self.direct_untold(&[])
    }

    /// Does the same, and leaves it to whoever asks to have these changes of modes recorded.
    pub(super) fn direct_untold(&mut self, told: &[ModeChange]) -> Result<Changes, AppError> {
        self.write_by(&self.numbers(), Keep::Nothing, told)
    }

    /// By which numbers the kernel is told of names now.
    pub(super) fn numbers(&self) -> Numbers {
        Numbers::of(self.parts.kernel.table()).without(&self.unruled)
    }

    /// Writes who is who into the kernel by these numbers.
    pub(super) fn direct_by(&mut self, numbers: &Numbers, keep: Keep) -> Result<Changes, AppError> {
        self.write_by(numbers, keep, &[])
    }

    fn write_by(&mut self, numbers: &Numbers, keep: Keep, told: &[ModeChange]) -> Result<Changes, AppError> {
        self.write_all_residents(numbers);
        let mut directory = Directory {
            workloads: self.wanted_workloads(numbers),
            ..Directory::default()
        };
        if keep == Keep::Modes {
            for (id, workload) in &mut directory.workloads {
                let before = self.parts.kernel.workloads().get(id);
                workload.mode = before.map_or(workload.mode, |before| before.mode);
            }
        }
        // Most addresses are elsewhere, and are what they were.
        directory.peers.reserve(self.parts.kernel.peers().len());
        for address in netns::addresses().unwrap_or_default() {
            let host = Peer {
                identity: identity::HOST,
                flags: PEER_HERE,
                node: 0,
            };
            directory.peers.insert(address, host);
        }
        for placed in self.places.placed().iter() {
            let peer = Peer {
                identity: numbers.workload(&placed.record.spiffe),
                flags: PEER_HERE,
                node: 0,
            };
            for address in &placed.record.addresses {
                let address = Address::from(*address);
                if placed.record.pod.is_some() {
                    claim(&mut directory.peers, address, peer);
                } else {
                    // What a person wrote holds of the host's own addresses too.
                    directory.peers.insert(address, peer);
                }
            }
        }
        for address in &self.nobody {
            let nobody = Peer {
                identity: identity::UNKNOWN,
                flags: PEER_HERE,
                node: 0,
            };
            claim(&mut directory.peers, Address::from(*address), nobody);
        }
        for (address, peer) in self.elsewhere.peers(numbers) {
            claim(&mut directory.peers, address, peer);
        }
        for address in self.fronting.virtual_addresses() {
            let nobody = Peer {
                identity: identity::UNKNOWN,
                flags: 0,
                node: 0,
            };
            directory.peers.entry(Address::from(address)).or_insert(nobody);
        }
        directory.services = self.fronting.entries(numbers);
        let before = self.parts.kernel.workloads();
        let new: Vec<u64> = directory
            .workloads
            .keys()
            .filter(|id| !before.contains_key(id))
            .copied()
            .collect();
        // A cgroup that is still there and no longer has an entry is what the one around it is.
        let fell_back = before
            .keys()
            .any(|id| !directory.workloads.contains_key(id) && self.cgroups.path(*id).is_some());
        // Whoever is attested runs already, and may have connections from when it was nobody.
        let attested = new.iter().any(|id| {
            let known = self.cgroups.path(*id).and_then(|path| self.attested.get(path));
            known.is_some_and(|(known, _)| known == id)
        });
        let modes = untold(self.changing_to(&directory.workloads), told);
        let directed = self.parts.kernel.direct(&directory);
        self.note_modes(&modes);
        let workloads = self.parts.kernel.workloads();
        let resettled = new
            .iter()
            .any(|id| workloads.contains_key(id) && self.cgroups.above(*id, workloads).is_some());
        // Where a part failed, the next try finds these there already.
        self.pending.recover |= resettled && directed.is_err();
        Ok(Changes {
            renamed: directed?.renamed || fell_back || attested,
            resettled,
        })
    }

    /// The cgroup of a workload, where there is the one that is meant.
    pub(super) fn cgroup_of(&self, placed: &Placed) -> Option<u64> {
        let here = self.cgroups.id(&placed.record.cgroup);
        here.filter(|id| placed.record.cgroup_id.is_none_or(|meant| meant == *id))
    }

    /// What the kernel shall know of cgroups.
    pub(super) fn wanted_workloads(&self, numbers: &Numbers) -> HashMap<u64, Workload> {
        // What is nested in one is found by it: it takes no room of its own.
        let placed = self.places.placed().iter();
        let mut wanted = placed
            .filter_map(|placed| Some((self.cgroup_of(placed)?, entry(placed, numbers))))
            .collect();
        self.name_the_disputed(&mut wanted);
        add_nobodies(
            &self.known_workloads(),
            &self.cgroups,
            &self.unnamed,
            &|id| self.enforced_as.is_released(id, &self.modes),
            !self.is_at_work,
            &mut wanted,
        );
        if self.modes.rollout().is_some() {
            self.unnamed.spare_itself(&self.cgroups, &mut wanted);
        }
        wanted
    }

    /// A cgroup that the sources disagree about is nobody, whatever is around it, and as strict as any of them would
    /// have it.
    fn name_the_disputed(&self, wanted: &mut HashMap<u64, Workload>) {
        let (modes, known) = (&self.modes, self.known_workloads());
        for dispute in &self.disputes {
            let here = self.cgroups.id(&dispute.cgroup);
            let Some(id) = here.filter(|id| dispute.cgroup_id.is_none_or(|meant| meant == *id)) else {
                continue;
            };
            let was_strict = known.get(&id).is_some_and(|known| known.mode == MODE_ENFORCE);
            let strict = was_strict && !self.enforced_as.is_released(id, modes)
                || dispute.mode == Some(Mode::Enforce)
                || [&dispute.file, &dispute.kubernetes, &dispute.spire]
                    .into_iter()
                    .flatten()
                    .any(|id| modes.of(id) == Mode::Enforce);
            let nobody = Workload {
                identity: identity::UNKNOWN,
                mode: if strict { MODE_ENFORCE } else { MODE_OBSERVE },
                reserved: [0; 7],
            };
            wanted.insert(id, nobody);
        }
    }
}

/// Adds what holds of cgroups that have no name. One that was enforced upon stays so, also where `modes` would leave its pod
/// alone: no name that it loses makes it freer. Only when an agent begins, what `modes` says comes first: it may have been
/// changed because somebody was locked out, who would be so for good. And whom a stage of a rollout had enforce that is no longer in
/// force is `released`.
fn add_nobodies(
    before: &HashMap<u64, Workload>,
    cgroups: &Cgroups,
    unnamed: &Unnamed,
    released: &dyn Fn(u64) -> bool,
    begins: bool,
    wanted: &mut HashMap<u64, Workload>,
) {
    unnamed.leave_itself_alone(cgroups, wanted);
    if begins {
        unnamed.leave_alone(cgroups, wanted);
    }
    let lost = lost(before, cgroups, unnamed, released, wanted);
    wanted.extend(lost);
    unnamed.leave_alone(cgroups, wanted);
}

/// A workload stays as strict as it was when its identity is lost: as long as its cgroup exists it is nobody, and refused what
/// nobody may do if it was enforced upon, and nothing if it was not, whatever holds of those who never had a name. Inside the
/// cgroup of another one it is that one, unless that one is less strict.
fn lost(
    before: &HashMap<u64, Workload>,
    cgroups: &Cgroups,
    unnamed: &Unnamed,
    released: &dyn Fn(u64) -> bool,
    wanted: &HashMap<u64, Workload>,
) -> Vec<(u64, Workload)> {
    let is_lost = |id: u64, strict: bool| match cgroups.nearest(id, wanted) {
        Some(nearest) if nearest == id => false,
        Some(around) => {
            strict
                && wanted
                    .get(&around)
                    .is_some_and(|around| around.mode != MODE_ENFORCE)
        }
        None => true,
    };
    let mut lost = Vec::new();
    for (id, workload) in before {
        let Some(path) = cgroups.path(*id) else { continue };
        let strict = workload.mode == MODE_ENFORCE && !released(*id);
        // A configuration that is stricter by now holds.
        if is_lost(*id, strict) && (strict || !unnamed.is_strict(path)) {
            let nobody = Workload {
                identity: identity::UNKNOWN,
                mode: if strict { MODE_ENFORCE } else { MODE_OBSERVE },
                ..*workload
            };
            lost.push((*id, nobody));
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(identity: u64, mode: u8) -> Workload {
        Workload {
            identity,
            mode,
            reserved: [0; 7],
        }
    }

    #[test]
    fn what_was_enforced_stays_so_whatever_is_around_it() {
        let paths = [("r/pod", 1), ("r/pod/web", 2), ("r/job", 3)];
        let cgroups = Cgroups::new(paths.into_iter().map(|(path, id)| (path.into(), id)).collect());
        let (named, strict) = (identity::UNKNOWN + 7, MODE_ENFORCE);
        let before = HashMap::from([(2, workload(named, strict)), (3, workload(named, strict))]);
        let lost = |wanted: &HashMap<u64, Workload>| -> HashMap<u64, Workload> {
            lost(&before, &cgroups, &Unnamed::default(), &|_| false, wanted)
                .into_iter()
                .collect()
        };
        let nobody = workload(identity::UNKNOWN, strict);
        let around = HashMap::from([(1, workload(named, MODE_OBSERVE))]);
        assert_eq!(lost(&around), HashMap::from([(2, nobody), (3, nobody)]));
        let around = HashMap::from([(1, workload(named, strict))]);
        assert_eq!(lost(&around), HashMap::from([(3, nobody)]));
        // The file says so of itself: that is no loss.
        let itself = HashMap::from([(2, workload(named, MODE_OBSERVE)), (3, workload(named, strict))]);
        assert!(lost(&itself).is_empty());
    }

    #[test]
    fn a_pod_that_would_be_left_alone_stays_enforced_when_it_loses_its_name_until_an_agent_begins() {
        let paths = [("r/poda", 1), ("r/podb", 2), ("r/podc", 3)];
        let cgroups = Cgroups::new(paths.into_iter().map(|(path, id)| (path.into(), id)).collect());
        let named = identity::UNKNOWN + 7;
        let before = HashMap::from([
            (1, workload(named, MODE_ENFORCE)),
            (2, workload(named, MODE_OBSERVE)),
        ]);
        let unnamed = Unnamed::observed_in(&["r/poda", "r/podb", "r/podc"]);
        let added = |begins| {
            let mut wanted = HashMap::new();
            add_nobodies(&before, &cgroups, &unnamed, &|_| false, begins, &mut wanted);
            wanted
        };
        let nobody = |mode| workload(identity::UNKNOWN, mode);
        let free = nobody(MODE_OBSERVE);
        assert_eq!(
            added(false),
            HashMap::from([(1, nobody(MODE_ENFORCE)), (2, free), (3, free)])
        );
        assert_eq!(
            added(true),
            HashMap::from([(1, free), (2, free), (3, free)]),
            "what is configured by now"
        );
        // What is in the cgroup of an enforced workload is that workload.
        let slice = [("r", 9), ("r/poda", 1)].map(|(path, id)| (path.into(), id));
        let cgroups = Cgroups::new(slice.into_iter().collect());
        let around = workload(named, MODE_ENFORCE);
        let mut wanted = HashMap::from([(9, around)]);
        add_nobodies(
            &HashMap::new(),
            &cgroups,
            &unnamed,
            &|_| false,
            false,
            &mut wanted,
        );
        assert_eq!(wanted, HashMap::from([(9, around)]));
    }

    #[test]
    fn whom_a_stage_had_enforce_is_free_when_it_goes_back_though_he_has_lost_his_name() {
        let paths = [("r/pod", 1), ("r/other", 2)];
        let cgroups = Cgroups::new(paths.into_iter().map(|(path, id)| (path.into(), id)).collect());
        let unknown = |mode| workload(identity::UNKNOWN, mode);
        let before = HashMap::from([1, 2].map(|id| (id, unknown(MODE_ENFORCE))));
        let mut wanted = HashMap::new();
        let unnamed = Unnamed::default();
        add_nobodies(&before, &cgroups, &unnamed, &|id| id == 1, false, &mut wanted);
        let expected = HashMap::from([(1, unknown(MODE_OBSERVE)), (2, unknown(MODE_ENFORCE))]);
        assert_eq!(wanted, expected);
    }

    #[test]
    fn what_was_observed_stays_so_unless_what_is_around_it_is_somebody_or_the_configuration_is_stricter() {
        let paths = [("r/pod", 1), ("r/pod/web", 2), ("r/job", 3), ("r/new", 4)];
        let cgroups = Cgroups::new(paths.into_iter().map(|(path, id)| (path.into(), id)).collect());
        let named = identity::UNKNOWN + 7;
        let before = HashMap::from([2, 3].map(|id| (id, workload(named, MODE_OBSERVE))));
        let lost = |unnamed: &Unnamed, wanted: &HashMap<u64, Workload>| -> HashMap<u64, Workload> {
            lost(&before, &cgroups, unnamed, &|_| false, wanted)
                .into_iter()
                .collect()
        };
        let nobody = workload(identity::UNKNOWN, MODE_OBSERVE);
        let none = HashMap::new();
        let expected = HashMap::from([(2, nobody), (3, nobody)]);
        let anybody = Unnamed::default();
        assert_eq!(lost(&anybody, &none), expected, "the new one never had a name");
        for mode in [MODE_OBSERVE, MODE_ENFORCE] {
            let around = HashMap::from([(1, workload(named, mode))]);
            assert_eq!(lost(&anybody, &around), HashMap::from([(3, nobody)]));
        }
        let strict = Unnamed::strict_in("r/pod");
        assert_eq!(lost(&strict, &none), HashMap::from([(3, nobody)]));
    }
}
