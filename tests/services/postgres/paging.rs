// SPDX-License-Identifier: Apache-2.0
//! Whatever comes in between, whatever the size of the pages: who reads on from page to page has had each record that was
//! there at the start, once, the newest first.

use std::collections::HashMap;

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, PgError, Reader, Writer};
use zt_agent::audit::query::{Cursor, Filter, HOUR, MAX_PLACES, TooMuch};
use zt_agent::audit::record::{Kept, Outcome};
use zt_tests::entries::spread;

use super::{maker, target, today, with_tables};

/// One who writes records of many times, or of one time, after one another.
struct Source {
    head: Head,
    next: u64,
    step: i64,
    writer: Writer,
}

impl Source {
    async fn ship(&mut self, number: u64) -> Vec<Kept> {
        let first_seq = self.head.seq + 1;
        let numbers = self.next..self.next + number;
        self.next += number;
        let records = maker(today(), self.step, 20).kept(numbers, &mut self.head);
        let batch = Batch {
            writer: self.head.writer,
            first_seq,
            dropped: 0,
            records: records.clone(),
        };
        assert!(self.writer.ship(&batch).await.expect("shipped"));
        records
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_once_and_the_newest_first() {
    let server = with_tables().await;
    let mut sources = Vec::new();
    // A million records a second, all in one moment, a thousand a second.
    for (number, step) in (1_u64..).zip([1_000, 0, 1_000_000]) {
        sources.push(Source {
            head: Head::new(Uuid::from_u128(u128::from(number))),
            next: number * 1_000_000,
            step,
            writer: Writer::new(target(&server, "node")),
        });
    }
    let reader = Reader::new(target(&server, "engine"));
    let mut start: Vec<Kept> = Vec::new();
    let mut random = 0;
    for _ in 0..8 {
        for source in &mut sources {
            start.extend(source.ship(100).await);
        }
        let (mut found, mut cursor) = (Vec::new(), None);
        let mut came = Vec::new();
        loop {
            random += 1;
            let limit = 1 + (spread(random) % 90) as u32;
            let page = reader
                .query(&Filter::default(), cursor, limit)
                .await
                .expect("page");
            assert!(page.records.len() <= limit as usize);
            found.extend(page.records);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
            let source = (spread(random) >> 32) as usize % sources.len();
            if random.is_multiple_of(3) {
                came.extend(sources[source].ship(1 + spread(random) % 7).await);
            }
        }
        let place = |kept: &Kept| (kept.entry.timestamp(), kept.entry.id());
        assert!(
            found.windows(2).all(|pair| place(&pair[0]) > place(&pair[1])),
            "newest first, none twice"
        );
        let found: HashMap<Uuid, &Kept> = found.iter().map(|kept| (kept.entry.id(), kept)).collect();
        for kept in &start {
            assert_eq!(found.get(&kept.entry.id()), Some(&kept), "each that was there");
        }
        start.extend(came);
    }
    for source in sources {
        source.writer.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_begins_in_an_hour_of_too_many_kinds_of_connection_is_refused() {
    let server = with_tables().await;
    let start = today();
    // One more than is looked through. No record is needed for that.
    let kinds = format!(
        "INSERT INTO zt_audit.shape (day, id, type, source, destination, protocol, port, cluster, decision, enforced, mode,
             observer, hook, reason, proof, part, login)
         SELECT {day}, zt_audit.shape_id('decision', 'a', 'b', NULL, NULL, NULL, 'c', 'ALLOW', 'observe', 'source',
                'connect', 'rule', 'none', 6::smallint, port, false, 0::smallint),
                'decision', 'a', 'b', 6, port, 'c', 'ALLOW', false, 'observe', 'source', 'connect', 'rule', 'none', 0, 'node'
         FROM generate_series(0, {MAX_PLACES}) port;
         INSERT INTO zt_audit.bucket SELECT id, {hour}, login, 1, 1, {start}, {start} FROM zt_audit.shape",
        day = start / (24 * HOUR),
        hour = start / HOUR,
    );
    server.sql(&kinds).expect("inserted");
    let reader = Reader::new(target(&server, "engine"));
    let within = Some(Cursor {
        time: start + HOUR / 2,
        id: Uuid::max(),
    });
    let filter = Filter {
        decision: Some(Outcome::Allow),
        ..Filter::default()
    };
    let refused = reader.query(&filter, within, 10).await.expect_err("too much");
    assert!(matches!(refused, PgError::TooMuch(TooMuch::Places)), "{refused}");
    // Who asks for less is answered.
    let narrow = Filter {
        port: Some(80),
        ..filter
    };
    let page = reader.query(&narrow, within, 10).await.expect("answered");
    assert!(page.records.is_empty());
    reader.close().await;
}
