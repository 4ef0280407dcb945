// SPDX-License-Identifier: Apache-2.0
//! `PUT` and `DELETE /v1/policies/{name}`.
//!
//! One change at a time: planned against what is on disk, written, waited for until it is in force on this node and its
//! record is stored. It is carried out to its end even if the client goes away.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::conditions::Conditions;
use super::settle::{Settled, gone_back, settle, settled_back};
use crate::api::caller::Caller;
use crate::api::problem::ApiProblem;
use crate::api::query::{Given, Parameters, PolicyName, flag};
use crate::api::recorded::Unrecorded;
use crate::api::{ApiState, PolicyStore, body, changes};
use crate::policy::{self, AnyPolicy, PolicyDiff};
use crate::policy_dir::{Edit, EditError, Plan, Turn};
use crate::problem::Problem;

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
    /// Digest of all policies, as it is now or would be.
    digest: String,
    /// What the change means.
    diff: PolicyDiff,
}

/// Puts a policy in the place of the one of that name, or adds it.
#[utoipa::path(
    put, path = "/v1/policies/{name}", tag = "policies",
    params(PolicyName, DryRun, ("If-Match" = Option<String>, Header, description = "The change is made only if the policy has this ETag"), ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is no such policy")),
    request_body(
        content((serde_json::Value = "application/yaml"), (serde_json::Value = "application/json")),
        description = "One policy document, YAML or JSON, whose metadata.name is the name in the path"
    ),
    responses(
        (status = 200, description = "Committed, in force on this node, and its record stored; with dry_run, what would change", body = Changed, headers(("ETag" = String))),
        (status = 202, description = "Committed, and its record stored, and not in force, because other documents are not valid: see `errors`. A rollout goes back all the same: then it is 200", body = Changed, headers(("ETag" = String))),
        (status = "4XX", description = "Nothing was changed", body = crate::api::problem::Details, content_type = "application/problem+json"),
        (status = "5XX", description = "It could not be written, or not brought into force, or has no record that is known to be stored: `detail` says whether it is on disk and in force", body = crate::api::problem::Details, content_type = "application/problem+json"),
    ),
)]
pub(in crate::api) async fn put(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    PolicyName(name): PolicyName,
    given: Given,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiProblem> {
    let dry_run = dry_run(given)?;
    let conditions = Conditions::of(&headers)?;
    let text = body::document(&headers, body).await?;
    change(state, caller, Edit::Put { name, text }, conditions, dry_run).await
}

/// Removes a policy.
#[utoipa::path(
    delete, path = "/v1/policies/{name}", tag = "policies",
    params(PolicyName, DryRun, ("If-Match" = Option<String>, Header, description = "The policy is removed only if it has this ETag")),
    responses(
        (status = 200, description = "Removed, no longer in force on this node, and the record of that stored; with dry_run, what would change", body = Changed),
        (status = 202, description = "Removed, and the record of that stored, and still in force, because other documents are not valid: see `errors`", body = Changed),
        (status = "4XX", description = "Nothing was changed", body = crate::api::problem::Details, content_type = "application/problem+json"),
        (status = "5XX", description = "It could not be removed, or not taken out of force, or has no record that is known to be stored: `detail` says which", body = crate::api::problem::Details, content_type = "application/problem+json"),
    ),
)]
pub(in crate::api) async fn delete(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    PolicyName(name): PolicyName,
    given: Given,
    headers: HeaderMap,
) -> Result<Response, ApiProblem> {
    let dry_run = dry_run(given)?;
    let conditions = Conditions::of(&headers)?;
    change(state, caller, Edit::Delete { name }, conditions, dry_run).await
}

/// The query of a change.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `dry_run` reads")]
struct DryRun {
    /// `true`: say what would change, and change nothing.
    dry_run: Option<bool>,
}

fn dry_run(given: Given) -> Result<bool, ApiProblem> {
    let mut given = Parameters::new(given.0, &["dry_run"]);
    let dry_run = given.with("dry_run", flag).unwrap_or(false);
    given.finish()?;
    Ok(dry_run)
}

