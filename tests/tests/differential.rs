// SPDX-License-Identifier: Apache-2.0
//! Random policies on random flows: what the kernel decided, what the API answers, and what a plain reading of the
//! documents says are the same. The seed is printed; `ZT_TEST_SEED` repeats a run.

#[path = "../../zt-agent/tests/corpora/random.rs"]
mod random;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::{Party, Policy, Scene, TCP, UDP, spiffe};

use random::Random;

/// How long new policies are tried, and how many there must have been.
const BUDGET: Duration = Duration::from_secs(15);
const LEAST_POLICIES: usize = 5;
const WORKLOADS: [&str; 3] = ["w0", "w1", "w2"];
const FLOWS: usize = 60;
/// Ports are few, so that rules and flows meet; the last is the end of the range.
const PORTS: [u16; 7] = [1000, 1001, 1015, 1016, 4096, 40_000, 65_535];
/// Networks outside the cluster, some inside others.
const NETWORKS: [&str; 5] = [
    "192.0.2.0/24",
    "192.0.2.128/25",
    "198.51.100.0/24",
    "2001:db8::/32",
    "2001:db8:1::/48",
];
/// Where nobody lives whom the directory knows.
const OUTSIDE: [&str; 7] = [
    "192.0.2.5",
    "192.0.2.200",
    "198.51.100.7",
    "203.0.113.9",
    "2001:db8::5",
    "2001:db8:1::5",
    "10.99.77.7",
];

impl Random {
    fn one_in(&mut self, chances: u64) -> bool {
        self.next().is_multiple_of(chances)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[(self.next() % from.len() as u64) as usize]
    }
}

/// A rule, as it is written.
#[derive(Clone, Debug)]
struct Rule {
    allow: bool,
    from: String,
    to: String,
    protocol: &'static str,
    ports: Option<(u16, u16)>,
}

