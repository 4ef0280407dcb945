// SPDX-License-Identifier: Apache-2.0
//! What a row claims: who inserted it, what it says, and what it adds to the counts.

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Reader, Writer};
use zt_agent::audit::query::GraphFilter;

use super::{DAY, Row, WRITER, insert, refused};
use crate::{batches, maker, ship, target, today, with_tables};

/// A row says who inserted it, so that what is found to be wrong has a culprit: nobody may say it is somebody else.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_inserts_in_anothers_name() {
    let server = with_tables().await;
    let rows = [
        Row::shape(),
        Row::record(&Row::shape()),
        Row::batch(),
        Row::checkpoint(),
        Row::signing_key(),
        Row::gap(),
    ];
    // Each table that a login writes to, as the server says.
    let written = server
        .sql(
            "SELECT string_agg(DISTINCT table_name, ' ' ORDER BY table_name) FROM information_schema.column_privileges
             WHERE grantee = 'zt_audit_writer' AND privilege_type = 'INSERT' AND table_schema = 'zt_audit'",
        )
        .expect("the list");
    let mut tried: Vec<&str> = rows.iter().map(|row| row.table).collect();
    tried.sort_unstable();
    assert_eq!(tried.join(" "), written);
    for row in &rows {
        for sql in ["'node'", "DEFAULT", "session_user"] {
            refused(
                &server,
                &row.clone().with("login", sql).sql(),
                "permission denied",
            );
        }
        refused(
            &server,
            &format!("COPY zt_audit.{} FROM STDIN", row.table),
            "permission denied",
        );
    }
    refused(
        &server,
        &Row::batch().with("received", "now() - interval '1 year'").sql(),
        "permission denied",
    );
    insert(&server, &rows);
    for row in &rows {
        let logins = format!(
            "SELECT string_agg(DISTINCT login, ',') FROM zt_audit.{}",
            row.table
        );
        assert_eq!(server.sql(&logins).expect("logins"), "mallory");
    }
    assert_eq!(
        server.sql("SELECT login FROM zt_audit.trail").expect("view"),
        "mallory"
    );
    assert_eq!(
        server.sql("SELECT login FROM zt_audit.bucket").expect("count"),
        "mallory"
    );
}

/// What is absurd, too long, of no host or no number of its kind would spoil sums, indexes and pages for everybody.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_row_says_is_checked() {
    let server = with_tables().await;
    // The longest names fit into the indexes.
    let longest = "left((SELECT string_agg(md5(n::text), '') FROM generate_series(1, 64) n), 2048)";
    let longest = Row::shape().with("source", longest).with("destination", longest);
    insert(&server, &[Row::shape(), Row::change(), longest]);
    let long = |length: u32| format!("repeat('x', {length})");
    let in_days = |days: i64| (today() / DAY + days).to_string();
    let at = |days: i64| (today() + days * DAY).to_string();
    for (column, sql, why) in [
        ("day", &*in_days(3), "shape_not_ahead"),
        ("day", "2147483647", "shape_not_ahead"),
        ("day", "0", "shape_day"),
        ("day", "-1", "shape_day"),
        ("source", &long(2049), "shape_lengths"),
        ("destination", &long(2049), "shape_lengths"),
        ("rule", &long(1025), "shape_lengths"),
        ("source_node", &long(1025), "shape_lengths"),
        ("destination_node", &long(1025), "shape_lengths"),
        ("cluster", &long(1025), "shape_lengths"),
        ("reason", &long(65), "shape_lengths"),
        ("port", "65536", "shape_numbers"),
        ("port", "-1", "shape_numbers"),
        ("protocol", "256", "shape_numbers"),
        ("part", "3", "shape_numbers"),
        ("decision", "'MAYBE'", "shape_whole"),
        ("source", "NULL", "shape_whole"),
        ("port", "NULL", "shape_whole"),
        ("proof", "NULL", "shape_whole"),
        ("type", "'mode_change'", "shape_whole"),
        ("type", "'identity_change'", "shape_whole"),
        ("type", "'of_later'", "shape_whole"),
    ] {
        refused(&server, &Row::shape().with(column, sql).sql(), why);
    }
    let record = || Row::record(&Row::shape());
    for (column, sql, why) in [
        ("time", &*at(3), "record_not_ahead"),
        ("time", "9223372036854775807", "record_not_ahead"),
        ("time", "0", "record_time"),
        ("time", "-9223372036854775808", "record_time"),
        ("seq", "0", "record_numbers"),
        ("hash", "'\\x00'", "record_numbers"),
        ("revision", "-1", "record_numbers"),
        ("latency", "-1", "record_numbers"),
        ("count", "0", "record_numbers"),
        ("count", "4294967296", "record_numbers"),
        ("source_port", "65536", "record_numbers"),
        ("pid", "-1", "record_numbers"),
        ("source_address", "'10.0.0.0/8'", "record_addresses"),
        ("destination_address", "'2001:db8::/32'", "record_addresses"),
        ("comm", &long(257), "record_lengths"),
        ("source_pod", &long(1025), "record_lengths"),
        ("destination_pod", &long(1025), "record_lengths"),
        ("caller", &long(4097), "record_lengths"),
        ("detail", "'\"' || repeat('x', 8388607) || '\"'", "record_lengths"),
        ("detail", "'no JSON'", "invalid input syntax for type json"),
    ] {
        refused(&server, &record().with(column, sql).sql(), why);
    }
    for (column, sql, why) in [
        ("first_seq", "0", "batch_numbers"),
        ("last_seq", "0", "batch_numbers"),
        ("dropped", "-1", "batch_numbers"),
        ("min_time", "9223372036854775807", "batch_numbers"),
        ("max_time", &*at(3), "batch_not_ahead"),
    ] {
        refused(&server, &Row::batch().with(column, sql).sql(), why);
    }
    refused(
        &server,
        &Row::checkpoint().with("text", &long(16_385)).sql(),
        "checkpoint_length",
    );
    refused(
        &server,
        &Row::signing_key().with("text", &long(16_385)).sql(),
        "signing_key_length",
    );
    refused(
        &server,
        &Row::gap().with("text", &long(16_385)).sql(),
        "gap_length",
    );
    assert_eq!(
        server
            .number("SELECT count(*) FROM zt_audit.record")
            .expect("count"),
        0
    );
    assert_eq!(
        server
            .number("SELECT count(*) FROM zt_audit.bucket")
            .expect("count"),
        0
    );
}

