// SPDX-License-Identifier: Apache-2.0
//! What is read of nodes: where they are, and which addresses are theirs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::{Client, Collection, Freshness, Said, Timing, follow};
use crate::identity::peers::{Neighbour, Roster, agent_id, is_reachable};

/// Changes that may wait.
const QUEUE: usize = 256;
/// Addresses, and networks, of one node that are looked at.
const MOST_EACH: usize = 16;

/// All nodes.
pub fn nodes() -> Collection {
    Collection {
        name: "nodes",
        path: "/api/v1/nodes".to_owned(),
        field_selector: None,
    }
}

/// A node, read from what the API says. Anything else than its name that makes no sense is as if it were not there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub struct ReadNode {
    name: Arc<str>,
    addresses: Vec<IpAddr>,
    networks: Vec<IpNet>,
}

impl TryFrom<Value> for ReadNode {
    type Error = String;

    fn try_from(node: Value) -> Result<Self, Self::Error> {
        let name = node["metadata"]["name"].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or("a node without a name")?;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let internal = |entry: &Value| entry["type"] == "InternalIP";
        let addresses = list(&node["status"]["addresses"]);
        let addresses = addresses.iter().filter(|entry| internal(entry));
        let networks = list(&node["spec"]["podCIDRs"]);
        let networks = networks.iter().filter_map(Value::as_str);
        Ok(Self {
            name: Arc::from(name),
            addresses: addresses
                .filter_map(|entry| entry["address"].as_str()?.parse::<IpAddr>().ok())
                .map(|address| address.to_canonical())
                .filter(|address| is_reachable(*address))
                .take(MOST_EACH)
                .collect(),
            networks: networks
                .filter_map(|text| text.parse::<IpNet>().ok())
                .map(|net| net.trunc())
                .take(MOST_EACH)
                .collect(),
        })
    }
}

impl ReadNode {
    /// The node as other agents know it; `None` while it has no address.
    fn neighbour(&self, port: u16) -> Option<Neighbour> {
        let first = self.addresses.first()?;
        Some(Neighbour {
            name: Arc::clone(&self.name),
            address: SocketAddr::new(*first, port).to_string().into(),
            // They are given once, and not by the node.
            speaks_for: self.networks.clone(),
            says: self.addresses.clone(),
            identities: Vec::new(),
        })
    }
}

/// What other agents are known by.
#[derive(Clone, Debug)]
pub struct Agents {
    /// How the SPIFFE ID of a node's agent is made.
    pub pattern: String,
    /// This node.
    pub own: String,
    /// The addresses of this machine, which are no other one's.
    pub here: fn() -> Vec<IpAddr>,
    /// Where they listen, on every node.
    pub port: u16,
}

/// Keeps `roster` what the API says, until nobody looks.
pub async fn follow_nodes(
    client: Client,
    timing: Timing,
    freshness: Arc<Freshness>,
    agents: Agents,
    roster: watch::Sender<Option<Arc<Roster>>>,
) {
    let (sender, mut said) = mpsc::channel::<Said<ReadNode>>(QUEUE);
    let following = follow(client, nodes(), timing, freshness, sender);
    let telling = async move {
        let mut known = BTreeMap::new();
        let mut listed = false;
        while let Some(first) = said.recv().await {
            apply(&mut known, first, &mut listed);
            while let Ok(more) = said.try_recv() {
                apply(&mut known, more, &mut listed);
            }
            if roster.is_closed() {
                return;
            }
            if !listed {
                continue;
            }
            // One that can have no agent costs itself and nothing else.
            let can_speak = |node: &&ReadNode| agent_id(&agents.pattern, &node.name).is_ok();
            let neighbours = known.values().filter(can_speak);
            let neighbours = neighbours.filter_map(|node| node.neighbour(agents.port));
            match Roster::new(neighbours, &agents.pattern, &agents.own, &(agents.here)()) {
                Ok(new) => {
                    roster.send_if_modified(|before| {
                        let differs = before.as_deref() != Some(&new);
                        if differs {
                            *before = Some(Arc::new(new));
                        }
                        differs
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "what the Kubernetes API says of nodes cannot be used; the nodes that are known stay");
                }
            }
        }
    };
    // The follower ends when what it tells is not taken any more.
    tokio::join!(following, telling);
}

fn apply(known: &mut BTreeMap<Arc<str>, ReadNode>, said: Said<ReadNode>, listed: &mut bool) {
    match said {
        Said::All(all) => {
            *known = all
                .into_iter()
                .map(|node| (Arc::clone(&node.name), node))
                .collect();
            *listed = true;
        }
        Said::Applied(node) => drop(known.insert(Arc::clone(&node.name), node)),
        Said::Deleted(node) => drop(known.remove(&node.name)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<ReadNode, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_speaks_for_its_own_addresses_and_those_of_its_pods() {
        let node = read(json!({
            "metadata": {"name": "worker-1"},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "worker-1"},
                {"type": "ExternalIP", "address": "198.51.100.7"},
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "InternalIP", "address": "10.0.0.11"},
                {"type": "InternalIP", "address": "fd00::11"},
            ]},
        }));
        let neighbour = node.expect("a node").neighbour(8056).expect("it has an address");
        assert_eq!(&*neighbour.address, "10.0.0.11:8056");
        let nets: Vec<String> = neighbour.speaks_for.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.244.1.0/24", "fd00:1::/64"]);
        let says: Vec<String> = neighbour.says.iter().map(ToString::to_string).collect();
        assert_eq!(says, ["10.0.0.11", "fd00::11"]);
        assert!(neighbour.identities.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_not_there() {
        let node = read(json!({
            "metadata": {"name": "worker-1"},
            "spec": {"podCIDRs": ["x", 7, "10.244.1.0/33"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.300"}, 5]},
        }));
        assert_eq!(node.expect("a node").neighbour(1), None);
        for nobody in [json!({}), json!({"metadata": {"name": ""}}), json!([])] {
            assert!(read(nobody.clone()).is_err(), "{nobody}");
        }
    }

    #[test]
    fn nodes_come_and_go() {
        let node = |name: &str| ReadNode {
            name: name.into(),
            addresses: Vec::new(),
            networks: Vec::new(),
        };
        let (mut known, mut listed) = (BTreeMap::new(), false);
        apply(&mut known, Said::Applied(node("a")), &mut listed);
        assert!(!listed, "half of it is not told");
        apply(&mut known, Said::All(vec![node("b"), node("c")]), &mut listed);
        apply(&mut known, Said::Deleted(node("b")), &mut listed);
        let names: Vec<_> = known.keys().map(|name| &**name).collect();
        assert!(listed && names == ["c"]);
    }
}
