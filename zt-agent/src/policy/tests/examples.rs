// SPDX-License-Identifier: Apache-2.0
//! The example policies load, and compile to the table that is kept beside them.

use std::path::{Path, PathBuf};

use zt_common::verdict::Reason;

use super::{document, id, set, table};
use crate::policy::{Document, Party, Protocol};
use crate::spiffe_id::SpiffeId;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

fn examples() -> Vec<Document> {
    let entries = std::fs::read_dir(directory()).expect("the policies directory");
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    let read = |path: &PathBuf| {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        document(&name, &std::fs::read_to_string(path).expect("a readable example"))
    };
    files.iter().map(read).collect()
}

fn identities() -> Vec<SpiffeId> {
    [
        "hanzo/chat",
        "monitoring/prometheus",
        "hanzo/operator",
        "kube-system/operator",
    ]
    .map(|name| id(&format!("hanzo-k8s/{name}")))
    .to_vec()
}

#[test]
fn the_golden_allow_table() {
    let text = table(&examples(), &identities()).to_string();
    let path = directory().join("golden/allow-table.txt");
    if std::env::var_os("ZT_BLESS").is_some() {
        std::fs::write(&path, &text).expect("a writable golden file");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file");
    assert!(
        text == golden,
        "the table is\n{text}\nIf that is meant, run this test with ZT_BLESS=1."
    );
}

#[test]
fn the_core_policy_of_the_specification() {
    let docs = examples();
    let core: Vec<_> = docs
        .into_iter()
        .filter(|doc| doc.file == "hanzo-core-policy.yaml")
        .collect();
    let table = table(&core, &[]);
    let ask = |source: &str, destination: &str, port| {
        let [source, destination] = [source, destination].map(|name| id(&format!("hanzo-k8s/hanzo/{name}")));
        table.evaluate(
            Party::Spiffe(&source),
            Party::Spiffe(&destination),
            port,
            Protocol::Tcp,
        )
    };
    let allowed = ask("iam", "postgres", 5432);
    assert!(allowed.allowed);
    assert_eq!(allowed.rule.as_deref(), Some("hanzo-core-policy/rule-1"));
    assert_eq!(allowed.revision, 7);
    assert_eq!(
        ask("gateway", "postgres", 5432).rule.as_deref(),
        Some("hanzo-core-policy/rule-2")
    );
    let denied = ask("chat", "postgres", 5432);
    assert!(!denied.allowed);
    assert_eq!((denied.reason, denied.rule), (Reason::NoRule, None));
    assert!(!ask("iam", "postgres", 5433).allowed);
    assert!(!ask("postgres", "iam", 5432).allowed);
    assert_eq!(ask("chat", "chat", 1).rule.as_deref(), Some("builtin/self"));
}

#[test]
fn the_canonical_form_is_the_policy_itself() {
    let set = set(&examples());
    for policy in set.policies() {
        let json = document("canonical.json", &policy.document().to_string());
        let again = super::set(&[json]);
        assert_eq!(again.policies()[0].document(), policy.document());
        assert_eq!(again.policies()[0].digest(), policy.digest());
    }
}
