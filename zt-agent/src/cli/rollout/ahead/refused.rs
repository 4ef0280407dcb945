// SPDX-License-Identifier: Apache-2.0
//! What of the traffic that was recorded a step refuses.

use serde_json::{Value, json};

use super::{SHOWN, Stages};
use crate::cli::client::{Client, ClientError};
use crate::cli::exit::Failure;
use crate::cli::output::line;
use crate::cli::table::{Table, plain};
use crate::cli::when::When;
use crate::spiffe_id::SpiffeId;

/// How far back recorded traffic is looked at.
const RANGE: &str = "24h";

/// What of recorded traffic went through, and is denied by what the policies say at the stage: to those newly enforced, or since
/// that stage requires a policy.
pub(super) async fn ask(client: &Client, stages: &Stages) -> Result<Value, ClientError> {
    let since = RANGE.parse::<When>().map(When::rfc3339).unwrap_or_default();
    let stage = stages.all.last().map(|stage| ("stage", stage.name.clone()));
    let range = ("since", since.clone());
    let query: Vec<(&str, String)> = std::iter::once(range.clone()).chain(stage).collect();
    let answer = match client.get("/v1/replay", &query).await {
        Err(error) if knows_no_stage(&error) => client.get("/v1/replay", &[range]).await?,
        other => other?,
    };
    Ok(of(&answer, &since, stages))
}

/// Whether whoever was asked does not look at stages: an older one knows no such parameter.
fn knows_no_stage(error: &ClientError) -> bool {
    let ClientError::Refused { code, message, .. } = error else {
        return false;
    };
    let mut lines = message.lines();
    code.as_deref() == Some("invalid_parameter")
        && lines.any(|line| line.starts_with("stage: is not a parameter"))
}

/// What an answer says of the step.
fn of(answer: &Value, since: &str, stages: &Stages) -> Value {
    let denied = answer["denied"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<&Value> = denied.iter().filter(|row| is_refused(row, stages)).collect();
    let connections = rows.iter().filter_map(|row| row["connections"].as_u64());
    let edges = rows.iter().take(SHOWN).map(|row| {
        json!({
            "source": row["source"],
            "destination": row["destination"],
            "port": row["port"],
            "protocol": row["protocol"],
            "connections": row["connections"],
        })
    });
    let last = stages.all.last();
    let is_at_stage = last.is_none_or(|stage| answer["stage"] == stage.name.as_str());
    let requires_policy = stages.next().iter().any(|stage| stage.requires_policy);
    json!({
        "since": since,
        "recorded_by": answer["recorded_by"],
        "looked_at": answer["connections"],
        "connections": connections.fold(0, u64::saturating_add),
        "flows": rows.len(),
        "complete": answer["would_deny"]["flows"] == denied.len(),
        "denied_flows": answer["would_deny"]["flows"],
        "denied_flows_looked_at": denied.len(),
        "undecided": answer["undecided"],
        "lacks_require_policy": requires_policy && !is_at_stage,
        "edges": edges.collect::<Vec<_>>(),
    })
}

/// Whether the step refuses a connection that is denied there; of one to a Service, whether it may do so, as nobody knows to which of
/// those behind it that led.
fn is_refused(row: &Value, stages: &Stages) -> bool {
    let id = |end: &Value| SpiffeId::parse(end.as_str()?).ok();
    let mut led_to: Vec<Option<SpiffeId>> = row["behind"].as_array().into_iter().flatten().map(id).collect();
    if led_to.is_empty() {
        led_to.push(id(&row["destination"]));
    }
    led_to.into_iter().any(|destination| {
        let ends: Vec<SpiffeId> = id(&row["source"]).into_iter().chain(destination).collect();
        // What the stage alone denies was let pass by whoever enforced before.
        let by_stage = row["by_stage"] == true && stages.will_judge(&ends);
        by_stage || stages.newly_judges(&ends)
    })
}

/// Whose traffic that is: one node's says little of a step that all of them take.
fn whose(refused: &Value) -> &'static str {
    match refused["recorded_by"].as_str() {
        Some("all_nodes") => "recorded by all nodes",
        _ => "recorded by this node, and no other",
    }
}

