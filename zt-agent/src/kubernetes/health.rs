// SPDX-License-Identifier: Apache-2.0
//! How it stands with the Kubernetes API and with the pods. Everybody may look at any time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Freshness;
use super::freshness::Status;
use crate::identity::kubernetes::{Counts, Directory, REFUSALS};

/// What is known of the API and of the pods.
#[derive(Debug)]
pub struct Health {
    /// How following each collection stands.
    pub freshness: Arc<Freshness>,
    pods: Mutex<Pods>,
}

/// What is known of the pods.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// How many there are.
    pub counts: Counts,
    /// What was not believed, by cause.
    pub refused: BTreeMap<&'static str, u64>,
}

impl Health {
    /// Nothing is known yet.
    pub fn new(freshness: Arc<Freshness>) -> Arc<Self> {
        let pods = Pods {
            counts: Counts::default(),
            refused: REFUSALS.into_iter().map(|cause| (cause, 0)).collect(),
        };
        Arc::new(Self {
            freshness,
            pods: Mutex::new(pods),
        })
    }

    /// What is known of the pods now.
    pub fn pods(&self) -> Pods {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Since when and why what is known may be old, if it may.
    pub fn stale(&self) -> Option<(&'static str, Status)> {
        self.freshness.stale()
    }

    pub(super) fn note(&self, directory: &Directory) {
        let pods = Pods {
            counts: directory.counts(),
            refused: directory.refused().clone(),
        };
        *self.pods.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }
}
