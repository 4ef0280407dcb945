// SPDX-License-Identifier: Apache-2.0
//! Policies that something else keeps, which does not take every change.

use std::sync::{Mutex, mpsc};

use super::records::{changes, policy, publish, put};
use super::*;
use crate::audit::intent::Progress;
use crate::policy::{document_of, resource_of};
use crate::policy_dir::{EditError, Held, Store as Keeper};

/// Keeps one policy, and refuses what is written as it was told to.
#[derive(Debug)]
struct Stubborn(Mutex<fn(String) -> EditError>);

impl Keeper for Stubborn {
    fn name(&self) -> &'static str {
        "stubborn"
    }

    fn read(&self) -> Result<Vec<Held>, EditError> {
        let document = json!({
            "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "p"},
            "spec": {"rules": [{"from": {"spiffe": CHAT}, "to": [{"spiffe": POSTGRES, "ports": [7]}]}]}
        });
        let resource = resource_of(&document, None);
        let document = Document {
            file: "serviceaccesspolicies/p".to_owned(),
            text: document_of(&resource).to_string(),
        };
        Ok(vec![Held { document, resource }])
    }

    fn write(&self, place: &str, _: Option<&Value>, _: Option<&Value>) -> Result<Option<Value>, EditError> {
        let refuse = *self.0.lock().expect("not poisoned");
        Err(refuse(place.to_owned()))
    }
}

#[tokio::test]
async fn what_the_keeper_of_policies_refuses_is_told_with_its_code() {
    let keeper = Arc::new(Stubborn(Mutex::new(EditError::Conflict)));
    let kept = Arc::clone(&keeper);
    let world = world_of(|_| Editor::of_store(kept, Settings::default())).await;
    let before = get(world.api, "/v1/policies").await.json();
    for (refuse, status, code) in [
        (
            EditError::Conflict as fn(String) -> EditError,
            412,
            "changed_meanwhile",
        ),
        (EditError::Refused, 409, "store_refuses"),
        (EditError::Unreachable, 503, "store_unreachable"),
    ] {
        *keeper.0.lock().expect("not poisoned") = refuse;
        for (method, name, body) in [
            ("PUT", "p", policy("p", 8)),
            ("PUT", "new", policy("new", 8)),
            ("DELETE", "p", String::new()),
        ] {
            // There is one policy: it can go only if there will be another.
            let code = if method == "DELETE" { "last_policy" } else { code };
            let status = if method == "DELETE" { 409 } else { status };
            let reply = send(world.api, method, &format!("/v1/policies/{name}"), YAML, &body).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (status, code),
                "{method} {name}"
            );
        }
    }
    let operators = "apiVersion: zt.hanzo.ai/v1\nkind: OperatorAccessPolicy\nmetadata: {name: p}\nspec:\n  rules:\n    - {role: sre, targets: [{service: db, actions: [read]}]}\n";
    let reply = send(world.api, "PUT", "/v1/policies/p", YAML, operators).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (409, "policy_of_another_kind"),
        "{}",
        reply.body
    );
    assert_eq!(get(world.api, "/v1/policies").await.json(), before);
    assert_eq!(world.intake.stats().received_total(), 0, "nothing is recorded");
    // Where the answer was lost, what was sent may arrive yet.
    let noted = world.state.store.intents().await.expect("reads");
    let noted: Vec<(&str, Progress)> = noted
        .iter()
        .map(|intent| (&*intent.policy, intent.progress))
        .collect();
    assert_eq!(noted, [("p", Progress::Doubtful), ("new", Progress::Doubtful)]);
}

/// Makes every change, and loses the answer.
#[derive(Debug, Default)]
struct Lossy {
    kept: Mutex<Vec<Held>>,
    /// Whether it is away from the first change on.
    goes: AtomicBool,
    /// What it waits for before it says that the answer was lost.
    waits: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Keeper for Lossy {
    fn name(&self) -> &'static str {
        "lossy"
    }

    fn read(&self) -> Result<Vec<Held>, EditError> {
        let kept = self.kept.lock().expect("not poisoned").clone();
        if self.goes.load(Ordering::SeqCst) && !kept.is_empty() {
            return Err(EditError::Unreachable("it is away".to_owned()));
        }
        Ok(kept)
    }

