// SPDX-License-Identifier: Apache-2.0
//! What was damaged in the spool, or changed on the server.

use std::os::unix::fs::FileExt as _;

use super::*;
use crate::put_back;

/// Changes the spool's file as no code of ours would.
async fn meddle(world: &World, sql: &'static str) {
    use sqlx::ConnectOptions as _;
    let file = world.directory.path().join("spool.db");
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(file)
        .busy_timeout(Duration::from_secs(60))
        .connect()
        .await
        .expect("opens");
    sqlx::raw_sql(sql)
        .execute(&mut connection)
        .await
        .expect("meddled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_spool_cannot_read_does_not_hold_up_the_others() {
    const COUNT: u64 = 3000;
    let world = World::new().await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    append(&spool, &maker(today(), 1_000_000, 20), 0..COUNT).await;
    spool.seal().await.expect("sealed");
    // What is still in memory is not read from the file: the next agent reads it.
    let spool = Arc::into_inner(spool).expect("nobody else has it");
    spool.close().await.expect("closes");
    // Damaged, without what they say, and of a later version that has a reason more.
    let meddling = "
        UPDATE record SET id = x'00' WHERE row = 1;
        UPDATE record SET shape = 0 WHERE row BETWEEN 700 AND 702;
        INSERT INTO shape (id, source, destination, protocol, port, rule, source_node, destination_node, cluster, decision,
            enforced, mode, observer, hook, reason, proof, part, mark)
        SELECT 1000000, source, destination, protocol, port, rule, source_node, destination_node, cluster, decision,
            enforced, mode, observer, hook, 'of_a_later_version', proof, part, mark
        FROM shape WHERE id = (SELECT shape FROM record WHERE row = 3000);
        UPDATE record SET shape = 1000000 WHERE row = 3000";
    meddle(&world, meddling).await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    let shipping = world.ship(&spool);
    until_shipped(&spool, COUNT).await;
    until(
        "what is lost to be stated, and the end to be signed",
        async || {
            world.number("SELECT count(*) FROM zt_audit.gap") == 3
                && world.number("SELECT count(*) FROM zt_audit.checkpoint WHERE seq = 3000") == 1
        },
    )
    .await;
    shipping.end().await;
    assert_eq!(spool.account().losses()[3], ("spool_unreadable", 5));
    assert_eq!(world.number("SELECT count(*) FROM zt_audit.record"), COUNT - 5);
    // The last one has no batch behind it yet that could tell.
    assert_eq!(world.number("SELECT sum(dropped) FROM zt_audit.batch"), 4);
    let report = world.report().await;
    assert_eq!((&report.findings[..], report.lost()), (&[][..], 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_record_on_the_server_is_found() {
    let world = World::new().await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    append(&spool, &maker(today(), 1_000_000, 20), 0..3000).await;
    spool.seal().await.expect("sealed");
    let shipping = world.ship(&spool);
    until_shipped(&spool, 3000).await;
    until("a checkpoint", async || {
        world.number("SELECT count(*) FROM zt_audit.checkpoint") > 0
    })
    .await;
    shipping.end().await;
    assert!(world.report().await.is_clean());
    for change in [
        "UPDATE zt_audit.record SET revision = revision + 1 WHERE seq = 1500",
        "UPDATE zt_audit.record SET comm = 'init' WHERE seq = 1500",
        "UPDATE zt_audit.record SET time = time + 1 WHERE seq = 1500",
        "ALTER TABLE zt_audit.shape DROP CONSTRAINT shape_id;
         UPDATE zt_audit.shape SET port = 1 WHERE id = (SELECT shape FROM zt_audit.record WHERE seq = 1500)",
        "DELETE FROM zt_audit.shape WHERE id = (SELECT shape FROM zt_audit.record WHERE seq = 1500)",
        "DELETE FROM zt_audit.record WHERE seq = 1500",
        "DELETE FROM zt_audit.record WHERE seq > 2900",
        "UPDATE zt_audit.record SET seq = 3001 - seq WHERE seq IN (1500, 1501)",
        "INSERT INTO zt_audit.record SELECT (r).* FROM (SELECT jsonb_populate_record(r, jsonb_build_object('id',
            gen_random_uuid())) AS r FROM zt_audit.record r WHERE seq = 1500) x",
        "DELETE FROM zt_audit.checkpoint",
    ] {
        world
            .server
            .sql("CREATE TABLE r AS TABLE zt_audit.record; CREATE TABLE s AS TABLE zt_audit.shape;
                  CREATE TABLE c AS TABLE zt_audit.checkpoint; CREATE TABLE b AS TABLE zt_audit.bucket")
            .expect("copies");
        world.server.sql(change).expect(change);
        assert!(!world.report().await.is_clean(), "not found: {change}");
        let put_back = |table: &str, from: &str| put_back(&format!("zt_audit.{table}"), from);
        let before = [
            "TRUNCATE zt_audit.record, zt_audit.shape, zt_audit.checkpoint;".to_owned(),
            put_back("shape", "s"),
            put_back("record", "r"),
            put_back("checkpoint", "c"),
            "TRUNCATE zt_audit.bucket;".to_owned(),
            put_back("bucket", "b"),
            "DROP TABLE r, s, c, b".to_owned(),
        ];
        world.server.sql(&before.join("\n")).expect("as before");
        assert!(world.report().await.is_clean(), "after {change}");
    }
}

/// Has all that was committed written to the file itself, and overwrites all of it but the first page.
async fn overwrite(world: &World) {
    meddle(
        world,
        "UPDATE trail SET stored = stored; PRAGMA wal_checkpoint(TRUNCATE)",
    )
    .await;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(world.directory.path().join("spool.db"))
        .expect("opens");
    let pages = file.metadata().expect("length").len() / 4096;
    for page in 1..pages {
        file.write_all_at(&[0xa5; 4096], page * 4096)
            .expect("overwritten");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_damaged_loses_what_waited_counted_and_stated_and_ships_what_comes() {
    const SHIPPED: u64 = 3000;
    const LOST: u64 = 5000;
    const LATER: u64 = 2000;
    let world = World::new().await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    let shipping = world.ship(&spool);
    let maker = maker(today(), 1_000_000, 20);
    append(&spool, &maker, 0..SHIPPED).await;
    spool.seal().await.expect("sealed");
    until_shipped(&spool, SHIPPED).await;
    until("the end to be signed", async || {
        world.number("SELECT count(*) FROM zt_audit.checkpoint WHERE seq = 3000") == 1
    })
    .await;
    shipping.end().await;

    append(&spool, &maker, SHIPPED..SHIPPED + LOST).await;
    overwrite(&world).await;
    // Nothing of this is lost: it is stored in the file that takes the place of the other.
    let later = SHIPPED + LOST..SHIPPED + LOST + LATER;
    assert_eq!(append(&spool, &maker, later).await, 0);
    assert_eq!(spool.account().losses()[4], ("spool_damaged", LOST));
    assert_eq!(spool.account().waiting(), LATER);
    let aside = sqlite::damaged_beside(&world.directory.path().join("spool.db")).expect("reads");
    assert_eq!(aside.len(), 1);
    spool.seal().await.expect("sealed");
    let shipping = world.ship(&spool);
    until_shipped(&spool, LATER).await;
    until("what is lost to be stated", async || {
        world.number("SELECT count(*) FROM zt_audit.gap") == 1
    })
    .await;
    until("the new end to be signed", async || {
        world.number("SELECT count(*) FROM zt_audit.checkpoint WHERE seq = 2000") == 1
    })
    .await;
    shipping.end().await;
    assert_eq!(
        world.number("SELECT count(DISTINCT id) FROM zt_audit.record"),
        SHIPPED + LATER
    );
    assert_eq!(
        world.number("SELECT count(*) FROM zt_audit.record"),
        SHIPPED + LATER
    );
    // Two writers of one key, and to the last entry records or losses that are signed.
    let report = world.report().await;
    assert_eq!((&report.findings[..], report.lost()), (&[][..], LOST));
    assert_eq!(report.entries, SHIPPED + LATER);
    assert_eq!(report.writers.len(), 2);
    // The next start has nothing to say of it.
    let spool = Arc::into_inner(spool).expect("nobody else has it");
    spool.close().await.expect("closes");
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    assert_eq!(spool.account().losses()[4], ("spool_damaged", 0));
}
