// SPDX-License-Identifier: Apache-2.0
//! Whatever comes in between, whatever the size of the pages: who reads on from page to page has had each record that was
//! there at the start, once, the newest first. And whoever asks at the same time is answered, too.

mod model;

use uuid::Uuid;

use self::model::{Made, case, holds};
use super::*;

fn made((time, random): Made, number: u64) -> AuditRecord {
    let mut decision = decision();
    decision.time += u64::from(time) * 1_000_000_000;
    decision.source = if random.is_multiple_of(3) { CHAT } else { GATEWAY };
    let mut record = record_of(&decision, 0);
    record.id = Uuid::from_u128(u128::from(random) << 64 | u128::from(number));
    record
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn each_record_once_and_the_newest_first(case in case(), before_the_end_of_a_segment in 0_i64..90) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let filter = Filter {
            source: case.of_one_source.then(|| {
                PartyFilter::Exact("spiffe://hanzo.ai/hanzo-k8s/hanzo/chat".to_owned())
            }),
            ..Filter::default()
        };
        let mut number = 0;
        let mut make = |several: &[Made]| -> Vec<AuditRecord> {
            let numbered = several.iter().map(|one| {
                number += 1;
                made(*one, number)
            });
            numbered.collect()
        };
        let (start, found) = runtime.block_on(async {
            let (_directory, store) = store().await;
            // So that pages lie across the border of two segments.
            sqlx::query("UPDATE trail SET next_row = ?")
                .bind(SEGMENT_ROWS - before_the_end_of_a_segment)
                .execute(&mut store.writer.lock().await.connection)
                .await
                .expect("moved");
            let start = make(&case.first);
            keep(&store, &start).await;
            let (mut found, mut cursor) = (Vec::new(), None);
            for round in 0.. {
                let size = case.size(round);
                let page = store.query(&filter, cursor, size).await.expect("answers");
                assert!(page.records.len() <= size as usize);
                found.extend(decided(page.records));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
                keep(&store, &make(case.comes(round))).await;
            }
            (start, found)
        });
        let asked = |record: &AuditRecord| filter.takes(&Entry::Decision(record.clone()));
        holds(&start, &found, |record| (record.timestamp, record.id), asked)?;
    }
}

#[tokio::test]
async fn more_questions_at_once_than_there_are_connections_are_all_answered() {
    let (_directory, store) = store().await;
    let stored = records(0..40);
    keep(&store, &stored).await;
    let filter = Filter {
        decision: Some(Outcome::Allow),
        ..Filter::default()
    };
    let questions = (0..4 * connections::READERS).map(|_| store.query(&filter, None, 100));
    let expected: Vec<AuditRecord> = stored
        .into_iter()
        .rev()
        .filter(|record| record.decision == Outcome::Allow)
        .collect();
    for page in futures::future::join_all(questions).await {
        assert_eq!(decided(page.expect("answers").records), expected);
    }
}

#[tokio::test]
async fn shipping_and_housekeeping_wait_for_no_question() {
    let (_directory, store) = store().await;
    keep(&store, &records(0..3)).await;
    store.shipping().await.expect("is a spool");
    let mut questions = Vec::new();
    for _ in 0..connections::READERS {
        questions.push(store.readers.acquire().await.expect("a connection"));
    }
    assert_eq!(store.head().await.expect("head").seq, 3);
    assert_eq!(store.range(1, 3).await.expect("records").len(), 3);
    assert_eq!(store.gap_at(1).await.expect("gaps"), None);
    assert!(store.used_bytes().await.expect("size") > 0);
    assert_eq!(store.totals().await.expect("totals").stored, 3);
    assert_eq!(store.policy_told().await.expect("policy"), None);
}

#[tokio::test]
async fn what_cannot_be_read_is_on_the_page_and_hides_nothing() {
    let (_directory, store) = store().await;
    keep(&store, &records(0..20)).await;
    let meddling = "
        UPDATE record SET shape = 999 WHERE row = 20;
        UPDATE record SET id = x'00ff' WHERE row = 15;
        UPDATE record SET hash = x'00' WHERE row = 10;
        UPDATE record SET change = 'no JSON' WHERE row = 5";
    store.meddle(meddling).await;
    let wrong = [
        (20, "shape is missing"),
        (15, "id is [0, 255]"),
        (10, "hash is [00]"),
        (5, "change is no JSON"),
    ];
    for size in [1, 3, 100] {
        let (mut seen, mut unreadable, mut cursor) = (Vec::new(), Vec::new(), None);
        loop {
            let page = store
                .query(&Filter::default(), cursor, size)
                .await
                .expect("answers");
            assert!(page.records.len() + page.unreadable.len() <= size as usize);
            cursor = page.next;
            unreadable.extend(
                page.unreadable
                    .iter()
                    .map(|wrong| (wrong.seq, wrong.cause.clone())),
            );
            for shown in page.into_shown() {
                let shown = serde_json::to_value(shown).expect("JSON");
                seen.push(shown["seq"].as_u64().expect("a number"));
            }
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, (1..=20).rev().collect::<Vec<u64>>(), "pages of {size}");
        assert_eq!(unreadable, wrong.map(|(seq, cause)| (seq, cause.to_owned())));
    }
}
