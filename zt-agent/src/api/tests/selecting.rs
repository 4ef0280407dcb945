// SPDX-License-Identifier: Apache-2.0
//! Whether a stage of a rollout selects anybody, by all that an agent knows.

use super::reach::{policies, put_in_force, report};
use super::*;

/// Of each stage, whether it is known to select anybody.
async fn selecting(api: SocketAddr) -> Value {
    let answer = get(api, "/v1/rollout").await.json();
    let stages = answer["rollout"]["stages"].as_array().expect("stages");
    stages
        .iter()
        .map(|stage| stage["selects_anybody"].clone())
        .collect()
}

#[tokio::test]
async fn a_stage_that_selects_nobody_is_known_by_all_that_an_agent_knows() {
    let world = world().await;
    let [engine, _] = world
        .serve(Parts {
            service: Service::Engine,
            ..world.parts()
        })
        .await;
    let misspelled = "spiffe://hanzo.ai/hanzo-k8s/hanzo/cath";
    for (third, node_says, engine_says) in [
        // Nobody's policy names it, and a workload has it.
        (CHAT, json!(true), json!(true)),
        (misspelled, json!(false), Value::Null),
        ("spiffe://hanzo.ai/hanzo-k8s/*/chat", json!(true), json!(true)),
    ] {
        put_in_force(&world, policies("b", third));
        let wanted = |third: Value| json!([true, true, third, true]);
        assert_eq!(selecting(world.api).await, wanted(node_says), "{third}");
        assert_eq!(selecting(engine).await, wanted(engine_says), "{third}");
    }
    // By the word of nodes, once all that were heard have what is in force and say whom they have.
    let set = policies("b", misspelled);
    let said = |digest: &str, rollout: &Value| json!({"revision": 1, "digest": digest, "rollout": rollout});
    let silent = json!({"name": "r", "stage": "b", "stopped": null});
    let selects = |stages: Value| {
        let mut rollout = silent.clone();
        rollout["selects"] = stages;
        rollout
    };
    let (nobody, third) = (selects(json!([])), selects(json!(["c"])));
    let (digest, other) = (set.digest().to_owned(), "0".repeat(64));
    put_in_force(&world, set);
    for (node, digest, rollout, wanted) in [
        ("n", &other, &third, Value::Null),
        // Older ones.
        ("n", &digest, &Value::Null, Value::Null),
        ("n", &digest, &silent, Value::Null),
        ("n", &digest, &nobody, json!(false)),
        ("m", &other, &nobody, Value::Null),
        ("m", &digest, &nobody, json!(false)),
        ("m", &digest, &third, json!(true)),
    ] {
        assert_eq!(report(engine, node, &said(digest, rollout)).await.status, 204);
        let found = selecting(engine).await[2].clone();
        assert_eq!(found, wanted, "{node} {digest} {rollout}");
    }

    // Where policies name by a pattern whom it may be about, a node goes by whom it knows, and an engine does not know.
    let text = POLICY.replace("hanzo/postgres", "*/cath");
    let with_rollout = policies("b", misspelled);
    let rollout = with_rollout.rollout().expect("a rollout");
    let documents = [
        Document {
            file: "pattern.yaml".to_owned(),
            text,
        },
        Document {
            file: "rollout.yaml".to_owned(),
            text: rollout.document().to_string(),
        },
    ];
    let patterned = crate::policy::parse(&documents, &Settings::default()).expect("valid policy");
    let identities: BTreeSet<SpiffeId> = [IAM, POSTGRES].map(id).into();
    let table = crate::policy::compile(&patterned, &identities, &Settings::default(), 8).expect("compiles");
    world.snapshots.update(|next| next.table = Arc::new(table));
    let digest = patterned.digest().to_owned();
    put_in_force(&world, patterned);
    for node in ["m", "n"] {
        assert_eq!(report(engine, node, &said(&digest, &nobody)).await.status, 204);
    }
    assert_eq!(selecting(world.api).await[2], false);
    assert_eq!(selecting(engine).await[2], Value::Null);
    // Nor does one that knows nobody.
    world.snapshots.update(|next| {
        next.table = Arc::default();
        next.workloads = Arc::default();
    });
    // Another one than that of which a node has said something.
    put_in_force(&world, policies("b", "spiffe://hanzo.ai/hanzo-k8s/hanzo/cats"));
    assert_eq!(selecting(engine).await[2], Value::Null);
}

#[tokio::test]
async fn who_changes_a_rollout_is_told_of_stages_that_select_nobody() {
    let world = world().await;
    let warnings = async |third: &str| {
        let document = json!({
            "apiVersion": "zt.hanzo.ai/v1", "kind": "EnforcementRollout", "metadata": {"name": "r"},
            "spec": {"stages": [{"name": "a", "identities": [IAM]}, {"name": "b", "identities": [third]}]},
        });
        let path = "/v1/policies/r?dry_run=true";
        let header = "Content-Type: application/json\n";
        let reply = send(world.api, "PUT", path, header, &document.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["warnings"].clone()
    };
    assert_eq!(warnings(POSTGRES).await, json!([]));
    let told = warnings("spiffe://hanzo.ai/hanzo-k8s/hanzo/cath").await;
    let text = told[0].as_str().expect("a sentence");
    assert!(
        told.as_array().map(Vec::len) == Some(1)
            && text.starts_with("stage `b` selects nobody")
            && text.contains("/cath"),
        "{told}"
    );
}
