// SPDX-License-Identifier: Apache-2.0
//! SPIFFE IDs, the 64-bit numbers that stand for them in the kernel, and patterns over them.
//!
//! The syntax is that of the SPIFFE-ID standard, section 2: `spiffe://<trust domain>/<path>`, with no port, user,
//! query or fragment, and nothing to be normalised: one identity has exactly one text.

mod pattern;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use zt_common::identity;

pub use pattern::{Pattern, PatternError};

/// The most bytes that a SPIFFE ID may have.
pub const MAX_BYTES: usize = 2048;
/// The most bytes that a trust domain may have.
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// What every SPIFFE ID begins with.
pub const SCHEME: &str = "spiffe://";

/// The number that stands for `text` in the kernel: the first eight bytes of its SHA-256, big-endian.
pub fn number_of(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    digest
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A SPIFFE ID in its one canonical text, with its number. Cheap to clone, and one word: there are many places that name one.
#[derive(Clone)]
pub struct SpiffeId(Arc<Numbered>);

struct Numbered {
    text: Arc<str>,
    number: u64,
}

impl SpiffeId {
    /// Parses the text of a SPIFFE ID; nothing is normalised, so what is not canonical is refused.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        check(text)?;
        let number = number_of(text);
        if number < identity::FIRST_WORKLOAD {
            return Err(SpiffeIdError::ReservedNumber { number });
        }
        Ok(Self(Arc::new(Numbered {
            text: Arc::from(text),
            number,
        })))
    }

    /// As if `text` had this number, which costs four thousand million attempts otherwise.
    #[cfg(test)]
    pub(crate) fn numbered(text: &str, number: u64) -> Self {
        check(text).expect("a literal of a test");
        Self(Arc::new(Numbered {
            text: Arc::from(text),
            number,
        }))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The canonical text, shared.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.0.text)
    }

    /// The trust domain: `hanzo.ai` in `spiffe://hanzo.ai/hanzo-k8s/hanzo/iam`.
    pub fn trust_domain(&self) -> &str {
        split(&self.0.text).0
    }

    /// The path without its leading slash; empty for the ID of a trust domain itself.
    pub fn path(&self) -> &str {
        split(&self.0.text).1.unwrap_or_default()
    }

    /// The number that stands for this identity in the kernel, at least [`identity::FIRST_WORKLOAD`].
    pub fn number(&self) -> u64 {
        self.0.number
    }
}

/// Trust domain and path of a text that starts with the scheme.
fn split(text: &str) -> (&str, Option<&str>) {
    let rest = text.strip_prefix(SCHEME).unwrap_or(text);
    match rest.split_once('/') {
        Some((domain, path)) => (domain, Some(path)),
        None => (rest, None),
    }
}

fn check(text: &str) -> Result<(), SpiffeIdError> {
    if text.len() > MAX_BYTES {
        return Err(SpiffeIdError::TooLong { bytes: text.len() });
    }
    if !text.starts_with(SCHEME) {
        return Err(SpiffeIdError::Scheme);
    }
    let (domain, path) = split(text);
    check_trust_domain(domain)?;
    path.map_or(Ok(()), |path| path.split('/').try_for_each(check_segment))
}

/// Checks a bare trust domain such as `hanzo.ai`.
pub fn check_trust_domain(domain: &str) -> Result<(), SpiffeIdError> {
    if domain.is_empty() {
        return Err(SpiffeIdError::NoTrustDomain);
    }
    if domain.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong { bytes: domain.len() });
    }
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    match domain.chars().find(|c| !legal(*c)) {
        Some(character) => Err(SpiffeIdError::TrustDomainCharacter { character }),
        None => Ok(()),
    }
}

fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    match segment {
        "" => return Err(SpiffeIdError::EmptySegment),
        "." | ".." => {
            return Err(SpiffeIdError::DotSegment {
                segment: segment.to_owned(),
            });
        }
        _ => {}
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match segment.chars().find(|c| !legal(*c)) {
        Some(character) => Err(SpiffeIdError::PathCharacter { character }),
        None => Ok(()),
    }
}

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// It does not start with the scheme.
    #[error("not a SPIFFE ID: it must start with `spiffe://`")]
    Scheme,
    /// It is longer than [`MAX_BYTES`].
    #[error("a SPIFFE ID has at most 2048 bytes, this one has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Nothing stands between `spiffe://` and the path.
    #[error("the trust domain is missing: write `spiffe://<trust domain>/<path>`")]
    NoTrustDomain,
    /// The trust domain is longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("a trust domain has at most 255 bytes, this one has {bytes}")]
    TrustDomainTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The trust domain has a character that none may have; a port or a user would.
    #[error("a trust domain is made of a-z, 0-9, `.`, `-` and `_`, not {character:?}")]
    TrustDomainCharacter {
        /// The first such character.
        character: char,
    },
    /// Two slashes in a row, or one at the end.
    #[error("the path has an empty segment: remove the doubled or trailing slash")]
    EmptySegment,
    /// A relative segment.
    #[error("the path has the segment `{segment}`: SPIFFE IDs have no relative segments")]
    DotSegment {
        /// `.` or `..`.
        segment: String,
    },
    /// The path has a character that none may have; a query, a fragment or an escape would.
    #[error("a path is made of letters, digits, `.`, `-` and `_`, not {character:?}")]
    PathCharacter {
        /// The first such character.
        character: char,
    },
    /// Its hash falls where numbers are reserved: one text in four thousand million.
    #[error("its kernel number {number} is reserved: rename the workload")]
    ReservedNumber {
        /// The number.
        number: u64,
    },
}

// The number follows from the text, so comparing the texts is comparing the identities.
impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.0.number == other.0.number && self.0.text == other.0.text
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.text.cmp(&other.0.text)
    }
}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.number.hash(state);
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl std::str::FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.text)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
