// SPDX-License-Identifier: Apache-2.0
//! The counts of a range of hours, added up by shape: those of days that are added up, and of the hours of all others. The
//! graph, replays and the hits of rules are made of them.
//!
//! However long the range is, the server adds up no more kinds at a time than its memory holds: what is asked for is cut
//! into [`spans`], one statement each, all at one moment of the trail. Whoever adds them up here can stop after any of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{Row as _, Transaction};
use uuid::Uuid;

use super::PgError;
use super::spans::{self, Day, SAMPLE_BITS, Span};
use crate::audit::query::{Connections, GraphFilter};
use crate::audit::record::{Outcome, Part, Timestamp};

/// Kinds that are added up at a time: each takes some 300 bytes of the server's memory.
pub(super) const MOST_KINDS: u64 = 250_000;
/// Room for those kinds, and nothing is sorted: what is added up is looked up by its hash.
const ROOM: &str = "
SELECT set_config('work_mem', '64MB', true), set_config('enable_sort', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true)";
/// Bounds what goes to the server's disk all the same, where the login may and nobody has bounded it more. In kB.
const BOUND: &str = "
SELECT set_config('temp_file_limit', '1GB', true) FROM pg_catalog.pg_settings
WHERE name = 'temp_file_limit' AND setting::bigint NOT BETWEEN 0 AND 1048576
  AND has_parameter_privilege('temp_file_limit', 'SET')";
/// The first version of the server that has privileges of parameters.
const HAS_PRIVILEGES: u32 = 150_000;

/// The time that a statement has.
const TIME: &str = "SELECT set_config('statement_timeout', $1, true)";

/// The days between two that have a shape, whether they are added up, and those of its kinds whose shapes are between two
/// ids. From one day to the next, however many shapes are between them.
const DAYS: &str = "
WITH RECURSIVE d (day) AS (
    SELECT min(day) FROM zt_audit.shape WHERE day >= $1
    UNION ALL
    SELECT (SELECT min(s.day) FROM zt_audit.shape s WHERE s.day > d.day) FROM d WHERE d.day < $2
)
SELECT d.day, w.day IS NOT NULL,
       ARRAY (SELECT s.id::text || s.login FROM zt_audit.shape s WHERE s.day = d.day AND s.id BETWEEN $3 AND $4)
FROM d LEFT JOIN zt_audit.whole_day w ON w.day = d.day
WHERE d.day <= $2
ORDER BY 1";

/// The sums of a span by shape, `summed`, and what each shape says, `s`. Each is added up before it is looked at what it
/// says: its counts are many. It says the same on each of its days, for its id is a hash of that. `$counted` are the counts;
/// parameter 1 is what is no connection.
macro_rules! added_up {
    ($counted:expr, $columns:expr, $rest:literal) => {
        added_up!(
            $counted,
            $columns,
            "CROSS JOIN LATERAL (
                SELECT * FROM zt_audit.shape s WHERE s.day = b.day AND s.id = b.shape AND s.login = b.login OFFSET 0
            ) s",
            $rest
        )
    };
    ($counted:expr, $columns:expr, $joined:literal, $rest:literal) => {
        concat!(
            "WITH ",
            $counted,
            ", summed AS (
                SELECT login, shape, max(day) AS day, least(sum(connections), 9223372036854775807)::bigint AS connections,
                       min(first_seen) AS first_seen, max(last_seen) AS last_seen
                FROM counted GROUP BY 1, 2
            )
            SELECT ",
            $columns,
            " FROM summed b ",
            $joined,
            " WHERE s.part <> $1 ",
            $rest
        )
    };
}
pub(super) use added_up;

/// The same of a [whole day](Span::whole_day), which is parameter 6. What is asked for is about nearly all of the day's shapes: these are
/// read as they lie, and looked up in the sums, which are in memory. One by one they would be looked up all over the disk.
///
/// The server plans for a day that it does not know, and so for one as large as they are on average. Of the newest it may have no
/// statistics yet: it would take that one for all but empty, and keep what its shapes say in memory, or where there is no room for
/// that on disk, instead of the sums.
macro_rules! added_up_of_day {
    ($columns:expr) => {
        added_up!(
            counted!(),
            $columns,
            "JOIN zt_audit.shape s ON s.id = b.shape AND s.login = b.login",
            "AND s.day = (SELECT $6::integer) AND ($4::uuid IS NULL OR s.id BETWEEN $4 AND $5) "
        )
    };
}
pub(super) use added_up_of_day;

/// The counts of a span. Parameters: 2 its days, 3 its hours, 4 and 5 the first and the last shape, or nothing.
macro_rules! counted {
    () => {
        "counted AS (
            SELECT login, shape, day, connections, first_seen, last_seen FROM zt_audit.bucket_day
            WHERE day = ANY ($2) AND ($4::uuid IS NULL OR shape BETWEEN $4 AND $5)
            UNION ALL
            SELECT b.login, b.shape, (b.hour / 24)::integer, b.connections, b.first_seen, b.last_seen
            FROM unnest($3::bigint[]) AS h (hour)
            CROSS JOIN LATERAL (
                SELECT * FROM zt_audit.bucket
                WHERE hour = h.hour AND ($4::uuid IS NULL OR shape BETWEEN $4 AND $5) OFFSET 0
            ) b
        )"
    };
}
pub(super) use counted;

