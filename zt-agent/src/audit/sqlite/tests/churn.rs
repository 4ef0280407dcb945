// SPDX-License-Identifier: Apache-2.0
//! Names that nothing refers to any more, and numbers that nobody looks up.

mod outlived;

use std::collections::{BTreeSet, VecDeque};

use super::*;
use crate::audit::clock;
use crate::audit::spool::{Spool, WhenFull};

const DAY: i64 = 86_400_000_000_000;
const PATIENCE: Duration = Duration::from_secs(120);

/// What refers to a name that is not there.
const DANGLING: &str = "
SELECT count(*) FROM (
    SELECT source AS id FROM shape UNION SELECT destination FROM shape UNION SELECT rule FROM shape
    UNION SELECT source_node FROM shape UNION SELECT destination_node FROM shape UNION SELECT cluster FROM shape
    UNION SELECT source_pod FROM record UNION SELECT destination_pod FROM record
) WHERE id <> 0 AND id NOT IN (SELECT id FROM name)";

/// Records of a pod each, some microseconds apart from a time on.
fn of_pods(numbers: std::ops::Range<u64>, time: i64) -> Vec<AuditRecord> {
    numbers
        .map(|number| {
            let mut record = record_of(&decision(), u128::from(number));
            record.timestamp = Timestamp(time + number as i64 * 1000);
            record.source.pod = Some(Arc::from(format!("client-{number}")));
            record.destination.pod = Some(Arc::from("server-0"));
            record
        })
        .collect()
}

/// The names that these records have.
fn of<'r>(records: impl IntoIterator<Item = &'r AuditRecord>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for record in records {
        let entry = Entry::Decision(record.clone());
        found.extend(
            names::names_of(&entry)
                .into_iter()
                .flatten()
                .map(ToString::to_string),
        );
    }
    found
}

/// The names that the file has.
async fn texts(store: &Store) -> BTreeSet<String> {
    let texts: Vec<String> = sqlx::query_scalar("SELECT text FROM name")
        .fetch_all(&store.readers)
        .await
        .expect("names");
    texts.into_iter().collect()
}

async fn count(store: &Store, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql)
        .fetch_one(&store.readers)
        .await
        .expect("a count")
}

/// One step, without a rest before it; says whether nothing is left.
async fn step(store: &Store) -> bool {
    let mut writer = store.writing().await.expect("its turn");
    unused::step(&mut writer).await.expect("looks")
}

