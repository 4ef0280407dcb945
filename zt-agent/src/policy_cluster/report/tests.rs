// SPDX-License-Identifier: Apache-2.0
//! What is written, and that nothing is written twice.

mod restarted;

use serde_json::Map;

use super::*;
use crate::kubernetes::Said;
use crate::policy::{DenialAction, Stop};
use crate::policy_cluster::told_by_engines;
use crate::state::{MissedNode, SILENT_AFTER, StoppedNode};

const HOUR: i64 = RENEW;
const NOW: i64 = 1_790_000_000_000_000_000;

fn resource(name: &str, rules: &Value) -> ReadPolicy {
    let object = json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy",
        "metadata": {"name": name, "uid": "u", "resourceVersion": "3", "generation": 2},
        "spec": {"rules": rules},
    });
    serde_json::from_value(object).expect("understood")
}

fn known(policies: &[ReadPolicy]) -> Known {
    let mut known = Known::default();
    known.take(0, Said::All(policies.to_vec()));
    known.take(1, Said::All(vec![]));
    known
}

fn in_force(known: &Known) -> Snapshot {
    let documents = known.contents().0.expect("documents");
    let policies = policy::parse(&documents, &policy::Settings::default()).expect("valid");
    Snapshot {
        revision: 1,
        policies: Arc::new(policies),
        ..Snapshot::default()
    }
}

fn refused(before: &Snapshot, message: &str) -> Snapshot {
    let problem = Problem {
        file: String::new(),
        line: 0,
        column: 0,
        field: String::new(),
        message: message.to_owned(),
    };
    Snapshot {
        policy_error: Some(Arc::new(vec![problem])),
        ..before.clone()
    }
}

fn found(known: &Known, snapshot: &Snapshot) -> Option<BTreeMap<String, Finding>> {
    findings(
        known,
        snapshot,
        &policy::Settings::default(),
        &mut PolicySet::default(),
    )
}

#[test]
fn one_that_is_not_valid_holds_the_others_back_and_is_named() {
    let good = known(&[resource("good", &json!([]))]);
    let before = in_force(&good);
    let all = found(&good, &before).expect("settled");
    let finding = &all["serviceaccesspolicies/good"];
    assert!(finding.accepted.is_ok() && finding.in_force.is_ok());

    let both = known(&[
        resource(
            "good",
            &json!([{"from": {"entity": "host"}, "to": [{"entity": "world"}]}]),
        ),
        resource(
            "bad",
            &json!([{"from": {"entity": "host"}, "to": [], "actoin": "DENY"}]),
        ),
    ]);
    assert!(found(&both, &before).is_none(), "it has not been dealt with yet");
    let all = found(&both, &refused(&before, "see the others")).expect("settled");
    let bad = all["serviceaccesspolicies/bad"]
        .accepted
        .clone()
        .expect_err("invalid");
    assert!(
        bad.contains("spec.rules[0].actoin: unknown field `actoin`: did you mean `action`?"),
        "{bad}"
    );
    let good = &all["serviceaccesspolicies/good"];
    assert!(good.accepted.is_ok());
    let (reason, message) = good.in_force.clone().expect_err("held back");
    assert_eq!(reason, "OthersInvalid");
    assert!(message.contains("serviceaccesspolicies/bad"), "{message}");
}

#[test]
fn what_the_kernel_does_not_take_is_said() {
    let good = known(&[resource("good", &json!([]))]);
    let before = in_force(&good);
    let next = known(&[resource(
        "good",
        &json!([{"from": {"entity": "host"}, "to": [{"entity": "world"}]}]),
    )]);
    let all = found(&next, &refused(&before, "too large")).expect("settled");
    let finding = &all["serviceaccesspolicies/good"];
    assert_eq!(finding.in_force, Err(("Refused", "too large".to_owned())));
}

fn finding(valid: bool) -> Finding {
    Finding {
        accepted: if valid {
            Ok("d".to_owned())
        } else {
            Err("no".to_owned())
        },
        in_force: if valid {
            Ok(())
        } else {
            Err(("Invalid", "no".to_owned()))
        },
    }
}

/// Writes, and takes up what was written; whether anything was.
fn write(policy: &mut ReadPolicy, finding: &Finding, nodes: Option<&Nodes<'_>>, now: i64) -> bool {
    let Some(updated) = updated(policy, finding, nodes, now) else {
        return false;
    };
    policy.resource["status"] = updated["status"].clone();
    true
}

