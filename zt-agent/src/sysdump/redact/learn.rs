// SPDX-License-Identifier: Apache-2.0
//! Secrets that are known: read where they belong, to be found where they do not.

use super::forms::value_after;
use super::{REMOVED, Redactor, is_secret};

/// Shorter ones would take away half of every text; they are found by where they stand.
const SHORTEST: usize = 5;
/// What stands where a secret may, and is none.
const WORDS: [&str; 6] = ["false", "disable", "allow", "prefer", "require", "verify-full"];

impl Redactor {
    /// Remembers the secrets in a text, such as a configuration or a command line.
    pub(in super::super) fn learn(&mut self, text: &str) {
        for line in text.lines() {
            self.learn_urls(line);
            self.learn_named(line);
        }
        // The longest first.
        self.known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        self.known.dedup();
    }

    /// Remembers the password of a DSN, which is a whole: whatever is in a password, it ends before the last `@`. In each form in which
    /// it may be written down.
    pub(in super::super) fn learn_dsn(&mut self, dsn: &str) {
        let after = dsn.split_once("://").map_or(dsn, |(_, after)| after);
        let password = after.rsplit_once('@').and_then(|(user, _)| user.split_once(':'));
        let given = after
            .split(['?', '&'])
            .skip(1)
            .filter_map(|pair| pair.split_once('='));
        let given = given.filter(|(name, _)| is_secret(name)).map(|(_, value)| value);
        for secret in password.into_iter().map(|(_, password)| password).chain(given) {
            let quoted = format!("{secret:?}");
            self.remember(secret);
            self.remember(quoted.trim_matches('"'));
            self.remember(&secret.replace('\'', "''"));
        }
        self.learn(dsn);
    }

    fn learn_urls(&mut self, line: &str) {
        // Each to the end of its word: a password may have such a sign in it, too.
        for (at, sign) in line.match_indices("://") {
            let word = line
                .get(at + sign.len()..)
                .unwrap_or_default()
                .split(|character: char| {
                    character.is_whitespace() || matches!(character, '"' | '\'' | '`' | '<' | '>')
                })
                .next()
                .unwrap_or_default();
            let password = word.rsplit_once('@').and_then(|(user, _)| user.split_once(':'));
            if let Some((_, password)) = password {
                self.remember(password);
            }
            // Where they may stand, too: postgres:///zt?password=…
            for pair in word.split(['?', '&']).skip(1) {
                if let Some((name, value)) = pair.split_once('=')
                    && is_secret(name)
                {
                    self.remember(value);
                }
            }
        }
    }

    fn learn_named(&mut self, line: &str) {
        let is_name =
            |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.');
        let mut rest = line;
        while let Some(start) = rest.find(is_name) {
            let (before, from) = rest.split_at(start);
            let length = from.find(|character| !is_name(character)).unwrap_or(from.len());
            let (name, after) = from.split_at(length);
            rest = after;
            if is_secret(name)
                && let Some((_, value)) = value_after(after, before.ends_with('"'))
            {
                self.remember(value);
            }
        }
    }

    /// Remembers a secret, as it stands and as it is meant.
    fn remember(&mut self, secret: &str) {
        let secret = secret.trim();
        for form in [secret.to_owned(), decoded(secret)] {
            let is_word = form == REMOVED || WORDS.contains(&form.as_str());
            if form.len() >= SHORTEST && !is_word && !self.known.contains(&form) {
                self.known.push(form);
            }
        }
    }
}

/// Percent-decoded.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).filter(|_| first == b'%');
        let byte = hex
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(byte) = byte {
            bytes.push(byte);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
