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
pub(super) const PATIENCE: u64 = 15_000;
/// What comes of an attempt that the sending end enforces upon.
const REFUSED: &str = "refused with EPERM, recorded";

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
    /// Whether something cannot be tried that way, as there is no IPv6 here. The table says so then.
    pub(super) fn skips(
        &mut self,
        check: &'static str,
        expected: &'static str,
        (protocol, ipv6): Way,
    ) -> bool {
        let Some(why) = self.no_ipv6.filter(|_| ipv6) else {
            return false;
        };
        let row = Row::not_applicable(check, expected, why);
        self.note(row.over(ipv6, protocol.name()));
        true
    }

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
        const CHECK: &str = "observe";
        const EXPECTED: &str = "let through, recorded as DENY";
        for way in ways() {
            if self.skips(CHECK, EXPECTED, way) {
                continue;
            }
            let report = self.reach((Who::Chat, Who::Postgres), way, PATIENCE)?;
            let record = self.record(Some(Who::Chat), Who::Postgres, |record| {
                is_of(record, Who::Postgres, way)
                    && record["decision"] == "DENY"
                    && record["enforced"] == false
            })?;
            let found = format!("{}{}", words(&report.outcome), on_record(record.is_some()));
            let row = Row::new(CHECK, EXPECTED, reached(&report) && record.is_some(), found);
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
        const ALLOW: (&str, &str) = ("allow", "let through");
        const PROOF: (&str, &str) = ("handshake", "both ends prove who they are");
        for way in ways() {
            if self.skips(ALLOW.0, ALLOW.1, way) {
                continue;
            }
            let report = self.reach((Who::Iam, Who::Postgres), way, PATIENCE)?;
            let row = Row::new(ALLOW.0, ALLOW.1, reached(&report), words(&report.outcome));
            self.note(row.over(way.1, way.0.name()));
        }
        for ipv6 in [false, true] {
            if self.skips(PROOF.0, PROOF.1, (Protocol::Tcp, ipv6)) {
                continue;
            }
            if !self.proves() {
                let row = Row::not_applicable(PROOF.0, PROOF.1, "`handshake` is off in the configuration");
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
            let row = Row::new(PROOF.0, PROOF.1, proof == "mutual", found);
            self.note(row.over(ipv6, "TCP"));
        }
        Ok(())
    }

    pub(super) fn deny(&mut self) -> Result<(), DemoError> {
        const CHECK: &str = "deny";
        for way in ways() {
            if self.skips(CHECK, REFUSED, way) {
                continue;
            }
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
            let row = Row::new(CHECK, REFUSED, holds, found);
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
        const CHECK: &str = "without the agent";
        const EXPECTED: &str = "as before";
        let kept = self.keep_connections()?;
        self.agent.kill()?;
        for way in ways() {
            if self.skips(CHECK, EXPECTED, way) {
                continue;
            }
            let good = self.reach((Who::Iam, Who::Postgres), way, PATIENCE)?;
            let bad = self.reach((Who::Chat, Who::Postgres), way, PATIENCE)?;
            let found = format!(
                "allowed: {}; denied: {}",
                words(&good.outcome),
                words(&bad.outcome)
            );
            let row = Row::new(CHECK, EXPECTED, reached(&good) && refused(&bad), found);
            self.note(row.over(way.1, way.0.name()));
        }
        self.talk_on(kept)
    }

    /// Connections that policy allows, as they came about, each of somebody else: who keeps one keeps no other.
    fn keep_connections(&mut self) -> Result<Vec<(Who, bool, Report)>, DemoError> {
        let mut kept = Vec::new();
        for (who, ipv6) in [(Who::Iam, false), (Who::Gateway, true)] {
            if ipv6 && self.no_ipv6.is_some() {
                continue;
            }
            let (to, speak) = Self::place(Who::Postgres, ipv6)?;
            let report = self.world.actor(who)?.call(Order::Keep { to, speak })?;
            kept.push((who, ipv6, report));
        }
        Ok(kept)
    }

    /// They are talked on, though nobody is there to ask. With the packet guard, each of their segments has to get past it.
    fn talk_on(&mut self, kept: Vec<(Who, bool, Report)>) -> Result<(), DemoError> {
        const CHECK: &str = "live connection";
        let expected = if self.config.packet_guard {
            "carries on without the agent (packetGuard: true)"
        } else {
            "carries on without the agent"
        };
        for (who, ipv6, before) in kept {
            let after = if reached(&before) {
                self.world.actor(who)?.call(Order::Ask)?
            } else {
                before
            };
            let row = Row::new(CHECK, expected, reached(&after), words(&after.outcome));
            self.note(row.over(ipv6, "TCP"));
        }
        self.skips(CHECK, expected, (Protocol::Tcp, true));
        Ok(())
    }
}

/// Whether a record is about a way to `to`.
pub(super) fn is_of(record: &Value, to: Who, (protocol, ipv6): Way) -> bool {
    record["protocol"] == protocol.name() && record["destination"]["address"] == json!(to.address(ipv6))
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
