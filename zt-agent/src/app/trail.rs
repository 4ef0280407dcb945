// SPDX-License-Identifier: Apache-2.0
//! The audit trail as the agent runs it: the store, the pipeline into it, and what ships it on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::AppError;
use crate::audit::archive::{self, Archive};
use crate::audit::names::NameBook;
use crate::audit::pipeline::{self, Intake};
use crate::config::{self, Config};
use crate::metrics::Metrics;

/// How long records may take to reach the store when the agent stops.
const FLUSH_TIME: Duration = Duration::from_secs(10);
/// Names of earlier runs that are kept in memory for the events of earlier runs.
const REMEMBERED_NAMES: usize = 65_536;

/// A trail that takes records.
pub(super) struct Trail {
    /// Where records are.
    pub store: Arc<Archive>,
    /// What the numbers in events stand for.
    pub names: Arc<NameBook>,
    /// Where records go.
    pub intake: Intake,
    recorder: JoinHandle<()>,
    archiving: Vec<JoinHandle<()>>,
    /// Told when nothing more is recorded.
    recorded: watch::Sender<bool>,
}

impl Trail {
    /// Opens the store and starts what works for it.
    pub(super) async fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, AppError> {
        let store = Arc::new(open(config).await?);
        let names = Arc::new(NameBook::new(store.remembered(REMEMBERED_NAMES).await?));
        let (intake, recorder) = pipeline::pipeline(
            Arc::clone(&store),
            Arc::clone(&names),
            Arc::<Metrics>::clone(metrics),
            pipeline::Settings::new(&config.cluster, &config.node),
        );
        // A trail that does not move is not signed again: what it was signed up to by an earlier run holds.
        match store.last_checkpoint().await {
            Ok(last) => {
                if let Some(last) = last {
                    intake.stats().sealed(last.seq, last.time);
                }
            }
            Err(error) => tracing::error!(%error, "the last checkpoint of the audit trail cannot be read"),
        }
        let recorder = tokio::spawn(recorder.run());
        let (recorded, all_recorded) = watch::channel(false);
        let archiving = store.start(&all_recorded);
        if let Some(spool) = store.spool() {
            metrics.read_spool(Arc::clone(spool), config.audit.max_disk_bytes);
        }
        metrics.read_pipeline(Arc::clone(intake.stats()));
        Ok(Self {
            store,
            names,
            intake,
            recorder,
            archiving,
            recorded,
        })
    }

    /// Stores what was taken, ships what can be shipped, and closes the store.
    pub(super) async fn close(self) -> Result<(), AppError> {
        self.intake.shut_down(FLUSH_TIME);
        let _ = self.recorder.await;
        self.recorded.send_replace(true);
        for task in self.archiving {
            // One that panicked has said so already.
            let _ = task.await;
        }
        if let Some(store) = Arc::into_inner(self.store) {
            store.close().await?;
        }
        Ok(())
    }
}

async fn open(config: &Config) -> Result<Archive, AppError> {
    let settings = archive::Settings {
        dsn: config.audit.dsn.clone(),
        read_dsn: config.audit.read_dsn.clone(),
        maintain_dsn: config.audit.maintain_dsn.clone(),
        spool: config.audit.spool.clone(),
        max_disk_bytes: config.audit.max_disk_bytes,
        api_share: config.audit.api_share.unwrap_or(config::API_SHARE),
        when_full: config.audit.when_full,
        retention_days: config.audit.retention_days,
        keys: config.audit.keys.clone(),
        sync: config.audit.sync,
    };
    Ok(Archive::open(settings).await?)
}
