// SPDX-License-Identifier: Apache-2.0
//! The hourly counts of a range of hours, added up by shape, with what each shape says: many of them in one text.
//!
//! sqlx copies every value of every row and hands each row from one thread to another. That takes several times longer than
//! SQLite takes to add the counts up, so there are few rows, of thousands of shapes each. SQLite has a thread of its own: it
//! works on the next text while one is read and taken.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use sqlx::sqlite::SqliteConnection;

use super::StoreError;
use crate::audit::query::{Connections, HOUR};
use crate::audit::record::{Outcome, Part, Timestamp};

/// Shapes of one text: some 300 KiB.
const MOST: i64 = 4096;

/// Most names that are kept from one text to the next: some ten MiB. Who asks may have bounded what the connections take, and not the
/// names of those that were passed by.
const MOST_NAMES: usize = 100_000;

/// What shapes say whose counts are added up by a statement, in their order. Added up with what they say, each of its values would be
/// copied for each count. Parameters: 1 what is no connection, 2 and 3 the first and the last hour, 4 the shape after which to go on,
/// 5 how many.
macro_rules! shapes {
    ($summed:literal) => {
        concat!(
            "SELECT max(c.id),
                    json_group_array(json_array(c.id, s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced,
                                                c.connections, c.first_seen, c.last_seen, s.reason)) FILTER (WHERE s.part <> ?1)
             FROM (",
            $summed,
            " ORDER BY 1 LIMIT ?5) c LEFT JOIN shape s ON s.id = c.id"
        )
    };
}

/// Of a range that leaves out few hours of the trail: all counts are read as they lie.
const OF_MOST_HOURS: &str = shapes!(
    "SELECT shape AS id, sum(connections) AS connections, min(first_seen) AS first_seen, max(last_seen) AS last_seen
     FROM bucket WHERE shape > ?4 AND hour BETWEEN ?2 AND ?3 GROUP BY shape"
);

/// Of any other: those of its hours are looked up, shape by shape.
const OF_FEW_HOURS: &str = shapes!(
    "SELECT t.id, sum(b.connections) AS connections, min(b.first_seen) AS first_seen, max(b.last_seen) AS last_seen
     FROM shape t CROSS JOIN bucket b ON b.shape = t.id AND b.hour BETWEEN ?2 AND ?3
     WHERE t.id > ?4 AND t.part <> ?1 GROUP BY t.id"
);

/// The first time of the trail, and the last.
const TIMES: &str = "SELECT min(min_time), max(max_time) FROM segment";

/// The names of these numbers. Parameter: 1 an array of them.
const NAMES: &str = "
SELECT json_group_array(json_array(id, text)) FROM name WHERE id IN (SELECT value FROM json_each(?1))";

/// What is said of a shape, in the order of the statements.
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
    /// The last that was looked at; `None` if there is none.
    last: Option<i64>,
    text: String,
}

/// Names by their numbers, as far as they were wanted.
type Names = HashMap<i64, Arc<str>, RandomState>;

/// Hands over the sum of each shape of connections, until there is an error. Who reads is in a transaction, so that all
/// of it is of one moment.
pub(super) async fn each(
    connection: &mut SqliteConnection,
    hours: (i64, i64),
    mut take: impl FnMut(Shape<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let statement = statement(connection, hours).await?;
    let mut names = Names::default();
    let mut answer = ask(connection, statement, hours, i64::MIN).await?;
    while let Some(last) = answer.last {
        let next = ask(connection, statement, hours, last);
        let taken = async {
            let shapes: Vec<Packed<'_>> = serde_json::from_str(&answer.text).map_err(unread)?;
            let unknown = unknown(&names, &shapes);
            if unknown.is_empty() {
                take_all(&shapes, &names, &mut take)?;
                return Ok::<_, StoreError>(None);
            }
            Ok(Some((shapes, unknown)))
        };
        let (next, taken) = futures::join!(next, taken);
        // Those whose names are to be asked for come after what SQLite was at. There are few such texts: names come again.
        if let Some((shapes, mut unknown)) = taken? {
            if names.len() > MOST_NAMES {
                names = Names::default();
                unknown = self::unknown(&names, &shapes);
            }
            learn(connection, &mut names, &unknown).await?;
            take_all(&shapes, &names, &mut take)?;
        }
        answer = next?;
    }
    Ok(())
}

/// How to ask for these hours.
async fn statement(
    connection: &mut SqliteConnection,
    (first, last): (i64, i64),
) -> Result<&'static str, sqlx::Error> {
    let (begin, end): (Option<i64>, Option<i64>) = sqlx::query_as(TIMES).fetch_one(connection).await?;
    let (begin, end) = (
        begin.unwrap_or(0).div_euclid(HOUR),
        end.unwrap_or(0).div_euclid(HOUR),
    );
    let asked = last.min(end) - first.max(begin) + 1;
    Ok(if asked * 4 >= (end - begin + 1) * 3 {
        OF_MOST_HOURS
    } else {
        OF_FEW_HOURS
    })
}

async fn ask(
    connection: &mut SqliteConnection,
    statement: &'static str,
    (first, last): (i64, i64),
    after: i64,
) -> Result<Answer, sqlx::Error> {
    let (last, text) = sqlx::query_as(statement)
        .bind(Part::Aside.number())
        .bind(first)
        .bind(last)
        .bind(after)
        .bind(MOST)
        .fetch_one(connection)
        .await?;
    Ok(Answer { last, text })
}

/// The numbers of names of these shapes that are not known yet.
fn unknown(names: &Names, shapes: &[Packed<'_>]) -> HashSet<i64, RandomState> {
    let numbers = shapes.iter().flat_map(|shape| [shape.1, shape.2]);
    numbers.filter(|number| !names.contains_key(number)).collect()
}

/// Reads names by their numbers.
async fn learn(
    connection: &mut SqliteConnection,
    names: &mut Names,
    numbers: &HashSet<i64, RandomState>,
) -> Result<(), StoreError> {
    let numbers = serde_json::to_string(numbers).map_err(unread)?;
    let text: String = sqlx::query_scalar(NAMES)
        .bind(numbers)
        .fetch_one(connection)
        .await?;
    let found: Vec<(i64, Arc<str>)> = serde_json::from_str(&text).map_err(unread)?;
    names.extend(found);
    Ok(())
}

fn take_all(
    shapes: &[Packed<'_>],
    names: &Names,
    mut take: impl FnMut(Shape<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    shapes.iter().try_for_each(|shape| take(unpacked(shape, names)?))
}

fn name(names: &Names, number: i64) -> Result<&Arc<str>, StoreError> {
    // Both are written in one transaction.
    let name = names.get(&number);
    name.ok_or_else(|| unread(format!("no name has the number {number}")))
}

fn unpacked<'t>(shape: &Packed<'t>, names: &Names) -> Result<Shape<'t>, StoreError> {
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
