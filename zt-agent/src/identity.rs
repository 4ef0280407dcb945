// SPDX-License-Identifier: Apache-2.0
//! Who a workload is: the sources of "this cgroup, reached at these addresses, is this SPIFFE ID".

pub mod file;
pub mod kept;
pub mod kubernetes;
pub mod merge;
mod modes;
pub mod peers;
pub mod services;
pub mod since;
pub mod spire;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::modes::{ModeRule, Modes};
use crate::spiffe_id::SpiffeId;

/// One workload as an identity source declares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct WorkloadRecord {
    /// The identity. Several workloads may share one: they are replicas.
    pub spiffe: SpiffeId,
    /// Its cgroup, relative to the cgroup2 mount; descendants belong to it as well, except those below another
    /// workload's cgroup: the deeper declaration wins. Need not exist yet.
    pub cgroup: PathBuf,
    /// The id of the one cgroup that this is true of; `None`: of whichever is at that path.
    pub cgroup_id: Option<u64>,
    /// Where peers reach it. IPv4 addresses are never in their IPv6-mapped form. No two workloads share one.
    pub addresses: Vec<IpAddr>,
    /// What happens to a refused connection; `None` leaves it to the configuration.
    pub mode: Option<Mode>,
    /// `namespace/name` of its pod, where the source knows.
    pub pod: Option<String>,
}

/// What happens at a workload when policy refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The connection goes through and the refusal is recorded.
    Observe,
    /// The connection is refused.
    Enforce,
}

impl Mode {
    /// Every mode, by name.
    pub const NAMES: [&'static str; 2] = ["observe", "enforce"];

    /// The mode called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "observe" => Some(Self::Observe),
            "enforce" => Some(Self::Enforce),
            _ => None,
        }
    }

    /// Its name in files and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
