// SPDX-License-Identifier: Apache-2.0
//! The keys of a connection, from its greeting on: what is used is verified at the other end before.

use tokio::sync::oneshot;

use super::{Connection, End, Stage, broken, stopped};
use crate::peers::Told;
use crate::peers::keys::{self, Epochs, Known, Next};
use crate::peers::protocol::{Message, VERSION};

impl Connection<'_> {
    pub(super) async fn greeted(
        &mut self,
        version: u16,
        node: &str,
        proves: bool,
        theirs: Known,
    ) -> Result<(), End> {
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
        self.patience.greeted();
        let settings = &self.pair.shared().settings;
        self.proves = proves && settings.proves;
        let local = self.pair.shared().local.borrow().clone();
        self.says(local);
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

    pub(super) fn epochs(&mut self) -> Result<&mut Epochs, End> {
        let why = "it speaks of keys, and there are none";
        self.epochs
            .as_mut()
            .ok_or_else(|| End::Refused("protocol", why.to_owned()))
    }

    /// Has the kernel verify with the keys of an epoch, and says so.
    pub(super) async fn verify_with(&mut self, epoch: u64) -> Result<(), End> {
        let epochs = *self.epochs()?;
        self.pair.placed_key(epoch);
        let needed = self.pair.places(epochs.needed());
        let key = keys::key(&self.wire.stream, self.role.other(), epoch).map_err(|error| broken(&error))?;
        let (done, is_done) = oneshot::channel();
        let told = Told::Verify {
            node: self.pair.number(),
            epoch,
            key,
            needed,
            done,
        };
        self.pair.tell(told).await.map_err(stopped)?;
        is_done.await.map_err(|_| no_key())?;
        self.pair.knows(epochs.known());
        self.send(&Message::Ready { epoch })
    }

    pub(super) async fn ready(&mut self, epoch: u64) -> Result<(), End> {
        let next = self.epochs()?.ready(epoch).map_err(|error| nonsense(&error))?;
        if next == Next::FollowAndUse {
            self.verify_with(epoch).await?;
        }
        let key = keys::key(&self.wire.stream, self.role, epoch).map_err(|error| broken(&error))?;
        let (done, is_done) = oneshot::channel();
        let told = Told::Use {
            node: self.pair.number(),
            epoch,
            key,
            done,
        };
        self.pair.tell(told).await.map_err(stopped)?;
        // The other end forgets the key before it only when this one is in the kernel.
        is_done.await.map_err(|_| no_key())?;
        let known = self.epochs()?.known();
        self.pair.knows(known);
        self.pair.uses(epoch);
        self.send(&Message::Uses { epoch })
    }

    /// The other end uses the key of an epoch. What it has sent with the one before may still be on its way.
    pub(super) async fn used(&mut self, epoch: u64) -> Result<(), End> {
        let epochs = self.epochs()?;
        epochs.used(epoch).map_err(|error| nonsense(&error))?;
        let needed = epochs.needed();
        let needed = self.pair.places(needed);
        let node = self.pair.number();
        self.pair
            .tell(Told::Needed { node, needed })
            .await
            .map_err(stopped)
    }
}

fn nonsense(error: &keys::EpochError) -> End {
    End::Refused("protocol", error.to_string())
}

fn no_key() -> End {
    End::Lost("the kernel took no key".to_owned())
}
