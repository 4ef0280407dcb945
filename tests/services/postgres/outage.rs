// SPDX-License-Identifier: Apache-2.0
//! The server is away while a node records as fast as it can. `ZT_OUTAGE_RECORDS` says how many records are made; by
//! default as many as take some seconds.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use zt_agent::audit::export::verify;
use zt_agent::audit::postgres::Walk;
use zt_agent::audit::seal::Keys;
use zt_agent::audit::verify::Verifier;
use zt_tests::postgres::Server;

use super::{target, today, with_tables};

/// What the process may take of memory, whatever it keeps on disk.
const MOST_MEMORY: u64 = 256 << 20;

fn records() -> u64 {
    let given = std::env::var("ZT_OUTAGE_RECORDS").ok();
    given.map_or(100_000, |count| count.parse().expect("a number of records"))
}

/// A node that records and ships, as a process of its own.
struct Node {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    directory: TempDir,
}

impl Node {
    fn start(server: &Server, count: u64, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_zt-spooler"));
        command
            .arg(server.dsn("node"))
            .arg(directory.path().join("spool.db"))
            .args([count.to_string(), today().to_string()])
            .args(["--batch", "4096"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Self {
            child,
            lines,
            directory,
        }
    }

    /// The next line that it prints.
    fn says(&mut self, what: &str) -> Value {
        let Some(line) = self.lines.next() else {
            panic!("it ended before `{what}`: {:?}", self.child.wait());
        };
        let line = line.expect("reads");
        let said: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(said["what"], what);
        eprintln!("{said}");
        said
    }

    /// It ends by itself; what it left is checked.
    async fn ends(mut self, server: &Server, count: u64, lost: u64) {
        assert!(self.child.wait().expect("ends").success());
        let number = |sql: &str| server.number(sql).expect("a number");
        assert_eq!(number("SELECT count(*) FROM zt_audit.record"), count - lost);
        assert_eq!(
            number("SELECT count(DISTINCT seq) FROM zt_audit.record"),
            count - lost
        );
        let keys = Keys::list(&self.directory.path().join("keys"))
            .expect("reads")
            .expect("keys");
        let verifier = Verifier::new(vec![keys[0].key.clone()]);
        let mut walk = Walk::begin(&target(server, "engine")).await.expect("a walk");
        let verifier = verify(&mut walk, verifier, &[], &mut |_| ()).await;
        let report = verifier.expect("reads").finish();
        assert_eq!(
            (&report.findings[..], report.entries, report.lost()),
            (&[][..], count - lost, lost)
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail where it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_at_full_speed() {
    let (server, count) = (with_tables().await, records());
    server.crash().expect("down");
    // Some more come while these are shipped.
    let (limit, more) = ((count * 180).to_string(), count / 5);
    let mut node = Node::start(
        &server,
        count,
        &["--max-bytes", &limit, "--more", &more.to_string()],
    );
    let made = node.says("made");
    assert_eq!(
        (&made["waiting"], &made["shipped"]),
        (&count.into(), &0.into()),
        "{made}"
    );
    // 120 bytes a record is what the documentation says.
    let bytes = made["bytes"].as_u64().expect("bytes") / count;
    assert!(bytes <= 120, "{bytes} bytes a record");
    assert!(made["lag_seconds"].as_f64() > Some(0.0), "{made}");
    server.up().expect("up");
    let shipped = node.says("shipped");
    // Whoever looked while the server was away saw that records wait, and how long.
    assert!(shipped["looks"].as_u64() > Some(0), "{shipped}");
    assert_eq!(shipped["silent"], 0, "{shipped}");
    assert_eq!(
        (&shipped["waiting"], &shipped["shipped"]),
        (&0.into(), &(count + more).into()),
        "{shipped}"
    );
    assert_eq!(shipped["lag_seconds"], 0.0, "{shipped}");
    assert!(
        shipped["bytes"].as_u64() < Some(4 << 20),
        "the spool does not get empty: {shipped}"
    );
    assert!(shipped["memory"].as_u64() < Some(MOST_MEMORY), "{shipped}");
    node.ends(&server, count + more, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_spool_gives_up_at_full_speed_is_counted_to_the_last() {
    for (policy, cause) in [(&[][..], "spool_oldest"), (&["--newest"][..], "spool_newest")] {
        let (server, count) = (with_tables().await, records());
        server.crash().expect("down");
        // Room for a third.
        let limit = count * 40;
        let text = limit.to_string();
        let mut node = Node::start(&server, count, &[&["--max-bytes", &text], policy].concat());
        let made = node.says("made");
        let lost = made["losses"][cause].as_u64().expect("a number");
        assert!(lost > count / 4 && lost < count, "{made}");
        assert!(made["peak_bytes"].as_u64() <= Some(limit), "{made}");
        server.up().expect("up");
        let shipped = node.says("shipped");
        assert_eq!(shipped["shipped"], count - lost, "{shipped}");
        assert_eq!(shipped["silent"], 0, "{shipped}");
        assert!(shipped["memory"].as_u64() < Some(MOST_MEMORY), "{shipped}");
        node.ends(&server, count, lost).await;
    }
}
