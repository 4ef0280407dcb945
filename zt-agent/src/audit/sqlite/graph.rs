// SPDX-License-Identifier: Apache-2.0
//! The graph: the hourly counts, added up.

use sqlx::sqlite::SqliteConnection;

use super::{StoreError, packed};
use crate::audit::query::{Adding, Graph, GraphFilter};

/// Adds up who talks to whom.
pub(super) async fn graph(
    connection: &mut SqliteConnection,
    filter: &GraphFilter,
) -> Result<Graph, StoreError> {
    let mut adding = Adding::new(filter);
    packed::each(connection, filter.hours(), |shape| {
        Ok(adding.take(&shape.connections)?)
    })
    .await?;
    Ok(adding.done())
}
