// SPDX-License-Identifier: Apache-2.0
//! Workloads come and go, and policies change, and afterwards all is as it was: entries of the maps, memory, descriptors, pins,
//! programs and maps, and what the trail keeps beside its records.
//!
//! `ZT_SOAK_WORKLOADS` and `ZT_SOAK_CHANGES` say how many.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use zt_common::names;
use zt_tests::agent_files::Workload;
use zt_tests::hooks::{bpftool, pins};
use zt_tests::pair::{any, pair};
use zt_tests::programs::held_by;
use zt_tests::{Agent, Cgroup, Party, Policy, Scene, TCP, UDP, asked, eventually, spiffe};

/// How many come and go together.
const ROUND: usize = 50;
/// Their first address.
const FIRST: u32 = 0x0a62_0000;
const SETTLED: Duration = Duration::from_secs(90);
/// What the allocator and the caches of the store may hold more in the end than after the first round, in KiB.
const MARGIN: u64 = 16 * 1024;

/// Names that records refer to, and what the kernel's numbers stand for.
const NAMES: &str = "SELECT count(*) FROM name";
const NUMBERS: &str = "SELECT count(*) FROM number";
/// Names of a trail without records: the newest, and those of a record that came meanwhile.
const FEW: i64 = 8;
/// What policy speaks of beside workloads, at most: networks and rules.
const SPOKEN_OF: usize = 300;

/// Maps whose entries are taken out by whoever puts them in. In the others the oldest make room for the newest, or there is a
/// fixed number.
const EMPTIED: [&str; 11] = [
    names::WORKLOADS,
    names::LISTENERS,
    names::LOCAL,
    names::PEERS,
    names::SERVICES,
    names::UNNOTED,
    names::CONNECTIONS,
    names::SHARES,
    names::NODES,
    names::RESIDENTS,
    names::HOMES,
];

/// What must come back to where it was.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    entries: BTreeMap<&'static str, usize>,
    /// Of the allow table in force.
    allowed: usize,
    pins: Vec<PathBuf>,
    programs: BTreeMap<String, u32>,
    /// Maps that the agent has open, the tables inside others included.
    maps: usize,
    descriptors: usize,
}

fn dumped(what: &[&str]) -> Result<Vec<serde_json::Value>> {
    let dump = bpftool(&[&["map", "dump"], what].concat())?;
    Ok(dump.as_array().cloned().unwrap_or_default())
}

fn entries(maps: &Path, name: &str) -> Result<usize> {
    let pin = maps.join(name);
    Ok(dumped(&["pinned", pin.to_str().context("plain letters")?])?.len())
}

/// How many entries the table in the slot has.
fn allowed(maps: &Path) -> Result<usize> {
    let pin = maps.join(names::ALLOW);
    let slot = dumped(&["pinned", pin.to_str().context("plain letters")?])?;
    // The table's id, byte by byte.
    let id = slot.first().and_then(|slot| slot["value"].as_array());
    let id = id.with_context(|| format!("no table in {slot:?}"))?.iter();
    let id = id.map(|byte| u8::from_str_radix(byte.as_str()?.trim_start_matches("0x"), 16).ok());
    let id = id.collect::<Option<Vec<u8>>>().and_then(|id| id.try_into().ok());
    let id = u32::from_ne_bytes(id.context("four bytes")?);
    Ok(dumped(&["id", &id.to_string()])?.len())
}

fn held(scene: &Scene, agent: &Agent) -> Result<Held> {
    let (maps, pid) = (scene.sandbox().maps()?, agent.pid().context("it runs")?);
    let mut open = Vec::new();
    let mut descriptors = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        descriptors += 1;
        // Descriptors come and go meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        open.extend(
            text.lines()
                .find_map(|line| line.strip_prefix("map_id:").map(str::to_owned)),
        );
    }
    open.sort();
    open.dedup();
    Ok(Held {
        entries: EMPTIED
            .iter()
            .map(|name| Ok((*name, entries(&maps, name)?)))
            .collect::<Result<_>>()?,
        allowed: allowed(&maps)?,
        pins: pins(&scene.sandbox().pins()?)?,
        programs: held_by(pid)?,
        maps: open.len(),
        descriptors,
    })
}

/// Resident memory of the agent, in KiB. What maps take is the kernel's.
fn resident(agent: &Agent) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid().context("it runs")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    size.context("a size")
}

/// Rows of a table of the trail.
fn rows(agent: &Agent, sql: &'static str) -> Result<i64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let options = SqliteConnectOptions::new()
            .filename(agent.files.audit())
            .read_only(true);
        let mut connection = options.busy_timeout(SETTLED).connect().await?;
        let rows = sqlx::query_scalar(sql).fetch_one(&mut connection).await?;
        sqlx::Connection::close(connection).await?;
        Ok(rows)
    })
}

/// Has all records removed, and waits until the names that only they had are gone: the agent looks for those.
fn forget(agent: &Agent) -> Result<()> {
    eventually("the names of what was recorded to go", SETTLED, || {
        let pruned = agent.command(&["audit", "prune", "--before", "0s"]).output()?;
        let said = String::from_utf8_lossy(&pruned.stderr);
        ensure!(pruned.status.success(), "{}: {said}", pruned.status);
        Ok(rows(agent, NAMES)? <= FEW)
    })
}

