// SPDX-License-Identifier: Apache-2.0
//! Bytes to messages and back, pure. Two layers, both big-endian:
//!
//! * NRI's multiplexer: a frame is the number of a connection (4 bytes), a length (4 bytes) and as many bytes of that
//!   connection's stream. On connection 1 the runtime asks the plugin, on 2 the plugin asks the runtime.
//! * ttrpc: a message is a length (4 bytes), the number of a call (4 bytes), a kind, flags, and the payload.

use bytes::{Buf as _, Bytes, BytesMut};

/// The connection on which the runtime asks.
pub(super) const PLUGIN: u32 = 1;
/// The connection on which the plugin asks.
pub(super) const RUNTIME: u32 = 2;
/// The kinds of messages.
pub(super) const REQUEST: u8 = 1;
pub(super) const RESPONSE: u8 = 2;

/// The longest payload of a message, as ttrpc has it.
pub(super) const MAX_MESSAGE: usize = 4 << 20;
/// The longest frame, as NRI has it: a message and its header.
const MAX_FRAME: usize = MAX_MESSAGE + HEADER;
const FRAME_HEADER: usize = 8;
const HEADER: usize = 10;

/// A message of ttrpc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// On which connection.
    pub(super) connection: u32,
    /// Of which call.
    pub(super) call: u32,
    /// [`REQUEST`], [`RESPONSE`], or something of no interest.
    pub(super) kind: u8,
    /// What it says.
    pub(super) payload: Bytes,
}

/// What cannot be from a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame that is too long.
    #[error(
        "a frame of {length} bytes came on connection {connection}, and at most {MAX_FRAME} can be: this is no runtime's NRI socket"
    )]
    Frame {
        /// The connection that it names.
        connection: u32,
        /// The length that it names.
        length: usize,
    },
    /// A message that is too long.
    #[error(
        "a message of {length} bytes came on connection {connection}, and at most {MAX_MESSAGE} can be: this is no runtime's NRI socket"
    )]
    Message {
        /// The connection that it came on.
        connection: u32,
        /// The length that it names.
        length: usize,
    },
}

/// Takes bytes as they come. Nothing is set aside for what is only announced.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// What has come of a frame's header.
    header: BytesMut,
    /// The frame that is coming: its connection, and how much of it is missing.
    frame: Option<(u32, usize)>,
    plugin: BytesMut,
    runtime: BytesMut,
}

impl Decoder {
    /// The messages that these bytes complete.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<Message>, WireError> {
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let Some((connection, missing)) = self.frame else {
                let wanted = (FRAME_HEADER - self.header.len()).min(bytes.len());
                self.header.extend_from_slice(&bytes[..wanted]);
                bytes.advance(wanted);
                if self.header.len() == FRAME_HEADER {
                    let (connection, length) = (self.header.get_u32(), self.header.get_u32() as usize);
                    self.header.clear();
                    if length > MAX_FRAME {
                        return Err(WireError::Frame { connection, length });
                    }
                    self.frame = (length > 0).then_some((connection, length));
                }
                continue;
            };
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            bytes = later;
            self.frame = (now.len() < missing).then_some((connection, missing - now.len()));
            let stream = match connection {
                PLUGIN => &mut self.plugin,
                RUNTIME => &mut self.runtime,
                // Nobody listens there.
                _ => continue,
            };
            stream.extend_from_slice(now);
            while let Some(message) = message(connection, stream)? {
                messages.push(message);
            }
        }
        Ok(messages)
    }
}

/// Takes the first message off a stream, if it is there whole.
fn message(connection: u32, stream: &mut BytesMut) -> Result<Option<Message>, WireError> {
    let Some(mut header) = stream.get(..HEADER) else {
        return Ok(None);
    };
    let length = header.get_u32() as usize;
    let (call, kind) = (header.get_u32(), header.get_u8());
    if length > MAX_MESSAGE {
        return Err(WireError::Message { connection, length });
    }
    if stream.len() < HEADER + length {
        return Ok(None);
    }
    stream.advance(HEADER);
    Ok(Some(Message {
        connection,
        call,
        kind,
        payload: stream.split_to(length).freeze(),
    }))
}

/// The bytes of a message, in one frame.
pub(super) fn encode(message: &Message) -> Vec<u8> {
    let length = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(FRAME_HEADER + HEADER + message.payload.len());
    for number in [
        message.connection,
        length.saturating_add(HEADER as u32),
        length,
        message.call,
    ] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(&[message.kind, 0]);
    bytes.extend_from_slice(&message.payload);
    bytes
}

#[cfg(test)]
impl Decoder {
    /// Bytes of messages that have not come whole.
    pub(super) fn kept(&self) -> usize {
        self.header.len() + self.plugin.len() + self.runtime.len()
    }

    /// Room that is set aside.
    pub(super) fn capacity(&self) -> usize {
        self.header.capacity() + self.plugin.capacity() + self.runtime.capacity()
    }
}
