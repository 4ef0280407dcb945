// SPDX-License-Identifier: Apache-2.0
//! Whatever comes in between, whatever the size of the pages: who reads on from page to page has had each record that was
//! there at the start, once, the newest first.

use std::collections::HashMap;

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Reader, Writer};
use zt_agent::audit::query::{Cursor, Filter, HOUR};
use zt_agent::audit::record::{Kept, Outcome};
use zt_tests::entries::spread;

use super::{kinds, maker, target, today, with_tables};

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
async fn an_hour_of_many_kinds_of_connection_is_read_page_by_page() {
    // More than are looked up one by one, and before them what nobody asks for.
    const KINDS: u64 = 20_000;
    const OTHERS: u64 = 6000;
    let server = with_tables().await;
    let start = today();
    let day = start / (24 * HOUR);
    let kinds = kinds::shapes(day, "ALLOW", &format!("generate_series(1, {KINDS})"))
        + &kinds::shapes(day, "DENY", "generate_series(1, 1)");
    // In the first half of the hour one of each kind, in the second the others.
    let records = kinds::one_of_each(day, "ALLOW", &format!("{start} + (port::bigint * 7919 % 20011) * 1000"))
        + &format!(
            "INSERT INTO zt_audit.record (time, id, shape, writer, seq, revision, latency, count, login)
             SELECT {start} + {half} + number * 1000, gen_random_uuid(), id, '{writer}', {KINDS} + number, 1, 1, 1, login
             FROM zt_audit.shape, generate_series(1::bigint, {OTHERS}) number WHERE decision = 'DENY'",
            half = HOUR / 2,
            writer = Uuid::from_u128(7),
        );
    server.sql(&kinds).expect("inserted");
    server.sql(&records).expect("inserted");
    let end = Some(Cursor {
        time: start + HOUR - 1,
        id: Uuid::max(),
    });
    let of = |decision, port| Filter {
        decision,
        port,
        ..Filter::default()
    };
    let (allow, deny) = (Some(Outcome::Allow), Some(Outcome::Deny));
    let patient = Reader::new(target(&server, "engine"));
    let hasty = patient.clone().looking_at_most(2000);
    for (filter, number) in [
        (of(allow, None), KINDS),
        (of(deny, None), OTHERS),
        (of(allow, Some(80)), 1),
        (of(None, Some(1)), OTHERS + 1),
        (of(deny, Some(80)), 0),
    ] {
        for (reader, may_end_early) in [(&patient, false), (&hasty, true)] {
            let (mut found, mut cursor, mut early) = (Vec::new(), end, 0);
            loop {
                let page = reader.query(&filter, cursor, 1000).await.expect("page");
                early += u64::from(page.next.is_some() && page.records.len() < 1000);
                assert!(
                    page.next
                        .is_none_or(|next| cursor.is_none_or(|cursor| next < cursor))
                );
                found.extend(page.records.iter().map(Cursor::at));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(found.len() as u64, number, "{filter:?}");
            assert!(
                found.windows(2).all(|pair| pair[0] > pair[1]),
                "newest first, none twice"
            );
            assert!(
                may_end_early || early == 0,
                "{early} pages of {filter:?} end early"
            );
            if number == KINDS {
                assert_eq!(early > 0, may_end_early, "the first pages are short of others");
            }
        }
    }
    patient.close().await;
}
