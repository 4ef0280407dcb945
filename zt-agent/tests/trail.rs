// SPDX-License-Identifier: Apache-2.0
//! The commands that work on the trail itself.

mod trail {
    mod young;
}

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Runs the program in an environment without settings.
fn zt_agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zt-agent"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A trail with two entries, and its keys beside it.
fn trail() -> (tempfile::TempDir, String) {
    trail_of(2)
}

/// What is kept in a directory, in a file of that name; its DSN.
fn settings(directory: &Path, file: &str) -> (String, zt_agent::audit::sqlite::Settings) {
    use zt_agent::audit::sqlite::{Durability, Settings};
    let dsn = format!("sqlite://{}", directory.join(file).display());
    let settings = Settings {
        dsn: dsn.clone(),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: Some(directory.join("keys")),
        sync: Durability::default(),
    };
    (dsn, settings)
}

/// So many entries, one a second.
fn entries(count: i64) -> Vec<zt_agent::audit::record::Entry> {
    use zt_agent::audit::record::{Change, Entry, Timestamp};
    let entry = |number: i64| {
        Entry::ModeChange(Change::new(
            (
                uuid::Uuid::from_u128(number as u128),
                Timestamp(number * 1_000_000_000),
            ),
            ("c".into(), "n".into()),
            "root".into(),
            1,
            json!({ "mode": "observe" }),
        ))
    };
    (1..=count).map(entry).collect()
}

/// A trail of so many entries.
fn trail_of(count: i64) -> (tempfile::TempDir, String) {
    use zt_agent::audit::sqlite::Store;
    use zt_agent::audit::store::Sink as _;
    let directory = tempfile::tempdir().expect("tempdir");
    let (dsn, settings) = settings(directory.path(), "audit.db");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let store = Store::open(settings).await.expect("opens");
        store.append(&entries(count), None).await.expect("stores");
        store.seal().await.expect("seals");
        store.close().await.expect("closes");
    });
    (directory, dsn)
}

#[test]
fn a_trail_is_checked_exported_and_pruned_without_an_agent() {
    let (directory, dsn) = trail();
    let verify = |arguments: &[&str]| zt_agent(&[&["audit", "verify", "--store", &dsn], arguments].concat());
    let output = verify(&[]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(
        stdout(&output).contains("2 entries, 1 checkpoints, nothing was changed"),
        "{}",
        stdout(&output)
    );

    let output = zt_agent(&["audit", "rotate-key", "--store", &dsn]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let file = directory.path().join("export.jsonl");
    let output = zt_agent(&["audit", "export", "--store", &dsn, "--to", shown(&file)]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(code(&verify(&[shown(&file)])), 0);
    let text = std::fs::read_to_string(&file)
        .expect("reads")
        .replace("root", "nobody");
    std::fs::write(&file, text).expect("writes");
    let output = verify(&[shown(&file)]);
    assert_eq!(code(&output), 1);
    assert!(stdout(&output).contains("entry 2 of "), "{}", stdout(&output));

    let csv = zt_agent(&[
        "audit",
        "export",
        "--store",
        &dsn,
        "--format",
        "csv",
        "--type",
        "mode-change",
    ]);
    assert_eq!(stdout(&csv).lines().count(), 3);
    let output = zt_agent(&[
        "audit",
        "prune",
        "--store",
        &dsn,
        "--before",
        "1970-01-01T00:00:02Z",
    ]);
    assert_eq!(
        stdout(&output),
        "1 records of before 1970-01-01T00:00:02Z removed\n",
        "{}",
        stderr(&output)
    );
    let output = verify(&["-o", "json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(
        (&report["clean"], &report["entries"]),
        (&json!(true), &json!(1)),
        "{report}"
    );

    let output = verify(&["--keys", shown(&directory.path().join("nowhere"))]);
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).contains("has no keys to trust"),
        "{}",
        stderr(&output)
    );
    // Nor are keys made for a trail that others have signed.
    let nowhere = directory.path().join("nowhere");
    let output = zt_agent(&["audit", "prune", "--store", &dsn, "--keys", shown(&nowhere)]);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("this trail is signed"),
        "{}",
        stderr(&output)
    );
    assert!(!nowhere.exists());
    let none = format!("sqlite://{}", directory.path().join("none.db").display());
    assert_eq!(code(&zt_agent(&["audit", "prune", "--store", &none])), 1);
    assert!(!directory.path().join("none.db").exists());
}

/// A spool of so many entries, none of which was shipped.
fn spool_of(count: i64) -> (tempfile::TempDir, String) {
    use zt_agent::audit::spool::{Spool, WhenFull};
    use zt_agent::audit::store::Sink as _;
    let directory = tempfile::tempdir().expect("tempdir");
    let (dsn, settings) = settings(directory.path(), "spool.db");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let spool = Spool::open(settings, WhenFull::Oldest).await.expect("opens");
        spool.append(&entries(count), None).await.expect("stores");
        spool.seal().await.expect("seals");
        spool.close().await.expect("closes");
    });
    (directory, dsn)
}

