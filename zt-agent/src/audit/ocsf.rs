// SPDX-License-Identifier: Apache-2.0
//! Decisions as events of the Open Cybersecurity Schema Framework: class 4001, Network Activity, with the profiles
//! `security_control` (what was done about it) and `host` (where). One JSON object a line.

use std::io::Write;
use std::net::IpAddr;

use serde_json::{Map, Value, json};
use zt_common::verdict;

use super::export::{ExportError, readable};
use super::query::Filter;
use super::record::{AuditRecord, Hook, Observer, Outcome, Reason};
use super::store::Trail;

/// The version of the schema that the events are of.
pub const VERSION: &str = "1.6.0";

const CATEGORY: u32 = 4;
const CLASS: u32 = 4001;
const TCP: u8 = 6;

/// Writes the decisions, oldest first; what changed (policies, modes, identities) and what was asked over the API is no
/// network activity, and left out. Returns how many were written.
pub async fn lines<T: Trail>(
    trail: &mut T,
    filter: &Filter,
    to: &mut impl Write,
) -> Result<u64, ExportError<T::Error>> {
    let mut events = 0;
    loop {
        let found = trail.more().await.map_err(ExportError::Trail)?;
        if found.is_empty() {
            return Ok(events);
        }
        for found in found {
            let kept = readable(&found)?;
            let wanted = filter.takes(&kept.entry);
            if let Some(event) = kept.entry.decision().filter(|_| wanted).and_then(of) {
                serde_json::to_writer(&mut *to, &event).map_err(std::io::Error::from)?;
                to.write_all(b"\n")?;
                events += 1;
            }
        }
    }
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Activity {
    Open = 1,
    Reset = 3,
    Refuse = 5,
    Traffic = 6,
}

impl Activity {
    const fn name(self) -> &'static str {
        match self {
            Self::Open => "Open",
            Self::Reset => "Reset",
            Self::Refuse => "Refuse",
            Self::Traffic => "Traffic",
        }
    }
}

/// The event of a decision; `None` for one that was asked for over the API.
pub fn of(record: &AuditRecord) -> Option<Value> {
    if record.hook == Hook::Api {
        return None;
    }
    let refused = record.is_enforced_denial();
    let activity = match record.reason {
        Reason::Verdict(verdict::Reason::Revoked) if refused => Activity::Reset,
        _ if refused => Activity::Refuse,
        _ if record.protocol.0 == TCP => Activity::Open,
        _ => Activity::Traffic,
    };
    // Blocked, logged, allowed.
    let (disposition, disposition_name) = match (record.decision, refused) {
        (_, true) => (2, "Blocked"),
        (Outcome::Deny, false) => (17, "Logged"),
        (Outcome::Allow, false) => (1, "Allowed"),
    };
    let (severity, severity_name) = severity(record, refused);
    let mut event = json!({
        "category_uid": CATEGORY,
        "category_name": "Network Activity",
        "class_uid": CLASS,
        "class_name": "Network Activity",
        "activity_id": activity as u32,
        "activity_name": activity.name(),
        "type_uid": CLASS * 100 + activity as u32,
        "type_name": format!("Network Activity: {}", activity.name()),
        "time": record.timestamp.0.div_euclid(1_000_000),
        "severity_id": severity,
        "severity": severity_name,
        "status_id": if refused { 2 } else { 1 },
        "status": if refused { "Failure" } else { "Success" },
        "status_detail": record.reason.name(),
        "count": record.count,
        "metadata": {
            "version": VERSION,
            "profiles": ["host", "security_control"],
            "product": { "name": "zt", "vendor_name": "zt", "version": env!("CARGO_PKG_VERSION") },
            "uid": record.id.to_string(),
            "log_name": "audit",
            "original_time": record.timestamp.to_string(),
        },
        "action_id": if refused { 2 } else { 1 },
        "action": if refused { "Denied" } else { "Allowed" },
        "disposition_id": disposition,
        "disposition": disposition_name,
        "is_alert": record.decision == Outcome::Deny,
        "observation_point_id": match record.observer { Observer::Source => 1, Observer::Destination => 2 },
        "src_endpoint": endpoint(
            record.source.name(),
            record.source.pod.as_deref(),
            record.source.address,
            record.source.port,
        ),
        "dst_endpoint": endpoint(
            record.destination.name(),
            record.destination.pod.as_deref(),
            record.destination.address,
            Some(record.destination.port).filter(|port| *port != 0),
        ),
        "connection_info": connection(record),
        "unmapped": unmapped(record),
    });
    if let Some(rule) = record.policy_matched.as_deref() {
        let policy = rule.split_once('/').map_or(rule, |(policy, _)| policy);
        event["policy"] = json!({ "name": policy });
        event["firewall_rule"] = json!({ "uid": rule, "name": rule });
    }
    if let Some(node) = node(record) {
        event["device"] = json!({ "hostname": node, "type_id": 1, "type": "Server" });
    }
    // The schema wants a process to have a number.
    if let Some(pid) = record.source.pid {
        let mut process = Map::from_iter([("pid".to_owned(), json!(pid))]);
        process.extend(
            record
                .source
                .comm
                .as_ref()
                .map(|name| ("name".to_owned(), json!(name))),
        );
        event["actor"] = json!({ "process": process });
    }
    Some(event)
}

