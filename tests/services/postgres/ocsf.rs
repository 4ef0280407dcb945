// SPDX-License-Identifier: Apache-2.0
//! Events for the tools of others, out of a server: each decision that it keeps, and the same as out of a file.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::ocsf;
use zt_tests::entries::linked;

use super::cluster::done;
use super::{file, maker, ship_kept, today, with_tables};

/// Entries of the trail.
const ENTRIES: u64 = 3000;

/// The events of an export by the ids of their records.
fn events(store: &str, more: &[&str]) -> BTreeMap<String, Value> {
    let export = ["audit", "export", "-o", "ocsf", "--store", store];
    let text = done(&[&export[..], more].concat());
    let events: Vec<Value> = text.lines().map(parsed).collect();
    let by_id: BTreeMap<String, Value> = events
        .iter()
        .map(|event| (id(event).to_owned(), event.clone()))
        .collect();
    assert_eq!(by_id.len(), events.len(), "one event of each record");
    by_id
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn id(event: &Value) -> &str {
    event["metadata"]["uid"].as_str().expect("an id")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_for_other_tools_has_each_decision_of_the_server_as_it_was_recorded() {
    let server = with_tables().await;
    let maker = maker(today(), 1_000_001, 20);
    let mut head = Head::new(Uuid::from_u128(8));
    let records = linked((0..ENTRIES).map(|number| maker.full(number)), &mut head);
    ship_kept(&server, head.writer, &records).await;
    let (_directory, dsn) = file(records.iter().map(|kept| &kept.entry)).await;

    let decisions = records.iter().filter_map(|kept| kept.entry.decision());
    let wanted: BTreeMap<String, Value> = decisions
        .filter_map(ocsf::of)
        // Numbers as they are read.
        .map(|event| (id(&event).to_owned(), parsed(&event.to_string())))
        .collect();
    assert!(wanted.len() > ENTRIES as usize / 2, "{} events", wanted.len());
    let store = server.dsn("engine");
    let found = events(&store, &[]);
    assert_eq!(found.len(), wanted.len());
    for (id, event) in &found {
        assert_eq!(event["class_uid"], 4001, "{event}");
        assert_eq!(Some(event), wanted.get(id));
    }
    assert_eq!(events(&dsn, &[]), found, "both stores say the same");

    // A filter takes some of them, from either store the same.
    let denied = ["--decision", "deny"];
    let some = events(&store, &denied);
    assert!(
        !some.is_empty() && some.len() < found.len(),
        "{} events",
        some.len()
    );
    assert!(some.iter().all(|(id, event)| found.get(id) == Some(event)));
    assert_eq!(events(&dsn, &denied), some);
}
