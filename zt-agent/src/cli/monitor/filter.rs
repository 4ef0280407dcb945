// SPDX-License-Identifier: Apache-2.0
//! Which decisions are wanted: words that all must fit, as they are typed.

use super::parsed::{Parsed, Verdict};

/// Words, all of which must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    words: Vec<Word>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    /// Whether it must not fit.
    not: bool,
    field: Field,
    /// Whether the field must be that as a whole: `from:=spiffe://…`.
    whole: bool,
    /// In lower case.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Any,
    From,
    To,
    Port,
    Rule,
    Reason,
    Node,
}

/// Of decisions and of edges.
pub(super) trait Filtered {
    fn source(&self) -> &str;
    fn destination(&self) -> &str;
    fn port(&self) -> u16;
    fn protocol(&self) -> &str;
    fn rule(&self) -> Option<&str>;
    fn reason(&self) -> &str;
    /// Its verdict, as one may type it.
    fn verdict_name(&self) -> &str;
    /// Whether a node, pod or address has that in it.
    fn is_at(&self, text: &str) -> bool;
}

impl Filter {
    /// Of what was typed. No text is wrong: what names no field is looked for everywhere.
    pub(super) fn parse(typed: &str) -> Self {
        let words = typed.split_whitespace().filter_map(|word| {
            let (not, word) = match word.strip_prefix('-') {
                Some(rest) => (true, rest),
                None => (false, word),
            };
            let (field, text) = match word.split_once(':') {
                Some(("from", text)) => (Field::From, text),
                Some(("to", text)) => (Field::To, text),
                Some(("port", text)) => (Field::Port, text),
                Some(("rule", text)) => (Field::Rule, text),
                Some(("reason", text)) => (Field::Reason, text),
                Some(("node", text)) => (Field::Node, text),
                _ => (Field::Any, word),
            };
            let (whole, text) = match text.strip_prefix('=') {
                Some(rest) if field != Field::Any => (true, rest),
                _ => (false, text),
            };
            // Half a word, still being typed, keeps nothing away.
            (!text.is_empty()).then(|| Word {
                not,
                field,
                whole,
                text: text.to_ascii_lowercase(),
            })
        });
        Self {
            words: words.collect(),
        }
    }

    /// Whether it fits everything.
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether it asks at which node, pod or address something is.
    pub(super) fn asks_where(&self) -> bool {
        self.words.iter().any(|word| word.field == Field::Node)
    }

    /// Whether a word may be about a node, a pod or an address, so that only what knows its own can fit.
    pub(super) fn looks_for_places(&self) -> bool {
        let looks = |word: &Word| !word.not && matches!(word.field, Field::Node | Field::Any);
        self.words.iter().any(looks)
    }

    pub(super) fn fits(&self, one: &impl Filtered) -> bool {
        self.words.iter().all(|word| word.fits(one) != word.not)
    }
}

impl Word {
    fn fits(&self, one: &impl Filtered) -> bool {
        let text = self.text.as_str();
        let has = |name: &str| {
            if self.whole {
                name.eq_ignore_ascii_case(text)
            } else {
                contains(name, text)
            }
        };
        match self.field {
            Field::From => has(one.source()),
            Field::To => has(one.destination()),
            Field::Port => is_port(one, text),
            Field::Rule => one.rule().is_some_and(has),
            Field::Reason => has(one.reason()),
            Field::Node => one.is_at(text),
            Field::Any => {
                has(one.source())
                    || has(one.destination())
                    || is_port(one, text)
                    || one.rule().is_some_and(has)
                    || has(one.reason())
                    || one.verdict_name() == text
                    || one.is_at(text)
            }
        }
    }
}

/// `5432`, `tcp`, `5432/tcp`: all of it, for `80` is not `8080`.
fn is_port(one: &impl Filtered, text: &str) -> bool {
    let (port, protocol) = text.split_once('/').unwrap_or((text, ""));
    if protocol.is_empty() && one.protocol().eq_ignore_ascii_case(port) {
        return true;
    }
    port.parse() == Ok(one.port()) && (protocol.is_empty() || one.protocol().eq_ignore_ascii_case(protocol))
}

/// Whether `text` has `part`, which is in lower case, in any case of ASCII letters.
pub(super) fn contains(text: &str, part: &str) -> bool {
    let (text, part) = (text.as_bytes(), part.as_bytes());
    part.is_empty()
        || text
            .windows(part.len())
            .any(|window| window.eq_ignore_ascii_case(part))
}

impl Verdict {
    /// As one may type it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allow",
            Self::Denied => "deny",
            Self::Observed => "observed",
            Self::Change => "change",
        }
    }
}

impl Filtered for Parsed<'_> {
    fn source(&self) -> &str {
        Parsed::source(self)
    }

    fn destination(&self) -> &str {
        Parsed::destination(self)
    }

    fn port(&self) -> u16 {
        Parsed::port(self)
    }

    fn protocol(&self) -> &str {
        Parsed::protocol(self)
    }

    fn rule(&self) -> Option<&str> {
        Parsed::rule(self)
    }

    fn reason(&self) -> &str {
        Parsed::reason(self)
    }

    fn verdict_name(&self) -> &str {
        self.verdict().name()
    }

    fn is_at(&self, text: &str) -> bool {
        self.places().any(|place| contains(place, text))
    }
}
