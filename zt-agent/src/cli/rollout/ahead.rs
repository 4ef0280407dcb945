// SPDX-License-Identifier: Apache-2.0
//! What is known before a rollout goes on: limits that would be passed over, stages that select nobody, and what it refuses of the
//! traffic that was recorded.

mod refused;

use serde_json::{Value, json};

use crate::cli::client::{Client, ClientError};
use crate::cli::exit::Failure;
use crate::cli::output::line;
use crate::cli::table::plain;
use crate::spiffe_id::{Pattern, SpiffeId};

/// As many different connections are listed.
const SHOWN: usize = 3;

/// The stages of a rollout up to the one that is to be reached.
#[derive(Debug)]
pub(super) struct Stages {
    all: Vec<Said>,
    /// How many of them are reached already.
    reached: usize,
    /// Whom no stage names enforces already.
    enforces_others: bool,
}

/// What a stage says.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is said of its own")]
struct Said {
    name: String,
    patterns: Vec<Pattern>,
    enforces: bool,
    /// It takes a part of those whom it selects.
    is_canary: bool,
    is_limited: bool,
    /// It is about everybody whom no stage names.
    requires_policy: bool,
}

/// What is known of a step, for the one who takes it.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Stages that it would reach and that select no workload of the node that is asked.
    nobody: Vec<String>,
    /// Those of which it is not known that they select anybody.
    untold: Vec<String>,
    /// What it refuses of what was recorded, or why that is not known.
    refused: Result<Value, ClientError>,
    /// It takes a part of them only, nobody here knows which.
    is_canary: bool,
}

impl Stages {
    /// Those of a rollout's `document` of which `to` are to be reached, and `reached` are.
    pub(super) fn of(document: &Value, reached: usize, to: usize) -> Self {
        let spec = &document["spec"];
        let stages = spec["stages"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            all: stages.iter().take(to).map(Said::of).collect(),
            reached,
            enforces_others: spec["defaultMode"] == "enforce",
        }
    }

    fn next(&self) -> &[Said] {
        self.all.get(self.reached..).unwrap_or_default()
    }

    /// An error where several are to be reached at once and one of these has a limit: whom the others enforce would not count.
    pub(super) fn one_at_a_time(&self) -> Result<(), Failure> {
        let next = self.next();
        let (Some(limited), Some(last)) = (next.iter().find(|stage| stage.is_limited), next.last()) else {
            return Ok(());
        };
        if next.len() < 2 {
            return Ok(());
        }
        Err(Failure::Usage(format!(
            "stage `{}` is {} stages on, and `{}` has a limit (`onDenials`), which looks at those whom the last of them newly enforces and goes back by that one alone: advance stage by stage, or with --force",
            last.name,
            next.len(),
            limited.name
        )))
    }

    /// Those of a `status` that are to be reached.
    fn shown<'v>(&self, status: &'v Value) -> impl Iterator<Item = &'v Value> + use<'v> {
        let shown = status["rollout"]["stages"].as_array();
        let shown = shown.map_or(&[][..], Vec::as_slice);
        shown.iter().take(self.all.len()).skip(self.reached)
    }

    /// An error where one that is to be reached selects nobody: it is misspelled, or whom it is about is nowhere that is known of.
    pub(super) fn select_somebody(&self, status: &Value) -> Result<(), Failure> {
        let Some(nobody) = self.shown(status).find(|stage| stage["selects_anybody"] == false) else {
            return Ok(());
        };
        let name = plain(&nobody["name"]);
        let own = self.all.iter().find(|stage| stage.name == name);
        let patterns = own.map_or(&[][..], |stage| stage.patterns.as_slice());
        let mut identities: Vec<String> = patterns.iter().take(SHOWN).map(ToString::to_string).collect();
        if patterns.len() > SHOWN {
            identities.push(format!("{} more", patterns.len() - SHOWN));
        }
        Err(Failure::NotFound(format!(
            "stage `{name}` selects nobody, and nothing was changed: of all workloads and policies that this agent knows none is {}; see `zt-agent identity list`, or go on with --force",
            identities.join(" or ")
        )))
    }

    /// Whether the step, or a part of it, has one of a connection's ends enforce, and neither does by the stages before.
    fn newly_judges(&self, ends: &[SpiffeId]) -> bool {
        let does = |id: &SpiffeId| self.enforces(self.reached, id, false);
        self.will_judge(ends) && !ends.iter().any(does)
    }

    /// Whether one of a connection's ends enforces when the step, or a part of it, is made.
    fn will_judge(&self, ends: &[SpiffeId]) -> bool {
        ends.iter().any(|id| self.enforces(self.all.len(), id, true))
    }

    /// Whether they enforce at one of the stages. Those of whom a canary takes a part do where that is `supposed`.
    fn enforces(&self, reached: usize, id: &SpiffeId, supposed: bool) -> bool {
        let stages = self.all.get(..reached).unwrap_or_default();
        let decides = |stage: &&Said| {
            let selects = stage.patterns.iter().any(|pattern| pattern.matches(id));
            selects && (!stage.is_canary || stage.enforces == supposed)
        };
        let requires_policy = stages.last().is_some_and(|stage| stage.requires_policy);
        let named = stages.iter().rev().find(decides);
        named.map_or(requires_policy || self.enforces_others, |stage| stage.enforces)
    }
}

