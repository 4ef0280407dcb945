// SPDX-License-Identifier: Apache-2.0
//! All pods that there are, from events in any order.
//!
//! A pod is known by namespace and name, as the API has at most one of a name, and told from earlier ones by its uid. Of two
//! things that are said of one pod the newer one holds, by its version. A uid that is gone is never back.

mod place;
mod remembered;
mod share;
mod take;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use self::share::Shares;
use super::Pod;
use super::address::{Claims, Resolved, Verdict, Whose};
use super::cgroups::PodCgroups;
use super::ground::Grounds;
use super::known::{Changes, Counts, Known, Part, REFUSALS};
use super::naming::{Naming, is_name};
use super::paths::is_uid;
use crate::identity::WorkloadRecord;
use crate::identity::peers::Roster;

/// Pods of each part that are known at most.
pub(super) const MOST_PODS: usize = 200_000;
/// Addresses that are known at most: the kernel's map has room for 262,144, and this node's own need some.
const MOST_ADDRESSES: usize = 240_000;
/// Addresses of one pod. (Kubernetes has one for each IP version.)
const MOST_EACH: usize = 8;
/// Uids that are remembered as gone.
const MOST_GONE: usize = 16_384;

/// All pods that there are.
#[derive(Debug)]
pub struct Directory {
    naming: Naming,
    node: String,
    /// By namespace and name.
    here: HashMap<Arc<str>, Known>,
    elsewhere: HashMap<Arc<str>, Known>,
    claims: Claims,
    grounds: Grounds,
    /// Of the pods elsewhere.
    shares: Shares,
    cgroups: PodCgroups,
    gone: HashSet<(Part, Box<str>)>,
    gone_order: VecDeque<(Part, Box<str>)>,
    here_changed: bool,
    /// The pods of this node are known; `None`: and that was told.
    told_here: Option<bool>,
    /// Where pods of other nodes are is not known any more.
    doubted: bool,
    /// What was told of the workloads here, and of addresses elsewhere.
    workloads: Vec<Arc<WorkloadRecord>>,
    told: HashMap<IpAddr, Whose>,
    disputed: HashSet<IpAddr>,
    /// Addresses that are claimed in vain.
    beaten: HashSet<IpAddr>,
    outside: HashSet<IpAddr>,
    cgroups_disputed: HashSet<Box<str>>,
    refused: BTreeMap<&'static str, u64>,
}

impl Directory {
    /// One with no pods, for this node. `roots` are the managed cgroups below the cgroup2 mount, `cluster` the networks of the
    /// cluster, where they are known.
    pub fn new(naming: Naming, node: String, roots: Vec<PathBuf>, cluster: Vec<IpNet>) -> Self {
        Self {
            grounds: Grounds::new(&node, cluster),
            shares: Shares::default(),
            naming,
            node,
            here: HashMap::new(),
            elsewhere: HashMap::new(),
            claims: Claims::default(),
            cgroups: PodCgroups::new(roots),
            gone: HashSet::new(),
            gone_order: VecDeque::new(),
            here_changed: true,
            told_here: Some(false),
            doubted: false,
            workloads: Vec::new(),
            told: HashMap::new(),
            disputed: HashSet::new(),
            beaten: HashSet::new(),
            outside: HashSet::new(),
            cgroups_disputed: HashSet::new(),
            refused: REFUSALS.into_iter().map(|cause| (cause, 0)).collect(),
        }
    }

    /// A pod is there, and is so.
    pub fn applied(&mut self, part: Part, pod: &Pod) {
        if !is_name(&pod.namespace) || !is_name(&pod.name) {
            self.refuse("name");
            return;
        }
        let name = name_of(pod);
        if !is_uid(&pod.uid) {
            self.refuse("uid");
            // Whoever had this name is another one now.
            self.forget(part, &name);
            return;
        }
        if self.gone.contains(&(part, pod.uid.as_str().into())) {
            return;
        }
        if let Some(before) = self.pods(part).get(&name) {
            let older = pod.version != 0 && before.version != 0 && pod.version < before.version;
            if *before.uid == *pod.uid {
                if older {
                    return;
                }
            } else if older {
                self.has_gone(part, &pod.uid);
                return;
            } else {
                let uid = Arc::clone(&before.uid);
                self.has_gone(part, &uid);
            }
        }
        self.take(part, name, pod);
    }

