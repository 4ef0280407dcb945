// SPDX-License-Identifier: Apache-2.0
//! What a node tells the engine that it follows: what is in force there, and how far it is in the rollout.

use serde_json::{Value, json};

use crate::audit::record::Timestamp;
use crate::policy::Stop;
use crate::state::{MOST_SELECTING, Snapshot};

/// The field that an engine of an older version does not know.
const ROLLOUT: &str = "rollout";

/// The body of a report.
pub(super) fn report(snapshot: &Snapshot) -> Value {
    let mut report = json!({ "revision": snapshot.revision, "digest": snapshot.policies.digest() });
    if let Some(rollout) = rollout(snapshot) {
        report[ROLLOUT] = rollout;
    }
    report
}

/// The same for an engine of an older version; `None` where it says no less.
pub(super) fn older(report: &Value) -> Option<Value> {
    let mut older = report.clone();
    older.as_object_mut()?.remove(ROLLOUT)?;
    Some(older)
}

fn rollout(snapshot: &Snapshot) -> Option<Value> {
    let (rollout, reached) = snapshot.modes.rollout()?;
    let workloads = &snapshot.workloads;
    let to_come = rollout.stages.iter().skip(rollout.reached());
    let selecting = to_come.filter(|stage| {
        let mut here = workloads.iter().map(|placed| &placed.record.spiffe);
        here.any(|id| stage.selects(id))
    });
    let selects: Vec<&str> = selecting.map(|stage| &*stage.name).take(MOST_SELECTING).collect();
    Some(json!({
        "name": rollout.head.name,
        "stage": rollout.stage_at(reached).map(|stage| &*stage.name),
        "observe_all": snapshot.observe_all,
        "selects": selects,
        "stopped": snapshot.stopped.as_deref().map(stopped),
    }))
}

/// Without the connections that were refused: who wants to know asks the node.
fn stopped(stop: &Stop) -> Value {
    json!({
        "stage": stop.stage,
        "definition": stop.definition,
        "action": stop.action,
        "cause": stop.cause,
        "denials": stop.denials,
        "per_minute": stop.per_minute,
        "attempts": stop.attempts,
        "attempts_per_minute": stop.attempts_per_minute,
        "at": Timestamp(stop.at_nanos()),
    })
}
