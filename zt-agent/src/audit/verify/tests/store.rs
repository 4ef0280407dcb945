// SPDX-License-Identifier: Apache-2.0
//! Tampering with the database.

use std::fmt::Write as _;

use proptest::prelude::*;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use super::*;

/// Each changes something of the entry `{n}` (or of what it refers to), whatever it said.
const CHANGES: [&str; 27] = [
    "UPDATE record SET id = randomblob(16) WHERE row = {n}",
    "UPDATE record SET time = time + 1 WHERE row = {n}",
    "UPDATE record SET revision = revision + 1 WHERE row = {n}",
    "UPDATE record SET caller = 'nobody' WHERE row = {n}",
    "UPDATE record SET hash = randomblob(32) WHERE row = {n}",
    "UPDATE record SET hash = NULL WHERE row = {n}",
    "UPDATE record SET change = '{\"mode\":\"other\"}' WHERE row = {n}",
    "UPDATE record SET shape = (SELECT id FROM shape s WHERE s.id <> record.shape ORDER BY id LIMIT 1) WHERE row = {n}",
    "UPDATE record SET shape = 99999 WHERE row = {n}",
    "UPDATE record SET row = 5000 + row WHERE row = {n}",
    "UPDATE record SET row = -row WHERE row = {n}",
    "DELETE FROM record WHERE row = {n}",
    "DELETE FROM record WHERE row >= {n}",
    "DELETE FROM record WHERE row <= {n}",
    "DELETE FROM record WHERE row <= {n}; UPDATE trail SET pruned_row = {n}",
    // Two change places.
    "UPDATE record SET row = -100 WHERE row = {n}; UPDATE record SET row = {n} WHERE row = {n} % 119 + 2;
        UPDATE record SET row = {n} % 119 + 2 WHERE row = -100",
    // One comes in behind {n}, and those after it move up.
    "UPDATE record SET row = -row - 1 WHERE row > {n}; UPDATE record SET row = -row WHERE row < 0;
        INSERT INTO record SELECT {n} + 1, id, time, shape, revision, latency, source_address, source_port,
            destination_address, pid, comm, source_pod, destination_pod, caller, count, change, hash
        FROM record WHERE row = {n}",
    // One goes, and those after it move down.
    "DELETE FROM record WHERE row = {n}; UPDATE record SET row = -row WHERE row > {n};
        UPDATE record SET row = -row - 1 WHERE row < 0",
    "UPDATE name SET text = text || 'x'
        WHERE id = (SELECT source_node FROM shape WHERE id = (SELECT shape FROM record WHERE row = {n}))",
    "UPDATE shape SET cluster = cluster + 1 WHERE id = (SELECT shape FROM record WHERE row = {n})",
    "UPDATE shape SET hook = 'sendmsg' WHERE id = (SELECT shape FROM record WHERE row = {n})",
    "UPDATE checkpoint SET text = replace(text, '\"seq\":', '\"seq\":1') WHERE row = 1 + {n} % 3",
    "UPDATE checkpoint SET text = (SELECT text FROM checkpoint WHERE row = 1); DELETE FROM record WHERE row > 34",
    "DELETE FROM checkpoint",
    "DELETE FROM signing_key WHERE row = 1 + {n} % 2",
    "UPDATE signing_key SET text = replace(text, '\"created\":\"2', '\"created\":\"1') WHERE row = 1 + {n} % 2",
    "UPDATE trail SET writer = randomblob(16)",
];

