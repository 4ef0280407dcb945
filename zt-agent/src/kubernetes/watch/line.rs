// SPDX-License-Identifier: Apache-2.0
//! What a watch says: one JSON object a line.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Body;
use crate::kubernetes::client::{ClientError, failed, next};

/// Most bytes of a line. (An object has 1.5 MiB at most.)
const MAX_LINE: usize = 16 << 20;
/// What is kept of the room that a long line took.
const KEEP: usize = 64 << 10;

/// The lines of a body.
pub(super) struct Lines {
    body: Body,
    what: String,
    buffer: Vec<u8>,
    /// Of the buffer, what has been given out.
    taken: usize,
    /// Of the buffer, where there is no end of a line.
    searched: usize,
}

impl Lines {
    pub(super) fn new(body: Body, what: String) -> Self {
        Self {
            body,
            what,
            buffer: Vec::new(),
            taken: 0,
            searched: 0,
        }
    }

    /// The next whole line; `None` at the end. A piece of a line at the end is none. Nothing is lost where this is dropped while
    /// it waits.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            if let Some(found) = self.buffer[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let end = self.searched + found;
                let line = self.buffer[self.taken..end].to_vec();
                (self.taken, self.searched) = (end + 1, end + 1);
                return Ok(Some(line));
            }
            self.buffer.drain(..self.taken);
            self.taken = 0;
            self.searched = self.buffer.len();
            if self.buffer.is_empty() {
                self.buffer.shrink_to(KEEP);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::TooLong {
                    what: self.what.clone(),
                    limit: MAX_LINE,
                });
            }
            match next(&mut self.body).await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

/// What a line says.
pub(super) enum Told<'a> {
    /// That nothing has happened up to a version.
    Bookmark { version: String },
    /// That something has.
    Event {
        version: Option<String>,
        object: &'a RawValue,
        deleted: bool,
    },
    /// Nothing that is understood.
    Nonsense(serde_json::Error),
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Versioned {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
}

/// Reads a line. An error where it says that the watch cannot go on.
pub(super) fn read_line<'a>(line: &'a [u8], what: &str) -> Result<Told<'a>, ClientError> {
    let event: Event<'_> = match serde_json::from_slice(line) {
        Ok(event) => event,
        Err(error) => return Ok(Told::Nonsense(error)),
    };
    if event.kind == "ERROR" {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            code: u16,
        }
        let status: Status = serde_json::from_str(event.object.get()).unwrap_or_default();
        return Err(failed(status.code, event.object.get().as_bytes(), what, None));
    }
    let versioned: Result<Versioned, _> = serde_json::from_str(event.object.get());
    let version = versioned.unwrap_or_default().metadata.resource_version;
    let version = version.filter(|version| !version.is_empty());
    let deleted = match event.kind {
        "BOOKMARK" => {
            return Ok(match version {
                Some(version) => Told::Bookmark { version },
                None => Told::Nonsense(serde::de::Error::custom("a bookmark without a version")),
            });
        }
        "ADDED" | "MODIFIED" => false,
        "DELETED" => true,
        _ => {
            return Ok(Told::Nonsense(serde::de::Error::custom(
                "a type that there is not",
            )));
        }
    };
    Ok(Told::Event {
        version,
        object: event.object,
        deleted,
    })
}
