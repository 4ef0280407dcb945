// SPDX-License-Identifier: Apache-2.0
//! Modes that change without a stage: by the file of the workloads, while no agent runs, and with a rollout that is gone. All
//! workloads' change in one step, and each change is on record.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::probe::{Flood, Operation};
use zt_tests::{Agent, Party, Policy, Scene, http, spiffe, trail};

use super::{HAMMER, PACE, any, moves, rollout, stage};

/// Whom the modes are of that change.
const NAMES: [&str; 2] = ["chat", "iam"];
/// Where they go all the time, and where it is tried in between: neither is allowed.
const PORTS: [u16; 2] = [80, 81];
/// How often modes have to change.
const LEAST: usize = 4;

/// A server that nobody may reach, and those who try.
fn served(label: &str) -> Result<(Scene, Party, [Party; 2])> {
    let mut scene = Scene::new(label)?;
    let mut server = scene.workload("server")?;
    for port in PORTS {
        server.serve(any(port))?.local()?;
    }
    let parties = [scene.workload(NAMES[0])?, scene.workload(NAMES[1])?];
    Ok((scene, server, parties))
}

fn begin(parties: &mut [Party], server: &Party) -> Result<()> {
    for party in parties {
        party.send(Operation::ConnectMany(Flood {
            duration: Some(HAMMER),
            pace: Some(PACE),
            ..Flood::new(server.v4(PORTS[0]), u64::MAX)
        }))?;
    }
    Ok(())
}

/// Waits for the loops to end. Each refusal of theirs happened or not by the mode in which all of them were at its revision:
/// `modes` has since which revision they enforce, or do not.
fn each_is_of_its_revision(agent: &Agent, parties: &mut [Party], modes: &BTreeMap<u64, bool>) -> Result<()> {
    for party in parties {
        let reply = party.wait()?.ok()?;
        let counts = &reply.outcomes[0].counts;
        println!("{counts:?}");
        assert!(
            ["ok", "EPERM"]
                .into_iter()
                .all(|outcome| counts.contains_key(outcome))
        );
    }
    let records = agent.all_records(&format!("port={}&type=decision", PORTS[0]))?;
    let mut found: BTreeMap<(&str, bool), u64> = BTreeMap::new();
    for record in records.iter().filter(|record| record["observer"] == "source") {
        let revision = record["revision"].as_u64().context("a revision")?;
        let (_, enforced) = modes.range(..=revision).next_back().context("a mode")?;
        ensure!(
            record["decision"] == "DENY" && record["enforced"] == *enforced,
            "not as at a revision where they enforce, {enforced}: {record}"
        );
        let key = (trail::party(&record["source"]), *enforced);
        *found.entry(key).or_default() += 1;
    }
    println!(
        "records by source and mode: {found:?}, {} changes",
        modes.len() - 1
    );
    ensure!(found.len() == 4, "both in both modes: {found:?}");
    Ok(())
}

/// Whom a record names, each from one mode to another.
fn named(change: &Value) -> Result<BTreeSet<[&str; 3]>> {
    let workloads = change["workloads"].as_array().context("workloads")?;
    let named = workloads.iter().map(|workload| {
        ensure!(workload["cgroup"].is_string(), "{workload}");
        Ok(["spiffe_id", "from", "to"].map(|field| workload[field].as_str().unwrap_or("-")))
    });
    named.collect()
}

/// All of them, as [`named`] says it.
fn all<'n>(names: &'n [String], from: &'n str, to: &'n str) -> BTreeSet<[&'n str; 3]> {
    names.iter().map(|name| [name.as_str(), from, to]).collect()
}

