// SPDX-License-Identifier: Apache-2.0
//! The hourly counts of a range of hours, added up by shape, a row each. Where all of them are wanted, and what they say,
//! they are [packed](super::packed).

use std::sync::Arc;

use sqlx::Row as _;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow};

use crate::audit::query::{Connections, GraphFilter};
use crate::audit::record::{Outcome, Part, Timestamp};

/// The sum of each shape, as a table `c`. The hours of each are added up before it is looked at what the shape says: they
/// lie together, and are many. Parameters: 1 what is no connection, 2 and 3 the first and the last hour.
macro_rules! summed {
    () => {
        "(SELECT t.id, sum(b.connections) AS connections, min(b.first_seen) AS first_seen, max(b.last_seen) AS last_seen
          FROM shape t CROSS JOIN bucket b ON b.shape = t.id AND b.hour BETWEEN ?2 AND ?3
          WHERE t.part <> ?1 GROUP BY t.id) c"
    };
}
pub(super) use summed;

/// Parameters 1 to 3.
pub(super) fn asked(sql: &'static str, filter: &GraphFilter) -> Query<'static, Sqlite, SqliteArguments> {
    asked_of(sql, filter.hours())
}

/// The same of these hours, the first and the last.
pub(super) fn asked_of(
    sql: &'static str,
    (first, last): (i64, i64),
) -> Query<'static, Sqlite, SqliteArguments> {
    sqlx::query(sql).bind(Part::Aside.number()).bind(first).bind(last)
}

/// What the first ten columns say: source, destination, protocol, port, part, decision, enforced, how many, the first, the
/// latest.
pub(super) fn connections(row: &SqliteRow) -> Result<Connections, sqlx::Error> {
    Ok(Connections {
        source: Arc::from(row.try_get::<&str, _>(0)?),
        destination: Arc::from(row.try_get::<&str, _>(1)?),
        protocol: row.try_get(2)?,
        port: row.try_get(3)?,
        corrects: row.try_get::<i64, _>(4)? == Part::Corrects.number(),
        denied: row.try_get::<&str, _>(5)? == Outcome::Deny.name(),
        enforced: row.try_get(6)?,
        count: row.try_get::<i64, _>(7)?.cast_unsigned(),
        first_seen: Timestamp(row.try_get(8)?),
        last_seen: Timestamp(row.try_get(9)?),
    })
}
