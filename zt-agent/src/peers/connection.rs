// SPDX-License-Identifier: Apache-2.0
//! One connection to another agent, to its end. Written and read by turns, so that two ends that both have much to say never
//! wait for each other.

mod judge;
mod patience;
mod rotate;
mod say;
mod wire;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep_until};

use super::keys::{Epochs, Known, Role};
use super::pair::Pair;
use super::proof::Binding;
use super::protocol::{Message, VERSION};
use super::reach::Arrived;
use crate::identity::peers::Local;
use crate::tls::As;

use self::patience::Patience;
use self::say::Saying;
use self::wire::{Moved, Wire};

/// Bytes that may wait for a node that does not take them.
const MOST_WAITING: usize = 512 * 1024;
/// Changes that may wait for one.
const MOST_UNSAID: usize = 65_536;

/// How a connection ended.
pub(super) enum End {
    /// It broke, or the other end closed it.
    Lost(String),
    /// What the other end said or did, by a cause of `REFUSALS`.
    Refused(&'static str, String),
    /// There are newer certificates, or one that it rests on has ended, or it may speak for more: both come back.
    Renew(String),
    /// The certificate that it rests on is not believed any more, and nothing that was said over it.
    Distrusted(String),
    /// The other end has made another one.
    Replaced(Box<Arrived>),
    /// Nobody listens to this agent's parts any more.
    Stopped,
}

fn broken(error: &dyn std::error::Error) -> End {
    End::Lost(error.to_string())
}

/// How far the other end has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not said who it is.
    New,
    /// It has.
    Greeted,
    /// It has said all that there is.
    Whole,
}

/// One connection.
pub(super) struct Connection<'a> {
    pair: &'a mut Pair,
    role: Role,
    wire: Wire,
    binding: Binding,
    saying: Saying,
    /// From its hello on.
    epochs: Option<Epochs>,
    stage: Stage,
    proves: bool,
    /// An SVID was not believed: it may be by certificates that come later.
    doubts: bool,
    patience: Patience,
    beat: Instant,
    rotate: Instant,
    ends: Instant,
}

impl<'a> Connection<'a> {
    /// Takes a connection, whose other end is the right one.
    pub(super) fn new(pair: &'a mut Pair, role: Role, arrived: Arrived) -> Result<Self, End> {
        let binding = Binding::of(&arrived.stream).map_err(|error| broken(&error))?;
        let now = Instant::now();
        let timing = &pair.shared().settings.timing;
        let left = arrived.expires.saturating_sub(unix_seconds()).max(0);
        Ok(Self {
            role,
            binding,
            saying: Saying::default(),
            epochs: None,
            stage: Stage::New,
            proves: false,
            doubts: false,
            patience: Patience::new(timing, now),
            beat: now + timing.beat,
            rotate: now + timing.rotate,
            // A year is for ever, and does not overflow.
            ends: now + std::time::Duration::from_secs(left.min(365 * 86_400).unsigned_abs()),
            wire: Wire::new(arrived.stream),
            pair,
        })
    }

    /// Whether the other end has said all.
    pub(super) async fn run(mut self) -> (End, bool) {
        let Err(end) = self.talk().await;
        (end, self.stage == Stage::Whole)
    }

    async fn talk(&mut self) -> Result<std::convert::Infallible, End> {
        let Known { highest, uses } = self.pair.known();
        let settings = &self.pair.shared().settings;
        let hello = Message::Hello {
            version: VERSION,
            node: settings.node.to_string(),
            proves: settings.proves,
            epoch: highest,
            uses,
        };
        self.send(&hello)?;
        self.pair.begin();
        let mut local = self.pair.shared().local.clone();
        let mut certificates = self.pair.shared().certificates.clone();
        let mut speakers = self.pair.speakers();
        certificates.mark_unchanged();
        // It may have waited while they changed.
        self.is_believed().map_err(End::Lost)?;
        self.pair.rests_on_authorities();
        speakers.mark_changed();
        loop {
            self.fill()?;
            self.patience.at_work(Instant::now(), self.wire.is_idle());
            let later = self.rotate;
            let due = self
                .ends
                .min(self.beat)
                .min(self.rotate)
                .min(self.patience.until())
                .min(self.pair.next_expiry())
                .min(self.pair.holds_until().unwrap_or(later))
                .min(self.pair.retires().unwrap_or(later))
                .min(self.pair.keeps_at().unwrap_or(later))
                .min(self.pair.tells_at().unwrap_or(later));
            tokio::select! {
                moved = self.wire.transfer() => {
                    match moved {
                        Ok(Moved::Wrote) => self.patience.took(Instant::now()),
                        Ok(Moved::Read(0)) => return Err(End::Lost("the other end closed the connection".to_owned())),
                        Ok(Moved::Read(_)) => self.hear().await?,
                        Err(error) => return Err(broken(&error)),
                    }
                }
                changed = local.changed(), if self.stage != Stage::New => {
                    if changed.is_err() {
                        return Err(End::Stopped);
                    }
                    let now = local.borrow_and_update().clone();
                    self.says(now);
                    if self.saying.left() > MOST_UNSAID {
                        return Err(End::Lost("it does not take what changes as fast as that does".to_owned()));
                    }
                }
                Ok(()) = certificates.changed() => self.look_at_certificates()?,
                Ok(()) = speakers.changed() => {
                    let speaker = Arc::clone(&speakers.borrow_and_update());
                    let more = self.pair.speaks(speaker);
                    self.tell().await?;
                    if more {
                        return Err(End::Renew("it speaks for more addresses".to_owned()));
                    }
                }
                arrived = self.pair.arrived() => return Err(End::Replaced(Box::new(arrived))),
                () = sleep_until(due) => self.look_at_the_clock().await?,
            }
        }
    }

