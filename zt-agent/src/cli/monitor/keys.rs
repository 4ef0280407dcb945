// SPDX-License-Identifier: Apache-2.0
//! What the keys do.

/// A key, whatever terminal it was pressed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    /// Ctrl-U: what was typed goes.
    Clear,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Tab,
    /// Ctrl-C.
    Interrupt,
}

/// What the view cannot do itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    Quit,
    /// A rule is to be shown: `<policy>/rule-<n>`.
    Rule(String),
}

/// Keys, and what they do, for the help.
pub(super) const HELP: [(&str, &str); 13] = [
    ("/", "filter as you type; Enter keeps it, Esc ends it"),
    (
        "",
        "words that all must fit: part of a name, a port, a rule, deny, observed",
    ),
    (
        "",
        "from:chat to:postgres port:5432 rule:core reason:no_rule node:n1",
    ),
    (
        "",
        "-word keeps away what fits it; from:=NAME is that name and no longer one",
    ),
    ("d", "denials only, and back"),
    ("space", "hold the list, and go on"),
    ("↑ ↓ PgUp PgDn", "select; also j and k"),
    ("g G", "the oldest; the newest, and follow"),
    ("Tab", "between decisions and denied edges"),
    ("Enter", "a decision with its rule; the decisions of an edge"),
    ("Esc", "back: details, selection, filter"),
    ("c", "count anew and clear the list"),
    ("q", "leave; also Ctrl-C"),
];

/// The line below the list.
pub(super) const LINE: &str =
    "/ filter  d denials  space hold  ↑↓ select  ⏎ details  Tab edges  c clear  ? help  q leave";
