// SPDX-License-Identifier: Apache-2.0
//! The policies in force are kept on disk, as long as the trail may be asked what a change of them meant.

use std::sync::Arc;

use super::came_from;
use crate::api::ApiState;
use crate::policy::PolicySet;

/// Keeps what is in force now, beside what the trail told last and what was in force `before`.
pub(super) async fn keep(state: &ApiState, now: &Arc<PolicySet>, before: Option<&str>) {
    if let Err(error) = state.told_policies.keep(&came_from(state), now).await {
        tracing::error!(
            %error,
            "the policy in force is not kept on disk: if it is changed while no agent runs, the record of that will not say what \
             the change means"
        );
        return;
    }
    // Where that cannot be read, its copy may yet be asked for.
    let Ok(told) = state.store.policy_told().await else {
        return;
    };
    let wanted = [Some(now.digest()), told.as_deref(), before];
    let wanted: Vec<&str> = wanted.into_iter().flatten().collect();
    if let Err(error) = state.told_policies.keep_only(&wanted).await {
        tracing::warn!(%error, "copies of policies that are not in force any more cannot be removed");
    }
}

/// The policies of that digest, if they were kept.
pub(super) async fn kept(state: &ApiState, digest: &str) -> Option<PolicySet> {
    let settings = Arc::clone(&state.snapshot().settings);
    match state.told_policies.load(digest, &settings).await {
        Ok(policies) => Some(policies),
        Err(error) => {
            tracing::warn!(%error, "the policy that the trail told last is not there: what was changed since cannot be said");
            None
        }
    }
}