    /// A pod is gone.
    pub fn deleted(&mut self, part: Part, pod: &Pod) {
        if !is_uid(&pod.uid) {
            self.refuse("uid");
            return;
        }
        self.has_gone(part, &pod.uid);
        let name = name_of(pod);
        if self
            .pods(part)
            .get(&name)
            .is_some_and(|known| *known.uid == *pod.uid)
        {
            self.forget(part, &name);
        }
    }

    /// These are all pods that there are, whatever was said before.
    pub fn all(&mut self, part: Part, pods: &[Pod]) {
        let listed: HashMap<Arc<str>, &str> =
            pods.iter().map(|pod| (name_of(pod), pod.uid.as_str())).collect();
        let gone: Vec<(Arc<str>, Arc<str>)> = self
            .pods(part)
            .iter()
            .filter(|(name, known)| listed.get(*name).is_none_or(|uid| **uid != *known.uid))
            .map(|(name, known)| (Arc::clone(name), Arc::clone(&known.uid)))
            .collect();
        for (name, uid) in gone {
            self.has_gone(part, &uid);
            self.forget(part, &name);
        }
        if part == Part::Here {
            self.pods_known();
        }
        for pod in pods {
            // A cluster that was put back to what it was has pods that were gone, and versions that were higher.
            self.gone.remove(&(part, pod.uid.as_str().into()));
            if let Some(known) = self.pods(part).get_mut(&name_of(pod)) {
                known.version = 0;
            }
            self.applied(part, pod);
        }
    }

    /// A managed cgroup is there.
    pub fn cgroup_created(&mut self, path: &Path) {
        if let Some(uid) = self.cgroups.created(path) {
            self.cgroup_changed(&uid);
        }
    }

    /// A managed cgroup is gone.
    pub fn cgroup_removed(&mut self, path: &Path) {
        if let Some(uid) = self.cgroups.removed(path) {
            self.cgroup_changed(&uid);
        }
    }

    /// Whether what was heard of other nodes' pods is new enough to be believed. Where it is not, whoever is at their addresses is
    /// nobody. Whether that is new.
    pub fn believe(&mut self, believed: bool) -> bool {
        let is_new = self.doubted == believed;
        if is_new {
            self.doubted = !believed;
            self.claims.all_changed();
        }
        is_new
    }

    /// Which other nodes there are, and which networks they have been given; `None` where that is not known, or not any more.
    pub fn nodes(&mut self, nodes: Option<Arc<Roster>>) {
        self.grounds.know(nodes);
        self.claims.all_changed();
        // What it is worth depends on where this node's pods are.
        self.here_changed = true;
    }

    /// What is new since this was asked last.
    pub fn changes(&mut self) -> Changes {
        let mut changes = Changes {
            told: self.told_here.take_if(|told| *told).is_some(),
            ..Changes::default()
        };
        if self.here_changed {
            let own_pods = self.here.values().flat_map(|known| &known.addresses);
            if self.grounds.look(own_pods) {
                self.claims.all_changed();
            }
        }
        for address in self.claims.changed() {
            let verdict = self.claims.resolve(address, &self.grounds);
            self.note(address, &verdict);
            let whose = match verdict.resolved {
                Resolved::Free | Resolved::Own | Resolved::Here(_) => None,
                Resolved::Elsewhere(Whose::Pod { .. }) if self.doubted => Some(Whose::Nobody),
                Resolved::Elsewhere(whose) => Some(whose),
                Resolved::Disputed => Some(Whose::Nobody),
            };
            let before = match &whose {
                Some(whose) => self.told.insert(address, whose.clone()),
                None => self.told.remove(&address),
            };
            if before != whose {
                changes.addresses.push((address, whose));
            }
            self.here_changed |= self.claims.is_here(address);
        }
        if std::mem::take(&mut self.here_changed) {
            let workloads = self.place();
            if workloads != self.workloads {
                self.workloads.clone_from(&workloads);
                changes.selectors = workloads.iter().map(|record| self.selectors(record)).collect();
                changes.workloads = Some(workloads);
            }
        }
        changes
    }

