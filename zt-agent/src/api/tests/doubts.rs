// SPDX-License-Identifier: Apache-2.0
//! Changes of which it is not known at once what came of them, and none that has two records or none.

use std::sync::Mutex;

use uuid::Uuid;

use super::interrupted::{about_to_put, forgotten, later, so_many, start, start_again};
use super::records::{meddle, policy, publish, put, put_and_written};
use super::*;
use crate::api::changes::{acknowledged, forget};
use crate::audit::intent::{Intent, Progress};
use crate::audit::record::Timestamp;
use crate::audit::sqlite::tests::{REFUSE, TAKE_AGAIN};
use crate::policy::{document_of, mark_resource};
use crate::policy_dir::{EditError, Held, Store as Keeper};

/// Keeps objects, may be away, and loses every answer: what it was sent arrives when the test says so.
#[derive(Debug, Default)]
struct Server {
    kept: Mutex<Vec<Held>>,
    sent: Mutex<Option<Held>>,
    is_away: AtomicBool,
}

impl Server {
    fn arrive(&self) {
        let sent = self.sent.lock().expect("not poisoned").take();
        self.kept
            .lock()
            .expect("not poisoned")
            .push(sent.expect("something was sent"));
    }

    /// Somebody else, or who is named, makes the policy `new`.
    fn make(&self, port: u16, by: Option<Uuid>) {
        let mut resource = json!({
            "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "new"},
            "spec": {"rules": [{"from": {"spiffe": CHAT}, "to": [{"spiffe": POSTGRES, "ports": [port]}]}]}
        });
        if let Some(by) = by {
            mark_resource(&mut resource, &by.to_string());
        }
        let held = held("serviceaccesspolicies/new", &resource);
        self.kept.lock().expect("not poisoned").push(held);
    }
}

fn held(place: &str, resource: &Value) -> Held {
    Held {
        document: Document {
            file: place.to_owned(),
            text: document_of(resource).to_string(),
        },
        resource: resource.clone(),
    }
}

impl Keeper for Server {
    fn name(&self) -> &'static str {
        "server"
    }

    fn read(&self) -> Result<Vec<Held>, EditError> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(EditError::Unreachable("it is away".to_owned()));
        }
        Ok(self.kept.lock().expect("not poisoned").clone())
    }

    fn write(&self, place: &str, _: Option<&Value>, to: Option<&Value>) -> Result<Option<Value>, EditError> {
        *self.sent.lock().expect("not poisoned") = to.map(|resource| held(place, resource));
        Err(EditError::Unreachable("its answer was lost".to_owned()))
    }
}

/// A world whose policies such a server keeps, and whose trail has told of what is in force. Nobody records what comes yet.
async fn kept_elsewhere() -> (Arc<Server>, World) {
    let server = Arc::new(Server::default());
    let kept = Arc::clone(&server);
    let world = world_of(|_| Editor::of_store(kept, Settings::default())).await;
    start_again(&world, 1).await.abort();
    (server, world)
}

async fn noted(world: &World) -> Vec<Intent> {
    world.state.store.intents().await.expect("reads")
}

/// Waits until this run has recorded what was in force when it began.
async fn has_begun(world: &World) {
    let seen = world.state.changes().have_seen(7);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("noted");
}

/// Waits until the trail has told of what is in force.
async fn is_told(world: &World) {
    let now = world.state.snapshot().policies.digest().to_owned();
    let told = async {
        while world.state.store.policy_told().await.expect("reads").as_ref() != Some(&now) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told)
        .await
        .expect("told");
}

#[tokio::test]
async fn a_change_without_a_record_has_one_before_what_takes_it_back() {
    let world = world().await;
    world.start_node();
    has_begun(&world).await;
    meddle(&world, REFUSE).await;
    let made = put(&world, "p", &policy("p", 1)).await;
    assert_eq!((made.status, made.code().as_str()), (503, "not_recorded"));
    meddle(&world, TAKE_AGAIN).await;
    let marked = noted(&world).await;
    assert_eq!((marked.len(), marked[0].progress), (1, Progress::Made));
    let gone = send(world.api, "DELETE", "/v1/policies/p", YAML, "").await;
    assert_eq!(gone.status, 200, "{}", gone.body);

    let all = so_many(&world, 2).await;
    let (first, second) = (&all[0]["change"], &all[1]["change"]);
    assert_eq!(all[0]["id"], marked[0].id.to_string());
    assert_eq!(all[0]["caller"], &*marked[0].caller);
    assert_eq!(first["begun"][0]["caller"], &*marked[0].caller);
    assert_eq!(first["in_force"], false, "by then");
    assert_eq!((&first["to"], &first["from"]), (&second["from"], &second["to"]));
    assert!(noted(&world).await.is_empty());
    start_again(&world, 1).await.abort();
    so_many(&world, 2).await;
}

