// SPDX-License-Identifier: Apache-2.0
//! What is recommended allows what was seen and no less would; what a replay says of another policy, the kernel does.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::agent::DEADLINE;
use zt_tests::{Agent, Party, Policy, Scene};

const WORLD: &str = "192.0.2.5";

/// What policy speaks about: source, destination, port, protocol.
type Flow = (String, String, u64, String);

/// Who speaks to whom.
struct Cast {
    server: Party,
    iam: Party,
    chat: Party,
    stranger: Party,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

impl Cast {
    fn new(scene: &mut Scene) -> Result<Self> {
        let mut cast = Self {
            server: scene.workload("server")?,
            iam: scene.workload("iam")?,
            chat: scene.workload("chat")?,
            stranger: scene.outsider("stranger")?,
        };
        for port in [80, 81, 90] {
            cast.server.serve(any(port))?.local()?;
        }
        cast.server.udp_bind(any(53))?.handle()?;
        cast.stranger.host.add_address(&format!("{WORLD}/32"))?;
        cast.chat.host.add_route("192.0.2.0/24")?;
        cast.stranger.serve(any(443))?.local()?;
        Ok(cast)
    }

    /// The same traffic each time. The flows of which some were refused.
    fn act(&mut self) -> Result<BTreeSet<Flow>> {
        let server = |port| [self.server.v4(port), self.server.v6(port)];
        let world = SocketAddr::new(WORLD.parse()?, 443);
        let (to, iam, chat) = (self.server.id.clone(), self.iam.id.clone(), self.chat.id.clone());
        let mut refused = BTreeSet::new();
        let mut note = |from: &str, to: &str, port: u64, protocol: &str, outcome: &str| {
            if outcome != "ok" {
                refused.insert((from.to_owned(), to.to_owned(), port, protocol.to_owned()));
            }
        };
        for port in [80, 81] {
            for address in server(port) {
                note(&iam, &to, port.into(), "TCP", &self.iam.talk(address)?);
            }
        }
        note(&chat, &to, 80, "TCP", &self.chat.talk(self.server.v4(80))?);
        for address in server(53) {
            note(&chat, &to, 53, "UDP", &self.chat.udp(address)?);
        }
        note(&chat, "world", 443, "TCP", &self.chat.talk(world)?);
        for address in server(90) {
            note("world", &to, 90, "TCP", &self.stranger.talk(address)?);
        }
        Ok(refused)
    }
}

/// Waits until this many different flows are in the trail, decided by this revision or later ones; all such records.
fn wait_recorded(agent: &Agent, flows: usize, since: u64) -> Result<Vec<Value>> {
    let flow = |record: &&Value| {
        let end = |end: &str| record[end]["spiffe_id"].as_str().map(str::to_owned);
        let port = record["destination"]["port"].as_u64();
        (
            end("source"),
            end("destination"),
            port,
            record["protocol"].to_string(),
        )
    };
    let is_meant = |record: &&Value| record["revision"].as_u64().is_some_and(|of| of >= since);
    let records = agent.wait_audit("type=decision&limit=1000", DEADLINE, |records| {
        let meant = records.iter().filter(is_meant);
        meant.map(|record| flow(&record)).collect::<BTreeSet<_>>().len() >= flows
    })?;
    Ok(records.into_iter().filter(|record| is_meant(&record)).collect())
}

fn json_of(agent: &Agent, arguments: &[&str]) -> Result<Value> {
    let output = agent
        .command(&[&["policy"], arguments, &["-o", "json"]].concat())
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Each document that says one thing less than this: a rule, a target of several, a port of several.
fn lesser(document: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let rules = document["spec"]["rules"].as_array().map_or(0, Vec::len);
    for rule in 0..rules {
        let without = |path: &str, index: usize| {
            let mut document = document.clone();
            if let Some(list) = document.pointer_mut(path).and_then(Value::as_array_mut) {
                list.remove(index);
            }
            (format!("{path}/{index}"), document)
        };
        all.push(without("/spec/rules", rule));
        let targets = document["spec"]["rules"][rule]["to"]
            .as_array()
            .map_or(0, Vec::len);
        for target in 0..targets {
            let place = format!("/spec/rules/{rule}/to");
            if targets > 1 {
                all.push(without(&place, target));
            }
            let ports = document["spec"]["rules"][rule]["to"][target]["ports"]
                .as_array()
                .map_or(0, Vec::len);
            if ports > 1 {
                let place = format!("{place}/{target}/ports");
                all.extend((0..ports).map(|port| without(&place, port)));
            }
        }
    }
    all
}

#[test]
fn what_is_recommended_allows_the_same_traffic_and_nothing_of_it_is_too_much() -> Result<()> {
    let mut scene = Scene::new("recommend")?;
    let mut cast = Cast::new(&mut scene)?;
    let nothing = Policy::new("nothing");
    let mut agent = scene.agent(&nothing)?.mode("observe").start()?;
    assert_eq!(cast.act()?, BTreeSet::new(), "nobody enforces");
    wait_recorded(&agent, 6, 0)?;
    let made = json_of(&agent, &["recommend", "--since", "1h"])?;
    assert_eq!(made["unsaid"], json!([]), "{made}");
    let text = made["policy"].as_str().context("a policy")?;

    // Enforced, the same traffic goes through, and nothing of it is denied.
    agent.change_policy(text)?;
    agent.restart_with("mode", json!("enforce"))?;
    let revision = agent.revision()?;
    assert_eq!(cast.act()?, BTreeSet::new(), "{text}");
    for record in wait_recorded(&agent, 6, revision)? {
        assert_eq!(record["decision"], "ALLOW", "{record}\n{text}");
    }

    // Without any part of it something of that traffic is refused, and a replay has said just what.
    let document = agent.get("/v1/policies/recommended")?["document"].clone();
    let all = lesser(&document);
    assert!(all.len() >= 6, "{document}");
    let candidates = agent.files.policies().with_file_name("candidate");
    std::fs::create_dir_all(&candidates)?;
    for (what, document) in all {
        std::fs::write(candidates.join("policy.yaml"), document.to_string())?;
        let path = candidates.display().to_string();
        let replayed = json_of(&agent, &["replay", &path, "--since", "1h"])?;
        let rows = replayed["changes"].as_array().context("changes")?;
        let denied = rows.iter().filter(|row| row["change"] == "newly_denied");
        // By the candidate in force before, an address of the world may have had a name of its own.
        let end = |row: &Value, field: &str| {
            let name = row[field].as_str().unwrap_or_default();
            let name = if name.starts_with("cidr:") { "world" } else { name };
            name.to_owned()
        };
        let said: BTreeSet<Flow> = denied
            .map(|row| {
                let port = row["port"].as_u64().unwrap_or_default();
                (
                    end(row, "source"),
                    end(row, "destination"),
                    port,
                    end(row, "protocol"),
                )
            })
            .collect();
        agent.change_policy(&document.to_string())?;
        let refused = cast.act()?;
        assert!(!refused.is_empty(), "{what}: nothing is refused without it");
        assert_eq!(said, refused, "{what}: {replayed}");
    }
    Ok(())
}
