// SPDX-License-Identifier: Apache-2.0
//! The trail of a cluster, as one who audits it checks it: three writers with keys of their own, one maintainer, and
//! everybody who could do something to the tables.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zt_agent::audit::record::{Entry, Timestamp};
use zt_agent::audit::seal::{Cause, Checkpoint, Gap, Keys};
use zt_agent::audit::spool::{Shipper, Spool, WhenFull};
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::Maker;
use zt_tests::postgres::Server;

use super::{target, today, with_tables};

const DEADLINE: Duration = Duration::from_secs(180);
const DAY: i64 = 86_400_000_000_000;

/// A node: a spool, and the keys that sign for it.
struct Node {
    directory: TempDir,
    spool: Arc<Spool>,
    maker: Maker,
    made: u64,
}

impl Node {
    async fn new(number: i64, start: i64, step: i64) -> Self {
        Self::with(number, start, step, 1 << 30, WhenFull::Oldest).await
    }

    async fn with(number: i64, start: i64, step: i64, max_disk_bytes: u64, when_full: WhenFull) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let settings = sqlite::Settings {
            dsn: format!("sqlite://{}/spool.db", directory.path().display()),
            max_disk_bytes,
            retention_days: None,
            keys: Some(directory.path().join("keys")),
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

    fn keys(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    fn spool(&self) -> String {
        self.directory.path().join("spool.db").display().to_string()
    }

    fn root(&self) -> String {
        Keys::list(&self.keys()).expect("keys").expect("keys")[0]
            .key
            .clone()
    }

    /// Makes records, and signs where the chain stands. Returns how many there was no room for.
    async fn write(&mut self, count: u64) -> u64 {
        let mut refused = 0;
        for first in (self.made..self.made + count).step_by(1000) {
            let end = (self.made + count).min(first + 1000);
            let entries: Vec<Entry> = (first..end).map(|number| self.maker.entry(number)).collect();
            if self.spool.append(&entries, None).await.is_err() {
                refused += entries.len() as u64;
            }
            while self.spool.prune().await.expect("room").more {}
        }
        self.made += count;
        self.spool.seal().await.expect("sealed");
        refused
    }

    async fn ship(&self, server: &Server) {
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

struct Shipping {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Shipping {
    fn begin(node: &Node, server: &Server) -> Self {
        let (stop, stopping) = watch::channel(false);
        let shipper = Shipper::new(Arc::clone(&node.spool), target(server, "node"), stopping);
        Self {
            stop,
            task: tokio::spawn(shipper.run()),
        }
    }

    async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.expect("no panic");
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < DEADLINE, "still waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A cluster of three nodes that have written 3000 records each, over the last six days, and a maintainer.
struct Cluster {
    server: Server,
    nodes: Vec<Node>,
    maintainer: TempDir,
}

impl Cluster {
    async fn new() -> Self {
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

    fn trust(&self) -> String {
        self.nodes.iter().map(Node::root).collect::<Vec<_>>().join(",")
    }

    /// `zt-agent audit verify` over the server: its exit code and its report.
    fn verify(&self, arguments: &[&str]) -> (i32, Value) {
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
    fn finds(&self, change: &str, named: &str) {
        let tables = ["record", "shape", "checkpoint", "signing_key", "gap"];
        let each =
            |sql: &dyn Fn(&str) -> String| -> String { tables.iter().map(|table| sql(table)).collect() };
        self.server
            .sql(&each(&|table| {
                format!("CREATE TABLE public.{table} AS TABLE zt_audit.{table};")
            }))
            .expect("copies");
        self.server.sql(change).expect(change);
        let (code, report) = self.verify(&[]);
        // Columns that are generated cannot be put back by name of all.
        self.server
            .sql(&each(&|table| {
                format!(
                    "TRUNCATE zt_audit.{table};
                     DO $$ DECLARE names text; BEGIN
                         SELECT string_agg(quote_ident(attname), ',') INTO names FROM pg_attribute
                         WHERE attrelid = 'zt_audit.{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
                         EXECUTE format('INSERT INTO zt_audit.{table} (%s) SELECT %s FROM public.{table}', names, names);
                     END $$;
                     DROP TABLE public.{table};"
                )
            }))
            .expect("as before");
        assert_eq!(code, 1, "not found: {change}");
        let findings = report["findings"].as_array().expect("findings");
        assert!(
            findings
                .iter()
                .any(|finding| finding.as_str().expect("text").contains(named)),
            "{change}: no finding says `{named}`: {findings:?}"
        );
    }

    fn writer(&self, number: usize) -> String {
        let sql = "SELECT DISTINCT writer FROM zt_audit.checkpoint WHERE text LIKE '%' || $$KEY$$ || '%'";
        let key = Keys::list(&self.nodes[number].keys())
            .expect("keys")
            .expect("keys")[0]
            .key
            .clone();
        self.server.sql(&sql.replace("KEY", &key)).expect("a writer")
    }
}

fn run(arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(zt_tests::agent::binary().expect("built"));
    let output = command.args(arguments).env_clear().output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&said).unwrap_or_else(|error| {
        panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.code().expect("not killed"), report)
}

fn clean(what: &str, (code, report): &(i32, Value)) {
    assert_eq!(
        (*code, &report["clean"]),
        (0, &Value::Bool(true)),
        "{what}: {report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cluster_is_verified_by_one_command_and_each_tampering_is_named() {
    let cluster = Cluster::new().await;
    let whole = cluster.verify(&[]);
    clean("untouched", &whole);
    assert_eq!(
        (
            &whole.1["entries"],
            whole.1["writers"].as_array().expect("writers").len()
        ),
        (&9000.into(), 3)
    );
    let writers: Vec<String> = (0..3).map(|number| cluster.writer(number)).collect();
    let of = |number: usize, sql: &str| sql.replace("{w}", &format!("writer = '{}'", writers[number]));
    let name = |number: usize, what: &str| what.replace("{w}", &writers[number]);
    for (number, (change, named)) in [
        ("UPDATE zt_audit.record SET revision = revision + 1 WHERE seq = 1500 AND {w}", "entry 1500 of {w}"),
        ("UPDATE zt_audit.record SET comm = 'init' WHERE seq = 1500 AND {w}", "entry 1500 of {w}"),
        ("DELETE FROM zt_audit.record WHERE seq = 1500 AND {w}", "entries 1500 to 1500 of {w} are missing"),
        ("DELETE FROM zt_audit.record WHERE seq > 2900 AND {w}", "entries 2901 to 3000 of {w} are missing"),
        ("DELETE FROM zt_audit.record WHERE seq < 100 AND {w}", "entries 1 to 99 of {w} are missing"),
        ("UPDATE zt_audit.record SET seq = 3001 - seq WHERE seq IN (1500, 1501) AND {w}", "entry 1500 of {w}"),
        // Inserted: behind all, and in the place of another.
        (
            "INSERT INTO zt_audit.record SELECT (r).* FROM (SELECT jsonb_populate_record(r, jsonb_build_object('id',
                gen_random_uuid())) AS r FROM zt_audit.record r WHERE seq = 1500 AND {w}) x",
            "entry 1500 of {w}",
        ),
        ("DELETE FROM zt_audit.shape WHERE id = (SELECT shape FROM zt_audit.record WHERE seq = 1500 AND {w})", "entry 1500 of {w} cannot be read"),
        // What is signed.
        ("DELETE FROM zt_audit.checkpoint WHERE {w}", "{w} has no checkpoint"),
        ("UPDATE zt_audit.checkpoint SET text = 'nonsense' WHERE seq = 1500 AND {w}", "the checkpoint of {w} at entry 1500 cannot be read"),
        (
            "UPDATE zt_audit.checkpoint SET text = replace(text, '\"seq\":1500', '\"seq\":1400'), seq = 1400
             WHERE seq = 1500 AND {w}",
            "the checkpoint of {w} at entry 1400 has no signature",
        ),
        // Another node's checkpoint, told again as this one's.
        (
            "INSERT INTO zt_audit.checkpoint (writer, seq, time, text)
             SELECT (SELECT writer FROM zt_audit.record WHERE {w} LIMIT 1), seq, time, text FROM zt_audit.checkpoint
             WHERE NOT {w} AND seq = 1500 LIMIT 1",
            "the checkpoint of {w} at entry 1500 cannot be read: it is not the one that its row says",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let number = number % 3;
        cluster.finds(&of(number, change), &name(number, named));
    }
    clean("at the end", &cluster.verify(&[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_with_a_key_of_its_own_proves_nothing() {
    let cluster = Cluster::new().await;
    let (stranger, first) = (tempfile::tempdir().expect("directory"), &cluster.nodes[0]);
    let stranger = Keys::open(stranger.path()).expect("makes one");
    let victim: uuid::Uuid = cluster.writer(1).parse().expect("an id");
    let mut head = cluster.nodes[1].spool.store().head().await.expect("head");
    head.hash.0[0] ^= 1;
    let insert = |checkpoint: &Checkpoint| {
        let text = serde_json::to_string(checkpoint).expect("writes");
        let (seq, time) = (checkpoint.seq, checkpoint.time.0);
        format!(
            "INSERT INTO zt_audit.checkpoint (writer, seq, time, text) VALUES ('{victim}', {seq}, {time}, '{text}')"
        )
    };
    let start = (0, zt_agent::audit::chain::START);
    let forged = Checkpoint::sign(head, Timestamp(today()), start, &stranger);
    cluster.finds(
        &insert(&forged),
        &format!("the checkpoint of {victim} at entry 3000 has no signature"),
    );
    // Another node's key is trusted, and not for this writer.
    let others = Keys::open(&first.keys()).expect("opens");
    let rival = Checkpoint::sign(head, Timestamp(today()), start, &others);
    cluster.finds(
        &insert(&rival),
        &format!("entry 3000 is signed by {}, which is trusted, but", first.root()),
    );
    let gap = Gap::sign(victim, (10, 20), (None, head.hash), Cause::Pruned, &others);
    let text = serde_json::to_string(&gap).expect("writes");
    let pruned = format!(
        "INSERT INTO zt_audit.gap (writer, first, last, text) VALUES ('{victim}', 10, 20, '{text}');
         DELETE FROM zt_audit.record WHERE writer = '{victim}' AND seq BETWEEN 10 AND 20"
    );
    cluster.finds(
        &pruned,
        &format!(
            "{} states that entries 10 to 20 of {victim} are not there",
            first.root()
        ),
    );
    cluster.finds(&pruned, &format!("entries 10 to 20 of {victim} are missing"));
    // A login that may write cannot say that it is another one.
    let said = cluster
        .server
        .refusal(
            "node",
            "zt_audit_writer",
            "INSERT INTO zt_audit.gap (writer, first, last, text, login) VALUES (gen_random_uuid(), 1, 1, '', 'keeper')",
        )
        .expect("refused");
    assert!(said.contains("permission denied"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_maintainer_drops_is_pruned_and_signed_and_no_more_than_that() {
    let cluster = Cluster::new().await;
    let keys = cluster.maintainer.path().join("keys").display().to_string();
    let prune = |days: &str| {
        let store = cluster.server.dsn("keeper");
        let arguments = [
            "audit", "prune", "--store", &store, "--keys", &keys, "--before", days,
        ];
        let output = Command::new(zt_tests::agent::binary().expect("built"))
            .args(arguments)
            .env_clear()
            .output()
            .expect("runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    // Twice, so that the second adds to what the first has stated; and strays, which have no partition of their own.
    assert!(prune("4d").contains("--maintainer"));
    prune("2d");
    let left = cluster
        .server
        .number("SELECT count(*) FROM zt_audit.record")
        .expect("count");
    assert!(left > 0 && left < 6000, "{left}");
    let statements = cluster
        .server
        .number("SELECT count(*) FROM zt_audit.gap")
        .expect("count");
    assert_eq!(statements, 3, "one a writer");
    let report = cluster.verify(&["--maintainer", &keys]);
    clean("pruned", &report);
    let report = &report.1;
    assert_eq!(report["entries"], left);
    let root = Keys::list(keys.as_ref()).expect("keys").expect("keys")[0]
        .key
        .clone();
    let mut pruned = 0;
    for gap in report["gaps"].as_array().expect("gaps") {
        assert_eq!(
            (&gap["cause"], &gap["first"]),
            (&"pruned".into(), &1.into()),
            "{gap}"
        );
        assert_eq!(gap["signed_by"], Value::from(root.clone()), "{gap}");
        pruned += gap["last"].as_u64().expect("a number");
    }
    assert_eq!(pruned, 9000 - left);
    // Nobody has to be believed who is not named.
    let (code, report) = cluster.verify(&[]);
    assert_eq!(code, 1, "{report:#}");
    // More is gone than was signed.
    cluster
        .server
        .sql("DELETE FROM zt_audit.record r USING (SELECT writer, min(seq) AS seq FROM zt_audit.record GROUP BY writer) f
              WHERE (r.writer, r.seq) = (f.writer, f.seq)")
        .expect("deletes");
    let (code, report) = cluster.verify(&["--maintainer", &keys]);
    assert_eq!(
        (code, report["finding_count"].as_u64()),
        (1, Some(3)),
        "{report:#}"
    );
    for finding in report["findings"].as_array().expect("findings") {
        assert!(
            finding.as_str().expect("text").ends_with("are missing"),
            "{finding}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_writer_gave_up_is_counted_with_its_cause_and_decisions_are_records_and_losses() {
    const COUNT: u64 = 150_000;
    let server = with_tables().await;
    let (mut oldest, mut newest, mut refused) = (
        Node::with(0, today(), 1_000_000, 16 << 20, WhenFull::Oldest).await,
        Node::with(1, today(), 1_000_000, 16 << 20, WhenFull::Newest).await,
        Node::new(2, today(), 1_000_000).await,
    );
    server.crash().expect("down");
    // Both try in vain meanwhile: one batch of each is under way.
    let shipping = [
        Shipping::begin(&oldest, &server),
        Shipping::begin(&newest, &server),
    ];
    assert_eq!(oldest.write(COUNT).await, 0);
    let no_room = newest.write(COUNT).await;
    assert!(no_room > 0 && no_room < COUNT, "{no_room}");
    let dropped = oldest.spool.account().losses()[0].1;
    assert!(dropped > 0 && dropped < COUNT, "{dropped}");
    let mut entries: Vec<Entry> = (0..1000).map(|number| refused.maker.entry(number)).collect();
    for number in [300, 301, 999] {
        let Entry::Decision(record) = &mut entries[number] else {
            panic!("a decision")
        };
        record.source.comm = Some("a\0b".into());
    }
    refused.spool.append(&entries, None).await.expect("stored");
    refused.write(0).await;
    server.up().expect("up");
    for shipping in shipping {
        shipping.end().await;
    }
    for node in [&oldest, &newest, &refused] {
        node.ship(&server).await;
    }
    let trust = [&oldest, &newest, &refused].map(Node::root).join(",");
    let store = server.dsn("engine");
    let verify = || {
        run(&[
            "audit", "verify", "-o", "json", "--store", &store, "--trust", &trust,
        ])
    };
    let whole = verify();
    clean("losses are no tampering", &whole);
    let report = whole.1;
    let losses = serde_json::json!({ "spool_oldest": dropped, "spool_newest": no_room, "server_refused": 3 });
    assert_eq!(report["losses"], losses, "{report:#}");
    assert_eq!(report["entries"], 2 * COUNT + 1000 - dropped - no_room - 3);
    for writer in report["writers"].as_array().expect("writers") {
        let number = |field: &str| writer[field].as_u64().expect("a number");
        let decisions = number("records") + number("lost");
        assert!([COUNT, 1000].contains(&decisions), "{writer}");
        assert_eq!((number("sealed"), number("missing")), (decisions, 0), "{writer}");
    }
    // Without the statement it is missing, and whose it is shows.
    server
        .sql("DELETE FROM zt_audit.gap WHERE text LIKE '%server_refused%'")
        .expect("deletes");
    let (code, report) = verify();
    assert_eq!(
        (code, report["finding_count"].as_u64()),
        (1, Some(2)),
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_records_wait_what_has_arrived_is_signed_and_never_more() {
    let server = with_tables().await;
    let mut node = Node::new(0, today(), 1_000_000).await;
    let (trust, store) = (node.root(), server.dsn("engine"));
    let verify = || {
        run(&[
            "audit", "verify", "-o", "json", "--store", &store, "--trust", &trust,
        ])
    };
    // The spool is never empty: from some batch on the server has no room.
    server
        .sql(
            "CREATE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.first_seq > 12000 THEN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER full_now BEFORE INSERT ON zt_audit.batch FOR EACH ROW EXECUTE FUNCTION public.full()",
        )
        .expect("a full server");
    node.write(10_000).await;
    node.write(10_000).await;
    let shipping = Shipping::begin(&node, &server);
    let signed = || {
        server
            .number("SELECT coalesce(max(seq), 0) FROM zt_audit.checkpoint")
            .expect("count")
    };
    until("a checkpoint", async || signed() > 0).await;
    until("a full server", async || {
        node.spool
            .account()
            .failures()
            .any(|(cause, count)| cause == "full" && count > 2)
    })
    .await;
    assert_eq!(signed(), 10_000);
    let arrived = server
        .number("SELECT count(*) FROM zt_audit.record")
        .expect("count");
    assert!((10_000..20_000).contains(&arrived), "{arrived}");
    let report = verify();
    clean("while records wait", &report);
    assert_eq!(report.1["writers"][0]["behind"], arrived - 10_000);
    server
        .sql("DROP TRIGGER full_now ON zt_audit.batch")
        .expect("room");
    until("the rest", async || signed() == 20_000).await;
    shipping.end().await;
    clean("all", &verify());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_was_cut_off_on_the_server_shows_where_the_spool_is() {
    let mut cluster = Cluster::new().await;
    // The rest waits: nobody may miss it.
    cluster.nodes[0].write(500).await;
    let node = &cluster.nodes[0];
    let (keys, spool) = (node.keys().display().to_string(), node.spool());
    let here = ["--keys", &keys, "--spool", &spool];
    clean("waiting", &cluster.verify(&here));
    let writer = cluster.writer(0);
    let cut = format!(
        "DELETE FROM zt_audit.record WHERE writer = '{writer}' AND seq > 2500;
         DELETE FROM zt_audit.checkpoint WHERE writer = '{writer}' AND seq > 2500"
    );
    cluster.server.sql(&cut).expect("cuts");
    // What is on the server fits together; who has the spool knows better.
    let (code, report) = cluster.verify(&here);
    assert_eq!(code, 1, "{report:#}");
    let findings = report["findings"].to_string();
    assert!(
        findings.contains(&format!(
            "the checkpoint of {writer} at entry 3000 is not in the trail"
        )),
        "{findings}"
    );
    assert!(
        findings.contains(&format!("entries 2501 to 3000 of {writer} are missing")),
        "{findings}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_the_cluster_is_checked_without_the_server() {
    let cluster = Cluster::new().await;
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("trail.jsonl").display().to_string();
    let store = cluster.server.dsn("engine");
    let output = Command::new(zt_tests::agent::binary().expect("built"))
        .args(["audit", "export", "--store", &store, "--to", &file])
        .env_clear()
        .output()
        .expect("runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let trust = cluster.trust();
    let verify = || run(&["audit", "verify", &file, "-o", "json", "--trust", &trust]);
    clean("export", &verify());
    let text = std::fs::read_to_string(&file).expect("reads");
    let lines: Vec<&str> = text.lines().collect();
    let (at, writer) = (lines.len() / 2, cluster.writer(1));
    let entry: Value = serde_json::from_str(lines[at]).expect("JSON");
    assert_eq!(entry["writer"].as_str().map(str::len), Some(writer.len()));
    let mut without = lines.clone();
    without.remove(at);
    std::fs::write(&file, without.join("\n")).expect("writes");
    let (code, report) = verify();
    let seq = &entry["seq"];
    let named = format!(
        "entries {seq} to {seq} of {} are missing",
        entry["writer"].as_str().expect("text")
    );
    assert!(
        code == 1 && report["findings"].to_string().contains(&named),
        "{report:#}"
    );
}
