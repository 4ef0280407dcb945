// SPDX-License-Identifier: Apache-2.0
//! How often which rule decided: the hourly counts, added up.

use futures::TryStreamExt as _;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::StoreError;
use crate::audit::query::{AddingHits, CountedByRule, GraphFilter, RuleHits};
use crate::audit::record::{Outcome, Part, Timestamp};

/// The hours of each shape are added up before it is looked at what the shape says: they lie together, and are many.
const SQL: &str = "
SELECT rule.text, s.part, s.decision, s.enforced, sum(c.connections), min(c.first_seen), max(c.last_seen)
FROM (SELECT t.id, sum(b.connections) AS connections, min(b.first_seen) AS first_seen, max(b.last_seen) AS last_seen
      FROM shape t CROSS JOIN bucket b ON b.shape = t.id AND b.hour BETWEEN ?2 AND ?3
      WHERE t.part <> ?1 GROUP BY t.id) c
     JOIN shape s ON s.id = c.id
     LEFT JOIN name rule ON rule.id = s.rule
WHERE s.decision <> ''
GROUP BY 1, 2, 3, 4";

/// Adds up which rule decided how often.
pub(super) async fn rules(readers: &SqlitePool, filter: &GraphFilter) -> Result<RuleHits, StoreError> {
    let (first, last) = filter.hours();
    let mut rows = sqlx::query(SQL)
        .bind(Part::Aside.number())
        .bind(first)
        .bind(last)
        .fetch(readers);
    let mut adding = AddingHits::default();
    while let Some(row) = rows.try_next().await? {
        adding.take(counted(&row)?);
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
