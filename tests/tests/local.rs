// SPDX-License-Identifier: Apache-2.0
//! Destinations in the source's own namespace: the listener there says who it is, and nothing else is named by it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use serde_json::json;
use zt_tests::probe::{Handle, ListenOptions, Operation, TIMEOUT};
use zt_tests::trail::{party, says};
use zt_tests::{Host, Party, Policy, Scene, TCP, UDP, eventually};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const LOOP4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOP6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

/// Every way in which a namespace reaches itself, and every kind of listener that takes it.
fn ways(host: &Host) -> Vec<(IpAddr, Vec<IpAddr>)> {
    let (own4, own6) = (IpAddr::from(host.ipv4), IpAddr::from(host.ipv6));
    let mapped = |ip: Ipv4Addr| IpAddr::from(ip.to_ipv6_mapped());
    vec![
        (
            V4,
            vec![LOOP4, V4, own4, mapped(Ipv4Addr::LOCALHOST), mapped(host.ipv4)],
        ),
        (LOOP4, vec![LOOP4, V4, mapped(Ipv4Addr::LOCALHOST)]),
        (own4, vec![own4, mapped(host.ipv4)]),
        (V6, vec![LOOP6, V6, own6, LOOP4, own4, mapped(host.ipv4)]),
        (LOOP6, vec![LOOP6, V6]),
        (own6, vec![own6]),
    ]
}

fn listen(party: &mut Party, to: SocketAddr, options: ListenOptions) -> Result<Handle> {
    party.call(Operation::Serve { at: to, options })?.handle()
}

fn reuse() -> ListenOptions {
    ListenOptions {
        reuse_port: true,
        ..ListenOptions::default()
    }
}

/// Two workloads and a third, all in one namespace: only `alpha` may be reached.
fn three(label: &str) -> Result<(Scene, [Party; 3])> {
    let mut scene = Scene::new(label)?;
    let host = scene.host("node")?;
    let parties = [
        scene.workload_in("alpha", &host)?,
        scene.workload_in("beta", &host)?,
        scene.workload_in("client", &host)?,
    ];
    Ok((scene, parties))
}

#[test]
fn every_local_address_reaches_its_owner_over_tcp() -> Result<()> {
    let (scene, [mut alpha, mut beta, mut client]) = three("local-tcp")?;
    let policy = Policy::new("local").allow("client", "alpha", TCP, "");
    let agent = scene.agent(&policy)?.start()?;
    let mut port = 8000;
    let mut attempts = 0;
    for (listener, destinations) in ways(&client.host) {
        listen(&mut alpha, at(listener, port), ListenOptions::default())?;
        listen(&mut beta, at(listener, port + 1), ListenOptions::default())?;
        for to in destinations {
            let outcomes = (client.talk(at(to, port))?, client.talk(at(to, port + 1))?);
            assert_eq!(
                (outcomes.0.as_str(), outcomes.1.as_str()),
                ("ok", "EPERM"),
                "{to} with a listener on {listener}"
            );
            attempts += 1;
        }
        port += 2;
    }
    agent.records("", attempts, |record| {
        says(record, &client.id, &alpha.id, "ALLOW", "rule")
    })?;
    agent.records("", attempts, |record| {
        says(record, &client.id, &beta.id, "DENY", "no_rule")
    })?;
    Ok(())
}

#[test]
fn every_local_address_reaches_its_owner_over_udp() -> Result<()> {
    let (scene, [mut alpha, mut beta, mut client]) = three("local-udp")?;
    let policy = Policy::new("local").allow("client", "alpha", UDP, "");
    let agent = scene.agent(&policy)?.start()?;
    let mut port = 8000;
    for (receiver, destinations) in ways(&client.host) {
        let socket = alpha.udp_bind(at(receiver, port))?.handle()?;
        beta.udp_bind(at(receiver, port + 1))?.handle()?;
        for to in destinations {
            let (good, bad) = (at(to, port), at(to, port + 1));
            assert_eq!(client.udp(good)?, "ok", "{to} bound to {receiver}");
            let received = alpha.call(Operation::UdpRecvFrom {
                socket,
                timeout: TIMEOUT,
            })?;
            assert_eq!(
                received.data.as_deref(),
                Some("datagram"),
                "{to} bound to {receiver}"
            );
            assert_eq!(client.udp(bad)?, "EPERM", "{to} bound to {receiver}");
            assert_eq!(client.udp_connected(bad)?, "EPERM", "{to} bound to {receiver}");
        }
        port += 2;
    }
    agent
        .records("decision=DENY", 1, |record| record["destination"]["port"] == 8001)
        .or_else(|_| agent.all_records("decision=DENY"))?;
    let denied = agent.all_records("decision=DENY")?;
    assert!(
        denied
            .iter()
            .all(|record| party(&record["destination"]) == beta.id)
    );
    Ok(())
}

