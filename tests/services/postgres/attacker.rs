// SPDX-License-Identifier: Apache-2.0
//! Somebody who has the login of one node: `mallory` may insert, and wants to hide, change, delay or spoil what others have
//! inserted. Each test says what is tried and why it must not help.

#[path = "attacker/claims.rs"]
mod claims;
#[path = "attacker/others.rs"]
mod others;
#[path = "attacker/pages.rs"]
mod pages;

use std::collections::BTreeMap;

use zt_agent::audit::postgres::Reader;
use zt_agent::audit::query::{Filter, Page};
use zt_agent::audit::record::Kept;
use zt_tests::postgres::Server;

use super::today;

const DAY: i64 = 86_400_000_000_000;
const WRITER: &str = "zt_audit_writer";
const MAINTAINER: &str = "zt_audit_maintainer";

/// What a shape's id is made of, in the order of `zt_audit.shape_id`.
const HASHED: [&str; 17] = [
    "type",
    "source",
    "destination",
    "rule",
    "source_node",
    "destination_node",
    "cluster",
    "decision",
    "mode",
    "observer",
    "hook",
    "reason",
    "proof",
    "protocol",
    "port",
    "enforced",
    "part",
];

/// A row to be inserted: SQL by column.
#[derive(Clone)]
struct Row {
    table: &'static str,
    columns: BTreeMap<&'static str, String>,
}

impl Row {
    fn of(table: &'static str, columns: &[(&'static str, &str)]) -> Self {
        let columns = columns
            .iter()
            .map(|(column, sql)| (*column, (*sql).to_owned()))
            .collect();
        Self { table, columns }
    }

    /// A shape that is right in everything.
    fn shape() -> Self {
        let day = (today() / DAY).to_string();
        Self::of(
            "shape",
            &[
                ("day", &day),
                ("type", "'decision'"),
                ("source", "'spiffe://hanzo.ai/hanzo-k8s/hanzo/mallory'"),
                ("destination", "'world'"),
                ("protocol", "6"),
                ("port", "443"),
                ("cluster", "'hanzo-k8s'"),
                ("decision", "'ALLOW'"),
                ("enforced", "true"),
                ("mode", "'enforce'"),
                ("observer", "'source'"),
                ("hook", "'connect'"),
                ("reason", "'rule'"),
                ("proof", "'none'"),
                ("part", "0"),
            ],
        )
    }

    /// A change of modes, which has little in its shape.
    fn change() -> Self {
        let day = (today() / DAY).to_string();
        Self::of(
            "shape",
            &[
                ("day", &day),
                ("type", "'mode_change'"),
                ("source_node", "'worker-1'"),
                ("cluster", "'hanzo-k8s'"),
                ("part", "2"),
            ],
        )
    }

    /// A record of that shape that is right in everything.
    fn record(shape: &Self) -> Self {
        let time = today().to_string();
        let shape = shape.id();
        Self::of(
            "record",
            &[
                ("time", &time),
                ("id", "gen_random_uuid()"),
                ("shape", &shape),
                ("writer", "gen_random_uuid()"),
                ("seq", "1"),
                ("hash", "sha256('x')"),
                ("revision", "1"),
                ("latency", "0"),
                ("count", "1"),
            ],
        )
    }

    fn batch() -> Self {
        let time = today().to_string();
        Self::of(
            "batch",
            &[
                ("writer", "gen_random_uuid()"),
                ("first_seq", "1"),
                ("last_seq", "8"),
                ("dropped", "0"),
                ("min_time", &time),
                ("max_time", &time),
            ],
        )
    }

    fn checkpoint() -> Self {
        Self::of(
            "checkpoint",
            &[
                ("writer", "gen_random_uuid()"),
                ("seq", "1"),
                ("time", "1"),
                ("text", "'{}'"),
            ],
        )
    }

    fn signing_key() -> Self {
        Self::of("signing_key", &[("created", "1"), ("text", "'{}'")])
    }

    fn gap() -> Self {
        Self::of(
            "gap",
            &[
                ("writer", "gen_random_uuid()"),
                ("first", "1"),
                ("last", "8"),
                ("text", "'{}'"),
            ],
        )
    }

    fn with(mut self, column: &'static str, sql: &str) -> Self {
        self.columns.insert(column, sql.to_owned());
        self
    }

    /// The id that belongs to a shape, as SQL.
    fn id(&self) -> String {
        let given = HASHED.map(|column| {
            let sql = self.columns.get(column).map_or("NULL", String::as_str);
            match column {
                "protocol" | "part" => format!("({sql})::smallint"),
                _ => sql.to_owned(),
            }
        });
        format!("zt_audit.shape_id({})", given.join(", "))
    }

    fn sql(&self) -> String {
        let mut columns = self.columns.clone();
        if self.table == "shape" {
            let id = self.id();
            columns.entry("id").or_insert(id);
        }
        let (names, values): (Vec<&str>, Vec<String>) = columns.into_iter().unzip();
        let (names, values) = (names.join(", "), values.join(", "));
        format!("INSERT INTO zt_audit.{} ({names}) VALUES ({values})", self.table)
    }
}

/// Inserts as `mallory`.
fn insert(server: &Server, rows: &[Row]) {
    for row in rows {
        let sql = row.sql();
        let said = server.attempt("mallory", WRITER, &sql).expect("psql");
        said.unwrap_or_else(|said| panic!("{sql}: {said}"));
    }
}

fn refused(server: &Server, sql: &str, why: &str) {
    let said = server.refusal("mallory", WRITER, sql).expect(sql);
    assert!(said.contains(why), "{sql}: {said}");
}

/// All pages of an answer, each as it is.
async fn pages(reader: &Reader, filter: &Filter, limit: u32) -> Vec<Page> {
    let (mut pages, mut cursor) = (Vec::new(), None);
    loop {
        let page = reader.query(filter, cursor, limit).await.expect("page");
        cursor = page.next;
        pages.push(page);
        if cursor.is_none() {
            return pages;
        }
    }
}

/// The records of pages.
fn records_of(pages: Vec<Page>) -> Vec<Kept> {
    pages.into_iter().flat_map(|page| page.records).collect()
}

fn newest_first(records: &mut [Kept]) {
    records.sort_by_key(|kept| std::cmp::Reverse((kept.entry.timestamp(), kept.entry.id())));
}
