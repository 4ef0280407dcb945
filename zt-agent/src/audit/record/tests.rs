// SPDX-License-Identifier: Apache-2.0
//! Records as users get them.

use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;
use zt_common::address::Address;
use zt_common::event;
use zt_common::identity;

use super::*;
use crate::audit::chain::Head;
use crate::audit::convert::{
    Evaluation, PolicyChange, from_decision, from_evaluation, from_mode_change, from_policy_change,
};
use crate::audit::sample::{CHAT, GATEWAY, Resolver, context, decision, record, record_of};

/// Byte for byte: order of fields, nulls and the form of numbers are what users parse.
const GOLDEN: &str = concat!(
    r#"{"id":"019c8af9-0340-7000-8000-000000000000","timestamp":"2026-02-23T14:30:00Z","decision":"ALLOW","#,
    r#""source":{"spiffe_id":"spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway","entity":null,"#,
    r#""pod":"gateway-7f8b9c6d4-x2k9p","node":"worker-3","address":null,"port":null,"pid":4242,"comm":"gateway"},"#,
    r#""destination":{"spiffe_id":"spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres","entity":null,"port":5432,"#,
    r#""address":"10.99.0.3","pod":null,"node":null},"policy_matched":"hanzo-core-policy/rule-2","latency_us":42,"#,
    r#""cluster":"hanzo-k8s","protocol":"TCP","hook":"connect","observer":"source","mode":"enforce","#,
    r#""enforced":true,"revision":7,"reason":"rule","proof":"none","count":1}"#,
);

#[test]
fn the_record_is_that_of_the_specification_with_our_fields() {
    assert_eq!(serde_json::to_string(&record()).expect("json"), GOLDEN);
    assert_eq!(
        serde_json::from_str::<AuditRecord>(GOLDEN).expect("reads"),
        record()
    );
}

/// Whether `whole` has every field of `part`, with its value.
fn contains(whole: &serde_json::Value, part: &serde_json::Value) -> bool {
    match part.as_object() {
        Some(fields) => fields.iter().all(|(name, value)| contains(&whole[name], value)),
        None => whole == part,
    }
}

#[test]
fn the_specification_s_own_fields_are_all_there() {
    let value: serde_json::Value = serde_json::from_str(GOLDEN).expect("json");
    let spec = json!({
        "timestamp": "2026-02-23T14:30:00Z",
        "decision": "ALLOW",
        "source": {
            "spiffe_id": "spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway",
            "pod": "gateway-7f8b9c6d4-x2k9p",
            "node": "worker-3"
        },
        "destination": { "spiffe_id": "spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres", "port": 5432 },
        "policy_matched": "hanzo-core-policy/rule-2",
        "latency_us": 42
    });
    assert!(contains(&value, &spec));
}

#[test]
fn a_party_without_an_identity_is_an_entity() {
    let mut decision = decision();
    decision.destination = identity::WORLD;
    decision.rule = 0;
    decision.allowed = false;
    decision.enforced = false;
    let value = serde_json::to_value(record_of(&decision, 0)).expect("json");
    assert_eq!(value["destination"]["spiffe_id"], json!(null));
    assert_eq!(value["destination"]["entity"], json!("world"));
    assert_eq!(value["policy_matched"], json!(null));
    assert_eq!(
        (&value["decision"], &value["enforced"], &value["mode"]),
        (&json!("DENY"), &json!(false), &json!("observe"))
    );
}

#[test]
fn a_number_that_nothing_names_is_shown_and_not_called_unknown() {
    let mut decision = decision();
    decision.source = 0x0123_4567_89ab_cdef;
    decision.rule = 0xfeed;
    let record = record_of(&decision, 0);
    assert_eq!(record.source.entity.as_deref(), Some("number:0123456789abcdef"));
    assert_eq!(record.policy_matched.as_deref(), Some("number:000000000000feed"));
}

#[test]
fn each_connection_counts_once() {
    let part = |change: &dyn Fn(&mut crate::audit::Decision), here: bool| {
        let mut decision = decision();
        decision.source_address = Address::from_v4([10, 99, 0, 2]);
        change(&mut decision);
        let mut resolver = Resolver::default();
        if here {
            resolver
                .here
                .insert("10.99.0.2".parse().expect("literal"), (GATEWAY, None));
        }
        from_decision(&decision, &resolver, &context(), Uuid::nil()).part()
    };
    assert_eq!(part(&|_| (), true), Part::Counts, "the source's end");
    assert_eq!(
        part(&|d| d.inbound = true, false),
        Part::Counts,
        "a source that is not managed here"
    );
    assert_eq!(
        part(&|d| d.inbound = true, true),
        Part::Corrects,
        "both ends here: the destination refused"
    );
    assert_eq!(
        part(&|d| (d.inbound, d.source) = (true, identity::HOST), false),
        Part::Counts,
        "a source that never records"
    );
    assert_eq!(
        part(&|d| (d.inbound, d.source) = (true, CHAT), true),
        Part::Counts,
        "an address of this node under another identity is not that workload's connection"
    );
    assert_eq!(
        part(
            &|d| (d.inbound, d.source_address) = (true, Address::from_v4([127, 0, 0, 1])),
            false
        ),
        Part::Corrects,
        "over loopback both ends are here"
    );
    assert_eq!(part(&|d| d.reason = verdict::Reason::Revoked, false), Part::Aside);
    assert_eq!(part(&|d| d.hook = event::Hook::Socket, false), Part::Aside);
    assert_eq!(
        part(&|d| d.hook = event::Hook::Sweep, false),
        Part::Counts,
        "a connection older than the agent"
    );
}

