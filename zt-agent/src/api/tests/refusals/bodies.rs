// SPDX-License-Identifier: Apache-2.0
//! Every route that takes a body, given what is none; paths that would lead elsewhere; SQL in every text.

use super::*;

const INJECTION: &str = "x'); DROP TABLE record; DROP TABLE zt_audit.record; --";
/// Where there may be no spaces.
const CLOSE: &str = "x'OR'1'='1');--";

/// Everything that a request could have changed.
#[derive(Debug, PartialEq)]
pub(super) struct State {
    policies: Value,
    nodes: Value,
    observe_all: bool,
    pub(super) received: u64,
    files: Vec<std::ffi::OsString>,
}

pub(super) async fn state(world: &World) -> State {
    let directory = world.directory.path();
    let mut files: Vec<_> = [directory.to_path_buf(), world.policies()]
        .iter()
        .flat_map(|path| std::fs::read_dir(path).expect("directory"))
        .map(|entry| entry.expect("entry").file_name())
        // What is in force at the start is kept, whatever is asked.
        .filter(|name| name != ".zt.lock" && name != "audit.db.policies-told" && !name.to_string_lossy().starts_with("audit.db-"))
        .collect();
    files.sort();
    State {
        policies: get(world.api, "/v1/policies").await.json(),
        nodes: get(world.api, "/v1/status").await.json()["nodes"].take(),
        observe_all: world.node.observe_all.load(Ordering::SeqCst),
        received: world.intake.stats().received_total(),
        files,
    }
}

async fn send_bytes(to: SocketAddr, method: &str, path: &str, media_type: &str, body: &[u8]) -> Reply {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{media_type}Content-Length: {}\r\n\r\n",
        body.len()
    );
    raw(to, &[head.as_bytes(), body].concat()).await
}

#[tokio::test]
async fn a_list_of_what_an_object_would_have_is_no_object() {
    let world = world().await;
    let before = state(&world).await;
    let digest = "a".repeat(64);
    let party = json!({ "spiffe_id": IAM });
    let to = json!({ "spiffe_id": POSTGRES, "port": 5432 });
    let (listed, listed_to) = (
        json!([IAM, null, null]),
        json!([POSTGRES, null, null, 5432, "TCP"]),
    );
    for (method, path, body) in [
        ("POST", "/v1/mode", json!(["observe"])),
        ("PUT", "/v1/nodes/n", json!([7, digest])),
        ("POST", "/v1/evaluate", json!([party, to, null, null, null])),
        (
            "POST",
            "/v1/evaluate",
            json!({ "source": listed, "destination": to }),
        ),
        (
            "POST",
            "/v1/evaluate",
            json!({ "source": party, "destination": listed_to }),
        ),
        (
            "POST",
            "/v1/evaluate",
            json!({ "requests": [[party, to, null, null]] }),
        ),
        (
            "POST",
            "/v1/evaluate",
            json!({ "operator": ["sre", true, null], "target": { "service": "s", "action": "a" } }),
        ),
        (
            "POST",
            "/v1/evaluate",
            json!({ "operator": { "role": "sre" }, "target": ["s", "a"] }),
        ),
    ] {
        let json_type = "Content-Type: application/json\r\n";
        let reply = send_bytes(world.api, method, path, json_type, body.to_string().as_bytes()).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_body"),
            "{body}: {}",
            reply.body
        );
        assert!(
            reply.body.contains("expected an object"),
            "{body}: {}",
            reply.body
        );
    }
    assert_eq!(state(&world).await, before);
}

