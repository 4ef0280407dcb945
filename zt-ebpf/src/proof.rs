// SPDX-License-Identifier: Apache-2.0
//! Reads the identity option of the other end, and says whether it proves anything.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{CONNECTION_FRONT, Connection, MOST_HOMES, ResidentKey};
use zt_common::counter::Counter;
use zt_common::handshake::{Bits, Caller, IdentityOption, Message, OPTION_BYTES};
use zt_common::identity;
use zt_common::proof::Proof;
use zt_common::siphash::Key;

use crate::ends::{ends, next_received, unacknowledged};
use crate::{context, emit, keys, maps, option, origin};

/// What an option says of the other end. Plain numbers with a value on every path and without gaps, as the verifier wants what is
/// handed from function to function of the object.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Claim {
    /// Who it is, where [`Self::is_proven`].
    pub identity: u64,
    /// Number of a [`Proof`].
    pub proof: u32,
    /// Whether it asks for the option.
    pub resend: u32,
    /// The node that it was proven by, see [`Connection::node`].
    pub node: u32,
    late: u32,
}

impl Claim {
    /// Nothing was asked for.
    pub const NONE: Self = Self {
        identity: identity::UNKNOWN,
        proof: Proof::None as u32,
        resend: 0,
        node: 0,
        late: 0,
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

    /// What the source's record says where nobody can say whether it is one of those who were meant.
    #[inline(always)]
    pub fn of_some_port(&self) -> Proof {
        if self.is_proven() {
            Proof::Source
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

    /// Whether it came with the segment after the SYN, as from behind a virtual address or a SYN cookie.
    #[inline(always)]
    pub fn is_late(&self) -> bool {
        self.late != 0
    }

    /// Whether a SYN that is at hand says nothing.
    #[inline(always)]
    pub fn is_absent(&self) -> bool {
        self.proof == Proof::Absent as u32
    }
}

/// Who sent the SYN of a connection that is complete now, to `own`. `keeps`: the listener was told to keep SYNs.
///
/// A *global* function of the object, as `zt_judge` is: it writes `claim`, and its result says nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_of_source(ctx: *mut bpf_sock_ops, own: u64, keeps: u32, claim: *mut Claim) -> u32 {
    if keys::is_had() && !claim.is_null() {
        // SAFETY: checked above; the verifier knows the size from the type.
        of_source(&SockOpsContext::new(ctx), own, keeps != 0, unsafe { &mut *claim });
    }
    0
}

#[inline(always)]
fn of_source(ctx: &SockOpsContext, own: u64, keeps: bool, claim: &mut Claim) {
    const NOT_SAVED: i64 = -2;
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    if !keys::is_on(control) {
        return;
    }
    let mut found = IdentityOption::SEARCH;
    let mut length = option::load(ctx, &mut found, option::OF_SYN);
    // A SYN cookie has forgotten the SYN, and so has a listener that was not told to keep it.
    let forgotten = length == NOT_SAVED;
    let again = forgotten || is_option(length, &found) && found.bits().deferred();
    if again {
        found = IdentityOption::SEARCH;
        length = option::load(ctx, &mut found, 0);
    }
    if length < 0 && length != TOO_LONG {
        claim.proof = if forgotten && !keeps {
            Proof::Unsaved
        } else {
            Proof::Absent
        } as u32;
        return;
    }
    claim.proof = Proof::TagInvalid as u32;
    if is_option(length, &found) && found.bits().resend() == again {
        let ends = ends(ctx);
        let caller = Caller {
            address: ends.remote.within(context::netns_cookie(ctx.as_ptr())),
            port: ends.remote_port,
            // The one before the next: nothing but the SYN has been received.
            syn: next_received(ctx).wrapping_sub(1),
        };
        let mut message = if again {
            Message::resent(&caller, own, unacknowledged(ctx).wrapping_sub(1))
        } else {
            Message::syn(&caller, own, ends.local_port)
        };
        let node = origin::node_at(&ends.remote);
        if verifies(node, &mut message, &found) {
            claim.proof = Proof::Source as u32;
            claim.late = u32::from(again);
            claim.identity = found.identity();
            claim.node = node;
            return;
        }
        if origin::is_believed(&ends.remote) {
            claim.proof = Proof::Absent as u32;
            return;
        }
    }
    emit::count(Counter::TagsInvalid);
}

/// The option is longer than the one that there is.
const TOO_LONG: i64 = -28;

/// Whether what was found is an option of the one length that there is.
#[inline(always)]
pub fn is_option(length: i64, found: &IdentityOption) -> bool {
    length == i64::from(OPTION_BYTES) && found.is_whole()
}

/// Whether an option comes from this node, or from another one on which there is who it claims to be, and was meant for
/// the message's audience or for whoever is there. In place: there is no room on the stack for two messages.
#[inline(always)]
pub fn verifies(node: u32, message: &mut Message, found: &IdentityOption) -> bool {
    if identity::is_workload(message.audience) && is_of(node, message, found) {
        return true;
    }
    message.audience = identity::UNKNOWN;
    is_of(node, message, found)
}

/// Whether an option comes from a node on which there is who it claims to be, and says this message.
#[inline(always)]
fn is_of(node: u32, message: &Message, found: &IdentityOption) -> bool {
    zt_signed(node, &raw const *message, &raw const *found) != 0
}

/// [`is_of`], as a *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_signed(node: u32, message: *const Message, found: *const IdentityOption) -> u32 {
    if !keys::is_had() || message.is_null() || found.is_null() {
        return 0;
    }
    // SAFETY: checked above; the verifier knows the sizes from the types.
    let (message, found) = unsafe { (&*message, &*found) };
    let Some(control) = maps::zt_control.get(0) else {
        return 0;
    };
    let Some(key) = keys::accepted(control, node, found.bits()) else {
        return 0;
    };
    let signed = found.has(tag(&key, message, found.identity(), found.bits()));
    u32::from(signed && (node == 0 || lives(node, found.identity())))
}

/// The tag of a message.
#[inline(always)]
pub fn tag(key: &Key, message: &Message, identity: u64, bits: Bits) -> u64 {
    zt_tag(
        key.k0,
        key.k1,
        &raw const *message,
        identity,
        u32::from(bits.number()),
    )
}

/// [`tag`], as a *global* function of the object: the verifier walks the rounds once, and not again for every state of
/// every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_tag(k0: u64, k1: u64, message: *const Message, identity: u64, bits: u32) -> u64 {
    if message.is_null() {
        return 0;
    }
    // SAFETY: checked above; the verifier knows the size from the type.
    let message = unsafe { &*message };
    message.mac(&Key { k0, k1 }, identity, Bits::from_number(bits as u8))
}

