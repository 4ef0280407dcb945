// SPDX-License-Identifier: Apache-2.0
//! Who stands behind Services. A record has the name of a Service alone, where several identities or ports stand behind it: a
//! connection to it is judged by those who do now.

use std::collections::{BTreeMap, BTreeSet};

use zt_common::identity;

use crate::policy::{Member, Protocol};

/// Those behind a port of a Service, each with the port that it listens on.
pub type Members = BTreeSet<(Member, u16)>;

/// Who stands behind Services, as far as that is known.
#[derive(Clone, Debug, Default)]
pub struct Services(BTreeMap<String, BTreeMap<(Protocol, u16), Members>>);

impl Services {
    /// Adds those behind a place of a Service, `namespace/name`: `target_port` is the one that its records have. Those of
    /// several places that records do not tell apart are all of them. A place that leads to nobody says nothing: a record of one names
    /// who is alone there, and never the Service.
    pub fn add(
        &mut self,
        service: &str,
        protocol: Protocol,
        target_port: u16,
        members: impl IntoIterator<Item = (Member, u16)>,
    ) {
        let members: Members = members.into_iter().collect();
        let is_nobody = |(member, _): &(Member, u16)| *member == Member::Entity(identity::UNKNOWN);
        if members.len() < 2 && members.iter().all(is_nobody) {
            return;
        }
        let places = self.0.entry(format!("service:{service}")).or_default();
        places.entry((protocol, target_port)).or_default().extend(members);
    }

    /// Those behind what a record calls `name`, if that is known.
    pub(super) fn behind(&self, name: &str, protocol: Protocol, port: u16) -> Option<&Members> {
        self.0.get(name)?.get(&(protocol, port))
    }
}
