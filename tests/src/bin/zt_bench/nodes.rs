// SPDX-License-Identifier: Apache-2.0
//! Other nodes' agents: a node with 500 others, each a pair of its own with TLS and keys, and 50,000 addresses of theirs; and a
//! new workload on one node until another node's kernel knows it.

mod others;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use zt_common::ABI_VERSION;
use zt_common::abi::Peer;
use zt_common::address::Address;
use zt_common::names;
use zt_tests::agent_files::Workload;
use zt_tests::nodes::{Authority, PATTERN};
use zt_tests::ports;
use zt_tests::{Agent, Cgroup, Sandbox};

use crate::Plan;
use crate::memory::resident;
use crate::report::{Metric, Target};
use crate::samples::Summary;
use crate::world::{id, policy, rule};

use self::others::{EACH, Others};

/// How long all of them may take.
const LIMIT: Duration = Duration::from_secs(120);
/// What a start leaves behind is given back by then.
const SETTLE: Duration = Duration::from_secs(3);

/// A node in the configuration of another one.
fn entry(name: &str, address: &str, net: &str) -> Value {
    json!({"name": name, "address": address, "speaksFor": [net], "identities": "*"})
}

/// A real agent for a node, with a managed tree and maps of its own.
fn agent(
    sandbox: &Sandbox,
    authority: &Authority,
    (node, listen): (&str, SocketAddr),
    nodes: &[Value],
    workloads: Vec<Workload>,
) -> Result<Agent> {
    let directory = sandbox.directory().join(node);
    let files = authority.certify(node)?;
    let (api, health) = ports::two()?;
    let mut builder = sandbox
        .agent_beside(node)?
        .mode("enforce")
        .policy(
            "policy.yaml",
            &policy("p", &rule("entity: host", "entity: host", 1)),
        )?
        .listens(api, health)
        .config("node", json!(node))
        .config("handshake", json!("auto"))
        .config("managedCgroup", json!(sandbox.cgroup(node)?.relative()))
        .config("bpffs", json!(sandbox.pins()?.join(node)))
        .config(
            "identity",
            json!({
                "source": ["file", "peers"],
                "file": directory.join("workloads.yaml"),
                "peers": {"listen": listen, "nodes": nodes, "id": PATTERN},
            }),
        )
        .config(
            "api",
            json!({
                "listen": api,
                "health": health,
                "socket": directory.join("agent.sock"),
                "tls": {"cert": files.cert, "key": files.key, "clientCa": files.client_ca},
            }),
        );
    for workload in workloads {
        builder = builder.workload(workload);
    }
    builder.start()
}

/// What an agent's kernel knows of addresses.
fn peers(sandbox: &Sandbox, node: &str) -> Result<HashMap<MapData, Address, Peer>> {
    let maps = sandbox
        .pins()?
        .join(node)
        .join(format!("v{ABI_VERSION}"))
        .join("maps");
    Ok(Map::HashMap(MapData::from_pin(maps.join(names::PEERS))?).try_into()?)
}

/// Waits until all of these are known.
fn known(map: &HashMap<MapData, Address, Peer>, mut addresses: Vec<IpAddr>, pause: Duration) -> Result<()> {
    let start = Instant::now();
    while !addresses.is_empty() {
        ensure!(
            start.elapsed() < LIMIT,
            "{} addresses are not known after {LIMIT:?}",
            addresses.len()
        );
        addresses.retain(|address| {
            let peer = map.get(&Address::from(*address), 0);
            peer.is_err() || peer.is_ok_and(|peer| peer.node == 0)
        });
        std::thread::sleep(pause);
    }
    Ok(())
}

/// All of it.
pub(crate) fn all(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let count = plan.rounds(100, 500);
    let sandbox = Sandbox::new("nodes")?;
    let authority = Authority::new(sandbox.directory())?;
    let (here, there) = ports::two()?;
    let names: Vec<String> = (0..plan.rounds(11, 61))
        .map(|number| format!("pod{number}"))
        .collect();
    let at = |number: usize| IpAddr::from([10, 200, 0, number as u8 + 1]);
    // One in two is the next of a workload that is known already, as most pods are.
    let is_known = |number: usize| number % 2 == 1;
    let workloads = names.iter().enumerate().map(|(number, name)| {
        let cgroup = Cgroup::at(sandbox.cgroup("a")?.relative().join(name))?;
        let name = if is_known(number) { &names[0] } else { name };
        Ok(Workload::new(&id(name), &cgroup).at([at(number)]))
    });
    let workloads = workloads.collect::<Result<Vec<_>>>()?;
    let one = entry("a", &there.to_string(), "10.200.0.0/24");
    let this = entry("z", &here.to_string(), "10.201.0.0/24");

    let others = Others::new(&authority, sandbox.directory(), count, here)?;
    let mut all = others.entries();
    all.push(one);
    let z = agent(&sandbox, &authority, ("z", here), &all, Vec::new())?;
    std::thread::sleep(SETTLE);
    let pid = z.pid().context("the agent is running")?;
    let before = resident(pid)?;
    let map = peers(&sandbox, "z")?;
    let start = Instant::now();
    let others = others.start()?;
    known(&map, others.last_of_each(), Duration::from_millis(5))?;
    let seconds = start.elapsed().as_secs_f64();
    let addresses = map.keys().flatten().count();
    ensure!(addresses >= count * EACH, "only {addresses} addresses are known");
    std::thread::sleep(SETTLE);
    let after = resident(pid)?;
    let line = format!("{count} nodes, {} addresses", count * EACH);
    metrics.push(Metric::value(
        format!("{line}: all connected and in the map"),
        "s",
        seconds,
    ));
    metrics.push(Metric::value(
        format!("{line}: memory of the agent (RSS without maps)"),
        "MiB",
        after,
    ));
    metrics.push(Metric::value(
        format!("  of that without other nodes' connections, {count} in the list"),
        "MiB",
        before,
    ));

    let _a = agent(&sandbox, &authority, ("a", there), &[this], workloads)?;
    let (mut known_before, mut new) = (Vec::new(), Vec::new());
    for (number, name) in names.iter().enumerate() {
        // The next one shall not find the agents at work on this one.
        std::thread::sleep(Duration::from_millis(100));
        let cgroup = format!("a/{name}");
        let start = Instant::now();
        sandbox.cgroup(&cgroup)?;
        known(&map, vec![at(number)], Duration::from_micros(100))?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        match number {
            // With the first one the connection is made.
            0 => {}
            _ if is_known(number) => known_before.push(took),
            _ => new.push(took),
        }
    }
    for (whose, samples) in [
        ("of a name that is new", new),
        ("of a name that is known", known_before),
    ] {
        let name = format!("new workload {whose} → in the map of another node, which has {count} more");
        metrics.push(Metric::summed(name, "ms", Summary::of(&samples)).target(Target::AtMost(20.0)));
    }
    drop(others);
    Ok(())
}