/// A shape is named by what it says: one that says something else would change what others' records say.
#[tokio::test(flavor = "multi_thread")]
async fn a_shape_says_what_its_id_is_the_hash_of() {
    let server = with_tables().await;
    let right = Row::shape();
    for (column, sql) in [
        ("source", "'world'"),
        ("destination", "'unknown'"),
        ("rule", "'p/rule-1'"),
        ("source_node", "'worker-1'"),
        ("destination_node", "''"),
        ("cluster", "''"),
        ("decision", "'DENY'"),
        ("mode", "'observe'"),
        ("observer", "'destination'"),
        ("hook", "'sendmsg'"),
        ("reason", "'no_rule'"),
        ("proof", "'tag'"),
        ("protocol", "17"),
        ("port", "444"),
        ("enforced", "false"),
        ("part", "1"),
    ] {
        let forged = Row::shape().with(column, sql).with("id", &right.id());
        refused(&server, &forged.sql(), "\"shape_id\"");
    }
    // What would be the same without the lengths.
    let shifted = Row::shape()
        .with("mode", "'enforces'")
        .with("observer", "'ource'")
        .with("id", &right.id());
    refused(&server, &shifted.sql(), "\"shape_id\"");
    // And without it: a record that nobody could read, and that a page would leave out.
    let why = "a shape that its login has not inserted";
    refused(&server, &Row::record(&right).sql(), why);
    insert(&server, std::slice::from_ref(&right));
    refused(
        &server,
        &Row::record(&right).with("shape", "gen_random_uuid()").sql(),
        why,
    );
    let yesterday = (today() - 1).to_string();
    refused(&server, &Row::record(&right).with("time", &yesterday).sql(), why);
    let node = server
        .attempt("node", WRITER, &Row::record(&right).sql())
        .expect("psql");
    assert!(node.expect_err("another's shape").contains(why));
}

/// A path that mallory chooses must not put other functions and operators into the checks and the counting.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_path_changes_nothing() {
    let server = with_tables().await;
    server
        .sql("CREATE SCHEMA evil AUTHORIZATION mallory")
        .expect("a schema that somebody else gave away");
    let mut session = server.session("mallory", "mallory").expect("a session");
    session
        .run(
            "CREATE FUNCTION evil.yes(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
             CREATE OPERATOR evil.= (FUNCTION = evil.yes, LEFTARG = uuid, RIGHTARG = uuid);
             CREATE FUNCTION evil.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT pg_catalog.sha256(''x'')';
             CREATE FUNCTION evil.least(bigint, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 7::bigint';
             CREATE FUNCTION evil.octet_length(text) RETURNS integer LANGUAGE sql AS 'SELECT 0'",
        )
        .expect("made");
    let path = "SET search_path = evil, pg_catalog, zt_audit; ";
    let forged = Row::shape().with("id", "gen_random_uuid()").sql();
    refused(&server, &format!("{path}{forged}"), "\"shape_id\"");
    let long = Row::shape().with("source", "repeat('x', 2049)").sql();
    refused(&server, &format!("{path}{long}"), "shape_lengths");
    let honest = Row::shape();
    let rows = format!("{path}{}; {}", honest.sql(), Row::record(&honest).sql());
    server
        .attempt("mallory", WRITER, &rows)
        .expect("psql")
        .expect("inserted");
    assert_eq!(
        server
            .sql("SELECT records, connections FROM zt_audit.bucket")
            .expect("count"),
        "1|1"
    );
}

