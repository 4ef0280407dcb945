// SPDX-License-Identifier: Apache-2.0
//! Connections that were seen, judged by another policy than the one that was in force.
//!
//! A record names its ends as they were known then. Who has an address in some network is known by the policy's networks, so
//! with another policy it may have another name: such an end is looked up anew, by its address.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use zt_common::entry::Flow;
use zt_common::identity;
use zt_common::verdict::Reason;

use super::action::Protocol;
use super::cut::Outcome;
use super::entity::entity_name;
use super::group::Member;
use super::named_party::NamedParty;
use super::table::{AllowTable, Decision, Party};
use crate::spiffe_id::SpiffeId;

/// One end of a connection that was seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeenParty {
    /// A workload.
    Workload(SpiffeId),
    /// Somebody without a name of their own: an entity, or whoever is in a network.
    Nameless {
        /// What the record calls it.
        name: String,
        /// Where it was.
        address: Option<IpAddr>,
    },
    /// Many of these, at addresses that are one to whoever asks.
    Several {
        /// What the record calls them.
        name: String,
        /// Where one of them was.
        address: IpAddr,
    },
    /// An entity by its number, wherever it is: one of those behind a Service.
    Entity(u64),
}

/// Why a connection that was seen cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Undecided {
    /// It went to a Service behind which several identities or ports stand, and who they are is not known.
    Service,
    /// An end is known by its address, which is not known here, and the policy names networks.
    Address,
    /// An end was nobody, at an address that the policy gives a name; the record does not say whether it was nobody
    /// because of its address.
    Nobody,
    /// Policy does not speak about its protocol.
    Protocol,
    /// It is a raw socket, and of nobody who could have a right to it.
    Holder,
    /// An end has a name that means nothing.
    Name,
}

impl Undecided {
    /// Whether no policy could say anything about it.
    pub const fn is_beyond_policy(self) -> bool {
        matches!(self, Self::Protocol | Self::Holder)
    }
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => {
                "a Service of several identities or ports, and who stands behind it is not known"
            }
            Self::Address => "the address is not known, and the policy names networks",
            Self::Nobody => "who was nobody there may have a name by this policy's networks",
            Self::Protocol => "neither TCP nor UDP",
            Self::Holder => "only a workload with an identity can have the right to raw sockets",
            Self::Name => "a name that means nothing",
        })
    }
}

impl SeenParty {
    /// The party that a record calls `name`, at `address` where that is what it is known by.
    pub fn new(name: &str, address: Option<IpAddr>) -> Result<Self, Undecided> {
        if name.starts_with("service:") {
            return Err(Undecided::Service);
        }
        match name.parse::<NamedParty>() {
            Ok(NamedParty::Spiffe(id)) => Ok(Self::Workload(id)),
            Ok(NamedParty::Entity(_) | NamedParty::Network(_)) => Ok(Self::Nameless {
                name: name.to_owned(),
                address,
            }),
            Ok(NamedParty::Address(_)) | Err(_) => Err(Undecided::Name),
        }
    }

    /// The identity, if it has one.
    pub const fn workload(&self) -> Option<&SpiffeId> {
        match self {
            Self::Workload(id) => Some(id),
            Self::Nameless { .. } | Self::Several { .. } | Self::Entity(_) => None,
        }
    }

    /// What records call it.
    pub fn name(&self) -> &str {
        match self {
            Self::Workload(id) => id.as_str(),
            Self::Nameless { name, .. } | Self::Several { name, .. } => name,
            Self::Entity(number) => entity_name(*number).unwrap_or("unknown"),
        }
    }

    /// By which number `table` knows it.
    fn number(&self, table: &AllowTable) -> Result<u64, Undecided> {
        let (name, address) = match self {
            Self::Workload(id) => return Ok(table.number(Party::Spiffe(id))),
            Self::Entity(number) => return Ok(*number),
            Self::Nameless { name, address } => (name, *address),
            Self::Several { name, address } => (name, Some(*address)),
        };
        let by_name = match name.parse::<NamedParty>().map_err(|_| Undecided::Name)? {
            NamedParty::Entity(entity) => match NamedParty::Entity(entity).of(table) {
                Some(Party::Number(number)) => number,
                _ => return Err(Undecided::Name),
            },
            NamedParty::Network(network) => {
                return address
                    .or_else(|| whole(table, &network).then(|| network.network()))
                    .map(|address| table.number(Party::Address(address)))
                    .ok_or(Undecided::Address);
            }
            NamedParty::Spiffe(_) | NamedParty::Address(_) => return Err(Undecided::Name),
        };
        let nobody = by_name == identity::UNKNOWN;
        if !(by_name == identity::WORLD || nobody) {
            return Ok(by_name);
        }
        match address.map(|address| table.number(Party::Address(address))) {
            // Who was nobody in the cluster is not in the world because the cluster's networks are not known here.
            Some(identity::WORLD | identity::UNKNOWN) if nobody => Ok(by_name),
            // A workload without an identity, or a Service without endpoints, stays nobody; who is nobody by its address does not.
            Some(_) if nobody => Err(Undecided::Nobody),
            Some(number) => Ok(number),
            None if table.network_names().next().is_none() => Ok(by_name),
            None => Err(Undecided::Address),
        }
    }
}

