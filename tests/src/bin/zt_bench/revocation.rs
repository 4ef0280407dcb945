// SPDX-License-Identifier: Apache-2.0
//! From the removal of a rule to the death of the last connection that it allowed.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use zt_tests::Host;

use crate::Plan;
use crate::crew::Worker;
use crate::load::now;
use crate::order::Order;
use crate::report::{Metric, Target};
use crate::samples::Summary;
use crate::world::{World, id, policy, rule};

const PORT: u16 = 7001;

/// Ten thousand connections between fifty namespaces, both ends of each managed.
pub(crate) fn kill_all(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let (namespaces, each, rounds) = if plan.quick { (20, 100, 2) } else { (50, 200, 5) };
    let mut hosts: Vec<Host> = Vec::new();
    let mut cgroups = Vec::new();
    let world = World::start("revoke", |sandbox, mut builder| {
        for number in 0..namespaces {
            let host = sandbox.host(&format!("n{number}"))?;
            let (cgroup, workload) = World::member(sandbox, &format!("w{number}"))?;
            builder = builder.workload(workload.at(host.addresses()));
            hosts.push(host);
            cgroups.push(cgroup);
        }
        builder.policy("mesh.yaml", &mesh(PORT))
    })?;
    let mut workers = Vec::new();
    for (host, cgroup) in hosts.iter().zip(&cgroups) {
        let mut worker = Worker::start(cgroup, Some(host), None)?;
        worker.listen(SocketAddr::new(IpAddr::V4(host.ipv4), PORT))?;
        workers.push(worker);
    }
    let mut samples = Vec::new();
    for _ in 0..rounds {
        samples.push(round(&world, &mut workers, &hosts, each)?);
    }
    let name = format!(
        "rule removed → the last of {} connections in {namespaces} namespaces dead, both ends",
        namespaces * each
    );
    metrics.push(Metric::summed(name, "ms", Summary::of(&samples)).target(Target::AtMost(50.0)));
    Ok(())
}

fn round(world: &World, workers: &mut [Worker], hosts: &[Host], each: usize) -> Result<f64> {
    let count = each as u32;
    for (number, worker) in workers.iter_mut().enumerate() {
        let next = hosts
            .get((number + 1) % hosts.len())
            .context("there is a next host")?;
        worker.send(&Order::Dial {
            to: SocketAddr::new(IpAddr::V4(next.ipv4), PORT),
            count,
        })?;
    }
    for worker in workers.iter_mut() {
        worker.wait()?;
        worker.send(&Order::Accept { count })?;
    }
    for worker in workers.iter_mut() {
        worker.wait()?;
        worker.send(&Order::Deaths)?;
    }
    // Everybody waits by now, and the agent has taken in what it was told.
    std::thread::sleep(std::time::Duration::from_millis(500));

    let revision = world.agent.revision()?;
    let path = world.agent.files.policies();
    let aside = path.join(".mesh.yaml.new");
    std::fs::write(&aside, mesh(PORT + 1))?;
    let renamed = now();
    std::fs::rename(&aside, path.join("mesh.yaml"))?;
    let mut last = renamed;
    let mut dead = 0;
    for worker in workers.iter_mut() {
        let done = worker.wait()?;
        last = last.max(done.at);
        dead += done.count as usize;
    }
    ensure!(dead == 2 * each * workers.len(), "{dead} ends are dead");
    world.agent.wait_revision_after(revision)?;
    world.policy("mesh.yaml", &mesh(PORT))?;
    Ok((last - renamed) as f64 / 1e6)
}

/// Everybody may reach everybody at a port.
fn mesh(port: u16) -> String {
    let all = format!("spiffe: '{}'", id("*"));
    policy("mesh", &rule(&all, &all, port))
}