pub(in crate::api) async fn change(
    state: ApiState,
    caller: Caller,
    edit: Edit,
    conditions: Conditions,
    dry_run: bool,
) -> Result<Response, ApiProblem> {
    if let (Some(source), PolicyStore::Engine) = (&state.source, state.kept) {
        let detail = format!(
            "policy of this node comes from the policy engine at {}: change it there",
            source.borrow().url
        );
        return Err(ApiProblem::new(
            StatusCode::CONFLICT,
            "policy_from_engine",
            detail,
        ));
    }
    if dry_run {
        let plan = plan(&state, edit, conditions).await?;
        let snapshot = state.snapshot();
        let in_force = plan.waits_for.is_empty() || gone_back(&plan, &snapshot).is_some();
        return Ok(answer(&plan, snapshot.revision, in_force, true));
    }
    // Here, where it ends when the client goes away: nothing is kept for those who have left.
    let Some(turn_here) = state.changes().turn().await else {
        let detail = "other changes of policy are under way and do not come to an end: try again, and look at `/v1/status`";
        return Err(ApiProblem::unavailable("directory_busy", detail));
    };
    // A task of its own: half a change is worse than one that nobody waits for any more.
    let work = tokio::spawn(async move {
        let _turn_here = turn_here;
        // And among all the processes that share the directory: what is planned is what is made.
        let editor = state.editor.clone();
        let turn = match tokio::task::spawn_blocking(move || editor.turn()).await {
            Ok(turn) => turn.map_err(refused)?,
            Err(error) => return Err(internal("change_broke_off", error.to_string())),
        };
        let plan = plan(&state, edit, conditions).await?;
        let (revision, in_force) = carry_out(&state, &caller, &plan, turn).await?;
        Ok(answer(&plan, revision, in_force, false))
    });
    work.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a change of policy broke off");
        Err(internal(
            "change_broke_off",
            "the change broke off: see the agent's log".to_owned(),
        ))
    })
}

async fn plan(state: &ApiState, edit: Edit, conditions: Conditions) -> Result<Arc<Plan>, ApiProblem> {
    let (snapshot, editor) = (state.snapshot(), state.editor.clone());
    let planned = tokio::task::spawn_blocking(move || {
        let plan = editor.plan(edit, &snapshot.policies, |digest| conditions.check(digest))?;
        // What the node would be given: a table that cannot be made is found out here.
        let identities = snapshot.table.identities().iter().cloned().collect();
        let compiled = policy::compile(
            &plan.after,
            &identities,
            &snapshot.settings,
            snapshot.revision + 1,
        );
        Ok((plan, compiled.map(drop)))
    });
    match planned.await {
        Ok(Ok((plan, Ok(())))) => Ok(Arc::new(plan)),
        Ok(Ok((_, Err(error)))) => Err(ApiProblem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "policy_does_not_compile",
            error.to_string(),
        )),
        Ok(Err(error)) => Err(refused(error)),
        Err(error) => Err(internal("change_broke_off", error.to_string())),
    }
}

/// Writes the change, waits until it is in force and recorded; the revision then, and whether it is.
#[expect(clippy::too_many_lines, reason = "one step after the other")]
async fn carry_out(
    state: &ApiState,
    caller: &Caller,
    plan: &Arc<Plan>,
    turn: Turn,
) -> Result<(u64, bool), ApiProblem> {
    let mut snapshots = state.snapshots.clone();
    let start = Arc::clone(&snapshots.borrow_and_update());
    let wanted = plan.policy_after().map(AnyPolicy::digest);
    // A change of comments changes no digest: there is nothing to record.
    let is_change = plan.after.digest() != plan.before.digest();
    let announced = is_change.then(|| state.changes().announce(&plan.name, wanted, &caller.name));
    let written = Arc::clone(plan);
    let commit = move || {
        let outcome = written.commit();
        drop(turn);
        outcome
    };
    let outcome = tokio::task::spawn_blocking(commit).await;
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(refused(error)),
        Err(error) => return Err(internal("change_broke_off", error.to_string())),
    }
    // From here on it is a change that was made, whatever becomes of it.
    let record = async |revision, in_force| {
        if is_change {
            changes::made(state, plan, revision, in_force, &caller.name).await
        } else {
            Ok(())
        }
    };
    if let Some(wanted) = gone_back(plan, &start).filter(|_| !plan.waits_for.is_empty())
        && let Some(snapshot) = settled_back(&wanted, snapshots.clone()).await
    {
        if let Some(announced) = announced {
            announced.seen(snapshot.revision).await;
        }
        let what = format!(
            "the rollout has gone back, in force at revision {}",
            snapshot.revision
        );
        recorded(&what, record(snapshot.revision, true).await)?;
        return Ok((snapshot.revision, true));
    }
    if !plan.waits_for.is_empty() {
        if let Some(announced) = announced {
            announced.leave();
        }
        let what = "the change is made, and comes into force when the other documents are valid";
        recorded(what, record(start.revision, false).await)?;
        return Ok((start.revision, false));
    }
    match settle(state, plan, snapshots, &start).await {
        Settled::InForce(snapshot) => {
            if let Some(announced) = announced {
                announced.seen(snapshot.revision).await;
            }
            let what = format!(
                "the change is on disk and in force at revision {}",
                snapshot.revision
            );
            recorded(&what, record(snapshot.revision, true).await)?;
            Ok((snapshot.revision, true))
        }
        Settled::Replaced(snapshot) => {
            if let Some(announced) = announced {
                announced.seen(snapshot.revision).await;
            }
            let what = "the change was made, and changed again by another before it was in force here";
            recorded(what, record(snapshot.revision, false).await)?;
            Ok((snapshot.revision, plan.waits_for.is_empty()))
        }
        Settled::Refused(snapshot, problems) => {
            tracing::error!(
                policy = plan.name,
                "a change over the API did not come into force and is taken back"
            );
            let undone = Arc::clone(plan);
            let undone = tokio::task::spawn_blocking(move || undone.undo()).await;
            let kept = if matches!(undone, Ok(Ok(()))) {
                "and was taken back"
            } else {
                let what = "the change is on disk and not in force";
                recorded(what, record(snapshot.revision, false).await)?;
                "and could not be taken back: look at the policy directory"
            };
            let detail = format!("the node did not bring the change into force, {kept}: see `errors`");
            Err(internal("not_in_force", detail).with_errors(Vec::clone(&problems)))
        }
        Settled::Late(snapshot) => {
            // When it comes into force, it is this caller's.
            if let Some(announced) = announced {
                announced.leave();
            }
            let detail = "the change is on disk and not in force after 10 seconds: look at `/v1/status`";
            recorded(detail, record(snapshot.revision, false).await)?;
            if is_change {
                changes::will_come(state, plan).await;
            }
            Err(ApiProblem::unavailable("not_in_force_yet", detail))
        }
        Settled::Stopping(snapshot) => {
            let detail = "the agent is stopping; the change is on disk";
            recorded(detail, record(snapshot.revision, false).await)?;
            if is_change {
                changes::will_come(state, plan).await;
            }
            Err(ApiProblem::unavailable("stopping", detail))
        }
    }
}

