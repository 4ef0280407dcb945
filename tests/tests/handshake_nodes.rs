// SPDX-License-Identifier: Apache-2.0
//! Identity proven in the handshake between nodes, as the kernel does it: under the key of the pair of nodes, and for identities
//! that the other node has proven to hold.
//!
//! One kernel stands for both: its maps say that each end is on the other node, and hold one key for both directions.

#[path = "handshake_nodes/behind.rs"]
mod behind;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use zt_agent::spiffe_id::number_of;
use zt_common::abi::{
    Homes, KeyId, Node, NodeKey, PEER_PROVES, Peer, ResidentKey, SERVICE_WORKLOADS, Service, ServiceKey,
};
use zt_common::address::Address;
use zt_common::control::{Control, HAS_SERVICES};
use zt_common::identity::REMOTE_NODE;
use zt_common::names;
use zt_tests::nat::{nat, translate};
use zt_tests::pair::{pair_after_agent, policy};
use zt_tests::trail::says;
use zt_tests::wire::{ACK, SYN, Wire};
use zt_tests::{Agent, Party, Policy, Scene, TCP};

/// The number of the other node.
const OTHER: u32 = 1;
const EPOCH: u64 = 6;
const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

struct Nodes {
    scene: Scene,
    server: Party,
    client: Party,
    agent: Agent,
}

fn nodes(label: &str) -> Result<Nodes> {
    nodes_with(label, &policy())
}

fn nodes_with(label: &str, policy: &Policy) -> Result<Nodes> {
    let (scene, server, client, agent) = pair_after_agent(label, policy, |agent| agent)?;
    let nodes = Nodes {
        scene,
        server,
        client,
        agent,
    };
    for party in [&nodes.server, &nodes.client] {
        nodes.is_elsewhere(party)?;
        nodes.lives(party, true)?;
    }
    nodes.uses(EPOCH)?;
    nodes.has_key(KeyId::to(OTHER, EPOCH), Some(KEY))?;
    nodes.has_key(KeyId::from(OTHER, EPOCH), Some(KEY))?;
    Ok(nodes)
}

impl Nodes {
    fn map<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        let map =
            MapData::from_pin(self.scene.sandbox().maps()?.join(name)).with_context(|| name.to_owned())?;
        Ok(HashMap::try_from(Map::HashMap(map))?)
    }

    fn is_elsewhere(&self, party: &Party) -> Result<()> {
        let mut peers = self.map::<Address, Peer>(names::PEERS)?;
        let peer = Peer {
            identity: number_of(&party.id),
            flags: PEER_PROVES,
            node: OTHER,
        };
        for address in party.host.addresses() {
            peers.insert(Address::from(address), peer, 0)?;
        }
        Ok(())
    }

    /// An address is the other node's own.
    fn is_a_node(&self, address: Ipv4Addr) -> Result<()> {
        let peer = Peer {
            identity: REMOTE_NODE,
            flags: 0,
            node: OTHER,
        };
        let mut peers = self.map::<Address, Peer>(names::PEERS)?;
        Ok(peers.insert(Address::from(IpAddr::V4(address)), peer, 0)?)
    }

    fn lives(&self, party: &Party, there: bool) -> Result<()> {
        let mut residents = self.map::<ResidentKey, u64>(names::RESIDENTS)?;
        let key = ResidentKey {
            node: OTHER,
            reserved: 0,
            identity: number_of(&party.id),
        };
        if there {
            residents.insert(key, 1, 0)?;
        } else {
            residents.remove(&key)?;
        }
        Ok(())
    }

    fn uses(&self, epoch: u64) -> Result<()> {
        let node = Node { epoch, reserved: 0 };
        Ok(self.map::<u32, Node>(names::NODES)?.insert(OTHER, node, 0)?)
    }

    fn has_key(&self, id: KeyId, key: Option<[u64; 2]>) -> Result<()> {
        let mut keys = self.map::<KeyId, NodeKey>(names::KEYS)?;
        match key {
            Some([k0, k1]) => keys.insert(id, NodeKey { k0, k1, made: 0 }, 0)?,
            None => keys.remove(&id)?,
        }
        Ok(())
    }

    /// The record of one end, the only one so far.
    fn record(&self, observer: &str) -> Result<Value> {
        let mut records = self
            .agent
            .records("", 1, |record| record["observer"] == observer)?;
        Ok(records.swap_remove(0))
    }
}

/// Each node has a record of its own, and each knows the other by proof.
#[test]
fn both_ends_are_proven_and_both_record() -> Result<()> {
    let mut nodes = nodes("nodes-mutual")?;
    let wire = Wire::open(&nodes.server.host, "eth0")?;
    assert_eq!(nodes.client.talk(nodes.server.v4(80))?, "ok");
    for (observer, proof) in [("source", "mutual"), ("destination", "source")] {
        let record = nodes.record(observer)?;
        assert!(
            says(&record, &nodes.client.id, &nodes.server.id, "ALLOW", "rule"),
            "{record}"
        );
        assert_eq!(record["proof"], proof, "{record}");
    }
    let seen = wire.seen()?;
    let bearing = seen.iter().filter(|segment| segment.option(253).is_some());
    let flags: Vec<u8> = bearing.map(|segment| segment.flags).collect();
    assert_eq!(flags, [SYN, SYN | ACK], "{seen:?}");
    assert_eq!(nodes.agent.counter("tags_invalid")?, 0);
    Ok(())
}

