// SPDX-License-Identifier: Apache-2.0
//! What a year takes of memory, of a node that records in every minute.

use super::*;
use crate::audit::chain::{START, digest};

const MINUTES: u64 = 365 * 24 * 60;

/// Memory of this process, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("reads");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("a line");
    let number = line.split_whitespace().nth(1).expect("a number");
    number.parse::<u64>().expect("a number") << 10
}

/// `cargo test -p zt-agent --lib a_year_of_checkpoints -- --ignored --nocapture`
#[test]
#[ignore = "takes a minute, and has to be alone in its process"]
fn a_year_of_checkpoints_fits_into_memory() {
    let directory = tempfile::tempdir().expect("directory");
    let keys = Keys::open(directory.path()).expect("keys");
    let mut verifier = Verifier::new(vec![keys.current().key.clone()]);
    for key in keys.records() {
        verifier.key(key);
    }
    let said = digest(&entry(1));
    let mut head = Head::new(Uuid::from_u128(7));
    let before = memory();
    for minute in 0..MINUTES {
        head.link_digest(said);
        let time = Timestamp(1_771_857_000_000_000_000 + minute as i64 * 60_000_000_000);
        verifier.checkpoint(&Checkpoint::sign(head, time, (0, START), &keys));
    }
    let taken = memory() - before;
    for seq in 1..=MINUTES {
        verifier.omitted(head.writer, seq, said);
    }
    let report = verifier.finish();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.checkpoints, MINUTES);
    println!(
        "{MINUTES} checkpoints: {} MiB, {} bytes each",
        taken >> 20,
        taken / MINUTES
    );
    assert!(taken < 64 << 20, "{} MiB", taken >> 20);
}