#[tokio::test]
async fn every_route_refuses_bodies_that_are_none_and_does_nothing() {
    let world = world().await;
    world.start_node();
    let before = state(&world).await;
    let json_type = "Content-Type: application/json\r\n";
    let large = vec![b' '; body::MAX_BYTES + 1];
    let unknown = br#"{"surprise": 1}"#.as_slice();
    for (method, path) in [
        ("POST", "/v1/evaluate"),
        ("POST", "/v1/mode"),
        ("POST", "/v1/rollout"),
        ("PUT", "/v1/nodes/n"),
        ("PUT", "/v1/policies/p"),
        ("POST", "/v1/replay"),
    ] {
        let of_policy = path.contains("policies") || path == "/v1/replay";
        let invalid = if of_policy {
            (422, "invalid_policy")
        } else {
            (400, "invalid_body")
        };
        for (media_type, body, (status, code)) in [
            (json_type, b"".as_slice(), (400, "invalid_body")),
            (json_type, b"{", (400, "invalid_body")),
            (json_type, b"a: 1", (400, "invalid_body")),
            (json_type, b"\xff\xfe{}", (400, "invalid_body")),
            (json_type, b"{\"mode\": \"\xff\"}", (400, "invalid_body")),
            (json_type, b"{\"mode\": \"\\ud800\"}", invalid),
            (json_type, b"[]", invalid),
            (json_type, b"\"text\"", invalid),
            (json_type, b"null", invalid),
            (json_type, unknown, invalid),
            (json_type, &large, (413, "body_too_large")),
            ("", b"{}", (415, "content_type")),
            ("Content-Type: text/plain\r\n", b"{}", (415, "content_type")),
            (
                "Content-Type: application/xml\r\n",
                b"<a/>",
                (415, "content_type"),
            ),
            (
                "Content-Type: application/x-www-form-urlencoded\r\n",
                b"mode=observe",
                (415, "content_type"),
            ),
            ("Content-Type: ü\r\n", b"{}", (415, "content_type")),
        ] {
            let reply = send_bytes(world.api, method, path, media_type, body).await;
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]);
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (status, code),
                "{method} {path} {media_type:?} {shown:?}: {}",
                reply.body
            );
        }
        if of_policy {
            let yaml_type = "Content-Type: application/yaml\r\n";
            for (body, wanted) in [
                (b"a: [".as_slice(), (422, "invalid_policy")),
                (b"a: \xff", (400, "invalid_body")),
                (b"\x00", (422, "invalid_policy")),
                (&large, (413, "body_too_large")),
            ] {
                let reply = send_bytes(world.api, method, path, yaml_type, body).await;
                assert_eq!((reply.status, reply.code().as_str()), wanted, "{}", reply.body);
            }
        }
    }
    assert_eq!(state(&world).await, before);
}

#[tokio::test]
async fn names_lead_nowhere_but_to_policies() {
    let world = world().await;
    world.start_node();
    std::fs::write(world.directory.path().join("outside.yaml"), POLICY).expect("write");
    let before = state(&world).await;
    let long = "a".repeat(64);
    let longer = "a".repeat(5000);
    for name in [
        "..",
        ".",
        "%2e%2e",
        "%2E%2E%2Foutside",
        "..%2foutside",
        "..%5coutside",
        "%252e%252e%252foutside",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "a%2fb",
        "outside%00",
        "%00",
        "%0a",
        "%20",
        "CON",
        ".zt.lock",
        "core.yaml",
        "builtin",
        "%c3%bc",
        &long,
        &longer,
    ] {
        let path = format!("/v1/policies/{name}");
        for (method, media_type, body) in [
            ("GET", "", ""),
            ("DELETE", "", ""),
            ("PUT", "Content-Type: application/yaml\n", POLICY),
        ] {
            let reply = send(world.api, method, &path, media_type, body).await;
            let wanted = match (name, method) {
                // Not a name at all.
                ("/etc/passwd", _) => (404, "not_found"),
                (_, "GET") => (404, "policy_not_found"),
                _ => (422, "invalid_name"),
            };
            assert_eq!(
                (reply.status, reply.code().as_str()),
                wanted,
                "{method} {name}: {}",
                reply.body
            );
        }
    }
    assert_eq!(state(&world).await, before);
}

