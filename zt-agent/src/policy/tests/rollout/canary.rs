// SPDX-License-Identifier: Apache-2.0
//! Who is in a canary: always the same ones, more of them and none other when it grows, about as many as it says.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{id, read};
use crate::policy::{EnforcementRollout, Instance, StageMode};
use crate::spiffe_id::SpiffeId;

const PART: &str = "
apiVersion: zt.hanzo.ai/v1
kind: EnforcementRollout
metadata: {name: NAME}
spec:
  stage: a
  stages:
    - name: a
      identities: [spiffe://hanzo.ai/c/*]
      canary: {percent: PERCENT, by: BY}
";

fn part(name: &str, percent: u8, by: &str) -> std::sync::Arc<EnforcementRollout> {
    let text = PART
        .replace("NAME", name)
        .replace("PERCENT", &percent.to_string())
        .replace("BY", by);
    std::sync::Arc::clone(read(&text).rollout().expect("a rollout"))
}

/// A workload somewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Somewhere {
    service: u8,
    node: u8,
    workload: u32,
}

impl Somewhere {
    fn id(&self) -> SpiffeId {
        id(&format!("c/service-{}", self.service))
    }

    fn is_enforced(&self, rollout: &EnforcementRollout) -> bool {
        let (node, workload) = (
            format!("node-{}", self.node),
            format!("kubepods/pod{:08x}", self.workload),
        );
        let at = Instance {
            node: &node,
            workload: Some(&workload),
        };
        rollout.mode_of(rollout.reached(), &self.id(), Some(&at)) == Some(StageMode::Enforce)
    }
}

fn somewhere() -> impl Strategy<Value = Somewhere> {
    (0..5_u8, 0..20_u8, any::<u32>()).prop_map(|(service, node, workload)| Somewhere {
        service,
        node,
        workload,
    })
}

fn by() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("workload"), Just("node")]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A thousand workloads of which most go and others come, again and again: nobody who stays changes sides, whoever comes back
    /// is on the side where it was, and agents that have seen nothing of it agree.
    #[test]
    fn a_canary_does_not_flap_while_workloads_churn(
        first in proptest::collection::btree_set(somewhere(), 1000),
        churn in proptest::collection::vec((any::<u64>(), proptest::collection::vec(somewhere(), 100..400)), 3..6),
        percent in 1..=99_u8,
        by in by(),
    ) {
        let rollout = part("r", percent, by);
        let mut known: BTreeMap<Somewhere, bool> = BTreeMap::new();
        let mut present = first;
        for (seed, others) in churn {
            for one in &present {
                let enforced = one.is_enforced(&rollout);
                prop_assert_eq!(*known.entry(one.clone()).or_insert(enforced), enforced);
            }
            present.retain(|one| (u64::from(one.workload).wrapping_mul(seed | 1) >> 7).is_multiple_of(4));
            present.extend(others);
        }
        let elsewhere = part("r", percent, by);
        for (one, enforced) in &known {
            prop_assert_eq!(one.is_enforced(&elsewhere), *enforced);
        }
    }

    /// A higher percentage takes all that a lower one took, in one stage or in two.
    #[test]
    fn a_canary_that_grows_lets_nobody_go(
        workloads in proptest::collection::vec(somewhere(), 1..400),
        low in 1..=99_u8,
        more in 1..=99_u8,
        by in by(),
    ) {
        let high = low.saturating_add(more).min(100);
        let (narrow, wide) = (part("r", low, by), part("r", high, by));
        for one in &workloads {
            prop_assert!(!one.is_enforced(&narrow) || one.is_enforced(&wide));
        }
        if high == 100 {
            prop_assert!(workloads.iter().all(|one| one.is_enforced(&wide)));
        }
    }
}

fn thousand() -> impl Iterator<Item = Somewhere> {
    (0..1000_u32).map(|n| Somewhere {
        service: (n % 5) as u8,
        node: (n % 251) as u8,
        workload: n.wrapping_mul(2_654_435_761),
    })
}

#[test]
fn a_canary_is_about_as_large_as_it_says() {
    for percent in [1, 10, 25, 50, 90, 99] {
        let rollout = part("r", percent, "workload");
        let taken = thousand().filter(|one| one.is_enforced(&rollout)).count() as i64;
        let wanted = i64::from(percent) * 10;
        // Four standard deviations of a thousand throws of such a coin.
        let spread = (4.0 * (f64::from(percent) * f64::from(100 - percent) / 10.0).sqrt()).ceil() as i64;
        assert!((taken - wanted).abs() <= spread, "{percent} %: {taken}");
    }
}

#[test]
fn a_canary_by_node_takes_whole_nodes_and_another_rollout_others() {
    let rollout = part("r", 40, "node");
    let mut nodes: BTreeMap<u8, bool> = BTreeMap::new();
    for one in thousand() {
        let enforced = one.is_enforced(&rollout);
        assert_eq!(*nodes.entry(one.node).or_insert(enforced), enforced);
    }
    let taken = nodes.values().filter(|enforced| **enforced).count();
    assert!((60..140).contains(&taken), "{taken} of {}", nodes.len());
    let other = part("other", 40, "node");
    assert!(
        thousand().any(|one| one.is_enforced(&rollout) != one.is_enforced(&other)),
        "the same nodes would bear each rollout's risk"
    );
}