    async fn look_at_the_clock(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let timing = self.pair.shared().settings.timing;
        if now >= self.ends {
            return Err(End::Renew("its certificate has ended".to_owned()));
        }
        if let Some(why) = self.patience.is_over(now) {
            return Err(End::Refused("silent", why.to_owned()));
        }
        if self.stage != Stage::Whole && self.pair.holds_until().is_some_and(|until| now >= until) {
            return Err(End::Lost("it has not said all for too long".to_owned()));
        }
        if now >= self.beat {
            self.beat = now + timing.beat;
            if self.wire.is_idle() && self.stage != Stage::New {
                self.send(&Message::Beat {})?;
            }
        }
        if now >= self.rotate {
            self.rotate = now + timing.rotate;
            if let Some(epoch) = self.epochs.as_mut().and_then(Epochs::advance) {
                self.verify_with(epoch).await?;
            }
        }
        self.pair.look_at_the_clock();
        self.pair.retire(now).await.map_err(stopped)?;
        self.pair.keep_if_due(now);
        self.tell().await
    }

    /// This is who is here. Until that is known nothing is said: it would be taken for all there is.
    fn says(&mut self, local: Option<Arc<Local>>) {
        match local {
            Some(local) if self.saying.has_begun() => self.saying.change_to(local),
            Some(local) => self.saying.begin(local),
            None => {}
        }
    }

    /// Whether what this connection rests on is still believed.
    fn look_at_certificates(&mut self) -> Result<(), End> {
        self.is_believed().map_err(End::Distrusted)?;
        if self.pair.rests_on_authorities() {
            let why = "an authority has gone: who was shown by it is to be shown anew";
            return Err(End::Renew(why.to_owned()));
        }
        if self.doubts {
            let why = "there are other authorities: what was not believed may be by these";
            return Err(End::Renew(why.to_owned()));
        }
        Ok(())
    }

    fn is_believed(&self) -> Result<(), String> {
        let certificates = Arc::clone(&self.pair.shared().certificates.borrow());
        let Some(mutual) = certificates.as_ref() else {
            return Ok(());
        };
        let shown_as = match self.role {
            Role::Dials => As::Server,
            Role::Listens => As::Client,
        };
        let believed = mutual.believed(self.wire.certificates(), shown_as);
        believed.map(drop).map_err(|error| error.to_string())
    }

    /// Takes what has come.
    async fn hear(&mut self) -> Result<(), End> {
        self.patience.heard(Instant::now());
        loop {
            let message = match self.wire.next() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return Err(End::Refused("protocol", error.to_string())),
            };
            let cost = match &message {
                Message::At { residents } => residents.len().max(1),
                Message::Gone { addresses } => addresses.len().max(1),
                // A signature and a chain are verified.
                Message::Holds { .. } => 4,
                // The kernel's maps are written.
                Message::Ready { .. } | Message::Uses { .. } => 16,
                _ => 1,
            };
            if !self.pair.may(cost as f64) {
                return Err(End::Refused(
                    "flood",
                    "it says more than a node can have to say".to_owned(),
                ));
            }
            self.take(message).await?;
            if self.wire.waiting() > MOST_WAITING {
                let why = "it asks for more than it takes".to_owned();
                return Err(End::Refused("flood", why));
            }
        }
        if self.pair.tells_at().is_some_and(|at| at <= Instant::now()) {
            self.tell().await?;
        }
        Ok(())
    }

    async fn take(&mut self, message: Message) -> Result<(), End> {
        match message {
            Message::Hello {
                version,
                node,
                proves,
                epoch,
                uses,
            } if self.stage == Stage::New => {
                let theirs = Known { highest: epoch, uses };
                self.greeted(version, &node, proves, theirs).await
            }
            _ if self.stage == Stage::New => Err(End::Refused(
                "protocol",
                "it does not begin with who it is".to_owned(),
            )),
            Message::Hello { .. } => Err(End::Refused("protocol", "it says twice who it is".to_owned())),
            Message::Holds { spiffe, proof } => {
                self.shown(&spiffe, proof.as_ref());
                Ok(())
            }
            Message::Lets { spiffe } => {
                self.pair.table().lets(&spiffe);
                Ok(())
            }
            Message::At { residents } => {
                for resident in residents {
                    self.placed(resident);
                }
                Ok(())
            }
            Message::Gone { addresses } => {
                for address in addresses {
                    self.pair.table().gone(address);
                }
                Ok(())
            }
            Message::Whole {} => {
                self.stage = Stage::Whole;
                self.pair.whole();
                Ok(())
            }
            Message::Ready { epoch } => self.ready(epoch).await,
            Message::Uses { epoch } => self.used(epoch).await,
            Message::Beat {} => Ok(()),
        }
    }

    async fn tell(&mut self) -> Result<(), End> {
        self.pair.tell_changes().await.map_err(stopped)
    }

    fn send(&mut self, message: &Message) -> Result<(), End> {
        self.wire
            .send(message)
            .map_err(|error| End::Lost(error.to_string()))
    }

    /// Adds what is next to be said, if little is waiting.
    fn fill(&mut self) -> Result<(), End> {
        while self.wire.is_low() {
            let Some(message) = self.saying.next(&self.binding, self.role) else {
                break;
            };
            self.send(&message)?;
        }
        Ok(())
    }
}

fn stopped(_: super::pair::Stopped) -> End {
    End::Stopped
}

/// Unix seconds, now.
pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
