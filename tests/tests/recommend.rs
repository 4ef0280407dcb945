// SPDX-License-Identifier: Apache-2.0
//! What is recommended allows what was seen and no less would; what a replay says of another policy, the kernel does.

#[path = "recommend/services.rs"]
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::agent::DEADLINE;
use zt_tests::{Agent, Party, Policy, Scene, TCP, UDP, wait_for};

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
        let all = self.act_all()?.into_iter();
        Ok(all
            .filter_map(|(flow, passed)| (!passed).then_some(flow))
            .collect())
    }

    /// All flows of that traffic, and whether each went through.
    fn act_all(&mut self) -> Result<BTreeMap<Flow, bool>> {
        let server = |port| [self.server.v4(port), self.server.v6(port)];
        let world = SocketAddr::new(WORLD.parse()?, 443);
        let (to, iam, chat) = (self.server.id.clone(), self.iam.id.clone(), self.chat.id.clone());
        let mut all = BTreeMap::new();
        let mut note = |from: &str, to: &str, port: u64, protocol: &str, outcome: &str| {
            let flow = (from.to_owned(), to.to_owned(), port, protocol.to_owned());
            *all.entry(flow).or_insert(true) &= outcome == "ok";
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
        Ok(all)
    }
}

/// What an event, or anything that names them alike, says of a flow.
fn flow_of(event: &Value) -> Option<Flow> {
    let end = |end: &str| Some(event[end]["uid"].as_str()?.to_owned());
    let protocol = event["connection_info"]["protocol_name"].as_str()?;
    let port = event["dst_endpoint"]["port"].as_u64()?;
    Some((
        end("src_endpoint")?,
        end("dst_endpoint")?,
        port,
        protocol.to_uppercase(),
    ))
}

/// Records of all decisions that were made, none of which is still under way.
fn all_decisions(agent: &Agent) -> Result<Vec<Value>> {
    wait_for("each decision to be recorded", DEADLINE, || {
        let records = agent.all_records("type=decision")?;
        let of = |record: &Value| record["count"].as_u64().unwrap_or(1);
        let recorded: u64 = records.iter().map(of).sum();
        Ok((recorded == agent.decisions()?).then_some(records))
    })
}

/// A test of a policy with a case for each flow.
fn policy_test(flows: &BTreeMap<Flow, bool>) -> Value {
    let case = |((from, to, port, protocol), passed): (&Flow, &bool)| {
        let expect = if *passed { "ALLOW" } else { "DENY" };
        json!({ "from": from, "to": to, "ports": [port], "protocol": protocol, "expect": expect })
    };
    json!({
        "apiVersion": "zt.hanzo.ai/v1",
        "kind": "PolicyTest",
        "metadata": { "name": "traffic" },
        "spec": { "tests": flows.iter().map(case).collect::<Vec<_>>() },
    })
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

/// What rows of a replay or a recommendation are about. By the policy in force then, an address of the world may have had a name of
/// its own.
fn flows_of<'v>(rows: impl Iterator<Item = &'v Value>) -> BTreeSet<Flow> {
    let end = |row: &Value, field: &str| {
        let name = row[field].as_str().unwrap_or_default();
        let name = if name.starts_with("cidr:") { "world" } else { name };
        name.to_owned()
    };
    rows.map(|row| {
        let port = row["port"].as_u64().unwrap_or_default();
        (
            end(row, "source"),
            end(row, "destination"),
            port,
            end(row, "protocol"),
        )
    })
    .collect()
}

/// What of the traffic so far a comparison with policies is missing: with those in force, or those of a directory.
fn missing(agent: &Agent, path: Option<&str>) -> Result<BTreeSet<Flow>> {
    let api = format!("http://{}", agent.api());
    let compared = ["recommend", "--since", "1h", "--api", api.as_str(), "--diff"];
    let told = agent.policy_says(&[compared.as_slice(), path.as_slice()].concat())?;
    assert_eq!(told["undecided"], json!([]), "{told}");
    assert_eq!(told["unused"], json!([]), "{told}");
    Ok(flows_of(told["missing"].as_array().context("missing")?.iter()))
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
    let made = agent.policy_says(&["recommend", "--since", "1h"])?;
    assert_eq!(made["unsaid"], json!([]), "{made}");
    let text = made["policy"].as_str().context("a policy")?;
    let whole: BTreeSet<Flow> = cast.act_all()?.into_keys().collect();
    assert_eq!(missing(&agent, None)?, whole, "what is in force allows nothing");

    // Enforced, the same traffic goes through, and nothing of it is denied.
    agent.change_policy(text)?;
    assert_eq!(
        missing(&agent, None)?,
        BTreeSet::new(),
        "what is in force now is what was made"
    );
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
        let replayed = agent.policy_says(&["replay", &path, "--since", "1h"])?;
        let rows = replayed["changes"].as_array().context("changes")?;
        let said = |change: &str| flows_of(rows.iter().filter(|row| row["change"] == change));
        let lacks = missing(&agent, Some(&path))?;
        agent.change_policy(&document.to_string())?;
        let refused = cast.act()?;
        assert!(!refused.is_empty(), "{what}: nothing is refused without it");
        assert_eq!(said("newly_denied"), refused, "{what}: {replayed}");
        assert_eq!(lacks, refused, "{what}");
        // All of it was denied at first, when nobody enforced.
        let passed: BTreeSet<Flow> = whole.difference(&refused).cloned().collect();
        assert_eq!(said("newly_allowed"), passed, "{what}: {replayed}");
    }
    Ok(())
}

