// SPDX-License-Identifier: Apache-2.0
//! Many rows in one statement.
//!
//! The driver hands every statement to a thread of its own and waits for the answer: 70 to 90 µs each on the
//! machine this was measured on, against 2 µs for a row. So rows travel by the hundreds. Statements come in
//! sizes that are powers of two, so that few are prepared and all are reused; what is left free of a statement is
//! NULL, and no row. Their texts are made once.

use std::sync::{Arc, OnceLock};

use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Encode, Sqlite, Type};

/// Most rows of one statement. Twice as many gain a tenth and double the memory of the prepared statement.
const MAX_ROWS: usize = 1 << MAX_BITS;
const MAX_BITS: usize = 9;
/// Rows that may be left free. They cost about as much as another statement would.
const MAX_FREE: usize = 48;

/// An `INSERT … SELECT … FROM (VALUES (…), (…) …)`. No first column is ever NULL.
pub(super) struct Bulk {
    head: &'static str,
    columns: usize,
    tail: &'static str,
    /// By the binary logarithm of their rows.
    texts: [OnceLock<Arc<str>>; MAX_BITS + 1],
}

/// The values of one statement, or of several in one text.
#[derive(Default)]
pub(super) struct Values(SqliteArguments);

impl Values {
    /// Runs a text with them and returns the rows of all its statements. What is not bound is NULL.
    pub(super) async fn run(
        self,
        text: Arc<str>,
        connection: &mut SqliteConnection,
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        sqlx::query_with(AssertSqlSafe(text), self.0)
            .fetch_all(connection)
            .await
    }

    /// Adds the next value.
    pub(super) fn push<'q, T: Encode<'q, Sqlite> + Type<Sqlite>>(
        &mut self,
        value: T,
    ) -> Result<(), sqlx::Error> {
        sqlx::Arguments::add(&mut self.0, value).map_err(sqlx::Error::Encode)
    }
}

impl Bulk {
    /// A statement of `head`, up to and with the names of the columns, the rows, and `tail`.
    pub(super) const fn new(head: &'static str, columns: usize, tail: &'static str) -> Self {
        Self {
            head,
            columns,
            tail,
            texts: [const { OnceLock::new() }; MAX_BITS + 1],
        }
    }

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

    /// Appends the statement for `items` to a text that is run together, as its last; false where they take several.
    pub(super) fn append<T>(
        &self,
        items: &[T],
        bind: impl Fn(&T, &mut Values) -> Result<(), sqlx::Error>,
        text: &mut String,
        values: &mut Values,
    ) -> Result<bool, sqlx::Error> {
        if items.is_empty() || items.len() > MAX_ROWS {
            return Ok(items.is_empty());
        }
        text.push(';');
        text.push_str(&self.statement(items.len()));
        items.iter().try_for_each(|item| bind(item, values))?;
        Ok(true)
    }

    fn values<T>(
        &self,
        chunk: &[T],
        bind: &impl Fn(&T, &mut Values) -> Result<(), sqlx::Error>,
    ) -> Result<Values, sqlx::Error> {
        let mut values = Values(SqliteArguments::default());
        sqlx::Arguments::reserve(&mut values.0, chunk.len() * self.columns, 0);
        chunk.iter().try_for_each(|item| bind(item, &mut values))?;
        // What is not bound is NULL.
        Ok(values)
    }

    /// The statement that so many rows fit into.
    fn statement(&self, rows: usize) -> Arc<str> {
        let bits = rows.next_power_of_two().ilog2() as usize;
        let text = || {
            let row = format!("({})", vec!["?"; self.columns].join(","));
            let rows = vec![row; 1 << bits].join(",");
            Arc::from(format!(
                "{} SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL {}",
                self.head, self.tail
            ))
        };
        self.texts
            .get(bits)
            .map_or_else(text, |made| Arc::clone(made.get_or_init(text)))
    }
}

/// Cuts into pieces that nearly fill a statement, the largest first.
fn chunks<T>(mut items: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let bits = items.len().checked_ilog2()?;
        let whole = items.len().next_power_of_two();
        let length = if whole <= MAX_ROWS && whole - items.len() <= MAX_FREE {
            items.len()
        } else {
            (1_usize << bits).min(MAX_ROWS)
        };
        let (chunk, rest) = items.split_at(length);
        items = rest;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions as _, Row as _};

    use super::*;

    #[test]
    fn chunks_fill_statements_and_miss_nothing() {
        for (length, pieces) in [
            (0_usize, &[] as &[usize]),
            (1, &[1]),
            (3, &[3]),
            (31, &[31]),
            (200, &[128, 64, 8]),
            (210, &[210]),
            (257, &[256, 1]),
            (511, &[511]),
            (512, &[512]),
            (513, &[512, 1]),
            (1300, &[512, 512, 256, 20]),
        ] {
            let items: Vec<usize> = (0..length).collect();
            let found: Vec<&[usize]> = chunks(&items).collect();
            assert_eq!(found.iter().map(|piece| piece.len()).collect::<Vec<_>>(), pieces);
            assert_eq!(found.concat(), items);
        }
    }

    #[tokio::test]
    async fn what_is_left_free_is_no_row() {
        static ROWS: Bulk = Bulk::new(
            "INSERT INTO kept (number, text)",
            2,
            "ON CONFLICT (number) DO UPDATE SET text = excluded.text RETURNING number",
        );
        let mut connection = sqlx::sqlite::SqliteConnectOptions::new()
            .in_memory(true)
            .connect()
            .await
            .expect("opens");
        sqlx::raw_sql("CREATE TABLE kept (number INTEGER PRIMARY KEY, text TEXT) STRICT")
            .execute(&mut connection)
            .await
            .expect("makes the table");
        for count in [1_i64, 3, 600, 5] {
            let items: Vec<i64> = (1..=count).collect();
            let mut returned = Vec::new();
            ROWS.insert_returning(
                &mut connection,
                &items,
                |item, values| {
                    values.push(*item)?;
                    values.push((*item != 2).then_some("text"))
                },
                |row| {
                    returned.push(row.try_get::<i64, _>(0)?);
                    Ok(())
                },
            )
            .await
            .expect("inserts");
            assert_eq!(returned, items);
        }
        let (rows, texts): (i64, i64) = sqlx::query_as("SELECT count(*), count(text) FROM kept")
            .fetch_one(&mut connection)
            .await
            .expect("counts");
        assert_eq!((rows, texts), (600, 599));
    }
}
