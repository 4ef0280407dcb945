// SPDX-License-Identifier: Apache-2.0
//! Query strings: each parameter once, none unknown, every mistake named.

use std::fmt::Display;
use std::str::FromStr;

use super::problem::{ApiProblem, field};
use crate::problem::{Problem, nearest};

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
