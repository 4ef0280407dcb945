// SPDX-License-Identifier: Apache-2.0
//! What is asked for, in words of which there are few: each set of them that some shape has is a facet.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::PgError;
use crate::audit::query::Filter;
use crate::audit::record::{Kind, Outcome};

/// Facets of shapes that are asked for, and of some more: of a rule, all of its policy. Parameter 6 is one more than the most.
const ASKED: &str = "
SELECT DISTINCT id FROM zt_audit.facet
WHERE ($1::text IS NULL OR type = $1) AND ($2::text IS NULL OR decision = $2) AND ($3::boolean IS NULL OR enforced = $3)
  AND ($4::integer IS NULL OR port = $4) AND ($5::text IS NULL OR policy = split_part($5, '/', 1))
LIMIT $6";

/// Most facets that shapes are looked up by: where there are more, what is asked for is not rare.
const MOST: i64 = 256;

/// The facets of a filter: where there is none, nothing is asked for. `None` where it says nothing of them, or they are many.
pub(super) async fn asked(
    connection: &mut PgConnection,
    filter: &Filter,
) -> Result<Option<Vec<Uuid>>, PgError> {
    let Filter {
        kind,
        decision,
        enforced,
        port,
        policy,
        ..
    } = filter;
    if kind.is_none() && decision.is_none() && enforced.is_none() && port.is_none() && policy.is_none() {
        return Ok(None);
    }
    let facets: Vec<Uuid> = sqlx::query_scalar(ASKED)
        .bind(kind.map(Kind::name))
        .bind(decision.map(Outcome::name))
        .bind(*enforced)
        .bind(port.map(i32::from))
        .bind(policy.as_deref())
        .bind(MOST + 1)
        .fetch_all(connection)
        .await?;
    Ok(Some(facets).filter(|facets| facets.len() as i64 <= MOST))
}
