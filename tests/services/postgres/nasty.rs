// SPDX-License-Identifier: Apache-2.0
//! Text that means something to SQL, to JSON, to a shell or to a terminal, in every field that holds text: it is kept and
//! given back as it came, through everything that speaks to the server.

use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use zt_agent::audit::postgres::Reader;
use zt_agent::audit::query::{Filter, GraphFilter, PartyFilter};
use zt_agent::audit::record::{AuditRecord, Change, Entry, Timestamp};
use zt_tests::entries::Maker;
use zt_tests::{Engine, Sandbox, http};

use super::cluster::{Cluster, clean, done, run};
use super::{target, today};

/// Nasty texts. A NUL is none that a database keeps; it has a test of its own.
const NASTY: [&str; 12] = [
    "x'); DROP TABLE zt_audit.record; --",
    "\"; TRUNCATE zt_audit.shape; --",
    "$$; SELECT pg_sleep(60); $$",
    "E'\\\\x41' \\ '' \"\" `",
    "%s %n %00 {} {0} ${HOME} $(id) `id`",
    "NULL",
    "{\"type\":\"end\",\"entries\":0}",
    "a\nb\r\nc\td",
    "\u{202e}evil\u{200b}\u{feff}\u{1b}[2J",
    "日本語 🦀 e\u{301} ﷽",
    "{a,b} (1,2) [1,2) \\.",
    "*%_?",
];

/// A field of a record, and how it is set.
type Field = (&'static str, fn(&mut AuditRecord, Arc<str>));

const FIELDS: [Field; 12] = [
    ("cluster", |record, text| record.cluster = text),
    ("source", |record, text| {
        record.source.spiffe_id = None;
        record.source.entity = Some(text);
    }),
    ("destination", |record, text| {
        record.destination.spiffe_id = None;
        record.destination.entity = Some(text);
    }),
    ("source.node", |record, text| record.source.node = Some(text)),
    ("destination.node", |record, text| {
        record.destination.node = Some(text);
    }),
    ("source.pod", |record, text| record.source.pod = Some(text)),
    ("destination.pod", |record, text| {
        record.destination.pod = Some(text);
    }),
    ("source.comm", |record, text| record.source.comm = Some(text)),
    ("policy_matched", |record, text| {
        record.policy_matched = Some(text);
    }),
    ("caller", |record, text| record.caller = Some(text)),
    ("incident", |record, text| record.incident = Some(text)),
    ("both ends", |record, text| {
        record.source.spiffe_id = None;
        record.source.entity = Some(Arc::clone(&text));
        record.destination.spiffe_id = None;
        record.destination.entity = Some(text);
    }),
];

fn maker() -> Maker {
    Maker {
        start: today() - 3_600_000_000_000,
        step: 1_000_000,
        parties: 5,
    }
}

/// Each text in each field, and in each of a change.
fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut number = 0;
    for text in NASTY.map(Arc::<str>::from) {
        for (_, set) in FIELDS {
            number += 1;
            let Entry::Decision(mut record) = maker().full(1) else {
                panic!("the first is a decision")
            };
            record.id = maker().id(number);
            record.timestamp = Timestamp(maker().start + maker().step * number as i64);
            set(&mut record, Arc::clone(&text));
            entries.push(Entry::Decision(record));
        }
        number += 1;
        entries.push(Entry::PolicyChange(Change::new(
            (
                maker().id(number),
                Timestamp(maker().start + maker().step * number as i64),
            ),
            (Arc::clone(&text), Arc::clone(&text)),
            Arc::clone(&text),
            1,
            json!({ "from": &*text, "to": [&*text, { "a": &*text }] }),
        )));
    }
    entries
}

