// SPDX-License-Identifier: Apache-2.0
//! A rollout goes on and back while connections and datagrams come all the time, some two thousand a second from each loop, over
//! both IP versions: no verdict is of another stage than its revision.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::probe::{Flood, Operation};
use zt_tests::{Agent, Party, Policy, Scene, TCP, UDP, spiffe};

use super::stops::{denied, wait_stopped};
use super::{HAMMER, LEAST_CHANGES, PACE, any, cli, json_of, rollout};

/// Allowed, and not.
const PORTS: [u16; 2] = [80, 81];
/// How often a node has to stop by itself.
const LEAST_STOPS: u64 = 2;

/// Where whoever is outside of the tree has addresses.
const OUTSIDE: [&str; 2] = ["10.99.0.0/16", "fd99::/64"];

/// A workload that does what it may, over both protocols, and a caller that no agent manages.
struct Bystander {
    streams: Party,
    datagrams: Party,
    outsider: Party,
}

impl Bystander {
    fn new(scene: &mut Scene) -> Result<Self> {
        let streams = scene.workload("client")?;
        Ok(Self {
            datagrams: scene.start("datagrams", &streams.cgroup, &streams.host)?,
            outsider: scene.outsider("outsider")?,
            streams,
        })
    }

    fn begin(&mut self, server: &Party) -> Result<()> {
        let to = both(server, PORTS[0]);
        self.streams.send(Operation::ConnectMany(forever(to, true)))?;
        self.outsider.send(Operation::ConnectMany(forever(to, true)))?;
        self.datagrams.send(Operation::SendMany(forever(to, false)))
    }

    /// Waits for the loops to end: all of it went through.
    fn end(&mut self) -> Result<()> {
        for (party, who) in [
            (&mut self.streams, "connections"),
            (&mut self.datagrams, "datagrams"),
            (&mut self.outsider, "connections from outside"),
        ] {
            for counts in outcomes(party)? {
                println!("{who}: {counts:?}");
                assert_eq!(counts.keys().collect::<Vec<_>>(), ["ok"], "{who}");
            }
        }
        Ok(())
    }
}

/// What one workload tries that is refused while the stage is in force, over both protocols.
struct Refused {
    streams: Party,
    datagrams: Party,
}

impl Refused {
    fn new(scene: &Scene, of: &Party) -> Result<Self> {
        Ok(Self {
            streams: scene.start("refused-streams", &of.cgroup, &of.host)?,
            datagrams: scene.start("refused-datagrams", &of.cgroup, &of.host)?,
        })
    }

    fn begin(&mut self, server: &Party) -> Result<()> {
        let to = both(server, PORTS[1]);
        self.streams.send(Operation::ConnectMany(forever(to, false)))?;
        self.datagrams.send(Operation::SendMany(forever(to, false)))
    }

    /// Waits for the loops to end: each of them was refused, and went through.
    fn end(&mut self) -> Result<()> {
        for (party, who) in [
            (&mut self.streams, "connections"),
            (&mut self.datagrams, "datagrams"),
        ] {
            for counts in outcomes(party)? {
                println!("{who}, refused or not: {counts:?}");
                // One that was under way may have been ended.
                assert!(
                    ["ok", "EPERM"]
                        .into_iter()
                        .all(|outcome| counts.contains_key(outcome)),
                    "{who}"
                );
            }
        }
        Ok(())
    }
}

/// A port at both addresses.
fn both(server: &Party, port: u16) -> [SocketAddr; 2] {
    [server.v4(port), server.v6(port)]
}

fn forever(to: [SocketAddr; 2], echo: bool) -> Flood {
    Flood {
        to: to.to_vec(),
        duration: Some(HAMMER),
        pace: Some(PACE),
        echo,
        ..Flood::new(to[0], u64::MAX)
    }
}

/// What came of a loop, for each of its destinations.
fn outcomes(party: &mut Party) -> Result<Vec<BTreeMap<String, u64>>> {
    let reply = party.wait()?.ok()?;
    Ok(reply.outcomes.into_iter().map(|of| of.counts).collect())
}

/// A server and a policy that allows the client, and whoever comes from outside, the first of its ports.
fn served(label: &str) -> Result<(Scene, Party, Policy)> {
    let mut scene = Scene::new(label)?;
    let mut server = scene.workload("server")?;
    for port in PORTS {
        server.serve(any(port))?.local()?;
        server.udp_bind(any(port))?.handle()?;
    }
    let allowed = PORTS[0].to_string();
    let policy = [TCP, UDP]
        .into_iter()
        .fold(Policy::new("policy"), |policy, protocol| {
            policy.allow("client", "server", protocol, &allowed)
        });
    let policy = OUTSIDE.into_iter().fold(policy, |policy, network| {
        policy.allow(network, "server", TCP, &allowed)
    });
    Ok((scene, server, policy))
}

/// All of a stage's name.
fn stages(limit: &Value) -> Value {
    let all = ["client", "server", "chat"].map(spiffe);
    let mut stage = json!({ "name": "all", "identities": all });
    if !limit.is_null() {
        stage["onDenials"] = limit.clone();
    }
    json!([stage])
}

