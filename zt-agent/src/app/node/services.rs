// SPDX-License-Identifier: Apache-2.0
//! Kubernetes Services: what stands behind virtual addresses, put in force with everything else. The table answers about
//! a group before the kernel's map leads anybody to it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use zt_common::abi::{SERVICE_PORTS, SERVICE_WORKLOADS, Service, ServiceKey};
use zt_common::address::Address;
use zt_common::identity;

use super::Node;
use super::elsewhere::Elsewhere;
use super::numbers::Numbers;
use crate::identity::kubernetes::{Whose, pod_of};
use crate::identity::peers::Who;
use crate::identity::services::{self, Occupant, Occupants, Recalled, ServiceEvent, Services};
use crate::kernel::netns;
use crate::metrics::NodeEvent;
use crate::policy::Groups;
use crate::spiffe_id::SpiffeId;
use crate::state::Fronts;

/// Groups of before that may stay in the table until the next policy, before it is written anew without them.
const MOST_PAST: usize = 1024;

/// Who has which of this node's addresses, as the identity sources say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Here(HashMap<IpAddr, Tenant>);

/// Who has one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tenant {
    Workload {
        uid: Option<Arc<str>>,
        identity: Option<SpiffeId>,
    },
    Entity(u64),
}

impl Here {
    /// The addresses at which somebody else is.
    fn moved(&self, before: &Self) -> Vec<IpAddr> {
        let left = before.0.keys().filter(|address| !self.0.contains_key(*address));
        let came = self
            .0
            .iter()
            .filter(|(address, tenant)| before.0.get(*address) != Some(*tenant))
            .map(|(address, _)| address);
        left.chain(came).copied().collect()
    }
}

/// Who has which address, here and elsewhere.
struct Everywhere<'a> {
    here: &'a Here,
    elsewhere: &'a Elsewhere,
}

/// Who is at an address of another node, whose agent has said so. What Kubernetes says must be the same; `None` where that alone
/// counts.
fn by_agent<'o>(who: &'o Who, whose: Option<&'o Whose>) -> Option<Occupant<'o>> {
    let workload = |uid, identity| Some(Occupant::Workload { uid, identity });
    match (who, whose) {
        (Who::Nobody, Some(_)) | (Who::Silent(_), Some(Whose::Node)) => None,
        (Who::Silent(said), Some(Whose::Pod { spiffe, .. })) if said == spiffe => None,
        (Who::Workload(said), Some(Whose::Pod { spiffe, uid, .. })) if said == spiffe => {
            workload(Some(&**uid), Some(said))
        }
        (Who::Workload(said), None | Some(Whose::Node)) => workload(None, Some(said)),
        (Who::Node, None | Some(Whose::Node)) => Some(Occupant::Entity(identity::REMOTE_NODE)),
        _ => workload(None, None),
    }
}

impl Occupants for Everywhere<'_> {
    fn at(&self, address: IpAddr) -> Option<Occupant<'_>> {
        let nobody = Occupant::Workload {
            uid: None,
            identity: None,
        };
        let whose = self.elsewhere.whose(address);
        // What is this node's is no other one's.
        if let (None, Some(who)) = (self.here.0.get(&address), self.elsewhere.who(address))
            && let Some(occupant) = by_agent(who, whose)
        {
            return Some(occupant);
        }
        match (self.here.0.get(&address), whose) {
            // The host's own stay its own.
            (Some(Tenant::Entity(number)), _) => Some(Occupant::Entity(*number)),
            (Some(Tenant::Workload { uid, identity }), None) => Some(Occupant::Workload {
                uid: uid.as_deref(),
                identity: identity.as_ref(),
            }),
            (Some(_), Some(_)) | (None, Some(Whose::Nobody)) => Some(nobody),
            (None, Some(Whose::Pod { spiffe, uid, .. })) => Some(Occupant::Workload {
                uid: Some(uid),
                identity: Some(spiffe),
            }),
            (None, Some(Whose::Node)) => Some(Occupant::Entity(identity::REMOTE_NODE)),
            (None, None) => None,
        }
    }
}

