// SPDX-License-Identifier: Apache-2.0
//! Recorded connections, for the commands that ask policies about them.

use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::exit::Failure;
use super::run::RunArgs;
use super::trail::Progress;
use super::when::When;
use crate::audit::archive;
use crate::audit::postgres::{self, Target};
use crate::audit::query::{GraphFilter, Seen};
use crate::audit::record::{Protocol, Timestamp, TimestampError};
use crate::audit::sqlite::Reader;
use crate::policy::{SeenFlow, Undecided};

/// Most bytes of a file of connections.
const MAX_BYTES: u64 = 1 << 30;

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
    /// Database of records [default: audit.dsn of the configuration]
    #[arg(long, value_name = "DSN", conflicts_with = "traffic")]
    store: Option<String>,
    /// Instead of a database, what `zt-agent graph -o json` printed; `-` for standard input
    #[arg(long, value_name = "FILE")]
    traffic: Option<PathBuf>,
}

/// A connection that was seen, and how often.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    /// Between whom; or why no policy can be asked about it.
    pub(super) flow: Result<SeenFlow, Undecided>,
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) address: Option<IpAddr>,
    pub(super) protocol: String,
    pub(super) port: u16,
    pub(super) allowed: u64,
    pub(super) denied: u64,
    pub(super) would_deny: u64,
    pub(super) first_seen: Timestamp,
    pub(super) last_seen: Timestamp,
}

impl Recorded {
    /// How many connections it stands for.
    pub(super) const fn count(&self) -> u64 {
        self.allowed
            .saturating_add(self.denied)
            .saturating_add(self.would_deny)
    }
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
    /// The connections that are asked for; an error where there are none.
    pub(super) fn read(&self, config: Option<PathBuf>) -> Result<Vec<Recorded>, Failure> {
        let filter = self.filter()?;
        let recorded: Vec<Recorded> = if let Some(file) = &self.traffic {
            let edges = edges(file)?.into_iter();
            edges
                .filter(|edge| filter.takes(&edge.source, &edge.destination))
                .map(Edge::recorded)
                .collect()
        } else {
            let dsn = self.dsn(config)?;
            let _progress = Progress::waiting("reading the recorded traffic");
            let seen = super::block_on(seen(&dsn, &filter))?;
            seen.into_iter().map(recorded).collect()
        };
        if recorded.iter().all(|recorded| recorded.count() == 0) {
            return Err(Failure::NotFound(self.nothing()));
        }
        Ok(recorded)
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
        Ok(run.load()?.audit.dsn)
    }

    fn nothing(&self) -> String {
        let since = self.since.map(|time| format!(" from {}", time.rfc3339()));
        let until = self.until.map(|time| format!(" until {}", time.rfc3339()));
        let namespace = self
            .namespace
            .as_ref()
            .map(|name| format!(" of namespace {name}"));
        let what: String = [namespace, since, until].into_iter().flatten().collect();
        format!("no connections{what} are recorded: there is nothing to judge by")
    }
}

async fn seen(dsn: &str, filter: &GraphFilter) -> Result<Vec<Seen>, Failure> {
    if archive::is_postgres(dsn) {
        let reader = postgres::Reader::new(Target::parse(dsn)?);
        let seen = reader.traffic(filter).await;
        reader.close().await;
        Ok(seen?)
    } else {
        Ok(Reader::open(dsn).await?.traffic(filter).await?)
    }
}

fn recorded(seen: Seen) -> Recorded {
    let Seen {
        edge,
        source_address,
        destination_address,
    } = seen;
    Recorded {
        flow: SeenFlow::new(
            (&edge.source, source_address),
            (&edge.destination, destination_address),
            edge.port,
            edge.protocol.0,
        ),
        source: edge.source.to_string(),
        destination: edge.destination.to_string(),
        address: destination_address.or(source_address),
        protocol: edge.protocol.to_string(),
        port: edge.port,
        allowed: edge.allowed,
        denied: edge.denied,
        would_deny: edge.would_deny,
        first_seen: edge.first_seen,
        last_seen: edge.last_seen,
    }
}

impl Edge {
    fn recorded(self) -> Recorded {
        let (source, destination) = ((self.source.as_str(), None), (self.destination.as_str(), None));
        Recorded {
            flow: SeenFlow::new(source, destination, self.port, self.protocol.0),
            source: self.source,
            destination: self.destination,
            address: None,
            protocol: self.protocol.to_string(),
            port: self.port,
            allowed: self.allowed,
            denied: self.denied,
            would_deny: self.would_deny,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
        }
    }
}

fn edges(path: &Path) -> Result<Vec<Edge>, Failure> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text)?;
    } else {
        let file = std::fs::File::open(path);
        file.and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
            .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    }
    let graph: Graph = serde_json::from_str(&text).map_err(|error| {
        Failure::Usage(format!(
            "{}: not what `zt-agent graph -o json` prints: {error}",
            path.display()
        ))
    })?;
    Ok(graph.edges)
}
