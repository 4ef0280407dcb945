// SPDX-License-Identifier: Apache-2.0
//! Paths and query strings: each parameter once, none unknown, every mistake named.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::problem::{ApiProblem, field};
use crate::audit::record::Timestamp;
use crate::problem::{Problem, nearest};

/// The query of a request as it was given.
#[derive(Debug)]
pub(super) struct Given(pub(super) Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Given {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiProblem> {
        if !parts.uri.query().is_none_or(is_text) {
            let detail = "the query is not UTF-8 text";
            return Err(ApiProblem::bad_request("invalid_query", detail));
        }
        let given = Query::from_request_parts(parts, state).await;
        given
            .map(|Query(pairs)| Self(pairs))
            .map_err(|error| ApiProblem::bad_request("invalid_query", error.body_text()))
    }
}

/// Whether a percent-encoded text is UTF-8 when it is decoded.
fn is_text(encoded: &str) -> bool {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    std::str::from_utf8(&bytes).is_ok()
}

/// The name of a policy in a path: any text, so far.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Path, names("name"))]
pub(super) struct PolicyName(
    /// metadata.name of the policy
    pub(super) String,
);

impl<S: Send + Sync> FromRequestParts<S> for PolicyName {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiProblem> {
        // Only a name that is no UTF-8 is refused here.
        let name = Path::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name)).map_err(|_| {
            let detail = "the name in the path is not UTF-8 text";
            ApiProblem::new(StatusCode::BAD_REQUEST, "invalid_path", detail)
        })
    }
}

/// The parameters of a request, taken out one by one.
pub(super) struct Parameters {
    given: Vec<(String, String)>,
    known: &'static [&'static str],
    errors: Vec<Problem>,
}

impl Parameters {
    pub(super) fn new(given: Vec<(String, String)>, known: &'static [&'static str]) -> Self {
        let mut parameters = Self {
            given: Vec::new(),
            known,
            errors: Vec::new(),
        };
        for (name, value) in given {
            let problem = if !known.contains(&name.as_str()) {
                match nearest(&name, known.iter().copied()) {
                    Some(near) => format!("is not a parameter; did you mean `{near}`?"),
                    None if known.is_empty() => "is not a parameter; there are none here".to_owned(),
                    None => format!("is not a parameter; there are {}", known.join(", ")),
                }
            } else if parameters.given.iter().any(|(other, _)| *other == name) {
                "is given twice".to_owned()
            } else {
                parameters.given.push((name, value));
                continue;
            };
            parameters.errors.push(field(name, problem));
        }
        parameters
    }

    /// The text of a parameter.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        debug_assert!(
            self.known.contains(&name),
            "a parameter that is read is a known one"
        );
        let at = self.given.iter().position(|(given, _)| given == name)?;
        Some(self.given.swap_remove(at).1)
    }

    /// A parameter, parsed.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Option<T> {
        self.with(name, |text| {
            text.parse().map_err(|error: T::Err| error.to_string())
        })
    }

    /// A parameter, read by `read`.
    pub(super) fn with<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(name)?;
        read(&text)
            .map_err(|message| self.errors.push(field(name, message)))
            .ok()
    }

    /// The parameters `since` and `until`: a time that ends before it begins has nothing in it.
    pub(super) fn span(&mut self) -> (Option<Timestamp>, Option<Timestamp>) {
        let (since, until): (Option<Timestamp>, Option<Timestamp>) =
            (self.parsed("since"), self.parsed("until"));
        if since.zip(until).is_some_and(|(since, until)| since >= until) {
            self.errors.push(field("until", "must be later than `since`"));
        }
        (since, until)
    }

    /// All mistakes, if there were any.
    pub(super) fn finish(self) -> Result<(), ApiProblem> {
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(ApiProblem::fields("invalid_parameter", self.errors))
        }
    }
}

/// `true` or `false`.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    text.parse()
        .map_err(|_| format!("must be true or false, not `{text}`"))
}
