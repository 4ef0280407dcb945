// SPDX-License-Identifier: Apache-2.0
//! Messages over TLS, written and read by turns.

use std::io;
use std::pin::Pin;
use std::task::Poll;

use bytes::BytesMut;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::peers::protocol::{self, Message, ProtocolError};

/// Bytes that are read at a time.
const READ: usize = 8 * 1024;
/// What is waiting to be sent is added to only below this many bytes.
const LOW: usize = 16 * 1024;

/// A connection, and what is on its way.
pub(super) struct Wire {
    pub(super) stream: TlsStream<TcpStream>,
    out: BytesMut,
    unflushed: bool,
    came: BytesMut,
    buffer: Box<[u8]>,
}

/// What was done.
pub(super) enum Moved {
    Wrote,
    /// So many bytes; 0: the other end has said its last.
    Read(usize),
}

impl Wire {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self {
            stream,
            out: BytesMut::new(),
            unflushed: false,
            came: BytesMut::new(),
            buffer: vec![0; READ].into(),
        }
    }

    /// Has a message sent.
    pub(super) fn send(&mut self, message: &Message) -> Result<(), ProtocolError> {
        protocol::write(message, &mut self.out)
    }

    /// Whether little waits to be sent.
    pub(super) fn is_low(&self) -> bool {
        self.out.len() < LOW
    }

    /// How many bytes wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.out.len()
    }

    /// What the other end has shown.
    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        self.stream.get_ref().1.peer_certificates().unwrap_or_default()
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// The next message that has come whole.
    pub(super) fn next(&mut self) -> Result<Option<Message>, ProtocolError> {
        protocol::read(&mut self.came)
    }

    /// Writes or reads some bytes, whichever can be done. Nothing is lost where this is dropped before it is done.
    pub(super) async fn transfer(&mut self) -> io::Result<Moved> {
        std::future::poll_fn(|context| {
            let mut stream = Pin::new(&mut self.stream);
            if !self.out.is_empty()
                && let Poll::Ready(written) = stream.as_mut().poll_write(context, &self.out)?
            {
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                let _ = self.out.split_to(written);
                self.unflushed = true;
                return Poll::Ready(Ok(Moved::Wrote));
            }
            if self.unflushed && stream.as_mut().poll_flush(context)?.is_ready() {
                self.unflushed = false;
            }
            let mut room = ReadBuf::new(&mut self.buffer);
            match stream.poll_read(context, &mut room)? {
                Poll::Ready(()) => {
                    self.came.extend_from_slice(room.filled());
                    Poll::Ready(Ok(Moved::Read(room.filled().len())))
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}
