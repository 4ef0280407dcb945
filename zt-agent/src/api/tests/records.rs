// SPDX-License-Identifier: Apache-2.0
//! An answer means that its record is stored; where it is not, the answer says so, and what was done all the same.

use super::*;
use crate::audit::query::Filter;
use crate::audit::sqlite::tests::{REFUSE, TAKE_AGAIN};
use crate::audit::store::Sink as _;

/// The store's own answer, without waiting for anything.
async fn stored(world: &World) -> usize {
    let page = world.state.store.query(&Filter::default(), None, 1000).await;
    page.expect("answers").records.len()
}

pub(super) async fn meddle(world: &World, sql: &'static str) {
    let Archive::Local(store) = &*world.state.store else {
        panic!("a local store")
    };
    store.meddle(sql).await;
}

pub(super) fn policy(name: &str, port: u16) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {name}}}\nspec:\n  rules:\n    \
         - from: {{spiffe: \"{CHAT}\"}}\n      to: [{{spiffe: \"{POSTGRES}\", ports: [{port}]}}]\n"
    )
}

pub(super) async fn put(world: &World, name: &str, body: &str) -> Reply {
    send(world.api, "PUT", &format!("/v1/policies/{name}"), YAML, body).await
}

/// Asks for the policy `p` and waits until its file is there: the answer waits for it to come into force.
pub(super) async fn put_and_written(
    world: &Arc<World>,
) -> (tokio::task::JoinHandle<Reply>, std::path::PathBuf) {
    let asking = {
        let world = Arc::clone(world);
        tokio::spawn(async move { put(&world, "p", &policy("p", 3)).await })
    };
    let file = world.policies().join("p.yaml");
    let written = async {
        while std::fs::read_to_string(&file).ok() != Some(policy("p", 3)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), written)
        .await
        .expect("written");
    (asking, file)
}

/// Publishes what is in force, as the node does.
pub(super) fn publish(world: &World, documents: &[String]) {
    let documents: Vec<Document> = std::iter::once(&POLICY.to_owned())
        .chain(documents)
        .enumerate()
        .map(|(number, text)| Document {
            file: format!("{number}.yaml"),
            text: text.clone(),
        })
        .collect();
    let policies = crate::policy::parse(&documents, &Settings::default()).expect("valid");
    world.snapshots.update(|next| {
        next.revision += 1;
        next.policies = Arc::new(policies);
    });
}

pub(super) async fn changes(world: &World) -> Vec<Value> {
    let reply = get(world.api, "/v1/audit?type=policy_change").await;
    let mut records = reply.json()["records"].as_array().expect("records").clone();
    records.reverse();
    records
}

