// SPDX-License-Identifier: Apache-2.0
//! Who plays in the demo: five services, their identities, addresses and ports; and two who are none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What all their SPIFFE IDs start with.
pub(super) const IDENTITY_PREFIX: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/";

/// A service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Who {
    /// Identity and access management.
    Iam,
    /// The gateway to language models.
    Gateway,
    /// The chat application.
    Chat,
    /// The database.
    Postgres,
    /// The cache.
    Redis,
    /// Somebody below the managed cgroup who was never given an identity; he is where chat is in the network.
    Nobody,
    /// A process of the node itself, outside the managed cgroup; it is at the bridge, as the kubelet is at its pods'.
    Host,
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Speak {
    /// One request, one answer.
    Http,
    /// The start of a session and a query.
    Postgres,
    /// PING and PONG.
    Redis,
}

/// A way from one service to another's port.
pub(super) type Way = (Who, Who);

impl Who {
    /// All services, in the order in which they are shown.
    pub(super) const ALL: [Self; 5] = [Self::Iam, Self::Gateway, Self::Chat, Self::Postgres, Self::Redis];
    /// Those that serve something.
    pub(super) const SERVERS: [Self; 4] = [Self::Iam, Self::Gateway, Self::Postgres, Self::Redis];
    /// What the policy of the demo allows; `rule 0` is not in it: a workload may always reach itself.
    pub(super) const POLICY: [Way; 5] = [
        (Self::Iam, Self::Postgres),
        (Self::Iam, Self::Redis),
        (Self::Gateway, Self::Iam),
        (Self::Gateway, Self::Postgres),
        (Self::Chat, Self::Gateway),
    ];

    /// Its short name: that of its cgroup, too.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Iam => "iam",
            Self::Gateway => "gateway",
            Self::Chat => "chat",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Nobody => "nobody",
            Self::Host => "host",
        }
    }

    /// In whose network namespace it is.
    pub(super) const fn place(self) -> Self {
        match self {
            Self::Nobody => Self::Chat,
            other => other,
        }
    }

    /// Its identity, if it is a service.
    pub(super) fn spiffe(self) -> String {
        format!("{IDENTITY_PREFIX}{}", self.name())
    }

    /// The last part of its addresses.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Host => 1,
            Self::Iam => 2,
            Self::Gateway => 3,
            Self::Chat | Self::Nobody => 4,
            Self::Postgres => 5,
            Self::Redis => 6,
        }
    }

    /// Its IPv4 address.
    pub(super) fn ipv4(self) -> IpAddr {
        Ipv4Addr::new(10, 99, 0, self.number()).into()
    }

    /// Its IPv6 address.
    pub(super) fn ipv6(self) -> IpAddr {
        Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, u16::from(self.number())).into()
    }

    /// The one or the other.
    pub(super) fn address(self, ipv6: bool) -> IpAddr {
        if ipv6 { self.ipv6() } else { self.ipv4() }
    }

    /// What it serves, and where; chat serves nothing here, nor does who is no service.
    pub(super) const fn service(self) -> Option<(u16, Speak)> {
        match self {
            Self::Iam => Some((8000, Speak::Http)),
            Self::Gateway => Some((4000, Speak::Http)),
            Self::Postgres => Some((5432, Speak::Postgres)),
            Self::Redis => Some((6379, Speak::Redis)),
            Self::Chat | Self::Nobody | Self::Host => None,
        }
    }

    /// Where it serves, over both families, and what is spoken there.
    pub(super) fn places(self) -> Vec<(SocketAddr, Speak)> {
        let places = self.service().map(|(port, speak)| {
            [self.ipv4(), self.ipv6()].map(|address| (SocketAddr::new(address, port), speak))
        });
        places.into_iter().flatten().collect()
    }

    /// `postgres:5432`, or the name alone.
    pub(super) fn place_name(self) -> String {
        self.service().map_or_else(
            || self.name().to_owned(),
            |(port, _)| format!("{}:{port}", self.name()),
        )
    }
}

/// Whether the policy of the demo lets `way` through.
pub(super) fn allowed(way: Way) -> bool {
    way.0 == way.1 || Who::POLICY.contains(&way)
}

/// A SPIFFE ID without what all of them start with.
pub(super) fn short(id: &str) -> &str {
    id.strip_prefix(IDENTITY_PREFIX).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::files::POLICY;

    #[test]
    fn the_policy_document_says_what_the_story_expects() {
        for (source, destination) in Who::POLICY {
            let from = POLICY.find(&format!("from:\n        spiffe: \"{}\"", source.spiffe()));
            let rule = POLICY.get(from.expect("a rule")..).expect("text");
            let rule = rule.split("\n    - from").next().expect("its text");
            assert!(
                rule.contains(&destination.spiffe()),
                "{source:?} → {destination:?}"
            );
            let (port, _) = destination.service().expect("a server");
            assert!(
                rule.contains(&format!("[{port}]")),
                "{source:?} → {destination:?}"
            );
        }
        assert_eq!(POLICY.matches("ports:").count(), Who::POLICY.len());
    }
}
