// SPDX-License-Identifier: Apache-2.0
//! What the API answers.

use super::*;

#[tokio::test]
async fn an_evaluation_is_answered_and_recorded() {
    let world = world().await;
    let reply = post(
        world.api,
        "/v1/evaluate",
        &question(IAM, POSTGRES, 5432).to_string(),
    )
    .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let mut answer = reply.json();
    assert!(answer["latency_us"].take().is_number());
    let expected = json!({
        "decision": "ALLOW", "policy_matched": "hanzo-core-policy/rule-1", "mode": "enforce", "enforced": true,
        "proof_required": false, "revision": 7, "reason": "rule", "latency_us": null
    });
    assert_eq!(answer, expected);

    let answer = post(
        world.api,
        "/v1/evaluate",
        &question(CHAT, POSTGRES, 5432).to_string(),
    )
    .await
    .json();
    assert_eq!(
        (&answer["decision"], &answer["reason"]),
        (&json!("DENY"), &json!("no_rule"))
    );
    assert_eq!(answer["policy_matched"], json!(null));

    world.intake.flush().await.expect("flushes");
    let trail = get(world.api, "/v1/audit").await.json();
    let records = trail["records"].as_array().expect("records");
    assert_eq!(records.len(), 2);
    assert_eq!(records[0]["source"]["spiffe_id"], json!(CHAT), "newest first");
    assert_eq!(records[0]["hook"], json!("api"));
    assert!(
        records[0]["caller"]
            .as_str()
            .expect("caller")
            .starts_with("127.0.0.1:")
    );
    assert_eq!(trail["next_cursor"], json!(null));
    let graph = get(world.api, "/v1/graph").await.json();
    assert_eq!(
        graph,
        json!({ "nodes": [], "edges": [] }),
        "what was only asked is no connection"
    );
}

