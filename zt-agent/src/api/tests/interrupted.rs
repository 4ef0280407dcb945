// SPDX-License-Identifier: Apache-2.0
//! Agents that end between a change of policy and its record.

use uuid::Uuid;

use super::records::{changes, meddle, policy, publish, put};
use super::*;
use crate::api::changes::intend;
use crate::audit::pipeline::ApiEvent;
use crate::audit::record::Timestamp;
use crate::audit::sqlite::tests::{REFUSE, TAKE_AGAIN};
use crate::policy_dir::Edit;

/// An agent of a later run, which has what this one has.
pub(super) fn later(world: &World, run: i64) -> ApiState {
    ApiState::new(Parts {
        started: run,
        ..world.parts()
    })
}

/// Has it record changes. Comes back when it has looked at what there is.
pub(super) async fn start(state: &ApiState) -> tokio::task::JoinHandle<()> {
    let recording = tokio::spawn(record_changes(state.clone()));
    let seen = state.changes().have_seen(state.snapshot().revision);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("it looks");
    recording
}

/// Both.
pub(super) async fn start_again(world: &World, run: i64) -> tokio::task::JoinHandle<()> {
    start(&later(world, run)).await
}

/// The changes that are recorded, when there are so many.
pub(super) async fn so_many(world: &World, wanted: usize) -> Vec<Value> {
    let waiting = async {
        loop {
            let all = changes(world).await;
            if all.len() >= wanted {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .expect("the records");
    // Whatever was handed over by now is stored before this is.
    let marker = ApiEvent::ModeChanged {
        observe_all: false,
        caller: "marker".into(),
        revision: 1,
    };
    let stored = world.intake.hand_over(vec![marker]).await.expect("takes it");
    stored.await.expect("stores it");
    let all = changes(world).await;
    assert_eq!(all.len(), wanted, "{all:#?}");
    all
}

/// Waits until nothing is noted any more.
pub(super) async fn forgotten(world: &World) {
    let waiting = async {
        while !world.state.store.intents().await.expect("reads").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .expect("forgotten");
}

/// Has a caller of this run be about to put a policy, and the run end. The id of what is noted.
pub(super) async fn about_to_put(world: &World, caller: &str, name: &str, text: String) -> Uuid {
    let name = name.to_owned();
    let plan = world
        .state
        .editor
        .plan(Edit::Put { name, text }, &world.state.snapshot().policies, |_| {
            Ok(())
        })
        .expect("can be made");
    let id = Uuid::now_v7();
    let noted = intend(&world.state, &plan, (id, &Arc::from(caller)), false).await;
    noted.expect("noted");
    id
}

pub(super) fn write(world: &World, name: &str, text: &str) {
    // At once: who looks meanwhile finds the old text.
    let new = world.policies().join(format!(".{name}.new"));
    std::fs::write(&new, text).expect("written");
    std::fs::rename(new, world.policies().join(format!("{name}.yaml"))).expect("in its place");
}

fn digest(world: &World) -> Value {
    world.state.snapshot().policies.digest().into()
}

#[tokio::test]
async fn a_change_that_has_no_record_is_its_caller_s_at_the_next_start() {
    let world = world().await;
    world.start_node();
    let first = digest(&world);
    let seen = world.state.changes().have_seen(7);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("noted");
    meddle(&world, REFUSE).await;
    let made = put(&world, "p", &policy("p", 1)).await;
    assert_eq!((made.status, made.code().as_str()), (503, "not_recorded"));
    meddle(&world, TAKE_AGAIN).await;
    assert!(changes(&world).await.is_empty());

    start_again(&world, 1).await.abort();
    let found = so_many(&world, 1).await.remove(0);
    let caller = found["caller"].as_str().expect("a caller");
    assert!(caller.starts_with("127.0.0.1:"), "{found}");
    let change = &found["change"];
    assert_eq!((&change["from"], &change["to"]), (&first, &digest(&world)));
    assert_eq!(change["diff"]["added_total"], 1);
    assert!(change.get("in_force").is_none(), "{change}");
    let begun = &change["begun"];
    assert_eq!(begun.as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&begun[0]["caller"], &begun[0]["policy"]),
        (&found["caller"], &json!("p"))
    );
    let at: Timestamp = begun[0]["at"].as_str().expect("a time").parse().expect("a time");
    let recorded: Timestamp = found["timestamp"]
        .as_str()
        .expect("a time")
        .parse()
        .expect("a time");
    assert!(at < recorded);
    forgotten(&world).await;

    // Once.
    start_again(&world, 2).await.abort();
    so_many(&world, 1).await;
}

#[tokio::test]
async fn what_was_begun_is_told_by_what_came_of_it() {
    let world = world().await;
    start_again(&world, 1).await.abort();

    // Nothing came of it.
    about_to_put(&world, "alice", "p", policy("p", 1)).await;
    start_again(&world, 2).await.abort();
    forgotten(&world).await;
    so_many(&world, 0).await;

    // It was made, and somebody has changed something else since.
    let first = digest(&world);
    about_to_put(&world, "alice", "p", policy("p", 1)).await;
    write(&world, "p", &policy("p", 1));
    write(&world, "q", &policy("q", 2));
    publish(&world, &[policy("p", 1), policy("q", 2)]);
    start_again(&world, 3).await.abort();
    let both = so_many(&world, 2).await;
    assert_eq!(both[0]["caller"], "alice");
    assert_eq!(both[0]["change"]["in_force"], false);
    assert_eq!(both[0]["change"]["diff"]["policies"][0]["name"], "p");
    assert!(
        both[1]["caller"]
            .as_str()
            .is_some_and(|caller| caller.ends_with(", found at start"))
    );
    let change = &both[1]["change"];
    assert_eq!((&change["from"], &change["to"]), (&first, &digest(&world)));
    // Both together: two ports that are neighbours.
    let added = &change["diff"]["added"];
    assert_eq!(
        (&added[0]["ports"], &added[1]),
        (&json!(["1-2"]), &json!(null)),
        "{change}"
    );
    assert_eq!(
        (&change["begun"][0]["caller"], &change["begun"][1]),
        (&json!("alice"), &json!(null))
    );
    forgotten(&world).await;

    // Something else is there, and nobody knows whether it was made before.
    about_to_put(&world, "bob", "p", policy("p", 3)).await;
    write(&world, "p", &policy("p", 4));
    publish(&world, &[policy("p", 4), policy("q", 2)]);
    start_again(&world, 4).await.abort();
    let found = so_many(&world, 3).await.remove(2);
    assert!(
        found["caller"]
            .as_str()
            .is_some_and(|caller| caller.ends_with(", found at start"))
    );
    assert_eq!(found["change"]["begun"][0]["caller"], "bob");
    forgotten(&world).await;

    // It was made, and is not in force: other documents are not valid.
    about_to_put(&world, "carol", "r", policy("r", 5)).await;
    write(&world, "r", &policy("r", 5));
    start_again(&world, 5).await.abort();
    let late = so_many(&world, 4).await.remove(3);
    assert_eq!(
        (&late["caller"], &late["change"]["in_force"]),
        (&json!("carol"), &json!(false))
    );
    forgotten(&world).await;

    // Then it comes into force, while no agent runs: that is told.
    publish(&world, &[policy("p", 4), policy("q", 2), policy("r", 5)]);
    let wanted = world.state.snapshot().policies.digest().to_owned();
    let noted = async {
        while world.state.store.policy_late().await.expect("reads").as_ref() != Some(&wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), noted)
        .await
        .expect("noted");
    start_again(&world, 6).await.abort();
    so_many(&world, 4).await;

    // There and back, and none of it is recorded: what is in force was told before.
    about_to_put(&world, "dave", "r", policy("r", 6)).await;
    write(&world, "r", &policy("r", 6));
    about_to_put(&world, "erin", "r", policy("r", 5)).await;
    write(&world, "r", &policy("r", 5));
    start_again(&world, 7).await.abort();
    let all = so_many(&world, 6).await;
    for (record, caller) in all[4..].iter().zip(["dave", "erin"]) {
        assert_eq!(
            (&record["caller"], &record["change"]["in_force"]),
            (&json!(caller), &json!(false))
        );
        assert_eq!(record["change"]["begun"][0]["caller"], caller);
    }
    forgotten(&world).await;
}

#[tokio::test]
async fn a_trail_that_has_lost_what_it_told_tells_what_was_begun() {
    let world = world().await;
    about_to_put(&world, "alice", "p", policy("p", 1)).await;
    about_to_put(&world, "bob", "q", policy("q", 1)).await;
    write(&world, "p", &policy("p", 1));
    write(&world, "q", &policy("q", 2));
    publish(&world, &[policy("p", 1), policy("q", 2)]);
    start_again(&world, 1).await.abort();
    let all = so_many(&world, 2).await;
    assert_eq!(all[0]["caller"], "alice");
    let change = &all[1]["change"];
    assert_eq!((&change["from"], &change["to"]), (&json!(null), &digest(&world)));
    let callers = [0, 1].map(|place| change["begun"][place]["caller"].as_str());
    assert_eq!(callers, [Some("alice"), Some("bob")]);
    forgotten(&world).await;
    start_again(&world, 2).await.abort();
    so_many(&world, 2).await;
}

#[tokio::test]
async fn what_was_recorded_before_it_was_in_force_is_not_found_at_the_next_start() {
    let world = world().await;
    world.start_node();
    let seen = world.state.changes().have_seen(7);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("noted");
    write(&world, "q", &policy("q", 2));
    so_many(&world, 1).await;
    write(&world, "q", "kind: [");
    let made = put(&world, "p", &policy("p", 1)).await;
    assert_eq!(made.status, 202, "{}", made.body);
    so_many(&world, 2).await;

    // What is wrong is mended: as it was.
    write(&world, "q", &policy("q", 2));
    let told = async {
        loop {
            let snapshot = world.state.snapshot();
            let told = world.state.store.policy_told().await.expect("reads");
            if snapshot.policies.get("p").is_some() && told.as_deref() == Some(snapshot.policies.digest()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told)
        .await
        .expect("told");
    start_again(&world, 1).await.abort();
    so_many(&world, 2).await;
}

#[tokio::test]
async fn what_somebody_does_later_is_not_a_change_that_another_has_taken_the_place_of() {
    let world = world().await;
    world.start_node();
    let seen = world.state.changes().have_seen(7);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("noted");
    write(&world, "q", "kind: [");
    // As the node does, which tells of that once it has seen it.
    let mut snapshots = world.state.snapshots.clone();
    let is_told = snapshots.wait_for(|snapshot| snapshot.policy_error.is_some());
    tokio::time::timeout(Duration::from_secs(30), is_told)
        .await
        .expect("seen")
        .expect("there");
    let made = put(&world, "p", &policy("p", 1)).await;
    assert_eq!(made.status, 202, "{}", made.body);
    so_many(&world, 1).await;

    // Somebody else has it be another, and mends what is wrong.
    write(&world, "p", &policy("p", 2));
    std::fs::remove_file(world.policies().join("q.yaml")).expect("removed");
    let theirs = so_many(&world, 2).await.remove(1);
    let place = world.state.editor.place();
    assert_eq!(
        (&theirs["caller"], &theirs["change"]["to"]),
        (&json!(place), &digest(&world))
    );

    // And then what was asked for.
    write(&world, "p", &policy("p", 1));
    let last = so_many(&world, 3).await.remove(2);
    assert_eq!(
        (&last["caller"], &last["change"]["from"]),
        (&json!(place), &theirs["change"]["to"])
    );
}

/// What makes the store refuse to note who is about to change policy.
const REFUSE_NOTES: &str = "CREATE TRIGGER refuse BEFORE INSERT ON policy_change_note BEGIN SELECT RAISE(ABORT, 'the test refuses it'); END";

#[tokio::test]
async fn a_rollout_goes_back_though_that_cannot_be_noted() {
    let rollout = |stage: &str| {
        format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: EnforcementRollout\nmetadata: {{name: r}}\nspec:\n  stage: {stage}\n  stages:\n    \
             - {{name: a, identities: ['{IAM}']}}\n    - {{name: b, identities: ['{POSTGRES}']}}\n"
        )
    };
    let world = world().await;
    world.start_node();
    let made = put(&world, "r", &rollout("b")).await;
    assert_eq!(made.status, 200, "{}", made.body);
    meddle(&world, REFUSE_NOTES).await;
    let back = put(&world, "r", &rollout("a")).await;
    assert_eq!(back.status, 200, "{}", back.body);
    so_many(&world, 2).await;
    let on = put(&world, "r", &rollout("b")).await;
    assert_eq!((on.status, on.code().as_str()), (503, "audit_unavailable"));
    assert!(
        on.body.contains("a rollout goes back all the same"),
        "{}",
        on.body
    );
}

#[tokio::test]
async fn a_change_that_cannot_be_noted_is_not_made() {
    let world = world().await;
    world.start_node();
    let before = digest(&world);
    meddle(&world, REFUSE_NOTES).await;
    let refused = put(&world, "p", &policy("p", 1)).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "audit_unavailable")
    );
    assert!(refused.body.contains("nothing was changed"), "{}", refused.body);
    assert!(!world.policies().join("p.yaml").exists());
    assert_eq!(digest(&world), before);
    meddle(&world, TAKE_AGAIN).await;
    assert_eq!(put(&world, "p", &policy("p", 1)).await.status, 200);
    assert!(
        world.state.store.intents().await.expect("reads").is_empty(),
        "its record is stored"
    );
}
