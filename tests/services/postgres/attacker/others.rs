// SPDX-License-Identifier: Apache-2.0
//! What is done to others: their rows, their locks, their roles.

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Maintainer, Reader, Writer};
use zt_agent::audit::query::Filter;
use zt_agent::audit::record::{Entry, Kept};

use super::{MAINTAINER, Row, WRITER, newest_first, pages, refused};
use crate::{batches, maker, ship, target, today, with_tables};

/// What is inserted before a victim's rows are, with the same time, id, shape and number, must not take their places.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_hides_nothing() {
    let server = with_tables().await;
    let mut head = Head::new(Uuid::from_u128(7));
    let records = maker(today(), 1_000_000, 9).kept(0..1500, &mut head);
    let mut forged = records.clone();
    for kept in &mut forged {
        if let Entry::Decision(record) = &mut kept.entry {
            record.revision = 666;
            record.source.comm = Some("mallory".into());
        }
    }
    let mut mallory = Writer::new(target(&server, "mallory"));
    for batch in batches(head.writer, &forged, 500) {
        assert!(mallory.ship(&batch).await.expect("shipped"));
    }
    let mut node = Writer::new(target(&server, "node"));
    for batch in batches(head.writer, &records, 500) {
        let batch = Batch { dropped: 1, ..batch };
        assert!(node.ship(&batch).await.expect("shipped"), "new to this login");
        assert!(!node.ship(&batch).await.expect("shipped again"));
    }
    let number = |sql: &str| server.number(sql).expect(sql);
    assert_eq!(
        number("SELECT count(*) FROM zt_audit.record WHERE login = 'node'"),
        1500
    );
    assert_eq!(
        number("SELECT sum(records) FROM zt_audit.bucket WHERE login = 'node'"),
        1500
    );
    assert_eq!(
        number("SELECT sum(dropped) FROM zt_audit.batch WHERE login = 'node'"),
        3
    );
    // Both are told, whatever the page: no cursor comes to lie between them.
    let reader = Reader::new(target(&server, "engine"));
    let mut expected: Vec<Kept> = records.clone();
    newest_first(&mut expected);
    let filters = [
        Filter::default(),
        Filter {
            port: Some(443),
            ..Filter::default()
        },
    ];
    for filter in filters {
        let expected: Vec<&Kept> = expected.iter().filter(|kept| filter.takes(&kept.entry)).collect();
        for limit in [1, 2, 7, 1000] {
            if limit < 3 && filter.port.is_none() {
                continue;
            }
            let pages = pages(&reader, &filter, limit).await;
            assert!(pages.iter().all(|page| page.records.len() <= limit as usize + 1));
            let found: Vec<Kept> = pages.into_iter().flat_map(|page| page.records).collect();
            // What is no decision was not changed: those are there twice.
            let mut honest: Vec<&Kept> = found
                .iter()
                .filter(|kept| kept.entry.decision().is_none_or(|record| record.revision != 666))
                .collect();
            honest.dedup();
            assert_eq!(found.len(), expected.len() * 2);
            assert!(honest == expected, "limit {limit}");
        }
    }
    // Checkpoints and keys of the same content.
    let checkpoint = Row::checkpoint().with("writer", "md5('w')::uuid").sql();
    for login in ["mallory", "node"] {
        for sql in [&checkpoint, &Row::signing_key().sql()] {
            server
                .attempt(login, WRITER, sql)
                .expect("psql")
                .expect("inserted");
        }
    }
    assert_eq!(
        number("SELECT count(*) FROM zt_audit.checkpoint WHERE login = 'node'"),
        1
    );
    assert_eq!(
        number("SELECT count(*) FROM zt_audit.signing_key WHERE login = 'node'"),
        1
    );
}

/// Rows of a transaction that never ends must not make others wait for what becomes of them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_committed_delays_nothing() {
    let server = with_tables().await;
    let shape = Row::shape();
    let rows = [
        shape.clone(),
        Row::record(&shape)
            .with("id", "md5('r')::uuid")
            .with("writer", "md5('w')::uuid"),
        Row::batch().with("writer", "md5('w')::uuid"),
        Row::checkpoint().with("writer", "md5('w')::uuid"),
        Row::signing_key(),
    ];
    let mut session = server.session("mallory", WRITER).expect("a session");
    session.run("BEGIN").expect("begun");
    for row in &rows {
        session.run(&row.sql()).expect("inserted");
    }
    for row in &rows {
        let sql = format!("SET lock_timeout = '60s'; {}", row.sql());
        server
            .attempt("node", WRITER, &sql)
            .expect("psql")
            .expect("without waiting");
    }
    session.run("COMMIT").expect("still there");
    for row in &rows {
        let both = format!("SELECT count(DISTINCT login) FROM zt_audit.{}", row.table);
        assert_eq!(server.number(&both).expect("count"), 2, "{}", row.table);
    }
}