#[tokio::test]
async fn what_is_answered_is_stored() {
    let world = world().await;
    world.start_node();
    let one = question(IAM, POSTGRES, 5432);
    let batch = json!({ "requests": [one, one, one] }).to_string();
    assert_eq!(
        post(world.api, "/v1/evaluate", &one.to_string()).await.status,
        200
    );
    assert_eq!(stored(&world).await, 1);
    assert_eq!(post(world.api, "/v1/evaluate", &batch).await.status, 200);
    assert_eq!(stored(&world).await, 4);
    assert_eq!(put(&world, "p", &policy("p", 1)).await.status, 200);
    assert_eq!(stored(&world).await, 5);
    assert_eq!(
        send(world.api, "DELETE", "/v1/policies/p", "", "").await.status,
        200
    );
    assert_eq!(stored(&world).await, 6);
    assert_eq!(
        post(world.api, "/v1/mode", r#"{"mode":"observe"}"#).await.status,
        200
    );
    assert_eq!(stored(&world).await, 7);
}

#[tokio::test]
async fn what_is_not_stored_is_not_answered_as_if_it_were() {
    let world = world().await;
    world.start_node();
    meddle(&world, REFUSE).await;
    let asked = post(
        world.api,
        "/v1/evaluate",
        &question(IAM, POSTGRES, 5432).to_string(),
    )
    .await;
    assert_eq!((asked.status, asked.code().as_str()), (503, "audit_unavailable"));
    assert!(
        !asked.body.contains("ALLOW") && asked.body.contains("not given"),
        "{}",
        asked.body
    );

    let made = put(&world, "p", &policy("p", 1)).await;
    assert_eq!((made.status, made.code().as_str()), (503, "not_recorded"));
    assert!(made.body.contains("in force at revision 8"), "{}", made.body);
    assert_eq!(
        get(world.api, "/v1/policies/p").await.status,
        200,
        "as the answer says"
    );
    let gone = send(world.api, "DELETE", "/v1/policies/p", "", "").await;
    assert_eq!((gone.status, gone.code().as_str()), (503, "not_recorded"));
    assert_eq!(get(world.api, "/v1/policies/p").await.status, 404);

    let mode = post(world.api, "/v1/mode", r#"{"mode":"observe"}"#).await;
    assert_eq!((mode.status, mode.code().as_str()), (503, "mode_not_recorded"));
    assert!(mode.body.contains("nothing is refused on this node now"));
    assert!(
        world.node.observe_all.load(Ordering::SeqCst),
        "as the answer says"
    );

    meddle(&world, TAKE_AGAIN).await;
    // The policy that was put has no record when it is deleted, and was to have it first.
    assert_eq!(world.intake.stats().losses().rejected, 5, "each is counted");
    let again = post(
        world.api,
        "/v1/evaluate",
        &question(IAM, POSTGRES, 5432).to_string(),
    )
    .await;
    assert_eq!((again.status, stored(&world).await), (200, 1));
}

#[tokio::test]
async fn evaluations_beyond_their_share_are_told_so() {
    let world = world().await;
    let Archive::Local(store) = &*world.state.store else {
        panic!("a local store")
    };
    store.limit_evaluations(0);
    let ask = question(IAM, POSTGRES, 5432).to_string();
    // Looked at when something is stored.
    assert_eq!(post(world.api, "/v1/evaluate", &ask).await.status, 200);
    assert!(!store.takes_evaluations());
    let refused = post(world.api, "/v1/evaluate", &ask).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "audit_share_full")
    );
    assert!(refused.head.contains("\r\nretry-after: "), "{}", refused.head);
    assert!(refused.body.contains("audit.apiShare"), "{}", refused.body);
    assert_eq!(
        post(world.api, "/v1/mode", r#"{"mode":"observe"}"#).await.status,
        200,
        "changes have their place"
    );
    let metrics = get(world.health, "/metrics").await.body;
    assert!(
        metrics.contains("zt_audit_evaluations_refused_total 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn an_older_version_that_comes_into_force_late_is_not_taken_for_a_newer_one() {
    let world = Arc::new(world().await);
    tokio::spawn(record_changes(world.state.clone()));
    // On disk there is a version already, of which the node has not heard.
    std::fs::write(world.policies().join("p.yaml"), policy("p", 2)).expect("write");
    let asking = {
        let world = Arc::clone(&world);
        tokio::spawn(async move { put(&world, "p", &policy("p", 3)).await })
    };
    let written = async {
        while std::fs::read_to_string(world.policies().join("p.yaml")).expect("there") != policy("p", 3) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), written)
        .await
        .expect("written");
    // First a version from before both, then the one from before, then the one that was put.
    publish(&world, &[policy("p", 1)]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    publish(&world, &[policy("p", 2)]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asking.is_finished(), "it is not in force");
    publish(&world, &[policy("p", 3)]);
    let reply = asking.await.expect("asked");
    assert_eq!((reply.status, &reply.json()["revision"]), (200, &json!(10)));
    let changes = changes(&world).await;
    let callers: Vec<&str> = changes
        .iter()
        .map(|change| change["caller"].as_str().expect("caller"))
        .collect();
    let directory = format!("directory {}", world.policies().display());
    assert_eq!(callers.len(), 3, "{changes:#?}");
    assert_eq!(callers[..2], [directory.as_str(), directory.as_str()]);
    assert!(callers[2].starts_with("127.0.0.1:"), "{callers:?}");
    assert_eq!(changes[2]["change"]["to"], reply.json()["digest"]);
    assert!(changes[2]["change"].get("in_force").is_none());
}

#[tokio::test]
async fn a_change_that_another_replaces_at_once_is_recorded_as_its_caller_s() {
    let world = Arc::new(world().await);
    tokio::spawn(record_changes(world.state.clone()));
    let (asking, file) = put_and_written(&world).await;
    // Another engine replaces it before this one looked: here only the other's comes into force.
    std::fs::write(&file, policy("p", 4)).expect("write");
    publish(&world, &[policy("p", 4)]);
    let reply = asking.await.expect("asked");
    assert_eq!(reply.status, 200, "{}", reply.body);
    let changes = changes(&world).await;
    let mine: Vec<&Value> = changes
        .iter()
        .filter(|change| change["change"]["to"] == reply.json()["digest"])
        .collect();
    assert_eq!(mine.len(), 1, "{changes:#?}");
    assert!(
        mine[0]["caller"]
            .as_str()
            .is_some_and(|caller| caller.starts_with("127.0.0.1:"))
    );
    assert_eq!(mine[0]["change"]["in_force"], json!(false));
    assert_eq!(changes.len(), 2, "and the other's, once: {changes:#?}");
}

#[tokio::test]
async fn a_change_that_somebody_takes_back_at_once_does_not_wait_for_ever() {
    let world = Arc::new(world().await);
    tokio::spawn(record_changes(world.state.clone()));
    let (asking, file) = put_and_written(&world).await;
    std::fs::remove_file(&file).expect("removed");
    // Nothing comes into force, for nothing has changed.
    let reply = asking.await.expect("asked");
    assert_eq!(reply.status, 200, "{}", reply.body);
    let changes = changes(&world).await;
    assert_eq!(changes.len(), 1, "{changes:#?}");
    assert_eq!(changes[0]["change"]["in_force"], json!(false));
}

#[tokio::test]
async fn a_policy_that_was_changed_while_no_agent_ran_is_recorded_at_the_next_start() {
    let world = world().await;
    let until = async |said: &str, wanted: usize| {
        let waiting = async {
            while changes(&world).await.len() != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .expect(said);
    };
    let running = tokio::spawn(record_changes(world.state.clone()));
    let noted = async {
        while world.state.store.policy_told().await.expect("reads").is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), noted)
        .await
        .expect("noted");
    assert!(
        changes(&world).await.is_empty(),
        "a new trail begins with no change"
    );
    let digest = || world.state.snapshot().policies.digest().to_owned();
    let first = digest();
    running.abort();
    assert!(running.await.is_err());

    publish(&world, &[policy("p", 1)]);
    let second = digest();
    let running = tokio::spawn(record_changes(world.state.clone()));
    until("what was found at the start", 1).await;
    let found = changes(&world).await.remove(0);
    let caller = format!("directory {}, found at start", world.policies().display());
    assert_eq!(found["caller"], caller.as_str());
    let change = &found["change"];
    assert_eq!((&change["from"], &change["to"]), (&json!(first), &json!(second)));
    assert!(
        change.get("in_force").is_none() && change.get("begun").is_none(),
        "{change}"
    );
    let diff = &change["diff"];
    assert_eq!(
        (&diff["added_total"], &diff["removed_total"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(diff["policies"][0]["name"], "p");
    running.abort();
    assert!(running.await.is_err());

    // Nothing has changed since: the next record is of what changes next.
    publish(&world, &[policy("p", 2)]);
    tokio::spawn(record_changes(world.state.clone()));
    until("what was changed after that", 2).await;
    assert_eq!(changes(&world).await[1]["change"]["from"], second.as_str());
}

#[tokio::test]
async fn a_change_that_comes_into_force_late_has_one_record() {
    let world = Arc::new(world().await);
    let running = tokio::spawn(record_changes(world.state.clone()));
    let told = async |wanted: &str| {
        let waiting = async {
            while world.state.store.policy_told().await.expect("reads").as_deref() != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .expect("noted");
    };
    let digest = || world.state.snapshot().policies.digest().to_owned();
    told(&digest()).await;
    let (asking, _) = put_and_written(&world).await;
    // Nobody puts it in force for ten seconds.
    let reply = asking.await.expect("asked");
    assert_eq!((reply.status, reply.code().as_str()), (503, "not_in_force_yet"));
    assert_eq!(changes(&world).await.len(), 1);

    // In the same run: what is told by then is what is in force.
    let before = world.state.snapshot();
    publish(&world, &[policy("p", 3)]);
    told(&digest()).await;
    running.abort();
    assert!(running.await.is_err());
    assert_eq!(changes(&world).await.len(), 1, "{:#?}", changes(&world).await);

    // In the next run.
    let late = digest();
    world
        .state
        .store
        .note_policy(before.policies.digest())
        .await
        .expect("noted");
    world.state.store.note_late(&late).await.expect("noted");
    let running = tokio::spawn(record_changes(world.state.clone()));
    told(&late).await;
    assert_eq!(changes(&world).await.len(), 1, "{:#?}", changes(&world).await);

    // Another one that comes instead is another change.
    world.state.store.note_late("another").await.expect("noted");
    publish(&world, &[policy("p", 4)]);
    told(&digest()).await;
    assert_eq!(changes(&world).await.len(), 2);
    assert_eq!(world.state.store.policy_late().await.expect("reads"), None);
    running.abort();
}
