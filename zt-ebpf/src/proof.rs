// SPDX-License-Identifier: Apache-2.0
//! Reads the identity option of the other end, and says whether it proves anything.

use aya_ebpf::programs::SockOpsContext;
use zt_common::control::Control;
use zt_common::counter::Counter;
use zt_common::handshake::{EPOCH_MASK, IdentityOption, OPTION_BYTES, Syn, SynAck};
use zt_common::identity;
use zt_common::proof::Proof;
use zt_common::siphash::Key;

use crate::ends::{ends, next_received, unacknowledged};
use crate::{emit, maps, option};

/// What an option says of the other end. Plain numbers with a value on every path, as the verifier wants them.
#[derive(Clone, Copy)]
pub struct Claim {
    /// Who it is, where [`Self::is_proven`].
    pub identity: u64,
    /// Number of a [`Proof`].
    pub proof: u32,
    /// Whether it asks for the option once more.
    pub resend: u32,
}

impl Claim {
    /// Nothing was asked for.
    pub const NONE: Self = Self {
        identity: identity::UNKNOWN,
        proof: Proof::None as u32,
        resend: 0,
    };

    /// Whether it names the other end.
    #[inline(always)]
    pub fn is_proven(&self) -> bool {
        self.proof == Proof::Source as u32 || self.proof == Proof::Destination as u32
    }

    /// Whether it is what a forger would say.
    #[inline(always)]
    pub fn is_invalid(&self) -> bool {
        self.proof == Proof::TagInvalid as u32
    }

    /// What the source's record says; `other` where it is not who was taken for the destination.
    #[inline(always)]
    pub fn at_source(&self, other: bool) -> Proof {
        if self.is_proven() && !other {
            Proof::Mutual
        } else {
            self.at_destination()
        }
    }

    /// What the destination's record says.
    #[inline(always)]
    pub fn at_destination(&self) -> Proof {
        // SAFETY: only numbers of the type are ever put there.
        unsafe { core::mem::transmute::<u8, Proof>(self.proof as u8) }
    }

    /// Whether a SYN that is at hand says nothing.
    #[inline(always)]
    pub fn is_absent(&self) -> bool {
        self.proof == Proof::Absent as u32
    }
}

/// The key of the epoch that an option names: the one in use, or the one before.
#[inline(always)]
fn key_of(control: &Control, option: &IdentityOption) -> Option<Key> {
    let behind = control.epoch.wrapping_sub(option.bits().epoch()) & EPOCH_MASK;
    if behind > 1 {
        return None;
    }
    option::key(control.epoch.wrapping_sub(behind))
}

/// Who sent the SYN of a connection that is complete now, to `own`.
#[inline(never)]
pub fn of_source(ctx: &SockOpsContext, own: u64, claim: &mut Claim) {
    const NOT_SAVED: i64 = -2;
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    if !option::is_on(control) {
        return;
    }
    let mut found = IdentityOption::SEARCH;
    let mut length = option::load(ctx, &mut found, option::OF_SYN);
    // A SYN cookie has forgotten the SYN, and so has a listener that was not told to keep it.
    let again = length == NOT_SAVED;
    if again {
        found = IdentityOption::SEARCH;
        length = option::load(ctx, &mut found, 0);
    }
    if length < 0 && length != TOO_LONG {
        claim.proof = if again { Proof::Unsaved } else { Proof::Absent } as u32;
        return;
    }
    claim.proof = Proof::TagInvalid as u32;
    if length == i64::from(OPTION_BYTES)
        && found.is_whole()
        && found.bits().resend() == again
        && let Some(key) = key_of(control, &found)
        && meant(ctx, own, &key, &found)
    {
        claim.proof = Proof::Source as u32;
        claim.identity = found.identity();
        return;
    }
    emit::count(Counter::TagsInvalid);
}

/// The option is longer than the one that there is.
const TOO_LONG: i64 = -28;

/// Whether a SYN was meant for this end, by name or for whoever is there.
#[inline(always)]
fn meant(ctx: &SockOpsContext, own: u64, key: &Key, found: &IdentityOption) -> bool {
    let ends = ends(ctx);
    let mut syn = Syn {
        audience: own,
        // The one before the next: nothing but the SYN has been received.
        sequence: next_received(ctx).wrapping_sub(1),
        address: ends.remote,
        port: ends.remote_port,
    };
    if identity::is_workload(own) && verifies(&syn, key, found) {
        return true;
    }
    syn.audience = identity::UNKNOWN;
    verifies(&syn, key, found)
}

/// A function of its own in the object, so that there is one copy of the rounds.
#[inline(never)]
fn verifies(syn: &Syn, key: &Key, found: &IdentityOption) -> bool {
    syn.verifies(key, found)
}

/// Who answered the SYN of `source`.
#[inline(never)]
pub fn of_destination(ctx: &SockOpsContext, source: u64, claim: &mut Claim) {
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    let mut found = IdentityOption::SEARCH;
    let length = option::load(ctx, &mut found, 0);
    if length < 0 && length != TOO_LONG {
        claim.proof = Proof::Absent as u32;
        return;
    }
    claim.proof = Proof::TagInvalid as u32;
    let answer = SynAck {
        source,
        // The SYN is acknowledged, and nothing but the SYN-ACK has been received.
        syn: unacknowledged(ctx).wrapping_sub(1),
        sequence: next_received(ctx).wrapping_sub(1),
    };
    if length == i64::from(OPTION_BYTES)
        && found.is_whole()
        && let Some(key) = key_of(control, &found)
        && answer.verifies(&key, &found)
    {
        claim.proof = Proof::Destination as u32;
        claim.identity = found.identity();
        claim.resend = u32::from(found.bits().resend());
        return;
    }
    emit::count(Counter::TagsInvalid);
}
