// SPDX-License-Identifier: Apache-2.0
//! How far nodes that follow are in a rollout, by their own word.

use super::described::check;
use super::*;
use crate::policy::{DenialAction, PolicySet, Stop};
use crate::policy_follow::{PolicyFollower, Settings as Following};
use crate::state::{Elsewhere, Followers, MissedNode, NodeModes, StoppedNode};

/// A rollout at this stage of four, of which the second has a limit.
pub(super) fn policies(stage: &str, third: &str) -> PolicySet {
    let text = format!(
        "{POLICY}---
apiVersion: zt.hanzo.ai/v1
kind: EnforcementRollout
metadata: {{name: r}}
spec:
  stage: {stage}
  stages:
    - {{name: a, identities: ['{IAM}']}}
    - {{name: b, identities: ['{POSTGRES}'], onDenials: {{perMinute: 4, action: hold}}}}
    - {{name: c, identities: ['{third}']}}
    - {{name: d, requirePolicy: true}}
"
    );
    let documents = [Document {
        file: "core.yaml".to_owned(),
        text,
    }];
    crate::policy::parse(&documents, &Settings::default()).expect("valid policy")
}

/// Has these in force, with the rollout as they say.
pub(super) fn put_in_force(world: &World, policies: PolicySet) {
    world.snapshots.update(|next| {
        next.modes = NodeModes::new(Mode::Observe.into(), &policies, &Settings::default(), "worker-3");
        next.policies = Arc::new(policies);
    });
}

/// A node stopped at the second stage.
fn stop(policies: &PolicySet, action: DenialAction) -> Stop {
    let stage = &policies.rollout().expect("a rollout").stages[1];
    Stop::sample(&stage.name, stage.digest(), action)
}

/// The same as nodes report it.
fn stop_report(policies: &PolicySet, action: &str) -> Value {
    json!({
        "stage": "b", "definition": stop(policies, DenialAction::Hold).definition, "action": action,
        "cause": "denials", "denials": 5, "per_minute": 4, "attempts": 9, "attempts_per_minute": null,
        "at": "2026-03-02T09:10:45Z",
    })
}

pub(super) async fn report(to: SocketAddr, node: &str, body: &Value) -> Reply {
    let path = format!("/v1/nodes/{node}");
    let json_type = "Content-Type: application/json\n";
    send(to, "PUT", &path, json_type, &body.to_string()).await
}

/// Each node of an answer, and how far it is.
fn reached(answer: &Value) -> Vec<(String, String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let nodes = answer["nodes"].as_array().expect("a list");
    let of = |node: &Value| {
        let (name, state) = (text(&node["node"]), text(&node["state"]));
        (
            name.expect("a name"),
            state.expect("a state"),
            text(&node["in_force"]),
        )
    };
    nodes.iter().map(of).collect()
}