/// For people. Of a `canary` it is known whom it may take, and not whom it takes.
pub(super) fn show(refused: &Value, is_canary: bool) -> Result<(), Failure> {
    line(&sum(refused, is_canary))?;
    let edges = refused["edges"].as_array().map_or(&[][..], Vec::as_slice);
    if !edges.is_empty() {
        print(edges)?;
    }
    for what in not_known(refused) {
        line(&what)?;
    }
    Ok(())
}

/// How much it is.
fn sum(refused: &Value, is_canary: bool) -> String {
    let of = |field: &str| plain(&refused[field]);
    let traffic = format!("refused of the last day's traffic, {}", whose(refused));
    let is_complete = refused["complete"] == true;
    if refused["flows"] == 0 && is_complete {
        return format!("{traffic}: none of {} connections", of("looked_at"));
    }
    if refused["flows"] == 0 {
        return format!(
            "{traffic}: none among the {} most frequent of {} different connections that policy denies; the others were not looked at",
            of("denied_flows_looked_at"),
            of("denied_flows"),
        );
    }
    let bound = if is_canary { "up to " } else { "" };
    let more = if is_complete { "" } else { " or more" };
    format!(
        "{traffic}: {bound}{} connections{more}, {} different; most often",
        of("connections"),
        of("flows"),
    )
}

/// Of what it is not known whether it is refused.
fn not_known(refused: &Value) -> Vec<String> {
    let mut all = Vec::new();
    let undecided = &refused["undecided"];
    if undecided["connections"].as_u64().is_some_and(|count| count > 0) {
        all.push(format!(
            "{} connections of that time cannot be judged ({} different): see `zt-agent policy replay --services \u{2026}`",
            plain(&undecided["connections"]),
            plain(&undecided["flows"]),
        ));
    }
    if refused["lacks_require_policy"] == true {
        all.push(
            "what `requirePolicy` refuses is not in it: the agent that was asked is older, and does not look at stages"
                .to_owned(),
        );
    }
    all
}

