// SPDX-License-Identifier: Apache-2.0
//! A thousand pods that start on one node at the same time.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use zt_agent::spiffe_id::number_of;
use zt_common::abi::Workload;
use zt_common::names;
use zt_tests::KubeApi;

use crate::pods::{LIMIT, PODS, address, pod, uid};
use crate::report::{Metric, Target};
use crate::world::World;

/// How many.
const PODS_AT_ONCE: usize = 1000;
/// Their uids and addresses are apart from those of all others.
const FIRST: usize = 500_000;

/// Has the API tell of them while their cgroups are made, each with a service account of its own, and waits until the last has
/// its identity.
pub(crate) fn at_once(api: &KubeApi, world: &World, metrics: &mut Vec<Metric>) -> Result<()> {
    let pin = world.maps()?.join(names::WORKLOADS);
    let map: HashMap<MapData, u64, Workload> = Map::HashMap(MapData::from_pin(pin)?).try_into()?;
    let objects: Vec<_> = (0..PODS_AT_ONCE)
        .map(|number| {
            let mut object = pod(
                &format!("at-once-{number}"),
                &uid(FIRST + number),
                0,
                address(120, number),
            );
            object["spec"]["serviceAccountName"] = format!("at-once-{number}").into();
            object
        })
        .collect();
    let start = Instant::now();
    let cgroups: BTreeMap<u64, usize> = std::thread::scope(|scope| {
        let told = scope.spawn(|| {
            for object in objects {
                api.put(PODS, object);
            }
        });
        let made = (0..PODS_AT_ONCE).map(|number| {
            let name = format!("burstable/pod{}", uid(FIRST + number));
            Ok((world.sandbox.cgroup(&name)?.id()?, number))
        });
        let made = made.collect::<Result<_>>();
        told.join().ok().context("the API was told")?;
        made
    })?;
    let begun = start.elapsed().as_secs_f64() * 1e3;
    let mut waiting: Vec<u64> = cgroups.keys().copied().collect();
    while !waiting.is_empty() {
        ensure!(
            start.elapsed() < LIMIT,
            "{} pods have no identity after {LIMIT:?}",
            waiting.len()
        );
        waiting.retain(|cgroup| map.get(cgroup, 0).is_err());
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    let named = start.elapsed().as_secs_f64() * 1e3;
    let wrong = cgroups
        .iter()
        .filter(|(cgroup, number)| {
            let expected = number_of(&format!("spiffe://hanzo.ai/hanzo-k8s/team-0/at-once-{number}"));
            !map.get(cgroup, 0)
                .is_ok_and(|workload| workload.identity == expected)
        })
        .count();
    metrics.push(Metric::value(
        format!("{PODS_AT_ONCE} pods at once: told and their cgroups made"),
        "ms",
        begun,
    ));
    metrics.push(Metric::value(
        format!("{PODS_AT_ONCE} pods at once: the last has its identity"),
        "ms",
        named,
    ));
    metrics.push(
        Metric::value(
            format!("{PODS_AT_ONCE} pods at once: with another's identity, or none"),
            "pods",
            wrong as f64,
        )
        .target(Target::AtMost(0.0)),
    );
    Ok(())
}
