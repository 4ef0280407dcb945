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

/// The fields of a message, in the specification's order.
#[derive(Clone, Copy)]
struct Fields {
    segment: u8,
    bits: u8,
    deferred: u8,
    syn: u32,
    identity: u64,
    audience: u64,
    address: Address,
    port: u16,
    target_port: u16,
    answer: u32,
}

impl Fields {
    fn bytes(&self) -> Vec<u8> {
        let mut message = vec![2, self.segment, self.bits, self.deferred];
        message.extend(self.syn.to_be_bytes());
        message.extend(self.identity.to_be_bytes());
        message.extend(self.audience.to_be_bytes());
        message.extend(self.address.0);
        message.extend(self.port.to_be_bytes());
        message.extend(self.target_port.to_be_bytes());
        message.extend(self.answer.to_be_bytes());
        message
    }
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
    fn callers()(address: [u8; 16], port: u16, syn: u32) -> Caller {
        Caller { address: Address(address), port, syn }
    }
}

prop_compose! {
    /// The three messages of one connection, with the number of the segment.
    fn messages()(caller in callers(), audience: u64, source: u64, target_port: u16, deferred: bool, answer: u32) -> [Message; 3] {
        [
            Message::syn(&caller, audience, target_port),
            Message::syn_ack(&caller, source, deferred, answer),
            Message::resent(&caller, audience, answer),
        ]
    }
}

/// The vectors of `docs/handshake.md`, byte by byte.
#[test]
fn the_vectors_of_the_specification() {
    const SOURCE: u64 = 0xa1b2_c3d4_e5f6_0718;
    const DESTINATION: u64 = 0x1122_3344_5566_7788;
    let document = include_str!("../../../docs/handshake.md");
    let caller = Caller {
        address: v4("10.99.0.1"),
        port: 40_000,
        syn: 0x0102_0304,
    };
    let fields = Fields {
        segment: 1,
        bits: 0b0100,
        deferred: 0,
        syn: caller.syn,
        identity: SOURCE,
        audience: DESTINATION,
        address: caller.address,
        port: caller.port,
        target_port: 5432,
        answer: 0,
    };
    let syn = Message::syn(&caller, DESTINATION, 5432).option(&KEY, SOURCE, Bits::new(5, false));
    let answer = 0xfffe_fdfc;
    let answered =
        Message::syn_ack(&caller, SOURCE, false, answer).option(&KEY, DESTINATION, Bits::new(5, false));
    let asking =
        Message::syn_ack(&caller, SOURCE, true, answer).option(&KEY, DESTINATION, Bits::new(5, true));
    let again = Message::resent(&caller, DESTINATION, answer).option(&KEY, SOURCE, Bits::new(5, true));
    let of_answer = Fields {
        segment: 2,
        identity: DESTINATION,
        audience: SOURCE,
        target_port: 0,
        answer,
        ..fields
    };
    let of_asking = Fields {
        bits: 0b0110,
        deferred: 1,
        ..of_answer
    };
    let of_again = Fields {
        segment: 3,
        bits: 0b0110,
        target_port: 0,
        answer,
        ..fields
    };
    let deferred = IdentityOption::deferred(SOURCE);
    assert!(
        document.contains(&hex(&deferred.to_bytes())),
        "{}",
        hex(&deferred.to_bytes())
    );
    for (what, option, message) in [
        ("SYN", syn, fields),
        ("SYN-ACK", answered, of_answer),
        ("SYN-ACK that asks", asking, of_asking),
        ("segment after", again, of_again),
    ] {
        let text = [hex(&message.bytes()), hex(&option.to_bytes())];
        assert!(
            text.iter().all(|text| document.contains(text)),
            "{what}: {text:?}"
        );
    }
}

