// SPDX-License-Identifier: Apache-2.0
//! The trail's file is damaged under a running agent, and before one starts: enforcement goes on, the file is put aside, what is
//! lost with it is counted, and everybody who asks is told.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use zt_tests::pair::{pair, policy};
use zt_tests::probe::{Flood, Operation};
use zt_tests::trail::RECORDED;
use zt_tests::{Agent, Party, eventually, http};

const PAGE: u64 = 4096;
const SOME: u64 = 1000;
/// Why decisions are lost that were in a damaged file.
const DAMAGED: &str = "store_damaged";

/// Has what was committed written to the file itself, and then overwrites all of it from a page on.
fn damage(agent: &Agent, first: u64) -> Result<()> {
    let path = agent.files.audit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(&path);
        let mut connection = options.busy_timeout(RECORDED).connect().await?;
        sqlx::raw_sql("UPDATE trail SET stored = stored; PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut connection)
            .await?;
        sqlx::Connection::close(connection).await
    })?;
    let file = OpenOptions::new().write(true).open(&path)?;
    let pages = file.metadata()?.len() / PAGE;
    for page in first..pages {
        file.write_all_at(&[0xa5; PAGE as usize], page * PAGE)?;
    }
    Ok(())
}

/// The files that were put aside.
fn aside(agent: &Agent) -> Result<Vec<PathBuf>> {
    let audit = agent.files.audit();
    let directory = std::fs::read_dir(audit.parent().context("a directory")?)?;
    let paths = directory
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains(".damaged-") && !name.ends_with("-wal") && !name.ends_with("-shm")
    };
    Ok(paths.into_iter().filter(is_one).collect())
}

/// Connects as often as that, each of which is allowed and has a record of its own.
fn decide(client: &mut Party, server: &Party, count: u64) -> Result<()> {
    let flood = Flood {
        to: vec![server.v4(80), server.v6(80)],
        ..Flood::new(server.v4(80), count)
    };
    let reply = client.call(Operation::ConnectMany(flood))?.ok()?;
    let outcomes = (reply.outcomes[0].count("ok"), reply.outcomes[1].count("ok"));
    ensure!(outcomes == (count / 2, count / 2), "{outcomes:?} of {count}");
    Ok(())
}

/// What `doctor` says of damaged files.
fn doctor(agent: &Agent) -> Result<Value> {
    let output = agent.command(&["doctor", "-o", "json"]).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let findings = report["findings"].as_array().context("findings")?;
    let found = findings
        .iter()
        .find(|finding| finding["check"] == "audit.damaged");
    found.cloned().with_context(|| report.to_string())
}

#[test]
fn a_trail_that_is_damaged_is_put_aside_and_every_decision_stays_accounted_for() -> Result<()> {
    let (scene, server, mut client) = pair("damaged")?;
    let mut agent = scene.agent(&policy())?.start()?;
    decide(&mut client, &server, SOME)?;
    agent.settled(DAMAGED, 0)?;
    let kept = agent.decisions()?;

    damage(&agent, 1)?;
    decide(&mut client, &server, SOME)?;
    // Whoever asks before is told that the trail cannot be read.
    eventually("the file to be put aside", RECORDED, || {
        Ok(aside(&agent)?.len() == 1)
    })?;
    agent.settled(DAMAGED, 0)?;
    assert_eq!(agent.lost(DAMAGED)?, kept);
    assert_eq!(http::get(agent.health(), "/readyz")?.status, 200);
    let told = |agent: &Agent| -> Result<(u64, u64)> {
        let metrics = agent.metrics()?;
        let sum = |name: &str| metrics.sum(name, &[]);
        Ok((sum("zt_audit_damaged_files"), sum("zt_audit_chain_breaks")))
    };
    eventually("all to be told", RECORDED, || Ok(told(&agent)? == (1, 1)))?;
    let status = agent.get("/v1/status")?;
    assert_eq!(status["audit"]["lost"]["store_damaged"], kept);
    let found = aside(&agent)?;
    assert_eq!(found.len(), 1);
    let name = found[0].display().to_string();
    assert!(agent.log()?.contains(&name) && agent.log()?.contains(".recover"));
    let said = doctor(&agent)?;
    assert_eq!(said["status"], "warning", "{said}");
    assert!(said["found"].to_string().contains(&name), "{said}");

    // Also where an agent that starts finds it so. What it had stored was signed when the one before it ended.
    assert!(agent.terminate()?.success());
    damage(&agent, 0)?;
    decide(&mut client, &server, SOME)?;
    agent.restart()?;
    agent.settled(DAMAGED, kept)?;
    eventually("all to be told", RECORDED, || Ok(told(&agent)? == (2, 2)))?;
    assert_eq!(aside(&agent)?.len(), 2);

    // Taken away, they are not spoken of any more.
    for path in aside(&agent)? {
        std::fs::rename(&path, scene.sandbox().directory().join("evidence"))?;
    }
    assert!(agent.terminate()?.success());
    agent.restart()?;
    eventually("nothing to be told", RECORDED, || Ok(told(&agent)?.0 == 0))?;
    assert_eq!(doctor(&agent)?["status"], "ok");
    Ok(())
}
