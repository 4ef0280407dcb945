// SPDX-License-Identifier: Apache-2.0
//! From a tree of YAML to the model of a rollout, noting all that is wrong.

use std::sync::Arc;

use super::redundant::{By, Stages};
use super::{
    CANARY_FIELDS, Canary, CanaryBy, DenialAction, EnforcementRollout, MOST_ATTEMPTS_PER_MINUTE,
    MOST_PER_MINUTE, ON_DENIALS_FIELDS, OnDenials, ROLLOUT_SPEC_FIELDS, STAGE_FIELDS, Stage, StageMode, soak,
};
use crate::policy::endpoint;
use crate::policy::envelope::{self, is_label, read_description};
use crate::policy::walk::{Path, Walk, hint};
use crate::spiffe_id::Pattern;
use crate::yaml::{Node, Value};

/// Reads a document whose `apiVersion` and `kind` have been looked at. `None` if it has problems, which `walk` then
/// holds.
pub(in crate::policy) fn read(
    walk: &mut Walk<'_>,
    node: &Node,
    trust_domain: &str,
) -> Option<EnforcementRollout> {
    let (head, spec) = envelope::read(walk, node, |walk, node, path, _| {
        read_spec(walk, node, path, trust_domain)
    })?;
    let rollout = EnforcementRollout {
        head,
        spec_description: spec.description,
        default_mode: spec.default_mode,
        stages: spec.stages,
        reached: spec.reached,
        digest: String::new(),
    };
    Some(rollout.sealed())
}

struct Spec {
    description: Option<String>,
    default_mode: Option<StageMode>,
    stages: Vec<Stage>,
    reached: usize,
}

fn read_spec(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>, trust_domain: &str) -> Option<Spec> {
    let fields = walk.fields(node, path, &ROLLOUT_SPEC_FIELDS)?;
    let description = read_description(walk, &fields, path);
    let default_mode = fields
        .get("defaultMode")
        .and_then(|node| read_mode(walk, node, &path.field("defaultMode")));
    let list = walk.required(&fields, node, path, "stages")?;
    let stages_path = path.field("stages");
    let nodes = walk.list(list, &stages_path)?;
    if nodes.is_empty() {
        walk.report(
            list,
            &stages_path,
            "the list is empty: a rollout has at least one stage",
        );
    }
    let before = walk.problems.len();
    let mut stages = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let last = index + 1 == nodes.len();
        stages.extend(read_stage(
            walk,
            node,
            &stages_path.index(index),
            trust_domain,
            last,
        ));
    }
    if walk.problems.len() == before {
        check_names(walk, nodes, &stages, &stages_path);
    }
    let reached = match fields.get("stage") {
        None => 0,
        Some(node) => {
            let path = path.field("stage");
            let name = walk.text(node, &path)?;
            let place = stages.iter().position(|stage| *stage.name == *name);
            if place.is_none() && walk.problems.len() == before {
                let names: Vec<&str> = stages.iter().map(|stage| &*stage.name).collect();
                walk.report(
                    node,
                    &path,
                    format!("no stage is called `{name}`{}", hint(name, &names)),
                );
            }
            place.map_or(0, |place| place + 1)
        }
    };
    let spec = Spec {
        description,
        default_mode,
        stages,
        reached,
    };
    if walk.problems.len() == before {
        check_work(walk, nodes, &spec, &stages_path);
    }
    Some(spec)
}

fn check_names(walk: &mut Walk<'_>, nodes: &[Node], stages: &[Stage], path: &Path<'_>) {
    for (index, (node, stage)) in nodes.iter().zip(stages).enumerate() {
        let earlier = stages
            .iter()
            .take(index)
            .position(|other| other.name == stage.name);
        if let Some(earlier) = earlier {
            let message = format!(
                "the name `{}` is taken by the stage in place {}",
                stage.name,
                earlier + 1
            );
            let at = node.at(&["name"]).unwrap_or(node);
            walk.report(at, &path.index(index).field("name"), message);
        }
    }
}

/// A stage that changes nothing for anybody is a mistake.
fn check_work(walk: &mut Walk<'_>, nodes: &[Node], spec: &Spec, path: &Path<'_>) {
    let rollout = Stages {
        default_mode: spec.default_mode,
        stages: &spec.stages,
    };
    for (index, (node, stage)) in nodes.iter().zip(&spec.stages).enumerate() {
        let Some(by) = rollout.repeated_by(index) else {
            continue;
        };
        let mode = stage.mode.name();
        let by = match by {
            By::Default => "`defaultMode`".to_owned(),
            By::Stage(name) => format!("stage `{name}`"),
        };
        let message = format!("selects nobody who is not in `{mode}` by {by} already: leave the stage out");
        let at = node.at(&["identities"]).unwrap_or(node);
        walk.report(at, &path.index(index).field("identities"), message);
    }
}

