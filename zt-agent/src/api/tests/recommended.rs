// SPDX-License-Identifier: Apache-2.0
//! Recommendations as they are wished for, and the policies in force beside them.

use super::paged::{connection, recorded};
use super::*;
use crate::audit::Entry;
use crate::audit::record::party;

/// Everybody here.
const ALL: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/*";

/// One connection that the policy in force allows, one that it denies and that went through, and one that it refused.
async fn world_with_connections() -> World {
    let world = world().await;
    let connections = [
        connection(IAM, 5432, true, true),
        connection(CHAT, 5432, false, false),
        connection(CHAT, 81, false, true),
    ];
    recorded(&world, &connections).await;
    world
}

#[tokio::test]
async fn a_recommendation_has_the_patterns_that_were_wished_for_and_what_was_refused_where_asked() {
    let world = world_with_connections().await;
    let document = get(world.api, "/openapi.json").await.json();
    let advice = async |query: &str| {
        let reply = get(world.api, &format!("/v1/recommend{query}")).await;
        assert_eq!(reply.status, 200, "{query}: {}", reply.body);
        described::check(&document, "get", "/v1/recommend", &reply);
        let advice = reply.json();
        let text = advice["policy"].as_str().expect("a text").to_owned();
        (advice["rules"].clone(), advice["connections"].clone(), text)
    };
    let (rules, connections, plain) = advice("").await;
    assert_eq!((rules, connections), (json!(2), json!(2)));
    assert!(!plain.contains(ALL) && !plain.contains("81"), "{plain}");
    assert_eq!(advice("?pattern=&include_denied=false").await.2, plain);

    // One rule for both, as the first pattern that matches is taken.
    let (rules, _, text) = advice(&format!("?pattern=spiffe://hanzo.ai/other/*,{ALL},*")).await;
    assert_eq!(rules, json!(1), "{text}");
    assert!(text.contains(ALL), "{text}");

    let (_, connections, text) = advice("?include_denied=true").await;
    assert_eq!(connections, json!(3));
    assert!(text.contains("81"), "{text}");

    for (query, field, why) in [
        ("?pattern=*,web-*", "pattern", "`web-*`: "),
        (
            "?include_denied=yes",
            "include_denied",
            "must be true or false, not `yes`",
        ),
    ] {
        let reply = get(world.api, &format!("/v1/recommend{query}")).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_parameter"));
        let answer = reply.json();
        let error = &answer["errors"][0];
        assert_eq!(error["field"], field, "{error}");
        let message = error["message"].as_str().expect("a text");
        assert!(message.starts_with(why), "{message}");
    }
}

/// Fails where whoever wished for it is told that it is the agent's fault.
#[tokio::test]
async fn a_pattern_that_is_too_wide_for_the_table_is_refused() {
    let world = world().await;
    // Each of them would be allowed to reach each, at forty ports: forty million entries.
    let many: Vec<_> = (0..1001_u16)
        .map(|number| {
            let source = format!("spiffe://hanzo.ai/hanzo-k8s/many/w{number}");
            let mut one = connection(&source, 1001 + 2 * (number % 40), false, false);
            let Entry::Decision(record) = &mut one else {
                panic!("a decision")
            };
            let next: String = format!("spiffe://hanzo.ai/hanzo-k8s/many/w{}", (number + 1) % 1001);
            (record.destination.spiffe_id, record.destination.entity) = party(Arc::from(next));
            one
        })
        .collect();
    recorded(&world, &many).await;
    let document = get(world.api, "/openapi.json").await.json();
    let reply = get(
        world.api,
        "/v1/recommend?pattern=spiffe://hanzo.ai/hanzo-k8s/many/*",
    )
    .await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (422, "policy_does_not_compile"),
        "{}",
        reply.body
    );
    described::check(&document, "get", "/v1/recommend", &reply);
    assert!(reply.body.contains("narrow `pattern`"), "{}", reply.body);
    // It is the pattern's fault.
    assert_eq!(get(world.api, "/v1/recommend").await.status, 200);
}

#[tokio::test]
async fn the_policies_in_force_are_compared_with_what_was_recorded() {
    let world = world_with_connections().await;
    let document = get(world.api, "/openapi.json").await.json();
    let compared = async |query: &str| {
        let reply = get(world.api, &format!("/v1/recommend/diff{query}")).await;
        assert_eq!(reply.status, 200, "{query}: {}", reply.body);
        described::check(&document, "get", "/v1/recommend/diff", &reply);
        reply.json()
    };
    let missing = |answer: &Value| -> BTreeSet<(String, u64, u64)> {
        let rows = answer["missing"].as_array().expect("a list").iter();
        let row = |row: &Value| {
            assert_eq!(
                (&row["destination"], &row["reason"]),
                (&json!(POSTGRES), &Value::Null)
            );
            assert!(row["last_seen"].is_string());
            let source = row["source"].as_str().expect("a name").to_owned();
            let number = |field: &str| row[field].as_u64().expect("a number");
            (source, number("port"), number("connections"))
        };
        rows.map(row).collect()
    };
    let answer = compared("").await;
    assert_eq!(
        (&answer["revision"], &answer["recorded_by"]),
        (&json!(7), &json!("this_node"))
    );
    assert_eq!(missing(&answer), BTreeSet::from([(CHAT.to_owned(), 5432, 1)]));
    assert_eq!(
        (
            &answer["missing_count"],
            &answer["undecided"],
            &answer["undecided_count"]
        ),
        (&json!(1), &json!([]), &json!(0))
    );
    assert_eq!(
        (&answer["unused"], &answer["unused_count"]),
        (&json!([]), &json!(0))
    );

    // What was refused is missing where it is wanted.
    let answer = compared("?include_denied=true").await;
    let wanted = [(CHAT.to_owned(), 81, 1), (CHAT.to_owned(), 5432, 1)];
    assert_eq!(missing(&answer), BTreeSet::from(wanted));
    assert_eq!(
        get(world.api, "/v1/recommend/diff?pattern=*").await.code(),
        "invalid_parameter"
    );
}

#[tokio::test]
async fn a_rule_that_nothing_used_is_named() {
    let world = world().await;
    recorded(&world, &[connection(CHAT, 5432, false, false)]).await;
    let answer = get(world.api, "/v1/recommend/diff").await.json();
    let unused = json!([{ "rule": "hanzo-core-policy/rule-1", "target": null }]);
    assert_eq!((&answer["unused"], &answer["unused_count"]), (&unused, &json!(1)));
    assert_eq!(answer["missing_count"], json!(1));
}
