// SPDX-License-Identifier: Apache-2.0
//! Patterns over SPIFFE IDs: `*` for one whole path segment, or `*` alone for every identity.

use std::fmt;
use std::sync::Arc;

use super::{SpiffeId, SpiffeIdError};

/// Which SPIFFE IDs a policy speaks about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// `*`: every SPIFFE identity.
    Any,
    /// One identity.
    Exact(SpiffeId),
    /// A SPIFFE ID with `*` in the place of one or more whole path segments.
    Segments(Segments),
}

/// A pattern with wildcards: the same number of segments, each equal or `*`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segments {
    /// One word: nearly every pattern is an exact one, and as large as this.
    text: Arc<Box<str>>,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// With its wildcards filled in it would still be no SPIFFE ID.
    #[error(transparent)]
    NotAnId(#[from] SpiffeIdError),
    /// `*` shares a segment with other characters.
    #[error("`*` stands for a whole path segment, it cannot be part of `{segment}`")]
    PartialWildcard {
        /// The segment.
        segment: String,
    },
    /// `*` in the trust domain.
    #[error("`*` cannot stand for a trust domain")]
    TrustDomainWildcard,
    /// There is no path.
    #[error("`{text}` names a trust domain, not a workload: add its path")]
    NoPath {
        /// The pattern.
        text: String,
    },
}

impl Pattern {
    /// Parses a SPIFFE ID, a SPIFFE ID with `*` segments, or `*`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if !text.contains('*') {
            let id = SpiffeId::parse(text)?;
            if id.path().is_empty() {
                return Err(PatternError::NoPath {
                    text: text.to_owned(),
                });
            }
            return Ok(Self::Exact(id));
        }
        if !text.starts_with(super::SCHEME) {
            return Err(SpiffeIdError::Scheme.into());
        }
        let (domain, path) = super::split(text);
        if domain.contains('*') {
            return Err(PatternError::TrustDomainWildcard);
        }
        let partial = |segment: &&str| segment.contains('*') && *segment != "*";
        if let Some(segment) = path.and_then(|path| path.split('/').find(partial)) {
            return Err(PatternError::PartialWildcard {
                segment: segment.to_owned(),
            });
        }
        super::check(&text.replace('*', "x"))?;
        Ok(Self::Segments(Segments {
            text: Arc::new(Box::from(text)),
        }))
    }

    /// Whether `id` is one of those that the pattern speaks about.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == id,
            Self::Segments(segments) => segments.matches(id),
        }
    }

    /// The text that it was parsed from.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Any => "*",
            Self::Exact(id) => id.as_str(),
            Self::Segments(segments) => &segments.text,
        }
    }

    /// The trust domain of the identities it speaks about; `None` for `*` alone.
    pub fn trust_domain(&self) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Exact(id) => Some(id.trust_domain()),
            Self::Segments(segments) => Some(super::split(&segments.text).0),
        }
    }
}

impl Segments {
    /// The text that it was parsed from.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What every identity that it matches starts with.
    pub fn literal_prefix(&self) -> &str {
        self.text.split('*').next().unwrap_or_default()
    }

    /// Whether each segment of `id` is the pattern's, or stands in the place of a `*`.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        let mut theirs = id.as_str().split('/');
        let mut ours = self.text.split('/');
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(our), Some(their)) if our == their => {}
                _ => return false,
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
