// SPDX-License-Identifier: Apache-2.0
//! A trail that is younger than its first checkpoint.

use std::path::Path;

use serde_json::Value;
use zt_agent::audit::sqlite::Store;
use zt_agent::audit::store::Sink as _;

use crate::{code, entries, settings, shown, stdout, tamper, zt_agent};

/// Goes on with a trail by so many entries, of which `signed` are there when it is signed.
fn go_on(directory: &Path, signed: Option<usize>, count: usize) -> String {
    let (dsn, settings) = settings(directory, "audit.db");
    let entries = entries(i64::try_from(count).expect("few"));
    let (before, behind) = entries.split_at(signed.unwrap_or(0));
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let store = Store::open(settings).await.expect("opens");
        if signed.is_some() {
            store.append(before, None).await.expect("stores");
            store
                .seal()
                .await
                .expect("seals")
                .expect("there is something to sign");
        }
        store.append(behind, None).await.expect("stores");
        store.close().await.expect("closes");
    });
    dsn
}

/// What `audit verify` says of a copy of the trail over which somebody ran some SQL: the exit code, and its output.
fn verified(directory: &Path, sql: &str, arguments: &[&str]) -> (i32, String) {
    let copy = directory.join("copy.db");
    std::fs::copy(directory.join("audit.db"), &copy).expect("copies");
    if !sql.is_empty() {
        tamper(&copy, sql);
    }
    let dsn = format!("sqlite://{}", copy.display());
    let output = zt_agent(&[&["audit", "verify", "--store", &dsn], arguments].concat());
    (code(&output), stdout(&output))
}

#[test]
fn what_is_not_signed_yet_is_no_finding_and_whatever_was_done_to_it_is() {
    let directory = tempfile::tempdir().expect("tempdir");
    let directory = directory.path();
    let dsn = go_on(directory, None, 3);
    let keys = directory.join("keys");
    let keys = ["--keys", shown(&keys)];

    let (code, said) = verified(directory, "", &keys);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains(": nothing is signed; 3 records wait for the first checkpoint\n"),
        "{said}"
    );
    assert!(said.contains("note: nothing of "), "{said}");
    for (sql, named) in [
        ("UPDATE record SET caller = 'nobody' WHERE row = 2", "entry 2 of "),
        ("DELETE FROM record WHERE row = 2", "entries 2 to 2 of "),
        ("DELETE FROM record WHERE row = 3", ""),
    ] {
        let (code, said) = verified(directory, sql, &keys);
        assert!(code == 1 && said.contains(named), "{sql}: {code}, {said}");
    }

    // Who says whom to trust, or whose writer must be there, asks for a proof.
    let output = zt_agent(&["audit", "verify", "--store", &dsn, "-o", "json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let writer = report["writers"][0]["writer"].as_str().expect("a writer");
    let key = stdout(&zt_agent(&["audit", "keys", "--store", &dsn]));
    let key = key.trim_end();
    let bound = format!("{key}={writer}");
    for trust in [&["--trust", key][..], &["--trust", &bound, keys[0], keys[1]]] {
        let (code, said) = verified(directory, "", trust);
        assert!(
            code == 1
                && said.contains("has no checkpoint that a trusted key has signed")
                && said.contains(": nothing is signed; 3 records"),
            "{trust:?}: {code}, {said}"
        );
    }

    // Nor is an export, which may be anybody's, believed for what its keys have not signed.
    let export = directory.join("export.jsonl");
    let output = zt_agent(&["audit", "export", "--store", &dsn, "--to", shown(&export)]);
    assert_eq!(crate::code(&output), 0);
    let output = zt_agent(&["audit", "verify", shown(&export), keys[0], keys[1]]);
    assert_eq!(crate::code(&output), 1, "{}", stdout(&output));
}

#[test]
fn records_behind_the_last_checkpoint_are_counted_and_checkpoints_that_are_gone_are_missed() {
    let directory = tempfile::tempdir().expect("tempdir");
    let directory = directory.path();
    go_on(directory, Some(3), 5);
    let keys = directory.join("keys");
    let keys = ["--keys", shown(&keys)];
    let (code, said) = verified(directory, "", &keys);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("; 2 records are newer than the last checkpoint\n"),
        "{said}"
    );
    let cut = "DELETE FROM record WHERE row > 2; DELETE FROM checkpoint;
         UPDATE trail SET next_row = 3, hash = (SELECT hash FROM record WHERE row = 2)";
    for (sql, named) in [
        ("DELETE FROM checkpoint", "at entry 3 is not in the trail"),
        (cut, "at entry 3 is not in the trail"),
        (
            "DELETE FROM checkpoint; DELETE FROM signing_key",
            "at entry 3 has no signature that a trusted key has made",
        ),
    ] {
        let (code, said) = verified(directory, sql, &keys);
        assert!(code == 1 && said.contains(named), "{sql}: {code}, {said}");
    }
}
