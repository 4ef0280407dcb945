// SPDX-License-Identifier: Apache-2.0
//! Exports, and tampering with them.

use proptest::prelude::*;

use super::*;
use crate::audit::export::{csv, json_lines, verify_lines};
use crate::audit::query::Filter;
use crate::audit::record::Outcome;

fn report(world: &World, bytes: &[u8]) -> Report {
    let lines = std::io::BufRead::lines(bytes);
    verify_lines(lines, world.verifier(), &mut |_| ())
        .expect("reads")
        .finish()
}

#[tokio::test]
async fn an_export_is_clean_and_holds_everything() {
    let world = World::new().await;
    let text = world.export().await;
    let report = report(&world, text.as_bytes());
    assert_eq!((report.findings.as_slice(), report.entries), (&[][..], ENTRIES));
}

#[tokio::test]
async fn a_filtered_export_is_proven_by_the_digests_of_the_rest() {
    let world = World::new().await;
    let filter = Filter {
        decision: Some(Outcome::Deny),
        ..Filter::default()
    };
    let wanted = (0..ENTRIES)
        .filter(|number| filter.takes(&entry(*number)))
        .count() as u64;
    for proof in [true, false] {
        let mut reader = Reader::open(&World::dsn(&world.file())).await.expect("opens");
        let mut text = Vec::new();
        let written = json_lines(&mut reader, &filter, proof, &mut text)
            .await
            .expect("exports");
        assert_eq!(written, wanted);
        let report = report(&world, &text);
        assert_eq!(report.entries, wanted);
        assert_eq!(report.is_clean(), proof, "{:?}", report.findings);
    }
}

#[test]
fn any_bit_of_an_export_that_is_another_is_found() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let world = runtime.block_on(World::new());
    let text = runtime.block_on(world.export()).into_bytes();
    // The last newline is the only byte that says nothing.
    let bits = (text.len() - 1) * 8;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let found = runner.run(&(0..bits), |bit| {
        let mut changed = text.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!report(&world, &changed).is_clean(), "bit {}", bit);
        Ok(())
    });
    found.expect("each is found");
}

#[test]
fn lines_that_go_come_or_move_are_found() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let world = runtime.block_on(World::new());
    let text = runtime.block_on(world.export());
    let lines: Vec<&str> = text.lines().collect();
    let joined = |lines: &[&str]| lines.iter().flat_map(|line| [*line, "\n"]).collect::<String>();
    let is_first =
        |line: &&str| line.contains("\"seq\":1,\"hash\"") && line.starts_with("{\"type\":\"decision\"");
    let first = lines.iter().position(is_first).expect("an entry");
    for at in (first..lines.len() - 1).step_by(3) {
        let (mut without, mut twice, mut swapped) = (lines.clone(), lines.clone(), lines.clone());
        without.remove(at);
        twice.insert(at, lines[at]);
        swapped.swap(at, at + 1);
        for changed in [without, twice, swapped] {
            assert!(
                !report(&world, joined(&changed).as_bytes()).is_clean(),
                "line {at}"
            );
        }
    }
    for cut in (0..lines.len()).step_by(5) {
        assert!(
            !report(&world, joined(&lines[..cut]).as_bytes()).is_clean(),
            "cut at {cut}"
        );
    }
}

#[tokio::test]
async fn csv_has_a_row_for_each_and_no_formula() {
    let world = World {
        directory: tempfile::tempdir().expect("directory"),
    };
    let store = world.open().await;
    let mut record = record_of(&decision(), 1);
    record.source.comm = Some(Arc::from("=cmd|'/c calc'!A1"));
    record.policy_matched = Some(Arc::from("a,\"b\"\nc"));
    let entries = [Entry::Decision(record), entry(5)];
    store.append(&entries, None).await.expect("stores");
    let mut reader = Reader::open(&World::dsn(&world.file())).await.expect("opens");
    let mut text = Vec::new();
    let written = csv(&mut reader, &Filter::default(), &mut text)
        .await
        .expect("exports");
    assert_eq!(written, 2);
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("\"'=cmd|'/c calc'!A1\""), "{text}");
    assert!(text.contains("\"a,\"\"b\"\"\nc\""), "{text}");
    assert!(text.contains("\"{\"\"mode\"\":\"\"observe\"\"}\""), "{text}");
    assert!(text.starts_with("type,id,timestamp,decision,source,"), "{text}");
}
