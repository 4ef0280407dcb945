// SPDX-License-Identifier: Apache-2.0
//! The id of a shape is computed here and by the server, and both come to the same.

use std::sync::Arc;

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Reader, Writer};
use zt_agent::audit::query::Filter;
use zt_agent::audit::record::{Change, Entry, Hook, Kept, Observer, Outcome, Protocol, Reason, party};
use zt_tests::entries::spread;

use super::{batches, maker, target, today, with_tables};

/// Some text of up to 40 characters of one to four bytes each.
fn text(random: u64) -> Arc<str> {
    const CHARACTERS: [char; 12] = ['a', 'Z', '/', '\'', '\\', '"', ' ', '\u{1}', 'é', '–', '漢', '𝕏'];
    let length = spread(random) % 41;
    let characters = (0..length).map(|at| CHARACTERS[(spread(random ^ (at + 1)) % 12) as usize]);
    Arc::from(characters.collect::<String>())
}

fn perhaps(random: u64) -> Option<Arc<str>> {
    (!spread(random ^ 0xabc).is_multiple_of(3)).then(|| text(random))
}

/// An entry whose shape may say anything.
fn entry(number: u64, of: &Entry) -> Entry {
    let random = |field: u64| spread(number * 100 + field);
    if number.is_multiple_of(10) {
        let change = Change::new(
            (of.id(), of.timestamp()),
            (text(random(1)), text(random(2))),
            text(random(3)),
            number,
            serde_json::json!({ "mode": "observe" }),
        );
        return match (number / 10) % 3 {
            0 => Entry::PolicyChange(change),
            1 => Entry::ModeChange(change),
            _ => Entry::IdentityChange(change),
        };
    }
    let mut record = of.decision().expect("a decision").clone();
    (record.source.spiffe_id, record.source.entity) = party(text(random(1)));
    let name = format!("spiffe://hanzo.ai/{}", text(random(2)));
    (record.destination.spiffe_id, record.destination.entity) = party(Arc::from(name));
    record.source.node = perhaps(random(3));
    record.destination.node = perhaps(random(4));
    record.policy_matched = perhaps(random(5));
    record.cluster = text(random(6));
    record.protocol = Protocol(random(7) as u8);
    record.destination.port = random(8) as u16;
    record.enforced = random(9).is_multiple_of(2);
    record.decision = [Outcome::Allow, Outcome::Deny][(random(10) % 2) as usize];
    record.observer = [Observer::Source, Observer::Destination][(random(11) % 2) as usize];
    record.hook = Hook::from_name(["api", "connect"][(random(12) % 2) as usize]).expect("a hook");
    record.reason = Reason::from_name(["rule", "revoked"][(random(13) % 2) as usize]).expect("a reason");
    Entry::Decision(record)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_computes_the_ids_of_random_shapes_as_the_agent_does() {
    const COUNT: u64 = 4000;
    let server = with_tables().await;
    let maker = maker(today(), 1_000_000, 5);
    let mut head = Head::new(Uuid::from_u128(7));
    let decision = (0..COUNT)
        .map(|number| maker.entry(number))
        .find(|entry| entry.decision().is_some());
    let decision = decision.expect("a decision");
    let mut records: Vec<Kept> = (0..COUNT)
        .map(|number| {
            let mut of = decision.clone();
            if let Entry::Decision(record) = &mut of {
                record.id = maker.id(number);
                record.timestamp.0 = maker.start + maker.step * number as i64;
            }
            let entry = entry(number, &of);
            let link = Some(head.link(&entry));
            Kept { entry, link }
        })
        .collect();
    let mut writer = Writer::new(target(&server, "node"));
    for batch in batches(head.writer, &records, 500) {
        // A shape of which the server thinks otherwise would be refused.
        assert!(writer.ship(&batch).await.expect("shipped"));
    }
    assert!(
        server
            .number("SELECT count(*) FROM zt_audit.shape")
            .expect("count")
            > COUNT / 2
    );
    records.reverse();
    let reader = Reader::new(target(&server, "engine"));
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = reader
            .query(&Filter::default(), cursor, 1000)
            .await
            .expect("page");
        assert_eq!(page.unreadable, []);
        found.extend(page.records);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert!(found == records);
}
