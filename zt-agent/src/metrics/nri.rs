// SPDX-License-Identifier: Apache-2.0
//! How it stands with the container runtime, whose containers wait for their identities.

use std::fmt;

use super::Metrics;
use super::exposition::Writer;
use crate::nri::OUTCOMES;

pub(super) fn nri(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(health) = metrics.nri.get() else {
        return Ok(());
    };
    let status = health.status();
    writer.gauge(
        "zt_nri_connected",
        "1 while the container runtime asks this agent before it starts a container",
        f64::from(u8::from(status.connected)),
    )?;
    writer.gauge(
        "zt_nri_holding",
        "Containers that wait for their identity now",
        status.holding as f64,
    )?;
    writer.counter(
        "zt_nri_failures",
        "Attempts at reaching the container runtime that failed, and connections that were lost",
        status.failures,
    )?;
    writer.counters(
        "zt_nri_starts",
        "Containers that started: their pod had an identity (named), got it while they waited (held), needed none (left_alone), had none when the wait was over (unnamed), or is not managed",
        OUTCOMES
            .into_iter()
            .zip(status.starts)
            .map(|((_, name), count)| ([("outcome", name)], count)),
    )?;
    writer.counter(
        "zt_nri_waited_milliseconds",
        "How long containers have waited for their identity, all together",
        u64::try_from(status.waited.as_millis()).unwrap_or(u64::MAX),
    )
}
