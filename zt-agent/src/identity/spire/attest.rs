// SPDX-License-Identifier: Apache-2.0
//! One cgroup: a live process in it is attested for as long as it lives, then the next one.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spire_api::pb::spire::api::agent::delegatedidentity::v1::SubscribeToX509sviDsResponse;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep};
use tonic::Streaming;

use super::backoff::Backoff;
use super::bundle::Bundle;
use super::health::{Health, Standing, Withdrawal};
use super::link::{Link, words};
use super::process::Process;
use super::svid::{self, Svid};
use super::wall::passed;
use super::{Attestation, Attested, OnExpiry, Settings};

/// Pauses between attempts at an identity.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a process is attested anew, at least: it may have become another user, or run another program.
const REATTEST: Duration = Duration::from_secs(300);
/// How often it is looked whether the process is still in its cgroup, should nobody have said so.
const LOOK: Duration = Duration::from_secs(10);
/// The same for a cgroup that cannot be watched.
const LOOK_UNWATCHED: Duration = Duration::from_secs(1);
/// Updates of one workload within [`WINDOW`] that are taken seriously.
const MOST_UPDATES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

/// What all cgroups have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Arc<Settings>,
    pub(super) health: Arc<Health>,
    pub(super) link: watch::Receiver<Option<Link>>,
    pub(super) said: mpsc::Sender<Attestation>,
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
        }
    }

    /// Follows it until the task is aborted, which is when the cgroup has gone.
    pub(super) async fn run(mut self) {
        loop {
            let Some(process) = Process::oldest(&self.directory, self.cgroup) else {
                self.withdraw(Withdrawal::NoProcess).await;
                self.shared.health.stands(self.cgroup, None);
                self.backoff.reset();
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep(self.look) => {}
                }
                continue;
            };
            self.stand();
            match self.attend(&process).await {
                End::Gone => self.backoff.reset(),
                End::Again => {}
                End::Later => self.pause(&process).await,
            }
        }
    }

    /// Asks SPIRE about a process, and listens.
    async fn attend(&mut self, process: &Process) -> End {
        let mut links = self.shared.link.clone();
        let link = loop {
            if let Some(link) = links.borrow_and_update().clone() {
                break link;
            }
            tokio::select! {
                _ = links.changed() => {}
                interrupt = self.interrupt(process) => {
                    if let Some(end) = self.interrupted(process, interrupt).await {
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
            asked.subscribe(process.pid(), shared.settings.patience).await
        });
        let stream = loop {
            tokio::select! {
                stream = &mut subscribing => match stream {
                    Ok(stream) => break stream,
                    Err(why) => return self.failed(&why),
                },
                _ = links.changed() => {
                    if links.borrow_and_update().as_ref().is_none_or(|now| now.number != link.number) {
                        return End::Again;
                    }
                }
                interrupt = self.interrupt(process) => {
                    if let Some(end) = self.interrupted(process, interrupt).await {
                        return end;
                    }
                }
            }
        };
        self.listen(process, link, links, stream).await
    }

    async fn listen(
        &mut self,
        process: &Process,
        mut link: Link,
        mut links: watch::Receiver<Option<Link>>,
        mut stream: Streaming<SubscribeToX509sviDsResponse>,
    ) -> End {
        let mut last: Option<SubscribeToX509sviDsResponse> = None;
        let mut again = pin!(sleep(REATTEST));
        let (mut window, mut updates) = (Instant::now(), 0);
        // It may have been replaced while this one was subscribed to.
        links.mark_changed();
        loop {
            tokio::select! {
                message = stream.message() => {
                    let mut answer = match message {
                        Ok(Some(answer)) => answer,
                        Ok(None) => return self.failed("the SPIRE agent ended the stream"),
                        Err(status) => return self.failed(&words(&status)),
                    };
                    if window.elapsed() > WINDOW {
                        (window, updates) = (Instant::now(), 0);
                    }
                    updates += 1;
                    if updates > MOST_UPDATES {
                        return self.refused("flood", "SPIRE sends more updates than a workload can have");
                    }
                    if !process.is_there() {
                        // Who knows whom SPIRE has looked at.
                        return End::Gone;
                    }
                    for svid in &mut answer.x509_svids {
                        svid.x509_svid_key.clear();
                    }
                    let next = self.judge(&answer, &link.bundle).await;
                    again.as_mut().reset(Instant::now() + next);
                    last = Some(answer);
                }
                _ = links.changed() => {
                    match links.borrow_and_update().clone() {
                        Some(now) if now.number == link.number => link = now,
                        _ => return End::Again,
                    }
                    // An SVID of a new authority may have come before that authority.
                    if let Some(answer) = &last {
                        let next = self.judge(answer, &link.bundle).await;
                        again.as_mut().reset(Instant::now() + next);
                    }
                }
                () = &mut again => return End::Again,
                interrupt = self.interrupt(process) => {
                    if let Some(end) = self.interrupted(process, interrupt).await {
                        return end;
                    }
                }
            }
        }
    }

    /// Draws the conclusion from an answer. After how long the process is to be attested anew.
    async fn judge(&mut self, answer: &SubscribeToX509sviDsResponse, bundle: &Bundle) -> Duration {
        let Some(svid) = svid::choose(answer) else {
            self.withdraw(Withdrawal::NoEntry).await;
            self.stand();
            // It may have been too early: its selectors are those of when it was attested.
            return self.backoff.pause();
        };
        let domain = &self.shared.settings.trust_domain;
        match svid::verify(svid, bundle, domain, SystemTime::now()) {
            Ok(svid) => {
                self.name(svid).await;
                self.backoff.reset();
                self.refusal.clear();
                REATTEST
            }
            Err(refusal) => {
                self.refused(refusal.cause(), &refusal.to_string());
                self.backoff.pause()
            }
        }
    }

    /// The cgroup is this identity.
    async fn name(&mut self, svid: Svid) {
        let identity = Attested {
            spiffe: svid.id,
            expires: svid.expires,
        };
        let before = self.current.replace(Current {
            identity: identity.clone(),
            digest: Some(svid.digest),
            held: false,
        });
        self.stand();
        let same = before
            .as_ref()
            .filter(|before| before.identity.spiffe == identity.spiffe);
        if let Some(before) = same {
            let rotated = before.digest.is_some_and(|digest| digest != svid.digest);
            if rotated {
                self.shared.health.rotated(&identity.spiffe.text());
                tracing::debug!(cgroup = %self.path.display(), spiffe = %identity.spiffe, "a new SVID");
            }
            if before.identity == identity {
                return;
            }
        } else {
            tracing::info!(cgroup = %self.path.display(), spiffe = %identity.spiffe, "attested by SPIRE");
        }
        self.say(Some(identity)).await;
    }

    /// The cgroup is nobody.
    async fn withdraw(&mut self, why: Withdrawal) {
        let Some(before) = self.current.take() else {
            return;
        };
        self.shared.health.withdrawn(why);
        tracing::warn!(
            cgroup = %self.path.display(),
            spiffe = %before.identity.spiffe,
            why = why.cause(),
            "identity withdrawn"
        );
        self.say(None).await;
    }

    async fn say(&self, identity: Option<Attested>) {
        let attestation = Attestation {
            cgroup: self.path.clone(),
            cgroup_id: self.cgroup,
            identity,
        };
        // Nobody listens any more when the agent stops.
        let _ = self.shared.said.send(attestation).await;
    }

    fn stand(&self) {
        let standing = match &self.current {
            None => Standing::Waiting,
            Some(current) if current.held => Standing::Held,
            Some(_) => Standing::Named,
        };
        self.shared.health.stands(self.cgroup, Some(standing));
    }

    fn failed(&mut self, why: &str) -> End {
        tracing::debug!(cgroup = %self.path.display(), why, "SPIRE did not say who this is");
        End::Later
    }

    /// What SPIRE says is not believed; what was known stays until it expires.
    fn refused(&mut self, cause: &'static str, why: &str) -> End {
        self.shared.health.refused(cause, why);
        if self.refusal != why {
            why.clone_into(&mut self.refusal);
            tracing::warn!(cgroup = %self.path.display(), cause, "refused what SPIRE says of a workload: {why}");
        }
        End::Later
    }

    /// Waits before the next attempt, unless the process goes.
    async fn pause(&mut self, process: &Process) {
        let mut paused = pin!(sleep(self.backoff.pause()));
        loop {
            tokio::select! {
                () = &mut paused => return,
                interrupt = self.interrupt(process) => {
                    if self.interrupted(process, interrupt).await.is_some() {
                        return;
                    }
                }
            }
        }
    }

    async fn interrupt(&self, process: &Process) -> Interrupt {
        let expires = self.current.as_ref().filter(|current| !current.held);
        tokio::select! {
            () = process.ended() => Interrupt::Ended,
            () = passed(expires.map(|current| current.identity.expires)) => Interrupt::Expired,
            () = self.changed.notified() => Interrupt::Changed,
            () = sleep(self.look) => Interrupt::Changed,
        }
    }

    async fn interrupted(&mut self, process: &Process, interrupt: Interrupt) -> Option<End> {
        match interrupt {
            Interrupt::Ended => Some(End::Gone),
            Interrupt::Changed => (!process.is_there()).then_some(End::Gone),
            Interrupt::Expired => {
                match (self.shared.settings.on_expiry, &mut self.current) {
                    (OnExpiry::Hold, Some(current)) => {
                        current.held = true;
                        tracing::warn!(
                            cgroup = %self.path.display(),
                            spiffe = %current.identity.spiffe,
                            "the SVID has expired; the identity is held (`onExpiry: hold`)"
                        );
                    }
                    _ => self.withdraw(Withdrawal::Expired).await,
                }
                self.stand();
                None
            }
        }
    }
}

impl Drop for Follower {
    /// The last that a task does: what it noted a moment ago would stay otherwise.
    fn drop(&mut self) {
        self.shared.health.stands(self.cgroup, None);
    }
}
