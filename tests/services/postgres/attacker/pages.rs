// SPDX-License-Identifier: Apache-2.0
//! What is done to those who read.

use zt_agent::audit::postgres::{Reader, Walk};
use zt_agent::audit::query::{Filter, GraphFilter, PartyFilter};
use zt_agent::audit::record::{Kept, Kind};
use zt_agent::audit::store::Trail as _;
use zt_agent::spiffe_id::Pattern;

use super::{Row, WRITER, insert, newest_first, pages, records_of};
use crate::{maker, ship, target, today, with_tables};

/// One row that is no record must not take the page that it is on with it, nor be left out of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_row_is_told_among_the_others() {
    let server = with_tables().await;
    let mut records = ship(&server, &maker(today() + 1000, 1000, 5), 60).await;
    let (change, later) = (Row::change(), Row::shape().with("reason", "'of_a_later_version'"));
    let at = |time: i64, row: Row| row.with("time", &(today() + time).to_string());
    let deep = "repeat('[', 300) || repeat(']', 300)";
    insert(
        &server,
        &[
            change.clone(),
            later.clone(),
            Row::shape().with("type", "'of_later'").with("part", "2"),
            at(5500, Row::record(&change)),
            at(
                6500,
                Row::record(&change).with("caller", "'x'").with("detail", deep),
            ),
            at(7500, Row::record(&later)),
            at(
                8500,
                Row::record(&Row::shape().with("type", "'of_later'").with("part", "2")),
            ),
        ],
    );
    newest_first(&mut records);
    let reader = Reader::new(target(&server, "engine"));
    for limit in [3, 1000] {
        let pages = pages(&reader, &Filter::default(), limit).await;
        let found: Vec<Kept> = pages.iter().flat_map(|page| page.records.clone()).collect();
        assert!(found == records, "limit {limit}");
        let unreadable: Vec<_> = pages.into_iter().flat_map(|page| page.unreadable).collect();
        let times: Vec<i64> = unreadable
            .iter()
            .map(|unreadable| unreadable.timestamp.0 - today())
            .collect();
        assert_eq!(times, [8500, 7500, 6500, 5500]);
        assert!(
            unreadable
                .iter()
                .all(|unreadable| unreadable.login.as_deref() == Some("mallory"))
        );
        let causes: Vec<&str> = unreadable.iter().map(|unreadable| &*unreadable.cause).collect();
        assert_eq!(causes[0], "type is of_later");
        assert_eq!(causes[1], "reason is of_a_later_version");
        assert!(causes[2].starts_with("detail is [[["), "{causes:?}");
        assert_eq!(causes[3], "detail is missing");
    }
    let changes = Filter {
        kind: Some(Kind::ModeChange),
        ..Filter::default()
    };
    let page = reader.query(&changes, None, 100).await.expect("page");
    assert_eq!(page.unreadable.len(), 2);
    reader.graph(&GraphFilter::default()).await.expect("a graph");
    // Who owns the tables can damage them; that is found and told as well.
    server
        .sql("DELETE FROM zt_audit.shape WHERE login = 'node' AND port = 5432")
        .expect("deleted");
    let pages = pages(&reader, &Filter::default(), 7).await;
    let (readable, unreadable) = pages.iter().fold((0, 0), |(readable, unreadable), page| {
        (readable + page.records.len(), unreadable + page.unreadable.len())
    });
    assert_eq!(readable + unreadable, 64);
    assert!(unreadable > 4, "{unreadable}");
}

/// Large rows must not fill the memory of who reads them: pages get shorter.
#[tokio::test(flavor = "multi_thread")]
async fn large_details_make_short_pages() {
    let server = with_tables().await;
    let change = Row::change();
    insert(&server, std::slice::from_ref(&change));
    for number in 0..6 {
        let detail = format!("'\"' || repeat('{number}', 8388606) || '\"'");
        let time = (today() + number).to_string();
        let row = Row::record(&change)
            .with("time", &time)
            .with("caller", "'x'")
            .with("detail", &detail);
        insert(&server, &[row]);
    }
    let reader = Reader::new(target(&server, "engine"));
    for filter in [
        Filter::default(),
        Filter {
            kind: Some(Kind::ModeChange),
            ..Filter::default()
        },
    ] {
        let pages = pages(&reader, &filter, 100).await;
        let sizes: Vec<usize> = pages.iter().map(|page| page.records.len()).collect();
        assert_eq!(sizes, [4, 2]);
        assert!(pages.iter().all(|page| page.unreadable.is_empty()));
    }
    let mut walk = Walk::begin(&target(&server, "engine")).await.expect("a walk");
    let mut sizes = Vec::new();
    loop {
        let found = walk.more().await.expect("reads");
        if found.is_empty() {
            break;
        }
        assert!(found.iter().all(|found| found.kept.is_ok()));
        sizes.push(found.len());
    }
    assert_eq!(sizes, [4, 2]);
}

/// Thousands of names make questions slower, and leave none of them without its answer.
#[tokio::test(flavor = "multi_thread")]
async fn many_shapes_hide_nothing() {
    const SHAPES: u64 = 20_000;
    let server = with_tables().await;
    let mut records = ship(&server, &maker(today(), 1_000_000, 9), 1000).await;
    newest_first(&mut records);
    let template = Row::shape().with("source", "'spiffe://hanzo.ai/hanzo-k8s/monitoring/' || n");
    let columns: Vec<&str> = template.columns.keys().copied().collect();
    let values: Vec<&str> = template.columns.values().map(String::as_str).collect();
    let numbers = format!("FROM generate_series(1, {SHAPES}) n");
    let (names, values, id) = (columns.join(", "), values.join(", "), template.id());
    let record = Row::record(&template);
    let (record_names, record_values): (Vec<&str>, Vec<String>) = record.columns.into_iter().unzip();
    let (record_names, record_values) = (record_names.join(", "), record_values.join(", "));
    for sql in [
        format!("INSERT INTO zt_audit.shape ({names}, id) SELECT {values}, {id} {numbers}"),
        format!("INSERT INTO zt_audit.record ({record_names}) SELECT {record_values} {numbers}"),
    ] {
        server
            .attempt("mallory", WRITER, &sql)
            .expect("psql")
            .expect("inserted");
    }
    assert_eq!(
        server
            .number("SELECT count(*) FROM zt_audit.bucket WHERE login = 'mallory'")
            .expect("count"),
        SHAPES
    );
    let reader = Reader::new(target(&server, "engine"));
    let exact = |text: String| Some(PartyFilter::Exact(text));
    for filter in [
        Filter {
            source: exact(maker(0, 0, 9).name(4)),
            ..Filter::default()
        },
        Filter {
            source: Some(PartyFilter::Pattern(
                Pattern::parse("spiffe://hanzo.ai/hanzo-k8s/kube-system/*").unwrap(),
            )),
            ..Filter::default()
        },
        Filter {
            node: Some("worker-2".to_owned()),
            ..Filter::default()
        },
    ] {
        let expected: Vec<&Kept> = records.iter().filter(|kept| filter.takes(&kept.entry)).collect();
        assert!(!expected.is_empty());
        assert!(
            records_of(pages(&reader, &filter, 100).await).iter().eq(expected),
            "{filter:?}"
        );
    }
}
