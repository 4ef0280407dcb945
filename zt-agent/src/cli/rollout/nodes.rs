// SPDX-License-Identifier: Apache-2.0
//! How far the nodes that follow are: shown to people, and looked at before a rollout goes on.

use std::collections::BTreeMap;

use serde_json::Value;

use super::show::why;
use crate::cli::exit::Failure;
use crate::cli::output::{Tone, line};
use crate::cli::table::{Cell, Table, plain};

/// As many nodes that are not as the document says are listed.
const SHOWN: usize = 20;

/// The nodes of an answer; none where an older agent gave it.
fn all(answer: &Value) -> &[Value] {
    answer["nodes"].as_array().map_or(&[][..], Vec::as_slice)
}

/// Whether the stage of the document is known to be in force on each, and break-glass is on nowhere.
pub(super) fn are_as_said(answer: &Value) -> bool {
    let stage = &answer["rollout"]["stage"];
    // One that holds at the stage of the document has it in force.
    let is_as_said = |node: &Value| match node["state"].as_str() {
        _ if node["observe_all"] == true => false,
        Some("in_force") => true,
        Some("stopped") => node["in_force"] == *stage,
        _ => false,
    };
    all(answer).iter().all(is_as_said)
}

/// How many there are and how far; `None` without any.
pub(super) fn summary(answer: &Value) -> Option<String> {
    let all = all(answer);
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for node in all {
        *states.entry(state(node)).or_default() += 1;
    }
    let states = states
        .into_iter()
        .map(|(state, count)| format!("{count} {state}"));
    let states: Vec<String> = states.collect();
    (!all.is_empty()).then(|| format!("{}: {}", all.len(), states.join(", ")))
}

/// Lists those that are not as the document says, who stopped first.
pub(super) fn show(answer: &Value) -> Result<(), Failure> {
    let is_odd = |node: &&Value| node["state"] != "in_force" || node["observe_all"] == true;
    let mut odd: Vec<&Value> = all(answer).iter().filter(is_odd).collect();
    if odd.is_empty() {
        return Ok(());
    }
    odd.sort_by_key(|node| node["stopped"].is_null());
    let mut table = Table::new(&["NODE", "STATE", "IN FORCE", "STOPPED AT", "WHY", "HEARD"]);
    for node in odd.iter().take(SHOWN) {
        let stopped = &node["stopped"];
        let (state, at, why) = if stopped.is_null() {
            (Cell::from(state(node)), "-".to_owned(), "-".to_owned())
        } else {
            (
                Cell::toned(state(node), Tone::Bad),
                plain(&stopped["stage"]),
                why(stopped),
            )
        };
        table.row([
            plain(&node["node"]).into(),
            state,
            plain(&node["in_force"]).into(),
            at.into(),
            why.into(),
            heard(node).into(),
        ]);
    }
    line("")?;
    table.print("")?;
    if odd.len() > SHOWN {
        line(&format!(
            "and {} more: -o json has all of them",
            odd.len() - SHOWN
        ))?;
    }
    Ok(())
}

/// When one was heard last, or by whom.
fn heard(node: &Value) -> String {
    match (node["heard"].as_str(), node["engine"].as_str()) {
        (Some(at), Some(engine)) => format!("{at} by {engine}"),
        (None, Some(engine)) => format!("by {engine}"),
        (_, None) => plain(&node["heard"]),
    }
}

/// An error where any of them is silent: nobody knows what is in force there.
pub(super) fn none_silent(answer: &Value) -> Result<(), Failure> {
    let silent = all(answer).iter().filter(|node| node["state"] == "silent");
    let told: Vec<String> = silent
        .map(|node| format!("{}: since {}", plain(&node["node"]), heard(node)))
        .collect();
    if told.is_empty() {
        return Ok(());
    }
    Err(Failure::Busy(format!(
        "nodes are silent, and nothing was changed (--force goes on without them; one that is gone for good is forgotten an hour after it was heard last):\n{}",
        first_of(told)
    )))
}

/// The first of these lines, and how many there are besides.
fn first_of(mut lines: Vec<String>) -> String {
    if lines.len() > SHOWN {
        let more = lines.len() - SHOWN;
        lines.truncate(SHOWN);
        lines.push(format!("and {more} more"));
    }
    lines.join("\n")
}

/// An error where any of them says that it stopped: those would be left behind.
pub(super) fn none_stopped(answer: &Value) -> Result<(), Failure> {
    let stopped: Vec<&Value> = all(answer)
        .iter()
        .filter(|node| !node["stopped"].is_null())
        .collect();
    if stopped.is_empty() {
        return Ok(());
    }
    let told = stopped.iter().map(|node| {
        let stop = &node["stopped"];
        format!(
            "{}: at `{}` ({}), {}",
            plain(&node["node"]),
            plain(&stop["stage"]),
            plain(&stop["action"]),
            why(stop),
        )
    });
    Err(Failure::Busy(format!(
        "nodes stopped of their own accord, and nothing was changed (`zt-agent rollout resume` at a node has it go on; --force leaves them behind):\n{}",
        first_of(told.collect())
    )))
}

