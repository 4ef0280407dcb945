// SPDX-License-Identifier: Apache-2.0
//! What a node does by itself: it stops exactly where a minute had more denials than are borne, and knows when that is over.

use proptest::prelude::*;

use super::read;
use crate::policy::{DenialAction, Guard, PolicySet, WINDOW};

const STAGES: &str = "
apiVersion: zt.hanzo.ai/v1
kind: EnforcementRollout
metadata: {name: r}
spec:
  stage: STAGE
  stages:
    - {name: a, identities: [spiffe://hanzo.ai/a], onDenials: {perMinute: 3, action: hold}}
    - {name: b, identities: [spiffe://hanzo.ai/b], onDenials: {perMinute: LIMIT, action: ACTION}}
    - {name: c, identities: [spiffe://hanzo.ai/c]}
";

fn at(stage: &str, limit: u64, action: &str) -> PolicySet {
    read(
        &STAGES
            .replace("STAGE", stage)
            .replace("LIMIT", &limit.to_string())
            .replace("ACTION", action),
    )
}

/// How many stages are in force after `denials` in a second of the stage that the document says.
fn after(guard: &mut Guard, set: &PolicySet, second: u64, denials: u64) -> usize {
    let rollout = super::rollout_of(set);
    guard.count(rollout, (second, 0), denials);
    guard.reached(Some(rollout))
}

#[test]
fn a_rollback_holds_until_somebody_goes_back_behind_the_stage_or_changes_it() {
    let mut guard = Guard::default();
    let b = at("b", 10, "rollback");
    assert_eq!(after(&mut guard, &b, 0, 10), 2, "as many are borne");
    assert_eq!(after(&mut guard, &b, 1, 1), 1);
    let stop = guard.stop().expect("it stopped").clone();
    assert_eq!(
        (stop.stage.as_str(), stop.action, stop.denials),
        ("b", DenialAction::Rollback, 11)
    );
    // The document goes on without looking: this node does not.
    let c = at("c", 10, "rollback");
    assert_eq!(guard.reached(Some(super::rollout_of(&c))), 1);
    // Nor does the next agent of this node.
    let kept = serde_json::to_string(&stop).expect("JSON");
    let mut next = Guard::new(serde_json::from_str(&kept).expect("a stop"));
    assert_eq!(next.reached(Some(super::rollout_of(&c))), 1);
    // What the stage says is another thing now.
    assert_eq!(
        next.reached(Some(super::rollout_of(&at("c", 100, "rollback")))),
        3
    );
    assert!(next.stop().is_none());
    // Back behind it, and on: a second try.
    assert_eq!(
        guard.reached(Some(super::rollout_of(&at("a", 10, "rollback")))),
        1
    );
    assert!(guard.stop().is_none());
    assert_eq!(guard.reached(Some(super::rollout_of(&b))), 2);
    assert_eq!(after(&mut guard, &b, 2, 10), 2, "of the first try nothing counts");
    assert_eq!(guard.reached(None), 0);
}

#[test]
fn a_hold_keeps_the_stage_and_what_comes_after_it_out() {
    let mut guard = Guard::default();
    let b = at("b", 0, "hold");
    assert_eq!(after(&mut guard, &b, 0, 0), 2);
    assert_eq!(after(&mut guard, &b, 1, 1), 2);
    let when = guard.stop().expect("it stopped").clone();
    assert_eq!(after(&mut guard, &b, 2, 50), 2);
    assert_eq!(guard.stop(), Some(&when), "it stopped once");
    assert_eq!(guard.reached(Some(super::rollout_of(&at("c", 0, "hold")))), 2);
}

#[test]
fn who_went_back_is_watched_at_the_stage_where_he_is() {
    let mut guard = Guard::default();
    let b = at("b", 10, "rollback");
    assert_eq!(after(&mut guard, &b, 0, 11), 1);
    assert_eq!(after(&mut guard, &b, 1, 4), 1);
    let stop = guard.stop().expect("it stopped");
    assert_eq!((stop.stage.as_str(), stop.action), ("a", DenialAction::Hold));
}

proptest! {
    /// Against the plainest reading: it stops in the first second that ends a minute with more denials than are borne.
    #[test]
    fn it_stops_where_a_minute_has_too_many(
        limit in 0..60_u64,
        counts in proptest::collection::vec((0..4_u64, 0..8_u64), 1..200),
    ) {
        let set = at("b", limit, "rollback");
        let mut guard = Guard::default();
        let (mut now, mut all) = (0, Vec::new());
        for (pause, denials) in counts {
            now += pause * 7;
            all.push((now, denials));
            let in_minute: u64 = all
                .iter()
                .filter(|(second, _)| second + WINDOW > now)
                .map(|(_, denials)| denials)
                .sum();
            let reached = after(&mut guard, &set, now, denials);
            prop_assert_eq!(reached == 1, in_minute > limit, "{} of {}", in_minute, limit);
            if reached == 1 {
                break;
            }
        }
    }
}
