// SPDX-License-Identifier: Apache-2.0
//! The view without a terminal: what it counts, what the keys do, what it draws.

mod drawn;
mod fed;
mod keyed;

use std::time::Duration;

use serde_json::{Value, json};

use super::edges::MAX_EDGES;
use super::feed::Fed;
use super::filter::Filter;
use super::keys::{Asked, Key};
use super::parsed::{Parsed, Verdict};
use super::view::{Link, MAX_ROWS, Pane, View};

const CHAT: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/chat";
const POSTGRES: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres";

/// A record of chat, which asks postgres.
fn record(decision: &str, enforced: bool, port: u16) -> Value {
    json!({
        "type": "decision", "id": "0197", "timestamp": "2026-01-31T12:00:00.123456Z", "decision": decision,
        "source": {"spiffe_id": CHAT, "entity": null, "pod": "hanzo/chat-0", "node": "n1", "address": "10.0.0.1",
                   "port": null, "pid": 7, "comm": "curl"},
        "destination": {"spiffe_id": POSTGRES, "entity": null, "pod": null, "node": "n1", "port": port,
                        "address": "10.0.0.2"},
        "policy_matched": if decision == "ALLOW" { json!("core/rule-2") } else { Value::Null },
        "reason": if decision == "ALLOW" { "rule" } else { "no_rule" },
        "latency_us": 1.5, "cluster": "hanzo-k8s", "protocol": "TCP", "hook": "connect", "observer": "source",
        "mode": "enforce", "enforced": enforced, "revision": 3, "proof": "none", "count": 1,
    })
}

/// A view that these came to.
fn view(records: &[Value]) -> View {
    let mut view = View::new();
    for record in records {
        view.take(Fed::Record(record.to_string()));
    }
    view
}

/// Presses the keys of a text.
fn typed(view: &mut View, text: &str) {
    for character in text.chars() {
        assert_eq!(view.press(Key::Char(character)), Asked::Nothing);
    }
}

#[test]
fn fields_are_read_from_any_record() {
    let json = record("DENY", false, 5432).to_string();
    let parsed = Parsed::of(&json).expect("a record");
    assert_eq!(parsed.verdict(), Verdict::Observed);
    assert_eq!((parsed.source(), parsed.destination()), (CHAT, POSTGRES));
    assert_eq!(
        (parsed.port(), parsed.protocol(), parsed.time()),
        (5432, "TCP", "12:00:00.123")
    );
    assert_eq!(
        (parsed.rule(), parsed.reason(), parsed.weight()),
        (None, "no_rule", 1)
    );
    // With escapes in it, from another version, and none at all.
    let odd =
        json!({"decision": "DENY", "enforced": true, "new": [1], "destination": {"entity": "a\"b\u{7}"}});
    let json = odd.to_string();
    let parsed = Parsed::of(&json).expect("a record");
    assert_eq!(
        (parsed.verdict(), parsed.destination()),
        (Verdict::Denied, "a\"b\u{7}")
    );
    assert_eq!((parsed.source(), parsed.time()), ("-", "-"));
    assert!(Parsed::of("7").is_none() && Parsed::of("").is_none());
}

#[test]
fn a_filter_is_words_that_all_fit() {
    let json = record("DENY", true, 5432).to_string();
    let parsed = Parsed::of(&json).expect("a record");
    for (typed, fits) in [
        ("", true),
        ("chat", true),
        ("CHAT postgres", true),
        ("chat redis", false),
        ("-redis", true),
        ("-chat", false),
        ("-", true),
        ("from:chat to:postgres", true),
        ("from:postgres", false),
        ("from:=spiffe://hanzo.ai/hanzo-k8s/hanzo/chat", true),
        ("from:=spiffe://hanzo.ai/hanzo-k8s/hanzo/cha", false),
        ("from:", true),
        ("543", false),
        ("5432", true),
        ("port:5432/tcp", true),
        ("port:5432/udp", false),
        ("tcp", true),
        ("deny", true),
        ("observed", false),
        ("reason:no_", true),
        ("rule:core", false),
        ("node:n1", true),
        ("10.0.0.1", true),
        ("node:n2", false),
        // No field of that name: looked for as it is.
        ("spiffe://hanzo.ai", true),
        ("what:chat", false),
    ] {
        assert_eq!(Filter::parse(typed).fits(&parsed), fits, "{typed}");
    }
}

