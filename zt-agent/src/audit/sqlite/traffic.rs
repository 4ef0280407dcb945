// SPDX-License-Identifier: Apache-2.0
//! Recorded connections: the hourly counts where both ends have names, the records where an end is known by its address.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::sums::{self, summed};
use super::{Reader, StoreError};
use crate::audit::query::{AddingSeen, Counted, GraphFilter, HOUR, MAX_SEEN, Traffic, by_address};

const NAMED: &str = concat!(
    "SELECT source.text, destination.text, s.protocol, s.port, s.part, s.decision, s.enforced,
            c.connections, c.first_seen, c.last_seen, s.reason, NULL, NULL
     FROM ",
    summed!(),
    "     JOIN shape s ON s.id = c.id
          JOIN name source ON source.id = s.source JOIN name destination ON destination.id = s.destination
     WHERE NOT ",
    by_address!("source.text"),
    " AND NOT ",
    by_address!("destination.text")
);

/// The same of the others, an address each. Parameters: 1 what is no connection, 2 and 3 the hours, 4 and 5 the times. The shapes come first: a record is
/// looked at once, and what its shape says is found by the shape's number.
const BY_ADDRESS: &str = concat!(
    "WITH wanted AS MATERIALIZED (
         SELECT s.id, source.text AS source, destination.text AS destination, s.protocol, s.port, s.part, s.decision,
                s.enforced, s.reason, ",
    by_address!("source.text"),
    " AS by_source, ",
    by_address!("destination.text"),
    " AS by_destination
         FROM shape s JOIN name source ON source.id = s.source JOIN name destination ON destination.id = s.destination
         WHERE s.part <> ?1 AND (",
    by_address!("source.text"),
    " OR ",
    by_address!("destination.text"),
    ")
           AND EXISTS (SELECT 1 FROM bucket b WHERE b.shape = s.id AND b.hour BETWEEN ?2 AND ?3)
     ), counted AS MATERIALIZED (
         SELECT w.id, CASE WHEN w.by_source THEN r.source_address END AS source_address,
                CASE WHEN w.by_destination THEN r.destination_address END AS destination_address,
                sum(r.count) AS connections, min(r.time) AS first_seen, max(r.time) AS last_seen
         FROM record r CROSS JOIN wanted w ON w.id = r.shape
         WHERE r.time BETWEEN ?4 AND ?5
         GROUP BY 1, 2, 3
     )
     SELECT w.source, w.destination, w.protocol, w.port, w.part, w.decision, w.enforced,
            c.connections, c.first_seen, c.last_seen, w.reason, c.source_address, c.destination_address
     FROM counted c JOIN wanted w ON w.id = c.id"
);

impl Reader {
    /// The connections of a range of hours, each counted once.
    pub async fn traffic(&mut self, filter: &GraphFilter) -> Result<Traffic, StoreError> {
        traffic(self.connection(), filter, MAX_SEEN).await
    }
}

/// The connections of a range of hours, each counted once; at most so many different ones.
pub(super) async fn traffic(
    connection: &mut SqliteConnection,
    filter: &GraphFilter,
    most: usize,
) -> Result<Traffic, StoreError> {
    let (first, last) = filter.hours();
    let mut adding = AddingSeen::new(filter, most);
    for sql in [NAMED, BY_ADDRESS] {
        let mut rows = sums::asked(sql, filter)
            .bind(first.saturating_mul(HOUR))
            .bind(last.saturating_mul(HOUR).saturating_add(HOUR - 1))
            .fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            adding.take(&counted(&row)?)?;
        }
    }
    Ok(adding.done())
}

fn counted(row: &SqliteRow) -> Result<Counted, sqlx::Error> {
    let address = |column: usize| -> Result<Option<IpAddr>, sqlx::Error> {
        let bytes: Option<&[u8]> = row.try_get(column)?;
        Ok(bytes.and_then(super::rows::ip))
    };
    Ok(Counted {
        connections: sums::connections(row)?,
        reason: row.try_get(10)?,
        source_address: address(11)?,
        destination_address: address(12)?,
    })
}
