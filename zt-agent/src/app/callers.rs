// SPDX-License-Identifier: Apache-2.0
//! Takes `api.callers` anew: when the configuration's file changes, and with `SIGHUP`. A configuration that is not valid
//! changes nothing.

use std::hash::Hash;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, block_in_place};

use super::AppError;
use crate::config::{Config, ConfigError, Sources};
use crate::state::Configured;
use crate::watch::Follower;

/// What the file holds: whether it is another one.
#[derive(Hash)]
struct Text(Result<Vec<u8>, String>);

/// What reads the configuration again.
pub(super) struct Callers {
    sources: Sources,
    start: Config,
    follower: Follower<Text>,
    hangup: Signal,
    configured: watch::Sender<Arc<Configured>>,
}

impl Callers {
    /// Begins to watch the file and to listen for the signal. Must be called inside a tokio runtime.
    pub(super) fn follow(
        config: &Config,
        sources: Sources,
    ) -> Result<(Self, watch::Receiver<Arc<Configured>>), AppError> {
        let hangup = signal(SignalKind::hangup()).map_err(|source| AppError::System {
            what: "wait for signals",
            source,
        })?;
        let path = sources.path().to_path_buf();
        let read = {
            let path = path.clone();
            move || Text(std::fs::read(&path).map_err(|error| error.kind().to_string()))
        };
        let (follower, _) = Follower::new(path, read);
        let (configured, receiver) = watch::channel(Arc::new(at_start(config)));
        let callers = Self {
            sources,
            start: config.clone(),
            follower,
            hangup,
            configured,
        };
        Ok((callers, receiver))
    }

    /// Reads until the task is ended.
    pub(super) fn start(self) -> JoinHandle<()> {
        tokio::spawn(self.run())
    }

    async fn run(self) {
        let Self {
            sources,
            start,
            follower,
            mut hangup,
            configured,
        } = self;
        let (sender, mut changes) = mpsc::channel(1);
        let mut following = tokio::task::JoinSet::new();
        following.spawn(follower.run(sender));
        // The file may have changed since the start read it.
        take(&sources, &start, &configured);
        loop {
            tokio::select! {
                change = changes.recv() => if change.is_none() { return },
                hung_up = hangup.recv() => if hung_up.is_none() { return },
            }
            take(&sources, &start, &configured);
        }
    }
}

/// Reads the configuration and takes what may be taken.
fn take(sources: &Sources, start: &Config, configured: &watch::Sender<Arc<Configured>>) {
    let before = Arc::clone(&configured.borrow());
    let next = next(&before, start, block_in_place(|| Config::load(sources)));
    if next.taken != before.taken {
        tracing::info!(
            callers = next.callers.len(),
            "api.callers of the configuration are in force"
        );
    }
    if next.refused != before.refused {
        for problem in &*next.problems {
            tracing::error!("the configuration is not taken, the callers known stay: {problem}");
        }
    }
    if next.restart && !before.restart {
        tracing::warn!(
            "keys of the configuration other than api.callers have changed: they are taken at the next start"
        );
    }
    configured.send_replace(Arc::new(next));
}

/// What holds at the start.
fn at_start(config: &Config) -> Configured {
    Configured {
        callers: config.api.callers.as_slice().into(),
        ..Configured::default()
    }
}

/// What holds after the configuration was read again. `start` is what it was at the start.
fn next(before: &Configured, start: &Config, read: Result<Config, ConfigError>) -> Configured {
    let mut next = before.clone();
    match read {
        Ok(mut config) => {
            next.problems = Arc::from([]);
            let callers = std::mem::replace(&mut config.api.callers, start.api.callers.clone());
            next.restart = config != *start;
            if *before.callers != *callers {
                next.callers = callers.into();
                next.taken += 1;
            }
        }
        Err(error) => {
            next.problems = error.problems.into();
            next.refused += 1;
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::{CallerRule, Role};
    use crate::identity::Mode;
    use crate::problem::Problem;
    use crate::spiffe_id::Pattern;

    fn with(role: Role) -> Config {
        let mut config = Config::default();
        config.api.callers.push(CallerRule {
            spiffe: Pattern::parse("spiffe://hanzo.ai/ops/*").expect("pattern"),
            role,
            node: None,
        });
        config
    }

    #[test]
    fn callers_are_taken_other_keys_wait_and_what_is_not_valid_changes_nothing() {
        let start = with(Role::Read);
        let first = at_start(&start);
        assert_eq!(first.callers[0].role, Role::Read);
        let second = next(&first, &start, Ok(with(Role::Admin)));
        assert_eq!(
            (second.callers[0].role, second.taken, second.restart),
            (Role::Admin, 1, false)
        );
        let problem = Problem {
            file: "agent.yaml".to_owned(),
            line: 3,
            column: 1,
            field: "api.callers".to_owned(),
            message: "must be a list".to_owned(),
        };
        let problems = vec![problem];
        let bad = next(&second, &start, Err(ConfigError { problems }));
        assert_eq!((bad.callers[0].role, bad.taken, bad.refused), (Role::Admin, 1, 1));
        assert_eq!(bad.problems[0].line, 3);
        let mut other = with(Role::Admin);
        other.mode = Mode::Enforce;
        let third = next(&bad, &start, Ok(other));
        assert_eq!((third.taken, third.problems.len(), third.restart), (1, 0, true));
    }
}
