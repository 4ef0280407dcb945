// SPDX-License-Identifier: Apache-2.0
//! Where the answers are: which shapes, in which hours. Every value is a parameter; the statements are constants.

use sqlx::Row as _;
use sqlx::postgres::{PgArguments, PgConnection, PgRow, Postgres};
use sqlx::query::Query;
use uuid::Uuid;

use super::{PgError, facets};
use crate::audit::query::{Cursor, Filter, HOUR, PartyFilter};
use crate::audit::record::{Kind, Outcome};
use crate::spiffe_id::{Pattern, SCHEME, SpiffeId};

/// The newest hour with a record, within bounds.
const NEWEST: &str =
    "SELECT hour FROM zt_audit.bucket WHERE hour <= $1 AND hour >= $2 ORDER BY hour DESC LIMIT 1";

/// Whether a shape is asked for. Parameters 1 to 9 are the filter.
macro_rules! asked {
    () => {
        "($1::text IS NULL OR type = $1) AND ($2::text IS NULL OR decision = $2)
         AND ($3::boolean IS NULL OR enforced = $3)
         AND ($4::text[] IS NULL OR source = ANY ($4)) AND ($5::text[] IS NULL OR destination = ANY ($5))
         AND ($6::integer IS NULL OR port = $6)
         AND ($7::text IS NULL OR rule = $7 OR rule LIKE $8)
         AND ($9::text IS NULL OR source_node = $9 OR destination_node = $9)"
    };
}
pub(super) use asked;

/// Shapes that are asked for, by the hour, with their first and last record in it; the latest first. Before each how many
/// shapes of the days are asked for, as far as they are counted: where that is far, none is looked up. Parameters 1 to 9 are
/// the filter, 10 and 11 the hours, 12 and 13 the times, 14 how many; more where the last of them are of one moment, 15 one
/// more than the most shapes, 16 the facets. A shape that several logins have is one place.
const GUIDE: &str = concat!(
    "
WITH s AS MATERIALIZED (
    SELECT day, id, login FROM zt_audit.shape
    WHERE day BETWEEN $10::bigint / 24 AND $11::bigint / 24 AND ($16::uuid[] IS NULL OR facet = ANY ($16)) AND ",
    asked!(),
    " LIMIT $15
)
SELECT k.kinds, g.shape, g.first, g.last
FROM (SELECT count(*) AS kinds FROM s) k LEFT JOIN (
    SELECT b.shape, min(b.first_seen) AS first, max(b.last_seen) AS last
    FROM s JOIN zt_audit.bucket b ON b.shape = s.id AND b.login = s.login
                                 AND b.hour BETWEEN s.day::bigint * 24 AND s.day::bigint * 24 + 23
    WHERE (SELECT count(*) FROM s) < $15 AND b.hour BETWEEN $10 AND $11 AND b.last_seen >= $12 AND b.first_seen <= $13
    GROUP BY b.shape, b.hour
    ORDER BY 3 DESC FETCH FIRST ($14::bigint) ROWS WITH TIES
) g ON true"
);

/// The same of one hour, from what was recorded in it: of a day with many shapes it may have few. Parameters: 1 to 9 the
/// filter, 10 the hour, 11 and 12 the times, 13 one more than the most shapes, whatever they say.
const GUIDE_OF_HOUR: &str = concat!(
    "
WITH b AS MATERIALIZED (
    SELECT shape, login, first_seen, last_seen FROM zt_audit.bucket
    WHERE hour = $10::bigint AND last_seen >= $11 AND first_seen <= $12 LIMIT $13
)
SELECT k.kinds, g.shape, g.first, g.last
FROM (SELECT count(*) AS kinds FROM b) k LEFT JOIN (
    SELECT b.shape, min(b.first_seen) AS first, max(b.last_seen) AS last
    FROM b CROSS JOIN LATERAL (
        SELECT FROM zt_audit.shape s
        WHERE s.day = ($10 / 24)::integer AND s.id = b.shape AND s.login = b.login AND ",
    asked!(),
    "   OFFSET 0
    ) s
    WHERE (SELECT count(*) FROM b) < $13
    GROUP BY b.shape
) g ON true"
);

