// SPDX-License-Identifier: Apache-2.0
//! What is read of nodes: where they are, and which addresses are theirs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Client, Collection, Freshness, Said, Timing, follow};
use crate::identity::kept;
use crate::identity::peers::{Agents, ClusterNode, Roster, is_reachable};

/// Changes that may wait.
const QUEUE: usize = 256;
/// Addresses of one node that are looked at.
const MOST_ADDRESSES: usize = 16;
/// Networks of one node: one of each family is all that it can be given.
const MOST_NETWORKS: usize = 2;
/// How often it is looked which addresses this machine has.
const LOOK: Duration = Duration::from_secs(60);
/// The pause between two looks at what has changed.
const PACE: Duration = Duration::from_millis(200);
/// The file in the directory of the agent's state.
pub const FILE: &str = "nodes.json";
/// Most bytes of it that are read.
const MAX_BYTES: u64 = 64 << 20;

/// The collection.
pub(super) const COLLECTION: &str = "nodes";

/// All nodes.
pub fn nodes() -> Collection {
    Collection {
        name: COLLECTION,
        path: "/api/v1/nodes".to_owned(),
        field_selector: None,
    }
}

/// A node, read from what the API says. Anything else than its name that makes no sense is as if it were not there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub struct ReadNode(ClusterNode);

impl TryFrom<Value> for ReadNode {
    type Error = String;

    fn try_from(node: Value) -> Result<Self, Self::Error> {
        let name = node["metadata"]["name"].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or("a node without a name")?;
        let created = node["metadata"]["creationTimestamp"].as_str();
        let created = created.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let internal = |entry: &Value| entry["type"] == "InternalIP";
        let addresses = list(&node["status"]["addresses"]);
        let addresses = addresses.iter().filter(|entry| internal(entry));
        let networks = list(&node["spec"]["podCIDRs"]);
        let networks = networks.iter().filter_map(Value::as_str);
        Ok(Self(ClusterNode {
            name: Arc::from(name),
            // Whoever does not say since when there is he came last.
            created: created.map_or(i64::MAX, OffsetDateTime::unix_timestamp),
            addresses: addresses
                .filter_map(|entry| entry["address"].as_str()?.parse::<IpAddr>().ok())
                .map(|address| address.to_canonical())
                .filter(|address| is_reachable(*address))
                .take(MOST_ADDRESSES)
                .collect(),
            networks: networks
                .filter_map(|text| text.parse::<IpNet>().ok())
                .map(|net| net.trunc())
                .take(MOST_NETWORKS)
                .collect(),
        }))
    }
}

/// What is known of the nodes.
#[derive(Debug, Default)]
struct Nodes {
    all: BTreeMap<Arc<str>, ClusterNode>,
    listed: bool,
}

impl Nodes {
    /// Takes what is said. Whether something is otherwise by that: a kubelet says again and again that it is there.
    fn apply(&mut self, said: Said<ReadNode>) -> bool {
        match said {
            Said::All(all) => {
                let all: BTreeMap<_, _> = all
                    .into_iter()
                    .map(|ReadNode(node)| (Arc::clone(&node.name), node))
                    .collect();
                let same = self.listed && all == self.all;
                (self.all, self.listed) = (all, true);
                !same
            }
            Said::Applied(ReadNode(node)) => {
                let same = self.all.get(&node.name) == Some(&node);
                if !same {
                    self.all.insert(Arc::clone(&node.name), node);
                }
                !same
            }
            Said::Deleted(ReadNode(node)) => self.all.remove(&node.name).is_some(),
        }
    }
}

/// How the nodes of the cluster are followed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long things may take.
    pub timing: Timing,
    /// What other agents are known by.
    pub agents: Agents,
    /// The addresses of this machine, which are no other one's.
    pub here: fn() -> Vec<IpAddr>,
    /// Where they are remembered for the next start.
    pub memory: PathBuf,
}

impl Settings {
    fn roster<'n>(&self, nodes: impl Iterator<Item = &'n ClusterNode> + Clone) -> Option<Roster> {
        match Roster::of_cluster(nodes, &self.agents, &(self.here)()) {
            Ok(roster) => Some(roster),
            Err(error) => {
                tracing::error!(%error, "what the Kubernetes API says of nodes cannot be used; the nodes that are known stay");
                None
            }
        }
    }

    /// The nodes that the last agent of this start of the machine knew: an agent that starts while the API is away goes on with
    /// them, as one does that runs.
    pub fn recall(&self) -> Option<Roster> {
        let kept: Kept<Vec<ClusterNode>> = kept::read(&self.memory, MAX_BYTES, "nodes")?;
        let same = kept::boot().is_some_and(|boot| boot == kept.boot) && kept.own == self.agents.own;
        same.then(|| self.roster(kept.nodes.iter())).flatten()
    }

    async fn remember(&self, nodes: &Nodes) {
        let kept = Kept {
            boot: kept::boot().unwrap_or_default(),
            own: self.agents.own.clone(),
            nodes: nodes.all.values().collect::<Vec<_>>(),
        };
        let path = self.memory.clone();
        let written = match serde_json::to_vec(&kept) {
            Ok(text) => tokio::task::spawn_blocking(move || kept::replace(&path, &text)).await,
            Err(error) => Ok(Err(error.into())),
        };
        if let Ok(Err(error)) = written {
            tracing::warn!(file = %self.memory.display(), %error, "the nodes of the cluster cannot be remembered for the next start");
        }
    }
}

