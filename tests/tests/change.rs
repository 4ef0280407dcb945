// SPDX-License-Identifier: Apache-2.0
//! Changes of policy: how they come, that a bad one changes nothing, and that no decision ever sees half of one.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use zt_tests::agent_files::Workload;
use zt_tests::probe::{Flood, Operation};
use zt_tests::{Agent, Cgroup, Party, Policy, Scene, TCP, UDP, spiffe};

/// How long the swaps of the atomicity test go on, and how many there must have been.
const HAMMER: Duration = Duration::from_secs(8);
/// See [`HAMMER`]. A machine that has nothing else to do makes hundreds.
const LEAST_SWAPS: u64 = 10;
/// One attempt in this time, for each of the loops.
const PACE: Duration = Duration::from_micros(500);

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// A client that may reach one port of a server.
fn two(label: &str, policy: &Policy) -> Result<(Scene, Party, Party, Agent)> {
    let mut scene = Scene::new(label)?;
    let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    let agent = scene.agent(policy)?.start()?;
    Ok((scene, server, client, agent))
}

fn only(port: &str) -> Policy {
    Policy::new("only").allow("client", "server", TCP, port)
}

/// Which of the two ports the client reaches.
fn reaches(client: &mut Party, server: &Party) -> Result<(String, String)> {
    Ok((client.tcp(server.v4(80))?, client.tcp(server.v6(81))?))
}

fn first() -> (String, String) {
    ("ok".to_owned(), "EPERM".to_owned())
}

fn second() -> (String, String) {
    ("EPERM".to_owned(), "ok".to_owned())
}

#[test]
fn however_a_file_is_changed_the_policy_follows() -> Result<()> {
    let (_scene, server, mut client, agent) = two("reload", &only("80"))?;
    assert_eq!(reaches(&mut client, &server)?, first());
    let policies = agent.files.policies();
    let path = policies.join("policy.yaml");

    // Renamed into place.
    agent.change_policy(&only("81").text())?;
    assert_eq!(reaches(&mut client, &server)?, second());

    // Written over in pieces, as some editors do: what lies between is not a document, and is never in force.
    let before = agent.revision()?;
    let text = only("80").text();
    let (head, tail) = text.split_at(text.len() / 2);
    let mut file = fs::File::create(&path)?;
    std::io::Write::write_all(&mut file, head.as_bytes())?;
    file.sync_all()?;
    std::io::Write::write_all(&mut file, tail.as_bytes())?;
    drop(file);
    agent.wait_revision_after(before)?;
    assert_eq!(reaches(&mut client, &server)?, first());

    // One more file, and its removal.
    let before = agent.revision()?;
    let more = Policy::new("more").allow("client", "server", TCP, "81");
    agent.files.write_policy("more.yaml", &more.text())?;
    let before = agent.wait_revision_after(before)?;
    assert_eq!(client.tcp(server.v6(81))?, "ok");
    agent.files.remove_policy("more.yaml")?;
    agent.wait_revision_after(before)?;
    assert_eq!(reaches(&mut client, &server)?, first());

    // The same words in another order are the same policy: nothing to put in force.
    let revision = agent.revision()?;
    fs::write(&path, format!("# a comment\n{}", only("80").text()))?;
    agent.change_policy(&only("81").text())?;
    assert_eq!(agent.revision()?, revision + 1);
    Ok(())
}

#[test]
fn a_config_map_is_swapped_by_its_link() -> Result<()> {
    let (_scene, server, mut client, mut agent) = two("configmap", &only("80"))?;
    let policies = agent.files.policies();
    let version = |name: &str, policy: &Policy| -> Result<()> {
        fs::create_dir(policies.join(name))?;
        fs::write(policies.join(name).join("policy.yaml"), policy.text())?;
        // As the kubelet does it: a new link beside, renamed over the old one.
        symlink(name, policies.join("..data_tmp"))?;
        fs::rename(policies.join("..data_tmp"), policies.join("..data"))?;
        Ok(())
    };
    agent.kill()?;
    version("..2026_01", &only("80"))?;
    fs::remove_file(policies.join("policy.yaml"))?;
    symlink("..data/policy.yaml", policies.join("policy.yaml"))?;
    agent.restart()?;
    assert_eq!(reaches(&mut client, &server)?, first());
    for (name, policy, outcome) in [
        ("..2026_02", only("81"), second()),
        ("..2026_03", only("80"), first()),
        ("..2026_04", only("81"), second()),
    ] {
        let before = agent.revision()?;
        version(name, &policy)?;
        agent.wait_revision_after(before)?;
        assert_eq!(reaches(&mut client, &server)?, outcome, "{name}");
    }
    Ok(())
}

