// SPDX-License-Identifier: Apache-2.0
//! Partitions: made ahead, strays moved, old ones dropped.

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::clock;
use zt_agent::audit::postgres::{Batch, Maintainer, Reader, Writer};
use zt_agent::audit::query::{Filter, GraphFilter};

use super::cluster::until;
use super::{batches, maker, server, ship, target, today, with_tables};

const DAY: i64 = 86_400_000_000_000;

/// What patterns are compared with.
const NAMES: &str = "SELECT name FROM zt_audit.name ORDER BY name";

/// The names of workloads, as they are listed.
fn workloads(numbers: std::ops::Range<u64>) -> String {
    let mut names: Vec<String> = numbers.map(|number| maker(0, 1, 1).name(number)).collect();
    names.sort();
    names.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_ahead_once() {
    let server = server();
    let target = target(&server, "keeper");
    let first = Maintainer::open(&target)
        .await
        .expect("tables")
        .keep(Some(365))
        .await
        .expect("kept");
    assert_eq!((first.made, first.dropped, first.records), (9, 0, 0));
    let again = Maintainer::open(&target)
        .await
        .expect("tables")
        .keep(Some(365))
        .await
        .expect("kept");
    assert_eq!((again.made, again.dropped), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_engines_may_start_at_once() {
    let server = server();
    let target = target(&server, "keeper");
    let engines: Vec<_> = (0..4)
        .map(|_| {
            let target = target.clone();
            tokio::spawn(async move { Maintainer::open(&target).await?.keep(Some(365)).await })
        })
        .collect();
    let mut made = 0;
    for engine in engines {
        made += engine.await.expect("no panic").expect("kept").made;
    }
    assert_eq!(made, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn strays_are_found_at_once_and_move_to_their_day() {
    let server = with_tables().await;
    // Five days ago, for which nobody made a partition.
    let maker = maker(today() - 5 * DAY, DAY / 1000, 5);
    let records = ship(&server, &maker, 1000).await;
    let elsewhere = "SELECT count(*) FROM zt_audit.record_other";
    assert_eq!(server.number(elsewhere).expect("count"), 1000);
    let reader = Reader::new(target(&server, "engine"));
    let before = reader.query(&Filter::default(), None, 1000).await.expect("page");
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    let kept = maintainer.keep(Some(365)).await.expect("kept");
    assert_eq!(kept.made, 1);
    assert_eq!(server.number(elsewhere).expect("count"), 0);
    let after = reader.query(&Filter::default(), None, 1000).await.expect("page");
    assert_eq!(before.records, after.records);
    assert_eq!(after.records.len(), records.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn days_past_their_time_go_with_all_that_they_had() {
    let server = with_tables().await;
    let step = DAY / 100;
    ship(&server, &maker(today() - 10 * DAY, step, 5), 1000).await;
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    assert_eq!(maintainer.keep(None).await.expect("kept").made, 9);
    // Days −10 to −5 go, −4 to −1 stay: a day is kept until every record of it is too old.
    let kept = maintainer.keep(Some(4)).await.expect("kept");
    assert_eq!((kept.dropped, kept.records), (6, 600));
    assert_eq!(
        server
            .number("SELECT count(*) FROM zt_audit.record")
            .expect("count"),
        400
    );
    let counted = "SELECT sum(records) FROM zt_audit.bucket";
    assert_eq!(server.number(counted).expect("count"), 400);
    let unused = "SELECT count(*) FROM zt_audit.shape s WHERE NOT EXISTS
                  (SELECT FROM zt_audit.bucket b WHERE b.shape = s.id AND b.hour / 24 = s.day)";
    assert_eq!(server.number(unused).expect("count"), 0);
    assert_eq!(server.sql(NAMES).expect("names"), workloads(0..5));
    let reader = Reader::new(target(&server, "engine"));
    let page = reader.query(&Filter::default(), None, 1000).await.expect("page");
    assert_eq!((page.records.len(), page.next), (400, None));
    let graph = reader.graph(&GraphFilter::default()).await.expect("graph");
    assert!(
        graph
            .edges
            .iter()
            .all(|edge| edge.first_seen.0 >= today() - 4 * DAY)
    );
    assert_eq!(maintainer.keep(Some(4)).await.expect("kept").dropped, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_go_with_the_last_shape_that_has_them() {
    let server = with_tables().await;
    ship(&server, &maker(today() - 10 * DAY, DAY / 100, 5), 500).await;
    let mut head = Head::new(Uuid::from_u128(8));
    let records = maker(today(), 1000, 2).kept(0..10, &mut head);
    let mut writer = Writer::new(target(&server, "node"));
    for batch in batches(head.writer, &records, 10) {
        assert!(writer.ship(&batch).await.expect("shipped"));
    }
    assert_eq!(server.sql(NAMES).expect("names"), workloads(0..5));
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    maintainer.keep(Some(4)).await.expect("kept");
    assert_eq!(server.sql(NAMES).expect("names"), workloads(0..2));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_years_ahead_are_refused_and_make_no_partitions() {
    let server = with_tables().await;
    let maker = maker(today() + 3650 * DAY, DAY, 5);
    let records = maker.kept(0..1, &mut Head::new(Uuid::nil()));
    let batch = batches(Uuid::nil(), &records, 1).remove(0);
    let error = Writer::new(target(&server, "node"))
        .ship(&batch)
        .await
        .expect_err("refused");
    assert!(error.is_of_the_batch(), "{error}");
    assert!(
        error.to_string().contains("ahead of this machine's clock"),
        "{error}"
    );
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    assert_eq!(maintainer.keep(Some(365)).await.expect("kept").made, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_maintainer_whose_clock_is_wrong_drops_nothing_and_says_so() {
    let server = with_tables().await;
    ship(&server, &maker(today() - 10 * DAY, DAY / 100, 5), 1000).await;
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    maintainer.keep(None).await.expect("kept");
    let count = "SELECT count(*) FROM zt_audit.record";
    for wrong in [3650 * DAY, -3650 * DAY, DAY / 24] {
        let error = maintainer
            .keep_at(clock::now() + wrong, Some(4))
            .await
            .expect_err("refused");
        assert_eq!(error.cause(), "clock", "{error}");
        assert!(error.to_string().contains("nothing was dropped"), "{error}");
        assert_eq!(server.number(count).expect("count"), 1000);
    }
    // A minute is nothing, and it is the server's clock that counts.
    let kept = maintainer
        .keep_at(clock::now() + DAY / 24 / 60, Some(4))
        .await
        .expect("kept");
    assert_eq!((kept.dropped, kept.records), (6, 600));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_clock_is_wrong_takes_the_records_later() {
    let server = with_tables().await;
    let tomorrow = |of: &str| {
        let seconds = format!("(date_part('epoch', {of}) + 86400) * 1e9::double precision");
        let sql = format!(
            "CREATE OR REPLACE FUNCTION zt_audit.tomorrow() RETURNS bigint LANGUAGE sql STABLE RETURN ({seconds})::bigint"
        );
        server.sql(&sql).expect("set");
    };
    tomorrow("now() - interval '10 days'");
    let records = maker(today(), 1000, 5).kept(0..10, &mut Head::new(Uuid::nil()));
    let batch = batches(Uuid::nil(), &records, 10).remove(0);
    let mut writer = Writer::new(target(&server, "node"));
    let error = writer.ship(&batch).await.expect_err("refused");
    assert_eq!(error.cause(), "clock", "{error}");
    assert!(
        !error.is_of_the_batch(),
        "nothing is given up for the server's clock"
    );
    tomorrow("now()");
    assert!(writer.ship(&batch).await.expect("shipped"));
}

/// Ten records of a writer of its own, from a time on.
fn ten(writer: u128, start: i64) -> Batch {
    let writer = Uuid::from_u128(writer);
    let records = maker(start, 1000, 5).kept(0..10, &mut Head::new(writer));
    batches(writer, &records, 10).remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_count_of_a_day_that_is_dropped() {
    let server = with_tables().await;
    let oldest = today() - 10 * DAY;
    ship(&server, &maker(oldest, DAY / 100, 5), 1000).await;
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    assert_eq!(maintainer.keep(None).await.expect("kept").made, 9);
    // Who counts the oldest day waits for as long as the test likes, and may not have the whole trail locked.
    server
        .sql(
            "CREATE FUNCTION zt_audit.counting() RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN
                 IF EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND granted
                            AND relation = 'zt_audit.record'::regclass AND mode = 'AccessExclusiveLock') THEN
                     RAISE 'the whole trail is locked while a day is counted';
                 END IF;
                 PERFORM pg_advisory_lock_shared(7), pg_advisory_unlock_shared(7);
                 RETURN true;
             END $$;
             DO $$
             DECLARE
                 oldest text := (SELECT min(relname) FROM pg_class WHERE relname ~ '^record_[0-9]{8}$');
             BEGIN
                 EXECUTE format('ALTER TABLE zt_audit.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', oldest);
                 EXECUTE format('CREATE POLICY counting ON zt_audit.%I USING (zt_audit.counting())', oldest);
             END $$",
        )
        .expect("set up");
    let mut gate = server.session("postgres", "postgres").expect("a session");
    gate.run("SELECT pg_advisory_lock(7)").expect("locked");
    let counting = tokio::spawn(async move { (maintainer.keep(Some(9)).await, maintainer) });
    until("the day to be counted", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        server.number(waiting).expect("a count") == 1
    })
    .await;
    let mut writer = Writer::new(target(&server, "node"));
    assert!(writer.ship(&ten(1, today())).await.expect("of today"));
    let late = ten(2, oldest + 1);
    let error = writer.ship(&late).await.expect_err("the day is closed");
    assert!(error.to_string().contains("record_closed"), "{error}");
    assert!(!error.is_of_the_batch(), "it is sent again: {error}");
    let reader = Reader::new(target(&server, "engine"));
    let page = reader.query(&Filter::default(), None, 1000).await.expect("page");
    assert_eq!(page.records.len(), 1000, "nothing is gone yet");
    gate.run("SELECT pg_advisory_unlock(7)").expect("unlocked");
    let (kept, mut maintainer) = counting.await.expect("no panic");
    let kept = kept.expect("kept");
    assert_eq!((kept.dropped, kept.records), (1, 100));
    // What comes too late goes with the next look.
    assert!(writer.ship(&late).await.expect("shipped"));
    let kept = maintainer.keep(Some(9)).await.expect("kept");
    assert_eq!((kept.dropped, kept.records), (0, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_cannot_be_dropped_or_is_to_stay_after_all_takes_records_again() {
    let server = with_tables().await;
    let oldest = today() - 10 * DAY;
    ship(&server, &maker(oldest, DAY / 100, 5), 1000).await;
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    maintainer.keep(None).await.expect("kept");
    let mut writer = Writer::new(target(&server, "node"));
    let mut reading = server.session("engine", "zt_audit_reader").expect("a session");
    reading
        .run("BEGIN; LOCK TABLE ONLY zt_audit.record IN ACCESS SHARE MODE")
        .expect("reads");
    maintainer
        .keep(Some(9))
        .await
        .expect_err("somebody reads for longer than it waits");
    assert!(writer.ship(&ten(1, oldest + 1)).await.expect("the day is open"));
    reading.run("COMMIT").expect("ends");
    // A maintainer that ended between closing a day and dropping it.
    server
        .sql(
            "DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE zt_audit.%I ADD CONSTRAINT record_closed CHECK (false) NOT VALID',
                 min(relname)) FROM pg_class WHERE relname ~ '^record_[0-9]{8}$'); END $$",
        )
        .expect("closed");
    writer
        .ship(&ten(2, oldest + 2))
        .await
        .expect_err("the day is closed");
    let kept = maintainer.keep(Some(365)).await.expect("kept");
    assert_eq!((kept.dropped, kept.records), (0, 0));
    assert!(writer.ship(&ten(2, oldest + 2)).await.expect("the day is open"));
    let kept = maintainer.keep(Some(9)).await.expect("kept");
    assert_eq!((kept.dropped, kept.records), (1, 120));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_under_way_while_its_partition_is_attached_is_sent_again() {
    let server = with_tables().await;
    let day = today() - 5 * DAY;
    let mut writer = Writer::new(target(&server, "node"));
    // Where nobody has made the day's partition.
    assert!(writer.ship(&ten(1, day)).await.expect("shipped"));
    let mut shipped = 10;
    let waits = async |mode: &str, ended: &dyn Fn() -> bool| {
        let waiting = format!("SELECT count(*) FROM pg_locks WHERE mode = '{mode}' AND NOT granted");
        until(mode, async || {
            ended() || server.number(&waiting).expect("a count") == 1
        })
        .await;
    };
    // On a busy machine the maintainer gives up waiting before all are in their places.
    for round in 2.. {
        let mut gate = server.session("postgres", "postgres").expect("a session");
        gate.run("BEGIN; LOCK TABLE ONLY zt_audit.record IN SHARE UPDATE EXCLUSIVE MODE")
            .expect("locked");
        let keeper = target(&server, "keeper");
        let keeping =
            tokio::spawn(async move { Maintainer::open(&keeper).await.expect("tables").keep(None).await });
        // It has locked what falls into no day, and waits to attach the day's partition.
        waits("ShareUpdateExclusiveLock", &|| keeping.is_finished()).await;
        let batch = ten(round, day + 1);
        let again = batch.clone();
        let shipping = tokio::spawn(async move { (writer.ship(&batch).await, writer) });
        waits("RowExclusiveLock", &|| shipping.is_finished()).await;
        gate.run("COMMIT").expect("ends");
        let kept = keeping.await.expect("no panic");
        let (sent, back) = shipping.await.expect("no panic");
        writer = back;
        shipped += 10;
        if kept.is_err() {
            sent.expect("shipped to where the first went");
            continue;
        }
        let error = sent.expect_err("it was on its way to another partition");
        assert!(error.to_string().contains("partition constraint"), "{error}");
        assert!(!error.is_of_the_batch(), "it is sent again: {error}");
        assert!(writer.ship(&again).await.expect("shipped"));
        break;
    }
    let records = "SELECT count(*) FROM zt_audit.record";
    assert_eq!(server.number(records).expect("a count"), shipped);
    let elsewhere = "SELECT count(*) FROM zt_audit.record_other";
    assert_eq!(server.number(elsewhere).expect("a count"), 0);
}
