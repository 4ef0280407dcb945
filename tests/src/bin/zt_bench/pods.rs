// SPDX-License-Identifier: Apache-2.0
//! A large cluster, seen from one of its nodes: how long until everything is known, what it costs to keep up with it, and what
//! it takes.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use zt_common::abi::{Peer, Workload};
use zt_common::address::Address;
use zt_common::names;
use zt_tests::{Cgroup, KubeApi};

use crate::memory::resident;
use crate::report::{Metric, Target};
use crate::samples::Summary;
use crate::world::{World, filled};
use crate::{Plan, fleet, fronts};

pub(crate) const PODS: &str = "/api/v1/pods";
const NODES: usize = 500;
/// Pods of other nodes.
pub(crate) const ELSEWHERE: usize = 5000;
/// Pods of this node.
const HERE: usize = 500;
const SETTLE: Duration = Duration::from_secs(15);
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The pod of a number on a node, at an address of its own.
pub(crate) fn pod(name: &str, uid: &str, node: usize, address: [u8; 4]) -> Value {
    let [a, b, c, d] = address;
    let ip = format!("{a}.{b}.{c}.{d}");
    let node_name = if node == 0 {
        "test-node".to_owned()
    } else {
        format!("node-{node}")
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": format!("team-{}", node % 40), "name": name, "uid": uid,
            // What a real object has, most of which is of no interest.
            "labels": { "app": name, "pod-template-hash": "6d4cf56db6" },
            "managedFields": [{ "manager": "kubelet", "operation": "Update", "fieldsV1": { "f:status": { "f:conditions": {} } } }],
        },
        "spec": {
            "nodeName": node_name,
            "serviceAccountName": format!("account-{}", node % 10),
            "containers": [{ "name": "app", "image": "example.com/app:1", "resources": { "requests": { "cpu": "100m" } } }],
        },
        "status": {
            "phase": "Running", "qosClass": "Burstable", "podIP": ip, "podIPs": [{ "ip": ip }],
            "hostIP": format!("10.200.{}.{}", node / 250, node % 250 + 1),
        },
    })
}

pub(crate) fn address(base: u8, number: usize) -> [u8; 4] {
    [10, base, (number / 250) as u8, (number % 250 + 1) as u8]
}

