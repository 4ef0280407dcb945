// SPDX-License-Identifier: Apache-2.0
//! Identity proven in the handshake, within the node: who shares an address is told apart by what the SYN and the SYN-ACK
//! prove, and a name that is not proven is not believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use serde_json::{Value, json};
use zt_tests::pair::{any, pair, pair_after_agent, policy};
use zt_tests::probe::{ConnectOptions, ListenOptions, Operation};
use zt_tests::trail::{party, says};
use zt_tests::wire::{ACK, SYN, Wire};
use zt_tests::{Agent, AgentBuilder, Party, Policy, Scene, TCP};

const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The records of connections that were allowed, with this proof.
fn allowed(
    agent: &Agent,
    count: usize,
    proof: &str,
    source: &Party,
    destination: &Party,
) -> Result<Vec<Value>> {
    agent.records("decision=ALLOW", count, |record| {
        says(record, &source.id, &destination.id, "ALLOW", "rule") && record["proof"] == proof
    })
}

/// Two workloads behind one address, in both directions, and one beside them that may reach neither.
#[test]
fn who_shares_a_loopback_is_told_apart_in_both_directions() -> Result<()> {
    let mut scene = Scene::new("proof-loopback")?;
    let namespace = scene.host("node")?;
    let mut one = scene.workload_in("one", &namespace)?;
    let mut two = scene.workload_in("two", &namespace)?;
    let mut three = scene.workload_in("three", &namespace)?;
    let policy = Policy::new("loopback")
        .allow("one", "two", TCP, "8002")
        .allow("two", "one", TCP, "8001");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    one.serve(any(8001))?.local()?;
    two.serve(any(8002))?.local()?;
    for address in LOOPBACKS {
        let (to_one, to_two) = (SocketAddr::new(address, 8001), SocketAddr::new(address, 8002));
        assert_eq!(one.talk(to_two)?, "ok", "{address}");
        assert_eq!(two.talk(to_one)?, "ok", "{address}");
        for to in [to_one, to_two] {
            assert_eq!(three.talk(to)?, "EPERM", "{to}");
        }
    }
    allowed(&agent, 2, "mutual", &one, &two)?;
    allowed(&agent, 2, "mutual", &two, &one)?;
    // Refused before there was a handshake.
    agent.records("decision=DENY", 4, |record| {
        party(&record["source"]) == three.id && record["proof"] == "none"
    })?;
    assert_eq!(agent.counter("tags_invalid")?, 0);
    assert_eq!(agent.counter("identity_mismatches")?, 0);
    Ok(())
}

/// The options are on the SYN and the SYN-ACK and nowhere else, and no data is under way before the two are checked.
#[test]
fn a_connection_bears_the_option_twice() -> Result<()> {
    let (_scene, server, mut client, agent) = pair_after_agent("proof-segments", &policy(), |agent| agent)?;
    let (to, back) = (
        Wire::open(&server.host, "eth0")?,
        Wire::open(&client.host, "eth0")?,
    );
    assert_eq!(client.talk(server.v4(80))?, "ok");
    allowed(&agent, 1, "mutual", &client, &server)?;
    let (sent, answered) = (to.seen()?, back.seen()?);
    let with_option = |segments: &[zt_tests::wire::Segment]| -> Vec<u8> {
        let bearing = segments.iter().filter(|segment| segment.option(253).is_some());
        bearing.map(|segment| segment.flags).collect()
    };
    assert_eq!(with_option(&sent), [SYN], "{sent:?}");
    assert_eq!(with_option(&answered), [SYN | ACK], "{answered:?}");
    let first = sent.iter().position(|segment| !segment.data.is_empty());
    assert!(first.is_some_and(|first| first >= 2), "{sent:?}");
    for (segments, who) in [(&sent, &client.id), (&answered, &server.id)] {
        let option = segments[0].option(253).expect("seen above");
        let name: zt_agent::spiffe_id::SpiffeId = who.parse()?;
        assert_eq!(option[..4], [253, 20, b'Z', b'T']);
        assert_eq!(option[4..12], name.number().to_be_bytes());
    }
    Ok(())
}

