// SPDX-License-Identifier: Apache-2.0
//! Whose turn it is. One agent at a time works on the pins of a node; another one that is started beside it has its
//! programs verified first, then stands by until the running one has ended, however it ends, and takes over at once.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use super::signals::Signals;
use super::{AppError, notify};
use crate::api::{self, ServeError};
use crate::config::{Config, Handshake};
use crate::kernel::{self, Claim, Holder, KernelError, Lock, Verified, Wanted};

/// How long the running agent may take to end when it is asked to: its API drains, its records are flushed.
const HAND_OVER_TIME: Duration = Duration::from_secs(30);
/// How long the ports of an agent that has just ended may be taken.
const PORT_TIME: Duration = Duration::from_secs(5);
const PORT_PAUSE: Duration = Duration::from_millis(10);

/// It is this agent's.
pub(super) struct Turn {
    /// As long as this lives.
    pub lock: Lock,
    /// The programs, where they were loaded while waiting.
    pub verified: Option<Verified>,
    /// Whether another agent had its turn meanwhile.
    pub waited: bool,
}

/// Which programs the configuration asks for.
pub(super) fn wanted(config: &Config) -> Wanted {
    Wanted {
        handshakes: config.handshake == Handshake::Auto,
        packet_guard: config.packet_guard,
    }
}

/// Waits for this agent's turn; `None` if a signal came first.
pub(super) async fn wait(
    config: &Config,
    take_over: bool,
    signals: &mut Signals,
) -> Result<Option<Turn>, AppError> {
    kernel::check_privileges()?;
    for absent in kernel::absent()? {
        let without = absent.without.unwrap_or_default();
        tracing::warn!("without {} ({}): {without}", absent.name, absent.purpose);
    }
    let holder = match Lock::claim(&config.bpffs)? {
        Claim::Held(lock) => {
            return Ok(Some(Turn {
                lock,
                verified: None,
                waited: false,
            }));
        }
        Claim::Taken(holder) => holder,
    };
    // First of all: a version that this kernel refuses must not have anybody step aside.
    let wanted = wanted(config);
    let verified = blocking(config, move |bpffs| Verified::beside(&bpffs, wanted)).await?;
    let standing_by = if take_over {
        tracing::info!(bpffs = %config.bpffs.display(), "taking over: asking {holder} to end; the kernel goes on enforcing");
        holder.ask_to_end()?;
        None
    } else {
        Some(StandingBy::begin(config, &holder).await)
    };
    let lock = tokio::select! {
        lock = blocking(config, |bpffs| Lock::wait(&bpffs)) => lock?,
        _ = signals.terminate.recv() => return Ok(None),
        _ = signals.interrupt.recv() => return Ok(None),
        () = sleep(HAND_OVER_TIME), if take_over => {
            return Err(AppError::NotHandedOver {
                holder: holder.to_string(),
                patience: HAND_OVER_TIME,
            });
        }
    };
    tracing::info!("{holder} has ended: taking over");
    if let Some(standing_by) = standing_by {
        standing_by.end().await;
    }
    Ok(Some(Turn {
        lock,
        verified,
        waited: true,
    }))
}

/// Listens with `listen`; again for a while if the place is taken and `patient`.
pub(super) async fn bind<T, F: Future<Output = Result<T, ServeError>>>(
    patient: bool,
    mut listen: impl FnMut() -> F,
) -> Result<T, ServeError> {
    let deadline = Instant::now() + if patient { PORT_TIME } else { Duration::ZERO };
    loop {
        match listen().await {
            Err(ServeError::Listen { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
            {
                sleep(PORT_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

async fn blocking<T: Send + 'static>(
    config: &Config,
    work: impl FnOnce(PathBuf) -> Result<T, KernelError> + Send + 'static,
) -> Result<T, AppError> {
    let bpffs = config.bpffs.clone();
    match spawn_blocking(move || work(bpffs)).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(AppError::Ended {
            part: "waiting for the pins",
        }),
    }
}

/// Tells everybody who asks that this agent waits.
struct StandingBy {
    stop: watch::Sender<bool>,
    serving: Option<JoinHandle<()>>,
}

impl StandingBy {
    async fn begin(config: &Config, holder: &Holder) -> Self {
        let status = format!("standing by: {holder} enforces on this node");
        tracing::warn!(
            bpffs = %config.bpffs.display(),
            "{status}; this agent takes over as soon as that one ends (`zt-agent run --take-over` asks it to)"
        );
        // To a supervisor this agent is up: it does all that it can.
        notify(sd_notify::NotifyState::Status(&status));
        notify(sd_notify::NotifyState::Ready);
        let (stop, stopping) = watch::channel(false);
        let serving = match api::bind_health(config.api.health).await {
            Ok(endpoint) => Some(tokio::spawn(endpoint.serve(
                api::standby_router(status),
                None,
                stopping,
            ))),
            Err(error) => {
                tracing::info!(%error, "nothing answers for this agent's health while it stands by");
                None
            }
        };
        Self { stop, serving }
    }

    async fn end(self) {
        self.stop.send_replace(true);
        if let Some(serving) = self.serving {
            // A server that panicked has said so already.
            let _ = serving.await;
        }
    }
}
