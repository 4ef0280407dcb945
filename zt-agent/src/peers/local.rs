// SPDX-License-Identifier: Apache-2.0
//! What this node says of itself: who is in force here, and what SVIDs they have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;

use crate::identity::WorkloadRecord;
use crate::identity::peers::{Identity, Local, Resident, Svids, is_reachable};
use crate::state::{Placed, Snapshot};

/// Keeps `local` what is in force, until nobody looks. Nothing is said to others before it is known once.
pub async fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut svids: watch::Receiver<Svids>,
    local: watch::Sender<Option<Arc<Local>>>,
) {
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let now = of(
            &snapshot.workloads,
            &snapshot.nameless,
            &svids.borrow_and_update(),
        );
        local.send_if_modified(|before| {
            // Before anything is in force nothing is known of who is here.
            let differs = snapshot.revision != 0 && before.as_ref().is_none_or(|before| before.differs(&now));
            if differs {
                *before = Some(Arc::new(now));
            }
            differs
        });
        let changed = tokio::select! {
            changed = snapshots.changed() => changed.is_ok(),
            // Where no SVIDs come, the sender has gone.
            Ok(()) = svids.changed() => true,
            () = local.closed() => false,
        };
        if !changed {
            return;
        }
    }
}

/// What these workloads come to.
fn of(workloads: &[Placed], nameless: &[Arc<WorkloadRecord>], svids: &Svids) -> Local {
    let mut local = Local {
        residents: BTreeMap::new(),
        identities: BTreeMap::new(),
    };
    // Addresses that two workloads say are theirs: nobody is to be told a name for them.
    let mut shared = BTreeSet::new();
    for placed in workloads {
        let Some(incarnation) = placed.cgroup_ids.first() else {
            continue;
        };
        let spiffe = &placed.record.spiffe;
        let svid = placed.cgroup_ids.iter().find_map(|cgroup| {
            let (id, svid) = svids.get(cgroup)?;
            (id == spiffe).then(|| Arc::clone(svid))
        });
        let identity = local.identities.entry(spiffe.text()).or_insert_with(|| Identity {
            spiffe: spiffe.clone(),
            svid: None,
        });
        if identity.svid.is_none() {
            identity.svid = svid;
        }
        for address in placed
            .record
            .addresses
            .iter()
            .filter(|address| is_reachable(**address))
        {
            let resident = Resident {
                address: *address,
                spiffe: spiffe.clone(),
                incarnation: *incarnation,
                silent: false,
            };
            let other = local.residents.insert(*address, resident);
            if other.is_some_and(|other| other.spiffe != *spiffe) {
                shared.insert(*address);
            }
        }
    }
    for record in nameless {
        for address in record.addresses.iter().filter(|address| is_reachable(**address)) {
            let resident = Resident {
                address: *address,
                spiffe: record.spiffe.clone(),
                incarnation: 0,
                silent: true,
            };
            if local.residents.insert(*address, resident).is_some() {
                shared.insert(*address);
            }
        }
    }
    local.residents.retain(|address, _| !shared.contains(address));
    local
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Mode;
    use crate::spiffe_id::SpiffeId;

    fn placed(name: &str, cgroup: u64, address: &str) -> Placed {
        Placed {
            record: Arc::new(WorkloadRecord {
                spiffe: SpiffeId::parse(&format!("spiffe://hanzo.ai/{name}")).expect("literal"),
                cgroup: name.into(),
                cgroup_id: None,
                addresses: vec![address.parse().expect("literal")],
                mode: None,
                pod: None,
            }),
            cgroup_ids: vec![cgroup],
            mode: Mode::Enforce,
        }
    }

    #[test]
    fn an_address_of_two_is_told_of_as_nobodys() {
        let svids = Svids::default();
        let one = [placed("a", 1, "10.0.0.1"), placed("a", 2, "10.0.0.1")];
        assert_eq!(of(&one, &[], &svids).residents.len(), 1, "one identity, twice");
        let two = [
            placed("a", 1, "10.0.0.1"),
            placed("b", 2, "10.0.0.1"),
            placed("a", 3, "10.0.0.1"),
            placed("c", 4, "10.0.0.2"),
        ];
        let told = of(&two, &[], &svids);
        let named: Vec<String> = told.residents.keys().map(ToString::to_string).collect();
        assert_eq!(named, ["10.0.0.2"]);
    }
    #[test]
    fn who_has_no_name_here_is_told_of_as_silent_where_nobody_else_is() {
        let named = [placed("a", 1, "10.0.0.1")];
        let nameless = ["10.0.0.1", "10.0.0.2"].map(|address| placed("a", 2, address).record);
        let told = of(&named, &nameless, &Svids::default());
        let silent: Vec<_> = told.residents.values().collect();
        assert_eq!(silent.len(), 1, "two are at the other address");
        assert!(silent[0].silent && silent[0].address == nameless[1].addresses[0]);
        assert_eq!(told.identities.len(), 1, "nothing is shown of it");
    }
}
