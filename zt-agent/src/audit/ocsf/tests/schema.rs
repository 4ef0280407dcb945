// SPDX-License-Identifier: Apache-2.0
//! Each kind of record against what version 1.6.0 of the schema says of class 4001 with its profiles `host` and
//! `security_control`: names, types, identifiers with their captions, and what is required.
//!
//! `class_4001.json` has that for the attributes that events of zt have, and for all that are required: an attribute that is not in
//! it is one that the schema does not know, or that nobody has looked up.

use std::collections::BTreeSet;

use zt_common::event;

use super::*;
use crate::audit::record::Protocol;

const CLASS_4001: &str = include_str!("class_4001.json");

fn schema() -> Value {
    serde_json::from_str(CLASS_4001).expect("JSON")
}

/// What is wrong with an event.
fn wrong(schema: &Value, event: &Value) -> Vec<String> {
    let profiles = event["metadata"]["profiles"].as_array().into_iter().flatten();
    let mut checked = Checked {
        schema,
        profiles: profiles.filter_map(Value::as_str).collect(),
        wrong: Vec::new(),
    };
    checked.object("network_activity", event);
    checked.wrong
}

struct Checked<'e> {
    schema: &'e Value,
    profiles: BTreeSet<&'e str>,
    wrong: Vec<String>,
}

impl<'e> Checked<'e> {
    fn object(&mut self, kind: &str, found: &'e Value) {
        let Some(fields) = found.as_object() else {
            self.wrong.push(format!("{kind}: {found} is no object"));
            return;
        };
        let schema = self.schema;
        let attributes = schema[kind]["attributes"].as_object().expect("a kind of object");
        for (name, attribute) in attributes {
            if attribute["requirement"] == "required" && !fields.contains_key(name) {
                self.wrong.push(format!("{kind}.{name} is required"));
            }
        }
        let one_of = schema[kind]["one_of"].as_array().into_iter().flatten();
        let one_of: Vec<&str> = one_of.filter_map(Value::as_str).collect();
        if !one_of.is_empty() && !one_of.iter().any(|name| fields.contains_key(*name)) {
            self.wrong.push(format!("{kind} has none of {one_of:?}"));
        }
        for (name, value) in fields {
            match attributes.get(name) {
                Some(attribute) => {
                    let place = format!("{kind}.{name}");
                    self.attribute(&place, attribute, value);
                    let caption = attribute["caption_in"].as_str().and_then(|name| fields.get(name));
                    let named = &attribute["enum"][value.to_string()];
                    if caption.is_some_and(|caption| caption != named) {
                        self.wrong
                            .push(format!("{place} is {value}, and its name {caption:?}"));
                    }
                }
                None => self.wrong.push(format!("{kind} has no `{name}`")),
            }
        }
    }

    fn attribute(&mut self, place: &str, attribute: &Value, value: &'e Value) {
        if let Some(profile) = attribute["profile"].as_str()
            && !self.profiles.contains(profile)
        {
            self.wrong.push(format!("{place} is of the profile {profile}"));
        }
        let ids = attribute["enum"].as_object();
        if ids.is_some_and(|ids| !ids.contains_key(&value.to_string())) {
            self.wrong.push(format!("{place}: {value} is none of its values"));
        }
        let fits = match attribute["type"].as_str().expect("a type") {
            "string" => value.as_str().is_some_and(|text| !text.is_empty()),
            "strings" => value
                .as_array()
                .is_some_and(|list| list.iter().all(Value::is_string)),
            "integer" => value.is_i64() || value.is_u64(),
            // Milliseconds; in any other unit it would be another century.
            "timestamp" => value
                .as_i64()
                .is_some_and(|time| (1_577_836_800_000..4_102_444_800_000).contains(&time)),
            "boolean" => value.is_boolean(),
            "port" => value.as_u64().is_some_and(|port| u16::try_from(port).is_ok()),
            "ip" => value.as_str().is_some_and(|text| text.parse::<IpAddr>().is_ok()),
            "object" => value.is_object(),
            kind => {
                self.object(kind, value);
                true
            }
        };
        if !fits {
            self.wrong
                .push(format!("{place}: {value} is no {}", attribute["type"]));
        }
    }
}

/// What a change makes of a record, and what it is called.
type End = (&'static str, fn(&mut AuditRecord));

/// What may be known of the ends, or not.
const ENDS: [End; 6] = [
    ("as it is", |_| {}),
    ("IPv6", |record| {
        record.source.address = Some(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]));
        record.destination.address = Some(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2]));
    }),
    ("all of it", |record| {
        record.policy_matched = Some("core/rule-1".into());
        record.count = 7;
        (record.source.port, record.source.pid) = (Some(40_000), Some(1));
        record.source.comm = Some("curl".into());
        record.source.pod = Some("hanzo/gateway".into());
        record.destination.pod = Some("hanzo/postgres".into());
        (record.source.node, record.destination.node) = (Some("n1".into()), Some("n2".into()));
    }),
    ("a rule of zt's own", |record| {
        record.policy_matched = Some("builtin/require-policy".into());
    }),
    ("a process without a name", |record| {
        (record.source.pid, record.source.comm) = (Some(7), None);
    }),
    ("nothing", |record| {
        record.policy_matched = None;
        (record.source.spiffe_id, record.source.entity) = (None, Some("world".into()));
        (record.destination.spiffe_id, record.destination.entity) = (None, None);
        (record.source.address, record.destination.address) = (None, None);
        (record.source.port, record.destination.port) = (None, 0);
        (record.source.pod, record.destination.pod) = (None, None);
        (record.source.node, record.destination.node) = (None, None);
        (record.source.pid, record.source.comm) = (None, None);
    }),
];

