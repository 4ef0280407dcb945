// SPDX-License-Identifier: Apache-2.0
//! The identity option of a TCP handshake: what a SYN and a SYN-ACK say of who sends them, and the tags that prove it.
//! `docs/handshake.md` is its specification.

use crate::address::Address;
use crate::siphash::{Key, siphash_2_4};

/// Version of the protocol, the first field under every tag.
pub const VERSION: u8 = 2;

/// Bytes of the option: with everything else that a SYN of Linux has, exactly these are left.
pub const OPTION_BYTES: u32 = 20;

/// An epoch's number in a tag word has two bits.
pub const EPOCH_MASK: u64 = 3;

/// How often a SYN may be repeated with the option. What drops unknown options costs time, not the connection.
pub const RETRANSMISSIONS: u32 = 3;

/// What the four highest bits of the tag word say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bits(u8);

impl Bits {
    const RESEND: u8 = 0b0010;
    const DEFERRED: u8 = 0b0001;

    /// Those of an option that is sent now.
    #[inline(always)]
    pub const fn new(epoch: u64, resend: bool) -> Self {
        let epoch = ((epoch & EPOCH_MASK) as u8) << 2;
        Self(if resend { epoch | Self::RESEND } else { epoch })
    }

    /// As a number.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// From the number that they are.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        Self(number)
    }

    /// The epoch of the key, modulo four.
    #[inline(always)]
    pub const fn epoch(self) -> u64 {
        (self.0 >> 2) as u64
    }

    /// In a SYN-ACK: the listener keeps nothing of the SYN, or it proved nothing, so that the proof shall come with the
    /// next segment. In that one: this is it.
    #[inline(always)]
    pub const fn resend(self) -> bool {
        self.0 & Self::RESEND != 0
    }

    /// In a SYN: the source does not know yet whose key to prove with. Such an option proves nothing.
    #[inline(always)]
    pub const fn deferred(self) -> bool {
        self.0 & Self::DEFERRED != 0
    }
}

/// The option as it is on the wire.
///
/// In words, each of whose bytes are in network order: byte by byte, the kernel programs run out of stack.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdentityOption([u32; 5]);

impl IdentityOption {
    /// Kind 253 (RFC 4727), the length, and the experiment's identifier "ZT" (RFC 6994).
    const HEADER: u32 = u32::from_ne_bytes([253, OPTION_BYTES as u8, b'Z', b'T']);
    const MAC_MASK: u64 = u64::MAX >> 4;

    /// What `bpf_load_hdr_opt` searches by: kind, the length of the search key, identifier.
    pub const SEARCH: Self = Self([u32::from_ne_bytes([253, 4, b'Z', b'T']), 0, 0, 0, 0]);

    /// An option with its tag.
    #[inline(always)]
    pub const fn new(identity: u64, bits: Bits, mac: u64) -> Self {
        let word = (bits.0 as u64) << 60 | mac & Self::MAC_MASK;
        Self([
            Self::HEADER,
            ((identity >> 32) as u32).to_be(),
            (identity as u32).to_be(),
            ((word >> 32) as u32).to_be(),
            (word as u32).to_be(),
        ])
    }

    /// What a SYN bears whose source does not know yet who will answer: who it claims to be, and that the proof follows.
    #[inline(always)]
    pub const fn deferred(identity: u64) -> Self {
        Self::new(identity, Bits(Bits::DEFERRED), 0)
    }

    /// Whether this is an option of the one length that there is.
    #[inline(always)]
    pub const fn is_whole(&self) -> bool {
        self.0[0] == Self::HEADER
    }

    /// Who it claims to come from.
    #[inline(always)]
    pub const fn identity(&self) -> u64 {
        (u32::from_be(self.0[1]) as u64) << 32 | u32::from_be(self.0[2]) as u64
    }

    /// What the tag word says beside the tag.
    #[inline(always)]
    pub const fn bits(&self) -> Bits {
        Bits((u32::from_be(self.0[3]) >> 28) as u8)
    }

    /// Whether it proves what this tag is over.
    #[inline(always)]
    pub const fn has(&self, mac: u64) -> bool {
        !self.bits().deferred() && mac & Self::MAC_MASK == self.mac()
    }

    #[inline(always)]
    const fn mac(&self) -> u64 {
        let word = (u32::from_be(self.0[3]) as u64) << 32 | u32::from_be(self.0[4]) as u64;
        word & Self::MAC_MASK
    }

