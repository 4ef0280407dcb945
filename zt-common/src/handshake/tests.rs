// SPDX-License-Identifier: Apache-2.0
//! The option against the bytes of its specification, and against whoever changes anything in it.

use std::hash::Hasher as _;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

const KEY: Key = Key {
    k0: 0x0706_0504_0302_0100,
    k1: 0x0f0e_0d0c_0b0a_0908,
};

/// The tag of a message as the specification writes it: bytes, none of whose order this module's words know.
fn mac_of(bytes: &[u8]) -> u64 {
    let mut hasher = siphasher::sip::SipHasher24::new_with_keys(KEY.k0, KEY.k1);
    hasher.write(bytes);
    hasher.finish() & IdentityOption::MAC_MASK
}

fn syn_message(identity: u64, bits: u8, syn: &Syn) -> Vec<u8> {
    let mut message = vec![1, 1, bits, 0];
    message.extend(syn.sequence.to_be_bytes());
    message.extend(identity.to_be_bytes());
    message.extend(syn.audience.to_be_bytes());
    message.extend(syn.address.0);
    message.extend(syn.port.to_be_bytes());
    message.extend([0; 6]);
    message
}

fn syn_ack_message(identity: u64, bits: u8, answer: &SynAck) -> Vec<u8> {
    let mut message = vec![1, 2, bits, 0];
    message.extend(answer.syn.to_be_bytes());
    message.extend(identity.to_be_bytes());
    message.extend(answer.source.to_be_bytes());
    message.extend(answer.sequence.to_be_bytes());
    message.extend([0; 4]);
    message
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn v4(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().expect("literal"))
}

prop_compose! {
    fn syns()(audience: u64, sequence: u32, address: [u8; 16], port: u16) -> Syn {
        Syn { audience, sequence, address: Address(address), port }
    }
}

prop_compose! {
    fn answers()(source: u64, syn: u32, sequence: u32) -> SynAck {
        SynAck { source, syn, sequence }
    }
}

/// The vectors of `docs/handshake.md`, byte by byte.
#[test]
fn the_vectors_of_the_specification() {
    let document = include_str!("../../../docs/handshake.md");
    let syn = Syn {
        audience: 0x1122_3344_5566_7788,
        sequence: 0x0102_0304,
        address: v4("10.99.0.1"),
        port: 40_000,
    };
    let option = syn.option(&KEY, 0xa1b2_c3d4_e5f6_0718, Bits::new(5, false));
    let answer = SynAck {
        source: 0xa1b2_c3d4_e5f6_0718,
        syn: 0x0102_0304,
        sequence: 0xfffe_fdfc,
    };
    let answered = answer.option(&KEY, 0x1122_3344_5566_7788, Bits::new(5, true));
    for (what, bytes) in [("SYN", option), ("SYN-ACK", answered)] {
        let text = hex(&bytes.to_bytes());
        assert!(document.contains(&text), "{what}: {text}");
    }
    for message in [
        syn_message(0xa1b2_c3d4_e5f6_0718, 0b0100, &syn),
        syn_ack_message(0x1122_3344_5566_7788, 0b0110, &answer),
    ] {
        assert!(document.contains(&hex(&message)), "{}", hex(&message));
    }
}

