// SPDX-License-Identifier: Apache-2.0
//! Keys of a pair of nodes, and when which is in use.
//!
//! Both ends derive them from their TLS connection: nothing of a key is ever sent. A key is used for sending only when the
//! other end has said that it verifies with it; so no change of keys, restart or new connection refuses a handshake.

use tokio_rustls::TlsStream;
use zt_common::handshake::EPOCH_MASK;
use zt_common::siphash::Key;

/// Of the exporter (RFC 8446, section 7.5).
const LABEL: &[u8] = b"EXPORTER-zt-handshake-key-1";
/// Beyond this a node talks nonsense: with a new key each second it lasts for millions of years.
const LAST: u64 = 1 << 48;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It has made the connection.
    Dials,
    /// It has taken it.
    Listens,
}

impl Role {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Dials => Self::Listens,
            Self::Listens => Self::Dials,
        }
    }

    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Dials => 0,
            Self::Listens => 1,
        }
    }
}

/// Derives `N` bytes that both ends know, and nobody else.
pub(super) fn export<T, const N: usize>(
    stream: &TlsStream<T>,
    label: &[u8],
    context: &[u8],
) -> Result<[u8; N], rustls::Error> {
    let out = [0; N];
    match stream {
        TlsStream::Client(stream) => stream
            .get_ref()
            .1
            .export_keying_material(out, label, Some(context)),
        TlsStream::Server(stream) => stream
            .get_ref()
            .1
            .export_keying_material(out, label, Some(context)),
    }
}

/// The key of what `sender` sends in an epoch.
pub(super) fn key<T>(stream: &TlsStream<T>, sender: Role, epoch: u64) -> Result<Key, rustls::Error> {
    let mut context = [sender.byte(); 9];
    context[1..].copy_from_slice(&epoch.to_be_bytes());
    let bytes = u128::from_le_bytes(export(stream, LABEL, &context)?);
    Ok(Key {
        k0: bytes as u64,
        k1: (bytes >> 64) as u64,
    })
}

/// What a node may not say of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EpochError {
    /// No pair of nodes has had that many.
    #[error("it speaks of epoch {0}, which no pair of nodes has reached")]
    TooHigh(u64),
    /// It is not the one that comes next.
    #[error("it speaks of epoch {said} where {expected} was to come")]
    OutOfOrder {
        /// What it says.
        said: u64,
        /// What it could say.
        expected: u64,
    },
}

/// What an end knows of the pair's epochs when a connection begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The highest one that it has had.
    pub(super) highest: u64,
    /// The one that it sends with; 0 where there is none.
    pub(super) uses: u64,
}

/// What is to be done when the other end is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Use the key of that epoch from now on, and say so.
    Use,
    /// Verify with its key first, and say so; then use it, and say so.
    FollowAndUse,
}

/// The epochs of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epochs {
    role: Role,
    /// The newest one that is verified with.
    verifies: u64,
    /// The one that is used; 0 where there is none.
    uses: u64,
    /// The one that the other end uses; 0 where there is none.
    theirs: u64,
}

impl Epochs {
    /// A new connection has keys of an epoch that neither end has had, in a slot from which neither sends.
    pub(super) fn agree(role: Role, ours: Known, theirs: Known) -> Result<Self, EpochError> {
        let highest = theirs.highest.max(theirs.uses);
        if highest >= LAST {
            return Err(EpochError::TooHigh(highest));
        }
        let taken = |epoch: u64| {
            let sent = [ours.uses, theirs.uses].into_iter().filter(|uses| *uses != 0);
            sent.map(|uses| uses & EPOCH_MASK)
                .any(|slot| slot == epoch & EPOCH_MASK)
        };
        let mut verifies = highest.max(ours.highest).max(ours.uses) + 1;
        while taken(verifies) {
            verifies += 1;
        }
        Ok(Self {
            role,
            verifies,
            uses: ours.uses,
            theirs: theirs.uses,
        })
    }

    /// The newest epoch that this end verifies with.
    pub(super) const fn verifies(&self) -> u64 {
        self.verifies
    }

    /// Those that it must verify with: the newest one, and the one that the other end uses.
    pub(super) const fn needed(&self) -> [u64; 2] {
        [self.verifies, self.theirs]
    }

    /// What is known of the pair.
    pub(super) const fn known(&self) -> Known {
        Known {
            highest: self.verifies,
            uses: self.uses,
        }
    }

    /// The end that dials begins the next epoch, once both use the last one.
    pub(super) fn advance(&mut self) -> Option<u64> {
        if self.role != Role::Dials || !self.is_settled() {
            return None;
        }
        self.verifies += 1;
        Some(self.verifies)
    }

    /// Both use what both verify with.
    const fn is_settled(&self) -> bool {
        self.uses == self.verifies && self.theirs == self.verifies
    }

    /// The other end verifies with the keys of `epoch`.
    pub(super) fn ready(&mut self, epoch: u64) -> Result<Next, EpochError> {
        let follows = self.role == Role::Listens && self.is_settled();
        let expected = if follows { self.verifies + 1 } else { self.verifies };
        if epoch != expected || self.uses == expected || expected >= LAST {
            return Err(EpochError::OutOfOrder {
                said: epoch,
                expected,
            });
        }
        self.uses = epoch;
        if follows {
            self.verifies = epoch;
            return Ok(Next::FollowAndUse);
        }
        Ok(Next::Use)
    }

