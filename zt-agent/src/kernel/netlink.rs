// SPDX-License-Identifier: Apache-2.0
//! What the messages of all netlink protocols have in common: `include/uapi/linux/netlink.h`.

use std::io::{self, ErrorKind};

/// The type of a message that answers a request: with an error, or that it was carried out.
pub const NLMSG_ERROR: u16 = 2;
/// The flag of a request.
pub const REQUEST: u16 = 1;

/// A message that the kernel sent.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// The number of the request that it answers.
    pub sequence: u32,
    /// What comes after the header.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// What a message of type [`NLMSG_ERROR`] says of the request.
    pub fn error(&self) -> io::Result<()> {
        match self
            .body
            .get(..4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(i32::from_ne_bytes)
        {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(ErrorKind::InvalidData.into()),
        }
    }
}

/// The messages of a buffer, up to the first that is not whole.
#[derive(Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let &[a, b, c, d, k0, k1, _, _, s0, s1, s2, s3, ..] = self.0 else {
            return None;
        };
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let body = self.0.get(16..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_or_lying_message_ends_the_listing_without_a_panic() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&1000_u32.to_ne_bytes());
        bytes.extend_from_slice(&[0; 20]);
        assert_eq!(Messages(&bytes).count(), 0);
    }

    #[test]
    fn an_answer_is_an_error_or_none() {
        let answer = |code: i32| {
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&20_u32.to_ne_bytes());
            bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes.extend_from_slice(&[0; 2]);
            bytes.extend_from_slice(&7_u32.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes
        };
        let bytes = [answer(0), answer(-libc::EEXIST)].concat();
        let answers: Vec<_> = Messages(&bytes)
            .map(|message| {
                let errno = message.error().map_err(|error| error.raw_os_error());
                (message.kind, message.sequence, errno)
            })
            .collect();
        let of = |errno| (NLMSG_ERROR, 7, errno);
        assert_eq!(answers, [of(Ok(())), of(Err(Some(libc::EEXIST)))]);
        let short = Message {
            kind: NLMSG_ERROR,
            sequence: 0,
            body: &[],
        };
        assert!(short.error().is_err());
    }
}
