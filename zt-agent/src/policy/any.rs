// SPDX-License-Identifier: Apache-2.0
//! A policy of whichever kind.

use std::sync::Arc;

use serde_json::Value as Json;

use super::document::{KIND, ServiceAccessPolicy};
use super::envelope::Head;
use super::operator::{OPERATOR_KIND, OperatorAccessPolicy};
use super::rollout::{EnforcementRollout, ROLLOUT_KIND};

/// A policy of whichever kind. Cheap to clone.
#[derive(Clone, Debug)]
pub enum AnyPolicy {
    /// Between workloads.
    Service(Arc<ServiceAccessPolicy>),
    /// For operators.
    Operator(Arc<OperatorAccessPolicy>),
    /// How policies come to be enforced.
    Rollout(Arc<EnforcementRollout>),
}

impl AnyPolicy {
    fn head(&self) -> &Head {
        match self {
            Self::Service(policy) => &policy.head,
            Self::Operator(policy) => &policy.head,
            Self::Rollout(rollout) => &rollout.head,
        }
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.head().name
    }

    /// `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Service(_) => KIND,
            Self::Operator(_) => OPERATOR_KIND,
            Self::Rollout(_) => ROLLOUT_KIND,
        }
    }

    /// SHA-256 of the canonical form, in hexadecimal.
    pub fn digest(&self) -> &str {
        match self {
            Self::Service(policy) => policy.digest(),
            Self::Operator(policy) => policy.digest(),
            Self::Rollout(rollout) => rollout.digest(),
        }
    }

    /// The document in its canonical form.
    pub fn document(&self) -> Json {
        match self {
            Self::Service(policy) => policy.document(),
            Self::Operator(policy) => policy.document(),
            Self::Rollout(rollout) => rollout.document(),
        }
    }

    /// The file it came from.
    pub fn file(&self) -> &str {
        &self.head().file
    }

    /// Line and column where its name stands in that file.
    pub fn place(&self) -> (u64, u64) {
        (self.head().line, self.head().column)
    }
}
