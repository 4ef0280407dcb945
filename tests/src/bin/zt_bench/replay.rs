// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy replay` over a million records: what the command takes from its start to its end. Once of connections that come
//! again and again, and once of such that no two of them are the same.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;
use zt_agent::audit::AuditRecord;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Maintainer, Target as Place, Writer};
use zt_agent::audit::record::{Entry, Kept, Outcome, Protocol, Reason, Timestamp, party};
use zt_agent::audit::sqlite::{Durability, Settings, Store};
use zt_agent::audit::store::Sink as _;
use zt_tests::agent::binary;
use zt_tests::entries::Maker;
use zt_tests::postgres::Server;
use zt_tests::{Policy, TCP};

use crate::Plan;
use crate::report::{Metric, Target};
use crate::samples::Summary;

/// Milliseconds that it may take, whatever the store.
const REPLAY: f64 = 5000.0;
/// Workloads that each workload calls.
const PEERS: u64 = 50;
/// Ports of each of these that it calls.
const PORTS: [u16; 4] = [443, 5432, 6379, 8080];
/// Different connections of a cluster whose hundred workloads each call fifty others.
const USUAL: u64 = 20_000;
/// Records of a batch, as the recorder and the shipper have them.
const BATCH: u64 = 8192;
/// One in so many was denied, and one destination in so many is in no rule of the candidate.
const ODD: u64 = 100;
/// Rules of one policy of the candidate.
const RULES: u64 = 1000;
/// Addresses outside of the cluster that are called.
const ADDRESSES: u64 = 100_000;
const DAY: i64 = 86_400_000_000_000;

/// Connections.
struct Flows {
    maker: Maker,
    number: u64,
    /// How many of them are different.
    different: u64,
    /// Whether every other one is to an address outside of the cluster: those are read from the records themselves, and not from
    /// what is counted by the hour.
    outside: bool,
    /// What all records have in common.
    like: AuditRecord,
}

/// A connection: of whom, to whom, and whether it was denied.
struct Flow {
    from: u64,
    to: To,
    port: u16,
    denied: bool,
}

/// A workload, or an address outside of the cluster.
enum To {
    Workload(u64),
    Outside(IpAddr),
}

impl To {
    /// Whether the candidate allows it to be reached: all of the world, and nearly all workloads.
    const fn is_allowed(&self) -> bool {
        match self {
            Self::Workload(to) => !to.is_multiple_of(ODD),
            Self::Outside(_) => true,
        }
    }
}

/// What a candidate makes of them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    flows: u64,
    newly_denied: u64,
    newly_allowed: u64,
}

impl Flows {
    fn new(number: u64, different: u64, outside: bool) -> Result<Self> {
        let now = zt_agent::audit::clock::now();
        let start = now / DAY * DAY;
        let maker = Maker {
            start,
            step: ((now - start) / number.cast_signed()).max(1),
            parties: different / (PEERS * PORTS.len() as u64),
        };
        ensure!(
            maker.parties > PEERS,
            "{different} connections are of too few workloads"
        );
        let like = (0..1000).find_map(|number| match maker.entry(number) {
            Entry::Decision(record) if record.destination.spiffe_id.is_some() => Some(record),
            _ => None,
        });
        let mut like = like.context("most entries are decisions between workloads")?;
        like.protocol = Protocol(6);
        Ok(Self {
            maker,
            number,
            different,
            outside,
            like,
        })
    }

    /// They come in no order.
    fn flow(&self, number: u64) -> Flow {
        // A prime that is no factor of how many there are: each as often.
        let flow = number * 7919 % self.number % self.different;
        let ports = PORTS.len() as u64;
        let (from, place) = (flow / (PEERS * ports), flow % (PEERS * ports));
        let to = (from + 1 + place / ports) % self.maker.parties;
        let outside = self.outside && !to.is_multiple_of(2);
        // Of one workload there are fewer flows than addresses: each of them to another one.
        let address = Ipv4Addr::from_bits(0xcb00_0000 + (flow % ADDRESSES) as u32);
        Flow {
            from,
            to: if outside {
                To::Outside(address.into())
            } else {
                To::Workload(to)
            },
            port: PORTS[(place % ports) as usize],
            denied: flow % ODD == ODD - 1,
        }
    }