#[tokio::test]
async fn what_was_made_is_told_at_the_next_start_though_it_is_as_before() {
    let world = world().await;
    start_again(&world, 1).await.abort();
    let made = about_to_put(&world, "alice", "p", policy("p", 1)).await;
    acknowledged(&world.state, Some(made)).await;
    about_to_put(&world, "bob", "q", policy("q", 1)).await;
    start_again(&world, 2).await.abort();
    let all = so_many(&world, 1).await;
    assert_eq!(
        (&all[0]["caller"], &all[0]["change"]["in_force"], &all[0]["id"]),
        (&json!("alice"), &json!(false), &json!(made.to_string()))
    );
    forgotten(&world).await;
}

#[tokio::test]
async fn a_note_is_kept_while_what_came_of_it_cannot_be_seen() {
    let (server, world) = kept_elsewhere().await;
    let id = about_to_put(&world, "alice", "new", policy("new", 8)).await;
    server.is_away.store(true, Ordering::SeqCst);
    let again = ApiState::new(Parts {
        started: 2,
        policies_in_force: world.snapshots.policies(),
        ..world.parts()
    });
    let running = start(&again).await;
    so_many(&world, 0).await;
    assert_eq!(noted(&world).await.len(), 1, "it is away");

    // It was made, and comes into force some time.
    server.make(8, Some(id));
    server.is_away.store(false, Ordering::SeqCst);
    let all = so_many(&world, 1).await;
    assert_eq!(
        (&all[0]["caller"], &all[0]["id"]),
        (&json!("alice"), &json!(id.to_string()))
    );
    forgotten(&world).await;
    let wanted = all[0]["change"]["to"].as_str().expect("a digest").to_owned();
    let late = async {
        while world.state.store.policy_late().await.expect("reads").as_ref() != Some(&wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), late)
        .await
        .expect("noted");
    publish(&world, &[policy("new", 8)]);
    is_told(&world).await;
    so_many(&world, 1).await;
    running.abort();
}

#[tokio::test]
async fn a_note_goes_when_what_it_says_cannot_be_made_any_more() {
    let (server, world) = kept_elsewhere().await;
    let young = about_to_put(&world, "alice", "new", policy("new", 8)).await;
    // A clock that went wrong says nothing.
    let old = Intent {
        id: Uuid::now_v7(),
        at: Timestamp(noted(&world).await[0].at.0 + 600_000_000_000),
        caller: Arc::from("bob"),
        ..noted(&world).await.remove(0)
    };
    world.state.store.note_intent(&old).await.expect("noted");
    server.is_away.store(true, Ordering::SeqCst);
    let again = later(&world, 2);
    let running = start(&again).await;
    assert_eq!(noted(&world).await.len(), 2, "neither can be seen");
    again.changes().cannot_arrive(old.id);
    server.is_away.store(false, Ordering::SeqCst);
    let gone = async {
        while noted(&world).await.len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone)
        .await
        .expect("gone");
    assert_eq!(noted(&world).await[0].id, young, "it may arrive yet");
    so_many(&world, 0).await;
    running.abort();
}

#[tokio::test]
async fn what_arrives_after_the_look_is_its_caller_s() {
    let (server, world) = kept_elsewhere().await;
    tokio::spawn(record_changes(world.state.clone()));
    has_begun(&world).await;
    let lost = put(&world, "new", &policy("new", 8)).await;
    assert_eq!((lost.status, lost.code().as_str()), (503, "store_unreachable"));
    let kept = noted(&world).await;
    assert_eq!((kept.len(), kept[0].progress), (1, Progress::Doubtful));
    server.arrive();
    publish(&world, &[policy("new", 8)]);
    let all = so_many(&world, 1).await;
    assert_eq!(
        (&all[0]["caller"], &all[0]["id"]),
        (&json!(&*kept[0].caller), &json!(kept[0].id.to_string()))
    );
    let begun = &all[0]["change"]["begun"];
    assert_eq!((&begun[0]["policy"], &begun[1]), (&json!("new"), &Value::Null));
    forgotten(&world).await;
    is_told(&world).await;
    start_again(&world, 2).await.abort();
    so_many(&world, 1).await;
}

#[tokio::test]
async fn what_somebody_else_did_is_not_told_as_whose_change_was_lost() {
    let (server, world) = kept_elsewhere().await;
    tokio::spawn(record_changes(world.state.clone()));
    has_begun(&world).await;
    let lost = put(&world, "new", &policy("new", 8)).await;
    assert_eq!((lost.status, lost.code().as_str()), (503, "store_unreachable"));
    assert_eq!(noted(&world).await.len(), 1);
    // It never arrives, and another one does the same.
    server.make(8, None);
    publish(&world, &[policy("new", 8)]);
    let all = so_many(&world, 1).await;
    assert_eq!(all[0]["caller"], "server");
    assert!(all[0]["change"].get("begun").is_none(), "{}", all[0]);
    forgotten(&world).await;
    start_again(&world, 2).await.abort();
    so_many(&world, 1).await;
}