/// What is known of Services, and what it came to.
#[derive(Debug, Default)]
pub(super) struct Fronting {
    /// Where it is kept for the next start; `None`: nobody tells of Services here.
    memory: Option<PathBuf>,
    services: Services,
    here: Here,
    /// Whether all Services, and all of their endpoints, have been told of once.
    listed: (bool, bool),
    fronts: Arc<Fronts>,
    /// That is what an earlier agent knew.
    recalled: bool,
    groups: Groups,
    /// What is on disk is not what is known.
    unsaved: bool,
    /// How often there was no room for what the API said, as was told of last.
    refused: u64,
}

impl Fronting {
    /// Begins with what the last agent knew.
    pub(super) fn new(memory: Option<PathBuf>, trust_domain: &str) -> Self {
        let mut fronting = Self {
            memory,
            ..Self::default()
        };
        if let Some(path) = &fronting.memory {
            let recalled = services::recall(path, trust_domain).into_iter();
            fronting.fronts = Arc::new(Fronts::new(recalled, &mut fronting.groups));
            fronting.recalled = true;
        }
        fronting
    }

    /// What stands behind virtual places.
    pub(super) fn fronts(&self) -> &Arc<Fronts> {
        &self.fronts
    }

    /// The groups that the table is to answer about.
    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Everybody who stands behind a virtual place, or did under this revision.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &SpiffeId> {
        self.fronts.workloads().chain(self.groups.workloads())
    }

    /// Forgets groups that nothing leads to any more.
    pub(super) fn forget_past_groups(&mut self) {
        let live: HashSet<u64> = self.fronts.iter().map(|(_, front)| front.number).collect();
        self.groups.retain(|number| live.contains(&number));
    }

    fn apply(&mut self, events: Vec<ServiceEvent>) {
        for event in events {
            match event {
                ServiceEvent::Services(_) => self.listed.0 = true,
                ServiceEvent::Slices(_) => self.listed.1 = true,
                _ => {}
            }
            self.services.apply(event);
        }
    }

    /// Somebody else, or nobody, has an address of another node now.
    pub(super) fn moved(&mut self, address: IpAddr) {
        self.services.moved(address);
    }

    /// Finds out what it comes to, with `here` being who is where on this node now. Whether that is something else.
    fn settle(&mut self, here: Here, elsewhere: &Elsewhere) -> bool {
        for address in here.moved(&self.here) {
            self.services.moved(address);
        }
        self.here = here;
        // Half of it would take names away that the other half gives back.
        if self.listed != (true, true) {
            return false;
        }
        let everywhere = Everywhere {
            here: &self.here,
            elsewhere,
        };
        let changed = self.services.settle(&everywhere);
        if !changed && !std::mem::take(&mut self.recalled) {
            return false;
        }
        self.recalled = false;
        self.fronts = Arc::new(Fronts::new(told(&self.services), &mut self.groups));
        if self.groups.len() > self.fronts.len() + MOST_PAST {
            self.forget_past_groups();
        }
        self.unsaved = true;
        true
    }

    /// What the kernel is to be told. A group that the table in force does not answer about is nobody.
    pub(super) fn entries(&self, numbers: &Numbers) -> HashMap<ServiceKey, Service> {
        self.fronts
            .iter()
            .map(|(place, front)| {
                let key = ServiceKey {
                    address: Address::from(place.address),
                    port: place.port,
                    protocol: place.protocol,
                    reserved: 0,
                };
                let service = Service {
                    identity: numbers.behind(front),
                    target_port: front.target_port,
                    flags: if front.ports_differ() { SERVICE_PORTS } else { 0 }
                        | if front.has_workloads() {
                            SERVICE_WORKLOADS
                        } else {
                            0
                        },
                    reserved: [0; 5],
                };
                (key, service)
            })
            .collect()
    }

