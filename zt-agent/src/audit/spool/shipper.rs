// SPDX-License-Identifier: Apache-2.0
//! The one task that takes records from the spool to the server.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Spool;
use super::batches::Next;
use crate::audit::postgres::{Batch, PgError, Prepared, Target, Writer};
use crate::audit::sqlite::StoreError;

/// Records of one batch.
const BATCH: u64 = 8192;
/// The first wait after a failure; doubled up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(10);
/// How often one looks although nothing was said.
const IDLE: Duration = Duration::from_secs(1);
/// How long shipping goes on when the agent stops. What is left stays in the spool.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// Ships what the spool has.
pub struct Shipper {
    spool: Arc<Spool>,
    writer: Writer,
    stopping: watch::Receiver<bool>,
    wait: Duration,
    most: u64,
    /// The batch under way, kept until the server has it.
    batch: Option<Ready>,
    /// What may be the next one.
    ahead: Option<Ready>,
    /// Which of the files that the spool has had these are of.
    file: u64,
}

/// A batch as it is sent.
struct Ready {
    batch: Batch,
    /// Made ahead; gone when it was sent.
    prepared: Option<Prepared>,
}

/// What became of one look.
enum Round {
    Idle,
    Shipped,
    Failed,
}

impl Shipper {
    /// A shipper from the spool to a server, until `stopping` says so.
    pub fn new(spool: Arc<Spool>, target: Target, stopping: watch::Receiver<bool>) -> Self {
        Self {
            spool,
            writer: Writer::new(target),
            stopping,
            wait: FIRST_WAIT,
            most: BATCH,
            batch: None,
            ahead: None,
            file: 0,
        }
    }

