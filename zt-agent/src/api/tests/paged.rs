// SPDX-License-Identifier: Apache-2.0
//! The page, who may have it, and what it asks for.

use super::*;
use crate::audit::Entry;
use crate::audit::store::Sink as _;

/// A connection that went through or did not.
pub(super) fn connection(source: &str, port: u16, allowed: bool, enforced: bool) -> Entry {
    let mut record = crate::audit::sample::record();
    record.id = uuid::Uuid::now_v7();
    let mut json = serde_json::to_value(Entry::Decision(record)).expect("JSON");
    json["source"]["spiffe_id"] = json!(source);
    json["source"]["entity"] = Value::Null;
    json["destination"]["spiffe_id"] = json!(POSTGRES);
    json["destination"]["entity"] = Value::Null;
    json["destination"]["port"] = json!(port);
    json["decision"] = json!(if allowed { "ALLOW" } else { "DENY" });
    json["policy_matched"] = if allowed {
        json!("hanzo-core-policy/rule-1")
    } else {
        Value::Null
    };
    json["reason"] = json!(if allowed { "rule" } else { "no_rule" });
    json["enforced"] = json!(enforced);
    json["count"] = json!(1);
    json["hook"] = json!("connect");
    json["observer"] = json!("source");
    serde_json::from_value(json).expect("a record")
}

pub(super) async fn recorded(world: &World, entries: &[Entry]) {
    world.state.store.append(entries, None).await.expect("stored");
}

#[tokio::test]
async fn the_page_and_its_files_are_served_with_a_strict_policy() {
    let world = world().await;
    let page = get(world.api, "/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.starts_with("<!doctype html>"));
    let mut paths = vec!["/".to_owned()];
    paths.extend(page.body.split("\"/page/").skip(1).map(|rest| {
        let name = rest.split('"').next().expect("a name");
        format!("/page/{name}")
    }));
    assert!(paths.len() > 3, "{paths:?}");
    for path in paths {
        let file = get(world.api, &path).await;
        assert_eq!(file.status, 200, "{path}");
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "cross-origin-resource-policy: same-origin",
            "cache-control: no-store",
        ] {
            assert!(file.head.contains(header), "{path}: {}", file.head);
        }
        assert!(
            !file.head.contains("unsafe") && !file.head.contains("access-control"),
            "{}",
            file.head
        );
    }
    for path in [
        "/page/",
        "/page/none.js",
        "/page/..%2f..%2fpage.rs",
        "/page/%ff",
        "/page/page.css?x=1",
    ] {
        let answer = get(world.api, path).await;
        assert!([400, 404].contains(&answer.status), "{path}: {}", answer.status);
        answer.code();
    }
}

#[tokio::test]
async fn no_page_of_another_site_is_served() {
    let world = world().await;
    let ask = question(IAM, POSTGRES, 5432).to_string();
    let before = world.intake.stats().received_total();
    for headers in [
        "Origin: https://evil.example\n",
        "Origin: null\n",
        "Origin: http://localhost:3000\n",
        "Sec-Fetch-Site: cross-site\n",
        "Sec-Fetch-Site: same-site\nSec-Fetch-Mode: navigate\nSec-Fetch-Dest: document\n",
    ] {
        for (method, path, body, more) in [
            (
                "POST",
                "/v1/evaluate",
                ask.as_str(),
                "Content-Type: application/json\n",
            ),
            (
                "POST",
                "/v1/mode",
                r#"{"mode":"observe"}"#,
                "Content-Type: application/json\n",
            ),
            ("PUT", "/v1/policies/hanzo-core-policy", POLICY, YAML),
            ("POST", "/v1/replay", POLICY, YAML),
            ("DELETE", "/v1/policies/hanzo-core-policy", "", ""),
            ("OPTIONS", "/v1/mode", "", "Access-Control-Request-Method: POST\n"),
            ("GET", "/v1/audit", "", ""),
            ("GET", "/v1/decisions/stream", "", ""),
        ] {
            let answer = send(world.api, method, path, &format!("{headers}{more}"), body).await;
            assert_eq!(
                (answer.status, answer.code()),
                (403, "origin_refused".to_owned()),
                "{headers} {method} {path}"
            );
            assert!(!answer.head.contains("access-control"), "{}", answer.head);
        }
    }
    assert!(!world.node.observe_all.load(Ordering::SeqCst));
    assert_eq!(
        world.intake.stats().received_total(),
        before,
        "nothing was evaluated"
    );
    // The page itself asks so, and a link leads to it.
    let own = "Origin: http://localhost\nSec-Fetch-Site: same-origin\nContent-Type: application/json\n";
    assert_eq!(
        send(world.api, "POST", "/v1/evaluate", own, &ask).await.status,
        200
    );
    let link = "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate\nSec-Fetch-Dest: document\n";
    assert_eq!(send(world.api, "GET", "/", link, "").await.status, 200);
    // A name that was made to lead here is none of this machine, whatever else the request says.
    let rebound =
        b"GET / HTTP/1.1\r\nHost: evil.example\r\nSec-Fetch-Site: none\r\nConnection: close\r\n\r\n";
    assert_eq!(raw(world.api, rebound).await.code(), "host_refused");
}

