// SPDX-License-Identifier: Apache-2.0
//! A cluster that writes one trail: nodes with keys of their own, a maintainer, and one who checks it with the real program.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zt_agent::audit::record::Entry;
use zt_agent::audit::seal::Keys;
use zt_agent::audit::spool::{Shipper, Spool, WhenFull};
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::Maker;
use zt_tests::postgres::Server;

use super::{put_back, target, today, with_tables};

const DEADLINE: Duration = Duration::from_secs(180);
const DAY: i64 = 86_400_000_000_000;

/// A node: a spool, and the keys that sign for it.
pub(super) struct Node {
    directory: TempDir,
    pub(super) spool: Arc<Spool>,
    pub(super) maker: Maker,
    made: u64,
}

impl Node {
    pub(super) async fn new(number: i64, start: i64, step: i64) -> Self {
        Self::with(number, start, step, 1 << 30, WhenFull::Oldest).await
    }

    pub(super) async fn with(
        number: i64,
        start: i64,
        step: i64,
        max_disk_bytes: u64,
        when_full: WhenFull,
    ) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let settings = sqlite::Settings {
            dsn: format!("sqlite://{}/spool.db", directory.path().display()),
            max_disk_bytes,
            retention_days: None,
            keys: Some(directory.path().join("keys")),
            sync: sqlite::Durability::default(),
        };
        Self {
            spool: Arc::new(Spool::open(settings, when_full).await.expect("a spool")),
            directory,
            // No two nodes make a record of the same name.
            maker: Maker {
                start: start + number,
                step,
                parties: 20,
            },
            made: 0,
        }
    }

    pub(super) fn keys(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    pub(super) fn spool(&self) -> String {
        self.directory.path().join("spool.db").display().to_string()
    }

    pub(super) fn root(&self) -> String {
        Keys::list(&self.keys()).expect("keys").expect("keys")[0]
            .key
            .clone()
    }

    /// Makes records, and signs where the chain stands. Returns how many there was no room for.
    pub(super) async fn write(&mut self, count: u64) -> u64 {
        let mut refused = 0;
        for first in (self.made..self.made + count).step_by(1000) {
            let end = (self.made + count).min(first + 1000);
            let entries: Vec<Entry> = (first..end).map(|number| self.maker.single(number)).collect();
            if self.spool.append(&entries, None).await.is_err() {
                refused += entries.len() as u64;
            }
            while self.spool.prune().await.expect("room").more {}
        }
        self.made += count;
        self.spool.seal().await.expect("sealed");
        refused
    }

    /// Keeps entries, signs where the chain stands, and ships all.
    pub(super) async fn keep(&self, entries: &[Entry], server: &Server) {
        self.spool.append(entries, None).await.expect("kept");
        self.spool.seal().await.expect("sealed");
        self.ship(server).await;
    }

    pub(super) async fn ship(&self, server: &Server) {
        let shipping = Shipping::begin(self, server);
        until("all to be shipped", async || {
            let head = self.spool.store().head().await.expect("head").seq;
            let noted = self.spool.store().shipping().await.expect("state");
            let told = self
                .spool
                .store()
                .checkpoints_after(noted.checkpoint, u64::MAX)
                .await
                .expect("checkpoints");
            let gaps = self.spool.store().stated_gaps(u64::MAX).await.expect("gaps");
            noted.shipped >= head && told.is_empty() && gaps.is_empty()
        })
        .await;
        shipping.end().await;
    }
}

pub(super) struct Shipping {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Shipping {
    pub(super) fn begin(node: &Node, server: &Server) -> Self {
        let (stop, stopping) = watch::channel(false);
        let shipper = Shipper::new(Arc::clone(&node.spool), target(server, "node"), stopping);
        Self {
            stop,
            task: tokio::spawn(shipper.run()),
        }
    }

    pub(super) async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.expect("no panic");
    }
}

pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < DEADLINE, "still waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A cluster of three nodes that have written 3000 records each, over the last six days, and a maintainer.
pub(super) struct Cluster {
    pub(super) server: Server,
    pub(super) nodes: Vec<Node>,
    pub(super) maintainer: TempDir,
}