    fn write(&self, place: &str, _: Option<&Value>, to: Option<&Value>) -> Result<Option<Value>, EditError> {
        let mut kept = self.kept.lock().expect("not poisoned");
        kept.retain(|held| held.document.file != place);
        kept.extend(to.map(|resource| Held {
            document: Document {
                file: place.to_owned(),
                text: document_of(resource).to_string(),
            },
            resource: resource.clone(),
        }));
        drop(kept);
        let waits = self.waits.lock().expect("not poisoned").take();
        if let Some(waits) = waits {
            waits.recv().expect("the test goes on");
        }
        Err(EditError::Unreachable("its answer was lost".to_owned()))
    }
}

/// A world whose changes are recorded, of policies that this keeps.
async fn recording(keeper: &Arc<Lossy>) -> Arc<World> {
    let kept = Arc::clone(keeper);
    let world = world_of(|_| Editor::of_store(kept, Settings::default())).await;
    tokio::spawn(record_changes(world.state.clone()));
    let seen = world.state.changes().have_seen(7);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("noted");
    Arc::new(world)
}

/// Asks for the policy `new`, and puts it in force once it is kept. The answer.
async fn put_and_in_force(keeper: &Lossy, world: &Arc<World>) -> tokio::task::JoinHandle<Reply> {
    let asking = {
        let world = Arc::clone(world);
        tokio::spawn(async move { put(&world, "new", &policy("new", 8)).await })
    };
    let written = async {
        while keeper.kept.lock().expect("not poisoned").is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), written)
        .await
        .expect("written");
    publish(world, &[policy("new", 8)]);
    asking
}

/// It was made, and has one record.
async fn is_its_caller_s(world: &World, made: &Reply) {
    assert_eq!(made.status, 200, "{}", made.body);
    let all = changes(world).await;
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_ne!(all[0]["caller"], "lossy");
    assert!(world.state.store.intents().await.expect("reads").is_empty());
}

#[tokio::test]
async fn what_was_made_though_the_answer_was_lost_is_its_caller_s() {
    let keeper = Arc::new(Lossy::default());
    let world = recording(&keeper).await;
    let asking = put_and_in_force(&keeper, &world).await;
    is_its_caller_s(&world, &asking.await.expect("asked")).await;
}

#[tokio::test]
async fn what_is_in_force_before_nobody_can_see_what_came_of_it_is_its_caller_s() {
    let keeper = Arc::new(Lossy::default());
    let world = recording(&keeper).await;
    keeper.goes.store(true, Ordering::SeqCst);
    let (goes_on, waits) = mpsc::channel();
    *keeper.waits.lock().expect("not poisoned") = Some(waits);
    let asking = put_and_in_force(&keeper, &world).await;
    let seen = world.state.changes().have_seen(8);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("seen");
    goes_on.send(()).expect("it waits");
    is_its_caller_s(&world, &asking.await.expect("asked")).await;
}

#[tokio::test]
async fn what_comes_into_force_after_all_names_who_had_begun_it() {
    let keeper = Arc::new(Lossy::default());
    let world = recording(&keeper).await;
    keeper.goes.store(true, Ordering::SeqCst);
    let lost = put(&world, "new", &policy("new", 8)).await;
    assert_eq!((lost.status, lost.code().as_str()), (503, "store_unreachable"));
    let noted = world.state.store.intents().await.expect("reads");
    assert_eq!(noted.len(), 1, "whether it was made is not known");
    publish(&world, &[policy("new", 8)]);
    let forgotten = async {
        while !world.state.store.intents().await.expect("reads").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), forgotten)
        .await
        .expect("forgotten");
    let all = changes(&world).await;
    assert_eq!((all.len(), &all[0]["caller"]), (1, &json!("lossy")));
    let begun = &all[0]["change"]["begun"];
    assert_eq!(
        (&begun[0]["policy"], &begun[0]["caller"]),
        (&json!("new"), &json!(&*noted[0].caller))
    );
}
