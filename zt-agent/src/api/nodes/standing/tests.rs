// SPDX-License-Identifier: Apache-2.0
//! How far nodes are by what they said, by how long ago that was, and by what engines say of them.

use std::sync::Arc;

use super::*;
use crate::api::nodes::said::Said;
use crate::identity::Mode;
use crate::policy::{DenialAction, Document, Settings};
use crate::state::NodeModes;

/// One with a rollout in force, at the first of its stages.
fn snapshot() -> Snapshot {
    let text = "apiVersion: zt.hanzo.ai/v1\nkind: EnforcementRollout\nmetadata: {name: r}\nspec:\n  stage: a\n  stages:\n    - {name: a, \
                identities: ['spiffe://hanzo.ai/k8s/a']}\n    - {name: b, identities: ['spiffe://hanzo.ai/k8s/b']}\n";
    let document = Document {
        file: "rollout.yaml".to_owned(),
        text: text.to_owned(),
    };
    let policies = crate::policy::parse(&[document], &Settings::default()).expect("valid");
    Snapshot {
        modes: NodeModes::new(Mode::Observe.into(), &policies, &Settings::default(), "here"),
        policies: Arc::new(policies),
        ..Snapshot::default()
    }
}

/// A node that said that long ago that all is in force there.
fn said(snapshot: &Snapshot, ago: Duration) -> Heard {
    Heard {
        revision: 1,
        digest: snapshot.policies.digest().to_owned(),
        said: Some(Said {
            rollout: "r".to_owned(),
            stage: Some("a".to_owned()),
            observe_all: false,
            selects: Some(vec!["b".to_owned()]),
            stopped: None,
        }),
        at: clock::now() - ago.as_nanos() as i64,
        caller: "test".into(),
        account: "test".into(),
    }
}

fn states(nodes: &Nodes, snapshot: &Snapshot, heard: Vec<MissedNode>) -> Vec<(String, Reach, bool)> {
    let rollout = snapshot.policies.rollout().expect("a rollout");
    let elsewhere = Elsewhere {
        heard,
        ..Elsewhere::default()
    };
    let all = nodes.in_rollout(snapshot, rollout, elsewhere).into_iter();
    all.map(|node| (node.node, node.state, node.in_force.is_some()))
        .collect()
}

#[test]
fn who_was_not_heard_for_minutes_is_silent_and_not_at_its_last_stage() {
    let (nodes, snapshot) = (Nodes::default(), snapshot());
    let second = Duration::from_secs(1);
    for (node, ago) in [
        ("here", Duration::ZERO),
        ("missed", MISSED_AFTER + second),
        ("silent", SILENT_AFTER + second),
    ] {
        nodes.hear(node.to_owned(), said(&snapshot, ago));
    }
    let here = ("here".to_owned(), Reach::InForce, true);
    let missed = ("missed".to_owned(), Reach::InForce, true);
    let silent = ("silent".to_owned(), Reach::Silent, false);
    assert_eq!(
        states(&nodes, &snapshot, Vec::new()),
        [here.clone(), missed.clone(), silent]
    );
    let followers = nodes.followers(&snapshot);
    assert_eq!(
        (
            followers.all,
            followers.in_sync,
            followers.at_stage,
            followers.silent
        ),
        (3, 2, 2, 1)
    );
    let names: Vec<&str> = followers.missed.iter().map(|missed| &*missed.node).collect();
    assert_eq!(names, ["missed", "silent"]);
    // What it said of stages to come is not known to hold either.
    let selected = nodes.selected(&snapshot);
    assert!(
        !selected.is_whole && selected.stages.contains("b"),
        "{selected:?}"
    );

    // Another engine has heard them: one since then, one before.
    let told = |node: &str, later: i64| MissedNode {
        node: node.to_owned(),
        heard: nodes.heard(node).expect("heard") + later,
    };
    let told = vec![told("silent", 0), told("missed", -1)];
    assert_eq!(states(&nodes, &snapshot, told), [here, missed]);
    assert_eq!(nodes.heard("silent"), None);
}

/// Fails where such a node is listed once for each of them.
#[test]
fn a_node_that_several_engines_tell_of_is_what_is_later() {
    let (nodes, snapshot) = (Nodes::default(), snapshot());
    let rollout = snapshot.policies.rollout().expect("a rollout");
    let stage = &rollout.stages[0];
    let stop = Stop {
        rollout: "r".to_owned(),
        ..Stop::sample(&stage.name, stage.digest(), DenialAction::Hold)
    };
    let at = stop.at_nanos();
    let silent = |engine: &str, node: &str, heard| {
        let node = node.to_owned();
        (engine.to_owned(), MissedNode { node, heard })
    };
    let stopped = |node: &str| {
        let (node, stop) = (node.to_owned(), stop.clone());
        ("one".to_owned(), StoppedNode { node, stop })
    };
    let elsewhere = Elsewhere {
        silent: vec![
            silent("one", "both", at + 1),
            silent("two", "both", at + 2),
            silent("two", "before", at - 1),
            silent("two", "since", at + 1),
        ],
        stopped: vec![stopped("before"), stopped("since")],
        heard: Vec::new(),
    };
    let listed = nodes.in_rollout(&snapshot, rollout, elsewhere);
    let listed: Vec<(&str, Reach, Option<&str>)> = listed
        .iter()
        .map(|node| (&*node.node, node.state, node.engine.as_deref()))
        .collect();
    assert_eq!(
        listed,
        [
            ("before", Reach::Stopped, Some("one")),
            ("both", Reach::Silent, Some("two")),
            ("since", Reach::Silent, Some("two"))
        ]
    );
}

#[test]
fn who_speaks_again_is_not_silent_any_more() {
    let (nodes, snapshot) = (Nodes::default(), snapshot());
    nodes.hear("node".to_owned(), said(&snapshot, SILENT_AFTER));
    assert_eq!(states(&nodes, &snapshot, Vec::new())[0].1, Reach::Silent);
    nodes.hear("node".to_owned(), said(&snapshot, Duration::ZERO));
    assert_eq!(states(&nodes, &snapshot, Vec::new())[0].1, Reach::InForce);
    assert!(nodes.selected(&snapshot).is_whole);
}