#[test]
fn an_evaluation_is_recorded_with_its_caller_and_aside() {
    let evaluation = Evaluation {
        source: Arc::from("spiffe://hanzo.ai/a"),
        destination: Arc::from("world"),
        port: 443,
        protocol: 17,
        allowed: false,
        policy_matched: None,
        mode: Mode::Observe,
        revision: 3,
        reason: Reason::Verdict(verdict::Reason::NoRule),
        latency: 400,
        caller: Arc::from("127.0.0.1:4000"),
        mfa: None,
        incident: None,
    };
    let record = from_evaluation(evaluation, &context(), Timestamp(0), Uuid::nil());
    assert_eq!(record.part(), Part::Aside);
    assert!(!record.is_enforced_denial());
    let value = serde_json::to_value(&record).expect("json");
    assert_eq!(value["hook"], json!("api"));
    assert_eq!(value["caller"], json!("127.0.0.1:4000"));
    assert_eq!(value["latency_us"], json!(0.4));
    assert_eq!(value["protocol"], json!("UDP"));
    assert!(value.get("mfa").is_none() && value.get("incident").is_none());
}

#[test]
fn what_an_operator_brings_forward_is_of_the_record_and_of_its_digest() {
    let mut plain = record();
    plain.incident = None;
    let digest = |record: &AuditRecord| crate::audit::chain::digest(&Entry::Decision(record.clone()));
    let mut digests = vec![digest(&plain)];
    for (mfa, incident) in [
        (Some(false), None),
        (Some(true), None),
        (Some(true), Some("INC-1")),
        (Some(true), Some("INC-2")),
        (None, Some("INC-2")),
    ] {
        let mut operators = plain.clone();
        (operators.mfa, operators.incident) = (mfa, incident.map(Arc::from));
        let value = serde_json::to_value(&operators).expect("json");
        assert_eq!(value.get("mfa"), mfa.map(|mfa| json!(mfa)).as_ref());
        assert_eq!(value.get("incident"), incident.map(|text| json!(text)).as_ref());
        assert_eq!(
            serde_json::from_value::<AuditRecord>(value).expect("reads"),
            operators
        );
        // As a store keeps it.
        let detail = operators.operator_detail().expect("some").to_string();
        let mut kept = plain.clone();
        assert!(kept.set_operator_detail(&detail));
        assert_eq!(kept, operators);
        digests.push(digest(&operators));
    }
    let all = digests.len();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), all, "each says something else");
    for none in [
        "no JSON",
        "{}",
        r#"{"mfa":null,"incident":null}"#,
        r#"{"mfa":true,"mode":"x"}"#,
    ] {
        assert!(!plain.set_operator_detail(none), "{none}");
    }
    assert_eq!(plain.operator_detail(), None);
}

#[test]
fn a_mode_change_says_who_did_what() {
    let record = from_mode_change(true, Arc::from("root"), 3, &context(), Timestamp(0), Uuid::nil());
    let value = serde_json::to_value(&record).expect("json");
    assert_eq!(value["type"], json!("mode_change"));
    assert_eq!(value["change"], json!({ "mode": "observe" }));
    assert_eq!(
        (&value["caller"], &value["node"]),
        (&json!("root"), &json!("worker-3"))
    );
    for absent in [
        "decision",
        "source",
        "destination",
        "policy_matched",
        "latency_us",
    ] {
        assert_eq!(value.get(absent), Some(&json!(null)), "{absent}");
    }
    assert_eq!(serde_json::from_value::<Entry>(value).expect("reads"), record);
}

#[test]
fn a_policy_change_says_from_what_to_what() {
    let change = PolicyChange {
        caller: Arc::from("/etc/zt/policies"),
        from: None,
        to: Arc::from("abc"),
        diff: json!({ "added": ["p"] }),
        revision: 4,
        in_force: true,
        begun: Vec::new(),
        noted: None,
    };
    let late = PolicyChange {
        in_force: false,
        ..change.clone()
    };
    let late = from_policy_change(late, &context(), Timestamp(0), Uuid::nil());
    assert_eq!(
        late.change().expect("change").change["in_force"],
        json!(false),
        "and nothing where it is"
    );
    let record = from_policy_change(change, &context(), Timestamp(0), Uuid::nil());
    let value = serde_json::to_value(&record).expect("json");
    assert_eq!(value["type"], json!("policy_change"));
    assert_eq!(
        value["change"],
        json!({ "from": null, "to": "abc", "diff": { "added": ["p"] } })
    );
    assert_eq!(value["revision"], json!(4));
    assert_eq!(serde_json::from_value::<Entry>(value).expect("reads"), record);
}

#[test]
fn a_decision_with_its_link_leads_back() {
    let entry = Entry::Decision(record_of(&decision(), 0));
    let link = Head::new(Uuid::from_u128(7)).link(&entry);
    for link in [Some(link), None] {
        let kept = Kept {
            entry: entry.clone(),
            link,
        };
        let text = serde_json::to_string(&kept).expect("json");
        assert!(text.starts_with(r#"{"type":"decision","id":""#), "{text}");
        assert_eq!(serde_json::from_str::<Kept>(&text).expect("reads"), kept);
    }
}

#[test]
fn a_task_name_that_is_not_text_is_still_text() {
    let mut decision = decision();
    decision.comm = [0xff; 16];
    assert_eq!(
        record_of(&decision, 0).source.comm.as_deref(),
        Some("\u{fffd}".repeat(16).as_str())
    );
    decision.comm = [0; 16];
    assert_eq!(record_of(&decision, 0).source.comm, None);
}
