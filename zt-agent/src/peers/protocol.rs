// SPDX-License-Identifier: Apache-2.0
//! What two agents say to each other: frames of a length and a JSON text. Pure; whatever comes in is bounded before it is
//! looked at.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, BufMut as _, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identity::peers::Resident;
use crate::spiffe_id::SpiffeId;

/// The version of what follows, said first.
pub(super) const VERSION: u16 = 1;
/// Most bytes of one message, without its length.
pub(super) const MAX_BYTES: usize = 128 * 1024;
/// Residents in one message: with the longest SPIFFE IDs it is still below [`MAX_BYTES`].
pub(super) const MOST_TOGETHER: usize = 32;
/// Most certificates of a chain.
pub(super) const LONGEST_CHAIN: usize = 8;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(super) enum Message {
    /// Who speaks; the first one, from both sides.
    Hello {
        /// [`VERSION`].
        version: u16,
        /// The node.
        node: String,
        /// Its workloads prove who they are in handshakes.
        proves: bool,
        /// The highest epoch of keys of this pair that it knows of.
        epoch: u64,
        /// The one that it sends with; 0 where there is none.
        uses: u64,
    },
    /// An identity lives on the speaker's node.
    Holds {
        /// Which.
        spiffe: SpiffeId,
        /// What shows it; `None` where there is no SVID, or none yet: what was shown before holds.
        proof: Option<Proof>,
    },
    /// It does not any more, nor is it at any address.
    Lets {
        /// Which.
        spiffe: SpiffeId,
    },
    /// Who is at addresses.
    At {
        /// Of the speaker's node: with identities that it holds, or silent.
        residents: Vec<Resident>,
    },
    /// Nobody is there any more.
    Gone {
        /// Of the speaker's node.
        addresses: Vec<IpAddr>,
    },
    /// All has been said; what follows are changes.
    Whole {},
    /// The speaker verifies tags with the keys of this epoch from now on.
    Ready {
        /// Which.
        epoch: u64,
    },
    /// The speaker makes tags with the keys of this epoch from now on.
    Uses {
        /// Which.
        epoch: u64,
    },
    /// The speaker is there.
    Beat {},
}

/// That an SVID is the speaker's: its chain, and what its key signed on this connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proof {
    /// The SVID, then what leads up to the authority; DER.
    pub(super) chain: Vec<Base64>,
    /// TLS's number of the signature scheme.
    pub(super) scheme: u16,
    /// The signature.
    pub(super) signature: Base64,
}

/// Bytes, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base64(pub(super) Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// What came is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    /// It is empty, or too long.
    #[error("a message of {0} bytes; at least 1 and at most {MAX_BYTES} are taken")]
    Length(usize),
    /// It makes no sense.
    #[error("a message that cannot be read: {0}")]
    Unreadable(String),
    /// It cannot be written.
    #[error("a message that is too long to be sent: {0} bytes")]
    TooLong(usize),
}

/// Appends a message to what is to be sent.
pub(super) fn write(message: &Message, out: &mut BytesMut) -> Result<(), ProtocolError> {
    let text = serde_json::to_vec(message).map_err(|error| ProtocolError::Unreadable(error.to_string()))?;
    if text.len() > MAX_BYTES {
        return Err(ProtocolError::TooLong(text.len()));
    }
    out.put_u32(text.len() as u32);
    out.put_slice(&text);
    Ok(())
}