impl Cluster {
    pub(super) async fn new() -> Self {
        let server = with_tables().await;
        let mut nodes = Vec::new();
        for number in 0..3 {
            nodes.push(Node::new(number, today() - 6 * DAY, 6 * DAY / 3000).await);
        }
        for node in &mut nodes {
            node.write(1500).await;
            node.ship(&server).await;
            Keys::rotate(&node.keys()).expect("rotates");
            node.write(1500).await;
            node.ship(&server).await;
        }
        Self {
            server,
            nodes,
            maintainer: tempfile::tempdir().expect("directory"),
        }
    }

    /// A cluster of one node, which has written and shipped this.
    pub(super) async fn of(entries: &[Entry]) -> Self {
        let server = with_tables().await;
        let node = Node::new(0, today(), 1).await;
        node.keep(entries, &server).await;
        Self {
            server,
            nodes: vec![node],
            maintainer: tempfile::tempdir().expect("directory"),
        }
    }

    pub(super) fn trust(&self) -> String {
        self.nodes.iter().map(Node::root).collect::<Vec<_>>().join(",")
    }

    /// `zt-agent audit verify` over the server: its exit code and its report.
    pub(super) fn verify(&self, arguments: &[&str]) -> (i32, Value) {
        let (trust, store) = (self.trust(), self.server.dsn("engine"));
        let all = [
            &[
                "audit", "verify", "-o", "json", "--store", &store, "--trust", &trust,
            ],
            arguments,
        ]
        .concat();
        run(&all)
    }

    /// Each of these is found in a copy of the tables, by a finding that says `named`.
    pub(super) fn finds(&self, change: &str, named: &str) {
        let (code, report) = self.after(change, &[]);
        assert_eq!(code, 1, "not found: {change}");
        let findings = report["findings"].as_array().expect("findings");
        assert!(
            findings
                .iter()
                .any(|finding| finding.as_str().expect("text").contains(named)),
            "{change}: no finding says `{named}`: {findings:?}"
        );
    }

    /// What is said of the tables when that has been done to them; they are as before then.
    pub(super) fn after(&self, change: &str, arguments: &[&str]) -> (i32, Value) {
        // Counts last: records that are put back are counted again.
        let tables = [
            "shape",
            "facet",
            "record",
            "checkpoint",
            "signing_key",
            "gap",
            "bucket",
            "bucket_day",
            "whole_day",
        ];
        let each =
            |sql: &dyn Fn(&str) -> String| -> String { tables.iter().map(|table| sql(table)).collect() };
        self.server
            .sql(&each(&|table| {
                format!("CREATE TABLE public.{table} AS TABLE zt_audit.{table};")
            }))
            .expect("copies");
        self.server.sql(change).expect(change);
        let said = self.verify(arguments);
        self.server
            .sql(&each(&|table| {
                let (kept, copy) = (format!("zt_audit.{table}"), format!("public.{table}"));
                format!("TRUNCATE {kept}; {} DROP TABLE {copy};", put_back(&kept, &copy))
            }))
            .expect("as before");
        said
    }

    pub(super) fn writer(&self, number: usize) -> String {
        let sql = "SELECT DISTINCT writer FROM zt_audit.checkpoint WHERE text LIKE '%' || $$KEY$$ || '%'";
        let key = Keys::list(&self.nodes[number].keys())
            .expect("keys")
            .expect("keys")[0]
            .key
            .clone();
        self.server.sql(&sql.replace("KEY", &key)).expect("a writer")
    }
}

/// Runs the real program to its good end; what it prints.
pub(super) fn done(arguments: &[&str]) -> String {
    let mut command = Command::new(zt_tests::agent::binary().expect("built"));
    let output = command.args(arguments).env_clear().output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

pub(super) fn run(arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(zt_tests::agent::binary().expect("built"));
    let output = command.args(arguments).env_clear().output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&said).unwrap_or_else(|error| {
        panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.code().expect("not killed"), report)
}

pub(super) fn clean(what: &str, (code, report): &(i32, Value)) {
    assert_eq!(
        (*code, &report["clean"]),
        (0, &Value::Bool(true)),
        "{what}: {report:#}"
    );
}