#[tokio::test]
async fn rules_are_counted_whether_they_decided_or_not() {
    let world = world().await;
    world.state.changes().has_seen(world.state.snapshot().revision);
    let counted = get(world.api, "/v1/rules").await.json();
    let rule = &counted["rules"][0];
    assert_eq!(rule["rule"], json!("hanzo-core-policy/rule-1"));
    assert_eq!(
        (&rule["allowed"], &rule["last_seen"], &rule["in_force"]),
        (&json!(0), &Value::Null, &json!(true))
    );
    recorded(
        &world,
        &[
            connection(IAM, 5432, true, true),
            connection(IAM, 5432, true, true),
            connection(CHAT, 5432, false, false),
            connection(CHAT, 5432, false, true),
        ],
    )
    .await;
    let counted = get(world.api, "/v1/rules?since=2020-01-01T00:00:00Z")
        .await
        .json();
    let rules = counted["rules"].as_array().expect("a list");
    assert_eq!(rules.len(), 2, "{counted}");
    assert_eq!(rules[0]["allowed"], json!(2));
    assert_eq!(
        (&rules[1]["rule"], &rules[1]["denied"], &rules[1]["would_deny"]),
        (&Value::Null, &json!(1), &json!(1))
    );
    let none = get(world.api, "/v1/rules?until=2020-01-01T00:00:00Z")
        .await
        .json();
    assert_eq!(none["rules"][0]["allowed"], json!(0));
    assert_eq!(get(world.api, "/v1/rules?namespace=x").await.status, 400);
}

#[tokio::test]
async fn what_was_recorded_is_judged_by_the_policy_in_force() {
    let world = world().await;
    recorded(
        &world,
        &[
            // What an earlier policy allowed, at a port that none allows now.
            connection(IAM, 80, true, true),
            connection(CHAT, 5432, false, false),
            connection(CHAT, 5432, false, false),
            // What was refused does not go through, and is nothing that enforcing would take away.
            connection(CHAT, 81, false, true),
            // What an earlier policy denied and this one allows.
            connection(IAM, 5432, false, false),
        ],
    )
    .await;
    let replay = get(world.api, "/v1/replay").await.json();
    assert_eq!(replay["revision"], json!(7));
    assert_eq!(replay["connections"], json!(5));
    assert_eq!(replay["would_deny"], json!({"flows": 2, "connections": 3}));
    assert_eq!(replay["denied"][0]["source"], json!(CHAT));
    assert_eq!(replay["denied"][0]["connections"], json!(2));
    assert_eq!(replay["newly_denied"], json!({"flows": 1, "connections": 1}));
    assert_eq!(replay["newly_allowed"], json!({"flows": 1, "connections": 1}));
    let changes = replay["changes"].as_array().expect("a list");
    assert!(changes.iter().any(|change| change["change"] == "newly_allowed"
        && change["rule"] == "hanzo-core-policy/rule-1"));

    let advice = get(world.api, "/v1/recommend?namespace=hanzo").await.json();
    let policy = advice["policy"].as_str().expect("a text");
    assert!(policy.contains(IAM) && policy.contains(CHAT), "{policy}");
    assert!(!policy.contains("81"), "what was refused is not in it: {policy}");
    let settings = Settings::default();
    let document = Document {
        file: "x".to_owned(),
        text: policy.to_owned(),
    };
    assert_eq!(
        crate::policy::parse(&[document], &settings)
            .expect("valid")
            .policies()
            .len(),
        1
    );
    for path in ["/v1/replay?since=x", "/v1/recommend?limit=1"] {
        assert_eq!(get(world.api, path).await.status, 400, "{path}");
    }
}

#[tokio::test]
async fn where_nothing_is_recorded_nothing_is_judged_or_recommended() {
    let world = world().await;
    let document = get(world.api, "/openapi.json").await.json();
    let refused = async |path: &str, query: &str| {
        let reply = get(world.api, &format!("{path}{query}")).await;
        described::check(&document, "get", path, &reply);
        let detail = reply.json()["detail"].as_str().expect("a text").to_owned();
        assert_eq!(reply.status, 404, "{detail}");
        (reply.code(), detail)
    };
    for path in ["/v1/replay", "/v1/recommend", "/v1/recommend/diff"] {
        let (code, detail) = refused(path, "").await;
        assert_eq!(
            (code.as_str(), detail.as_str()),
            (
                "nothing_recorded",
                "no connections are recorded: there is nothing to judge by"
            )
        );
    }
    // All that was tried was refused.
    recorded(
        &world,
        &[
            connection(CHAT, 81, false, true),
            connection(CHAT, 82, false, true),
        ],
    )
    .await;
    assert_eq!(get(world.api, "/v1/replay").await.json()["connections"], json!(2));
    let (code, detail) = refused("/v1/recommend", "").await;
    assert_eq!(code, "nothing_passed");
    assert!(detail.starts_with("none of the 2 connections"), "{detail}");
    for (query, what) in [
        ("?namespace=none", "no connections of namespace none are recorded"),
        (
            "?until=2020-01-01T00:00:00Z",
            "no connections until 2020-01-01T00:00:00Z are recorded",
        ),
    ] {
        for path in ["/v1/replay", "/v1/recommend", "/v1/recommend/diff"] {
            let (code, detail) = refused(path, query).await;
            assert_eq!(code, "nothing_recorded", "{path}");
            assert!(detail.starts_with(what), "{detail}");
        }
    }
}
