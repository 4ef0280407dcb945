// SPDX-License-Identifier: Apache-2.0
//! Rows → entries.

use std::net::IpAddr;
use std::sync::Arc;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::PgError;
use crate::audit::chain::{Hash, Link};
use crate::audit::query::{Cursor, Unreadable};
use crate::audit::record::{
    AuditRecord, Change, Destination, Entry, Kept, Kind, Latency, Protocol, Source, Timestamp, UnknownTerm,
    is_written_so, party,
};

/// What [`kept`] reads, of a record `r` and its shape `s`; how the detail is read, where not as it is.
macro_rules! columns {
    () => {
        columns!("r.detail")
    };
    ($detail:literal) => {
        concat!(
            "r.time, r.id, r.login, r.shape, r.writer, r.seq, r.hash, r.revision, r.latency, r.count, r.source_port, r.pid,
             r.source_address, r.destination_address, r.comm, r.source_pod, r.destination_pod, r.caller, ",
            $detail,
            " AS detail, octet_length(r.detail) AS detail_bytes,
             s.type, s.source, s.destination, s.protocol, s.port, s.rule, s.source_node, s.destination_node, s.cluster,
             s.decision, s.enforced, s.mode, s.observer, s.hook, s.reason, s.proof"
        )
    };
}
pub(super) use columns;

/// Characters of what is wrong that are repeated.
const MOST: usize = 200;

/// The place of a row in the order of answers.
pub(super) fn place(row: &PgRow) -> Result<Cursor, PgError> {
    Ok(Cursor {
        time: row.try_get("time")?,
        id: row.try_get("id")?,
    })
}

/// Stands for a row that [`kept`] has failed at with `error`; the error, where that was not the row's fault.
pub(super) fn unreadable(row: &PgRow, error: PgError) -> Result<Unreadable, PgError> {
    let cause = match error {
        PgError::Damaged { column, found, .. } => {
            let found: String = found.chars().take(MOST).collect();
            format!("{column} is {found}")
        }
        PgError::Database {
            source: sqlx::Error::ColumnDecode { index, source },
        } => {
            let source = source.to_string();
            format!("{index}: {}", source.chars().take(MOST).collect::<String>())
        }
        error => return Err(error),
    };
    let link = (
        row.try_get("writer")?,
        row.try_get::<i64, _>("seq")?.cast_unsigned(),
    );
    Ok(Unreadable::new(
        place(row)?,
        link,
        Some(Arc::from(row.try_get::<&str, _>("login")?)),
        cause,
    ))
}

/// The entry of a row.
pub(super) fn kept(row: &PgRow) -> Result<Kept, PgError> {
    let row = Record {
        row,
        id: row.try_get("id")?,
    };
    let hash: Option<&[u8]> = row.row.try_get("hash")?;
    let link = match hash {
        Some(hash) => Some(Link {
            writer: row.row.try_get("writer")?,
            seq: row.row.try_get::<i64, _>("seq")?.cast_unsigned(),
            hash: Hash(<[u8; 32]>::try_from(hash).map_err(|_| row.damaged("hash", format!("{hash:02x?}")))?),
        }),
        None => None,
    };
    let entry = match row.term::<Kind>("type")? {
        Kind::Decision => Entry::Decision(row.decision()?),
        kind => {
            let change = row.change()?;
            Entry::of_change(kind, change).ok_or_else(|| row.damaged("type", kind.to_string()))?
        }
    };
    Ok(Kept { entry, link })
}

struct Record<'a> {
    row: &'a PgRow,
    id: Uuid,
}

