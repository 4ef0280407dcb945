// SPDX-License-Identifier: Apache-2.0
//! The smallest readable policy that allows what was seen.
//!
//! One rule a source, one target a destination and protocol, the ports that were seen. Patterns stand there only where they
//! were asked for, and the world as a destination only where a source reached many of its addresses. The right to raw sockets
//! is a rule of its own, and never a pattern's. What zt allows by itself is not said. What was made is parsed, compiled and asked
//! about every connection by the one verdict function: what it does not allow is told, and rules, targets and ports without
//! which all of them are allowed are left out. What cannot be judged, as where an address is not known, keeps what was written
//! for it.

mod smallest;
mod unused;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

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
    /// The Service that was connected to, of which this is one of those behind it.
    pub service: Option<Arc<str>>,
    /// How often.
    pub count: u64,
    /// When last.
    pub last_seen: Moment,
}

/// Sockets that take the right to raw sockets, and how often they were opened.
#[derive(Clone, Debug)]
pub struct RawCounted {
    /// By whom.
    pub holder: SpiffeId,
    /// Of which protocol.
    pub protocol: String,
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

type Target = (End, Protocol);
/// The ports of targets, each with what was seen there.
type Targets<'s> = BTreeMap<Target, BTreeMap<u16, Vec<&'s Counted>>>;
type Rules<'s> = BTreeMap<End, Targets<'s>>;

/// Makes a policy that allows what was seen.
pub fn recommend(
    seen: &[Counted],
    raw: &[RawCounted],
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
    let holders = write::holders(raw);
    let made = |rules: &Rules<'_>| -> Result<(String, PolicySet, AllowTable), RecommendError> {
        let text = write::document(&wishes.name, rules, &holders);
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
        rules: count + holders.len(),
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

    fn rules<'s>(&self, seen: &[&'s Counted]) -> Rules<'s> {
        let mut rules = Rules::new();
        for counted in seen.iter().copied() {
            let (source, target) = self.of(&counted.flow);
            let ports = rules.entry(source).or_default().entry(target).or_default();
            ports.entry(counted.flow.port).or_default().push(counted);
        }
        rules
    }
}

/// The sources that reached few addresses of the world, with these: several that were put together are many. None, where the address of anybody in the world is not
/// known: by a policy that names networks, he could not be judged.
fn addresses(seen: &[&Counted], wishes: &Wishes) -> BTreeMap<End, BTreeSet<IpAddr>> {
    let mut far: BTreeMap<End, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut many: BTreeSet<End> = BTreeSet::new();
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
        } else if matches!(&flow.destination, SeenParty::Several { name, .. } if name == "world") {
            many.insert(end(&flow.source, wishes));
        }
    }
    far.retain(|source, addresses| addresses.len() <= MAX_ADDRESSES && !many.contains(source));
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
        SeenParty::Nameless { name, .. } | SeenParty::Several { name, .. } => {
            match name.strip_prefix("cidr:") {
                Some(network) => End::Cidr(network.to_owned()),
                None => End::Entity(name.clone()),
            }
        }
        SeenParty::Entity(_) => End::Entity(party.name().to_owned()),
    }
}

/// Ports in order, joined where one follows the other.
fn joined(ports: impl Iterator<Item = u16>) -> Vec<PortRange> {
    let mut joined: Vec<PortRange> = Vec::new();
    for port in ports {
        match joined.last_mut() {
            Some(range) if u32::from(range.last) + 1 == u32::from(port) => range.last = port,
            _ => joined.push(PortRange {
                first: port,
                last: port,
            }),
        }
    }
    joined
}
