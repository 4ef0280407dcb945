// SPDX-License-Identifier: Apache-2.0
//! What the server adds up, it adds up in its memory and in bounded time, and no page waits for it.

use std::time::{Duration, Instant};

use zt_agent::audit::postgres::{Maintainer, PgError, Reader};
use zt_agent::audit::query::{Begins, Filter, Fold, GraphFilter, HOUR, RuleHits, TooMuch};
use zt_agent::audit::record::Outcome;
use zt_tests::postgres::Server;

use super::cluster::until;
use super::{blocks, kinds, maker, ship, target, today, with_tables};

const DAY: i64 = 24 * HOUR;
/// Kinds of a day that is added up, and of each of two that are not. Sorted, or looked up at a time by a hash, those of the
/// first do not fit into the memory that a server has by itself for a question.
const MANY: u64 = 40_000;
const FEW: u64 = 10_000;

/// Temporary files of connections that have ended.
async fn temporary(server: &Server) -> u64 {
    blocks(server).await;
    let bytes = "SELECT temp_bytes FROM pg_stat_database WHERE datname = 'zt'";
    server.number(bytes).expect("bytes")
}

/// A day with many kinds that is added up, and two with fewer that are not.
async fn with_kinds() -> Server {
    let server = with_tables().await;
    kinds::day_of(&server, today() - DAY, MANY, 24);
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    assert_eq!(
        maintainer.keep(None).await.expect("kept").added_up,
        0,
        "it was, and what came is in both counts"
    );
    maintainer.close().await.expect("closes");
    kinds::day_of(&server, today() - 2 * DAY, FEW, 3);
    kinds::day_of(&server, today(), FEW, 5);
    server.sql("ANALYZE").expect("analyzed");
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_of_any_number_are_added_up_without_temporary_files() {
    let server = with_kinds().await;
    assert_eq!(
        server
            .number("SELECT count(*) FROM zt_audit.bucket_day")
            .expect("a count"),
        MANY
    );
    let before = temporary(&server).await;
    let all = GraphFilter::default();
    // All at once, the small days together, and each in parts.
    for kinds in [None, Some(30_000), Some(7000)] {
        let reader = Reader::new(target(&server, "engine"));
        let reader = match kinds {
            None => reader,
            Some(kinds) => reader.adding_up_at_most(kinds),
        };
        let graph = reader.graph(&all).await.expect("a graph");
        assert_eq!(graph.edges.len() as u64, MANY, "{kinds:?}");
        for edge in &graph.edges {
            let days = if u64::from(edge.port) <= FEW { 3 } else { 1 };
            assert_eq!((edge.allowed, edge.denied), (days, 0), "{kinds:?}: {edge:?}");
        }
        let traffic = reader.traffic(&all, &Fold::nothing()).await;
        let traffic = traffic.expect("connections");
        let seen: Vec<_> = traffic.seen.iter().map(|seen| &seen.edge).collect();
        assert_eq!(seen, graph.edges.iter().collect::<Vec<_>>(), "{kinds:?}");
        let rules: RuleHits = reader.rules(&all, &Begins::default()).await.expect("hits");
        let hits: Vec<_> = rules
            .iter()
            .map(|(rule, decided)| (rule.as_deref(), decided.all().map(|hits| hits.allowed)))
            .collect();
        assert_eq!(hits, [(None, Some(MANY + 2 * FEW))], "{kinds:?}");
        reader.close().await;
    }
    assert_eq!(temporary(&server).await, before, "bytes of temporary files");
}

/// Fails where the server keeps what the newest day's shapes say instead of their sums, for it takes a day for empty of which it has no
/// statistics yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_the_server_knows_nothing_of_is_added_up_without_temporary_files() {
    let server = with_tables().await;
    kinds::day_of(&server, today() - DAY, MANY, 5);
    server
        .sql("ALTER TABLE zt_audit.shape SET (autovacuum_enabled = off); ANALYZE; ALTER ROLE engine SET hash_mem_multiplier = 1")
        .expect("analyzed");
    // What these say takes more room than there is; each fits into a page's quarter, and so is not compressed.
    let (from, to) = ("a".repeat(880), "b".repeat(880));
    kinds::day_between(&server, (from.as_str(), to.as_str()), today(), MANY, 5);
    let before = temporary(&server).await;
    // Each of both days fits alone.
    let reader = Reader::new(target(&server, "engine")).adding_up_at_most(60_000);
    let graph = reader.graph(&GraphFilter::default()).await.expect("a graph");
    assert_eq!(graph.edges.len() as u64, 2 * MANY);
    let traffic = reader.traffic(&GraphFilter::default(), &Fold::nothing()).await;
    assert_eq!(traffic.expect("connections").seen.len() as u64, 2 * MANY);
    reader.close().await;
    assert_eq!(temporary(&server).await, before, "bytes of temporary files");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_not_added_up_to_its_end() {
    let server = with_kinds().await;
    let all = GraphFilter::default();
    let mut looked_at = [0; 2];
    for (looked_at, most) in looked_at.iter_mut().zip([usize::MAX, 100]) {
        let before = blocks(&server).await;
        let reader = Reader::new(target(&server, "engine")).adding_up_at_most(5000);
        let fold = Fold::nothing().at_most(most, usize::MAX);
        let traffic = reader.traffic(&all, &fold).await;
        match traffic {
            Ok(traffic) => assert_eq!(traffic.seen.len() as u64, MANY),
            Err(PgError::TooMuch(TooMuch::Seen(100))) => assert_eq!(most, 100),
            Err(error) => panic!("{error}"),
        }
        reader.close().await;
        *looked_at = blocks(&server).await - before;
    }
    assert!(looked_at[1] < looked_at[0] / 5, "{looked_at:?} blocks");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_more_room_than_the_server_gives_is_too_much() {
    let server = with_tables().await;
    ship(&server, &maker(today() - DAY, DAY / 100, 5), 50).await;
    // Far more kinds than the shapes let expect.
    let lie = format!(
        "INSERT INTO zt_audit.bucket_day SELECT gen_random_uuid(), {}, 'node', 1, 1, 1 FROM generate_series(1, 700000)",
        today() / DAY - 1
    );
    server.sql(&lie).expect("inserted");
    server
        .sql("ANALYZE; ALTER ROLE engine SET temp_file_limit = '1MB'")
        .expect("bounded");
    let reader = Reader::new(target(&server, "engine"));
    let error = reader.graph(&GraphFilter::default()).await.expect_err("refused");
    assert!(matches!(error, PgError::TooMuch(TooMuch::Room)), "{error}");
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_waits_for_sums_and_those_that_take_too_long_are_slow() {
    const QUESTIONS: usize = 6;
    let server = with_tables().await;
    ship(&server, &maker(today(), HOUR / 100, 5), 200).await;
    let reader = Reader::new(target(&server, "engine"));
    // Sums read a table that pages do not: as long as it is locked, each waits in the server.
    let mut holding = server.session("postgres", "postgres").expect("a session");
    holding
        .run("BEGIN; LOCK TABLE zt_audit.whole_day IN ACCESS EXCLUSIVE MODE")
        .expect("locked");
    let asked = Instant::now();
    let sums: Vec<_> = (0..QUESTIONS)
        .map(|_| {
            let reader = reader.clone();
            tokio::spawn(async move { reader.graph(&GraphFilter::default()).await })
        })
        .collect();
    let waiting = || {
        let locks =
            "SELECT count(*) FROM pg_locks WHERE relation = 'zt_audit.whole_day'::regclass AND NOT granted";
        server.number(locks).expect("a count") >= 2
    };
    until("sums to wait in the server", async || waiting()).await;
    let denied = Filter {
        decision: Some(Outcome::Deny),
        ..Filter::default()
    };
    for filter in [Filter::default(), denied] {
        let page = reader.query(&filter, None, 10).await.expect("a page");
        assert_eq!(page.records.len(), 10);
    }
    assert!(waiting(), "and sums still do");
    let mut slow = 0;
    for sum in sums {
        let error = sum.await.expect("no panic").expect_err("locked");
        slow += usize::from(error.cause() == "slow");
    }
    assert!(slow >= 2, "{slow}");
    assert!(asked.elapsed() < Duration::from_secs(60), "{:?}", asked.elapsed());
    holding.run("ROLLBACK").expect("unlocked");
    reader.graph(&GraphFilter::default()).await.expect("a graph");
    reader.close().await;
}