impl Record<'_> {
    fn damaged(&self, column: &'static str, found: String) -> PgError {
        PgError::Damaged {
            id: self.id,
            column,
            found,
        }
    }

    fn text(&self, column: &str) -> Result<Option<Arc<str>>, sqlx::Error> {
        Ok(self.row.try_get::<Option<&str>, _>(column)?.map(Arc::from))
    }

    fn needed(&self, column: &'static str) -> Result<Arc<str>, PgError> {
        self.text(column)?
            .ok_or_else(|| self.damaged(column, "missing".to_owned()))
    }

    /// A number that fits its type; `None` where there is none.
    fn number<T: TryFrom<i64>>(&self, column: &'static str) -> Result<Option<T>, PgError> {
        let number = match column {
            "pid" => self.row.try_get::<Option<i64>, _>(column)?,
            "protocol" => self.row.try_get::<Option<i16>, _>(column)?.map(i64::from),
            _ => self.row.try_get::<Option<i32>, _>(column)?.map(i64::from),
        };
        number
            .map(|number| T::try_from(number).map_err(|_| self.damaged(column, number.to_string())))
            .transpose()
    }

    fn needed_number<T: TryFrom<i64>>(&self, column: &'static str) -> Result<T, PgError> {
        self.number(column)?
            .ok_or_else(|| self.damaged(column, "missing".to_owned()))
    }

    fn term<T: std::str::FromStr<Err = UnknownTerm>>(&self, column: &'static str) -> Result<T, PgError> {
        let text = self.needed(column)?;
        text.parse().map_err(|_| self.damaged(column, text.to_string()))
    }

    /// The detail, which was left out where it is too large.
    fn detail(&self) -> Result<Option<Arc<str>>, PgError> {
        let detail = self.text("detail")?;
        match self.row.try_get::<Option<i32>, _>("detail_bytes")? {
            Some(bytes) if detail.is_none() => {
                Err(self.damaged("detail", format!("too large here: {bytes} bytes")))
            }
            _ => Ok(detail),
        }
    }

    fn decision(&self) -> Result<AuditRecord, PgError> {
        let row = self.row;
        let (source, source_entity) = party(self.needed("source")?);
        let (destination, destination_entity) = party(self.needed("destination")?);
        let mut record = AuditRecord {
            id: self.id,
            timestamp: Timestamp(row.try_get("time")?),
            decision: self.term("decision")?,
            source: Source {
                spiffe_id: source,
                entity: source_entity,
                pod: self.text("source_pod")?,
                node: self.text("source_node")?,
                address: row.try_get::<Option<IpAddr>, _>("source_address")?,
                port: self.number("source_port")?,
                pid: self.number("pid")?,
                comm: self.text("comm")?,
            },
            destination: Destination {
                spiffe_id: destination,
                entity: destination_entity,
                port: self.needed_number("port")?,
                address: row.try_get::<Option<IpAddr>, _>("destination_address")?,
                pod: self.text("destination_pod")?,
                node: self.text("destination_node")?,
            },
            policy_matched: self.text("rule")?,
            latency: Latency(row.try_get::<i64, _>("latency")?.cast_unsigned()),
            cluster: self.needed("cluster")?,
            protocol: Protocol(self.needed_number("protocol")?),
            hook: self.term("hook")?,
            observer: self.term("observer")?,
            mode: self.term("mode")?,
            enforced: row
                .try_get::<Option<bool>, _>("enforced")?
                .ok_or_else(|| self.damaged("enforced", "missing".to_owned()))?,
            revision: row.try_get::<i64, _>("revision")?.cast_unsigned(),
            reason: self.term("reason")?,
            proof: self.term("proof")?,
            count: row.try_get::<i64, _>("count")?.cast_unsigned(),
            caller: self.text("caller")?,
            mfa: None,
            incident: None,
        };
        if let Some(detail) = self.detail()?
            && !record.set_operator_detail(&detail)
        {
            return Err(self.damaged("detail", detail.to_string()));
        }
        Ok(record)
    }

    /// A change has nothing in the columns of a decision: people look at the rows as well.
    fn has_no_decision(&self) -> Result<(), PgError> {
        let row = self.row;
        for (column, nothing) in [("latency", 0), ("count", 1)] {
            let number: i64 = row.try_get(column)?;
            if number != nothing {
                return Err(self.damaged(column, number.to_string()));
            }
        }
        for column in ["source_port", "pid"] {
            if let Some(number) = self.number::<i64>(column)? {
                return Err(self.damaged(column, number.to_string()));
            }
        }
        for column in ["source_address", "destination_address"] {
            if let Some(address) = row.try_get::<Option<IpAddr>, _>(column)? {
                return Err(self.damaged(column, address.to_string()));
            }
        }
        for column in ["comm", "source_pod", "destination_pod"] {
            if let Some(text) = self.text(column)? {
                return Err(self.damaged(column, text.to_string()));
            }
        }
        Ok(())
    }

    fn change(&self) -> Result<Change, PgError> {
        self.has_no_decision()?;
        let detail = self
            .detail()?
            .ok_or_else(|| self.damaged("detail", "missing".to_owned()))?;
        let change: serde_json::Value = serde_json::from_str(&detail)
            .ok()
            .filter(|change: &serde_json::Value| is_written_so(change, &detail))
            .ok_or_else(|| self.damaged("detail", detail.to_string()))?;
        Ok(Change::new(
            (self.id, Timestamp(self.row.try_get("time")?)),
            (self.needed("cluster")?, self.needed("source_node")?),
            self.needed("caller")?,
            self.row.try_get::<i64, _>("revision")?.cast_unsigned(),
            change,
        ))
    }
}