#[test]
fn a_cookie_asks_another_node_too() -> Result<()> {
    let mut nodes = nodes("nodes-cookies")?;
    nodes.server.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    assert_eq!(nodes.client.talk(nodes.server.v4(80))?, "ok");
    assert_eq!(nodes.record("source")?["proof"], "mutual");
    assert_eq!(nodes.record("destination")?["proof"], "source");
    Ok(())
}

/// The key of the pair, in the hands of a node that holds nothing of the sort, names nobody whom that node does not hold.
#[test]
fn a_node_speaks_only_for_who_lives_there() -> Result<()> {
    let mut nodes = nodes("nodes-resident")?;
    nodes.lives(&nodes.client, false)?;
    assert_ne!(nodes.client.talk(nodes.server.v4(80))?, "ok");
    let record = nodes.record("destination")?;
    assert!(
        says(&record, "unknown", &nodes.server.id, "DENY", "tag_invalid"),
        "{record}"
    );
    assert_eq!(nodes.record("source")?["proof"], "none:absent");

    let mut nodes = self::nodes("nodes-answer")?;
    nodes.lives(&nodes.server, false)?;
    assert_ne!(nodes.client.talk(nodes.server.v4(80))?, "ok");
    let record = nodes.record("source")?;
    assert!(
        says(&record, &nodes.client.id, "unknown", "DENY", "tag_invalid"),
        "{record}"
    );
    Ok(())
}

/// What a node sends is made with another key than what it is sent, and its own key is good for nobody else.
#[test]
fn another_key_proves_nothing() -> Result<()> {
    let mut nodes = nodes("nodes-direction")?;
    nodes.has_key(KeyId::from(OTHER, EPOCH), Some([1, 2]))?;
    assert_ne!(nodes.client.talk(nodes.server.v4(80))?, "ok");
    let record = nodes.record("destination")?;
    assert!(
        says(&record, "unknown", &nodes.server.id, "DENY", "tag_invalid"),
        "{record}"
    );
    Ok(())
}

/// The next key is there before it is in use, and the one before for a while after.
#[test]
fn keys_are_renewed_without_a_refusal() -> Result<()> {
    let mut nodes = nodes("nodes-renewed")?;
    let mut talks = 0;
    for epoch in EPOCH + 1..EPOCH + 6 {
        let next = [epoch, !epoch];
        nodes.has_key(KeyId::from(OTHER, epoch), Some(next))?;
        nodes.has_key(KeyId::to(OTHER, epoch), Some(next))?;
        assert_eq!(nodes.client.talk(nodes.server.v4(80))?, "ok", "before {epoch}");
        nodes.uses(epoch)?;
        assert_eq!(nodes.client.talk(nodes.server.v4(80))?, "ok", "after {epoch}");
        nodes.has_key(KeyId::from(OTHER, epoch - 1), None)?;
        assert_eq!(
            nodes.client.talk(nodes.server.v4(80))?,
            "ok",
            "with {epoch} alone"
        );
        talks += 3;
    }
    nodes.agent.records("decision=ALLOW", 2 * talks, |record| {
        record["proof"] == "mutual" || record["proof"] == "source"
    })?;
    assert_eq!(nodes.agent.counter("tags_invalid")?, 0);
    Ok(())
}

/// The address alone is no name where the agent of its node has workloads prove who they are.
#[test]
fn an_address_of_a_node_that_proves_is_no_name() -> Result<()> {
    let nodes = nodes("nodes-missing")?;
    let mut thief = nodes.scene.outsider_in("thief", &nodes.client.host)?;
    let connected = thief.connect(nodes.server.v4(80))?;
    let sent = thief.say(&connected, "word")?;
    thief.was_reset(&connected, sent.as_ref())?;
    let record = nodes.record("destination")?;
    assert!(
        says(&record, "unknown", &nodes.server.id, "DENY", "proof_missing"),
        "{record}"
    );
    assert_eq!(record["proof"], "none:absent");
    Ok(())
}