/// Of what a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Streams,
    Datagrams,
    Outsider,
}

/// Each decision says what policy says of its port, and was enforced where its revision is one of the stage.
fn each_is_of_its_stage(agent: &Agent) -> Result<()> {
    let mut reached = BTreeMap::from([(1, false)]);
    for record in agent.all_records("type=mode_change")? {
        let revision = record["revision"].as_u64().context("a revision")?;
        // That somebody asked for it says nothing of a stage.
        if let Some(to) = record["change"].get("to") {
            reached.insert(revision, !to.is_null());
        }
    }
    let mut found: BTreeMap<(u16, bool, bool, Who), u64> = BTreeMap::new();
    for port in PORTS {
        for record in agent.all_records(&format!("port={port}&type=decision"))? {
            let revision = record["revision"].as_u64().context("a revision")?;
            let (_, enforced) = reached.range(..=revision).next_back().context("a stage")?;
            let decision = if port == PORTS[0] { "ALLOW" } else { "DENY" };
            ensure!(
                record["decision"] == decision && record["enforced"] == *enforced,
                "not as at a revision where the stage is in force: {enforced}; {record}"
            );
            let address = record["destination"]["address"].as_str().context("an address")?;
            let is_v6 = address.contains(':');
            let who = if record["source"]["spiffe_id"].is_null() {
                Who::Outsider
            } else if record["protocol"] == UDP {
                Who::Datagrams
            } else {
                Who::Streams
            };
            *found.entry((port, *enforced, is_v6, who)).or_default() += 1;
        }
    }
    println!(
        "records by port, stage, whether it was IPv6, and who: {found:?}, at {} stages",
        reached.len()
    );
    // Nobody from outside goes to the second port.
    ensure!(
        found.len() == 2 * 2 * (2 * 2 + 1),
        "both ports at both stages, over both versions and protocols, and from outside: {found:?}"
    );
    Ok(())
}

#[test]
fn no_verdict_is_wrong_while_a_rollout_goes_on_and_back() -> Result<()> {
    let (mut scene, server, policy) = served("under-load")?;
    let mut bystander = Bystander::new(&mut scene)?;
    let mut chat = scene.workload("chat")?;
    let mut loops = Refused::new(&scene, &chat)?;
    let agent = scene
        .agent(&policy)?
        .mode("observe")
        .policy("rollout.yaml", &rollout(None, &stages(&Value::Null)))?
        .start()?;
    bystander.begin(&server)?;
    loops.begin(&server)?;
    let refused = both(&server, PORTS[1]);
    let (start, mut changes) = (Instant::now(), 0);
    while start.elapsed() < HAMMER {
        for (verb, outcome) in [("advance", "EPERM"), ("rollback", "ok")] {
            let change = json_of(&agent, &[verb])?;
            assert_eq!(change["in_force"], true, "{change}");
            // In force is in force, from the first connection on.
            for to in refused {
                assert_eq!(chat.tcp(to)?, outcome, "{to} after {verb}");
            }
            changes += 1;
        }
    }
    println!("{changes} changes in {:?}", start.elapsed());
    assert!(changes > LEAST_CHANGES, "only {changes} changes");
    bystander.end()?;
    loops.end()?;
    each_is_of_its_stage(&agent)
}

#[test]
fn no_verdict_is_wrong_while_a_node_goes_back_by_itself() -> Result<()> {
    let (mut scene, server, policy) = served("back-under-load")?;
    let mut bystander = Bystander::new(&mut scene)?;
    let mut chat = scene.workload("chat")?;
    let mut loops = Refused::new(&scene, &chat)?;
    let limit = json!({ "perMinute": 3, "action": "rollback" });
    let agent = scene
        .agent(&policy)?
        .mode("observe")
        .policy("rollout.yaml", &rollout(None, &stages(&limit)))?
        .start()?;
    bystander.begin(&server)?;
    // Whatever it is by, it is one connection.
    loops.begin(&server)?;
    let (start, mut stops) = (Instant::now(), 0);
    while start.elapsed() < HAMMER {
        let verb = if stops == 0 { "advance" } else { "resume" };
        json_of(&agent, &[verb])?;
        denied(&mut chat, &server, PORTS[1]..=PORTS[1] + 2)?;
        // Over the other version it is no other connection.
        assert_eq!(chat.tcp(server.v6(PORTS[1]))?, "EPERM");
        assert_eq!(chat.tcp(server.v4(PORTS[1] + 3))?, "EPERM");
        let stopped = wait_stopped(&agent)?;
        assert_eq!(
            (&stopped["in_force"], &stopped["stopped"]["denials"]),
            (&Value::Null, &json!(4))
        );
        for to in both(&server, PORTS[1]) {
            assert_eq!(chat.tcp(to)?, "ok", "{to}");
        }
        stops += 1;
    }
    println!("{stops} stops in {:?}", start.elapsed());
    assert!(stops >= LEAST_STOPS, "only {stops}");
    bystander.end()?;
    loops.end()?;
    assert_eq!(cli(&agent, &["status", "--fail"])?.status.code(), Some(1));
    each_is_of_its_stage(&agent)
}
