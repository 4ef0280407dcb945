// SPDX-License-Identifier: Apache-2.0
//! What rules decided since their policies were changed is the same from both stores, by the day, by the hour and in parts.

#[path = "../../../zt-agent/src/audit/sqlite/tests/hits/walked.rs"]
mod walked;

use zt_agent::audit::postgres::{Maintainer, Reader};
use zt_agent::audit::query::{Begins, GraphFilter, HOUR, Hits};
use zt_agent::audit::record::{AuditRecord, Entry, Outcome, Timestamp};
use zt_agent::audit::sqlite::{self, Settings, Store};
use zt_agent::audit::store::Sink as _;

use self::walked::walked;
use super::{maker, ship, target, today, with_tables};

const DAY: i64 = 24 * HOUR;
const COUNT: u64 = 6000;

#[tokio::test(flavor = "multi_thread")]
async fn what_rules_decided_since_their_policies_began_is_the_same_from_both_stores() {
    let server = with_tables().await;
    let start = today() - 10 * DAY;
    let kept = ship(&server, &maker(start, 10 * DAY / COUNT as i64, 12), COUNT).await;
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    loop {
        let kept = maintainer.keep(None).await.expect("kept");
        if kept.made + kept.added_up == 0 {
            break;
        }
    }
    maintainer.close().await.expect("closes");
    let whole = "SELECT count(*) FROM zt_audit.whole_day";
    assert!(server.number(whole).expect("a count") >= 9);

    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Settings {
        dsn: format!("sqlite://{}", directory.path().join("audit.db").display()),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: None,
        sync: sqlite::Durability::default(),
    });
    let store = store.await.unwrap();
    let entries: Vec<Entry> = kept.into_iter().map(|kept| kept.entry).collect();
    store.append(&entries, None).await.unwrap();
    let decision = |entry: Entry| match entry {
        Entry::Decision(record) => Some(record),
        _ => None,
    };
    let records: Vec<AuditRecord> = entries.into_iter().filter_map(decision).collect();
    let rules: std::collections::BTreeSet<String> = records
        .iter()
        .filter_map(|record| record.policy_matched.as_deref().map(str::to_owned))
        .collect();
    assert!(rules.len() > 8, "{rules:?}");
    let has_rule = |record: &&AuditRecord| record.policy_matched.is_some();
    let mut decided = records.iter().filter(has_rule);
    assert!(
        decided.all(|record| record.decision == Outcome::Allow),
        "the others have no rule"
    );

    let reader = Reader::new(target(&server, "engine"));
    let piecemeal = reader.clone().adding_up_at_most(64);
    let policy = |number: i64, begin: i64| (format!("policy_{number}"), Timestamp(start + begin));
    let begins = [
        Begins::default(),
        // In the middle of a day that is added up, at its beginning, today, before and after all.
        Begins::new([
            policy(0, 3 * DAY + 7 * HOUR + 1234),
            policy(1, 5 * DAY),
            policy(2, 9 * DAY + 23 * HOUR + HOUR / 2),
            policy(3, -DAY),
            policy(4, 20 * DAY),
            policy(5, 3 * DAY + 7 * HOUR + 99_000),
        ]),
        // In more hours than a range is cut at, with policies that decided nothing.
        Begins::new((0..28).map(|number| policy(number, number % 10 * DAY + number * HOUR / 2))),
    ];
    let at = |hours: i64| Some(Timestamp(start + hours * HOUR));
    let filters = [
        GraphFilter::default(),
        GraphFilter::since(at(50), None),
        GraphFilter::since(at(79), at(83)),
    ];
    let mut counted = 0;
    for begins in &begins {
        for filter in &filters {
            for (what, hits) in [
                ("file", store.rules(filter, begins).await.unwrap()),
                ("server", reader.rules(filter, begins).await.unwrap()),
                ("in parts", piecemeal.rules(filter, begins).await.unwrap()),
            ] {
                for rule in &rules {
                    let decided = hits.get(&Some(rule.clone())).cloned().unwrap_or_default();
                    let current = decided.current(begins.of(Some(rule)));
                    let expected = walked(&records, Some(rule), filter, current.since);
                    assert_eq!(current.hits, expected, "{what} {rule} {filter:?} {begins:?}");
                    let all = walked(&records, Some(rule), filter, None);
                    assert_eq!(decided.all(), all, "{what} {rule} {filter:?}");
                    counted += current.hits.map_or(0, |hits| hits.allowed);
                }
            }
        }
    }
    assert!(counted > 0);
    reader.close().await;
    piecemeal.close().await;
    store.close().await.unwrap();
}
