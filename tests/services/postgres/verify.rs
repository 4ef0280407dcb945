// SPDX-License-Identifier: Apache-2.0
//! The trail of a cluster, as one who audits it checks it, and everybody who could do something to the tables.

use serde_json::Value;
use zt_agent::audit::postgres::Maintainer;
use zt_agent::audit::record::Timestamp;
use zt_agent::audit::seal::{Cause, Checkpoint, Gap, Keys};

use super::cluster::{Cluster, clean, done, run};
use super::{target, today};

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cluster_is_verified_by_one_command_and_each_tampering_is_named() {
    let cluster = Cluster::new().await;
    let whole = cluster.verify(&[]);
    clean("untouched", &whole);
    assert_eq!(
        (
            &whole.1["entries"],
            whole.1["writers"].as_array().expect("writers").len()
        ),
        (&9000.into(), 3)
    );
    let writers: Vec<String> = (0..3).map(|number| cluster.writer(number)).collect();
    let of = |number: usize, sql: &str| sql.replace("{w}", &format!("writer = '{}'", writers[number]));
    let name = |number: usize, what: &str| what.replace("{w}", &writers[number]);
    for (number, (change, named)) in [
        ("UPDATE zt_audit.record SET revision = revision + 1 WHERE seq = 1500 AND {w}", "entry 1500 of {w}"),
        ("UPDATE zt_audit.record SET comm = 'init' WHERE seq = 1500 AND {w}", "entry 1500 of {w}"),
        ("DELETE FROM zt_audit.record WHERE seq = 1500 AND {w}", "entries 1500 to 1500 of {w} are missing"),
        ("DELETE FROM zt_audit.record WHERE seq > 2900 AND {w}", "entries 2901 to 3000 of {w} are missing"),
        ("DELETE FROM zt_audit.record WHERE seq < 100 AND {w}", "entries 1 to 99 of {w} are missing"),
        ("UPDATE zt_audit.record SET seq = 3001 - seq WHERE seq IN (1500, 1501) AND {w}", "entry 1500 of {w}"),
        // Inserted: behind all, and in the place of another.
        (
            "INSERT INTO zt_audit.record SELECT (r).* FROM (SELECT jsonb_populate_record(r, jsonb_build_object('id',
                gen_random_uuid())) AS r FROM zt_audit.record r WHERE seq = 1500 AND {w}) x",
            "entry 1500 of {w}",
        ),
        ("DELETE FROM zt_audit.shape WHERE id = (SELECT shape FROM zt_audit.record WHERE seq = 1500 AND {w})", "entry 1500 of {w} cannot be read"),
        // What is signed.
        ("DELETE FROM zt_audit.checkpoint WHERE {w}", "{w} has no checkpoint"),
        ("UPDATE zt_audit.checkpoint SET text = 'nonsense' WHERE seq = 1500 AND {w}", "the checkpoint of {w} at entry 1500 cannot be read"),
        (
            "UPDATE zt_audit.checkpoint SET text = replace(text, '\"seq\":1500', '\"seq\":1400'), seq = 1400
             WHERE seq = 1500 AND {w}",
            "the checkpoint of {w} at entry 1400 has no signature",
        ),
        // Another node's checkpoint, told again as this one's.
        (
            "INSERT INTO zt_audit.checkpoint (writer, seq, time, text)
             SELECT (SELECT writer FROM zt_audit.record WHERE {w} LIMIT 1), seq, time, text FROM zt_audit.checkpoint
             WHERE NOT {w} AND seq = 1500 LIMIT 1",
            "the checkpoint of {w} at entry 1500 cannot be read: it is not the one that its row says",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let number = number % 3;
        cluster.finds(&of(number, change), &name(number, named));
    }
    clean("at the end", &cluster.verify(&[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_with_a_key_of_its_own_proves_nothing() {
    let cluster = Cluster::new().await;
    let (stranger, first) = (tempfile::tempdir().expect("directory"), &cluster.nodes[0]);
    let stranger = Keys::open(stranger.path()).expect("makes one");
    let victim: uuid::Uuid = cluster.writer(1).parse().expect("an id");
    let mut head = cluster.nodes[1].spool.store().head().await.expect("head");
    head.hash.0[0] ^= 1;
    let insert = |checkpoint: &Checkpoint| {
        let text = serde_json::to_string(checkpoint).expect("writes");
        let (seq, time) = (checkpoint.seq, checkpoint.time.0);
        format!(
            "INSERT INTO zt_audit.checkpoint (writer, seq, time, text) VALUES ('{victim}', {seq}, {time}, '{text}')"
        )
    };
    let start = (0, zt_agent::audit::chain::START);
    let forged = Checkpoint::sign(head, Timestamp(today()), start, &stranger);
    cluster.finds(
        &insert(&forged),
        &format!("the checkpoint of {victim} at entry 3000 has no signature"),
    );
    // Another node's key is trusted, and not for this writer.
    let others = Keys::open(&first.keys()).expect("opens");
    let rival = Checkpoint::sign(head, Timestamp(today()), start, &others);
    cluster.finds(
        &insert(&rival),
        &format!("entry 3000 is signed by {}, which is trusted, but", first.root()),
    );
    let gap = Gap::sign(victim, (10, 20), (None, head.hash), Cause::Pruned, &others);
    let text = serde_json::to_string(&gap).expect("writes");
    let pruned = format!(
        "INSERT INTO zt_audit.gap (writer, first, last, text) VALUES ('{victim}', 10, 20, '{text}');
         DELETE FROM zt_audit.record WHERE writer = '{victim}' AND seq BETWEEN 10 AND 20"
    );
    cluster.finds(
        &pruned,
        &format!(
            "{} states that entries 10 to 20 of {victim} are not there",
            first.root()
        ),
    );
    cluster.finds(&pruned, &format!("entries 10 to 20 of {victim} are missing"));
    // A login that may write cannot say that it is another one.
    let said = cluster
        .server
        .refusal(
            "node",
            "zt_audit_writer",
            "INSERT INTO zt_audit.gap (writer, first, last, text, login) VALUES (gen_random_uuid(), 1, 1, '', 'keeper')",
        )
        .expect("refused");
    assert!(said.contains("permission denied"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_was_cut_off_on_the_server_shows_where_the_spool_is() {
    let mut cluster = Cluster::new().await;
    // The rest waits: nobody may miss it.
    cluster.nodes[0].write(500).await;
    let node = &cluster.nodes[0];
    let (keys, spool) = (node.keys().display().to_string(), node.spool());
    let here = ["--keys", &keys, "--spool", &spool];
    clean("waiting", &cluster.verify(&here));
    let writer = cluster.writer(0);
    let cut = format!(
        "DELETE FROM zt_audit.record WHERE writer = '{writer}' AND seq > 2500;
         DELETE FROM zt_audit.checkpoint WHERE writer = '{writer}' AND seq > 2500"
    );
    cluster.server.sql(&cut).expect("cuts");
    // What is on the server fits together; who has the spool knows better.
    let (code, report) = cluster.verify(&here);
    assert_eq!(code, 1, "{report:#}");
    let findings = report["findings"].to_string();
    assert!(
        findings.contains(&format!(
            "the checkpoint of {writer} at entry 3000 is not in the trail"
        )),
        "{findings}"
    );
    assert!(
        findings.contains(&format!("entries 2501 to 3000 of {writer} are missing")),
        "{findings}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_the_cluster_is_checked_without_the_server() {
    let cluster = Cluster::new().await;
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("trail.jsonl").display().to_string();
    let store = cluster.server.dsn("engine");
    done(&["audit", "export", "--store", &store, "--to", &file]);
    let trust = cluster.trust();
    let verify = || run(&["audit", "verify", &file, "-o", "json", "--trust", &trust]);
    clean("export", &verify());
    let text = std::fs::read_to_string(&file).expect("reads");
    let lines: Vec<&str> = text.lines().collect();
    let (at, writer) = (lines.len() / 2, cluster.writer(1));
    let entry: Value = serde_json::from_str(lines[at]).expect("JSON");
    assert_eq!(entry["writer"].as_str().map(str::len), Some(writer.len()));
    let mut without = lines.clone();
    without.remove(at);
    std::fs::write(&file, without.join("\n")).expect("writes");
    let (code, report) = verify();
    let seq = &entry["seq"];
    let named = format!(
        "entries {seq} to {seq} of {} are missing",
        entry["writer"].as_str().expect("text")
    );
    assert!(
        code == 1 && report["findings"].to_string().contains(&named),
        "{report:#}"
    );
}

/// What is counted of an entry.
const COUNT: &str =
    "zt_audit.bucket WHERE (shape, hour) = (SELECT shape, time / 3600000000000 FROM zt_audit.record
    WHERE seq = 1500 AND {w})";

#[tokio::test(flavor = "multi_thread")]
async fn a_count_that_was_tampered_with_is_named() {
    let cluster = Cluster::new().await;
    let writer = cluster.writer(1);
    for (change, named) in [
        ("UPDATE {count}", "connections, from"),
        ("DELETE FROM {count}", "says nothing, and its entries say"),
        (
            "INSERT INTO zt_audit.bucket SELECT shape, hour - 30, login, records, connections, first_seen, last_seen
             FROM {count}",
            "its entries say nothing",
        ),
        (
            "INSERT INTO zt_audit.bucket SELECT gen_random_uuid(), 99999999, login, 1, 1, 0, 0 FROM {count}",
            "in the hour 99999999 since 1970",
        ),
        (
            "INSERT INTO zt_audit.bucket SELECT gen_random_uuid(), hour, login, 1, 1, first_seen, last_seen FROM {count}",
            "which is not there, inserted by",
        ),
        (
            "DELETE FROM zt_audit.name WHERE name = (SELECT max(name) FROM zt_audit.name)",
            "the list of names that patterns are compared with, of spiffe://hanzo.ai/hanzo-k8s/",
        ),
        (
            "DELETE FROM zt_audit.facet WHERE port = 5432 AND decision = 'DENY'",
            "the list of facets that filters are compared with, of decision DENY at port 5432, inserted by node,",
        ),
        // As if that port had never been reached.
        (
            "UPDATE zt_audit.facet SET port = 1 WHERE port = 443",
            "the list of facets that filters are compared with, of decision ALLOW at port 443, inserted by node,",
        ),
    ] {
        let count = match change {
            "UPDATE {count}" => COUNT.replacen("WHERE", "SET connections = connections + 7 WHERE", 1),
            _ => COUNT.to_owned(),
        };
        let sql = change
            .replace("{count}", &count)
            .replace("{w}", &format!("writer = '{writer}'"));
        cluster.finds(&sql, named);
    }
    clean("at the end", &cluster.verify(&[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sum_of_a_day_that_was_tampered_with_is_named() {
    let cluster = Cluster::new().await;
    let mut maintainer = Maintainer::open(&target(&cluster.server, "keeper"))
        .await
        .expect("tables");
    let kept = maintainer.keep(None).await.expect("kept");
    // Yesterday was, before anything was recorded.
    assert_eq!(kept.added_up, 5);
    clean("added up", &cluster.verify(&[]));
    let one = "(SELECT ctid FROM zt_audit.bucket_day ORDER BY day LIMIT 1)";
    for (change, named) in [
        (
            format!("UPDATE zt_audit.bucket_day SET connections = connections + 7 WHERE ctid = {one}"),
            "in the day from",
        ),
        (
            format!("DELETE FROM zt_audit.bucket_day WHERE ctid = {one}"),
            "says nothing, and its entries say",
        ),
        (
            "INSERT INTO zt_audit.bucket_day SELECT gen_random_uuid(), day, login, 1, 1, 1 FROM zt_audit.bucket_day LIMIT 1"
                .to_owned(),
            "its entries say nothing",
        ),
        (
            "INSERT INTO zt_audit.bucket_day VALUES (gen_random_uuid(), 9999999, 'node', 1, 1, 1)".to_owned(),
            "in the day 9999999 since 1970",
        ),
        // A day whose mark is gone is read by the hour, and what is left of its sum by nobody.
        (
            "DELETE FROM zt_audit.whole_day WHERE day = (SELECT min(day) FROM zt_audit.whole_day)".to_owned(),
            "its entries say nothing",
        ),
        // A day that is marked and was not added up would be hidden.
        (
            "DELETE FROM zt_audit.bucket_day WHERE day = (SELECT min(day) FROM zt_audit.whole_day)".to_owned(),
            "says nothing, and its entries say",
        ),
    ] {
        cluster.finds(&change, named);
    }
    clean("at the end", &cluster.verify(&[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_login_in_a_chain_is_named() {
    let cluster = Cluster::new().await;
    let writer = cluster.writer(0);
    // Who may write and knows the chain goes on with it, in its own name.
    let as_mallory = "DO $$ DECLARE names text; BEGIN
            SELECT string_agg(quote_ident(attname), ',') INTO names FROM pg_attribute
            WHERE attrelid = 'zt_audit.shape'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
              AND attname <> 'login';
            EXECUTE format('INSERT INTO zt_audit.shape (%s, login) SELECT %s, ''mallory'' FROM zt_audit.shape', names, names);
        END $$;";
    let inserted = format!(
        "{as_mallory} INSERT INTO zt_audit.record SELECT (jsonb_populate_record(r, jsonb_build_object('id',
             gen_random_uuid(), 'seq', 3001, 'login', 'mallory'))).*
         FROM zt_audit.record r WHERE seq = 3000 AND writer = '{writer}'"
    );
    cluster.finds(
        &inserted,
        &format!(
            "1 entries of {writer}, from 3001 to 3001, were inserted by the login mallory, and others by node"
        ),
    );
    // A node that has got another login is told of, and nothing is wrong.
    let moved = format!(
        "{as_mallory} UPDATE zt_audit.record SET login = 'mallory' WHERE seq > 2900 AND writer = '{writer}';
         TRUNCATE zt_audit.bucket, zt_audit.bucket_day, zt_audit.whole_day;
         INSERT INTO zt_audit.bucket (shape, hour, login, records, connections, first_seen, last_seen)
         SELECT shape, time / 3600000000000, login, count(*), sum(count), min(time), max(time)
         FROM zt_audit.record GROUP BY 1, 2, 3"
    );
    cluster.server.sql(&moved).expect("moves");
    let report = cluster.verify(&[]);
    clean("another login", &report);
    let remarks = report.1["remarks"].to_string();
    assert!(
        remarks.contains("100 entries of") && remarks.contains("the node's login was changed"),
        "{remarks}"
    );
}
