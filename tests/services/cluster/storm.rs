// SPDX-License-Identifier: Apache-2.0
//! Exact accounting while an engine, a node's agent and the database are killed at random points.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use zt_agent::audit::sqlite;
use zt_tests::entries::spread;
use zt_tests::postgres::Server;
use zt_tests::probe::{Flood, Operation};
use zt_tests::{Agent, Engine, Policy, TCP, eventually};

use super::{Engines, LATER, Node, ask};

/// How long it goes on at least, and how often something dies.
const STORM: Duration = Duration::from_secs(15);
const ROUNDS: u64 = 9;
/// One connection in this time at each node, one evaluation at each engine.
const PACE: Duration = Duration::from_millis(2);

/// What one engine was asked.
#[derive(Default)]
struct Asked {
    tried: AtomicU64,
    answered: AtomicU64,
}

/// The number of the last record that a writer has stored, as its own file says. Nobody else may have it open.
fn stored(engine: &Engine) -> Result<(String, u64)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let store = sqlite::Store::open(sqlite::Settings {
            dsn: format!("sqlite://{}", engine.spool().display()),
            max_disk_bytes: 1 << 30,
            retention_days: None,
            keys: None,
            sync: sqlite::Durability::default(),
        })
        .await?;
        let head = store.head().await?;
        store.close().await?;
        Ok((head.writer.to_string(), head.seq))
    })
}

/// The flood of one node, until the storm is over.
fn begin_flood(node: &mut Node) -> Result<()> {
    let to = [node.server.v4(80), node.server.v4(81)];
    node.client.send(Operation::ConnectMany(Flood {
        to: to.to_vec(),
        duration: Some(STORM),
        pace: Some(PACE),
        ..Flood::new(to[0], u64::MAX)
    }))
}

/// Decisions of the kernel that the server has records of.
fn on_record(server: &Server, node: &str) -> Result<u64> {
    server.number(&format!(
        "SELECT coalesce(sum(count), 0) FROM zt_audit.trail WHERE type = 'decision' AND hook <> 'api'
         AND reason <> 'revoked' AND (source_node = '{node}' OR destination_node = '{node}')"
    ))
}

/// Every writer's records are those from 1 on, each once, and none was given up.
fn is_whole(server: &Server) -> Result<()> {
    let broken = server.sql(
        "SELECT writer, count(*), count(DISTINCT seq), min(seq), max(seq) FROM zt_audit.record GROUP BY writer
         HAVING count(*) <> count(DISTINCT seq) OR min(seq) <> 1 OR max(seq) <> count(*)",
    )?;
    ensure!(
        broken.is_empty(),
        "writer, records, numbers, first, last: {broken}"
    );
    let twice = "SELECT count(*) - count(DISTINCT id) FROM zt_audit.record";
    ensure!(server.number(twice)? == 0, "a record is there twice");
    ensure!(server.number("SELECT sum(dropped) FROM zt_audit.batch")? == 0);
    let counted =
        "SELECT (SELECT sum(records) FROM zt_audit.bucket) - (SELECT count(*) FROM zt_audit.record)";
    ensure!(server.number(counted)? == 0, "the graph counts others");
    Ok(())
}

fn lost(agent: &Agent) -> Result<u64> {
    agent.counter("events_lost")
}

/// What a storm leaves.
#[derive(Default)]
struct Stormed {
    /// Changes that were acknowledged, and those of which nobody knows what became of them, by engine.
    changes: [(u64, u64); 3],
    /// Records that the first engine had on its disk when it was killed last.
    kept: u64,
}

/// Changes policy at each engine in turn, and kills the first engine, the database and the agent of a node at moments of
/// which no two are alike.
fn storm(server: &Server, engines: &mut Engines, node: &mut Node) -> Result<Stormed> {
    let mut stormed = Stormed::default();
    let begun = Instant::now();
    let mut round = 0;
    while begun.elapsed() < STORM || round < ROUNDS {
        let random = spread(round);
        let engine = (round % 3) as usize;
        let name = format!("storm-{}", round % 5);
        let policy = Policy::new(&name).allow("client", "server", TCP, &format!("{}", 2000 + round));
        let (acknowledged, unknown) = &mut stormed.changes[engine];
        match engines.all[engine].put(&name, &policy.text()) {
            Ok(answer) if answer.status == 200 => *acknowledged += 1,
            _ => *unknown += 1,
        }
        thread::sleep(Duration::from_millis(random % 200));
        match random / 1000 % 4 {
            0 => {
                server.crash()?;
                thread::sleep(Duration::from_millis(random / 7 % 300));
                server.up()?;
            }
            1 => {
                node.agent.kill()?;
                node.agent.restart()?;
            }
            both => {
                if both == 3 {
                    server.crash()?;
                }
                engines.all[0].kill()?;
                stormed.kept = stored(&engines.all[0])?.1;
                engines.all[0].start()?;
                if both == 3 {
                    server.up()?;
                }
            }
        }
        round += 1;
    }
    Ok(stormed)
}

