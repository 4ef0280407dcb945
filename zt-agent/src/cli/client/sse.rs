// SPDX-License-Identifier: Apache-2.0
//! Server-sent events, as the HTML standard defines their text.

use std::collections::VecDeque;

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{ClientError, innermost};

/// The longest event that is taken.
const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `event`, such as `lagged`; empty for a plain message.
    pub name: String,
    /// `data`, lines joined.
    pub data: String,
}

/// The events of one response.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    base: String,
    parser: Parser,
}

impl EventStream {
    pub(super) fn new(body: Incoming, base: String) -> Self {
        Self {
            body,
            base,
            parser: Parser::default(),
        }
    }

    /// The next event; `None` when the agent ends the stream.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(event) = self.parser.ready.pop_front() {
                return Ok(Some(event));
            }
            let broken = |cause: String| ClientError::Broken {
                url: self.base.clone(),
                cause,
            };
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(innermost(&error))),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.parser.feed(data);
                    }
                }
            }
            if self.parser.pending.len() + self.parser.event.data.len() > MAX_EVENT_BYTES {
                return Err(broken(format!("an event is longer than {MAX_EVENT_BYTES} bytes")));
            }
        }
    }
}

/// Turns bytes, cut anywhere, into events.
#[derive(Debug, Default)]
struct Parser {
    /// A line that has not ended.
    pending: Vec<u8>,
    event: Event,
    ready: VecDeque<Event>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.pending);
                let line = line.strip_suffix(b"\r").unwrap_or(&line);
                self.line(&String::from_utf8_lossy(line));
            } else {
                self.pending.push(byte);
            }
        }
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            let mut event = std::mem::take(&mut self.event);
            // An event without data is a keep-alive.
            if event.data.pop().is_some() {
                self.ready.push_back(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                self.event.data.push_str(value);
                self.event.data.push('\n');
            }
            "event" => value.clone_into(&mut self.event.name),
            // Comments, ids and retry times are of no use here.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_may_be_cut_anywhere() {
        let text = ": hello\r\n\r\nid: 1\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\nevent: lagged\ndata:5\n\ndata\n\ndata: cut";
        let wanted = [
            Event {
                name: String::new(),
                data: "{\"a\":\n1}".into(),
            },
            Event {
                name: "lagged".into(),
                data: "5".into(),
            },
            Event {
                name: String::new(),
                data: String::new(),
            },
        ];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            text.as_bytes().chunks(size).for_each(|chunk| parser.feed(chunk));
            assert_eq!(Vec::from(parser.ready), wanted, "chunks of {size}");
        }
    }
}
