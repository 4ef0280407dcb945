// SPDX-License-Identifier: Apache-2.0
//! One connection to another agent, to its end. Written and read by turns, so that two ends that both have much to say never
//! wait for each other.

mod judge;
mod say;
mod wire;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::Told;
use super::keys::{self, Epochs, Known, Next, Role};
use super::pair::Pair;
use super::proof::Binding;
use super::protocol::{Message, VERSION};
use super::reach::Arrived;

use self::say::Saying;
use self::wire::{Moved, Wire};

/// What a node may say at once: all that it can have, twice.
const BURST: f64 = 16_384.0;
/// What it may say in a second from then on.
const PER_SECOND: f64 = 200.0;

/// How a connection ended.
pub(super) enum End {
    /// It broke, or the other end closed it.
    Lost(String),
    /// What the other end said or did, by a cause of `REFUSALS`.
    Refused(&'static str, String),
    /// There are newer certificates, or the one that it rests on has ended: both come back with theirs.
    Renew,
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
    heard: Instant,
    beat: Instant,
    rotate: Instant,
    ends: Instant,
    allowance: f64,
    counted: Instant,
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
            heard: now,
            beat: now + timing.beat,
            rotate: now + timing.rotate,
            // A year is for ever, and does not overflow.
            ends: now + std::time::Duration::from_secs(left.min(365 * 86_400).unsigned_abs()),
            allowance: BURST,
            counted: now,
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
        certificates.mark_unchanged();
        loop {
            self.fill()?;
            let expiry = self.pair.next_expiry();
            let timing = self.pair.shared().settings.timing;
            let due = self
                .ends
                .min(self.beat)
                .min(self.heard + timing.silence)
                .min(self.rotate)
                .min(self.pair.holds_until().unwrap_or(self.rotate))
                .min(expiry);
            tokio::select! {
                moved = self.wire.transfer() => {
                    match moved {
                        Ok(Moved::Wrote) => {}
                        Ok(Moved::Read(0)) => return Err(End::Lost("the other end closed the connection".to_owned())),
                        Ok(Moved::Read(_)) => self.hear().await?,
                        Err(error) => return Err(broken(&error)),
                    }
                }
                changed = local.changed(), if self.stage != Stage::New => {
                    if changed.is_err() {
                        return Err(End::Stopped);
                    }
                    let now = Arc::clone(&local.borrow_and_update());
                    self.saying.change_to(now);
                }
                Ok(()) = certificates.changed(), if self.doubts => return Err(End::Renew),
                arrived = self.pair.arrived() => return Err(End::Replaced(Box::new(arrived))),
                () = sleep_until(due) => self.look_at_the_clock().await?,
            }
        }
    }

    async fn look_at_the_clock(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let timing = self.pair.shared().settings.timing;
        if now >= self.ends {
            return Err(End::Renew);
        }
        if now >= self.heard + timing.silence {
            return Err(End::Refused("silent", "it says nothing".to_owned()));
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
        self.pair.expire(unix_seconds());
        self.tell().await
    }

    /// Takes what has come.
    async fn hear(&mut self) -> Result<(), End> {
        self.heard = Instant::now();
        let passed = self.heard.duration_since(self.counted).as_secs_f64();
        self.counted = self.heard;
        self.allowance = (self.allowance + passed * PER_SECOND).min(BURST);
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
                _ => 1,
            };
            self.allowance -= cost as f64;
            if self.allowance < 0.0 {
                return Err(End::Refused(
                    "flood",
                    "it says more than a node can have to say".to_owned(),
                ));
            }
            self.take(message).await?;
        }
        self.tell().await
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
            Message::Uses { epoch } => {
                let epochs = self.epochs()?;
                epochs.used(epoch).map_err(|error| nonsense(&error))?;
                let needed = epochs.needed();
                let node = self.pair.number();
                self.pair
                    .tell(Told::Needed { node, needed })
                    .await
                    .map_err(stopped)
            }
            Message::Beat {} => Ok(()),
        }
    }

    async fn greeted(&mut self, version: u16, node: &str, proves: bool, theirs: Known) -> Result<(), End> {
        if version != VERSION {
            let why = format!("it speaks version {version} of the protocol, this agent {VERSION}");
            return Err(End::Refused("protocol", why));
        }
        if node != &**self.pair.name() {
            let why = format!(
                "its certificate is that of `{}`, and it calls itself `{node}`",
                self.pair.name()
            );
            return Err(End::Refused("not_a_node", why));
        }
        self.stage = Stage::Greeted;
        let settings = &self.pair.shared().settings;
        self.proves = proves && settings.proves;
        let local = self.pair.shared().local.borrow().clone();
        self.saying.begin(local);
        self.pair.proves(self.proves);
        let (role, known) = (self.role, self.pair.known());
        let epochs = Epochs::agree(role, known, theirs).map_err(|error| nonsense(&error))?;
        if self.proves {
            self.epochs = Some(epochs);
            self.verify_with(epochs.verifies()).await?;
        } else if known.uses != 0 {
            self.pair.knows(Known { uses: 0, ..known });
            let node = self.pair.number();
            self.pair.tell(Told::Forget { node }).await.map_err(stopped)?;
        }
        Ok(())
    }

    fn epochs(&mut self) -> Result<&mut Epochs, End> {
        let why = "it speaks of keys, and there are none";
        self.epochs
            .as_mut()
            .ok_or_else(|| End::Refused("protocol", why.to_owned()))
    }

    /// Has the kernel verify with the keys of an epoch, and says so.
    async fn verify_with(&mut self, epoch: u64) -> Result<(), End> {
        let epochs = *self.epochs()?;
        let key = keys::key(&self.wire.stream, self.role.other(), epoch).map_err(|error| broken(&error))?;
        let (done, is_done) = oneshot::channel();
        let told = Told::Verify {
            node: self.pair.number(),
            epoch,
            key,
            needed: epochs.needed(),
            done,
        };
        self.pair.tell(told).await.map_err(stopped)?;
        is_done
            .await
            .map_err(|_| End::Lost("the kernel took no key".to_owned()))?;
        self.pair.knows(epochs.known());
        self.send(&Message::Ready { epoch })
    }

    async fn ready(&mut self, epoch: u64) -> Result<(), End> {
        let next = self.epochs()?.ready(epoch).map_err(|error| nonsense(&error))?;
        if next == Next::FollowAndUse {
            self.verify_with(epoch).await?;
        }
        let key = keys::key(&self.wire.stream, self.role, epoch).map_err(|error| broken(&error))?;
        let node = self.pair.number();
        self.pair
            .tell(Told::Use { node, epoch, key })
            .await
            .map_err(stopped)?;
        let known = self.epochs()?.known();
        self.pair.knows(known);
        self.pair.uses(epoch);
        self.send(&Message::Uses { epoch })
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

fn nonsense(error: &keys::EpochError) -> End {
    End::Refused("protocol", error.to_string())
}

fn stopped(_: super::pair::Stopped) -> End {
    End::Stopped
}

/// Unix seconds, now.
pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
