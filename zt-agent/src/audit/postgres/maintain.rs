// SPDX-License-Identifier: Apache-2.0
//! The tables' owner: makes them, makes partitions ahead of time, and drops those that are too old.

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use time::OffsetDateTime;

use super::connect::{Role, Target};
use super::{DAY, PgError, closing, days, pruning, unlisted, version};
use crate::audit::clock;
use crate::audit::seal::Keys;

/// Partitions that are made before their day comes.
const AHEAD: i32 = 7;
/// How far this machine's clock and the server's may be apart where something is dropped by them.
const MAX_APART: u64 = 5 * 60;
/// Longer than a batch takes: who has held locks for so long does not ship.
const OLD_TRANSACTION: &str = "5 minutes";
/// Most days whose strays get a partition of their own at a time: a writer with a broken clock must not make thousands.
const MAX_STRAY_DAYS: i64 = 31;
/// Every partition but the default one.
const PARTITIONS: &str = "
SELECT c.relname::text FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'zt_audit.record'::regclass AND c.relname ~ '^record_[0-9]{8}$'
ORDER BY c.relname";

/// Looks after the tables over a connection of its own.
#[derive(Debug)]
pub struct Maintainer {
    connection: PgConnection,
    keys: Option<Keys>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Partitions made.
    pub made: usize,
    /// Partitions dropped.
    pub dropped: usize,
    /// Records that went, because of their age.
    pub records: u64,
    /// Days whose hours were added up.
    pub added_up: usize,
}

impl Maintainer {
    /// Connects, ends transactions of writers that are in the way, and brings the tables up to date. Any number of them may
    /// do so at the same time.
    pub async fn open(target: &Target) -> Result<Self, PgError> {
        let mut connection = target.connect(Role::Maintainer).await?;
        version::check(&mut connection, target).await?;
        let ended: i64 = sqlx::query_scalar("SELECT zt_audit.end_old_transactions($1::text::interval)")
            .bind(OLD_TRANSACTION)
            .fetch_one(&mut connection)
            .await
            .map_err(|source| target.failed(Role::Maintainer, source))?;
        if ended > 0 {
            tracing::warn!(
                ended,
                "logins that may write had held locks on the audit trail's tables for more than {OLD_TRANSACTION}: \
                 their transactions were ended"
            );
        }
        migrate(&mut connection)
            .await
            .map_err(|source| PgError::Migrate {
                place: target.place().to_owned(),
                source,
            })?;
        Ok(Self {
            connection,
            keys: None,
        })
    }

    /// Has what is dropped stated and signed: without that a verifier finds it missing.
    #[must_use]
    pub fn signing(self, keys: Keys) -> Self {
        Self {
            keys: Some(keys),
            ..self
        }
    }

    /// Makes the partitions that are missing, drops those older than `retention_days`, and adds up the hours of days that
    /// are over.
    pub async fn keep(&mut self, retention_days: Option<u32>) -> Result<Kept, PgError> {
        self.keep_at(clock::now(), retention_days).await
    }

    /// As [`Maintainer::keep`], on a machine whose clock shows `now` (Unix nanoseconds). How late it is, the server says;
    /// where the two are more than five minutes apart nothing is dropped, because one of them is wrong.
    pub async fn keep_at(&mut self, now: i64, retention_days: Option<u32>) -> Result<Kept, PgError> {
        let server: i64 = sqlx::query_scalar(
            "SELECT (date_part('epoch', clock_timestamp()) * 1e9::double precision)::bigint",
        )
        .fetch_one(&mut self.connection)
        .await?;
        let apart = server.abs_diff(now) / 1_000_000_000;
        let today = day_of(server);
        let oldest = retention_days.map(|days| today.saturating_sub(i32::try_from(days).unwrap_or(i32::MAX)));
        let mut kept = Kept::default();
        let dropped = oldest.filter(|_| apart <= MAX_APART);
        if let Some(oldest) = dropped {
            self.drop_before(oldest, &mut kept).await?;
        }
        self.open_from(dropped).await?;
        self.make_missing(today, oldest, &mut kept).await?;
        self.add_up_before(today, &mut kept).await?;
        if oldest.is_some() && apart > MAX_APART {
            return Err(PgError::Clocks { seconds: apart });
        }
        Ok(kept)
    }