/// Takes the first message out of what has come; `None` where it is not whole yet.
pub(super) fn read(from: &mut BytesMut) -> Result<Option<Message>, ProtocolError> {
    let Some(head) = from.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*head) as usize;
    if !(1..=MAX_BYTES).contains(&length) {
        return Err(ProtocolError::Length(length));
    }
    let Some(text) = from.get(4..4 + length) else {
        return Ok(None);
    };
    let message =
        serde_json::from_slice(text).map_err(|error| ProtocolError::Unreadable(error.to_string()))?;
    from.advance(4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages() -> impl Strategy<Value = Message> {
        let spiffe = "[a-z]{1,12}"
            .prop_map(|name| SpiffeId::parse(&format!("spiffe://hanzo.ai/{name}")).expect("an ID"));
        let address = prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
        ];
        let bytes = || proptest::collection::vec(any::<u8>(), 0..64).prop_map(Base64);
        let proof = (proptest::collection::vec(bytes(), 0..3), any::<u16>(), bytes()).prop_map(
            |(chain, scheme, signature)| Proof {
                chain,
                scheme,
                signature,
            },
        );
        let resident = (address.clone(), spiffe.clone(), any::<u64>(), any::<bool>()).prop_map(
            |(address, spiffe, incarnation, silent)| Resident {
                address,
                spiffe,
                incarnation,
                silent,
            },
        );
        prop_oneof![
            (any::<u16>(), ".{0,20}", any::<bool>(), any::<u64>(), any::<u64>()).prop_map(
                |(version, node, proves, epoch, uses)| Message::Hello {
                    version,
                    node,
                    proves,
                    epoch,
                    uses,
                }
            ),
            (spiffe.clone(), proptest::option::of(proof))
                .prop_map(|(spiffe, proof)| Message::Holds { spiffe, proof }),
            spiffe.prop_map(|spiffe| Message::Lets { spiffe }),
            proptest::collection::vec(resident, 0..MOST_TOGETHER)
                .prop_map(|residents| Message::At { residents }),
            proptest::collection::vec(address, 0..MOST_TOGETHER)
                .prop_map(|addresses| Message::Gone { addresses }),
            any::<u64>().prop_map(|epoch| Message::Ready { epoch }),
            any::<u64>().prop_map(|epoch| Message::Uses { epoch }),
            Just(Message::Whole {}),
            Just(Message::Beat {}),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_wherever_it_is_cut(
            sent in proptest::collection::vec(messages(), 0..8),
            pieces in proptest::collection::vec(1_usize..200, 1..40),
        ) {
            let mut out = BytesMut::new();
            for message in &sent {
                write(message, &mut out).expect("short");
            }
            let (mut came, mut read_back) = (BytesMut::new(), Vec::new());
            let mut pieces = pieces.into_iter().cycle();
            while !out.is_empty() {
                let piece = pieces.next().unwrap_or(1).min(out.len());
                came.extend_from_slice(&out.split_to(piece));
                while let Some(message) = read(&mut came).expect("ours") {
                    read_back.push(message);
                }
            }
            prop_assert_eq!(read_back, sent);
            prop_assert!(came.is_empty());
        }

        #[test]
        fn garbage_is_refused_or_waited_for_and_never_taken_for_long(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut came = BytesMut::from(&bytes[..]);
            let before = came.len();
            match read(&mut came) {
                Ok(Some(_)) => prop_assert!(came.len() < before),
                Ok(None) => prop_assert!(before < 4 + MAX_BYTES),
                Err(_) => {}
            }
        }

        #[test]
        fn one_changed_byte_is_another_message_or_none(message in messages(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut out = BytesMut::new();
            write(&message, &mut out).expect("short");
            let at = at.index(out.len());
            let same = out[at] == to;
            out[at] = to;
            if let Ok(Some(read)) = read(&mut out) {
                prop_assert!(!same || read == message);
            }
        }
    }

    #[test]
    fn a_length_is_believed_only_up_to_the_limit() {
        for (length, wrong) in [
            (0, true),
            (MAX_BYTES + 1, true),
            (usize::MAX >> 32, true),
            (MAX_BYTES, false),
        ] {
            let mut came = BytesMut::from(&(length as u32).to_be_bytes()[..]);
            assert_eq!(read(&mut came).is_err(), wrong, "{length}");
        }
    }

    #[test]
    fn the_longest_residents_fit_into_one_message() {
        let text = format!(
            "spiffe://hanzo.ai/{}",
            "a".repeat(crate::spiffe_id::MAX_BYTES - 18)
        );
        let resident = Resident {
            address: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
                .parse()
                .expect("literal"),
            spiffe: SpiffeId::parse(&text).expect("the longest"),
            incarnation: u64::MAX,
            silent: true,
        };
        let message = Message::At {
            residents: vec![resident; MOST_TOGETHER],
        };
        write(&message, &mut BytesMut::new()).expect("it fits");
    }
}