/// A question under way.
#[derive(Debug)]
pub(super) struct Sums {
    transaction: Transaction<'static, Postgres>,
    end: Instant,
    most_seconds: u64,
    hours: (i64, i64),
    days: Vec<Day>,
    most_kinds: u64,
}

impl Sums {
    /// Begins in a transaction, which sees one moment of the trail.
    pub(super) async fn begin(
        mut transaction: Transaction<'static, Postgres>,
        filter: &GraphFilter,
        (most_kinds, most_seconds): (u64, u64),
    ) -> Result<Self, PgError> {
        let end = Instant::now() + Duration::from_secs(most_seconds);
        sqlx::query(ROOM).execute(&mut *transaction).await?;
        if transaction
            .server_version_num()
            .is_some_and(|version| version >= HAS_PRIVILEGES)
        {
            sqlx::query(BOUND).execute(&mut *transaction).await?;
        }
        let hours = filter.hours();
        let day = |hour: i64| {
            i32::try_from(hour.div_euclid(24)).unwrap_or(if hour < 0 { i32::MIN } else { i32::MAX })
        };
        // Which ids are looked at is by chance: nobody makes kinds that are not.
        let part = Uuid::now_v7().as_u128() << (128 - SAMPLE_BITS);
        let days: Vec<(i32, bool, Vec<String>)> = sqlx::query_as(DAYS)
            .bind(day(hours.0))
            .bind(day(hours.1))
            .bind(Uuid::from_u128(part))
            .bind(Uuid::from_u128(part | (u128::MAX >> SAMPLE_BITS)))
            .fetch_all(&mut *transaction)
            .await?;
        let day = |(day, added_up, sample)| Day {
            number: day,
            added_up,
            sample,
        };
        Ok(Self {
            transaction,
            end,
            most_seconds,
            hours,
            days: days.into_iter().map(day).collect(),
            most_kinds,
        })
    }

    /// The range, in spans of which each can be added up at once.
    pub(super) fn spans(&self) -> Vec<Span> {
        self.spans_of(self.hours)
    }

    /// The same of some hours of the range, the first and the last.
    pub(super) fn spans_of(&self, hours: (i64, i64)) -> Vec<Span> {
        let is_asked = |day: &&Day| {
            let (first, last) = day.between(hours);
            first <= last
        };
        let days: Vec<Day> = self.days.iter().filter(is_asked).cloned().collect();
        spans::spans(&days, hours, self.most_kinds)
    }

    /// The first hour and the last of each day of the range.
    pub(super) fn days(&self) -> Vec<(i64, i64)> {
        self.days.iter().map(|day| day.between(self.hours)).collect()
    }

    /// Hands over each row of a statement, until there is an error.
    pub(super) async fn each(
        &mut self,
        statement: Query<'static, Postgres, PgArguments>,
        mut take: impl FnMut(&PgRow) -> Result<(), PgError>,
    ) -> Result<(), PgError> {
        let seconds = self.most_seconds;
        let left = self.end.saturating_duration_since(Instant::now()).as_millis();
        if left == 0 {
            return Err(PgError::Slow { seconds });
        }
        sqlx::query(TIME)
            .bind(format!("{left}ms"))
            .execute(&mut *self.transaction)
            .await?;
        let mut rows = statement.fetch(&mut *self.transaction);
        while let Some(row) = rows.try_next().await? {
            take(&row)?;
        }
        Ok(())
    }
}

impl Span {
    /// Parameters 1 to 5 of `sql`, or 1 to 6 of `of_day`, where it is of a whole day.
    pub(super) fn asked_by_day(
        self,
        sql: &'static str,
        of_day: &'static str,
    ) -> Query<'static, Postgres, PgArguments> {
        match self.whole_day() {
            Some(day) => self.asked(of_day).bind(day),
            None => self.asked(sql),
        }
    }

    /// Parameters 1 to 5.
    pub(super) fn asked(self, sql: &'static str) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(sql)
            .bind(Part::Aside.number())
            .bind(self.days)
            .bind(self.hours)
            .bind(self.shapes.map(|(first, _)| first))
            .bind(self.shapes.map(|(_, last)| last))
    }
}

/// What the first ten columns say: source, destination, protocol, port, part, decision, enforced, how many, the first, the
/// latest.
pub(super) fn connections(row: &PgRow) -> Result<Connections, sqlx::Error> {
    Ok(Connections {
        source: Arc::from(row.try_get::<&str, _>(0)?),
        destination: Arc::from(row.try_get::<&str, _>(1)?),
        // The table takes only numbers that fit.
        protocol: row.try_get::<i16, _>(2)? as u8,
        port: row.try_get::<i32, _>(3)? as u16,
        corrects: i64::from(row.try_get::<i16, _>(4)?) == Part::Corrects.number(),
        denied: row.try_get::<&str, _>(5)? == Outcome::Deny.name(),
        enforced: row.try_get(6)?,
        count: row.try_get::<i64, _>(7)?.cast_unsigned(),
        first_seen: Timestamp(row.try_get(8)?),
        last_seen: Timestamp(row.try_get(9)?),
    })
}
