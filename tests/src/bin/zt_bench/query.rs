// SPDX-License-Identifier: Apache-2.0
//! A full trail in both stores: how fast records get in, and how fast pages, the graph and a replay come out.

mod fill;
mod plans;
mod questions;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use zt_agent::audit::postgres::Reader;
use zt_agent::audit::query::{Cursor, Filter, Fold, Graph, GraphFilter, Page, Seen};
use zt_agent::audit::record::Timestamp;
use zt_agent::audit::sqlite::{self, Store};
use zt_agent::policy::{self, PolicySet, SeenFlow, Settings};
use zt_agent::traffic::to_judge;
use zt_tests::entries::Maker;

use self::questions::{Group, Question};
use crate::Plan;
use crate::report::{Metric, Target};
use crate::samples::Summary;

/// Days that the records are spread over; the last of them was yesterday.
const DAYS: i64 = 7;
const DAY: i64 = 86_400_000_000_000;
/// Records of a page: what a question that does not say gets.
const LIMIT: u32 = 100;
/// Milliseconds that a page may take.
const PAGE: f64 = 100.0;
/// Milliseconds that a replay of a million records may take.
const REPLAY: f64 = 5000.0;

/// A store that is full.
enum Trail {
    Sqlite(Box<Store>),
    Postgres(Box<Reader>),
}

impl Trail {
    const fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        }
    }

    async fn query(&self, filter: &Filter, cursor: Option<Cursor>) -> Result<Page> {
        Ok(match self {
            Self::Sqlite(store) => store.query(filter, cursor, LIMIT).await?,
            Self::Postgres(reader) => reader.query(filter, cursor, LIMIT).await?,
        })
    }

    async fn graph(&self, filter: &GraphFilter) -> Result<Graph> {
        Ok(match self {
            Self::Sqlite(store) => store.graph(filter).await?,
            Self::Postgres(reader) => reader.graph(filter).await?,
        })
    }

    async fn traffic(&self, filter: &GraphFilter, fold: &Fold) -> Result<Vec<Seen>> {
        Ok(match self {
            Self::Sqlite(store) => {
                let dsn = format!("sqlite://{}", store.path().display());
                sqlite::Reader::open(&dsn)
                    .await?
                    .traffic(filter, fold)
                    .await?
                    .seen
            }
            Self::Postgres(reader) => reader.traffic(filter, fold).await?.seen,
        })
    }
}

/// Fills both stores, one after the other, and asks.
pub(crate) fn trails(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let start = (zt_agent::audit::clock::now() / DAY - DAYS) * DAY;
    let maker = Maker {
        start,
        step: DAYS * DAY / plan.rows.cast_signed(),
        parties: plan.parties,
    };
    runtime.block_on(async {
        let (directory, store) = fill::sqlite(plan, &maker, metrics).await?;
        let trail = Trail::Sqlite(Box::new(store));
        ask(plan, &trail, &maker, metrics).await?;
        drop((trail, directory));
        let server = fill::postgres(plan, &maker, metrics).await?;
        let trail = Trail::Postgres(Box::new(server.reader()?));
        let asked = ask(plan, &trail, &maker, metrics).await;
        // They say why, where an answer did not come in time.
        plans::write(plan, &server, &maker, metrics).await?;
        asked
    })
}