/// The most frequent ones.
fn print(edges: &[Value]) -> Result<(), Failure> {
    let mut table = Table::new(&["REFUSED", "TO", "PORT", "TIMES"]);
    for edge in edges {
        table.row([
            plain(&edge["source"]).into(),
            plain(&edge["destination"]).into(),
            format!("{}/{}", plain(&edge["port"]), plain(&edge["protocol"])).into(),
            plain(&edge["connections"]).into(),
        ]);
    }
    table.print("")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::{StatusCode, Uri};
    use axum::response::{IntoResponse as _, Response};
    use axum::routing::get;
    use axum::{Json, Router};
    use tokio::net::TcpListener;

    use super::*;
    use crate::cli::client::ApiArgs;

    fn id(name: &str) -> String {
        format!("spiffe://hanzo.ai/c/{name}")
    }

    #[test]
    fn what_a_stage_alone_denies_is_refused_though_an_end_enforced_before() {
        let document = json!({ "spec": { "stages": [
            { "name": "db", "identities": [id("db")] },
            { "name": "spared", "identities": [id("dns"), id("ntp")], "mode": "observe" },
            { "name": "all", "requirePolicy": true },
        ] } });
        let row = |from: &str, to: &str, by_stage: Option<bool>| {
            let mut row = json!({ "source": id(from), "destination": id(to), "port": 1, "protocol": "TCP", "connections": 2 });
            if let Some(by_stage) = by_stage {
                row["by_stage"] = by_stage.into();
            }
            row
        };
        let answer = json!({
            "recorded_by": "this_node",
            "connections": 20,
            "would_deny": { "flows": 5 },
            "denied": [
                row("nobody", "db", Some(true)),
                // Refused before, where it was tried.
                row("web", "db", Some(false)),
                row("web", "cache", Some(false)),
                // Neither end refuses anything.
                row("ntp", "dns", Some(true)),
                // An agent that does not look ahead.
                row("web", "db", None),
            ],
        });
        let refused = of(&answer, "then", &Stages::of(&document, 2, 3));
        assert_eq!(
            (&refused["flows"], &refused["connections"]),
            (&json!(2), &json!(4))
        );
        let edges = refused["edges"].as_array().expect("a list").iter();
        let sources: Vec<&Value> = edges.map(|edge| &edge["source"]).collect();
        assert_eq!(sources, [&json!(id("nobody")), &json!(id("web"))]);
        assert_eq!(whose(&refused), "recorded by this node, and no other");
        let refused = of(
            &json!({ "recorded_by": "all_nodes" }),
            "",
            &Stages::of(&document, 0, 1),
        );
        assert_eq!(whose(&refused), "recorded by all nodes");
    }

    /// A stage about `db`, and a last one that requires a policy; none is reached.
    fn two(to: usize) -> Stages {
        let document = json!({ "spec": { "stages": [
            { "name": "db", "identities": [id("db")] },
            { "name": "all", "requirePolicy": true },
        ] } });
        Stages::of(&document, to - 1, to)
    }

    fn row(from: &str, to: &str, behind: &[&str]) -> Value {
        let behind: Vec<String> = behind.iter().map(|name| id(name)).collect();
        json!({
            "source": id(from), "destination": to, "port": 1, "protocol": "TCP", "connections": 2, "by_stage": false,
            "behind": behind,
        })
    }

    #[test]
    fn those_behind_a_service_are_ends_of_what_is_refused() {
        let answer = json!({
            "connections": 9, "would_deny": { "flows": 3 }, "stage": "db",
            "denied": [
                row("web", "service:x/db", &["cache", "db"]),
                row("web", "service:x/cache", &["cache"]),
                row("web", &id("cache"), &[]),
            ],
        });
        let refused = of(&answer, "", &two(1));
        assert_eq!(
            (&refused["flows"], &refused["edges"][0]["destination"]),
            (&json!(1), &json!("service:x/db"))
        );
        // One of them enforced before, and the other one newly does.
        assert!(is_refused(&answer["denied"][0], &two(2)));
    }

    #[test]
    fn that_nothing_is_refused_is_said_where_all_was_looked_at() {
        let answer = |flows: usize, undecided: u64| {
            json!({
                "connections": 5000, "stage": "db", "recorded_by": "all_nodes", "would_deny": { "flows": flows },
                "undecided": { "flows": undecided.min(1), "connections": undecided },
                "denied": [row("web", &id("cache"), &[])],
            })
        };
        let refused = of(&answer(1, 0), "", &two(1));
        let traffic = "refused of the last day's traffic, recorded by all nodes";
        assert_eq!(
            sum(&refused, false),
            format!("{traffic}: none of 5000 connections")
        );
        assert_eq!(not_known(&refused), Vec::<String>::new());
        let refused = of(&answer(1200, 7), "", &two(1));
        assert_eq!(
            (&refused["complete"], &refused["denied_flows"]),
            (&json!(false), &json!(1200))
        );
        assert_eq!(
            sum(&refused, true),
            format!(
                "{traffic}: none among the 1 most frequent of 1200 different connections that policy denies; the others were not looked at"
            )
        );
        let not_known = not_known(&refused);
        assert_eq!(not_known.len(), 1);
        assert!(
            not_known[0].starts_with("7 connections of that time cannot be judged (1 different): "),
            "{not_known:?}"
        );
    }

    /// An agent that does not know the parameter `stage`.
    async fn older(uri: Uri) -> Response {
        if uri.query().is_some_and(|query| query.contains("stage=")) {
            let message = "is not a parameter; there are since, until, namespace";
            let error = json!({ "file": "", "line": 0, "column": 0, "field": "stage", "message": message });
            let details = json!({ "code": "invalid_parameter", "detail": "the request is not valid", "errors": [error] });
            return (StatusCode::BAD_REQUEST, Json(details)).into_response();
        }
        let denied = [row("web", &id("db"), &[])];
        let answer = json!({ "connections": 2, "would_deny": { "flows": 1 }, "denied": denied });
        Json(answer).into_response()
    }

    #[tokio::test]
    async fn an_older_agent_is_asked_without_the_stage() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let api = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().route("/v1/replay", get(older));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::new(&ApiArgs {
            api,
            ..ApiArgs::default()
        })
        .expect("a URL");
        let refused = ask(&client, &two(1)).await.expect("an answer");
        assert_eq!(
            (&refused["flows"], &refused["lacks_require_policy"]),
            (&json!(1), &json!(false))
        );
        let refused = ask(&client, &two(2)).await.expect("an answer");
        assert_eq!(refused["lacks_require_policy"], true);
        let not_known = not_known(&refused);
        assert!(
            not_known[0].contains("what `requirePolicy` refuses is not in it"),
            "{not_known:?}"
        );
    }
}
