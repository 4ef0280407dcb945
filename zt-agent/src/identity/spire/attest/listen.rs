// SPDX-License-Identifier: Apache-2.0
//! What SPIRE says on a stream, and what follows from it.

use std::pin::pin;
use std::time::{Duration, SystemTime};

use spire_api::pb::spire::api::agent::delegatedidentity::v1::SubscribeToX509sviDsResponse;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use super::{End, Follower, Interrupt};
use crate::identity::spire::bundle::Bundle;
use crate::identity::spire::health::Withdrawal;
use crate::identity::spire::link::{Link, news, words};
use crate::identity::spire::subject::Subject;
use crate::identity::spire::svid::{self, Kept};
use crate::spiffe_id::SpiffeId;

/// How often a process is attested anew, at least: it may have become another user, or run another program.
const REATTEST: Duration = Duration::from_secs(300);
/// Updates of one workload within [`WINDOW`] that are taken seriously.
const MOST_UPDATES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

impl Follower {
    /// Listens to what SPIRE says of a process, until that is of no more use.
    pub(super) async fn listen(
        &mut self,
        subject: &Subject,
        mut link: Link,
        mut links: watch::Receiver<Option<Link>>,
        mut stream: Streaming<SubscribeToX509sviDsResponse>,
    ) -> End {
        // What SPIRE said last, if it has said anything, and whether that was the first answer.
        let mut last: Option<Option<Kept>> = None;
        let mut first = true;
        let latest = Instant::now() + REATTEST;
        let mut again = pin!(sleep_until(latest));
        // It may have been replaced while this one was subscribed to.
        links.mark_changed();
        loop {
            tokio::select! {
                message = stream.message() => {
                    let answer = match message {
                        Ok(Some(answer)) => answer,
                        Ok(None) => return self.failed("the SPIRE agent ended the stream"),
                        Err(status) => return self.failed(&words(&status)),
                    };
                    if self.is_flooded() {
                        return self.refused("flood", "SPIRE sends more updates than a workload can have");
                    }
                    if !subject.is_there() {
                        // Who knows whom SPIRE has looked at.
                        return End::Gone;
                    }
                    first = last.is_none();
                    let svid = last.insert(svid::kept(answer, self.shared.svids.is_some()));
                    let Some(next) = self.judge(svid.as_ref(), &link.bundle, subject, first).await else {
                        return End::Doubted;
                    };
                    again.as_mut().reset((Instant::now() + next).min(latest));
                }
                () = news(&mut links) => {
                    match links.borrow_and_update().clone() {
                        Some(now) if now.number == link.number => link = now,
                        _ => return End::Again,
                    }
                    // An SVID of a new authority may have come before that authority.
                    if let Some(svid) = &last {
                        let Some(next) = self.judge(svid.as_ref(), &link.bundle, subject, first).await else {
                            return End::Doubted;
                        };
                        again.as_mut().reset((Instant::now() + next).min(latest));
                    }
                }
                () = &mut again => return End::Again,
                interrupt = self.interrupt(subject) => {
                    let expired = matches!(interrupt, Interrupt::Expired);
                    if let Some(end) = self.interrupted(subject, interrupt).await {
                        return end;
                    }
                    if expired {
                        // The clock may have been wrong.
                        again.as_mut().reset((Instant::now() + self.backoff.pause()).min(latest));
                    }
                }
            }
        }
    }

    /// Counts an update. Whether there were too many of late, on whatever stream.
    fn is_flooded(&mut self) -> bool {
        if self.window.elapsed() > WINDOW {
            (self.window, self.updates) = (Instant::now(), 0);
        }
        self.updates += 1;
        self.updates > MOST_UPDATES
    }

    /// Draws the conclusion from an answer. After how long the process is to be attested anew; `None` where the answer is
    /// doubted, and is to be asked for again.
    async fn judge(
        &mut self,
        kept: Option<&Kept>,
        bundle: &Bundle,
        subject: &Subject,
        first: bool,
    ) -> Option<Duration> {
        let Some(kept) = kept else {
            if first && self.doubts(subject, None) {
                return None;
            }
            self.withdraw(Withdrawal::NoEntry).await;
            self.stand();
            // It may have been too early: its selectors are those of when it was attested.
            return Some(self.backoff.pause());
        };
        let domain = &self.shared.settings.trust_domain;
        match svid::verify(&kept.svid, bundle, domain, SystemTime::now()) {
            Ok(svid) => {
                if first && self.doubts(subject, Some(&svid.id)) {
                    return None;
                }
                self.show(&svid.id, kept.shows.as_ref());
                self.name(svid, subject).await;
                self.backoff.reset();
                self.refusal.clear();
                Some(REATTEST)
            }
            Err(refusal) => {
                self.refused(refusal.cause(), &refusal.to_string());
                Some(self.backoff.pause())
            }
        }
    }

    /// Whether the first answer of a subscription is to be heard again before it counts: SPIRE takes the same living
    /// process for somebody else than before, which it does too when one of its attestors fails for a moment.
    fn doubts(&mut self, subject: &Subject, said: Option<&SpiffeId>) -> bool {
        let another = self.current.as_ref().is_some_and(|current| {
            current.process.is_none_or(|named| named == subject.birth())
                && said != Some(&current.identity.spiffe)
        });
        if another && !self.doubt.counts(said) {
            return true;
        }
        self.doubt.over();
        false
    }
}
