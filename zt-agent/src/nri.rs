// SPDX-License-Identifier: Apache-2.0
//! A plugin of the container runtime, over NRI (Node Resource Interface, `nri.pkg.api.v1alpha1`): a container does not start
//! before its pod has an identity in the kernel's map, or the wait for it is over.
//!
//! The runtime says that a container is about to start, and of which pod it is. That names nobody: identities come from
//! their sources as ever, and all that is done here is to look at what is in force and to answer later. Whoever lies to
//! this plugin delays a container.

mod health;
mod hold;
mod messages;
mod session;
mod wire;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::state::Snapshot;

pub use self::health::{Health, OUTCOMES, Outcome, Status};
pub use self::session::SessionError;

use self::hold::Patience;
use self::session::Session;

/// What the plugin goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The runtime's socket.
    pub socket: PathBuf,
    /// How long a container's start waits at the most; less where the runtime is less patient.
    pub wait: Duration,
    /// The managed cgroups, below the cgroup2 mount.
    pub roots: Vec<PathBuf>,
    /// How long the runtime may take for what it has to say first, and for taking an answer.
    pub silence: Duration,
    /// The pause before another try, which doubles up to the longest one.
    pub pauses: (Duration, Duration),
}

impl Settings {
    /// For this socket, with the usual times.
    pub fn new(socket: PathBuf, wait: Duration, roots: Vec<PathBuf>) -> Self {
        Self {
            socket,
            wait,
            roots,
            silence: Duration::from_secs(30),
            pauses: (Duration::from_millis(100), Duration::from_secs(5)),
        }
    }
}

/// Follows the runtime for ever: where it is not there, hangs up or talks nonsense, it is tried again. Meanwhile containers
/// start as if there were no plugin.
pub async fn follow(
    settings: Settings,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    health: Arc<Health>,
) -> Infallible {
    let mut patience = Patience::new(settings.wait);
    let mut pauses = Pauses::new(settings.pauses);
    loop {
        let was_registered = health.times_registered();
        let began = Instant::now();
        let error = match run(&settings, &snapshots, &health, &mut patience).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let registered = health.times_registered() > was_registered;
        if health.lost(&error, registered) {
            tracing::warn!(socket = %settings.socket.display(), %error, "NRI: containers start without waiting for their identity until the runtime is back");
        }
        sleep(pauses.after(registered.then(|| began.elapsed()))).await;
    }
}

/// The pauses between connections.
#[derive(Debug)]
struct Pauses {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Pauses {
    fn new((first, longest): (Duration, Duration)) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The pause after a connection that worked for so long, if it did. A runtime that takes the plugin only to throw it out
    /// is left alone like one that is not there.
    fn after(&mut self, worked: Option<Duration>) -> Duration {
        if worked.is_some_and(|worked| worked >= self.longest) {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

/// One connection to the runtime, to its end.
async fn run(
    settings: &Settings,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    health: &Health,
    patience: &mut Patience,
) -> Result<Infallible, SessionError> {
    let stream = timeout(settings.silence, UnixStream::connect(&settings.socket))
        .await
        .map_err(|_| SessionError::Silent {
            what: "take a connection",
        })?
        .map_err(|source| SessionError::Socket {
            what: "cannot connect to the socket (is NRI enabled in the runtime's configuration?)",
            source,
        })?;
    Session::new(stream, settings, snapshots, health, patience)
        .run()
        .await
}

#[cfg(test)]
mod tests;
