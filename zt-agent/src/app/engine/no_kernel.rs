// SPDX-License-Identifier: Apache-2.0
//! What a policy engine answers where an agent would ask its kernel side.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::api::{ControlError, NodeControl, NodeStatus};

/// There is no kernel behind an engine.
pub(super) struct NoKernel;

impl NodeControl for NoKernel {
    fn status(&self) -> BoxFuture<'_, NodeStatus> {
        async { NodeStatus::default() }.boxed()
    }

    fn observe_all(&self, _on: bool) -> BoxFuture<'_, Result<(), ControlError>> {
        let message = "a policy engine enforces nothing: ask the agent of the node".to_owned();
        async { Err(ControlError { message }) }.boxed()
    }

    fn resume_rollout(&self, _caller: Arc<str>) -> BoxFuture<'_, Result<Option<String>, ControlError>> {
        let message = "a policy engine stops at no stage: ask the agent of the node".to_owned();
        async { Err(ControlError { message }) }.boxed()
    }
}