#[test]
fn what_waits_in_a_spool_is_not_pruned() {
    let (directory, dsn) = spool_of(3);
    let output = zt_agent(&[
        "audit",
        "prune",
        "--store",
        &dsn,
        "--before",
        "2020-01-01T00:00:00Z",
    ]);
    assert_eq!(code(&output), 2, "{}", stdout(&output));
    assert!(stderr(&output).contains("is a spool"), "{}", stderr(&output));
    // Nor where the configuration calls it one.
    let config = directory.path().join("agent.yaml");
    std::fs::write(
        &config,
        format!(
            "audit: {{spool: {}}}\n",
            shown(&directory.path().join("spool.db"))
        ),
    )
    .expect("writes");
    let output = zt_agent(&["audit", "prune", "--store", &dsn, "--config", shown(&config)]);
    assert_eq!(code(&output), 2, "{}", stdout(&output));
    let csv = zt_agent(&["audit", "export", "--store", &dsn, "--format", "csv"]);
    assert_eq!(stdout(&csv).lines().count(), 4, "{}", stderr(&csv));
}

#[test]
fn exports_of_a_pruned_trail_have_what_is_left_and_can_be_checked() {
    let (directory, dsn) = trail_of(40);
    let run = |arguments: &[&str]| {
        let output = zt_agent(&[arguments, &["--store", &dsn]].concat());
        assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    };
    run(&["audit", "rotate-key"]);
    for (before, left) in [("1970-01-01T00:00:11Z", 30), ("1970-01-01T00:00:31Z", 10)] {
        run(&["audit", "prune", "--before", before]);
        let whole = directory.path().join(format!("whole-{left}.jsonl"));
        run(&["audit", "export", "--to", shown(&whole)]);
        let some = directory.path().join(format!("some-{left}.jsonl"));
        let filter = ["--since", "1970-01-01T00:00:35Z"];
        run(&[&["audit", "export", "--proof", "--to", shown(&some)][..], &filter].concat());
        for (file, entries) in [(&whole, left), (&some, 6)] {
            let said = run(&["audit", "verify", shown(file)]);
            let counted = format!("{entries} entries, ");
            assert!(said.contains(&counted), "{said}");
            let pruned = format!("entries 1 to {} were removed (pruned), signed by", 40 - left);
            assert!(said.contains(&pruned), "{said}");
        }
        let csv = run(&["audit", "export", "--format", "csv"]);
        assert_eq!(csv.lines().count(), left + 1, "{csv}");
        assert!(
            csv.lines()
                .nth(1)
                .is_some_and(|line| line.contains(&format!(",{},", 41 - left))),
            "{csv}"
        );
        // Without its first entry it is not what was signed to be left.
        let text = std::fs::read_to_string(&whole).expect("reads");
        let first = format!("\"seq\":{},", 41 - left);
        let without: String = text
            .lines()
            .filter(|line| !line.contains(&first) || line.contains("\"type\":\"checkpoint\""))
            .map(|line| {
                line.replace(
                    &format!("\"entries\":{left}"),
                    &format!("\"entries\":{}", left - 1),
                ) + "\n"
            })
            .collect();
        let shorter = directory.path().join("shorter.jsonl");
        std::fs::write(&shorter, without).expect("writes");
        let output = zt_agent(&["audit", "verify", shown(&shorter), "--store", &dsn]);
        let missing = format!("entries {0} to {0} of ", 41 - left);
        assert_eq!(code(&output), 1);
        assert!(stdout(&output).contains(&missing), "{}", stdout(&output));
    }
}

/// Runs SQL over the file of a trail, as somebody who may write it.
fn tamper(file: &Path, sql: &str) {
    use sqlx::ConnectOptions as _;
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
        let mut connection = options.connect().await.expect("opens");
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql)
            .execute(&mut connection)
            .await
            .expect("executes");
    });
}

