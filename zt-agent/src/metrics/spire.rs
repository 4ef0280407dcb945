// SPDX-License-Identifier: Apache-2.0
//! How it stands with SPIRE.

use std::fmt;

use super::Metrics;
use super::exposition::Writer;

/// The certificate of this agent itself.
pub(super) fn own(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(status) = metrics.svid() else {
        return Ok(());
    };
    writer.gauge(
        "zt_own_svid_expires_timestamp_seconds",
        "When the certificate of this agent ends to be valid, Unix time; 0 while there is none",
        status.expires.unwrap_or_default() as f64,
    )?;
    writer.counter(
        "zt_own_svid_renewals",
        "Certificates of its own that this agent has got from SPIRE",
        status.renewals,
    )?;
    writer.counter(
        "zt_own_svid_failures",
        "Attempts at SPIRE for a certificate of its own that failed, and answers that could not be used",
        status.failures,
    )
}

pub(super) fn spire(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(health) = metrics.spire.get() else {
        return Ok(());
    };
    let status = health.status();
    for (name, help, value) in [
        (
            "zt_spire_connected",
            "1 while the SPIRE agent answers",
            f64::from(u8::from(status.connected)),
        ),
        (
            "zt_spire_state_since_timestamp_seconds",
            "Since when the SPIRE agent answers, or does not, Unix time",
            status.since as f64 / 1e9,
        ),
        (
            "zt_spire_workloads_named",
            "Cgroups that SPIRE gave an identity",
            status.named as f64,
        ),
        (
            "zt_spire_workloads_waiting",
            "Cgroups in which somebody runs and that SPIRE has given no identity",
            status.waiting as f64,
        ),
        (
            "zt_spire_workloads_expired",
            "Cgroups whose identity is held although its SVID has expired",
            status.expired as f64,
        ),
    ] {
        writer.gauge(name, help, value)?;
    }
    writer.counter(
        "zt_spire_failures",
        "Attempts at reaching the SPIRE agent that failed, and connections that were lost",
        status.failures,
    )?;
    writer.counters(
        "zt_svid_rotations",
        "New SVIDs of the identity that a workload had, by identity",
        status
            .rotations
            .iter()
            .map(|(service, count)| ([("service", &**service)], *count)),
    )?;
    writer.counters(
        "zt_spire_withdrawn",
        "Identities that were taken back, by cause",
        status
            .withdrawn
            .into_iter()
            .map(|(cause, count)| ([("cause", cause)], count)),
    )?;
    writer.counters(
        "zt_spire_svids_outside",
        "New SVIDs that are not as the specification wants them: by lifetime (more than an hour) or key (not P-256), or that of an authority (more than a day) in their chain",
        status
            .outside
            .into_iter()
            .map(|(cause, count)| ([("cause", cause)], count)),
    )?;
    writer.counters(
        "zt_spire_refused",
        "What the SPIRE agent said and was not believed, by cause",
        status
            .refused
            .into_iter()
            .map(|(cause, count)| ([("cause", cause)], count)),
    )
}
