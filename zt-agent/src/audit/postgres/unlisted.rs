// SPDX-License-Identifier: Apache-2.0
//! What is listed beside the shapes, their names and facets: the maintainer forgets what no shape has any more.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use super::PgError;

/// A list: its table, the column that is listed, and whether no shape has the entry `l` of it.
struct List {
    table: &'static str,
    column: &'static str,
    unused: &'static str,
}

const LISTS: [List; 2] = [
    List {
        table: "zt_audit.name",
        column: "name",
        unused: "NOT EXISTS (SELECT FROM zt_audit.shape s WHERE s.source = l.name AND s.login = l.login)
                 AND NOT EXISTS (SELECT FROM zt_audit.shape s WHERE s.destination = l.name AND s.login = l.login)",
    },
    List {
        table: "zt_audit.facet",
        column: "id",
        unused: "NOT EXISTS (SELECT FROM zt_audit.shape s WHERE s.facet = l.id AND s.login = l.login)",
    },
];

/// Forgets what no shape has any more. Most days that is nothing; whoever inserts waits while something goes.
pub(super) async fn forget(connection: &mut PgConnection) -> Result<(), PgError> {
    for list in LISTS {
        let List {
            table,
            column,
            unused,
        } = list;
        // All of it constants.
        let look = format!("SELECT l.{column}::text, l.login FROM {table} l WHERE {unused}");
        let entries: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(look))
            .fetch_all(&mut *connection)
            .await?;
        if entries.is_empty() {
            continue;
        }
        let (entries, logins): (Vec<String>, Vec<String>) = entries.into_iter().unzip();
        let mut transaction = connection.begin().await?;
        let lock = format!("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE");
        sqlx::raw_sql(AssertSqlSafe(lock))
            .execute(&mut *transaction)
            .await?;
        let forget = format!(
            "DELETE FROM {table} l USING unnest($1::text[], $2::text[]) AS u (entry, login)
             WHERE l.{column}::text = u.entry AND l.login = u.login AND {unused}"
        );
        sqlx::query(AssertSqlSafe(forget))
            .bind(entries)
            .bind(logins)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
    }
    Ok(())
}