/// Changes of what only decisions have; `{n}` is one.
const OF_DECISIONS: [&str; 15] = [
    "UPDATE record SET latency = latency + 1 WHERE row = {n}",
    "UPDATE record SET source_address = x'01020304' WHERE row = {n}",
    "UPDATE record SET source_port = 1 WHERE row = {n}",
    "UPDATE record SET destination_address = NULL WHERE row = {n}",
    "UPDATE record SET pid = pid + 1 WHERE row = {n}",
    "UPDATE record SET comm = 'init' WHERE row = {n}",
    "UPDATE record SET comm = NULL WHERE row = {n}",
    "UPDATE record SET source_pod = NULL WHERE row = {n}",
    "UPDATE record SET destination_pod = 1 WHERE row = {n}",
    "UPDATE record SET count = count + 1 WHERE row = {n}",
    "UPDATE shape SET decision = iif(decision = 'ALLOW', 'DENY', 'ALLOW')
        WHERE id = (SELECT shape FROM record WHERE row = {n})",
    "UPDATE shape SET enforced = 1 - enforced WHERE id = (SELECT shape FROM record WHERE row = {n})",
    "UPDATE shape SET port = port + 1 WHERE id = (SELECT shape FROM record WHERE row = {n})",
    "UPDATE shape SET rule = (SELECT max(id) FROM name WHERE id <> shape.rule)
        WHERE id = (SELECT shape FROM record WHERE row = {n})",
    "UPDATE shape SET observer = 'destination' WHERE id = (SELECT shape FROM record WHERE row = {n})",
];

pub(super) async fn tamper(file: &Path, sql: &str) {
    let options = SqliteConnectOptions::new().filename(file);
    let mut connection: SqliteConnection = options.connect().await.expect("opens");
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    connection.close().await.expect("closes");
}

#[tokio::test]
async fn a_trail_as_it_was_written_is_clean() {
    let world = World::new().await;
    let report = world.report(&world.file()).await;
    assert_eq!(report.findings, []);
    assert_eq!(report.entries, ENTRIES);
    assert!(report.checkpoints >= 4, "{report:?}");
    let [writer] = &report.writers[..] else {
        panic!("one writer: {report:?}")
    };
    assert_eq!(
        (writer.sealed, writer.behind, writer.records),
        (ENTRIES, 0, ENTRIES)
    );
}

#[test]
fn whatever_is_done_to_the_file_is_found() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let world = runtime.block_on(World::new());
    let copy = world.directory.path().join("copy.db");
    let ways = CHANGES.len() + OF_DECISIONS.len();
    let way = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(ways as u32 * 2));
    let found = runner.run(&(1_u64..ENTRIES), |number| {
        // Each way as often as any other.
        way.set((way.get() + 1) % ways);
        let sql = CHANGES.iter().chain(&OF_DECISIONS).nth(way.get()).expect("a way");
        // Rows begin at 1: those whose number ends in 2 are decisions of the kernel.
        let of_decisions = way.get() >= CHANGES.len();
        let row = if of_decisions {
            number / 10 * 10 + 2
        } else {
            number
        };
        let sql = sql.replace("{n}", &row.to_string());
        std::fs::copy(world.file(), &copy).expect("copies");
        let report = runtime.block_on(async {
            tamper(&copy, &sql).await;
            world.try_report(&copy).await
        });
        prop_assert!(
            !report.is_ok_and(|report| report.is_clean()),
            "not found: {}",
            sql
        );
        Ok(())
    });
    found.expect("each is found");
}

#[tokio::test]
async fn a_changed_entry_is_named_and_no_other() {
    let world = World::new().await;
    tamper(&world.file(), "UPDATE record SET pid = 1 WHERE row = 43").await;
    let report = world.report(&world.file()).await;
    assert_eq!(report.count, 1, "{:?}", report.findings);
    assert!(
        matches!(report.findings[0], Finding::Changed { seq: 43, .. }),
        "{:?}",
        report.findings
    );

    tamper(&world.file(), "DELETE FROM record WHERE row IN (60, 61)").await;
    let findings = world.of_entries(&world.file()).await;
    assert!(
        matches!(
            findings[1],
            Finding::Missing {
                first: 60,
                last: 61,
                ..
            }
        ),
        "{findings:?}"
    );
    assert_eq!(findings.len(), 2, "{findings:?}");
}

