// SPDX-License-Identifier: Apache-2.0
//! Days that are over are added up, and the graph says the same as by the hour.

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Maintainer, Reader, Writer};
use zt_agent::audit::query::{Begins, Fold, Graph, GraphFilter, RuleHits, Traffic};
use zt_agent::audit::record::Timestamp;
use zt_tests::entries::spread;
use zt_tests::postgres::Server;

use super::cluster::until;
use super::{batches, maker, ship, target, today, with_tables};

const DAY: i64 = 86_400_000_000_000;

/// What keeping found and did, until there is nothing left to do: it makes partitions for a month of strays at a time.
pub(super) async fn keep(server: &Server) -> usize {
    let mut maintainer = Maintainer::open(&target(server, "keeper")).await.expect("tables");
    let mut added_up = 0;
    loop {
        let kept = maintainer.keep(None).await.expect("kept");
        added_up += kept.added_up;
        if kept.made + kept.added_up == 0 {
            return added_up;
        }
    }
}

/// Sums of days that are not those of their hours.
const WRONG: &str = "
SELECT count(*) FROM (
    SELECT day, shape, login, connections, first_seen, last_seen FROM zt_audit.bucket_day
) d FULL JOIN (
    SELECT (hour / 24)::integer AS day, shape, login, sum(connections) AS connections, min(first_seen) AS first_seen,
           max(last_seen) AS last_seen
    FROM zt_audit.bucket WHERE hour / 24 IN (SELECT day FROM zt_audit.whole_day) GROUP BY 1, 2, 3
) h USING (day, shape, login)
WHERE (d.connections, d.first_seen, d.last_seen) IS DISTINCT FROM (h.connections, h.first_seen, h.last_seen)";

/// All that is made of counts.
type Sums = (Graph, Traffic, RuleHits);

async fn sums(reader: &Reader, filter: &GraphFilter) -> Sums {
    (
        reader.graph(filter).await.expect("a graph"),
        reader
            .traffic(filter, &Fold::nothing())
            .await
            .expect("connections"),
        reader.rules(filter, &Begins::default()).await.expect("hits"),
    )
}

/// Counts what is there, as the trigger did when it came.
const COUNT_AGAIN: &str = "
INSERT INTO zt_audit.bucket (shape, hour, login, records, connections, first_seen, last_seen)
SELECT shape, time / 3600000000000, login, count(*), sum(count), min(time), max(time) FROM zt_audit.record GROUP BY 1, 2, 3";

