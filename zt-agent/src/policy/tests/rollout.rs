// SPDX-License-Identifier: Apache-2.0
//! Rollouts: what they say, what is wrong with those that say nothing, and who is in which mode when.

mod back;
mod canary;
mod guard;
mod require;
mod selected;

use super::{document, id, policy, problems, set};
use crate::policy::{Document, EnforcementRollout, PolicySet, StageMode};

const ROLLOUT: &str = "
apiVersion: zt.hanzo.ai/v1
kind: EnforcementRollout
metadata: {name: hanzo, description: to enforcing}
spec:
  defaultMode: observe
  stage: few
  stages:
    - name: lax
      identities: [spiffe://hanzo.ai/c/kube-system/*]
      mode: enforce
      canary: {percent: 30, by: node}
    - name: few
      identities: [spiffe://hanzo.ai/c/hanzo/*, spiffe://hanzo.ai/c/web/gateway]
      canary: {percent: 10}
      onDenials: {perMinute: 5, action: rollback}
    - name: most
      description: all of them but one
      identities: [spiffe://hanzo.ai/c/hanzo/*]
    - name: spared
      identities: [spiffe://hanzo.ai/c/hanzo/legacy]
      mode: observe
    - name: all
      requirePolicy: true
";

fn rollout_of(set: &PolicySet) -> &EnforcementRollout {
    set.rollout().expect("a rollout")
}

fn read(text: &str) -> PolicySet {
    set(&[document("r.yaml", text)])
}

/// A rollout with that `spec`, in flow style.
fn rollout(spec: &str) -> Document {
    let text = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: EnforcementRollout\nmetadata: {{name: r}}\nspec: {{{spec}}}\n"
    );
    document("r.yaml", &text)
}

#[test]
fn a_document_comes_back_the_same() {
    let set = read(ROLLOUT);
    let rollout = rollout_of(&set);
    assert_eq!(rollout.reached(), 2);
    assert_eq!(rollout.stage_at(2).map(|stage| &*stage.name), Some("few"));
    let document = rollout.document();
    let again = read(&document.to_string());
    assert_eq!(again.digest(), set.digest());
    assert_eq!(rollout_of(&again).document(), document);
    let elsewhere = read(&ROLLOUT.replace("stage: few", "stage: most"));
    assert_ne!(elsewhere.digest(), set.digest(), "a stage is a change");
    let diff = elsewhere.diff_from(&set);
    assert_eq!(diff.policies.len(), 1);
    assert_eq!(diff.policies[0].kind, "EnforcementRollout");
    let told: Vec<String> = diff.rollout.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["hanzo stage: few -> most"]);
}

#[test]
fn what_changes_for_nodes_is_told_of_and_words_are_not() {
    let told = |from: &str, to: &str| -> Vec<String> {
        assert!(ROLLOUT.contains(from), "{from}");
        let diff = read(&ROLLOUT.replacen(from, to, 1)).diff_from(&read(ROLLOUT));
        diff.rollout.iter().map(ToString::to_string).collect()
    };
    let few = "enforce spiffe://hanzo.ai/c/hanzo/*, spiffe://hanzo.ai/c/web/gateway";
    assert_eq!(
        told("percent: 10}", "percent: 90}"),
        [format!(
            "hanzo stages.few: {few}; 10 % by workload; rollback at more than 5 a minute, for 3600 s -> \
             {few}; 90 % by workload; rollback at more than 5 a minute, for 3600 s"
        )]
    );
    assert_eq!(
        told("  defaultMode: observe\n", ""),
        ["hanzo defaultMode: observe -> -"]
    );
    assert!(told("all of them but one", "others").is_empty());
    assert_eq!(
        told("    - name: all\n      requirePolicy: true\n", ""),
        ["hanzo stages.all: enforce everybody, policy required -> -"]
    );
    let (set, none) = (read(ROLLOUT), set(&[policy("p", "    []")]));
    let gone = none.diff_from(&set);
    assert_eq!(gone.rollout.len(), 7, "{:#?}", gone.rollout);
    assert_eq!(gone.rollout[0].to_string(), "hanzo stage: few -> -");
}

#[test]
fn a_stage_is_known_by_what_it_says_to_nodes() {
    let digest = |text: &str| rollout_of(&read(text)).stages[2].digest();
    let described = ROLLOUT.replace("all of them but one", "went back on 40 nodes");
    assert_eq!(digest(ROLLOUT), digest(&described));
    assert_ne!(
        digest(ROLLOUT),
        digest(&ROLLOUT.replace("name: most", "name: more"))
    );
}

/// A limit without `for` has the default, and such a document is the same as it was.
#[test]
fn for_how_long_a_limit_holds() {
    let with = |limit: &str| ROLLOUT.replace("action: rollback}", &format!("action: rollback{limit}}}"));
    let soak = |text: &str| {
        rollout_of(&read(text)).stages[1]
            .on_denials
            .expect("a limit")
            .soak
    };
    assert_eq!(soak(ROLLOUT), 3600);
    assert_eq!(soak(&with(", for: 90m")), 5400);
    assert_eq!(read(&with(", for: 60m")).digest(), read(ROLLOUT).digest());
    let longer = rollout_of(&read(&with(", for: 120m"))).document();
    assert_eq!(longer["spec"]["stages"][1]["onDenials"]["for"], "2h");
    for wrong in ["59s", "31d", "1 h", "forever"] {
        let found = problems(&[document("r.yaml", &with(&format!(", for: {wrong}")))]);
        let text = found[0].to_string();
        assert!(
            text.contains("spec.stages[1].onDenials.for: `") && text.contains("1m to 30d"),
            "{text}"
        );
    }
}

/// Such a document is the one that it was before there was that limit.
#[test]
fn a_limit_of_attempts_is_said_only_where_there_is_one() {
    let with = |limit: &str| ROLLOUT.replace("perMinute: 5,", &format!("perMinute: 5, {limit}"));
    let said = |text: &str| {
        let set = read(text);
        let document = rollout_of(&set).document();
        (document["spec"]["stages"][1]["onDenials"].to_string(), set)
    };
    let (plain, before) = said(ROLLOUT);
    assert_eq!(plain, r#"{"action":"rollback","perMinute":5}"#);
    let (text, set) = said(&with("attemptsPerMinute: 900,"));
    assert_eq!(
        text,
        r#"{"action":"rollback","attemptsPerMinute":900,"perMinute":5}"#
    );
    let told: Vec<String> = set
        .diff_from(&before)
        .rollout
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        told.len() == 1 && told[0].ends_with("rollback at more than 5 a minute or 900 attempts, for 3600 s"),
        "{told:?}"
    );
    for wrong in ["-1", "1000001", "1.5"] {
        let found = problems(&[document("r.yaml", &with(&format!("attemptsPerMinute: {wrong},")))]);
        let text = found[0].to_string();
        assert!(
            text.contains("spec.stages[1].onDenials.attemptsPerMinute: "),
            "{text}"
        );
    }
}

#[test]
fn the_last_stage_that_is_reached_and_selects_decides() {
    let set = read(ROLLOUT);
    let rollout = rollout_of(&set);
    let at = |reached, name: &str| rollout.mode_of(reached, &id(name), None);
    let (observe, enforce) = (Some(StageMode::Observe), Some(StageMode::Enforce));
    for reached in 0..=2 {
        assert_eq!(
            at(reached, "c/hanzo/iam"),
            observe,
            "a canary of nobody knows whom"
        );
    }
    assert_eq!(at(3, "c/hanzo/iam"), enforce);
    assert_eq!(at(3, "c/hanzo/legacy"), enforce);
    assert_eq!(at(4, "c/hanzo/legacy"), observe);
    assert_eq!(
        at(5, "c/hanzo/legacy"),
        observe,
        "the last stage takes whom no other selects"
    );
    assert_eq!(at(4, "c/other"), observe);
    assert_eq!(at(5, "c/other"), enforce);
    assert!(rollout.requires_policy(5) && !rollout.requires_policy(4));
    let open = read(&ROLLOUT.replace("  defaultMode: observe\n", ""));
    assert_eq!(rollout_of(&open).mode_of(4, &id("c/other"), None), None);
}

/// What stands in the place of what, and what is said of it.
const MISTAKES: [(&str, &str, &str); 17] = [
    (
        "stage: few",
        "stage: fews",
        "r.yaml:7:10: spec.stage: no stage is called `fews`: did you mean `few`?",
    ),
    (
        "percent: 10}",
        "percent: 0}",
        "r.yaml:15:25: spec.stages[1].canary.percent: 0 is out of range: a percentage is 1 to 100",
    ),
    (
        "percent: 10}",
        "percent: 101}",
        "r.yaml:15:25: spec.stages[1].canary.percent: 101 is out of range",
    ),
    (
        "percent: 10}",
        "percent: ten}",
        "r.yaml:15:25: spec.stages[1].canary.percent: expected a whole number, found a text",
    ),
    (
        "by: node",
        "by: pod",
        "r.yaml:12:33: spec.stages[0].canary.by: `pod` is not one of workload, node",
    ),
    (
        "perMinute: 5",
        "perMinute: -1",
        "r.yaml:16:30: spec.stages[1].onDenials.perMinute: -1 is out of range",
    ),
    (
        "perMinute: 5",
        "perMinute: 1000001",
        "r.yaml:16:30: spec.stages[1].onDenials.perMinute: 1000001 is out of range: different connections a minute are 0 to 1000000",
    ),
    (
        "action: rollback",
        "action: panic",
        "r.yaml:16:41: spec.stages[1].onDenials.action: `panic` is not one of hold, rollback",
    ),
    (
        "identities: [spiffe://hanzo.ai/c/hanzo/legacy]",
        "identities: []",
        "r.yaml:21:19: spec.stages[3].identities: the list is empty, so that the stage selects nobody",
    ),
    (
        "identities: [spiffe://hanzo.ai/c/hanzo/legacy]",
        "identities: [spiffe://hanzo.org/c/hanzo/legacy]",
        "r.yaml:21:20: spec.stages[3].identities[0]: `spiffe://hanzo.org/c/hanzo/legacy` is of trust domain",
    ),
    (
        "      identities: [spiffe://hanzo.ai/c/hanzo/legacy]\n",
        "",
        "r.yaml:20:7: spec.stages[3].identities: the field `identities` is missing",
    ),
    (
        "      mode: observe\n",
        "",
        "r.yaml:21:19: spec.stages[3].identities: selects nobody who is not in `enforce` by stage `most` already: leave the stage out",
    ),
    (
        "      canary: {percent: 10}\n",
        "      canary: {percent: 10}\n      mode: observe\n",
        "r.yaml:17:18: spec.stages[1].onDenials: the stage observes, so that nobody is newly refused",
    ),
    (
        "name: spared",
        "name: most",
        "r.yaml:20:13: spec.stages[3].name: the name `most` is taken by the stage in place 3",
    ),
    (
        "name: spared",
        "name: Spared",
        "r.yaml:20:13: spec.stages[3].name: `Spared` is not a name",
    ),
    (
        "      mode: observe\n",
        "      mode: observe\n      requirePolicy: false\n      percent: 3\n",
        "r.yaml:24:7: spec.stages[3].percent: unknown field `percent`",
    ),
    (
        "requirePolicy: true",
        "requirePolicy: true\n      mode: observe",
        "r.yaml:25:13: spec.stages[4].mode: with `requirePolicy` the stage is about everybody, who enforces: leave this out",
    ),
];

#[test]
fn every_mistake_has_its_place() {
    let only = |from: &str, to: &str| {
        assert!(ROLLOUT.contains(from), "{from}");
        let found = problems(&[document("r.yaml", &ROLLOUT.replacen(from, to, 1))]);
        found
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let mut wrong = Vec::new();
    for (from, to, wanted) in MISTAKES {
        let found = only(from, to);
        if !found.starts_with(wanted) || found.contains('\n') {
            wrong.push(format!("{found}\nwanted {wanted}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_last_stage_may_require_policy() {
    let found = problems(&[rollout(
        "stages: [{name: a, requirePolicy: true}, {name: b, identities: ['*']}]",
    )]);
    assert_eq!(found.len(), 1, "{found:#?}");
    let text = found[0].to_string();
    assert!(
        text.contains("spec.stages[0].requirePolicy: only the last stage may"),
        "{text}"
    );
    let found = problems(&[rollout("stages: []")]);
    assert!(found[0].message.contains("at least one stage"), "{found:#?}");
}

#[test]
fn a_stage_that_selects_nobody_new_is_a_mistake() {
    let verdict = |spec: &str| {
        crate::policy::parse(&[rollout(spec)], &crate::policy::Settings::default())
            .err()
            .map(|problems| problems[0].message.clone())
    };
    let wide = "{name: wide, identities: ['spiffe://hanzo.ai/c/*/*']}";
    for (rest, useful) in [
        ("{name: b, identities: ['spiffe://hanzo.ai/c/hanzo/*']}", false),
        (
            "{name: b, identities: ['spiffe://hanzo.ai/c/hanzo/*'], canary: {percent: 5}}",
            false,
        ),
        (
            "{name: b, identities: ['spiffe://hanzo.ai/c/hanzo/*', 'spiffe://hanzo.ai/d/x']}",
            true,
        ),
        (
            "{name: b, identities: ['spiffe://hanzo.ai/c/hanzo/*'], mode: observe}",
            true,
        ),
        ("{name: b, identities: ['*']}", true),
        ("{name: b, identities: ['spiffe://hanzo.ai/c/hanzo']}", true),
    ] {
        let found = verdict(&format!("stages: [{wide}, {rest}]"));
        assert_eq!(found.is_none(), useful, "{rest}: {found:?}");
    }
    let part = "{name: part, identities: ['spiffe://hanzo.ai/c/*/*'], canary: {percent: 20}}";
    for (canary, useful) in [
        ("{percent: 20}", false),
        ("{percent: 5}", false),
        ("{percent: 21}", true),
        ("{percent: 20, by: node}", true),
    ] {
        let rest = format!("{{name: b, identities: ['spiffe://hanzo.ai/c/*/*'], canary: {canary}}}");
        let found = verdict(&format!("stages: [{part}, {rest}]"));
        assert_eq!(found.is_none(), useful, "{canary}: {found:?}");
    }
    // Who is to be spared by a stage that requires policy has to be named.
    let spared = "{name: spared, identities: ['spiffe://hanzo.ai/c/kube-system/*'], mode: observe}";
    let all = "{name: all, requirePolicy: true}";
    assert_eq!(
        verdict(&format!("defaultMode: observe, stages: [{spared}, {all}]")),
        None
    );
    assert!(
        verdict(&format!(
            "defaultMode: observe, stages: [{wide}, {spared}, {all}]"
        ))
        .is_none()
    );
    assert!(verdict(&format!("defaultMode: observe, stages: [{spared}]")).is_some());
    assert!(verdict(&format!("defaultMode: enforce, stages: [{wide}, {all}]")).is_some());
    let found = verdict(&format!("defaultMode: enforce, stages: [{wide}]"));
    assert!(found.expect("a mistake").contains("by `defaultMode` already"));
}

#[test]
fn two_rollouts_are_one_too_many() {
    let second = ROLLOUT.replace("name: hanzo", "name: other");
    let found = problems(&[document("a.yaml", ROLLOUT), document("b.yaml", &second)]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        found[0].to_string(),
        "b.yaml:4:18: metadata.name: `other` conflicts with the EnforcementRollout `hanzo` in a.yaml:4: there is one at a time, put their stages into it"
    );
    // A policy beside it is another matter.
    let both = set(&[document("a.yaml", ROLLOUT), policy("p", "    []")]);
    assert_eq!((both.all().len(), both.policies().len()), (2, 1));
}
