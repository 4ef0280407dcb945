// SPDX-License-Identifier: Apache-2.0
//! What answers go by beside the rows themselves: indexes that leave a row out, code that the file brings along, and where
//! it says that its chain ends.

use sqlx::sqlite::SqliteConnection;

use super::{StoreError, Use, place};
use crate::audit::store::Miscount;

/// Looks whether a table and its indexes have the same rows. Records have none: they are read in their order.
const CHECKS: [(&str, &str); 5] = [
    ("name", "PRAGMA integrity_check('name')"),
    ("shape", "PRAGMA integrity_check('shape')"),
    ("segment", "PRAGMA integrity_check('segment')"),
    ("span", "PRAGMA integrity_check('span')"),
    ("bucket", "PRAGMA integrity_check('bucket')"),
];
/// Findings of one kind that are told.
const MOST: usize = 100;

/// What is wrong with a file whatever its rows say.
pub(super) async fn wrong(
    connection: &mut SqliteConnection,
    used_as: Use,
) -> Result<Vec<Miscount>, StoreError> {
    let mut found = Vec::new();
    let code: Vec<(String, String)> = sqlx::query_as(
        "SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'view') ORDER BY name LIMIT ?",
    )
    .bind(MOST as i64)
    .fetch_all(&mut *connection)
    .await?;
    found.extend(code.into_iter().map(|(kind, name)| Miscount {
        what: format!("the {kind} `{name}`, which the agent did not make,"),
        kept: "something".to_owned(),
        counted: "nothing".to_owned(),
    }));
    for (table, sql) in CHECKS {
        let said: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut *connection).await?;
        found.extend(
            said.into_iter()
                .filter(|said| said != "ok")
                .take(MOST)
                .map(|said| Miscount {
                    what: format!("what finds the rows of `{table}`"),
                    kept: format!("something else ({said})"),
                    counted: "what they are".to_owned(),
                }),
        );
    }
    let twice: Vec<String> =
        sqlx::query_scalar("SELECT text FROM name GROUP BY text HAVING count(*) > 1 ORDER BY text LIMIT ?")
            .bind(MOST as i64)
            .fetch_all(&mut *connection)
            .await?;
    found.extend(twice.into_iter().map(|text| Miscount {
        what: format!("the list of names, of {text:?},"),
        kept: "that these are two".to_owned(),
        counted: "that it is one".to_owned(),
    }));
    // What a spool has given up at its end is not there.
    if used_as == Use::Trail {
        found.extend(of_spools(connection).await?);
        found.extend(end(connection).await?);
    }
    Ok(found)
}

/// Tables that only a spool has.
async fn of_spools(connection: &mut SqliteConnection) -> Result<Vec<Miscount>, StoreError> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name IN ('shipping', 'gap', 'discarded') ORDER BY name",
    )
    .fetch_all(connection)
    .await?;
    let told = |name: String| Miscount {
        what: format!("the table `{name}`, which a spool has and a trail has not,"),
        kept: "something".to_owned(),
        counted: "nothing".to_owned(),
    };
    Ok(tables.into_iter().map(told).collect())
}

/// Where the file says that the chain ends, if its last entry is another one.
async fn end(connection: &mut SqliteConnection) -> Result<Option<Miscount>, StoreError> {
    let head = place::head(connection).await?;
    let last: Option<(i64, Option<Vec<u8>>)> =
        sqlx::query_as("SELECT row, hash FROM record ORDER BY row DESC LIMIT 1")
            .fetch_optional(connection)
            .await?;
    // All were pruned, or the last one is older than the chain.
    let Some((row, Some(hash))) = last else {
        return Ok(None);
    };
    let same = row.cast_unsigned() == head.seq && *hash == head.hash.0;
    Ok((!same).then(|| Miscount {
        what: "the end of the chain".to_owned(),
        kept: format!("that it is entry {} with the hash {}", head.seq, head.hash),
        counted: format!("that the last one is entry {row}, with its hash"),
    }))
}
