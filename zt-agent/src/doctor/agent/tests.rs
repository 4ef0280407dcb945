// SPDX-License-Identifier: Apache-2.0
//! How what an agent says of itself is judged.

use serde_json::json;

use super::super::finding::Status;
use super::*;

fn good() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"), "ready": true, "not_ready": null,
        "policy": { "revision": 7, "digest": "cd384f4305e2aa33", "policies": 2, "errors": [], "source": null },
        "configuration": { "callers": 0, "errors": [], "restart_needed": false },
        "modes": { "observe_all": false },
        "audit": { "lost": { "ring": 0 }, "spool": null },
        "disputes": [], "unnamed": [], "unnamed_more": 0,
        "handshake": { "older_reading": 0, "older_failed": 0, "paths": [] },
        "spire": null, "svid": null, "kubernetes": null,
    })
}

/// What is not as it should be, of an answer that differs from a good one in this.
fn found(pointer: &str, value: Value) -> Vec<(&'static str, Status)> {
    let mut status = good();
    *status.pointer_mut(pointer).expect("a field") = value;
    let findings = said(&status).into_iter();
    findings
        .filter(|finding| finding.status != Status::Ok)
        .map(|finding| (finding.check, finding.status))
        .collect()
}

#[test]
fn what_an_agent_says_of_itself_is_judged() {
    assert!(found("/ready", json!(true)).is_empty());
    for (pointer, value, check, status) in [
        ("/ready", json!(false), "agent.ready", Status::Failed),
        ("/version", json!("0.0.1"), "agent.version", Status::Warning),
        (
            "/policy/errors",
            json!([{"file": "a.yaml", "message": "wrong"}]),
            "agent.policy",
            Status::Failed,
        ),
        (
            "/policy/source",
            json!({"stale": true, "error": "away"}),
            "agent.policy",
            Status::Warning,
        ),
        (
            "/configuration/restart_needed",
            json!(true),
            "agent.configuration",
            Status::Warning,
        ),
        (
            "/configuration/errors",
            json!([{}]),
            "agent.configuration",
            Status::Failed,
        ),
        (
            "/modes/observe_all",
            json!(true),
            "agent.break_glass",
            Status::Warning,
        ),
        ("/audit/lost", json!({"ring": 3}), "audit.lost", Status::Warning),
        ("/disputes", json!([{}]), "identities", Status::Failed),
        ("/unnamed_more", json!(4), "identities", Status::Warning),
        (
            "/handshake/older_failed",
            json!(1),
            "handshake.older_listeners",
            Status::Warning,
        ),
        (
            "/handshake/paths",
            json!([{"node": "worker-2", "network": "10.244.2.0/24", "dropped": 3}]),
            "handshake.paths",
            Status::Warning,
        ),
        (
            "/spire",
            json!({"connected": false, "error": "no such file"}),
            "spire.connected",
            Status::Failed,
        ),
        (
            "/svid",
            json!({"problem": "it has expired"}),
            "spire.svid",
            Status::Failed,
        ),
        (
            "/kubernetes",
            json!({"collections": {"pods": {"stale": true}}}),
            "kubernetes.heard",
            Status::Warning,
        ),
        (
            "/audit/spool",
            json!({"reachable": false, "error": "away", "waiting": 4}),
            "audit.shipping",
            Status::Failed,
        ),
    ] {
        assert_eq!(found(pointer, value), [(check, status)], "{pointer}");
    }
}

#[test]
fn an_answer_of_another_kind_is_no_reason_to_give_up() {
    let findings = said(&json!({}));
    assert!(
        findings
            .iter()
            .any(|finding| finding.check == "agent.ready" && finding.status == Status::Failed)
    );
}

#[test]
fn an_agent_that_is_gone_is_told_from_one_that_never_was() {
    let silent = Err("cannot reach it".to_owned());
    assert_eq!(alive(Agent::Gone, None, &silent).status, Status::Failed);
    assert_eq!(alive(Agent::Absent, None, &silent).status, Status::Warning);
}
