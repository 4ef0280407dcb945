// SPDX-License-Identifier: Apache-2.0
//! Finding records, newest first by time and id.
//!
//! The counts by the hour (see [`super::guide`]) say where answers are, and of hours that are asked for as a whole even
//! when the latest is. So the search goes back through windows of hours that grow, takes as many shapes as there are
//! records on a page (each has at least one that is as late as the latest of any left out), and reads of each no more
//! than the page can hold. Whatever the filter, it reads hundreds of records and not the trail. The hour within which a
//! page begins is searched otherwise, and so is one of a day with very many kinds of record: see [`super::cut`].
//!
//! Two logins may have inserted records of one time and id. A cursor cannot lie between them: a page ends behind all of
//! them, and is longer than it should be by as many. What cannot be read is on the page, as such.

use sqlx::postgres::PgConnection;
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::guide::{self, Parameters, Place, Places};
use super::rows::{self, columns};
use super::{DAY, PgError};
use crate::audit::query::{Cursor, Filter, HOUR, Page};

/// How many hours back each window reaches from the newest; one more reaches to the beginning. An hour has thousands of
/// shapes where a question asks for nearly everything: the first windows are those in which such a question ends.
const WINDOWS: [i64; 6] = [0, 1, 4, 24, 24 * 7, 24 * 31];

/// Bytes of details that a page has at most; its last ones are left to the next page.
const PAGE_BYTES: i64 = 32 << 20;

/// What a page needs of a record. Details of far more than a page has are not even sent.
macro_rules! bounded {
    () => {
        columns!(
            "CASE WHEN r.detail IS NOT NULL AND sum(octet_length(r.detail)) OVER (ORDER BY r.time DESC, r.id DESC, r.login)
                       <= 67108864 THEN r.detail END"
        )
    };
}
pub(super) use bounded;

/// One window without a filter. Parameters: 1 and 2 the times, 3 and 4 the place before which, 5 how many.
const ALL: &str = concat!(
    "SELECT ",
    bounded!(),
    " FROM (SELECT * FROM zt_audit.record WHERE time >= $1 AND time <= $2 AND (time, id) < ($3, $4)
            ORDER BY time DESC, id DESC FETCH FIRST ($5::bigint) ROWS WITH TIES) r
      LEFT JOIN zt_audit.shape s ON s.day = (r.time / 86400000000000)::integer AND s.id = r.shape AND s.login = r.login
      ORDER BY r.time DESC, r.id DESC, r.login"
);

/// The latest record of each place before the cursor. Parameters: 1 to 3 the places, 4 and 5 all times, 6 and 7 the cursor.
const LATEST: &str = "
SELECT (SELECT r.time FROM zt_audit.record r
        WHERE r.shape = g.shape AND r.time >= g.first AND r.time <= g.last AND r.time >= $4 AND r.time <= $5
          AND (r.time, r.id) < ($6, $7)
        ORDER BY r.time DESC LIMIT 1)
FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS g (shape, first, last, place)
ORDER BY g.place";

/// The latest records of the places. Parameters: as above, 8 how many.
const OF_PLACES: &str = concat!(
    "SELECT ",
    bounded!(),
    " FROM (SELECT r.* FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS g (shape, first, last)
            CROSS JOIN LATERAL (
                SELECT * FROM zt_audit.record r
                WHERE r.shape = g.shape AND r.time >= g.first AND r.time <= g.last AND r.time >= $4 AND r.time <= $5
                  AND (r.time, r.id) < ($6, $7)
                ORDER BY r.time DESC, r.id DESC FETCH FIRST ($8::bigint) ROWS WITH TIES
            ) r ORDER BY r.time DESC, r.id DESC FETCH FIRST ($8::bigint) ROWS WITH TIES) r
      LEFT JOIN zt_audit.shape s ON s.day = (r.time / 86400000000000)::integer AND s.id = r.shape AND s.login = r.login
      ORDER BY r.time DESC, r.id DESC, r.login"
);

/// The latest records behind a place, at most so many; not more than `most_rows` are looked at that nobody asked for.
pub(super) async fn page(
    connection: &mut PgConnection,
    filter: &Filter,
    cursor: Option<Cursor>,
    limit: usize,
    most_rows: i64,
) -> Result<Page, PgError> {
    let mut search = Search::new(filter, cursor, limit + 1, most_rows);
    if let Some(parameters) = Parameters::of(connection, filter).await? {
        search.run(connection, &parameters).await?;
    }
    Ok(search.found.page(limit))
}

