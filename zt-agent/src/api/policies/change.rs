// SPDX-License-Identifier: Apache-2.0
//! `PUT` and `DELETE /v1/policies/{name}`.
//!
//! One change at a time: planned against what is on disk, written, waited for until it is in force on this node and its
//! record is stored. It is carried out to its end even if the client goes away.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::changed::{Changed, answer, warnings};
use super::conditions::Conditions;
use super::settle::{Settled, gone_back, settle, settled_back};
use crate::api::caller::Caller;
use crate::api::changes::{Announced, Left};
use crate::api::problem::ApiProblem;
use crate::api::query::{Given, Parameters, PolicyName, flag};
use crate::api::recorded::Unrecorded;
use crate::api::{ApiState, PolicyStore, Service, body, changes};
use crate::policy::{self, AnyPolicy, CompileError};
use crate::policy_dir::{Edit, EditError, Plan, Turn};

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
        let (plan, warnings) = plan(&state, edit, conditions).await?;
        let snapshot = state.snapshot();
        let in_force = plan.waits_for.is_empty() || gone_back(&plan, &snapshot).is_some();
        return Ok(answer((&*plan, warnings), snapshot.revision, in_force, true));
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
        let (plan, warnings) = plan(&state, edit, conditions).await?;
        let (revision, in_force) = carry_out(&state, &caller, &plan, turn).await?;
        Ok(answer((&*plan, warnings), revision, in_force, false))
    });
    work.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a change of policy broke off");
        Err(internal(
            "change_broke_off",
            "the change broke off: see the agent's log".to_owned(),
        ))
    })
}

/// What is to be done, and what somebody should know who does it.
async fn plan(
    state: &ApiState,
    edit: Edit,
    conditions: Conditions,
) -> Result<(Arc<Plan>, Vec<String>), ApiProblem> {
    let (snapshot, editor) = (state.snapshot(), state.editor.clone());
    let sees_workloads = state.service != Service::Engine;
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
        let warnings = compiled.map(|table| warnings(&plan.after, &snapshot, &table, sees_workloads));
        Ok((plan, warnings))
    });
    match planned.await {
        Ok(Ok((plan, Ok(warnings)))) => Ok((Arc::new(plan), warnings)),
        Ok(Ok((_, Err(error)))) => Err(does_not_compile(&error)),
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
    let under_way = state.changes().begin();
    let change = is_change.then(|| under_way.id());
    if let Some(id) = change {
        // And does nothing else.
        let goes_back = gone_back(plan, &start).is_some_and(|back| Some(back.as_str()) == wanted);
        changes::intend(state, plan, (id, &caller.name), goes_back).await?;
    }
    let mut announced = is_change.then(|| state.changes().announce(&plan.name, wanted, &caller.name));
    let written = Arc::clone(plan);
    let commit = move || {
        let outcome = match change {
            Some(id) => written.commit_as(id),
            None => written.commit(),
        };
        drop(turn);
        outcome
    };
    let outcome = tokio::task::spawn_blocking(commit).await;
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            // What failed half-way may have been made all the same.
            let left = match error {
                EditError::Write { .. } | EditError::Unreachable(_) => {
                    changes::left(state, plan, change).await
                }
                _ => Left::Nothing,
            };
            match left {
                Left::Made => {}
                Left::Unknown => {
                    // What comes of it is looked at again; what has come into force meanwhile is told by nobody else.
                    if changes::doubted(state, &under_way, announced.take()).await {
                        return Err(refused(error));
                    }
                }
                Left::Nothing => {
                    changes::forget(state, change).await;
                    return Err(refused(error));
                }
            }
            tracing::warn!(%error, policy = plan.name, "a change of policy is made, though writing it seemed to fail");
        }
        Err(error) => {
            if changes::doubted(state, &under_way, announced.take()).await {
                return Err(internal("change_broke_off", error.to_string()));
            }
            tracing::warn!(%error, policy = plan.name, "a change of policy is made, though writing it broke off");
        }
    }
    // From here on it is a change that was made, whatever becomes of it.
    changes::acknowledged(state, change).await;
    let record = async |revision, in_force| match change {
        Some(id) => changes::made(state, plan, id, (revision, in_force), &caller.name).await,
        None => Ok(()),
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
        leave(state, plan, announced).await;
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
            // Before: from then on it is none that was made.
            changes::unsure(state, change).await;
            let undone = Arc::clone(plan);
            let undone = tokio::task::spawn_blocking(move || undone.undo()).await;
            let kept = if matches!(undone, Ok(Ok(()))) {
                changes::forget(state, change).await;
                "and was taken back"
            } else {
                changes::acknowledged(state, change).await;
                let what = "the change is on disk and not in force";
                recorded(what, record(snapshot.revision, false).await)?;
                "and could not be taken back: look at the policy directory"
            };
            let detail = format!("the node did not bring the change into force, {kept}: see `errors`");
            Err(internal("not_in_force", detail).with_errors(Vec::clone(&problems)))
        }
        Settled::Late(snapshot) => {
            leave(state, plan, announced).await;
            let detail = "the change is on disk and not in force after 10 seconds: look at `/v1/status`";
            recorded(detail, record(snapshot.revision, false).await)?;
            Err(ApiProblem::unavailable("not_in_force_yet", detail))
        }
        Settled::Stopping(snapshot) => {
            leave(state, plan, announced).await;
            let detail = "the agent is stopping; the change is on disk";
            recorded(detail, record(snapshot.revision, false).await)?;
            Err(ApiProblem::unavailable("stopping", detail))
        }
    }
}

/// When it comes into force, it is this caller's, and is recorded by then.
async fn leave(state: &ApiState, plan: &Plan, announced: Option<Announced<'_>>) {
    let Some(announced) = announced else {
        return;
    };
    // Before: once it is left, it may come into force.
    changes::will_come(state, plan.after.digest()).await;
    announced.leave();
}

/// A change without a record is not acknowledged: `what` says what became of it.
fn recorded(what: &str, outcome: Result<(), Unrecorded>) -> Result<(), ApiProblem> {
    outcome.map_err(|unrecorded| {
        tracing::error!(%unrecorded, "a change of policy was made and has no record that is known to be stored");
        unrecorded.problem("not_recorded", &format!("{what}, and it has no record"))
    })
}

fn internal(code: &'static str, detail: String) -> ApiProblem {
    ApiProblem::new(StatusCode::INTERNAL_SERVER_ERROR, code, detail)
}

/// The refusal of policies that there can be no table of.
pub(in crate::api) fn does_not_compile(error: &CompileError) -> ApiProblem {
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    ApiProblem::new(status, "policy_does_not_compile", error.to_string())
}

/// The refusal of a change that cannot be made.
pub(in crate::api) fn refused(error: EditError) -> ApiProblem {
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