#[test]
fn what_is_there_already_is_not_written_again() {
    let mut policy = resource("p", &json!([]));
    assert!(write(&mut policy, &finding(true), None, NOW));
    assert!(!write(&mut policy, &finding(true), None, NOW + HOUR));
    let since = policy.resource["status"]["conditions"][0]["lastTransitionTime"].clone();
    assert!(write(&mut policy, &finding(false), None, NOW + HOUR));
    assert_eq!(policy.resource["status"]["digest"], Value::Null);
    let condition = policy.resource["status"]["conditions"][0].clone();
    assert_eq!(
        (&condition["status"], &condition["message"]),
        (&json!("False"), &json!("no"))
    );
    assert_ne!(condition["lastTransitionTime"], since);
    // Another generation with the same answer: that it was looked at is news, that it is so is not.
    policy.generation += 1;
    assert!(write(&mut policy, &finding(false), None, NOW + 2 * HOUR));
    let later = &policy.resource["status"]["conditions"][0];
    assert_eq!(later["lastTransitionTime"], condition["lastTransitionTime"]);
    assert_eq!(later["observedGeneration"], 3);
}

#[test]
fn conditions_of_others_stay() {
    let mut policy = resource("p", &json!([]));
    policy.resource["status"] = json!({"conditions": [{"type": "Theirs", "status": "True"}], "more": 1});
    assert!(write(&mut policy, &finding(true), None, NOW));
    let status = &policy.resource["status"];
    assert_eq!(status["conditions"].as_array().map(Vec::len), Some(3));
    assert_eq!(
        (&status["conditions"][0]["type"], &status["more"]),
        (&json!("Theirs"), &json!(1))
    );
}

/// So many nodes, and so many of them with all in force.
fn seen(all: usize, in_force: usize) -> Followers {
    Followers {
        all,
        in_sync: in_force,
        at_stage: in_force,
        ..Followers::default()
    }
}

