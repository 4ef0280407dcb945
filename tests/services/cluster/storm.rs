// SPDX-License-Identifier: Apache-2.0
//! Exact accounting while an engine, a node's agent and the database are killed at random points, each of them more than once
//! while connections are made and decisions asked for.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use zt_agent::audit::seal::Keys;
use zt_agent::audit::sqlite;
use zt_tests::moments::Moments;
use zt_tests::postgres::Server;
use zt_tests::probe::{Flood, Operation};
use zt_tests::{Agent, Engine, Policy, TCP, eventually};

use super::{Engines, LATER, Node, ask};

/// How long the floods of a round go on. Whoever dies in it dies before they end.
const FLOOD: Duration = Duration::from_millis(2500);
/// Rounds in which nobody died in time are made again; so many are no storm.
const MOST_ROUNDS: u64 = 40;
/// How long it takes at most until somebody dies, and until he is there again.
const CALM: Duration = Duration::from_millis(200);
const DEAD: Duration = Duration::from_millis(300);
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

/// Who dies in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Agent,
    Engine,
    Database,
    EngineAndDatabase,
}

impl Death {
    /// Each of them twice.
    const ALL: [Self; 8] = [
        Self::Agent,
        Self::Engine,
        Self::Database,
        Self::EngineAndDatabase,
        Self::Agent,
        Self::Engine,
        Self::Database,
        Self::EngineAndDatabase,
    ];

    fn takes_engine(self) -> bool {
        matches!(self, Self::Engine | Self::EngineAndDatabase)
    }

    fn takes_database(self) -> bool {
        matches!(self, Self::Database | Self::EngineAndDatabase)
    }
}

/// The flood of one node, for a round.
fn begin_flood(node: &mut Node) -> Result<()> {
    let to = [node.server.v4(80), node.server.v4(81)];
    node.client.send(Operation::ConnectMany(Flood {
        to: to.to_vec(),
        duration: Some(FLOOD),
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
    /// Who died while connections were made.
    deaths: Vec<Death>,
}

/// Kills who is to die, and has him there again a moment later. Returns when he was dead.
fn die(
    death: Death,
    server: &Server,
    engine: &mut Engine,
    agent: &mut Agent,
    (stormed, dead): (&mut Stormed, Duration),
) -> Result<Instant> {
    if death.takes_database() {
        server.crash()?;
    }
    if death.takes_engine() {
        engine.kill()?;
    }
    if death == Death::Agent {
        agent.kill()?;
    }
    let at = Instant::now();
    thread::sleep(dead);
    if death == Death::Agent {
        agent.restart()?;
    }
    if death.takes_engine() {
        stormed.kept = stored(engine)?.1;
        engine.start()?;
    }
    if death.takes_database() {
        server.up()?;
    }
    Ok(at)
}

/// Changes policy at each engine in turn, and kills the first engine, the database and the agent of the first node, in an order
/// and at moments that are others each time, while both nodes make connections.
fn storm(server: &Server, engines: &mut Engines, nodes: &mut [Node; 2]) -> Result<Stormed> {
    let mut moments = Moments::new();
    let mut stormed = Stormed::default();
    let mut left = moments.shuffled(Death::ALL.to_vec());
    let mut round = 0;
    while let Some(death) = left.pop() {
        ensure!(
            round < MOST_ROUNDS,
            "{death:?} and {left:?} take longer than the floods do"
        );
        let begun = Instant::now();
        for node in nodes.iter_mut() {
            begin_flood(node)?;
        }
        let engine = (round % 3) as usize;
        let name = format!("storm-{}", round % 5);
        let policy = Policy::new(&name).allow("client", "server", TCP, &format!("{}", 2000 + round));
        let (acknowledged, unknown) = &mut stormed.changes[engine];
        match engines.all[engine].put(&name, &policy.text()) {
            Ok(answer) if answer.status == 200 => *acknowledged += 1,
            _ => *unknown += 1,
        }
        thread::sleep(moments.within(CALM));
        let (engine, agent) = (&mut engines.all[0], &mut nodes[0].agent);
        let dead = moments.within(DEAD);
        let at = die(death, server, engine, agent, (&mut stormed, dead))?;
        if at.duration_since(begun) < FLOOD {
            stormed.deaths.push(death);
        } else {
            // Once more, when the others have had their turns.
            left.insert(0, death);
        }
        for node in nodes.iter_mut() {
            node.client.wait()?.ok()?;
        }
        round += 1;
    }
    Ok(stormed)
}

/// `audit verify` over the server, with the first key of everybody who wrote into it: nothing is wrong with any of the chains.
fn is_verified(server: &Server, engines: &Engines, nodes: &[Node; 2]) -> Result<()> {
    let of_engines = engines
        .all
        .iter()
        .map(|engine| engine.spool().with_file_name("keys"));
    let of_nodes = nodes
        .iter()
        .map(|node| node.scene.sandbox().directory().join("keys"));
    let mut trusted = Vec::new();
    for directory in of_engines.chain(of_nodes) {
        let keys = Keys::list(&directory)?.context("keys")?;
        trusted.push(keys.first().context("a key")?.key.clone());
    }
    let output = Command::new(zt_tests::agent::binary()?)
        .args(["audit", "verify", "-o", "json", "--store", &server.dsn("engine")])
        .args(["--trust", &trusted.join(",")])
        .env_clear()
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| said.into_owned())?;
    let writers = report["writers"].as_array().map(Vec::len);
    ensure!(
        output.status.code() == Some(0) && report["clean"] == true && writers == Some(trusted.len()),
        "{}: {report:#}",
        output.status
    );
    Ok(())
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
fn nothing_is_lost_or_doubled_when_an_engine_an_agent_and_the_database_are_killed() -> Result<()> {
    let server = Server::start("fsync = off")?;
    let mut engines = Engines::start(&server)?;
    let mut nodes = [
        Node::start("node-a", &engines.balancer, &server)?,
        Node::start("node-b", &engines.balancer, &server)?,
    ];
    let asked: [Asked; 3] = Default::default();
    let over = AtomicBool::new(false);
    let addresses: Vec<_> = engines.all.iter().map(Engine::api).collect();
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
        let stormed = storm(&server, &mut engines, &mut nodes);
        over.store(true, Ordering::Relaxed);
        stormed
    })?;
    let died = |is: fn(Death) -> bool| stormed.deaths.iter().filter(|death| is(**death)).count();
    let deaths = [
        died(|death| death == Death::Agent),
        died(Death::takes_engine),
        died(Death::takes_database),
    ];
    ensure!(
        deaths.iter().all(|deaths| *deaths >= 2),
        "agent, engine, database: {deaths:?}"
    );

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
    is_verified(&server, &engines, &nodes)?;
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
    is_verified(&server, &engines, &nodes)?;
    let kept = stormed.kept;
    ensure!(
        kept > 0 && kept <= last,
        "{kept} of {last} were there at the last kill"
    );
    Ok(())
}
