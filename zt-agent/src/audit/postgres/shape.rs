// SPDX-License-Identifier: Apache-2.0
//! Shapes: what repeats from record to record, named by a hash of what it says.

use sha2::{Digest as _, Sha256};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::{Builder, Uuid};

use crate::audit::record::{Entry, Part};

/// What a shape says. Where an entry has no such thing, `None`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Shape<'a> {
    pub(super) kind: &'a str,
    pub(super) source: Option<&'a str>,
    pub(super) destination: Option<&'a str>,
    pub(super) protocol: Option<u8>,
    pub(super) port: Option<u16>,
    pub(super) rule: Option<&'a str>,
    pub(super) source_node: Option<&'a str>,
    pub(super) destination_node: Option<&'a str>,
    pub(super) cluster: &'a str,
    pub(super) decision: Option<&'a str>,
    pub(super) enforced: Option<bool>,
    pub(super) mode: Option<&'a str>,
    pub(super) observer: Option<&'a str>,
    pub(super) hook: Option<&'a str>,
    pub(super) reason: Option<&'a str>,
    pub(super) proof: Option<&'a str>,
    pub(super) part: i16,
}

impl<'a> Shape<'a> {
    /// The shape of an entry.
    pub(super) fn of(entry: &'a Entry) -> Self {
        let kind = entry.kind().name();
        match entry {
            Entry::Decision(record) => Self {
                kind,
                source: Some(record.source.name()),
                destination: Some(record.destination.name()),
                protocol: Some(record.protocol.0),
                port: Some(record.destination.port),
                rule: record.policy_matched.as_deref(),
                source_node: record.source.node.as_deref(),
                destination_node: record.destination.node.as_deref(),
                cluster: &record.cluster,
                decision: Some(record.decision.name()),
                enforced: Some(record.enforced),
                mode: Some(record.mode.name()),
                observer: Some(record.observer.name()),
                hook: Some(record.hook.name()),
                reason: Some(record.reason.name()),
                proof: Some(record.proof.name()),
                part: part_number(record.part()),
            },
            Entry::PolicyChange(change) | Entry::ModeChange(change) | Entry::IdentityChange(change) => Self {
                kind,
                source: None,
                destination: None,
                protocol: None,
                port: None,
                rule: None,
                source_node: Some(&change.node),
                destination_node: None,
                cluster: &change.cluster,
                decision: None,
                enforced: None,
                mode: None,
                observer: None,
                hook: None,
                reason: None,
                proof: None,
                part: part_number(Part::Aside),
            },
        }
    }

    /// What a row of `zt_audit.shape` says; `None` where it says something that no shape can say.
    pub(super) fn of_row(row: &'a PgRow) -> Result<Option<Self>, sqlx::Error> {
        let text = |column| row.try_get::<Option<&'a str>, _>(column);
        let (protocol, port): (Option<i16>, Option<i32>) = (row.try_get("protocol")?, row.try_get("port")?);
        let (Ok(protocol), Ok(port)) = (
            protocol.map(u8::try_from).transpose(),
            port.map(u16::try_from).transpose(),
        ) else {
            return Ok(None);
        };
        Ok(Some(Self {
            kind: row.try_get("type")?,
            source: text("source")?,
            destination: text("destination")?,
            protocol,
            port,
            rule: text("rule")?,
            source_node: text("source_node")?,
            destination_node: text("destination_node")?,
            cluster: row.try_get("cluster")?,
            decision: text("decision")?,
            enforced: row.try_get("enforced")?,
            mode: text("mode")?,
            observer: text("observer")?,
            hook: text("hook")?,
            reason: text("reason")?,
            proof: text("proof")?,
            part: row.try_get("part")?,
        }))
    }

    /// Its id: `UUIDv8` (RFC 9562) of a SHA-256 of everything that it says.
    pub(super) fn id(&self) -> Uuid {
        let mut hasher = Sha256::new();
        // A length before each text keeps `a`, `bc` and `ab`, `c` apart; that of none is no length of a text.
        let mut text = |value: Option<&str>| match value {
            Some(value) => {
                hasher.update((value.len() as u64).to_be_bytes());
                hasher.update(value);
            }
            None => hasher.update(u64::MAX.to_be_bytes()),
        };
        for value in [
            Some(self.kind),
            self.source,
            self.destination,
            self.rule,
            self.source_node,
        ] {
            text(value);
        }
        for value in [
            self.destination_node,
            Some(self.cluster),
            self.decision,
            self.mode,
            self.observer,
        ] {
            text(value);
        }
        for value in [self.hook, self.reason, self.proof] {
            text(value);
        }
        let protocol = self.protocol.map_or(-1, i32::from);
        let port = self.port.map_or(-1, i32::from);
        let enforced = self.enforced.map_or(-1, i32::from);
        for number in [protocol, port, enforced, i32::from(self.part)] {
            hasher.update(number.to_be_bytes());
        }
        let hash: [u8; 32] = hasher.finalize().into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        Builder::from_custom_bytes(bytes).into_uuid()
    }
}

/// How [`Part`] is kept.
pub(super) const fn part_number(part: Part) -> i16 {
    match part {
        Part::Counts => 0,
        Part::Corrects => 1,
        Part::Aside => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::audit::sample;

    #[test]
    fn shapes_that_differ_in_anything_have_different_ids() {
        let entry = Entry::Decision(sample::record());
        let shape = Shape::of(&entry);
        let shapes = [
            shape,
            Shape { kind: "x", ..shape },
            Shape {
                source: None,
                ..shape
            },
            Shape {
                source: Some(""),
                ..shape
            },
            Shape {
                source: shape.destination,
                destination: shape.source,
                ..shape
            },
            Shape {
                port: Some(5433),
                ..shape
            },
            Shape { port: None, ..shape },
            Shape {
                protocol: None,
                ..shape
            },
            Shape {
                enforced: Some(false),
                ..shape
            },
            Shape {
                enforced: None,
                ..shape
            },
            Shape { rule: None, ..shape },
            Shape {
                source_node: shape.destination_node,
                destination_node: shape.source_node,
                ..shape
            },
            Shape { part: 1, ..shape },
        ];
        let ids: HashSet<Uuid> = shapes.iter().map(Shape::id).collect();
        let said: HashSet<Shape<'_>> = shapes.into_iter().collect();
        assert_eq!(ids.len(), said.len());
        assert_eq!(shape.id(), Shape::of(&entry).id());
    }
}
