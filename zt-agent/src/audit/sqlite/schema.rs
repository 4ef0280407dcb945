// SPDX-License-Identifier: Apache-2.0
//! The tables, and how a file of an earlier layout gets to this one.
//!
//! The layout's version is the file's `user_version`; its `application_id` says that the file is ours at all.

use std::path::Path;

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection};

use super::StoreError;

/// "zt" and a number: what `file(1)` would show.
pub(super) const APPLICATION_ID: i64 = 0x7a74_0054;

/// Rows of `record` in one segment. At 16,384, a trail of the largest default size has some two thousand segments.
pub const SEGMENT_ROWS: i64 = 16_384;

/// Each brings a file from the layout before it to its own; never changed once released.
const MIGRATIONS: [&str; 2] = [LAYOUT_1, LAYOUT_2];

/// Numbers of the kernel are `u64`, kept as the `i64` of the same bits. Times are Unix nanoseconds. Where a shape has no
/// rule or node it has 0, because NULLs would make every row unique.
pub(super) const LAYOUT_1: &str = "
CREATE TABLE trail (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    next_row INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    pruned INTEGER NOT NULL
) STRICT;
INSERT INTO trail VALUES (1, 1, 0, 0);

CREATE TABLE name (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE number (
    row INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    number INTEGER NOT NULL,
    text TEXT NOT NULL,
    UNIQUE (kind, number)
) STRICT;

CREATE TABLE shape (
    id INTEGER PRIMARY KEY,
    source INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    protocol INTEGER NOT NULL,
    port INTEGER NOT NULL,
    rule INTEGER NOT NULL,
    source_node INTEGER NOT NULL,
    destination_node INTEGER NOT NULL,
    cluster INTEGER NOT NULL,
    decision TEXT NOT NULL,
    enforced INTEGER NOT NULL,
    mode TEXT NOT NULL,
    observer TEXT NOT NULL,
    hook TEXT NOT NULL,
    reason TEXT NOT NULL,
    proof TEXT NOT NULL,
    part INTEGER NOT NULL,
    connections INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    last_row INTEGER NOT NULL,
    mark INTEGER NOT NULL,
    UNIQUE (source, destination, port, protocol, rule, source_node, destination_node, cluster, decision,
            enforced, mode, observer, hook, reason, proof)
) STRICT;

CREATE TABLE record (
    row INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    time INTEGER NOT NULL,
    shape INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    latency INTEGER NOT NULL,
    source_address BLOB,
    source_port INTEGER,
    destination_address BLOB,
    pid INTEGER,
    comm TEXT,
    source_pod INTEGER,
    destination_pod INTEGER,
    caller TEXT,
    count INTEGER NOT NULL
) STRICT;

CREATE TABLE segment (
    segment INTEGER PRIMARY KEY,
    min_time INTEGER NOT NULL,
    max_time INTEGER NOT NULL
) STRICT;

CREATE TABLE span (
    segment INTEGER NOT NULL,
    shape INTEGER NOT NULL,
    PRIMARY KEY (segment, shape)
) STRICT, WITHOUT ROWID;
";

/// The chain: `seq` of an entry is its row. Records that are older than this layout have no hash. `pruned_row` is the
/// last entry that was removed. `shapes_gone` changes when shapes are deleted: who remembers ids of shapes
/// forgets them. `bucket` counts a shape's connections by the hour, for the graph. A change of
/// policy or mode is a record whose shape has the change's type as its hook.
const LAYOUT_2: &str = "
ALTER TABLE trail ADD COLUMN writer BLOB;
ALTER TABLE trail ADD COLUMN hash BLOB;
ALTER TABLE trail ADD COLUMN shapes_gone INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN ring BLOB;
ALTER TABLE trail ADD COLUMN ring_position INTEGER;
ALTER TABLE trail ADD COLUMN pruned_row INTEGER;
ALTER TABLE trail ADD COLUMN pruned_hash BLOB;
UPDATE trail SET writer = randomblob(16), hash = zeroblob(32), pruned_row = next_row - 1, pruned_hash = zeroblob(32);

CREATE TABLE signing_key (
    row INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    text TEXT NOT NULL
) STRICT;

CREATE TABLE checkpoint (
    row INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL,
    pruned INTEGER NOT NULL,
    text TEXT NOT NULL
) STRICT;

ALTER TABLE record ADD COLUMN change TEXT;
ALTER TABLE record ADD COLUMN hash BLOB;

CREATE TABLE bucket (
    shape INTEGER NOT NULL,
    hour INTEGER NOT NULL,
    connections INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    PRIMARY KEY (shape, hour)
) STRICT, WITHOUT ROWID;
CREATE INDEX segment_by_time ON segment (max_time);

INSERT INTO bucket SELECT shape, time / 3600000000000, sum(count), min(time), max(time) FROM record GROUP BY 1, 2;

ALTER TABLE shape DROP COLUMN connections;
ALTER TABLE shape DROP COLUMN first_seen;
ALTER TABLE shape DROP COLUMN last_seen;
ALTER TABLE shape DROP COLUMN last_row;
DELETE FROM shape WHERE id NOT IN (SELECT shape FROM bucket);
";

/// Refuses a file that is not of the current layout.
pub(super) async fn check(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let (application, version): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version)",
    )
    .fetch_one(connection)
    .await
    .map_err(|source| StoreError::Open {
        path: path.to_owned(),
        source,
    })?;
    let (path, known) = (path.to_owned(), MIGRATIONS.len() as i64);
    if application != APPLICATION_ID {
        return Err(StoreError::Foreign { path });
    }
    if version > known {
        return Err(StoreError::Newer {
            path,
            found: version,
            known,
        });
    }
    if version < known {
        return Err(StoreError::Older {
            path,
            found: version,
            known,
        });
    }
    Ok(())
}

/// Brings the file to the current layout, each step whole or not at all.
pub(super) async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let open = |source| StoreError::Open {
        path: path.to_owned(),
        source,
    };
    let known = MIGRATIONS.len() as i64;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(open)?;
    let (application, version, tables): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
                (SELECT count(*) FROM sqlite_schema)",
    )
    .fetch_one(&mut *transaction)
    .await
    .map_err(open)?;
    if application != APPLICATION_ID && (application != 0 || version != 0 || tables != 0) {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
        });
    }
    if version > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found: version,
            known,
        });
    }
    for (step, sql) in (1..).zip(MIGRATIONS).filter(|(step, _)| *step > version) {
        let failed = |source| StoreError::Migrate {
            path: path.to_owned(),
            version: step,
            source,
        };
        sqlx::raw_sql(sql)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        // A pragma takes no parameters; both values are constants of this file.
        let mark = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {step}");
        sqlx::raw_sql(AssertSqlSafe(mark))
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
    }
    transaction.commit().await.map_err(open)
}
