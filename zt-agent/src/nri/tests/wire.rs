// SPDX-License-Identifier: Apache-2.0
//! Frames and messages, cut in any way, and bytes that are none.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::nri::wire::{Decoder, MAX_MESSAGE, Message, PLUGIN, RESPONSE, RUNTIME, WireError, encode};

/// How many bytes the header of a frame has.
const FRAME: usize = 8;

fn frame(connection: u32, bytes: &[u8]) -> Vec<u8> {
    let mut frame = connection.to_be_bytes().to_vec();
    frame.extend((bytes.len() as u32).to_be_bytes());
    frame.extend(bytes);
    frame
}

#[test]
fn a_message_is_these_bytes() {
    let message = Message {
        connection: PLUGIN,
        call: 3,
        kind: RESPONSE,
        payload: Bytes::from_static(b"ab"),
    };
    let bytes = [0, 0, 0, 1, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 3, 2, 0, b'a', b'b'];
    assert_eq!(encode(&message), bytes);
    assert_eq!(Decoder::default().take(&bytes), Ok(vec![message]));
}

#[test]
fn what_is_too_long_is_refused_before_it_has_come() {
    let too_long = MAX_MESSAGE + 11;
    let mut bytes = PLUGIN.to_be_bytes().to_vec();
    bytes.extend((too_long as u32).to_be_bytes());
    let refused = WireError::Frame {
        connection: PLUGIN,
        length: too_long,
    };
    assert_eq!(Decoder::default().take(&bytes), Err(refused));
    // One that nobody listens to as well: its end could not be awaited.
    bytes[3] = 9;
    assert!(Decoder::default().take(&bytes).is_err());
    let mut header = ((MAX_MESSAGE + 1) as u32).to_be_bytes().to_vec();
    header.extend([0, 0, 0, 1, 1, 0]);
    let refused = WireError::Message {
        connection: RUNTIME,
        length: MAX_MESSAGE + 1,
    };
    assert_eq!(Decoder::default().take(&frame(RUNTIME, &header)), Err(refused));
}

#[test]
fn the_longest_message_comes_through_and_nothing_is_set_aside_for_it_before() {
    let message = Message {
        connection: PLUGIN,
        call: 1,
        kind: 1,
        payload: vec![7; MAX_MESSAGE].into(),
    };
    let bytes = encode(&message);
    let mut decoder = Decoder::default();
    let (head, rest) = bytes.split_at(FRAME + 10);
    assert_eq!(decoder.take(head), Ok(Vec::new()));
    assert!(decoder.capacity() < 1024, "{}", decoder.capacity());
    assert_eq!(decoder.take(rest), Ok(vec![message]));
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let message = (
        prop_oneof![Just(PLUGIN), Just(RUNTIME)],
        any::<u32>(),
        any::<u8>(),
        vec(any::<u8>(), 0..40),
    );
    let message = message.prop_map(|(connection, call, kind, payload)| Message {
        connection,
        call,
        kind,
        payload: payload.into(),
    });
    vec(message, 0..12)
}

proptest! {
    #[test]
    fn messages_come_through_however_they_are_cut(
        messages in messages(),
        frames in vec(1_usize..30, 1..8),
        noise in vec(any::<u8>(), 0..20),
        chunks in vec(1_usize..50, 1..8),
    ) {
        // A frame may have a part of a message, an empty one nothing, and other connections are nobody's.
        let mut bytes = Vec::new();
        let mut sizes = frames.iter().copied().cycle();
        for message in &messages {
            let mut rest = &encode(message)[FRAME..];
            while !rest.is_empty() {
                let (part, later) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
                bytes.extend(frame(message.connection, part));
                bytes.extend(frame(message.connection, &[]));
                bytes.extend(frame(9, &noise));
                rest = later;
            }
        }
        let mut decoder = Decoder::default();
        let (mut rest, mut sizes, mut taken) = (&bytes[..], chunks.iter().copied().cycle(), Vec::new());
        while !rest.is_empty() {
            let (part, later) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
            taken.extend(decoder.take(part).expect("well-formed"));
            rest = later;
        }
        // Of each connection in its order; all of one connection is in the order of the frames anyway.
        prop_assert_eq!(taken, messages);
    }

    #[test]
    fn foreign_bytes_are_messages_or_refused_and_never_kept_beyond_themselves(
        chunks in vec(vec(prop_oneof![3 => Just(0_u8), 1 => 0_u8..4, 2 => any::<u8>()], 0..200), 0..40),
    ) {
        let mut decoder = Decoder::default();
        let mut given = 0;
        for chunk in chunks {
            given += chunk.len();
            match decoder.take(&chunk) {
                Ok(messages) => {
                    let payloads: usize = messages.iter().map(|message| message.payload.len()).sum();
                    prop_assert!(payloads <= given);
                    prop_assert!(decoder.kept() <= given);
                }
                Err(WireError::Frame { length, .. } | WireError::Message { length, .. }) => {
                    prop_assert!(length > MAX_MESSAGE);
                    break;
                }
            }
        }
    }
}