/// Some range of times, the same for the same number; ends of days more often than by chance.
fn filter(number: u64, (start, end): (i64, i64)) -> GraphFilter {
    let random = |field: u64| spread(number * 10 + field);
    let time = |field: u64| {
        let time = start + (random(field) % (end - start).cast_unsigned()).cast_signed();
        match random(field + 1) % 4 {
            0 => None,
            1 => Some(Timestamp(time / DAY * DAY)),
            2 => Some(Timestamp(time / DAY * DAY + 1)),
            _ => Some(Timestamp(time)),
        }
    };
    let namespaces = ["hanzo", "monitoring", "nowhere", ""];
    GraphFilter {
        since: time(0),
        until: time(2),
        namespace: random(4)
            .is_multiple_of(2)
            .then(|| namespaces[(random(5) % 4) as usize].to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sums_of_any_range_are_those_of_its_hours() {
    const COUNT: u64 = 12_000;
    let server = with_tables().await;
    let start = today() - 40 * DAY;
    let maker = maker(start, 40 * DAY / COUNT as i64, 9);
    ship(&server, &maker, COUNT).await;
    // Yesterday was added up before anything was recorded: all of it comes late.
    assert_eq!(keep(&server).await, 39);
    // What comes late, of the same shapes and of others, is in both counts.
    let late = super::maker(start + 1, 40 * DAY / 3000, 11);
    let mut head = Head::new(Uuid::from_u128(8));
    let records = late.kept(0..3000, &mut head);
    let mut writer = Writer::new(target(&server, "node"));
    for batch in batches(head.writer, &records, 700) {
        assert!(writer.ship(&batch).await.expect("shipped"));
        assert!(!writer.ship(&batch).await.expect("shipped"), "and once");
    }
    assert_eq!(server.number(WRONG).expect("compares"), 0);
    assert_eq!(keep(&server).await, 0);
    let reader = Reader::new(target(&server, "engine"));
    let filters: Vec<GraphFilter> = (0..60)
        .map(|number| filter(number, (start - DAY, today() + DAY)))
        .collect();
    // Fewer kinds than a day has.
    let piecemeal = reader.clone().adding_up_at_most(64);
    let mut by_day: Vec<Sums> = Vec::new();
    for filter in &filters {
        by_day.push(sums(&reader, filter).await);
    }
    server
        .sql("TRUNCATE zt_audit.bucket")
        .expect("none is read where days are whole");
    let whole = GraphFilter {
        since: Some(Timestamp(start)),
        until: Some(Timestamp(today())),
        namespace: None,
    };
    let of_days = sums(&piecemeal, &whole).await;
    server.sql(COUNT_AGAIN).expect("counted again");
    assert_eq!(of_days, sums(&reader, &whole).await);
    server.sql("TRUNCATE zt_audit.whole_day").expect("as before");
    for (number, (filter, by_day)) in filters.iter().zip(&by_day).enumerate() {
        assert_eq!(*by_day, sums(&reader, filter).await, "{filter:?}");
        if number.is_multiple_of(10) {
            assert_eq!(*by_day, sums(&piecemeal, filter).await, "{filter:?}");
        }
    }
    let found = by_day
        .iter()
        .filter(|(graph, ..)| !graph.edges.is_empty())
        .count();
    assert!(found > 12, "{found} of 60 ranges have an edge");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_days_that_are_added_up_no_hour_is_read() {
    let server = with_tables().await;
    let start = today() - 20 * DAY;
    ship(&server, &maker(start, DAY / 100, 5), 2050).await;
    assert_eq!(keep(&server).await, 19);
    let reader = Reader::new(target(&server, "engine"));
    let filters = [None, Some("monitoring".to_owned())].map(|namespace| GraphFilter {
        since: Some(Timestamp(start + DAY / 2)),
        until: Some(Timestamp(today() + DAY / 2)),
        namespace,
    });
    let mut before = Vec::new();
    for filter in &filters {
        before.push(reader.graph(filter).await.expect("a graph"));
        assert!(!before.last().expect("a graph").edges.is_empty());
    }
    // Whoever read one of them would see it.
    let hours = format!(
        "hour BETWEEN {} AND {}",
        (start / DAY + 1) * 24,
        today() / DAY * 24 - 1
    );
    let spoil = format!("UPDATE zt_audit.bucket SET connections = connections + 1000 WHERE {hours}");
    server.sql(&spoil).expect("spoiled");
    for (filter, before) in filters.iter().zip(before) {
        assert_eq!(reader.graph(filter).await.expect("a graph"), before);
    }
    let all = reader.graph(&GraphFilter::default()).await.expect("a graph");
    assert!(
        all.edges
            .iter()
            .all(|edge| edge.allowed + edge.denied + edge.would_deny < 1000)
    );
    // And the hours beside them are.
    let beside = format!("UPDATE zt_audit.bucket SET connections = connections + 1000 WHERE NOT {hours}");
    server.sql(&beside).expect("spoiled");
    let after = reader.graph(&filters[0]).await.expect("a graph");
    assert!(after.edges.iter().any(|edge| edge.allowed > 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_inserts_while_a_day_is_added_up_is_counted() {
    let server = with_tables().await;
    let start = today() - 3 * DAY;
    ship(&server, &maker(start, DAY / 100, 5), 100).await;
    // Its partition, but not its sum.
    server
        .sql(&format!(
            "CREATE TABLE zt_audit.mark AS SELECT {}::integer AS day; INSERT INTO zt_audit.whole_day TABLE zt_audit.mark",
            start / DAY
        ))
        .expect("marked");
    keep(&server).await;
    server.sql("DELETE FROM zt_audit.whole_day USING zt_audit.mark WHERE whole_day.day = mark.day; DROP TABLE zt_audit.mark").expect("not any more");
    // A writer that has inserted and not committed: it copies a record of the node to another time of the day.
    let mut inserting = server.session("postgres", "postgres").expect("a session");
    inserting
        .run(
            "BEGIN; INSERT INTO zt_audit.record SELECT (jsonb_populate_record(r, jsonb_build_object('id', gen_random_uuid(),
                 'seq', r.seq + 1000))).* FROM zt_audit.record r WHERE seq <= 50",
        )
        .expect("inserted");
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    let adding = tokio::spawn(async move { maintainer.keep(None).await });
    until("somebody to wait for it", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE mode = 'ShareRowExclusiveLock' AND NOT granted";
        adding.is_finished() || server.number(waiting).expect("a count") == 1
    })
    .await;
    inserting.run("COMMIT").expect("committed");
    adding.await.expect("no panic").expect("kept");
    // On a busy machine it may have waited for as long as it does.
    keep(&server).await;
    let marked = format!(
        "SELECT count(*) FROM zt_audit.whole_day WHERE day = {}",
        start / DAY
    );
    assert_eq!(server.number(&marked).expect("a count"), 1);
    assert_eq!(server.number(WRONG).expect("compares"), 0);
    let counted =
        "SELECT sum(connections) = (SELECT sum(count) FROM zt_audit.record) FROM zt_audit.bucket_day";
    assert_eq!(server.sql(counted).expect("compares"), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_go_with_their_days() {
    let server = with_tables().await;
    ship(&server, &maker(today() - 10 * DAY, DAY / 100, 5), 1000).await;
    assert_eq!(keep(&server).await, 9);
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    maintainer.keep(Some(4)).await.expect("kept");
    for table in ["whole_day", "bucket_day"] {
        let days = format!("SELECT min(day) || ' ' || count(DISTINCT day) FROM zt_audit.{table}");
        assert_eq!(
            server.sql(&days).expect("days"),
            format!("{} 4", today() / DAY - 4)
        );
    }
    assert_eq!(server.number(WRONG).expect("compares"), 0);
}
