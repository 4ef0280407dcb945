// SPDX-License-Identifier: Apache-2.0
//! Of several that may prune, one does so at a time.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use zt_agent::audit::postgres::{Maintainer, Target, Turn};
use zt_tests::agent::binary;
use zt_tests::postgres::Server;
use zt_tests::{Engine, Policy, Scene, TCP, eventually};

use super::LATER;

/// Days long ago that have a partition.
const OLD_DAYS: u64 = 40;
const PARTITIONS: &str = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'zt_audit.record'::regclass AND inhrelid::regclass::text LIKE '%record_2020%'";

/// A server with tables, and partitions that are far too old.
async fn with_old_days() -> Result<Server> {
    let server = Server::start("fsync = off")?;
    server.sql("GRANT zt_audit_maintainer TO engine")?;
    let target = Target::parse(&server.dsn("keeper"))?;
    let mut maintainer = Maintainer::open(&target).await?;
    maintainer.keep(None).await?;
    maintainer.close().await?;
    server.sql(&format!(
        "SET ROLE zt_audit_maintainer;
         DO $$ DECLARE day date; first bigint; BEGIN
           FOR number IN 0..{OLD_DAYS} - 1 LOOP
             day := date '2020-01-01' + number;
             first := extract(epoch FROM day)::bigint * 1000000000;
             EXECUTE format('CREATE TABLE zt_audit.record_%s PARTITION OF zt_audit.record FOR VALUES FROM (%s) TO (%s)',
                            to_char(day, 'YYYYMMDD'), first, first + 86400000000000);
           END LOOP; END $$"
    ))?;
    ensure!(server.number(PARTITIONS)? == OLD_DAYS);
    Ok(server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_one_maintainers_until_it_is_given_or_its_connection_breaks() -> Result<()> {
    let server = with_old_days().await?;
    let target = Target::parse(&server.dsn("keeper"))?;
    let first = Turn::take(&target).await?.expect("nobody has it");
    ensure!(Turn::take(&target).await?.is_none(), "two have it");
    first.give().await?;
    let second = Turn::take(&target).await?.expect("it was given back");
    drop(second);
    // The server notices that nobody is at the other end.
    let mut third = None;
    let begun = std::time::Instant::now();
    while third.is_none() {
        ensure!(begun.elapsed() < LATER, "the dead keep it");
        third = Turn::take(&target).await?;
    }
    // Who may only write or read cannot keep the maintainers from it.
    for role in ["zt_audit_writer", "zt_audit_reader"] {
        for mode in ["ACCESS SHARE", "SHARE UPDATE EXCLUSIVE"] {
            let said = server.refusal(
                "engine",
                role,
                &format!("BEGIN; LOCK TABLE zt_audit._sqlx_migrations IN {mode} MODE"),
            )?;
            ensure!(said.contains("permission denied"), "{role}, {mode}: {said}");
        }
    }
    Ok(())
}

/// How many times a log says that partitions were dropped, and how many.
fn dropped(log: &str) -> Vec<u64> {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines
        .filter_map(|line| line["dropped"].as_u64())
        .filter(|dropped| *dropped > 0)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_engines_prunes_and_the_others_leave_it_to_that_one() -> Result<()> {
    let server = with_old_days().await?;
    let scene = Scene::new("upkeep")?;
    let policies = scene.sandbox().directory().join("policies");
    std::fs::create_dir_all(&policies)?;
    std::fs::write(
        policies.join("base.yaml"),
        Policy::new("base").allow("client", "server", TCP, "80").text(),
    )?;
    let mut engines = Vec::new();
    for name in ["one", "two", "three"] {
        let engine = Engine::new(scene.sandbox(), name, &policies)?;
        engines.push(engine.on_server(&server.dsn("engine"), 30));
    }
    let begin = |engines: &mut Vec<Engine>| -> Result<()> {
        for engine in engines.iter_mut() {
            engine.launch()?;
        }
        engines.iter_mut().try_for_each(Engine::wait_ready)
    };

    // While somebody has the turn, none of them touches anything.
    let turn = Turn::take(&Target::parse(&server.dsn("keeper"))?).await?;
    begin(&mut engines)?;
    eventually("all three to leave it to who is at it", LATER, || {
        let logs: Result<Vec<String>> = engines.iter().map(Engine::log).collect();
        Ok(logs?.iter().all(|log| log.contains("another agent looks after")))
    })?;
    assert_eq!(server.number(PARTITIONS)?, OLD_DAYS);
    for engine in &mut engines {
        ensure!(engine.terminate()?.success());
    }
    turn.expect("nobody else had it").give().await?;

    // All at once, with two commands beside them: each partition goes once, and nobody stumbles over another.
    begin(&mut engines)?;
    let mut prune = Command::new(binary()?);
    prune
        .env_clear()
        .args([
            "audit",
            "prune",
            "--before",
            "30d",
            "--store",
            &server.dsn("keeper"),
        ])
        .args([
            "--keys",
            &scene.sandbox().directory().join("keys").display().to_string(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let commands = [prune.spawn()?, prune.spawn()?];
    let mut counts = Vec::new();
    for command in commands {
        let output = command.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let days = said
            .split(" with ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next()?.parse().ok());
        counts.push(days.unwrap_or(0_u64));
    }
    eventually("the old days to be gone", LATER, || {
        Ok(server.number(PARTITIONS)? == 0)
    })?;
    for engine in &mut engines {
        ensure!(engine.terminate()?.success());
        let log = engine.log()?;
        ensure!(!log.contains("cannot look after"), "{log}");
        counts.extend(dropped(&log));
    }
    counts.retain(|count| *count > 0);
    assert_eq!(counts, [OLD_DAYS], "more than one of them pruned");
    Ok(())
}