#[tokio::test]
async fn nodes_say_which_stage_is_in_force_and_where_they_stopped() {
    let world = world().await;
    let document = get(world.api, "/openapi.json").await.json();
    let set = policies("b", CHAT);
    let (digest, other) = (set.digest().to_owned(), "0".repeat(64));
    let at = |stage: Value| json!({"name": "r", "stage": stage, "selects": [], "stopped": null});
    let with = |field: &str, value: Value| {
        let mut said = at(json!("b"));
        said[field] = value;
        said
    };
    let mut back = at(json!("a"));
    back["stopped"] = stop_report(&set, "rollback");
    let held = with("stopped", stop_report(&set, "hold"));
    put_in_force(&world, set);
    for (node, digest, rollout) in [
        ("there", &digest, Some(at(json!("b")))),
        ("held", &digest, Some(held)),
        ("back", &digest, Some(back)),
        ("late", &other, Some(at(json!("a")))),
        ("before", &other, Some(at(Value::Null))),
        ("older", &digest, None),
        ("glass", &digest, Some(with("observe_all", json!(true)))),
    ] {
        let mut body = json!({"revision": 3, "digest": digest});
        if let Some(rollout) = rollout {
            body["rollout"] = rollout;
        }
        let told = report(world.api, node, &body).await;
        assert_eq!(told.status, 204, "{node}: {}", told.body);
    }
    let reply = get(world.api, "/v1/rollout").await;
    check(&document, "get", "/v1/rollout", &reply);
    let answer = reply.json();
    let wanted = [
        ("back", "stopped", Some("a")),
        ("before", "behind", None),
        ("glass", "in_force", Some("b")),
        ("held", "stopped", Some("b")),
        ("late", "behind", Some("a")),
        ("older", "unknown", None),
        ("there", "in_force", Some("b")),
    ]
    .map(|(node, state, stage)| (node.to_owned(), state.to_owned(), stage.map(str::to_owned)));
    assert_eq!(reached(&answer), wanted);
    let nodes = &answer["nodes"];
    assert_eq!(
        nodes[0]["stopped"],
        json!({
            "stage": "b", "action": "rollback", "cause": "denials", "denials": 5, "per_minute": 4, "attempts": 9,
            "attempts_per_minute": null, "at": "2026-03-02T09:10:45Z",
        })
    );
    assert_eq!(
        (&nodes[2]["observe_all"], &nodes[5]["observe_all"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(nodes[6]["stopped"], Value::Null);

    // Who has the documents and not the stage is not one of those that have all in force.
    let policies_now = policies("b", CHAT);
    let stopped = |node: &str, action| StoppedNode {
        node: node.to_owned(),
        stop: stop(&policies_now, action),
    };
    assert_eq!(
        world.state.followers(),
        Followers {
            all: 7,
            in_sync: 5,
            at_stage: 3,
            stopped: vec![
                stopped("back", DenialAction::Rollback),
                stopped("held", DenialAction::Hold)
            ],
            ..Followers::default()
        }
    );

    // The document has gone back behind the stage: that is another try, of which these have not heard yet.
    put_in_force(&world, policies("a", CHAT));
    let answer = get(world.api, "/v1/rollout").await.json();
    let states = reached(&answer).into_iter().map(|(_, state, _)| state);
    assert_eq!(states.collect::<Vec<_>>(), ["behind"; 7]);
    assert_eq!(world.state.followers().stopped, []);
}

#[tokio::test]
async fn what_a_node_cannot_say_of_a_rollout_is_refused() {
    let world = world().await;
    let set = policies("b", CHAT);
    let good = json!({
        "revision": 1, "digest": set.digest(),
        "rollout": {"name": "r", "stage": "b", "selects": ["c"], "stopped": stop_report(&set, "hold")},
    });
    let many: Vec<String> = (0..33).map(|number| format!("s{number}")).collect();
    let bad = |place: &str, value: Value| {
        let mut body = good.clone();
        *body.pointer_mut(place).expect("it is there") = value;
        body
    };
    let mut surprise = good.clone();
    surprise["rollout"]["stopped"]["edges"] = json!([]);
    for (body, code, field) in [
        (
            bad("/rollout/name", json!("R r")),
            "invalid_report",
            "rollout.name",
        ),
        (
            bad("/rollout/name", json!("r".repeat(64))),
            "invalid_report",
            "rollout.name",
        ),
        (
            bad("/rollout/stage", json!("")),
            "invalid_report",
            "rollout.stage",
        ),
        (
            bad("/rollout/selects", json!(["a b"])),
            "invalid_report",
            "rollout.selects",
        ),
        (
            bad("/rollout/selects", json!(many)),
            "invalid_report",
            "rollout.selects",
        ),
        (
            bad("/rollout/stopped/stage", json!("<b>")),
            "invalid_report",
            "rollout.stopped.stage",
        ),
        (
            bad("/rollout/stopped/definition", json!("d")),
            "invalid_report",
            "rollout.stopped.definition",
        ),
        (
            bad("/rollout/stopped/attempts_per_minute", json!(1_u64 << 63)),
            "invalid_report",
            "rollout.stopped.attempts_per_minute",
        ),
        (bad("/rollout/stopped/denials", json!(-1)), "invalid_body", ""),
        (bad("/rollout/stopped/action", json!("run")), "invalid_body", ""),
        (
            bad("/rollout/stopped/cause", json!("because")),
            "invalid_body",
            "",
        ),
        (bad("/rollout/stopped/at", json!("yesterday")), "invalid_body", ""),
        (bad("/rollout/stopped", json!(["b"])), "invalid_body", ""),
        (bad("/rollout", json!(["r", "b"])), "invalid_body", ""),
        (surprise, "invalid_body", ""),
    ] {
        let reply = report(world.api, "n", &body).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, code), "{body}");
        assert_eq!(reply.json()["errors"][0]["field"], field, "{body}");
    }
    assert_eq!(world.state.followers(), Followers::default());
    assert_eq!(report(world.api, "n", &good).await.status, 204);
}

/// Waits until what the agent says of its one node is so.
async fn eventually(world: &World, what: &str, holds: impl Fn(&Value) -> bool) {
    let looking = async {
        loop {
            let node = get(world.api, "/v1/rollout").await.json()["nodes"][0].clone();
            if holds(&node) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let looked = tokio::time::timeout(Duration::from_secs(60), looking).await;
    assert!(looked.is_ok(), "{what} did not come true");
}

#[tokio::test]
async fn a_node_tells_the_engine_that_it_follows() {
    let world = world().await;
    let set = policies("b", CHAT);
    let stopped = stop(&set, DenialAction::Rollback);
    put_in_force(&world, set);
    let directory = tempfile::tempdir().expect("tempdir");
    let following = Following {
        url: format!("http://{}", world.api),
        node: "worker-1".to_owned(),
        policy: Settings::default(),
        directory: directory.path().to_path_buf(),
        tls: None,
    };
    let start = PolicyFollower::start(following).await.expect("answered");
    let policies = Arc::new(start.policies);
    let modes = |most_stages| {
        let settings = Settings {
            most_stages,
            ..Settings::default()
        };
        NodeModes::new(Mode::Observe.into(), &policies, &settings, "worker-1")
    };
    let (node, snapshots) = crate::state::channel(Snapshot {
        policies: Arc::clone(&policies),
        modes: modes(Some(1)),
        stopped: Some(Arc::new(stopped)),
        // Not the one that the third stage is about.
        workloads: Arc::clone(&world.state.snapshot().workloads),
        ..Snapshot::default()
    });
    let (sink, _documents) = tokio::sync::mpsc::channel(1);
    let running = tokio::spawn(start.follower.run(sink, snapshots));
    eventually(&world, "that it stopped", |node| {
        node["node"] == "worker-1"
            && node["state"] == "stopped"
            && node["in_force"] == "a"
            && node["stopped"]["denials"] == 5
            && node["stopped"]["at"] == "2026-03-02T09:10:45Z"
    })
    .await;
    let selected = world.state.nodes().selected(&world.state.snapshot());
    assert!(selected.is_whole && selected.stages.is_empty(), "{selected:?}");
    node.update(|next| {
        next.stopped = None;
        next.modes = modes(None);
        let mut chat = WorkloadRecord::clone(&next.workloads[0].record);
        chat.spiffe = id(CHAT);
        let chat = Placed {
            record: Arc::new(chat),
            ..next.workloads[0].clone()
        };
        next.workloads = Arc::new(vec![chat]);
    });
    eventually(&world, "that it goes on", |node| {
        node["state"] == "in_force" && node["in_force"] == "b" && node["stopped"].is_null()
    })
    .await;
    let selected = world.state.nodes().selected(&world.state.snapshot());
    assert_eq!(selected.stages.into_iter().collect::<Vec<_>>(), ["c"]);
    running.abort();
}

#[tokio::test]
async fn what_other_engines_say_in_the_cluster_counts_where_the_node_says_nothing_later_itself() {
    let world = world().await;
    let set = policies("b", CHAT);
    let digest = set.digest().to_owned();
    let stopped = |node: &str, action, at| {
        let stop = Stop {
            at,
            ..stop(&set, action)
        };
        let node = node.to_owned();
        ("engine-2".to_owned(), StoppedNode { node, stop })
    };
    // Before all that is heard here, and after it.
    let (before, after) = (1_772_442_645_000, 4_102_444_800_000);
    let said = vec![
        stopped("elsewhere", DenialAction::Rollback, before),
        stopped("here", DenialAction::Hold, before),
        stopped("since", DenialAction::Hold, after),
        stopped("since", DenialAction::Rollback, before),
    ];
    let silent = |node: &str| {
        let missed = MissedNode {
            node: node.to_owned(),
            heard: 1_772_442_675_000_000_000,
        };
        ("engine-2".to_owned(), missed)
    };
    put_in_force(&world, policies("b", CHAT));
    let [engine, _] = world
        .serve(Parts {
            service: Service::Engine,
            stopped_elsewhere: Some(Box::new(move || Elsewhere {
                stopped: said.clone(),
                silent: vec![silent("elsewhere"), silent("gone"), silent("here")],
                heard: Vec::new(),
            })),
            ..world.parts()
        })
        .await;
    let body =
        json!({"revision": 1, "digest": digest, "rollout": {"name": "r", "stage": "b", "stopped": null}});
    for node in ["here", "since"] {
        assert_eq!(report(engine, node, &body).await.status, 204);
    }
    let reply = get(engine, "/v1/rollout").await;
    let document = get(engine, "/openapi.json").await.json();
    check(&document, "get", "/v1/rollout", &reply);
    let (answer, text) = (reply.json(), str::to_owned);
    assert_eq!(
        reached(&answer),
        [
            (text("elsewhere"), text("silent"), None),
            (text("gone"), text("silent"), None),
            (text("here"), text("in_force"), Some(text("b"))),
            (text("since"), text("stopped"), Some(text("b"))),
        ]
    );
    let nodes = &answer["nodes"];
    let told = |node: usize| (&nodes[node]["engine"], &nodes[node]["heard"]);
    let since = json!("2026-03-02T09:11:15Z");
    assert_eq!(told(0), (&json!("engine-2"), &since));
    assert_eq!(told(1), (&json!("engine-2"), &since));
    assert_eq!(nodes[0]["stopped"]["action"], "rollback");
    assert_eq!(nodes[1]["stopped"], Value::Null);
    assert!(nodes[2]["engine"].is_null() && nodes[2]["heard"].is_string());
    assert_eq!(told(3), (&json!("engine-2"), &Value::Null));
    // Behind the stage it is over, whatever others have said.
    put_in_force(&world, policies("a", CHAT));
    let answer = get(engine, "/v1/rollout").await.json();
    let states = reached(&answer).into_iter().map(|(node, state, _)| (node, state));
    assert_eq!(
        states.collect::<Vec<_>>(),
        [
            (text("elsewhere"), text("silent")),
            (text("gone"), text("silent")),
            (text("here"), text("behind")),
            (text("since"), text("behind")),
        ]
    );
}
