// SPDX-License-Identifier: Apache-2.0
//! What the server has confirmed goes from the spool: by then it is on the server's disk, whatever is set there.

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::Writer;

use super::super::{batches, with_tables_in};
use super::*;

/// Commits are confirmed before anything of them is written, and nothing is written by itself for ten seconds.
const HASTY: &str = "fsync = off\nsynchronous_commit = off\nwal_writer_delay = 10s";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_confirms_before_it_writes_loses_nothing_in_a_crash() {
    const ROUND: u64 = 2000;
    const ROUNDS: u64 = 3;
    let server = Server::start(HASTY).expect("PostgreSQL starts");
    let world = World::on(with_tables_in(server).await);
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    let shipping = world.ship(&spool);
    let maker = maker(today(), 1_000_000, 20);
    for round in 0..ROUNDS {
        let end = (round + 1) * ROUND;
        assert_eq!(append(&spool, &maker, round * ROUND..end).await, 0);
        until_shipped(&spool, end).await;
        world.server.crash().expect("down");
        world.server.up().expect("up");
    }
    shipping.end().await;
    world.settle(ROUNDS * ROUND, 0);
}

/// Notes what holds in the session of whoever inserts a batch.
const NOTES: &str = "
CREATE TABLE public.held (batch bigint, setting text);
CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.held VALUES (NEW.first_seq, current_setting('synchronous_commit'));
    RETURN NULL;
END
$$;
CREATE TRIGGER hold AFTER INSERT ON zt_audit.batch FOR EACH ROW EXECUTE FUNCTION public.hold()";

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_waits_for_the_disk_and_for_whom_else_it_is_told_to() {
    let server = with_tables().await;
    server.sql(NOTES).expect("a trigger");
    let held = || {
        let last = "SELECT setting FROM public.held ORDER BY batch DESC LIMIT 1";
        server.sql(last).expect("what was held")
    };
    let mut head = Head::new(Uuid::from_u128(7));
    let records = maker(today(), 1000, 5).kept(0..7, &mut head);
    let mut batches = batches(head.writer, &records, 1).into_iter();
    for (set, wanted) in [
        ("off", "on"),
        ("on", "on"),
        ("local", "local"),
        ("remote_write", "remote_write"),
        ("remote_apply", "remote_apply"),
    ] {
        server
            .sql(&format!("ALTER ROLE node SET synchronous_commit = {set}"))
            .expect("set");
        let mut writer = Writer::new(target(&server, "node"));
        let batch = batches.next().expect("a batch");
        assert!(writer.ship(&batch).await.expect("shipped"));
        writer.close().await;
        assert_eq!(held(), wanted, "{set}");
    }
    // The whole server is told not to wait, while a writer is connected.
    server
        .sql("ALTER ROLE node RESET synchronous_commit")
        .expect("as before");
    let mut writer = Writer::new(target(&server, "node"));
    let batch = batches.next().expect("a batch");
    assert!(writer.ship(&batch).await.expect("shipped"));
    server
        .sql("ALTER SYSTEM SET synchronous_commit = off")
        .expect("set");
    server.sql("SELECT pg_reload_conf()").expect("told");
    // Those that were connected have been told by the time that those who connect find it.
    until("the server to be set so", async || {
        server.sql("SHOW synchronous_commit").expect("a setting") == "off"
    })
    .await;
    let batch = batches.next().expect("a batch");
    assert!(writer.ship(&batch).await.expect("shipped"));
    assert_eq!(held(), "on");
    writer.close().await;
}