    /// Makes the partitions that are missing, from yesterday's on, and those of strays since `oldest`.
    async fn make_missing(
        &mut self,
        today: i32,
        oldest: Option<i32>,
        kept: &mut Kept,
    ) -> Result<(), PgError> {
        let present = self.days().await?;
        let mut wanted: Vec<i32> = (today - 1..=today + AHEAD).collect();
        let strays: Vec<i64> = sqlx::query_scalar(
            "SELECT DISTINCT time / $1 FROM zt_audit.record_other WHERE time >= $2 AND time < $3 ORDER BY 1 LIMIT $4",
        )
        .bind(DAY)
        .bind(start_of(oldest.unwrap_or(0).max(0)))
        .bind(start_of(today + AHEAD + 1))
        .bind(MAX_STRAY_DAYS)
        .fetch_all(&mut self.connection)
        .await?;
        wanted.extend(strays.into_iter().filter_map(|day| i32::try_from(day).ok()));
        wanted.sort_unstable();
        wanted.dedup();
        for day in wanted.into_iter().filter(|day| !present.contains(day)) {
            kept.made += usize::from(self.make(day).await?);
        }
        Ok(())
    }

    /// Adds up the hours of every day before `today` that has a partition.
    async fn add_up_before(&mut self, today: i32, kept: &mut Kept) -> Result<(), PgError> {
        let done = days::added_up(&mut self.connection).await?;
        let present = self.days().await?;
        for day in present.into_iter().take_while(|day| *day < today) {
            if done.binary_search(&day).is_err() {
                let added = days::add_up(&mut self.connection, day, &name_of(day)).await?;
                kept.added_up += usize::from(added);
            }
        }
        Ok(())
    }

    /// Says goodbye.
    pub async fn close(self) -> Result<(), PgError> {
        Ok(self.connection.close().await?)
    }

    /// The days that have a partition, in order.
    async fn days(&mut self) -> Result<Vec<i32>, PgError> {
        let names: Vec<String> = sqlx::query_scalar(PARTITIONS)
            .fetch_all(&mut self.connection)
            .await?;
        Ok(names.iter().filter_map(|name| day_named(name)).collect())
    }

