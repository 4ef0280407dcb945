// SPDX-License-Identifier: Apache-2.0
//! Whatever is changed in a trail is found, whichever column of whichever table it is in: in `PostgreSQL` and in a file,
//! of a trail whose keys were rotated and whose oldest entries were pruned.

use std::path::Path;

use serde_json::Value;
use sqlx::ConnectOptions as _;
use zt_agent::audit::record::{Entry, Timestamp};
use zt_agent::audit::seal::Keys;
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::Maker;

use super::cluster::{Cluster, clean, done, run};
use super::today;

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

/// What of the tables nobody is shown and nothing goes by: a statement is believed for its signature, whoever inserted it.
const SAYS_NOTHING: [&str; 3] = ["checkpoint.login", "gap.login", "signing_key.login"];
/// The same of a file: how far rows lie apart whose order stays as it was, and what a statement that makes shapes knows them
/// by while it runs.
const SAYS_NOTHING_IN_A_FILE: [&str; 3] = ["checkpoint.row", "signing_key.row", "shape.mark"];

/// Everything that was found.
fn findings(report: &Value) -> Vec<String> {
    let all = report["findings"].as_array().expect("findings");
    all.iter()
        .map(|one| one.as_str().expect("text").to_owned())
        .collect()
}

/// A cluster of one node, whose keys were rotated and whose first day was dropped; and the maintainer's keys.
async fn pruned() -> (Cluster, String) {
    let cluster = Cluster::of(&entries(0..ENTRIES / 2)).await;
    let node = &cluster.nodes[0];
    Keys::rotate(&node.keys()).expect("rotates");
    node.keep(&entries(ENTRIES / 2..ENTRIES), &cluster.server).await;
    Keys::rotate(&node.keys()).expect("rotates");
    let keys = cluster.maintainer.path().join("keys").display().to_string();
    let store = cluster.server.dsn("keeper");
    done(&[
        "audit", "prune", "--store", &store, "--keys", &keys, "--before", "3d",
    ]);
    (cluster, keys)
}

/// A value of that type, for where there is none.
fn some(kind: &str) -> &'static str {
    match kind {
        "bigint" | "integer" | "smallint" | "INTEGER" => "1",
        "inet" => "'10.1.2.3'",
        "text" | "TEXT" => "'x'",
        "boolean" => "true",
        "BLOB" => "x'0a010203'",
        other => panic!("of a type that was never empty before: {other}"),
    }
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

/// Whether the findings name what was changed in a table, and whose it is.
fn name(said: &[String], (table, column): (&str, &str), writer: &str) -> bool {
    let says = |words: &[&str]| {
        said.iter()
            .any(|finding| words.iter().any(|word| finding.contains(word)))
    };
    let named = match table {
        "record" | "shape" => says(&["entry ", "entries ", "inserted by"]),
        "checkpoint" => says(&["checkpoint of "]),
        "gap" => says(&["are not there", "missing"]),
        _ => says(&["key "]),
    };
    // A row of another writer names that one, and the one that lacks it; a shape is of no writer, and of one login.
    let of_whom = table == "signing_key" || (table, column) == ("checkpoint", "writer") || says(&[writer]);
    named && (of_whom || (table == "shape" && says(&["inserted by node"])))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_any_column_of_the_tables_is_found_and_named() {
    let (cluster, keys) = pruned().await;
    let believing = ["--maintainer", keys.as_str()];
    let untouched = cluster.verify(&believing);
    clean("untouched", &untouched);
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
            let (column, kind) = column.split_once(' ').expect("name and type");
            let count = |which: &str| {
                let rows = format!("SELECT count(*) FROM zt_audit.{table} WHERE {column} {which}");
                cluster.server.number(&rows).expect("count")
            };
            assert_ne!(count("IS NOT NULL"), 0, "{table}.{column} is empty");
            let mut changes = vec![("IS NOT NULL", another(column, kind))];
            if count("IS NULL") > 0 {
                changes.push(("IS NULL", some(kind).to_owned()));
            }
            for (which, value) in changes {
                // Of records a later one, of which the day is there.
                let change = format!(
                    "UPDATE zt_audit.{table} SET {column} = {value}
                     WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM zt_audit.{table}
                     WHERE {column} {which} ORDER BY 1 DESC, 2 DESC LIMIT 1)"
                );
                let (code, report) = cluster.after(&change, &believing);
                if SAYS_NOTHING.contains(&format!("{table}.{column}").as_str()) {
                    assert_eq!((code, &report), (untouched.0, &untouched.1), "{table}.{column}");
                    continue;
                }
                let said = findings(&report);
                if code != 1 || !name(&said, (table, column), &writer) {
                    wrong.push(format!("{table}.{column} {which}: {code} {said:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    clean("at the end", &cluster.verify(&believing));
    // What is left of it can be taken elsewhere.
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("trail.jsonl").display().to_string();
    let store = cluster.server.dsn("engine");
    done(&["audit", "export", "--store", &store, "--to", &file]);
    let trust = cluster.trust();
    let export = [
        "audit",
        "verify",
        &file,
        "-o",
        "json",
        "--trust",
        &trust,
        "--maintainer",
        &keys,
    ];
    let (code, report) = run(&export);
    clean("an export", &(code, report.clone()));
    assert_eq!(
        (&report["gaps"], &report["entries"]),
        (&untouched.1["gaps"], &untouched.1["entries"])
    );
    let csv = done(&["audit", "export", "--format", "csv", "--store", &store]);
    assert_eq!(Some(csv.lines().count() as u64 - 1), report["entries"].as_u64());
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
    let untouched = verify(&dsn);
    clean("untouched", &untouched);
    let exported = done(&["audit", "export", "--store", &dsn]);
    let (original, copy) = (
        directory.path().join("audit.db"),
        directory.path().join("copy.db"),
    );
    let copied = format!("sqlite://{}", copy.display());
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
            for (which, value) in [("IS NOT NULL", other.as_str()), ("IS NULL", some(kind))] {
                std::fs::copy(&original, &copy).expect("copies");
                let change = format!(
                    "UPDATE {table} SET {name} = {value} WHERE rowid = (SELECT max(rowid) FROM {table} WHERE {name} {which})
                     RETURNING 'changed'"
                );
                let changed = over(&copy, &change).await.len();
                if which == "IS NULL" && changed == 0 {
                    continue;
                }
                assert_eq!(changed, 1, "{table}.{name} is empty");
                let (code, report) = verify(&copied);
                if SAYS_NOTHING_IN_A_FILE.contains(&format!("{table}.{name}").as_str()) {
                    assert_eq!((code, &report), (untouched.0, &untouched.1), "{table}.{name}");
                    let now = done(&["audit", "export", "--store", &copied]);
                    assert_eq!(now, exported, "{table}.{name}");
                    continue;
                }
                let said = findings(&report);
                let named = said.iter().any(|finding| {
                    ["entry ", "entries ", "checkpoint", "key"]
                        .iter()
                        .any(|word| finding.contains(word))
                });
                if code != 1 || !named {
                    wrong.push(format!("{table}.{name} {which}: {code} {said:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
