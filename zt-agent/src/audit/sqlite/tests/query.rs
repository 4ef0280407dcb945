// SPDX-License-Identifier: Apache-2.0
//! Questions to the store.

use super::*;

#[tokio::test]
async fn pages_do_not_move_when_records_come() {
    let (_directory, store) = store().await;
    keep(&store, &records(0..30)).await;
    let (mut found, mut cursor, mut next) = (Vec::new(), None, 30);
    loop {
        let page = store.query(&Filter::default(), cursor, 7).await.expect("answers");
        found.extend(decided(page.records));
        keep(&store, &records(next..next + 5)).await;
        next += 5;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let expected: Vec<AuditRecord> = records(0..30).into_iter().rev().collect();
    assert_eq!(found, expected);
}

fn place(record: &AuditRecord) -> Cursor {
    Cursor {
        time: record.timestamp.0,
        id: record.id,
    }
}

type Test = Box<dyn Fn(&AuditRecord) -> bool>;

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn each_filter_finds_what_a_person_would() {
    let (_directory, store) = store().await;
    let mut stored = records(0..60);
    let mut other = decision();
    other.target_port = 6379;
    other.destination = identity::WORLD;
    stored.push(record_of(&other, 999));
    keep(&store, &stored).await;

    let exact = |text: &str| Some(PartyFilter::Exact(text.to_owned()));
    let pattern = |text: &str| Some(PartyFilter::Pattern(Pattern::parse(text).expect("pattern")));
    let from = stored[10].timestamp;
    let to = stored[20].timestamp;
    let base = Filter::default;
    let cases: Vec<(Filter, Test)> = vec![
        (
            Filter {
                decision: Some(Outcome::Deny),
                ..base()
            },
            Box::new(|r| r.decision == Outcome::Deny),
        ),
        (
            Filter {
                enforced: Some(false),
                ..base()
            },
            Box::new(|r| !r.enforced),
        ),
        (
            Filter {
                since: Some(from),
                ..base()
            },
            Box::new(move |r| r.timestamp >= from),
        ),
        (
            Filter {
                until: Some(to),
                ..base()
            },
            Box::new(move |r| r.timestamp < to),
        ),
        (
            Filter {
                since: Some(from),
                until: Some(to),
                enforced: Some(true),
                ..base()
            },
            Box::new(move |r| r.timestamp >= from && r.timestamp < to && r.enforced),
        ),
        (
            Filter {
                source: exact("spiffe://hanzo.ai/hanzo-k8s/hanzo/chat"),
                ..base()
            },
            Box::new(|r| r.source.name().ends_with("/chat")),
        ),
        (
            Filter {
                source: pattern("spiffe://hanzo.ai/hanzo-k8s/*/gateway"),
                ..base()
            },
            Box::new(|r| r.source.name().ends_with("/gateway")),
        ),
        (
            Filter {
                destination: exact("world"),
                ..base()
            },
            Box::new(|r| r.destination.name() == "world"),
        ),
        (
            Filter {
                port: Some(6379),
                ..base()
            },
            Box::new(|r| r.destination.port == 6379),
        ),
        (
            Filter {
                policy: Some("hanzo-core-policy".into()),
                ..base()
            },
            Box::new(|r| r.policy_matched.is_some()),
        ),
        (
            Filter {
                policy: Some("hanzo-core-policy/rule-2".into()),
                ..base()
            },
            Box::new(|r| r.policy_matched.is_some()),
        ),
        (
            Filter {
                policy: Some("hanzo-core".into()),
                ..base()
            },
            Box::new(|_| false),
        ),
        (
            Filter {
                policy: Some("hanzo-core-policy/rule-20".into()),
                ..base()
            },
            Box::new(|_| false),
        ),
        (
            Filter {
                node: Some("worker-3".into()),
                ..base()
            },
            Box::new(|_| true),
        ),
        (
            Filter {
                node: Some("worker-4".into()),
                ..base()
            },
            Box::new(|_| false),
        ),
        (
            Filter {
                port: Some(1),
                ..base()
            },
            Box::new(|_| false),
        ),
    ];
    for (filter, test) in cases {
        let mut expected: Vec<&AuditRecord> = stored.iter().filter(|record| test(record)).collect();
        expected.sort_by_key(|record| std::cmp::Reverse(place(record)));
        let found = all(&store, &filter).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
    }
}

#[tokio::test]
async fn paging_crosses_segments_and_finds_the_rare_one() {
    let (_directory, store) = store().await;
    let mut rare = decision();
    rare.target_port = 1;
    let mut stored = vec![record_of(&rare, 0)];
    stored.extend((1..40_000).map(|number| record_of(&decision(), number)));
    stored.push(record_of(&rare, 40_000));
    for batch in stored.chunks(7_000) {
        keep(&store, batch).await;
    }
    let found = all(
        &store,
        &Filter {
            port: Some(1),
            ..Filter::default()
        },
    )
    .await;
    assert_eq!(found, [stored[40_000].clone(), stored[0].clone()]);
    let page = store
        .query(&Filter::default(), None, 1000)
        .await
        .expect("answers");
    assert_eq!(page.records.len(), 1000);
    let page = store
        .query(&Filter::default(), Some(place(&stored[16_389])), 1000)
        .await
        .expect("answers");
    assert_eq!(
        page.records.first().map(|record| record.entry.id()),
        stored.get(16_388).map(|record| record.id)
    );
    assert_eq!(
        page.records.last().map(|record| record.entry.id()),
        stored.get(15_389).map(|record| record.id)
    );
}

#[tokio::test]
async fn a_segment_is_found_by_its_rows() {
    let (_directory, store) = store().await;
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", select::IN_SEGMENT));
    let mut query = sqlx::query_as::<_, (i64, i64, i64, String)>(explain);
    for _ in 0..8 {
        query = query.bind(Option::<i64>::None);
    }
    let plan = query.fetch_all(&store.readers).await.expect("plan");
    let plan: Vec<&str> = plan.iter().map(|(_, _, _, step)| step.as_str()).collect();
    assert!(
        plan.iter()
            .any(|step| step.starts_with("SEARCH record USING INTEGER PRIMARY KEY")),
        "{plan:#?}"
    );
}

#[tokio::test]
async fn text_is_never_sql() {
    let (_directory, store) = store().await;
    let nasty = "x'); DROP TABLE record; --\u{0}\"';";
    let mut record = record();
    record.source.entity = Some(Arc::from(nasty));
    record.source.spiffe_id = None;
    record.source.comm = Some(Arc::from(nasty));
    record.source.pod = Some(Arc::from(nasty));
    record.source.node = Some(Arc::from(nasty));
    record.destination.pod = Some(Arc::from(nasty));
    record.destination.node = Some(Arc::from(nasty));
    record.policy_matched = Some(Arc::from(nasty));
    record.cluster = Arc::from(nasty);
    record.hook = Hook::Api;
    record.caller = Some(Arc::from(nasty));
    keep(&store, std::slice::from_ref(&record)).await;
    let exact = || Some(PartyFilter::Exact(nasty.to_owned()));
    for filter in [
        Filter::default(),
        Filter {
            source: exact(),
            ..Filter::default()
        },
        Filter {
            policy: Some(nasty.to_owned()),
            ..Filter::default()
        },
        Filter {
            node: Some(nasty.to_owned()),
            ..Filter::default()
        },
    ] {
        assert_eq!(all(&store, &filter).await, [record.clone()], "{filter:?}");
    }
    assert!(
        all(
            &store,
            &Filter {
                destination: exact(),
                ..Filter::default()
            }
        )
        .await
        .is_empty()
    );
    assert!(
        all(
            &store,
            &Filter {
                node: Some("' OR 1=1 --".to_owned()),
                ..Filter::default()
            }
        )
        .await
        .is_empty()
    );
}

#[tokio::test]
async fn the_graph_counts_each_connection_once() {
    let (_directory, store) = store().await;
    let with = |change: &dyn Fn(&mut crate::audit::Decision)| {
        let mut decision = decision();
        change(&mut decision);
        record_of(&decision, 0)
    };
    let observed_denial = with(&|d| (d.allowed, d.enforced, d.rule) = (false, false, 0));
    let mut refused_there =
        with(&|d| (d.allowed, d.inbound, d.rule, d.time) = (false, true, 0, 8_000_000_000));
    refused_there.source.node = refused_there.destination.node.clone();
    let batch = [
        with(&|_| ()),
        with(&|_| ()),
        observed_denial.clone(),
        observed_denial,
        refused_there,
        with(&|d| d.reason = Reason::Revoked),
        with(&|d| (d.source, d.inbound) = (identity::WORLD, true)),
    ];
    keep(&store, &batch[..3]).await;
    keep(&store, &batch[3..]).await;
    let graph = store.graph(&GraphFilter::default()).await.expect("graph");
    let start = record().timestamp;
    let edge = |source: &str, allowed, denied, would_deny, last_seen| Edge {
        source: Arc::from(source),
        destination: Arc::from("spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres"),
        protocol: crate::audit::record::Protocol(6),
        port: 5432,
        allowed,
        denied,
        would_deny,
        first_seen: start,
        last_seen,
    };
    let gateway = "spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway";
    let expected = [
        edge(gateway, 2, 1, 1, Timestamp(start.0 + 3_000_000_000)),
        edge("world", 1, 0, 0, start),
    ];
    assert_eq!(graph.edges, expected);
    let kinds: Vec<NodeKind> = graph.nodes.iter().map(|node| node.kind).collect();
    assert_eq!(kinds, [NodeKind::Workload, NodeKind::Workload, NodeKind::Entity]);
}