#[test]
fn each_engine_counts_its_own_nodes_and_forgets_those_that_are_gone() {
    let mut policy = resource("p", &json!([]));
    let (three, two, none) = (seen(3, 3), seen(2, 1), seen(0, 0));
    let hears = |_: &str| -> Option<i64> { None };
    let nodes = |engine, seen| {
        Some(Nodes {
            engine,
            seen,
            hears: &hears,
        })
    };
    assert!(write(
        &mut policy,
        &finding(true),
        nodes("one", &three).as_ref(),
        NOW
    ));
    assert!(write(
        &mut policy,
        &finding(true),
        nodes("two", &two).as_ref(),
        NOW
    ));
    assert!(!write(
        &mut policy,
        &finding(true),
        nodes("one", &three).as_ref(),
        NOW + HOUR / 2
    ));
    assert!(
        !write(&mut policy, &finding(true), None, NOW + HOUR * 9),
        "not while nobody counts"
    );
    let counts = |policy: &ReadPolicy| -> Map<String, Value> {
        let engines = policy.resource["status"]["engines"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let pair = |engine: &Value| {
            Some((
                engine["name"].as_str()?.to_owned(),
                engine["nodesInForce"].clone(),
            ))
        };
        engines.iter().filter_map(pair).collect()
    };
    assert_eq!(Value::Object(counts(&policy)), json!({"one": 3, "two": 1}));
    let renewed = nodes("one", &three);
    assert!(
        write(&mut policy, &finding(true), renewed.as_ref(), NOW + HOUR + 1),
        "renewed"
    );
    assert!(write(
        &mut policy,
        &finding(true),
        renewed.as_ref(),
        NOW + 2 * HOUR + 1
    ));
    assert_eq!(Value::Object(counts(&policy)), json!({"one": 3}));
    assert!(write(
        &mut policy,
        &finding(true),
        nodes("one", &none).as_ref(),
        NOW + 2 * HOUR + 2
    ));
    assert!(policy.resource["status"].get("engines").is_none());
}

fn stopped_node(name: &str) -> StoppedNode {
    StoppedNode {
        node: name.to_owned(),
        stop: Stop::sample("few", "d".repeat(64), DenialAction::Hold),
    }
}

/// As any other kind but a rollout is told: that a node stopped short of a stage takes no policy out of force.
#[test]
fn a_rollout_is_told_which_nodes_stopped_and_every_engine_hears_it() {
    let mut rollout = resource("r", &json!([]));
    rollout.resource["kind"] = ROLLOUT_KIND.into();
    let mut policy = resource("p", &json!([]));
    let names: Vec<String> = (10..40).map(|number| format!("worker-{number}")).collect();
    let mut followers = Followers {
        all: 40,
        in_sync: 39,
        at_stage: 9,
        stopped: names.iter().map(|name| stopped_node(name)).collect(),
        ..Followers::default()
    };
    let wrote = |policy: &mut ReadPolicy, seen: &Followers, now| {
        let nodes = Nodes {
            engine: "one",
            seen,
            hears: &|_| None,
        };
        write(policy, &finding(true), Some(&nodes), now)
    };
    let now = clock::now();
    assert!(wrote(&mut policy, &followers, now));
    let said = policy.resource["status"]["engines"][0].clone();
    assert_eq!((&said["nodesInForce"], said.get("stopped")), (&json!(39), None));
    assert!(wrote(&mut rollout, &followers, now));
    assert!(
        !wrote(&mut rollout, &followers, now + RENEW_ROLLOUT / 2),
        "it is the same"
    );
    let said = rollout.resource["status"]["engines"][0].clone();
    assert_eq!(
        (&said["nodesInForce"], &said["nodesStopped"]),
        (&json!(9), &json!(30))
    );
    assert_eq!(said["stopped"].as_array().map(Vec::len), Some(20), "the first");
    assert_eq!(
        said["stopped"][0],
        json!({
            "node": "worker-10", "stage": "few", "definition": "d".repeat(64), "action": "hold", "cause": "denials",
            "denials": 5, "perMinute": 4, "attempts": 9, "at": "2026-03-02T09:10:45Z",
        })
    );

    // What is written so is read by others, not by who wrote it; and what is none of ours is passed over.
    rollout.resource["status"]["engines"][0]["stopped"][1] = json!({"node": 7});
    let mut all = Known::default();
    all.take(2, Said::All(vec![rollout.clone()]));
    all.take(0, Said::All(vec![policy]));
    let heard = |all: &Known, own| told_by_engines(all, own).stopped;
    let of_all = heard(&all, None);
    assert_eq!(of_all.len(), 19);
    assert_eq!(of_all[0], ("one".to_owned(), stopped_node("worker-10")));
    assert_eq!(heard(&all, Some("two")).len(), 19);
    assert_eq!(heard(&all, Some("one")), []);
    let long_ago = Timestamp(now - BELIEVED_ROLLOUT);
    rollout.resource["status"]["engines"][0]["reported"] = json!(long_ago);
    all.take(2, Said::All(vec![rollout.clone()]));
    assert_eq!(heard(&all, None), [], "nobody has said so for long");

    // Once they go on, there is no word of it.
    followers.stopped.clear();
    assert!(wrote(&mut rollout, &followers, now));
    assert!(rollout.resource["status"]["engines"][0].get("stopped").is_none());
}

/// A node that is silent at one engine may tell another one by now: that one says so.
#[test]
fn who_is_not_heard_is_told_unless_another_engine_hears_him() {
    let now = clock::now();
    let long_ago = now - 2 * SILENT_AFTER.as_nanos() as i64;
    let mut rollout = resource("r", &json!([]));
    rollout.resource["kind"] = ROLLOUT_KIND.into();
    let missed = |node: &str, heard| MissedNode {
        node: node.to_owned(),
        heard,
    };
    let seen_by_one = Followers {
        all: 4,
        in_sync: 2,
        at_stage: 2,
        silent: 2,
        missed: vec![
            missed("gone", long_ago),
            missed("lately", now - 1),
            missed("moved", long_ago),
        ],
        ..Followers::default()
    };
    let mut wrote = |engine, seen: &Followers, hears: &Hears| {
        let nodes = Nodes { engine, seen, hears };
        write(&mut rollout, &finding(true), Some(&nodes), now);
        let mut all = Known::default();
        all.take(2, Said::All(vec![rollout.clone()]));
        (
            told_by_engines(&all, None),
            rollout.resource["status"]["engines"].clone(),
        )
    };
    let (told, engines) = wrote("one", &seen_by_one, &|_| None);
    let by_one = |node: &str| ("one".to_owned(), missed(node, long_ago));
    assert_eq!(told.silent, [by_one("gone"), by_one("moved")]);
    assert_eq!(engines[0]["nodesSilent"], 2);
    assert_eq!(
        engines[0]["silent"][0],
        json!({"node": "gone", "heard": Timestamp(long_ago)})
    );
    // What it has heard itself is no news; who was not heard since then is not known to be anywhere else.
    let heard = move |node: &str| match node {
        "moved" => Some(now),
        "gone" => Some(long_ago - 1),
        _ => None,
    };
    let seen_by_two = seen(1, 1);
    let (told, engines) = wrote("two", &seen_by_two, &heard);
    assert_eq!(told.silent, [by_one("gone")]);
    assert_eq!(told.heard, [missed("moved", long_ago)]);
    assert_eq!(engines[1].get("silent"), None);
    // The first one has forgotten it: then there is nothing to say of it.
    let forgot = Followers {
        missed: vec![missed("gone", long_ago)],
        ..seen_by_one.clone()
    };
    wrote("one", &forgot, &|_| None);
    let (told, engines) = wrote("two", &seen_by_two, &heard);
    assert_eq!((told.silent, told.heard), (vec![by_one("gone")], Vec::new()));
    assert_eq!(engines[1].get("heard"), None);
}