/// As a question each finds those that have it there, and no others.
async fn questions(reader: &Reader) {
    let graph = reader.graph(&GraphFilter::default()).await.expect("a graph");
    for text in NASTY {
        let exact = || Some(PartyFilter::Exact(text.to_owned()));
        let (mut source, mut destination) = (Filter::default(), Filter::default());
        (source.source, destination.destination) = (exact(), exact());
        let (mut policy, mut node) = (Filter::default(), Filter::default());
        (policy.policy, node.node) = (Some(text.to_owned()), Some(text.to_owned()));
        for (filter, wanted) in [(source, 2), (destination, 2), (policy, 1), (node, 3)] {
            let page = reader.query(&filter, None, 1000).await.expect("a page");
            assert_eq!(page.records.len(), wanted, "{text:?}: {filter:?}");
        }
        assert!(
            graph
                .edges
                .iter()
                .any(|edge| &*edge.source == text && &*edge.destination == text),
            "{text:?} is not in the graph"
        );
        let nowhere = GraphFilter {
            namespace: Some(text.to_owned()),
            ..GraphFilter::default()
        };
        assert!(
            reader.graph(&nowhere).await.expect("a graph").edges.is_empty(),
            "{text:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nasty_text_comes_back_as_it_went_through_all_that_speaks_to_the_server() {
    let entries = entries();
    let cluster = Cluster::of(&entries).await;
    let reader = Reader::new(target(&cluster.server, "engine"));
    let page = reader
        .query(&Filter::default(), None, 1000)
        .await
        .expect("a page");
    let mut found: Vec<Entry> = page.records.into_iter().map(|kept| kept.entry).collect();
    found.reverse();
    assert_eq!(found.len(), entries.len());
    for (found, wanted) in found.iter().zip(&entries) {
        assert_eq!(found, wanted);
    }
    questions(&reader).await;
    // No text in the database has a NUL, so that nothing matches one.
    let nul = Filter {
        policy: Some("a\0b".to_owned()),
        ..Filter::default()
    };
    assert!(
        reader
            .query(&nul, None, 10)
            .await
            .expect("a page")
            .records
            .is_empty()
    );

    clean("on the server", &cluster.verify(&[]));
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("trail.jsonl").display().to_string();
    let store = cluster.server.dsn("engine");
    done(&["audit", "export", "--store", &store, "--to", &file]);
    clean(
        "in an export",
        &run(&[
            "audit",
            "verify",
            &file,
            "-o",
            "json",
            "--trust",
            &cluster.trust(),
        ]),
    );
    let text = std::fs::read_to_string(&file).expect("reads");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for nasty in NASTY {
        let callers = lines.iter().filter(|line| line["caller"] == nasty).count();
        assert_eq!(callers, 2, "{nasty:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nasty_text_over_the_api_of_an_engine_on_the_server_is_text() -> Result<()> {
    let entries = entries();
    let cluster = Cluster::of(&entries).await;
    let sandbox = Sandbox::new("nasty")?;
    let engine = Engine::with_policy(&sandbox, "engine", &super::policy())?;
    let mut engine = engine.on_server(&cluster.server.dsn("engine"), 365);
    tokio::task::block_in_place(|| {
        engine.start()?;
        for text in NASTY {
            for (parameter, wanted) in [("source", 2), ("destination", 2), ("policy", 1), ("node", 3)] {
                // With a star it is a pattern, and of SPIFFE IDs.
                if text.contains('*') && wanted == 2 {
                    continue;
                }
                let path = format!("/v1/audit?limit=1000&{parameter}={}", http::encoded(text));
                let answer = engine.get(&path)?;
                let records = answer["records"].as_array().map(Vec::len);
                assert_eq!(records, Some(wanted), "{parameter} {text:?}");
            }
            let path = format!("/v1/graph?namespace={}", http::encoded(text));
            assert_eq!(engine.get(&path)?["edges"], json!([]), "{text:?}");
            // What an operator says is recorded, and shipped as it is.
            let asked = json!({
                "operator": { "role": text, "incident": text },
                "target": { "service": text, "action": text },
            });
            let answer = http::post(engine.api(), "/v1/evaluate", &asked)?;
            if answer.status != 200 {
                assert_eq!(
                    answer.json()?["code"],
                    "invalid_body",
                    "{text:?}: {}",
                    answer.body
                );
                continue;
            }
            let path = format!(
                "/v1/audit?limit=1000&source={}",
                http::encoded(&format!("operator:{text}"))
            );
            if !text.contains('*') {
                let found = engine.get(&path)?;
                assert_eq!(found["records"][0]["incident"], text, "{found}");
            }
        }
        for wrong in [
            "/v1/audit?source=%00",
            "/v1/audit?node=%00",
            "/v1/graph?namespace=%00",
        ] {
            let answer = http::get(engine.api(), wrong)?;
            assert_eq!(answer.status, 200, "{wrong}: {}", answer.body);
        }
        zt_tests::eventually("all to be shipped", std::time::Duration::from_secs(60), || {
            Ok(engine.metrics()?.sum("zt_audit_spool_records", &[]) == 0)
        })?;
        Ok::<_, anyhow::Error>(())
    })?;
    // Everything is there that was, and the tables are as they were made.
    let kept = cluster
        .server
        .number("SELECT count(*) FROM zt_audit.record WHERE login = 'node'")?;
    assert_eq!(kept, entries.len() as u64);
    Ok(())
}
