// SPDX-License-Identifier: Apache-2.0
//! A canary of a thousand replicas of which many come and go: each stays on its side.

use std::collections::HashMap as Known;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::json;
use zt_common::abi::{MODE_ENFORCE, MODE_OBSERVE, Workload as InKernel};
use zt_common::names;
use zt_tests::agent_files::Workload;
use zt_tests::entries::spread;
use zt_tests::{Cgroup, Policy, Scene, spiffe, wait_for};

use super::rollout;

const REPLICAS: usize = 1000;
const ROUNDS: u64 = 10;
const PERCENT: usize = 40;
/// The agent is killed before this round, and there is none while it happens.
const WITHOUT_AGENT: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// Replicas by their number, where they are there.
struct Fleet {
    parent: Cgroup,
    cgroups: Vec<Option<Cgroup>>,
}

impl Fleet {
    fn new(scene: &Scene) -> Result<Self> {
        let mut fleet = Self {
            parent: scene.sandbox().cgroup("fleet")?,
            cgroups: vec![None; REPLICAS],
        };
        (0..REPLICAS).try_for_each(|number| fleet.come(number))?;
        Ok(fleet)
    }

    /// Under the name that it had: the same to people, and another cgroup.
    fn come(&mut self, number: usize) -> Result<()> {
        self.cgroups[number] = Some(self.parent.child(&format!("web-{number}"))?);
        Ok(())
    }

    fn go(&mut self, number: usize) -> Result<()> {
        let cgroup = self.cgroups[number].take().context("it is there")?;
        std::fs::remove_dir(cgroup.path())?;
        Ok(())
    }

    /// A third of all, chosen anew in each round: who is there goes, and every other one of these comes again at once; who is not comes.
    fn churn(&mut self, round: u64) -> Result<()> {
        let mut order: Vec<usize> = (0..REPLICAS).collect();
        order.sort_by_key(|number| spread(round << 32 | *number as u64));
        for (place, number) in order.into_iter().take(REPLICAS / 3).enumerate() {
            let was_there = self.cgroups[number].is_some();
            if was_there {
                self.go(number)?;
            }
            if !was_there || place % 2 == 0 {
                self.come(number)?;
            }
        }
        Ok(())
    }

    /// What `workloads.yaml` says in that round: in another order each time.
    fn workloads(&self, round: u64) -> Vec<Workload> {
        let mut there: Vec<(usize, &Cgroup)> = self
            .cgroups
            .iter()
            .enumerate()
            .filter_map(|(number, cgroup)| Some((number, cgroup.as_ref()?)))
            .collect();
        there.sort_by_key(|(number, _)| spread(round << 40 | *number as u64));
        there
            .into_iter()
            .map(|(_, cgroup)| Workload::new(&spiffe("web"), cgroup))
            .collect()
    }

    /// Their numbers by the kernel's.
    fn ids(&self) -> Result<Known<u64, usize>> {
        let there = self.cgroups.iter().enumerate();
        there
            .filter_map(|(number, cgroup)| Some((number, cgroup.as_ref()?)))
            .map(|(number, cgroup)| Ok((cgroup.id()?, number)))
            .collect()
    }
}

/// Who enforces of those whom the kernel knows, by number. Of them no others than these.
fn sides(scene: &Scene, ids: &Known<u64, usize>) -> Result<Known<usize, bool>> {
    let map = MapData::from_pin(scene.sandbox().maps()?.join(names::WORKLOADS))?;
    let map: HashMap<MapData, u64, InKernel> = Map::HashMap(map).try_into()?;
    let mut found = Known::new();
    for entry in &map {
        let (id, workload) = entry?;
        if let Some(number) = ids.get(&id) {
            ensure!(
                [MODE_OBSERVE, MODE_ENFORCE].contains(&workload.mode),
                "{}",
                workload.mode
            );
            found.insert(*number, workload.mode == MODE_ENFORCE);
        }
    }
    Ok(found)
}

/// Fails where the choice depends on who else is there, in which order they came, on the cgroup's number, or on the agent's life.
#[test]
fn a_canary_of_a_thousand_stays_as_it_is_while_a_third_of_them_comes_and_goes() -> Result<()> {
    let scene = Scene::new("churn")?;
    let mut fleet = Fleet::new(&scene)?;
    let stages = json!([{
        "name": "web",
        "identities": [spiffe("web")],
        "canary": { "percent": PERCENT },
    }]);
    let mut agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy("rollout.yaml", &rollout(Some("web"), &stages))?
        .start()?;
    let start = Instant::now();
    let mut first: Known<usize, bool> = Known::new();
    for round in 0..=ROUNDS {
        if round == WITHOUT_AGENT {
            agent.kill()?;
        }
        if round > 0 {
            fleet.churn(round)?;
        }
        agent.files.write_workloads(&fleet.workloads(round))?;
        if round == WITHOUT_AGENT {
            agent.restart()?;
        }
        let ids = fleet.ids()?;
        let all = wait_for("the kernel to know all of them", PATIENCE, || {
            let found = sides(&scene, &ids)?;
            // Not at any moment in between either.
            for (number, enforces) in &found {
                let before = first.get(number);
                ensure!(
                    before.is_none_or(|before| before == enforces),
                    "web-{number} in round {round}: it enforces, {enforces}"
                );
            }
            Ok((found.len() == ids.len()).then_some(found))
        })?;
        println!("round {round}: {} of them, {:?}", all.len(), start.elapsed());
        if round == 0 {
            let taken = all.values().filter(|enforces| **enforces).count();
            let wanted = REPLICAS * PERCENT / 100;
            ensure!(taken.abs_diff(wanted) < 60, "{taken} of {REPLICAS}");
            first = all;
        }
    }
    Ok(())
}
