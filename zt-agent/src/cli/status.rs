// SPDX-License-Identifier: Apache-2.0
//! `zt-agent status`.

use clap::Args;
use serde_json::Value;

use super::client::{ApiArgs, Client};
use super::exit::{Exit, Failure};
use super::output::{Format, Output, Tone, colourful, json, line, toned};
use super::table::plain;
use crate::problem::Problem;

/// What is looked for first.
const FIRST: [&str; 5] = ["ready", "not_ready", "awaited", "node", "cluster"];
const SECTIONS: [&str; 7] = [
    "policy",
    "modes",
    "workloads",
    "roots",
    "hooks",
    "audit",
    "counters",
];
const COLUMNS: [&str; 7] = [
    "program",
    "name",
    "node",
    "state",
    "attach_type",
    "attached",
    "id",
];

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn status(arguments: &StatusArgs) -> Result<Exit, Failure> {
    let answer = Client::new(&arguments.api)?.get("/v1/status", &[]).await?;
    match arguments.output.format {
        Format::Json => json(&answer)?,
        Format::Table => outline(&answer, colourful())
            .iter()
            .try_for_each(|text| line(text))?,
    }
    Ok(Exit::Done)
}

/// Everything in `value`, whatever the agent's version has to tell: scalars aligned, objects as sections, lists of
/// objects as columns.
fn outline(value: &Value, colour: bool) -> Vec<String> {
    let mut lines = Vec::new();
    section(value, 0, colour, &mut lines);
    lines
}

fn section(value: &Value, depth: usize, colour: bool, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    let Some(object) = value.as_object() else {
        lines.push(format!("{indent}{}", plain(value)));
        return;
    };
    let simple = |value: &Value| match value {
        Value::Object(object) => object.is_empty(),
        Value::Array(items) => !items.iter().any(Value::is_object),
        _ => true,
    };
    let words = |key: &str| key.replace('_', " ");
    let (mut scalars, mut sections): (Vec<_>, Vec<_>) = object.iter().partition(|(_, value)| simple(value));
    scalars.sort_by_key(|(key, _)| rank(&FIRST, key));
    sections.sort_by_key(|(key, _)| rank(&SECTIONS, key));
    let width = scalars
        .iter()
        .map(|(key, _)| key.chars().count())
        .max()
        .unwrap_or_default();
    for (key, value) in scalars {
        let text = if value.is_object() {
            "-".to_owned()
        } else {
            plain(value)
        };
        let tone = match (key.as_str(), value) {
            ("ready" | "attached" | "healthy", Value::Bool(true)) => Tone::Good,
            ("ready" | "attached" | "healthy", Value::Bool(false)) | ("not_ready", Value::String(_)) => {
                Tone::Bad
            }
            (name, Value::String(_)) if name.contains("error") => Tone::Bad,
            _ => Tone::Plain,
        };
        lines.push(format!(
            "{indent}{:width$}  {}",
            words(key),
            toned(&text, tone, colour)
        ));
    }
    for (key, value) in sections {
        if depth == 0 {
            lines.push(String::new());
        }
        lines.push(format!("{indent}{}", toned(&words(key), Tone::Faint, colour)));
        match value {
            Value::Array(items) => {
                lines.extend(list(items).into_iter().map(|text| format!("{indent}  {text}")));
            }
            other => section(other, depth + 1, colour, lines),
        }
    }
}

/// The place of `key` among those that have one; the others follow as they come.
fn rank(order: &[&str], key: &str) -> usize {
    order
        .iter()
        .position(|known| *known == key)
        .unwrap_or(order.len())
}

/// A list of objects. Problems are lines as everywhere; what has a cgroup is listed by cgroup, for those names are long.
fn list(items: &[Value]) -> Vec<String> {
    let problems = items
        .iter()
        .map(|item| serde_json::from_value::<Problem>(item.clone()).ok());
    if let Some(problems) = problems.collect::<Option<Vec<_>>>() {
        return problems.iter().map(ToString::to_string).collect();
    }
    let mut groups: Vec<(&str, Vec<Value>)> = Vec::new();
    for item in items {
        let Some(cgroup) = item["cgroup"].as_str() else {
            return columns(items);
        };
        let mut rest = item.clone();
        if let Some(object) = rest.as_object_mut() {
            object.remove("cgroup");
        }
        match groups.iter_mut().find(|(known, _)| *known == cgroup) {
            Some((_, group)) => group.push(rest),
            None => groups.push((cgroup, vec![rest])),
        }
    }
    groups
        .iter()
        .flat_map(|(cgroup, group)| {
            let rows = columns(group).into_iter().map(|text| format!("  {text}"));
            std::iter::once(format!("on {cgroup}")).chain(rows)
        })
        .collect()
}

/// Objects below each other, their keys as header.
fn columns(items: &[Value]) -> Vec<String> {
    let mut keys: Vec<&String> = Vec::new();
    for key in items
        .iter()
        .filter_map(Value::as_object)
        .flat_map(|object| object.keys())
    {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_by_key(|key| rank(&COLUMNS, key));
    let header = keys
        .iter()
        .map(|key| key.replace('_', " ").to_uppercase())
        .collect();
    let cells = items.iter().map(|item| {
        keys.iter()
            .map(|key| plain(&item[key.as_str()]))
            .collect::<Vec<_>>()
    });
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(cells).collect();
    let widths: Vec<usize> = (0..keys.len())
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or_default()
        })
        .collect();
    let join = |row: &Vec<String>| {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(join).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whatever_the_agent_tells_is_shown() {
        let answer = json!({
            "ready": true,
            "policy": {"revision": 7, "digest": "ab", "error": null},
            "hooks": [{"name": "connect4", "attached": true}, {"name": "sock_ops", "attached": false}],
            "modes": [],
        });
        assert_eq!(
            outline(&answer, false).join("\n"),
            "ready  true\nmodes  -\n\npolicy\n  digest    ab\n  error     -\n  revision  7\n\n\
             hooks\n  NAME      ATTACHED\n  connect4  true\n  sock_ops  false"
        );
        assert!(outline(&answer, true)[0].contains("\x1b[32mtrue"));
        assert_eq!(outline(&json!("x"), false), ["x"]);
    }

    #[test]
    fn an_operator_reads_it_on_eighty_columns() {
        let hook = |program: &str, cgroup: &str| {
            json!({
                "program": program, "attach_type": "cgroup_inet_sock_release", "attached": true,
                "cgroup": cgroup, "program_id": 4_000_000, "link_id": 4_000_000,
            })
        };
        let long = "/sys/fs/cgroup/unified/kubepods.slice/kubepods-burstable.slice/a-rather-long-name.slice";
        let answer = json!({
            "ready": false, "not_ready": "waiting", "hooks": [
                hook("zt_sock_release", long), hook("zt_refuse_out", "zt_refused"), hook("zt_sock_ops", long),
            ],
            "policy": {"errors": [
                {"file": "a.yaml", "line": 3, "column": 7, "field": "spec", "message": "wrong"},
            ]},
        });
        let lines = outline(&answer, false);
        assert_eq!(&lines[..2], ["ready      false", "not ready  waiting"]);
        assert!(
            lines.contains(&"    a.yaml:3:7: spec: wrong".to_owned()),
            "{lines:?}"
        );
        assert_eq!(lines.iter().filter(|line| line.contains(long)).count(), 1);
        for line in lines.iter().filter(|line| !line.contains(long)) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