impl Said {
    fn of(stage: &Value) -> Self {
        let identities = stage["identities"].as_array().into_iter().flatten();
        let patterns = identities.filter_map(|text| Pattern::parse(text.as_str()?).ok());
        Self {
            name: plain(&stage["name"]),
            patterns: patterns.collect(),
            enforces: stage["mode"] != "observe",
            is_canary: stage["canary"]["percent"]
                .as_u64()
                .is_some_and(|percent| percent < 100),
            is_limited: !stage["onDenials"].is_null(),
            requires_policy: stage["requirePolicy"] == true,
        }
    }
}

impl Ahead {
    /// Asks the agent about the step. `status` is its answer of where the rollout stands.
    pub(super) async fn of(client: &Client, status: &Value, stages: &Stages) -> Self {
        let named = |is_meant: fn(&Value) -> bool| {
            let next = stages.shown(status).filter(|stage| is_meant(stage));
            next.map(|stage| plain(&stage["name"])).collect::<Vec<String>>()
        };
        Self {
            nobody: named(|stage| stage["selected"] == 0),
            untold: named(is_untold),
            refused: refused::ask(client, stages).await,
            is_canary: stages.next().iter().any(|stage| stage.is_canary),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "selects_nobody_here": self.nobody,
            "selects_nobody_known": self.untold,
            "would_refuse": self.refused.as_ref().ok(),
        })
    }

    /// For people.
    pub(super) fn show(&self) -> Result<(), Failure> {
        for name in &self.nobody {
            line(&format!(
                "stage {name} selects no workload of this node: is it spelled as in `zt-agent identity list`?"
            ))?;
        }
        for name in &self.untold {
            line(&format!(
                "stage {name} may select nobody: a policy engine knows whom policies name and what nodes say, and finds nobody there; is it spelled as in `zt-agent identity list` of a node?"
            ))?;
        }
        match &self.refused {
            Ok(refused) => refused::show(refused, self.is_canary),
            Err(error) => {
                line(&format!(
                    "what it refuses of the last day's traffic is not known: {error}"
                ))?;
                Ok(())
            }
        }
    }
}

