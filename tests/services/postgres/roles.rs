// SPDX-License-Identifier: Apache-2.0
//! What each role may do, and that it may do nothing else.

use zt_agent::audit::postgres::{Maintainer, Reader, Writer};
use zt_agent::audit::query::{Filter, GraphFilter};
use zt_tests::postgres::Server;

use super::{maker, server, ship, target, today, with_tables};

/// What the reader's role reads, and nothing else.
const READ: [&str; 12] = [
    "zt_audit.batch",
    "zt_audit.bucket",
    "zt_audit.bucket_day",
    "zt_audit.checkpoint",
    "zt_audit.facet",
    "zt_audit.gap",
    "zt_audit.name",
    "zt_audit.record",
    "zt_audit.shape",
    "zt_audit.signing_key",
    "zt_audit.trail",
    "zt_audit.whole_day",
];
/// What the writer's role inserts into, and nothing else.
const WRITTEN: [&str; 6] = [
    "zt_audit.batch",
    "zt_audit.checkpoint",
    "zt_audit.gap",
    "zt_audit.record",
    "zt_audit.shape",
    "zt_audit.signing_key",
];
const VIEW: &str = "zt_audit.trail";
const DENIED: &str = "permission denied";

/// What nobody can change for it is a view is not even asked for.
fn is_of_the_view(sql: &str, said: &str) -> bool {
    sql.contains(VIEW) && (said.contains("is not a table") || said.contains("view \"trail\""))
}

/// Everything in the schema that rows can be read from or written to, as the server says: a table that a later version adds
/// is here by itself.
fn relations(server: &Server) -> Vec<String> {
    let sql = "SELECT string_agg(c.oid::regclass::text, ' ' ORDER BY c.oid) FROM pg_class c
        WHERE relnamespace = 'zt_audit'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')";
    let all = server.sql(sql).expect("the list");
    let all: Vec<String> = all.split(' ').map(str::to_owned).collect();
    for known in READ.iter().chain(&["zt_audit.record_other", "zt_audit.upkeep"]) {
        assert!(all.iter().any(|one| one == known), "{known} is not in {all:?}");
    }
    assert!(all.len() > READ.len() + 3, "partitions: {all:?}");
    all
}

/// A change of a relation that reads nothing of it; `None` of one that has no column.
fn update(server: &Server, table: &str) -> Option<String> {
    let first = format!(
        "SELECT quote_ident(attname) FROM pg_attribute
         WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum LIMIT 1"
    );
    let column = server.sql(&first).expect("a column");
    (!column.is_empty()).then(|| format!("UPDATE {table} SET {column} = DEFAULT"))
}

