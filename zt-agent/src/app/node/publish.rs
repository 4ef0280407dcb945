// SPDX-License-Identifier: Apache-2.0
//! What the node thread tells the rest of the agent: the snapshot in force, names for the trail, readiness, status.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zt_common::abi::{MODE_ENFORCE, Workload};
use zt_common::counter::Counter;
use zt_common::identity;

use super::Node;
use super::unnamed::LEFT_ALONE;
use crate::api::{DisputeStatus, HandshakeStatus, HookStatus, NodeStatus, PacketSocketsStatus, RootStatus};
use crate::audit::names::{Directory, Placement, RuleTexts};
use crate::config::UnknownWorkload;
use crate::identity::WorkloadRecord;
use crate::policy::RuleNames;
use crate::spiffe_id::SpiffeId;
use crate::state::{Placed, Snapshot};

/// The rules of the table in force, for the trail.
#[derive(Debug)]
struct Rules(Arc<RuleNames>);

impl RuleTexts for Rules {
    fn get(&self, number: u64) -> Option<Arc<str>> {
        self.0.get(number).map(|name| Arc::from(name.to_string()))
    }

    fn has(&self, number: u64) -> bool {
        self.0.get(number).is_some()
    }

    fn numbers(&self) -> Box<dyn Iterator<Item = u64> + '_> {
        Box::new(self.0.iter().map(|(number, _)| number))
    }
}

impl Node {
    /// Publishes what is in force.
    pub(super) fn publish(&mut self) {
        let Some(table) = self.parts.kernel.table() else {
            return;
        };
        self.parts.snapshots.publish(Snapshot {
            revision: self.revision,
            policies: Arc::clone(&self.loaded.policies),
            table: Arc::clone(table),
            workloads: Arc::clone(self.places.placed()),
            behind: self.behind || self.pending.merge,
            left_alone: self.left_alone(),
            nameless: self.nameless_pods(),
            fronts: Arc::clone(self.fronting.fronts()),
            policy_error: self.loaded.error.clone(),
            observe_all: self.observe_all,
            modes: self.modes.clone(),
            stopped: self.rollout.stop().filter(|_| self.modes.rollout().is_some()),
            enforced_nameless: self.enforced_nameless(),
            settings: Arc::clone(&self.settings),
        });
    }

    /// Pods that wait for a name. One that the sources disagree about is told of as nobody.
    fn nameless_pods(&self) -> Arc<[Arc<WorkloadRecord>]> {
        let waiting = self.waiting.iter().filter(|record| {
            !record.addresses.is_empty()
                && record
                    .addresses
                    .iter()
                    .all(|address| self.nobody.contains(address))
                && !self
                    .disputes
                    .iter()
                    .any(|dispute| dispute.cgroup.starts_with(&record.cgroup))
        });
        waiting.cloned().collect()
    }

    /// How many have no name and enforce as they did while they had one.
    fn enforced_nameless(&self) -> usize {
        let known = self.known_workloads();
        let nameless =
            |workload: &&Workload| workload.identity == identity::UNKNOWN && workload.mode == MODE_ENFORCE;
        known.values().filter(nameless).count()
    }

    /// Who has no name and is refused nothing all the same.
    fn left_alone(&self) -> Arc<[PathBuf]> {
        if self.parts.config.unknown_workload != UnknownWorkload::Deny {
            // That is everybody without one.
            return Arc::default();
        }
        let known = self.known_workloads();
        let mut paths: Vec<PathBuf> = known
            .iter()
            .filter(|(_, workload)| **workload == LEFT_ALONE)
            .filter_map(|(id, _)| self.cgroups.path(*id).map(Path::to_path_buf))
            .collect();
        paths.sort_unstable();
        paths.into()
    }

    /// Publishes all names: after a change of policy or of what is declared.
    pub(super) fn publish_names(&mut self) {
        let Some(table) = self.parts.kernel.table() else {
            return;
        };
        self.parts.names.update(&Directory {
            identities: table.party_texts().collect(),
            rules: Arc::new(Rules(Arc::clone(table.rule_names()))),
            workloads: self.placements(|_| true),
        });
        let declared: HashSet<Arc<str>> = table.identities().iter().map(SpiffeId::text).collect();
        self.parts.metrics.declare(declared);
    }

    /// Publishes where workloads are: after cgroups came or went.
    pub(super) fn publish_places(&mut self) {
        self.parts
            .names
            .place(&self.placements(|placed| placed.record.pod.is_some()));
        self.publish();
    }

    fn placements(&self, wanted: impl Fn(&Placed) -> bool) -> Vec<Placement> {
        let numbers = self.numbers();
        self.places
            .placed()
            .iter()
            .filter(|placed| wanted(placed))
            .map(|placed| Placement {
                identity: numbers.workload(&placed.record.spiffe),
                cgroups: placed.cgroup_ids.clone(),
                addresses: placed.record.addresses.clone(),
                pod: placed.record.pod.as_deref().map(Arc::from),
            })
            .collect()
    }

    fn handshake_status(&self) -> HandshakeStatus {
        let (fast_open_off, fast_open_left) = self.namespaces.fast_open();
        HandshakeStatus {
            mode: self.parts.config.handshake.name().to_owned(),
            older_proving: self.adopted.proving,
            older_reading: self.adopted.reading,
            older_failed: self.adopted.failed,
            fast_open_off,
            fast_open_left,
            paths: self.parts.paths.list(),
        }
    }

    /// What the kernel says now.
    pub(super) fn status(&self) -> NodeStatus {
        let counters = self
            .parts
            .kernel
            .counter_reader()
            .and_then(|reader| reader.read())
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "the kernel's counters cannot be read");
                [0; Counter::COUNT as usize]
            });
        let (unnamed, unnamed_more) = self.nameless();
        let packet_sockets = self.parts.kernel.packet_sockets();
        NodeStatus {
            hooks: self
                .parts
                .kernel
                .hooks()
                .into_iter()
                .map(|hook| HookStatus {
                    program: hook.program.into(),
                    attach_type: hook.attach_type.into(),
                    cgroup: hook.cgroup.display().to_string(),
                    attached: hook.attached,
                    program_id: hook.program_id,
                    link_id: hook.link_id,
                })
                .collect(),
            roots: self
                .parts
                .roots
                .iter()
                .map(|root| RootStatus {
                    path: root.path.display().to_string(),
                    id: root.id,
                })
                .collect(),
            awaited: self.awaited(),
            disputes: self
                .disputes
                .iter()
                .map(|dispute| DisputeStatus {
                    cgroup: dispute.cgroup.display().to_string(),
                    file: dispute.file.as_ref().map(ToString::to_string),
                    kubernetes: dispute.kubernetes.as_ref().map(ToString::to_string),
                    spire: dispute.spire.as_ref().map(ToString::to_string),
                })
                .collect(),
            unnamed,
            unnamed_more,
            around: self.around.found().to_vec(),
            handshake: self.handshake_status(),
            packet_sockets: PacketSocketsStatus {
                decided: packet_sockets.is_ok(),
                reason: packet_sockets.err().map(str::to_owned),
            },
            guarded: self.parts.kernel.guarded(),
            restored: self.parts.metrics.restored_total(),
            counters: Counter::ALL
                .iter()
                .zip(counters)
                .map(|(counter, value)| (counter.name(), value))
                .collect(),
        }
    }
}