/// What was found so far, in order.
#[derive(Default)]
pub(super) struct Found {
    page: Page,
    /// The place of each, readable or not.
    places: Vec<Cursor>,
    /// Bytes of their details.
    bytes: i64,
    /// There was more than a page has room for.
    full: bool,
    /// Behind this place nothing was looked for.
    end: Option<Cursor>,
}

impl Found {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    /// Leaves what is behind a place to the next page.
    pub(super) const fn end_at(&mut self, place: Cursor) {
        self.end = Some(place);
        self.full = true;
    }

    /// The page of them.
    fn page(self, limit: usize) -> Page {
        let fits = self.count() <= limit;
        let mut page = self.page.cut(limit, self.full);
        // From where it was ended on, and not from the last record before: so each page gets further.
        if let Some(end) = self.end.filter(|_| fits) {
            page.next = Some(end);
        }
        page
    }

    pub(super) fn take(&mut self, rows: &[PgRow]) -> Result<(), PgError> {
        for row in rows {
            let place = rows::place(row)?;
            let bytes = row
                .try_get::<Option<i32>, _>("detail_bytes")?
                .map_or(0, i64::from);
            // Never between two of one place: no cursor leads there.
            if self.bytes + bytes > PAGE_BYTES && self.places.last().is_some_and(|last| *last != place) {
                self.full = true;
                return Ok(());
            }
            self.bytes += bytes;
            match rows::kept(row) {
                Ok(kept) => self.page.records.push(kept),
                Err(error) => self.page.unreadable.push(rows::unreadable(row, error)?),
            }
            self.places.push(place);
        }
        Ok(())
    }
}

pub(super) struct Search {
    pub(super) since: i64,
    pub(super) before: Cursor,
    pub(super) found: Found,
    wanted: usize,
    /// Records that were looked at, whether they are asked for or not, and most of them.
    pub(super) looked_at: i64,
    pub(super) most_rows: i64,
}

impl Search {
    fn new(filter: &Filter, cursor: Option<Cursor>, wanted: usize, most_rows: i64) -> Self {
        let end = Cursor {
            time: filter.until.map_or(i64::MAX, |until| until.0),
            // No record is before the end with the end's own time.
            id: if filter.until.is_some() {
                Uuid::nil()
            } else {
                Uuid::max()
            },
        };
        Self {
            since: filter.since.map_or(0, |since| since.0.max(0)),
            before: cursor.map_or(end, |cursor| cursor.min(end)),
            wanted,
            found: Found::default(),
            looked_at: 0,
            most_rows,
        }
    }

    async fn run(&mut self, connection: &mut PgConnection, parameters: &Parameters) -> Result<(), PgError> {
        let Some(newest) = guide::newest(connection, self.since, self.before.time).await? else {
            return Ok(());
        };
        let oldest = self.since / HOUR;
        let mut high = newest;
        for back in WINDOWS.map(Some).into_iter().chain([None]) {
            if high < oldest || self.is_done() {
                return Ok(());
            }
            let low = back.map_or(oldest, |back| (newest - back).max(oldest));
            if parameters.is_all() {
                self.all(connection, low, high).await?;
            } else {
                self.window(connection, parameters, low, high).await?;
            }
            high = low - 1;
        }
        Ok(())
    }

    /// Whether the page has all that it can have.
    pub(super) fn is_done(&self) -> bool {
        self.found.full || self.left() == 0
    }

    /// The times of a window: its first nanosecond and its last.
    pub(super) fn times(&self, low: i64, high: i64) -> (i64, i64) {
        let last = high.saturating_mul(HOUR).saturating_add(HOUR - 1);
        (
            low.saturating_mul(HOUR).max(self.since),
            last.min(self.before.time),
        )
    }

    pub(super) fn left(&self) -> usize {
        self.wanted.saturating_sub(self.found.places.len())
    }

