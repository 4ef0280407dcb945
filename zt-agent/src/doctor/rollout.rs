// SPDX-License-Identifier: Apache-2.0
//! The rollout, as the agent says how far this node is in it.

use serde_json::Value;

use super::finding::Finding;
use crate::cli::why_stopped;

const CHECK: &str = "agent.rollout";

/// `said`: what `/v1/rollout` says; one that does not say it is of an older version.
pub(super) fn look(said: &Result<Value, String>) -> Option<Finding> {
    let rollout = &said.as_ref().ok()?["rollout"];
    let name = rollout["name"].as_str()?;
    let in_force = rollout["in_force"].as_str();
    let in_force = in_force.map_or_else(|| "no stage".to_owned(), |stage| format!("stage {stage}"));
    let stopped = &rollout["stopped"];
    let Some(stage) = stopped["stage"].as_str() else {
        return Some(Finding::ok(CHECK, format!("{name}: {in_force} is in force here")));
    };
    let found = format!(
        "{name}: {in_force} is in force here, as this node stopped at {stage}, {}",
        why_stopped(stopped)
    );
    let remedy = if stopped["cause"] == "unreadable" {
        "see the agent's log for the file that cannot be read; if the stage is to go on, `zt-agent rollout resume` here: docs/rollout.md"
    } else {
        "`zt-agent rollout status` lists the connections that were refused most: allow what should be, then `zt-agent rollout resume` here; or `zt-agent rollout rollback`: docs/rollout.md"
    };
    Some(Finding::warning(CHECK, found, remedy))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Status;
    use super::*;

    fn found(rollout: &Value) -> Option<Finding> {
        look(&Ok(json!({ "revision": 3, "rollout": rollout })))
    }

    #[test]
    fn a_node_that_stopped_is_told_of_with_why_and_what_to_do() {
        assert_eq!(found(&Value::Null), None);
        assert_eq!(look(&Err("404".to_owned())), None);
        let mut rollout = json!({ "name": "hanzo", "stage": "few", "in_force": "few", "stopped": null });
        let goes = found(&rollout).expect("there is one");
        assert_eq!(
            (goes.status, goes.found.as_str()),
            (Status::Ok, "hanzo: stage few is in force here")
        );
        rollout["in_force"] = Value::Null;
        rollout["stopped"] = json!({
            "stage": "few", "action": "rollback", "cause": "denials", "denials": 5, "per_minute": 4,
            "attempts": 9, "attempts_per_minute": null, "at": "2026-03-02T09:10:45Z", "edges": [],
        });
        let stopped = found(&rollout).expect("it stopped");
        assert_eq!(stopped.status, Status::Warning);
        assert!(
            stopped.found.starts_with(
                "hanzo: no stage is in force here, as this node stopped at few, for 5 different"
            ),
            "{stopped:?}"
        );
        assert!(
            stopped
                .remedy
                .is_some_and(|remedy| remedy.contains("rollout resume"))
        );
        rollout["stopped"]["cause"] = json!("unreadable");
        let unread = found(&rollout).expect("it may have stopped");
        assert!(unread.found.contains("cannot be read"), "{unread:?}");
    }
}