#[test]
fn who_shares_a_namespace_is_told_apart_in_both_directions() -> Result<()> {
    let (scene, [mut alpha, mut beta, _client]) = three("both-ways")?;
    let policy = Policy::new("both-ways")
        .allow("alpha", "beta", TCP, "80")
        .allow("alpha", "beta", UDP, "53");
    let agent = scene.agent(&policy)?.config("allowHost", json!(false)).start()?;
    let mut host = scene.outsider_in("host", &alpha.host)?;
    listen(&mut alpha, at(V6, 81), ListenOptions::default())?;
    listen(&mut beta, at(V6, 80), ListenOptions::default())?;
    let receiver = beta.udp_bind(at(V6, 53))?.handle()?;
    alpha.udp_bind(at(V6, 54))?.handle()?;
    for ip in [LOOP4, LOOP6, alpha.host.ipv4.into(), alpha.host.ipv6.into()] {
        assert_eq!(alpha.talk(at(ip, 80))?, "ok");
        assert_eq!(beta.talk(at(ip, 81))?, "EPERM");
        // Who is not managed is refused by the other end, which knows that it is the host.
        assert_eq!(host.talk(at(ip, 80))?, "ECONNRESET");

        // The answer to a port that the sender did not choose is no decision of its own.
        let sent = alpha.call(Operation::UdpSendTo {
            socket: None,
            to: at(ip, 53),
            data: "question".into(),
        })?;
        let question = beta.call(Operation::UdpRecvFrom {
            socket: receiver,
            timeout: TIMEOUT,
        })?;
        let answer = Operation::UdpSendTo {
            socket: Some(receiver),
            to: question.peer.unwrap(),
            data: "answer".into(),
        };
        assert_eq!(beta.call(answer)?.outcome(), "ok");
        let answer = alpha.call(Operation::UdpRecvFrom {
            socket: sent.handle()?,
            timeout: TIMEOUT,
        })?;
        assert_eq!(answer.data.as_deref(), Some("answer"));
        assert_eq!(beta.udp(at(ip, 54))?, "EPERM");
    }
    agent.records("", 4, |record| says(record, "host", &beta.id, "DENY", "no_rule"))?;
    Ok(())
}

#[test]
fn a_wildcard_listener_names_no_remote_address() -> Result<()> {
    let mut scene = Scene::new("wildcard")?;
    let (mut client, mut stranger) = (scene.workload("client")?, scene.outsider("stranger")?);
    // The client may reach itself, at every port and over both protocols, and nobody else.
    let agent = scene.agent(&Policy::new("nothing"))?.start()?;
    for party in [&mut client, &mut stranger] {
        listen(party, at(V6, 80), ListenOptions::default())?;
        party.udp_bind(at(V6, 80))?.handle()?;
    }
    for to in stranger.everywhere(80) {
        assert_eq!(client.tcp(to)?, "EPERM", "{to}");
        assert_eq!(client.udp(to)?, "EPERM", "{to}");
    }
    for to in client.everywhere(80) {
        assert_eq!(client.talk(to)?, "ok", "{to}");
        assert_eq!(client.udp(to)?, "ok", "{to}");
    }
    let records = agent.records("decision=DENY", 6, |_| true)?;
    assert!(
        records
            .iter()
            .all(|record| party(&record["destination"]) == "world")
    );
    Ok(())
}

