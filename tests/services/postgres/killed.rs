// SPDX-License-Identifier: Apache-2.0
//! Processes that are killed at any moment of what must not be half done: a change of keys, pruning of a file, the
//! maintainer's statement with what it drops, and the making of the tables. Nothing is lost that was not signed for, and
//! whoever does it again gets it done.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use zt_agent::audit::postgres::Maintainer;
use zt_agent::audit::record::{Entry, Timestamp};
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::Maker;
use zt_tests::moments::Moments;

use super::cluster::{Cluster, clean, run};
use super::{target, today};

const DAY: i64 = 86_400_000_000_000;
const ROUNDS: u64 = 12;
/// Entries of a trail, over twenty days.
const ENTRIES: u64 = 400;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(zt_tests::agent::binary().expect("built"));
    command.args(arguments).env_clear();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Runs it to its end; how long that took.
fn whole(arguments: &[&str]) -> Duration {
    let start = Instant::now();
    assert!(
        command(arguments).status().expect("runs").success(),
        "{arguments:?}"
    );
    start.elapsed()
}

/// Kills it at a moment of the time that it takes, if it is not done by then. Whether it was killed.
fn killed(arguments: &[&str], moment: Duration) -> bool {
    let mut child = command(arguments).spawn().expect("starts");
    thread::sleep(moment);
    let _ = child.kill();
    !child.wait().expect("ends").success()
}

fn maker() -> Maker {
    Maker {
        start: today() - 20 * DAY,
        step: 20 * DAY / ENTRIES as i64,
        parties: 10,
    }
}

fn entries() -> Vec<Entry> {
    (0..ENTRIES).map(|number| maker().full(number)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_whole_whenever_pruning_and_a_change_of_keys_are_killed() {
    let mut moments = Moments::new();
    let directory = tempfile::tempdir().expect("directory");
    let dsn = format!("sqlite://{}", directory.path().join("audit.db").display());
    let keys = directory.path().join("keys");
    let settings = || sqlite::Settings {
        dsn: dsn.clone(),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: Some(keys.clone()),
        sync: sqlite::Durability::default(),
    };
    let store = sqlite::Store::open(settings()).await.expect("opens");
    store.append(&entries(), None).await.expect("kept");
    store.seal().await.expect("sealed");
    store.close().await.expect("closes");
    let verify = || run(&["audit", "verify", "-o", "json", "--store", &dsn]);
    let rotate = ["audit", "rotate-key", "--store", dsn.as_str()];
    let takes = whole(&rotate);
    let before = |days: u64| Timestamp(maker().start + days as i64 * DAY).to_string();
    let mut takes = takes.max(whole(&[
        "audit",
        "prune",
        "--store",
        &dsn,
        "--before",
        &before(1),
    ]));
    let mut cut_short = 0;
    for round in 0..ROUNDS {
        cut_short += u64::from(killed(&rotate, moments.within(takes)));
        clean(&format!("rotation {round}"), &verify());
        let until = before(2 + round);
        let prune = ["audit", "prune", "--store", &dsn, "--before", &until];
        cut_short += u64::from(killed(&prune, moments.within(takes)));
        clean(&format!("pruning {round}"), &verify());
        // What was begun is done by who does it again, and the trail goes on under whatever key there is.
        takes = takes.min(whole(&prune));
        let store = sqlite::Store::open(settings()).await.expect("opens");
        store
            .append(&[maker().full(ENTRIES + round)], None)
            .await
            .expect("kept");
        store.seal().await.expect("sealed");
        store.close().await.expect("closes");
        clean(&format!("after {round}"), &verify());
    }
    assert!(cut_short > 0, "nothing was killed in time");
}

/// How many entries there are, and how many are stated to be gone.
fn accounted(cluster: &Cluster, report: &Value) -> u64 {
    let gaps = report["gaps"].as_array().expect("gaps");
    let gone: u64 = gaps
        .iter()
        .map(|gap| gap["last"].as_u64().expect("a number") + 1 - gap["first"].as_u64().expect("a number"))
        .sum();
    let there = cluster
        .server
        .number("SELECT count(*) FROM zt_audit.record")
        .expect("count");
    gone + there
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_maintainer_drops_is_signed_whenever_it_or_the_server_is_killed() {
    let mut moments = Moments::new();
    let cluster = Cluster::of(&entries()).await;
    let keys = cluster.maintainer.path().join("keys").display().to_string();
    let store = cluster.server.dsn("keeper");
    let days: Vec<String> = (0..20).rev().map(|day| format!("{day}d")).collect();
    let prune = |round: usize| {
        [
            "audit",
            "prune",
            "--store",
            &store,
            "--keys",
            &keys,
            "--before",
            &days[round],
        ]
    };
    // Makes the keys, so that they can be named.
    let mut takes = whole(&prune(0));
    let checked = |what: &str| {
        let report = cluster.verify(&["--maintainer", &keys]);
        clean(what, &report);
        assert_eq!(accounted(&cluster, &report.1), ENTRIES, "{what}: {:#}", report.1);
    };
    checked("at first");
    let mut cut_short = 0;
    for round in 1..=ROUNDS as usize {
        cut_short += u64::from(killed(&prune(round), moments.within(takes)));
        checked(&format!("killed {round}"));
        if round % 3 == 0 {
            // One process of the server dies as by the kernel's hand, and the server begins anew with all.
            let arguments = prune(round);
            let mut child = command(&arguments).spawn().expect("starts");
            thread::sleep(moments.within(takes));
            let pid = cluster
                .server
                .sql("SELECT coalesce(min(pid), 0) FROM pg_stat_activity WHERE usename = 'keeper'")
                .expect("a number");
            let pid: i32 = pid.parse().expect("a number");
            if pid != 0 && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                cut_short += 1;
            }
            child.wait().expect("ends");
            super::cluster::until("the server to be back", async || {
                cluster.server.sql("SELECT 1").is_ok()
            })
            .await;
            checked(&format!("crashed {round}"));
        }
        // The first may have taken longer, of a machine that had much else to do.
        takes = takes.min(whole(&prune(round)));
        checked(&format!("done {round}"));
    }
    assert!(cut_short > 0, "nothing was killed in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_by_the_next_one_whenever_their_making_is_killed() {
    let mut moments = Moments::new();
    let server = super::server();
    let keys = tempfile::tempdir().expect("directory");
    let keys = keys.path().join("keys").display().to_string();
    let store = server.dsn("keeper");
    let make = [
        "audit", "prune", "--store", &store, "--keys", &keys, "--before", "400d",
    ];
    let roles = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/postgres/roles.sql");
    let roles = std::fs::read_to_string(roles).expect("script");
    let takes = whole(&make);
    let wanted = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
        WHERE relnamespace = 'zt_audit'::regnamespace AND relkind IN ('r', 'p', 'v')";
    let whole_tables = server.sql(wanted).expect("a list");
    let mut cut_short = 0;
    for round in 0..ROUNDS {
        server.sql("DROP SCHEMA zt_audit CASCADE").expect("dropped");
        server.sql(&roles).expect("again");
        cut_short += u64::from(killed(&make, moments.within(takes)));
        let mut maintainer = Maintainer::open(&target(&server, "keeper"))
            .await
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        maintainer.keep(None).await.expect("kept");
        maintainer.close().await.expect("closed");
        assert_eq!(server.sql(wanted).expect("a list"), whole_tables, "round {round}");
    }
    assert!(cut_short > 0, "nothing was killed in time");
}
