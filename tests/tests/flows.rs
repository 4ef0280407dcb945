// SPDX-License-Identifier: Apache-2.0
//! Datagram flows under changing policies: one decision a revision, at both ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use zt_tests::datagram::{guarded, send, take};
use zt_tests::probe::{Flood, Operation, TIMEOUT};
use zt_tests::{Policy, Scene, UDP};

/// Long enough for whatever was going to arrive.
const SOON: Duration = Duration::from_millis(200);

fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

fn any(port: u16) -> SocketAddr {
    at(Ipv6Addr::UNSPECIFIED, port)
}

#[test]
fn a_flow_is_one_decision_a_revision() -> Result<()> {
    let mut scene = Scene::new("flows")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let policy = Policy::new("flows").allow("client", "server", UDP, "53");
    let agent = scene.agent(&policy)?.start()?;
    server.udp_bind(any(53))?.handle()?;
    guarded(&server)?;
    // One socket for all datagrams of a loop: one flow for each destination.
    let flood = |to: Vec<SocketAddr>| Flood {
        to,
        ..Flood::new(server.v4(1), 100)
    };
    let (good, bad) = (server.v4(53), server.v4(54));
    let reply = client.call(Operation::SendMany(flood(vec![good, bad])))?.ok()?;
    assert_eq!(reply.outcomes[0].count("ok"), 50);
    assert_eq!(reply.outcomes[1].count("EPERM"), 50);
    agent.records("decision=ALLOW", 1, |_| true)?;
    agent.records("decision=DENY", 1, |_| true)?;
    assert_eq!(agent.counter("datagrams_refused")?, 49);

    // The same flow under a new revision is decided anew, and says so once.
    let flow = client.udp_bind(at(Ipv4Addr::UNSPECIFIED, 0))?.handle()?;
    let mut total = 1;
    for revision in 0..3 {
        let text = policy
            .clone()
            .allow("client", "server", UDP, &(60 + revision).to_string());
        agent.change_policy(&text.text())?;
        for _ in 0..10 {
            send(&mut client, Some(flow), good, "again")?.ok()?;
        }
        total += 1;
        agent.records("decision=ALLOW", total, |_| true)?;
    }
    Ok(())
}

#[test]
fn a_change_of_policy_reaches_flows_and_bound_ports() -> Result<()> {
    let mut scene = Scene::new("late")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut stranger = scene.outsider("stranger")?;
    let closed = Policy::new("late");
    let agent = scene.agent(&closed)?.start()?;
    let socket = server.udp_bind(any(53))?.handle()?;
    guarded(&server)?;
    let to = server.v4(53);
    let from = client.udp_bind(at(Ipv4Addr::UNSPECIFIED, 0))?.handle()?;
    let far = stranger.udp_bind(at(Ipv4Addr::UNSPECIFIED, 0))?;
    let (far, far_port) = (far.handle()?, far.local()?.port());
    let open = closed
        .clone()
        .allow("client", "server", UDP, "53")
        .allow("world", "server", UDP, "53");
    for (policy, open) in [(&closed, false), (&open, true), (&closed, false), (&open, true)] {
        if agent.revision()? > 1 || open {
            agent.change_policy(&policy.text())?;
        }
        let sent = send(&mut client, Some(from), to, "client")?;
        assert_eq!(sent.outcome(), if open { "ok" } else { "EPERM" });
        if open {
            take(&mut server, socket, TIMEOUT)?.ok()?;
        }
        send(&mut stranger, Some(far), to, "stranger")?.ok()?;
        let came = take(&mut server, socket, if open { TIMEOUT } else { SOON })?;
        assert_eq!(came.errno.is_none(), open);
        // Nor may it answer any more on a flow that is no longer allowed.
        let back = send(&mut server, Some(socket), stranger.v4(far_port), "answer")?;
        assert_eq!(back.outcome(), if open { "ok" } else { "EPERM" });
    }
    Ok(())
}
