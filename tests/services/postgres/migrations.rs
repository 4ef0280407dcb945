// SPDX-License-Identifier: Apache-2.0
//! Tables of every earlier layout are brought up to date with what was recorded in them: every question is answered, and all is
//! verified, as if they had never been others.

use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use zt_agent::audit::postgres::{Maintainer, Reader};
use zt_agent::audit::query::{Filter, GraphFilter};
use zt_agent::audit::record::{Entry, Kept};
use zt_tests::postgres::Server;

use super::cluster::{Cluster, Node, clean};
use super::trail::{all, filter, is_of, matches, newest_first};
use super::{days, facets, server, target, today};

const DAY: i64 = 86_400_000_000_000;
const MIGRATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../zt-agent/migrations");
/// Records of each node before its tables are brought up to date, and afterwards: of three days each.
const COUNT: u64 = 1500;

async fn migrations() -> Migrator {
    Migrator::new(Path::new(MIGRATIONS)).await.expect("migrations")
}

/// Tables as a release made them that knew the migrations up to `known`, with partitions for two days.
async fn of_release(known: i64, first: i64) -> Server {
    let server = server();
    let options: PgConnectOptions = server.dsn("keeper").parse().expect("a DSN");
    let session = [("role", "zt_audit_maintainer"), ("search_path", "zt_audit")];
    let mut connection = options.options(session).connect().await.expect("connects");
    let mut migrations = migrations().await;
    migrations
        .set_locking(false)
        .run_direct(Some(known), &mut connection, false)
        .await
        .expect("made");
    connection.close().await.expect("closed");
    let last = first + 1;
    server
        .sql(&format!(
            "SET ROLE zt_audit_maintainer;
             DO $$ DECLARE name text; BEGIN
                 FOR day IN {first}..{last} LOOP
                     name := 'record_' || to_char(date '1970-01-01' + day, 'YYYYMMDD');
                     EXECUTE format('CREATE TABLE zt_audit.%I (LIKE zt_audit.record INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
                     EXECUTE format('ALTER TABLE zt_audit.record ATTACH PARTITION zt_audit.%I FOR VALUES FROM (%s) TO (%s)',
                         name, day * {DAY}, (day + 1) * {DAY});
                 END LOOP;
             END $$"
        ))
        .expect("partitions");
    server
}

/// Adds up the hours of a day, as a maintainer of the release that began with that did.
fn add_up(server: &Server, day: i64) {
    server
        .sql(&format!(
            "INSERT INTO zt_audit.bucket_day (shape, day, login, connections, first_seen, last_seen)
             SELECT shape, {day}, login, sum(connections), min(first_seen), max(last_seen) FROM zt_audit.bucket
             WHERE hour / 24 = {day} GROUP BY shape, login;
             INSERT INTO zt_audit.whole_day VALUES ({day})"
        ))
        .expect("added up");
}

/// Looks that what a cluster has recorded is found by every question and in the graph, and that nothing is wrong with it.
async fn is_as_recorded(cluster: &Cluster, of_each: u64, when: &str) {
    let of = |node: &Node| {
        let entry = |number| Kept {
            entry: node.maker.single(number),
            link: None,
        };
        (0..of_each).map(entry).collect::<Vec<_>>()
    };
    let mut records: Vec<Kept> = cluster.nodes.iter().flat_map(of).collect();
    newest_first(&mut records);
    let reader = Reader::new(target(&cluster.server, "engine"));
    let some = (0..60).map(|number| filter(number, &cluster.nodes[0].maker, of_each));
    let (mut asked, mut answered) = (0, 0);
    for filter in std::iter::once(Filter::default()).chain(some) {
        let expected = records.iter().filter(|kept| matches(&filter, kept));
        let expected: Vec<&Entry> = expected.map(|kept| &kept.entry).collect();
        let pages = all(&reader, &filter, 1000).await;
        let found: Vec<&Entry> = pages.iter().map(|kept| &kept.entry).collect();
        assert_eq!(found.len(), expected.len(), "{when}: {filter:?}");
        assert!(found == expected, "{when}: {filter:?}");
        asked += 1;
        answered += usize::from(!expected.is_empty());
    }
    assert!(
        answered > asked / 4,
        "{answered} of {asked} questions had answers"
    );
    let graph = reader.graph(&GraphFilter::default()).await.expect("graph");
    is_of(&graph, &records);
    reader.close().await;
    assert!(facets::listed(&cluster.server) > 0);
    let verified = cluster.verify(&[]);
    clean(when, &verified);
    assert_eq!(verified.1["entries"], records.len() as u64, "{when}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_earlier_releases_have_recorded_stays_as_it_was() {
    let newest = migrations().await.iter().map(|migration| migration.version).max();
    for known in 1..newest.expect("migrations") {
        let start = today() - 6 * DAY;
        let server = of_release(known, start / DAY).await;
        let mut nodes = Vec::new();
        for number in 0..2 {
            let mut node = Node::new(number, start, 3 * DAY / COUNT as i64).await;
            node.write(COUNT).await;
            node.ship(&server).await;
            nodes.push(node);
        }
        if known >= 3 {
            add_up(&server, start / DAY);
        }
        let mut cluster = Cluster {
            server,
            nodes,
            maintainer: tempfile::tempdir().expect("directory"),
        };
        let keeper = target(&cluster.server, "keeper");
        let maintainer = Maintainer::open(&keeper).await.expect("up to date");
        maintainer.close().await.expect("closed");
        is_as_recorded(&cluster, COUNT, &format!("{known} migrations, then the others")).await;
        days::keep(&cluster.server).await;
        is_as_recorded(&cluster, COUNT, &format!("{known}, kept")).await;
        for node in &mut cluster.nodes {
            node.write(COUNT).await;
            node.ship(&cluster.server).await;
        }
        is_as_recorded(&cluster, 2 * COUNT, &format!("{known}, gone on with")).await;
    }
}
