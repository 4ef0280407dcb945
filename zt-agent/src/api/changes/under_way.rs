// SPDX-License-Identifier: Apache-2.0
//! Changes that this run is making or recording: what is noted of them is for whoever does that.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Changes;
use crate::api::ApiState;
use crate::api::recorded::MAX_WAIT;
use crate::audit::archive::ArchiveError;
use crate::audit::intent::Intent;

/// How long after it was begun a write may arrive that nobody has acknowledged: a server gives up a request after a minute. Of what an
/// earlier run began, how long after the first look at it.
const ARRIVES: Duration = Duration::from_secs(300);

/// A change that is being made. Dropping it ends that, whatever came of it.
pub(in crate::api) struct UnderWay<'c> {
    changes: &'c Changes,
    id: Uuid,
    begun: Instant,
}

impl UnderWay<'_> {
    /// The change's id, which its note and its record have.
    pub(in crate::api) const fn id(&self) -> Uuid {
        self.id
    }

    /// Ends that for now: it is not known what came of it, and others look.
    pub(super) fn pause(&self) {
        let (id, until) = (self.id, self.begun + ARRIVES);
        self.changes.with_arrive(|arrive| arrive.insert(id, until));
        self.changes.with_under_way(|ids| ids.remove(&id));
    }

    /// Goes on after that.
    pub(super) fn go_on(&self) {
        self.changes.with_under_way(|ids| ids.insert(self.id));
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let id = self.id;
        self.changes.with_under_way(|ids| ids.remove(&id));
    }
}

impl Changes {
    /// Begins to make a change.
    pub(in crate::api) fn begin(&self) -> UnderWay<'_> {
        let id = Uuid::now_v7();
        self.with_under_way(|ids| ids.insert(id));
        UnderWay {
            changes: self,
            id,
            begun: Instant::now(),
        }
    }

    /// Whether a change may be made yet of which it is not known what came of it.
    pub(super) fn may_arrive(&self, id: Uuid) -> bool {
        let now = Instant::now();
        self.with_arrive(|arrive| now < *arrive.entry(id).or_insert(now + ARRIVES))
    }

    /// No other changes may be made yet than these.
    pub(super) fn only_may_arrive(&self, noted: &[Intent]) {
        let ids: HashSet<Uuid> = noted.iter().map(|intent| intent.id).collect();
        self.with_arrive(|arrive| arrive.retain(|id, _| ids.contains(id)));
    }

    /// That change cannot be made any more.
    #[cfg(test)]
    pub(in crate::api) fn cannot_arrive(&self, id: Uuid) {
        self.with_arrive(|arrive| arrive.insert(id, Instant::now()));
    }

    /// The note of a change that was not made is to go. Until it has, nobody takes the change for one that was begun.
    pub(super) fn is_to_go(&self, id: Uuid) {
        self.with_to_go(|ids| ids.insert(id));
    }

    /// It has gone.
    pub(super) fn has_gone(&self, id: Uuid) {
        self.with_to_go(|ids| ids.remove(&id));
    }

    /// The changes whose notes are to go.
    pub(super) fn to_go(&self) -> HashSet<Uuid> {
        self.with_to_go(|ids| ids.clone())
    }

    /// The records of these are handed over, and it is not known yet whether they are stored.
    pub(super) fn hold(&self, told: &[Uuid]) {
        self.with_handed(|ids| ids.extend(told));
    }

    /// It is.
    pub(super) fn let_go(&self, told: &[Uuid]) {
        self.with_handed(|ids| ids.retain(|id| !told.contains(id)));
    }

    fn with_under_way<T>(&self, work: impl FnOnce(&mut HashSet<Uuid>) -> T) -> T {
        work(&mut self.under_way.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_handed<T>(&self, work: impl FnOnce(&mut HashSet<Uuid>) -> T) -> T {
        work(&mut self.handed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_to_go<T>(&self, work: impl FnOnce(&mut HashSet<Uuid>) -> T) -> T {
        work(&mut self.to_go.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_arrive<T>(&self, work: impl FnOnce(&mut HashMap<Uuid, Instant>) -> T) -> T {
        work(&mut self.arrive.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The changes that were noted, are not recorded, are not being made or recorded now, and are not known not to have been made, the
/// oldest first.
pub(super) async fn noted(state: &ApiState) -> Result<Vec<Intent>, ArchiveError> {
    let begun = || {
        let mut ids = state.changes().with_under_way(|ids| ids.clone());
        ids.extend(state.changes().with_handed(|ids| ids.clone()));
        ids.extend(state.changes().to_go());
        ids
    };
    // Whoever begins or ends meanwhile is in one of the two.
    let before = begun();
    let mut noted = state.store.intents().await?;
    let after = begun();
    noted.retain(|intent| !before.contains(&intent.id) && !after.contains(&intent.id));
    Ok(noted)
}

/// The same; none where the store does not tell, or not in time: the log says then that it is not known whether `what` is so.
pub(super) async fn noted_in_time(state: &ApiState, what: &str) -> Vec<Intent> {
    let why = match tokio::time::timeout(MAX_WAIT, noted(state)).await {
        Ok(Ok(noted)) => return noted,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the audit store does not answer".to_owned(),
    };
    tracing::error!(why, "whether {what} cannot be told: it is told at the next start");
    Vec::new()
}