/// The columns that a role may change, of all that there are.
fn changeable(server: &Server, role: &str) -> String {
    let sql = format!(
        "SELECT coalesce(string_agg(attrelid::regclass || '.' || attname, ' '), '')
         FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
         WHERE relnamespace = 'zt_audit'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
           AND attnum > 0 AND NOT attisdropped AND has_column_privilege('{role}', attrelid, attnum, 'UPDATE')"
    );
    server.sql(&sql).expect("columns")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_inserts_and_nothing_else() {
    let server = with_tables().await;
    ship(&server, &maker(today(), 1000, 10), 100).await;
    let partition = server
        .sql("SELECT tableoid::regclass FROM zt_audit.record LIMIT 1")
        .expect("a partition");
    let relations = relations(&server);
    assert!(relations.contains(&partition), "{partition}: {relations:?}");
    for table in &relations {
        if !WRITTEN.contains(&table.as_str()) {
            let sql = format!("INSERT INTO {table} DEFAULT VALUES");
            let said = server.refusal("node", "zt_audit_writer", &sql).expect(&sql);
            assert!(
                said.contains(DENIED) || is_of_the_view(&sql, &said),
                "{sql}: {said}"
            );
        }
        for sql in [
            format!("SELECT * FROM {table}"),
            format!("SELECT count(*) FROM {table}"),
            format!("SELECT FROM {table} LIMIT 1"),
            format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
            format!("COPY (SELECT * FROM {table}) TO STDOUT"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
        ]
        .into_iter()
        .chain(update(&server, table))
        {
            let said = server.refusal("node", "zt_audit_writer", &sql).expect(&sql);
            assert!(
                said.contains(DENIED) || is_of_the_view(&sql, &said),
                "{sql}: {said}"
            );
        }
        if table == VIEW {
            continue;
        }
        for sql in [
            format!("DROP TABLE {table}"),
            format!("ALTER TABLE {table} DISABLE TRIGGER ALL"),
        ] {
            let said = server.refusal("node", "zt_audit_writer", &sql).expect(&sql);
            assert!(said.contains("must be owner"), "{sql}: {said}");
        }
    }
    assert_eq!(changeable(&server, "zt_audit_writer"), "");
    for sql in [
        "UPDATE zt_audit.record SET revision = 8 WHERE false",
        "INSERT INTO zt_audit.bucket VALUES (gen_random_uuid(), 1, 'node', 1, 1, 1, 1)",
        "INSERT INTO zt_audit.bucket_day VALUES (gen_random_uuid(), 1, 'node', 1, 1, 1)",
        "INSERT INTO zt_audit.whole_day VALUES (1)",
        "INSERT INTO zt_audit.facet (id, type, login) VALUES (gen_random_uuid(), 'decision', 'node')",
        &format!("INSERT INTO {partition} SELECT * FROM {partition}"),
        "INSERT INTO zt_audit.batch SELECT * FROM zt_audit.batch",
        "INSERT INTO zt_audit.shape (day, id, type, cluster, part) VALUES (0, gen_random_uuid(), '', '', 0) RETURNING id",
        "INSERT INTO zt_audit.shape (day, id, type, cluster, part) VALUES (0, gen_random_uuid(), '', '', 0)
         ON CONFLICT (day, id, login) DO UPDATE SET type = ''",
        "SELECT zt_audit.count_records()",
        "SET temp_file_limit = -1",
        "CREATE TABLE zt_audit.mine (a int)",
        "SET ROLE zt_audit_maintainer",
    ] {
        let said = server.refusal("node", "zt_audit_writer", sql).expect(sql);
        assert!(
            said.contains(DENIED) || is_of_the_view(sql, &said),
            "{sql}: {said}"
        );
    }
    assert_eq!(
        server
            .number("SELECT count(*) FROM zt_audit.record")
            .expect("count"),
        100
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reader_reads_and_nothing_else() {
    let server = with_tables().await;
    ship(&server, &maker(today(), 1000, 10), 100).await;
    for table in relations(&server) {
        let sql = format!("SELECT count(*) FROM {table}");
        let counted = server.attempt("engine", "zt_audit_reader", &sql).expect("psql");
        // Partitions are read through their table, and what is for the maintainer by nobody else.
        if READ.contains(&table.as_str()) {
            assert!(counted.is_ok(), "{counted:?}");
        } else {
            let said = counted.expect_err(&sql);
            assert!(said.contains(DENIED), "{sql}: {said}");
        }
        for sql in [
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
            format!("INSERT INTO {table} DEFAULT VALUES"),
            format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
        ]
        .into_iter()
        .chain(update(&server, &table))
        {
            let said = server.refusal("engine", "zt_audit_reader", &sql).expect(&sql);
            assert!(
                said.contains(DENIED) || is_of_the_view(&sql, &said),
                "{sql}: {said}"
            );
        }
    }
    assert_eq!(changeable(&server, "zt_audit_reader"), "");
    for sql in [
        "CREATE TABLE zt_audit.mine (a int)",
        "SELECT zt_audit.end_old_transactions('0 seconds')",
        "SET ROLE zt_audit_maintainer",
    ] {
        let said = server.refusal("engine", "zt_audit_reader", sql).expect(sql);
        assert!(
            said.contains(DENIED) || is_of_the_view(sql, &said),
            "{sql}: {said}"
        );
    }
    // It bounds what its questions take of the server's disk.
    let bounded = server.attempt(
        "engine",
        "zt_audit_reader",
        "SET temp_file_limit = '1GB'; SHOW temp_file_limit",
    );
    assert_eq!(bounded.expect("psql"), Ok("1GB".to_owned()));
    let reader = Reader::new(target(&server, "engine"));
    assert_eq!(
        reader
            .query(&Filter::default(), None, 1000)
            .await
            .expect("page")
            .records
            .len(),
        100
    );
    assert!(
        !reader
            .graph(&GraphFilter::default())
            .await
            .expect("graph")
            .edges
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_without_the_role_is_told_what_it_lacks() {
    let server = with_tables().await;
    // A node may write and not read, though it asks for the reader's role.
    for login in ["node", "stranger"] {
        let reader = Reader::new(target(&server, login));
        let error = reader
            .query(&Filter::default(), None, 1)
            .await
            .expect_err("refused");
        assert_eq!(error.cause(), "permission", "{error}");
        assert!(error.to_string().contains("as zt_audit_reader"), "{error}");
        assert!(error.to_string().contains("GRANT"), "{error}");
    }
    let error = Maintainer::open(&target(&server, "engine"))
        .await
        .expect_err("refused");
    assert_eq!(error.cause(), "permission", "{error}");
    let batch = super::batches(uuid::Uuid::nil(), &[], 1);
    assert!(batch.is_empty());
    let mut writer = Writer::new(target(&server, "keeper"));
    let records = maker(today(), 1, 3).kept(0..1, &mut zt_agent::audit::chain::Head::new(uuid::Uuid::nil()));
    let batch = super::batches(uuid::Uuid::nil(), &records, 1).remove(0);
    let error = writer.ship(&batch).await.expect_err("refused");
    assert_eq!(error.cause(), "permission", "{error}");
    assert!(!error.is_of_the_batch());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_roles_the_advice_is_to_make_them() {
    let server = server();
    server
        .sql("DROP SCHEMA zt_audit CASCADE; DROP OWNED BY zt_audit_reader; DROP ROLE zt_audit_reader")
        .expect("dropped");
    let reader = Reader::new(target(&server, "engine"));
    let error = reader
        .query(&Filter::default(), None, 1)
        .await
        .expect_err("refused")
        .to_string();
    assert!(error.contains("roles.sql"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_tables_are_made_an_answer_says_who_makes_them() {
    let server = server();
    let reader = Reader::new(target(&server, "engine"));
    let asked = reader.query(&Filter::default(), None, 1).await;
    let error = asked.expect_err("refused").to_string();
    assert!(error.contains("zt_audit_maintainer"), "{error}");
    let shipped = Writer::new(target(&server, "node")).seal(&[], &[], &[]).await;
    // Nothing to keep is nothing to refuse.
    assert!(shipped.is_ok(), "{shipped:?}");
}

#[test]
fn the_roles_can_be_made_again() {
    let server = server();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/postgres/roles.sql");
    let script = std::fs::read_to_string(script).expect("script");
    server.sql(&script).expect("again");
}
