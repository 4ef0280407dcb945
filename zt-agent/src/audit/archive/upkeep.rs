// SPDX-License-Identifier: Apache-2.0
//! The tables of a trail on a server: made, and their old days dropped, by one agent at a time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::ArchiveError;
use crate::audit::postgres::{self, Maintainer, PgError, Target, Turn};
use crate::audit::seal::Keys;

/// How often the tables are looked after.
const UPKEEP: Duration = Duration::from_secs(3600);
/// How soon again where that failed; doubled each time up to the last. Without tables nothing can be shipped.
const UPKEEP_SOON: Duration = Duration::from_secs(1);
const UPKEEP_AGAIN: Duration = Duration::from_secs(60);
/// How long the server is waited for when the agent stops. What it has not committed by then it takes back.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// Makes and drops partitions, until the agent stops: one agent at a time, of all that may. A login that may not does
/// nothing: another one's work, unless it `is_named` for this one.
pub(super) async fn look_after(
    (target, is_named): (Target, bool),
    retention_days: u32,
    keys: PathBuf,
    mut stopping: watch::Receiver<bool>,
) {
    let mut again = UPKEEP_SOON;
    while !*stopping.borrow_and_update() {
        let mut told = stopping.clone();
        let late = async {
            // An error means that nobody is there any more who could say so.
            let _ = told.wait_for(|stopping| *stopping).await;
            tokio::time::sleep(LAST_CHANCE).await;
        };
        // A server that has stopped answering, and hangs up on nobody, is connected to anew at the next look.
        let keeping = tokio::time::timeout(UPKEEP, keep(&target, retention_days, &keys));
        let kept = tokio::select! {
            kept = keeping => kept.unwrap_or_else(|_| Err(PgError::Slow { seconds: UPKEEP.as_secs() }.into())),
            () = late => return,
        };
        let wait = match kept {
            Ok(None) => {
                tracing::info!("another agent looks after the partitions of the audit trail at this moment");
                UPKEEP_AGAIN
            }
            Ok(Some(kept)) => {
                if kept.made + kept.dropped > 0 || kept.records > 0 {
                    tracing::info!(
                        made = kept.made,
                        dropped = kept.dropped,
                        records = kept.records,
                        "looked after the partitions of the audit trail"
                    );
                }
                again = UPKEEP_SOON;
                UPKEEP
            }
            Err(ArchiveError::Postgres(error)) if !is_named && error.cause() == "permission" => {
                tracing::info!(
                    "this login is no member of zt_audit_maintainer: another agent, or `zt-agent audit prune`, makes and drops partitions"
                );
                UPKEEP
            }
            Err(error) => {
                let wait = again;
                again = (again * 2).min(UPKEEP_AGAIN);
                tracing::warn!(%error, seconds = wait.as_secs(), "cannot look after the partitions of the audit trail: tried again");
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = stopping.changed() => if changed.is_err() { return },
        }
    }
}

/// Brings the tables up to date, makes partitions and drops those that are too old; `None` while somebody else does. What
/// is dropped is stated and signed with the keys of a directory, which are made where there are none.
pub async fn keep(
    target: &Target,
    retention_days: u32,
    keys: &Path,
) -> Result<Option<postgres::Upkeep>, ArchiveError> {
    let maintainer = Maintainer::open(target).await?;
    let Some(turn) = Turn::take(target).await? else {
        maintainer.close().await?;
        return Ok(None);
    };
    let mut maintainer = maintainer.signing(Keys::open(keys)?);
    let kept = maintainer.keep(Some(retention_days)).await?;
    turn.give().await?;
    maintainer.close().await?;
    Ok(Some(kept))
}