/// Most shapes that are looked up one by one.
const MOST_KINDS: i64 = 16_384;
/// Most shapes of an hour that are looked at for those that are asked for.
const MOST_OF_HOUR: i64 = 65_536;

/// The SPIFFE IDs of parties between two texts, each once.
const NAMES: &str = "SELECT DISTINCT name FROM zt_audit.name WHERE name >= $1 AND name < $2";

/// A filter as parameters.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    kind: Option<&'static str>,
    decision: Option<&'static str>,
    enforced: Option<bool>,
    source: Option<Vec<String>>,
    destination: Option<Vec<String>>,
    port: Option<i32>,
    rule: Option<String>,
    rules: Option<String>,
    node: Option<String>,
    /// Those of the shapes that are asked for, where that says anything and they are few.
    facets: Option<Vec<Uuid>>,
}

/// Where records of one shape are within an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) shape: Uuid,
    pub(super) first: i64,
    pub(super) last: i64,
}

/// What the counts say of a question.
#[derive(Debug)]
pub(super) enum Places {
    /// These are all, or the latest of them.
    Few(Vec<Place>),
    /// Too many kinds of record are asked for to look each up.
    Many,
}

impl Parameters {
    /// Looks up what the filter names. `None` where nothing can match.
    pub(super) async fn of(connection: &mut PgConnection, filter: &Filter) -> Result<Option<Self>, PgError> {
        let texts = [filter.policy.as_deref(), filter.node.as_deref()];
        let exact = [&filter.source, &filter.destination].map(|party| match party {
            Some(PartyFilter::Exact(text)) => Some(text.as_str()),
            _ => None,
        });
        // No text in PostgreSQL has a NUL: no record can match, and the server would refuse the question.
        if texts
            .into_iter()
            .chain(exact)
            .flatten()
            .any(|text| text.contains('\0'))
        {
            return Ok(None);
        }
        let source = parties(connection, filter.source.as_ref()).await?;
        let destination = parties(connection, filter.destination.as_ref()).await?;
        let facets = facets::asked(connection, filter).await?;
        let none = facets.as_ref().is_some_and(Vec::is_empty);
        if none || [&source, &destination].into_iter().flatten().any(Vec::is_empty) {
            return Ok(None);
        }
        Ok(Some(Self {
            kind: filter.kind.map(Kind::name),
            decision: filter.decision.map(Outcome::name),
            enforced: filter.enforced,
            source,
            destination,
            port: filter.port.map(i32::from),
            rule: filter.policy.clone(),
            rules: filter.policy.as_deref().map(rules_of),
            node: filter.node.clone(),
            facets,
        }))
    }

    /// Whether every record is asked for.
    pub(super) const fn is_all(&self) -> bool {
        self.kind.is_none()
            && self.decision.is_none()
            && self.enforced.is_none()
            && self.source.is_none()
            && self.destination.is_none()
            && self.port.is_none()
            && self.rule.is_none()
            && self.node.is_none()
    }

