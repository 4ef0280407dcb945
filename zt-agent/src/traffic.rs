// SPDX-License-Identifier: Apache-2.0
//! Recorded connections, and what policies make of them: for the commands and for the API alike. No database, no files.

mod advice;
mod compared;
mod enforcing;
mod replay;
mod services;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use zt_common::verdict::Reason;

pub use self::advice::{Advice, advise};
pub use self::compared::Compared;
pub use self::enforcing::{WouldDeny, would_deny};
pub use self::replay::{Change, Replayed, Row, Times};
pub use self::services::{Members, Services};
use crate::audit::query::{Addresses, Classes, Fold, GraphFilter, RawSeen, Seen, Span, Spans, Traffic};
use crate::audit::record;
use crate::policy::{
    AllowTable, Decision, MAX_ADDRESSES, Member, Networks, Outcome, PolicySet, Protocol, SeenFlow, SeenParty,
    Settings, Undecided,
};
use crate::spiffe_id::SpiffeId;

impl Classes for Networks {
    fn class(&self, address: IpAddr) -> u64 {
        self.number_at(address)
    }
}

/// How recorded connections are to be read that these policies shall judge: addresses that they know by one name are one.
pub fn to_judge(set: &PolicySet, settings: &Settings) -> Fold {
    Fold::by(Arc::new(Networks::of(set, settings)))
}

/// How those are to be read that a policy shall be made of, with those that were refused or without. What it will name are
/// networks that records name, and few addresses.
pub fn to_recommend(settings: &Settings, include_denied: bool) -> Fold {
    to_judge(&PolicySet::default(), settings).but_for_few(MAX_ADDRESSES, include_denied)
}

/// What policies are asked about.
#[derive(Clone, Debug)]
pub enum About {
    /// A connection.
    Connection(SeenFlow),
    /// One to a Service: to any of those behind it, so that a policy that allows it allows each.
    Service(Vec<SeenFlow>),
    /// A socket that takes the right to raw sockets.
    RawSocket {
        /// Whose.
        holder: SpiffeId,
        /// As in [`RawSeen`].
        multipath: bool,
    },
}

/// A connection that was seen, or a raw socket, and how often.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Between whom; or why no policy can be asked about it.
    pub about: Result<About, Undecided>,
    /// Its source, as the record calls it.
    pub source: Arc<str>,
    /// Its destination, as the record calls it.
    pub destination: Arc<str>,
    /// Where the end was that is known by its address alone; the destination, where both are.
    pub addresses: Addresses,
    /// Its protocol.
    pub protocol: record::Protocol,
    /// Its target port.
    pub port: u16,
    /// How often policy allowed it.
    pub allowed: u64,
    /// How often it was refused.
    pub denied: u64,
    /// How often policy denied it and nothing refused it.
    pub would_deny: u64,
    /// How many of those denied, and of those that would be, were so for want of proof.
    pub unproven: u64,
    /// When, by what was decided.
    pub spans: Spans,
    /// When, all together.
    pub span: Span,
}

/// Connections of a range.
#[derive(Debug)]
pub struct Range {
    /// Each different one; raw sockets come last.
    pub recorded: Vec<Recorded>,
    /// Whether those are there that opened raw sockets.
    pub raw_is_known: bool,
    /// How many were decided for another reason than policy, by that reason.
    pub left_out: BTreeMap<String, u64>,
}

impl Recorded {
    /// How many connections it stands for.
    pub const fn count(&self) -> u64 {
        self.allowed
            .saturating_add(self.denied)
            .saturating_add(self.would_deny)
    }

    /// When those were that policy denied, refused or not.
    pub fn refused_span(&self) -> Span {
        self.span_of([self.spans.denied, self.spans.would_deny])
    }

    /// When those were that went through.
    pub fn passed_span(&self) -> Span {
        self.span_of([self.spans.allowed, self.spans.would_deny])
    }

