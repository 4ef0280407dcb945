// SPDX-License-Identifier: Apache-2.0
//! The smallest readable policy that allows what was seen.
//!
//! One rule a source, one target a destination and protocol, the ports that were seen. Patterns stand there only where they
//! were asked for, and the world as a destination only where a source reached many of its addresses. What zt allows by itself
//! is not said. What was made is parsed, compiled and asked about every connection by the one verdict function: what it does
//! not allow is told, and rules, targets and ports without which all of them are allowed are left out. What cannot be judged,
//! as where an address is not known, keeps what was written for it.

mod smallest;
mod unused;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::compile::{CompileError, compile};
use super::ports::PortRange;
use super::seen::{SeenFlow, SeenParty};
use super::set::{PolicySet, parse};
use super::table::AllowTable;
use super::{Document, Problem, Protocol, Settings};
use crate::spiffe_id::{Pattern, SpiffeId};

pub use unused::{Unused, unused};

/// A connection that was seen, and how often.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Between whom.
    pub flow: SeenFlow,
    /// How often.
    pub count: u64,
    /// When last.
    pub last_seen: Moment,
}

/// A time.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Nanoseconds since 1970.
    pub at: i64,
    /// As it is to be written.
    pub text: String,
}

/// Most addresses of the world that a source reached for which each is written by itself.
pub const MAX_ADDRESSES: usize = 16;

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
    last_seen: Moment,
}

impl Times {
    fn take(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        if self.last_seen < other.last_seen {
            self.last_seen.clone_from(&other.last_seen);
        }
    }
}

impl From<&Counted> for Times {
    fn from(counted: &Counted) -> Self {
        Self {
            count: counted.count,
            last_seen: counted.last_seen.clone(),
        }
    }
}

type Target = (End, Protocol);
type Targets = BTreeMap<Target, BTreeMap<u16, Times>>;
type Rules = BTreeMap<End, Targets>;

/// Makes a policy that allows what was seen.
pub fn recommend(
    seen: &[Counted],
    wishes: &Wishes,
    settings: &Settings,
) -> Result<Recommended, RecommendError> {
    let mut unsaid = Vec::new();
    let mut fit: Vec<&Counted> = Vec::with_capacity(seen.len());
    for counted in seen {
        match unfit(&counted.flow, settings) {
            Some(why) => unsaid.push((counted.flow.clone(), why)),
            None => fit.push(counted),
        }
    }
    let nothing = table(&PolicySet::default(), &fit, settings)?;
    let is_allowed = |counted: &Counted, table: &AllowTable| {
        let decision = counted.flow.judge(table);
        decision.is_ok_and(|decision| decision.allowed)
    };
    let needed: Vec<&Counted> = fit
        .iter()
        .copied()
        .filter(|counted| !is_allowed(counted, &nothing))
        .collect();
    let writing = Writing::new(&needed, wishes);
    let all = writing.rules(&needed);
    let made = |rules: &Rules| -> Result<(String, PolicySet, AllowTable), RecommendError> {
        let text = write::document(&wishes.name, rules);
        let set = read(&text, settings)?;
        let table = table(&set, &fit, settings)?;
        Ok((text, set, table))
    };
    let (mut text, set, mut table) = made(&all)?;
    let mut count = all.len();
    if let Some(smaller) = smallest::smallest(&all, &set, &table, &needed, &writing) {
        let (smaller_text, _, smaller_table) = made(&smaller)?;
        // A network that no rule names any more may have given an address its name.
        if fit
            .iter()
            .all(|counted| !is_allowed(counted, &table) || is_allowed(counted, &smaller_table))
        {
            (text, table, count) = (smaller_text, smaller_table, smaller.len());
        }
    }
    unsaid.extend(fit.iter().filter_map(|counted| {
        let why = match counted.flow.judge(&table) {
            Ok(decision) if decision.allowed => return None,
            Ok(decision) => decision.reason.name().to_owned(),
            Err(why) => why.to_string(),
        };
        Some((counted.flow.clone(), why))
    }));
    Ok(Recommended {
        unsaid,
        rules: count,
        text,
    })
}

/// Why no rule can be written for a connection.
fn unfit(flow: &SeenFlow, settings: &Settings) -> Option<String> {
    if flow.port == 0 {
        return Some("0 is not a port".to_owned());
    }
    let mut domains = flow.workloads().map(SpiffeId::trust_domain);
    let other = domains.find(|domain| *domain != settings.trust_domain)?;
    Some(format!("`{other}` is another trust domain"))
}

fn table(set: &PolicySet, seen: &[&Counted], settings: &Settings) -> Result<AllowTable, CompileError> {
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

/// How ends are written.
struct Writing<'w> {
    wishes: &'w Wishes,
    /// The sources that reached few addresses of the world, with these.
    far: BTreeMap<End, BTreeSet<IpAddr>>,
}

impl<'w> Writing<'w> {
    fn new(seen: &[&Counted], wishes: &'w Wishes) -> Self {
        Self {
            wishes,
            far: addresses(seen, wishes),
        }
    }

    /// The source of the rule that a connection is written in, and the target.
    fn of(&self, flow: &SeenFlow) -> (End, Target) {
        let source = end(&flow.source, self.wishes);
        let destination = match address_in_the_world(&flow.destination) {
            Some(address) if self.far.contains_key(&source) => End::Cidr(IpNet::from(address).to_string()),
            _ => end(&flow.destination, self.wishes),
        };
        (source, (destination, flow.protocol))
    }

    fn rules(&self, seen: &[&Counted]) -> Rules {
        let mut rules = Rules::new();
        for counted in seen {
            let (source, target) = self.of(&counted.flow);
            let ports = rules.entry(source).or_default().entry(target).or_default();
            let times = ports.entry(counted.flow.port).or_default();
            times.take(&Times::from(*counted));
        }
        rules
    }
}

/// The sources that reached few addresses of the world, with these. None, where the address of anybody in the world is not
/// known: by a policy that names networks, he could not be judged.
fn addresses(seen: &[&Counted], wishes: &Wishes) -> BTreeMap<End, BTreeSet<IpAddr>> {
    let mut far: BTreeMap<End, BTreeSet<IpAddr>> = BTreeMap::new();
    for counted in seen {
        let flow = &counted.flow;
        let lost = |party: &SeenParty| matches!(party, SeenParty::Nameless { name, address: None } if name == "world");
        if lost(&flow.source) || lost(&flow.destination) {
            return BTreeMap::new();
        }
        if let Some(address) = address_in_the_world(&flow.destination) {
            let known = far.entry(end(&flow.source, wishes)).or_default();
            // One more tells that there are too many.
            if known.len() <= MAX_ADDRESSES {
                known.insert(address);
            }
        }
    }
    far.retain(|_, addresses| addresses.len() <= MAX_ADDRESSES);
    far
}

fn address_in_the_world(party: &SeenParty) -> Option<IpAddr> {
    match party {
        SeenParty::Nameless { name, address } if name == "world" => {
            address.map(|address| address.to_canonical())
        }
        _ => None,
    }
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
