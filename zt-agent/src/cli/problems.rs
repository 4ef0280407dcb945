// SPDX-License-Identifier: Apache-2.0
//! What is said where documents have problems, and something else than what they say is in force.

use std::io;

use serde_json::Value;

use super::output::line;
use crate::problem::Problem;

/// Of a rollout that has gone back the answer does not say whether it did so beside the problems: this is true either way.
const OTHERWISE: &str = "The documents have problems, and what is in force is not all that they say: it is what was valid last, and \
                         of what has changed since a rollout's way back alone";

/// Prints the problems that an answer tells of, if there are any.
pub(super) fn show(answer: &Value) -> io::Result<()> {
    said(answer).iter().try_for_each(|text| line(text))
}

fn said(answer: &Value) -> Vec<String> {
    let errors = answer["errors"].as_array().map_or(&[][..], Vec::as_slice);
    if errors.is_empty() {
        return Vec::new();
    }
    let head = [String::new(), format!("{OTHERWISE}:")];
    let problems = errors.iter().map(|error| {
        let problem = serde_json::from_value::<Problem>(error.clone());
        problem.map_or_else(|_| error.to_string(), |problem| problem.to_string())
    });
    head.into_iter().chain(problems).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn problems_are_told_as_they_are_and_no_problem_is_no_word() {
        assert_eq!(said(&json!({ "errors": [] })), Vec::<String>::new());
        assert_eq!(said(&json!({})), Vec::<String>::new());
        let known =
            json!({ "file": "p.yaml", "line": 3, "column": 5, "field": "spec", "message": "is missing" });
        let unknown = json!({ "of": "a later version" });
        let said = said(&json!({ "errors": [known, unknown] }));
        assert_eq!(
            (said.len(), said[2].as_str(), said[3].as_str()),
            (4, "p.yaml:3:5: spec: is missing", r#"{"of":"a later version"}"#)
        );
        assert!(
            said[1].ends_with(':') && !said[1].contains("older revision"),
            "{}",
            said[1]
        );
    }
}