    /// When those were that policy allowed.
    pub fn allowed_span(&self) -> Span {
        self.span_of([self.spans.allowed, None])
    }

    fn span_of(&self, spans: [Option<Span>; 2]) -> Span {
        let known = spans.into_iter().flatten().reduce(Span::with);
        known.unwrap_or(self.span)
    }

    /// The connections that it may be.
    pub fn flows(&self) -> &[SeenFlow] {
        match &self.about {
            Ok(About::Connection(flow)) => std::slice::from_ref(flow),
            Ok(About::Service(flows)) => flows,
            Ok(About::RawSocket { .. }) | Err(_) => &[],
        }
    }

    /// Whose right to raw sockets it takes.
    pub const fn holder(&self) -> Option<&SpiffeId> {
        match &self.about {
            Ok(About::RawSocket { holder, .. }) => Some(holder),
            _ => None,
        }
    }

    /// Whether nothing breaks where it is refused: programs that try multipath TCP take TCP then.
    pub const fn falls_back(&self) -> bool {
        matches!(self.about, Ok(About::RawSocket { multipath: true, .. }))
    }

    /// What a policy says about it.
    pub fn judge(&self, table: &AllowTable) -> Result<Decision, Undecided> {
        match &self.about {
            Ok(About::Connection(_) | About::Service(_)) => SeenFlow::judge_together(self.flows(), table),
            Ok(About::RawSocket { holder, multipath }) => {
                let mut decision = table.evaluate_raw_socket(holder);
                if *multipath && !decision.allowed {
                    decision.reason = Reason::Mptcp;
                }
                Ok(decision)
            }
            Err(why) => Err(*why),
        }
    }

    /// The same without why, which takes longer to say than to find: for whoever looks for few among many.
    pub fn outcome(&self, table: &AllowTable) -> Result<Outcome, Undecided> {
        match &self.about {
            Ok(About::Connection(flow)) => flow.outcome(table),
            _ => self.judge(table).map(|decision| Outcome::from(&decision)),
        }
    }

    /// The connections to those behind the Service that it went to, where that is known.
    fn behind(&self, services: &Services) -> Option<About> {
        if !matches!(self.about, Err(Undecided::Service)) {
            return None;
        }
        let protocol = Protocol::from_name(&self.protocol.to_string())?;
        let members = services.behind(&self.destination, protocol, self.port)?;
        // A Service has no address that one would be known by: these are the source's.
        let source = SeenParty::new(&self.source, self.addresses.first()).ok()?;
        let source = if self.addresses.count() > 1 {
            source.and_others()
        } else {
            source
        };
        let flow = |(member, port): &(Member, u16)| SeenFlow {
            source: source.clone(),
            destination: SeenParty::from(member),
            port: *port,
            protocol,
        };
        Some(About::Service(members.iter().map(flow).collect()))
    }
}

/// Ends of connections that are known by their names: each is read once, however many connections it has.
#[derive(Default)]
struct Ends(HashMap<Arc<str>, Result<SeenParty, Undecided>, RandomState>);

impl Ends {
    fn at(&mut self, name: &Arc<str>, addresses: &Addresses) -> Result<SeenParty, Undecided> {
        if let address @ Some(_) = addresses.first() {
            let party = SeenParty::new(name, address)?;
            return Ok(if addresses.count() > 1 {
                party.and_others()
            } else {
                party
            });
        }
        let read = || SeenParty::new(name, None);
        self.0.entry(Arc::clone(name)).or_insert_with(read).clone()
    }
}

