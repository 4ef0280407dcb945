// SPDX-License-Identifier: Apache-2.0
//! Where a rollout stands, for people.

use serde_json::{Value, json};

use super::nodes;
use crate::cli::exit::Failure;
use crate::cli::output::{Format, Tone, line};
use crate::cli::problems;
use crate::cli::table::{Cell, Table, pairs, plain};

pub(super) fn show(answer: &Value, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        crate::cli::output::json(answer)?;
        return Ok(());
    }
    let rollout = &answer["rollout"];
    if rollout.is_null() {
        line("no rollout: modes are those of workloads and of the configuration")?;
        return Ok(problems::show(answer)?);
    }
    let mut head = vec![
        ("rollout", plain(&rollout["name"]).into()),
        ("stage", plain(&rollout["stage"]).into()),
        ("in force here", in_force(rollout)),
        ("enforced here", enforced(&rollout["workloads"]).into()),
        ("revision", plain(&answer["revision"]).into()),
    ];
    if let Some(summary) = nodes::summary(answer) {
        head.push(("nodes", summary.into()));
    }
    pairs(&head)?;
    line("")?;
    let stages = rollout["stages"].as_array().ok_or(Failure::Answer {
        field: "rollout.stages",
    })?;
    let mut table = Table::new(&[
        "STAGE", "STATE", "MODE", "CANARY", "SELECTED", "TAKEN", "ENFORCED",
    ]);
    for stage in stages {
        table.row([
            plain(&stage["name"]).into(),
            state(stage),
            mode(stage).into(),
            canary(stage).into(),
            plain(&stage["selected"]).into(),
            plain(&stage["taken"]).into(),
            plain(&stage["enforced"]).into(),
        ]);
    }
    table.print("")?;
    for stage in stages.iter().filter(|stage| stage["selects_anybody"] == false) {
        line(&format!(
            "warning: stage {} selects nobody whom this agent knows: is it spelled as in `zt-agent identity list`?",
            plain(&stage["name"])
        ))?;
    }
    if !rollout["stopped"].is_null() {
        stopped(&rollout["stopped"])?;
    }
    nodes::show(answer)?;
    if answer["observe_all"] == json!(true) {
        line("\nbreak-glass is on: nothing is refused on this node until `zt-agent mode restore`")?;
    }
    Ok(problems::show(answer)?)
}

fn enforced(workloads: &Value) -> String {
    if workloads.is_null() {
        return "a policy engine does not see the workloads of nodes: ask their agents".to_owned();
    }
    let mut text = format!(
        "{} of {}, {} of them by this stage",
        plain(&workloads["enforced"]),
        plain(&workloads["total"]),
        plain(&workloads["newly_enforced"])
    );
    let nameless = &workloads["enforced_without_name"];
    if nameless.as_u64().is_some_and(|nameless| nameless > 0) {
        text.push_str("; and ");
        text.push_str(&plain(nameless));
        text.push_str(" that have lost their name");
    }
    text
}

fn stopped(stopped: &Value) -> Result<(), Failure> {
    let what = if stopped["action"] == json!("hold") {
        "stays at this stage"
    } else {
        "went back behind this stage"
    };
    line(&format!(
        "\nstopped at {}: this node {what}, {}, {}",
        plain(&stopped["stage"]),
        why(stopped),
        plain(&stopped["at"]),
    ))?;
    let edges = stopped["edges"].as_array().map_or(&[][..], Vec::as_slice);
    if !edges.is_empty() {
        let mut table = Table::new(&["REFUSED", "TO", "PORT", "TIMES"]);
        for edge in edges {
            table.row([
                plain(&edge["source"]).into(),
                plain(&edge["destination"]).into(),
                format!("{}/{}", plain(&edge["port"]), plain(&edge["protocol"])).into(),
                plain(&edge["times"]).into(),
            ]);
        }
        table.print("")?;
    }
    line(
        "to try again: `zt-agent rollout resume` at this node; or `rollback`, then `advance`; or change what the stage says",
    )?;
    Ok(())
}

/// Why a node stopped.
pub(crate) fn why(stopped: &Value) -> String {
    if stopped["cause"] == json!("unreadable") {
        return "as it cannot be read where it had stopped before: see the log of its agent".to_owned();
    }
    format!("for {}", too_many(stopped))
}

/// What there was too much of.
fn too_many(stopped: &Value) -> String {
    let number = |field: &str| stopped[field].as_u64();
    let is_borne = number("denials") <= number("per_minute");
    match number("attempts_per_minute") {
        Some(borne) if is_borne => format!(
            "{} refusals in a minute of connections of those newly enforced ({borne} are borne)",
            plain(&stopped["attempts"]),
        ),
        _ => format!(
            "{} different connections of those newly enforced that were refused in a minute ({} are borne)",
            plain(&stopped["denials"]),
            plain(&stopped["per_minute"]),
        ),
    }
}

fn in_force(rollout: &Value) -> Cell {
    let text = plain(&rollout["in_force"]);
    if rollout["in_force"] == rollout["stage"] {
        text.into()
    } else {
        Cell::toned(text, Tone::Bad)
    }
}

fn state(stage: &Value) -> Cell {
    let text = plain(&stage["state"]).replace('_', " ");
    match text.as_str() {
        "in force" => Cell::toned(text, Tone::Good),
        "stopped" => Cell::toned(text, Tone::Bad),
        _ => text.into(),
    }
}

fn mode(stage: &Value) -> String {
    if stage["require_policy"] == json!(true) {
        "enforce, policy required".to_owned()
    } else {
        plain(&stage["mode"])
    }
}

fn canary(stage: &Value) -> String {
    if stage["percent"].is_null() {
        return "-".to_owned();
    }
    format!("{} % by {}", plain(&stage["percent"]), plain(&stage["by"]))
}
