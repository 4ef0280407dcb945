// SPDX-License-Identifier: Apache-2.0
//! The commands that work on the trail itself.

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
    use zt_agent::audit::record::{Change, Entry, Timestamp};
    use zt_agent::audit::sqlite::{Settings, Store};
    use zt_agent::audit::store::Sink as _;
    let directory = tempfile::tempdir().expect("tempdir");
    let dsn = format!("sqlite://{}", directory.path().join("audit.db").display());
    let settings = Settings {
        dsn: dsn.clone(),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: Some(directory.path().join("keys")),
    };
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
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let store = Store::open(settings).await.expect("opens");
        store.append(&[entry(1), entry(2)], None).await.expect("stores");
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
    let none = format!("sqlite://{}", directory.path().join("none.db").display());
    assert_eq!(code(&zt_agent(&["audit", "prune", "--store", &none])), 1);
    assert!(!directory.path().join("none.db").exists());
}
