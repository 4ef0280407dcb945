// SPDX-License-Identifier: Apache-2.0
//! Memory of the agent, and of its maps apart.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use zt_tests::agent_files::Workload;

use crate::Plan;
use crate::report::{Metric, Target};
use crate::world::{World, filled, id};
use zt_tests::programs::map_memory;

const MIB: f64 = 1024.0 * 1024.0;
/// What a start leaves behind is given back by then.
const SETTLE: Duration = Duration::from_secs(3);

/// Idle, and with many identities and entries.
pub(crate) fn of_agent(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    for (name, identities, entries, limit) in [
        ("idle", 0, 10, 32.0),
        ("10,000 identities, 100,000 entries", 10_000, 100_000, 64.0),
    ] {
        let world = World::start("memory", |sandbox, mut builder| {
            let cgroup = sandbox.cgroup("pods")?;
            for number in 0..identities {
                // Of cgroups that are not there: what counts is that they are known.
                let absent = zt_tests::Cgroup::at(cgroup.relative().join(format!("w{number}")))?;
                builder = builder.workload(Workload::new(&id(&format!("w/{number}")), &absent));
            }
            filled(builder, entries)
        })?;
        std::thread::sleep(if plan.quick { SETTLE / 3 } else { SETTLE });
        let pid = world.agent.pid().context("the agent is running")?;
        let (all, ring) = (rollup(pid)?, mapped_maps(pid)?);
        let mebibytes = |name: &str| all.get(name).copied().unwrap_or(0) as f64 / 1024.0;
        let own = mebibytes("Rss") - ring as f64 / 1024.0;
        let line = format!("agent memory (RSS without its mapping of eBPF maps), {name}");
        metrics.push(Metric::value(line, "MiB", own).target(Target::AtMost(limit)));
        for (field, what) in [
            ("Pss", "PSS"),
            ("Anonymous", "anonymous: no file could give it back"),
        ] {
            metrics.push(Metric::value(
                format!("  {what}, {name}"),
                "MiB",
                mebibytes(field),
            ));
        }
        let maps = map_memory(pid)?;
        let total: u64 = maps.values().sum();
        metrics.push(Metric::value(
            format!("  eBPF maps, {name}"),
            "MiB",
            total as f64 / MIB,
        ));
        for (map, bytes) in maps.into_iter().filter(|(_, bytes)| *bytes as f64 > MIB) {
            metrics.push(Metric::value(format!("    {map}"), "MiB", bytes as f64 / MIB));
        }
    }
    Ok(())
}

/// Mebibytes of a process in memory, without its mappings of eBPF maps.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let all = rollup(pid)?.get("Rss").copied().unwrap_or(0);
    Ok(all.saturating_sub(mapped_maps(pid)?) as f64 / 1024.0)
}

/// Kibibytes by name, of `smaps_rollup`.
fn rollup(pid: u32) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        Some((name.to_owned(), rest.trim().strip_suffix(" kB")?.parse().ok()?))
    };
    Ok(text.lines().filter_map(field).collect())
}

/// Kibibytes of eBPF maps (the ring buffer) that count as the process's own.
fn mapped_maps(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut inside = false;
    let mut total = 0;
    for line in text.lines() {
        // A mapping starts with its addresses, and its name may be anything: `bpf-map` of the anonymous inode.
        if line.starts_with(|first: char| first.is_ascii_hexdigit() && !first.is_ascii_uppercase()) {
            inside = line.contains("bpf-map");
        } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| inside) {
            total += rest.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        }
    }
    Ok(total)
}
