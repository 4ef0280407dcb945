// SPDX-License-Identifier: Apache-2.0
//! What this node says of itself: who is in force here, and what SVIDs they have.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::identity::peers::{Identity, Local, Resident, Svids, is_reachable};
use crate::state::{Placed, Snapshot};

/// Keeps `local` what is in force, until nobody looks.
pub async fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut svids: watch::Receiver<Svids>,
    local: watch::Sender<Arc<Local>>,
) {
    loop {
        let workloads = Arc::clone(&snapshots.borrow_and_update().workloads);
        let now = of(&workloads, &svids.borrow_and_update());
        local.send_if_modified(|before| {
            let differs = before.differs(&now);
            if differs {
                *before = Arc::new(now);
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
fn of(workloads: &[Placed], svids: &Svids) -> Local {
    let mut local = Local {
        residents: BTreeMap::new(),
        identities: BTreeMap::new(),
    };
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
            };
            local.residents.insert(*address, resident);
        }
    }
    local
}
