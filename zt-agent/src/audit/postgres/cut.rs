// SPDX-License-Identifier: Apache-2.0
//! The hour that a page begins within, or one of a day with very many kinds of record. The counts say when a shape was
//! recorded last in it, and not when last before the page. What is asked for is either frequent: then it is found among the
//! records right before, whatever their shapes. Or it is rare: then it has few shapes, each of which is looked up. Where it
//! is neither, the page ends early, and the next one goes on: no question takes longer because others have recorded much.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::PgError;
use super::guide::{Parameters, Places, asked};
use super::rows::columns;
use super::select::{Search, bounded};
use crate::audit::query::{Cursor, HOUR};

/// Records looked at first, whatever their shapes.
const FIRST_ROWS: i64 = 2048;
/// If it took more of them than that, the shapes are asked for.
const FEW_ROWS: i64 = 16_384;
/// Most of them at a time, and for one page.
const MOST_ROWS: i64 = 262_144;
pub(super) const PAGE_ROWS: i64 = 8 * MOST_ROWS;

/// The time of the record so many places before the cursor. Parameters: 1 and 2 the times, 3 and 4 the cursor, 5 how many.
const FLOOR: &str = "
SELECT time FROM zt_audit.record WHERE time >= $1 AND time <= $2 AND (time, id) < ($3, $4)
ORDER BY time DESC, id DESC OFFSET $5 LIMIT 1";

/// The latest records between two times that are asked for. Parameters: 1 to 9 the filter, 10 the day, 11 and 12 the times,
/// 13 and 14 the cursor, 15 how many.
const STRETCH: &str = concat!(
    "SELECT ",
    bounded!(),
    " FROM (SELECT r.* FROM zt_audit.record r
            JOIN zt_audit.shape s ON s.day = $10::integer AND s.id = r.shape AND s.login = r.login
            WHERE r.time >= $11 AND r.time <= $12 AND (r.time, r.id) < ($13, $14) AND ",
    asked!(),
    "       ORDER BY r.time DESC, r.id DESC FETCH FIRST ($15::bigint) ROWS WITH TIES) r
      LEFT JOIN zt_audit.shape s ON s.day = (r.time / 86400000000000)::integer AND s.id = r.shape AND s.login = r.login
      ORDER BY r.time DESC, r.id DESC, r.login"
);

impl Search {
    /// Takes what is asked for of one hour, that the cursor may cut.
    pub(super) async fn cut_hour(
        &mut self,
        connection: &mut PgConnection,
        parameters: &Parameters,
        hour: i64,
    ) -> Result<(), PgError> {
        let (mut rows, mut asked) = (FIRST_ROWS, false);
        loop {
            let before = self.found.count();
            self.looked_at += rows;
            let floor = self.stretch(connection, parameters, hour, rows).await?;
            let (Some(floor), false) = (floor, self.is_done()) else {
                return Ok(());
            };
            // Of that time and later ones all are seen.
            self.before = Cursor {
                time: floor,
                id: Uuid::nil(),
            };
            let needed = match (self.found.count() - before) as i64 {
                0 => i64::MAX,
                found => (rows * self.left() as i64 / found).max(1),
            };
            if needed > FEW_ROWS && !std::mem::replace(&mut asked, true) {
                let places = parameters
                    .places_of_hour(connection, hour, self.since, self.before)
                    .await?;
                if let Places::Few(places) = places {
                    let places = self.latest(connection, places).await?;
                    return self.take_places(connection, places).await;
                }
            }
            if self.looked_at >= self.most_rows {
                self.found.end_at(self.before);
                return Ok(());
            }
            // A little more than at this rate, for it is not the same everywhere.
            rows = needed
                .saturating_add(needed / 4)
                .clamp(FIRST_ROWS, (rows * 4).min(MOST_ROWS));
        }
    }

    /// Takes what is asked for of the last records before the cursor. Returns from which time on that was; `None` where it
    /// was all of the hour.
    async fn stretch(
        &mut self,
        connection: &mut PgConnection,
        parameters: &Parameters,
        hour: i64,
        rows: i64,
    ) -> Result<Option<i64>, PgError> {
        let (first, last) = self.times(hour, hour);
        let floor: Option<i64> = sqlx::query_scalar(FLOOR)
            .bind(first)
            .bind(last)
            .bind(self.before.time)
            .bind(self.before.id)
            .bind(rows - 1)
            .fetch_optional(&mut *connection)
            .await?;
        let rows = parameters
            .bind(STRETCH)
            .bind(hour / 24)
            .bind(floor.unwrap_or(first))
            .bind(last)
            .bind(self.before.time)
            .bind(self.before.id)
            .bind(self.left() as i64)
            .fetch_all(connection)
            .await?;
        self.found.take(&rows)?;
        Ok(floor)
    }
}

// An hour lies within a day, and its number tells which.
const _: () = assert!(24 * HOUR == super::DAY);
