// SPDX-License-Identifier: Apache-2.0
//! `zt-agent status`.

use clap::Args;
use serde_json::Value;

use super::client::{ApiArgs, Client};
use super::exit::{Exit, Failure};
use super::output::{Format, Output, Tone, colourful, json, line, toned};
use super::table::plain;

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
    let scalars: Vec<_> = object.iter().filter(|(_, value)| simple(value)).collect();
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
            ("ready" | "attached" | "healthy", Value::Bool(false)) => Tone::Bad,
            (name, Value::String(_)) if name.contains("error") => Tone::Bad,
            _ => Tone::Plain,
        };
        lines.push(format!(
            "{indent}{:width$}  {}",
            words(key),
            toned(&text, tone, colour)
        ));
    }
    for (key, value) in object.iter().filter(|(_, value)| !simple(value)) {
        if depth == 0 {
            lines.push(String::new());
        }
        lines.push(format!("{indent}{}", toned(&words(key), Tone::Faint, colour)));
        match value {
            Value::Array(items) => {
                lines.extend(columns(items).into_iter().map(|text| format!("{indent}  {text}")));
            }
            other => section(other, depth + 1, colour, lines),
        }
    }
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
            "modes  -\nready  true\n\nhooks\n  ATTACHED  NAME\n  true      connect4\n  false     sock_ops\n\n\
             policy\n  digest    ab\n  error     -\n  revision  7"
        );
        assert!(outline(&answer, true)[1].contains("\x1b[32mtrue"));
        assert_eq!(outline(&json!("x"), false), ["x"]);
    }
}
