// SPDX-License-Identifier: Apache-2.0
//! Policies changed where the cluster keeps them.

use serde_json::Value;
use tokio::runtime::Handle;

use super::NAME;
use super::known::document;
use crate::kubernetes::policies::{create, delete, list, replace};
use crate::kubernetes::{Client, ClientError};
use crate::policy::{Problem, RESOURCES};
use crate::policy_dir::{BODY, EditError, Held, Store};

/// The policies of a cluster. Its methods block, on threads of the runtime that are made for that.
#[derive(Clone, Debug)]
pub struct Kept {
    client: Client,
    runtime: Handle,
}

impl Kept {
    /// Those that this API has. Must be called inside a tokio runtime.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            runtime: Handle::current(),
        }
    }
}

impl Store for Kept {
    fn name(&self) -> &'static str {
        NAME
    }

    fn read(&self) -> Result<Vec<Held>, EditError> {
        let mut all = Vec::new();
        for (_, collection) in RESOURCES {
            let listed = self.runtime.block_on(list(&self.client, collection));
            let listed = listed.map_err(|error| EditError::Unreachable(error.to_string()))?;
            all.extend(listed.into_iter().map(|policy| Held {
                document: document(&policy.resource, format!("{collection}/{}", policy.name)),
                resource: policy.resource,
            }));
        }
        all.sort_by(|a, b| a.document.file.cmp(&b.document.file));
        Ok(all)
    }

    fn write(
        &self,
        place: &str,
        from: Option<&Value>,
        to: Option<&Value>,
    ) -> Result<Option<Value>, EditError> {
        let collection = place.split('/').next().unwrap_or_default();
        let done = match (from, to) {
            (None, Some(to)) => self
                .runtime
                .block_on(create(&self.client, collection, to))
                .map(Some),
            (Some(_), Some(to)) => self
                .runtime
                .block_on(replace(&self.client, collection, to))
                .map(Some),
            (Some(from), None) => self
                .runtime
                .block_on(delete(&self.client, collection, from))
                .map(|()| None),
            (None, None) => Ok(None),
        };
        done.map_err(|error| refused(place, error))
    }
}

fn refused(place: &str, error: ClientError) -> EditError {
    match error {
        // Not found: it was there a moment ago.
        ClientError::Failed { code: 404 | 409, .. } => EditError::Conflict(place.to_owned()),
        ClientError::Failed {
            code: 400 | 422,
            message,
            ..
        } => EditError::Invalid(vec![Problem {
            file: BODY.to_owned(),
            line: 0,
            column: 0,
            field: String::new(),
            message: format!("the Kubernetes API refuses it: {message}"),
        }]),
        ClientError::Refused { code, message, .. } => EditError::Refused(format!(
            "the Kubernetes API does not let this agent change {place} ({code}): {message}; allow it in its ClusterRole, or change it there"
        )),
        other => EditError::Unreachable(other.to_string()),
    }
}
