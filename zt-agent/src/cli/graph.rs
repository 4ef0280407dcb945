// SPDX-License-Identifier: Apache-2.0
//! `zt-agent graph`.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::client::{ApiArgs, Client};
use super::exit::{Exit, Failure};
use super::output::{Tone, json, line};
use super::table::{Cell, Table, plain, printable};
use super::when::When;

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum GraphFormat {
    /// Aligned columns for people
    Table,
    /// JSON for programs
    Json,
    /// For Graphviz: `zt-agent graph -o dot | dot -Tsvg`
    Dot,
    /// For Mermaid, as in Markdown
    Mermaid,
}

/// Arguments of `graph`.
#[derive(Debug, Args)]
pub struct GraphArgs {
    /// Connections from the hour of this time on: RFC 3339, or how long ago (30m, 2h, 7d)
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Connections of before this time, up to the full hour
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
    /// With one end in this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
    /// How to draw
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    format: GraphFormat,
}

pub(super) async fn graph(arguments: &GraphArgs) -> Result<Exit, Failure> {
    let parameters = [
        ("since", arguments.since.map(When::rfc3339)),
        ("until", arguments.until.map(When::rfc3339)),
        ("namespace", arguments.namespace.clone()),
    ];
    let parameters: Vec<_> = parameters
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    let answer = Client::new(&arguments.api)?.get("/v1/graph", &parameters).await?;
    let edges = answer["edges"]
        .as_array()
        .ok_or(Failure::Answer { field: "edges" })?;
    match arguments.format {
        GraphFormat::Json => json(&answer)?,
        GraphFormat::Table => table(edges).print("nobody has talked to anybody yet")?,
        GraphFormat::Dot => line(&dot(edges))?,
        GraphFormat::Mermaid => line(&mermaid(edges))?,
    }
    Ok(Exit::Done)
}

fn count(edge: &Value, field: &str) -> u64 {
    edge[field].as_u64().unwrap_or_default()
}

fn table(edges: &[Value]) -> Table {
    let mut table = Table::new(&[
        "SOURCE",
        "DESTINATION",
        "PORT",
        "ALLOWED",
        "DENIED",
        "WOULD DENY",
        "LAST SEEN",
    ]);
    let counted = |edge: &Value, field: &str, tone: Tone| {
        let count = count(edge, field);
        Cell::toned(count.to_string(), if count > 0 { tone } else { Tone::Faint })
    };
    for edge in edges {
        table.row([
            plain(&edge["source"]).into(),
            plain(&edge["destination"]).into(),
            port(edge).into(),
            counted(edge, "allowed", Tone::Good),
            counted(edge, "denied", Tone::Bad),
            counted(edge, "would_deny", Tone::Caution),
            plain(&edge["last_seen"]).into(),
        ]);
    }
    table
}

fn port(edge: &Value) -> String {
    format!("{}/{}", plain(&edge["port"]), plain(&edge["protocol"]))
}

/// How an edge looks: refused, would be refused, or allowed, the worst first.
fn worst(edge: &Value) -> (&'static str, &'static str) {
    if count(edge, "denied") > 0 {
        ("red", "denied")
    } else if count(edge, "would_deny") > 0 {
        ("orange", "would be denied")
    } else {
        ("darkgreen", "allowed")
    }
}

/// The part of a SPIFFE ID that tells parties apart in a drawing: without scheme and trust domain.
fn short(id: &str) -> String {
    let path = id
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
        .map_or(id, |(_, path)| path);
    printable(path)
}

fn nodes(edges: &[Value]) -> BTreeMap<&str, usize> {
    let ends = edges
        .iter()
        .flat_map(|edge| [edge["source"].as_str(), edge["destination"].as_str()]);
    let mut nodes: BTreeMap<&str, usize> = ends.flatten().map(|id| (id, 0)).collect();
    nodes
        .values_mut()
        .enumerate()
        .for_each(|(number, node)| *node = number);
    nodes
}

