// SPDX-License-Identifier: Apache-2.0
//! Another stage: the document is changed where it is kept, if nobody has changed it meanwhile.

use serde_json::{Value, json};

use super::ahead::{Ahead, Stages};
use super::nodes;
use super::show::why;
use super::{AdvanceArgs, ChangeArgs, RollbackArgs};
use crate::cli::client::{Client, Sent};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{Format, line};
use crate::cli::table::plain;
use crate::problem::Problem;
use crate::yaml;

/// Where a rollout is, and where it can go.
struct Place<'a> {
    name: &'a str,
    etag: &'a str,
    stages: Vec<&'a str>,
    /// How many are reached.
    reached: usize,
}

impl<'a> Place<'a> {
    fn of(answer: &'a Value) -> Result<Self, Failure> {
        let rollout = &answer["rollout"];
        if rollout.is_null() {
            return Err(Failure::NotFound(
                "there is no rollout: write a document of kind EnforcementRollout".to_owned(),
            ));
        }
        let text = |field: &'static str| rollout[field].as_str().ok_or(Failure::Answer { field });
        let stages = rollout["stages"].as_array().into_iter().flatten();
        let stages: Vec<&str> = stages.filter_map(|stage| stage["name"].as_str()).collect();
        let reached = rollout["stage"]
            .as_str()
            .and_then(|name| stages.iter().position(|stage| *stage == name))
            .map_or(0, |place| place + 1);
        Ok(Self {
            name: text("name")?,
            etag: text("etag")?,
            stages,
            reached,
        })
    }

    /// How many stages are reached at the one of that name.
    fn at(&self, name: &str) -> Result<usize, Failure> {
        let place = self.stages.iter().position(|stage| *stage == name);
        place.map(|place| place + 1).ok_or_else(|| {
            let stages = self.stages.join(", ");
            Failure::Usage(format!(
                "no stage of {} is called `{name}`: they are {stages}",
                self.name
            ))
        })
    }

    /// Where the document is.
    fn path(&self) -> String {
        format!("/v1/policies/{}", self.name)
    }

    fn stage(&self, reached: usize) -> Option<&'a str> {
        self.stages.get(reached.checked_sub(1)?).copied()
    }
}

pub(super) async fn advance(arguments: &AdvanceArgs) -> Result<Exit, Failure> {
    let client = Client::new(&arguments.common.api)?;
    let answer = super::status(&client).await?;
    let place = Place::of(&answer)?;
    let to = match &arguments.to {
        Some(name) => place.at(name)?,
        None => place.reached + 1,
    };
    if to > place.stages.len() {
        let last = place.stage(place.reached).unwrap_or_default();
        return Err(Failure::NotFound(format!(
            "`{last}` is the last stage of {}",
            place.name
        )));
    }
    if to <= place.reached {
        return Err(Failure::Usage(format!(
            "stage `{}` has been reached: `zt-agent rollout rollback --to` goes back to it",
            place.stage(to).unwrap_or_default()
        )));
    }
    let policy = client.get(&place.path(), &[]).await?;
    let stages = Stages::of(&policy["document"], place.reached, to);
    if !arguments.force {
        is_fit(&answer)?;
        stages.one_at_a_time()?;
        stages.select_somebody(&answer)?;
    }
    let ahead = Ahead::of(&client, &answer, &stages).await;
    change(&client, &place, (policy, to), &arguments.common, Some(&ahead)).await
}

/// An error where the node or one that follows it stopped, one is silent, or a further stage would not come into force: it would later,
/// whenever somebody mends a document that has nothing to do with it.
fn is_fit(answer: &Value) -> Result<(), Failure> {
    let stopped = &answer["rollout"]["stopped"];
    if !stopped.is_null() {
        return Err(Failure::Busy(format!(
            "this node stopped at `{}` ({}) {}: see `zt-agent rollout status`",
            plain(&stopped["stage"]),
            plain(&stopped["action"]),
            why(stopped),
        )));
    }
    nodes::none_stopped(answer)?;
    nodes::none_silent(answer)?;
    let errors = problems(answer);
    if errors.is_empty() {
        return Ok(());
    }
    Err(Failure::Busy(format!(
        "a further stage would come into force only when these are mended or removed, and nothing was changed:\n{}",
        errors.join("\n")
    )))
}