#[test]
fn a_place_with_two_owners_is_nobodys() -> Result<()> {
    let (scene, [mut alpha, mut beta, mut client]) = three("two-owners")?;
    let policy = Policy::new("two-owners")
        .allow("client", "alpha", TCP, "")
        .allow("client", "beta", TCP, "");
    let agent = scene.agent(&policy)?.start()?;
    let first = listen(&mut alpha, at(V4, 80), reuse())?;
    let second = listen(&mut alpha, at(V4, 80), reuse())?;
    // Two sockets of one workload are no ambiguity.
    assert_eq!(client.talk(at(LOOP4, 80))?, "ok");
    let third = listen(&mut beta, at(V4, 80), reuse())?;
    assert_eq!(client.talk(at(LOOP4, 80))?, "EPERM");
    agent.records("decision=DENY", 1, |record| {
        says(record, &client.id, "unknown", "DENY", "unknown_destination")
    })?;
    // It stays so until the last of them is gone.
    alpha.close(first)?.ok()?;
    alpha.close(second)?.ok()?;
    assert_eq!(client.talk(at(LOOP4, 80))?, "EPERM");
    beta.close(third)?.ok()?;
    listen(&mut alpha, at(V4, 80), reuse())?;
    assert_eq!(client.talk(at(LOOP4, 80))?, "ok");
    Ok(())
}

#[test]
fn the_most_exact_listener_is_the_one_that_accepts() -> Result<()> {
    let (scene, [mut alpha, mut beta, mut client]) = three("exact")?;
    let policy = Policy::new("exact").allow("client", "alpha", TCP, "");
    let _agent = scene.agent(&policy)?.start()?;
    let v6_only = ListenOptions {
        v6_only: Some(true),
        ..ListenOptions::default()
    };
    // One port, two families.
    listen(&mut alpha, at(V4, 80), ListenOptions::default())?;
    listen(&mut beta, at(V6, 80), v6_only)?;
    assert_eq!(client.talk(at(LOOP4, 80))?, "ok");
    assert_eq!(client.talk(at(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 80))?, "ok");
    assert_eq!(client.talk(at(LOOP6, 80))?, "EPERM");
    // One port, a wildcard and an address.
    listen(&mut beta, at(V4, 81), reuse())?;
    listen(&mut alpha, at(LOOP4, 81), reuse())?;
    assert_eq!(client.talk(at(LOOP4, 81))?, "ok");
    assert_eq!(client.talk(at(client.host.ipv4, 81))?, "EPERM");
    Ok(())
}

#[test]
fn a_closed_listener_is_forgotten() -> Result<()> {
    let (scene, [mut alpha, _beta, mut client]) = three("closed")?;
    let mut host = scene.outsider_in("host", &alpha.host)?;
    let policy = Policy::new("closed")
        .allow("client", "alpha", TCP, "")
        .allow("client", "alpha", UDP, "");
    let agent = scene.agent(&policy)?.start()?;

    let listener = listen(&mut alpha, at(V4, 80), ListenOptions::default())?;
    assert_eq!(client.talk(at(LOOP4, 80))?, "ok");
    alpha.close(listener)?.ok()?;
    listen(&mut host, at(V4, 80), ListenOptions::default())?;
    assert_eq!(client.tcp(at(LOOP4, 80))?, "EPERM");

    let receiver = alpha.udp_bind(at(V4, 53))?.handle()?;
    assert_eq!(client.udp(at(LOOP4, 53))?, "ok");
    alpha.close(receiver)?.ok()?;
    host.udp_bind(at(V4, 53))?.handle()?;
    assert_eq!(client.udp(at(LOOP4, 53))?, "EPERM");

    // A process that is killed forgets all that it had.
    listen(&mut alpha, at(V4, 82), ListenOptions::default())?;
    assert_eq!(client.talk(at(LOOP4, 82))?, "ok");
    drop(alpha);
    listen(&mut host, at(V4, 82), ListenOptions::default())?;
    assert_eq!(client.tcp(at(LOOP4, 82))?, "EPERM");
    agent.records("decision=DENY", 3, |record| {
        says(record, &client.id, "host", "DENY", "no_rule")
    })?;
    Ok(())
}

#[test]
fn a_child_of_a_listener_does_not_forget_it() -> Result<()> {
    let (scene, [mut alpha, _beta, mut client]) = three("children")?;
    let policy = Policy::new("children").allow("client", "alpha", TCP, "80");
    let _agent = scene.agent(&policy)?.start()?;
    let server = listen(&mut alpha, at(V6, 80), ListenOptions::default())?;
    for _ in 0..20 {
        assert_eq!(client.talk(at(LOOP4, 80))?, "ok");
    }
    let state = Operation::ServeState { socket: server };
    eventually("the children to be closed", TIMEOUT, || {
        Ok(alpha.call(state.clone())?.open == Some(0))
    })?;
    assert_eq!(client.talk(at(LOOP6, 80))?, "ok");
    Ok(())
}
