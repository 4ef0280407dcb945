// SPDX-License-Identifier: Apache-2.0
//! What a recommendation is to be like.

use crate::api::query::{Parameters, flag};
use crate::spiffe_id::Pattern;

/// Most patterns of a question.
const MAX_PATTERNS: usize = 64;

/// The query of a recommendation.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `patterns` reads")]
pub(super) struct PatternQuery {
    /// Patterns to write for every identity that they match, at most 64 with commas between them; the first that matches is taken
    pattern: Option<String>,
}

/// The query of what is wanted to be allowed.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `include_denied` reads")]
pub(super) struct DeniedQuery {
    /// Also what was refused; `false` unless it is said
    include_denied: Option<bool>,
}

/// The parameter `pattern`.
pub(super) fn patterns(given: &mut Parameters) -> Vec<Pattern> {
    given.with("pattern", parsed).unwrap_or_default()
}

/// The parameter `include_denied`.
pub(super) fn include_denied(given: &mut Parameters) -> bool {
    given.with("include_denied", flag).unwrap_or(false)
}

fn parsed(text: &str) -> Result<Vec<Pattern>, String> {
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let texts: Vec<&str> = texts.collect();
    if texts.len() > MAX_PATTERNS {
        let many = texts.len();
        return Err(format!("has {many} patterns, and may have {MAX_PATTERNS}"));
    }
    let parse = |text: &str| Pattern::parse(text).map_err(|error| format!("`{text}`: {error}"));
    texts.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_commas_between_them_and_are_no_more_than_an_answer_bears() {
        let read = |text: &str| -> Result<Vec<String>, String> {
            Ok(parsed(text)?.iter().map(ToString::to_string).collect())
        };
        let (one, all) = ("spiffe://hanzo.ai/k8s/*/*", "*");
        assert_eq!(read(""), Ok(Vec::new()));
        assert_eq!(
            read(&format!("{one}, {all},")),
            Ok(vec![one.to_owned(), all.to_owned()])
        );
        let wrong = read("*,web-*").expect_err("no pattern");
        assert!(wrong.starts_with("`web-*`: "), "{wrong}");
        let many = |count: usize| vec![all; count].join(",");
        assert_eq!(read(&many(MAX_PATTERNS)).map(|read| read.len()), Ok(MAX_PATTERNS));
        assert_eq!(
            read(&many(65)),
            Err("has 65 patterns, and may have 64".to_owned())
        );
    }
}
