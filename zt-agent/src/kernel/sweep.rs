// SPDX-License-Identifier: Apache-2.0
//! Revocation: after a change of policy or of modes, every live connection is judged again, and those that policy no
//! longer allows are destroyed, at both ends.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use zt_common::abi::{
    CONNECTION_ENFORCED, CONNECTION_ESTABLISHED, CONNECTION_INBOUND, CONNECTION_LOCAL, CONNECTION_PROVEN,
    Connection, MODE_ENFORCE, Service, Workload, settled,
};
use zt_common::address::Address;
use zt_common::entry::Flow;
use zt_common::identity;
use zt_common::verdict::Verdict;

use super::Owner;
use super::destroy;
use super::netns::Namespaces;
use super::sock_diag::TCP;
use crate::policy::AllowTable;

/// What became of a connection that had to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its socket was destroyed, or the reset of its other end, which was, ended it.
    Destroyed,
    /// It had ended by itself.
    Gone,
    /// It is not there yet: a `connect` of a datagram socket was decided before the policy changed, and is not over.
    Connecting,
    /// Its namespace could not be reached.
    Unreached,
    /// The kernel would not destroy it.
    Failed,
}

impl Fate {
    /// Whether nothing is left of it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Destroyed | Self::Gone)
    }
}

/// A connection that policy no longer allows.
#[derive(Clone, Copy, Debug)]
pub struct Revoked {
    /// Socket cookie.
    pub cookie: u64,
    /// What the kernel knew of it; source and destination as they are now.
    pub connection: Connection,
    /// What policy says of it now.
    pub verdict: Verdict,
    /// What became of it.
    pub fate: Fate,
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Connections that were looked at.
    pub looked_at: usize,
    /// Those that had to go.
    pub revoked: Vec<Revoked>,
}

impl Sweep {
    /// Tries once more to destroy what could not be reached.
    pub fn retry(&mut self, namespaces: &Namespaces) {
        let mut left: Vec<Revoked> = self
            .revoked
            .extract_if(.., |revoked| !revoked.fate.is_over())
            .collect();
        destroy::all(&mut left, namespaces);
        self.revoked.append(&mut left);
        self.conclude();
    }

    /// Tells those that went by themselves from those whose other end was destroyed a moment before.
    pub(super) fn conclude(&mut self) {
        type End = (Address, u16);
        let ends = |revoked: &Revoked| -> (End, End) {
            let connection = &revoked.connection;
            (
                (connection.local, connection.local_port),
                (connection.remote, connection.remote_port),
            )
        };
        if self.revoked.iter().all(|revoked| revoked.fate != Fate::Gone) {
            return;
        }
        let destroyed: HashSet<(End, End)> = self
            .revoked
            .iter()
            .filter(|revoked| revoked.fate == Fate::Destroyed)
            .map(ends)
            .collect();
        for revoked in &mut self.revoked {
            let (local, remote) = ends(revoked);
            if revoked.fate == Fate::Gone && destroyed.contains(&(remote, local)) {
                revoked.fate = Fate::Destroyed;
            }
        }
    }
}

/// The policy and the workloads that connections are judged by.
pub(super) struct Judge<'a> {
    pub table: &'a AllowTable,
    pub workloads: &'a HashMap<u64, Workload>,
    /// What stands behind a virtual place: address, port and protocol.
    pub service: &'a dyn Fn(Address, u16, u8) -> Option<Service>,
    /// The workload around a cgroup that is none itself.
    pub nearest: &'a Owner<'a>,
    /// Whether who never had an identity is refused.
    pub unknown_denied: bool,
    /// Whether another version sees to it that who has to prove something does.
    pub proof_waits: bool,
}

impl Judge<'_> {
    /// A connection that has to go.
    pub(super) fn judge(&self, cookie: u64, mut connection: Connection) -> Option<Revoked> {
        if connection.protocol == TCP && connection.flags & CONNECTION_ESTABLISHED == 0 {
            // Still in its handshake: the end of that judges it under the revision in force then.
            return None;
        }
        let own = self.workloads.get(&connection.workload).or_else(|| {
            let around = (self.nearest)(connection.workload, self.workloads)?;
            self.workloads.get(&around)
        });
        let unnamed = self.unknown_denied || connection.flags & CONNECTION_ENFORCED != 0;
        let revision = self.table.revision();
        let enforced = own.map_or(unnamed, |own| settled(own.mode, revision) == MODE_ENFORCE);
        if !enforced {
            return None;
        }
        rename(&mut connection, own, self.table, self.service);
        let flow = Flow {
            source: connection.source,
            destination: connection.destination,
            port: connection.target_port,
            protocol: connection.protocol,
        };
        let mut verdict = self.table.decide(&flow);
        if connection.flags & CONNECTION_PROVEN == 0 && !self.proof_waits {
            verdict = verdict.unproven();
        }
        (!verdict.allowed).then_some(Revoked {
            cookie,
            connection,
            verdict,
            fate: Fate::Unreached,
        })
    }
}

