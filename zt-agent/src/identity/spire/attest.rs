// SPDX-License-Identifier: Apache-2.0
//! One cgroup: a live process in it is attested for as long as it lives, then the next one.

mod listen;
mod say;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep};

use super::backoff::Backoff;
use super::doubt::{self, Doubt};
use super::health::{Health, Withdrawal};
use super::link::{Link, news};
use super::process::Process;
use super::subject::{Pod, Pods, Subject, told_of};
use super::wall::passed;
use super::{Attestation, Attested, Settings};
use crate::identity::peers::Svids;

/// Pauses between attempts at an identity.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often it is looked whether the process is still in its cgroup, should nobody have said so.
const LOOK: Duration = Duration::from_secs(10);
/// The same for a cgroup that cannot be watched.
const LOOK_UNWATCHED: Duration = Duration::from_secs(1);
/// A process that goes sooner after it was asked about has the next one wait.
const QUICK: Duration = Duration::from_secs(1);
/// After this long without such a process nobody waits.
const CALM: Duration = Duration::from_secs(10);

/// What all cgroups have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Arc<Settings>,
    pub(super) health: Arc<Health>,
    pub(super) link: watch::Receiver<Option<Link>>,
    /// The pods that SPIRE may be asked about before somebody runs in them.
    pub(super) pods: watch::Receiver<Pods>,
    pub(super) said: mpsc::Sender<Attestation>,
    /// What other nodes are shown, if they are shown anything.
    pub(super) svids: Option<watch::Sender<Svids>>,
    /// How many may be asking at the same time.
    pub(super) asking: Semaphore,
}

/// What a cgroup is known as.
#[derive(Debug)]
struct Current {
    identity: Attested,
    /// Of its certificate; `None` where the identity is remembered from before the start.
    digest: Option<[u8; 32]>,
    /// Kept although it has expired.
    held: bool,
    /// [`Subject::birth`] of the one that was attested; `None` where the identity is remembered from before the start.
    process: Option<(u32, u64)>,
}

/// Follows one cgroup.
#[derive(Debug)]
pub(super) struct Follower {
    shared: Arc<Shared>,
    /// How many of its container may be asking at the same time.
    asking: Arc<Semaphore>,
    path: PathBuf,
    directory: PathBuf,
    cgroup: u64,
    /// Processes came or went.
    changed: Arc<Notify>,
    look: Duration,
    current: Option<Current>,
    backoff: Backoff,
    /// What was said last about an SVID that is not believed, so that it is said once.
    refusal: String,
    doubt: Doubt,
    /// Between processes that do not stay.
    churn: Backoff,
    /// When a process last went that had not stayed.
    hurried: Option<Instant>,
    /// When the updates began to be counted.
    window: Instant,
    updates: u32,
}

/// What happens beside what SPIRE says.
enum Interrupt {
    Ended,
    Expired,
    Changed,
}

/// Why a process is no longer attended to.
enum End {
    /// It is not there any more: on to the next one.
    Gone,
    /// Attest it anew.
    Again,
    /// The answer is to be heard again before it counts.
    Doubted,
    /// It failed: attest it anew after a while.
    Later,
}

