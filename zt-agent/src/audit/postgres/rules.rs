// SPDX-License-Identifier: Apache-2.0
//! How often which rule decided: the hourly counts, added up.

use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::PgError;
use crate::audit::query::{AddingHits, CountedByRule, GraphFilter, RuleHits};
use crate::audit::record::{Outcome, Part, Timestamp};

/// Each shape is added up before it is looked at what it says. Parameters: 1 what is no connection, 2 and 3 the hours.
const SQL: &str = "
WITH summed AS MATERIALIZED (
    SELECT login, shape, max(hour / 24)::integer AS day, sum(connections) AS connections,
           min(first_seen) AS first_seen, max(last_seen) AS last_seen
    FROM zt_audit.bucket WHERE hour BETWEEN $2 AND $3 GROUP BY 1, 2
)
SELECT s.rule, s.part, s.decision, s.enforced,
       least(sum(b.connections), 9223372036854775807)::bigint, min(b.first_seen), max(b.last_seen)
FROM summed b JOIN zt_audit.shape s ON s.day = b.day AND s.id = b.shape AND s.login = b.login
WHERE s.part <> $1 AND s.decision IS NOT NULL
GROUP BY 1, 2, 3, 4";

/// Adds up which rule decided how often.
pub(super) async fn rules(connection: &mut PgConnection, filter: &GraphFilter) -> Result<RuleHits, PgError> {
    let (first, last) = filter.hours();
    let mut rows = sqlx::query(SQL)
        .bind(Part::Aside.number())
        .bind(first)
        .bind(last)
        .fetch(connection);
    let mut adding = AddingHits::default();
    while let Some(row) = rows.try_next().await? {
        adding.take(counted(&row)?);
    }
    Ok(adding.done())
}

fn counted(row: &PgRow) -> Result<CountedByRule, sqlx::Error> {
    Ok(CountedByRule {
        rule: row.try_get(0)?,
        corrects: i64::from(row.try_get::<i16, _>(1)?) == Part::Corrects.number(),
        denied: row.try_get::<&str, _>(2)? == Outcome::Deny.name(),
        enforced: row.try_get(3)?,
        count: row.try_get::<i64, _>(4)?.cast_unsigned(),
        first_seen: Timestamp(row.try_get(5)?),
        last_seen: Timestamp(row.try_get(6)?),
    })
}