    /// For helpers that read or fill it.
    #[inline(always)]
    pub const fn as_mut_ptr(&mut self) -> *mut u32 {
        self.0.as_mut_ptr()
    }

    /// The bytes on the wire.
    #[cfg(feature = "user")]
    pub fn to_bytes(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        for (to, word) in bytes.chunks_exact_mut(4).zip(self.0) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// From the bytes on the wire, whatever they say.
    #[cfg(feature = "user")]
    pub fn from_bytes(bytes: &[u8; 20]) -> Self {
        let mut words = [0; 5];
        for (word, from) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([from[0], from[1], from[2], from[3]]);
        }
        Self(words)
    }
}

/// What a tag covers, beside the identity that the option names.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The identity of who shall read it; 0 for whoever does.
    pub audience: u64,
    /// Source address, as the source's socket has it.
    address: Address,
    /// The SYN's sequence number.
    syn: u32,
    /// The SYN-ACK's sequence number; 0 in a SYN.
    answer: u32,
    /// Source port, as the source's socket has it.
    port: u16,
    /// In a SYN: the port that policy speaks about.
    target_port: u16,
    direction: u8,
    /// 1 in a SYN-ACK that answers an option which is deferred.
    deferred: u8,
    reserved: u16,
}

/// The end of a connection that began it, as its own socket has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Address, as [`Address::within`] says it.
    pub address: Address,
    /// Port.
    pub port: u16,
    /// The SYN's sequence number.
    pub syn: u32,
}

impl Message {
    /// Of a SYN. `audience` is the identity that the source takes the destination for, 0 where it takes it for nobody;
    /// `target_port` the port that policy speaks about.
    #[inline(always)]
    pub const fn syn(caller: &Caller, audience: u64, target_port: u16) -> Self {
        Self {
            direction: 1,
            deferred: 0,
            port: caller.port,
            target_port,
            syn: caller.syn,
            answer: 0,
            audience,
            address: caller.address,
            reserved: 0,
        }
    }

    /// Of a SYN-ACK with this sequence number. `source` is the identity that the SYN's option claims; `deferred` whether
    /// that option leaves the proof to the segment after.
    #[inline(always)]
    pub const fn syn_ack(caller: &Caller, source: u64, deferred: bool, answer: u32) -> Self {
        Self {
            direction: 2,
            deferred: deferred as u8,
            port: caller.port,
            target_port: 0,
            syn: caller.syn,
            answer,
            audience: source,
            address: caller.address,
            reserved: 0,
        }
    }

    /// Of a segment after a SYN-ACK with this sequence number that asked for it.
    #[inline(always)]
    pub const fn resent(caller: &Caller, audience: u64, answer: u32) -> Self {
        Self {
            direction: 3,
            deferred: 0,
            port: caller.port,
            target_port: 0,
            syn: caller.syn,
            answer,
            audience,
            address: caller.address,
            reserved: 0,
        }
    }

    /// The tag over all of this.
    #[inline(always)]
    pub const fn mac(&self, key: &Key, identity: u64, bits: Bits) -> u64 {
        let [a, b, c, d] = self.address.words();
        // What comes first on the wire is lowest: `SipHash` reads little-endian words.
        siphash_2_4(
            key,
            &[
                VERSION as u64
                    | (self.direction as u64) << 8
                    | (bits.0 as u64) << 16
                    | (self.deferred as u64) << 24
                    | (self.syn.swap_bytes() as u64) << 32,
                identity.swap_bytes(),
                self.audience.swap_bytes(),
                u32::from_le(a) as u64 | (u32::from_le(b) as u64) << 32,
                u32::from_le(c) as u64 | (u32::from_le(d) as u64) << 32,
                self.port.swap_bytes() as u64
                    | (self.target_port.swap_bytes() as u64) << 16
                    | (self.answer.swap_bytes() as u64) << 32,
            ],
        )
    }

    /// The option that says that `identity` sent this.
    #[inline(always)]
    pub const fn option(&self, key: &Key, identity: u64, bits: Bits) -> IdentityOption {
        IdentityOption::new(identity, bits, self.mac(key, identity, bits))
    }

    /// Whether whoever sent the option has the key, and meant all of this.
    #[inline(always)]
    pub const fn verifies(&self, key: &Key, option: &IdentityOption) -> bool {
        option.has(self.mac(key, option.identity(), option.bits()))
    }
}

const _: () = assert!(size_of::<IdentityOption>() == OPTION_BYTES as usize);
const _: () = assert!(size_of::<Message>() == 40);

#[cfg(all(test, feature = "user"))]
mod tests;
