// SPDX-License-Identifier: Apache-2.0
//! Single flows: what is let through, what is refused, and what is on record of it.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::super::super::actor::place_of;
use super::super::super::cast::{Speak, Who};
use super::super::super::error::DemoError;
use super::super::super::order::{Order, Outcome, Report};
use super::super::super::screen::duration;
use super::super::super::story::{reached, refused, words};
use super::super::report::Row;
use super::Trial;

/// How long an answer to a datagram may take where there has to be one, in ms.
const PATIENCE: u64 = 15_000;

/// The two protocols that are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A protocol, and whether it is over IPv6.
pub(super) type Way = (Protocol, bool);

/// Both protocols, over both families of addresses.
pub(super) fn ways() -> impl Iterator<Item = Way> {
    let families = |protocol| [(protocol, false), (protocol, true)];
    Protocol::ALL.into_iter().flat_map(families)
}

impl Trial {
    /// Where `who` serves.
    pub(super) fn place(who: Who, ipv6: bool) -> Result<(SocketAddr, Speak), DemoError> {
        let nowhere = || {
            DemoError::io(format!("find where {} serves", who.name()))(std::io::ErrorKind::NotFound.into())
        };
        place_of(who, ipv6).ok_or_else(nowhere)
    }

    /// `from` tries to reach `to`; for so many ms where it is a datagram that is not answered.
    pub(super) fn reach(
        &mut self,
        (from, to): (Who, Who),
        (protocol, ipv6): Way,
        patience: u64,
    ) -> Result<Report, DemoError> {
        let (place, _) = Self::place(to, ipv6)?;
        let actor = self.world.actor(from)?;
        match protocol {
            Protocol::Tcp => actor.reach(to, ipv6, 1),
            Protocol::Udp => actor.call(Order::Datagram {
                to: place,
                deadline: patience,
            }),
        }
    }

    pub(super) fn observe(&mut self) -> Result<(), DemoError> {
        const EXPECTED: &str = "let through, recorded as DENY";
        for way in ways() {
            let report = self.reach((Who::Chat, Who::Postgres), way, PATIENCE)?;
            let record = self.record(Some(Who::Chat), Who::Postgres, |record| {
                is_of(record, Who::Postgres, way)
                    && record["decision"] == "DENY"
                    && record["enforced"] == false
            })?;
            let found = format!("{}{}", words(&report.outcome), on_record(record.is_some()));
            let row = Row::new("observe", EXPECTED, reached(&report) && record.is_some(), found);
            self.note(row.over(way.1, way.0.name()));
        }
        Ok(())
    }

    pub(super) fn enforce(&mut self) -> Result<(), DemoError> {
        self.agent.files.write_workloads(&self.world.names, "enforce")?;
        let enforced = self.wait_observing(0)?;
        let found = if enforced {
            "all five enforce"
        } else {
            "some still observe"
        };
        self.note(Row::new(
            "enforce",
            "the mode changes",
            enforced,
            found.to_owned(),
        ));
        Ok(())
    }

    pub(super) fn allow(&mut self) -> Result<(), DemoError> {
        const PROOF: &str = "both ends prove who they are";
        for way in ways() {
            let report = self.reach((Who::Iam, Who::Postgres), way, PATIENCE)?;
            let row = Row::new("allow", "let through", reached(&report), words(&report.outcome));
            self.note(row.over(way.1, way.0.name()));
        }
        for ipv6 in [false, true] {
            if !self.proves {
                let row = Row::not_applicable("handshake", PROOF, "`handshake` is off in the configuration");
                self.note(row.over(ipv6, "TCP"));
                continue;
            }
            let record = self.record(Some(Who::Iam), Who::Postgres, |record| {
                is_of(record, Who::Postgres, (Protocol::Tcp, ipv6)) && record["decision"] == "ALLOW"
            })?;
            let proof = record.map_or(Value::Null, |record| record["proof"].clone());
            let found = match &proof {
                Value::String(proof) => format!("proof: {proof}"),
                _ => "no record of the connection".to_owned(),
            };
            let row = Row::new("handshake", PROOF, proof == "mutual", found);
            self.note(row.over(ipv6, "TCP"));
        }
        Ok(())
    }

    pub(super) fn deny(&mut self) -> Result<(), DemoError> {
        for way in ways() {
            let report = self.reach((Who::Chat, Who::Postgres), way, PATIENCE)?;
            let record = self.record(Some(Who::Chat), Who::Postgres, |record| {
                is_of(record, Who::Postgres, way)
                    && record["decision"] == "DENY"
                    && record["enforced"] == true
            })?;
            let took = match way.0 {
                Protocol::Tcp => format!(" in {}", duration(report.connect_ns)),
                Protocol::Udp => String::new(),
            };
            let found = format!("{}{took}{}", words(&report.outcome), on_record(record.is_some()));
            let holds = refused(&report) && record.is_some();
            let row = Row::new("deny", "refused with EPERM, recorded", holds, found);
            self.note(row.over(way.1, way.0.name()));
        }
        Ok(())
    }

    /// What the API says of the same flows.
    pub(super) fn evaluate(&mut self) -> Result<(), DemoError> {
        let mut wrong = Vec::new();
        for protocol in Protocol::ALL {
            for (source, wanted) in [(Who::Iam, "ALLOW"), (Who::Chat, "DENY")] {
                let question = json!({
                    "source": { "spiffe_id": source.spiffe() },
                    "destination": {
                        "spiffe_id": Who::Postgres.spiffe(), "port": 5432, "protocol": protocol.name(),
                    },
                });
                let answer = self.agent.post("/v1/evaluate", &question)?;
                if answer["decision"] != wanted {
                    let (name, said) = (source.name(), &answer["decision"]);
                    wrong.push(format!("{name} → postgres {}: {said}", protocol.name()));
                }
            }
        }
        let found = if wrong.is_empty() {
            "the same for 4 of 4".to_owned()
        } else {
            wrong.join(", ")
        };
        let row = Row::new(
            "evaluate",
            "the API says what the kernel did",
            wrong.is_empty(),
            found,
        );
        self.note(row);
        Ok(())
    }

    pub(super) fn without_the_agent(&mut self) -> Result<(), DemoError> {
        self.agent.kill()?;
        for way in ways() {
            let good = self.reach((Who::Iam, Who::Postgres), way, PATIENCE)?;
            let bad = self.reach((Who::Chat, Who::Postgres), way, PATIENCE)?;
            let found = format!(
                "allowed: {}; denied: {}",
                words(&good.outcome),
                words(&bad.outcome)
            );
            let row = Row::new(
                "without the agent",
                "as before",
                reached(&good) && refused(&bad),
                found,
            );
            self.note(row.over(way.1, way.0.name()));
        }
        Ok(())
    }
}

/// Whether a record is about a way to `to`.
pub(super) fn is_of(record: &Value, to: Who, (protocol, ipv6): Way) -> bool {
    let address = if ipv6 { to.ipv6() } else { to.ipv4() };
    record["protocol"] == protocol.name() && record["destination"]["address"] == json!(address)
}

/// What to say beside what came out.
pub(super) const fn on_record(there: bool) -> &'static str {
    if there { "" } else { "; no such record" }
}

/// Whether an attempt that must not succeed did not.
pub(super) const fn was_stopped(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Refused { .. } | Outcome::Broken { .. } | Outcome::Late
    )
}
