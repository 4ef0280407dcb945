// SPDX-License-Identifier: Apache-2.0
//! Answers on their way: a connection is not idle before its client has been sent the whole answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::places::{Answering, Place, Writing};

/// The body of an answer: until it has been taken whole, which is never with a stream of events.
pub(super) struct Sent {
    body: axum::body::Body,
    _answering: Answering,
}

impl Sent {
    pub(super) fn new(body: axum::body::Body, answering: Answering) -> Self {
        Self {
            body,
            _answering: answering,
        }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection's stream, which says while something that was written to it waits for the client to read.
pub(super) struct Watched<S> {
    stream: Pin<Box<S>>,
    writing: Writing,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, place: &Place) -> Self {
        Self {
            stream: Box::pin(stream),
            writing: place.writing(),
        }
    }
}

impl<S: AsyncRead> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(context, buffer)
    }
}

impl<S: AsyncWrite> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writing.set(true);
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writing.set(true);
        self.stream.as_mut().poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // It is flushed when all has been written to it.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.stream.as_mut().poll_flush(context);
        if flushed.is_ready() {
            self.writing.set(false);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::places::Places;
    use super::*;

    #[tokio::test]
    async fn an_answer_that_nobody_reads_is_being_sent() {
        let places = Places::new(2, 2);
        let (place, idle) = (places.take().expect("free"), places.take().expect("free"));
        let (ours, mut theirs) = tokio::io::duplex(4);
        let mut stream = Watched::new(ours, &place);
        let mut sending = Box::pin(async {
            stream.write_all(b"six by").await?;
            stream.flush().await
        });
        assert!(poll!(&mut sending).is_pending(), "there is room for four");
        let next = places.take().expect("somebody is idle");
        idle.evicted().await;
        let mut read = [0; 6];
        let (sent, received) = tokio::join!(sending, theirs.read_exact(&mut read));
        assert_eq!((sent.is_ok(), received.is_ok()), (true, true));
        let busy = next.busy();
        let last = places.take().expect("it has been read");
        place.evicted().await;
        drop((busy, last));
    }
}