/// What is wrong with documents, by an answer.
fn problems(answer: &Value) -> Vec<String> {
    let errors = answer["errors"].as_array().into_iter().flatten();
    let told = errors.map(|error| {
        let problem = serde_json::from_value::<Problem>(error.clone());
        problem.map_or_else(|_| error.to_string(), |problem| problem.to_string())
    });
    told.collect()
}

pub(super) async fn rollback(arguments: &RollbackArgs) -> Result<Exit, Failure> {
    let client = Client::new(&arguments.common.api)?;
    let answer = super::status(&client).await?;
    let place = Place::of(&answer)?;
    if place.reached == 0 {
        return Err(Failure::NotFound(format!(
            "no stage of {} is reached",
            place.name
        )));
    }
    let to = match &arguments.to {
        _ if arguments.all => 0,
        Some(name) => place.at(name)?,
        None => place.reached - 1,
    };
    if to >= place.reached {
        return Err(Failure::Usage(format!(
            "stage `{}` is not one to go back to: `{}` is reached",
            place.stage(to).unwrap_or_default(),
            place.stage(place.reached).unwrap_or_default()
        )));
    }
    let policy = client.get(&place.path(), &[]).await?;
    change(&client, &place, (policy, to), &arguments.common, None).await
}

/// Has the first `to` stages be reached, of `policy`, the rollout as it is kept. `ahead`: what was known of that before.
async fn change(
    client: &Client,
    place: &Place<'_>,
    (mut policy, to): (Value, usize),
    arguments: &ChangeArgs,
    ahead: Option<&Ahead>,
) -> Result<Exit, Failure> {
    let document = &mut policy["document"];
    if let Some(spec) = document["spec"].as_object_mut() {
        match place.stage(to) {
            Some(name) => spec.insert("stage".to_owned(), name.into()),
            None => spec.remove("stage"),
        };
    }
    let text = yaml::write(document).map_err(|error| Failure::Io(std::io::Error::other(error)))?;
    let query = if arguments.dry_run { "?dry_run=true" } else { "" };
    let sent = Sent {
        method: hyper::Method::PUT,
        target: format!("{}{query}", place.path()),
        // Of what was looked at: a stage that somebody else has reached meanwhile is not passed over.
        if_match: Some(format!("\"{}\"", place.etag)),
        if_none_match: None,
        document: Some(text),
    };
    let answer = client.send_document(sent).await?;
    let (from, to) = (place.stage(place.reached), place.stage(to));
    let in_force = answer["in_force"] != json!(false);
    let errors = problems(&answer);
    match arguments.output.format {
        Format::Json => {
            let mut said = json!({
                "rollout": place.name,
                "from": from,
                "to": to,
                "dry_run": arguments.dry_run,
                "in_force": in_force && !arguments.dry_run,
                "revision": answer["revision"],
                "etag": answer["etag"],
                "errors": answer["errors"].as_array().map_or(&[][..], Vec::as_slice),
            });
            if let (Some(fields), Some(Value::Object(more))) = (said.as_object_mut(), ahead.map(Ahead::json))
            {
                fields.extend(more);
            }
            crate::cli::output::json(&said)?;
        }
        Format::Table => {
            let (from, to) = (from.unwrap_or("-"), to.unwrap_or("-"));
            let said = if arguments.dry_run {
                "would be the change; nothing was changed".to_owned()
            } else if in_force {
                format!("in force at revision {}", plain(&answer["revision"]))
            } else {
                "changed, and not in force".to_owned()
            };
            line(&format!("{}: {from} -> {to}: {said}", place.name))?;
            if !errors.is_empty() {
                line(if in_force {
                    "all else stays as it was in force until these are mended or removed:"
                } else {
                    "nothing comes into force until these are mended or removed:"
                })?;
            }
            for error in &errors {
                line(error)?;
            }
            if let Some(ahead) = ahead {
                ahead.show()?;
            }
        }
    }
    Ok(if in_force { Exit::Done } else { Exit::Failed })
}
