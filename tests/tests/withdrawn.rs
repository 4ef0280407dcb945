// SPDX-License-Identifier: Apache-2.0
//! A name that is taken back is gone, whatever becomes of what changed with it.

use std::time::Duration;

use anyhow::Result;
use zt_tests::agent_files::Workload;
use zt_tests::{Cgroup, Policy, Scene, TCP, eventually};

/// How long anything may take on a machine that has much else to do.
const LATER: Duration = Duration::from_secs(120);
/// So many on either side need more entries than the table has room for: 1500² of 2,097,152.
const CROWD: usize = 1500;

#[test]
fn a_name_is_taken_back_also_where_new_ones_do_not_fit() -> Result<()> {
    let (scene, server, mut client) = Scene::served("withdrawn", &[80])?;
    let policy = Policy::new("withdrawn")
        .allow("client", "server", TCP, "80")
        .allow(
            "spiffe://hanzo.ai/crowd-a/*",
            "spiffe://hanzo.ai/crowd-b/*",
            TCP,
            "80",
        );
    let agent = scene.agent(&policy)?.start()?;
    let to = server.v4(80);
    let open = client.connect(to)?.handle()?;
    let all = scene.workloads();
    // In place of the client there is a crowd, in cgroups that nobody has made.
    let mut crowd: Vec<Workload> = vec![all[0].clone()];
    for side in ["a", "b"] {
        crowd.extend((0..CROWD).map(|number| {
            let cgroup = Cgroup::absent(scene.sandbox().managed(), &format!("{side}{number}"));
            Workload::new(&format!("spiffe://hanzo.ai/crowd-{side}/{number}"), &cgroup)
        }));
    }
    agent.files.write_workloads(&crowd)?;
    eventually(
        "the client to be nobody",
        LATER,
        || Ok(client.tcp(to)? == "EPERM"),
    )?;
    client.dies(open)?;
    // Names that are taken back do not wait for those that do not fit.
    eventually("the crowd not to fit", LATER, || {
        let metrics = agent.metrics()?;
        Ok(metrics.sum("zt_node_events_total", &[("event", "merge_failed")]) >= 1)
    })?;
    // What fits again is in force again.
    agent.files.write_workloads(&all)?;
    eventually("the client to be somebody", LATER, || Ok(client.tcp(to)? == "ok"))
}
