// SPDX-License-Identifier: Apache-2.0
//! Everyone tries everyone.

use serde_json::json;

use super::super::cast::{Who, allowed};
use super::super::error::DemoError;
use super::super::screen::{Cell, Look, duration};
use super::{Story, reached, refused};

impl Story {
    /// Every workload connects to every server, over both families. `when` says when, for the line below the table.
    pub(super) fn matrix(&mut self, when: &str) -> Result<(), DemoError> {
        let mut rows = Vec::new();
        let mut wrong = Vec::new();
        for source in Who::ALL {
            let mut row: Vec<Cell> = vec![(source.name().to_owned(), Look::Plain)];
            for destination in Who::SERVERS {
                let ipv4 = self.reach(source, destination, false, 1)?;
                let ipv6 = self.reach(source, destination, true, 1)?;
                let both = [&ipv4, &ipv6];
                let expected = allowed((source, destination));
                let holds = both.iter().all(|report| {
                    if expected {
                        reached(report)
                    } else {
                        refused(report)
                    }
                });
                if !holds {
                    wrong.push(format!("{} → {}", source.name(), destination.place_name()));
                }
                let took = duration(both.iter().map(|report| report.connect_ns).min().unwrap_or(0));
                row.push(match (holds, expected) {
                    (false, _) => ("WRONG".to_owned(), Look::Bad),
                    (true, true) => (format!("✓ {took}"), Look::Good),
                    (true, false) => (format!("✗ {took}"), Look::Bad),
                });
            }
            rows.push(row);
        }
        let places = Who::SERVERS.map(Who::place_name);
        let header: Vec<&str> = std::iter::once("FROM / TO")
            .chain(places.iter().map(String::as_str))
            .collect();
        self.screen.table(&header, &rows)?;
        let text = if wrong.is_empty() {
            format!(
                "{when}, 20 of 20 pairs are as policy says, over IPv4 and IPv6 (times are those of connect())"
            )
        } else {
            format!("{when}, these pairs are not as policy says: {}", wrong.join(", "))
        };
        self.screen.expect(wrong.is_empty(), &text)
    }

    /// For how many pairs the API says what the policy says, and so what the kernel did.
    pub(super) fn same_answers(&self) -> Result<usize, DemoError> {
        let pairs: Vec<_> = Who::ALL
            .into_iter()
            .flat_map(|from| Who::SERVERS.map(|to| (from, to)))
            .collect();
        let requests: Vec<_> = pairs
            .iter()
            .map(|(from, to)| {
                let port = to.service().map(|(port, _)| port);
                json!({
                    "source": {"spiffe_id": from.spiffe()},
                    "destination": {"spiffe_id": to.spiffe(), "port": port, "protocol": "TCP"},
                })
            })
            .collect();
        let answer = self
            .agent
            .post("/v1/evaluate", &json!({ "requests": requests }))?;
        let answers = answer["responses"].as_array().cloned().unwrap_or_default();
        let same = pairs.iter().zip(&answers).filter(|(way, answer)| {
            let decision = if allowed(**way) { "ALLOW" } else { "DENY" };
            answer["decision"] == decision && answer["enforced"] == true
        });
        Ok(same.count())
    }
}
