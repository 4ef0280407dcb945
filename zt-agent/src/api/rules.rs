// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/rules`: how often each rule decided.
//!
//! A rule is known by its number in its policy. So what is counted of a policy is what came after it was changed last: before,
//! another rule may have had the number.

mod begins;

use axum::Json;
use axum::extract::{Extension, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::audit::{answered, settled, shortly};
use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use super::{ApiState, Caller};
use crate::audit::archive::ArchiveError;
use crate::audit::query::{Current, GraphFilter, Hits};
use crate::audit::record::Timestamp;

/// The query of the rules.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `rules` reads")]
struct RulesQuery {
    /// RFC 3339; not before, by the hour
    since: Option<String>,
    /// RFC 3339; before, by the hour; later than `since`
    until: Option<String>,
}

/// How often each rule decided.
#[derive(Serialize, ToSchema)]
pub(super) struct Rules {
    /// Revision in force.
    revision: u64,
    /// Those in force, in order, whether they decided anything or not; then those that decided and are not in force, and
    /// what no rule decided. What a rule in force has is what it decided as long as its policy is what it is.
    rules: Vec<Rule>,
}

/// How often one rule decided. Connections are counted once, whichever end decided.
#[derive(Serialize, ToSchema)]
#[schema(as = RuleHits)]
#[expect(clippy::struct_field_names, reason = "what records and answers call it")]
struct Rule {
    /// `<policy>/rule-<n>` or `builtin/…`; null where no rule decided.
    #[schema(required = true)]
    rule: Option<String>,
    /// It is one of a policy in force, or built in.
    in_force: bool,
    /// Connections that policy allowed.
    allowed: u64,
    /// Those that were refused.
    denied: u64,
    /// Those that policy denied and nothing refused.
    would_deny: u64,
    /// Since when these are counted, where that is later than what was asked for: its policy was changed then, or may have been,
    /// and another rule may have had its name before. The hour after that, where so much was decided in the hour of the change that
    /// it was not told apart. Null where all that was asked for is counted.
    #[schema(value_type = Option<String>, required = true)]
    since: Option<Timestamp>,
    /// The first of them.
    #[schema(value_type = Option<String>, required = true)]
    first_seen: Option<Timestamp>,
    /// The latest; also one that is not counted, where `since` is the hour after. Null where it never decided.
    #[schema(value_type = Option<String>, required = true)]
    last_seen: Option<Timestamp>,
}

impl Rule {
    fn of(rule: Option<String>, in_force: bool, current: &Current) -> Self {
        let hits = current.hits.as_ref();
        let count = |of: fn(&Hits) -> u64| hits.map_or(0, of);
        Self {
            rule,
            in_force,
            allowed: count(|hits| hits.allowed),
            denied: count(|hits| hits.denied),
            would_deny: count(|hits| hits.would_deny),
            since: current.since,
            first_seen: hits.map(|hits| hits.first_seen),
            last_seen: current.last_seen,
        }
    }
}

/// Says how often each rule decided.
#[utoipa::path(get, path = "/v1/rules", tag = "policies", params(RulesQuery), responses(
    (status = 200, description = "Each rule in force, counted since its policy was changed last, and what others decided", body = Rules),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "The store does not answer, or too many wait for such an answer (`busy`, with `Retry-After`)", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn rules(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
) -> Result<Json<Rules>, ApiProblem> {
    let mut given = Parameters::new(given.0, &["since", "until"]);
    let (since, until) = given.span();
    given.finish()?;
    let turn = state.counting().take(&caller.account).await?;
    let answer = async move {
        settled(&state).await;
        let snapshot = state.snapshot();
        // So that it is known when that came into force.
        let is_seen = shortly(state.changes().have_seen(snapshot.revision)).await;
        let counted = async {
            let begins = begins::begins(&state, &snapshot.policies, since, is_seen).await?;
            let hits = state
                .store
                .rules(&GraphFilter::since(since, until), &begins)
                .await?;
            Ok::<_, ArchiveError>((begins, hits))
        };
        let (begins, hits) = answered(counted).await?;
        Ok((snapshot, begins, hits))
    };
    let (snapshot, begins, mut hits) = turn.spent_on(answer).await?;
    let in_force = snapshot.policies.policies().iter().flat_map(|policy| {
        let name = &policy.head.name;
        (1..=policy.rules.len()).map(move |number| format!("{name}/rule-{number}"))
    });
    let mut rules: Vec<Rule> = in_force
        .map(|rule| {
            let begin = begins.of(Some(&rule));
            let decided = hits.remove(&Some(rule.clone())).unwrap_or_default();
            Rule::of(Some(rule), true, &decided.current(begin))
        })
        .collect();
    let undecided = hits.remove(&None);
    // Of these it makes no difference when a policy was changed.
    rules.extend(hits.into_iter().map(|(rule, decided)| {
        let is_built_in = rule.as_deref().is_some_and(|rule| rule.starts_with("builtin/"));
        Rule::of(rule, is_built_in, &Current::from(decided.all()))
    }));
    rules.extend(undecided.map(|decided| Rule::of(None, false, &Current::from(decided.all()))));
    Ok(Json(Rules {
        revision: snapshot.revision,
        rules,
    }))
}