/// Counts steer every filtered question and the graph: they are made of rows that are there, and of no claims.
#[tokio::test(flavor = "multi_thread")]
async fn counts_are_those_of_the_rows_that_are_there() {
    let server = with_tables().await;
    ship(&server, &maker(today(), 1000, 5), 500).await;
    let counts = "SELECT sum(records) || ' ' || sum(connections) FROM zt_audit.bucket";
    let rows = "SELECT count(*) || ' ' || sum(count) FROM zt_audit.record";
    let shape = Row::shape();
    let record = Row::record(&shape)
        .with("id", "md5('a')::uuid")
        .with("count", "3");
    insert(
        &server,
        &[
            shape.clone(),
            record.clone(),
            Row::batch().with("last_seq", "1000000"),
        ],
    );
    let twice = format!("{} ON CONFLICT DO NOTHING", record.sql());
    for sql in [&twice, &format!("BEGIN; {}; ROLLBACK", Row::record(&shape).sql())] {
        server
            .attempt("mallory", WRITER, sql)
            .expect("psql")
            .expect("done");
    }
    assert_eq!(
        server.sql(counts).expect("counts"),
        server.sql(rows).expect("rows")
    );
    for sql in [
        "INSERT INTO zt_audit.bucket VALUES (gen_random_uuid(), 1, 'node', 1, 1, 1, 1)",
        "SELECT zt_audit.count_records()",
        "SET session_replication_role = replica",
    ] {
        refused(&server, sql, "permission denied");
    }
    refused(
        &server,
        "ALTER TABLE zt_audit.record DISABLE TRIGGER count_records",
        "must be owner",
    );
}

/// Who sees the tables as they were would not see that a day has been added up, and what it inserts would not be in the sum.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_inserts_by_an_old_look_at_the_tables() {
    let server = with_tables().await;
    let shape = Row::shape();
    insert(&server, std::slice::from_ref(&shape));
    let record = Row::record(&shape).sql();
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        refused(
            &server,
            &format!("BEGIN ISOLATION LEVEL {level}; {record}; COMMIT"),
            "READ COMMITTED",
        );
    }
    for level in ["READ UNCOMMITTED", "READ COMMITTED"] {
        let sql = format!("BEGIN ISOLATION LEVEL {level}; {record}; COMMIT");
        let inserted = server.attempt("mallory", WRITER, &sql).expect("psql");
        inserted.expect(level);
    }
    // Nor does the database's own setting keep an agent from inserting.
    server
        .sql("ALTER DATABASE zt SET default_transaction_isolation = 'serializable'")
        .expect("set");
    ship(&server, &maker(today(), 1000, 5), 100).await;
}

/// A sum that runs over would have others' records refused, and given up.
#[tokio::test(flavor = "multi_thread")]
async fn no_sum_runs_over() {
    let server = with_tables().await;
    ship(&server, &maker(today(), 1000, 3), 200).await;
    let most = i64::MAX;
    server
        .sql(&format!(
            "UPDATE zt_audit.bucket SET records = {most}, connections = {most}"
        ))
        .expect("as if mallory had inserted records for a thousand years");
    let mut head = Head::new(Uuid::from_u128(9));
    let records = maker(today() + 1, 1000, 3).kept(0..200, &mut head);
    let mut writer = Writer::new(target(&server, "node"));
    for batch in batches(head.writer, &records, 1000) {
        assert!(writer.ship(&batch).await.expect("shipped"));
    }
    let run_over =
        format!("SELECT count(*) FROM zt_audit.bucket WHERE records < {most} OR connections < {most}");
    assert_eq!(server.number(&run_over).expect("counts"), 0);
    let graph = Reader::new(target(&server, "engine"))
        .graph(&GraphFilter::default())
        .await
        .expect("a graph");
    assert!(
        graph
            .edges
            .iter()
            .any(|edge| edge.allowed >= most.cast_unsigned())
    );
}
