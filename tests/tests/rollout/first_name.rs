// SPDX-License-Identifier: Apache-2.0
//! Whoever gets a name and with it a mode is in that mode by that name from the first moment, and at none as nobody.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;
use zt_tests::agent::DEADLINE;
use zt_tests::agent_files::Workload;
use zt_tests::probe::{Flood, Operation};
use zt_tests::{Agent, Party, Policy, Scene, TCP, spiffe, trail, wait_for};

use super::{HAMMER, PACE, any};

/// As many names are allowed, and as many have to be given: each is new to the agent.
const MOST: usize = 400;
/// See [`MOST`].
const LEAST: usize = 10;

/// Waits until the agent says that somebody called `name` is there, or that nobody is.
fn wait_named(agent: &Agent, name: &str, is_there: bool) -> Result<()> {
    wait_for("who is there", DEADLINE, || {
        let listed = agent.get("/v1/identities")?;
        let mut listed = listed["identities"].as_array().into_iter().flatten();
        let found = listed.any(|identity| identity["spiffe_id"] == name && identity["mode"].is_string());
        Ok((found == is_there).then_some(()))
    })
}

fn named(name: &str, party: &Party, mode: &str) -> Workload {
    Workload::new(name, &party.cgroup)
        .at(party.host.addresses())
        .mode(mode)
}

/// Fails where the modes of those who are still nobody change with a swap of tables: they would be refused as nobody until they have
/// their names. A record says so if it hits the moment between the two, which is why there are many.
#[test]
fn who_gets_his_first_name_and_enforces_is_never_refused_as_nobody() -> Result<()> {
    let mut scene = Scene::new("first-name")?;
    let mut server = scene.workload("server")?;
    server.serve(any(80))?.local()?;
    let mut client = scene.start(
        "client",
        &scene.sandbox().cgroup("client")?,
        &scene.host("client")?,
    )?;
    let names: Vec<String> = (0..MOST).map(|number| format!("first-{number}")).collect();
    let policy = names.iter().fold(Policy::new("policy"), |policy, name| {
        policy.allow(name, "server", TCP, "80")
    });
    let agent = scene.agent(&policy)?.mode("observe").start()?;
    let server_alone = scene.workloads();
    let write = |client: Option<Workload>| {
        let all: Vec<Workload> = server_alone.iter().cloned().chain(client).collect();
        agent.files.write_workloads(&all)
    };
    client.send(Operation::ConnectMany(Flood {
        duration: Some(HAMMER),
        pace: Some(PACE),
        ..Flood::new(server.v4(80), u64::MAX)
    }))?;
    // The kernel knows the cgroup without a name as soon as it has lost one while it observed.
    let (start, mut given) = (Instant::now(), 0);
    for name in names.iter().map(|name| spiffe(name)) {
        if start.elapsed() >= HAMMER {
            break;
        }
        write(Some(named(&name, &client, "enforce")))?;
        wait_named(&agent, &name, true)?;
        let before = agent.revision()?;
        write(Some(named(&name, &client, "observe")))?;
        agent.wait_revision_after(before)?;
        write(None)?;
        wait_named(&agent, &name, false)?;
        given += 1;
    }
    ensure!(given >= LEAST, "only {given} names");
    let reply = client.wait()?.ok()?;
    let counts = &reply.outcomes[0].counts;
    println!("{given} names: {counts:?}");
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["ok"]);
    let records = agent.all_records("port=80&type=decision")?;
    let refused: Vec<_> = records
        .iter()
        .filter(|record| record["enforced"] == true && record["decision"] == "DENY")
        .collect();
    ensure!(refused.is_empty(), "{:?}", refused.first());
    let as_nobody = records
        .iter()
        .filter(|record| record["observer"] == "source" && trail::party(&record["source"]) == "unknown");
    for record in as_nobody {
        ensure!(record["enforced"] == json!(false), "{record}");
    }
    Ok(())
}
