// SPDX-License-Identifier: Apache-2.0
//! From the birth of a cgroup that `workloads.yaml` lists to its identity in the kernel's map.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use zt_common::abi::Workload as Entry;
use zt_common::names;
use zt_tests::Cgroup;
use zt_tests::agent_files::Workload;

use crate::Plan;
use crate::report::{Metric, Target};
use crate::samples::Summary;
use crate::world::{World, filled, id};

const LIMIT: Duration = Duration::from_secs(5);

/// Cgroups that come one after the other.
pub(crate) fn identity(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let sizes: &[usize] = if plan.quick { &[100_000] } else { &[1000, 100_000] };
    for &entries in sizes {
        let names: Vec<String> = (0..plan.rounds(6, 30))
            .map(|number| format!("pod{number}"))
            .collect();
        let world = World::start("birth", |sandbox, mut builder| {
            for name in &names {
                let cgroup = Cgroup::at(sandbox.managed().relative().join(name))?;
                builder = builder.workload(Workload::new(&id(name), &cgroup));
            }
            filled(builder, entries)
        })?;
        let pin = world.maps()?.join(names::WORKLOADS);
        let map: HashMap<MapData, u64, Entry> = Map::HashMap(MapData::from_pin(pin)?).try_into()?;
        let mut samples = Vec::new();
        for name in &names {
            let start = Instant::now();
            let cgroup = world.sandbox.cgroup(name)?.id()?;
            while map.get(&cgroup, 0).is_err() {
                ensure!(
                    start.elapsed() < LIMIT,
                    "the cgroup {name} has no identity after {LIMIT:?}"
                );
                std::thread::sleep(Duration::from_micros(100));
            }
            samples.push(start.elapsed().as_secs_f64() * 1e3);
            // The next one shall not find the agent at work on this one.
            std::thread::sleep(Duration::from_millis(50));
        }
        let name = format!("new cgroup → identity in the map, {entries} entries");
        metrics.push(Metric::summed(name, "ms", Summary::of(&samples)).target(Target::AtMost(20.0)));
    }
    Ok(())
}
