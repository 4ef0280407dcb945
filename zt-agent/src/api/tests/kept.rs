// SPDX-License-Identifier: Apache-2.0
//! Policies that something else keeps, which does not take every change.

use std::sync::Mutex;

use super::records::policy;
use super::*;
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
}
