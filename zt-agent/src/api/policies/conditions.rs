// SPDX-License-Identifier: Apache-2.0
//! `If-Match` and `If-None-Match` (RFC 9110, section 13), so that nobody overwrites what they have not seen.

use axum::http::{HeaderMap, HeaderName, header};

use crate::api::problem::ApiProblem;

/// What a request says about the policy as its sender knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::api) struct Conditions {
    matches: Option<Tags>,
    none_matches: Option<Tags>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    /// `*`: whatever is there.
    Any,
    /// Strong tags; weak ones never match.
    These(Vec<String>),
}

impl Tags {
    fn match_(&self, digest: Option<&str>) -> bool {
        match (self, digest) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::These(tags), Some(digest)) => tags.iter().any(|tag| tag == digest),
        }
    }
}

impl Conditions {
    /// The conditions of a request.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiProblem> {
        Ok(Self {
            matches: tags(headers, &header::IF_MATCH)?,
            none_matches: tags(headers, &header::IF_NONE_MATCH)?,
        })
    }

    /// Whether they hold for a policy with this digest; what is wrong otherwise.
    pub(super) fn check(&self, digest: Option<&str>) -> Result<(), String> {
        let now = || {
            digest.map_or("it is not there".to_owned(), |digest| {
                format!("its ETag is \"{digest}\"")
            })
        };
        if self.matches.as_ref().is_some_and(|tags| !tags.match_(digest)) {
            return Err(format!("If-Match does not hold, {}", now()));
        }
        if self.none_matches.as_ref().is_some_and(|tags| tags.match_(digest)) {
            return Err(format!("If-None-Match does not hold, {}", now()));
        }
        Ok(())
    }

    /// Whether the sender of a `GET` has this one already.
    pub(super) fn has(&self, digest: &str) -> bool {
        self.none_matches
            .as_ref()
            .is_some_and(|tags| tags.match_(Some(digest)))
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, ApiProblem> {
    let mut found: Option<Tags> = None;
    for value in headers.get_all(name) {
        let bad = || {
            let detail = format!("{name} is `*`, or ETags in quotes, separated by commas");
            ApiProblem::bad_request("invalid_precondition", detail)
        };
        let text = value.to_str().map_err(|_| bad())?;
        for tag in text.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            if tag == "*" {
                found = Some(Tags::Any);
                continue;
            }
            let opaque = tag.strip_prefix("W/").unwrap_or(tag);
            let inner = opaque.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let inner = inner.filter(|inner| !inner.contains('"')).ok_or_else(bad)?;
            if let Tags::These(tags) = found.get_or_insert_with(|| Tags::These(Vec::new()))
                && opaque == tag
            {
                tags.push(inner.to_owned());
            }
        }
    }
    if found.is_none() && headers.contains_key(name) {
        let detail = format!("{name} is empty");
        return Err(ApiProblem::bad_request("invalid_precondition", detail));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(pairs: &[(HeaderName, &str)]) -> Result<Conditions, ApiProblem> {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().expect("value")));
        Conditions::of(&pairs.collect())
    }

    #[test]
    fn only_what_was_seen_is_overwritten() {
        let one = conditions(&[(header::IF_MATCH, "\"a\", W/\"b\"")]).expect("valid");
        assert!(one.check(Some("a")).is_ok());
        assert!(one.check(Some("b")).is_err(), "a weak tag is no proof");
        assert!(one.check(None).is_err());
        let any = conditions(&[(header::IF_MATCH, "*")]).expect("valid");
        assert!(any.check(Some("x")).is_ok() && any.check(None).is_err());
        let create = conditions(&[(header::IF_NONE_MATCH, "*")]).expect("valid");
        assert!(create.check(None).is_ok() && create.check(Some("x")).is_err());
        assert!(Conditions::default().check(None).is_ok());
        for bad in ["a", "\"a", "\"a\"b\"", ","] {
            assert!(conditions(&[(header::IF_MATCH, bad)]).is_err(), "{bad}");
        }
    }
}
