// SPDX-License-Identifier: Apache-2.0
//! The last stage of a rollout: whom no policy names is refused.

use std::collections::{BTreeSet, HashSet};

use zt_common::entry::{ACTION_DENY, PROTOCOL_RAW};
use zt_common::identity;
use zt_common::verdict::RULE_REQUIRE_POLICY;

use super::Compiler;
use crate::policy::action::Protocol;
use crate::policy::entity::ENTITIES;
use crate::policy::ports;
use crate::spiffe_id::SpiffeId;

impl Compiler<'_> {
    /// Adds entries by which those are refused, to and from anybody, whom no rule names: neither outright, as `named` are, nor by
    /// a pattern, which `*` alone is not. Their node reaches them all the same, so that its probes tell what is the matter.
    ///
    /// All rules are in it by now.
    pub(super) fn refuse_undeclared(&mut self, named: &BTreeSet<SpiffeId>) {
        let matched: HashSet<u64> = self
            .patterns
            .values()
            .flat_map(|numbers| numbers.iter().copied())
            .collect();
        let is_declared = |id: &SpiffeId| named.contains(id) || matched.contains(&id.number());
        let undeclared: Vec<u64> = self
            .universe
            .iter()
            .filter(|id| !is_declared(id))
            .map(SpiffeId::number)
            .collect();
        let networks = self.networks.entries().map(|(_, number)| number);
        let entities = ENTITIES.iter().map(|(_, number)| *number);
        let others: BTreeSet<u64> = networks.chain(entities).chain([identity::ANY]).collect();
        let destinations: Vec<u64> = others.iter().copied().collect();
        let sources: Vec<u64> = others
            .into_iter()
            .filter(|number| *number != identity::HOST)
            .collect();
        let every_port = [ports::EVERY_PORT];
        for protocol in [Protocol::Tcp, Protocol::Udp].map(Protocol::number) {
            for (from, to) in [(&undeclared, &destinations), (&sources, &undeclared)] {
                self.insert_all(RULE_REQUIRE_POLICY, from, to, &every_port, protocol, ACTION_DENY);
            }
        }
        self.insert_all(
            RULE_REQUIRE_POLICY,
            &undeclared,
            &[identity::RAW_SOCKETS],
            &every_port,
            PROTOCOL_RAW,
            ACTION_DENY,
        );
    }
}
