// SPDX-License-Identifier: Apache-2.0
//! The hourly counts of a range of hours, added up by shape, with what each shape says: many of them in one text.
//!
//! sqlx copies every value of every row and hands each row from one thread to another. That takes several times longer than
//! SQLite takes to add the counts up, so there are few rows, of thousands of shapes each.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;

use super::StoreError;
use crate::audit::query::Connections;
use crate::audit::record::{Outcome, Part, Timestamp};

/// Shapes of one text: some 300 KiB.
const MOST: i64 = 4096;

/// Parameters: 1 what is no connection, 2 and 3 the first and the last hour, 4 the shape after which to go on, 5 how many.
const SHAPES: &str = "
SELECT max(id), json_group_array(json_array(id, source, destination, protocol, port, part, decision, enforced, connections,
                                            first_seen, last_seen, reason))
FROM (
    SELECT s.id, s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced, s.reason,
           sum(b.connections) AS connections, min(b.first_seen) AS first_seen, max(b.last_seen) AS last_seen
    FROM shape s CROSS JOIN bucket b ON b.shape = s.id AND b.hour BETWEEN ?2 AND ?3
    WHERE s.part <> ?1 AND s.id > ?4
    GROUP BY s.id ORDER BY s.id LIMIT ?5
)";

/// The names of these numbers. Parameter: 1 an array of them.
const NAMES: &str = "
SELECT json_group_array(json_array(id, text)) FROM name WHERE id IN (SELECT value FROM json_each(?1))";

/// The columns of [`SHAPES`], in their order.
type Packed<'t> = (i64, i64, i64, u8, u16, i64, &'t str, u8, i64, i64, i64, &'t str);

/// The sum of a shape.
pub(super) struct Shape<'t> {
    /// Its number.
    pub(super) id: i64,
    /// Between whom, and how many.
    pub(super) connections: Connections,
    /// Why they were decided so.
    pub(super) reason: &'t str,
}

/// Many shapes, as they were read.
struct Answer {
    /// The last of them; `None` if there is none.
    last: Option<i64>,
    text: String,
}

/// Hands over the sum of each shape of connections. Who reads is in a transaction, so that all
/// of it is of one moment.
pub(super) async fn each(
    connection: &mut SqliteConnection,
    hours: (i64, i64),
    mut take: impl FnMut(Shape<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut names = HashMap::new();
    let mut answer = ask(connection, hours, i64::MIN).await?;
    while let Some(last) = answer.last {
        let shapes: Vec<Packed<'_>> = serde_json::from_str(&answer.text).map_err(unread)?;
        learn(connection, &mut names, &shapes).await?;
        // SQLite has a thread of its own: it works on the next ones while these are taken.
        let next = ask(connection, hours, last);
        let taken = async {
            for shape in &shapes {
                take(unpacked(shape, &names)?)?;
            }
            Ok::<(), StoreError>(())
        };
        let (next, taken) = futures::join!(next, taken);
        taken?;
        answer = next?;
    }
    Ok(())
}

async fn ask(
    connection: &mut SqliteConnection,
    (first, last): (i64, i64),
    after: i64,
) -> Result<Answer, sqlx::Error> {
    let (last, text) = sqlx::query_as(SHAPES)
        .bind(Part::Aside.number())
        .bind(first)
        .bind(last)
        .bind(after)
        .bind(MOST)
        .fetch_one(connection)
        .await?;
    Ok(Answer { last, text })
}

/// Reads the names of these shapes that are not known yet.
async fn learn(
    connection: &mut SqliteConnection,
    names: &mut HashMap<i64, Arc<str>>,
    shapes: &[Packed<'_>],
) -> Result<(), StoreError> {
    let wanted: HashSet<i64> = shapes
        .iter()
        .flat_map(|shape| [shape.1, shape.2])
        .filter(|number| !names.contains_key(number))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let wanted = serde_json::to_string(&wanted).map_err(unread)?;
    let text: String = sqlx::query_scalar(NAMES)
        .bind(wanted)
        .fetch_one(connection)
        .await?;
    let found: Vec<(i64, Arc<str>)> = serde_json::from_str(&text).map_err(unread)?;
    names.extend(found);
    Ok(())
}

fn name(names: &HashMap<i64, Arc<str>>, number: i64) -> Result<&Arc<str>, StoreError> {
    // Both are written in one transaction.
    let name = names.get(&number);
    name.ok_or_else(|| unread(format!("no name has the number {number}")))
}

fn unpacked<'t>(shape: &Packed<'t>, names: &HashMap<i64, Arc<str>>) -> Result<Shape<'t>, StoreError> {
    let &(id, source, destination, protocol, port, part, decision, enforced, count, first, last, reason) =
        shape;
    let connections = Connections {
        source: Arc::clone(name(names, source)?),
        destination: Arc::clone(name(names, destination)?),
        protocol,
        port,
        corrects: part == Part::Corrects.number(),
        denied: decision == Outcome::Deny.name(),
        enforced: enforced != 0,
        count: count.cast_unsigned(),
        first_seen: Timestamp(first),
        last_seen: Timestamp(last),
    };
    Ok(Shape {
        id,
        connections,
        reason,
    })
}

/// Something is in the file that no agent writes.
pub(super) fn unread(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    sqlx::Error::Decode(why.into()).into()
}
