// SPDX-License-Identifier: Apache-2.0
//! A pair begins with what the last agent knew of the node.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{BURST, PER_SECOND, Pair, Shared, authorities};
use crate::identity::peers::{Speaker, Table};
use crate::peers::allowance::{Allowance, Pace, Words};
use crate::peers::connection::unix_seconds;
use crate::peers::health::State;
use crate::peers::keys::{Known, Role};
use crate::peers::memory::KeptNode;
use crate::peers::reach::Arrived;
use crate::peers::recalled;
use crate::peers::retiring::Retiring;

/// What the last agent knew of a node.
#[derive(Debug)]
pub(in crate::peers) struct Recall {
    /// All of it.
    pub(in crate::peers) node: KeptNode,
    /// The epoch of the key that was in use toward it, 0 for none.
    pub(in crate::peers) uses: u64,
    /// About which addresses its word was all there is, as the node thread began with; `None` where it began with nothing.
    pub(in crate::peers) networks: Option<Vec<IpNet>>,
}

impl Pair {
    /// A pair that goes on with what the last agent knew, for as long as it is held.
    pub(in crate::peers) fn new(
        shared: Arc<Shared>,
        speakers: watch::Receiver<Arc<Speaker>>,
        recall: Recall,
        arriving: mpsc::Receiver<Arrived>,
    ) -> Self {
        let speaker = Arc::clone(&speakers.borrow());
        let role = if *shared.settings.node < *speaker.neighbour.name {
            Role::Dials
        } else {
            Role::Listens
        };
        let Recall { node, uses, networks } = recall;
        let (now, seconds) = (Instant::now(), unix_seconds());
        let mut table = Table::new(Arc::clone(&speaker), seconds);
        let rest = node.rest(shared.settings.hold, seconds);
        // What the node thread does not know of is not believed either: its keys have gone.
        let believed = networks.is_some() && !rest.is_zero();
        let lost: HashSet<IpAddr> = recalled::lost(&speaker, &node, believed).collect();
        if believed {
            recalled::take_up(&mut table, &node);
        } else if networks.is_some() {
            // Who the node thread knows to live there does so no longer.
            table.forget();
        }
        let authorities = authorities(&shared.certificates);
        if let Some(authorities) = &authorities {
            table.rests_on(authorities);
        }
        let state = if believed { State::Stale } else { State::Unknown };
        shared.health.stands(&speaker.neighbour.name, state, None);
        shared.health.counts(&speaker.neighbour.name, table.counts());
        // Whatever the node thread knows of it that is no longer so is taken back.
        let restless = node.residents.iter().map(|resident| resident.address);
        let restless = restless.chain(node.lost.iter().copied());
        let restless = restless.chain(speaker.own_addresses()).collect();
        Self {
            hold: believed.then(|| now + rest),
            unheard: Some(node.unheard.unwrap_or(seconds)),
            covered: if believed { node.networks } else { Vec::new() },
            needed: None,
            // Which of them are still on their way is not known.
            retiring: Retiring::all(now + shared.settings.timing.overlap),
            authorities,
            allowance: Allowance::new(BURST, PER_SECOND, now),
            words: Words::new(now),
            pause: shared.settings.timing.pauses.0,
            known: Known { highest: uses, uses },
            shared,
            number: node.number,
            role,
            table,
            proves: node.proves,
            lost,
            restless,
            networks: networks.unwrap_or_default(),
            speaker,
            speakers,
            arriving,
            not_before: now,
            pace: Pace::new(now),
            keep_at: None,
        }
    }
}