proptest! {
    #[test]
    fn tags_are_those_of_the_specification(
        identity: u64, epoch: u64, resend: bool, audience: u64, caller in callers(), target_port: u16, deferred: bool, answer: u32,
    ) {
        let bits = ((epoch & 3) as u8) << 2 | u8::from(resend) << 1;
        let of = |segment, deferred, target_port, answer| Fields {
            segment, bits, deferred, identity, audience, target_port, answer,
            syn: caller.syn, address: caller.address, port: caller.port,
        };
        for (message, fields) in [
            (Message::syn(&caller, audience, target_port), of(1, 0, target_port, 0)),
            (Message::syn_ack(&caller, audience, deferred, answer), of(2, u8::from(deferred), 0, answer)),
            (Message::resent(&caller, audience, answer), of(3, 0, 0, answer)),
        ] {
            let option = message.option(&KEY, identity, Bits::new(epoch, resend)).to_bytes();
            let word = u64::from(bits) << 60 | mac_of(&fields.bytes());
            prop_assert_eq!(&option[..4], &[253, 20, b'Z', b'T']);
            prop_assert_eq!(&option[4..12], &identity.to_be_bytes());
            prop_assert_eq!(&option[12..], &word.to_be_bytes());
        }
    }

    #[test]
    fn what_is_written_is_read(identity: u64, epoch: u64, resend: bool, messages in messages()) {
        let bits = Bits::new(epoch, resend);
        for message in messages {
            let option = message.option(&KEY, identity, bits);
            prop_assert!(message.verifies(&KEY, &option));
            let option = IdentityOption::from_bytes(&option.to_bytes());
            prop_assert!(option.is_whole());
            prop_assert_eq!(option.identity(), identity);
            prop_assert_eq!(option.bits().epoch(), epoch & 3);
            prop_assert_eq!(option.bits().resend(), resend);
            prop_assert!(!option.bits().deferred());
        }
    }

    /// Each bit of the option, and each bit of what it is about.
    #[test]
    fn nothing_can_be_changed(identity: u64, epoch: u64, resend: bool, messages in messages()) {
        let bits = Bits::new(epoch, resend);
        for message in messages {
            let option = message.option(&KEY, identity, bits);
            for bit in 0..160 {
                let mut bytes = option.to_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let option = IdentityOption::from_bytes(&bytes);
                prop_assert!(!(option.is_whole() && message.verifies(&KEY, &option)), "bit {bit}");
            }
            let mut others = Vec::new();
            for bit in 0..64 {
                others.push(Message { audience: message.audience ^ 1 << bit, ..message });
                for key in [Key { k0: KEY.k0 ^ 1 << bit, ..KEY }, Key { k1: KEY.k1 ^ 1 << bit, ..KEY }] {
                    prop_assert!(!message.verifies(&key, &option));
                }
            }
            for bit in 0..32 {
                others.push(Message { syn: message.syn ^ 1 << bit, ..message });
                others.push(Message { answer: message.answer ^ 1 << bit, ..message });
            }
            for bit in 0..128 {
                let mut address = message.address;
                address.0[bit / 8] ^= 1 << (bit % 8);
                others.push(Message { address, ..message });
            }
            for bit in 0..16 {
                others.push(Message { port: message.port ^ 1 << bit, ..message });
                others.push(Message { target_port: message.target_port ^ 1 << bit, ..message });
            }
            for bit in 0..8 {
                others.push(Message { direction: message.direction ^ 1 << bit, ..message });
                others.push(Message { deferred: message.deferred ^ 1 << bit, ..message });
            }
            for other in others {
                prop_assert!(!other.verifies(&KEY, &option), "{other:?}");
            }
        }
    }

    /// What one segment says, sent back or in the place of another, proves nothing.
    #[test]
    fn a_reflection_proves_nothing(identity: u64, epoch: u64, resend: bool, messages in messages()) {
        let bits = Bits::new(epoch, resend);
        for (one, message) in messages.iter().enumerate() {
            for (other, reflected) in messages.iter().enumerate() {
                let option = reflected.option(&KEY, identity, bits);
                prop_assert_eq!(message.verifies(&KEY, &option), one == other);
            }
        }
    }

    /// An option whose proof is to follow proves nothing, whatever its tag.
    #[test]
    fn what_is_deferred_is_no_proof(identity: u64, messages in messages()) {
        let deferred = IdentityOption::deferred(identity);
        prop_assert!(deferred.is_whole() && deferred.bits().deferred());
        prop_assert_eq!(deferred.identity(), identity);
        for message in messages {
            prop_assert!(!message.verifies(&KEY, &deferred));
            let option = message.option(&KEY, identity, Bits(Bits::DEFERRED));
            prop_assert!(!message.verifies(&KEY, &option));
        }
    }

    #[test]
    fn garbage_is_read_without_surprise(bytes: [u8; 20], messages in messages()) {
        let option = IdentityOption::from_bytes(&bytes);
        prop_assert_eq!(option.to_bytes(), bytes);
        prop_assert_eq!(option.is_whole(), bytes[..4] == [253, 20, b'Z', b'T']);
        for message in messages {
            prop_assert!(!message.verifies(&KEY, &option));
        }
    }
}
