// SPDX-License-Identifier: Apache-2.0
//! Writes all metrics at a scrape.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use zt_common::counter::Counter;

use super::fingerprint::fingerprint;
use super::{Metrics, nri, options, peers, pods, spire, spool, trail, waits};
use crate::state::SOURCE_REFUSALS;

#[derive(Debug)]
pub(super) struct Exposition(pub(super) Arc<Metrics>);

/// The quantiles of the specification.
const QUANTILES: [(f64, &str); 3] = [(0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99")];

/// The counters of decisions; they have a metric of their own.
const DECIDED: [Counter; 4] = [
    Counter::AllowedObserved,
    Counter::AllowedEnforced,
    Counter::DeniedObserved,
    Counter::DeniedEnforced,
];

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut writer = Writer(encoder);
        let metrics = &self.0;
        writer.build_info()?;
        decisions(&mut writer, metrics)?;
        latencies(&mut writer, metrics)?;
        losses(&mut writer, metrics)?;
        kernel(&mut writer, metrics)?;
        node(&mut writer, metrics)?;
        options::options(&mut writer, metrics)?;
        trail::trail(&mut writer, metrics)?;
        writer.counters(
            "zt_api_refused",
            "Callers and requests that the API refused, by cause",
            metrics
                .api_refusals()
                .into_iter()
                .map(|(cause, count)| ([("cause", cause)], count)),
        )?;
        spool::spool(&mut writer, metrics)?;
        configuration(&mut writer, metrics)?;
        snapshot(&mut writer, metrics)?;
        source(&mut writer, metrics)?;
        waits::waits(&mut writer, metrics)?;
        spire::own(&mut writer, metrics)?;
        spire::spire(&mut writer, metrics)?;
        pods::pods(&mut writer, metrics)?;
        nri::nri(&mut writer, metrics)?;
        peers::peers(&mut writer, metrics)
    }
}

pub(super) struct Writer<'a>(pub(super) DescriptorEncoder<'a>);

impl Writer<'_> {
    fn build_info(&mut self) -> fmt::Result {
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        self.0
            .encode_descriptor("zt_build", "Version of this agent", None, MetricType::Info)?
            .encode_info(&labels)
    }

    /// A counter, one value for each set of labels; `_total` is added to the name.
    pub(super) fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            encoder
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// A gauge, one value for each set of labels.
    pub(super) fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            encoder.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }
}

fn decisions(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let all = metrics.decisions.all();
    let values = all.iter().flat_map(|((source, dest), counts)| {
        [("allow", counts.allow), ("deny", counts.deny)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(decision, count)| {
                (
                    [("decision", decision), ("source", &**source), ("dest", &**dest)],
                    count,
                )
            })
    });
    writer.counters(
        "zt_decisions",
        "Access decisions by policy's verdict, source and destination",
        values,
    )?;
    let denials = metrics.enforced_denials.load(Ordering::Relaxed);
    writer.counter(
        "zt_enforced_denials",
        "Decisions that refused a connection or a datagram",
        denials,
    )
}

fn configuration(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(reloaded) = metrics.configuration.get() else {
        return Ok(());
    };
    let reloaded = Arc::clone(&reloaded.borrow());
    writer.gauge(
        "zt_config_valid",
        "0 while the configuration on disk is not valid and the callers known before stay",
        f64::from(u8::from(reloaded.problems.is_empty())),
    )?;
    writer.counters(
        "zt_config_reloads",
        "Readings of the configuration that changed api.callers, and those that were refused",
        [
            ([("result", "taken")], reloaded.taken),
            ([("result", "refused")], reloaded.refused),
        ],
    )
}

fn node(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let values = metrics
        .node
        .all()
        .map(|(event, count)| ([("event", event.name())], count));
    writer.counters(
        "zt_node_events",
        "What the agent failed at and tries again, or had to make up for",
        values,
    )
}

fn latencies(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let histogram = metrics.latencies.histogram();
    writer
        .0
        .encode_descriptor(
            "zt_evaluation_latency_seconds",
            "Time that a decision takes",
            None,
            MetricType::Histogram,
        )?
        .encode_histogram::<NoLabelSet>(histogram.sum_seconds, histogram.count, &histogram.buckets, None)?;
    let values = metrics
        .latencies
        .quantiles(QUANTILES.map(|(quantile, _)| quantile));
    let help = "Time that a decision takes: quantiles of the last one to two minutes";
    let mut encoder =
        writer
            .0
            .encode_descriptor("zt_evaluation_duration_seconds", help, None, MetricType::Gauge)?;
    for ((_, label), value) in QUANTILES.into_iter().zip(values) {
        encoder
            .encode_family(&[("quantile", label)])?
            .encode_gauge(&value)?;
    }
    Ok(())
}