    /// Counts who claims an address in vain, and what several claim with equal right, where that is new.
    fn note(&mut self, address: IpAddr, verdict: &Verdict) {
        let is_new = |noted: &mut HashSet<IpAddr>, holds: bool| {
            if holds {
                noted.insert(address)
            } else {
                noted.remove(&address);
                false
            }
        };
        if is_new(&mut self.disputed, verdict.resolved == Resolved::Disputed) {
            self.refuse("address_disputed");
            tracing::warn!(%address, "more than one pod or node claims an address: it names nobody until one is left");
        }
        if is_new(&mut self.beaten, verdict.beaten) {
            self.refuse("address_elsewhere");
            let nodes = self.claims.nodes_of(address);
            tracing::warn!(%address, ?nodes, "an address is claimed on several nodes, and stays that of the one to which it belongs: look at the kubelets of the others");
        }
        if is_new(&mut self.outside, verdict.outside) {
            self.refuse("address_outside");
            let nodes = self.claims.nodes_of(address);
            tracing::warn!(%address, ?nodes, "an address outside of clusterCIDRs is said to be a pod's, which is not believed, as all of this node's are inside: if there are pods there, add their network");
        }
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        let named = |known: &&Known| known.spiffe.is_some() && !known.is_over;
        Counts {
            here: self.here.values().filter(named).count(),
            elsewhere: self.elsewhere.len(),
            nodes: self.claims.nodes(),
            disputed: self.disputed.len(),
        }
    }

    /// The workloads of this node, as they were told last.
    pub fn workloads(&self) -> &[Arc<WorkloadRecord>] {
        &self.workloads
    }

    /// Whose an address elsewhere is, as it was told last.
    pub fn told(&self, address: IpAddr) -> Option<&Whose> {
        self.told.get(&address)
    }

    /// What was not believed so far, by cause: those of [`REFUSALS`].
    pub fn refused(&self) -> &BTreeMap<&'static str, u64> {
        &self.refused
    }

    /// The pods of this node are known from now on.
    fn pods_known(&mut self) {
        if let Some(told) = &mut self.told_here {
            *told = true;
        }
    }

    fn of(&self, part: Part) -> &HashMap<Arc<str>, Known> {
        match part {
            Part::Here => &self.here,
            Part::Elsewhere => &self.elsewhere,
        }
    }

    fn pods(&mut self, part: Part) -> &mut HashMap<Arc<str>, Known> {
        match part {
            Part::Here => &mut self.here,
            Part::Elsewhere => &mut self.elsewhere,
        }
    }

    fn replace(&mut self, part: Part, name: Arc<str>, known: Known) {
        if let Some(before) = self.pods(part).get_mut(&name) {
            // Mostly a heartbeat: nothing of interest is new.
            before.version = known.version;
            if *before == known {
                return;
            }
        }
        self.forget(part, &name);
        self.claim(part, &name, &known);
        for address in &known.host_addresses {
            self.claims.node(*address, part, &known.node);
        }
        if part == Part::Elsewhere {
            self.shares.add(&known);
        }
        self.here_changed |= part == Part::Here;
        self.pods(part).insert(name, known);
    }

    fn forget(&mut self, part: Part, name: &str) {
        let Some(known) = self.pods(part).remove(name) else {
            return;
        };
        for address in &known.addresses {
            self.claims.release(*address, part, name);
        }
        for address in &known.host_addresses {
            self.claims.no_node(*address, part, &known.node);
        }
        if part == Part::Elsewhere {
            self.shares.remove(&known);
        }
        self.here_changed |= part == Part::Here;
    }

    fn has_gone(&mut self, part: Part, uid: &str) {
        let gone = (part, Box::from(uid));
        if self.gone.insert(gone.clone()) {
            self.gone_order.push_back(gone);
            if self.gone_order.len() > MOST_GONE
                && let Some(oldest) = self.gone_order.pop_front()
            {
                self.gone.remove(&oldest);
            }
        }
    }

    fn refuse(&mut self, cause: &'static str) {
        debug_assert!(REFUSALS.contains(&cause), "{cause}");
        *self.refused.entry(cause).or_default() += 1;
    }
}

fn name_of(pod: &Pod) -> Arc<str> {
    Arc::from(format!("{}/{}", pod.namespace, pod.name))
}
