// SPDX-License-Identifier: Apache-2.0
//! What a node does by itself: it stops exactly where a minute had more denials than are borne, and knows when that is over.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::read;
use crate::policy::{
    DenialAction, DeniedEdge, Edge, Guard, GuardOutcome, PolicySet, Refusals, StopCause, WINDOW,
};

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

fn edge(number: u64) -> Edge {
    Edge {
        source: number,
        destination: number + 1,
        port: 80,
    }
}

fn told(edge: &Edge, refusals: &Refusals) -> DeniedEdge {
    DeniedEdge {
        source: edge.source.to_string(),
        destination: edge.destination.to_string(),
        port: edge.port,
        protocol: refusals.protocol.to_string(),
        times: refusals.times,
    }
}

/// Takes up that these were refused, once each, in that second.
fn count<'g>(
    guard: &'g mut Guard,
    set: &PolicySet,
    second: u64,
    edges: impl IntoIterator<Item = u64>,
) -> GuardOutcome<'g> {
    let refusals = Refusals {
        protocol: 6,
        times: 1,
        last: second,
    };
    let refused = edges.into_iter().map(|number| (edge(number), refusals));
    guard.count(super::rollout_of(set), (second, second * 1000), refused, told)
}

/// How many stages are in force after that many different denials in a second of the stage that the document says.
fn after(guard: &mut Guard, set: &PolicySet, second: u64, denials: u64) -> usize {
    // None of them is one of another second.
    count(
        guard,
        set,
        second,
        (0..denials).map(|number| (second + 1) << 20 | number),
    );
    guard.reached(Some(super::rollout_of(set)))
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
    let mut next = Guard::new(serde_json::from_str(&kept).expect("a stop"), None);
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
fn a_document_that_is_gone_for_a_moment_is_not_another_try() {
    let mut guard = Guard::default();
    let b = at("b", 0, "rollback");
    assert_eq!(after(&mut guard, &b, 0, 1), 1);
    assert_eq!(guard.reached(None), 0);
    assert_eq!(guard.reached(Some(super::rollout_of(&b))), 1);
    assert!(guard.resume().is_some() && guard.stop().is_none());
    assert_eq!(guard.reached(Some(super::rollout_of(&b))), 2);
    assert!(guard.resume().is_none());
}

#[test]
fn different_connections_count_and_not_attempts() {
    let mut guard = Guard::default();
    let b = at("b", 2, "rollback");
    for second in 0..WINDOW {
        assert_eq!(count(&mut guard, &b, second, [1, 2, 1, 2, 1]), GuardOutcome::Goes);
    }
    let GuardOutcome::Stopped(stop) = count(&mut guard, &b, WINDOW - 1, [3]) else {
        panic!("a third one");
    };
    assert_eq!(stop.denials, 3);
    let times: Vec<(&str, u64)> = stop
        .edges
        .iter()
        .map(|edge| (&*edge.source, edge.times))
        .collect();
    assert_eq!(times, [("1", 3 * WINDOW), ("2", 2 * WINDOW), ("3", 1)]);
}

/// Fails where fewer are told apart than a document may say are borne.
#[test]
fn the_highest_limit_is_as_high_as_it_says() {
    let mut guard = Guard::default();
    let b = at("b", 65_535, "rollback");
    assert_eq!(after(&mut guard, &b, 0, 65_535), 2, "as many are borne");
    assert_eq!(after(&mut guard, &b, 1, 1), 1);
    assert_eq!(guard.stop().expect("it stopped").denials, 65_536);
}

#[test]
fn a_limit_beyond_what_is_told_apart_is_the_highest() {
    let mut guard = Guard::default();
    let b = at("b", 1_000_000, "rollback");
    assert_eq!(after(&mut guard, &b, 0, 65_535), 2, "as many are borne");
    assert_eq!(after(&mut guard, &b, 1, 1), 1);
    let stop = guard.stop().expect("it stopped");
    assert_eq!((stop.denials, stop.per_minute), (65_536, 65_535));
    let warnings = |set: &PolicySet| set.rollout().expect("a rollout").limits_beyond_reach();
    let told = warnings(&b);
    assert!(told.len() == 1 && told[0].contains("acts as 65535"), "{told:?}");
    assert!(warnings(&at("b", 65_535, "rollback")).is_empty());
}

#[test]
fn what_happened_before_the_minute_does_not_count_whenever_it_is_told() {
    let mut guard = Guard::default();
    let b = at("b", 3, "rollback");
    // An agent that was away: all of five minutes at once.
    let refused = (0..75).map(|number| {
        let refusals = Refusals {
            protocol: 6,
            times: 1,
            last: number * 4,
        };
        (edge(number), refusals)
    });
    let rollout = super::rollout_of(&b);
    assert!(matches!(
        guard.count(rollout, (300, 0), refused, told),
        GuardOutcome::Stopped(stop) if stop.denials == 14
    ));
    let mut guard = Guard::default();
    let past = (0..75).map(|number| {
        let refusals = Refusals {
            protocol: 6,
            times: 1,
            last: number * 3,
        };
        (edge(number), refusals)
    });
    assert_eq!(guard.count(rollout, (300, 0), past, told), GuardOutcome::Goes);
}

#[test]
fn a_limit_holds_for_its_time_and_that_is_told_once() {
    let mut guard = Guard::default();
    let b = at("b", 0, "rollback");
    guard.reached(Some(super::rollout_of(&b)));
    guard.begin(1000, 7);
    let armed = guard.armed().expect("it began").clone();
    assert_eq!((armed.since, armed.revision, armed.over), (1000, 7, false));
    // Whoever is the next agent knows it, and how much of it is left.
    let mut next = Guard::new(None, Some(armed.clone()));
    assert_eq!(count(&mut next, &b, 3600, []), GuardOutcome::Goes);
    assert_eq!(count(&mut next, &b, 3601, [1]), GuardOutcome::Over);
    assert_eq!(count(&mut next, &b, 3602, [1, 2, 3]), GuardOutcome::Goes);
    let over = next.armed().expect("it is kept").clone();
    let mut third = Guard::new(None, Some(over));
    assert_eq!(count(&mut third, &b, 3603, [1]), GuardOutcome::Goes);
    // A stage that says something else, or is reached anew, begins anew.
    let other = at("b", 0, "hold");
    assert!(matches!(
        count(&mut next, &other, 4000, [1]),
        GuardOutcome::Stopped(_)
    ));
    assert_eq!(third.reached(Some(super::rollout_of(&at("a", 0, "rollback")))), 1);
    assert!(third.armed().is_none());
    assert!(matches!(
        count(&mut third, &b, 9000, [1]),
        GuardOutcome::Stopped(_)
    ));
}

#[test]
fn where_it_is_not_known_whether_a_node_stopped_it_goes_no_further_than_it_may_have() {
    let known = |stage: &str, action: &str| {
        let mut guard = Guard::unread(5);
        let set = at(stage, 10, action);
        let reached = guard.reached(Some(super::rollout_of(&set)));
        (reached, guard.stop().cloned())
    };
    let (reached, stop) = known("c", "rollback");
    let stop = stop.expect("a stop");
    assert_eq!(
        (reached, &*stop.stage, stop.cause, stop.at),
        (1, "b", StopCause::Unreadable, 5)
    );
    assert_eq!(known("c", "hold").0, 2);
    assert_eq!(known("a", "hold").0, 1);
    let mut guard = Guard::unread(5);
    assert_eq!((guard.reached(None), guard.is_known()), (0, false));
    let unlimited = read(
        &STAGES
            .replace("STAGE", "b")
            .replace(", onDenials: {perMinute: LIMIT, action: ACTION}", "")
            .replace(", onDenials: {perMinute: 3, action: hold}", ""),
    );
    assert_eq!(guard.reached(Some(super::rollout_of(&unlimited))), 2);
    assert!(guard.stop().is_none() && guard.is_known());
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

/// Fails where the limit of a stage that had been passed holds anew: a node could be pressed back to the first one.
#[test]
fn who_went_back_goes_back_no_further() {
    let all = STAGES.replace("action: hold", "action: rollback");
    let b = read(
        &all.replace("STAGE", "b")
            .replace("LIMIT", "10")
            .replace("ACTION", "rollback"),
    );
    let mut guard = Guard::default();
    assert_eq!(after(&mut guard, &b, 0, 11), 1);
    guard.begin(1000, 7);
    assert_eq!(guard.armed(), None, "no time begins there");
    assert_eq!(after(&mut guard, &b, 1, 50), 1);
    let stop = guard.stop().expect("it stopped").clone();
    assert_eq!((stop.stage.as_str(), stop.denials), ("b", 11));
    // Nor after a restart.
    let mut next = Guard::new(Some(stop), None);
    assert_eq!(after(&mut next, &b, 2, 50), 1);
    // Whoever has it go on has the limit hold, too; and so does whoever goes back himself.
    next.resume();
    assert_eq!(after(&mut next, &b, 3, 11), 1);
    let a = read(
        &all.replace("STAGE", "a")
            .replace("LIMIT", "10")
            .replace("ACTION", "rollback"),
    );
    assert_eq!(after(&mut next, &a, 4, 4), 0);
}

/// Fails where different connections are all that counts: one that is broken altogether is one.
#[test]
fn how_often_one_connection_is_refused_counts_where_a_limit_says_so() {
    let refused = |times: u64, second: u64| {
        let refusals = Refusals {
            protocol: 6,
            times,
            last: second,
        };
        (edge(1), refusals)
    };
    let limited = |attempts: &str| {
        read(
            &STAGES
                .replace("LIMIT", &format!("20{attempts}"))
                .replace("STAGE", "b")
                .replace("ACTION", "rollback"),
        )
    };
    let set = limited("");
    let mut guard = Guard::default();
    for second in 0..WINDOW {
        let outcome = guard.count(
            super::rollout_of(&set),
            (second, 0),
            [refused(10_000, second)],
            told,
        );
        assert_eq!(outcome, GuardOutcome::Goes);
    }
    let set = limited(", attemptsPerMinute: 600");
    let rollout = super::rollout_of(&set);
    let mut guard = Guard::default();
    for second in 0..10 * WINDOW {
        let outcome = guard.count(rollout, (second, 0), [refused(10, second)], told);
        assert_eq!(outcome, GuardOutcome::Goes, "as many are borne, in each minute");
    }
    let GuardOutcome::Stopped(stop) = guard.count(rollout, (599, 0), [refused(1, 599)], told) else {
        panic!("one more");
    };
    assert_eq!((stop.denials, stop.attempts), (1, 601));
    assert_eq!((stop.per_minute, stop.attempts_per_minute), (20, Some(600)));
    assert_eq!(stop.edges[0].times, 601, "of the minute, not of the ten before");
}

proptest! {
    /// Against the plainest reading: it stops in the first second that ends a minute with more denials, or attempts, than are borne.
    #[test]
    fn it_stops_where_a_minute_has_too_many(
        limit in 0..60_u64,
        most in proptest::option::of(0..300_u64),
        counts in proptest::collection::vec((0..4_u64, 0..8_u64), 1..200),
    ) {
        let attempts = most.map_or_else(String::new, |most| format!(", attemptsPerMinute: {most}"));
        let set = read(
            &STAGES
                .replace("LIMIT", &format!("{limit}{attempts}"))
                .replace("STAGE", "b")
                .replace("ACTION", "rollback"),
        );
        let mut guard = Guard::default();
        let (mut now, mut all) = (0, Vec::new());
        for (pause, denials) in counts {
            now += pause * 5;
            // Few different ones: most seconds repeat what others had.
            let edges: Vec<u64> = (0..denials).map(|number| (now * 5 + number * number) % 90).collect();
            all.extend(edges.iter().map(|number| (now, *number)));
            let recent = all.iter().filter(|(second, _)| second + WINDOW > now);
            let attempts = recent.clone().count() as u64;
            let mut times = BTreeMap::new();
            for (_, number) in recent {
                *times.entry(number.to_string()).or_insert(0_u64) += 1;
            }
            let in_minute = times.len() as u64;
            let too_many = in_minute > limit || most.is_some_and(|most| attempts > most);
            count(&mut guard, &set, now, edges);
            let reached = guard.reached(Some(super::rollout_of(&set)));
            prop_assert_eq!(reached == 1, too_many, "{} of {}, {} of {:?}", in_minute, limit, attempts, most);
            if reached == 1 {
                // How often is of that minute, too.
                let told = &guard.stop().expect("it stopped").edges;
                prop_assert_eq!(told.len(), times.len().min(10));
                for edge in told {
                    prop_assert_eq!(times.get(&edge.source), Some(&edge.times));
                }
                break;
            }
        }
    }
}
