// SPDX-License-Identifier: Apache-2.0
//! One entry of the trail: a decision, or a change of what decides. `type` in JSON says which.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{AuditRecord, Change, Kind, Timestamp};
use crate::audit::chain::Link;

/// What the trail is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every entry is a decision: an allocation for each would cost more than the room of the others"
)]
pub enum Entry {
    /// Something was decided.
    Decision(AuditRecord),
    /// Another policy is in force: `change` has the digests `from` and `to`, and the semantic `diff`.
    PolicyChange(Change),
    /// An operator changed the mode of a node: `change` has `mode` (`observe` or `restore`).
    ModeChange(Change),
    /// A workload that runs has lost its identity, or has another: `change` has its `cgroup`, the identities `from` and `to`,
    /// the `cause`, and what each source `says` where they disagree.
    IdentityChange(Change),
}

impl Entry {
    /// Its `type`.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Decision(_) => Kind::Decision,
            Self::PolicyChange(_) => Kind::PolicyChange,
            Self::ModeChange(_) => Kind::ModeChange,
            Self::IdentityChange(_) => Kind::IdentityChange,
        }
    }

    /// A change of that kind; `None` for a decision.
    pub fn of_change(kind: Kind, change: Change) -> Option<Self> {
        match kind {
            Kind::Decision => None,
            Kind::PolicyChange => Some(Self::PolicyChange(change)),
            Kind::ModeChange => Some(Self::ModeChange(change)),
            Kind::IdentityChange => Some(Self::IdentityChange(change)),
        }
    }

    /// Its id.
    pub const fn id(&self) -> Uuid {
        match self {
            Self::Decision(record) => record.id,
            Self::PolicyChange(change) | Self::ModeChange(change) | Self::IdentityChange(change) => change.id,
        }
    }

    /// When it was.
    pub const fn timestamp(&self) -> Timestamp {
        match self {
            Self::Decision(record) => record.timestamp,
            Self::PolicyChange(change) | Self::ModeChange(change) | Self::IdentityChange(change) => {
                change.timestamp
            }
        }
    }

    /// The decision, if it is one.
    pub const fn decision(&self) -> Option<&AuditRecord> {
        match self {
            Self::Decision(record) => Some(record),
            Self::PolicyChange(_) | Self::ModeChange(_) | Self::IdentityChange(_) => None,
        }
    }

    /// How many decisions or changes it stands for.
    pub const fn weight(&self) -> u64 {
        match self {
            Self::Decision(record) => record.count,
            Self::PolicyChange(_) | Self::ModeChange(_) | Self::IdentityChange(_) => 1,
        }
    }

    /// The change, if it is one.
    pub const fn change(&self) -> Option<&Change> {
        match self {
            Self::Decision(_) => None,
            Self::PolicyChange(change) | Self::ModeChange(change) | Self::IdentityChange(change) => {
                Some(change)
            }
        }
    }
}

/// An entry as a store keeps it, with its place in the chain of the one who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The entry.
    #[serde(flatten)]
    pub entry: Entry,
    /// Its link; `None` where the entry is older than the chain.
    #[serde(flatten)]
    pub link: Option<Link>,
}