/// Fails where modes are written workload by workload, and where who changes the file leaves no record.
#[test]
fn modes_of_the_workloads_file_change_in_one_step_and_are_recorded() -> Result<()> {
    let (mut scene, server, mut parties) = served("file-modes")?;
    let agent = scene.agent(&Policy::new("nothing"))?.mode("observe").start()?;
    let mut modes = BTreeMap::from([(agent.revision()?, false)]);
    begin(&mut parties, &server)?;
    let (start, mut enforce) = (Instant::now(), false);
    while start.elapsed() < HAMMER {
        enforce = !enforce;
        let mode = if enforce { "enforce" } else { "observe" };
        for name in NAMES {
            scene.declare(name, |workload| workload.mode(mode))?;
        }
        let before = agent.revision()?;
        agent.files.write_workloads(&scene.workloads())?;
        modes.insert(agent.wait_revision_after(before)?, enforce);
    }
    ensure!(modes.len() > LEAST, "only {} changes", modes.len() - 1);
    each_is_of_its_revision(&agent, &mut parties, &modes)?;

    // The first start has none.
    let records = agent.records("type=mode_change", modes.len() - 1, |_| true)?;
    let names = NAMES.map(spiffe);
    for (record, (revision, enforce)) in records.iter().zip(modes.iter().skip(1)) {
        let change = &record["change"];
        let (from, to, counts) = if *enforce {
            ("observe", "enforce", (2, 0))
        } else {
            ("enforce", "observe", (0, 2))
        };
        assert_eq!(
            (&change["mode"], &change["cause"]),
            (&json!("workloads"), &json!("workloads"))
        );
        assert_eq!(
            (&change["to_enforce"], &change["to_observe"]),
            (&json!(counts.0), &json!(counts.1)),
            "{record}"
        );
        assert_eq!(named(change)?, all(&names, from, to));
        assert_eq!(record["revision"], *revision);
        let caller = record["caller"].as_str().context("a caller")?;
        ensure!(
            caller.starts_with("file ") && caller.ends_with("workloads.yaml"),
            "{caller}"
        );
    }
    Ok(())
}

/// Fails where a mode that is another after a restart is nobody's doing.
#[test]
fn modes_that_changed_while_no_agent_ran_are_recorded_by_the_next_one() -> Result<()> {
    let (mut scene, server, mut client) = Scene::served("restart-modes", &[80])?;
    let mut agent = scene.agent(&Policy::new("nothing"))?.mode("observe").start()?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    // Neither a first start nor one that finds what it left has anything to say.
    agent.terminate()?;
    agent.restart()?;
    agent.restart_with("mode", json!("enforce"))?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    let said = agent.records("type=mode_change", 1, |_| true)?;
    let (record, change) = (&said[0], &said[0]["change"]);
    assert_eq!(
        (&record["caller"], &change["mode"], &change["cause"]),
        (&json!("restart"), &json!("workloads"), &json!("restart"))
    );
    assert_eq!(
        (&change["to_enforce"], &change["to_observe"]),
        (&json!(2), &json!(0))
    );
    let names = ["client", "server"].map(spiffe);
    assert_eq!(named(change)?, all(&names, "observe", "enforce"));

    agent.terminate()?;
    scene.declare("client", |workload| workload.mode("observe"))?;
    agent.files.write_workloads(&scene.workloads())?;
    agent.restart()?;
    let said = agent.records("type=mode_change", 2, |_| true)?;
    let change = &said[1]["change"];
    assert_eq!(change["cause"], "restart");
    assert_eq!(named(change)?, all(&names[..1], "enforce", "observe"));
    Ok(())
}