    /// Works until it is told to stop, and then until the spool is empty, the server fails or a few seconds have passed.
    pub async fn run(mut self) {
        let mut stopping = self.stopping.clone();
        while !*stopping.borrow_and_update() {
            let wait = match Box::pin(self.round()).await {
                Round::Shipped => continue,
                Round::Idle => IDLE,
                Round::Failed => self.back_off(),
            };
            let failed = wait != IDLE;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // After a failure more records are no reason to hurry.
                () = self.spool.more.notified(), if !failed => {}
                changed = stopping.changed() => if changed.is_err() { break },
            }
        }
        let last = async { while matches!(Box::pin(self.round()).await, Round::Shipped) {} };
        if tokio::time::timeout(LAST_CHANCE, last).await.is_err() {
            tracing::info!("records wait in the spool for the next start");
        }
        self.writer.close().await;
    }

    async fn round(&mut self) -> Round {
        let spool = Arc::clone(&self.spool);
        let seen = spool.store().times_replaced();
        let flight = spool.flight.lock().await;
        let file = spool.store().times_replaced();
        if self.file != file {
            // Lost, and stated to be, with the file that they were of.
            (self.batch, self.ahead, self.file) = (None, None, file);
        }
        let tried = Box::pin(self.try_round()).await;
        drop(flight);
        let error = match tried {
            Ok(round) => return round,
            Err(error) if error.is_damage() => match spool.begin_anew(seen, error).await {
                Ok(()) => return Round::Shipped,
                Err(error) => error,
            },
            Err(error) => error,
        };
        tracing::error!(%error, "the spool fails: its records are kept and tried again");
        Round::Failed
    }

    async fn try_round(&mut self) -> Result<Round, StoreError> {
        if self.batch.is_none() {
            self.batch = self.next().await?;
        }
        // Before each batch: so that on the server nothing is missing without a word, and under load what is there is
        // soon signed.
        let before = self
            .batch
            .as_ref()
            .map_or(u64::MAX, |ready| ready.batch.first_seq);
        match self.state(before).await? {
            Round::Failed => return Ok(Round::Failed),
            Round::Shipped if self.batch.is_none() => return Ok(Round::Shipped),
            Round::Shipped | Round::Idle => {}
        }
        let Some(Ready { batch, prepared }) = &mut self.batch else {
            return Ok(Round::Idle);
        };
        let (last, most) = (batch.last_seq(), self.most);
        let ahead = async {
            match self.ahead.take() {
                Some(ahead) => Some(ahead),
                None => ahead(&self.spool, last, most).await,
            }
        };
        let sending = in_time(self.stopping.clone(), self.writer.send(batch, prepared.take()));
        let (sent, ahead) = tokio::join!(sending, ahead);
        self.ahead = ahead;
        match sent {
            Ok(_) => {
                self.spool.done(batch, false).await?;
                self.batch = None;
                self.wait = FIRST_WAIT;
                self.most = (self.most * 2).min(BATCH);
                Ok(Round::Shipped)
            }
            Err(error) if error.is_of_the_batch() => {
                self.spool.account().failed(&error);
                if let [record] = &batch.records[..] {
                    let id = record.entry.id();
                    tracing::error!(%error, %id, "PostgreSQL refuses a record: it is lost and counted");
                    self.spool.done(batch, true).await?;
                } else {
                    self.most = (batch.records.len() as u64 / 2).max(1);
                    self.spool.halve(batch).await?;
                }
                self.batch = None;
                Ok(Round::Shipped)
            }
            Err(error) => Ok(self.failed(&error)),
        }
    }

    /// The next batch: the one that was made ready, where that is still the next.
    async fn next(&mut self) -> Result<Option<Ready>, StoreError> {
        let ahead = self.ahead.take();
        let next = self
            .spool
            .next_batch(self.most, ahead.as_ref().map(|ready| &ready.batch));
        Ok(match (next.await?, ahead) {
            (Next::Read(batch), _) => Some(Ready {
                batch,
                prepared: None,
            }),
            (Next::Ahead { dropped }, Some(mut ready)) => {
                ready.batch.dropped = dropped;
                Some(ready)
            }
            (Next::Nothing | Next::Ahead { .. }, _) => None,
        })
    }

    /// Ships what was signed and the server does not have: what was given up before an entry, and where the chain stood up
    /// to what has arrived.
    async fn state(&mut self, before: u64) -> Result<Round, StoreError> {
        let statements = self.spool.statements(before).await?;
        if statements.is_empty() {
            return Ok(Round::Idle);
        }
        let keys = self.spool.store().signing_keys().await?;
        let (checkpoints, gaps) = (statements.checkpoints(), statements.gaps());
        let sealing = in_time(
            self.stopping.clone(),
            self.writer.seal(&keys, &checkpoints, &gaps),
        );
        match sealing.await {
            Ok(()) => {}
            Err(error) if error.is_of_the_batch() => {
                tracing::error!(%error, "PostgreSQL refuses what was signed: `audit verify` will find that it is not there");
                self.spool.account().failed(&error);
            }
            Err(error) => return Ok(self.failed(&error)),
        }
        self.spool.stated(&statements).await?;
        Ok(Round::Shipped)
    }

    fn failed(&self, error: &PgError) -> Round {
        if self.spool.account().is_reachable() || self.spool.account().error().is_none() {
            tracing::warn!(%error, "PostgreSQL does not take records: they wait in the spool");
        } else {
            tracing::debug!(%error, "PostgreSQL still does not take records");
        }
        self.spool.account().failed(error);
        Round::Failed
    }

    /// The next wait: doubled, and up to a half shorter, so that a hundred agents do not come back at once.
    fn back_off(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(LAST_WAIT);
        let spread = f64::from(uuid::Uuid::now_v7().as_bytes()[15]) / 512.0;
        wait.mul_f64(1.0 - spread)
    }
}

/// What the server answers. Where the agent stops, it is not waited for much longer: what it did not confirm is sent again.
async fn in_time<T>(
    mut stopping: watch::Receiver<bool>,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    let late = async {
        // An error means that nobody is there any more who could say so.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        tokio::time::sleep(LAST_CHANCE).await;
    };
    tokio::select! {
        biased;
        done = work => done,
        () = late => Err(PgError::Slow { seconds: LAST_CHANCE.as_secs() }),
    }
}

/// While the server works on a batch that ends with `last`: removes what was shipped before, and makes the next one ready. What
/// fails here is tried again when its turn comes.
async fn ahead(spool: &Spool, last: u64, most: u64) -> Option<Ready> {
    if let Err(error) = spool.tidy().await {
        tracing::warn!(%error, "what has been shipped cannot be removed from the spool: it takes up room there until that succeeds; it is tried again with the next batch");
    }
    let batch = spool.look_ahead(last, most).await.ok().flatten()?;
    let preparing = tokio::task::spawn_blocking(move || {
        let prepared = Prepared::of(&batch).ok();
        Ready { batch, prepared }
    });
    preparing.await.ok()
}
