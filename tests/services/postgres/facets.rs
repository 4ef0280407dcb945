// SPDX-License-Identifier: Apache-2.0
//! What shapes say in few words is listed, and questions go by that list first.

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Maintainer, Reader, Writer};
use zt_agent::audit::query::{Cursor, Filter};
use zt_agent::audit::record::{Kind, Outcome, Timestamp};
use zt_tests::postgres::Server;

use super::{batches, maker, ship, target, today, with_tables};

const DAY: i64 = 86_400_000_000_000;

/// How many facets are listed, and looks that these are those that shapes have, each once for each login.
pub(super) fn listed(server: &Server) -> u64 {
    let (facets, shapes) = (
        "SELECT id, type, decision, enforced, port, policy, login FROM zt_audit.facet",
        "SELECT facet, type, decision, enforced, port, split_part(rule, '/', 1), login FROM zt_audit.shape",
    );
    for (one, other) in [(facets, shapes), (shapes, facets)] {
        let more = server.number(&format!("SELECT count(*) FROM ({one} EXCEPT {other}) n"));
        assert_eq!(more.expect("a count"), 0, "{one}");
    }
    server
        .number("SELECT count(*) FROM zt_audit.facet")
        .expect("a count")
}

/// Of the maker's workloads the even ones are enforced, and their ports are 5432 and 443.
fn enforced_at(enforced: bool, port: u16) -> Filter {
    Filter {
        enforced: Some(enforced),
        port: Some(port),
        ..Filter::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facets_are_those_of_the_shapes_and_go_with_the_last_that_has_them() {
    let server = with_tables().await;
    ship(&server, &maker(today() - 10 * DAY, DAY / 1000, 30), 4000).await;
    let many = listed(&server);
    let mut head = Head::new(Uuid::from_u128(8));
    let records = maker(today(), 1000, 2).kept(0..10, &mut head);
    let mut writer = Writer::new(target(&server, "node"));
    for batch in batches(head.writer, &records, 10) {
        assert!(writer.ship(&batch).await.expect("shipped"));
    }
    let all = listed(&server);
    assert!(all >= many && many > 8, "{many}, then {all}");
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    maintainer.keep(Some(4)).await.expect("kept");
    let few = listed(&server);
    assert!(few > 0 && few < many, "{few} of {many}");
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_never_come_together_are_not_looked_for_in_the_shapes() {
    let server = with_tables().await;
    ship(&server, &maker(today() - 3 * DAY, DAY / 1000, 50), 3000).await;
    let reader = Reader::new(target(&server, "engine"));
    for (enforced, port, found) in [(true, 5432, true), (false, 6379, true), (false, 5432, false)] {
        let page = reader.query(&enforced_at(enforced, port), None, 10).await;
        assert_eq!(page.expect("a page").records.len(), if found { 10 } else { 0 });
    }
    // Nobody can look at shapes any more, and nobody needs to.
    let mut holding = server.session("postgres", "postgres").expect("a session");
    holding
        .run("BEGIN; LOCK TABLE zt_audit.shape IN ACCESS EXCLUSIVE MODE")
        .expect("locked");
    let denied_by_rule = Filter {
        decision: Some(Outcome::Deny),
        policy: Some("policy_3/rule-3".to_owned()),
        ..Filter::default()
    };
    let change_at_port = Filter {
        kind: Some(Kind::PolicyChange),
        port: Some(443),
        ..Filter::default()
    };
    for filter in [
        enforced_at(false, 5432),
        enforced_at(true, 1),
        denied_by_rule,
        change_at_port,
    ] {
        for time in [today(), today() - 2 * DAY] {
            let cursor = Cursor {
                time,
                id: Uuid::max(),
            };
            let filter = Filter {
                since: Some(Timestamp(1)),
                ..filter.clone()
            };
            let page = reader.query(&filter, Some(cursor), 10).await.expect("a page");
            assert_eq!((page.records.len(), page.next), (0, None), "{filter:?}");
        }
    }
    let error = reader.query(&enforced_at(true, 443), None, 10).await;
    assert_eq!(error.expect_err("shapes are locked").cause(), "slow");
    holding.run("ROLLBACK").expect("unlocked");
    reader.close().await;
}
