// SPDX-License-Identifier: Apache-2.0
//! Many rows in one statement.
//!
//! The driver hands every statement to a thread of its own and waits for the answer: 70 to 90 µs each on the
//! machine this was measured on, against 2 µs for a row. So rows travel by the hundreds. Statements come in
//! sizes that are powers of two, so that few are prepared and all are reused.

use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Encode, Sqlite, Type};

/// Most rows of one statement. Twice as many gain a tenth and double the memory of the prepared statement.
const MAX_ROWS: usize = 512;

/// An `INSERT … VALUES (…), (…) …`.
pub(super) struct Bulk {
    /// Up to and with `VALUES`.
    pub(super) head: &'static str,
    /// Columns of a row.
    pub(super) columns: usize,
    /// What follows the rows.
    pub(super) tail: &'static str,
}

/// The values of one statement.
pub(super) struct Values(SqliteArguments);

impl Values {
    /// Adds the next value.
    pub(super) fn push<'q, T: Encode<'q, Sqlite> + Type<Sqlite>>(
        &mut self,
        value: T,
    ) -> Result<(), sqlx::Error> {
        sqlx::Arguments::add(&mut self.0, value).map_err(sqlx::Error::Encode)
    }
}

impl Bulk {
    /// Inserts `items`; `bind` adds the values of one, in the order of the columns.
    pub(super) async fn insert<T>(
        &self,
        connection: &mut SqliteConnection,
        items: &[T],
        bind: impl Fn(&T, &mut Values) -> Result<(), sqlx::Error>,
    ) -> Result<(), sqlx::Error> {
        for chunk in chunks(items) {
            let values = self.values(chunk, &bind)?;
            sqlx::query_with(AssertSqlSafe(self.statement(chunk.len())), values.0)
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }

    /// Inserts `items` and hands over what `RETURNING` of the tail returns.
    pub(super) async fn insert_returning<T>(
        &self,
        connection: &mut SqliteConnection,
        items: &[T],
        bind: impl Fn(&T, &mut Values) -> Result<(), sqlx::Error>,
        mut each: impl FnMut(&SqliteRow) -> Result<(), sqlx::Error>,
    ) -> Result<(), sqlx::Error> {
        for chunk in chunks(items) {
            let values = self.values(chunk, &bind)?;
            let statement = AssertSqlSafe(self.statement(chunk.len()));
            let rows = sqlx::query_with(statement, values.0)
                .fetch_all(&mut *connection)
                .await?;
            rows.iter().try_for_each(&mut each)?;
        }
        Ok(())
    }

    fn values<T>(
        &self,
        chunk: &[T],
        bind: &impl Fn(&T, &mut Values) -> Result<(), sqlx::Error>,
    ) -> Result<Values, sqlx::Error> {
        let mut values = Values(SqliteArguments::default());
        sqlx::Arguments::reserve(&mut values.0, chunk.len() * self.columns, 0);
        chunk.iter().try_for_each(|item| bind(item, &mut values))?;
        Ok(values)
    }

    fn statement(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns].join(","));
        format!("{} {} {}", self.head, vec![row; rows].join(","), self.tail)
    }
}

/// Cuts into pieces whose lengths are powers of two, the largest first.
fn chunks<T>(mut items: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = items
            .len()
            .checked_ilog2()
            .map(|bits| (1_usize << bits).min(MAX_ROWS))?;
        let (chunk, rest) = items.split_at(length);
        items = rest;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_powers_of_two_and_miss_nothing() {
        for length in [0_usize, 1, 3, 511, 512, 513, 1300] {
            let items: Vec<usize> = (0..length).collect();
            let pieces: Vec<&[usize]> = chunks(&items).collect();
            assert!(
                pieces
                    .iter()
                    .all(|piece| piece.len().is_power_of_two() && piece.len() <= MAX_ROWS)
            );
            assert_eq!(pieces.concat(), items);
        }
    }
}