    fn record(&self, number: u64) -> AuditRecord {
        let Flow {
            from,
            to,
            port,
            denied,
        } = self.flow(number);
        let mut record = self.like.clone();
        record.id = self.maker.id(number);
        record.timestamp = Timestamp(self.maker.start + self.maker.step * number.cast_signed());
        let name = |number| party(Arc::from(self.maker.name(number)));
        (record.source.spiffe_id, record.source.entity) = name(from);
        let place = match to {
            To::Workload(to) => {
                (record.destination.spiffe_id, record.destination.entity) = name(to);
                to
            }
            To::Outside(address) => {
                (record.destination.spiffe_id, record.destination.entity) = party(Arc::from("world"));
                record.destination.address = Some(address);
                0
            }
        };
        record.destination.port = port;
        record.decision = if denied { Outcome::Deny } else { Outcome::Allow };
        record.policy_matched = (!denied).then(|| Arc::from(format!("policy-{}/rule-1", place % 8)));
        record.reason = Reason::from_name(if denied { "no_rule" } else { "rule" }).expect("a reason");
        record.count = 1;
        record
    }

    /// A directory of policies that allow everybody to reach every destination but some.
    fn candidate(&self) -> Result<TempDir> {
        let directory = tempfile::tempdir()?;
        let ports = PORTS.map(|port| port.to_string()).join(" ");
        let world = Policy::new("candidate-world").allow("*", "world", TCP, &ports);
        fs::write(directory.path().join("candidate-world.yaml"), world.text())?;
        for first in (0..self.maker.parties).step_by(RULES as usize) {
            let name = format!("candidate-{first}");
            let last = self.maker.parties.min(first + RULES);
            let policy = (first..last)
                .filter(|to| to % ODD != 0)
                .fold(Policy::new(&name), |policy, to| {
                    policy.allow("*", &self.maker.name(to), TCP, &ports)
                });
            fs::write(directory.path().join(format!("{name}.yaml")), policy.text())?;
        }
        Ok(directory)
    }

    /// What that must find. It knows all addresses outside of the cluster by one name, so that they are one.
    fn expected(&self) -> Expected {
        let mut expected = Expected::default();
        let (mut different, mut rows) = (HashSet::new(), HashSet::new());
        for number in 0..self.number {
            let Flow {
                from,
                to,
                port,
                denied,
            } = self.flow(number);
            let allowed = to.is_allowed();
            let workload = match to {
                To::Workload(to) => Some(to),
                To::Outside(_) => None,
            };
            expected.flows += u64::from(different.insert((from, workload, port)));
            if denied == allowed && rows.insert((from, workload, port, denied)) {
                expected.newly_denied += u64::from(!denied);
                expected.newly_allowed += u64::from(denied);
            }
        }
        expected
    }

    /// Batches of records.
    fn batches(&self) -> impl Iterator<Item = (u64, Vec<AuditRecord>)> {
        (0..self.number).step_by(BATCH as usize).map(move |first| {
            let last = self.number.min(first + BATCH);
            (first, (first..last).map(|number| self.record(number)).collect())
        })
    }
}