fn losses(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let kernel = metrics.kernel.get().and_then(|kernel| kernel.read());
    let ring = kernel.and_then(|counters| counters.get(Counter::EventsLost as usize).copied());
    let pipeline = metrics.stats.get().map(|stats| stats.losses().by_cause());
    let spool = metrics.spool.get().map(|(account, _)| account.losses());
    // What a full spool does not take is `store_rejected` already.
    let spool = spool
        .into_iter()
        .flatten()
        .filter(|(cause, _)| *cause != "spool_newest");
    let all = ring
        .map(|lost| ("ring_full", lost))
        .into_iter()
        .chain(pipeline.into_iter().flatten())
        .chain(spool);
    writer.counters(
        "zt_events_lost",
        "Decisions that have no record, by cause",
        all.map(|(cause, lost)| ([("cause", cause)], lost)),
    )
}

fn kernel(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(counters) = metrics.kernel.get().and_then(|kernel| kernel.read()) else {
        return Ok(());
    };
    let all = || Counter::ALL.into_iter().zip(counters);
    let decided = all().filter(|(counter, _)| DECIDED.contains(counter));
    writer.counters(
        "zt_kernel_decisions",
        "Decisions of the kernel, counted there: exact, whatever became of their records",
        decided.map(|(counter, value)| ([("verdict", counter.name())], value)),
    )?;
    let rest = all().filter(|(counter, _)| !DECIDED.contains(counter) && *counter != Counter::EventsLost);
    writer.counters(
        "zt_kernel_events",
        "What else the kernel programs count",
        rest.map(|(counter, value)| ([("event", counter.name())], value)),
    )
}

fn snapshot(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(snapshots) = metrics.snapshots.get() else {
        return Ok(());
    };
    let snapshot = Arc::clone(&snapshots.borrow());
    writer.counter(
        "zt_hooks_restored",
        "Hooks, links and pins that somebody had removed and the agent put back",
        metrics.restored_total(),
    )?;
    let flag = |on: bool| if on { 1.0 } else { 0.0 };
    for (name, help, value) in [
        (
            "zt_policy_revision",
            "Revision of the policy in force",
            snapshot.revision as f64,
        ),
        (
            "zt_policy_fingerprint",
            "The first 48 bits of the digest of the policy in force: the same number where the policy is the same",
            fingerprint(snapshot.policies.digest()),
        ),
        (
            "zt_policy_valid",
            "1 while the documents on disk are the policy in force",
            flag(snapshot.policy_error.is_none()),
        ),
        (
            "zt_policy_entries",
            "Entries of the allow table in force",
            snapshot.table.len() as f64,
        ),
        (
            "zt_workloads",
            "Workloads declared on this node",
            snapshot.workloads.len() as f64,
        ),
        (
            "zt_service_places",
            "Virtual addresses and ports that lead to somebody",
            snapshot.fronts.len() as f64,
        ),
        (
            "zt_service_groups",
            "Virtual addresses and ports behind which more than one identity is",
            snapshot.fronts.groups() as f64,
        ),
        (
            "zt_observe_all",
            "1 while break-glass keeps this node from refusing anything",
            flag(snapshot.observe_all),
        ),
        (
            "zt_rollout_stopped",
            "1 while this node is not at the stage of the rollout that the document says, or goes no further",
            flag(snapshot.stopped.is_some()),
        ),
        (
            "zt_rollout_stages",
            "Stages of the rollout that are in force on this node",
            snapshot.modes.rollout().map_or(0, |(_, reached)| reached) as f64,
        ),
        (
            "zt_workloads_enforced",
            "Workloads of this node that enforce",
            snapshot.enforced() as f64,
        ),
    ] {
        writer.gauge(name, help, value)?;
    }
    Ok(())
}

fn source(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(source) = metrics.source.get() else {
        return Ok(());
    };
    let source = source.borrow().clone();
    writer.gauge(
        "zt_policy_source_stale",
        "1 while the policy in force is not known to be the engine's",
        if source.stale { 1.0 } else { 0.0 },
    )?;
    writer.gauge(
        "zt_policy_source_confirmed_timestamp_seconds",
        "When the engine last said that the policy in force is its own, Unix time; 0 for never",
        source.confirmed.map_or(0.0, |at| at as f64 / 1e9),
    )?;
    writer.counter(
        "zt_policy_source_failures",
        "Attempts at reaching the engine that failed",
        source.failures,
    )?;
    let refused = super::with_zeros(&SOURCE_REFUSALS, &source.refused).into_iter();
    writer.counters(
        "zt_policy_source_refused",
        "Answers of the engine, and copies of them, that were refused, by cause",
        refused.map(|(cause, count)| ([("cause", cause)], count)),
    )
}
