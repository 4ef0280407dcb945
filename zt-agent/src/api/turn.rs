// SPDX-License-Identifier: Apache-2.0
//! Whose turn it is where an answer takes memory, a processor and the store: so many at a time, and no more wait than are
//! answered before they have lost patience.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::ApiProblem;
use crate::metrics::Metrics;

/// How long anybody waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// When to try again, seconds.
const LATER: u64 = 2;
/// The code of a refusal, and the cause that it is counted under.
const BUSY: &str = "busy";

/// How many are answered and wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Answered at a time.
    pub(super) running: usize,
    /// Waiting at a time.
    pub(super) waiting: usize,
    /// Of these, as many of one caller's: nobody fills the line alone.
    pub(super) of_one: usize,
}

/// The line of those who ask for one kind of answer.
pub(super) struct Turns {
    room: Room,
    patience: Duration,
    running: Arc<Semaphore>,
    /// Who waits, by account.
    waiting: Mutex<HashMap<Arc<str>, usize>>,
    metrics: Arc<Metrics>,
}

/// A turn; it ends when this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn(
    #[expect(dead_code, reason = "does its work when it is dropped")] OwnedSemaphorePermit,
);

impl Turn {
    /// Has an answer made. The turn lasts as long as that is worked on, also where whoever asked has gone: a question that nobody
    /// waits for any more keeps a server or a processor busy all the same.
    pub(super) async fn spent_on<T: Send + 'static>(
        self,
        work: impl Future<Output = Result<T, ApiProblem>> + Send + 'static,
    ) -> Result<T, ApiProblem> {
        let spent = tokio::spawn(async move {
            let _turn = self;
            work.await
        });
        spent.await.unwrap_or_else(|error| {
            tracing::error!(%error, "an answer broke off");
            let detail = "making the answer broke off: see the agent's log";
            Err(ApiProblem::unavailable("answer_broke_off", detail))
        })
    }
}

impl Turns {
    /// A line with this room; who finds none is counted in `metrics`.
    pub(super) fn new(room: Room, metrics: Arc<Metrics>) -> Self {
        Self {
            room,
            patience: PATIENCE,
            running: Arc::new(Semaphore::new(room.running)),
            waiting: Mutex::default(),
            metrics,
        }
    }

    /// Waits for a turn, in the order in which they came. Whoever stops waiting leaves the place to others.
    pub(super) async fn take(&self, account: &Arc<str>) -> Result<Turn, ApiProblem> {
        let place = self.place(account)?;
        let turn = tokio::time::timeout(self.patience, Arc::clone(&self.running).acquire_owned()).await;
        drop(place);
        if let Ok(Ok(permit)) = turn {
            return Ok(Turn(permit));
        }
        // It is never closed, so that this is the time that is over.
        let why = format!(
            "others have been answered for {} seconds",
            self.patience.as_secs()
        );
        Err(self.busy(&why))
    }

    /// A place in the line, where there is one.
    fn place(&self, account: &Arc<str>) -> Result<Place<'_>, ApiProblem> {
        let mut waiting = self.waiting();
        let all: usize = waiting.values().sum();
        let own = waiting.get(account).copied().unwrap_or_default();
        let full = if own >= self.room.of_one {
            format!("{account} waits for {own} such answers already")
        } else if all >= self.room.waiting {
            format!("{all} others wait for such an answer")
        } else {
            waiting.insert(Arc::clone(account), own + 1);
            return Ok(Place {
                turns: self,
                account: Arc::clone(account),
            });
        };
        drop(waiting);
        Err(self.busy(&full))
    }

    fn busy(&self, why: &str) -> ApiProblem {
        self.metrics.api_refused(BUSY);
        let detail = format!("{why}: try again in {LATER} s");
        ApiProblem::unavailable(BUSY, detail).with_retry_after(LATER)
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn line(&self) -> usize {
        self.waiting().values().sum()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line, for as long as this is there.
struct Place<'t> {
    turns: &'t Turns,
    account: Arc<str>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.turns.waiting();
        // Nobody else takes it out, and only the last place takes the account with it.
        if let Some(own) = waiting.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                waiting.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::response::IntoResponse as _;
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::*;

    type Waiting<'t> = BoxFuture<'t, Result<Turn, ApiProblem>>;

    fn account(number: usize) -> Arc<str> {
        Arc::from(format!("uid:{number}"))
    }

    /// Whoever waits after being asked for once; `Err` with the status for who does not wait.
    fn ask(turns: &Turns, of: usize) -> Result<Waiting<'_>, StatusCode> {
        let account = account(of);
        let mut waiting = async move { turns.take(&account).await }.boxed();
        match (&mut waiting).now_or_never() {
            None => Ok(waiting),
            Some(answer) => {
                let refused = answer.expect_err("the turn is held").into_response();
                assert!(refused.headers().contains_key("retry-after"));
                Err(refused.status())
            }
        }
    }

    fn line() -> (Turns, Arc<Metrics>) {
        let metrics = Metrics::new();
        let room = Room {
            running: 1,
            waiting: 8,
            of_one: 1,
        };
        (Turns::new(room, Arc::clone(&metrics)), metrics)
    }

    #[tokio::test]
    async fn so_many_wait_and_the_next_is_told_to_come_back() {
        let (turns, metrics) = line();
        let held = turns.take(&account(0)).await.expect("nobody has it");
        let mut waiting: Vec<Waiting<'_>> = (1..=8).map(|of| ask(&turns, of).expect("a place")).collect();
        assert_eq!(ask(&turns, 9).err(), Some(StatusCode::SERVICE_UNAVAILABLE));
        let text = metrics.encode().expect("text");
        assert!(
            text.contains("zt_api_refused_total{cause=\"busy\"} 1\n"),
            "{text}"
        );
        // Who goes away leaves the place.
        drop(waiting.remove(3));
        waiting.push(ask(&turns, 9).expect("a place"));
        assert!(ask(&turns, 10).is_err());
        // They come in their order.
        drop(held);
        let first = waiting.remove(0).await.expect("a turn");
        assert!((&mut waiting[0]).now_or_never().is_none());
        drop(first);
        drop(waiting.remove(0).await.expect("a turn"));
        drop(waiting);
        assert!(turns.waiting().is_empty(), "nobody is remembered");
        drop(turns.take(&account(0)).await.expect("a turn"));
    }

    #[tokio::test]
    async fn one_caller_has_one_place() {
        let (turns, _) = line();
        let held = turns.take(&account(1)).await.expect("nobody has it");
        let waits = ask(&turns, 1).expect("who is answered may wait once more");
        assert!(ask(&turns, 1).is_err());
        let other = ask(&turns, 2).expect("others are not meant");
        drop((waits, held));
        drop(other.await.expect("a turn"));
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let (mut turns, _) = line();
        turns.patience = Duration::from_millis(10);
        let _held = turns.take(&account(1)).await.expect("nobody has it");
        let refused = turns.take(&account(2)).await.expect_err("the turn is held");
        assert_eq!(refused.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(turns.waiting().is_empty());
    }
}