/// Exports, explanations, tests and differences of policies, each against what the kernel did.
#[test]
fn what_is_exported_explained_and_tested_is_what_the_kernel_did() -> Result<()> {
    let mut scene = Scene::new("said")?;
    let mut cast = Cast::new(&mut scene)?;
    let policy = |ports: &str| {
        Policy::new("policy")
            .allow("iam", "server", TCP, ports)
            .allow("chat", "server", UDP, "53")
            .allow("world", "server", TCP, "90")
    };
    let agent = scene.agent(&policy("80"))?.start()?;
    let flows = cast.act_all()?;
    assert_eq!(flows.len(), 6);
    assert_eq!(flows.values().filter(|passed| **passed).count(), 3, "{flows:?}");

    // One event for each decision, which says what became of it.
    let records = all_decisions(&agent)?;
    let exported = agent.command(&["audit", "export", "-o", "ocsf"]).output()?;
    ensure!(exported.status.success(), "{exported:?}");
    let text = String::from_utf8(exported.stdout)?;
    let events: Vec<Value> = text
        .lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect::<Result<_>>()?;
    let ids = |all: &[Value], at: &str| -> BTreeSet<String> {
        all.iter()
            .filter_map(|one| Some(one.pointer(at)?.as_str()?.to_owned()))
            .collect()
    };
    assert_eq!(events.len(), records.len());
    assert_eq!(ids(&events, "/metadata/uid"), ids(&records, "/id"));
    let mut found: BTreeMap<Flow, bool> = BTreeMap::new();
    for event in &events {
        assert_eq!(event["class_uid"], 4001, "{event}");
        let flow = flow_of(event).with_context(|| format!("{event} says of no flow"))?;
        *found.entry(flow).or_insert(true) &= event["action"] == "Allowed";
    }
    assert_eq!(found, flows);

    let path = agent.files.policies().display().to_string();
    for ((from, to, port, protocol), passed) in &flows {
        let explained = agent.explained(&[path.as_str()], (from, to, *port, protocol))?;
        let decision = if *passed { "ALLOW" } else { "DENY" };
        assert_eq!(explained["decision"], decision, "{explained}");
        assert_eq!(explained["policy_matched"].is_null(), !passed, "{explained}");
    }

    let tests = agent.files.policies().join("tests");
    std::fs::create_dir_all(&tests)?;
    let file = tests.join("traffic.yaml");
    std::fs::write(&file, policy_test(&flows).to_string())?;
    let tested = agent.policy_says(&["test", &path])?;
    assert_eq!(
        (&tested["passed"], &tested["failed"]),
        (&json!(6), &json!(0)),
        "{tested}"
    );
    assert_eq!(tested["untested_rules"], json!([]));

    // Another policy makes just the difference that is told.
    let before = agent.files.policies().with_file_name("before");
    std::fs::create_dir_all(&before)?;
    std::fs::copy(
        agent.files.policies().join("policy.yaml"),
        before.join("policy.yaml"),
    )?;
    agent.change_policy(&policy("80 81").text())?;
    let after = cast.act_all()?;
    let differ = |flow: &&Flow| after.get(*flow) != flows.get(*flow);
    let changed: Vec<&Flow> = flows.keys().filter(differ).collect();
    let told = agent.policy_says(&["diff", &before.display().to_string(), &path])?;
    let rows = told["flows"].as_array().context("flows")?;
    let end = |row: &Value, end: &str| row[end].as_str().unwrap_or_default().to_owned();
    let said: Vec<Flow> = rows
        .iter()
        .map(|row| {
            let port = row["ports"][0].as_str().and_then(|port| port.parse().ok());
            (
                end(row, "source"),
                end(row, "destination"),
                port.unwrap_or_default(),
                end(row, "protocol"),
            )
        })
        .collect();
    assert_eq!(said.iter().collect::<Vec<_>>(), changed, "{told}");
    // What was expected is not so any more.
    let tested = agent.command(&["policy", "test", &path]).output()?;
    assert_eq!(tested.status.code(), Some(1), "{tested:?}");
    Ok(())
}
