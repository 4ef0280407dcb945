// SPDX-License-Identifier: Apache-2.0
//! What a check found, and what to do about it.

use serde::Serialize;

use crate::audit::record::Timestamp;

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, and something is worse than it could be, or will be.
    Warning,
    /// Something does not work.
    Failed,
    /// It does not matter here, or cannot be looked at.
    NotApplicable,
}

impl Status {
    /// In words, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::NotApplicable => "not applicable",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, such as `kernel.programs`: the same in every release.
    pub check: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found; where nothing was looked at, why.
    pub found: String,
    /// What to do about it; `None` where there is nothing to do.
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            status: Status::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    /// Worse than it could be.
    pub fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Warning,
            remedy: Some(remedy.into()),
            ..Self::ok(check, found)
        }
    }

    /// It does not work.
    pub fn failed(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Failed,
            remedy: Some(remedy.into()),
            ..Self::ok(check, found)
        }
    }

    /// Not looked at.
    pub fn not_applicable(check: &'static str, why: impl Into<String>) -> Self {
        Self {
            status: Status::NotApplicable,
            ..Self::ok(check, why)
        }
    }
}

/// How many findings of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// As it should be.
    pub ok: usize,
    /// Warnings.
    pub warning: usize,
    /// What does not work.
    pub failed: usize,
    /// What was not looked at.
    pub not_applicable: usize,
}

/// All findings.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The node, as the configuration calls it.
    pub node: String,
    /// Of this program.
    pub version: &'static str,
    /// Release of the kernel.
    pub kernel: String,
    /// When it was looked.
    pub at: Timestamp,
    /// Nothing has failed.
    pub healthy: bool,
    /// How many findings of each kind there are.
    pub counts: Counts,
    /// In the order in which they were made.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(node: String, kernel: String, at: i64, findings: Vec<Finding>) -> Self {
        let mut counts = Counts::default();
        for finding in &findings {
            *match finding.status {
                Status::Ok => &mut counts.ok,
                Status::Warning => &mut counts.warning,
                Status::Failed => &mut counts.failed,
                Status::NotApplicable => &mut counts.not_applicable,
            } += 1;
        }
        Self {
            node,
            version: env!("CARGO_PKG_VERSION"),
            kernel,
            at: Timestamp(at),
            healthy: counts.failed == 0,
            counts,
            findings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_healthy_where_nothing_has_failed() {
        let of = |findings: Vec<Finding>| Report::new("n".into(), "6.18".into(), 0, findings);
        let (ok, warning) = (Finding::ok("a", "x"), Finding::warning("b", "x", "y"));
        let report = of(vec![
            ok.clone(),
            warning.clone(),
            Finding::not_applicable("c", "x"),
        ]);
        assert!(report.healthy);
        let counts = Counts {
            ok: 1,
            warning: 1,
            failed: 0,
            not_applicable: 1,
        };
        assert_eq!(report.counts, counts);
        let report = of(vec![ok, warning, Finding::failed("d", "x", "y")]);
        assert!(!report.healthy);
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["findings"][2]["status"], "failed");
        assert_eq!(json["findings"][0]["remedy"], serde_json::Value::Null);
        assert_eq!(json["at"], "1970-01-01T00:00:00Z");
    }
}
