// SPDX-License-Identifier: Apache-2.0
//! A name that is taken back is gone, whatever becomes of what changed with it; and what does not fit keeps no agent from beginning.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Result;
use zt_common::names::MAX_PEERS;
use zt_tests::agent_files::Workload;
use zt_tests::hooks::fill_peers;
use zt_tests::{Cgroup, Policy, Scene, TCP, eventually, spiffe};

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

#[test]
fn an_address_is_taken_back_also_where_there_is_no_room_for_a_new_one() -> Result<()> {
    let (scene, server, mut client) = Scene::served("withdrawn-address", &[80])?;
    let agent = scene
        .agent(&Policy::new("withdrawn").allow("client", "server", TCP, "80"))?
        .start()?;
    let to = server.v4(80);
    assert_eq!(client.tcp(to)?, "ok");
    fill_peers(&scene.sandbox().maps()?)?;
    let all = scene.workloads();
    // The server's address is nobody's any more, and somebody new has one for which there is no room.
    let absent = Cgroup::absent(scene.sandbox().managed(), "late");
    let late = Workload::new(&spiffe("late"), &absent).at(["192.0.2.1".parse()?]);
    let server = Workload::new(&server.id, &server.cgroup);
    agent.files.write_workloads(&[server, all[1].clone(), late])?;
    eventually("the server to have no name", LATER, || {
        Ok(client.tcp(to)? == "EPERM")
    })?;
    eventually("the new one not to fit", LATER, || {
        let metrics = agent.metrics()?;
        Ok(metrics.sum("zt_node_events_total", &[("event", "merge_failed")]) >= 1)
    })
}

#[test]
fn an_agent_begins_with_what_fits_where_more_addresses_are_told_of() -> Result<()> {
    let (mut scene, server, mut client) = Scene::served("withdrawn-begins", &[80])?;
    // With the two of each other workload, as many as the file may have: the node's own are more than fit.
    let crowd = (0..MAX_PEERS - 4).map(|number| IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + number)));
    let absent = Cgroup::absent(scene.sandbox().managed(), "crowd");
    scene.add("crowd", Workload::new(&spiffe("crowd"), &absent).at(crowd));
    let node = scene.host("node")?;
    let policy = Policy::new("withdrawn").allow("client", "server", TCP, "80");
    let agent = scene.agent(&policy)?.inside(&node).start()?;
    let metrics = agent.metrics()?;
    assert!(metrics.sum("zt_node_events_total", &[("event", "merge_failed")]) >= 1);
    assert!(agent.log()?.contains("are wanted in zt_peers"));
    // Which few of so many are left out is chance, and hardly ever these.
    let to = server.v4(80);
    assert_eq!(client.tcp(to)?, "ok");
    // What it is told from then on is in force.
    let server = Workload::new(&server.id, &server.cgroup);
    agent
        .files
        .write_workloads(&[server, scene.workloads()[1].clone()])?;
    eventually("the server to have no name", LATER, || {
        Ok(client.tcp(to)? == "EPERM")
    })
}
