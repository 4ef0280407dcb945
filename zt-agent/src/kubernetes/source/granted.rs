// SPDX-License-Identifier: Apache-2.0
//! Which networks nodes have been given, as far as that can be gone by.

use std::time::Duration;

use tokio::time::Instant;

use super::Source;
use crate::kubernetes::nodes::COLLECTION;
use crate::kubernetes::pods::COLLECTIONS;

/// How long nodes may not be heard while pods are: then which networks they have is not gone by, as these may be others' by now.
const LAG: Duration = Duration::from_secs(10);

impl Source {
    /// Which other nodes there are.
    pub(super) fn know_nodes(&mut self) {
        let nodes = self.nodes.borrow_and_update().clone();
        self.directory.nodes(nodes.filter(|_| !self.lags()));
    }

    /// Looks whether nodes are heard as well as pods are.
    pub(super) fn doubt_nodes(&mut self) {
        let all = self.health.freshness.all();
        let stale = |name: &str| all.iter().any(|(known, status)| *known == name && status.stale);
        let lags = self.elsewhere.is_some() && !stale(COLLECTIONS[1]) && stale(COLLECTION);
        let before = self.lags();
        self.behind = self.behind.filter(|_| lags).or_else(|| lags.then(Instant::now));
        if self.lags() == before {
            return;
        }
        if !before {
            tracing::warn!(
                "the Kubernetes API tells of pods and not of nodes: an address that two claim is nobody's, in whosever network it is"
            );
        }
        self.know_nodes();
    }

    fn lags(&self) -> bool {
        self.behind.is_some_and(|since| since.elapsed() >= LAG)
    }
}
