// SPDX-License-Identifier: Apache-2.0
//! Connections whose handshake proves who both ends are, beside such without zt, and such whose handshake bears nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use serde_json::json;

use crate::Plan;
use crate::decision;
use crate::order::Order;
use crate::report::{Metric, Target};
use crate::samples::interleave;
use crate::traffic::{Stage, connects};
use zt_tests::programs::Measuring;

/// Two agents on one machine, of which one has handshakes bear identities: all three kinds of connection are measured in
/// turn.
pub(crate) fn proof(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let near: IpAddr = Ipv4Addr::LOCALHOST.into();
    let set = |label: &str, handshake: &str| {
        let handshake = json!(handshake);
        Stage::set_with(plan, label, |builder| builder.config("handshake", handshake))
    };
    let (auto, off) = (set("handshake-auto", "auto")?, set("handshake-off", "off")?);
    let (mut plain, to_plain) = auto.unmanaged(near)?;
    let (mut proven, to_proven) = auto.both_managed(near)?;
    let (mut silent, to_silent) = off.both_managed(near)?;
    let [without, with, bare] = interleave(plan.rounds(60, 200), |turn| match turn {
        0 => plain.micros(&connects(to_plain)),
        1 => proven.micros(&connects(to_proven)),
        _ => silent.micros(&connects(to_silent)),
    })?;
    metrics.push(
        Metric::compared("connect+close, both ends proven", "µs", &without, &with)
            .target(Target::RatioAtMost(1.10)),
    );
    metrics.push(Metric::compared(
        "connect+close, both ends proven ÷ handshake: off",
        "µs",
        &bare,
        &with,
    ));

    let count = 2000;
    let trips = |to: SocketAddr| Order::RoundTrips { to, count };
    let [without, with] = interleave(plan.rounds(40, 150), |turn| match turn {
        0 => plain.micros(&trips(to_plain)),
        _ => proven.micros(&trips(to_proven)),
    })?;
    metrics.push(
        Metric::compared("1-byte round trip, both ends proven", "µs", &without, &with)
            .target(Target::RatioAtMost(1.01)),
    );
    decision::profile(&auto.world, &mut proven, to_proven, "both ends proven", metrics)?;
    sizes(&auto, metrics)
}

/// How large each program is, and how much of it the verifier had to walk.
fn sizes(stage: &Stage, metrics: &mut Vec<Metric>) -> Result<()> {
    let measuring = Measuring::begin(stage.world.programs()?)?;
    for (name, program) in measuring.read() {
        metrics.push(Metric::value(
            format!(
                "  {name}: instructions ({} walked by the verifier)",
                program.verified
            ),
            "",
            f64::from(program.translated / 8),
        ));
    }
    Ok(())
}
