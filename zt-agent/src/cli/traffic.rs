// SPDX-License-Identifier: Apache-2.0
//! Recorded connections, for the commands that ask policies about them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::behind::ServicesArgs;
use super::exit::Failure;
use super::offline;
use super::output::line;
use super::run::RunArgs;
use super::trail::Progress;
use super::when::When;
use crate::audit::archive;
use crate::audit::postgres::{self, Target};
use crate::audit::query::{Addresses, Fold, GraphFilter, Span, Spans, Traffic};
use crate::audit::record::{Protocol, Timestamp, TimestampError};
use crate::audit::sqlite::Reader;
use crate::policy::SeenFlow;
use crate::traffic::{About, Range, Recorded};

/// Most bytes of a file of connections.
const MAX_BYTES: u64 = 256 << 20;

/// Which connections.
#[derive(Debug, Args)]
#[command(next_help_heading = "Recorded traffic")]
pub(super) struct TrafficArgs {
    /// Connections from the hour of this time on: RFC 3339, or how long ago (30m, 2h, 7d)
    #[arg(long, value_name = "TIME", conflicts_with = "traffic")]
    since: Option<When>,
    /// Connections of before this time, up to the full hour
    #[arg(long, value_name = "TIME", conflicts_with = "traffic")]
    until: Option<When>,
    /// With one end in this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Database of records [default: audit.readDsn of the configuration, else its audit.dsn]
    #[arg(long, value_name = "DSN", conflicts_with = "traffic")]
    store: Option<String>,
    /// Instead of a database, what `zt-agent graph -o json` printed; `-` for standard input
    #[arg(long, value_name = "FILE")]
    traffic: Option<PathBuf>,
}

/// Addresses of one row that are shown to people.
const SHOWN: usize = 2;
/// How long a server may take to add up what was recorded.
const MOST_TIME: Duration = Duration::from_secs(300);

/// How many addresses an end had, by the first of them: behind its name.
pub(super) fn shown(addresses: &Addresses) -> String {
    let first: Vec<String> = addresses
        .told()
        .iter()
        .take(SHOWN)
        .map(ToString::to_string)
        .collect();
    match addresses.count().saturating_sub(first.len() as u64) {
        0 if first.is_empty() => String::new(),
        0 => format!(" ({})", first.join(", ")),
        more => format!(" ({}, {more} more)", first.join(", ")),
    }
}

/// Says what was left out, one reason a line.
pub(super) fn print_left_out(range: &Range, before: &str) -> Result<(), Failure> {
    for (reason, count) in &range.left_out {
        line(&format!(
            "{before}{count} left out, for policy did not decide: {reason}"
        ))?;
    }
    Ok(())
}

/// An edge of the graph, as `graph -o json` prints it.
#[derive(Debug, Deserialize)]
struct Edge {
    source: String,
    destination: String,
    protocol: Protocol,
    port: u16,
    allowed: u64,
    denied: u64,
    would_deny: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
}

#[derive(Debug, Deserialize)]
struct Graph {
    edges: Vec<Edge>,
}

impl TrafficArgs {
    /// The connections that are asked for; an error where there are none. `fold` says which addresses are one. `services` are read
    /// later.
    pub(super) fn read(
        &self,
        config: Option<PathBuf>,
        services: &ServicesArgs,
        fold: &Fold,
    ) -> Result<Range, Failure> {
        if services.is_of_stdin() && self.traffic.as_deref().is_some_and(offline::is_stdin) {
            let detail = "only one of --traffic and --services can be `-`: standard input is read once";
            return Err(Failure::Usage(detail.to_owned()));
        }
        let filter = self.filter()?;
        let range = if let Some(file) = &self.traffic {
            let edges = edges(file)?.into_iter();
            let recorded = edges
                .filter(|edge| filter.takes(&edge.source, &edge.destination))
                .map(Edge::recorded);
            Range {
                recorded: recorded.collect(),
                // The graph is of connections alone.
                raw_is_known: false,
                left_out: BTreeMap::new(),
            }
        } else {
            let dsn = self.dsn(config)?;
            let _progress = Progress::waiting("reading the recorded traffic");
            let traffic = super::block_on(traffic(&dsn, &filter, fold))?;
            Range::from(traffic)
        };
        match range.nothing(&filter) {
            Some(why) => Err(Failure::NotFound(why)),
            None => Ok(range),
        }
    }

    fn filter(&self) -> Result<GraphFilter, Failure> {
        let time = |what: &str, when: &Option<When>| {
            let time = when.as_ref().map(|when| when.rfc3339().parse());
            time.transpose()
                .map_err(|error: TimestampError| Failure::Usage(format!("--{what}: {error}")))
        };
        let filter = GraphFilter {
            since: time("since", &self.since)?,
            until: time("until", &self.until)?,
            namespace: self.namespace.clone(),
        };
        match (filter.since, filter.until) {
            (Some(since), Some(until)) if since >= until => Err(Failure::Usage(format!(
                "--since {since} is not before --until {until}"
            ))),
            _ => Ok(filter),
        }
    }

    fn dsn(&self, config: Option<PathBuf>) -> Result<String, Failure> {
        if let Some(dsn) = &self.store {
            return Ok(dsn.clone());
        }
        let run = RunArgs {
            config,
            ..RunArgs::default()
        };
        Ok(run.load()?.audit.reading().to_owned())
    }
}

async fn traffic(dsn: &str, filter: &GraphFilter, fold: &Fold) -> Result<Traffic, Failure> {
    if archive::is_postgres(dsn) {
        let reader = postgres::Reader::new(Target::parse(dsn)?).adding_up_for(MOST_TIME);
        let traffic = reader.traffic(filter, fold).await;
        reader.close().await;
        Ok(traffic?)
    } else {
        Ok(Reader::open(dsn).await?.traffic(filter, fold).await?)
    }
}

impl Edge {
    fn recorded(self) -> Recorded {
        let (source, destination) = ((self.source.as_str(), None), (self.destination.as_str(), None));
        let flow = SeenFlow::new(source, destination, self.port, self.protocol.0);
        Recorded {
            about: flow.map(About::Connection),
            source: self.source.into(),
            destination: self.destination.into(),
            addresses: Addresses::default(),
            protocol: self.protocol,
            port: self.port,
            allowed: self.allowed,
            denied: self.denied,
            would_deny: self.would_deny,
            unproven: 0,
            spans: Spans::default(),
            span: Span {
                first: self.first_seen,
                last: self.last_seen,
            },
        }
    }
}

fn edges(path: &Path) -> Result<Vec<Edge>, Failure> {
    let text = offline::text(path, MAX_BYTES)?;
    let graph: Graph = serde_json::from_str(&text).map_err(|error| {
        Failure::Usage(format!(
            "{}: not what `zt-agent graph -o json` prints: {error}",
            path.display()
        ))
    })?;
    Ok(graph.edges)
}
