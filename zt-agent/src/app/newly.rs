// SPDX-License-Identifier: Apache-2.0
//! Denials of workloads that the stage of a rollout newly enforced: told by the node, gathered by the reader of events.
//!
//! What counts is what the stage may have broken. Not: what others make happen there (sources that have no identity or are
//! outside the cluster, tags that do not verify), and what hurts nobody or is no matter of policy (raw sockets, multipath TCP).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use zt_common::event::Hook;
use zt_common::identity;
use zt_common::verdict::{RULE_REQUIRE_POLICY, Reason};

use crate::audit::decode::Decision;
use crate::policy::{Edge, Refusals};

/// Most different connections between two looks, those of each second by themselves.
const MOST_EDGES: usize = 65_536;
const SECOND: u64 = 1_000_000_000;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Ports to which resolvers connect a datagram socket only to see from which address it would be sent.
const PROBED: [u16; 2] = [0, 65_535];

/// Which workloads they are, by their cgroups, and what they were refused since somebody asked.
#[derive(Debug, Default)]
pub(super) struct Newly {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    workloads: HashSet<u64>,
    /// The revision with which they came to enforce: what was decided before is of another stage.
    since: u64,
    /// A stage with a limit is in force.
    counts: bool,
    refused: HashMap<(Edge, u64), Gathered>,
}

/// A connection that was refused in one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gathered {
    /// How often.
    pub refusals: Refusals,
    /// All that is known is that a datagram socket was connected: perhaps nothing would have been sent.
    pub only_connected: bool,
}

impl Newly {
    /// These are they, from now on, enforced with revision `since`. `counts`: anybody is interested.
    pub(super) fn set(&self, workloads: HashSet<u64>, since: u64, counts: bool) {
        let mut held = self.lock();
        (held.workloads, held.since, held.counts) = (workloads, since, counts);
    }

    /// Gathers a decision that refused one of them, or whom no policy names: that is new to all who are in force.
    pub(super) fn saw(&self, decision: &Decision) {
        if decision.allowed || !decision.enforced || !may_be_broken(decision) {
            return;
        }
        let mut held = self.lock();
        let is_new = decision.rule == RULE_REQUIRE_POLICY || held.workloads.contains(&decision.workload);
        if !held.counts || !is_new || decision.revision < held.since {
            return;
        }
        let edge = Edge {
            source: decision.source,
            destination: decision.destination,
            port: decision.target_port,
        };
        let place = (edge, decision.time / SECOND);
        if held.refused.len() >= MOST_EDGES && !held.refused.contains_key(&place) {
            return;
        }
        let only_connected = decision.protocol == UDP && decision.hook == Hook::Connect;
        let gathered = held.refused.entry(place).or_insert(Gathered {
            refusals: Refusals {
                protocol: decision.protocol,
                times: 0,
                last: place.1,
            },
            only_connected,
        });
        gathered.refusals.times += 1;
        if gathered.only_connected && !only_connected {
            (gathered.only_connected, gathered.refusals.protocol) = (false, decision.protocol);
        }
    }

