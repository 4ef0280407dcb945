// SPDX-License-Identifier: Apache-2.0
//! The `kubernetes` identity source: who a pod is by its namespace and service account, which cgroup is the pod's, and where
//! the pods of other nodes are reached. Pure: what the API says comes in as events, in whatever order it does.
//!
//! A pod is its uid. Its name may be another pod's later, and so may its address: nothing that was true of one uid is
//! true of the next.

mod address;
mod cgroups;
mod directory;
mod ground;
mod known;
mod naming;
mod paths;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use self::address::Whose;
pub use self::directory::Directory;
pub use self::known::{Changes, Counts, Known, Part, REFUSALS};
pub use self::naming::{Naming, Template, TemplateError};
pub use self::paths::{is_static, is_uid, pod_around, pod_of, predicted};

/// The namespace of static pods.
pub const STATIC_NAMESPACE: &str = "kube-system";

/// A pod, as far as it is of interest. Any field may hold anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name, which may have been another one's.
    pub name: String,
    /// Its uid, which is nobody else's ever.
    pub uid: String,
    /// How new this is; 0 where that is not known.
    pub version: u64,
    /// The node that it is on; empty while it is on none.
    pub node: String,
    /// The name of its service account.
    pub service_account: String,
    /// It has its node's network, and its node's address.
    pub host_network: bool,
    /// It has ended for good: its address may be another one's.
    pub is_over: bool,
    /// Where it is reached, never in the IPv6-mapped form of IPv4.
    pub addresses: Vec<IpAddr>,
    /// Those of its node.
    pub host_addresses: Vec<IpAddr>,
    /// Addresses that are none.
    pub odd_addresses: u32,
    /// With a static pod, the uid that the kubelet knows it by.
    pub mirror: Option<String>,
    /// Its class of service, by which its cgroup is filed.
    pub qos: Option<Qos>,
}

/// The class of service of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Qos {
    /// Requests and limits are the same.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None.
    BestEffort,
}

impl Qos {
    /// The one that the API calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "Guaranteed" => Some(Self::Guaranteed),
            "Burstable" => Some(Self::Burstable),
            "BestEffort" => Some(Self::BestEffort),
            _ => None,
        }
    }

    /// What its cgroup is called; `None`: that of pods has no level for it.
    const fn level(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

#[cfg(test)]
mod tests;