    async fn all(&mut self, connection: &mut PgConnection, low: i64, high: i64) -> Result<(), PgError> {
        let (first, last) = self.times(low, high);
        let rows = sqlx::query(ALL)
            .bind(first)
            .bind(last)
            .bind(self.before.time)
            .bind(self.before.id)
            .bind(self.left() as i64)
            .fetch_all(connection)
            .await?;
        self.found.take(&rows)
    }

    /// Takes the latest that is asked for of a window. An hour is looked through as if it were cut: what is frequent is found
    /// without a look at its shapes, of which an hour may have tens of thousands. So is each hour of a day of which many
    /// kinds are asked for; of several days the later half is looked at first.
    async fn window(
        &mut self,
        connection: &mut PgConnection,
        parameters: &Parameters,
        low: i64,
        high: i64,
    ) -> Result<(), PgError> {
        // The latest is the last.
        let mut windows = vec![(low, high)];
        while let Some((low, high)) = windows.pop().filter(|_| !self.is_done()) {
            if low == high {
                self.cut_hour(connection, parameters, high).await?;
                continue;
            }
            let most = self.left() as i64;
            let places = parameters
                .places(connection, (low, high), self.since, self.before, most)
                .await?;
            match places {
                Places::Few(places) => self.take_places(connection, places).await?,
                Places::Many => match halfway(low, high) {
                    Some(middle) => windows.extend([(low, middle - 1), (middle, high)]),
                    None => windows.extend((low..=high).map(|hour| (hour, hour))),
                },
            }
        }
        Ok(())
    }

    /// Takes the latest records of these places.
    pub(super) async fn take_places(
        &mut self,
        connection: &mut PgConnection,
        mut places: Vec<Place>,
    ) -> Result<(), PgError> {
        if places.is_empty() {
            return Ok(());
        }
        // Each place has its last record: those of as many places as are wanted fill the page, and what is older than
        // all of these is not on it.
        places.sort_unstable_by_key(|place| std::cmp::Reverse(place.last));
        let floor = places.get(self.left() - 1).map_or(i64::MIN, |place| place.last);
        places.retain(|place| place.last >= floor);
        for place in &mut places {
            place.first = place.first.max(floor).max(self.since);
        }
        let rows = self
            .bind(OF_PLACES, &places)
            .bind(self.left() as i64)
            .fetch_all(connection)
            .await?;
        self.found.take(&rows)
    }

    /// The places with the time of their latest record before the cursor; without those that have none.
    pub(super) async fn latest(
        &self,
        connection: &mut PgConnection,
        places: Vec<Place>,
    ) -> Result<Vec<Place>, PgError> {
        let (known, unknown): (Vec<Place>, Vec<Place>) = places
            .into_iter()
            .partition(|place| place.last < self.before.time);
        let mut all = known;
        if unknown.is_empty() {
            return Ok(all);
        }
        let rows = self.bind(LATEST, &unknown).fetch_all(connection).await?;
        for (place, row) in unknown.into_iter().zip(&rows) {
            if let Some(last) = row.try_get::<Option<i64>, _>(0)? {
                all.push(Place { last, ..place });
            }
        }
        Ok(all)
    }

    /// Parameters 1 to 7.
    fn bind(
        &self,
        sql: &'static str,
        places: &[Place],
    ) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
        let first = places
            .iter()
            .map(|place| place.first)
            .min()
            .unwrap_or(0)
            .max(self.since);
        let last = places
            .iter()
            .map(|place| place.last)
            .max()
            .unwrap_or(0)
            .min(self.before.time);
        sqlx::query(sql)
            .bind(places.iter().map(|place| place.shape).collect::<Vec<Uuid>>())
            .bind(places.iter().map(|place| place.first).collect::<Vec<i64>>())
            .bind(places.iter().map(|place| place.last).collect::<Vec<i64>>())
            .bind(first)
            .bind(last)
            .bind(self.before.time)
            .bind(self.before.id)
    }
}

/// The first hour of the later half of the days that two hours are of; `None` where that is one day.
const fn halfway(low: i64, high: i64) -> Option<i64> {
    let (first, last) = (low / 24, high / 24);
    if first == last {
        return None;
    }
    Some((first + last + 1) / 2 * 24)
}

// The statements above name the width of a day and twice the bytes of a page.
const _: () = assert!(DAY == 86_400_000_000_000 && 2 * PAGE_BYTES == 67_108_864);
