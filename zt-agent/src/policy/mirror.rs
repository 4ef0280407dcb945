// SPDX-License-Identifier: Apache-2.0
//! The Kubernetes `NetworkPolicy` objects that say what a policy says, as far as they can.
//!
//! One object a service, with what may reach it and what it may reach. Who may is asked of the compiled table, party by party
//! and port by port, so that a DENY, proof and defaults are in what comes out. Where a selector cannot say it, the object
//! allows less than the policy, and a note says so. A block that stands for the world has the addresses of nodes and of the API
//! server in it, unless it is said where they are; a note says that too.

mod blocks;
mod compare;
mod notes;
mod object;
mod place;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde_json::Value;
use zt_common::identity;

use super::Settings;
use super::action::Protocol;
use super::compile::{CompileError, compile};
use super::cut::{self, Cut};
use super::entity::ENTITIES;
use super::exemplar::exemplars;
use super::ports::PortRange;
use super::set::PolicySet;
use crate::spiffe_id::{Pattern, SpiffeId};

use blocks::Blocks;
pub use compare::{Difference, WIDENS, differences};
use notes::{Lacking, beyond, told, without};
pub use place::LabelError;
use place::{Layout, Place};

/// The numbers of a workload that no rule names, as source and as destination.
const STRANGERS: [u64; 2] = [u64::MAX, u64::MAX - 1];

/// Why an identity has no selector.
const NO_POD: &str = "it is no pod of this cluster by `identity.template`";
const NO_LABEL: &str = "no label tells its service account (--label)";
/// Why it has none that Kubernetes would take.
const NOT_TAKEN: &str = "Kubernetes takes neither namespaces nor labels like its own: at most 63 letters, digits and `-`, in labels also `.` and `_`";
/// Entities that have addresses.
const WITH_ADDRESSES: [(&str, u64); 3] = [
    ("host", identity::HOST),
    ("remote-node", identity::REMOTE_NODE),
    ("kube-apiserver", identity::KUBE_APISERVER),
];

/// How identities are pods, and what else a cluster needs.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// `identity.template`, with trust domain and cluster filled in.
    pub template: String,
    /// `KEY=VALUE` of the labels that pods of an identity have, with `{namespace}` and `{serviceAccount}`.
    pub labels: Vec<(String, String)>,
    /// Where the cluster's DNS is: namespace and label. `None`: egress to it is not allowed besides.
    pub dns: Option<(String, (String, String))>,
    /// Where entities are that no selector finds.
    pub entities: BTreeMap<String, Vec<IpNet>>,
    /// Services to make objects for, besides those that policies name.
    pub workloads: BTreeSet<SpiffeId>,
}

/// What was made.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// The objects, by namespace and name.
    pub objects: Vec<Value>,
    /// What they do not say, each once.
    pub notes: BTreeSet<String>,
}

/// Whom one side of an object allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    /// Every pod.
    AnyPod,
    /// The pods of an identity or of a pattern.
    Pods(Place),
    /// Addresses, without some of them.
    Block(IpNet, Vec<IpNet>),
}

/// Which ports, of TCP and of UDP.
type Ports = [Vec<PortRange>; 2];

/// An identity, or what stands for a pattern.
struct Workload {
    id: SpiffeId,
    /// The pattern that it stands for.
    pattern: Option<Pattern>,
    /// Where its pods are, or why nothing says that.
    place: Result<Place, &'static str>,
}

impl Workload {
    fn name(&self) -> &str {
        self.pattern.as_ref().map_or(self.id.as_str(), Pattern::as_str)
    }
}

