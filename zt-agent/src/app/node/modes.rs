// SPDX-License-Identifier: Apache-2.0
//! Changes of workloads' modes, found by what the kernel knows. Each is on record, whoever made it: what a rollout changes in its
//! record, and what a file or a source of identities does, also while no agent ran, in one of its own.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};
use zt_common::abi::{MODE_ENFORCE, Workload, settled};

use super::Node;
use super::numbers::Numbers;
use crate::audit::pipeline::ApiEvent;
use crate::identity::Mode;
use crate::policy::AllowTable;

/// Most workloads that a record names; it says how many there were.
const MOST_NAMED: usize = 50;

/// A cgroup that the kernel knows comes to be in another mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ModeChange {
    cgroup: u64,
    from: Mode,
    to: Mode,
    /// Whoever it is, it is the same before and after.
    keeps_name: bool,
}

impl ModeChange {
    /// Whether a swap of tables may carry it out: who gets another name with it has both written at once, so that he is at no
    /// moment in the new mode by the old name.
    pub(super) const fn keeps_name(&self) -> bool {
        self.keeps_name
    }

    /// Who is to be refused nothing any more comes first.
    const fn place(&self) -> (bool, u64) {
        (matches!(self.to, Mode::Enforce), self.cgroup)
    }
}

/// Changes with a swap of tables and those of whoever gets another name with it, in one list.
pub(super) fn together(modes: Vec<ModeChange>, renamed: Vec<ModeChange>) -> Vec<ModeChange> {
    let mut all = modes;
    all.extend(renamed);
    all.sort_unstable_by_key(ModeChange::place);
    all
}

/// Those of `changes` that were `left` to be made already, and the others: those that whoever makes them now has brought about.
pub(super) fn apart(changes: &[ModeChange], left: &[ModeChange]) -> (Vec<ModeChange>, Vec<ModeChange>) {
    let left: HashMap<u64, Mode> = left.iter().map(|change| (change.cgroup, change.to)).collect();
    let was_left = |change: &ModeChange| left.get(&change.cgroup) == Some(&change.to);
    changes.iter().copied().partition(was_left)
}

/// Those of `changes` that nobody has `told` of: they are about other cgroups.
pub(super) fn untold(mut changes: Vec<ModeChange>, told: &[ModeChange]) -> Vec<ModeChange> {
    let told: HashSet<u64> = told.iter().map(|change| change.cgroup).collect();
    changes.retain(|change| !told.contains(&change.cgroup));
    changes
}

/// The same as the kernel side takes it: whether each enforces from the swap on, by its cgroup.
pub(super) fn at_once(changes: &[ModeChange]) -> HashMap<u64, bool> {
    let enforces = |change: &ModeChange| (change.cgroup, change.to == Mode::Enforce);
    changes.iter().map(enforces).collect()
}

/// How many come to enforce, and how many to observe.
pub(super) fn counts(changes: &[ModeChange]) -> (usize, usize) {
    let to_enforce = changes.iter().filter(|change| change.to == Mode::Enforce);
    let to_enforce = to_enforce.count();
    (to_enforce, changes.len() - to_enforce)
}

/// In which mode a workload is under a policy of that revision.
const fn mode_at(mode: u8, revision: u64) -> Mode {
    if settled(mode, revision) == MODE_ENFORCE {
        Mode::Enforce
    } else {
        Mode::Observe
    }
}

/// Those that are `known`, each in the mode itself that it has under a policy of `revision`.
fn all_settled(known: &HashMap<u64, Workload>, revision: u64) -> Cow<'_, HashMap<u64, Workload>> {
    let settled_one = |workload: &Workload| Workload {
        mode: settled(workload.mode, revision),
        ..*workload
    };
    if known.values().all(|workload| *workload == settled_one(workload)) {
        return Cow::Borrowed(known);
    }
    let all = known.iter();
    Cow::Owned(
        all.map(|(cgroup, workload)| (*cgroup, settled_one(workload)))
            .collect(),
    )
}

/// Those of the cgroups that are `known` which are `wanted` in another mode, while the policy of `revision` is in force. Who is to be
/// refused nothing any more comes first.
fn changes(
    known: &HashMap<u64, Workload>,
    wanted: &HashMap<u64, Workload>,
    revision: u64,
) -> Vec<ModeChange> {
    let change = |(cgroup, before): (&u64, &Workload)| {
        let now = wanted.get(cgroup)?;
        let change = ModeChange {
            cgroup: *cgroup,
            from: mode_at(before.mode, revision),
            to: mode_at(now.mode, revision),
            keeps_name: before.identity == now.identity,
        };
        (change.from != change.to).then_some(change)
    };
    let mut changes: Vec<ModeChange> = known.iter().filter_map(change).collect();
    changes.sort_unstable_by_key(ModeChange::place);
    changes
}

