// SPDX-License-Identifier: Apache-2.0
//! The smallest readable policy that allows what was seen.
//!
//! One rule a source, one target a destination and protocol, the ports that were seen. Patterns stand there only where they
//! were asked for. What zt allows by itself is not said. What was made is parsed, compiled and asked about every connection by
//! the one verdict function: what it does not allow is told, and a rule without which all of them are allowed is left out.

mod unused;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use super::compile::{CompileError, compile};
use super::ports::PortRange;
use super::seen::{SeenFlow, SeenParty};
use super::set::{PolicySet, parse};
use super::table::AllowTable;
use super::{Document, Problem, Protocol, Settings};
use crate::spiffe_id::Pattern;

pub use unused::{Unused, unused};

/// A connection that was seen, and how often.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Between whom.
    pub flow: SeenFlow,
    /// How often.
    pub count: u64,
    /// When last, as it is to be written.
    pub last_seen: String,
}

/// What to recommend.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The policy's name.
    pub name: String,
    /// Patterns to write instead of the identities that they match; the first that matches is taken.
    pub patterns: Vec<Pattern>,
}

/// Why nothing can be recommended.
#[derive(Debug, thiserror::Error)]
pub enum RecommendError {
    /// It cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// What was made is not valid, as with a name of another trust domain.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// A policy that was made.
#[derive(Clone, Debug)]
pub struct Recommended {
    /// The document, with comments.
    pub text: String,
    /// How many rules it has; where there are none, zt allows all of it by itself.
    pub rules: usize,
    /// Connections that it does not allow, with why.
    pub unsaid: Vec<(SeenFlow, String)>,
}

/// One end, as a rule writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Spiffe(String),
    Cidr(String),
    Entity(String),
}

/// How often and when last.
#[derive(Clone, Debug, Default)]
struct Times {
    count: u64,
    last_seen: String,
}

impl Times {
    fn take(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        if self.last_seen < other.last_seen {
            self.last_seen.clone_from(&other.last_seen);
        }
    }
}

type Targets = BTreeMap<(End, Protocol), BTreeMap<u16, Times>>;
type Rules = BTreeMap<End, Targets>;

/// Makes a policy that allows what was seen.
pub fn recommend(
    seen: &[Counted],
    wishes: &Wishes,
    settings: &Settings,
) -> Result<Recommended, RecommendError> {
    let nothing = table(&PolicySet::default(), seen, settings)?;
    let needed: Vec<&Counted> = seen
        .iter()
        .filter(|counted| {
            !counted
                .flow
                .judge(&nothing)
                .is_ok_and(|decision| decision.allowed)
        })
        .collect();
    let mut rules = rules(&needed, wishes);
    let overlap = |end: &End| !matches!(end, End::Spiffe(text) if !text.contains('*'));
    if rules.keys().any(overlap) {
        leave_out(&mut rules, seen, wishes, settings)?;
    }
    let text = write::document(&wishes.name, &rules);
    let set = read(&text, settings)?;
    let table = table(&set, seen, settings)?;
    let unsaid = seen.iter().filter_map(|counted| {
        let why = match counted.flow.judge(&table) {
            Ok(decision) if decision.allowed => return None,
            Ok(decision) => decision.reason.name().to_owned(),
            Err(why) => why.to_string(),
        };
        Some((counted.flow.clone(), why))
    });
    Ok(Recommended {
        unsaid: unsaid.collect(),
        rules: rules.len(),
        text,
    })
}

fn table(set: &PolicySet, seen: &[Counted], settings: &Settings) -> Result<AllowTable, CompileError> {
    let workloads: BTreeSet<_> = seen
        .iter()
        .flat_map(|counted| counted.flow.workloads())
        .cloned()
        .collect();
    compile(set, &workloads, settings, 1)
}

fn read(text: &str, settings: &Settings) -> Result<PolicySet, RecommendError> {
    let document = Document {
        file: "recommended".to_owned(),
        text: text.to_owned(),
    };
    parse(&[document], settings).map_err(RecommendError::Invalid)
}

fn rules(seen: &[&Counted], wishes: &Wishes) -> Rules {
    let mut rules = Rules::new();
    for counted in seen {
        let flow = &counted.flow;
        let key = (end(&flow.destination, wishes), flow.protocol);
        let targets = rules.entry(end(&flow.source, wishes)).or_default();
        let times = targets.entry(key).or_default().entry(flow.port).or_default();
        times.take(&Times {
            count: counted.count,
            last_seen: counted.last_seen.clone(),
        });
    }
    rules
}

fn end(party: &SeenParty, wishes: &Wishes) -> End {
    match party {
        SeenParty::Workload(id) => {
            let pattern = wishes.patterns.iter().find(|pattern| pattern.matches(id));
            End::Spiffe(pattern.map_or_else(|| id.to_string(), ToString::to_string))
        }
        SeenParty::Nameless { name, .. } => match name.strip_prefix("cidr:") {
            Some(network) => End::Cidr(network.to_owned()),
            None => End::Entity(name.clone()),
        },
    }
}

/// Leaves out every rule whose connections the others allow.
fn leave_out(
    rules: &mut Rules,
    seen: &[Counted],
    wishes: &Wishes,
    settings: &Settings,
) -> Result<(), RecommendError> {
    let allowed = |rules: &Rules| -> Result<usize, RecommendError> {
        let table = table(
            &read(&write::document(&wishes.name, rules), settings)?,
            seen,
            settings,
        )?;
        let allowed = |counted: &&Counted| counted.flow.judge(&table).is_ok_and(|decision| decision.allowed);
        Ok(seen.iter().filter(allowed).count())
    };
    let all = allowed(rules)?;
    // The narrowest first: those with names, then networks, then entities, the order of `End`.
    for source in rules.keys().cloned().collect::<Vec<_>>() {
        let Some(targets) = rules.remove(&source) else {
            continue;
        };
        if allowed(rules)? < all {
            rules.insert(source, targets);
        }
    }
    Ok(())
}

/// The ports of a target, joined where one follows the other, each with how often and when last.
fn joined(ports: &BTreeMap<u16, Times>) -> Vec<(PortRange, Times)> {
    let mut joined: Vec<(PortRange, Times)> = Vec::with_capacity(ports.len());
    for (port, times) in ports {
        match joined.last_mut() {
            Some((range, of)) if u32::from(range.last) + 1 == u32::from(*port) => {
                range.last = *port;
                of.take(times);
            }
            _ => joined.push((
                PortRange {
                    first: *port,
                    last: *port,
                },
                times.clone(),
            )),
        }
    }
    joined
}
