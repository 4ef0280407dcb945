// SPDX-License-Identifier: Apache-2.0
//! What a client still sends of a request whose answer is known: a refusal does not wait for the body, and a client that
//! sends it to a connection that was closed meanwhile never reads why.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};

use super::slow::Timed;
use crate::api::body::MAX_BYTES;

/// How long a client may take to send the rest. Who is slower meets a closed connection, and keeps nobody's place.
const REST_TIME: Duration = Duration::from_secs(1);

/// Reads the rest of a body if that is `wanted`, as much of it as any request may have.
pub(super) async fn read_out(wanted: bool, mut body: impl Body<Data = Bytes> + Unpin) {
    if !wanted || body.is_end_stream() {
        return;
    }
    let reading = async {
        let mut left = MAX_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // What is not read by then is not read.
    let _ = tokio::time::timeout(REST_TIME, reading).await;
}

/// Whether a client waits to be told before it sends the body.
pub(super) fn asks_first(headers: &HeaderMap) -> bool {
    headers.contains_key(header::EXPECT)
}

/// Where a body that was [lent](Lent) comes back to.
#[derive(Clone, Default)]
pub(super) struct Lender(Arc<Mutex<Option<Timed>>>);

impl Lender {
    /// The body, for whoever may read it or not.
    pub(super) fn lend(&self, body: Timed) -> Lent {
        Lent {
            body: Some(body),
            lender: self.clone(),
        }
    }

    /// What was given back.
    pub(super) fn take(&self) -> Option<Timed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that is given back when it is dropped.
pub(super) struct Lent {
    body: Option<Timed>,
    lender: Lender,
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.lender.0.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = <Timed as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.body
            .as_mut()
            .map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}