/// Every answer of the engines is on record, and nothing that nobody asked.
fn evaluations_are_on_record(server: &Server, asked: &[Asked; 3]) -> Result<()> {
    let evaluations = |port: usize| {
        server.number(&format!(
            "SELECT coalesce(sum(count), 0) FROM zt_audit.trail WHERE hook = 'api' AND port = {port}"
        ))
    };
    for (number, asked) in asked.iter().enumerate() {
        let (tried, answered) = (
            asked.tried.load(Ordering::Relaxed),
            asked.answered.load(Ordering::Relaxed),
        );
        ensure!(answered > 0, "engine {number} answered nothing");
        eventually("every evaluation to be on record", LATER, || {
            Ok(evaluations(1001 + number)? >= answered)
        })?;
        // One that was recorded just before a kill, or too late for who asked, was not answered.
        let recorded = evaluations(1001 + number)?;
        ensure!(
            recorded >= answered && recorded <= tried,
            "engine {number}: {recorded} of {answered} to {tried}"
        );
    }
    Ok(())
}

/// Each acknowledged change is on record once, with who asked for it.
fn changes_are_on_record(engines: &Engines, stormed: &Stormed) -> Result<()> {
    for (engine, (acknowledged, unknown)) in engines.all.iter().zip(stormed.changes) {
        let path = format!("/v1/audit?type=policy_change&limit=1000&node={}", engine.name());
        let mut made = 0;
        eventually("every change to be on record", LATER, || {
            let page = engines.all[2].get(&path)?;
            let records = page["records"].as_array().context("records")?;
            let asked_for = |record: &&Value| {
                let caller = record["caller"].as_str();
                caller.is_some_and(|caller| caller.starts_with("uid:"))
            };
            made = records.iter().filter(asked_for).count() as u64;
            Ok(made >= acknowledged)
        })?;
        ensure!(
            acknowledged > 0 && made <= acknowledged + unknown,
            "{made} of {acknowledged}"
        );
    }
    Ok(())
}

#[test]
fn nothing_is_lost_or_doubled_when_an_engine_and_the_database_are_killed() -> Result<()> {
    let server = Server::start("fsync = off")?;
    let mut engines = Engines::start(&server)?;
    let mut nodes = [
        Node::start("node-a", &engines.balancer, &server)?,
        Node::start("node-b", &engines.balancer, &server)?,
    ];
    let asked: [Asked; 3] = Default::default();
    let over = AtomicBool::new(false);
    let addresses: Vec<_> = engines.all.iter().map(Engine::api).collect();
    for node in &mut nodes {
        begin_flood(node)?;
    }
    let stormed = thread::scope(|scope| {
        for (number, (engine, asked)) in addresses.iter().zip(&asked).enumerate() {
            let over = &over;
            scope.spawn(move || {
                let port = 1001 + u16::try_from(number).unwrap_or_default();
                while !over.load(Ordering::Relaxed) {
                    asked.tried.fetch_add(1, Ordering::Relaxed);
                    let answered = ask(*engine, port).is_ok();
                    asked.answered.fetch_add(u64::from(answered), Ordering::Relaxed);
                    thread::sleep(PACE);
                }
            });
        }
        let stormed = storm(&server, &mut engines, &mut nodes[0]);
        over.store(true, Ordering::Relaxed);
        stormed
    })?;
    for node in &mut nodes {
        node.client.wait()?.ok()?;
    }

    // What waits is shipped: every decision of both kernels, and every answer of the engines.
    for node in &nodes {
        let arrived = eventually("every decision to be on record", LATER, || {
            Ok(on_record(&server, node.name)? + lost(&node.agent)? >= node.agent.decisions()?)
        });
        let (records, decisions) = (on_record(&server, node.name)?, node.agent.decisions()?);
        arrived.with_context(|| format!("{}: {records} of {decisions}", node.name))?;
        ensure!(decisions > 300, "{decisions} are no storm");
        assert_eq!((records, lost(&node.agent)?), (decisions, 0), "{}", node.name);
    }
    evaluations_are_on_record(&server, &asked)?;
    changes_are_on_record(&engines, &stormed)?;

    // All converge, and every engine tells the same about all nodes.
    let digest = engines.put(1, &super::base("80-81"), "base")?;
    engines.have(&digest)?;
    for node in &nodes {
        node.has(&digest)?;
    }
    is_whole(&server)?;
    let view = |engine: &Engine| -> Result<(Vec<String>, Value)> {
        let mut ids = Vec::new();
        for node in ["node-a", "node-b"] {
            let page = engine.get(&format!("/v1/audit?type=decision&limit=200&node={node}"))?;
            let records = page["records"].as_array().context("records")?;
            ensure!(records.len() == 200, "{} records of {node}", records.len());
            ids.extend(
                records
                    .iter()
                    .filter_map(|record| record["id"].as_str().map(str::to_owned)),
            );
        }
        Ok((ids, engine.get("/v1/graph")?["edges"].clone()))
    };
    let views: Vec<_> = engines.all.iter().map(view).collect::<Result<_>>()?;
    ensure!(views[0] == views[1] && views[1] == views[2], "{views:?}");

    // What the killed engine had on its disk is what the server has of it, to the last record.
    ensure!(engines.all[0].terminate()?.success());
    let (writer, last) = stored(&engines.all[0])?;
    let there = format!("SELECT count(*) FROM zt_audit.record WHERE writer = '{writer}'");
    // What it had not shipped when it ended it ships at its next start.
    engines.all[0].start()?;
    eventually("the rest of the killed engine's records", LATER, || {
        Ok(server.number(&there)? >= last)
    })?;
    ensure!(engines.all[0].terminate()?.success());
    let (_, last) = stored(&engines.all[0])?;
    eventually("its last records", LATER, || Ok(server.number(&there)? >= last))?;
    assert_eq!(server.number(&there)?, last);
    let kept = stormed.kept;
    ensure!(
        kept > 0 && kept <= last,
        "{kept} of {last} were there at the last kill"
    );
    Ok(())
}
