// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/decisions/stream`: decisions as they are recorded, as server-sent events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, stream};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters, flag};
use super::{ApiState, Caller};
use crate::audit::Entry;
use crate::audit::record::Outcome;
use crate::spiffe_id::{Pattern, SpiffeId};

/// A comment after this long without a decision keeps proxies from closing the stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Identities of which it is remembered whether they match.
const MAX_REMEMBERED: usize = 4096;

/// One client.
struct Watching {
    records: broadcast::Receiver<Arc<Entry>>,
    stopping: watch::Receiver<bool>,
    caller: Caller,
    wanted: Wanted,
}

/// Which records it wants.
struct Wanted {
    denied: bool,
    identity: Option<Pattern>,
    /// Matching hashes the identity: once for each is enough.
    matches: HashMap<Arc<str>, bool>,
}

impl Wanted {
    fn wants(&mut self, entry: &Entry) -> bool {
        // Changes of policy and mode are for those who watch everything.
        let Entry::Decision(record) = entry else {
            return !self.denied && self.identity.is_none();
        };
        if self.denied && record.decision != Outcome::Deny {
            return false;
        }
        let Some(pattern) = &self.identity else {
            return true;
        };
        if self.matches.len() > MAX_REMEMBERED {
            self.matches.clear();
        }
        [&record.source.spiffe_id, &record.destination.spiffe_id]
            .into_iter()
            .flatten()
            .any(|text| {
                let known = self.matches.get(text).copied();
                known.unwrap_or_else(|| {
                    let matches = SpiffeId::parse(text).is_ok_and(|id| pattern.matches(&id));
                    self.matches.insert(Arc::clone(text), matches);
                    matches
                })
            })
    }
}

/// The query of the stream.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `decisions` reads")]
struct StreamQuery {
    /// Refusals only
    denied: Option<bool>,
    /// With one end that matches this SPIFFE ID or pattern
    identity: Option<String>,
}

/// Streams records as they are made.
#[utoipa::path(get, path = "/v1/decisions/stream", tag = "audit", params(StreamQuery), responses(
    (status = 200, description = "Server-sent events: `data` is one record, `id` its id; `lagged` says how many were missed. They end with the certificate of the caller", body = String, content_type = "text/event-stream"),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn decisions(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
) -> Result<Response, ApiProblem> {
    let mut given = Parameters::new(given.0, &["denied", "identity"]);
    let denied = given.with("denied", flag).unwrap_or(false);
    let identity = given.with("identity", |text| {
        Pattern::parse(text).map_err(|error| error.to_string())
    });
    given.finish()?;
    let watching = Watching {
        records: state.intake.subscribe(),
        stopping: state.stopping.clone(),
        caller,
        wanted: Wanted {
            denied,
            identity,
            matches: HashMap::new(),
        },
    };
    Ok(Sse::new(events(watching))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// Ends when the agent stops, and when the certificate of the caller does. What a slow client misses is told it, and never waited for.
fn events(watching: Watching) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(watching, |mut watching| async move {
        loop {
            let next = tokio::select! {
                next = watching.records.recv() => next,
                _ = watching.stopping.wait_for(|stopping| *stopping) => return None,
                () = watching.caller.expired() => return None,
            };
            match next {
                Ok(record) if watching.wanted.wants(&record) => {
                    let Ok(data) = serde_json::to_string(&*record) else {
                        continue;
                    };
                    let event = Event::default().id(record.id().to_string()).data(data);
                    return Some((Ok(event), watching));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    let event = Event::default()
                        .event("lagged")
                        .data(format!("{{\"missed\":{missed}}}"));
                    return Some((Ok(event), watching));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    })
}
