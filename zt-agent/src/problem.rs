// SPDX-License-Identifier: Apache-2.0
//! One thing that is wrong with what a user wrote, and where.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One mistake in a file, an environment variable or a flag, with its place.
///
/// Readers collect all of them, so that a file with three mistakes is mended in one go.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// The file as the user named it; `environment` or `command line` for what is not in a file;
    /// empty where no file is at fault.
    pub file: String,
    /// Line, from 1; 0 where there is none.
    pub line: u64,
    /// Column in characters, from 1; 0 where there is none.
    pub column: u64,
    /// The field, such as `workloads[2].cgroup`, the variable or the flag; empty for the file as a whole.
    pub field: String,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line != 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

/// Of `known`, the name that someone who wrote `name` most likely meant; `None` if nothing is close.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()),
                candidate,
            )
        })
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_shown_as_compilers_do() {
        let mut problem = Problem {
            file: "a.yaml".into(),
            line: 3,
            column: 5,
            field: "mode".into(),
            message: "unknown".into(),
        };
        assert_eq!(problem.to_string(), "a.yaml:3:5: mode: unknown");
        problem.line = 0;
        assert_eq!(problem.to_string(), "a.yaml: mode: unknown");
        problem.field.clear();
        assert_eq!(problem.to_string(), "a.yaml: unknown");
    }

    #[test]
    fn nearest_finds_typing_mistakes_only() {
        let known = ["cgroup", "spiffe", "addresses", "mode"];
        assert_eq!(nearest("adresses", known), Some("addresses"));
        assert_eq!(nearest("cGroup", known), Some("cgroup"));
        assert_eq!(nearest("mdoe", known), Some("mode"));
        assert_eq!(nearest("colour", known), None);
    }
}
