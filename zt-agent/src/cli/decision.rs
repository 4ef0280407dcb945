// SPDX-License-Identifier: Apache-2.0
//! Audit records, as people read them.

use serde_json::Value;

use super::output::{Tone, toned};
use super::table::{Cell, plain, printable};

/// Policy's verdict and whether it happened: an unenforced `DENY` is what enforcing would refuse.
pub(super) fn verdict(record: &Value) -> Cell {
    let enforced = record["enforced"].as_bool() == Some(true);
    match (record["decision"].as_str(), enforced) {
        (Some("ALLOW"), _) => Cell::toned("ALLOW", Tone::Good),
        (Some("DENY"), true) => Cell::toned("DENY", Tone::Bad),
        (Some("DENY"), false) => Cell::toned("DENY (observed)", Tone::Caution),
        _ => plain(&record["decision"]).into(),
    }
}

/// The SPIFFE ID of a party, or its entity with the address that tells which.
pub(super) fn party(party: &Value) -> String {
    if let Some(id) = party["spiffe_id"].as_str() {
        return printable(id);
    }
    let entity = party["entity"].as_str().unwrap_or("unknown");
    match party["address"].as_str() {
        Some(address) => format!("{} ({})", printable(entity), printable(address)),
        None => printable(entity),
    }
}

/// `5432/TCP`.
pub(super) fn port(record: &Value) -> String {
    format!(
        "{}/{}",
        plain(&record["destination"]["port"]),
        plain(&record["protocol"])
    )
}

/// The rule that decided, or why there was none.
pub(super) fn because(record: &Value) -> String {
    match record["policy_matched"].as_str() {
        Some(rule) => printable(rule),
        None => format!("({})", plain(&record["reason"])),
    }
}

/// One line of `monitor`.
pub(super) fn line(record: &Value, colour: bool) -> String {
    if let Some(kind) = record["type"].as_str().filter(|kind| *kind != "decision") {
        return changed(record, kind, colour);
    }
    // The time of day is enough for what happens now.
    let time = record["timestamp"]
        .as_str()
        .and_then(|time| time.get(11..23))
        .unwrap_or("-");
    let Cell { text, tone } = verdict(record);
    let padding = " ".repeat("DENY (observed)".len().saturating_sub(text.len()));
    let count = record["count"]
        .as_u64()
        .filter(|count| *count > 1)
        .map(|count| format!("  ×{count}"))
        .unwrap_or_default();
    format!(
        "{}  {}{padding}  {} → {} {}  {}{count}",
        toned(&printable(time), Tone::Faint, colour),
        toned(&text, tone, colour),
        party(&record["source"]),
        party(&record["destination"]),
        port(record),
        toned(&because(record), Tone::Faint, colour),
    )
}

/// A change of policy or mode, in one line.
fn changed(record: &Value, kind: &str, colour: bool) -> String {
    let time = record["timestamp"]
        .as_str()
        .and_then(|time| time.get(11..23))
        .unwrap_or("-");
    format!(
        "{}  {}  {} on {}: {}",
        toned(&printable(time), Tone::Faint, colour),
        toned(&printable(kind), Tone::Caution, colour),
        plain(&record["caller"]),
        plain(&record["node"]),
        printable(&what_changed(record)),
    )
}

/// What a change made of what: the mode, who a cgroup is, or the revision.
pub(super) fn what_changed(record: &Value) -> String {
    let change = &record["change"];
    if let Some(mode) = change["mode"].as_str() {
        let mode = printable(mode);
        return match (change["to_enforce"].as_u64(), change["to_observe"].as_u64()) {
            (Some(enforce), Some(observe)) => format!("{mode}: {enforce} to enforce, {observe} to observe"),
            _ => mode,
        };
    }
    if !change["cgroup"].is_null() {
        let who = |name: &Value| name.as_str().map_or_else(|| "nobody".to_owned(), printable);
        let (cgroup, cause) = (plain(&change["cgroup"]), plain(&change["cause"]));
        return format!(
            "{cgroup}: {} → {} ({cause})",
            who(&change["from"]),
            who(&change["to"])
        );
    }
    format!("revision {}", plain(&record["revision"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_is_one_line() {
        let record = json!({
            "type": "mode_change", "timestamp": "2026-01-31T12:00:00.123456Z", "decision": null,
            "node": "n", "caller": "127.0.0.1:9", "revision": 3, "change": { "mode": "observe" },
        });
        assert_eq!(
            line(&record, false),
            "12:00:00.123  mode_change  127.0.0.1:9 on n: observe"
        );
        let record = json!({
            "type": "mode_change", "timestamp": "2026-01-31T12:00:00.123456Z", "decision": null,
            "node": "n", "caller": "restart", "revision": 3,
            "change": { "mode": "workloads", "cause": "restart", "to_enforce": 0, "to_observe": 7, "workloads": [] },
        });
        assert_eq!(
            line(&record, false),
            "12:00:00.123  mode_change  restart on n: workloads: 0 to enforce, 7 to observe"
        );
        let record = json!({
            "type": "identity_change", "timestamp": "2026-01-31T12:00:00.123456Z", "decision": null, "node": "n",
            "caller": "spire", "revision": 3,
            "change": { "cgroup": "pods/a", "from": "spiffe://x/a", "to": null, "cause": "no_entry" },
        });
        assert_eq!(
            line(&record, false),
            "12:00:00.123  identity_change  spire on n: pods/a: spiffe://x/a → nobody (no_entry)"
        );
    }

    #[test]
    fn a_record_is_one_line() {
        let mut record = json!({
            "timestamp": "2026-01-31T12:00:00.123456Z", "decision": "DENY", "enforced": true,
            "source": {"spiffe_id": "spiffe://hanzo.ai/chat"}, "protocol": "TCP",
            "destination": {"spiffe_id": null, "entity": "world", "address": "1.1.1.1", "port": 53},
            "policy_matched": null, "reason": "no_rule", "count": 1,
        });
        assert_eq!(
            line(&record, false),
            "12:00:00.123  DENY             spiffe://hanzo.ai/chat → world (1.1.1.1) 53/TCP  (no_rule)"
        );
        record["enforced"] = json!(false);
        record["policy_matched"] = json!("p/rule-1");
        record["count"] = json!(3);
        assert!(line(&record, false).contains("DENY (observed)  spiffe"));
        assert!(line(&record, false).ends_with("p/rule-1  ×3"));
        assert!(line(&record, true).contains("\x1b[33mDENY (observed)\x1b[0m"));
        assert_eq!(
            line(&json!({}), false),
            "-  -                unknown → unknown -/-  (-)"
        );
    }
}
