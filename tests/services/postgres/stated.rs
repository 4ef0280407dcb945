// SPDX-License-Identifier: Apache-2.0
//! What is not there and signed for: days that the maintainer dropped, records that a writer gave up, and what is not
//! signed yet.

use std::process::Command;

use serde_json::Value;
use zt_agent::audit::record::Entry;
use zt_agent::audit::seal::Keys;
use zt_agent::audit::spool::WhenFull;
use zt_agent::audit::store::Sink as _;

use super::cluster::{Cluster, Node, Shipping, clean, run, until};
use super::{today, with_tables};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_maintainer_drops_is_pruned_and_signed_and_no_more_than_that() {
    let cluster = Cluster::new().await;
    let keys = cluster.maintainer.path().join("keys").display().to_string();
    let prune = |days: &str| {
        let store = cluster.server.dsn("keeper");
        let arguments = [
            "audit", "prune", "--store", &store, "--keys", &keys, "--before", days,
        ];
        let output = Command::new(zt_tests::agent::binary().expect("built"))
            .args(arguments)
            .env_clear()
            .output()
            .expect("runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    // Twice, so that the second adds to what the first has stated; and strays, which have no partition of their own.
    assert!(prune("4d").contains("--maintainer"));
    prune("2d");
    let left = cluster
        .server
        .number("SELECT count(*) FROM zt_audit.record")
        .expect("count");
    assert!(left > 0 && left < 6000, "{left}");
    let statements = cluster
        .server
        .number("SELECT count(*) FROM zt_audit.gap")
        .expect("count");
    assert_eq!(statements, 3, "one a writer");
    let report = cluster.verify(&["--maintainer", &keys]);
    clean("pruned", &report);
    let report = &report.1;
    assert_eq!(report["entries"], left);
    let root = Keys::list(keys.as_ref()).expect("keys").expect("keys")[0]
        .key
        .clone();
    let mut pruned = 0;
    for gap in report["gaps"].as_array().expect("gaps") {
        assert_eq!(
            (&gap["cause"], &gap["first"]),
            (&"pruned".into(), &1.into()),
            "{gap}"
        );
        assert_eq!(gap["signed_by"], Value::from(root.clone()), "{gap}");
        pruned += gap["last"].as_u64().expect("a number");
    }
    assert_eq!(pruned, 9000 - left);
    // Nobody has to be believed who is not named.
    let (code, report) = cluster.verify(&[]);
    assert_eq!(code, 1, "{report:#}");
    // More is gone than was signed.
    cluster
        .server
        .sql("DELETE FROM zt_audit.record r USING (SELECT writer, min(seq) AS seq FROM zt_audit.record GROUP BY writer) f
              WHERE (r.writer, r.seq) = (f.writer, f.seq)")
        .expect("deletes");
    let (code, report) = cluster.verify(&["--maintainer", &keys]);
    assert_eq!(code, 1, "{report:#}");
    let findings = report["findings"].as_array().expect("findings");
    let texts: Vec<&str> = findings.iter().filter_map(Value::as_str).collect();
    let (missing, counts): (Vec<&str>, Vec<&str>) =
        texts.iter().partition(|text| text.ends_with("are missing"));
    assert_eq!(missing.len(), 3, "{report:#}");
    // They are still counted.
    assert!(
        !counts.is_empty() && counts.iter().all(|text| text.starts_with("the count of")),
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_writer_gave_up_is_counted_with_its_cause_and_decisions_are_records_and_losses() {
    const COUNT: u64 = 60_000;
    let server = with_tables().await;
    let (mut oldest, mut newest, mut refused) = (
        Node::with(0, today(), 1_000_000, 4 << 20, WhenFull::Oldest).await,
        Node::with(1, today(), 1_000_000, 4 << 20, WhenFull::Newest).await,
        Node::new(2, today(), 1_000_000).await,
    );
    server.crash().expect("down");
    // Both try in vain meanwhile: one batch of each is under way.
    let shipping = [
        Shipping::begin(&oldest, &server),
        Shipping::begin(&newest, &server),
    ];
    assert_eq!(oldest.write(COUNT).await, 0);
    let no_room = newest.write(COUNT).await;
    assert!(no_room > 0 && no_room < COUNT, "{no_room}");
    let dropped = oldest.spool.account().losses()[0].1;
    assert!(dropped > 0 && dropped < COUNT, "{dropped}");
    let mut entries: Vec<Entry> = (0..1000).map(|number| refused.maker.entry(number)).collect();
    for number in [300, 301, 999] {
        let Entry::Decision(record) = &mut entries[number] else {
            panic!("a decision")
        };
        record.source.comm = Some("a\0b".into());
    }
    refused.spool.append(&entries, None).await.expect("stored");
    refused.write(0).await;
    server.up().expect("up");
    for shipping in shipping {
        shipping.end().await;
    }
    for node in [&oldest, &newest, &refused] {
        node.ship(&server).await;
    }
    let trust = [&oldest, &newest, &refused].map(Node::root).join(",");
    let store = server.dsn("engine");
    let verify = || {
        run(&[
            "audit", "verify", "-o", "json", "--store", &store, "--trust", &trust,
        ])
    };
    let whole = verify();
    clean("losses are no tampering", &whole);
    let report = whole.1;
    let losses = serde_json::json!({ "spool_oldest": dropped, "spool_newest": no_room, "server_refused": 3 });
    assert_eq!(report["losses"], losses, "{report:#}");
    assert_eq!(report["entries"], 2 * COUNT + 1000 - dropped - no_room - 3);
    for writer in report["writers"].as_array().expect("writers") {
        let number = |field: &str| writer[field].as_u64().expect("a number");
        let decisions = number("records") + number("lost");
        assert!([COUNT, 1000].contains(&decisions), "{writer}");
        assert_eq!((number("sealed"), number("missing")), (decisions, 0), "{writer}");
    }
    // Without the statement it is missing, and whose it is shows.
    server
        .sql("DELETE FROM zt_audit.gap WHERE text LIKE '%server_refused%'")
        .expect("deletes");
    let (code, report) = verify();
    assert_eq!(
        (code, report["finding_count"].as_u64()),
        (1, Some(2)),
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_records_wait_what_has_arrived_is_signed_and_never_more() {
    let server = with_tables().await;
    let mut node = Node::new(0, today(), 1_000_000).await;
    let (trust, store) = (node.root(), server.dsn("engine"));
    let verify = || {
        run(&[
            "audit", "verify", "-o", "json", "--store", &store, "--trust", &trust,
        ])
    };
    // The spool is never empty: from some batch on the server has no room.
    server
        .sql(
            "CREATE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.first_seq > 12000 THEN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER full_now BEFORE INSERT ON zt_audit.batch FOR EACH ROW EXECUTE FUNCTION public.full()",
        )
        .expect("a full server");
    node.write(10_000).await;
    node.write(10_000).await;
    let shipping = Shipping::begin(&node, &server);
    let signed = || {
        server
            .number("SELECT coalesce(max(seq), 0) FROM zt_audit.checkpoint")
            .expect("count")
    };
    until("a checkpoint", async || signed() > 0).await;
    until("a full server", async || {
        node.spool
            .account()
            .failures()
            .any(|(cause, count)| cause == "full" && count > 2)
    })
    .await;
    assert_eq!(signed(), 10_000);
    let arrived = server
        .number("SELECT count(*) FROM zt_audit.record")
        .expect("count");
    assert!((10_000..20_000).contains(&arrived), "{arrived}");
    let report = verify();
    clean("while records wait", &report);
    assert_eq!(report.1["writers"][0]["behind"], arrived - 10_000);
    server
        .sql("DROP TRIGGER full_now ON zt_audit.batch")
        .expect("room");
    until("the rest", async || signed() == 20_000).await;
    shipping.end().await;
    clean("all", &verify());
}