    /// What they were refused since the last time, by connection and second.
    pub(super) fn take(&self) -> HashMap<(Edge, u64), Gathered> {
        std::mem::take(&mut self.lock().refused)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether something that worked may not work for this.
fn may_be_broken(decision: &Decision) -> bool {
    let by_policy = match decision.reason {
        Reason::DenyRule
        | Reason::NoRule
        | Reason::UnknownSource
        | Reason::UnknownDestination
        | Reason::Revoked
        | Reason::Unfenced => true,
        // Whom it cannot reach for want of proof; who comes without any says nothing about the stage.
        Reason::ProofRequired => !decision.inbound,
        // That no table was there, that somebody gave proof of nothing or of something false, and sockets that get round policy.
        Reason::Rule
        | Reason::DefaultAllow
        | Reason::NoPolicy
        | Reason::AlienTask
        | Reason::RawSocket
        | Reason::Mptcp
        | Reason::Protocol
        | Reason::IdentityMismatch
        | Reason::ProofMissing
        | Reason::TagInvalid => false,
    };
    // Whoever comes in without an identity may be anybody, who has nothing to do with the stage; and a datagram may come from anybody.
    let caused_here = !decision.inbound || decision.protocol == TCP && identity::is_workload(decision.source);
    let by_resolver = decision.protocol == UDP && PROBED.contains(&decision.target_port);
    by_policy
        && caused_here
        && !by_resolver
        // Of a connection whose segments are dropped, the sweep tells as well.
        && !matches!(decision.hook, Hook::Socket | Hook::Packet)
        && matches!(decision.protocol, TCP | UDP)
}

#[cfg(test)]
mod tests {
    use zt_common::address::Address;
    use zt_common::proof::Proof;

    use super::*;

    const OWN: u64 = 7;
    const PEER: u64 = identity::FIRST_WORKLOAD + 1;

    fn refused() -> Decision {
        Decision {
            time: 5 * SECOND + 1,
            source: identity::FIRST_WORKLOAD,
            destination: PEER,
            rule: 0,
            revision: 4,
            workload: OWN,
            cookie: 1,
            netns: 1,
            source_address: Address::from_v4([10, 0, 0, 1]),
            destination_address: Address::from_v4([10, 0, 0, 2]),
            source_port: 0,
            destination_port: 80,
            target_port: 80,
            protocol: TCP,
            hook: Hook::Connect,
            pid: 1,
            latency: 1,
            reason: Reason::NoRule,
            allowed: false,
            enforced: true,
            inbound: false,
            refused_socket: false,
            ipv6: false,
            proof: Proof::None,
            omitted: false,
            comm: [0; 16],
        }
    }

    fn edges(of: impl IntoIterator<Item = Decision>) -> HashMap<(Edge, u64), Gathered> {
        let newly = Newly::default();
        newly.set(HashSet::from([OWN]), 4, true);
        of.into_iter().for_each(|decision| newly.saw(&decision));
        newly.take()
    }

    #[test]
    fn different_connections_are_gathered_and_how_often_each_was_refused_in_which_second() {
        let later = Decision {
            time: 9 * SECOND,
            ..refused()
        };
        let other = Decision {
            target_port: 81,
            ..refused()
        };
        let found = edges([refused(), later, other, refused()]);
        assert_eq!(found.len(), 3);
        let edge = Edge {
            source: identity::FIRST_WORKLOAD,
            destination: PEER,
            port: 80,
        };
        for (second, times) in [(5, 2), (9, 1)] {
            let refusals = found[&(edge, second)].refusals;
            assert_eq!(
                (refusals.times, refusals.last, refusals.protocol),
                (times, second, TCP)
            );
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a list, one decision after the other")]
    fn what_others_make_happen_and_what_breaks_nothing_does_not_count() {
        let reason = |reason| Decision { reason, ..refused() };
        let inbound = |source| Decision {
            inbound: true,
            source,
            ..refused()
        };
        for (what, decision, counts) in [
            ("a rule", reason(Reason::DenyRule), true),
            ("the end of what was open", reason(Reason::Revoked), true),
            ("a forged tag", reason(Reason::TagInvalid), false),
            ("no proof", reason(Reason::ProofMissing), false),
            ("another one answers", reason(Reason::IdentityMismatch), false),
            ("a task of others", reason(Reason::AlienTask), false),
            ("multipath", reason(Reason::Mptcp), false),
            ("a raw socket", reason(Reason::RawSocket), false),
            ("another protocol", reason(Reason::Protocol), false),
            ("a caller with a name", inbound(PEER), true),
            (
                "a datagram that comes in",
                Decision {
                    protocol: UDP,
                    hook: Hook::Receive,
                    ..inbound(PEER)
                },
                false,
            ),
            ("proof that it asks for", reason(Reason::ProofRequired), true),
            (
                "proof that a caller lacks",
                Decision {
                    reason: Reason::ProofRequired,
                    ..inbound(PEER)
                },
                false,
            ),
            ("a caller without one", inbound(identity::UNKNOWN), false),
            ("the world", inbound(identity::WORLD), false),
            ("its node", inbound(identity::HOST), false),
            (
                "to the world",
                Decision {
                    destination: identity::WORLD,
                    ..refused()
                },
                true,
            ),
            (
                "ICMP",
                Decision {
                    protocol: 1,
                    ..refused()
                },
                false,
            ),
            (
                "a resolver's probe",
                Decision {
                    protocol: UDP,
                    target_port: 65_535,
                    ..refused()
                },
                false,
            ),
            (
                "of the stage before",
                Decision {
                    revision: 3,
                    ..refused()
                },
                false,
            ),
            (
                "somebody else",
                Decision {
                    workload: 8,
                    ..refused()
                },
                false,
            ),
            (
                "whom no policy names",
                Decision {
                    workload: 8,
                    rule: RULE_REQUIRE_POLICY,
                    reason: Reason::DenyRule,
                    ..refused()
                },
                true,
            ),
            (
                "observed",
                Decision {
                    enforced: false,
                    ..refused()
                },
                false,
            ),
        ] {
            assert_eq!(!edges([decision]).is_empty(), counts, "{what}");
        }
        let newly = Newly::default();
        newly.set(HashSet::from([OWN]), 0, false);
        newly.saw(&refused());
        assert!(newly.take().is_empty(), "nobody asks");
    }

    #[test]
    fn a_datagram_socket_that_was_only_connected_is_told_apart() {
        let connected = Decision {
            protocol: UDP,
            ..refused()
        };
        let sent = Decision {
            hook: Hook::Sendmsg,
            ..connected.clone()
        };
        let only = |of: Vec<Decision>| edges(of).values().all(|gathered| gathered.only_connected);
        assert!(only(vec![connected.clone()]));
        assert!(!only(vec![connected.clone(), sent]));
        assert!(!only(vec![connected, refused()]));
    }
}
