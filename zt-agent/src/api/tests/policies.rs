// SPDX-License-Identifier: Apache-2.0
//! Policies over the API: what is on disk, in force, recorded and refused.

use axum::response::{IntoResponse as _, Response};

use super::*;
use crate::api::policies::change;
use crate::api::policies::conditions::Conditions;

fn policy(name: &str, port: u16) -> String {
    format!(
        "# written by hand\napiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         rules:\n    - from: {{spiffe: \"{CHAT}\"}}\n      to: [{{spiffe: \"{POSTGRES}\", ports: [{port}]}}]\n"
    )
}

async fn put(world: &World, name: &str, headers: &str, body: &str) -> Reply {
    let headers = format!("{YAML}{headers}");
    send(world.api, "PUT", &format!("/v1/policies/{name}"), &headers, body).await
}

async fn delete(world: &World, name: &str, headers: &str) -> Reply {
    send(world.api, "DELETE", &format!("/v1/policies/{name}"), headers, "").await
}

fn header<'r>(reply: &'r Reply, name: &str) -> &'r str {
    let prefix = format!("{name}: ");
    let line = reply.head.lines().find_map(|line| line.strip_prefix(&prefix));
    line.unwrap_or_else(|| panic!("no {name} in {}", reply.head))
}

/// The files of policies, without the lock's.
fn files(world: &World) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(world.policies()).expect("directory");
    let names = entries.map(|entry| entry.expect("entry").file_name());
    names.filter(|name| name != ".zt.lock").collect()
}

/// The changes of policy on record, the oldest first.
async fn recorded(world: &World) -> Vec<Value> {
    world.intake.flush().await.expect("flushes");
    let reply = get(world.api, "/v1/audit?type=policy_change").await;
    let mut records = reply.json()["records"].as_array().expect("records").clone();
    records.reverse();
    records
}

#[tokio::test]
async fn a_change_is_committed_in_force_and_recorded() {
    let world = world().await;
    world.start_node();
    let before = get(world.api, "/v1/policies").await.json();
    let dry = put(&world, "extra?dry_run=true", "", &policy("extra", 6000)).await;
    assert_eq!(dry.status, 200, "{}", dry.body);
    assert_eq!(dry.json()["dry_run"], json!(true));
    let added = json!([{"about": "connect", "action": "ALLOW", "source": CHAT, "destination": POSTGRES,
        "protocol": "TCP", "ports": ["6000"], "require_proof": false}]);
    assert_eq!(dry.json()["diff"]["added"], added);
    assert!(
        !world.policies().join("extra.yaml").exists(),
        "a dry run writes nothing"
    );

    let made = put(&world, "extra", "If-None-Match: *\n", &policy("extra", 6000)).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let answer = made.json();
    assert_eq!(
        (&answer["created"], &answer["revision"]),
        (&json!(true), &json!(8))
    );
    assert_eq!(answer["diff"]["from"], before["digest"]);
    let text = std::fs::read_to_string(world.policies().join("extra.yaml")).expect("written");
    assert_eq!(text, policy("extra", 6000), "as it was sent, comments too");
    // In force: the very next question is answered by it.
    let asked = post(
        world.api,
        "/v1/evaluate",
        &question(CHAT, POSTGRES, 6000).to_string(),
    )
    .await;
    assert_eq!(asked.json()["policy_matched"], json!("extra/rule-1"));

    let etag = header(&made, "etag").to_owned();
    let shown = get(world.api, "/v1/policies/extra").await;
    assert_eq!(header(&shown, "etag"), etag);
    let same = send(
        world.api,
        "GET",
        "/v1/policies/extra",
        &format!("If-None-Match: {etag}\n"),
        "",
    )
    .await;
    assert_eq!((same.status, same.body.as_str()), (304, ""));

    let gone = delete(&world, "extra", &format!("If-Match: {etag}\n")).await;
    assert_eq!(gone.status, 200, "{}", gone.body);
    assert_eq!(gone.json()["digest"], before["digest"]);
    assert_eq!(
        get(world.api, "/v1/policies/extra").await.code(),
        "policy_not_found"
    );

    let records = recorded(&world).await;
    assert_eq!(records.len(), 2, "{records:#?}");
    assert_eq!(records[0]["change"]["from"], before["digest"]);
    assert_eq!(records[0]["change"]["to"], answer["digest"]);
    assert_eq!(records[0]["change"]["diff"]["added"], added);
    assert_eq!(records[1]["change"]["diff"]["removed"], added);
    assert!(
        records[0]["caller"]
            .as_str()
            .is_some_and(|caller| caller.starts_with("127.0.0.1:")),
        "{}",
        records[0]
    );
}

