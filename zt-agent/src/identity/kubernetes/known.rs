// SPDX-License-Identifier: Apache-2.0
//! What is kept of a pod, and what is told of all of them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Qos, Whose};
use crate::identity::WorkloadRecord;
use crate::spiffe_id::SpiffeId;

/// Why something that the API says of a pod is not believed.
pub const REFUSALS: [&str; 10] = [
    "uid",
    "name",
    "identity",
    "address",
    "address_disputed",
    "address_elsewhere",
    "address_outside",
    "node",
    "cgroup_disputed",
    "too_many",
];

/// Which pods are meant: each part comes from a watch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// Those of this node.
    Here,
    /// Those of all others.
    Elsewhere,
}

/// A pod as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its uid.
    pub(super) uid: Arc<str>,
    /// How new that is.
    pub(super) version: u64,
    /// The node that it is on; empty where an agent has left it that did not say.
    #[serde(default = "nowhere")]
    pub(super) node: Arc<str>,
    /// Who it is.
    pub(super) spiffe: Option<SpiffeId>,
    /// It has ended.
    pub(super) is_over: bool,
    /// Addresses that are its own.
    pub(super) addresses: Box<[IpAddr]>,
    /// Addresses of its node.
    pub(super) host_addresses: Box<[IpAddr]>,
    /// What its cgroup is called after: mostly its uid, and then kept once.
    pub(super) cgroup_uid: Arc<str>,
    /// Its service account; empty with a static pod.
    pub(super) account: Box<str>,
    /// Its class.
    pub(super) qos: Qos,
}

fn nowhere() -> Arc<str> {
    Arc::from("")
}

impl Known {
    /// The same pod, wherever it is.
    #[must_use]
    pub fn without_addresses(self) -> Self {
        Self {
            addresses: Box::default(),
            host_addresses: Box::default(),
            ..self
        }
    }
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods of this node that have an identity.
    pub here: usize,
    /// Pods of other nodes.
    pub elsewhere: usize,
    /// Addresses of other nodes.
    pub nodes: usize,
    /// Addresses that more than one claim: they name nobody.
    pub disputed: usize,
}

/// What is new since it was asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The workloads of this node, all of them, if anything about them is new.
    pub workloads: Option<Vec<Arc<WorkloadRecord>>>,
    /// With the workloads: what SPIRE can be asked about each, by its cgroup.
    pub selectors: Vec<(PathBuf, Arc<[String]>)>,
    /// Addresses elsewhere, and whose they are; `None`: nobody's that is known.
    pub addresses: Vec<(IpAddr, Option<Whose>)>,
    /// From now on the pods of this node are known: they were listed, or remembered, for the first time.
    pub told: bool,
}

impl Changes {
    /// Whether there is nothing new.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_none() && self.addresses.is_empty() && !self.told
    }
}
