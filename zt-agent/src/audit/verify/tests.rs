// SPDX-License-Identifier: Apache-2.0
//! A real trail, tampered with in every way that we could think of.

mod altered;
mod cluster;
mod continuity;
mod counted;
mod counts;
mod export;
mod forged;
mod node;
mod random;
mod spooled;
mod store;
mod year;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::audit::chain::Head;
use crate::audit::convert::{PolicyChange, from_mode_change, from_policy_change};
use crate::audit::export::verify;
use crate::audit::record::{Entry, Hook, Timestamp};
use crate::audit::sample::{CHAT, context, decision, record_of};
use crate::audit::seal::Keys;
use crate::audit::sqlite::{Durability, Reader, Settings, Store, StoreError};
use crate::audit::store::{Sink as _, Trail as _};

/// Entries of the trail.
const ENTRIES: u64 = 120;

/// Entries of every kind, one a second.
fn entry(number: u64) -> Entry {
    let mut decision = decision();
    decision.time += number * 1_000_000_000;
    decision.pid = number as u32 + 1;
    if number.is_multiple_of(3) {
        (decision.source, decision.allowed, decision.rule) = (CHAT, false, 0);
        decision.source_address = zt_common::address::Address::from_v4([10, 0, 0, number as u8]);
    }
    let mut record = record_of(&decision, u128::from(number));
    let (time, id) = (record.timestamp, record.id);
    match number % 10 {
        4 => {
            record.hook = Hook::Api;
            record.caller = Some(Arc::from("127.0.0.1:4000"));
            (record.mfa, record.incident) = (Some(number.is_multiple_of(20)), Some(Arc::from("INC-1")));
            Entry::Decision(record)
        }
        5 => from_mode_change(number % 20 == 5, Arc::from("root"), number, &context(), time, id),
        6 => {
            let change = PolicyChange {
                caller: Arc::from("/etc/zt/policies"),
                from: Some(Arc::from("aa")),
                to: Arc::from("bb"),
                diff: serde_json::json!({ "denied": [], "allowed": [{ "port": number }] }),
                revision: number,
                in_force: true,
                begun: Vec::new(),
                noted: None,
            };
            from_policy_change(change, &context(), time, id)
        }
        _ => Entry::Decision(record),
    }
}

/// A trail in a file, and the keys beside it.
struct World {
    directory: TempDir,
}

impl World {
    /// Written in batches, sealed in between, with a key that was rotated half-way.
    async fn new() -> Self {
        let world = Self {
            directory: tempfile::tempdir().expect("directory"),
        };
        let store = world.open().await;
        let entries: Vec<Entry> = (0..ENTRIES).map(entry).collect();
        for (number, batch) in entries.chunks(17).enumerate() {
            store.append(batch, None).await.expect("stores");
            if number % 2 == 1 {
                store.seal().await.expect("seals").expect("moved");
            }
            if number == 3 {
                Keys::rotate(&world.keys()).expect("rotates");
            }
        }
        store.seal().await.expect("seals");
        store.close().await.expect("closes");
        world
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("audit.db")
    }

    fn keys(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    fn dsn(path: &Path) -> String {
        format!("sqlite://{}", path.display())
    }

    fn settings(&self) -> Settings {
        Settings {
            dsn: Self::dsn(&self.file()),
            max_disk_bytes: 1 << 30,
            retention_days: None,
            keys: Some(self.keys()),
            sync: Durability::default(),
        }
    }

    async fn open(&self) -> Store {
        Store::open(self.settings()).await.expect("opens")
    }

    /// Trusts the first key alone.
    fn verifier(&self) -> Verifier {
        let keys = Keys::list(&self.keys()).expect("reads").expect("keys");
        Verifier::new(vec![keys[0].key.clone()])
    }

    async fn report(&self, file: &Path) -> Report {
        self.try_report(file).await.expect("reads")
    }

    /// A file that cannot even be read as a trail is an error.
    async fn try_report(&self, file: &Path) -> Result<Report, StoreError> {
        let mut reader = Reader::open(&Self::dsn(file)).await?;
        let noted = Keys::noted(&self.keys()).expect("reads");
        let noted: Vec<Noted> = noted.into_iter().map(Noted::here).collect();
        let verifier = verify(&mut reader, self.verifier(), &noted, &mut |_| ()).await?;
        Ok(verifier.finish())
    }

    /// What is wrong with the entries, whatever is counted of them.
    async fn of_entries(&self, file: &Path) -> Vec<Finding> {
        let mut findings = self.report(file).await.findings;
        findings.retain(|finding| !matches!(finding, Finding::Miscounted { .. }));
        findings
    }

    async fn export(&self) -> String {
        let mut reader = Reader::open(&Self::dsn(&self.file())).await.expect("opens");
        let mut text = Vec::new();
        let filter = crate::audit::query::Filter::default();
        crate::audit::export::json_lines(&mut reader, &filter, false, &mut text)
            .await
            .expect("exports");
        String::from_utf8(text).expect("text")
    }
}