/// How far one is, in words.
fn state(node: &Value) -> String {
    let mut text = match node["state"].as_str() {
        Some("stopped") => format!("stopped ({})", plain(&node["stopped"]["action"])),
        Some("unknown") => "does not say".to_owned(),
        Some(other) => other.replace('_', " "),
        None => plain(&node["state"]),
    };
    if node["observe_all"] == true {
        text.push_str(", break-glass");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, state: &str, in_force: Option<&str>) -> Value {
        let action = if in_force == Some("b") { "hold" } else { "rollback" };
        let stopped = (state == "stopped").then(|| {
            json!({
                "stage": "b", "action": action, "cause": "denials", "denials": 5, "per_minute": 4,
                "attempts": 9, "attempts_per_minute": null, "at": "2026-03-02T09:10:45Z",
            })
        });
        json!({
            "node": name, "state": state, "in_force": in_force, "stopped": stopped, "observe_all": false,
            "heard": "2026-03-02T09:10:45Z", "engine": null,
        })
    }

    fn answer(nodes: &[Value]) -> Value {
        json!({ "rollout": { "name": "r", "stage": "b" }, "nodes": nodes })
    }

    #[test]
    fn all_are_as_said_only_where_each_is_known_to_be() {
        let good = node("good", "in_force", Some("b"));
        for (other, wanted) in [
            (node("other", "in_force", Some("b")), true),
            (node("other", "stopped", Some("b")), true),
            (node("other", "stopped", Some("a")), false),
            (node("other", "behind", Some("a")), false),
            (node("other", "unknown", None), false),
            (node("other", "silent", None), false),
            (node("other", "of a later version", Some("b")), false),
        ] {
            let answer = answer(&[good.clone(), other.clone()]);
            assert_eq!(are_as_said(&answer), wanted, "{other}");
        }
        for state in ["in_force", "stopped"] {
            let mut glass = node("glass", state, Some("b"));
            glass["observe_all"] = true.into();
            assert!(!are_as_said(&answer(&[good.clone(), glass])), "{state}");
        }
        assert!(
            are_as_said(&json!({ "rollout": { "stage": "b" } })),
            "an older agent"
        );
    }

    #[test]
    fn how_many_there_are_is_told_by_how_far_they_are() {
        assert_eq!(summary(&answer(&[])), None);
        let nodes = [
            node("a", "in_force", Some("b")),
            node("b", "in_force", Some("b")),
            node("c", "stopped", Some("a")),
            node("d", "unknown", None),
        ];
        assert_eq!(
            summary(&answer(&nodes)).as_deref(),
            Some("4: 1 does not say, 2 in force, 1 stopped (rollback)")
        );
        let mut glass = nodes[0].clone();
        glass["observe_all"] = true.into();
        assert_eq!(
            summary(&answer(&[glass])).as_deref(),
            Some("1: 1 in force, break-glass")
        );
    }

    #[test]
    fn who_stopped_is_named_with_the_reason() {
        assert!(none_stopped(&answer(&[node("a", "behind", Some("a"))])).is_ok());
        let many: Vec<Value> = (0..SHOWN + 2)
            .map(|number| node(&format!("worker-{number}"), "stopped", Some("a")))
            .collect();
        let error = none_stopped(&answer(&many)).expect_err("they stopped");
        let text = error.to_string();
        assert!(
            text.contains("worker-0: at `b` (rollback), for 5 different connections")
                && text.contains("worker-19: ")
                && !text.contains("worker-20: ")
                && text.ends_with("and 2 more"),
            "{text}"
        );
        assert_eq!(error.exit() as u8, 1);
    }

    #[test]
    fn who_is_silent_is_named_with_since_when() {
        assert!(none_silent(&answer(&[node("a", "stopped", Some("a"))])).is_ok());
        let mut told = node("b", "silent", None);
        told["engine"] = "engine-2".into();
        let silent = answer(&[node("a", "silent", None), told, node("c", "in_force", Some("b"))]);
        let error = none_silent(&silent).expect_err("nobody knows");
        let text = error.to_string();
        let since = "since 2026-03-02T09:10:45Z";
        assert!(
            text.contains("--force") && text.ends_with(&format!(":\na: {since}\nb: {since} by engine-2")),
            "{text}"
        );
        assert_eq!(error.exit() as u8, 1);
        assert_eq!(summary(&silent).as_deref(), Some("3: 1 in force, 2 silent"));
    }
}
