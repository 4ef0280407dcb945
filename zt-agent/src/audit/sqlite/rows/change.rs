// SPDX-License-Identifier: Apache-2.0
//! Rows of changes, which have nothing where a decision has something.

use std::sync::Arc;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, ValueRef as _};
use uuid::Uuid;

use super::kind_of;
use crate::audit::record::{Change, Entry, Timestamp, is_written_so};
use crate::audit::sqlite::StoreError;

/// The change of a row and its shape.
pub(super) fn read(row: &SqliteRow, shape: &SqliteRow, number: i64, text: &str) -> Result<Entry, StoreError> {
    let damaged = |column, found: &str| StoreError::Damaged {
        row: number,
        column,
        found: found.to_owned(),
    };
    only_a_change(row, shape, number)?;
    let needed = |of: &SqliteRow, column: &'static str| -> Result<Arc<str>, StoreError> {
        let text: Option<&str> = of.try_get(column)?;
        text.map(Arc::from).ok_or_else(|| damaged(column, "missing"))
    };
    let (id, hook): (&[u8], &str) = (row.try_get("id")?, shape.try_get("hook")?);
    let change = Change::new(
        (
            Uuid::from_slice(id).map_err(|_| damaged("id", &format!("{id:?}")))?,
            Timestamp(row.try_get("time")?),
        ),
        (needed(shape, "cluster")?, needed(shape, "source_node")?),
        needed(row, "caller")?,
        row.try_get::<i64, _>("revision")?.cast_unsigned(),
        serde_json::from_str(text)
            .ok()
            .filter(|change: &serde_json::Value| is_written_so(change, text))
            .ok_or_else(|| damaged("change", text))?,
    );
    Entry::of_change(kind_of(hook), change).ok_or_else(|| damaged("hook", hook))
}

/// A change has nothing in the columns of a decision: questions go by these columns.
fn only_a_change(row: &SqliteRow, shape: &SqliteRow, number: i64) -> Result<(), StoreError> {
    let damaged = |column, found: String| StoreError::Damaged {
        row: number,
        column,
        found,
    };
    let numbers = [
        (row, "latency", 0),
        (row, "count", 1),
        (shape, "protocol", 0),
        (shape, "port", 0),
        (shape, "enforced", 0),
    ];
    for (of, column, nothing) in numbers {
        let found: i64 = of.try_get(column)?;
        if found != nothing {
            return Err(damaged(column, found.to_string()));
        }
    }
    for column in ["decision", "mode", "observer", "reason", "proof"] {
        let found: &str = shape.try_get(column)?;
        if !found.is_empty() {
            return Err(damaged(column, found.to_owned()));
        }
    }
    let of_row = [
        "source_address",
        "source_port",
        "destination_address",
        "pid",
        "comm",
        "source_pod",
        "destination_pod",
    ];
    let of_shape = ["source", "destination", "rule", "destination_node"];
    for (of, column) in of_row
        .map(|column| (row, column))
        .into_iter()
        .chain(of_shape.map(|column| (shape, column)))
    {
        let found = of.try_get_raw(column)?;
        if !found.is_null() {
            return Err(damaged(column, "there, and of no change".to_owned()));
        }
    }
    Ok(())
}
