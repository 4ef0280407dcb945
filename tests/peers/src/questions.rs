// SPDX-License-Identifier: Apache-2.0
//! The rules that every engine is given, and the questions that every engine is asked.

/// The port that rules are about, and one that none is about.
pub(crate) const PORT: u16 = 5432;
const OTHER_PORT: u16 = 5433;
/// Sources; each reaches ever more destinations.
const SOURCES: usize = 1000;
/// Of so many rules that follow one another the last denies what the first allows.
const GROUP: usize = 10;
/// Questions of one set; they come in an order that no cache foresees.
pub(crate) const QUESTIONS: usize = 8192;

/// One rule: one source, one destination, one port, TCP.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// What answers call it: `<policy>/rule-<n>`.
    pub(crate) name: String,
    /// Beats those that allow.
    pub(crate) denies: bool,
    pub(crate) source: String,
    pub(crate) destination: String,
}

/// May this source connect to that destination?
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) port: u16,
    /// What every engine must answer.
    pub(crate) expected: Answer,
}

/// What an engine says. An engine that does not know which rule it was says so with an empty name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A rule allows it.
    Allowed(String),
    /// A rule denies it.
    Denied(String),
    /// No rule is about it.
    NoRule,
}

impl Answer {
    /// The same verdict, by the same rule where both name one.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Allowed(one), Self::Allowed(two)) | (Self::Denied(one), Self::Denied(two)) => {
                one == two || one.is_empty() || two.is_empty()
            }
            (one, two) => one == two,
        }
    }
}

/// Rules of one policy document: as many as a file of a megabyte holds.
pub(crate) const EACH: usize = 5000;

fn id(name: &str) -> String {
    format!("spiffe://hanzo.ai/bench/{name}")
}

/// As spread as it needs to be: a step of splitmix64.
fn spread(number: u64) -> usize {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits ^ (bits >> 31)) as usize
}

/// So many rules.
pub(crate) fn rules(count: usize) -> Vec<Rule> {
    (0..count)
        .map(|number| {
            let denies = number % GROUP == GROUP - 1;
            let about = if denies { number + 1 - GROUP } else { number };
            Rule {
                name: format!("rules-{}/rule-{}", number / EACH, number % EACH + 1),
                denies,
                source: id(&format!("a/{}", about % SOURCES)),
                destination: id(&format!("b/{}", about / SOURCES)),
            }
        })
        .collect()
}

/// A third of them allowed, a third denied by a rule, a third that no rule is about.
pub(crate) fn questions(rules: &[Rule]) -> Vec<Question> {
    let groups = rules.len() / GROUP;
    (0..QUESTIONS)
        .map(|number| {
            let random = spread(number as u64);
            let first = random % groups * GROUP;
            // The last rule of a group denies, and what the first one is about is denied.
            let allowing = first + 1 + (random >> 32) % (GROUP - 2);
            let (about, port, expected) = match number % 3 {
                0 => (allowing, PORT, Answer::Allowed(rules[allowing].name.clone())),
                1 => (first, PORT, Answer::Denied(rules[first + GROUP - 1].name.clone())),
                _ => (allowing, OTHER_PORT, Answer::NoRule),
            };
            Question {
                source: rules[about].source.clone(),
                destination: rules[about].destination.clone(),
                port,
                expected,
            }
        })
        .collect()
}
