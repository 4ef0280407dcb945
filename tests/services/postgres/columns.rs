// SPDX-License-Identifier: Apache-2.0
//! Whatever is changed in a trail is found, whichever column of whichever table it is in: in `PostgreSQL` and in a file,
//! of a trail whose keys were rotated and whose oldest entries were pruned.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sqlx::ConnectOptions as _;
use zt_agent::audit::record::{Entry, Timestamp};
use zt_agent::audit::seal::Keys;
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::Maker;

use super::cluster::{Cluster, Node, clean, run};
use super::{today, with_tables};

const DAY: i64 = 86_400_000_000_000;
/// Entries of a trail: over four days, the first of which is pruned.
const ENTRIES: u64 = 120;

fn maker() -> Maker {
    Maker {
        start: today() - 4 * DAY,
        step: 4 * DAY / ENTRIES as i64,
        parties: 20,
    }
}

fn entries(numbers: std::ops::Range<u64>) -> Vec<Entry> {
    let maker = maker();
    numbers.map(|number| maker.full(number)).collect()
}

fn zt_agent(arguments: &[&str]) -> String {
    let mut command = Command::new(zt_tests::agent::binary().expect("built"));
    let output = command.args(arguments).env_clear().output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// What of the tables says nothing of an entry or a statement, or says the same in other spacing: statements are believed for
/// their signatures, whoever inserted them.
const SAYS_NOTHING: [&str; 8] = [
    "record.detail",
    "shape.part",
    "checkpoint.text",
    "checkpoint.login",
    "gap.text",
    "gap.login",
    "signing_key.text",
    "signing_key.login",
];
/// The same of a file, where the last entry is a change, which has no latency and enforces nothing.
const SAYS_NOTHING_IN_A_FILE: [&str; 9] = [
    "record.latency",
    "record.change",
    "shape.enforced",
    "shape.mark",
    "checkpoint.row",
    "checkpoint.pruned",
    "checkpoint.text",
    "signing_key.row",
    "signing_key.text",
];

/// Everything that was found.
fn findings(report: &Value) -> Vec<String> {
    let all = report["findings"].as_array().expect("findings");
    all.iter()
        .map(|one| one.as_str().expect("text").to_owned())
        .collect()
}

/// A cluster of one node, whose keys were rotated and whose first day was dropped; and the maintainer's keys.
async fn pruned() -> (Cluster, String) {
    let server = with_tables().await;
    let node = Node::new(0, maker().start, maker().step).await;
    for half in [0..ENTRIES / 2, ENTRIES / 2..ENTRIES] {
        node.spool.append(&entries(half), None).await.expect("kept");
        node.spool.seal().await.expect("sealed");
        node.ship(&server).await;
        Keys::rotate(&node.keys()).expect("rotates");
    }
    let cluster = Cluster {
        server,
        nodes: vec![node],
        maintainer: tempfile::tempdir().expect("directory"),
    };
    let keys = cluster.maintainer.path().join("keys").display().to_string();
    let store = cluster.server.dsn("keeper");
    zt_agent(&[
        "audit", "prune", "--store", &store, "--keys", &keys, "--before", "3d",
    ]);
    (cluster, keys)
}

/// How a value of that type becomes another one of it.
fn another(column: &str, kind: &str) -> String {
    match kind {
        "bigint" | "integer" | "smallint" | "inet" => format!("{column} + 1"),
        "uuid" => "gen_random_uuid()".to_owned(),
        "bytea" => format!("set_byte({column}, 0, get_byte({column}, 0) # 1)"),
        "boolean" => format!("NOT {column}"),
        // What is JSON stays JSON.
        "text" => format!(
            "CASE WHEN {column} LIKE '{{%' THEN replace({column}, '{{\"', '{{ \"') ELSE {column} || 'x' END"
        ),
        other => panic!("{column} is of a type that no table had before: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_any_column_of_the_tables_is_found_and_named() {
    let (cluster, keys) = pruned().await;
    let believing = ["--maintainer", keys.as_str()];
    clean("untouched", &cluster.verify(&believing));
    let writer = cluster.writer(0);
    // What keeps an honest login from it does not keep one who owns the tables.
    let unchecked = "SELECT string_agg(format('ALTER TABLE %s DROP CONSTRAINT %I;', conrelid::regclass, conname), '')
        FROM pg_constraint WHERE connamespace = 'zt_audit'::regnamespace AND contype = 'c' AND coninhcount = 0";
    let unchecked = cluster.server.sql(unchecked).expect("a list");
    cluster.server.sql(&unchecked).expect("dropped");
    let mut wrong = Vec::new();
    for table in ["record", "shape", "checkpoint", "gap", "signing_key"] {
        let columns = format!(
            "SELECT string_agg(column_name || ' ' || data_type, ',' ORDER BY ordinal_position) FROM information_schema.columns
             WHERE table_schema = 'zt_audit' AND table_name = '{table}' AND is_generated = 'NEVER'"
        );
        let columns = cluster.server.sql(&columns).expect("columns");
        for column in columns.split(',') {
            let (name, kind) = column.split_once(' ').expect("name and type");
            let filled = format!("SELECT count(*) FROM zt_audit.{table} WHERE {name} IS NOT NULL");
            assert_ne!(
                cluster.server.number(&filled).expect("count"),
                0,
                "{table}.{name} is empty"
            );
            // Of records a later one, of which the day is there.
            let change = format!(
                "UPDATE zt_audit.{table} SET {name} = {} WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM zt_audit.{table}
                 WHERE {name} IS NOT NULL ORDER BY 1 DESC, 2 DESC LIMIT 1)",
                another(name, kind)
            );
            let (code, report) = cluster.after(&change, &believing);
            let said = findings(&report);
            // What names the entry or the statement.
            let named = match table {
                "record" | "shape" => said.iter().any(|finding| {
                    finding.contains("entry ")
                        || finding.contains("entries ")
                        || finding.contains("inserted by")
                }),
                "checkpoint" => said.iter().any(|finding| finding.contains("checkpoint of ")),
                "gap" => said
                    .iter()
                    .any(|finding| finding.contains("are not there") || finding.contains("missing")),
                _ => said.iter().any(|finding| finding.contains("key ")),
            };
            // A row of another writer names that one, and the one that lacks it.
            let of_whom = table == "signing_key" || said.iter().any(|finding| finding.contains(&writer));
            let of_whom = of_whom || (table, name) == ("checkpoint", "writer");
            let says_nothing = SAYS_NOTHING.contains(&format!("{table}.{name}").as_str());
            if !says_nothing && (code != 1 || !named || !of_whom) {
                wrong.push(format!("{table}.{name}: {code} {said:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    clean("at the end", &cluster.verify(&believing));
}

/// A trail in a file, rotated and pruned.
async fn file() -> (tempfile::TempDir, String, String) {
    let directory = tempfile::tempdir().expect("directory");
    let dsn = format!("sqlite://{}", directory.path().join("audit.db").display());
    let keys = directory.path().join("keys");
    let settings = sqlite::Settings {
        dsn: dsn.clone(),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: Some(keys.clone()),
        sync: sqlite::Durability::default(),
    };
    let store = sqlite::Store::open(settings).await.expect("opens");
    for half in [0..ENTRIES / 2, ENTRIES / 2..ENTRIES] {
        store.append(&entries(half), None).await.expect("kept");
        store.seal().await.expect("sealed");
        Keys::rotate(&keys).expect("rotates");
    }
    let gone = store
        .prune_before(Timestamp(maker().start + DAY))
        .await
        .expect("pruned");
    assert!(gone > 0 && gone < ENTRIES, "{gone}");
    store.seal().await.expect("sealed");
    store.close().await.expect("closes");
    let keys = keys.display().to_string();
    (directory, dsn, keys)
}

/// Runs SQL over a file, as somebody who may write it; the rows of the first column.
async fn over(file: &Path, sql: &str) -> Vec<String> {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut connection = options.connect().await.expect("opens");
    let rows: Vec<(String,)> = sqlx::query_as(sqlx::AssertSqlSafe(sql.to_owned()))
        .fetch_all(&mut connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.into_iter().map(|row| row.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_any_column_of_a_file_is_found_and_named() {
    let (directory, dsn, keys) = file().await;
    let verify = |dsn: &str| run(&["audit", "verify", "-o", "json", "--store", dsn, "--keys", &keys]);
    clean("untouched", &verify(&dsn));
    let (original, copy) = (
        directory.path().join("audit.db"),
        directory.path().join("copy.db"),
    );
    let mut wrong = Vec::new();
    for table in ["record", "shape", "name", "checkpoint", "signing_key"] {
        let columns = over(
            &original,
            &format!("SELECT name || ' ' || type FROM pragma_table_info('{table}')"),
        )
        .await;
        assert!(!columns.is_empty(), "{table}");
        for column in columns {
            let (name, kind) = column.split_once(' ').expect("name and type");
            let other = match kind {
                "INTEGER" => format!("{name} + 1000000"),
                "BLOB" => format!("randomblob(length({name}))"),
                "TEXT" => format!(
                    "CASE WHEN {name} LIKE '{{%' THEN replace({name}, '{{\"', '{{ \"') ELSE {name} || 'x' END"
                ),
                other => panic!("{table}.{name} is of a type that no table had before: {other}"),
            };
            std::fs::copy(&original, &copy).expect("copies");
            let change = format!(
                "UPDATE {table} SET {name} = {other} WHERE rowid = (SELECT max(rowid) FROM {table} WHERE {name} IS NOT NULL)
                 RETURNING 'changed'"
            );
            assert_eq!(over(&copy, &change).await.len(), 1, "{table}.{name} is empty");
            let (code, report) = verify(&format!("sqlite://{}", copy.display()));
            let said = findings(&report);
            let named = said.iter().any(|finding| {
                ["entry ", "entries ", "checkpoint", "key"]
                    .iter()
                    .any(|word| finding.contains(word))
            });
            let says_nothing = SAYS_NOTHING_IN_A_FILE.contains(&format!("{table}.{name}").as_str());
            if !says_nothing && (code != 1 || !named) {
                wrong.push(format!("{table}.{name}: {code} {said:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
