// SPDX-License-Identifier: Apache-2.0
//! Pages at the borders of hours and days, which the search goes by: whatever is asked for, from wherever on.

use std::collections::HashMap;

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Reader, Writer};
use zt_agent::audit::query::{Cursor, Filter, HOUR, PartyFilter};
use zt_agent::audit::record::{Entry, Kept, Outcome, Timestamp};
use zt_agent::spiffe_id::Pattern;
use zt_tests::entries::spread;
use zt_tests::postgres::Server;

use super::{blocks, kinds, maker, target, today, with_tables};

/// One number after the other, the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 += 1;
        spread(self.0) % most
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    /// A time of the two days before, at, or a nanosecond off a full hour more often than by chance.
    fn time(&mut self) -> i64 {
        let hour = today() - (self.below(48).cast_signed()) * HOUR;
        hour + match self.below(5) {
            0 | 1 => 0,
            2 => -1,
            3 => 1,
            _ => self.below(HOUR.cast_unsigned()).cast_signed(),
        }
    }

    fn filter(&mut self) -> Filter {
        let party = |random: &mut Self| match random.below(5) {
            0 => Some(PartyFilter::Exact(maker(0, 0, 5).name(random.below(5)))),
            1 => Some(PartyFilter::Pattern(
                Pattern::parse("spiffe://hanzo.ai/hanzo-k8s/monitoring/*").unwrap(),
            )),
            _ => None,
        };
        let outcome = if self.one_in(2) {
            Outcome::Deny
        } else {
            Outcome::Allow
        };
        Filter {
            since: self.one_in(3).then(|| Timestamp(self.time())),
            until: self.one_in(2).then(|| Timestamp(self.time())),
            decision: self.one_in(2).then_some(outcome),
            enforced: self.one_in(3).then_some(self.one_in(2)),
            source: party(self),
            destination: party(self),
            port: self.one_in(3).then_some([5432, 443][self.below(2) as usize]),
            ..Filter::default()
        }
    }

    /// Where a page may begin: behind some record, or at a time that none has.
    fn cursor(&mut self, records: &[Kept]) -> Option<Cursor> {
        match self.below(4) {
            0 => None,
            1 => Some(Cursor::at(&records[self.below(records.len() as u64) as usize])),
            _ => Some(Cursor {
                time: self.time(),
                id: [Uuid::nil(), Uuid::max()][self.below(2) as usize],
            }),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_that_is_asked_for_once_from_any_place_on() {
    let server = with_tables().await;
    let mut random = Random(0x0b0_4de4);
    let mut head = Head::new(Uuid::from_u128(3));
    let mut writer = Writer::new(target(&server, "node"));
    let mut made = 0;
    let mut some = |random: &mut Random, number: u64| {
        let first_seq = head.seq + 1;
        let entries = (made..made + number).map(|number| maker(today(), 0, 5).entry(number));
        let decisions = entries.filter_map(|entry| entry.decision().cloned());
        let records: Vec<Kept> = decisions
            .map(|mut record| {
                record.timestamp = Timestamp(random.time());
                let entry = Entry::Decision(record);
                let link = Some(head.link(&entry));
                Kept { entry, link }
            })
            .collect();
        made += number;
        Batch {
            writer: head.writer,
            first_seq,
            dropped: 0,
            records,
        }
    };
    let reader = Reader::new(target(&server, "engine"));
    let (mut there, mut answered): (Vec<Kept>, u32) = (Vec::new(), 0);
    for number in 0..120 {
        if number % 20 == 0 {
            let batch = some(&mut random, 300);
            assert!(writer.ship(&batch).await.expect("shipped"));
            there.extend(batch.records);
        }
        let (filter, from) = (random.filter(), random.cursor(&there));
        let expected: HashMap<Uuid, Kept> = there
            .iter()
            .filter(|kept| filter.takes(&kept.entry) && from.is_none_or(|from| Cursor::at(kept) < from))
            .map(|kept| (kept.entry.id(), kept.clone()))
            .collect();
        let (mut found, mut cursor) = (Vec::new(), from);
        loop {
            let limit = 1 + random.below(40) as u32;
            let page = reader.query(&filter, cursor, limit).await.expect("page");
            assert!(page.records.len() <= limit as usize);
            found.extend(page.records);
            assert!(
                page.next
                    .is_none_or(|next| cursor.is_none_or(|cursor| next < cursor))
            );
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
            if random.one_in(10) {
                let batch = some(&mut random, 3);
                assert!(writer.ship(&batch).await.expect("shipped"));
                there.extend(batch.records);
            }
        }
        let what = format!("{filter:?} from {from:?}");
        assert!(
            found
                .windows(2)
                .all(|pair| Cursor::at(&pair[0]) > Cursor::at(&pair[1])),
            "newest first, none twice: {what}"
        );
        let asked =
            |kept: &Kept| filter.takes(&kept.entry) && from.is_none_or(|from| Cursor::at(kept) < from);
        assert!(found.iter().all(asked), "and no others: {what}");
        let found: HashMap<Uuid, Kept> = found.into_iter().map(|kept| (kept.entry.id(), kept)).collect();
        for (id, kept) in &expected {
            assert_eq!(found.get(id), Some(kept), "each that was there: {what}");
        }
        answered += u32::from(!expected.is_empty());
    }
    assert!(answered > 50, "{answered} of 120 questions have an answer");
    writer.close().await;
}

/// Counts that connections which have ended since have read.
fn counts(server: &Server) -> u64 {
    let read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables
                WHERE schemaname = 'zt_audit' AND relname = 'bucket'";
    server.number(read).expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_full_hour_the_hour_before_is_looked_through_and_not_each_kind_of_its_day() {
    const KINDS: u64 = 20_000;
    let server = with_tables().await;
    let (start, noon) = (today(), today() + 12 * HOUR);
    // All in the hour before noon, and one at noon.
    let day = start / (24 * HOUR);
    let ports = format!("generate_series(1, {KINDS})");
    let before = kinds::shapes(day, "ALLOW", &ports)
        + &kinds::one_of_each(day, "ALLOW", &format!("{noon} - port::bigint * 1000"))
        + &kinds::shapes(day, "DENY", "generate_series(1, 1)")
        + &kinds::one_of_each(day, "DENY", &noon.to_string())
        + "ANALYZE;";
    server.sql(&before).expect("inserted");
    let allowed = Filter {
        decision: Some(Outcome::Allow),
        ..Filter::default()
    };
    let at_noon = Cursor {
        time: noon,
        id: Uuid::max(),
    };
    let until_noon = Filter {
        until: Some(Timestamp(noon)),
        ..allowed.clone()
    };
    for (filter, cursor) in [(&allowed, Some(at_noon)), (&until_noon, None)] {
        let before = (blocks(&server).await, counts(&server));
        let reader = Reader::new(target(&server, "engine"));
        let page = reader.query(filter, cursor, 100).await.expect("page");
        reader.close().await;
        let looked_at = (blocks(&server).await - before.0, counts(&server) - before.1);
        let times: Vec<i64> = page.records.iter().map(|kept| kept.entry.timestamp().0).collect();
        assert_eq!(
            times,
            (1..=100).map(|port| noon - port * 1000).collect::<Vec<_>>()
        );
        let what = format!("{looked_at:?} for a page of {filter:?} from {cursor:?}");
        assert!(looked_at.0 < KINDS, "{what}: blocks");
        assert!(looked_at.1 < 100, "{what}: counts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn days_of_many_kinds_are_read_page_by_page() {
    let server = with_tables().await;
    let day = |days: i64| today() - days * 24 * HOUR;
    // More than are looked up one by one: in each hour of a day, in all hours of it, and in two days together.
    let days = [(0, 20_000, 2), (1, 17_000, 24), (4, 9000, 24), (5, 9000, 24)];
    for (days, kinds, hours) in days {
        kinds::day_of(&server, day(days), kinds, hours);
    }
    let reader = Reader::new(target(&server, "engine"));
    let of = |decision, port| Filter {
        decision,
        port,
        ..Filter::default()
    };
    for (filter, number) in [
        (of(Some(Outcome::Allow), None), 55_000),
        (of(None, Some(8999)), 4),
        (of(Some(Outcome::Allow), Some(19_999)), 1),
        (of(Some(Outcome::Deny), None), 0),
    ] {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = reader.query(&filter, cursor, 1000).await.expect("page");
            assert!(
                page.next.is_none() || page.records.len() == 1000,
                "no page ends early"
            );
            found.extend(page.records.iter().map(Cursor::at));
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(found.len(), number, "{filter:?}");
        assert!(
            found.windows(2).all(|pair| pair[0] > pair[1]),
            "newest first, none twice"
        );
    }
    reader.close().await;
}
