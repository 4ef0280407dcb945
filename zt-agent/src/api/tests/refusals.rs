// SPDX-License-Identifier: Apache-2.0
//! What the API refuses, and how it says so.

mod bodies;
mod wire;

use super::*;

/// Sends each body to `path`; each is refused with status 400, a code and a message that contains a text.
async fn refused(world: &World, path: &str, cases: &[(&str, &str, &str)]) {
    for (body, code, text) in cases {
        let reply = post(world.api, path, body).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.body);
        assert_eq!(&reply.code(), code, "{body}");
        assert!(reply.body.contains(text), "{body}: no `{text}` in {}", reply.body);
    }
}

#[tokio::test]
async fn bodies_that_make_no_sense() {
    let world = world().await;
    let destination = format!(r#""destination":{{"spiffe_id":"{POSTGRES}","port":5432}}"#);
    let with_source = |source: &str| format!(r#"{{"source":{source},{destination}}}"#);
    let with_destination = |rest: &str| {
        format!(r#"{{"source":{{"spiffe_id":"{IAM}"}},"destination":{{"spiffe_id":"{POSTGRES}"{rest}}}}}"#)
    };
    let too_many = json!({ "requests": vec![question(IAM, POSTGRES, 1); 1001] }).to_string();
    refused(
        &world,
        "/v1/evaluate",
        &[
            ("", "invalid_body", "EOF"),
            ("{", "invalid_body", "\"line\":1"),
            ("[]", "invalid_body", "errors"),
            ("null", "invalid_body", "errors"),
            (r#"{"sorce":{}}"#, "invalid_body", "unknown field `sorce`"),
            (
                &with_source(r#"{"spiffe":"x"}"#),
                "invalid_body",
                "unknown field `spiffe`",
            ),
            (&with_source("{}"), "invalid_body", "\"source.spiffe_id\""),
            (
                &with_source(r#"{"spiffe_id":"http://localhost"}"#),
                "invalid_body",
                "not a SPIFFE ID",
            ),
            (
                &with_source(r#"{"spiffe_id":"spiffe://hanzo.ai/a","entity":"host"}"#),
                "invalid_body",
                "give one of",
            ),
            (
                &with_source(r#"{"entity":"moon"}"#),
                "invalid_body",
                "`moon` is not an entity",
            ),
            (
                &with_source(r#"{"entity":"cidr:10.0.0.0/8"}"#),
                "invalid_body",
                "no rule in force names",
            ),
            (
                &with_source(r#"{"address":"10.0.0"}"#),
                "invalid_body",
                "not an IP address",
            ),
            (&with_destination(""), "invalid_body", "not nothing"),
            (
                &with_destination(",\"port\":0"),
                "invalid_body",
                "from 1 to 65535, not 0",
            ),
            (
                &with_destination(",\"port\":65536"),
                "invalid_body",
                "from 1 to 65535, not 65536",
            ),
            (
                &with_destination(",\"port\":\"5432\""),
                "invalid_body",
                "destination.port",
            ),
            (
                &with_destination(",\"port\":1,\"protocol\":\"SCTP\""),
                "invalid_body",
                "TCP or UDP, not `SCTP`",
            ),
            (
                r#"{"operator":{"role":"sre"},"target":{"service":"x"}}"#,
                "invalid_body",
                "missing field `action`",
            ),
            (r#"{"requests":[]}"#, "invalid_body", "1 to 1000"),
            (&too_many, "invalid_body", "1 to 1000"),
            (
                &format!(r#"{{"requests":[{}],{destination}}}"#, question(IAM, POSTGRES, 1)),
                "invalid_body",
                "beside",
            ),
            (
                &format!(r#"{{"requests":[{},{{}}]}}"#, question(IAM, POSTGRES, 1)),
                "invalid_body",
                "\"requests[1].destination.port\"",
            ),
        ],
    )
    .await;
    world.intake.flush().await.expect("flushes");
    assert_eq!(world.intake.stats().received_total(), 0, "nothing was decided");
}

#[tokio::test]
async fn every_mistake_is_named_at_once() {
    let world = world().await;
    let body = json!({ "source": { "spiffe_id": "x" }, "destination": { "spiffe_id": "y", "port": 0, "protocol": "Z" } });
    let errors = post(world.api, "/v1/evaluate", &body.to_string()).await.json()["errors"].take();
    let fields: Vec<&Value> = errors
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| &error["field"])
        .collect();
    let expected = [
        "source.spiffe_id",
        "destination.spiffe_id",
        "destination.port",
        "destination.protocol",
    ];
    assert_eq!(
        fields,
        expected.map(|field| json!(field)).iter().collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn modes_that_there_are_not() {
    let world = world().await;
    refused(
        &world,
        "/v1/mode",
        &[
            (
                r#"{"mode":"enforce"}"#,
                "invalid_body",
                "unknown variant `enforce`",
            ),
            ("{}", "invalid_body", "missing field `mode`"),
            (
                r#"{"mode":"observe","all":true}"#,
                "invalid_body",
                "unknown field `all`",
            ),
        ],
    )
    .await;
    assert!(!world.node.observe_all.load(Ordering::SeqCst));
}

#[tokio::test]
async fn parameters_that_make_no_sense() {
    let world = world().await;
    for (query, text) in [
        ("since=yesterday", "RFC 3339"),
        ("until=2026-13-01T00:00:00Z", "RFC 3339"),
        ("decision=MAYBE", "ALLOW or DENY"),
        ("enforced=yes", "true or false"),
        ("source=spiffe://", "trust domain"),
        ("source=spiffe://hanzo.ai/a*", "\"source\""),
        ("port=65536", "0 to 65535"),
        ("port=-1", "0 to 65535"),
        ("limit=0", "1 to 1000"),
        ("limit=1001", "1 to 1000"),
        ("cursor=1", "not a cursor"),
        ("cursor=r1'--", "not a cursor"),
        ("desicion=DENY", "did you mean `decision`"),
        ("limit=1&limit=2", "given twice"),
        (
            "since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
            "later than `since`",
        ),
        (
            "since=2026-01-01T00:00:00Z&until=2026-01-01T00:00:00Z",
            "later than `since`",
        ),
        ("since=-1", "RFC 3339"),
        ("until=", "RFC 3339"),
        ("cursor=", "not a cursor"),
        ("cursor=t0123456789abcdef", "not a cursor"),
        (
            "cursor=tzzzzzzzzzzzzzzzz0123456789abcdef0123456789abcdef",
            "not a cursor",
        ),
        ("type=policy", "type"),
    ] {
        let reply = get(world.api, &format!("/v1/audit?{query}")).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_parameter"),
            "{query}"
        );
        assert!(
            reply.body.contains(text),
            "{query}: no `{text}` in {}",
            reply.body
        );
    }
    for path in [
        "/v1/graph?since=1",
        "/v1/graph?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
        "/v1/decisions/stream?denied=perhaps",
        "/v1/decisions/stream?identity=x",
    ] {
        assert_eq!(get(world.api, path).await.code(), "invalid_parameter", "{path}");
    }
    for query in [
        "source='%20OR%201=1--",
        "policy=';DROP%20TABLE%20record",
        "node=%00",
        "destination=%27",
    ] {
        let reply = get(world.api, &format!("/v1/audit?{query}")).await;
        assert_eq!(reply.json()["records"], json!([]), "{query}");
    }
}

#[tokio::test]
async fn requests_that_are_not_for_this_api() {
    let world = world().await;
    let status_of = |reply: Reply| (reply.status, reply.code());
    let is = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(status_of(get(world.api, "/nothing").await), is(404, "not_found"));
    assert_eq!(
        status_of(get(world.api, "/v1/policies/none").await),
        is(404, "policy_not_found")
    );
    assert_eq!(status_of(get(world.api, "/metrics").await), is(404, "not_found"));
    let reply = get(world.api, "/v1/evaluate").await;
    assert!(reply.head.contains("allow: post"), "{}", reply.head);
    assert_eq!(status_of(reply), is(405, "method_not_allowed"));
    assert_eq!(
        status_of(post(world.api, "/v1/audit", "{}").await),
        is(405, "method_not_allowed")
    );

    let form = b"POST /v1/mode HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n\r\n{\"mode\":\"observe\"}";
    assert_eq!(status_of(raw(world.api, form).await), is(415, "content_type"));
    let rebound = b"GET /v1/status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(status_of(raw(world.api, rebound).await), is(403, "host_refused"));
    let large = format!("{{\"requests\":[{}", " ".repeat(body::MAX_BYTES));
    assert_eq!(
        status_of(post(world.api, "/v1/evaluate", &large).await),
        is(413, "body_too_large")
    );
    assert_eq!(raw(world.api, b"NONSENSE\r\n\r\n").await.status, 400);
    assert!(!world.node.observe_all.load(Ordering::SeqCst));
}

#[tokio::test]
async fn addresses_that_others_can_reach() {
    for address in ["0.0.0.0:0", "[::]:0", "10.0.0.1:8054"] {
        let error = bind_api(address.parse().expect("literal"), None)
            .await
            .expect_err(address)
            .to_string();
        assert!(
            error.contains("api.listen") && error.contains("not a loopback address"),
            "{error}"
        );
    }
    let taken = bind_api(SocketAddr::from(([127, 0, 0, 1], 0)), None)
        .await
        .expect("binds");
    let error = bind_health(taken.address().expect("TCP"))
        .await
        .expect_err("taken")
        .to_string();
    assert!(
        error.contains("api.health: cannot listen on 127.0.0.1"),
        "{error}"
    );
}
