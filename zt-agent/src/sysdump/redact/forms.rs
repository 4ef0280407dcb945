// SPDX-License-Identifier: Apache-2.0
//! What secrets look like.

use super::{REMOVED, is_secret};

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";
/// The shortest part of a token that is taken for one.
const PART: usize = 8;

/// Private keys in PEM, wherever they begin; one whose end is missing goes to the end of the text.
pub(super) fn keys(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, from) = rest.split_at(at);
        cleaned.push_str(before);
        let label = from.get(BEGIN.len()..).and_then(|label| label.split_once(DASHES));
        let Some((label, after)) = label.filter(|(label, _)| label.ends_with("PRIVATE KEY")) else {
            cleaned.push_str(BEGIN);
            rest = from.get(BEGIN.len()..).unwrap_or_default();
            continue;
        };
        cleaned.push_str(REMOVED);
        let end = format!("{DASHES}END {label}{DASHES}");
        rest = after.split_once(&end).map_or("", |(_, after)| after);
    }
    cleaned.push_str(rest);
    cleaned
}

/// The end of a word: whitespace, or what stands around one.
fn ends_word(character: char) -> bool {
    character.is_whitespace() || matches!(character, '"' | '\'' | '`' | '<' | '>')
}

/// Passwords in URLs: `scheme://user:password@host`.
pub(super) fn urls(line: &str) -> String {
    let mut cleaned = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        cleaned.push_str(before);
        cleaned.push_str("://");
        let word = after.split(ends_word).next().unwrap_or_default();
        // The last one: a password may have one, too.
        let password = word
            .rsplit_once('@')
            .and_then(|(user, _)| Some((user, user.split_once(':')?.0)));
        rest = if let Some((user, name)) = password {
            cleaned.push_str(name);
            cleaned.push(':');
            cleaned.push_str(REMOVED);
            after.get(user.len()..).unwrap_or_default()
        } else {
            after
        };
    }
    cleaned.push_str(rest);
    cleaned
}

/// What follows the name of a scheme of HTTP authentication.
pub(super) fn schemes(line: &str) -> String {
    let mut cleaned = line.to_owned();
    for scheme in ["Bearer ", "bearer ", "Basic "] {
        let mut done = String::with_capacity(cleaned.len());
        let mut rest = cleaned.as_str();
        while let Some((before, after)) = rest.split_once(scheme) {
            done.push_str(before);
            done.push_str(scheme);
            let word = after.split(ends_word).next().unwrap_or_default();
            // Shorter ones are words of a sentence.
            let is_token = word.len() >= PART;
            done.push_str(if is_token { REMOVED } else { word });
            rest = after.get(word.len()..).unwrap_or_default();
        }
        done.push_str(rest);
        cleaned = done;
    }
    cleaned
}

/// Whether a character may be part of a name.
fn names(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.')
}

/// Values with names that say that they are secrets: `password=…`, `token: …`, `"secret":"…"`.
pub(super) fn named_values(line: &str) -> String {
    let mut cleaned = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find(names) {
        let (before, from) = rest.split_at(start);
        cleaned.push_str(before);
        let length = from.find(|character| !names(character)).unwrap_or(from.len());
        let (name, after) = from.split_at(length);
        cleaned.push_str(name);
        rest = after;
        if !is_secret(name) {
            continue;
        }
        if let Some((between, value)) = value_after(after, before.ends_with('"')) {
            cleaned.push_str(between);
            if value.is_empty() {
                rest = after.get(between.len()..).unwrap_or_default();
            } else {
                cleaned.push_str(REMOVED);
                rest = after.get(between.len() + value.len()..).unwrap_or_default();
            }
        }
    }
    cleaned.push_str(rest);
    cleaned
}

/// What stands between a name and its value, and the value itself. `quoted`: the name stands in quotes, as in JSON.
pub(super) fn value_after(text: &str, quoted: bool) -> Option<(&str, &str)> {
    let after_quote = text.trim_start_matches(['"', '\'']);
    let trimmed = after_quote.trim_start();
    let sign = trimmed.chars().next().filter(|sign| matches!(sign, ':' | '='))?;
    let value = trimmed.get(1..)?.trim_start();
    let (quote, inner) = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => (Some(quote), value.get(1..)?),
        _ => (None, value),
    };
    let length = match quote {
        Some(quote) => closing(inner, quote),
        None if sign == ':' && !quoted => inner.trim_end().len(),
        None => inner
            .find(|character: char| {
                ends_word(character) || matches!(character, ',' | '&' | ';' | '}' | ']' | ')')
            })
            .unwrap_or(inner.len()),
    };
    let between = text.len() - inner.len();
    Some((text.get(..between)?, inner.get(..length)?))
}

/// Where a text in quotes ends; one in double quotes may have them within, behind a backslash.
fn closing(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        if character == quote && !escaped {
            return at;
        }
        escaped = character == '\\' && quote == '"' && !escaped;
    }
    text.len()
}

/// JSON Web Tokens: three parts in base64, of which the first begins with `{"`.
pub(super) fn tokens(line: &str) -> String {
    let is_part = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.');
    let mut cleaned = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("eyJ") {
        cleaned.push_str(before);
        let length = after.find(|character| !is_part(character)).unwrap_or(after.len());
        let (token, behind) = after.split_at(length);
        let parts: Vec<&str> = token.split('.').collect();
        if parts.len() >= 2 && parts.iter().take(2).all(|part| part.len() >= PART) {
            cleaned.push_str(REMOVED);
        } else {
            cleaned.push_str("eyJ");
            cleaned.push_str(token);
        }
        rest = behind;
    }
    cleaned.push_str(rest);
    cleaned
}