/// Of a file, and of a server; of connections that come again, and of such that never do, between workloads, and half of them out of
/// the cluster.
pub(crate) fn command(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let number = if plan.quick { 50_000 } else { 1_000_000 };
    for (different, outside) in [(USUAL, false), (number, false), (number, true)] {
        let flows = Flows::new(number, different, outside)?;
        let (candidate, expected) = (flows.candidate()?, flows.expected());
        let kind = match (different == number, outside) {
            (false, _) => "recorded again and again",
            (true, false) => "no two of them the same",
            (true, true) => "no two of them the same, half of them to addresses outside",
        };
        eprintln!("  SQLite: {} records, {kind}", flows.number);
        let (directory, dsn) = runtime.block_on(file(&flows))?;
        let ask = |store: &str, dsn: &str| measured(plan, (store, kind), dsn, candidate.path(), &expected);
        metrics.push(ask("SQLite", &dsn)?);
        drop(directory);
        eprintln!("  PostgreSQL: {} records, {kind}", flows.number);
        let server = runtime.block_on(server(&flows))?;
        metrics.push(ask("PostgreSQL", &server.dsn("engine"))?);
    }
    Ok(())
}

/// A file with these records; its DSN.
async fn file(flows: &Flows) -> Result<(TempDir, String)> {
    let directory = tempfile::tempdir_in("/var/tmp")?;
    let dsn = format!("sqlite://{}", directory.path().join("audit.db").display());
    let store = Store::open(Settings {
        dsn: dsn.clone(),
        max_disk_bytes: 1 << 40,
        retention_days: None,
        keys: Some(directory.path().join("keys")),
        sync: Durability::default(),
    })
    .await?;
    for (_, records) in flows.batches() {
        let entries: Vec<Entry> = records.into_iter().map(Entry::Decision).collect();
        store.append(&entries, None).await?;
    }
    store.seal().await?;
    store.close().await?;
    Ok((directory, dsn))
}

/// A server with these records.
async fn server(flows: &Flows) -> Result<Server> {
    let server = Server::start("")?;
    let mut keeper = Maintainer::open(&Place::parse(&server.dsn("keeper"))?).await?;
    keeper.keep(None).await?;
    keeper.close().await?;
    let mut writer = Writer::new(Place::parse(&server.dsn("node"))?);
    let mut head = Head::new(Uuid::from_u128(1));
    for (first, records) in flows.batches() {
        let kept = records.into_iter().map(|record| {
            let entry = Entry::Decision(record);
            let link = Some(head.link(&entry));
            Kept { entry, link }
        });
        let batch = Batch {
            writer: Uuid::from_u128(1),
            first_seq: first + 1,
            dropped: 0,
            records: kept.collect(),
        };
        ensure!(writer.ship(&batch).await?, "a batch was there before");
    }
    writer.close().await;
    // Autovacuum does it in its own time.
    server.sql("VACUUM ANALYZE").context("VACUUM ANALYZE")?;
    Ok(server)
}

/// Runs the command a few times. It must find what there is to find.
fn measured(
    plan: &Plan,
    (store, kind): (&str, &str),
    dsn: &str,
    candidate: &Path,
    expected: &Expected,
) -> Result<Metric> {
    let mut times = Vec::new();
    for _ in 0..plan.rounds(2, 5) {
        let mut command = Command::new(binary()?);
        command
            .args(["policy", "replay"])
            .arg(candidate)
            .args(["--store", dsn, "-o", "json"])
            .env_clear()
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        let begun = Instant::now();
        let output = command.output()?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(
            output.status.success(),
            "policy replay ended with {}",
            output.status
        );
        let answer: Value = serde_json::from_slice(&output.stdout).context("what policy replay printed")?;
        let number = |value: &Value| value.as_u64().context("policy replay counts");
        let found = Expected {
            flows: number(&answer["flows"])?,
            newly_denied: number(&answer["newly_denied"]["flows"])?,
            newly_allowed: number(&answer["newly_allowed"]["flows"])?,
        };
        ensure!(found == *expected, "{store}: {found:?} instead of {expected:?}");
    }
    let line = format!(
        "{store}: policy replay of {} different connections, {kind}",
        expected.flows
    );
    Ok(Metric::summed(line, "ms", Summary::of(&times)).target(Target::AtMost(REPLAY)))
}