/// Who is not who they say is worse than who is not allowed.
const fn severity(record: &AuditRecord, refused: bool) -> (u32, &'static str) {
    let forged = matches!(
        record.reason,
        Reason::Verdict(
            verdict::Reason::TagInvalid | verdict::Reason::IdentityMismatch | verdict::Reason::Unfenced
        )
    );
    match (forged, refused, record.decision) {
        (true, _, _) => (4, "High"),
        (false, true, _) => (3, "Medium"),
        (false, false, Outcome::Deny) => (2, "Low"),
        (false, false, Outcome::Allow) => (1, "Informational"),
    }
}

fn endpoint(name: &str, pod: Option<&str>, address: Option<IpAddr>, port: Option<u16>) -> Value {
    let mut endpoint = Map::new();
    endpoint.insert("uid".to_owned(), json!(name));
    endpoint.insert("name".to_owned(), json!(pod.unwrap_or(name)));
    endpoint.extend(address.map(|address| ("ip".to_owned(), json!(address))));
    endpoint.extend(port.map(|port| ("port".to_owned(), json!(port))));
    endpoint.into()
}

fn connection(record: &AuditRecord) -> Value {
    let address = record.destination.address.or(record.source.address);
    let version = address.map_or(0, |address| if address.is_ipv4() { 4 } else { 6 });
    // As the end that decided saw it.
    let (direction, name) = match record.observer {
        Observer::Source => (2, "Outbound"),
        Observer::Destination => (1, "Inbound"),
    };
    let mut connection = json!({
        "direction_id": direction,
        "direction": name,
        "protocol_num": record.protocol.0,
        "protocol_ver_id": version,
    });
    if let Some(name) = protocol_name(record.protocol.0) {
        connection["protocol_name"] = name.into();
    }
    connection
}

/// The name that IANA has for a protocol, in small letters, of those that records have names for.
const fn protocol_name(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "icmp",
        TCP => "tcp",
        17 => "udp",
        58 => "ipv6-icmp",
        132 => "sctp",
        136 => "udplite",
        _ => return None,
    })
}

/// The node of the end that decided.
fn node(record: &AuditRecord) -> Option<&str> {
    match record.observer {
        Observer::Source => record.source.node.as_deref(),
        Observer::Destination => record.destination.node.as_deref(),
    }
}

fn unmapped(record: &AuditRecord) -> Value {
    json!({
        "decision": record.decision,
        "enforced": record.enforced,
        "mode": record.mode,
        "revision": record.revision,
        "proof": record.proof,
        "hook": record.hook,
        "cluster": record.cluster,
        "latency_us": record.latency,
        "source_node": record.source.node,
        "destination_node": record.destination.node,
    })
}

#[cfg(test)]
mod tests;
