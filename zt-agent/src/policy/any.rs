// SPDX-License-Identifier: Apache-2.0
//! A policy of whichever kind.

use std::sync::Arc;

use serde_json::Value as Json;

use super::document::{KIND, ServiceAccessPolicy};
use super::operator::{OPERATOR_KIND, OperatorAccessPolicy};

/// A policy of whichever kind. Cheap to clone.
#[derive(Clone, Debug)]
pub enum AnyPolicy {
    /// Between workloads.
    Service(Arc<ServiceAccessPolicy>),
    /// For operators.
    Operator(Arc<OperatorAccessPolicy>),
}

impl AnyPolicy {
    /// `metadata.name`.
    pub fn name(&self) -> &str {
        match self {
            Self::Service(policy) => &policy.name,
            Self::Operator(policy) => &policy.name,
        }
    }

    /// `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Service(_) => KIND,
            Self::Operator(_) => OPERATOR_KIND,
        }
    }

    /// SHA-256 of the canonical form, in hexadecimal.
    pub fn digest(&self) -> &str {
        match self {
            Self::Service(policy) => policy.digest(),
            Self::Operator(policy) => policy.digest(),
        }
    }

    /// The document in its canonical form.
    pub fn document(&self) -> Json {
        match self {
            Self::Service(policy) => policy.document(),
            Self::Operator(policy) => policy.document(),
        }
    }

    /// The file it came from.
    pub fn file(&self) -> &str {
        match self {
            Self::Service(policy) => &policy.file,
            Self::Operator(policy) => &policy.file,
        }
    }

    /// Line and column where its name stands in that file.
    pub fn place(&self) -> (u64, u64) {
        match self {
            Self::Service(policy) => (policy.line, policy.column),
            Self::Operator(policy) => (policy.line, policy.column),
        }
    }
}