/// A change without a record is not acknowledged: `what` says what became of it.
fn recorded(what: &str, outcome: Result<(), Unrecorded>) -> Result<(), ApiProblem> {
    outcome.map_err(|unrecorded| {
        tracing::error!(%unrecorded, "a change of policy was made and has no record that is known to be stored");
        unrecorded.problem("not_recorded", &format!("{what}, and it has no record"))
    })
}

fn answer(plan: &Plan, revision: u64, in_force: bool, dry_run: bool) -> Response {
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

fn internal(code: &'static str, detail: String) -> ApiProblem {
    ApiProblem::new(StatusCode::INTERNAL_SERVER_ERROR, code, detail)
}

fn refused(error: EditError) -> ApiProblem {
    use StatusCode as Status;
    let detail = error.to_string();
    let (status, code) = match &error {
        EditError::Name => (Status::UNPROCESSABLE_ENTITY, "invalid_name"),
        EditError::Invalid(_) => (Status::UNPROCESSABLE_ENTITY, "invalid_policy"),
        EditError::DiskInvalid(_) => (Status::CONFLICT, "disk_invalid"),
        EditError::NotFound(_) => (Status::NOT_FOUND, "policy_not_found"),
        EditError::Precondition(_) => (Status::PRECONDITION_FAILED, "precondition_failed"),
        EditError::NoDirectory(_) => (Status::CONFLICT, "policy_path_is_a_file"),
        EditError::Link(_) => (Status::CONFLICT, "policy_is_a_link"),
        EditError::SharedFile { .. } => (Status::CONFLICT, "policy_shares_file"),
        EditError::FileTaken(_) => (Status::CONFLICT, "file_taken"),
        EditError::LastPolicy => (Status::CONFLICT, "last_policy"),
        EditError::Raced(_) => (Status::CONFLICT, "changed_meanwhile"),
        EditError::Conflict(_) => (Status::PRECONDITION_FAILED, "changed_meanwhile"),
        EditError::OtherKind { .. } => (Status::CONFLICT, "policy_of_another_kind"),
        EditError::Refused(_) => (Status::CONFLICT, "store_refuses"),
        EditError::Unreachable(_) => (Status::SERVICE_UNAVAILABLE, "store_unreachable"),
        EditError::Busy(_) => (Status::SERVICE_UNAVAILABLE, "directory_busy"),
        EditError::ReadOnly { .. } => (Status::CONFLICT, "read_only"),
        EditError::Write { .. } => {
            tracing::error!(%error, "a policy cannot be written");
            (Status::INTERNAL_SERVER_ERROR, "write_failed")
        }
    };
    let problem = ApiProblem::new(status, code, detail);
    match error {
        EditError::Invalid(problems) | EditError::DiskInvalid(problems) => problem.with_errors(problems),
        _ => problem,
    }
}
