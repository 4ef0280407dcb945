// SPDX-License-Identifier: Apache-2.0
//! From a changed policy file to the first connection that is decided otherwise.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};

use crate::Plan;
use crate::crew::Worker;
use crate::load::now;
use crate::order::Order;
use crate::report::{Metric, Target};
use crate::samples::Summary;
use crate::world::{World, compact, filled, filler, id, logged, policy, rule};

const PORT: u16 = 7001;

/// One rule, and the whole table, with 1,000 and 100,000 entries.
pub(crate) fn effect(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    for (entries, limit, changes) in [
        (1000, 25.0, plan.rounds(5, 20)),
        (100_000, 150.0, plan.rounds(2, 10)),
    ] {
        let mut client = None;
        let mut host = None;
        let world = World::start("change", |sandbox, builder| {
            host = Some(sandbox.host("host")?);
            let (cgroup, workload) = World::member(sandbox, "client")?;
            client = Some(cgroup);
            let builder = builder.workload(workload).policy("switch.yaml", &switch(true))?;
            filled(builder, entries)
        })?;
        let (Some(client), Some(host)) = (client, host) else {
            anyhow::bail!("the world was prepared")
        };
        let plain = world.sandbox.outside().child("plain")?;
        let (agent_cpu, cpu) = plan.cpus();
        let mut worker = Worker::start(&plain, Some(&host), Some(cpu))?;
        let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
        worker.listen(to)?;
        worker.enter(&client)?;
        world.confine_agent(agent_cpu)?;

        let samples = flips(&world, &mut worker, to, changes, "switch.yaml", switch)?;
        let name = format!("one rule changed of {entries} → first changed verdict");
        metrics.push(Metric::summed(name, "ms", Summary::of(&samples)).target(Target::AtMost(limit)));

        // The rule that is looked at is in the one file that changes, with all the others.
        let whole = |open: bool| compact(entries, u16::from(!open), &switching_rule(open));
        world.policy("compact.yaml", &whole(true))?;
        for (file, _) in filler(entries) {
            world.agent.files.remove_policy(&file)?;
        }
        world.agent.files.remove_policy("switch.yaml")?;
        world.settle()?;
        let samples = flips(&world, &mut worker, to, changes, "compact.yaml", whole)?;
        let name = format!("all {entries} entries changed → first changed verdict");
        metrics.push(Metric::summed(name, "ms", Summary::of(&samples)).target(Target::AtMost(limit)));

        let log = logged(&world.agent.log()?, "swap_ms");
        let swaps = &log[log.len().saturating_sub(samples.len())..];
        let name = format!("  the agent's own time to compile and swap, {entries} entries");
        metrics.push(Metric::summed(name, "ms", Summary::of(swaps)));
    }
    Ok(())
}

/// Changes the policy back and forth under a client that never stops connecting. Milliseconds from the rename to the
/// answer of the first connect that is decided otherwise.
fn flips(
    world: &World,
    worker: &mut Worker,
    to: SocketAddr,
    changes: usize,
    file: &str,
    text: impl Fn(bool) -> String,
) -> Result<Vec<f64>> {
    let mut samples = Vec::new();
    for change in 0..2 * changes {
        let open = change % 2 == 1;
        let revision = world.agent.revision()?;
        worker.send(&Order::Flip { to })?;
        // The client's first answers are those of the policy before.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let renamed = replace(world, file, &text(open))?;
        let done = worker.wait()?;
        ensure!(
            done.errno == if open { 0 } else { libc::EPERM },
            "after the change, connect answers {}",
            done.errno
        );
        samples.push(done.at.saturating_sub(renamed) as f64 / 1e6);
        world.agent.wait_revision_after(revision)?;
    }
    Ok(samples)
}

/// Writes aside, then renames, and says when it began to rename.
pub(crate) fn replace(world: &World, file: &str, text: &str) -> Result<u64> {
    let path = world.agent.files.policies().join(file);
    let aside = path.with_file_name(format!(".{file}.new"));
    std::fs::write(&aside, text)?;
    let at = now();
    std::fs::rename(&aside, &path)?;
    Ok(at)
}

/// The policy that is flipped: with the client's rule, or with another in its place.
fn switch(open: bool) -> String {
    policy("switch", &switching_rule(open))
}

fn switching_rule(open: bool) -> String {
    rule(
        &format!("spiffe: '{}'", id("client")),
        "entity: host",
        if open { PORT } else { PORT + 1 },
    )
}
