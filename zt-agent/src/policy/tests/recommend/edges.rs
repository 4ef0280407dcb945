// SPDX-License-Identifier: Apache-2.0
//! What a policy that was made tells of each edge, and of rights to raw sockets.

use std::sync::Arc;

use super::super::{document, id, set};
use super::{PARTIES, flow, on_day, table, wishes};
use crate::policy::{Counted, RawCounted, SeenFlow, Settings, recommend};

fn counted(flow: SeenFlow, count: u64, day: i64) -> Counted {
    Counted {
        flow,
        service: None,
        count,
        last_seen: on_day(day),
    }
}

fn made(seen: &[Counted], raw: &[RawCounted], patterns: &[&str]) -> String {
    let made = recommend(seen, raw, &wishes(patterns), &Settings::default()).expect("a policy");
    assert!(made.unsaid.is_empty(), "{}", made.text);
    let policy = set(&[document("made.yaml", &made.text)]);
    assert_eq!(made.rules, policy.policies()[0].rules.len(), "{}", made.text);
    made.text
}

#[test]
fn a_pattern_says_of_each_who_it_was_how_often_and_when() {
    let [a, b, other] = [PARTIES[0], PARTIES[1], PARTIES[2]];
    let seen = [
        counted(flow(a, other, 80, 6), 1, 1),
        counted(flow(b, other, 80, 6), 5, 3),
        counted(flow(b, other, 81, 6), 2, 2),
    ];
    let text = made(&seen, &[], &["spiffe://hanzo.ai/k8s/x/*"]);
    assert!(
        text.contains(
            "    - from: {spiffe: \"spiffe://hanzo.ai/k8s/x/*\"}\n      to:\n        \
             # 80 from spiffe://hanzo.ai/k8s/x/a: 1 connection, last 2026-01-01T00:00:00Z\n        \
             # 80 from spiffe://hanzo.ai/k8s/x/b: 5 connections, last 2026-01-03T00:00:00Z\n        \
             # 81 from spiffe://hanzo.ai/k8s/x/b: 2 connections, last 2026-01-02T00:00:00Z\n        \
             - spiffe: \"spiffe://hanzo.ai/k8s/y/a\"\n          ports: [\"80-81\"]\n"
        ),
        "{text}"
    );
    let text = made(&seen, &[], &["*"]);
    assert!(
        text.contains(
            "        # 80 from spiffe://hanzo.ai/k8s/x/a to spiffe://hanzo.ai/k8s/y/a: 1 connection, last"
        ),
        "{text}"
    );
}

#[test]
fn of_many_edges_the_first_are_told_and_the_others_counted() {
    let seen: Vec<Counted> = (1..=25)
        .map(|port| {
            let day = if port == 25 { 9 } else { 1 };
            counted(flow(PARTIES[0], PARTIES[1], port, 6), 2, day)
        })
        .collect();
    let text = made(&seen, &[], &[]);
    assert_eq!(text.matches("        # ").count(), 21, "{text}");
    assert!(
        text.contains("        # 20: 2 connections, last 2026-01-01T00:00:00Z\n        # and 5 more: 10 connections, last 2026-01-09T00:00:00Z\n"),
        "{text}"
    );
    assert!(text.contains("ports: [\"1-25\"]"), "{text}");
}

#[test]
fn a_service_has_a_rule_for_each_behind_it_and_is_named() {
    let service: Arc<str> = "service:x/web".into();
    let behind = [
        flow(PARTIES[0], PARTIES[1], 80, 6),
        flow(PARTIES[0], PARTIES[2], 8080, 6),
    ];
    let seen = behind.map(|flow| Counted {
        service: Some(Arc::clone(&service)),
        ..counted(flow, 3, 2)
    });
    let direct = counted(flow(PARTIES[0], PARTIES[1], 80, 6), 1, 4);
    let seen = [seen.to_vec(), vec![direct]].concat();
    let text = made(&seen, &[], &[]);
    assert!(
        text.contains(
            "        # 80: 1 connection, last 2026-01-04T00:00:00Z\n        \
             # 80 by service:x/web: 3 connections, last 2026-01-02T00:00:00Z\n        \
             - spiffe: \"spiffe://hanzo.ai/k8s/x/b\"\n          ports: [80]\n        \
             # 8080 by service:x/web: 3 connections, last 2026-01-02T00:00:00Z\n        \
             - spiffe: \"spiffe://hanzo.ai/k8s/y/a\"\n          ports: [8080]\n"
        ),
        "{text}"
    );
    // A name is no way to add a rule.
    let seen = [Counted {
        service: Some("service:x/web\n    - from: {spiffe: '*'}".into()),
        ..seen[0].clone()
    }];
    let text = made(&seen, &[], &[]);
    assert_eq!(
        set(&[document("made.yaml", &text)]).policies()[0].rules.len(),
        1,
        "{text}"
    );
}

#[test]
fn the_right_to_raw_sockets_is_a_rule_of_its_holders_alone() {
    let raw = |name: &str, protocol: &str, count, day| RawCounted {
        holder: id(name),
        protocol: protocol.to_owned(),
        count,
        last_seen: on_day(day),
    };
    let seen = [counted(flow(PARTIES[0], PARTIES[2], 80, 6), 1, 1)];
    let raw = [
        raw("k8s/x/b", "ICMP", 3, 2),
        raw("k8s/x/b", "IP-132", 1, 1),
        raw("k8s/x/b", "ICMP", 1, 4),
    ];
    let text = made(&seen, &raw, &["*"]);
    assert!(
        text.ends_with(
            "    # Careful: by raw sockets it speaks, and hears, what no rule can name. `ping` needs them.\n    \
             # ICMP: 4 sockets, last 2026-01-04T00:00:00Z\n    \
             # IP-132: 1 socket, last 2026-01-01T00:00:00Z\n    \
             - from: {spiffe: \"spiffe://hanzo.ai/k8s/x/b\"}\n      rawSockets: true\n  defaultAction: DENY\n"
        ),
        "{text}"
    );
    let table = table(&set(&[document("made.yaml", &text)]), &seen);
    let right = |name: &str| table.evaluate_raw_socket(&id(name)).allowed;
    assert_eq!((right("k8s/x/b"), right("k8s/x/a")), (true, false), "{text}");
    // There may be nothing else.
    let alone = made(&[], &raw, &[]);
    assert!(alone.contains("  rules:\n    # Careful"), "{alone}");
}