#[tokio::test]
async fn a_file_changed_by_hand_is_recorded_too() {
    let world = world().await;
    world.start_node();
    let mut snapshots = world.state.snapshots.clone();
    let now = snapshots.borrow_and_update().revision;
    std::fs::write(world.policies().join("hand.yaml"), policy("hand", 1)).expect("write");
    let changed = snapshots.wait_for(|snapshot| snapshot.revision > now);
    tokio::time::timeout(Duration::from_secs(10), changed)
        .await
        .expect("in time")
        .expect("node");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let records = loop {
        let records = recorded(&world).await;
        if !records.is_empty() || tokio::time::Instant::now() > deadline {
            break records;
        }
    };
    let directory = format!("directory {}", world.policies().display());
    assert_eq!(records[0]["caller"], json!(directory), "{records:?}");
    assert_eq!(records[0]["change"]["diff"]["policies"][0]["name"], json!("hand"));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_changes_lose_nothing() {
    let world = Arc::new(world().await);
    world.start_node();
    let etag = header(&put(&world, "shared", "", &policy("shared", 1)).await, "etag").to_owned();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8_u16 {
        let (world, etag) = (Arc::clone(&world), etag.clone());
        tasks.spawn(async move {
            let condition = format!("If-Match: {etag}\n");
            let shared = put(&world, "shared", &condition, &policy("shared", 100 + n)).await;
            let own = put(
                &world,
                &format!("own-{n}"),
                "",
                &policy(&format!("own-{n}"), n + 1),
            )
            .await;
            assert_eq!(own.status, 200, "{}", own.body);
            if shared.status != 200 {
                assert_eq!(
                    (shared.status, shared.code().as_str()),
                    (412, "precondition_failed")
                );
            }
            shared.status == 200
        });
    }
    let won = tasks.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 1, "one of those who saw the same policy changed it");
    let policies = get(world.api, "/v1/policies").await.json();
    assert_eq!(policies["policies"].as_array().map(Vec::len), Some(10));
    assert_eq!(recorded(&world).await.len(), 10, "each change is on record");
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let world = world().await;
    world.start_node();
    let digest = get(world.api, "/v1/policies").await.json()["digest"].clone();
    let good = policy("p", 1);
    let bad_field = good.replace("ports", "portz");
    let huge = format!("{good}# {}", "x".repeat(1 << 20));
    for (path, headers, body, status, code) in [
        ("p", YAML, bad_field.as_str(), 422, "invalid_policy"),
        ("p", YAML, "a: [", 422, "invalid_policy"),
        ("p", YAML, "", 422, "invalid_policy"),
        ("p", YAML, huge.as_str(), 413, "body_too_large"),
        ("q", YAML, good.as_str(), 422, "invalid_policy"),
        ("p", "", good.as_str(), 415, "content_type"),
        (
            "p",
            "Content-Type: text/plain\n",
            good.as_str(),
            415,
            "content_type",
        ),
        (
            "p",
            "Content-Type: application/json\n",
            good.as_str(),
            400,
            "invalid_body",
        ),
        (
            "p",
            "Content-Type: application/yaml\nIf-Match: \"x\"\n",
            good.as_str(),
            412,
            "precondition_failed",
        ),
        (
            "p",
            "Content-Type: application/yaml\nIf-Match: x\n",
            good.as_str(),
            400,
            "invalid_precondition",
        ),
        ("p?dry_run=maybe", YAML, good.as_str(), 400, "invalid_parameter"),
        ("p?force=true", YAML, good.as_str(), 400, "invalid_parameter"),
        ("..%2fetc%2fp", YAML, good.as_str(), 422, "invalid_name"),
        ("%2e%2e", YAML, good.as_str(), 422, "invalid_name"),
        ("%ff", YAML, good.as_str(), 400, "invalid_path"),
        ("a%00", YAML, good.as_str(), 422, "invalid_name"),
        (
            "';drop%20table%20records;--",
            YAML,
            good.as_str(),
            422,
            "invalid_name",
        ),
        ("P", YAML, good.as_str(), 422, "invalid_name"),
    ] {
        let reply = send(world.api, "PUT", &format!("/v1/policies/{path}"), headers, body).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (status, code),
            "{path} {headers}: {}",
            reply.body
        );
    }
    let place = put(&world, "p", "", &bad_field).await.json();
    assert_eq!(
        (&place["errors"][0]["line"], &place["errors"][0]["field"]),
        (&json!(8), &json!("spec.rules[0].to[0].portz"))
    );
    for (name, code) in [
        ("nobody", "policy_not_found"),
        ("hanzo-core-policy", "last_policy"),
        ("%00", "invalid_name"),
    ] {
        assert_eq!(delete(&world, name, "").await.code(), code);
    }
    let raw_bytes = [
        b"PUT /v1/policies/p HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/yaml\r\nContent-Length: 6\r\n\r\n".as_slice(),
        b"a: 1\n\xff",
    ]
    .concat();
    assert_eq!(raw(world.api, &raw_bytes).await.code(), "invalid_body");
    assert_eq!(files(&world), ["core.yaml"]);
    assert_eq!(get(world.api, "/v1/policies").await.json()["digest"], digest);
    assert_eq!(world.intake.stats().received_total(), 0, "nothing is recorded");
}

