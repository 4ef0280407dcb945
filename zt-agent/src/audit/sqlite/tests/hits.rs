// SPDX-License-Identifier: Apache-2.0
//! What a rule decided is what a walk through the records finds of it, since its policy is what it is.

mod walked;

use self::walked::walked;
use super::*;
use crate::audit::archive::Archive;
use crate::audit::query::{Begins, Decided, GraphFilter, HOUR, Hits};
use crate::audit::record::Part;

const MINUTE: i64 = 60_000_000_000;

/// The rules that decide here, and nobody.
const RULES: [Option<&str>; 5] = [
    Some("core/rule-1"),
    Some("core/rule-2"),
    Some("edge/rule-1"),
    Some("same/rule-1"),
    None,
];

/// A record some minutes after the one before.
fn some(number: u64, random: u64) -> AuditRecord {
    let mut decision = decision();
    decision.time += number * 7 * MINUTE.unsigned_abs();
    decision.source = [GATEWAY, CHAT][(random % 2) as usize];
    decision.allowed = !random.is_multiple_of(3);
    decision.enforced = !random.is_multiple_of(5);
    let mut record = record_of(&decision, u128::from(number));
    record.policy_matched = RULES[(random / 7 % 5) as usize].map(Arc::from);
    record.count = 1 + random % 3;
    record
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn what_a_rule_decided_is_what_a_walk_finds_since_its_policy_began(
        randoms in proptest::collection::vec(any::<u64>(), 1..70),
        begins in proptest::collection::vec(-60_i64..560, 2),
        cut in 0_u64..40,
    ) {
        let records: Vec<AuditRecord> = (0..).zip(&randoms).map(|(number, random)| some(number, *random)).collect();
        let start = record().timestamp.0;
        let named = ["core", "edge"].into_iter().zip(&begins);
        let begins = Begins::new(named.map(|(name, minutes)| (name.to_owned(), Timestamp(start + minutes * MINUTE))));
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let (_directory, store) = store().await;
            keep(&store, &records).await;
            let before = Timestamp(start + (cut * 7).cast_signed() * MINUTE);
            store.prune_before(before).await.expect("prunes");
            let left = all(&store, &Filter::default()).await;
            assert!(left.iter().all(|record| record.part() == Part::Counts));
            let counts = |decided: &Decided, rule: Option<&str>, filter: &GraphFilter| {
                // By the hour: since it began, or since the hour after.
                let current = decided.current(begins.of(rule));
                assert_eq!(current.hits, walked(&left, rule, filter, current.since), "{rule:?}: {current:?}");
                let last = walked(&left, rule, filter, begins.of(rule)).map(|hits| hits.last_seen);
                assert_eq!(current.last_seen, last, "{rule:?}: {current:?}");
                assert_eq!(decided.all(), walked(&left, rule, filter, None), "{rule:?}");
                current.since
            };
            let hour = |hours: i64| Some(Timestamp(start + hours * HOUR));
            let filters = [GraphFilter::default(), GraphFilter::since(hour(1), hour(5)), GraphFilter::since(hour(3), None)];
            for filter in &filters {
                let hits = store.rules(filter, &begins).await.expect("hits");
                for rule in RULES {
                    let decided = hits.get(&rule.map(str::to_owned)).cloned().unwrap_or_default();
                    counts(&decided, rule, filter);
                }
            }
            // With a look at the records of that hour none is left to the hour after.
            let archive = Archive::from(store);
            for filter in &filters {
                let hits = archive.rules(filter, &begins).await.expect("hits");
                for rule in RULES {
                    let decided = hits.get(&rule.map(str::to_owned)).cloned().unwrap_or_default();
                    assert_eq!(counts(&decided, rule, filter), begins.of(rule));
                }
            }
        });
    }
}
