// SPDX-License-Identifier: Apache-2.0
//! No gap at birth: the first system call of the first process of a new cgroup is already decided on.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::Result;
use serde_json::json;
use zt_tests::agent_files::Workload;
use zt_tests::probe::Operation;
use zt_tests::trail::party;
use zt_tests::{Party, Policy, Scene, TCP, eventually, spiffe};

const BIRTHS: u32 = 2000;

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// How the first connections of `count` processes, each in a cgroup of its own below `parent`, came out.
fn births(midwife: &mut Party, parent: &Path, count: u32, to: SocketAddr) -> Result<Vec<(String, u64)>> {
    let parent = parent.to_owned();
    let reply = midwife.call(Operation::Birth { parent, count, to })?.ok()?;
    Ok(reply.counts.into_iter().collect())
}

fn all(outcome: &str, count: u32) -> Vec<(String, u64)> {
    vec![(outcome.to_owned(), count.into())]
}

#[test]
fn nested_cgroups_inherit_before_their_first_system_call() -> Result<()> {
    let mut scene = Scene::new("birth")?;
    let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
    let mut midwife = scene.outsider_in("midwife", &client.host)?;
    let policy = Policy::new("birth").allow("client", "server", TCP, "80");
    let mut agent = scene.agent(&policy)?.start()?;
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    let parent = client.cgroup.path();
    assert_eq!(
        births(&mut midwife, parent, BIRTHS, server.v4(81))?,
        all("EPERM", BIRTHS)
    );
    assert_eq!(births(&mut midwife, parent, 200, server.v6(80))?, all("ok", 200));
    let refused = agent.records("decision=DENY", usize::try_from(BIRTHS)?, |_| true)?;
    assert!(refused.iter().all(|record| party(&record["source"]) == client.id));

    // Nobody needs to be there to see it.
    agent.kill()?;
    assert_eq!(
        births(&mut midwife, parent, 200, server.v6(81))?,
        all("EPERM", 200)
    );
    assert_eq!(births(&mut midwife, parent, 200, server.v4(80))?, all("ok", 200));
    agent.restart()?;
    agent.records("decision=DENY", usize::try_from(BIRTHS)? + 200, |_| true)?;
    Ok(())
}

#[test]
fn whoever_was_never_named_is_refused_from_birth_where_that_is_configured() -> Result<()> {
    let mut scene = Scene::new("strays")?;
    let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
    let mut midwife = scene.outsider_in("midwife", &client.host)?;
    let policy = Policy::new("strays").allow("client", "server", TCP, "80");
    let agent = scene
        .agent(&policy)?
        .config("unknownWorkload", json!("deny"))
        .start()?;
    server.serve(any(80))?.local()?;
    let parent = scene.sandbox().managed().path();
    assert_eq!(
        births(&mut midwife, parent, BIRTHS, server.v4(80))?,
        all("EPERM", BIRTHS)
    );
    let refused = agent.records("decision=DENY", usize::try_from(BIRTHS)?, |_| true)?;
    assert!(refused.iter().all(|record| record["reason"] == "unknown_source"));
    Ok(())
}

#[test]
fn a_cgroup_may_come_after_its_declaration_and_go_again() -> Result<()> {
    let mut scene = Scene::new("waiting")?;
    let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
    let late = zt_tests::Cgroup::absent(scene.sandbox().managed(), "late");
    scene.add("late", Workload::new(&spiffe("late"), &late));
    let policy = Policy::new("waiting").allow("late", "server", TCP, "80");
    let agent = scene.agent(&policy)?.start()?;
    server.serve(any(80))?.local()?;
    let waiting =
        || -> Result<serde_json::Value> { Ok(agent.get("/v1/status")?["workloads"]["waiting"].clone()) };
    assert_eq!(waiting()?, 1);
    for _ in 0..3 {
        let cgroup = scene.sandbox().cgroup("late")?;
        eventually("the cgroup to be seen", zt_tests::probe::TIMEOUT, || {
            Ok(waiting()? == 0)
        })?;
        let mut party = scene.start("late", &cgroup, &client.host)?;
        assert_eq!(party.talk(server.v4(80))?, "ok");
        drop(party);
        cgroup.remove()?;
        eventually("the cgroup to be missed", zt_tests::probe::TIMEOUT, || {
            Ok(waiting()? == 1)
        })?;
    }
    Ok(())
}

#[test]
fn who_is_who_may_change_while_it_runs() -> Result<()> {
    let mut scene = Scene::new("rename")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let policy = Policy::new("rename").allow("admin", "server", TCP, "80");
    let agent = scene.agent(&policy)?.start()?;
    server.serve(any(80))?.local()?;
    assert_eq!(client.talk(server.v4(80))?, "EPERM");

    // The same cgroup is somebody else now.
    let renamed = Workload::new(&spiffe("admin"), &client.cgroup).at(client.host.addresses());
    scene.declare("client", |_| renamed)?;
    agent.files.write_workloads(&scene.workloads())?;
    eventually("the new name to count", zt_tests::probe::TIMEOUT, || {
        Ok(client.talk(server.v4(80))? == "ok")
    })?;

    // Two that claim one cgroup are an error: nothing changes.
    let revision = agent.revision()?;
    let mut twice = scene.workloads();
    twice.push(Workload::new(&spiffe("thief"), &client.cgroup));
    agent.files.write_workloads(&twice)?;
    eventually("the error to be told", zt_tests::probe::TIMEOUT, || {
        Ok(agent.log()?.contains("workloads not loaded"))
    })?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    assert_eq!(agent.revision()?, revision);

    // Who was enforced upon and is no longer named stays so, as nobody.
    let others: Vec<Workload> = scene.workloads().into_iter().take(1).collect();
    agent.files.write_workloads(&others)?;
    eventually("the name to be lost", zt_tests::probe::TIMEOUT, || {
        Ok(client.talk(server.v4(80))? == "EPERM")
    })?;
    let lost = agent.records("", 1, |record| {
        record["reason"] == "unknown_source" && record["enforced"] == true
    })?;
    assert_eq!(party(&lost[0]["source"]), "unknown");
    Ok(())
}