/// The first of them for a record. `who`: the name of a cgroup, if it has one, and its path.
fn listed(changes: &[ModeChange], who: impl Fn(u64) -> (Option<String>, Option<String>)) -> Value {
    let first = changes.iter().take(MOST_NAMED);
    first
        .map(|change| {
            let (spiffe_id, cgroup) = who(change.cgroup);
            json!({
                "spiffe_id": spiffe_id,
                "cgroup": cgroup,
                "from": change.from.name(),
                "to": change.to.name(),
            })
        })
        .collect()
}

impl Node {
    /// Cgroups that are in another mode than these have them.
    pub(super) fn changing_to(&self, wanted: &HashMap<u64, Workload>) -> Vec<ModeChange> {
        changes(self.parts.kernel.workloads(), wanted, self.swapped_in())
    }

    /// Cgroups that are in another mode than they are to be in when this table is in force and has rules for everybody: those that
    /// may change with the swap, and those that get another name with it.
    pub(super) fn changing_modes(
        &self,
        table: Option<&Arc<AllowTable>>,
    ) -> (Vec<ModeChange>, Vec<ModeChange>) {
        // By the numbers that names will have. One that has no rules yet is nobody until the swap: who gets it would seem to keep his.
        let wanted = self.wanted_workloads(&Numbers::of(table));
        self.changing_to(&wanted)
            .into_iter()
            .partition(ModeChange::keeps_name)
    }

    /// What the kernel knows of cgroups, each in the mode itself that it has under the table that decides.
    pub(super) fn known_workloads(&self) -> Cow<'_, HashMap<u64, Workload>> {
        all_settled(self.parts.kernel.workloads(), self.swapped_in())
    }

    /// Those of these changes that are in force.
    pub(super) fn carried_out(&self, changes: &[ModeChange]) -> Vec<ModeChange> {
        let (known, revision) = (self.parts.kernel.workloads(), self.swapped_in());
        let is_in_force = |change: &&ModeChange| {
            let now = known.get(&change.cgroup);
            now.is_some_and(|now| mode_at(now.mode, revision) == change.to)
        };
        changes.iter().filter(is_in_force).copied().collect()
    }

    /// Has it recorded who has come to be in another mode without a rollout: those of these changes that are in force.
    pub(super) fn note_modes(&self, changes: &[ModeChange]) {
        let (changes, revision) = (self.carried_out(changes), self.swapped_in());
        if changes.is_empty() {
            return;
        }
        let (to_enforce, to_observe) = counts(&changes);
        let (caller, cause) = self.whose_modes();
        tracing::warn!(
            %caller,
            to_enforce,
            to_observe,
            revision,
            "workloads are in another mode"
        );
        let what = json!({
            "mode": "workloads",
            "cause": cause,
            "to_enforce": to_enforce,
            "to_observe": to_observe,
            "workloads": self.listed_modes(&changes),
        });
        self.parts.intake.note(ApiEvent::ModesChanged {
            caller,
            what,
            revision,
        });
    }

    /// The first of them, by name, for a record.
    pub(super) fn listed_modes(&self, changes: &[ModeChange]) -> Value {
        let placed = self.places.placed().iter();
        let names: HashMap<u64, &str> = placed
            .filter_map(|placed| Some((self.cgroup_of(placed)?, placed.record.spiffe.as_str())))
            .collect();
        listed(changes, |cgroup| {
            let path = self.cgroups.path(cgroup);
            (
                names.get(&cgroup).map(|name| (*name).to_owned()),
                path.map(|path| path.display().to_string()),
            )
        })
    }

    /// The revision of the table that decides. When an agent begins there is none yet, and no mode depends on it.
    fn swapped_in(&self) -> u64 {
        self.parts.kernel.table().map_or(0, |table| table.revision())
    }

    /// Whose doing it is that modes change now, and how.
    fn whose_modes(&self) -> (Arc<str>, &'static str) {
        if !self.is_at_work {
            (Arc::from("restart"), "restart")
        } else if self.file_is_new {
            let file = self.parts.config.identity.file.display();
            (format!("file {file}").into(), "workloads")
        } else {
            (Arc::from("sources"), "identities")
        }
    }
}

#[cfg(test)]
mod tests {
    use zt_common::abi::{MODE_OBSERVE, mode_between};
    use zt_common::identity;

    use super::*;

    const NAMED: u64 = identity::UNKNOWN + 7;

    fn workload(identity: u64, mode: u8) -> Workload {
        Workload {
            identity,
            mode,
            reserved: [0; 7],
        }
    }

