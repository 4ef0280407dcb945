// SPDX-License-Identifier: Apache-2.0
//! Identity proven in handshakes that do not take the usual course: SYN cookies, SYNs that nobody answers, sockets that call twice.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use zt_common::abi::SHARE_LISTENERS;
use zt_common::names::CONNECTION_SHARE;
use zt_tests::hooks::{fill_share, shares};
use zt_tests::pair::{any, pair_after_agent, policy};
use zt_tests::probe::{ConnectOptions, Operation};
use zt_tests::trail::{party, says};
use zt_tests::wire::{ACK, SYN, Segment, Wire};
use zt_tests::{Agent, Party, Policy, Scene, TCP, crossing, eventually};

const ANSWERED: Duration = Duration::from_secs(30);

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

/// With SYN cookies nothing is kept of the SYN: its option is asked for once more.
#[test]
fn a_syn_cookie_asks_once_more() -> Result<()> {
    let (_scene, server, mut client, agent) = pair_after_agent("proof-cookies", &policy(), |agent| agent)?;
    server.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let to = Wire::open(&server.host, "eth0")?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    allowed(&agent, 1, "mutual", &client, &server)?;
    let seen = to.seen()?;
    let bearing: Vec<&Segment> = seen
        .iter()
        .filter(|segment| segment.option(253).is_some())
        .collect();
    let flags: Vec<u8> = bearing.iter().map(|segment| segment.flags).take(3).collect();
    assert_eq!(flags, [SYN, SYN | ACK, ACK], "{seen:?}");
    // Until something shows that the first of them was not lost.
    let (first, last) = (bearing[2], bearing[bearing.len() - 1]);
    assert_eq!(first.sequence, last.sequence, "{seen:?}");
    assert!(agent.counter("option_cookies")? > 0);
    assert_eq!(agent.counter("tags_invalid")?, 0);
    Ok(())
}

/// Whose handshake opens with a cookie and who bears nothing is not named by his address either: the listener keeps SYNs,
/// and would have seen an option.
#[test]
fn a_syn_cookie_is_no_way_round() -> Result<()> {
    let (scene, server, client, agent) = pair_after_agent("proof-cookie-thief", &policy(), |agent| agent)?;
    server.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let mut thief = scene.outsider_in("thief", &client.host)?;
    let connected = thief.connect(server.v4(80))?;
    let sent = thief.say(&connected, "word")?;
    thief.was_reset(&connected, sent.as_ref())?;
    // What he sends after the refusal opens one more, with the same cookie.
    let records = agent.wait_audit("", ANSWERED, |records| !records.is_empty())?;
    for record in records {
        assert!(
            says(&record, "unknown", &server.id, "DENY", "proof_missing"),
            "{record}"
        );
        assert_eq!(record["proof"], "none:absent", "{record}");
    }
    assert_eq!(agent.counter("agreed")?, 0);
    Ok(())
}

/// One socket, two calls: the first goes nowhere before a segment is sent, and has its record all the same.
#[test]
fn each_call_on_a_socket_has_its_record() -> Result<()> {
    let mut scene = Scene::new("proof-again")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let nowhere: IpAddr = "192.0.2.7".parse()?;
    let addresses = server.host.addresses().into_iter().chain([nowhere]);
    scene.declare("server", |workload| workload.at(addresses))?;
    let mut outsider = scene.outsider("outsider")?;
    let policy = policy().allow("client", "10.99.0.0/16", TCP, "80");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    server.serve(any(80))?.local()?;
    outsider.serve(any(80))?.local()?;
    let mut again = |to: SocketAddr| -> Result<[String; 2]> {
        let socket = client
            .call(Operation::Socket {
                family: libc::AF_INET,
                kind: libc::SOCK_STREAM,
                protocol: 0,
            })?
            .handle()?;
        let mut call = |to| -> Result<String> {
            let reply = client.call(Operation::Connect {
                socket,
                to,
                timeout: ANSWERED,
            })?;
            Ok(reply.outcome().to_owned())
        };
        let outcomes = [call(SocketAddr::new(nowhere, 80))?, call(to)?];
        client.close(socket)?;
        Ok(outcomes)
    };
    assert_eq!(again(outsider.v4(80))?, ["ENETUNREACH", "ok"]);
    assert_eq!(again(server.v4(80))?, ["ENETUNREACH", "ok"]);
    agent.records("decision=ALLOW", 2, |record| {
        record["destination"]["address"] == json!(nowhere) && record["proof"] == "none:unanswered"
    })?;
    agent.records("decision=ALLOW", 1, |record| record["proof"] == "none")?;
    agent.records("decision=ALLOW", 1, |record| record["proof"] == "mutual")?;
    Ok(())
}

