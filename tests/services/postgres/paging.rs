// SPDX-License-Identifier: Apache-2.0
//! Whatever comes in between, whatever the size of the pages: who reads on from page to page has had each record that was
//! there at the start, once, the newest first.

#[path = "../../../zt-agent/src/audit/sqlite/tests/paging/model.rs"]
mod model;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::test_runner::{Config, TestRunner};
use uuid::Uuid;
use zt_agent::audit::AuditRecord;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Reader, Writer};
use zt_agent::audit::query::{Cursor, Filter, HOUR, PartyFilter};
use zt_agent::audit::record::{Entry, Kept, Outcome, Timestamp, party};
use zt_tests::postgres::Server;

use self::model::{Case, Made, case, holds};
use super::{kinds, maker, target, today, with_tables};

/// The sources of the records of a case; asked for is the first.
const SOURCES: [&str; 2] = [
    "spiffe://hanzo.ai/hanzo-k8s/hanzo/chat",
    "spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway",
];
/// Nodes that write at the same time.
const NODES: u64 = 3;
const SECOND: i64 = 1_000_000_000;
/// Each case has a stretch of the day for itself: more than a record may lie behind its beginning.
const STRETCH: i64 = 20 * SECOND;
/// Cases, and as many again to make one that fails smaller: the day has room for all.
const CASES: u32 = 16;
const SMALLER: u32 = 400;

/// One who writes.
struct Node {
    head: Head,
    writer: Writer,
}

/// Those who write the records of one case.
struct Shippers {
    like: AuditRecord,
    start: i64,
    made: u64,
    nodes: Vec<Node>,
}

impl Shippers {
    fn new(server: &Server, number: i64) -> Self {
        let like = (0..1000).find_map(|number| match maker(today(), 0, 20).entry(number) {
            Entry::Decision(record) => Some(record),
            _ => None,
        });
        let nodes = (1..=NODES).map(|node| Node {
            head: Head::new(Uuid::from_u64_pair(number.cast_unsigned() + 1, node)),
            writer: Writer::new(target(server, "node")),
        });
        Self {
            like: like.expect("most are decisions"),
            start: today() + number * STRETCH,
            made: 0,
            nodes: nodes.collect(),
        }
    }

    fn record(&mut self, (time, random): Made) -> AuditRecord {
        self.made += 1;
        let mut record = self.like.clone();
        record.timestamp = Timestamp(self.start + i64::from(time) * SECOND);
        record.id = Uuid::from_u64_pair(random, self.made);
        let source = SOURCES[usize::from(!random.is_multiple_of(3))];
        (record.source.spiffe_id, record.source.entity) = party(Arc::from(source));
        record
    }

    /// Each is shipped by one of the nodes.
    async fn ship(&mut self, several: &[Made]) -> Vec<Kept> {
        let mut batches: Vec<Vec<Kept>> = vec![Vec::new(); self.nodes.len()];
        for made in several {
            let entry = Entry::Decision(self.record(*made));
            let node = (made.1 % NODES) as usize;
            let link = Some(self.nodes[node].head.link(&entry));
            batches[node].push(Kept { entry, link });
        }
        for (node, records) in self.nodes.iter_mut().zip(&batches) {
            if records.is_empty() {
                continue;
            }
            let batch = Batch {
                writer: node.head.writer,
                first_seq: node.head.seq + 1 - records.len() as u64,
                dropped: 0,
                records: records.clone(),
            };
            assert!(node.writer.ship(&batch).await.expect("shipped"));
        }
        batches.concat()
    }
}

/// Goes through a case: what was there at the start, what was read, and what was asked for.
async fn read(server: &Server, reader: &Reader, number: i64, case: &Case) -> (Vec<Kept>, Vec<Kept>, Filter) {
    let mut shippers = Shippers::new(server, number);
    let filter = Filter {
        since: Some(Timestamp(shippers.start)),
        until: Some(Timestamp(shippers.start + STRETCH)),
        source: case
            .of_one_source
            .then(|| PartyFilter::Exact(SOURCES[0].to_owned())),
        ..Filter::default()
    };
    let start = shippers.ship(&case.first).await;
    let (mut found, mut cursor) = (Vec::new(), None);
    for round in 0.. {
        let size = case.size(round);
        let page = reader.query(&filter, cursor, size).await.expect("page");
        assert!(page.records.len() <= size as usize);
        found.extend(page.records);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        shippers.ship(case.comes(round)).await;
    }
    for node in shippers.nodes {
        node.writer.close().await;
    }
    (start, found, filter)
}

#[test]
fn each_record_once_and_the_newest_first() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let server = runtime.block_on(with_tables());
    let reader = runtime.block_on(async { Reader::new(target(&server, "engine")) });
    let next = AtomicI64::new(0);
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        max_shrink_iters: SMALLER,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&case(), |case| {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let (start, found, filter) = runtime.block_on(read(&server, &reader, number, &case));
        let place = |kept: &Kept| (kept.entry.timestamp(), kept.entry.id());
        holds(&start, &found, place, |kept| filter.takes(&kept.entry))
    });
    runtime.block_on(reader.close());
    if let Err(error) = outcome {
        panic!("{error}");
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