/// Gives both ends of a connection the names that they have now.
fn rename(
    connection: &mut Connection,
    own: Option<&Workload>,
    table: &AllowTable,
    service: &dyn Fn(Address, u16, u8) -> Option<Service>,
) {
    let inbound = connection.flags & CONNECTION_INBOUND != 0;
    let local = connection.flags & CONNECTION_LOCAL != 0;
    let by_network = |number: u64| {
        // What the networks of a policy named is named by those of the next.
        let depends = number == identity::WORLD
            || number & identity::NETWORK_BIT != 0
            || number == identity::UNKNOWN
            || identity::is_group(number);
        if depends && number < identity::FIRST_WORKLOAD && !local {
            table.networks().number_at(IpAddr::from(connection.remote))
        } else {
            number
        }
    };
    let own = own.map(|own| own.identity);
    if inbound {
        connection.source = by_network(connection.source);
        connection.destination = own.unwrap_or(connection.destination);
    } else {
        let (address, port) = (connection.remote, connection.remote_port);
        // Which of those behind a virtual address it reached is not known here: it is judged as a new one would be.
        match service(address, port, connection.protocol) {
            Some(front) if !identity::is_workload(connection.destination) => {
                connection.destination = front.identity;
                connection.target_port = front.target_port;
            }
            _ => connection.destination = by_network(connection.destination),
        }
        connection.source = own.unwrap_or(connection.source);
    }
}

#[cfg(test)]
mod tests {
    use zt_common::abi::{MODE_OBSERVE, mode_between};

    use super::*;

    fn revoked(cookie: u64, local: u8, remote: u8, fate: Fate) -> Revoked {
        let connection = Connection {
            netns: u64::from(local),
            local: Address::from_v4([10, 0, 0, local]),
            remote: Address::from_v4([10, 0, 0, remote]),
            local_port: u16::from(local),
            remote_port: u16::from(remote),
            protocol: TCP,
            flags: CONNECTION_ESTABLISHED,
            ..Connection::BLANK
        };
        Revoked {
            cookie,
            connection,
            verdict: AllowTable::default().decide(&Flow {
                source: 0,
                destination: 0,
                port: 0,
                protocol: TCP,
            }),
            fate,
        }
    }

    /// Fails where what is in the map is compared, and not what it means under the table in force.
    #[test]
    fn a_mode_that_changed_with_a_swap_is_what_it_is_under_the_table_in_force() {
        let table = AllowTable::default();
        let judged = |mode| {
            let own = Workload {
                identity: identity::FIRST_WORKLOAD + 5,
                mode,
                reserved: [0; 7],
            };
            let judge = Judge {
                table: &table,
                workloads: &HashMap::from([(3, own)]),
                service: &|_, _, _| None,
                nearest: &|_, _| None,
                unknown_denied: false,
                proof_waits: false,
            };
            let connection = Connection {
                workload: 3,
                ..revoked(1, 1, 2, Fate::Gone).connection
            };
            judge.judge(1, connection).is_some()
        };
        let between = |enforces| mode_between(enforces, table.revision());
        assert!(judged(MODE_ENFORCE) && judged(between(true)));
        assert!(!judged(MODE_OBSERVE) && !judged(between(false)));
    }

    #[test]
    fn what_led_to_a_service_is_judged_by_what_is_behind_it_now() {
        let group = identity::GROUP_BIT | 7;
        let front = Service {
            identity: identity::GROUP_BIT | 8,
            target_port: 8080,
            flags: 0,
            reserved: [0; 5],
        };
        let table = AllowTable::default();
        let now = |destination: u64, front: Option<Service>| {
            let mut connection = Connection {
                destination,
                target_port: 9090,
                ..revoked(1, 1, 2, Fate::Gone).connection
            };
            rename(&mut connection, None, &table, &|_, _, _| front);
            (connection.destination, connection.target_port)
        };
        assert_eq!(now(group, Some(front)), (front.identity, 8080));
        assert_eq!(now(identity::UNKNOWN, Some(front)), (front.identity, 8080));
        assert_eq!(now(group, None), (identity::WORLD, 9090), "the service is gone");
        let workload = identity::FIRST_WORKLOAD + 5;
        assert_eq!(
            now(workload, Some(front)),
            (workload, 9090),
            "it reached that one"
        );
    }

    #[test]
    fn an_end_that_is_gone_was_revoked_only_if_its_other_end_was_destroyed() {
        let mut sweep = Sweep {
            looked_at: 3,
            revoked: vec![
                revoked(1, 1, 2, Fate::Destroyed),
                revoked(2, 2, 1, Fate::Gone),
                // Older than the agent, and closed by whoever had it.
                revoked(3, 3, 1, Fate::Gone),
            ],
        };
        sweep.conclude();
        let fates: Vec<Fate> = sweep.revoked.iter().map(|revoked| revoked.fate).collect();
        assert_eq!(fates, [Fate::Destroyed, Fate::Destroyed, Fate::Gone]);
    }
}
