// SPDX-License-Identifier: Apache-2.0
//! How often which rule decided, from the counts.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::PgError;
use super::sums::{Sums, added_up, counted};
use crate::audit::query::{AddingHits, Begins, CountedByRule, GraphFilter, RuleHits};
use crate::audit::record::{Outcome, Part, Timestamp};

const COUNTED: &str = added_up!(
    counted!(),
    "s.rule, s.part, s.decision, s.enforced, least(sum(b.connections), 9223372036854775807)::bigint, min(b.first_seen),
     max(b.last_seen)",
    "AND s.decision IS NOT NULL GROUP BY 1, 2, 3, 4"
);

/// The same, each shape by itself.
const BY_SHAPE: &str = added_up!(
    counted!(),
    "s.rule, s.part, s.decision, s.enforced, b.connections, b.first_seen, b.last_seen",
    "AND s.decision IS NOT NULL"
);

/// Adds up which rule decided how often, before and after policies began.
pub(super) async fn rules(
    mut sums: Sums,
    filter: &GraphFilter,
    begins: &Begins,
) -> Result<RuleHits, PgError> {
    let mut adding = AddingHits::new(begins);
    for piece in begins.pieces(filter.hours()) {
        let statement = if piece.begins { BY_SHAPE } else { COUNTED };
        for span in sums.spans_of(piece.hours) {
            let take = |row: &PgRow| {
                adding.take(by_rule(row)?);
                Ok(())
            };
            sums.each(span.asked(statement), take).await?;
        }
    }
    Ok(adding.done())
}

fn by_rule(row: &PgRow) -> Result<CountedByRule, sqlx::Error> {
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