/// Nobody outside of the node, and nobody who bears none himself, sees an option.
#[test]
fn options_stay_within_the_node() -> Result<()> {
    let policy = policy().allow("client", "10.99.0.0/16", TCP, "80");
    let (scene, server, mut client, agent) = pair_after_agent("proof-within", &policy, |agent| agent)?;
    let mut outsider = scene.outsider("outsider")?;
    outsider.serve(any(80))?.local()?;
    let (out, back) = (
        Wire::open(&outsider.host, "eth0")?,
        Wire::open(&server.host, "eth0")?,
    );
    let answers = Wire::open(&outsider.host, "eth0")?;
    client.talk(outsider.v4(80))?;
    outsider.talk(server.v4(80))?;
    let records = agent.records("", 2, |record| {
        record["proof"] == "none" || record["proof"] == "none:absent"
    })?;
    assert_eq!(records.len(), 2);
    for wire in [out, back, answers] {
        let seen = wire.seen()?;
        assert!(seen.iter().any(|segment| segment.flags & SYN != 0), "{seen:?}");
        assert!(
            seen.iter().all(|segment| segment.option(253).is_none()),
            "{seen:?}"
        );
    }
    Ok(())
}

/// The directory says that `iam` is at an address, and `chat` has it there: as a destination it is found out in the same
/// round trip.
#[test]
fn who_answers_at_anothers_address_has_his_true_name() -> Result<()> {
    let mut scene = Scene::new("proof-mismatch")?;
    let iam = scene.workload("iam")?;
    let mut chat = scene.workload("chat")?;
    let mut client = scene.workload("client")?;
    let policy = Policy::new("mismatch").allow("client", "iam", TCP, "80");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    iam.host.remove_address(&format!("{}/16", iam.host.ipv4))?;
    chat.host.add_address(&format!("{}/16", iam.host.ipv4))?;
    client
        .host
        .neighbour(iam.host.ipv4.into(), chat.host.hardware()?)?;
    let server = chat.call(Operation::Serve {
        at: any(80),
        options: ListenOptions::default(),
    })?;
    let to = iam.v4(80);
    assert_ne!(client.talk(to)?, "ok");
    agent.records("", 1, |record| {
        says(record, &client.id, &chat.id, "DENY", "identity_mismatch")
            && record["proof"] == "destination"
            && record["enforced"] == true
    })?;
    assert_eq!(agent.counter("identity_mismatches")?, 1);
    let state = chat.call(Operation::ServeState {
        socket: server.handle()?,
    })?;
    assert_eq!(state.bytes, Some(0), "not a byte of the client's arrived");
    Ok(())
}

/// As a source he is refused under his true name.
#[test]
fn who_calls_from_anothers_address_has_his_true_name() -> Result<()> {
    let mut scene = Scene::new("proof-borrowed")?;
    let mut server = scene.workload("postgres")?;
    let iam = scene.workload("iam")?;
    let mut chat = scene.workload("chat")?;
    scene.declare("chat", |workload| workload.mode("observe"))?;
    let policy = Policy::new("borrowed").allow("iam", "postgres", TCP, "5432");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    server.serve(any(5432))?.local()?;
    iam.host.remove_address(&format!("{}/16", iam.host.ipv4))?;
    chat.host.add_address(&format!("{}/16", iam.host.ipv4))?;
    server
        .host
        .neighbour(iam.host.ipv4.into(), chat.host.hardware()?)?;
    let options = ConnectOptions {
        bind: Some(iam.v4(0)),
        ..ConnectOptions::default()
    };
    let connected = chat.connect_with(server.v4(5432), options)?;
    let sent = chat.say(&connected, "let me in")?;
    chat.was_reset(&connected, sent.as_ref())?;
    agent.records("", 1, |record| {
        record["observer"] == "destination"
            && says(record, &chat.id, &server.id, "DENY", "no_rule")
            && record["proof"] == "source"
            && record["source"]["address"] == json!(iam.host.ipv4)
    })?;
    Ok(())
}