proptest! {
    #[test]
    fn tags_are_those_of_the_specification(identity: u64, epoch: u64, resend: bool, syn in syns(), answer in answers()) {
        let bits = ((epoch & 3) as u8) << 2 | u8::from(resend) << 1;
        let option = syn.option(&KEY, identity, Bits::new(epoch, resend)).to_bytes();
        let word = u64::from(bits) << 60 | mac_of(&syn_message(identity, bits, &syn));
        prop_assert_eq!(&option[..4], &[253, 20, b'Z', b'T']);
        prop_assert_eq!(&option[4..12], &identity.to_be_bytes());
        prop_assert_eq!(&option[12..], &word.to_be_bytes());
        let option = answer.option(&KEY, identity, Bits::new(epoch, resend)).to_bytes();
        let word = u64::from(bits) << 60 | mac_of(&syn_ack_message(identity, bits, &answer));
        prop_assert_eq!(&option[12..], &word.to_be_bytes());
    }

    #[test]
    fn what_is_written_is_read(identity: u64, epoch: u64, resend: bool, syn in syns(), answer in answers()) {
        let bits = Bits::new(epoch, resend);
        for option in [syn.option(&KEY, identity, bits), answer.option(&KEY, identity, bits)] {
            let option = IdentityOption::from_bytes(&option.to_bytes());
            prop_assert!(option.is_whole());
            prop_assert_eq!(option.identity(), identity);
            prop_assert_eq!(option.bits().epoch(), epoch & 3);
            prop_assert_eq!(option.bits().resend(), resend);
        }
        prop_assert!(syn.verifies(&KEY, &syn.option(&KEY, identity, bits)));
        prop_assert!(answer.verifies(&KEY, &answer.option(&KEY, identity, bits)));
    }

    /// Each bit of the option, and each bit of what it is about.
    #[test]
    fn nothing_can_be_changed(identity: u64, epoch: u64, resend: bool, syn in syns(), answer in answers()) {
        let bits = Bits::new(epoch, resend);
        let (option, answered) = (syn.option(&KEY, identity, bits), answer.option(&KEY, identity, bits));
        for bit in 0..160 {
            let flip = |option: &IdentityOption| {
                let mut bytes = option.to_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                IdentityOption::from_bytes(&bytes)
            };
            let (option, answered) = (flip(&option), flip(&answered));
            prop_assert!(!(option.is_whole() && syn.verifies(&KEY, &option)), "bit {bit}");
            prop_assert!(!(answered.is_whole() && answer.verifies(&KEY, &answered)), "bit {bit}");
        }
        for bit in 0..64 {
            let other = Syn { audience: syn.audience ^ 1 << bit, ..syn };
            prop_assert!(!other.verifies(&KEY, &option));
            let other = SynAck { source: answer.source ^ 1 << bit, ..answer };
            prop_assert!(!other.verifies(&KEY, &answered));
            for key in [Key { k0: KEY.k0 ^ 1 << bit, ..KEY }, Key { k1: KEY.k1 ^ 1 << bit, ..KEY }] {
                prop_assert!(!syn.verifies(&key, &option));
            }
        }
        for bit in 0..32 {
            let other = Syn { sequence: syn.sequence ^ 1 << bit, ..syn };
            prop_assert!(!other.verifies(&KEY, &option));
            for other in [
                SynAck { syn: answer.syn ^ 1 << bit, ..answer },
                SynAck { sequence: answer.sequence ^ 1 << bit, ..answer },
            ] {
                prop_assert!(!other.verifies(&KEY, &answered));
            }
        }
        for bit in 0..128 {
            let mut address = syn.address;
            address.0[bit / 8] ^= 1 << (bit % 8);
            let other = Syn { address, ..syn };
            prop_assert!(!other.verifies(&KEY, &option));
        }
        for bit in 0..16 {
            let other = Syn { port: syn.port ^ 1 << bit, ..syn };
            prop_assert!(!other.verifies(&KEY, &option));
        }
    }

    /// A SYN-ACK that sends the SYN's option back proves nothing, nor does one that is sent as a SYN's.
    #[test]
    fn a_reflection_proves_nothing(identity: u64, epoch: u64, resend: bool, syn in syns(), answer in answers()) {
        let bits = Bits::new(epoch, resend);
        prop_assert!(!answer.verifies(&KEY, &syn.option(&KEY, identity, bits)));
        prop_assert!(!syn.verifies(&KEY, &answer.option(&KEY, identity, bits)));
    }

    /// The bit that is left for later is no way past the tag.
    #[test]
    fn the_reserved_bit_is_refused(identity: u64, syn in syns(), answer in answers()) {
        let bits = Bits(Bits::RESERVED);
        prop_assert!(!syn.verifies(&KEY, &syn.option(&KEY, identity, bits)));
        prop_assert!(!answer.verifies(&KEY, &answer.option(&KEY, identity, bits)));
    }

    #[test]
    fn garbage_is_read_without_surprise(bytes: [u8; 20], syn in syns()) {
        let option = IdentityOption::from_bytes(&bytes);
        prop_assert_eq!(option.to_bytes(), bytes);
        prop_assert_eq!(option.is_whole(), bytes[..4] == [253, 20, b'Z', b'T']);
        prop_assert!(!syn.verifies(&KEY, &option));
    }
}