/// A change as its handler makes it.
fn changing(
    world: &World,
    name: &str,
    port: u16,
) -> impl Future<Output = Result<Response, ApiProblem>> + use<> {
    let edit = crate::policy_dir::Edit::Put {
        name: name.to_owned(),
        text: policy(name, port),
    };
    let caller = Caller::process(0, None);
    change::change(world.state.clone(), caller, edit, Conditions::default(), false)
}

#[tokio::test]
async fn a_client_that_left_while_it_waited_has_changed_nothing() {
    let world = world().await;
    world.start_node();
    let turn = world.state.changes().turn().await.expect("free");
    let mut left = Box::pin(changing(&world, "left", 1));
    assert!(
        futures::poll!(&mut left).is_pending(),
        "another change is under way"
    );
    let stays = tokio::spawn(changing(&world, "stays", 2));
    drop(left);
    drop(turn);
    let made = tokio::time::timeout(Duration::from_secs(60), stays).await;
    assert!(made.expect("in time").expect("runs").is_ok());
    assert!(!world.policies().join("left.yaml").exists());
    assert_eq!(recorded(&world).await.len(), 1);
}

#[tokio::test]
async fn a_change_does_not_wait_for_ever_for_those_before_it() {
    let world = world().await;
    let _turn = world.state.changes().turn().await.expect("free");
    let refused = changing(&world, "p", 1).await.expect_err("another is under way");
    let answer = refused.into_response();
    assert_eq!(answer.status(), 503);
    let body = axum::body::to_bytes(answer.into_body(), 1 << 16)
        .await
        .expect("body");
    let told: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(told["code"], json!("directory_busy"));
    assert!(!world.policies().join("p.yaml").exists());
}

#[tokio::test]
async fn what_is_not_valid_holds_everything_back_and_blocks_no_change() {
    let world = world().await;
    world.start_node();
    let good = policy("p", 1);
    std::fs::write(world.policies().join("both.yaml"), "broken: [").expect("write");
    let made = put(&world, "p", "", &good).await;
    assert_eq!(made.status, 202, "{}", made.body);
    let told = made.json();
    assert_eq!(
        (&told["in_force"], &told["created"]),
        (&json!(false), &json!(true))
    );
    assert!(told["errors"].to_string().contains("both.yaml"), "{told}");
    let stale = put(&world, "both", "If-Match: \"0123\"\n", &policy("both", 1)).await;
    assert_eq!(stale.code(), "precondition_failed");
    let gone = delete(&world, "p", "").await;
    assert_eq!((gone.status, &gone.json()["in_force"]), (202, &json!(false)));
    let mended = put(&world, "both", "If-Match: *\n", &policy("both", 1)).await;
    assert_eq!(
        (mended.status, &mended.json()["in_force"]),
        (200, &json!(true)),
        "{}",
        mended.body
    );
    assert_eq!(delete(&world, "both", "").await.status, 200);
}

#[tokio::test]
async fn json_is_taken_like_yaml() {
    let world = world().await;
    world.start_node();
    let document = json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "j"},
        "spec": {"rules": [{"from": {"spiffe": CHAT}, "to": [{"spiffe": POSTGRES, "ports": [7]}]}]}
    });
    let json_type = "Content-Type: application/json; charset=utf-8\n";
    let made = send(
        world.api,
        "PUT",
        "/v1/policies/j",
        json_type,
        &document.to_string(),
    )
    .await;
    assert_eq!(made.status, 200, "{}", made.body);
    let again = send(
        world.api,
        "PUT",
        "/v1/policies/j",
        json_type,
        &document.to_string(),
    )
    .await;
    assert_eq!((again.status, &again.json()["created"]), (200, &json!(false)));
    assert_eq!(again.json()["diff"]["policies"], json!([]));
}
