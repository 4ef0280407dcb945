// SPDX-License-Identifier: Apache-2.0
//! What waits for `PostgreSQL`.

use std::fmt;

use super::Metrics;
use super::exposition::Writer;

pub(super) fn spool(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some((account, limit)) = metrics.spool.get() else {
        return Ok(());
    };
    for (name, help, value) in [
        (
            "zt_audit_spool_records",
            "Records that wait to be shipped to PostgreSQL",
            account.waiting() as f64,
        ),
        (
            "zt_audit_spool_bytes",
            "Bytes of the spool that are in use",
            account.used_bytes() as f64,
        ),
        (
            "zt_audit_spool_limit_bytes",
            "Bytes that the spool may take (audit.maxDiskBytes); records are lost from seven eighths on",
            *limit as f64,
        ),
        (
            "zt_audit_spool_lag_seconds",
            "Age of the oldest record that waits to be shipped to PostgreSQL",
            account.lag().as_secs_f64(),
        ),
        (
            "zt_audit_spool_reachable",
            "1 while PostgreSQL takes records",
            f64::from(u8::from(account.is_reachable())),
        ),
    ] {
        writer.gauge(name, help, value)?;
    }
    writer.counter(
        "zt_audit_shipped",
        "Records that PostgreSQL has taken",
        account.shipped_total(),
    )?;
    writer.counters(
        "zt_audit_spool_lost",
        "Decisions whose records were lost between the spool and PostgreSQL, by cause",
        account.losses().map(|(cause, lost)| ([("cause", cause)], lost)),
    )?;
    writer.counters(
        "zt_audit_ship_failures",
        "Attempts at shipping records to PostgreSQL that failed, by cause",
        account
            .failures()
            .map(|(cause, failures)| ([("cause", cause)], failures)),
    )
}
