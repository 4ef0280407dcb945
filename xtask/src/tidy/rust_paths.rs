// SPDX-License-Identifier: Apache-2.0
//! Reads from Rust source which paths it names: `use` trees, expanded, and paths in code. By text, not by meaning.

/// A path such as `crate::policy::PolicySet`, in its parts, and the line where it starts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NamedPath {
    /// The parts, of which there are at least two outside `use`.
    pub(crate) parts: Vec<String>,
    /// Counted from 1.
    pub(crate) line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    PathSeparator,
    Mark(char),
}

/// The paths named in a file, up to its unit tests, which may use what they like.
pub(crate) fn paths(source: &str) -> Vec<NamedPath> {
    let code = source.split("\n#[cfg(test)]").next().unwrap_or(source);
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = &tokens[at];
        match token {
            Token::Word(word) if word == "use" => {
                at += 1;
                use_tree(&tokens, &mut at, &[], &mut found);
            }
            Token::Word(word) => {
                let mut parts = vec![word.clone()];
                at += 1;
                while let [(_, Token::PathSeparator), (_, Token::Word(next)), ..] = &tokens[at..] {
                    parts.push(next.clone());
                    at += 2;
                }
                if parts.len() > 1 {
                    found.push(NamedPath { parts, line: *line });
                }
            }
            _ => at += 1,
        }
    }
    found
}

/// Reads one branch of a `use` tree, up to the `,`, `}` or `;` that ends it.
fn use_tree(tokens: &[(usize, Token)], at: &mut usize, above: &[String], found: &mut Vec<NamedPath>) {
    let mut parts = above.to_vec();
    while let Some((line, token)) = tokens.get(*at) {
        match token {
            Token::Word(word) if word == "as" => *at += 1,
            Token::Word(word) => parts.push(word.clone()),
            Token::PathSeparator => {}
            Token::Mark('*') => parts.push("*".into()),
            Token::Mark('{') => {
                *at += 1;
                while !matches!(tokens.get(*at), None | Some((_, Token::Mark('}')))) {
                    use_tree(tokens, at, &parts, found);
                    if let Some((_, Token::Mark(','))) = tokens.get(*at) {
                        *at += 1;
                    }
                }
                *at += 1;
                return;
            }
            Token::Mark(_) => {
                found.push(NamedPath { parts, line: *line });
                return;
            }
        }
        *at += 1;
    }
}

fn tokens(code: &str) -> Vec<(usize, Token)> {
    let blank = blanked(code);
    let mut tokens = Vec::new();
    for (number, line) in blank.lines().enumerate() {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let length = if first.is_alphanumeric() || first == '_' {
                let end = |c: char| !(c.is_alphanumeric() || c == '_');
                let length = rest.find(end).unwrap_or(rest.len());
                tokens.push((number + 1, Token::Word(rest[..length].to_owned())));
                length
            } else if rest.starts_with("::") {
                tokens.push((number + 1, Token::PathSeparator));
                2
            } else {
                if !first.is_whitespace() {
                    tokens.push((number + 1, Token::Mark(first)));
                }
                first.len_utf8()
            };
            rest = &rest[length..];
        }
    }
    tokens
}

/// The code with comments, strings and characters blanked out, line by line as it was.
pub(crate) fn blanked(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        let hashes = after.len() - after.trim_start_matches('#').len();
        let raw = first == 'r' && after[hashes..].starts_with('"');
        let ends_word = out.ends_with(|c: char| c.is_alphanumeric() || c == '_') && !out.ends_with('b');
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            string_length(rest)
        } else if raw && !ends_word {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            rest.get(body..)
                .and_then(|text| text.find(&close))
                .map_or(1, |end| body + end + close.len())
        } else if first == '\'' {
            character_length(rest)
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    out
}

fn string_length(text: &str) -> usize {
    let mut escaped = true;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal; 1 for the quote of a lifetime.
fn character_length(text: &str) -> usize {
    let mut after = text[1..].char_indices();
    match after.next() {
        Some((_, '\\')) => text[2..]
            .get(1..)
            .and_then(|rest| rest.find('\''))
            .map_or(1, |end| 3 + end + 1),
        Some(_) => after
            .next()
            .filter(|(_, c)| *c == '\'')
            .map_or(1, |(at, _)| at + 2),
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(source: &str) -> Vec<String> {
        paths(source)
            .into_iter()
            .map(|path| path.parts.join("::"))
            .collect()
    }

    #[test]
    fn expands_use_trees() {
        let source = "use crate::{policy::{self, Rule}, state::Snapshot as S};\nuse std::fs;\nuse aya;";
        let expected = [
            "crate::policy::self",
            "crate::policy::Rule",
            "crate::state::Snapshot",
            "std::fs",
            "aya",
        ];
        assert_eq!(named(source), expected);
    }

    #[test]
    fn reads_paths_in_code_and_not_in_text() {
        let source = "fn f<'a>(x: &'a tokio::A) { let c = '\"'; crate::audit::g(\"sqlx::no\"); } // aya::no\n\
                      /* aya::no */ const R: &str = r#\"aya::\"no\"#; const Q: char = '\\''; b::c()";
        assert_eq!(named(source), ["tokio::A", "crate::audit::g", "b::c"]);
    }

    #[test]
    fn counts_lines_and_stops_at_the_unit_tests() {
        let found = paths("\"a\nb\";\na::b;\n#[cfg(test)]\nmod tests { use std::fs; }");
        assert_eq!(
            found,
            [NamedPath {
                parts: vec!["a".into(), "b".into()],
                line: 3
            }]
        );
    }
}