#[test]
fn whatever_is_done_to_the_file_is_named_and_the_exit_code_is_1() {
    let (directory, dsn) = trail_of(40);
    let file = directory.path().join("audit.db");
    let verify = |dsn: &str, keys: &Path| {
        let output = zt_agent(&["audit", "verify", "--store", dsn, "--keys", shown(keys)]);
        (code(&output), stdout(&output))
    };
    let keys = directory.path().join("keys");
    assert_eq!(verify(&dsn, &keys).0, 0);
    assert_eq!(code(&zt_agent(&["audit", "rotate-key", "--store", &dsn])), 0);
    assert_eq!(verify(&dsn, &keys).0, 0, "after a rotation");
    for (sql, named) in [
        ("UPDATE record SET caller = 'nobody' WHERE row = 20", "entry 20 of "),
        ("DELETE FROM record WHERE row BETWEEN 20 AND 22", "entries 20 to 22 of "),
        ("DELETE FROM record WHERE row > 30", "entries 31 to 40 of "),
        ("DELETE FROM record WHERE row > 30; DELETE FROM checkpoint", "the checkpoint of "),
        ("UPDATE record SET row = 100 WHERE row = 20; UPDATE record SET row = 20 WHERE row = 21;
          UPDATE record SET row = 21 WHERE row = 100", "entry 20 of "),
        ("UPDATE record SET row = row + 100 WHERE row > 20; UPDATE record SET row = row - 99 WHERE row > 100;
          INSERT INTO record SELECT 21, randomblob(16), time, shape, revision, latency, source_address, source_port,
            destination_address, pid, comm, source_pod, destination_pod, caller, count, change, hash
          FROM record WHERE row = 20", "entry 21 of "),
        ("UPDATE record SET shape = 999 WHERE row = 20", "entry 20 of "),
        ("UPDATE record SET change = 'x' WHERE row = 20", "cannot be read"),
        ("UPDATE checkpoint SET text = 'x'", "row 1 of the checkpoints cannot be read"),
        ("UPDATE signing_key SET text = 'x'", "row 1 of the keys cannot be read"),
    ] {
        let copy = directory.path().join("copy.db");
        std::fs::copy(&file, &copy).expect("copies");
        tamper(&copy, sql);
        let (code, said) = verify(&format!("sqlite://{}", copy.display()), &keys);
        assert!(code == 1 && said.contains(named), "{sql}: {code}, {said}");
    }
    let prune = [
        "audit",
        "prune",
        "--store",
        &dsn,
        "--before",
        "1970-01-01T00:00:10Z",
    ];
    assert_eq!(code(&zt_agent(&prune)), 0);
    let (code, said) = verify(&dsn, &keys);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("entries 1 to 9 were removed (pruned), signed by"),
        "{said}"
    );
    tamper(&file, "DELETE FROM record WHERE row = 10");
    let (code, said) = verify(&dsn, &keys);
    assert!(code == 1 && said.contains("entries 10 to 10 of"), "{said}");
}

#[test]
fn whom_to_trust_is_said_in_any_of_the_ways() {
    let (directory, dsn) = trail();
    let output = zt_agent(&["audit", "keys", "--store", &dsn]);
    let bound = stdout(&output).trim_end().to_owned();
    let (key, writer) = bound.split_once('=').expect("KEY=WRITER");
    let list = directory.path().join("trusted");
    std::fs::write(&list, format!("# the nodes\n{bound}\n")).expect("writes");
    let keys = directory.path().join("keys");
    let verify = |trust: &str| zt_agent(&["audit", "verify", "--store", &dsn, "--trust", trust]);
    for trust in [
        key,
        &bound,
        shown(&list),
        shown(&keys),
        shown(&keys.join("keys.json")),
    ] {
        let output = verify(trust);
        assert_eq!(
            code(&output),
            0,
            "{trust}: {}{}",
            stdout(&output),
            stderr(&output)
        );
        assert!(
            stdout(&output).contains(&format!("by {key}")),
            "{}",
            stdout(&output)
        );
    }
    // Two are trusted and one has signed.
    let other = "0".repeat(32);
    let output = verify(&format!("{key},{other}"));
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    assert!(stdout(&output).contains(&format!("note: {other} is trusted and has signed for no writer")));
    // The writer is another one's.
    for trust in [other.clone(), format!("{key},{other}={writer}")] {
        let output = verify(&trust);
        assert_eq!(code(&output), 1, "{trust}: {}", stdout(&output));
    }
    for trust in [
        "nonsense",
        shown(&directory.path().join("nowhere")),
        &format!("{key}=nonsense"),
    ] {
        let output = verify(trust);
        assert_eq!((code(&output), stdout(&output).as_str()), (2, ""), "{trust}");
    }
}