impl SeenParty {
    /// The same, where there were others at further addresses who are one with it.
    #[must_use]
    pub fn and_others(self) -> Self {
        match self {
            Self::Nameless {
                name,
                address: Some(address),
            } => Self::Several { name, address },
            other => other,
        }
    }

    /// By which number `table` knows it; of several, those of them who are in none of the narrower networks that it names. What
    /// allows these by network allows all of them, whichever one of them was remembered.
    fn at_large(&self, table: &AllowTable) -> Result<u64, Undecided> {
        let number = self.number(table)?;
        match self {
            Self::Several { name, .. } if number != identity::UNKNOWN => {
                let named = name.parse::<NamedParty>().map_err(|_| Undecided::Name)?;
                Ok(named.of(table).map_or(number, |party| table.number(party)))
            }
            _ => Ok(number),
        }
    }
}

/// Whether `table` knows every address of a network by the same name.
fn whole(table: &AllowTable, network: &ipnet::IpNet) -> bool {
    table
        .networks()
        .entries()
        .all(|(known, _)| known == *network || !network.contains(&known))
}

impl fmt::Display for SeenParty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<&Member> for SeenParty {
    fn from(member: &Member) -> Self {
        match member {
            Member::Workload(id) => Self::Workload(id.clone()),
            Member::Entity(number) => Self::Entity(*number),
            // Who that is the networks of the policy say that judges.
            Member::Address(address) => Self::Nameless {
                name: "world".to_owned(),
                address: Some(*address),
            },
        }
    }
}

/// A connection that was seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenFlow {
    /// Who connected.
    pub source: SeenParty,
    /// To whom.
    pub destination: SeenParty,
    /// To which port.
    pub port: u16,
    /// By which protocol.
    pub protocol: Protocol,
}

impl SeenFlow {
    /// One that a record tells of: parties by name and address, port, and IP protocol number.
    pub fn new(
        source: (&str, Option<IpAddr>),
        destination: (&str, Option<IpAddr>),
        port: u16,
        protocol: u8,
    ) -> Result<Self, Undecided> {
        let party = |(name, address)| SeenParty::new(name, address);
        Self::between(party(source), party(destination), port, protocol)
    }

    /// The same of parties that were read before.
    pub fn between(
        source: Result<SeenParty, Undecided>,
        destination: Result<SeenParty, Undecided>,
        port: u16,
        protocol: u8,
    ) -> Result<Self, Undecided> {
        let protocols = [Protocol::Tcp, Protocol::Udp];
        let protocol = protocols.into_iter().find(|of| of.number() == protocol);
        Ok(Self {
            protocol: protocol.ok_or(Undecided::Protocol)?,
            source: source?,
            destination: destination?,
            port,
        })
    }

    /// The identities of its ends, for which a table must have been compiled that judges it.
    pub fn workloads(&self) -> impl Iterator<Item = &SpiffeId> {
        [&self.source, &self.destination]
            .into_iter()
            .filter_map(SeenParty::workload)
    }

    /// What a policy says about it.
    pub fn judge(&self, table: &AllowTable) -> Result<Decision, Undecided> {
        Ok(table.decision(table.decide(&self.as_known_to(table)?)))
    }

    /// The same without why.
    pub fn outcome(&self, table: &AllowTable) -> Result<Outcome, Undecided> {
        Ok(Outcome::from(&table.decide(&self.as_known_to(table)?)))
    }

    /// What a policy says about a connection that went to one of these, of which nobody knows to which: what it says about all
    /// of them. A DENY of one denies, and proof that one asks for is asked for.
    pub fn judge_together(flows: &[Self], table: &AllowTable) -> Result<Decision, Undecided> {
        let judged = flows.iter().map(|flow| flow.judge(table));
        let strictest = judged.reduce(|strictest, next| {
            if strictness(&next) > strictness(&strictest) {
                next
            } else {
                strictest
            }
        });
        strictest.unwrap_or(Err(Undecided::Service))
    }

    /// The flow that a table is asked about where all must be allowed who are one end of it.
    pub(super) fn at_large(&self, table: &AllowTable) -> Result<Flow, Undecided> {
        Ok(Flow {
            source: self.source.at_large(table)?,
            destination: self.destination.at_large(table)?,
            ..self.as_known_to(table)?
        })
    }

    /// The flow that a table is asked about.
    pub(super) fn as_known_to(&self, table: &AllowTable) -> Result<Flow, Undecided> {
        Ok(Flow {
            source: self.source.number(table)?,
            destination: self.destination.number(table)?,
            port: self.port,
            protocol: self.protocol.number(),
        })
    }
}

/// Which of several answers holds for all of them.
fn strictness(judged: &Result<Decision, Undecided>) -> u8 {
    match judged
        .as_ref()
        .map(|decision| (Outcome::from(decision), decision.reason))
    {
        Ok((Outcome::Allow, _)) => 0,
        Ok((Outcome::AllowWithProof, _)) => 1,
        Err(_) => 2,
        Ok((Outcome::Deny, Reason::DenyRule)) => 4,
        Ok((Outcome::Deny, _)) => 3,
    }
}