/// Makes the objects for every service that the policies name outright.
///
/// # Errors
///
/// The policies do not fit into a table, or two services have the same labels.
pub fn mirror(set: &PolicySet, mapping: &Mapping, settings: &Settings) -> Result<Mirror, MirrorError> {
    let exemplars = exemplars([set]);
    let known: BTreeSet<SpiffeId> = exemplars.keys().chain(&mapping.workloads).cloned().collect();
    let table = compile(set, &known, settings, 1)?;
    let layout = Layout::new(mapping);
    let mut workloads: Vec<Workload> = table
        .identities()
        .iter()
        .map(|id| {
            let pattern = exemplars.get(id).and_then(|text| Pattern::parse(text).ok());
            let named = set.identities().contains(id) || mapping.workloads.contains(id);
            let pattern = pattern.filter(|_| !named);
            let text = pattern.as_ref().map_or(id.as_str(), Pattern::as_str);
            Workload {
                place: layout.place(text).ok_or(NO_POD),
                id: id.clone(),
                pattern,
            }
        })
        .collect();
    layout.check(
        workloads
            .iter()
            .filter(|one| one.pattern.is_none())
            .filter_map(|one| {
                let place = one.place.as_ref().ok()?;
                Some((one.name(), place))
            }),
    )?;
    // A selector without the account would take pods of others.
    for workload in &mut workloads {
        if workload.place.as_ref().is_ok_and(|place| !layout.tells(place)) {
            workload.place = Err(NO_LABEL);
        }
        if workload.place.as_ref().is_ok_and(|place| !layout.is_taken(place)) {
            workload.place = Err(NOT_TAKEN);
        }
    }
    let making = Making {
        cut: Cut::new(&table),
        blocks: Blocks::new(&table, &mapping.entities),
        workloads: &workloads,
        mapping,
    };
    let (mut mirror, mut lacking) = (Mirror::default(), Lacking::new());
    for subject in workloads.iter().filter(|one| one.pattern.is_none()) {
        let place = match &subject.place {
            Ok(place) => place,
            Err(why) => {
                let note = format!("{} has no object: {why}", subject.name());
                mirror.notes.insert(note);
                continue;
            }
        };
        let ingress = making.side(subject, true, &mut lacking);
        let egress = making.side(subject, false, &mut lacking);
        let world = |peer: &Peer| matches!(peer, Peer::Block(network, _) if network.prefix_len() == 0);
        if settings.cluster_cidrs.is_empty() && ingress.keys().chain(egress.keys()).any(world) {
            let note = "clusterCIDRs is empty: blocks that stand for `world` have the cluster's own addresses in them";
            mirror.notes.insert(note.to_owned());
        }
        mirror.objects.extend(layout.object(place, &ingress, &egress));
    }
    mirror.notes.extend(told(&lacking));
    mirror.notes.extend(beyond(set));
    mirror.notes.extend(workloads.iter().filter_map(without));
    mirror.notes.extend(layout.names_dns(&workloads));
    mirror.objects.sort_by_key(object::key);
    Ok(mirror)
}

/// Why there are no objects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// The policies cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Labels do not tell services apart.
    #[error(transparent)]
    Labels(#[from] LabelError),
}

/// A workload that no rule names, at the other end.
const fn stranger(ingress: bool) -> u64 {
    if ingress { STRANGERS[0] } else { STRANGERS[1] }
}

struct Making<'a> {
    cut: Cut<'a>,
    blocks: Blocks,
    workloads: &'a [Workload],
    mapping: &'a Mapping,
}