#[tokio::test]
async fn who_writes_every_hash_anew_cannot_sign() {
    let world = World::new().await;
    // As an attacker would: the entry is changed and the chain from there on is made again.
    tamper(&world.file(), "UPDATE record SET pid = 1 WHERE row = 43").await;
    let mut reader = Reader::open(&World::dsn(&world.file())).await.expect("opens");
    let all = reader.more().await.expect("reads");
    assert_eq!(all.len() as u64, ENTRIES);
    drop(reader);
    let mut head = Head::new(all[0].writer);
    let mut sql = String::new();
    for found in &all {
        let link = head.link(&found.kept.as_ref().expect("readable").entry);
        let (hash, row) = (link.hash, link.seq);
        write!(sql, "UPDATE record SET hash = x'{hash}' WHERE row = {row};").expect("writes");
    }
    write!(sql, "UPDATE trail SET hash = x'{}'", head.hash).expect("writes");
    tamper(&world.file(), &sql).await;
    let report = world.report(&world.file()).await;
    let rewritten = |finding: &Finding| matches!(finding, Finding::Rewritten { .. });
    assert!(
        report.count > 0 && report.findings.iter().all(rewritten),
        "{:?}",
        report.findings
    );
}

#[tokio::test]
async fn a_cut_off_end_shows_by_what_is_noted_beside_the_keys() {
    let world = World::new().await;
    let cut = "DELETE FROM record WHERE row > 34; DELETE FROM checkpoint WHERE seq > 34";
    tamper(&world.file(), cut).await;
    let findings = world.of_entries(&world.file()).await;
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(matches!(findings[0], Finding::Lacking { seq: ENTRIES, .. }));
    let missing = &findings[1];
    assert!(
        matches!(
            missing,
            Finding::Missing {
                first: 35,
                last: ENTRIES,
                ..
            }
        ),
        "{missing}"
    );
}

#[tokio::test]
async fn a_pruned_trail_is_clean_and_one_where_more_is_missing_is_not() {
    let world = World::new().await;
    let store = world.open().await;
    let gone = store.prune_before(entry(50).timestamp()).await.expect("prunes");
    assert_eq!(gone, 50);
    store.close().await.expect("closes");
    let report = world.report(&world.file()).await;
    assert_eq!(
        (report.findings.as_slice(), report.entries),
        (&[][..], ENTRIES - 50)
    );

    std::fs::copy(world.file(), world.directory.path().join("copy.db")).expect("copies");
    let copy = world.directory.path().join("copy.db");
    tamper(
        &copy,
        "DELETE FROM record WHERE row = 51; UPDATE trail SET pruned_row = 51",
    )
    .await;
    let report = world.report(&copy).await;
    let missing = &report.findings[0];
    assert!(
        matches!(
            missing,
            Finding::Missing {
                first: 51,
                last: 51,
                ..
            }
        ),
        "{missing}"
    );

    // A trail of which nothing is left still says so.
    let store = world.open().await;
    store.prune_before(Timestamp(i64::MAX)).await.expect("prunes");
    store.append(&[entry(500)], None).await.expect("stores");
    store.close().await.expect("closes");
    let report = world.report(&world.file()).await;
    assert_eq!((report.findings.as_slice(), report.entries), (&[][..], 1));
}

#[tokio::test]
async fn another_s_keys_prove_nothing() {
    let (world, other) = (World::new().await, World::new().await);
    let mut reader = Reader::open(&World::dsn(&world.file())).await.expect("opens");
    let verifier = verify(&mut reader, other.verifier(), &[], &mut |_| ())
        .await
        .expect("reads");
    let report = verifier.finish();
    let found = |wanted: fn(&Finding) -> bool| report.findings.iter().any(wanted);
    assert!(found(|finding| matches!(finding, Finding::UntrustedKey { .. })));
    assert!(found(|finding| matches!(finding, Finding::Unsealed { .. })));
}