/// A process that no agent manages has the address of a workload: it proves nothing, and the address alone is no name.
#[test]
fn an_address_of_this_node_is_no_name() -> Result<()> {
    let (scene, server, client, agent) = pair_after_agent("proof-missing", &policy(), |agent| agent)?;
    let mut thief = scene.outsider_in("thief", &client.host)?;
    let connected = thief.connect(server.v4(80))?;
    let sent = thief.say(&connected, "word")?;
    thief.was_reset(&connected, sent.as_ref())?;
    agent.records("", 1, |record| {
        says(record, "unknown", &server.id, "DENY", "proof_missing") && record["proof"] == "none:absent"
    })?;
    assert_eq!(agent.counter("options_missing")?, 1);
    Ok(())
}

/// With SYN cookies nothing is kept of the SYN: its option is asked for once more.
#[test]
fn a_syn_cookie_asks_once_more() -> Result<()> {
    let (_scene, server, mut client, agent) = pair_after_agent("proof-cookies", &policy(), |agent| agent)?;
    server.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let to = Wire::open(&server.host, "eth0")?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    allowed(&agent, 1, "mutual", &client, &server)?;
    let seen = to.seen()?;
    let bearing: Vec<u8> = seen
        .iter()
        .filter(|segment| segment.option(253).is_some())
        .map(|segment| segment.flags & (SYN | ACK))
        .collect();
    assert_eq!(bearing, [SYN, ACK], "{seen:?}");
    assert!(agent.counter("option_cookies")? > 0);
    assert_eq!(agent.counter("tags_invalid")?, 0);
    Ok(())
}

/// What drops unknown options costs time, not the connection.
#[test]
fn the_last_syns_go_without() -> Result<()> {
    let (_scene, server, mut client, agent) = pair_after_agent("proof-dropped", &policy(), |agent| agent)?;
    // Nobody answers.
    let wire = Wire::open(&server.host, "eth0")?;
    server.host.remove_address(&format!("{}/16", server.host.ipv4))?;
    client
        .host
        .neighbour(server.host.ipv4.into(), server.host.hardware()?)?;
    client.send(Operation::TcpConnect {
        to: server.v4(80),
        options: ConnectOptions {
            timeout: std::time::Duration::from_secs(60),
            ..ConnectOptions::default()
        },
    })?;
    let timeout = std::time::Duration::from_secs(60);
    for _ in 0..4 {
        wire.receive("a SYN with its option", timeout, |segment| {
            segment.flags == SYN && segment.option(253).is_some()
        })?;
    }
    wire.receive("a SYN without", timeout, |segment| {
        segment.flags == SYN && segment.option(253).is_none()
    })?;
    assert!(agent.counter("options_omitted")? > 0);
    server.host.add_address(&format!("{}/16", server.host.ipv4))?;
    client.wait()?.ok()?;
    allowed(&agent, 1, "none:absent", &client, &server)?;
    Ok(())
}

/// A listener that was there before the agent keeps no SYN: its connections are named by the node's own sockets.
#[test]
fn older_listeners_prove_nothing_and_are_reached() -> Result<()> {
    let (scene, server, mut client) = pair("proof-older")?;
    let agent = scene
        .agent(&policy())?
        .config("handshake", json!("auto"))
        .start()?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    allowed(&agent, 1, "none:absent", &client, &server)?;
    Ok(())
}

/// `handshake: off` is what it says.
#[test]
fn off_is_off() -> Result<()> {
    let off = |agent: AgentBuilder| agent.config("handshake", json!("off"));
    let (_scene, server, mut client, agent) = pair_after_agent("proof-off", &policy(), off)?;
    let to = Wire::open(&server.host, "eth0")?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    allowed(&agent, 1, "none", &client, &server)?;
    assert!(to.seen()?.iter().all(|segment| segment.option(253).is_none()));
    Ok(())
}