#[tokio::test]
async fn sql_in_bodies_is_text_or_refused() {
    let world = world().await;
    world.start_node();
    let destination = json!({"spiffe_id": POSTGRES, "port": 1});
    for refused in [
        json!({"source": {"spiffe_id": INJECTION}, "destination": destination}),
        json!({"source": {"entity": INJECTION}, "destination": destination}),
        json!({"source": {"address": INJECTION}, "destination": destination}),
        json!({"source": {"spiffe_id": IAM}, "destination": {"spiffe_id": INJECTION, "port": 1}}),
        json!({"source": {"spiffe_id": IAM}, "destination": {"spiffe_id": POSTGRES, "port": INJECTION}}),
        json!({"source": {"spiffe_id": IAM}, "destination": {"spiffe_id": POSTGRES, "port": 1, "protocol": INJECTION}}),
        json!({"operator": {"role": "sre", "mfa": INJECTION}, "target": {"service": "a", "action": "b"}}),
    ] {
        let reply = post(world.api, "/v1/evaluate", &refused.to_string()).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_body"),
            "{refused}"
        );
    }
    let json_type = "Content-Type: application/json\n";
    let report = json!({"revision": 1, "digest": INJECTION}).to_string();
    assert_eq!(
        send(world.api, "PUT", "/v1/nodes/n", json_type, &report)
            .await
            .status,
        400
    );
    let mode = json!({"mode": INJECTION}).to_string();
    assert_eq!(post(world.api, "/v1/mode", &mode).await.status, 400);
    assert_eq!(world.intake.stats().received_total(), 0);

    // What an operator says is text, whatever it looks like; so is a description.
    let asked = json!({
        "operator": {"role": INJECTION, "incident": INJECTION},
        "target": {"service": INJECTION, "action": INJECTION}
    });
    assert_eq!(
        post(world.api, "/v1/evaluate", &asked.to_string()).await.status,
        200
    );
    let records = get(world.api, "/v1/audit").await.json();
    assert_eq!(records["records"][0]["incident"], json!(INJECTION));
    assert_eq!(
        records["records"][0]["source"]["entity"],
        json!(format!("operator:{INJECTION}"))
    );
    let policy = json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "p"},
        "spec": {"rules": [{
            "description": INJECTION, "from": {"spiffe": CHAT}, "to": [{"spiffe": POSTGRES, "ports": [7]}]
        }]}
    });
    let made = send(world.api, "PUT", "/v1/policies/p", json_type, &policy.to_string()).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let records = get(world.api, "/v1/audit").await;
    assert_eq!(records.status, 200, "the trail is there: {}", records.body);
}

#[tokio::test]
async fn sql_in_policies_of_operators_and_in_preconditions_is_text_or_refused() {
    let world = world().await;
    world.start_node();
    let json_type = "Content-Type: application/json\n";
    let policy = |[name, role, service, action]: [&str; 4]| {
        let rule = json!({
            "description": INJECTION, "role": role, "targets": [{"service": service, "actions": [action]}]
        });
        let policy = json!({
            "apiVersion": "zt.hanzo.ai/v1", "kind": "OperatorAccessPolicy",
            "metadata": {"name": name, "description": INJECTION},
            "spec": {"description": INJECTION, "rules": [rule]}
        });
        policy.to_string()
    };
    let before = state(&world).await;
    for refused in [
        policy([INJECTION, "sre", "db", "read"]),
        policy(["ops", INJECTION, "db", "read"]),
        policy(["ops", "sre", INJECTION, "read"]),
        policy(["ops", "sre", "db", INJECTION]),
        policy(["ops", "sre", "db", "read"]).replace("OperatorAccessPolicy", INJECTION),
        policy(["ops", "sre", "db", "read"]).replace("zt.hanzo.ai/v1", INJECTION),
    ] {
        let reply = send(world.api, "PUT", "/v1/policies/ops", json_type, &refused).await;
        assert_eq!(reply.status, 422, "{refused}: {}", reply.body);
    }
    assert_eq!(state(&world).await, before);

    // What other systems may call a role, a service and an action is kept as it is, decides, and is recorded.
    let made = policy(["ops", CLOSE, CLOSE, CLOSE]);
    let reply = send(world.api, "PUT", "/v1/policies/ops", json_type, &made).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    for (role, decision) in [(CLOSE, "ALLOW"), ("x", "DENY")] {
        let asked = json!({"operator": {"role": role}, "target": {"service": CLOSE, "action": CLOSE}});
        let answer = post(world.api, "/v1/evaluate", &asked.to_string()).await;
        assert_eq!(answer.json()["decision"], json!(decision), "{}", answer.body);
    }
    let changes = get(world.api, "/v1/audit?type=policy_change").await;
    assert!(changes.body.contains(CLOSE), "{}", changes.body);

    let before = state(&world).await;
    for (tag, wanted) in [
        (format!("\"{INJECTION}\""), (412, "precondition_failed")),
        (format!("\"{CLOSE}\""), (412, "precondition_failed")),
        (INJECTION.to_owned(), (400, "invalid_precondition")),
    ] {
        for (method, body) in [("PUT", made.as_str()), ("DELETE", "")] {
            let headers = format!("{json_type}If-Match: {tag}\n");
            let reply = send(world.api, method, "/v1/policies/ops", &headers, body).await;
            assert_eq!((reply.status, reply.code().as_str()), wanted, "{method} {tag}");
        }
    }
    let headers = format!("If-None-Match: \"{INJECTION}\"\n");
    assert_eq!(
        send(world.api, "GET", "/v1/policies/ops", &headers, "")
            .await
            .status,
        200
    );
    assert_eq!(state(&world).await, before);
}