/// Protocols that records have names for, and one that they have none for.
const PROTOCOLS: [u8; 7] = [1, 6, 17, 47, 58, 132, 136];

/// Records of every kind, each with what it is.
fn records() -> Vec<(String, AuditRecord)> {
    let hooks: Vec<event::Hook> = (1..=u8::MAX).map_while(event::Hook::from_number).collect();
    let mut records = Vec::new();
    for (ends, change) in ENDS {
        for decision in [Outcome::Allow, Outcome::Deny] {
            for enforced in [false, true] {
                for observer in [Observer::Source, Observer::Destination] {
                    let mut common = sample::record();
                    change(&mut common);
                    (common.decision, common.enforced, common.observer) = (decision, enforced, observer);
                    let what = format!("{ends}, {decision}, enforced: {enforced}, at the {observer}");
                    for reason in verdict::Reason::ALL {
                        for hook in &hooks {
                            let mut record = common.clone();
                            (record.reason, record.hook) = (Reason::Verdict(reason), Hook::Kernel(*hook));
                            records.push((format!("{what}: {} {}", hook.name(), reason.name()), record));
                        }
                    }
                    for protocol in PROTOCOLS {
                        let mut record = common.clone();
                        record.protocol = Protocol(protocol);
                        records.push((format!("{what}: protocol {protocol}"), record));
                    }
                }
            }
        }
    }
    records
}

#[test]
fn the_schema_knows_every_event_and_all_that_is_in_it() {
    let schema = schema();
    let mut activities = BTreeSet::new();
    for (what, record) in records() {
        let event = of(&record).expect("a decision of the kernel");
        let wrong = wrong(&schema, &event);
        assert!(wrong.is_empty(), "{what}: {wrong:#?}\n{event:#}");
        let number = |field: &str| event[field].as_u64().expect("a number");
        assert_eq!(number("class_uid"), number("category_uid") * 1000 + 1, "{what}");
        assert_eq!(
            number("type_uid"),
            number("class_uid") * 100 + number("activity_id"),
            "{what}"
        );
        // What was done goes with what came of it.
        let outcome = (number("action_id"), number("disposition_id"));
        assert!(
            [(1, 1), (1, 17), (2, 2)].contains(&outcome),
            "{what}: {outcome:?}"
        );
        assert_eq!(event["metadata"]["version"], VERSION, "{what}");
        activities.insert(number("activity_id"));
    }
    assert_eq!(activities, BTreeSet::from([1, 3, 5, 6]));
}

#[test]
fn protocols_have_the_names_of_iana() {
    let named = |number: u8| {
        let event = event(|record| record.protocol = Protocol(number));
        event["connection_info"]["protocol_name"]
            .as_str()
            .map(str::to_owned)
    };
    let names = PROTOCOLS.map(named);
    let names = names.each_ref().map(Option::as_deref);
    let wanted = ["icmp", "tcp", "udp", "", "ipv6-icmp", "sctp", "udplite"];
    assert_eq!(
        names,
        wanted.map(|name| Some(name).filter(|name| !name.is_empty()))
    );
}

#[test]
fn what_the_schema_does_not_know_is_found() {
    let schema = schema();
    let event = event(|record| record.source.pid = Some(1));
    assert_eq!(wrong(&schema, &event), Vec::<String>::new());
    let without = |place: &str, field: &str| {
        let mut event = event.clone();
        let object = event.pointer_mut(place).and_then(Value::as_object_mut);
        object.expect("an object").remove(field).expect("a field");
        event
    };
    let with = |place: &str, value: Value| {
        let mut event = event.clone();
        let (object, field) = place.rsplit_once('/').expect("a place");
        event.pointer_mut(object).expect("an object")[field] = value;
        event
    };
    for (event, told) in [
        (
            without("", "severity_id"),
            "network_activity.severity_id is required",
        ),
        (
            without("/connection_info", "direction_id"),
            "network_connection_info.direction_id is required",
        ),
        (without("/actor/process", "pid"), "process has none of"),
        (
            with("/metadata/profiles", json!(["host"])),
            "network_activity.action is of the profile security_control",
        ),
        (with("/verdict", json!(1)), "network_activity has no `verdict`"),
        (
            with("/src_endpoint/spiffe_id", json!("a")),
            "network_endpoint has no `spiffe_id`",
        ),
        (
            with("/disposition_id", json!(77)),
            "network_activity.disposition_id: 77 is none of its values",
        ),
        (
            with("/disposition", json!("Allow")),
            "network_activity.disposition_id is 1, and its name",
        ),
        (
            with("/time", json!(1_771_857_000)),
            "network_activity.time: 1771857000 is no",
        ),
        (
            with("/time", json!("now")),
            "network_activity.time: \"now\" is no",
        ),
        (
            with("/dst_endpoint/port", json!(65_536)),
            "network_endpoint.port: 65536 is no",
        ),
        (
            with("/dst_endpoint/ip", json!("here")),
            "network_endpoint.ip: \"here\" is no",
        ),
        (with("/device", Value::Null), "device: null is no object"),
    ] {
        let wrong = wrong(&schema, &event);
        assert!(
            wrong.iter().any(|wrong| wrong.starts_with(told)),
            "{told}: {wrong:#?}"
        );
    }
}
