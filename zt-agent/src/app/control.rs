// SPDX-License-Identifier: Apache-2.0
//! What the API may ask of the node thread.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use zt_common::counter::Counter;

use super::node::Command;
use crate::api::{ControlError, NodeControl, NodeStatus};
use crate::audit::pipeline::{ApiEvent, Intake, NotRecorded};
use crate::kernel::CounterReader;
use crate::metrics::KernelCounters;

/// How long the node thread may take to answer: a sweep may be under way.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends questions to the node thread.
pub(super) struct Handle {
    commands: mpsc::WeakSender<Command>,
}

impl Handle {
    pub(super) fn new(commands: &mpsc::Sender<Command>) -> Self {
        // Weak: the node thread ends when those who have something to tell it have gone.
        Self {
            commands: commands.downgrade(),
        }
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.commands.upgrade()?.send(question(sender)).await.ok()?;
        tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
    }
}

/// Records changes of mode that were made without the agent, and tells the node of each one that is stored.
pub(super) async fn record(
    mut by_hand: mpsc::UnboundedReceiver<ApiEvent>,
    intake: Intake,
    commands: mpsc::WeakSender<Command>,
) {
    while let Some(event) = by_hand.recv().await {
        let recorded = intake.record_api(vec![event]).await;
        if recorded == Err(NotRecorded::NotStored) {
            // The next agent records it, if need be a second time. What comes after it is none of that.
            continue;
        }
        let stored = recorded.is_ok() && intake.flush().await.is_ok();
        let Some(commands) = commands.upgrade().filter(|_| stored) else {
            return;
        };
        if commands.send(Command::Recorded).await.is_err() {
            return;
        }
    }
}

impl NodeControl for Handle {
    fn status(&self) -> BoxFuture<'_, NodeStatus> {
        async { self.ask(Command::Status).await.unwrap_or_default() }.boxed()
    }

    fn observe_all(&self, on: bool) -> BoxFuture<'_, Result<(), ControlError>> {
        async move {
            self.ask(|answer| Command::ObserveAll { on, answer }).await.unwrap_or_else(|| {
                Err(ControlError {
                    message: "the node thread did not answer: see the log; `zt-agent detach` removes every hook".into(),
                })
            })
        }
        .boxed()
    }

    fn resume_rollout(&self, caller: Arc<str>) -> BoxFuture<'_, Result<Option<String>, ControlError>> {
        async move {
            let asked = self.ask(|answer| Command::ResumeRollout { caller, answer });
            asked.await.ok_or_else(|| ControlError {
                message: "the node thread did not answer: see the log and `zt-agent rollout status`".into(),
            })
        }
        .boxed()
    }
}

impl KernelCounters for CounterReader {
    fn read(&self) -> Option<[u64; Counter::COUNT as usize]> {
        Self::read(self).ok()
    }
}
