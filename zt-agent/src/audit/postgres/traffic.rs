// SPDX-License-Identifier: Apache-2.0
//! Recorded connections: the counts where both ends have names, the records where an end is known by its address.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::PgError;
use super::sums::{self, Sums, added_up, added_up_of_day, counted};
use crate::audit::query::{AddingRaw, AddingSeen, Fold, GraphFilter, HOUR, Traffic, by_address};
use crate::audit::record::Part;

macro_rules! columns {
    () => {
        "s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced, b.connections, b.first_seen,
         b.last_seen, s.reason, NULL::inet, NULL::inet"
    };
}

/// Those of whom both ends have names.
macro_rules! named {
    ($added_up:expr) => {
        concat!(
            $added_up,
            "AND NOT ",
            by_address!("s.source"),
            " AND NOT ",
            by_address!("s.destination"),
        )
    };
}

const NAMED: &str = named!(added_up!(counted!(), columns!(), ""));
const NAMED_OF_DAY: &str = named!(added_up_of_day!(columns!()));

/// The same of the others of one day, an address each. Parameters: 1 what is no connection, 2 the day, 3 and 4 the times.
/// Records are added up before it is looked at what their shapes say.
const BY_ADDRESS: &str = concat!(
    "WITH summed AS (
         SELECT s.id, s.login, CASE WHEN ",
    by_address!("s.source"),
    " THEN r.source_address END AS source_address, CASE WHEN ",
    by_address!("s.destination"),
    " THEN r.destination_address END AS destination_address,
                least(sum(r.count), 9223372036854775807)::bigint AS connections, min(r.time) AS first_seen,
                max(r.time) AS last_seen
         FROM zt_audit.record r JOIN zt_audit.shape s ON s.day = $2::bigint AND s.id = r.shape AND s.login = r.login
         WHERE r.time BETWEEN $3 AND $4 AND s.part <> $1 AND (",
    by_address!("s.source"),
    " OR ",
    by_address!("s.destination"),
    ")
         GROUP BY 1, 2, 3, 4
     )
     SELECT s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced, b.connections, b.first_seen,
            b.last_seen, s.reason, b.source_address, b.destination_address
     FROM summed b CROSS JOIN LATERAL (
         SELECT * FROM zt_audit.shape s WHERE s.day = $2 AND s.id = b.id AND s.login = b.login OFFSET 0
     ) s"
);

/// Sockets of one day that take the right to raw sockets, by the hour. Parameters: 1 what they are, 2 the day, 3 and 4 the hours.
const RAW: &str = "
SELECT s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced, b.connections, b.first_seen,
       b.last_seen, s.reason
FROM (
    SELECT * FROM zt_audit.shape
    WHERE day = $2 AND destination = 'raw-sockets' AND hook = 'socket' AND part = $1 OFFSET 0
) s
CROSS JOIN LATERAL (
    SELECT connections, first_seen, last_seen FROM zt_audit.bucket
    WHERE shape = s.id AND login = s.login AND hour BETWEEN $3 AND $4 OFFSET 0
) b";

/// The connections of a range of hours, each counted once.
pub(super) async fn traffic(mut sums: Sums, filter: &GraphFilter, fold: &Fold) -> Result<Traffic, PgError> {
    let mut adding = AddingSeen::new(filter, fold);
    let mut take = |row: &PgRow| -> Result<(), PgError> {
        let ends = [row.try_get(11)?, row.try_get(12)?];
        Ok(adding.add(&sums::connections(row)?, row.try_get(10)?, ends)?)
    };
    for span in sums.spans() {
        sums.each(span.asked_by_day(NAMED, NAMED_OF_DAY), &mut take)
            .await?;
    }
    for (first, last) in sums.days() {
        let statement = sqlx::query(BY_ADDRESS)
            .bind(Part::Aside.number())
            .bind(first.div_euclid(24))
            .bind(first * HOUR)
            .bind(last * HOUR + (HOUR - 1));
        sums.each(statement, &mut take).await?;
    }
    let mut raw = AddingRaw::new(filter, fold);
    for (first, last) in sums.days() {
        let statement = sqlx::query(RAW)
            .bind(Part::Aside.number())
            .bind(first.div_euclid(24))
            .bind(first)
            .bind(last);
        sums.each(statement, |row| {
            Ok(raw.take(&sums::connections(row)?, row.try_get(10)?)?)
        })
        .await?;
    }
    Ok(Traffic {
        raw: raw.done(),
        ..adding.done()
    })
}