/// A lock that is held for ever would keep partitions from being made and dropped.
#[tokio::test(flavor = "multi_thread")]
async fn who_holds_locks_is_thrown_out() {
    let server = with_tables().await;
    let tomorrow = server
        .sql("SELECT 'zt_audit.record_' || to_char(now() AT TIME ZONE 'UTC' + interval '1 day', 'YYYYMMDD')")
        .expect("a name");
    server.sql(&format!("DROP TABLE {tomorrow}")).expect("dropped");
    // Preparing a statement locks its table, whether or not one may run it.
    let mut mallory = server.session("mallory", WRITER).expect("a session");
    mallory
        .run("BEGIN; PREPARE s AS SELECT * FROM zt_audit.record_other; PREPARE m AS SELECT * FROM zt_audit.upkeep")
        .expect("prepared");
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("not kept out");
    let error = maintainer.keep(None).await.expect_err("locked");
    assert!(!error.is_of_the_batch());
    // Who reads for long is left alone, and so is who has only begun.
    let mut reading = server.session("engine", "zt_audit_reader").expect("a session");
    reading
        .run("BEGIN; SELECT count(*) FROM zt_audit.signing_key")
        .expect("reads");
    let end = |older: &str| {
        let sql = format!("SELECT zt_audit.end_old_transactions('{older}')");
        server
            .attempt("keeper", MAINTAINER, &sql)
            .expect("psql")
            .expect("ended")
    };
    assert_eq!(end("5 minutes"), "0");
    assert_eq!(end("0 seconds"), "1");
    assert!(mallory.run("SELECT 1").is_err(), "thrown out");
    reading.run("SELECT 1").expect("not thrown out");
    assert_eq!(maintainer.keep(None).await.expect("kept").made, 1);
    refused(
        &server,
        "SELECT zt_audit.end_old_transactions('0 seconds')",
        "permission denied",
    );
}

/// Advisory locks are everybody's: nothing of ours may wait for one.
#[tokio::test(flavor = "multi_thread")]
async fn advisory_locks_stop_nobody() {
    let server = with_tables().await;
    let mut mallory = server.session("mallory", WRITER).expect("a session");
    // The one that `sqlx` takes by itself for migrations in a database of the name `zt`.
    mallory
        .run("SELECT pg_advisory_lock(3365551781380221044)")
        .expect("locked");
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("opened");
    maintainer.keep(Some(365)).await.expect("kept");
    ship(&server, &maker(today(), 1000, 5), 10).await;
}

/// What a login of PostgreSQL may do by default, and what a role might be got to do.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind_and_nobody_becomes_another() {
    let server = with_tables().await;
    let mut node = server.session("node", WRITER).expect("a session");
    let pid = node.run("SELECT pg_backend_pid()").expect("a pid");
    for sql in [
        "CREATE TEMPORARY TABLE mine (a int)",
        "CREATE TABLE public.mine (a int)",
        "CREATE TABLE zt_audit.mine (a int)",
        "CREATE TABLE zt_audit.record_20200101 PARTITION OF zt_audit.record FOR VALUES FROM (0) TO (1)",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION zt_audit.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE EXTENSION dblink",
        "CREATE SEQUENCE zt_audit.mine",
        "CREATE TRIGGER mine AFTER INSERT ON zt_audit.record EXECUTE FUNCTION zt_audit.count_records()",
        "SELECT lo_create(0)",
        "SELECT lo_creat(-1)",
        "SELECT lo_from_bytea(0, 'x')",
        "SET ROLE zt_audit_maintainer",
        "SET ROLE zt_audit_reader",
        "SET ROLE node",
        "SET SESSION AUTHORIZATION node",
        "GRANT zt_audit_reader TO mallory",
        "GRANT SELECT ON zt_audit.record TO mallory",
        "ALTER ROLE node NOLOGIN",
        "BEGIN; LOCK TABLE zt_audit.upkeep",
        "BEGIN; LOCK TABLE zt_audit.upkeep IN SHARE UPDATE EXCLUSIVE MODE",
        "BEGIN; LOCK TABLE zt_audit.record IN ACCESS EXCLUSIVE MODE",
        "COPY zt_audit.record TO STDOUT",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT pg_reload_conf()",
        "EXPLAIN SELECT * FROM zt_audit.record",
        "SELECT nextval('zt_audit.mine')",
        &format!("SELECT pg_terminate_backend({pid})"),
    ] {
        let said = server.refusal("mallory", WRITER, sql).expect(sql);
        let expected = [
            "permission denied",
            "must be",
            "must have admin option",
            "does not exist",
        ];
        assert!(expected.iter().any(|why| said.contains(why)), "{sql}: {said}");
    }
    node.run("SELECT 1").expect("still there");
    let left = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relowner = 'mallory'::regrole";
    assert_eq!(server.number(left).expect("count"), 0);
    // What stays is heard by nobody of ours.
    for sql in [
        "NOTIFY zt",
        "SELECT pg_notify('zt_audit', 'x')",
        "SELECT zt_audit.tomorrow()",
    ] {
        server.attempt("mallory", WRITER, sql).expect("psql").expect(sql);
    }
}