/// Whether a policy engine says of a stage that it may select nobody, or none that is known of. An older one says nothing of that.
fn is_untold(stage: &Value) -> bool {
    let said = stage.get("selects_anybody");
    stage["selected"].is_null() && said.is_some_and(|said| *said != true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> String {
        format!("spiffe://hanzo.ai/c/{name}")
    }

    fn stages(reached: usize, to: usize) -> Stages {
        let document = json!({ "spec": { "stages": [
            { "name": "web", "identities": [id("web")] },
            { "name": "few", "identities": [id("*")], "canary": { "percent": 10 }, "onDenials": { "perMinute": 1, "action": "hold" } },
            { "name": "most", "identities": [id("*")] },
            { "name": "spared", "identities": [id("dns")], "mode": "observe" },
            { "name": "all", "requirePolicy": true },
        ] } });
        Stages::of(&document, reached, to)
    }

    #[test]
    fn a_step_newly_judges_whom_it_names_and_nobody_who_was_before() {
        for (reached, to, wanted) in [
            (0, 1, vec!["web"]),
            (1, 2, vec!["dns", "iam"]),
            // A canary may have taken them, or not.
            (2, 3, vec!["dns", "iam"]),
            (3, 4, vec![]),
            (0, 3, vec!["dns", "iam", "web"]),
            (0, 4, vec!["iam", "web"]),
            (4, 5, vec!["other"]),
            (0, 5, vec!["iam", "other", "web"]),
        ] {
            let stages = stages(reached, to);
            let newly = |name: &&str| {
                let text = if *name == "other" {
                    "spiffe://hanzo.ai/other".to_owned()
                } else {
                    id(name)
                };
                stages.newly_judges(&[SpiffeId::parse(&text).expect("literal")])
            };
            let found: Vec<&str> = ["dns", "iam", "other", "web"].into_iter().filter(newly).collect();
            assert_eq!(found, wanted, "{reached} to {to}");
        }
        let [web, iam] = ["web", "iam"].map(|name| SpiffeId::parse(&id(name)).expect("literal"));
        assert!(
            !stages(1, 3).newly_judges(&[iam.clone(), web.clone()]),
            "one end did before"
        );
        assert!(stages(0, 1).newly_judges(&[iam, web]));
    }

    #[test]
    fn a_limit_is_not_passed_over() {
        for (reached, to) in [(0, 2), (1, 3), (0, 5)] {
            let error = stages(reached, to)
                .one_at_a_time()
                .expect_err("it is passed over");
            let text = error.to_string();
            assert!(
                text.contains("`few` has a limit") && text.contains("--force"),
                "{text}"
            );
        }
        for (reached, to) in [(0, 1), (1, 2), (2, 5)] {
            assert!(stages(reached, to).one_at_a_time().is_ok(), "{reached} to {to}");
        }
    }

    #[test]
    fn an_engine_that_says_nothing_of_whom_a_stage_selects_is_not_one_that_cannot_tell() {
        for (stage, wanted) in [
            (json!({ "selected": null, "selects_anybody": null }), true),
            (json!({ "selected": null, "selects_anybody": false }), true),
            (json!({ "selected": null, "selects_anybody": true }), false),
            (json!({ "selected": null }), false),
            (json!({ "selected": 0, "selects_anybody": false }), false),
        ] {
            assert_eq!(is_untold(&stage), wanted, "{stage}");
        }
    }

    #[test]
    fn a_stage_that_selects_nobody_is_refused_where_that_is_known() {
        let status = |selects: [Value; 5]| {
            let shown = selects.map(|selects| json!({ "selects_anybody": selects }));
            let names = ["web", "few", "most", "spared", "all"].into_iter();
            let named = names.zip(shown).map(|(name, mut stage)| {
                stage["name"] = name.into();
                stage
            });
            json!({ "rollout": { "stages": named.collect::<Vec<Value>>() } })
        };
        let (yes, no, untold) = (json!(true), json!(false), Value::Null);
        // Of those to be reached, and of no others.
        let answer = status([no.clone(), yes.clone(), untold.clone(), no.clone(), yes.clone()]);
        assert!(stages(1, 3).select_somebody(&answer).is_ok());
        let error = stages(2, 5).select_somebody(&answer).expect_err("it is nobody");
        let text = error.to_string();
        assert!(
            text.contains("stage `spared` selects nobody")
                && text.contains("none is spiffe://hanzo.ai/c/dns;")
                && text.contains("--force"),
            "{text}"
        );
        assert_eq!(error.exit() as u8, 1);
        // One that an older agent shows says nothing of that.
        assert!(
            stages(0, 5)
                .select_somebody(&json!({ "rollout": { "stages": [{ "name": "web" }] } }))
                .is_ok()
        );
    }
}