fn read_mode(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Option<StageMode> {
    walk.word(node, path, &StageMode::NAMES, StageMode::from_name)
}

fn read_stage(
    walk: &mut Walk<'_>,
    node: &Node,
    path: &Path<'_>,
    trust_domain: &str,
    last: bool,
) -> Option<Stage> {
    let fields = walk.fields(node, path, &STAGE_FIELDS)?;
    let description = read_description(walk, &fields, path);
    let name = walk
        .required(&fields, node, path, "name")
        .and_then(|node| read_name(walk, node, &path.field("name")));
    let require_policy = fields
        .get("requirePolicy")
        .and_then(|node| walk.boolean(node, &path.field("requirePolicy")))
        .unwrap_or_default();
    let identities = match fields.get("identities") {
        Some(node) => read_identities(walk, node, &path.field("identities"), trust_domain),
        None if require_policy => Vec::new(),
        None => {
            walk.required(&fields, node, path, "identities");
            Vec::new()
        }
    };
    let mode = fields
        .get("mode")
        .and_then(|node| read_mode(walk, node, &path.field("mode")));
    let canary = fields
        .get("canary")
        .and_then(|node| read_canary(walk, node, &path.field("canary")));
    let on_denials = fields
        .get("onDenials")
        .and_then(|node| read_on_denials(walk, node, &path.field("onDenials")));
    if require_policy {
        for name in ["identities", "mode", "canary"] {
            if let Some(node) = fields.get(name) {
                let message =
                    "with `requirePolicy` the stage is about everybody, who enforces: leave this out";
                walk.report(node, &path.field(name), message);
            }
        }
        if let Some(node) = fields.get("requirePolicy").filter(|_| !last) {
            let message = "only the last stage may require policy of everybody";
            walk.report(node, &path.field("requirePolicy"), message);
        }
    }
    if let (Some(StageMode::Observe), Some(node)) = (mode, fields.get("onDenials")) {
        let message = "the stage observes, so that nobody is newly refused: leave this out";
        walk.report(node, &path.field("onDenials"), message);
    }
    Some(Stage {
        name: name?,
        description,
        identities,
        mode: mode.unwrap_or_default(),
        canary,
        on_denials,
        require_policy,
    })
}

fn read_name(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Option<Arc<str>> {
    let name = walk.text(node, path)?;
    if !is_label(name) {
        let shown: String = name.chars().take(80).collect();
        let rule = "1 to 63 of a-z, 0-9 and `-`, neither first nor last a `-`";
        walk.report(
            node,
            path,
            format!("`{shown}` is not a name: a stage's name has {rule}"),
        );
        return None;
    }
    Some(Arc::from(name))
}

fn read_identities(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>, trust_domain: &str) -> Vec<Pattern> {
    let Some(nodes) = walk.list(node, path) else {
        return Vec::new();
    };
    if nodes.is_empty() {
        walk.report(node, path, "the list is empty, so that the stage selects nobody");
    }
    let mut patterns: Vec<Pattern> = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let path = path.index(index);
        let Some(text) = walk.text(node, &path) else {
            continue;
        };
        match endpoint::spiffe(text, trust_domain) {
            Ok(pattern) if patterns.contains(&pattern) => {
                walk.report(node, &path, format!("`{pattern}` stands here twice"));
            }
            Ok(pattern) => patterns.push(pattern),
            Err(message) => walk.report(node, &path, message),
        }
    }
    patterns
}

fn read_canary(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Option<Canary> {
    let fields = walk.fields(node, path, &CANARY_FIELDS)?;
    let by = fields
        .get("by")
        .and_then(|node| walk.word(node, &path.field("by"), &CanaryBy::NAMES, CanaryBy::from_name))
        .unwrap_or_default();
    let percent = walk.required(&fields, node, path, "percent")?;
    let path = path.field("percent");
    let number = read_number(walk, percent, &path)?;
    if let Ok(percent @ 1..=100) = u8::try_from(number) {
        return Some(Canary { percent, by });
    }
    walk.report(
        percent,
        &path,
        format!("{number} is out of range: a percentage is 1 to 100"),
    );
    None
}

fn read_on_denials(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Option<OnDenials> {
    let fields = walk.fields(node, path, &ON_DENIALS_FIELDS)?;
    let action = walk.required(&fields, node, path, "action").and_then(|node| {
        let path = path.field("action");
        walk.word(node, &path, &DenialAction::NAMES, DenialAction::from_name)
    });
    let soak = match fields.get("for") {
        None => Some(soak::DEFAULT),
        Some(node) => read_soak(walk, node, &path.field("for")),
    };
    let attempts_per_minute = match fields.get("attemptsPerMinute") {
        None => Some(None),
        Some(node) => {
            let path = path.field("attemptsPerMinute");
            read_rate(walk, node, &path, ("denials", MOST_ATTEMPTS_PER_MINUTE)).map(Some)
        }
    };
    let rate = walk.required(&fields, node, path, "perMinute")?;
    let path = path.field("perMinute");
    let per_minute = read_rate(walk, rate, &path, ("different connections", MOST_PER_MINUTE));
    Some(OnDenials {
        per_minute: per_minute?,
        attempts_per_minute: attempts_per_minute?,
        action: action?,
        soak: soak?,
    })
}

/// So many of these a minute, and no more than `most`.
fn read_rate(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>, (what, most): (&str, u64)) -> Option<u64> {
    let number = read_number(walk, node, path)?;
    let rate = u64::try_from(number).ok().filter(|rate| *rate <= most);
    if rate.is_none() {
        let message = format!("{number} is out of range: {what} a minute are 0 to {most}");
        walk.report(node, path, message);
    }
    rate
}

fn read_soak(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Option<u64> {
    let text = walk.text(node, path)?;
    let seconds = soak::seconds(text).filter(|seconds| (soak::LEAST..=soak::MOST).contains(seconds));
    if seconds.is_none() {
        let shown: String = text.chars().take(80).collect();
        let (least, most) = (soak::text(soak::LEAST), soak::text(soak::MOST));
        walk.report(
            node,
            path,
            format!("`{shown}` is out of range: a number and s, m, h or d, {least} to {most}"),
        );
    }
    seconds
}

fn read_number(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Option<i128> {
    if let Value::Integer(number) = node.value {
        return Some(number);
    }
    walk.report(
        node,
        path,
        format!("expected a whole number, found {}", node.value.describe()),
    );
    None
}
