// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy recommend`: a policy that allows what was recorded.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use serde_json::{Value, json};

use crate::cli::behind::ServicesArgs;
use crate::cli::client::ApiArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::offline::{self, SettingsArgs};
use crate::cli::output::{Format, Output, Tone, line};
use crate::cli::table::{Cell, Table, printable};
use crate::cli::traffic::{TrafficArgs, print_left_out, shown};
use crate::cli::trail::Progress;
use crate::policy::{self, PolicySet, RecommendError, Settings, Wishes};
use crate::spiffe_id::Pattern;
use crate::traffic::{self, Compared, Range, Recorded, advise};

/// Arguments of `policy recommend`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints one ServiceAccessPolicy: a rule for each source, the ports that were seen, and in comments how often and \
    when last. What policy refused (enforced) is not in it, unless --include-denied says so; what was only observed is. Addresses of \
    the world that a source reached are written one by one, up to 16 of them. A connection to a Service of several identities or ports \
    is allowed by rules about all of them, as the agent, or the file of --services, knows them now. \
    With --diff it prints what the policies of PATH, or those that the agent has in force, are missing, and which of their rules nothing \
    used.\n\n\
    Examples:\n  \
    zt-agent policy recommend --since 7d > recommended.yaml\n  \
    zt-agent policy recommend --since 7d --pattern 'spiffe://hanzo.ai/k8s/monitoring/*'\n  \
    zt-agent policy recommend --since 30d --diff            # against what is in force\n  \
    zt-agent policy recommend --since 30d --diff policies/\n  \
    zt-agent graph -o json | zt-agent policy recommend --traffic -\n\n\
    Exits with 1 where nothing is recorded, or nothing of it went through. Read what it prints before you put it in force: it allows what happened, wanted or not."
)]
pub struct RecommendArgs {
    /// The policy's name
    #[arg(long, value_name = "NAME", default_value = "recommended", value_parser = name)]
    name: String,
    /// Write this pattern for every identity that it matches; may be given more than once
    #[arg(long = "pattern", value_name = "PATTERN", value_parser = |text: &str| Pattern::parse(text).map_err(|error| error.to_string()))]
    patterns: Vec<Pattern>,
    /// Allow also what was refused
    #[arg(long)]
    include_denied: bool,
    /// Compare with these policies (a directory or one file; without PATH those that the agent has in force): what they are missing,
    /// and what of them is never used
    #[arg(long, value_name = "PATH", num_args = 0..=1, action = ArgAction::Set)]
    diff: Option<Vec<PathBuf>>,
    /// Exit with 1 if what is printed does not allow all that was seen; with --diff if anything is missing or unused, or cannot be
    /// judged
    #[arg(long)]
    fail: bool,
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    services: ServicesArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

fn name(text: &str) -> Result<String, String> {
    if policy::is_policy_name(text) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 63 of a-z, 0-9 and `-`, neither first nor last a `-`".to_owned())
    }
}

