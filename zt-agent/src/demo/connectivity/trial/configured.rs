// SPDX-License-Identifier: Apache-2.0
//! What no policy says but the configuration: what somebody without a name may do, and whether a workload reaches itself, and the node
//! its workloads. The policies here have no rule for any of it.

use serde_json::{Value, json};

use super::super::super::cast::Who;
use super::super::super::error::DemoError;
use super::super::super::order::Report;
use super::super::super::story::{reached, refused, words};
use super::super::report::Row;
use super::Trial;
use super::flows::{PATIENCE, Protocol, Way, is_of, on_record, was_stopped, ways};
use crate::config::UnknownWorkload;

impl Trial {
    /// A managed process that never had an identity, while everybody else observes.
    pub(super) fn unnamed(&mut self) -> Result<(), DemoError> {
        const CHECK: &str = "unknown workload";
        let denies = self.config.unknown_workload == UnknownWorkload::Deny;
        let expected = if denies {
            "refused with EPERM, recorded (unknownWorkload: deny)"
        } else {
            "let through, recorded as DENY (unknownWorkload: observe)"
        };
        for way in ways() {
            if self.skips(CHECK, expected, way) {
                continue;
            }
            let report = self.reach((Who::Nobody, Who::Postgres), way, PATIENCE)?;
            let happened = if denies {
                refused(&report)
            } else {
                reached(&report)
            };
            self.held_against_record(CHECK, expected, way, &report, happened, |record| {
                record["observer"] == "source"
                    && record["source"]["entity"] == "unknown"
                    && record["decision"] == "DENY"
                    && record["enforced"] == denies
            })?;
        }
        Ok(())
    }

    /// A workload and its own port.
    pub(super) fn itself(&mut self) -> Result<(), DemoError> {
        const CHECK: &str = "to itself";
        let allows = self.config.allow_self;
        let expected = if allows {
            "let through, recorded (allowSelf: true)"
        } else {
            "refused with EPERM, recorded (allowSelf: false)"
        };
        let decision = decision(allows);
        for way in ways() {
            if self.skips(CHECK, expected, way) {
                continue;
            }
            let report = self.reach((Who::Postgres, Who::Postgres), way, PATIENCE)?;
            let happened = if allows {
                reached(&report)
            } else {
                refused(&report)
            };
            self.held_against_record(CHECK, expected, way, &report, happened, |record| {
                record["source"]["spiffe_id"] == Who::Postgres.spiffe()
                    && record["decision"] == decision
                    && record["enforced"] == true
            })?;
        }
        Ok(())
    }

    /// A process of the node, as the kubelet's probes are: from the node's network namespace, through a pair of interfaces, and known
    /// by an address of the node. Nobody decides at its own end, so that the other one does.
    pub(super) fn the_host(&mut self) -> Result<(), DemoError> {
        const CHECK: &str = "from the host";
        let allows = self.config.allow_host;
        let expected = if allows {
            "let through, recorded (allowHost: true)"
        } else {
            "stopped at the destination, recorded (allowHost: false)"
        };
        let decision = decision(allows);
        for way in ways().filter(|(protocol, _)| *protocol == Protocol::Tcp) {
            if self.skips(CHECK, expected, way) {
                continue;
            }
            let report = self.reach((Who::Host, Who::Postgres), way, PATIENCE)?;
            let address = Who::Host.address(way.1);
            let happened = if allows {
                reached(&report)
            } else {
                was_stopped(&report.outcome)
            };
            self.held_against_record(CHECK, expected, way, &report, happened, |record| {
                record["observer"] == "destination"
                    && record["source"]["entity"] == "host"
                    && record["source"]["address"] == json!(address)
                    && record["decision"] == decision
                    && record["enforced"] == true
            })?;
        }
        Ok(())
    }

    /// Notes what came of an attempt to reach postgres: whether it is what had to happen, and whether there is such a record of it.
    fn held_against_record(
        &mut self,
        check: &'static str,
        expected: &'static str,
        way: Way,
        report: &Report,
        happened: bool,
        is_it: impl Fn(&Value) -> bool,
    ) -> Result<(), DemoError> {
        let record = self.record(None, Who::Postgres, |record| {
            is_of(record, Who::Postgres, way) && is_it(record)
        })?;
        let found = format!("{}{}", words(&report.outcome), on_record(record.is_some()));
        let row = Row::new(check, expected, happened && record.is_some(), found);
        self.note(row.over(way.1, way.0.name()));
        Ok(())
    }
}

/// What a record says of it.
const fn decision(allows: bool) -> &'static str {
    if allows { "ALLOW" } else { "DENY" }
}