    /// The other end uses the keys of `epoch`.
    pub(super) fn used(&mut self, epoch: u64) -> Result<(), EpochError> {
        if epoch != self.verifies || self.theirs == epoch {
            return Err(EpochError::OutOfOrder {
                said: epoch,
                expected: self.verifies,
            });
        }
        self.theirs = epoch;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// One end as its kernel sees it: what it verifies with, by slot, and what it sends with.
    #[derive(Default)]
    struct Kernel {
        slots: [Option<u64>; 4],
        sends: u64,
    }

    impl Kernel {
        fn verify_with(&mut self, epoch: u64, needed: [u64; 2]) {
            self.slots[(epoch & EPOCH_MASK) as usize] = Some(epoch);
            self.keep(needed);
        }

        fn keep(&mut self, needed: [u64; 2]) {
            for slot in &mut self.slots {
                *slot = slot.filter(|epoch| needed.contains(epoch));
            }
        }
    }

    #[derive(Clone, Copy)]
    enum Said {
        Ready(u64),
        Uses(u64),
    }

    proptest! {
        /// In whatever order messages, rotations, lost connections and restarts come: what one end sends, the other end
        /// verifies.
        #[test]
        fn what_is_sent_is_verified_at_every_moment(
            steps in proptest::collection::vec(0_u8..20, 1..300),
        ) {
            let roles = [Role::Dials, Role::Listens];
            let mut kernels = [Kernel::default(), Kernel::default()];
            let mut known = [Known::default(); 2];
            let mut wires = [VecDeque::new(), VecDeque::new()];
            let mut epochs: Option<[Epochs; 2]> = None;
            for step in steps {
                match (step, &mut epochs) {
                    (0..=15, Some(epochs)) => {
                        let end = usize::from(step % 2);
                        match wires[end].pop_front() {
                            None => {}
                            Some(Said::Uses(epoch)) => {
                                epochs[end].used(epoch).expect("an honest end");
                                kernels[end].keep(epochs[end].needed());
                            }
                            Some(Said::Ready(epoch)) => {
                                if epochs[end].ready(epoch).expect("an honest end") == Next::FollowAndUse {
                                    kernels[end].verify_with(epoch, epochs[end].needed());
                                    wires[1 - end].push_back(Said::Ready(epoch));
                                }
                                kernels[end].sends = epoch;
                                wires[1 - end].push_back(Said::Uses(epoch));
                            }
                        }
                        known[end] = epochs[end].known();
                    }
                    (16, Some(epochs)) => if let Some(epoch) = epochs[0].advance() {
                        kernels[0].verify_with(epoch, epochs[0].needed());
                        known[0] = epochs[0].known();
                        wires[1].push_back(Said::Ready(epoch));
                    },
                    // Lost, with whatever is on its way; a new agent knows what the kernel's map says.
                    (17 | 18, _) => {
                        epochs = None;
                        let end = usize::from(step % 2);
                        known[end] = Known { highest: kernels[end].sends, uses: kernels[end].sends };
                    }
                    _ => {
                        let new = [0, 1].map(|end| {
                            Epochs::agree(roles[end], known[end], known[1 - end]).expect("low")
                        });
                        prop_assert_eq!(new[0].verifies(), new[1].verifies());
                        for end in [0, 1] {
                            let epoch = new[end].verifies();
                            kernels[end].verify_with(epoch, new[end].needed());
                            known[end] = new[end].known();
                            wires[1 - end].clear();
                            wires[1 - end].push_back(Said::Ready(epoch));
                        }
                        epochs = Some(new);
                    }
                }
                for end in [0, 1] {
                    let sends = kernels[end].sends;
                    let slot = kernels[1 - end].slots[(sends & EPOCH_MASK) as usize];
                    prop_assert!(sends == 0 || slot == Some(sends), "{} is sent by {}", sends, end);
                }
            }
        }
    }

    #[test]
    fn an_end_that_says_anything_else_is_found_out() {
        let known = |highest, uses| Known { highest, uses };
        let mut epochs = Epochs::agree(Role::Listens, known(7, 7), known(3, 3)).expect("low");
        assert_eq!(epochs.verifies(), 8);
        assert!(epochs.ready(9).is_err(), "the first is not in use yet");
        assert!(epochs.used(9).is_err());
        assert_eq!(epochs.ready(8), Ok(Next::Use));
        assert!(epochs.ready(9).is_err(), "the other end has not begun with it");
        assert_eq!(epochs.used(8), Ok(()));
        assert!(epochs.used(8).is_err());
        for wrong in [0, 8, 10, u64::MAX] {
            assert!(epochs.ready(wrong).is_err(), "{wrong}");
        }
        assert_eq!(epochs.ready(9), Ok(Next::FollowAndUse));
        let mut dials = Epochs::agree(Role::Dials, Known::default(), Known::default()).expect("low");
        assert_eq!(dials.advance(), None, "one at a time");
        assert!(dials.ready(2).is_err(), "it is not for who listens to begin");
        assert_eq!(dials.ready(1), Ok(Next::Use));
        assert_eq!(dials.advance(), None, "the other end has not begun with it");
        assert_eq!(dials.used(1), Ok(()));
        assert_eq!(dials.advance(), Some(2));
        assert!(Epochs::agree(Role::Dials, Known::default(), known(u64::MAX, 0)).is_err());
    }

    #[test]
    fn a_slot_that_somebody_sends_from_is_not_written() {
        let ours = Known { highest: 4, uses: 1 };
        let theirs = Known { highest: 4, uses: 2 };
        let epochs = Epochs::agree(Role::Dials, ours, theirs).expect("low");
        assert_eq!(epochs.verifies(), 7, "5 and 6 have the slots of 1 and 2");
        assert_eq!(epochs.needed(), [7, 2]);
    }
}
