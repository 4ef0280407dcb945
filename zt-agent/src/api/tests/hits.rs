// SPDX-License-Identifier: Apache-2.0
//! Rules are counted since their policy was changed last: before, another may have had their number.

use uuid::Uuid;

use super::records::{changes, policy, publish};
use super::*;
use crate::audit::clock;
use crate::audit::record::{Change, Entry, Timestamp};
use crate::audit::store::Sink as _;

const CORE: &str = "hanzo-core-policy";
const SECOND: i64 = 1_000_000_000;

/// The policy with these rules: from whom, to which port.
fn core(rules: &[(&str, u16)]) -> String {
    let rule = |(from, port): &(&str, u16)| {
        format!(
            "    - from: {{spiffe: \"{from}\"}}\n      to: [{{spiffe: \"{POSTGRES}\", ports: [{port}]}}]\n"
        )
    };
    let rules: Vec<String> = rules.iter().map(rule).collect();
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {CORE}}}\nspec:\n  rules:\n{}",
        rules.concat()
    )
}

async fn put(world: &World, name: &str, body: &str) {
    let reply = send(world.api, "PUT", &format!("/v1/policies/{name}"), YAML, body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

/// A connection that one of its rules allowed at a time.
fn connection(rule: usize, time: i64) -> Entry {
    let mut record = crate::audit::sample::record();
    record.id = Uuid::now_v7();
    record.timestamp = Timestamp(time);
    record.policy_matched = Some(Arc::from(format!("{CORE}/rule-{rule}")));
    Entry::Decision(record)
}

async fn keep(world: &World, entries: &[Entry]) {
    world.state.store.append(entries, None).await.expect("stored");
}

/// So many of them, now.
async fn decide(world: &World, rule: usize, times: usize) {
    let entries: Vec<Entry> = (0..times).map(|_| connection(rule, clock::now())).collect();
    keep(world, &entries).await;
}

/// What is said of the policy's rules that are in force.
async fn in_force(world: &World, query: &str) -> Vec<Value> {
    let answer = get(world.api, &format!("/v1/rules{query}")).await.json();
    let rules = answer["rules"].as_array().expect("rules").iter();
    let is_meant = |rule: &&Value| {
        let name = rule["rule"].as_str();
        rule["in_force"] == true && name.is_some_and(|name| name.starts_with(CORE))
    };
    rules.filter(is_meant).cloned().collect()
}

fn allowed(rules: &[Value]) -> Vec<u64> {
    let counts = rules.iter().map(|rule| rule["allowed"].as_u64());
    counts.map(|count| count.expect("a number")).collect()
}

/// A world in which what is in force has been seen.
async fn seen() -> World {
    let world = world().await;
    see(&world);
    world
}

/// What [`record_changes`] does when nothing keeps it.
fn see(world: &World) {
    world.state.changes().has_seen(world.state.snapshot().revision);
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.unwrap_or_else(|_| panic!("never {what}"));
}

#[tokio::test]
async fn a_rule_has_nothing_of_what_another_decided_that_had_its_number() {
    let world = world().await;
    world.start_node();
    until("the policy that there is to be noted", async || {
        world.state.store.policy_told().await.expect("reads").is_some()
    })
    .await;
    let (iam, chat) = ((IAM, 5432), (CHAT, 6379));
    decide(&world, 1, 3).await;
    let rules = in_force(&world, "").await;
    assert_eq!(
        (allowed(&rules), &rules[0]["since"]),
        (vec![3], &Value::Null),
        "{rules:#?}"
    );

    // A rule above it, and it is another rule.
    put(&world, CORE, &core(&[chat, iam])).await;
    let changed = changes(&world).await.pop().expect("a change");
    let rules = in_force(&world, "").await;
    assert_eq!(allowed(&rules), [0, 0], "{rules:#?}");
    for rule in &rules {
        assert_eq!(
            (&rule["since"], &rule["first_seen"], &rule["last_seen"]),
            (&changed["timestamp"], &Value::Null, &Value::Null)
        );
    }
    decide(&world, 2, 2).await;
    assert_eq!(allowed(&in_force(&world, "").await), [0, 2]);

    // Back: what it decides now is counted by the hour with what it decided at first.
    put(&world, CORE, &core(&[iam, chat])).await;
    assert_eq!(allowed(&in_force(&world, "").await), [0, 0]);
    decide(&world, 1, 4).await;
    let rules = in_force(&world, "").await;
    assert_eq!(allowed(&rules), [4, 0], "{rules:#?}");
    assert!(rules[0]["last_seen"].is_string() && rules[1]["last_seen"].is_null());

    // Another policy is no matter of its rules.
    put(&world, "p", &policy("p", 1)).await;
    assert_eq!(in_force(&world, "").await, rules);
    // Of a rule that is not in force all is counted, whoever had the number.
    put(&world, CORE, &core(&[iam])).await;
    decide(&world, 2, 1).await;
    let answer = get(world.api, "/v1/rules").await.json();
    let gone = answer["rules"].as_array().expect("rules").iter();
    let gone: Vec<&Value> = gone.filter(|rule| rule["in_force"] == false).collect();
    assert_eq!(
        (&gone[0]["rule"], &gone[0]["allowed"], &gone[0]["since"]),
        (&json!(format!("{CORE}/rule-2")), &json!(3), &Value::Null)
    );
    // What was changed before the time that is asked about makes no difference.
    let later = in_force(&world, "?since=2200-01-01T00:00:00Z").await;
    assert_eq!((allowed(&later), &later[0]["since"]), (vec![0], &Value::Null));
}

/// The record of a change.
fn change(time: i64, what: Value) -> Entry {
    Entry::PolicyChange(Change::new(
        (Uuid::now_v7(), Timestamp(time)),
        (Arc::from("hanzo-k8s"), Arc::from("worker-4")),
        Arc::from("somebody"),
        7,
        what,
    ))
}

/// What it says of a policy that came to have this digest.
fn said_of(name: &str, digest: &str) -> Value {
    json!({ "from": "a", "to": "b", "diff": { "policies": [{ "name": name, "kind": "x", "from": null, "to": digest }] } })
}

#[tokio::test]
async fn where_a_change_cannot_be_told_nothing_of_another_rule_is_counted() {
    let world = seen().await;
    let digest = {
        let snapshot = world.state.snapshot();
        let policy = snapshot.policies.get(CORE).expect("the policy");
        policy.digest().to_owned()
    };
    let start = clock::now() - 10 * SECOND;
    keep(&world, &[connection(1, start), connection(1, start + 4 * SECOND)]).await;
    let since = async || in_force(&world, "").await[0]["since"].clone();

    // One that was made and is not in force, or is about another policy, changes nothing.
    let mut elsewhere = said_of(CORE, "another");
    elsewhere["in_force"] = json!(false);
    let other = change(start + 1, said_of("other", &digest));
    keep(&world, &[change(start + 1, elsewhere), other]).await;
    assert_eq!(since().await, Value::Null);
    assert_eq!(allowed(&in_force(&world, "").await), [2]);
    // One that came into force at some time: not before now, as far as is known.
    let mut late = said_of(CORE, &digest);
    late["in_force"] = json!(false);
    keep(&world, &[change(start + SECOND, late)]).await;
    let asked = Timestamp(clock::now());
    let said: Timestamp = since().await.as_str().expect("a time").parse().expect("a time");
    assert!(said >= asked);
    assert_eq!(allowed(&in_force(&world, "").await), [0]);
    // One that says it,
    let time = start + 2 * SECOND;
    keep(&world, &[change(time, said_of(CORE, &digest))]).await;
    assert_eq!(since().await, json!(Timestamp(time)));
    assert_eq!(allowed(&in_force(&world, "").await), [1]);
    // and those that say nothing of policies, or not of all.
    let mut many = said_of("other", &digest);
    many["diff"]["policies"] = json!(vec![many["diff"]["policies"][0].clone(); 500]);
    let mut nameless = said_of("other", &digest);
    nameless["diff"]["policies"][0]["name"] = Value::Null;
    for (number, what) in [json!({ "from": "a", "to": "b", "diff": null }), many, nameless]
        .into_iter()
        .enumerate()
    {
        let time = start + (3 + number as i64) * SECOND;
        keep(&world, &[change(time, what)]).await;
        assert_eq!(since().await, json!(Timestamp(time)));
    }
    assert_eq!(allowed(&in_force(&world, "").await), [0]);
}

#[tokio::test]
async fn of_very_many_changes_the_latest_are_looked_at() {
    let world = seen().await;
    let start = clock::now() - 10 * SECOND;
    let at = |number: i64| start + number * 1000;
    let mut entries = vec![change(start - 1, said_of(CORE, "d"))];
    entries.extend((0..2050).map(|number| change(at(number), said_of("other", "d"))));
    entries.extend([connection(1, at(20)), connection(1, at(60))]);
    keep(&world, &entries).await;
    let rules = in_force(&world, "").await;
    assert_eq!(rules[0]["since"], json!(Timestamp(at(50))));
    assert_eq!(allowed(&rules), [1]);
}

#[tokio::test]
async fn what_is_dated_later_than_now_changes_nothing() {
    let world = seen().await;
    decide(&world, 1, 2).await;
    let later = clock::now() + 3600 * SECOND;
    // One of the policy, one that may be of any, and more than are looked at.
    let mut entries = vec![
        change(later, said_of(CORE, "d")),
        change(later + 1, json!({ "from": "a", "to": "b", "diff": null })),
    ];
    entries.extend((2..2050).map(|number| change(later + number, said_of("other", "d"))));
    keep(&world, &entries).await;
    let rules = in_force(&world, "").await;
    assert_eq!((allowed(&rules), &rules[0]["since"]), (vec![2], &Value::Null));
    // One that can be true is found behind them.
    let time = clock::now();
    keep(&world, &[change(time, said_of(CORE, "d"))]).await;
    let rules = in_force(&world, "").await;
    assert_eq!(
        (allowed(&rules), &rules[0]["since"]),
        (vec![0], &json!(Timestamp(time)))
    );
}

#[tokio::test]
async fn what_came_into_force_and_is_not_seen_yet_may_be_any_policy() {
    let world = seen().await;
    decide(&world, 1, 3).await;
    let before = in_force(&world, "").await;
    assert_eq!((allowed(&before), &before[0]["since"]), (vec![3], &Value::Null));
    // Whoever notes what came into force waits for a recorder that is stuck.
    publish(&world, &[policy("p", 1)]);
    let asked = Timestamp(clock::now());
    let rules = in_force(&world, "").await;
    let said: Timestamp = rules[0]["since"]
        .as_str()
        .expect("a time")
        .parse()
        .expect("a time");
    assert!(said >= asked);
    assert_eq!(allowed(&rules), [0]);
    see(&world);
    assert_eq!(in_force(&world, "").await, before);
}

#[tokio::test]
async fn what_was_changed_while_no_agent_ran_may_be_any_policy() {
    let world = world().await;
    decide(&world, 1, 3).await;
    world.state.store.note_policy("another").await.expect("noted");
    tokio::spawn(record_changes(world.state.clone()));
    until("the change to be recorded", async || {
        !changes(&world).await.is_empty()
    })
    .await;
    decide(&world, 1, 2).await;
    let rules = in_force(&world, "").await;
    let found = changes(&world).await.remove(0);
    assert_eq!(found["change"]["diff"], Value::Null);
    assert_eq!(
        (allowed(&rules), &rules[0]["since"]),
        (vec![2], &found["timestamp"])
    );
}