/// Looks after a store as an agent does until it has these names and no others.
async fn pruned_until(store: &Store, wanted: &BTreeSet<String>) {
    let looking = async {
        while texts(store).await != *wanted {
            store.prune().await.expect("prunes");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let looked = tokio::time::timeout(PATIENCE, looking).await;
    looked.expect("the names of what has gone go");
}

async fn with_retention(directory: &TempDir) -> Store {
    let settings = Settings {
        retention_days: Some(1),
        ..settings(directory)
    };
    Store::open(settings).await.expect("opens")
}

#[tokio::test]
async fn names_go_with_the_last_record_that_has_them() {
    let directory = tempfile::tempdir().expect("directory");
    let store = with_retention(&directory).await;
    let now = clock::now();
    for from in (0..10_000).step_by(2_000) {
        keep(&store, &of_pods(from..from + 2_000, now - 2 * DAY)).await;
    }
    let stayed = of_pods(10_000..10_005, now);
    keep(&store, &stayed).await;
    assert!(texts(&store).await.len() > 10_000);
    pruned_until(&store, &of(&stayed)).await;
    assert_eq!(all(&store, &Filter::default()).await.len(), stayed.len());
    assert_eq!(count(&store, DANGLING).await, 0);
}

#[tokio::test]
async fn only_who_records_removes_names() {
    let directory = tempfile::tempdir().expect("directory");
    let store = with_retention(&directory).await;
    let now = clock::now();
    keep(&store, &of_pods(0..100, now - 2 * DAY)).await;
    let mut stayed = of_pods(100..110, now);
    keep(&store, &stayed).await;
    let visitor = Store::visit(store.settings.clone()).await.expect("opens");
    while visitor.prune().await.expect("makes room").more {}
    assert_eq!(visitor.totals().await.expect("totals").pruned, 100);
    assert!(texts(&store).await.len() > 100);
    let again = of_pods(0..10, now + 1_000_000);
    keep(&store, &again).await;
    stayed.extend(again);
    pruned_until(&store, &of(&stayed)).await;
    assert_eq!(all(&store, &Filter::default()).await.len(), stayed.len());
    assert_eq!(count(&store, DANGLING).await, 0);
}

#[tokio::test]
async fn what_an_earlier_version_left_behind_goes() {
    const LEFT: &str = "
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
        INSERT INTO name (text) SELECT 'a-pod-of-long-ago-' || i FROM n";
    let directory = tempfile::tempdir().expect("directory");
    let store = with_retention(&directory).await;
    let now = clock::now();
    keep(&store, &of_pods(0..100, now - 2 * DAY)).await;
    store.meddle(LEFT).await;
    let stayed = of_pods(100..110, now);
    keep(&store, &stayed).await;
    assert_eq!(
        count(
            &store,
            "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'name_%'"
        )
        .await,
        0,
        "a file as that version makes it"
    );
    store.close().await.expect("closes");
    let store = with_retention(&directory).await;
    pruned_until(&store, &of(&stayed)).await;
    assert_eq!(all(&store, &Filter::default()).await.len(), stayed.len());
    assert_eq!(count(&store, DANGLING).await, 0);
}

/// Shapes stay in a spool for their hour, and what they refer to stays with them.
#[tokio::test]
async fn names_leave_a_spool_with_what_was_shipped() {
    let directory = tempfile::tempdir().expect("directory");
    let spool = Spool::open(settings(&directory), WhenFull::Oldest)
        .await
        .expect("opens");
    let now = clock::now();
    let mut of_no_pod = record();
    of_no_pod.source.pod = None;
    let shape = of([&of_no_pod]);
    let store = spool.store();
    let emptied = async |numbers: std::ops::Range<u64>| {
        let records = of_pods(numbers, now);
        let entries: Vec<Entry> = records.into_iter().map(Entry::Decision).collect();
        spool.append(&entries, None).await.expect("kept");
        let last = store.head().await.expect("a head").seq;
        let shipping = Shipping {
            shipped: last,
            planned: last,
            ..store.shipping().await.expect("reads")
        };
        store.discard(last, &shipping).await.expect("removed");
    };
    // The newest stays.
    let most = shape.len() + 1;
    for round in 0..10 {
        emptied(round * 1_000..(round + 1) * 1_000).await;
        while !step(store).await {}
        let left = texts(store).await;
        assert!(left.is_superset(&shape) && left.len() <= most, "{left:?}");
        assert_eq!(count(store, DANGLING).await, 0);
    }
    emptied(10_000..11_000).await;
    let looking = async {
        while texts(store).await.len() > most {
            spool.prune().await.expect("looks");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let looked = tokio::time::timeout(PATIENCE, looking).await;
    looked.expect("an agent that ships looks for them as well");
    // By the shape that is there already.
    let again = of_pods(0..10, now);
    keep(store, &again).await;
    let last = store.head().await.expect("a head").seq;
    let found = store.range(last - 9, last).await.expect("reads");
    let found: Vec<Kept> = found.into_iter().map(|(_, kept)| kept.expect("whole")).collect();
    assert_eq!(decided(found), again);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_may_come_back_while_it_goes() {
    const PODS: u64 = 50;
    const BATCH: u64 = 5;
    let (_directory, store) = store().await;
    let store = Arc::new(store);
    let mut made = of_pods(0..1000, 0);
    for (number, record) in (0..).zip(&mut made) {
        record.source.pod = Some(Arc::from(format!("client-{}", number % PODS)));
    }
    let writing = {
        let (store, made) = (Arc::clone(&store), made.clone());
        tokio::spawn(async move {
            for batch in made.chunks(BATCH as usize) {
                keep(&store, batch).await;
            }
        })
    };
    while !writing.is_finished() {
        let head = store.head().await.expect("a head").seq;
        if let Some(first) = head.checked_sub(2 * BATCH) {
            let time = made[first as usize].timestamp;
            store.prune_before(time).await.expect("removes");
        }
        step(&store).await;
    }
    writing.await.expect("no panic");
    let found = all(&store, &Filter::default()).await;
    assert!(found.len() >= 2 * BATCH as usize);
    let newest_first: Vec<AuditRecord> = made.into_iter().rev().take(found.len()).collect();
    assert_eq!(found, newest_first);
    assert_eq!(count(&store, DANGLING).await, 0);
}

#[tokio::test]
async fn a_step_that_is_given_up_half_way_is_taken_again() {
    for micros in [0, 300, 1_000, 3_000, 10_000] {
        let (_directory, store) = store().await;
        let made = of_pods(0..2_000, 0);
        keep(&store, &made).await;
        store.prune_before(made[1_990].timestamp).await.expect("removes");
        {
            let mut writer = store.writing().await.expect("its turn");
            let step = unused::step(&mut writer);
            tokio::pin!(step);
            tokio::select! {
                biased;
                stepped = &mut step => assert!(stepped.expect("looks")),
                () = tokio::time::sleep(Duration::from_micros(micros)) => {}
            }
        }
        // Some of these may have gone. The last is the newest in any case.
        let mut again = of_pods(0..20, 10_000_000);
        again.extend(of_pods(5_000..5_001, 10_000_000));
        keep(&store, &again).await;
        while !step(&store).await {}
        let mut left = made[1_990..].to_vec();
        left.extend(again);
        assert_eq!(texts(&store).await, of(&left), "{micros}");
        left.reverse();
        assert_eq!(all(&store, &Filter::default()).await, left, "{micros}");
        assert_eq!(count(&store, DANGLING).await, 0, "{micros}");
    }
}

#[tokio::test]
async fn a_name_that_cannot_go_holds_nothing_up() {
    const STAY: &str =
        "CREATE TRIGGER stay BEFORE DELETE ON name BEGIN SELECT RAISE(ABORT, 'the test refuses it'); END";
    let directory = tempfile::tempdir().expect("directory");
    let store = with_retention(&directory).await;
    let now = clock::now();
    store.meddle(STAY).await;
    keep(&store, &of_pods(0..100, now - 2 * DAY)).await;
    let stayed = of_pods(100..110, now);
    keep(&store, &stayed).await;
    while store.prune().await.expect("makes room").more {}
    assert_eq!(all(&store, &Filter::default()).await.len(), stayed.len());
    assert!(texts(&store).await.len() > 100);
    store.meddle("DROP TRIGGER stay").await;
    while !step(&store).await {}
    assert_eq!(texts(&store).await, of(&stayed));
}

#[tokio::test]
async fn numbers_go_when_many_were_noted_after_them() {
    const ROWS: &str = "SELECT count(*) FROM number";
    let (_directory, store) = store().await;
    let named = |number: u64| Named {
        kind: Kind::Identity,
        number,
        text: Arc::from(format!("spiffe://hanzo.ai/app/{number}")),
    };
    let kept = carried::NAMES as u64;
    let all = kept + 5_000;
    let numbers: Vec<Named> = (0..all).map(named).collect();
    for some in numbers.chunks(10_000) {
        store.remember(some).await.expect("stores");
    }
    assert_eq!(count(&store, ROWS).await, all as i64);
    let looking = async {
        while count(&store, ROWS).await > kept as i64 {
            store.prune().await.expect("looks");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("they go");
    let found = store.remembered(usize::MAX).await.expect("reads");
    assert_eq!(found.len() as u64, kept);
    assert_eq!(found.first(), Some(&named(all - 1)));
    assert_eq!(found.last(), Some(&named(all - kept)));
}

/// What is done to a trail.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// A record comes, of an identity and a pod.
    Keep(u8, u8),
    /// So many of the oldest go.
    Remove(u8),
    Step,
    /// The agent is killed, and the next one goes on.
    Kill,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => (0..5_u8, 0..8_u8).prop_map(|(identity, pod)| Deed::Keep(identity, pod)),
        2 => (1..6_u8).prop_map(Deed::Remove),
        3 => Just(Deed::Step),
        1 => Just(Deed::Kill),
    ]
}

async fn names_after(deeds: Vec<Deed>) {
    let directory = tempfile::tempdir().expect("directory");
    let mut store = Store::open(settings(&directory)).await.expect("opens");
    let (mut kept, mut made) = (VecDeque::new(), 0);
    for deed in deeds {
        match deed {
            Deed::Keep(identity, pod) => {
                let mut record = of_pods(made..made + 1, 0).remove(0);
                record.source.spiffe_id = Some(Arc::from(format!("spiffe://hanzo.ai/app/{identity}")));
                record.source.pod = Some(Arc::from(format!("client-{pod}")));
                made += 1;
                keep(&store, std::slice::from_ref(&record)).await;
                kept.push_back(record);
            }
            Deed::Remove(count) => {
                kept.drain(..usize::from(count).min(kept.len()));
                let first = kept
                    .front()
                    .map_or(Timestamp(i64::MAX), |record: &AuditRecord| record.timestamp);
                store.prune_before(first).await.expect("removes");
            }
            Deed::Step => {
                step(&store).await;
            }
            Deed::Kill => {
                drop(store);
                store = Store::open(settings(&directory)).await.expect("opens again");
            }
        }
    }
    while !step(&store).await {}
    let newest_first: Vec<AuditRecord> = kept.iter().rev().cloned().collect();
    assert_eq!(all(&store, &Filter::default()).await, newest_first);
    assert_eq!(count(&store, DANGLING).await, 0);
    let newest: Option<String> = sqlx::query_scalar("SELECT text FROM name ORDER BY id DESC LIMIT 1")
        .fetch_optional(&store.readers)
        .await
        .expect("reads");
    let mut wanted = of(&kept);
    wanted.extend(newest);
    assert_eq!(texts(&store).await, wanted);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn names_are_those_of_what_is_kept(deeds in prop::collection::vec(deed(), 1..60)) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(names_after(deeds));
    }
}
