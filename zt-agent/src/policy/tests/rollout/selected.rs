// SPDX-License-Identifier: Apache-2.0
//! Whether a stage selects anybody, and whether a stop holds for who hears of it as it does for who stopped.

use super::{id, policy, rollout, rollout_of, set};
use crate::policy::{DenialAction, Stop};
use crate::spiffe_id::SpiffeId;

/// What is told of a stage about `identities`, where `known` are known and a rule is about `party`.
fn told(identities: &str, known: &[&str], party: &str) -> Option<bool> {
    let rule = format!("    - {{from: {{spiffe: '{party}'}}, to: [{{entity: world}}]}}");
    let set = set(&[
        policy("p", &rule),
        rollout(&format!("stages: [{{name: a, identities: [{identities}]}}]")),
    ]);
    let known: Vec<_> = known.iter().map(|name| id(name)).collect();
    let named = set.identities().iter();
    rollout_of(&set).stages[0].selects_anybody(known.iter().chain(named), set.patterns())
}

#[test]
fn whom_a_stage_selects_is_known_by_workloads_and_policies() {
    let (exact, wide) = ("spiffe://hanzo.ai/c/web", "spiffe://hanzo.ai/c/*");
    for (identities, known, party, wanted) in [
        (exact, &["c/web"][..], "spiffe://hanzo.ai/d/x", Some(true)),
        (wide, &["c/iam"], "spiffe://hanzo.ai/d/x", Some(true)),
        (
            exact,
            &["c/iam", "c/web/more"],
            "spiffe://hanzo.ai/d/x",
            Some(false),
        ),
        (wide, &["d/web"], "spiffe://hanzo.ai/d/x", Some(false)),
        // A policy names them, outright or all of them by a pattern.
        (exact, &[], exact, Some(true)),
        (wide, &[], exact, Some(true)),
        (wide, &[], wide, Some(true)),
        ("spiffe://hanzo.ai/*/*", &[], wide, Some(true)),
        // It names others by a pattern, too.
        (exact, &[], wide, None),
        (wide, &["d/x"], "spiffe://hanzo.ai/*/web", None),
        (wide, &["d/x"], "spiffe://hanzo.ai/c/*/more", Some(false)),
        // Everybody is a name of nobody, and a stage for everybody is meant so.
        (exact, &[], "*", Some(false)),
        ("'*'", &[], "spiffe://hanzo.ai/d/x", Some(true)),
        // Of several one is enough.
        (
            "spiffe://hanzo.ai/c/cath, spiffe://hanzo.ai/c/web",
            &["c/web"],
            "*",
            Some(true),
        ),
    ] {
        assert_eq!(
            told(identities, known, party),
            wanted,
            "{identities} of {known:?}, {party}"
        );
    }
    let all = set(&[rollout("stages: [{name: all, requirePolicy: true}]")]);
    let told = rollout_of(&all).stages[0].selects_anybody([].iter(), all.patterns());
    assert_eq!(told, Some(true), "it is about everybody");
}

#[test]
fn stages_without_anybody_are_told_with_whom_they_mean() {
    let rule = "    - {from: {spiffe: 'spiffe://hanzo.ai/c/*'}, to: [{entity: world}]}";
    let stages = "stages: [{name: may, identities: [spiffe://hanzo.ai/c/cath]}, {name: none, identities: [spiffe://hanzo.ai/d/web]}]";
    let set = set(&[policy("p", rule), rollout(stages)]);
    let told = |known: &[SpiffeId], known_are_all| {
        let told = rollout_of(&set).selecting_nobody(known.iter(), &set, known_are_all);
        let names = told.iter().filter_map(|text| text.split('`').nth(1));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let [cath, web] = ["c/cath", "d/web"].map(id);
    assert_eq!(told(&[], true), ["may", "none"]);
    // Somebody else may be whom the policy means.
    assert_eq!(told(&[], false), ["none"]);
    assert_eq!(told(std::slice::from_ref(&web), true), ["may"]);
    assert_eq!(told(std::slice::from_ref(&web), false), Vec::<String>::new());
    assert_eq!(told(&[cath, web], true), Vec::<String>::new());
    let all = rollout_of(&set).selecting_nobody([].iter(), &set, true);
    assert!(
        all[1].ends_with("none of the workloads and policies that are known is spiffe://hanzo.ai/d/web"),
        "{all:?}"
    );
}

#[test]
fn a_stop_holds_for_others_as_long_as_for_the_node() {
    let at = |stage: &str, limit: u64| {
        set(&[rollout(&format!(
            "stage: {stage}, stages: [{{name: a, identities: ['spiffe://hanzo.ai/a']}}, {{name: b, identities: ['spiffe://hanzo.ai/b'], onDenials: {{perMinute: {limit}, action: hold}}}}, {{name: c, identities: ['spiffe://hanzo.ai/c']}}]"
        ))])
    };
    let definition = rollout_of(&at("b", 4)).stages[1].digest();
    let stop = |action| Stop {
        at: 7,
        ..Stop::sample("b", definition.clone(), action)
    };
    let (hold, rollback) = (stop(DenialAction::Hold), stop(DenialAction::Rollback));
    for (stage, limit, held, back) in [
        ("a", 4, None, None),
        ("b", 4, Some(2), Some(1)),
        ("c", 4, Some(2), Some(1)),
        ("c", 5, None, None),
    ] {
        let set = at(stage, limit);
        let reached = [&hold, &rollback].map(|stop| stop.reached_in(rollout_of(&set)));
        assert_eq!(reached, [held, back], "{stage} {limit}");
    }
    let other = Stop {
        rollout: "another".to_owned(),
        ..hold
    };
    assert_eq!(other.reached_in(rollout_of(&at("b", 4))), None);
    assert_eq!(other.at_nanos(), 7_000_000);
}