fn dot(edges: &[Value]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = String::from("digraph zt {\n  rankdir=LR;\n  node [shape=box, style=rounded];\n");
    // Writing to a String cannot fail.
    for id in nodes(edges).keys() {
        let _ = writeln!(
            text,
            "  {} [label={}];",
            quoted(&printable(id)),
            quoted(&short(id))
        );
    }
    for edge in edges {
        let (source, destination) = (plain(&edge["source"]), plain(&edge["destination"]));
        let (colour, meaning) = worst(edge);
        let _ = writeln!(
            text,
            "  {} -> {} [label={}, color={colour}, tooltip=\"{meaning}\"];",
            quoted(&source),
            quoted(&destination),
            quoted(&port(edge)),
        );
    }
    text.push('}');
    text
}

/// Text between quotes, as Mermaid reads it: whatever could end it, or be taken for Markdown, HTML or an entity, by its number.
fn escaped(text: &str) -> String {
    let plain = |character: char| character.is_alphanumeric() || " -_./:@~".contains(character);
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if plain(character) {
            escaped.push(character);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "#{};", u32::from(character));
        }
    }
    escaped
}

fn mermaid(edges: &[Value]) -> String {
    let nodes = nodes(edges);
    let mut text = String::from("flowchart LR");
    // Writing to a String cannot fail.
    for (id, number) in &nodes {
        let _ = write!(text, "\n  n{number}[\"{}\"]", escaped(&short(id)));
    }
    let number = |id: &Value| {
        id.as_str()
            .and_then(|id| nodes.get(id))
            .copied()
            .unwrap_or_default()
    };
    for edge in edges {
        let arrow = if worst(edge).1 == "allowed" { "-->" } else { "-.->" };
        let note = match worst(edge).1 {
            "allowed" => String::new(),
            other => format!(" {other}"),
        };
        let (source, destination) = (number(&edge["source"]), number(&edge["destination"]));
        let _ = write!(
            text,
            "\n  n{source} {arrow}|\"{}{note}\"| n{destination}",
            port(edge)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edges() -> Vec<Value> {
        vec![
            json!({"source": "spiffe://hanzo.ai/k8s/iam", "destination": "spiffe://hanzo.ai/k8s/postgres", "protocol": "TCP",
                   "port": 5432, "allowed": 3, "denied": 0, "would_deny": 0, "last_seen": "2026-01-01T00:00:00Z"}),
            json!({"source": "spiffe://hanzo.ai/k8s/iam", "destination": "cidr:\"x", "protocol": "UDP",
                   "port": 53, "allowed": 0, "denied": 1, "would_deny": 0, "last_seen": null}),
        ]
    }

    #[test]
    fn drawings_name_the_worst_of_an_edge() {
        assert_eq!(
            dot(&edges()),
            "digraph zt {\n  rankdir=LR;\n  node [shape=box, style=rounded];\n  \
             \"cidr:\\\"x\" [label=\"cidr:\\\"x\"];\n  \
             \"spiffe://hanzo.ai/k8s/iam\" [label=\"k8s/iam\"];\n  \
             \"spiffe://hanzo.ai/k8s/postgres\" [label=\"k8s/postgres\"];\n  \
             \"spiffe://hanzo.ai/k8s/iam\" -> \"spiffe://hanzo.ai/k8s/postgres\" [label=\"5432/TCP\", color=darkgreen, tooltip=\"allowed\"];\n  \
             \"spiffe://hanzo.ai/k8s/iam\" -> \"cidr:\\\"x\" [label=\"53/UDP\", color=red, tooltip=\"denied\"];\n}"
        );
        assert_eq!(
            mermaid(&edges()),
            "flowchart LR\n  n0[\"cidr:#34;x\"]\n  n1[\"k8s/iam\"]\n  n2[\"k8s/postgres\"]\n  \
             n1 -->|\"5432/TCP\"| n2\n  n1 -.->|\"53/UDP denied\"| n0"
        );
        assert_eq!(
            escaped("a\"] --> b[`**x**` <b> &amp; #35; ;%%\\"),
            "a#34;#93; --#62; b#91;#96;#42;#42;x#42;#42;#96; #60;b#62; #38;amp#59; #35;35#59; #59;#37;#37;#92;"
        );
        assert!(
            table(&edges())
                .render(false)
                .lines()
                .nth(2)
                .is_some_and(|row| row.contains("53/UDP    0        1"))
        );
    }
}
