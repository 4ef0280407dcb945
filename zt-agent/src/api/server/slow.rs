// SPDX-License-Identifier: Apache-2.0
//! Clients that take too long: for the body of a request, and for its head.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::time::Sleep;

/// How long a client who was too slow may take to read that.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// What is answered to a head that did not come in time. Nobody can tell what was asked, so that nothing is served.
const TOO_SLOW: &str = concat!(
    "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/problem+json\r\n",
    "content-length: 136\r\n\r\n",
    r#"{"type":"about:blank","title":"Request Timeout","status":408,"code":"head_timeout","detail":"the head did not"#,
    r#" come in time","errors":[]}"#,
);

/// The body of a request did not come in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the body did not come in time")]
pub(in crate::api) struct SlowBody;

/// A body that must come within a time.
pub(super) struct Timed {
    body: Incoming,
    within: Duration,
    /// Begins when one has to wait: most bodies come with their heads.
    until: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    pub(super) fn new(body: Incoming, within: Duration) -> Self {
        Self {
            body,
            within,
            until: None,
        }
    }
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let within = self.within;
        let until = self
            .until
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        until.as_mut().poll(context).map(|()| Some(Err(SlowBody.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Tells a client that its head did not come in time.
pub(super) async fn say_too_slow(stream: &mut (impl AsyncWrite + Unpin)) {
    let said = async {
        stream.write_all(TOO_SLOW.as_bytes()).await?;
        stream.shutdown().await
    };
    // Who does not listen has broken off.
    let _ = tokio::time::timeout(FAREWELL_TIME, said).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let (head, body) = TOO_SLOW.split_once("\r\n\r\n").expect("head");
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        let value: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(value["status"], 408);
    }
}