    /// Parameters 1 to 9.
    pub(super) fn bind(&self, sql: &'static str) -> Query<'_, Postgres, PgArguments> {
        sqlx::query(sql)
            .bind(self.kind)
            .bind(self.decision)
            .bind(self.enforced)
            .bind(self.source.as_deref())
            .bind(self.destination.as_deref())
            .bind(self.port)
            .bind(self.rule.as_deref())
            .bind(self.rules.as_deref())
            .bind(self.node.as_deref())
    }

    /// The places between two hours that have records from `since` on and not behind `before`: so many of the latest.
    pub(super) async fn places(
        &self,
        connection: &mut PgConnection,
        (low, high): (i64, i64),
        since: i64,
        before: Cursor,
        most: i64,
    ) -> Result<Places, PgError> {
        let rows = self
            .bind(GUIDE)
            .bind(low)
            .bind(high)
            .bind(since)
            .bind(before.time)
            .bind(most)
            .bind(MOST_KINDS + 1)
            .bind(self.facets.as_deref())
            .fetch_all(connection)
            .await?;
        Ok(told(&rows, MOST_KINDS)?)
    }

    /// All places of an hour, as above. Where the day has many kinds that are asked for, the hour may have few of any.
    pub(super) async fn places_of_hour(
        &self,
        connection: &mut PgConnection,
        hour: i64,
        since: i64,
        before: Cursor,
    ) -> Result<Places, PgError> {
        let places = self
            .places(&mut *connection, (hour, hour), since, before, MOST_KINDS)
            .await?;
        if matches!(places, Places::Few(_)) {
            return Ok(places);
        }
        let rows = self
            .bind(GUIDE_OF_HOUR)
            .bind(hour)
            .bind(since)
            .bind(before.time)
            .bind(MOST_OF_HOUR + 1)
            .fetch_all(connection)
            .await?;
        Ok(match told(&rows, MOST_OF_HOUR)? {
            Places::Few(places) if places.len() as i64 > MOST_KINDS => Places::Many,
            places => places,
        })
    }
}

/// What a guide says, which looked up so many kinds at most. It has a row without a place where there is none.
fn told(rows: &[PgRow], most: i64) -> Result<Places, sqlx::Error> {
    let mut places = Vec::new();
    for row in rows {
        if row.try_get::<i64, _>(0)? > most {
            return Ok(Places::Many);
        }
        if let Some(shape) = row.try_get(1)? {
            places.push(Place {
                shape,
                first: row.try_get(2)?,
                last: row.try_get(3)?,
            });
        }
    }
    Ok(Places::Few(places))
}

/// The newest hour that has a record, from that of `since` to that of `before`.
pub(super) async fn newest(
    connection: &mut PgConnection,
    since: i64,
    before: i64,
) -> Result<Option<i64>, PgError> {
    Ok(sqlx::query_scalar(NEWEST)
        .bind(before / HOUR)
        .bind(since / HOUR)
        .fetch_optional(connection)
        .await?)
}

/// `LIKE` pattern of the rules of a policy.
fn rules_of(policy: &str) -> String {
    let mut pattern = String::with_capacity(policy.len() + 2);
    for character in policy.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern + "/%"
}

async fn parties(
    connection: &mut PgConnection,
    asked: Option<&PartyFilter>,
) -> Result<Option<Vec<String>>, PgError> {
    let pattern = match asked {
        None => return Ok(None),
        Some(PartyFilter::Exact(text)) => return Ok(Some(vec![text.clone()])),
        Some(PartyFilter::Pattern(pattern)) => pattern,
    };
    let first = match pattern {
        Pattern::Any => SCHEME,
        Pattern::Exact(id) => return Ok(Some(vec![id.as_str().to_owned()])),
        Pattern::Segments(segments) => segments.literal_prefix(),
    };
    let all: Vec<String> = sqlx::query_scalar(NAMES)
        .bind(first)
        .bind(end_of(first))
        .fetch_all(connection)
        .await?;
    let matches = |text: &String| SpiffeId::parse(text).is_ok_and(|id| pattern.matches(&id));
    Ok(Some(all.into_iter().filter(matches).collect()))
}

/// The first text behind all that begin with `prefix`, which ends in a `/`, by their bytes.
fn end_of(prefix: &str) -> String {
    let mut end = prefix.strip_suffix('/').unwrap_or(prefix).to_owned();
    end.push('0');
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_begin_so_are_before_the_end() {
        let end = end_of("spiffe://a/b/");
        for name in ["spiffe://a/b/", "spiffe://a/b/\u{10ffff}", "spiffe://a/b//"] {
            assert!(name < &*end, "{name}");
        }
        for name in ["spiffe://a/b0", "spiffe://a/bc"] {
            assert!(name >= &*end, "{name}");
        }
    }

    #[test]
    fn a_policys_name_is_no_pattern() {
        assert_eq!(rules_of("core"), "core/%");
        assert_eq!(rules_of("a_b%c\\"), "a\\_b\\%c\\\\/%");
    }
}
