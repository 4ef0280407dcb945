// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/revisions/stream`: each policy that comes into force, by revision and digest, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, stream};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use super::{ApiState, Caller};
use crate::state::Snapshot;

/// A follower that hears nothing for longer than a few of these is right to believe that nobody is there.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What is in force.
#[derive(Serialize)]
struct Revision<'s> {
    revision: u64,
    digest: &'s str,
}

/// One follower.
struct Following {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    stopping: watch::Receiver<bool>,
    caller: Caller,
    heartbeat: Interval,
    /// Revision and digest that were told last.
    told: Option<(u64, String)>,
}

/// Streams what is in force: at once, after each change (event `revision`), and every five seconds (`heartbeat`).
#[utoipa::path(get, path = "/v1/revisions/stream", tag = "policies", responses(
    (status = 200, description = "Server-sent events: `data` is {revision, digest}. They end with the certificate of the caller", body = String, content_type = "text/event-stream"),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn revisions(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
) -> Result<Response, ApiProblem> {
    Parameters::new(given.0, &[]).finish()?;
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat.reset();
    let following = Following {
        snapshots: state.snapshots.clone(),
        stopping: state.stopping.clone(),
        caller,
        heartbeat,
        told: None,
    };
    Ok(Sse::new(events(following)).into_response())
}

/// Ends when the agent stops, and when the certificate of the caller does. What a slow follower misses it need not know: the last revision counts.
fn events(following: Following) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(following, |mut following| async move {
        loop {
            let snapshot = Arc::clone(&following.snapshots.borrow_and_update());
            let (revision, digest) = (snapshot.revision, snapshot.policies.digest());
            let known = following
                .told
                .as_ref()
                .is_some_and(|(r, d)| *r == revision && d == digest);
            let name = if known {
                let Following {
                    snapshots,
                    stopping,
                    caller,
                    heartbeat,
                    ..
                } = &mut following;
                tokio::select! {
                    changed = snapshots.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return None,
                    },
                    _ = stopping.wait_for(|stopping| *stopping) => return None,
                    () = caller.expired() => return None,
                    _ = heartbeat.tick() => "heartbeat",
                }
            } else {
                "revision"
            };
            following.told = Some((revision, digest.to_owned()));
            let Ok(data) = serde_json::to_string(&Revision { revision, digest }) else {
                return None;
            };
            return Some((Ok(Event::default().event(name).data(data)), following));
        }
    })
}