/// Fails where whatever changes under a rollout while no agent runs is recorded as a move of it, from nowhere.
#[test]
fn modes_that_changed_under_a_rollout_while_no_agent_ran_are_no_move_of_it() -> Result<()> {
    let (mut scene, _server, _client) = Scene::served("restart-staged", &[80])?;
    let stages = json!([stage("first", "server")]);
    let mut agent = scene
        .agent(&Policy::new("nothing"))?
        .mode("observe")
        .policy("rollout.yaml", &rollout(Some("first"), &stages))?
        .start()?;
    agent.terminate()?;
    scene.declare("client", |workload| workload.mode("enforce"))?;
    agent.files.write_workloads(&scene.workloads())?;
    agent.restart()?;
    let said = agent.records("type=mode_change", 1, |_| true)?;
    let change = &said[0]["change"];
    assert_eq!(
        (&change["mode"], &change["cause"]),
        (&json!("workloads"), &json!("restart"))
    );
    assert_eq!(named(change)?, all(&["client"].map(spiffe), "observe", "enforce"));

    // A move while no agent ran is one, and it is known from where.
    agent.terminate()?;
    agent
        .files
        .write_policy("rollout.yaml", &rollout(None, &stages))?;
    agent.restart()?;
    let said = agent.records("type=mode_change", 2, |_| true)?;
    let change = &said[1]["change"];
    assert_eq!(
        (&change["mode"], &change["cause"]),
        (&json!("rollout"), &json!("restart"))
    );
    assert_eq!((&change["from"], &change["to"]), (&json!("first"), &Value::Null));
    assert_eq!(named(change)?, all(&["server"].map(spiffe), "enforce", "observe"));
    Ok(())
}

/// Removed by hand and over the API, while those that it had enforce go on all the time.
#[test]
fn removing_the_rollout_takes_everybody_back_in_one_step() -> Result<()> {
    let (mut scene, server, mut parties) = served("removed")?;
    let mut strict = scene.workload("strict")?;
    scene.declare("strict", |workload| workload.mode("enforce"))?;
    let mut watchers = Vec::new();
    for party in &parties {
        watchers.push(scene.start("watcher", &party.cgroup, &party.host)?);
    }
    let names = NAMES.map(spiffe);
    let document = rollout(Some("all"), &json!([{ "name": "all", "identities": names }]));
    let agent = scene
        .agent(&Policy::new("nothing"))?
        .mode("observe")
        .policy("rollout.yaml", &document)?
        .start()?;
    let mut modes = BTreeMap::from([(agent.revision()?, true)]);
    begin(&mut parties, &server)?;
    let (start, mut removed) = (Instant::now(), 0);
    while start.elapsed() < HAMMER {
        for by_hand in [true, false] {
            let before = agent.revision()?;
            if by_hand {
                agent.files.remove_policy("rollout.yaml")?;
            } else {
                http::request(agent.api(), "DELETE", "/v1/policies/to-enforcing", None)?.success()?;
            }
            let gone = agent.wait_revision_after(before)?;
            modes.insert(gone, false);
            assert_eq!(agent.get("/v1/rollout")?["rollout"], Value::Null);
            for watcher in &mut watchers {
                assert_eq!(watcher.tcp(server.v4(PORTS[1]))?, "ok");
            }
            assert_eq!(
                strict.tcp(server.v4(PORTS[1]))?,
                "EPERM",
                "its own declaration holds"
            );
            agent.files.write_policy("rollout.yaml", &document)?;
            modes.insert(agent.wait_revision_after(gone)?, true);
            for watcher in &mut watchers {
                assert_eq!(watcher.tcp(server.v4(PORTS[1]))?, "EPERM");
            }
            removed += 1;
        }
    }
    ensure!(removed >= LEAST, "only {removed} times");
    each_is_of_its_revision(&agent, &mut parties, &modes)?;

    let records = agent.records("type=mode_change", modes.len() - 1, |_| true)?;
    for (record, revision) in records.iter().zip(modes.keys().skip(1)) {
        assert_eq!(record["revision"], *revision, "{record}");
    }
    let moves = moves(&agent)?;
    let (stages, said) = ([json!("all"), Value::Null], ["enforce", "observe"]);
    for (index, change) in moves.iter().enumerate() {
        // Gone, and back again.
        let (from, to) = if index % 2 == 0 { (0, 1) } else { (1, 0) };
        assert_eq!(
            (&change["from"], &change["to"]),
            (&stages[from], &stages[to]),
            "{change}"
        );
        assert_eq!(
            (&change["to_enforce"], &change["to_observe"]),
            (&json!(2 * from), &json!(2 * to)),
            "{change}"
        );
        assert_eq!(named(change)?, all(&names, said[from], said[to]));
    }
    assert_eq!(moves.len(), 2 * removed);
    Ok(())
}