#[test]
fn the_screen_has_a_sample_and_the_counts_have_all() {
    let mut view = View::new();
    view.tick(Duration::ZERO);
    let allowed = record("ALLOW", true, 5432).to_string();
    let denied = record("DENY", true, 5433).to_string();
    for n in 0..5_000 {
        let json = if n % 500 == 499 { &denied } else { &allowed };
        view.take(Fed::Record(json.clone()));
    }
    view.tick(Duration::from_millis(100));
    assert_eq!((view.sample.all, view.sample.rate()), (5_000, 50_000));
    assert!(view.sample.shown < 100, "{}", view.sample.shown);
    let wanted = view.wanted();
    assert_eq!(wanted.len() as u64, view.sample.shown);
    // The few that were refused are all there, though they came when there was no room for others.
    let refused = wanted.iter().filter(|row| row.verdict == Verdict::Denied);
    assert_eq!(refused.count(), 10);
    let (top, all) = view.top();
    assert_eq!((all, top[0].denied), (1, 10));
    // With the next frame there is room again.
    let before = view.sample.shown;
    view.take(Fed::Record(allowed));
    assert_eq!(view.sample.shown, before + 1);
    view.take(Fed::Missed(7));
    assert_eq!((view.sample.missed, view.sample.all), (7, 5_008));
}

#[test]
fn a_record_counts_as_often_as_it_stands_for() {
    let mut one = record("DENY", true, 1);
    one["count"] = json!(5);
    let view = view(&[one]);
    assert_eq!((view.sample.shown, view.sample.all), (5, 5));
    assert_eq!(view.top().0[0].total(), 5);
}

#[test]
fn edges_are_told_apart_up_to_a_number() {
    let mut view = View::new();
    let mut one = record("DENY", true, 1);
    for n in 0..MAX_EDGES + 3 {
        one["source"]["spiffe_id"] = json!(format!("spiffe://hanzo.ai/{n}"));
        view.take(Fed::Record(one.to_string()));
    }
    // One that is known counts on.
    one["source"]["spiffe_id"] = json!("spiffe://hanzo.ai/77");
    view.take(Fed::Record(one.to_string()));
    assert_eq!(view.edges.others, 3);
    let (top, all) = view.top();
    assert_eq!(all, MAX_EDGES);
    assert_eq!(
        (top[0].source.as_str(), top[0].total()),
        ("spiffe://hanzo.ai/77", 2)
    );
}

#[test]
fn rows_that_were_scrolled_through_go_at_last() {
    let mut view = View::new();
    let json = record("DENY", true, 1).to_string();
    for n in 0..MAX_ROWS as u64 + 10 {
        view.tick(Duration::from_millis(n));
        view.take(Fed::Record(json.clone()));
        if n == 0 {
            assert_eq!(view.press(Key::Home), Asked::Nothing);
        }
    }
    let wanted = view.wanted();
    assert_eq!(wanted.len(), MAX_ROWS);
    // The one that was selected is gone: the oldest is.
    assert_eq!(view.selected_among(&wanted), Some(0));
}

#[test]
fn an_agent_that_comes_back_is_told() {
    let mut view = View::new();
    view.take(Fed::Connected);
    assert_eq!(view.link, Link::Connected);
    view.take(Fed::Gone("cannot reach \u{1b}[2J".to_owned()));
    assert_eq!(view.link, Link::Gone("cannot reach \u{fffd}[2J".to_owned()));
    view.take(Fed::Connected);
    assert_eq!(view.link, Link::Again);
}