#[test]
fn a_bad_policy_leaves_the_last_good_one_in_force_and_says_so() -> Result<()> {
    let (_scene, server, mut client, agent) = two("bad", &only("80"))?;
    let good = only("80").text();
    let bad = [
        ("malformed", "apiVersion: [zt.hanzo.ai/v1\n".to_owned()),
        ("unknown field", good.replace("\"ports\"", "\"port\"")),
        ("wrong kind", good.replace("ServiceAccessPolicy", "NetworkPolicy")),
        ("not a SPIFFE ID", good.replace("spiffe://", "https://")),
        (
            "another trust domain",
            good.replace("hanzo.ai/hanzo-k8s", "example.org/hanzo-k8s"),
        ),
        ("port 0", good.replace("80", "0")),
        ("port 65536", good.replace("80", "65536")),
        ("reversed range", good.replace("80\n", "\"90-80\"\n")),
    ];
    let revision = agent.revision()?;
    for (what, text) in bad {
        agent.files.write_policy("policy.yaml", &text)?;
        let told = agent.wait_policies(&format!("the errors of: {what}"), has_errors)?;
        let error = &told["errors"][0];
        assert!(
            error["line"].as_u64().is_some_and(|line| line > 0),
            "{what}: {error}"
        );
        assert!(
            error["file"]
                .as_str()
                .is_some_and(|file| file.ends_with("policy.yaml")),
            "{what}: {error}"
        );
        assert_eq!(told["revision"], revision, "{what}");
        let status = agent.get("/v1/status")?;
        assert_eq!(status["policy"]["errors"], told["errors"], "{what}");
        assert_eq!(reaches(&mut client, &server)?, first(), "{what}");

        agent.files.write_policy("policy.yaml", &good)?;
        agent.wait_policies("the errors to be gone", |answer| !has_errors(answer))?;
        assert_eq!(agent.revision()?, revision, "{what}");
    }
    // Nothing at all is not a policy either.
    agent.files.remove_policy("policy.yaml")?;
    agent.wait_policies("the empty directory to be an error", has_errors)?;
    assert_eq!(reaches(&mut client, &server)?, first());
    Ok(())
}

fn has_errors(answer: &Value) -> bool {
    answer["errors"]
        .as_array()
        .is_some_and(|errors| !errors.is_empty())
}

#[test]
fn a_table_that_does_not_fit_is_refused_with_both_numbers() -> Result<()> {
    const MANY: usize = 260;
    let mut scene = Scene::new("large")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    // Identities whose cgroups never come into being are still identities.
    for number in 0..MANY {
        let cgroup = Cgroup::absent(scene.sandbox().managed(), &format!("absent-{number}"));
        let name = format!("crowd-{number}");
        scene.add(&name, Workload::new(&spiffe(&name), &cgroup));
    }
    let agent = scene.agent(&only("80"))?.start()?;
    let revision = agent.revision()?;
    // 262 × 262 pairs on 32 single ports are 2.2 million entries; a table holds 2,097,152.
    let everyone = "spiffe://hanzo.ai/hanzo-k8s/test/*";
    let ports: Vec<String> = (0..32).map(|number| (9001 + 2 * number).to_string()).collect();
    let large = only("80").allow(everyone, everyone, TCP, &ports.join(" "));
    agent.files.write_policy("policy.yaml", &large.text())?;
    let told = agent.wait_policies("the table to be refused", has_errors)?;
    let message = told["errors"][0]["message"].as_str().context("a message")?;
    let numbers: Vec<u64> = message
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    assert!(numbers.contains(&2_097_152), "{message}");
    assert!(numbers.iter().any(|number| *number > 2_097_152), "{message}");
    assert_eq!(told["revision"], revision);
    assert_eq!(reaches(&mut client, &server)?, first());
    agent.change_policy(&only("81").text())?;
    assert_eq!(reaches(&mut client, &server)?, second());
    Ok(())
}