/// The other end of a flow, as the documents see it.
#[derive(Clone, Debug, PartialEq)]
enum Who {
    Workload(&'static str),
    Address(IpAddr),
}

#[derive(Clone, Debug)]
struct Flow {
    source: usize,
    destination: Who,
    address: IpAddr,
    port: u16,
    protocol: &'static str,
}

const PATTERN: &str = "spiffe://hanzo.ai/hanzo-k8s/test/*";

fn random_policy(random: &mut Random) -> (Vec<Rule>, bool) {
    let count = random.next() % 7;
    let rules = (0..count).map(|_| {
        let from = match random.next() % 5 {
            0 => "*",
            1 => PATTERN,
            _ => random.pick(&WORKLOADS),
        };
        let to = match random.next() % 8 {
            0 => "*",
            1 => PATTERN,
            2 => "world",
            3 => "unknown",
            4 | 5 => random.pick(&NETWORKS),
            _ => random.pick(&WORKLOADS),
        };
        let ports = match random.next() % 4 {
            0 => None,
            1 => {
                let (one, other) = (*random.pick(&PORTS), *random.pick(&PORTS));
                Some((one.min(other), one.max(other)))
            }
            _ => Some(*random.pick(&PORTS)).map(|port| (port, port)),
        };
        Rule {
            allow: !random.one_in(4),
            from: from.to_owned(),
            to: to.to_owned(),
            protocol: if random.one_in(3) { UDP } else { TCP },
            ports,
        }
    });
    (rules.collect(), random.one_in(6))
}

fn document(rules: &[Rule], default_allow: bool, number: usize) -> String {
    let name = format!("policy-{number}");
    let mut policy = Policy::new(&name);
    if default_allow {
        policy = policy.default_allow();
    }
    for rule in rules {
        let ports = match rule.ports {
            None => String::new(),
            Some((first, last)) if first == last => first.to_string(),
            Some((first, last)) => format!("{first}-{last}"),
        };
        let action = if rule.allow { "ALLOW" } else { "DENY" };
        policy = policy.rule(action, &rule.from, &rule.to, rule.protocol, &ports);
    }
    policy.text()
}

/// What a reader of the documents would say: whether, and which rules may be the one that is named.
fn expected(rules: &[Rule], default_allow: bool, flow: &Flow) -> (bool, Vec<usize>) {
    let source = WORKLOADS[flow.source];
    let matching = |allow: bool| -> Vec<usize> {
        let rules = rules.iter().enumerate();
        let matching = rules.filter(|(_, rule)| {
            rule.allow == allow
                && rule.protocol == flow.protocol
                && (rule.from == "*" || rule.from == PATTERN || rule.from == source)
                && reaches(&rule.to, &flow.destination)
                && rule
                    .ports
                    .is_none_or(|(first, last)| (first..=last).contains(&flow.port))
        });
        matching.map(|(index, _)| index + 1).collect()
    };
    let (denying, allowing) = (matching(false), matching(true));
    if !denying.is_empty() {
        (false, denying)
    } else if !allowing.is_empty() {
        (true, allowing)
    } else {
        (default_allow, Vec::new())
    }
}

fn reaches(to: &str, destination: &Who) -> bool {
    match destination {
        Who::Workload(name) => to == "*" || to == PATTERN || to == *name,
        Who::Address(address) => {
            let in_cluster = matches!(address, IpAddr::V4(v4) if v4.octets().starts_with(&[10, 99]));
            match to {
                "world" => !in_cluster,
                "unknown" => in_cluster,
                network => contains(network, *address),
            }
        }
    }
}

fn contains(network: &str, address: IpAddr) -> bool {
    let Some((base, length)) = network.split_once('/') else {
        return false;
    };
    let (Ok(base), Ok(length)) = (base.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((base, width), (address, other)) = (bits(base), bits(address));
    width == other && (base ^ address).leading_zeros() >= length
}

fn random_flow(random: &mut Random, parties: &[Party]) -> Flow {
    let source = (random.next() % WORKLOADS.len() as u64) as usize;
    let (destination, address) = if random.one_in(2) {
        let outside = random
            .pick(&OUTSIDE)
            .parse()
            .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
        (Who::Address(outside), outside)
    } else {
        // Its own address is its own namespace, where the listener decides: another test's matter.
        let other = (source + 1 + (random.next() % (WORKLOADS.len() as u64 - 1)) as usize) % WORKLOADS.len();
        let address = *random.pick(&parties[other].host.addresses());
        (Who::Workload(WORKLOADS[other]), address)
    };
    Flow {
        source,
        destination,
        address,
        port: *random.pick(&PORTS),
        protocol: if random.one_in(2) { UDP } else { TCP },
    }
}

/// What a record or a question is found by.
type Key = (String, IpAddr, u16, String);

fn key(flow: &Flow) -> Key {
    (
        spiffe(WORKLOADS[flow.source]),
        flow.address,
        flow.port,
        flow.protocol.to_owned(),
    )
}

/// The decisions of a revision at the sources' ends.
fn decided(records: &[Value], revision: u64) -> Result<HashMap<Key, Value>> {
    let mut decided = HashMap::new();
    for record in records {
        if record["revision"] != revision || record["observer"] != "source" || record["hook"] == "api" {
            continue;
        }
        let text = |value: &Value| {
            value
                .as_str()
                .map(str::to_owned)
                .with_context(|| record.to_string())
        };
        let key = (
            text(&record["source"]["spiffe_id"])?,
            text(&record["destination"]["address"])?.parse()?,
            u16::try_from(record["destination"]["port"].as_u64().context("a port")?)?,
            text(&record["protocol"])?,
        );
        decided.insert(key, record.clone());
    }
    Ok(decided)
}

#[test]
fn kernel_api_and_documents_agree() -> Result<()> {
    let seed = match std::env::var("ZT_TEST_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_secs(),
    };
    println!("ZT_TEST_SEED={seed}");
    let mut random = Random(seed);
    let mut scene = Scene::new("differential")?;
    let mut parties = Vec::new();
    for name in WORKLOADS {
        let party = scene.workload(name)?;
        for network in [
            "192.0.2.0/24",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "2001:db8::/32",
        ] {
            party.host.add_route(network)?;
        }
        parties.push(party);
    }
    // Someone answers there, with a reset or an ICMP message: every attempt ends at once.
    let stranger = scene.host("stranger")?;
    for address in OUTSIDE {
        let length = if address.contains(':') { 128 } else { 32 };
        stranger.add_address(&format!("{address}/{length}"))?;
    }
    let agent = scene
        .agent(&Policy::new("empty"))?
        .mode("observe")
        .config("clusterCIDRs", json!(["10.99.0.0/16", "fd99::/64"]))
        .start()?;
    let start = Instant::now();
    let (mut policies, mut flows) = (0, 0);
    // A slow machine takes longer.
    while start.elapsed() < BUDGET || policies < LEAST_POLICIES {
        policies += 1;
        let (rules, default_allow) = random_policy(&mut random);
        let text = document(&rules, default_allow, policies);
        let revision = agent.change_policy(&text)?;
        // Each flow once: a record is found by what it says.
        let wanted: HashMap<Key, Flow> = (0..FLOWS)
            .map(|_| random_flow(&mut random, &parties))
            .map(|flow| (key(&flow), flow))
            .collect();
        for flow in wanted.values() {
            let to = SocketAddr::new(flow.address, flow.port);
            let party = &mut parties[flow.source];
            let outcome = if flow.protocol == TCP {
                party.tcp(to)?
            } else {
                party.udp(to)?
            };
            assert_ne!(outcome, "EPERM", "{flow:?} under observation");
        }
        let kernel = zt_tests::wait_for("the decisions of the kernel", Duration::from_secs(10), || {
            let kernel = decided(&agent.audit("limit=1000")?, revision)?;
            Ok((kernel.len() >= wanted.len()).then_some(kernel))
        })?;
        let order: Vec<&Flow> = wanted.values().collect();
        let answers = evaluations(&agent, &order)?;
        for (flow, answer) in order.into_iter().zip(answers) {
            let context = || format!("seed {seed}, {flow:?} under {text}");
            let record = kernel.get(&key(flow)).with_context(context)?;
            let (allowed, named) = expected(&rules, default_allow, flow);
            let decision = if allowed { "ALLOW" } else { "DENY" };
            assert_eq!(record["decision"], decision, "kernel: {record}: {}", context());
            assert_eq!(answer["decision"], decision, "API: {answer}: {}", context());
            assert_eq!(
                record["policy_matched"],
                answer["policy_matched"],
                "{}",
                context()
            );
            assert_eq!(record["reason"], answer["reason"], "{}", context());
            let named: Vec<Value> = named
                .iter()
                .map(|rule| json!(format!("policy-{policies}/rule-{rule}")))
                .collect();
            let matched = &record["policy_matched"];
            assert!(
                if named.is_empty() {
                    matched.is_null()
                } else {
                    named.contains(matched)
                },
                "{matched} is none of {named:?}: {}",
                context()
            );
            flows += 1;
        }
    }
    println!("{policies} policies, {flows} flows");
    Ok(())
}

/// The answers of the API to the same questions.
fn evaluations(agent: &zt_tests::Agent, flows: &[&Flow]) -> Result<Vec<Value>> {
    let requests: Vec<Value> = flows
        .iter()
        .map(|flow| {
            let (port, protocol) = (flow.port, flow.protocol);
            let destination = match &flow.destination {
                Who::Workload(name) => {
                    json!({ "spiffe_id": spiffe(name), "port": port, "protocol": protocol })
                }
                Who::Address(address) => json!({ "address": address, "port": port, "protocol": protocol }),
            };
            json!({ "source": { "spiffe_id": spiffe(WORKLOADS[flow.source]) }, "destination": destination })
        })
        .collect();
    let mut answer = agent
        .post("/v1/evaluate", &json!({ "requests": requests }))?
        .success()?
        .json()?;
    let answers = answer["responses"].as_array_mut().context("responses")?;
    Ok(std::mem::take(answers))
}
