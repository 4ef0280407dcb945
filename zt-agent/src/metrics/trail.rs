// SPDX-License-Identifier: Apache-2.0
//! Metrics of the audit trail.

use std::fmt;

use super::Metrics;
use super::exposition::Writer;

/// The way of records into the store, and what is signed of it.
pub(super) fn trail(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(stats) = metrics.stats.get() else {
        return Ok(());
    };
    writer.counter(
        "zt_audit_received",
        "Decisions that reached the audit pipeline",
        stats.received_total(),
    )?;
    writer.counter(
        "zt_audit_stored",
        "Decisions whose records were stored",
        stats.stored_total(),
    )?;
    writer.counter(
        "zt_audit_records",
        "Records that were stored: fewer than decisions where denials that repeat were joined",
        stats.records_total(),
    )?;
    writer.counter(
        "zt_audit_store_failures",
        "Attempts at storing that failed",
        stats.failures_total(),
    )?;
    let (space, age) = stats.pruned_total();
    writer.counters(
        "zt_audit_pruned",
        "Records that went to keep the store within its limits",
        [([("limit", "space")], space), ([("limit", "age")], age)],
    )?;
    writer.counter(
        "zt_audit_checkpoint_failures",
        "Checkpoints of the trail that could not be signed",
        stats.seal_failures_total(),
    )?;
    writer.counter(
        "zt_audit_prune_failures",
        "Attempts at keeping the trail within its limits that failed",
        stats.prune_failures_total(),
    )?;
    writer.gauge(
        "zt_audit_chain_breaks",
        "Signed checkpoints that the trail does not go on from: kept beside the keys until somebody takes them away",
        stats.chain_breaks() as f64,
    )?;
    writer.gauge(
        "zt_audit_damaged_files",
        "Damaged files of the trail or the spool that were put aside: beside the one in use until somebody takes them away",
        stats.damaged_files() as f64,
    )?;
    if let Some((seq, time)) = stats.checkpoint() {
        writer.gauge(
            "zt_audit_checkpoint_seq",
            "The entry that the last signed checkpoint of the trail names: a store with fewer was cut off",
            seq as f64,
        )?;
        writer.gauge(
            "zt_audit_checkpoint_timestamp_seconds",
            "When the last checkpoint of the trail was signed",
            time.0 as f64 / 1e9,
        )?;
    }
    writer.counter(
        "zt_audit_evaluations_refused",
        "Evaluations over the API that had no room in the trail (audit.apiShare) and were not answered",
        stats.over_share_total(),
    )?;
    let lag = stats.lag().as_secs_f64();
    writer.gauge(
        "zt_audit_lag_seconds",
        "How long the oldest decision without a record has been waiting",
        lag,
    )
}
