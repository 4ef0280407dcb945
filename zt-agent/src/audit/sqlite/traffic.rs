// SPDX-License-Identifier: Apache-2.0
//! Recorded connections: the hourly counts where both ends have names, the records where an end is known by its address.

use std::collections::HashMap;
use std::net::IpAddr;

use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::packed::{self, Shape, unread};
use super::{Reader, StoreError, sums};
use crate::audit::query::{
    AddingRaw, AddingSeen, Connections, Counted, Fold, GraphFilter, HOUR, TooMuch, Traffic, by_address,
    is_by_address,
};
use crate::audit::record::Timestamp;
use crate::audit::seal::unhex;

/// The sums of shapes an end of which is known by its address, one for each address: shape, both addresses in hexadecimal, how many,
/// the first, the last, as one text, for sqlx copies every value. Parameters: 1 what is no connection, 2 and 3 the hours, 4 and 5 the
/// times. The shapes come first, so that a record is looked at once.
const BY_ADDRESS: &str = concat!(
    "WITH wanted AS MATERIALIZED (
         SELECT s.id, ",
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
     SELECT json_array(id, lower(hex(source_address)), lower(hex(destination_address)), connections, first_seen, last_seen) FROM counted"
);

/// What [`BY_ADDRESS`] says of one address.
type ByAddress<'t> = (i64, &'t str, &'t str, i64, i64, i64);

/// Sockets that take the right to raw sockets. Parameters as of [`summed`], but that 1 is what they are.
const RAW: &str = "
SELECT source.text, destination.text, s.protocol, s.port, s.part, s.decision, s.enforced,
       sum(b.connections), min(b.first_seen), max(b.last_seen), s.reason
FROM name destination CROSS JOIN shape s ON s.destination = destination.id
     JOIN name source ON source.id = s.source
     CROSS JOIN bucket b ON b.shape = s.id AND b.hour BETWEEN ?2 AND ?3
WHERE destination.text = 'raw-sockets' AND s.hook = 'socket' AND s.part = ?1
GROUP BY s.id";

impl Reader {
    /// The connections of a range of hours, each counted once. `fold` says which addresses are one, and how many there may be.
    pub async fn traffic(&mut self, filter: &GraphFilter, fold: &Fold) -> Result<Traffic, StoreError> {
        traffic(self.connection(), filter, fold).await
    }
}

/// [`Reader::traffic`].
pub(super) async fn traffic(
    connection: &mut SqliteConnection,
    filter: &GraphFilter,
    fold: &Fold,
) -> Result<Traffic, StoreError> {
    let (first, last) = filter.hours();
    let mut adding = AddingSeen::new(filter, fold);
    let (mut nameless, mut bytes) = (HashMap::new(), 0_usize);
    packed::each(connection, (first, last), |shape| {
        let Shape {
            id,
            connections,
            reason,
        } = shape;
        let (source, destination) = (&connections.source, &connections.destination);
        if !(is_by_address(source) || is_by_address(destination)) {
            return Ok(adding.add(&connections, reason, [None, None])?);
        }
        if !filter.takes(source, destination) {
            return Ok(());
        }
        // Each has an address of its own at least.
        if nameless.len() >= fold.most_addresses() {
            return Err(TooMuch::Addresses(fold.most_addresses()).into());
        }
        let counted = Counted {
            connections,
            reason: reason.to_owned(),
            source_address: None,
            destination_address: None,
        };
        bytes = bytes.saturating_add(bytes_of(&counted));
        if bytes > fold.most_bytes() {
            return Err(TooMuch::Bytes(fold.most_bytes()).into());
        }
        nameless.insert(id, counted);
        Ok(())
    })
    .await?;
    if !nameless.is_empty() {
        let mut rows = sums::asked(BY_ADDRESS, filter)
            .bind(first.saturating_mul(HOUR))
            .bind(last.saturating_mul(HOUR).saturating_add(HOUR - 1))
            .fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            let (shape, source, destination, count, first, last) =
                serde_json::from_str::<ByAddress<'_>>(row.try_get(0)?).map_err(unread)?;
            // Of the others, nothing is asked.
            let Some(counted) = nameless.get_mut(&shape) else {
                continue;
            };
            counted.source_address = address(source)?;
            counted.destination_address = address(destination)?;
            counted.connections.count = count.cast_unsigned();
            counted.connections.first_seen = Timestamp(first);
            counted.connections.last_seen = Timestamp(last);
            adding.take(counted)?;
        }
    }
    let mut raw = AddingRaw::new(filter, fold);
    let mut rows = sums::asked(RAW, filter).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        raw.take(&sums::connections(&row)?, row.try_get(10)?)?;
    }
    Ok(Traffic {
        raw: raw.done(),
        ..adding.done()
    })
}

/// What one takes that is kept by its number, as estimated from above: a table that grows has twice the room that it needs, and others
/// may have the same names.
fn bytes_of(counted: &Counted) -> usize {
    let Connections {
        source, destination, ..
    } = &counted.connections;
    2 * size_of::<(i64, Counted)>() + counted.reason.len() + source.len() + destination.len()
}

/// Reads an address in hexadecimal; nothing is none.
fn address(text: &str) -> Result<Option<IpAddr>, StoreError> {
    let bytes = unhex(text).ok_or_else(|| unread("an address is not in hexadecimal"))?;
    Ok(super::rows::ip(&bytes))
}
