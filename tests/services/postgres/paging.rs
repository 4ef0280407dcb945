// SPDX-License-Identifier: Apache-2.0
//! Whatever comes in between, whatever the size of the pages: who reads on from page to page has had each record that was
//! there at the start, once, the newest first.

use std::collections::HashMap;

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Reader, Writer};
use zt_agent::audit::query::Filter;
use zt_agent::audit::record::Kept;
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