pub(super) fn recommend(arguments: &RecommendArgs) -> Result<Exit, Failure> {
    let settings = arguments.settings.config()?.policy_settings();
    if let Some(paths) = &arguments.diff {
        let set = match paths.first() {
            Some(path) => offline::set(path, &settings)?,
            None => crate::cli::block_on(super::diff::in_force(&arguments.api, &settings))?,
        };
        let fold = traffic::to_judge(&set, &settings);
        let mut range = arguments
            .traffic
            .read(arguments.settings.file(), &arguments.services, &fold)?;
        arguments.services.look_behind(&mut range, &arguments.api)?;
        return compare(arguments, &set, &range, &settings);
    }
    let fold = traffic::to_recommend(&settings, arguments.include_denied);
    let mut range = arguments
        .traffic
        .read(arguments.settings.file(), &arguments.services, &fold)?;
    arguments.services.look_behind(&mut range, &arguments.api)?;
    let wishes = Wishes {
        name: arguments.name.clone(),
        patterns: arguments.patterns.clone(),
    };
    let advice = {
        let _progress = Progress::waiting("looking for the smallest policy");
        advise(&range, &wishes, arguments.include_denied, &settings).map_err(|error| match error {
            RecommendError::Compile(error) => error.into(),
            RecommendError::Invalid(problems) => Failure::Policy(problems),
        })?
    };
    if let Some(why) = advice.nothing(&range) {
        return Err(Failure::NotFound(format!(
            "{why} (--include-denied allows also what was refused)"
        )));
    }
    let (made, unsaid) = (&advice.made, &advice.unsaid);
    match arguments.output.format {
        Format::Json => crate::cli::output::json(&json!({
            "rules": made.rules,
            "policy": made.text,
            "unsaid": unsaid.iter().map(|(what, why)| json!({ "connection": what, "reason": why })).collect::<Vec<_>>(),
            "left_out": range.left_out,
        }))?,
        Format::Table => {
            line(&format!(
                "# Allows what was seen: {} connections, {} different.",
                advice.connections, advice.flows
            ))?;
            line("# DENY rules and requireProof of the policies in force are not repeated.")?;
            for (what, why) in unsaid {
                line(&format!("# Not in it: {}: {why}", printable(what)))?;
            }
            print_left_out(&range, "# ")?;
            line(made.text.trim_end())?;
        }
    }
    Ok(if arguments.fail && advice.lacks {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// What current policies are missing, and what of them is not used.
fn compare(
    arguments: &RecommendArgs,
    set: &PolicySet,
    range: &Range,
    settings: &Settings,
) -> Result<Exit, Failure> {
    let table = policy::compile(set, &range.workloads(), settings, 1)?;
    let compared = Compared::of(range, set, &table, arguments.include_denied);
    match arguments.output.format {
        Format::Json => {
            let missing = compared.missing.iter();
            let missing: Vec<Value> = missing.map(|recorded| arguments.json(recorded)).collect();
            let undecided = compared.undecided.iter().map(|(recorded, why)| {
                let mut value = arguments.json(recorded);
                value["reason"] = json!(why);
                value
            });
            crate::cli::output::json(&json!({
                "missing": missing,
                "unused": compared.unused,
                "undecided": undecided.collect::<Vec<_>>(),
                "left_out": range.left_out,
            }))?;
        }
        Format::Table => {
            print(arguments, &compared)?;
            print_left_out(range, "")?;
        }
    }
    Ok(if arguments.fail && compared.differs() {
        Exit::Failed
    } else {
        Exit::Done
    })
}

impl RecommendArgs {
    fn json(&self, recorded: &Recorded) -> Value {
        json!({
            "source": recorded.source,
            "destination": recorded.destination,
            "addresses": recorded.addresses.told(),
            "address_count": recorded.addresses.count(),
            "protocol": recorded.protocol,
            "port": recorded.port,
            "connections": recorded.passed(self.include_denied),
            "first_seen": recorded.passed_span().first,
            "last_seen": recorded.last_passed(self.include_denied),
        })
    }
}

fn print(arguments: &RecommendArgs, compared: &Compared<'_>) -> Result<(), Failure> {
    let Compared {
        missing,
        undecided,
        unused,
    } = compared;
    let mut table = Table::new(&["", "RULE OR SOURCE", "DESTINATION", "PORT", "COUNT", "LAST SEEN"]);
    let connections = missing
        .iter()
        .map(|recorded| (*recorded, Cell::toned("missing", Tone::Bad)))
        .chain(undecided.iter().map(|(recorded, why)| {
            (
                *recorded,
                Cell::toned(format!("cannot be judged: {why}"), Tone::Caution),
            )
        }));
    for (recorded, what) in connections {
        table.row([
            what,
            printable(&recorded.source).into(),
            format!(
                "{}{}",
                printable(&recorded.destination),
                shown(&recorded.addresses)
            )
            .into(),
            format!("{}/{}", recorded.port, recorded.protocol).into(),
            recorded.passed(arguments.include_denied).to_string().into(),
            recorded.last_passed(arguments.include_denied).to_string().into(),
        ]);
    }
    for unused in unused {
        table.row([
            Cell::toned("unused", Tone::Caution),
            unused.rule.to_string().into(),
            unused
                .target
                .clone()
                .unwrap_or_else(|| "all of it".to_owned())
                .into(),
            "-".into(),
            "0".into(),
            "-".into(),
        ]);
    }
    table.print("nothing is missing, and every rule was used")?;
    Ok(())
}
