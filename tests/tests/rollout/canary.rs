// SPDX-License-Identifier: Apache-2.0
//! A canary of real workloads.

use anyhow::Result;
use serde_json::json;
use zt_tests::agent::DEADLINE;
use zt_tests::agent_files::Workload;
use zt_tests::{Agent, Policy, Scene, spiffe, wait_for};

use super::{any, rollout};

#[test]
fn a_canary_takes_the_same_replicas_whoever_comes_and_goes() -> Result<()> {
    const REPLICAS: usize = 12;
    let mut scene = Scene::new("canary")?;
    let mut server = scene.workload("server")?;
    server.serve(any(80))?.local()?;
    let mut replicas = Vec::new();
    for number in 0..REPLICAS {
        let name = format!("web-{number}");
        let host = scene.host(&name)?;
        let cgroup = scene.sandbox().cgroup(&name)?;
        scene.add(&name, Workload::new(&spiffe("web"), &cgroup).at(host.addresses()));
        replicas.push(scene.start(&name, &cgroup, &host)?);
    }
    let canary = |percent| {
        let stages = json!([{
            "name": "web",
            "identities": [spiffe("web")],
            "canary": { "percent": percent },
        }]);
        rollout(Some("web"), &stages)
    };
    let agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy("rollout.yaml", &canary(40))?
        .start()?;
    let mut refused = |agent: &Agent, of: usize| -> Result<Vec<bool>> {
        let found: Vec<bool> = replicas[..of]
            .iter_mut()
            .map(|replica| Ok(replica.tcp(server.v4(80))? == "EPERM"))
            .collect::<Result<_>>()?;
        let status = agent.get("/v1/rollout")?;
        let taken = found.iter().filter(|refused| **refused).count();
        if of == REPLICAS {
            assert_eq!(status["rollout"]["stages"][0]["taken"], taken);
        }
        Ok(found)
    };
    let first = refused(&agent, REPLICAS)?;
    // Half of them go, and come back.
    let before = scene.workloads();
    agent.files.write_workloads(&before[..=REPLICAS / 2])?;
    wait_for("half of them to be gone", DEADLINE, || {
        let selected = agent.get("/v1/rollout")?["rollout"]["stages"][0]["selected"].clone();
        Ok((selected == REPLICAS / 2).then_some(()))
    })?;
    assert_eq!(refused(&agent, REPLICAS / 2)?, first[..REPLICAS / 2]);
    agent.files.write_workloads(&before)?;
    wait_for("all of them to be back", DEADLINE, || {
        let selected = agent.get("/v1/rollout")?["rollout"]["stages"][0]["selected"].clone();
        Ok((selected == REPLICAS).then_some(()))
    })?;
    assert_eq!(refused(&agent, REPLICAS)?, first);
    // More, and none of the first let go.
    let mut last = first;
    for percent in [70, 100] {
        let revision = agent.revision()?;
        agent.files.write_policy("rollout.yaml", &canary(percent))?;
        agent.wait_revision_after(revision)?;
        let now = refused(&agent, REPLICAS)?;
        assert!(
            last.iter().zip(&now).all(|(was, is)| !was || *is),
            "{last:?} {now:?}"
        );
        last = now;
    }
    assert_eq!(last, [true; REPLICAS]);
    Ok(())
}
