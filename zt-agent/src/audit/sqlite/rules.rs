// SPDX-License-Identifier: Apache-2.0
//! How often which rule decided: the hourly counts, added up.

use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::StoreError;
use super::sums::{self, summed};
use crate::audit::query::{AddingHits, Begins, CountedByRule, GraphFilter, RuleHits};
use crate::audit::record::{Outcome, Part, Timestamp};

const SQL: &str = concat!(
    "SELECT rule.text, s.part, s.decision, s.enforced, sum(c.connections), min(c.first_seen), max(c.last_seen)
     FROM ",
    summed!(),
    " JOIN shape s ON s.id = c.id
      LEFT JOIN name rule ON rule.id = s.rule
     WHERE s.decision <> ''
     GROUP BY 1, 2, 3, 4"
);

/// The same, each shape by itself.
const BY_SHAPE: &str = concat!(
    "SELECT rule.text, s.part, s.decision, s.enforced, c.connections, c.first_seen, c.last_seen
     FROM ",
    summed!(),
    " JOIN shape s ON s.id = c.id
      LEFT JOIN name rule ON rule.id = s.rule
     WHERE s.decision <> ''"
);

/// Adds up which rule decided how often, before and after policies began.
pub(super) async fn rules(
    connection: &mut SqliteConnection,
    filter: &GraphFilter,
    begins: &Begins,
) -> Result<RuleHits, StoreError> {
    let mut adding = AddingHits::new(begins);
    for piece in begins.pieces(filter.hours()) {
        let sql = if piece.begins { BY_SHAPE } else { SQL };
        let mut rows = sums::asked_of(sql, piece.hours).fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            adding.take(counted(&row)?);
        }
    }
    Ok(adding.done())
}

fn counted(row: &SqliteRow) -> Result<CountedByRule, sqlx::Error> {
    Ok(CountedByRule {
        rule: row.try_get(0)?,
        corrects: row.try_get::<i64, _>(1)? == Part::Corrects.number(),
        denied: row.try_get::<&str, _>(2)? == Outcome::Deny.name(),
        enforced: row.try_get(3)?,
        count: row.try_get::<i64, _>(4)?.cast_unsigned(),
        first_seen: Timestamp(row.try_get(5)?),
        last_seen: Timestamp(row.try_get(6)?),
    })
}