#[tokio::test]
async fn the_clock_does_not_tell_what_may_arrive_yet() {
    let (_server, world) = kept_elsewhere().await;
    about_to_put(&world, "alice", "new", policy("new", 8)).await;
    let mut early = noted(&world).await.remove(0);
    early.id = Uuid::now_v7();
    early.at = Timestamp(1);
    early.caller = Arc::from("bob");
    world.state.store.note_intent(&early).await.expect("noted");
    start_again(&world, 2).await.abort();
    assert_eq!(noted(&world).await.len(), 2, "it began to look just now");
}

/// What makes the store refuse to take a note away.
const REFUSE_TO_FORGET: &str = "CREATE TRIGGER refuse BEFORE DELETE ON policy_change_note BEGIN SELECT RAISE(ABORT, 'the test refuses it'); END";

#[tokio::test]
async fn a_note_that_could_not_be_taken_away_goes_when_it_can() {
    let world = world().await;
    world.start_node();
    has_begun(&world).await;
    let id = about_to_put(&world, "alice", "p", policy("p", 1)).await;
    meddle(&world, REFUSE_TO_FORGET).await;
    forget(&world.state, Some(id)).await;
    assert_eq!(noted(&world).await.len(), 1);
    // Somebody else does the same: that is not hers.
    publish(&world, &[policy("p", 1)]);
    let all = so_many(&world, 1).await;
    assert!(all[0]["change"].get("begun").is_none(), "{}", all[0]);
    meddle(&world, TAKE_AGAIN).await;
    forgotten(&world).await;
    so_many(&world, 1).await;
}

#[tokio::test]
async fn what_is_taken_back_is_not_told_as_made_where_its_note_stays() {
    let world = Arc::new(world().await);
    tokio::spawn(record_changes(world.state.clone()));
    has_begun(&world).await;
    meddle(&world, REFUSE_TO_FORGET).await;
    let (asking, file) = put_and_written(&world).await;
    // The node does not take it.
    world
        .snapshots
        .update(|next| next.policy_error = Some(Arc::default()));
    let reply = asking.await.expect("asked");
    assert_eq!((reply.status, reply.code().as_str()), (500, "not_in_force"));
    assert!(!file.exists());
    let left = noted(&world).await;
    assert_eq!((left.len(), left[0].progress), (1, Progress::Doubtful));
    meddle(&world, TAKE_AGAIN).await;
    start_again(&world, 2).await.abort();
    forgotten(&world).await;
    so_many(&world, 0).await;
}

#[tokio::test]
async fn a_note_that_comes_after_its_record_is_none() {
    let world = world().await;
    world.start_node();
    has_begun(&world).await;
    assert_eq!(put(&world, "p", &policy("p", 1)).await.status, 200);
    let record = so_many(&world, 1).await.remove(0);
    let digest = |end: &str| record["change"][end].as_str().expect("a digest").to_owned();
    let late = Intent {
        id: record["id"].as_str().expect("an id").parse().expect("an id"),
        progress: Progress::Begun,
        run: world.state.started,
        at: Timestamp(world.state.started),
        caller: Arc::from(record["caller"].as_str().expect("a caller")),
        policy: "p".to_owned(),
        before: None,
        after: world
            .state
            .snapshot()
            .policies
            .get("p")
            .map(|policy| policy.digest().to_owned()),
        from: digest("from"),
        to: digest("to"),
        diff: json!(null),
    };
    // As it was written, and the agent heard of that too late, or not at all.
    world
        .state
        .store
        .note_intent(&late)
        .await
        .expect("nothing to note");
    assert!(noted(&world).await.is_empty());
    start_again(&world, 1).await.abort();
    so_many(&world, 1).await;
}

/// What makes the store fail to keep records, as one does that will keep them later.
const FAIL: &str =
    "CREATE TRIGGER refuse BEFORE INSERT ON record BEGIN SELECT abs(-9223372036854775808); END";
/// What makes the store refuse to take a note away, by another name.
const KEEP_NOTES: &str = "CREATE TRIGGER keep BEFORE DELETE ON policy_change_note BEGIN SELECT RAISE(ABORT, 'the test refuses it'); END";

#[tokio::test]
async fn what_waits_to_be_stored_is_not_handed_over_again() {
    let world = world().await;
    tokio::spawn(record_changes(world.state.clone()));
    has_begun(&world).await;
    let stays = about_to_put(&world, "alice", "p", policy("p", 1)).await;
    let note = noted(&world).await.remove(0);
    meddle(&world, FAIL).await;
    meddle(&world, KEEP_NOTES).await;
    // So it is looked again and again.
    forget(&world.state, Some(stays)).await;
    let received = || world.intake.stats().received_total();
    let before = received();
    for number in 1..=3 {
        let made = Intent {
            id: Uuid::now_v7(),
            progress: Progress::Made,
            caller: Arc::from("bob"),
            ..note.clone()
        };
        world.state.store.note_intent(&made).await.expect("noted");
        let looked = async {
            while received() < before + number {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), looked)
            .await
            .expect("looked");
        assert_eq!(received(), before + number, "it alone");
    }
    meddle(&world, "DROP TRIGGER keep").await;
    meddle(&world, TAKE_AGAIN).await;
    so_many(&world, 3).await;
    forgotten(&world).await;
}
