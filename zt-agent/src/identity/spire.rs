// SPDX-License-Identifier: Apache-2.0
//! The `spire` identity source: who runs in a cgroup is asked of the node's SPIRE agent.
//!
//! For each managed cgroup that somebody runs in, a live process is taken hold of and its X.509-SVIDs are subscribed to over
//! the Delegated Identity API. The SPIFFE ID in the SVID, verified against the trust bundle of this node's trust domain,
//! is the identity of the cgroup. What SPIRE says later on that stream changes or withdraws it.
//!
//! While the SPIRE agent does not answer, an identity stays as long as its SVID is valid. An answer that cannot be believed
//! counts as none. The private keys that come with the SVIDs are not looked at and not kept, unless other nodes are to be shown who
//! lives here (`identity::peers`): then they are in memory as long as the SVID counts.

mod attest;
mod backoff;
mod bundle;
mod doors;
mod doubt;
mod health;
mod lifecycle;
mod link;
mod memory;
pub mod own;
mod process;
mod rights;
mod room;
mod source;
mod subject;
mod svid;
mod wall;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::bundle::BundleError;
pub use self::health::{Health, Status, Withdrawal};
pub use self::link::ask;
pub use self::memory::FILE;
pub use self::rights::{Refused, Rights};
pub use self::source::Source;
pub use self::subject::Pods;
pub use self::svid::{HINT, Refusal};
use crate::spiffe_id::SpiffeId;

/// What happens to an identity whose SVID could not be renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExpiry {
    /// It is taken back when its SVID expires.
    #[default]
    Withdraw,
    /// It stays until SPIRE says something else.
    Hold,
}

impl OnExpiry {
    /// The one called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "withdraw" => Some(Self::Withdraw),
            "hold" => Some(Self::Hold),
            _ => None,
        }
    }
}

/// What the source goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The SPIRE agent's admin socket.
    pub admin_socket: PathBuf,
    /// The trust domain of this node.
    pub trust_domain: String,
    /// Where cgroup2 is mounted.
    pub mount: PathBuf,
    /// The managed cgroups, below the mount. They have no identity themselves; what is below them has.
    pub roots: Vec<PathBuf>,
    /// The deepest level below a root at which a cgroup is given an identity.
    pub depth: usize,
    /// What happens when an SVID expires.
    pub on_expiry: OnExpiry,
    /// How long the SPIRE agent may take for an answer.
    pub patience: Duration,
    /// Where identities are remembered for the next start.
    pub memory: PathBuf,
}

/// An identity that SPIRE vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attested {
    /// The identity.
    pub spiffe: SpiffeId,
    /// When its SVID expires, Unix seconds.
    pub expires: i64,
}

/// Cgroups with an identity: by path below the mount, their id and who they are.
pub type Known = BTreeMap<PathBuf, (u64, Attested)>;

/// What SPIRE says of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// Its path below the cgroup2 mount.
    pub cgroup: PathBuf,
    /// Its id: another cgroup at the same path is not meant.
    pub cgroup_id: u64,
    /// Who it is; or why it is nobody that SPIRE knows.
    pub identity: Result<Attested, Withdrawal>,
}

#[cfg(test)]
mod tests;
