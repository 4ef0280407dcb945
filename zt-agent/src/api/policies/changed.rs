// SPDX-License-Identifier: Apache-2.0
//! What is said of a change.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::policy::{AllowTable, PolicyDiff, PolicySet};
use crate::policy_dir::Plan;
use crate::problem::Problem;
use crate::state::Snapshot;

/// What a change did, or would do.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct Changed {
    /// The policy.
    name: String,
    /// Its digest now; null where it is gone.
    #[schema(required = true)]
    etag: Option<String>,
    /// Nothing was changed: this is what would be.
    dry_run: bool,
    /// The policy was not there before.
    created: bool,
    /// Revision in force on this node.
    revision: u64,
    /// It is in force on this node, or would be. Where it is not, other documents are not valid: it comes into force with all
    /// others when those are mended or removed.
    in_force: bool,
    /// What is wrong with those.
    errors: Vec<Problem>,
    /// What is no mistake, and may not be meant: stages of a rollout that select nobody at present.
    warnings: Vec<String>,
    /// Digest of all policies, as it is now or would be.
    digest: String,
    /// What the change means.
    diff: PolicyDiff,
}

/// What somebody should know of these policies, of which `table` was made. An agent that sees workloads knows all that there are.
pub(super) fn warnings(
    policies: &PolicySet,
    snapshot: &Snapshot,
    table: &AllowTable,
    sees_workloads: bool,
) -> Vec<String> {
    let here = snapshot.workloads.iter().map(|placed| &placed.record.spiffe);
    let known = here.chain(table.identities());
    let rollout = policies.rollout();
    rollout.map_or_else(Vec::new, |rollout| {
        let mut warnings = rollout.selecting_nobody(known, policies, sees_workloads);
        warnings.extend(rollout.limits_beyond_reach());
        warnings
    })
}

/// The answer to a change, with what somebody should know who makes it.
pub(super) fn answer(
    (plan, warnings): (&Plan, Vec<String>),
    revision: u64,
    in_force: bool,
    dry_run: bool,
) -> Response {
    let etag = plan.policy_after().map(|policy| policy.digest().to_owned());
    let quoted = etag.as_ref().map(|etag| format!("\"{etag}\""));
    let changed = Changed {
        name: plan.name.clone(),
        etag,
        dry_run,
        created: !plan.existed,
        revision,
        in_force,
        errors: plan.waits_for.clone(),
        warnings,
        digest: plan.after.digest().to_owned(),
        diff: plan.after.diff_from(&plan.before),
    };
    let status = if dry_run || changed.in_force {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let mut response = (status, Json(changed)).into_response();
    // The ETag is that of what is there: after a dry run that is still what was there before.
    let value = quoted.and_then(|etag| HeaderValue::from_str(&etag).ok());
    if let Some(value) = value.filter(|_| !dry_run) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}