pub(crate) fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// Lists, churns, and measures what it takes.
pub(crate) fn cluster(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let api = KubeApi::start()?;
    for number in 0..ELSEWHERE {
        api.put(
            PODS,
            pod(
                &format!("far-{number}"),
                &uid(number),
                number % NODES + 1,
                address(1, number),
            ),
        );
    }
    for number in 0..HERE {
        api.put(
            PODS,
            pod(
                &format!("here-{number}"),
                &uid(100_000 + number),
                0,
                address(100, number),
            ),
        );
    }
    fronts::put(&api);
    let begun = Instant::now();
    let world = World::start("kubernetes", |sandbox, builder| {
        let kubeconfig = api.kubeconfig(sandbox.directory())?;
        let builder = filled(builder, 1000)?;
        Ok(builder
            .config("identity", json!({ "source": "kubernetes" }))
            .config("kubernetes", json!({ "kubeconfig": kubeconfig })))
    })?;
    let ready = begun.elapsed().as_secs_f64() * 1e3;
    let peers = peers(&world.maps()?.join(names::PEERS))?;
    let known = peers.keys().count();
    ensure!(known >= ELSEWHERE + NODES + HERE, "{known} addresses are known");
    metrics.push(Metric::value(
        format!(
            "start until ready, {} pods on {NODES} nodes and {} Services listed",
            ELSEWHERE + HERE,
            fronts::COUNT
        ),
        "ms",
        ready,
    ));

    recycled(plan, &api, &world, metrics)?;
    let services = fronts::map(&world)?;
    while services.keys().count() < fronts::COUNT {
        ensure!(
            begun.elapsed() < LIMIT,
            "not all Services are known after {LIMIT:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    births(plan, &api, &world, metrics)?;
    fronts::churn(plan, &api, &world, metrics)?;
    let running: Vec<Running> = (0..HERE)
        .map(|number| {
            Running::start(
                &world
                    .sandbox
                    .cgroup(&format!("burstable/pod{}", uid(100_000 + number)))?,
            )
        })
        .collect::<Result<_>>()?;
    churn(&api, &world, metrics)?;
    drop(running);
    fleet::at_once(&api, &world, metrics)?;
    let pid = world.agent.pid().context("the agent is running")?;
    metrics.push(
        Metric::value(
            format!(
                "agent memory, {} pods and {} Services",
                ELSEWHERE + HERE + 1000,
                fronts::COUNT
            ),
            "MiB",
            resident(pid)?,
        )
        .target(Target::AtMost(64.0)),
    );
    Ok(())
}

/// An address goes from one pod to another: delete, and at once the next.
fn recycled(plan: &Plan, api: &KubeApi, world: &World, metrics: &mut Vec<Metric>) -> Result<()> {
    let peers = peers(&world.maps()?.join(names::PEERS))?;
    let mut samples = Vec::new();
    for round in 0..plan.rounds(20, 200) {
        let number = round * 7 % ELSEWHERE;
        let key = Address::from_v4(address(1, number));
        let before = peers.get(&key, 0).context("it is known")?.identity;
        let old = format!("far-{number}");
        let namespace = format!("team-{}", (number % NODES + 1) % 40);
        let start = Instant::now();
        api.delete(PODS, &namespace, &old);
        api.put(
            PODS,
            pod(
                &format!("next-{number}"),
                &uid(200_000 + round),
                number % NODES + 3,
                address(1, number),
            ),
        );
        while peers.get(&key, 0).is_ok_and(|peer| peer.identity == before) {
            ensure!(
                start.elapsed() < LIMIT,
                "the address has its old name after {LIMIT:?}"
            );
            std::thread::sleep(Duration::from_micros(100));
        }
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    metrics.push(Metric::summed(
        "pod deleted in the API → its address no longer its",
        "ms",
        Summary::of(&samples),
    ));
    Ok(())
}

/// New pods, known before their cgroups are made.
fn births(plan: &Plan, api: &KubeApi, world: &World, metrics: &mut Vec<Metric>) -> Result<()> {
    let pin = world.maps()?.join(names::WORKLOADS);
    let map: HashMap<MapData, u64, Workload> = Map::HashMap(MapData::from_pin(pin)?).try_into()?;
    let mut samples = Vec::new();
    for round in 0..plan.rounds(10, 50) {
        let (name, uid) = (format!("new-{round}"), uid(300_000 + round));
        api.put(PODS, pod(&name, &uid, 0, address(101, round)));
        let known = peers(&world.maps()?.join(names::PEERS))?;
        let key = Address::from_v4(address(101, round));
        let told = Instant::now();
        while known.get(&key, 0).is_err() {
            ensure!(told.elapsed() < LIMIT, "the pod is not known after {LIMIT:?}");
            std::thread::sleep(Duration::from_micros(100));
        }
        let start = Instant::now();
        let cgroup = world.sandbox.cgroup(&format!("burstable/pod{uid}"))?.id()?;
        while map.get(&cgroup, 0).is_err() {
            ensure!(
                start.elapsed() < LIMIT,
                "the cgroup has no identity after {LIMIT:?}"
            );
            std::thread::sleep(Duration::from_micros(100));
        }
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let name = "new cgroup of a known pod → identity in the map";
    metrics.push(Metric::summed(name, "ms", Summary::of(&samples)).target(Target::AtMost(20.0)));
    Ok(())
}

/// A process of a pod, in a network namespace of its own.
struct Running(Child);

impl Running {
    fn start(cgroup: &Cgroup) -> Result<Self> {
        let mut command = Command::new("unshare");
        let child = Self(
            command
                .args(["--net", "sleep", "3600"])
                .spawn()
                .context("unshare")?,
        );
        cgroup.add(child.0.id())?;
        Ok(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is what is wanted.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Heartbeats and changes all over the cluster, a hundred a second.
fn churn(api: &KubeApi, world: &World, metrics: &mut Vec<Metric>) -> Result<()> {
    let pid = world.agent.pid().context("the agent is running")?;
    // It has found the namespaces by then.
    std::thread::sleep(SETTLE);
    let idle = cpu(pid)?;
    let period = Duration::from_secs(30);
    std::thread::sleep(period);
    let share = |ticks: u64, over: Duration| ticks as f64 / 100.0 / over.as_secs_f64() * 100.0;
    metrics.push(
        Metric::value(
            format!("agent's CPU with {HERE} pods here, nothing happening"),
            "% of a core",
            share(cpu(pid)? - idle, period),
        )
        .target(Target::AtMost(1.0)),
    );
    let before = cpu(pid)?;
    let start = Instant::now();
    let mut number = 0;
    while start.elapsed() < period {
        let of = number % ELSEWHERE;
        let name = format!("churn-{of}");
        api.put(
            PODS,
            pod(&name, &uid(400_000 + number), of % NODES + 1, address(50, of)),
        );
        number += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    let elapsed = start.elapsed();
    metrics.push(Metric::value(
        format!(
            "agent's CPU at {:.0} changes of pods elsewhere a second",
            number as f64 / elapsed.as_secs_f64()
        ),
        "% of a core",
        share(cpu(pid)? - before, elapsed),
    ));
    Ok(())
}

fn peers(pin: &Path) -> Result<HashMap<MapData, Address, Peer>> {
    Ok(Map::HashMap(MapData::from_pin(pin)?).try_into()?)
}

/// The processor time of a process so far, in hundredths of a second.
fn cpu(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |index: usize| -> Result<u64> { Ok(fields.get(index).context("a field")?.parse()?) };
    Ok(field(11)? + field(12)?)
}