/// As long as there is no key to prove with, an address of such a node names who has it there, as those of all other nodes do.
#[test]
fn without_a_key_nobody_is_asked_for_proof() -> Result<()> {
    let mut nodes = nodes("nodes-unkeyed")?;
    nodes.uses(0)?;
    assert_eq!(nodes.client.talk(nodes.server.v4(80))?, "ok");
    let record = nodes.record("destination")?;
    assert!(
        says(&record, &nodes.client.id, &nodes.server.id, "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "none:absent");
    Ok(())
}

/// A port of the other node that leads to a workload there: the source calls the node, and proves to the workload that answers
/// who it is.
#[test]
fn behind_a_port_of_another_node_the_source_is_proven() -> Result<()> {
    let node: Ipv4Addr = "10.99.200.1".parse()?;
    let mut nodes = nodes_with(
        "nodes-port",
        &policy().allow("client", "remote-node", TCP, "30080"),
    )?;
    nodes.is_a_node(node)?;
    translate(&nodes.client, node, 30_080, &nodes.server)?;
    assert_eq!(nodes.client.talk(SocketAddr::new(node.into(), 30_080))?, "ok");
    let record = nodes.record("source")?;
    assert!(
        says(&record, &nodes.client.id, "remote-node", "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "source");
    let record = nodes.record("destination")?;
    assert!(
        says(&record, &nodes.client.id, &nodes.server.id, "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "source");
    assert_eq!(nodes.agent.counter("tags_invalid")?, 0);
    Ok(())
}

/// What is masqueraded on its way between nodes comes from the node.
#[test]
fn behind_a_masquerade_it_is_the_node() -> Result<()> {
    let node: Ipv4Addr = "10.99.200.1".parse()?;
    let mut nodes = nodes_with(
        "nodes-masquerade",
        &policy().allow("remote-node", "server", TCP, "80"),
    )?;
    nodes.is_a_node(node)?;
    nodes.client.host.add_address(&format!("{node}/16"))?;
    nat(
        &nodes.client,
        &format!(
            "POSTROUTING -d {} -j SNAT --to-source {node}",
            nodes.server.host.ipv4
        ),
    )?;
    assert_eq!(nodes.client.talk(nodes.server.v4(80))?, "ok");
    assert_eq!(nodes.record("source")?["proof"], "none:absent");
    let record = nodes.record("destination")?;
    assert!(
        says(&record, "remote-node", &nodes.server.id, "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "none:tag_invalid");
    Ok(())
}

/// As long as there is no key, nothing is sent, and names are those of addresses.
#[test]
fn without_a_key_nothing_is_sent() -> Result<()> {
    let mut nodes = nodes("nodes-keyless")?;
    nodes.uses(0)?;
    let mut peers = nodes.map::<Address, Peer>(names::PEERS)?;
    for address in nodes.client.host.addresses() {
        let address = Address::from(address);
        let peer = peers.get(&address, 0)?;
        peers.insert(address, Peer { flags: 0, ..peer }, 0)?;
    }
    let wire = Wire::open(&nodes.server.host, "eth0")?;
    assert_eq!(nodes.client.talk(nodes.server.v4(80))?, "ok");
    assert_eq!(nodes.record("source")?["proof"], "none");
    assert_eq!(nodes.record("destination")?["proof"], "none:absent");
    let seen = wire.seen()?;
    assert!(
        seen.iter().all(|segment| segment.option(253).is_none()),
        "{seen:?}"
    );
    Ok(())
}

/// Behind a virtual address may be somebody on any node: whose key to use shows when he answers.
#[test]
fn who_answers_from_behind_a_virtual_address_says_on_which_node_he_is() -> Result<()> {
    let address: Ipv4Addr = "10.96.7.1".parse()?;
    let mut nodes = nodes("nodes-front")?;
    let behind = number_of(&nodes.server.id);
    let mut homes = Homes { nodes: [0; 8] };
    // Another one is tried first, with which there is no key.
    homes.nodes[..2].copy_from_slice(&[OTHER + 1, OTHER]);
    nodes.map::<u64, Homes>(names::HOMES)?.insert(behind, homes, 0)?;
    let key = ServiceKey {
        address: Address::from(IpAddr::V4(address)),
        port: 8000,
        protocol: 6,
        reserved: 0,
    };
    let service = Service {
        identity: behind,
        target_port: 80,
        flags: SERVICE_WORKLOADS,
        reserved: [0; 5],
    };
    nodes
        .map::<ServiceKey, Service>(names::SERVICES)?
        .insert(key, service, 0)?;
    let control = MapData::from_pin(nodes.scene.sandbox().maps()?.join(names::CONTROL))?;
    let mut control: aya::maps::Array<_, Control> = aya::maps::Array::try_from(Map::Array(control))?;
    let before = control.get(&0, 0)?;
    let flags = before.flags | HAS_SERVICES;
    control.set(0, Control { flags, ..before }, 0)?;

    nodes.client.host.add_route("10.96.0.0/16")?;
    translate(&nodes.client, address, 8000, &nodes.server)?;
    assert_eq!(nodes.client.talk(SocketAddr::new(address.into(), 8000))?, "ok");
    let record = nodes.record("source")?;
    assert!(
        says(&record, &nodes.client.id, &nodes.server.id, "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "mutual");
    assert_eq!(record["destination"]["address"], json!(address));
    let record = nodes.record("destination")?;
    assert!(
        says(&record, &nodes.client.id, &nodes.server.id, "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "source");
    assert_eq!(nodes.agent.counter("tags_invalid")?, 0);
    Ok(())
}
