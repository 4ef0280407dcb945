// SPDX-License-Identifier: Apache-2.0
//! How it stands with the Kubernetes API and with the pods.

use std::fmt;

use super::Metrics;
use super::exposition::Writer;

pub(super) fn pods(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(health) = metrics.kubernetes.get() else {
        return Ok(());
    };
    let watches = health.freshness.all();
    let each = |value: fn(&crate::kubernetes::Status) -> f64| {
        let values: Vec<_> = watches
            .iter()
            .map(|(name, status)| ([("collection", *name)], value(status)))
            .collect();
        values
    };
    writer.gauges(
        "zt_kubernetes_stale",
        "1 while what is known of a collection of the Kubernetes API may be old, by collection",
        each(|status| f64::from(u8::from(status.stale))),
    )?;
    writer.gauges(
        "zt_kubernetes_state_since_timestamp_seconds",
        "Since when it is so, or not so, Unix time, by collection",
        each(|status| status.since as f64 / 1e9),
    )?;
    let count = |value: fn(&crate::kubernetes::Status) -> u64| {
        let values: Vec<_> = watches
            .iter()
            .map(|(name, status)| ([("collection", *name)], value(status)))
            .collect();
        values
    };
    writer.counters(
        "zt_kubernetes_lists",
        "Lists that were read whole, by collection",
        count(|status| status.lists),
    )?;
    writer.counters(
        "zt_kubernetes_watches",
        "Watches that were opened, by collection",
        count(|status| status.watches),
    )?;
    writer.counters(
        "zt_kubernetes_events",
        "Events that were taken, by collection",
        count(|status| status.events),
    )?;
    writer.counters(
        "zt_kubernetes_failures",
        "Attempts at the Kubernetes API that failed and watches that broke, by collection",
        count(|status| status.failures),
    )?;
    writer.counters(
        "zt_kubernetes_unreadable",
        "Objects and events that are not understood, by collection",
        count(|status| status.unreadable),
    )?;
    let pods = health.pods();
    let places = [("here", pods.counts.here), ("elsewhere", pods.counts.elsewhere)];
    writer.gauges(
        "zt_kubernetes_pods",
        "Pods that are known: of this node with an identity, and of other nodes",
        places.map(|(place, count)| ([("place", place)], count as f64)),
    )?;
    writer.gauge(
        "zt_kubernetes_addresses_disputed",
        "Addresses that more than one pod or node claims: they name nobody",
        pods.counts.disputed as f64,
    )?;
    writer.counters(
        "zt_kubernetes_refused",
        "What the Kubernetes API says of pods and was not believed, by cause",
        pods.refused
            .into_iter()
            .map(|(cause, count)| ([("cause", cause)], count)),
    )
}