    /// Virtual addresses of the cluster: whoever connects to another port there connects to nobody, and not to the world.
    pub(super) fn virtual_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.services.cluster_addresses()
    }

    /// Keeps what is known for the next start.
    fn remember(&mut self, trust_domain: &str) {
        let Some(path) = self.memory.as_ref().filter(|_| self.unsaved) else {
            return;
        };
        self.unsaved = false;
        if let Err(error) = services::remember(path, trust_domain, told(&self.services).collect()) {
            tracing::warn!(
                file = %path.display(), %error,
                "what stands behind virtual addresses is not kept: after a restart they have no name until the API is heard"
            );
        }
    }
}

/// What Services come to, with the names of those that say so.
fn told(services: &Services) -> impl Iterator<Item = Recalled> {
    services.places().map(|(place, names, backends)| {
        let names: Vec<String> = names
            .iter()
            .map(|(namespace, name)| format!("{namespace}/{name}"))
            .collect();
        (place, Arc::from(names.join("+")), backends)
    })
}

impl Node {
    /// The API said something of Services.
    pub(super) fn services_said(&mut self, events: Vec<ServiceEvent>) {
        self.fronting.apply(events);
    }

    /// Finds out what stands behind virtual places now. Whether that is something else.
    pub(super) fn settle_services(&mut self) -> bool {
        if self.fronting.memory.is_none() {
            return false;
        }
        let here = self.here();
        let left_out = self.fronting.fronts.left_out();
        let refused = self.fronting.services.refused();
        let new = refused - std::mem::replace(&mut self.fronting.refused, refused);
        if new > 0 {
            self.parts.metrics.node_event(NodeEvent::ServicesTooMany, new);
            tracing::error!(
                new,
                "there are more Services or EndpointSlices than a node keeps, in one namespace or altogether: Services whose endpoints are not all known lead to nobody"
            );
        }
        let changed = self.fronting.settle(here, &self.elsewhere);
        let now = self.fronting.fronts.left_out();
        if now > left_out {
            self.parts
                .metrics
                .node_event(NodeEvent::ServicesLeftOut, (now - left_out) as u64);
            tracing::error!(
                left_out = now,
                "there are more virtual places than the kernel's map holds: those left out are named by their networks"
            );
        }
        changed
    }

    /// Who has which of this node's addresses.
    fn here(&self) -> Here {
        let mut here = Here::default();
        for address in &self.nobody {
            let nobody = Tenant::Workload {
                uid: None,
                identity: None,
            };
            here.0.insert(*address, nobody);
        }
        for placed in self.places.placed().iter() {
            let record = &placed.record;
            // The cgroup of a static pod is called after something else.
            let uid = pod_of(&record.cgroup, &self.parts.root_paths).filter(|uid| uid.contains('-'));
            let uid: Option<Arc<str>> = uid.filter(|_| record.pod.is_some()).map(Arc::from);
            for address in &record.addresses {
                let tenant = Tenant::Workload {
                    uid: uid.clone(),
                    identity: Some(record.spiffe.clone()),
                };
                let two = here.0.insert(*address, tenant.clone());
                if two.is_some_and(|other| other != tenant) {
                    let nobody = Tenant::Workload {
                        uid: None,
                        identity: None,
                    };
                    here.0.insert(*address, nobody);
                }
            }
        }
        for address in netns::addresses().unwrap_or_default() {
            here.0.insert(address.into(), Tenant::Entity(identity::HOST));
        }
        here
    }

    /// Whether the table in force answers about all groups that there are, and about few others.
    pub(super) fn groups_in_force(&self) -> bool {
        let table = self.parts.kernel.table();
        table.is_some_and(|table| table.groups() == self.fronting.groups())
    }

    /// Keeps what is known of Services for the next start.
    pub(super) fn remember_services(&mut self) {
        self.fronting.remember(&self.parts.config.trust_domain);
    }
}

#[cfg(test)]
mod tests;