/// Two policies that must never mix. Networks make it hard: the number that stands for an address differs from policy
/// to policy, so that the name of one under the rules of the other would be neither's answer.
#[test]
fn two_policies_never_mix() -> Result<()> {
    let mut scene = Scene::new("atomic")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut picky = scene.workload("picky")?;
    let mut stranger = scene.outsider("stranger")?;
    for (address, network) in [
        ("192.0.2.5/32", "192.0.2.0/24"),
        ("198.51.100.5/32", "198.51.100.0/24"),
    ] {
        stranger.host.add_address(address)?;
        client.host.add_route(network)?;
    }
    let always = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 5)), 80);
    let never = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 5)), 80);
    stranger.serve(any(80))?.local()?;
    stranger.udp_bind(any(80))?.handle()?;
    for port in [81, 82, 83] {
        server.serve(any(port))?.local()?;
    }
    // Both allow `always` and refuse `never`, by other networks; 81 is one's and 82 the other's.
    let mut odd =
        Policy::new("policy")
            .allow("picky", "server", TCP, "81")
            .allow("10.99.0.0/16", "server", TCP, "83");
    let mut even =
        Policy::new("policy")
            .allow("picky", "server", TCP, "82")
            .allow("10.99.0.0/24", "server", TCP, "83");
    for protocol in [TCP, UDP] {
        odd = odd
            .allow("client", "192.0.2.0/24", protocol, "80")
            .allow("client", "world", protocol, "80")
            .deny("client", "198.51.100.0/24", protocol, "80");
        even = even.allow("client", "192.0.2.0/25", protocol, "80").deny(
            "client",
            "198.51.100.0/25",
            protocol,
            "80",
        );
    }
    let agent = scene.agent(&odd)?.start()?;
    assert_eq!(agent.revision()?, 1);

    let forever = |to: Vec<SocketAddr>, echo| Flood {
        duration: Some(HAMMER),
        pace: Some(PACE),
        echo,
        to,
        ..Flood::new(always, u64::MAX)
    };
    let mut sender = scene.start("sender", &client.cgroup, &client.host)?;
    client.send(Operation::ConnectMany(forever(vec![always, never], true)))?;
    sender.send(Operation::SendMany(forever(vec![always, never], false)))?;
    picky.send(Operation::ConnectMany(forever(
        vec![server.v4(81), server.v6(82)],
        false,
    )))?;
    stranger.send(Operation::ConnectMany(forever(vec![server.v4(83)], true)))?;
    let start = Instant::now();
    let mut revision = 1;
    // The loops end by themselves a little later than this one.
    while start.elapsed() < HAMMER {
        let next = if revision % 2 == 1 { &even } else { &odd };
        revision = agent.change_policy(&next.text())?;
    }
    println!("{} swaps in {:?}", revision - 1, start.elapsed());
    assert!(revision > LEAST_SWAPS, "only {revision} swaps");

    for (party, who) in [(&mut client, "connections"), (&mut sender, "datagrams")] {
        let reply = party.wait()?.ok()?;
        let [always, never] = &reply.outcomes[..] else {
            panic!("two destinations: {reply:?}")
        };
        println!("{who}: {:?} {:?}", always.counts, never.counts);
        assert_eq!(always.counts.keys().collect::<Vec<_>>(), ["ok"], "{who}");
        assert_eq!(never.counts.keys().collect::<Vec<_>>(), ["EPERM"], "{who}");
    }
    let inbound = stranger.wait()?.ok()?;
    assert_eq!(inbound.outcomes[0].counts.keys().collect::<Vec<_>>(), ["ok"]);

    // Where the two differ, a decision is the one of the revision that it names.
    picky.wait()?.ok()?;
    for (port, when) in [(81, 1), (82, 0)] {
        let records = agent.all_records(&format!("port={port}&source={}", picky.id))?;
        assert!(records.len() > 100, "{} records of port {port}", records.len());
        for record in records {
            if record["reason"] == "revoked" || record["observer"] == "destination" {
                continue;
            }
            let revision = record["revision"].as_u64().context("a revision")?;
            let wanted = if revision % 2 == when { "ALLOW" } else { "DENY" };
            assert_eq!(record["decision"], wanted, "{record}");
        }
    }
    Ok(())
}
