// SPDX-License-Identifier: Apache-2.0
//! Identity proven in the handshake, within the node: who shares an address is told apart by what the SYN and the SYN-ACK
//! prove, and a name that is not proven is not believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use zt_tests::pair::{any, pair, pair_after_agent, policy};
use zt_tests::probe::{ConnectOptions, ListenOptions, Operation};
use zt_tests::trail::{party, says};
use zt_tests::wire::{ACK, SYN, Segment, Wire};
use zt_tests::{Agent, AgentBuilder, Party, Policy, Scene, TCP, linux};

const ANSWERED: Duration = Duration::from_secs(30);
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
    let wire = Wire::open(&server.host, "eth0")?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    allowed(&agent, 1, "mutual", &client, &server)?;
    let seen = wire.seen()?;
    let bearing: Vec<&Segment> = seen
        .iter()
        .filter(|segment| segment.option(253).is_some())
        .collect();
    let flags: Vec<u8> = bearing.iter().map(|segment| segment.flags).collect();
    assert_eq!(flags, [SYN, SYN | ACK], "{seen:?}");
    let first = seen.iter().position(|segment| !segment.data.is_empty());
    assert!(first.is_some_and(|first| first >= 3), "{seen:?}");
    for (segment, who) in bearing.iter().zip([&client.id, &server.id]) {
        let option = segment.option(253).expect("seen above");
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
    let wires = [
        Wire::open(&outsider.host, "eth0")?,
        Wire::open(&server.host, "eth0")?,
    ];
    client.talk(outsider.v4(80))?;
    outsider.talk(server.v4(80))?;
    let records = agent.records("", 2, |record| {
        record["proof"] == "none" || record["proof"] == "none:absent"
    })?;
    assert_eq!(records.len(), 2);
    for wire in wires {
        let seen = wire.seen()?;
        for answered in [SYN, SYN | ACK] {
            assert!(seen.iter().any(|segment| segment.flags == answered), "{seen:?}");
        }
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
    let wires = [Wire::open(&client.host, "eth0")?, Wire::open(&chat.host, "eth0")?];
    assert_ne!(client.talk(to)?, "ok");
    // Nor does he get a byte from somebody who waits in `send()` for the connection to come about.
    chat.host.cut()?;
    let lost = Wire::open(&client.host, "eth0")?;
    client.send(Operation::SendWhileConnecting {
        to,
        data: "word".to_owned(),
        timeout: ANSWERED,
    })?;
    lost.receive("the SYN that is lost", ANSWERED, |segment| segment.flags == SYN)?;
    chat.host.mend()?;
    client.wait()?;
    agent.wait_audit("decision=DENY", ANSWERED, |records| {
        let found_out = records.iter().filter(|record| {
            says(record, &client.id, &chat.id, "DENY", "identity_mismatch")
                && record["proof"] == "destination"
                && record["enforced"] == true
        });
        // Equal ones may be joined.
        found_out
            .map(|record| record["count"].as_u64().unwrap_or(1))
            .sum::<u64>()
            == 2
    })?;
    assert_eq!(agent.counter("identity_mismatches")?, 2);
    // There was no connection to the one who has the address by the directory, and nothing says that there was one.
    let named = agent.all_records("")?;
    let wrong = named
        .iter()
        .find(|record| party(&record["destination"]) == iam.id);
    assert_eq!(wrong, None);
    let edges = agent.get("/v1/graph")?["edges"].clone();
    let edges = edges.as_array().cloned().unwrap_or_default();
    let wrong = edges.iter().find(|edge| edge["destination"] == iam.id);
    assert_eq!(wrong, None, "{edges:?}");
    for wire in wires {
        let seen = wire.seen()?;
        assert!(seen.iter().any(|segment| segment.flags == SYN | ACK), "{seen:?}");
        assert!(seen.iter().all(|segment| segment.data.is_empty()), "{seen:?}");
    }
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

/// Whoever is no workload and calls from an address of the destination's own namespace is the host, which has nothing to prove with.
#[test]
fn who_is_no_workload_of_the_namespace_is_the_host() -> Result<()> {
    let (scene, server, _client, agent) = pair_after_agent("proof-host", &policy(), |agent| agent)?;
    let mut host = scene.outsider_in("host", &server.host)?;
    let loopback = LOOPBACKS.map(|address| SocketAddr::new(address, 80));
    for to in loopback.into_iter().chain([server.v4(80), server.v6(80)]) {
        assert_eq!(host.talk(to)?, "ok", "{to}");
    }
    agent.records("decision=ALLOW", 4, |record| {
        record["observer"] == "destination"
            && says(record, "host", &server.id, "ALLOW", "rule")
            && record["proof"] == "none:absent"
    })?;
    assert_eq!(agent.counter("options_missing")?, 0);
    Ok(())
}

/// Switched on and off by agents that follow each other.
#[test]
fn what_is_switched_off_can_be_switched_on_again() -> Result<()> {
    let (_scene, server, mut client, mut agent) =
        pair_after_agent("proof-switched", &policy(), |agent| agent)?;
    for (handshake, proof) in [
        ("auto", "mutual"),
        ("off", "none"),
        ("auto", "mutual"),
        ("off", "none"),
    ] {
        agent.restart_with("handshake", json!(handshake))?;
        let before = agent.all_records("decision=ALLOW")?.len();
        assert_eq!(client.talk(server.v4(80))?, "ok");
        let records = agent.records("decision=ALLOW", before + 1, |_| true)?;
        assert_eq!(records[before]["proof"], proof, "{handshake}");
    }
    assert_eq!(agent.counter("tags_invalid")?, 0);
    Ok(())
}

/// A listener that was there before the agent is asked for what a hook would have asked it. Where the kernel cannot be, it reads who
/// calls and has no proof to give, and the agent says so.
#[test]
fn older_listeners_prove_who_they_are() -> Result<()> {
    let (scene, server, mut client) = pair("proof-older")?;
    let agent = scene
        .agent(&policy())?
        .config("handshake", json!("auto"))
        .start()?;
    for to in server.everywhere(80) {
        assert_eq!(client.talk(to)?, "ok");
    }
    let asked = linux::version()? >= linux::ASKS_OLDER_LISTENERS;
    let (proof, proving, reading) = if asked {
        ("mutual", 2, 0)
    } else {
        ("none:absent", 0, 2)
    };
    allowed(&agent, 3, proof, &client, &server)?;
    let status = agent.get("/v1/status")?["handshake"].clone();
    assert_eq!(status["older_proving"], proving, "{status}");
    assert_eq!(status["older_reading"], reading, "{status}");
    assert_eq!(status["older_failed"], 0, "{status}");
    // Nothing of ours is left on the connections that it accepted.
    let packets = Wire::open(&client.host, "eth0")?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    let seen = packets.seen()?;
    let bearing: Vec<u8> = seen
        .iter()
        .filter(|segment| segment.option(253).is_some())
        .map(|segment| segment.flags)
        .collect();
    let expected: &[u8] = if asked { &[SYN, SYN | ACK] } else { &[SYN] };
    assert_eq!(bearing, expected, "{seen:?}");
    Ok(())
}

/// So is one that began while handshakes bore no identities.
#[test]
fn listeners_of_before_auto_prove_who_they_are() -> Result<()> {
    let off = |agent: AgentBuilder| agent.config("handshake", json!("off"));
    let (scene, server, mut client, mut agent) = pair_after_agent("proof-on", &policy(), off)?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    allowed(&agent, 1, "none", &client, &server)?;
    agent.terminate()?;
    let agent = scene
        .agent_beside("second", &policy())?
        .config("handshake", json!("auto"))
        .start()?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    allowed(&agent, 1, "mutual", &client, &server)?;
    Ok(())
}

/// A listener that the kernel gave a port by itself is found by the agent, and proves who it is from then on.
#[test]
fn a_listener_that_chose_no_port_proves_who_it_is() -> Result<()> {
    let (_scene, mut server, mut client, agent) = pair_after_agent(
        "proof-autobound",
        &Policy::new("policy").allow("client", "server", TCP, ""),
        |agent| agent,
    )?;
    let stream = server.call(Operation::Socket {
        family: 2,
        kind: 1,
        protocol: 0,
    })?;
    let socket = stream.handle()?;
    let listener = server.call(Operation::Listen { socket, backlog: 16 })?;
    let port = listener.local()?.port();
    zt_tests::eventually("the listener to be found", zt_tests::trail::RECORDED, || {
        client.tcp(server.v4(port))?;
        let records = agent.all_records("")?;
        Ok(records.iter().any(|record| record["proof"] == "mutual"))
    })?;
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
