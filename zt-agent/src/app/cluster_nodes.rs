// SPDX-License-Identifier: Apache-2.0
//! Which nodes the cluster has, for all who go by that: whose an address can be, and which agents there are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::Config;
use crate::identity::peers::{Agents, Roster, is_reachable};
use crate::kernel::netns;
use crate::kubernetes;
use crate::kubernetes::nodes::{FILE, Settings, follow_nodes};

/// How long a start waits to be told which other nodes there are, where the last agent has not left that.
const FIRST_LIST: Duration = Duration::from_secs(5);

/// The addresses of this machine's interfaces, as far as others can reach them.
pub(super) fn own_addresses() -> Vec<IpAddr> {
    let addresses = netns::addresses().unwrap_or_default();
    let addresses = addresses.into_iter().map(IpAddr::from);
    addresses.filter(|address| is_reachable(*address)).collect()
}

/// The nodes of the cluster, before they are followed: those that the last agent knew.
pub(super) struct ClusterNodes {
    settings: Settings,
    roster: watch::Sender<Option<Arc<Roster>>>,
}

impl ClusterNodes {
    pub(super) fn recall(config: &Config) -> Self {
        let settings = Settings {
            timing: kubernetes::Timing::default(),
            agents: Agents {
                pattern: config.agent_pattern(),
                own: config.node.clone(),
                port: config.identity.peers.listen.port(),
            },
            here: own_addresses,
            memory: config.state_directory().join(FILE),
        };
        let recalled = settings.recall().map(Arc::new);
        Self {
            settings,
            roster: watch::channel(recalled).0,
        }
    }

    /// Where it can be seen which there are.
    pub(super) fn seen(&self) -> kubernetes::Nodes {
        self.roster.subscribe()
    }

    /// Begins to follow them, until nobody looks any more. Must be called inside a tokio runtime.
    pub(super) fn follow(
        self,
        client: kubernetes::Client,
        freshness: Arc<kubernetes::Freshness>,
    ) -> JoinHandle<()> {
        tokio::spawn(follow_nodes(client, self.settings, freshness, self.roster))
    }
}

/// Waits until it is known which there are, for a while: what the last agent left is believed of nodes that are known to be there.
pub(super) async fn known(nodes: &mut kubernetes::Nodes) {
    let _ = timeout(FIRST_LIST, nodes.wait_for(Option::is_some)).await;
}