impl Recorded {
    fn of(seen: Seen, ends: &mut Ends) -> Self {
        let Seen {
            edge,
            source_addresses,
            destination_addresses,
            unproven,
            spans,
        } = seen;
        let source = ends.at(&edge.source, &source_addresses);
        let destination = ends.at(&edge.destination, &destination_addresses);
        let flow = SeenFlow::between(source, destination, edge.port, edge.protocol.0);
        Self {
            about: flow.map(About::Connection),
            source: edge.source,
            destination: edge.destination,
            addresses: if destination_addresses.is_empty() {
                source_addresses
            } else {
                destination_addresses
            },
            protocol: edge.protocol,
            port: edge.port,
            allowed: edge.allowed,
            denied: edge.denied,
            would_deny: edge.would_deny,
            unproven,
            spans,
            span: Span {
                first: edge.first_seen,
                last: edge.last_seen,
            },
        }
    }
}

impl From<RawSeen> for Recorded {
    fn from(seen: RawSeen) -> Self {
        let RawSeen {
            edge,
            multipath,
            spans,
        } = seen;
        let holder = SpiffeId::parse(&edge.source).map_err(|_| Undecided::Holder);
        Self {
            about: holder.map(|holder| About::RawSocket { holder, multipath }),
            source: edge.source,
            destination: edge.destination,
            addresses: Addresses::default(),
            protocol: edge.protocol,
            port: edge.port,
            allowed: edge.allowed,
            denied: edge.denied,
            would_deny: edge.would_deny,
            unproven: 0,
            spans,
            span: Span {
                first: edge.first_seen,
                last: edge.last_seen,
            },
        }
    }
}

impl From<Traffic> for Range {
    fn from(traffic: Traffic) -> Self {
        let mut ends = Ends::default();
        let connections = traffic.seen.into_iter().map(|seen| Recorded::of(seen, &mut ends));
        Self {
            recorded: connections
                .chain(traffic.raw.into_iter().map(Recorded::from))
                .collect(),
            raw_is_known: true,
            left_out: traffic.left_out,
        }
    }
}

impl Range {
    /// Whether policy decided about none of it.
    pub fn is_empty(&self) -> bool {
        self.recorded.iter().all(|recorded| recorded.count() == 0)
    }

    /// Why nothing can be judged or recommended by what a question found, if that is so.
    pub fn nothing(&self, asked: &GraphFilter) -> Option<String> {
        if !self.is_empty() {
            return None;
        }
        let namespace = asked.namespace.as_ref();
        let namespace = namespace.map(|name| format!(" of namespace {name}"));
        let since = asked.since.map(|time| format!(" from {time}"));
        let until = asked.until.map(|time| format!(" until {time}"));
        let what: String = [namespace, since, until].into_iter().flatten().collect();
        let left: u64 = self.left_out.values().sum();
        let more = if left == 0 {
            String::new()
        } else {
            format!(", but for {left} that policy did not decide")
        };
        Some(format!(
            "no connections{what} are recorded{more}: there is nothing to judge by"
        ))
    }

    /// Those whom patterns must stand for in a table that judges them.
    pub fn workloads(&self) -> BTreeSet<SpiffeId> {
        let flows = self.recorded.iter().flat_map(Recorded::flows);
        let holders = self.recorded.iter().filter_map(Recorded::holder);
        let named: HashSet<&SpiffeId, RandomState> =
            flows.flat_map(SeenFlow::workloads).chain(holders).collect();
        named.into_iter().cloned().collect()
    }

    /// Whether there are Services of which it is not known who stands behind them.
    pub fn has_unknown_services(&self) -> bool {
        let mut recorded = self.recorded.iter();
        recorded.any(|recorded| matches!(recorded.about, Err(Undecided::Service)))
    }

    /// Has connections to Services judged by those behind them, where that is known.
    pub fn look_behind(&mut self, services: &Services) {
        for recorded in &mut self.recorded {
            if let Some(about) = recorded.behind(services) {
                recorded.about = Ok(about);
            }
        }
    }

    /// Who opened raw sockets, or was refused them; `None` where that is not known.
    pub fn holders(&self) -> Option<BTreeSet<SpiffeId>> {
        let holders = self.recorded.iter().filter_map(Recorded::holder);
        self.raw_is_known.then(|| holders.cloned().collect())
    }
}