impl Follower {
    /// `changed` is notified when processes came or went; where that cannot be noticed, `watched` is false.
    pub(super) fn new(
        shared: Arc<Shared>,
        asking: Arc<Semaphore>,
        path: PathBuf,
        cgroup: u64,
        remembered: Option<Attested>,
        changed: Arc<Notify>,
        watched: bool,
    ) -> Self {
        let current = remembered.map(|identity| Current {
            identity,
            digest: None,
            held: false,
            process: None,
        });
        Self {
            directory: shared.settings.mount.join(&path),
            shared,
            asking,
            path,
            cgroup,
            changed,
            look: if watched { LOOK } else { LOOK_UNWATCHED },
            current,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, cgroup),
            refusal: String::new(),
            doubt: Doubt::default(),
            churn: Backoff::new(FIRST_PAUSE, CALM / 2, cgroup),
            hurried: None,
            window: Instant::now(),
            updates: 0,
        }
    }

    /// Follows it until the task is aborted, which is when the cgroup has gone.
    pub(super) async fn run(mut self) {
        loop {
            let subject = match Process::oldest(&self.directory, self.cgroup) {
                Ok(Some(process)) => Subject::Process(process),
                Ok(None) => {
                    let Some(pod) = Pod::at(&self.shared.pods, &self.path, &self.directory, self.cgroup)
                    else {
                        self.nobody().await;
                        continue;
                    };
                    Subject::Pod(pod)
                }
                Err(error) => {
                    self.unreadable(&error);
                    self.rest_without().await;
                    continue;
                }
            };
            self.stand();
            if self.hurried.is_some_and(|last| last.elapsed() < CALM) {
                let pause = self.churn.pause();
                if self.rest(&subject, pause).await {
                    self.hurried = Some(Instant::now());
                    continue;
                }
            } else {
                self.churn.reset();
            }
            let since = Instant::now();
            match self.attend(&subject).await {
                End::Gone => {
                    let quick = since.elapsed() < QUICK;
                    self.hurried = quick.then(Instant::now);
                    if !quick {
                        self.backoff.reset();
                    }
                }
                End::Again => {}
                End::Doubted => {
                    self.rest(&subject, doubt::PAUSE).await;
                }
                End::Later => {
                    let pause = self.backoff.pause();
                    self.rest(&subject, pause).await;
                }
            }
        }
    }

    /// Nobody is in the cgroup: waits for somebody.
    async fn nobody(&mut self) {
        self.withdraw(Withdrawal::NoProcess).await;
        self.shared.health.stands(self.cgroup, None);
        self.doubt.over();
        if self.hurried.is_none_or(|last| last.elapsed() >= CALM) {
            self.backoff.reset();
        }
        tokio::select! {
            () = self.changed.notified() => {}
            () = sleep(self.look) => {}
            () = told_of(&self.shared.pods, &self.path) => {}
        }
    }

    /// Asks SPIRE about somebody, and listens.
    async fn attend(&mut self, subject: &Subject) -> End {
        let mut links = self.shared.link.clone();
        let link = loop {
            if let Some(link) = links.borrow_and_update().clone() {
                break link;
            }
            tokio::select! {
                () = news(&mut links) => {}
                interrupt = self.interrupt(subject) => {
                    if let Some(end) = self.interrupted(subject, interrupt).await {
                        return end;
                    }
                }
            }
        };
        let shared = Arc::clone(&self.shared);
        let asked = link.clone();
        let asking = Arc::clone(&self.asking);
        let mut subscribing = pin!(async {
            // Nobody closes them.
            let _one_of_its_own = asking.acquire().await;
            let _asking = shared.asking.acquire().await;
            asked.subscribe(subject.request(), shared.settings.patience).await
        });
        let stream = loop {
            tokio::select! {
                stream = &mut subscribing => match stream {
                    Ok(stream) => break stream,
                    Err(why) => return self.failed(&why),
                },
                () = news(&mut links) => {
                    if links.borrow_and_update().as_ref().is_none_or(|now| now.number != link.number) {
                        return End::Again;
                    }
                }
                interrupt = self.interrupt(subject) => {
                    if let Some(end) = self.interrupted(subject, interrupt).await {
                        return end;
                    }
                }
            }
        };
        self.listen(subject, link, links, stream).await
    }

    fn failed(&mut self, why: &str) -> End {
        tracing::debug!(cgroup = %self.path.display(), why, "SPIRE did not say who this is");
        End::Later
    }

    /// Waits, unless the process goes. Whether it did.
    async fn rest(&mut self, subject: &Subject, pause: Duration) -> bool {
        let mut paused = pin!(sleep(pause));
        loop {
            tokio::select! {
                () = &mut paused => return false,
                interrupt = self.interrupt(subject) => {
                    if self.interrupted(subject, interrupt).await.is_some() {
                        return true;
                    }
                }
            }
        }
    }

    /// Waits where no process is known.
    async fn rest_without(&mut self) {
        let pause = self.backoff.pause();
        tokio::select! {
            () = sleep(pause) => {}
            () = passed(self.expires()) => self.expired().await,
        }
    }

    /// When the name is to be taken back, or held.
    fn expires(&self) -> Option<i64> {
        let current = self.current.as_ref().filter(|current| !current.held);
        current.map(|current| current.identity.expires)
    }

    async fn interrupt(&self, subject: &Subject) -> Interrupt {
        tokio::select! {
            () = subject.ended() => Interrupt::Ended,
            () = passed(self.expires()) => Interrupt::Expired,
            () = self.changed.notified() => Interrupt::Changed,
            () = sleep(self.look) => Interrupt::Changed,
        }
    }

    async fn interrupted(&mut self, subject: &Subject, interrupt: Interrupt) -> Option<End> {
        match interrupt {
            Interrupt::Ended => Some(End::Gone),
            Interrupt::Changed => (!subject.is_there()).then_some(End::Gone),
            Interrupt::Expired => {
                self.expired().await;
                None
            }
        }
    }
}

impl Drop for Follower {
    /// The last that a task does: what it noted a moment ago would stay otherwise.
    fn drop(&mut self) {
        self.shared.health.stands(self.cgroup, None);
        self.show_nothing();
    }
}