    #[test]
    fn who_is_known_in_another_mode_changes_and_who_stops_enforcing_is_named_first() {
        let known = HashMap::from([
            (1, workload(NAMED, MODE_OBSERVE)),
            (2, workload(NAMED, MODE_ENFORCE)),
            (3, workload(identity::UNKNOWN, MODE_ENFORCE)),
            (4, workload(NAMED, MODE_ENFORCE)),
            (5, workload(NAMED, MODE_ENFORCE)),
        ]);
        let wanted = HashMap::from([
            (1, workload(NAMED, MODE_ENFORCE)),
            (2, workload(NAMED, MODE_OBSERVE)),
            (3, workload(NAMED, MODE_OBSERVE)),
            (4, workload(NAMED + 1, MODE_ENFORCE)),
            // Nobody has known it in another mode.
            (6, workload(NAMED, MODE_ENFORCE)),
        ]);
        let found = changes(&known, &wanted, 7);
        let said: Vec<(u64, Mode, bool)> = found
            .iter()
            .map(|change| (change.cgroup, change.to, change.keeps_name()))
            .collect();
        assert_eq!(
            said,
            [
                (2, Mode::Observe, true),
                (3, Mode::Observe, false),
                (1, Mode::Enforce, true)
            ]
        );
        assert!(found.iter().all(|change| change.from != change.to));
        assert_eq!(counts(&found), (1, 2));
        assert_eq!(
            at_once(&found),
            HashMap::from([(1, true), (2, false), (3, false)])
        );
    }

    /// Fails where what a rollout does to somebody who gets another name with it is recorded as the name's doing, and where what could
    /// not be written before is recorded as the rollout's.
    #[test]
    fn each_change_is_of_whoever_brought_it_about() {
        let change = |cgroup, to, keeps_name| ModeChange {
            cgroup,
            from: Mode::Observe,
            to,
            keeps_name,
        };
        let kept = [change(2, Mode::Observe, true), change(1, Mode::Enforce, true)];
        let renamed = [change(3, Mode::Observe, false), change(4, Mode::Enforce, false)];
        let all = together(kept.to_vec(), renamed.to_vec());
        let cgroups = |changes: &[ModeChange]| changes.iter().map(|change| change.cgroup).collect::<Vec<_>>();
        assert_eq!(cgroups(&all), [2, 3, 1, 4], "who stops enforcing is named first");

        // It was to enforce anyway; another one was to come to the other mode.
        let left = [change(1, Mode::Enforce, true), change(3, Mode::Enforce, true)];
        let (others, own) = apart(&all, &left);
        assert_eq!((cgroups(&others), cgroups(&own)), (vec![1], vec![2, 3, 4]));
        let (others, own) = apart(&all, &[]);
        assert_eq!((others.len(), own), (0, all.clone()));

        assert_eq!(cgroups(&untold(all.clone(), &renamed)), [2, 1]);
        assert_eq!(untold(all.clone(), &[]), all);
    }

    /// Fails where what is in the map is compared, and not what it means: a change that a swap made would be recorded twice.
    #[test]
    fn a_mode_that_changed_with_a_swap_is_what_it_is_under_the_revision_in_force() {
        let between = HashMap::from([(1, workload(NAMED, mode_between(true, 8)))]);
        let [enforcing, observing] =
            [MODE_ENFORCE, MODE_OBSERVE].map(|mode| HashMap::from([(1, workload(NAMED, mode))]));
        assert!(changes(&between, &enforcing, 8).is_empty());
        assert!(changes(&between, &observing, 7).is_empty());
        assert_eq!(changes(&between, &observing, 8).len(), 1);
        assert_eq!(changes(&between, &enforcing, 7).len(), 1);
        // So does whoever asks who enforces: one who loses his name then stays as strict as he has become.
        assert_eq!(*all_settled(&between, 8), enforcing);
        assert_eq!(*all_settled(&between, 7), observing);
        assert!(matches!(all_settled(&enforcing, 7), Cow::Borrowed(_)));
    }

    #[test]
    fn a_record_names_the_first_of_them_and_no_more_than_it_has_room_for() {
        let change = |cgroup| ModeChange {
            cgroup,
            from: Mode::Enforce,
            to: Mode::Observe,
            keeps_name: true,
        };
        let many: Vec<ModeChange> = (0..MOST_NAMED as u64 + 9).map(change).collect();
        let said = listed(&many, |cgroup| {
            let name = (cgroup == 0).then(|| "spiffe://hanzo.ai/a".to_owned());
            (name, Some(format!("pods/{cgroup}")))
        });
        let said = said.as_array().expect("a list");
        assert_eq!(said.len(), MOST_NAMED);
        assert_eq!(
            said[0],
            json!({ "spiffe_id": "spiffe://hanzo.ai/a", "cgroup": "pods/0", "from": "enforce", "to": "observe" })
        );
        assert_eq!(
            (&said[1]["spiffe_id"], &said[1]["cgroup"]),
            (&Value::Null, &json!("pods/1"))
        );
        assert_eq!(counts(&many), (0, MOST_NAMED + 9));
    }
}
