// SPDX-License-Identifier: Apache-2.0
//! The canonical form of an entry: the bytes that its digest is made of.
//!
//! A list of fields, in the order of their tags; each is its tag (one byte), its length (four bytes, big endian) and
//! its value. Texts are UTF-8, numbers are eight bytes in big endian, addresses four or sixteen bytes, booleans one. A
//! field that is null is left out, so that a field which a later release adds changes nothing for the entries before.
//! Two entries that differ in anything have different forms.

use std::net::IpAddr;
use std::sync::Arc;

use crate::audit::record::{AuditRecord, Change, Entry};

/// Appends the canonical form.
pub fn write(entry: &Entry, to: &mut Vec<u8>) {
    let mut fields = Fields(to);
    fields.bytes(1, entry.kind().name().as_bytes());
    match entry {
        Entry::Decision(record) => decision(record, &mut fields),
        Entry::PolicyChange(record) | Entry::ModeChange(record) | Entry::IdentityChange(record) => {
            change(record, &mut fields);
        }
    }
}

fn decision(record: &AuditRecord, fields: &mut Fields<'_>) {
    let (source, destination) = (&record.source, &record.destination);
    fields.bytes(2, record.id.as_bytes());
    fields.number(3, record.timestamp.0.cast_unsigned());
    fields.bytes(4, record.cluster.as_bytes());
    fields.text(5, record.caller.as_ref());
    fields.number(6, record.revision);
    fields.bytes(16, record.decision.name().as_bytes());
    fields.text(17, source.spiffe_id.as_ref());
    fields.text(18, source.entity.as_ref());
    fields.text(19, source.pod.as_ref());
    fields.text(20, source.node.as_ref());
    fields.address(21, source.address);
    fields.optional(22, source.port.map(u64::from));
    fields.optional(23, source.pid.map(u64::from));
    fields.text(24, source.comm.as_ref());
    fields.text(25, destination.spiffe_id.as_ref());
    fields.text(26, destination.entity.as_ref());
    fields.number(27, u64::from(destination.port));
    fields.address(28, destination.address);
    fields.text(29, destination.pod.as_ref());
    fields.text(30, destination.node.as_ref());
    fields.text(31, record.policy_matched.as_ref());
    fields.number(32, record.latency.0.min(i64::MAX.cast_unsigned()));
    fields.number(33, u64::from(record.protocol.0));
    fields.bytes(34, record.hook.name().as_bytes());
    fields.bytes(35, record.observer.name().as_bytes());
    fields.bytes(36, record.mode.name().as_bytes());
    fields.bytes(37, &[u8::from(record.enforced)]);
    fields.bytes(38, record.reason.name().as_bytes());
    fields.bytes(39, record.proof.name().as_bytes());
    fields.number(40, record.count);
    if let Some(mfa) = record.mfa {
        fields.bytes(41, &[u8::from(mfa)]);
    }
    fields.text(42, record.incident.as_ref());
}

fn change(record: &Change, fields: &mut Fields<'_>) {
    fields.bytes(2, record.id.as_bytes());
    fields.number(3, record.timestamp.0.cast_unsigned());
    fields.bytes(4, record.cluster.as_bytes());
    fields.bytes(5, record.caller.as_bytes());
    fields.number(6, record.revision);
    fields.bytes(7, record.node.as_bytes());
    // The members of its objects are in the order of their names.
    fields.bytes(8, record.change.to_string().as_bytes());
}

struct Fields<'a>(&'a mut Vec<u8>);

impl Fields<'_> {
    fn bytes(&mut self, tag: u8, value: &[u8]) {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.0.push(tag);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, tag: u8, value: Option<&Arc<str>>) {
        if let Some(value) = value {
            self.bytes(tag, value.as_bytes());
        }
    }

    fn number(&mut self, tag: u8, value: u64) {
        self.bytes(tag, &value.to_be_bytes());
    }

    fn optional(&mut self, tag: u8, value: Option<u64>) {
        if let Some(value) = value {
            self.number(tag, value);
        }
    }

    fn address(&mut self, tag: u8, value: Option<IpAddr>) {
        match value {
            Some(IpAddr::V4(v4)) => self.bytes(tag, &v4.octets()),
            Some(IpAddr::V6(v6)) => self.bytes(tag, &v6.octets()),
            None => {}
        }
    }
}