#[tokio::test]
async fn entities_addresses_and_udp_can_be_asked_about() {
    let world = world().await;
    for (source, reason) in [
        (json!({ "entity": "host" }), "rule"),
        (json!({ "entity": "world" }), "no_rule"),
        (json!({ "address": "192.0.2.1" }), "no_rule"),
    ] {
        let body = json!({ "source": source, "destination": { "spiffe_id": POSTGRES, "port": 1, "protocol": "UDP" } });
        let reply = post(world.api, "/v1/evaluate", &body.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(reply.json()["reason"], json!(reason), "{source}");
    }
    world.intake.flush().await.expect("flushes");
    let records = get(world.api, "/v1/audit?source=world").await.json()["records"].take();
    assert_eq!(
        records.as_array().expect("records").len(),
        2,
        "the address is somewhere in the world"
    );
}

#[tokio::test]
async fn a_batch_is_answered_in_order() {
    let world = world().await;
    let body = json!({ "requests": [question(IAM, POSTGRES, 5432), question(CHAT, POSTGRES, 5432)] });
    let answers = post(world.api, "/v1/evaluate", &body.to_string()).await.json();
    let decisions: Vec<&Value> = answers["responses"]
        .as_array()
        .expect("answers")
        .iter()
        .map(|answer| &answer["decision"])
        .collect();
    assert_eq!(decisions, [&json!("ALLOW"), &json!("DENY")]);
    world.intake.flush().await.expect("flushes");
    assert_eq!(world.intake.stats().stored_total(), 2);
}

#[tokio::test]
async fn policies_are_shown_with_their_digest() {
    let world = world().await;
    let all = get(world.api, "/v1/policies").await.json();
    assert_eq!(all["revision"], json!(7));
    assert_eq!(all["digest"].as_str().expect("digest").len(), 64);
    let policy = &all["policies"][0];
    assert_eq!(
        (&policy["name"], &policy["kind"]),
        (&json!("hanzo-core-policy"), &json!("ServiceAccessPolicy"))
    );
    assert_eq!(
        policy["document"]["spec"]["rules"][0]["to"][0]["ports"],
        json!([5432])
    );

    let one = get(world.api, "/v1/policies/hanzo-core-policy").await;
    assert_eq!(&one.json(), policy);
    assert!(
        one.head
            .contains(&format!("etag: \"{}\"", policy["etag"].as_str().expect("etag")))
    );
}

#[tokio::test]
async fn a_policy_that_is_not_in_force_says_why() {
    let world = world().await;
    let documents = [Document {
        file: "bad.yaml".to_owned(),
        text: "kind: Nonsense".to_owned(),
    }];
    let errors = crate::policy::parse(&documents, &Settings::default()).expect_err("invalid");
    world
        .snapshots
        .update(|snapshot| snapshot.policy_error = Some(Arc::new(errors)));
    for (path, at) in [
        ("/v1/policies", "/errors/0/file"),
        ("/v1/status", "/policy/errors/0/file"),
    ] {
        assert_eq!(
            get(world.api, path).await.json().pointer(at),
            Some(&json!("bad.yaml")),
            "{path}"
        );
    }
    assert!(
        get(world.health, "/metrics")
            .await
            .body
            .contains("zt_policy_valid 0")
    );
}

#[tokio::test]
async fn identities_lead_from_name_to_number_and_back() {
    let world = world().await;
    let identities = get(world.api, "/v1/identities").await.json()["identities"].take();
    let expected = json!({
        "spiffe_id": POSTGRES, "number": id(POSTGRES).number().to_string(), "mode": "enforce",
        "cgroup": "kubepods.slice/postgres", "cgroups": [41, 42], "addresses": ["10.99.0.3"], "pod": null
    });
    let list = identities.as_array().expect("list");
    assert!(list.contains(&expected), "{identities:#}");
    let chat = list
        .iter()
        .find(|identity| identity["spiffe_id"] == CHAT)
        .expect("chat");
    assert_eq!((&chat["mode"], &chat["cgroups"]), (&json!(null), &json!([])));
}

#[tokio::test]
async fn status_shows_hooks_policy_modes_and_the_trail() {
    let world = world().await;
    let status = get(world.api, "/v1/status").await.json();
    assert_eq!(status["hooks"][0]["attached"], json!(true));
    assert_eq!(status["policy"]["revision"], json!(7));
    assert_eq!(
        status["modes"],
        json!({ "observe_all": false, "default": "observe", "observe": 0, "enforce": 1 })
    );
    assert_eq!(
        status["workloads"],
        json!({ "declared": 1, "present": 1, "waiting": 0 })
    );
    assert_eq!(status["audit"]["lost"]["store_failed"], json!(0));
    assert_eq!(status["node"], json!("worker-3"));
    assert_eq!(status["ready"], json!(false));
}

#[tokio::test]
async fn breaking_the_glass_is_done_and_recorded() {
    let world = world().await;
    let reply = post(world.api, "/v1/mode", r#"{"mode":"observe"}"#).await;
    assert_eq!(
        (reply.status, reply.json()),
        (200, json!({ "mode": "observe", "observe_all": true }))
    );
    assert!(world.node.observe_all.load(Ordering::SeqCst));
    assert_eq!(
        post(world.api, "/v1/mode", r#"{"mode":"restore"}"#).await.status,
        200
    );
    assert!(!world.node.observe_all.load(Ordering::SeqCst));
    world.intake.flush().await.expect("flushes");
    let records = get(world.api, "/v1/audit?type=mode_change").await.json()["records"].take();
    let modes: Vec<&Value> = records
        .as_array()
        .expect("list")
        .iter()
        .map(|record| &record["change"]["mode"])
        .collect();
    assert_eq!(modes, [&json!("restore"), &json!("observe")]);

    world.node.broken.store(true, Ordering::SeqCst);
    let reply = post(world.api, "/v1/mode", r#"{"mode":"observe"}"#).await;
    assert_eq!((reply.status, reply.code().as_str()), (500, "mode_not_changed"));
    assert!(reply.body.contains("zt_control cannot be written"));
    let records = get(world.api, "/v1/audit?type=mode_change").await.json()["records"].take();
    assert_eq!(
        records.as_array().expect("list").len(),
        2,
        "what did not happen is not recorded"
    );
}

#[tokio::test]
async fn a_question_does_not_wait_for_a_recorder_that_is_behind() {
    let world = world().await;
    let ask = question(IAM, POSTGRES, 5432).to_string();
    assert_eq!(post(world.api, "/v1/evaluate", &ask).await.status, 200);
    world.intake.flush().await.expect("flushes");
    // A ring buffer whose end is never reached: what would wait for it would wait for ever.
    world.intake.follow_ring(0, || 1);
    let trail = get(world.api, "/v1/audit").await.json();
    assert_eq!(
        trail["records"].as_array().map(Vec::len),
        Some(1),
        "what is stored is told"
    );
    assert_eq!(get(world.api, "/v1/graph").await.status, 200);
}

#[tokio::test]
async fn pages_lead_through_the_whole_trail() {
    let world = world().await;
    let requests: Vec<Value> = (1..=25).map(|port| question(IAM, POSTGRES, port)).collect();
    post(
        world.api,
        "/v1/evaluate",
        &json!({ "requests": requests }).to_string(),
    )
    .await;
    world.intake.flush().await.expect("flushes");
    let (mut ports, mut path) = (Vec::new(), "/v1/audit?limit=10".to_owned());
    loop {
        let page = get(world.api, &path).await.json();
        let records = page["records"].as_array().expect("records");
        ports.extend(
            records
                .iter()
                .map(|record| record["destination"]["port"].as_u64().expect("port")),
        );
        post(
            world.api,
            "/v1/evaluate",
            &question(CHAT, POSTGRES, 9999).to_string(),
        )
        .await;
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        path = format!("/v1/audit?limit=10&cursor={cursor}");
    }
    assert_eq!(ports, (1..=25).rev().collect::<Vec<u64>>());
    let page = get(
        world.api,
        "/v1/audit?source=spiffe://hanzo.ai/*/hanzo/iam&decision=allow&limit=1000",
    )
    .await
    .json();
    assert_eq!(
        page["records"].as_array().expect("records").len(),
        0,
        "port 5432 was not asked about"
    );
    let page = get(
        world.api,
        "/v1/audit?source=spiffe://hanzo.ai/*/hanzo/iam&port=7&enforced=true",
    )
    .await
    .json();
    assert_eq!(page["records"].as_array().expect("records").len(), 1);
}

#[tokio::test]
async fn health_is_alive_and_ready_when_it_is() {
    let world = world().await;
    assert_eq!(get(world.health, "/healthz").await.status, 200);
    let reply = get(world.health, "/readyz").await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "not_ready"));
    assert!(
        reply
            .body
            .contains("no policy is loaded and the hooks are not attached")
    );
    world.readiness.send_replace(Readiness {
        policy: true,
        ..Readiness::default()
    });
    assert!(
        get(world.health, "/readyz")
            .await
            .body
            .contains("the hooks are not attached")
    );
    world.readiness.send_replace(Readiness {
        policy: true,
        reason: Some("waiting for a cgroup".into()),
        ..Readiness::default()
    });
    let reply = get(world.health, "/readyz").await;
    assert!(
        reply.body.contains("waiting for a cgroup") && reply.body.ends_with("}\n"),
        "{}",
        reply.body
    );
    world.readiness.send_replace(Readiness {
        policy: true,
        hooks: true,
        ..Readiness::default()
    });
    let reply = get(world.health, "/readyz").await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (200, "{\"status\":\"ready\"}\n")
    );
    assert_eq!(get(world.health, "/healthz").await.body, "{\"status\":\"ok\"}\n");
    let metrics = get(world.health, "/metrics").await;
    assert!(
        metrics
            .head
            .contains("content-type: application/openmetrics-text")
    );
    assert!(metrics.body.contains("zt_policy_revision 7"));
    assert_eq!(
        get(world.health, "/v1/status").await.status,
        404,
        "the API is not here"
    );
}
