// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy apply`, `diff`, `show` and `delete`: policies of a running agent.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::diff::DiffArgs;
use crate::cli::client::{ApiArgs, Client, ClientError, Sent};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Format, Output, line};
use crate::cli::table::plain;
use crate::policy::{RolloutChange, Statement};
use crate::problem::Problem;

/// Most bytes of a policy that are read.
const MAX_BYTES: u64 = 1 << 20;

/// Arguments of `policy apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// One policy, YAML or JSON; `-` for standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Only if the policy has this digest as its `ETag`; `none`: only if there is no such policy
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `policy show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    api: ApiArgs,
}

/// Arguments of `policy delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Its name
    name: String,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Only if the policy has this digest as its `ETag`
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn apply(arguments: &ApplyArgs) -> Result<Exit, Failure> {
    let (name, text) = read(&arguments.file)?;
    let sent = put(&name, &text, arguments.dry_run, arguments.if_match.as_deref());
    let answer = Client::new(&arguments.api)?.send_document(sent).await;
    let answer = answer.map_err(|error| place(error, &arguments.file))?;
    print(&answer, arguments.output.format)?;
    Ok(done(&answer))
}

/// `policy diff -f`: what the agent says of one policy.
pub(super) async fn diff(arguments: &DiffArgs, file: &Path) -> Result<Exit, Failure> {
    let (name, text) = read(file)?;
    let answer = Client::new(&arguments.api)?
        .send_document(put(&name, &text, true, None))
        .await;
    let answer = answer.map_err(|error| place(error, file))?;
    print(&answer, arguments.output.format)?;
    let changes = answer["diff"]["policies"]
        .as_array()
        .is_some_and(|changes| !changes.is_empty());
    Ok(if arguments.fail && changes {
        Exit::Failed
    } else {
        Exit::Done
    })
}

pub(super) async fn show(arguments: &ShowArgs) -> Result<Exit, Failure> {
    let path = format!("/v1/policies/{}", checked(&arguments.name)?);
    let answer = Client::new(&arguments.api)?.get(&path, &[]).await?;
    crate::cli::output::json(&answer)?;
    Ok(Exit::Done)
}

pub(super) async fn delete(arguments: &DeleteArgs) -> Result<Exit, Failure> {
    let sent = Sent {
        method: hyper::Method::DELETE,
        target: target(checked(&arguments.name)?, arguments.dry_run),
        if_match: arguments.if_match.as_deref().map(quoted),
        if_none_match: None,
        document: None,
    };
    let answer = Client::new(&arguments.api)?.send_document(sent).await?;
    print(&answer, arguments.output.format)?;
    Ok(done(&answer))
}

/// A change that is made and not in force has not done what was asked for.
fn done(answer: &Value) -> Exit {
    if answer["in_force"] == json!(false) {
        Exit::Failed
    } else {
        Exit::Done
    }
}

fn put(name: &str, text: &str, dry_run: bool, if_match: Option<&str>) -> Sent {
    let create = if_match == Some("none");
    Sent {
        method: hyper::Method::PUT,
        target: target(name, dry_run),
        if_match: if_match.filter(|_| !create).map(quoted),
        if_none_match: create.then(|| "*".to_owned()),
        document: Some(text.to_owned()),
    }
}

fn target(name: &str, dry_run: bool) -> String {
    let query = if dry_run { "?dry_run=true" } else { "" };
    format!("/v1/policies/{name}{query}")
}

fn quoted(etag: &str) -> String {
    format!("\"{}\"", etag.trim_matches('"'))
}

fn checked(name: &str) -> Result<&str, Failure> {
    if crate::policy::is_policy_name(name) {
        Ok(name)
    } else {
        Err(Failure::Usage(format!("`{name}` is not the name of a policy")))
    }
}

/// The name in a document, and its text.
fn read(path: &Path) -> Result<(String, String), Failure> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text)?;
    } else {
        let failed = |error| Failure::Usage(format!("{}: {error}", path.display()));
        fs::File::open(path)
            .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
            .map_err(failed)?;
    }
    // The agent says what is wrong with the document; here only its name is looked for.
    let shown = path.display().to_string();
    let node = crate::yaml::parse(&shown, &text).map_err(|problem| Failure::Policy(vec![problem]))?;
    let name = node.at(&["metadata", "name"]).and_then(|node| match &node.value {
        crate::yaml::Value::Text(name) => Some(name.clone()),
        _ => None,
    });
    let name =
        name.ok_or_else(|| Failure::Usage(format!("{shown} is no policy: it has no metadata.name")))?;
    Ok((checked(&name)?.to_owned(), text))
}

/// Problems in the document are in the file that it was read from.
fn place(error: ClientError, path: &Path) -> Failure {
    match error {
        ClientError::Refused {
            status,
            code,
            message,
        } => {
            let message = message.replace("\nbody:", &format!("\n{}:", path.display()));
            let invalid = code.as_deref() == Some("invalid_policy");
            let error = ClientError::Refused {
                status,
                code,
                message,
            };
            if invalid {
                Failure::Invalid(error)
            } else {
                error.into()
            }
        }
        other => other.into(),
    }
}

fn print(answer: &Value, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        crate::cli::output::json(answer)?;
        return Ok(());
    }
    let diff = &answer["diff"];
    for (sign, field) in [("-", "removed"), ("+", "added")] {
        for statement in diff[field].as_array().into_iter().flatten() {
            let text = serde_json::from_value::<Statement>(statement.clone())
                .map_or_else(|_| statement.to_string(), |statement| statement.to_string());
            line(&format!("{sign} {text}"))?;
        }
    }
    if let Some(change) = diff["default_action"].as_object() {
        let of = |name: &str| change.get(name).map(plain).unwrap_or_default();
        line(&format!("default {} -> {}", of("from"), of("to")))?;
    }
    for change in diff["rollout"].as_array().into_iter().flatten() {
        let text = serde_json::from_value::<RolloutChange>(change.clone())
            .map_or_else(|_| change.to_string(), |change| change.to_string());
        line(&format!("rollout {text}"))?;
    }
    let name = plain(&answer["name"]);
    let said = match (
        answer["dry_run"] == json!(true),
        diff["policies"].as_array().is_some_and(Vec::is_empty),
    ) {
        (_, true) => format!("{name}: nothing changes"),
        (true, false) => format!("{name}: this would change; nothing was changed"),
        (false, false) if answer["in_force"] == json!(false) => format!("{name}: changed, and not in force"),
        (false, false) => format!("{name}: in force at revision {}", plain(&answer["revision"])),
    };
    line(&said)?;
    let errors = answer["errors"].as_array().map_or(&[][..], Vec::as_slice);
    if !errors.is_empty() {
        line(if answer["in_force"] == json!(true) {
            "all else stays as it was in force until these are mended or removed:"
        } else {
            "nothing comes into force until these are mended or removed:"
        })?;
    }
    for error in errors {
        let problem = serde_json::from_value::<Problem>(error.clone());
        line(&problem.map_or_else(|_| error.to_string(), |problem| problem.to_string()))?;
    }
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        line(&format!("warning: {}", plain(warning)))?;
    }
    Ok(())
}