impl Making<'_> {
    /// Whom a service may be reached by, or whom it may reach.
    fn side(&self, subject: &Workload, ingress: bool, lacking: &mut Lacking) -> BTreeMap<Peer, Ports> {
        let own = subject.id.number();
        let ends = |other: u64| if ingress { (other, own) } else { (own, other) };
        let entities = ENTITIES.iter().map(|(_, number)| *number);
        let parties: Vec<u64> = self
            .workloads
            .iter()
            .map(|workload| workload.id.number())
            .chain([stranger(ingress)])
            .chain(entities)
            .chain(self.blocks.numbers())
            .collect();
        let mut peers: BTreeMap<Peer, Ports> = BTreeMap::new();
        for (index, protocol) in [Protocol::Tcp, Protocol::Udp].into_iter().enumerate() {
            let about = parties.iter().flat_map(|party| {
                let (source, destination) = ends(*party);
                self.cut.about(source, destination)
            });
            for range in cut::ranges(about, protocol) {
                let allowed = |party: u64| {
                    let (source, destination) = ends(party);
                    self.cut
                        .verdict(source, destination, range.first, protocol)
                        .allowed
                };
                for peer in self.peers(subject, ingress, &allowed, lacking) {
                    let ports = peers.entry(peer).or_default();
                    if let Some(ranges) = ports.get_mut(index) {
                        cut::extend(ranges, range);
                    }
                }
            }
        }
        peers
    }

    /// The peers that are allowed at one port.
    fn peers(
        &self,
        subject: &Workload,
        ingress: bool,
        allowed: &dyn Fn(u64) -> bool,
        lacking: &mut Lacking,
    ) -> BTreeSet<Peer> {
        let mut peers = BTreeSet::new();
        let (from_to, name) = (if ingress { "from" } else { "to" }, subject.name());
        let mut note = |what: &str, why: &str| {
            let traffic = format!("traffic {from_to} {what} is not allowed: {why}");
            lacking.entry(traffic).or_default().insert(name.to_owned());
        };
        let may: Vec<bool> = self
            .workloads
            .iter()
            .map(|workload| allowed(workload.id.number()))
            .collect();
        let all = may.iter().all(|may| *may);
        let any = allowed(stranger(ingress));
        if any && all {
            peers.insert(Peer::AnyPod);
        } else {
            if any {
                note(
                    "`*`",
                    "not every workload may, and a NetworkPolicy cannot except one",
                );
            }
            self.pods(&may, &mut peers, &mut note);
        }
        for (entity, number) in ENTITIES {
            if number == identity::WORLD || !allowed(number) {
                continue;
            }
            // The kubelet of a pod's own node reaches it whatever a NetworkPolicy says.
            let reached = ingress && number == identity::HOST;
            if !reached && !self.mapping.entities.contains_key(entity) {
                note(&format!("`{entity}`"), "where it is was not said (--entity)");
            }
        }
        if allowed(identity::WORLD) {
            for (entity, number) in WITH_ADDRESSES {
                if !allowed(number) && !self.mapping.entities.contains_key(entity) {
                    let traffic = format!(
                        "traffic {from_to} `{entity}` is ALLOWED with `world`, though policy denies it: say where it is (--entity)"
                    );
                    lacking.entry(traffic).or_default().insert(name.to_owned());
                }
            }
        }
        peers.extend(self.blocks.allowed(allowed));
        peers
    }

    /// Those of the workloads that may, by as few selectors as their patterns give.
    fn pods(&self, may: &[bool], peers: &mut BTreeSet<Peer>, note: &mut dyn FnMut(&str, &str)) {
        let mut covered = vec![false; may.len()];
        let both = || self.workloads.iter().zip(may);
        for (workload, _) in both().filter(|(_, may)| **may) {
            let Some(pattern) = &workload.pattern else {
                continue;
            };
            // What stands for a narrower pattern matches the wider one too.
            if both().any(|(other, may)| !may && pattern.matches(&other.id)) {
                note(
                    pattern.as_str(),
                    "not all that it matches may, and a NetworkPolicy cannot except one",
                );
                continue;
            }
            match &workload.place {
                Ok(place) => {
                    peers.insert(Peer::Pods(place.clone()));
                    let theirs = self.workloads.iter().zip(&mut covered);
                    for (_, covered) in theirs.filter(|(other, _)| pattern.matches(&other.id)) {
                        *covered = true;
                    }
                }
                Err(NO_POD) => note(pattern.as_str(), "no labels say what it matches"),
                Err(why) => note(pattern.as_str(), why),
            }
        }
        for ((workload, _), _) in both()
            .zip(covered)
            .filter(|((workload, may), covered)| **may && !covered && workload.pattern.is_none())
        {
            match &workload.place {
                Ok(place) => {
                    peers.insert(Peer::Pods(place.clone()));
                }
                Err(why) => note(workload.name(), why),
            }
        }
    }
}