/// Where in the trail a page begins: at its end, in its middle, and where it is nearly over.
fn places(plan: &Plan, maker: &Maker) -> [(&'static str, Option<Cursor>); 3] {
    let at = |thousandths: i64| {
        Some(Cursor {
            time: maker.start + maker.step * plan.rows.cast_signed() / 1000 * thousandths,
            id: uuid::Uuid::max(),
        })
    };
    [("first", None), ("middle", at(500)), ("last", at(1))]
}

/// Asks every question at every place, and for the graph.
async fn ask(plan: &Plan, trail: &Trail, maker: &Maker, metrics: &mut Vec<Metric>) -> Result<()> {
    let name = trail.name();
    let mut groups: BTreeMap<Group, (Vec<f64>, String, f64)> = BTreeMap::new();
    let mut count = 0;
    for question in questions::all(maker)? {
        for (place, cursor) in places(plan, maker) {
            let milliseconds = page(plan, trail, &question, cursor).await?;
            count += 1;
            let group = groups.entry(question.group).or_default();
            group.0.push(milliseconds);
            if milliseconds >= group.2 {
                (group.1, group.2) = (format!("{}, {place} page", question.name), milliseconds);
            }
        }
    }
    let mut slowest = Summary::of(
        &groups
            .values()
            .map(|(_, _, slowest)| *slowest)
            .collect::<Vec<_>>(),
    );
    if let Some(summary) = &mut slowest {
        *summary = Summary::one(summary.max);
    }
    let line = format!("{name}, {} rows: slowest of {count} pages of {LIMIT}", plan.rows);
    metrics.push(Metric::summed(line, "ms", slowest).target(Target::AtMost(PAGE)));
    for (group, (times, slowest, _)) in groups {
        let line = format!("  {}, slowest: {slowest}", group.name());
        metrics.push(Metric::summed(line, "ms", Summary::of(&times)));
    }
    let since = Some(Timestamp(maker.start + (DAYS - 1) * DAY));
    for (what, filter) in [
        ("of all", GraphFilter::default()),
        (
            "of the last day",
            GraphFilter {
                since,
                ..GraphFilter::default()
            },
        ),
        (
            "of a namespace",
            GraphFilter {
                namespace: Some("monitoring".to_owned()),
                ..GraphFilter::default()
            },
        ),
    ] {
        let mut times = Vec::new();
        let mut edges = 0;
        for _ in 0..plan.rounds(3, 7) {
            let begun = Instant::now();
            edges = trail.graph(&filter).await?.edges.len();
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        let line = format!("{name}, {} rows: graph {what}, {edges} edges", plan.rows);
        metrics.push(Metric::summed(line, "ms", Summary::of(&times)));
    }
    replay(plan, trail, metrics).await
}

/// What `policy replay` takes of the whole trail: connections read, and judged by another policy.
async fn replay(plan: &Plan, trail: &Trail, metrics: &mut Vec<Metric>) -> Result<()> {
    let (set, settings) = (PolicySet::default(), Settings::default());
    let (mut times, mut different) = (Vec::new(), 0);
    for _ in 0..plan.rounds(3, 5) {
        let begun = Instant::now();
        let fold = to_judge(&set, &settings);
        let seen = trail.traffic(&GraphFilter::default(), &fold).await?;
        let flows = seen.iter().filter_map(|seen| {
            let edge = &seen.edge;
            let (source, destination) = (
                (&*edge.source, seen.source_addresses.first()),
                (&*edge.destination, seen.destination_addresses.first()),
            );
            SeenFlow::new(source, destination, edge.port, edge.protocol.0).ok()
        });
        let flows: Vec<SeenFlow> = flows.collect();
        let workloads = flows.iter().flat_map(SeenFlow::workloads).cloned().collect();
        let table = policy::compile(&set, &workloads, &settings, 1)?;
        different = flows.iter().filter(|flow| flow.judge(&table).is_ok()).count();
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let line = format!(
        "{}, {} rows: replay of all, {different} different connections",
        trail.name(),
        plan.rows
    );
    let most = REPLAY * (plan.rows as f64 / 1e6).max(1.0);
    metrics.push(Metric::summed(line, "ms", Summary::of(&times)).target(Target::AtMost(most)));
    Ok(())
}

/// Milliseconds that a page takes: the middle one of a few, of which the first finds the caches as they are.
async fn page(plan: &Plan, trail: &Trail, question: &Question, cursor: Option<Cursor>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..plan.rounds(3, 3) {
        let begun = Instant::now();
        trail.query(&question.filter, cursor).await?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(Summary::of(&times).map_or(0.0, |summary| summary.median))
}
