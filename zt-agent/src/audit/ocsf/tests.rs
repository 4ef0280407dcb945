// SPDX-License-Identifier: Apache-2.0
//! What events say, and that the schema knows all of it.

mod schema;

use super::*;
use crate::audit::sample;

fn event(change: impl FnOnce(&mut AuditRecord)) -> Value {
    let mut record = sample::record();
    change(&mut record);
    of(&record).expect("a decision of the kernel")
}

#[test]
fn what_happened_and_what_was_done_are_two_things() {
    let told = |change: fn(&mut AuditRecord)| {
        let event = event(change);
        ["activity_name", "action", "disposition", "severity", "status"]
            .map(|field| event[field].as_str().expect("a text").to_owned())
    };
    assert_eq!(
        told(|record| record.decision = Outcome::Allow),
        ["Open", "Allowed", "Allowed", "Informational", "Success"]
    );
    assert_eq!(
        told(|record| (record.decision, record.enforced) = (Outcome::Deny, false)),
        ["Open", "Allowed", "Logged", "Low", "Success"]
    );
    assert_eq!(
        told(|record| (record.decision, record.enforced) = (Outcome::Deny, true)),
        ["Refuse", "Denied", "Blocked", "Medium", "Failure"]
    );
    assert_eq!(
        told(|record| {
            (record.decision, record.enforced) = (Outcome::Deny, true);
            record.reason = Reason::Verdict(verdict::Reason::Revoked);
        }),
        ["Reset", "Denied", "Blocked", "Medium", "Failure"]
    );
    assert_eq!(
        told(|record| {
            (record.decision, record.enforced) = (Outcome::Deny, true);
            record.reason = Reason::Verdict(verdict::Reason::TagInvalid);
        })[3],
        "High"
    );
}

#[test]
fn names_times_and_rules_are_the_records() {
    let event = event(|record| record.policy_matched = Some("core/rule-1".into()));
    let record = sample::record();
    assert_eq!(event["metadata"]["uid"], json!(record.id.to_string()));
    assert_eq!(event["time"], json!(record.timestamp.0 / 1_000_000));
    assert_eq!(event["src_endpoint"]["uid"], json!(record.source.name()));
    assert_eq!(event["dst_endpoint"]["port"], json!(record.destination.port));
    assert_eq!(event["policy"]["name"], json!("core"));
    assert_eq!(event["firewall_rule"]["uid"], json!("core/rule-1"));
}

#[test]
fn what_was_only_asked_is_no_network_activity() {
    let mut record = sample::record();
    record.hook = Hook::Api;
    assert_eq!(of(&record), None);
}