/// What is on disk.
#[derive(Serialize, Deserialize)]
struct Kept<N> {
    /// Which start of the machine it was.
    boot: String,
    /// Whose it is.
    own: String,
    nodes: N,
}

/// Keeps `roster` what the API says, until nobody looks.
pub async fn follow_nodes(
    client: Client,
    settings: Settings,
    freshness: Arc<Freshness>,
    roster: watch::Sender<Option<Arc<Roster>>>,
) {
    let (sender, mut said) = mpsc::channel::<Said<ReadNode>>(QUEUE);
    let following = follow(client, nodes(), settings.timing, freshness, sender);
    let telling = async move {
        let mut known = Nodes::default();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut is_new = tokio::select! {
                first = said.recv() => match first {
                    Some(first) => known.apply(first),
                    None => return,
                },
                // This machine may have other addresses.
                _ = look.tick() => true,
            };
            while let Ok(more) = said.try_recv() {
                is_new |= known.apply(more);
            }
            if roster.is_closed() {
                return;
            }
            if !is_new || !known.listed {
                continue;
            }
            let Some(new) = settings.roster(known.all.values()) else {
                continue;
            };
            let differs = roster.send_if_modified(|before| {
                let differs = before.as_deref() != Some(&new);
                if differs {
                    *before = Some(Arc::new(new));
                }
                differs
            });
            if differs {
                settings.remember(&known).await;
            }
            // Whoever changes again and again is looked at now and then.
            sleep(PACE).await;
        }
    };
    // The follower ends when what it tells is not taken any more.
    tokio::join!(following, telling);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<ClusterNode, String> {
        let read: Result<ReadNode, _> = serde_json::from_value(value);
        read.map(|read| read.0).map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_has_its_own_addresses_and_those_of_its_pods() {
        let node = read(json!({
            "metadata": {"name": "worker-1", "creationTimestamp": "1970-01-01T00:01:40Z"},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64", "10.9.0.0/24"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "worker-1"},
                {"type": "ExternalIP", "address": "198.51.100.7"},
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "InternalIP", "address": "10.0.0.11"},
                {"type": "InternalIP", "address": "fd00::11"},
            ]},
        }));
        let node = node.expect("a node");
        let texts = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&node.networks), ["10.244.1.0/24", "fd00:1::/64"]);
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.11", "fd00::11"]);
        assert_eq!(node.created, 100);
    }

    #[test]
    fn what_makes_no_sense_is_not_there() {
        let node = read(json!({
            "metadata": {"name": "worker-1", "creationTimestamp": "soon"},
            "spec": {"podCIDRs": ["x", 7, "10.244.1.0/33"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.300"}, 5]},
        }));
        let node = node.expect("a node");
        assert!(node.addresses.is_empty() && node.networks.is_empty());
        assert_eq!(node.created, i64::MAX, "it takes nothing from anybody");
        for nobody in [json!({}), json!({"metadata": {"name": ""}}), json!([])] {
            assert!(read(nobody.clone()).is_err(), "{nobody}");
        }
    }

    fn node(name: &str, last: u8) -> ReadNode {
        ReadNode(ClusterNode {
            name: name.into(),
            created: 0,
            addresses: vec![IpAddr::from([192, 0, 2, last])],
            networks: Vec::new(),
        })
    }

    #[test]
    fn nodes_come_and_go_and_who_says_the_same_again_changes_nothing() {
        let mut nodes = Nodes::default();
        assert!(nodes.apply(Said::Applied(node("a", 1))));
        assert!(!nodes.listed, "half of it is not told");
        let all = || Said::All(vec![node("b", 2), node("c", 3)]);
        assert!(nodes.apply(all()));
        assert!(nodes.listed && !nodes.apply(all()));
        assert!(!nodes.apply(Said::Applied(node("b", 2))));
        assert!(nodes.apply(Said::Applied(node("b", 4))));
        assert!(nodes.apply(Said::Deleted(node("b", 4))));
        assert!(!nodes.apply(Said::Deleted(node("b", 4))));
        let names: Vec<_> = nodes.all.keys().map(|name| &**name).collect();
        assert_eq!(names, ["c"]);
    }

    #[tokio::test]
    async fn the_next_agent_of_this_start_of_the_machine_knows_them() {
        let directory = tempfile::tempdir().expect("directory");
        let settings = |own: &str| Settings {
            timing: Timing::default(),
            agents: Agents {
                pattern: "spiffe://hanzo.ai/agents/{node}".to_owned(),
                own: own.to_owned(),
                port: 8056,
            },
            here: Vec::new,
            memory: directory.path().join(FILE),
        };
        assert!(settings("a").recall().is_none());
        let mut nodes = Nodes::default();
        nodes.apply(Said::All(vec![node("a", 1), node("b", 2)]));
        settings("a").remember(&nodes).await;
        let roster = settings("a").recall().expect("known");
        assert_eq!(roster.iter().count(), 1);
        let speaker = roster.get("b").expect("known");
        assert_eq!(&*speaker.neighbour.address, "192.0.2.2:8056");
        assert!(settings("b").recall().is_none(), "another node's");
        let boot = kept::boot().expect("the kernel says");
        let text = std::fs::read_to_string(directory.path().join(FILE)).expect("written");
        let of_before = text.replace(&boot, "of-another-start");
        std::fs::write(directory.path().join(FILE), of_before).expect("written");
        assert!(settings("a").recall().is_none());
    }
}