/// Whether a node has proven to hold an identity.
#[inline(always)]
fn lives(node: u32, identity: u64) -> bool {
    let key = ResidentKey {
        node,
        reserved: 0,
        identity,
    };
    // SAFETY: presence only.
    unsafe { maps::zt_residents.get(key) }.is_some()
}

/// Who answered the SYN of a connection.
///
/// A *global* function of the object, as [`zt_of_source`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_of_destination(
    ctx: *mut bpf_sock_ops,
    connection: *const Connection,
    claim: *mut Claim,
) -> u32 {
    if keys::is_had() && !connection.is_null() && !claim.is_null() {
        // SAFETY: checked above; the verifier knows the sizes from the types.
        unsafe { of_destination(&SockOpsContext::new(ctx), &*connection, &mut *claim) };
    }
    0
}

#[inline(always)]
fn of_destination(ctx: &SockOpsContext, connection: &Connection, claim: &mut Claim) {
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    if !keys::is_on(control) {
        // Switched off since the SYN was sent; the keys go next.
        return;
    }
    let mut found = IdentityOption::SEARCH;
    let length = option::load(ctx, &mut found, 0);
    if length < 0 && length != TOO_LONG {
        claim.proof = Proof::Absent as u32;
        return;
    }
    claim.proof = Proof::TagInvalid as u32;
    if is_option(length, &found) {
        let front = connection.flags & CONNECTION_FRONT != 0;
        let caller = Caller {
            address: connection.local.within(connection.netns),
            port: connection.local_port,
            // The SYN is acknowledged, and nothing but the SYN-ACK has been received.
            syn: unacknowledged(ctx).wrapping_sub(1),
        };
        let answer = next_received(ctx).wrapping_sub(1);
        let message = Message::syn_ack(&caller, connection.source, front, answer);
        let node = signer(connection.node, front, &message, &found);
        if node != origin::NOBODY {
            claim.proof = Proof::Destination as u32;
            claim.identity = found.identity();
            claim.resend = u32::from(found.bits().resend());
            claim.node = node;
            return;
        }
        // Of who is behind a virtual address nobody knows whether he is heard.
        if !front && origin::is_believed(&connection.remote) {
            claim.proof = Proof::Absent as u32;
            return;
        }
    }
    emit::count(Counter::TagsInvalid);
}

/// The node that a SYN-ACK comes from: `node`, or [`origin::NOBODY`]. From behind a virtual address (`front`) it may be any
/// on which there is who answers.
#[inline(always)]
fn signer(node: u32, front: bool, message: &Message, found: &IdentityOption) -> u32 {
    if is_of(node, message, found) {
        return node;
    }
    if front && let Some(homes) = maps::zt_homes.get_ptr(found.identity()) {
        let mut home = 0;
        while home < MOST_HOMES {
            // SAFETY: a live entry of the map; a number read while it changes is of one state or the other.
            let node = unsafe { (*homes).nodes[home] };
            if node == 0 {
                break;
            }
            if is_of(node, message, found) {
                return node;
            }
            home += 1;
        }
    }
    origin::NOBODY
}