/// A policy that differs from that of the turn before. In each, everybody may reach the server, by a pattern.
fn policy(turn: usize) -> Policy {
    let everybody = spiffe("*");
    let policy = Policy::new("soak")
        .allow(&everybody, "server", TCP, "80")
        .allow(&everybody, "server", UDP, "80");
    match turn {
        0 => policy,
        _ => policy
            .allow("client", "server", TCP, &(9000 + turn % 1000).to_string())
            .allow(&format!("192.0.{}.0/24", turn % 200), "server", TCP, "81"),
    }
}

/// What a workload does in its life: calls, listens, receives datagrams.
fn live(visitor: &mut Party, server: &Party, cgroup: &Cgroup, port: u16) -> Result<()> {
    visitor.move_to(cgroup)?.ok()?;
    for to in [server.v4(80), server.v6(80)] {
        let said = visitor.talk(to)?;
        ensure!(said == "ok", "{to} of {}: {said}", cgroup.relative().display());
    }
    let held = [
        visitor.listen(any(port))?.handle()?,
        visitor.udp_bind(any(port))?.handle()?,
    ];
    visitor.udp(server.v4(80))?;
    for socket in held {
        visitor.close(socket)?;
    }
    Ok(())
}

/// `ROUND` workloads come, live and go, while policy changes.
fn round(
    (scene, agent): (&Scene, &Agent),
    (visitor, server): (&mut Party, &Party),
    number: usize,
    changes: usize,
) -> Result<()> {
    let numbers = number * ROUND..(number + 1) * ROUND;
    let names: Vec<String> = numbers.clone().map(|number| format!("soak-{number}")).collect();
    let cgroups = names
        .iter()
        .map(|name| scene.sandbox().cgroup(name))
        .collect::<Result<Vec<_>>>()?;
    let come = names
        .iter()
        .zip(&cgroups)
        .zip(numbers.clone())
        .map(|((name, cgroup), number)| {
            let address = IpAddr::V4(Ipv4Addr::from(FIRST + number as u32));
            Workload::new(&spiffe(name), cgroup).at([address])
        });
    let all: Vec<Workload> = scene.workloads().into_iter().chain(come).collect();
    agent.files.write_workloads(&all)?;
    let maps = scene.sandbox().maps()?;
    eventually("the workloads to be known", SETTLED, || {
        Ok(entries(&maps, names::WORKLOADS)? == all.len())
    })?;
    let home = visitor.cgroup.clone();
    for (place, cgroup) in cgroups.iter().enumerate() {
        live(visitor, server, cgroup, 20_000 + place as u16)?;
        // Changes are spread over the round.
        let step = (ROUND / changes).max(1);
        if place % step == 0 {
            agent.change_policy(&policy(1 + number * ROUND + place).text())?;
        }
    }
    visitor.move_to(&home)?.ok()?;
    agent.files.write_workloads(&scene.workloads())?;
    for cgroup in &cgroups {
        fs::remove_dir(cgroup.path()).with_context(|| cgroup.path().display().to_string())?;
    }
    // Else those of the next round would be taken for known because these still are.
    eventually("the workloads to be forgotten", SETTLED, || {
        Ok(entries(&maps, names::WORKLOADS)? == scene.workloads().len())
    })
}

#[test]
fn workloads_that_came_and_went_leave_nothing_behind() -> Result<()> {
    let rounds = asked("ZT_SOAK_WORKLOADS", 1000_usize)?.div_ceil(ROUND).max(2);
    let changes = asked("ZT_SOAK_CHANGES", 100_usize)?
        .div_ceil(rounds)
        .clamp(1, ROUND);
    let (scene, mut server, mut client) = pair("soak")?;
    server.udp_bind(any(80))?.handle()?;
    let agent = scene.agent(&policy(0))?.start()?;
    // What is made once, at the first need, is made in the first round.
    round((&scene, &agent), (&mut client, &server), 0, changes)?;
    agent.change_policy(&policy(0).text())?;
    let settle = |what: &str, wanted: &dyn Fn(&Held) -> bool| -> Result<Held> {
        let mut last = None;
        let settled = eventually(what, SETTLED, || {
            let now = held(&scene, &agent)?;
            let is_wanted = wanted(&now);
            last = Some(now);
            Ok(is_wanted)
        });
        settled.with_context(|| format!("{last:#?}"))?;
        last.context("looked at")
    };
    let before = settle("the first round to be over", &|now| {
        now.entries[names::WORKLOADS] == 2
            && now.entries[names::CONNECTIONS] == 0
            && now.entries[names::SHARES] <= 2
    })?;
    let (memory, numbers) = (resident(&agent)?, rows(&agent, NUMBERS)?);

    for number in 1..rounds {
        round((&scene, &agent), (&mut client, &server), number, changes)?;
    }
    let last = agent.change_policy(&policy(0).text())?;
    settle("all to be as it was", &|now| *now == before).with_context(|| format!("it was: {before:#?}"))?;
    let (after, came) = (resident(&agent)?, rounds * ROUND);
    eprintln!("{came} workloads, {last} revisions: {memory} KiB, then {after} KiB");
    assert!(after <= memory + MARGIN, "{memory} KiB, then {after} KiB");
    assert!(last as usize > changes * (rounds - 1));

    eventually("all to be in the trail by their names", SETTLED, || {
        Ok(rows(&agent, NAMES)? >= came as i64)
    })?;
    forget(&agent)?;
    // Who came stays known by his number for longer, once; more than some ten thousand never.
    let numbers = (rows(&agent, NUMBERS)? - numbers) as usize;
    assert!(numbers <= came + SPOKEN_OF, "{numbers} of {came}");
    Ok(())
}
