// SPDX-License-Identifier: Apache-2.0
//! How it stands with the agents of other nodes.

use std::fmt;

use super::Metrics;
use super::exposition::Writer;
use crate::peers::State;

pub(super) fn peers(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let Some(health) = metrics.peers.get() else {
        return Ok(());
    };
    let status = health.status();
    let states = health.states();
    writer.gauges(
        "zt_peers",
        "Other nodes: heard (connected), not heard and still believed (stale), or not known (unknown)",
        State::ALL
            .into_iter()
            .zip(states)
            .map(|(state, count)| ([("state", state.name())], count as f64)),
    )?;
    let addresses: usize = status.nodes.values().map(|node| node.counts.addresses).sum();
    let silent: usize = status.nodes.values().map(|node| node.counts.silent).sum();
    writer.gauge(
        "zt_peers_addresses",
        "Addresses of other nodes of which their agents say who is there",
        addresses as f64,
    )?;
    writer.gauge(
        "zt_peers_silent",
        "Addresses of other nodes at which somebody lives of whom their agents show no SVID",
        silent as f64,
    )?;
    writer.gauge(
        "zt_peers_disputes",
        "Addresses and networks that more than one node claims",
        status.disputed as f64,
    )?;
    writer.counter(
        "zt_peers_connections",
        "Connections with agents of other nodes over which all was said",
        status.connections,
    )?;
    writer.counter(
        "zt_peers_keys",
        "Changes of the keys of handshakes with other nodes",
        status.rotations,
    )?;
    writer.counters(
        "zt_peers_refused",
        "What agents of other nodes said, or who called itself one, and was refused",
        status
            .refused
            .into_iter()
            .map(|(cause, count)| ([("cause", cause)], count)),
    )
}
