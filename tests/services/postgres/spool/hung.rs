// SPDX-License-Identifier: Apache-2.0
//! A server that hangs up on nobody and answers nobody: from the beginning, or from the middle of a transaction on.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use zt_agent::audit::postgres::Target;

use super::*;

const COUNT: u64 = 30_000;

/// Longer than an agent may take to end, and shorter than a batch may take.
const ENDED: Duration = Duration::from_secs(60);

/// A third has arrived, and of the next a batch is under way when the server stops answering. Returns whoever holds it up.
async fn frozen(world: &World, spool: &Spool) -> zt_tests::postgres::Session {
    let maker = maker(today(), 1_000_000, 20);
    append(spool, &maker, 0..COUNT / 3).await;
    until_shipped(spool, COUNT / 3).await;
    let mut session = world
        .server
        .session("keeper", "zt_audit_maintainer")
        .expect("connects");
    session
        .run("BEGIN; LOCK TABLE zt_audit.batch IN EXCLUSIVE MODE")
        .expect("locks");
    append(spool, &maker, COUNT / 3..2 * COUNT / 3).await;
    until("a batch to be under way", async || {
        world.number(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'zt-agent'",
        ) > 0
    })
    .await;
    world.server.freeze().expect("freezes");
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_answering_in_the_middle_of_a_batch_has_each_record_once() {
    let world = World::new().await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    let shipping = world.ship(&spool);
    let mut session = frozen(&world, &spool).await;
    // Nobody waits for it, and what comes waits in the spool.
    let maker = maker(today(), 1_000_000, 20);
    assert_eq!(append(&spool, &maker, 2 * COUNT / 3..COUNT).await, 0);
    assert!(spool.seal().await.expect("sealed").is_some());
    assert_eq!(spool.account().waiting(), 2 * COUNT / 3);
    world.server.thaw().expect("thaws");
    session.run("ROLLBACK").expect("gives way");
    until_shipped(&spool, COUNT).await;
    shipping.end().await;
    world.settle(COUNT, 0);
    let report = world.report().await;
    assert_eq!((&report.findings[..], report.entries), (&[][..], COUNT));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_does_not_wait_for_a_server_that_does_not_answer() {
    let world = World::new().await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    let shipping = world.ship(&spool);
    let mut session = frozen(&world, &spool).await;
    tokio::time::timeout(ENDED, shipping.end())
        .await
        .expect("ends although nobody answers");
    // What was under way is rolled back, or was committed: the next agent sends it again either way.
    world.server.thaw().expect("thaws");
    session.run("ROLLBACK").expect("gives way");
    let shipping = world.ship(&spool);
    until_shipped(&spool, 2 * COUNT / 3).await;
    shipping.end().await;
    world.settle(2 * COUNT / 3, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_accepts_and_never_answers_is_tried_until_it_does() {
    let world = World::new().await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    let silent = tempfile::tempdir().expect("directory");
    let _listener = UnixListener::bind(silent.path().join(".s.PGSQL.5432")).expect("listens");
    let way = world.directory.path().join("way");
    symlink(silent.path(), &way).expect("links");
    let target = Target::parse(&format!(
        "postgres://node@localhost:5432/zt?host={}",
        way.display()
    ));
    let (stop, stopping) = watch::channel(false);
    let shipper = Shipper::new(Arc::clone(&spool), target.expect("a target"), stopping);
    let shipping = Shipping {
        stop,
        task: tokio::spawn(shipper.run()),
    };
    append(&spool, &maker(today(), 1_000_000, 20), 0..COUNT).await;
    until("the failure to be counted as what it is", async || {
        spool
            .account()
            .failures()
            .any(|(cause, count)| cause == "slow" && count > 0)
    })
    .await;
    assert_eq!(spool.account().waiting(), COUNT);
    assert!(!spool.account().is_reachable());
    std::fs::remove_file(&way).expect("removes");
    symlink(world.server.directory(), &way).expect("links");
    until_shipped(&spool, COUNT).await;
    shipping.end().await;
    world.settle(COUNT, 0);
}
