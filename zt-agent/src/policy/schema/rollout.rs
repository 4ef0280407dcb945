// SPDX-License-Identifier: Apache-2.0
//! The schema of a rollout's `spec`, and of what its status says of nodes that stopped or are not heard.

use serde_json::{Value as Json, json};

use super::{count, flag, list, note, object, one_of, text};
use crate::policy::rollout::{
    CANARY_FIELDS, CanaryBy, DenialAction, MOST_ATTEMPTS_PER_MINUTE, MOST_PER_MINUTE, ON_DENIALS_FIELDS,
    ROLLOUT_SPEC_FIELDS, SOAK_PATTERN, STAGE_FIELDS, StageMode,
};

/// What `nodesInForce` counts in its status.
pub(super) const IN_FORCE: &str = "Those of them that have exactly its policies and this stage in force.";

/// Nodes that stopped. No words are listed: a status of a later version is not to be refused for one.
pub(super) fn stopped() -> Json {
    let node = json!({
        "type": "object",
        "required": [
            "node", "stage", "definition", "action", "cause", "denials", "perMinute", "attempts", "at",
        ],
        "properties": {
            "node": {"type": "string"},
            "stage": text("Where it stopped."),
            "definition": text("SHA-256 of what the stage said there."),
            "action": text("hold or rollback."),
            "cause": text("denials or unreadable."),
            "denials": count("Different connections that were refused in the minute before."),
            "perMinute": count("As many would have been borne."),
            "attempts": count("How often any of them was refused in the minute before."),
            "attemptsPerMinute": count("As often would have been borne; left out, that does not count."),
            "at": {"type": "string", "format": "date-time"},
        },
    });
    json!({
        "type": "array",
        "description": "The first of these by name.",
        "items": node,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["node"],
    })
}

/// Nodes that an engine has not heard since a time.
pub(super) fn missed(description: &str) -> Json {
    json!({
        "type": "array",
        "description": description,
        "items": {
            "type": "object",
            "required": ["node", "heard"],
            "properties": {
                "node": {"type": "string"},
                "heard": {"type": "string", "format": "date-time"},
            },
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["node"],
    })
}

pub(super) fn spec() -> Json {
    object(&ROLLOUT_SPEC_FIELDS, &["stages"], |field| match field {
        "defaultMode" => one_of(
            &StageMode::NAMES,
            "Of whom no stage that is reached selects; left out, each node's configuration says.",
        ),
        "stage" => text("The stage that is reached, with all before it; left out, none is."),
        "stages" => list(1, &stage()),
        _ => note(),
    })
}

fn stage() -> Json {
    object(&STAGE_FIELDS, &["name"], |field| match field {
        "name" => json!({
            "type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            "description": "Unique in the rollout.",
        }),
        "identities" => list(
            1,
            &text("A SPIFFE ID; `*` stands for a whole segment of its path, or for any."),
        ),
        "mode" => one_of(
            &StageMode::NAMES,
            "What they do from then on: enforce where nothing is said.",
        ),
        "canary" => object(&CANARY_FIELDS, &["percent"], |field| match field {
            "percent" => json!({
                "type": "integer", "minimum": 1, "maximum": 100,
                "description": "Only this part of them, always the same ones.",
            }),
            _ => one_of(
                &CanaryBy::NAMES,
                "What it is a part of: workloads of each service, or nodes.",
            ),
        }),
        "onDenials" => object(
            &ON_DENIALS_FIELDS,
            &["perMinute", "action"],
            |field| match field {
                "perMinute" => json!({
                    "type": "integer", "format": "int64", "minimum": 0, "maximum": MOST_PER_MINUTE,
                    "description": "Different connections of those newly enforced that a node bears to be refused in a minute.",
                }),
                "attemptsPerMinute" => json!({
                    "type": "integer", "format": "int64", "minimum": 0, "maximum": MOST_ATTEMPTS_PER_MINUTE,
                    "description": "How often any of them may be refused in a minute; left out, that does not count.",
                }),
                "for" => json!({
                    "type": "string", "pattern": SOAK_PATTERN,
                    "description": "How long after the stage came in force on a node: a number and s, m, h or d, at most 30d; 1h.",
                }),
                _ => one_of(
                    &DenialAction::NAMES,
                    "At one more the node stays at this stage, or goes back to the one before.",
                ),
            },
        ),
        "requirePolicy" => {
            flag("Everybody enforces whom no stage says otherwise of, and whom no policy names is refused.")
        }
        _ => note(),
    })
}