    /// Makes a day's partition, with what the default one has of that day. False where another was faster.
    async fn make(&mut self, day: i32) -> Result<bool, PgError> {
        let (name, start, end) = (name_of(day), start_of(day), start_of(day + 1));
        let mut transaction = self.connection.begin().await?;
        // Held until the commit: who finds the table missing after this makes it. What goes elsewhere is not kept waiting.
        sqlx::query("LOCK TABLE zt_audit.record_other IN ACCESS EXCLUSIVE MODE")
            .execute(&mut *transaction)
            .await?;
        let there: bool = sqlx::query_scalar("SELECT to_regclass('zt_audit.' || $1) IS NOT NULL")
            .bind(&name)
            .fetch_one(&mut *transaction)
            .await?;
        if there {
            return Ok(false);
        }
        // The name is made of digits, the bounds are numbers.
        let sql = format!(
            "CREATE TABLE zt_audit.{name} (LIKE zt_audit.record INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
             WITH moved AS (DELETE FROM zt_audit.record_other WHERE time >= {start} AND time < {end} RETURNING *)
             INSERT INTO zt_audit.{name} SELECT * FROM moved;
             ALTER TABLE zt_audit.record ATTACH PARTITION zt_audit.{name} FOR VALUES FROM ({start}) TO ({end})"
        );
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Drops every whole day before `oldest`, with its shapes and counts.
    async fn drop_before(&mut self, oldest: i32, kept: &mut Kept) -> Result<(), PgError> {
        let days = self.days().await?;
        for day in days.into_iter().take_while(|day| *day < oldest) {
            if let Some(records) = self.drop_day(day).await? {
                kept.records += records;
                kept.dropped += 1;
            }
        }
        let start = start_of(oldest);
        let mut transaction = self.connection.begin().await?;
        let (strays, spans) = pruning::delete_strays(&mut transaction, start).await?;
        if let Some(keys) = &self.keys {
            pruning::state(&mut transaction, keys, &spans).await?;
        }
        transaction.commit().await?;
        kept.records += strays;
        days::forget_before(&mut self.connection, oldest).await?;
        for sql in [
            "DELETE FROM zt_audit.shape WHERE day < $1::bigint / 86400000000000",
            "DELETE FROM zt_audit.batch WHERE max_time < $1",
        ] {
            sqlx::query(sql).bind(start).execute(&mut self.connection).await?;
        }
        unlisted::forget(&mut self.connection).await
    }

    /// Drops the partition of a day, with what is counted of it, and states in the same transaction what was in it. Returns how
    /// many records that were; `None` where another maintainer wants to keep it.
    async fn drop_day(&mut self, day: i32) -> Result<Option<u64>, PgError> {
        let name = name_of(day);
        let Some(closing) = closing::close(&mut self.connection, &name).await? else {
            return Ok(None);
        };
        let dropped = self.drop_closed(day, &name, closing).await;
        if dropped.is_err()
            && let Err(error) = closing::open(&mut self.connection, &name).await
        {
            tracing::warn!(%error, name, "records of a day that could not be dropped wait in the spools");
        }
        dropped
    }

    async fn drop_closed(
        &mut self,
        day: i32,
        name: &str,
        closing: closing::Closing,
    ) -> Result<Option<u64>, PgError> {
        // What takes long comes first, for writers and readers of the whole trail wait while it is locked. Nothing comes to
        // a closed day.
        let count = AssertSqlSafe(format!("SELECT count(*) FROM zt_audit.{name}"));
        let records: i64 = sqlx::query_scalar(count).fetch_one(&mut self.connection).await?;
        let spans = match &self.keys {
            Some(_) => pruning::spans(&mut self.connection, name).await?,
            None => Vec::new(),
        };
        let mut transaction = self.connection.begin().await?;
        if let Some(keys) = &self.keys {
            pruning::state(&mut transaction, keys, &spans).await?;
        }
        days::forget(&mut transaction, day).await?;
        // Names are made of digits.
        let lock = format!("LOCK TABLE ONLY zt_audit.record, zt_audit.{name} IN ACCESS EXCLUSIVE MODE");
        sqlx::raw_sql(AssertSqlSafe(lock))
            .execute(&mut *transaction)
            .await?;
        // Another one that keeps records for longer may have opened it.
        if closing::closing_of(&mut transaction, name).await? != Some(closing) {
            return Ok(None);
        }
        sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE zt_audit.{name}")))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some(records.cast_unsigned()))
    }

    /// Opens the days from one on, or all, that are closed: a maintainer that was to drop them ended before it had.
    async fn open_from(&mut self, first: Option<i32>) -> Result<(), PgError> {
        for name in closing::closed(&mut self.connection).await? {
            let stays = |day: i32| first.is_none_or(|first| day >= first);
            if day_named(&name).is_some_and(stays) {
                closing::open(&mut self.connection, &name).await?;
            }
        }
        Ok(())
    }
}

/// Brings the tables up to date, as a whole or not at all.
async fn migrate(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let mut transaction = connection.begin().await?;
    // Not the advisory lock of `sqlx`, which every login could hold for ever.
    sqlx::query("LOCK TABLE zt_audit.upkeep IN SHARE UPDATE EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await?;
    let mut migrator = sqlx::migrate!("./migrations");
    migrator
        .set_locking(false)
        // Not `run`, whose future cannot be sent to another thread.
        .run_direct(None, &mut *transaction, false)
        .await?;
    Ok(transaction.commit().await?)
}

/// The day of a time, since 1970.
pub(super) fn day_of(time: i64) -> i32 {
    // Within an i64 of nanoseconds there are 106,751 days on either side of 1970.
    (time / DAY) as i32
}

fn start_of(day: i32) -> i64 {
    i64::from(day).saturating_mul(DAY)
}

fn name_of(day: i32) -> String {
    let date = OffsetDateTime::UNIX_EPOCH
        .date()
        .saturating_add(time::Duration::days(i64::from(day)));
    format!(
        "record_{:04}{:02}{:02}",
        date.year(),
        u8::from(date.month()),
        date.day()
    )
}

fn day_named(name: &str) -> Option<i32> {
    let digits = name
        .strip_prefix("record_")
        .filter(|digits| digits.len() == 8 && digits.is_ascii())?;
    let month = time::Month::try_from(digits[4..6].parse::<u8>().ok()?).ok()?;
    let date =
        time::Date::from_calendar_date(digits[..4].parse().ok()?, month, digits[6..].parse().ok()?).ok()?;
    Some(date.to_julian_day() - OffsetDateTime::UNIX_EPOCH.date().to_julian_day())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_names_and_names_days() {
        assert_eq!(name_of(0), "record_19700101");
        assert_eq!(name_of(20_507), "record_20260223");
        for day in [0, 58, 59, 20_507, 40_000] {
            assert_eq!(day_named(&name_of(day)), Some(day));
        }
        for name in [
            "record_other",
            "record_20261301",
            "record_2026022",
            "record_2026022x",
        ] {
            assert_eq!(day_named(name), None, "{name}");
        }
        assert_eq!(day_of(1_771_857_000_000_000_000), 20_507);
    }
}
