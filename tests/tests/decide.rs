// SPDX-License-Identifier: Apache-2.0
//! The source's decision: who may reach whom, over which protocol and port, and that a refusal comes at once.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use zt_tests::probe::{ConnectOptions, Operation, TIMEOUT};
use zt_tests::trail::{party, says};
use zt_tests::{Party, Policy, Scene, TCP, UDP, eventually, spiffe};

/// Far more than a refusal takes, and far less than any timeout of TCP.
const AT_ONCE: Duration = Duration::from_millis(500);

fn any_port(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

/// Serves TCP on ports of both families.
fn serve(party: &mut Party, ports: &[u16]) -> Result<()> {
    for port in ports {
        party.serve(any_port(Ipv6Addr::UNSPECIFIED, *port))?.local()?;
    }
    Ok(())
}

#[test]
fn allowed_and_refused_over_both_families_and_protocols() -> Result<()> {
    let mut scene = Scene::new("families")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let policy = Policy::new("families")
        .allow("client", "server", TCP, "8000")
        .allow("client", "server", UDP, "8001");
    let agent = scene.agent(&policy)?.start()?;
    serve(&mut server, &[8000, 8001])?;

    for (tcp, udp) in server.everywhere(8000).into_iter().zip(server.everywhere(8001)) {
        assert_eq!(client.tcp(tcp)?, "ok", "{tcp}");
        assert_eq!(client.tcp(udp)?, "EPERM", "{udp}");
        assert_eq!(client.udp(udp)?, "ok", "{udp}");
        assert_eq!(client.udp(tcp)?, "EPERM", "{tcp}");
        assert_eq!(client.udp_connected(udp)?, "ok", "{udp}");
        assert_eq!(client.udp_connected(tcp)?, "EPERM", "{tcp}");
    }
    // Each attempt is one decision, recorded at the source's end alone: the destination's agreed with it.
    let query = format!("source={}", client.id);
    let allowed = agent.records(&query, 9, |record| {
        says(record, &client.id, &server.id, "ALLOW", "rule")
    })?;
    assert!(allowed.iter().all(|record| record["observer"] == "source"));
    let refused = agent.records(&query, 9, |record| {
        says(record, &client.id, &server.id, "DENY", "no_rule")
    })?;
    for record in refused {
        assert_eq!(record["enforced"], true);
        assert_eq!(record["policy_matched"], json!(null));
        assert_eq!(record["source"]["comm"], "zt-probe");
    }
    assert_eq!(allowed[0]["policy_matched"], "families/rule-1");
    Ok(())
}

#[test]
fn a_refusal_comes_at_once_and_every_attempt_is_one() -> Result<()> {
    let mut scene = Scene::new("at-once")?;
    let mut client = scene.workload("client")?;
    let agent = scene.agent(&Policy::new("nothing"))?.start()?;
    // Nobody is there to answer: only a refusal before the first packet can be quick.
    for silent in [
        any_port(Ipv4Addr::new(10, 99, 200, 200), 80),
        any_port("fd99::c8c8".parse::<Ipv6Addr>()?, 80),
    ] {
        for _ in 0..3 {
            let reply = client.connect(silent)?;
            assert_eq!(reply.outcome(), "EPERM");
            assert!(reply.elapsed() < AT_ONCE, "it took {:?}", reply.elapsed());
        }
    }
    agent.records("decision=DENY", 6, |record| {
        says(record, &client.id, "world", "DENY", "no_rule")
    })?;
    Ok(())
}

#[test]
fn observing_refuses_nothing_and_records_what_enforcing_would() -> Result<()> {
    let mut scene = Scene::new("observe")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let policy = Policy::new("observe").allow("client", "server", TCP, "8000");
    let agent = scene.agent(&policy)?.mode("observe").start()?;
    serve(&mut server, &[8000, 8001])?;
    for to in server.everywhere(8001) {
        assert_eq!(client.tcp(to)?, "ok");
        assert_eq!(client.udp(to)?, "ok");
        assert_eq!(client.udp_connected(to)?, "ok");
    }
    assert_eq!(client.tcp(server.v4(8000))?, "ok");
    let denied = agent.records("decision=DENY", 9, |record| record["observer"] == "source")?;
    for record in denied {
        assert!(
            says(&record, &client.id, &server.id, "DENY", "no_rule"),
            "{record}"
        );
        assert_eq!(
            (&record["enforced"], &record["mode"]),
            (&json!(false), &json!("observe"))
        );
    }
    agent.records("decision=ALLOW", 1, |record| {
        record["destination"]["port"] == 8000
    })?;
    assert_eq!(agent.counter("denied_enforced")?, 0);
    Ok(())
}

#[test]
fn each_end_applies_its_own_mode() -> Result<()> {
    let mut scene = Scene::new("ends")?;
    let (mut strict, mut lax) = (scene.workload("strict")?, scene.workload("lax")?);
    scene.declare("lax", |workload| workload.mode("observe"))?;
    let agent = scene.agent(&Policy::new("nothing"))?.start()?;
    serve(&mut strict, &[80])?;
    serve(&mut lax, &[80])?;
    // The one that enforces is asked at its own end, whichever that is.
    assert_eq!(strict.tcp(lax.v4(80))?, "EPERM");
    assert_eq!(lax.talk(strict.v4(80))?, "ECONNRESET");
    let query = format!("source={}", lax.id);
    let records = agent.records(&query, 2, |_| true)?;
    let ends: Vec<_> = records
        .iter()
        .map(|record| (record["observer"].as_str().unwrap(), record["enforced"] == true))
        .collect();
    assert!(
        ends.contains(&("source", false)) && ends.contains(&("destination", true)),
        "{ends:?}"
    );
    Ok(())
}

#[test]
fn addresses_that_nobody_declared_are_world_unknown_or_a_network() -> Result<()> {
    let mut scene = Scene::new("entities")?;
    let mut client = scene.workload("client")?;
    let (mut near, mut far) = (scene.outsider("near")?, scene.outsider("far")?);
    far.host.add_address("192.0.2.7/32")?;
    client.host.add_route("192.0.2.0/24")?;
    far.host.add_address("2001:db8::7/128")?;
    client.host.add_route("2001:db8::/32")?;
    serve(&mut near, &[80, 81, 82])?;
    serve(&mut far, &[80, 81, 82, 83])?;
    let policy = Policy::new("entities")
        .allow("client", "world", TCP, "80")
        .allow("client", "unknown", TCP, "81")
        // The longest prefix names an address, and inherits what wider ones allow.
        .allow("client", "192.0.2.0/24", TCP, "82")
        .allow("client", "192.0.2.7/32", TCP, "83")
        .allow("client", "2001:db8::/48", TCP, "82");
    let agent = scene
        .agent(&policy)?
        .config("clusterCIDRs", json!(["10.99.0.0/16", "fd99::/64"]))
        .start()?;

    for (to, outcome) in [
        (near.v4(80), "EPERM"),
        (near.v4(81), "ok"),
        (near.v6(80), "EPERM"),
        (near.v6(81), "ok"),
        (near.mapped(81), "ok"),
        (near.mapped(80), "EPERM"),
    ] {
        assert_eq!(client.tcp(to)?, outcome, "{to}");
    }
    let far4 = |port| any_port(Ipv4Addr::new(192, 0, 2, 7), port);
    let far6 = |port| any_port("2001:db8::7".parse::<Ipv6Addr>().unwrap(), port);
    for (to, outcome) in [
        (far4(82), "ok"),
        (far4(83), "ok"),
        (far4(81), "EPERM"),
        (far6(82), "ok"),
        (far6(83), "EPERM"),
    ] {
        assert_eq!(client.tcp(to)?, outcome, "{to}");
    }
    let records = agent.records("decision=DENY", 5, |_| true)?;
    let named: Vec<_> = records
        .iter()
        .map(|record| party(&record["destination"]))
        .collect();
    assert_eq!(
        named,
        [
            "unknown",
            "unknown",
            "unknown",
            "cidr:192.0.2.7/32",
            "cidr:2001:db8::/48"
        ]
    );
    assert_eq!(records[0]["reason"], "unknown_destination");
    // A named network is still part of the world that it lies in.
    assert_eq!(client.tcp(far4(80))?, "ok");
    Ok(())
}

#[test]
fn patterns_port_ranges_and_denials() -> Result<()> {
    let mut scene = Scene::new("patterns")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut guest = scene.workload("guest")?;
    let pattern = "spiffe://hanzo.ai/hanzo-k8s/test/*";
    let policy = Policy::new("patterns")
        .allow(pattern, "server", TCP, "8000-8100")
        .allow("*", "server", TCP, "9000")
        .deny("guest", "server", TCP, "8050-8060")
        .deny("*", "server", TCP, "8099")
        .allow("client", "*", UDP, "");
    let agent = scene.agent(&policy)?.start()?;
    serve(
        &mut server,
        &[7999, 8000, 8049, 8050, 8060, 8061, 8099, 8100, 8101, 9000],
    )?;
    for (port, for_client, for_guest) in [
        (7999, "EPERM", "EPERM"),
        (8000, "ok", "ok"),
        (8049, "ok", "ok"),
        (8050, "ok", "EPERM"),
        (8060, "ok", "EPERM"),
        (8061, "ok", "ok"),
        (8099, "EPERM", "EPERM"),
        (8100, "ok", "ok"),
        (8101, "EPERM", "EPERM"),
        (9000, "ok", "ok"),
    ] {
        assert_eq!(client.tcp(server.v4(port))?, for_client, "client to {port}");
        assert_eq!(guest.tcp(server.v6(port))?, for_guest, "guest to {port}");
    }
    assert_eq!(client.udp(guest.v4(53))?, "ok");
    assert_eq!(guest.udp(client.v4(53))?, "EPERM");
    // `*` stands for workloads, not for the world.
    assert_eq!(
        client.udp(any_port(Ipv4Addr::new(10, 99, 200, 200), 53))?,
        "EPERM"
    );
    let denied = agent.records("decision=DENY&port=8099", 2, |_| true)?;
    assert!(
        denied.iter().all(|record| {
            record["reason"] == "deny_rule" && record["policy_matched"] == "patterns/rule-4"
        })
    );
    Ok(())
}

#[test]
fn built_in_rules_and_how_to_switch_them_off() -> Result<()> {
    for (label, switches) in [("built-in", true), ("no-built-in", false)] {
        let mut scene = Scene::new(label)?;
        let mut server = scene.workload("server")?;
        let mut host = scene.outsider_in("host", &server.host)?;
        let agent = scene
            .agent(&Policy::new("nothing"))?
            .config("allowHost", json!(switches))
            .config("allowSelf", json!(switches))
            .start()?;
        serve(&mut server, &[80])?;
        for to in [
            server.v4(80),
            server.v6(80),
            any_port(Ipv4Addr::LOCALHOST, 80),
            any_port(Ipv6Addr::LOCALHOST, 80),
        ] {
            // The host is not managed: its connection is refused at the other end.
            let wanted = if switches {
                ("ok", "ok")
            } else {
                ("EPERM", "ECONNRESET")
            };
            let (to_itself, from_host) = (server.talk(to)?, host.talk(to)?);
            assert_eq!((to_itself.as_str(), from_host.as_str()), wanted, "{to}");
        }
        let decision = if switches { "ALLOW" } else { "DENY" };
        let own = agent.records("", 4, |record| {
            party(&record["source"]) == server.id && record["decision"] == decision
        })?;
        let hosts = agent.records("", 4, |record| {
            party(&record["source"]) == "host" && record["decision"] == decision
        })?;
        if switches {
            assert!(
                own.iter()
                    .all(|record| record["policy_matched"] == "builtin/self")
            );
            assert!(
                hosts
                    .iter()
                    .all(|record| record["policy_matched"] == "builtin/host")
            );
        }
        assert!(hosts.iter().all(|record| record["observer"] == "destination"));
    }
    Ok(())
}

#[test]
fn nested_cgroups_are_their_workload() -> Result<()> {
    let mut scene = Scene::new("nested")?;
    let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
    let policy = Policy::new("nested").allow("client", "server", TCP, "8000");
    let agent = scene.agent(&policy)?.start()?;
    serve(&mut server, &[8000, 8001])?;
    let depths = ["pod", "pod/container", "a/b/c/d/e/f/g/h/i/j/k/l"];
    for depth in depths {
        let mut nested = scene.start("nested", &client.cgroup.child(depth)?, &client.host)?;
        assert_eq!(nested.tcp(server.v4(8000))?, "ok", "{depth}");
        assert_eq!(nested.tcp(server.v6(8001))?, "EPERM", "{depth}");
    }
    agent.records(&format!("source={}", client.id), 2 * depths.len(), |_| true)?;
    Ok(())
}

#[test]
fn allowing_by_default_takes_every_policy() -> Result<()> {
    let mut scene = Scene::new("default")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let open = Policy::new("open")
        .default_allow()
        .deny("client", "server", TCP, "81");
    let agent = scene.agent(&open)?.start()?;
    serve(&mut server, &[80, 81])?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    agent.records("decision=ALLOW&port=80", 1, |record| {
        says(record, &client.id, &server.id, "ALLOW", "default_allow")
    })?;
    let before = agent.revision()?;
    agent
        .files
        .write_policy("second.yaml", &Policy::new("second").text())?;
    agent.wait_revision_after(before)?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    Ok(())
}

#[test]
fn managed_processes_without_an_identity_are_observed_or_refused() -> Result<()> {
    for (setting, outcome) in [("observe", "ok"), ("deny", "EPERM")] {
        let mut scene = Scene::new(setting)?;
        let mut server = scene.outsider("server")?;
        let host = scene.host("stray")?;
        let mut stray = scene.start("stray", &scene.sandbox().cgroup("stray")?, &host)?;
        scene.add(
            "other",
            zt_tests::agent_files::Workload::new(&spiffe("other"), &scene.sandbox().cgroup("other")?),
        );
        let agent = scene
            .agent(&Policy::new("nothing"))?
            .config("unknownWorkload", json!(setting))
            .start()?;
        serve(&mut server, &[80])?;
        assert_eq!(stray.tcp(server.v4(80))?, outcome);
        agent.records("decision=DENY", 1, |record| {
            says(record, "unknown", "world", "DENY", "unknown_source")
                && record["enforced"] == json!(setting == "deny")
        })?;
    }
    Ok(())
}

/// A SYN that is sent again is the same decision; a `connect` that is called again is another one.
#[test]
fn a_retransmitted_packet_is_no_decision_of_its_own() -> Result<()> {
    let mut scene = Scene::new("again")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let policy = Policy::new("again").allow("client", "server", TCP, "8000");
    let agent = scene.agent(&policy)?.start()?;
    let to = server.v4(8000);
    server.serve(to)?.local()?;
    // The addresses are resolved before the cut.
    assert_eq!(client.talk(to)?, "ok");
    server.host.cut()?;
    let options = ConnectOptions {
        timeout: Duration::from_secs(30),
        ..ConnectOptions::default()
    };
    client.send(Operation::TcpConnect { to, options })?;
    eventually("the SYN to be sent again", TIMEOUT, || {
        let output = client
            .host
            .command("ss")
            .args(["-tinH", "state", "syn-sent"])
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("retrans"))
    })?;
    server.host.mend()?;
    client.wait()?.handle()?;
    agent.records("", 2, |_| true)?;
    assert_eq!(agent.decisions()?, 2);
    Ok(())
}
