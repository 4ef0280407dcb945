// SPDX-License-Identifier: Apache-2.0
//! What was tried, what had to come out, and what did.

use serde::Serialize;

use super::super::error::DemoError;
use super::super::screen::{Cell, Look, Screen, plain};

/// How one thing came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// As it must.
    Passed,
    /// Not as it must.
    Failed,
    /// It is not used with this configuration.
    NotApplicable,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    /// What, such as `deny`.
    pub(super) check: &'static str,
    /// `IPv4` or `IPv6`; `None` where it is neither.
    pub(super) ip: Option<&'static str>,
    /// `TCP` or `UDP`; `None` where it is neither.
    pub(super) protocol: Option<&'static str>,
    /// How it came out.
    pub(super) result: Verdict,
    /// What had to come out.
    pub(super) expected: &'static str,
    /// What came out.
    pub(super) found: String,
}

impl Row {
    pub(super) fn new(check: &'static str, expected: &'static str, holds: bool, found: String) -> Self {
        Self {
            check,
            ip: None,
            protocol: None,
            result: if holds { Verdict::Passed } else { Verdict::Failed },
            expected,
            found,
        }
    }

    pub(super) fn over(self, ipv6: bool, protocol: &'static str) -> Self {
        Self {
            ip: Some(if ipv6 { "IPv6" } else { "IPv4" }),
            protocol: Some(protocol),
            ..self
        }
    }

    pub(super) fn not_applicable(check: &'static str, expected: &'static str, why: &str) -> Self {
        Self {
            result: Verdict::NotApplicable,
            ..Self::new(check, expected, true, why.to_owned())
        }
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    pub(super) passed: bool,
    pub(super) version: &'static str,
    pub(super) kernel: String,
    pub(super) handshake: &'static str,
    pub(super) seconds: f64,
    pub(super) checks: &'a [Row],
}

impl Report<'_> {
    /// Aligned columns and a sum.
    pub(super) fn print(&self, screen: &Screen) -> Result<(), DemoError> {
        let rows: Vec<Vec<Cell>> = self.checks.iter().map(cells).collect();
        screen.table(&["RESULT", "CHECK", "IP", "PROTOCOL", "EXPECTED", "FOUND"], &rows)?;
        let count = |result| self.checks.iter().filter(|row| row.result == result).count();
        screen.gap()?;
        let text = format!(
            "{} passed, {} failed, {} not applicable, in {:.1} s, on Linux {} with handshake {}",
            count(Verdict::Passed),
            count(Verdict::Failed),
            count(Verdict::NotApplicable),
            self.seconds,
            self.kernel,
            self.handshake
        );
        screen.look(&text, if self.passed { Look::Good } else { Look::Bad })
    }
}

fn cells(row: &Row) -> Vec<Cell> {
    let (words, look) = match row.result {
        Verdict::Passed => ("passed", Look::Good),
        Verdict::Failed => ("FAILED", Look::Bad),
        Verdict::NotApplicable => ("not applicable", Look::Faint),
    };
    vec![
        (words.to_owned(), look),
        plain(row.check),
        plain(row.ip.unwrap_or("-")),
        plain(row.protocol.unwrap_or("-")),
        plain(row.expected),
        plain(row.found.replace('\n', "; ")),
    ]
}
