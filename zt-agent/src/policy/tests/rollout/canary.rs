// SPDX-License-Identifier: Apache-2.0
//! Who is in a canary: always the same ones, more of them and none other when it grows, about as many as it says.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{id, read};
use crate::policy::{EnforcementRollout, Instance, Replica, StageMode};
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
            workload: Some(Replica::Cgroup(&workload)),
        };
        rollout.mode_of(rollout.reached(), &self.id(), Some(&at)) == Some(StageMode::Enforce)
    }
}

/// Whether a pod of `web` is taken, on this node.
fn takes_pod(rollout: &EnforcementRollout, node: &str, pod: &str) -> bool {
    let at = Instance {
        node,
        workload: Some(Replica::Pod(pod)),
    };
    rollout.mode_of(rollout.reached(), &id("c/web"), Some(&at)) == Some(StageMode::Enforce)
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

    /// A thousand pods that go and come back, on other nodes too: each stays on its side, and about as many are taken as before.
    #[test]
    fn pods_that_move_and_start_again_stay_on_their_side(
        moves in proptest::collection::vec((0..1000_u32, 0..20_u8), 1000),
        percent in 1..=99_u8,
    ) {
        let rollout = part("r", percent, "workload");
        let mut side: BTreeMap<u32, bool> = BTreeMap::new();
        for (pod, node) in moves {
            let taken = takes_pod(&rollout, &format!("node-{node}"), &format!("hanzo/web-{pod}"));
            prop_assert_eq!(*side.entry(pod).or_insert(taken), taken, "web-{}", pod);
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

/// Whom a canary takes is kept nowhere: an agent of another version must take the same ones, so this list must never change.
#[test]
fn an_agent_of_another_version_takes_the_same_ones() {
    let rollout = part("r", 30, "workload");
    let pods: Vec<u32> = (0..40)
        .filter(|pod| takes_pod(&rollout, "node-1", &format!("hanzo/web-{pod}")))
        .collect();
    assert_eq!(pods, PODS);
    let others: Vec<u32> = (0..40)
        .filter(|workload| {
            Somewhere {
                service: 1,
                node: 2,
                workload: *workload,
            }
            .is_enforced(&rollout)
        })
        .collect();
    assert_eq!(others, OTHERS);
    let by_node = part("r", 30, "node");
    let nodes: Vec<u32> = (0..40)
        .filter(|node| takes_pod(&by_node, &format!("node-{node}"), "hanzo/web"))
        .collect();
    assert_eq!(nodes, NODES);
}

/// See [`an_agent_of_another_version_takes_the_same_ones`].
const PODS: &[u32] = &[3, 6, 7, 13, 16, 22, 24, 30, 32];
/// The same of what is no pod.
const OTHERS: &[u32] = &[0, 7, 9, 10, 11, 16, 17, 18, 19, 22, 26, 30, 34, 37, 39];
/// The same of nodes.
const NODES: &[u32] = &[4, 10, 13, 14, 15, 17, 18, 23, 29, 30, 35, 39];

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