/// A socket that calls itself (its own address and port): no listener and nobody else is there, and it is judged as that.
#[test]
fn a_socket_that_calls_itself_is_nobody_else() -> Result<()> {
    let policy = policy().allow("client", "host", TCP, "5000");
    let (_scene, _server, mut client, agent) = pair_after_agent("proof-itself", &policy, |agent| agent)?;
    let itself = |at: SocketAddr| ConnectOptions {
        bind: Some(at),
        ..ConnectOptions::default()
    };
    for at in [client.v4(5000), client.v6(5000)] {
        let socket = client.connect_with(at, itself(at))?.handle()?;
        client.send_text(socket, "word")?.ok()?;
        assert_eq!(client.receive(socket)?.data.as_deref(), Some("word"), "{at}");
        client.reset(socket)?;
    }
    let at = client.v4(5001);
    assert_eq!(client.connect_with(at, itself(at))?.outcome(), "EPERM");
    let records = agent.records("", 3, |_| true)?;
    for (record, (decision, proof)) in records.iter().zip([
        ("ALLOW", "none:absent"),
        ("ALLOW", "none:absent"),
        ("DENY", "none"),
    ]) {
        assert_eq!(party(&record["source"]), client.id, "{record}");
        assert_eq!(party(&record["destination"]), "host", "{record}");
        assert_eq!(record["decision"], decision, "{record}");
        assert_eq!(record["proof"], proof, "{record}");
    }
    Ok(())
}

/// Two workloads that open toward each other: neither answers the other's SYN with an option, and each is named as without.
#[test]
fn who_opens_toward_each_other_is_named_without_a_proof() -> Result<()> {
    let mut scene = Scene::new("proof-crossing")?;
    let (mut one, mut other) = (scene.workload("one")?, scene.workload("other")?);
    let policy = Policy::new("crossing")
        .allow("one", "other", TCP, "7001")
        .allow("other", "one", TCP, "7002");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    let (here, there) = (one.v4(7002), other.v4(7001));
    // Addresses are resolved first; nobody listens there.
    assert_eq!(one.tcp(there)?, "ECONNREFUSED");
    assert_eq!(other.tcp(here)?, "ECONNREFUSED");
    crossing::begin(&mut one, here, &mut other, there)?;
    let [ours, theirs] = crossing::meet(&mut one, &mut other)?;
    one.send_text(ours, "over")?.ok()?;
    assert_eq!(other.receive(theirs)?.data.as_deref(), Some("over"));
    for (source, destination) in [(&one, &other), (&other, &one)] {
        allowed(&agent, 1, "none:absent", source, destination)?;
    }
    for counter in ["identity_mismatches", "tags_invalid"] {
        assert_eq!(agent.counter(counter)?, 0, "{counter}");
    }
    Ok(())
}

/// What drops unknown options costs time, not the connection, and is told of by where it is.
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
            timeout: Duration::from_secs(60),
            ..ConnectOptions::default()
        },
    })?;
    let timeout = Duration::from_secs(60);
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
    let [a, b, c, _] = server.host.ipv4.octets();
    eventually("the way to be named", ANSWERED, || {
        let paths = agent.get("/v1/status")?["handshake"]["paths"].clone();
        Ok(paths.as_array().is_some_and(|paths| paths.len() == 1)
            && paths[0]["node"].is_null()
            && paths[0]["network"] == format!("{a}.{b}.{c}.0/24")
            && paths[0]["dropped"] == 1
            && paths[0]["since"] == paths[0]["last"])
    })?;
    let metrics = agent.metrics()?;
    assert_eq!(metrics.sum("zt_options_lost_total", &[("how", "dropped")]), 1);
    Ok(())
}

/// Who has his share of the table of connections leaves the rest to the others. His own are known by name all the same, and what is
/// over is given back.
#[test]
fn nobody_takes_the_room_of_all() -> Result<()> {
    let mut scene = Scene::new("proof-share")?;
    let (mut server, mut client, mut greedy) = (
        scene.workload("server")?,
        scene.workload("client")?,
        scene.workload("greedy")?,
    );
    let policy = policy().allow("greedy", "server", TCP, "80");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    server.serve(any(80))?.local()?;
    let maps = scene.sandbox().maps()?;
    let id = greedy.cgroup.id()?;
    fill_share(&maps, id)?;
    assert_eq!(greedy.talk(server.v4(80))?, "ok");
    assert_eq!(client.talk(server.v4(80))?, "ok");
    allowed(&agent, 1, "none", &greedy, &server)?;
    allowed(&agent, 1, "mutual", &client, &server)?;
    assert_eq!(agent.counter("connections_full")?, 1);
    assert_eq!(agent.counter("agreed")?, 2, "the destination knows both");
    eventually("what is over to be given back", ANSWERED, || {
        let mut shares = shares(&maps)?;
        // The places that the server listens at stay, and so do accounts with nothing in them.
        shares.retain(|share, filed| share & SHARE_LISTENERS == 0 && *filed != 0);
        Ok(shares.len() == 1 && shares.get(&id) == Some(&u64::from(CONNECTION_SHARE)))
    })
}
