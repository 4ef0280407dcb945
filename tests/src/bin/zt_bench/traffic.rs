// SPDX-License-Identifier: Apache-2.0
//! Connections with and without zt: opening one, a byte there and back, bulk, being refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::json;
use zt_tests::{AgentBuilder, Cgroup, Host};

use crate::crew::Worker;
use crate::load::CHUNK;
use crate::order::Order;
use crate::report::{Metric, Target};
use crate::samples::interleave;
use crate::world::{World, filled, id, policy, rule};
use crate::{Plan, decision};

/// A listener outside the managed tree, and one of another workload.
const OUTSIDE: u16 = 7001;
const INSIDE: u16 = 7002;
/// Nobody listens here, and no rule allows it.
const NOWHERE: u16 = 7009;

/// The namespace delivers these to itself, yet they are no address of it: to zt they are as far away as any.
const FAR_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// A network namespace with an agent around it, in which workers connect to themselves.
pub(crate) struct Stage {
    pub(crate) world: World,
    host: Host,
    client: Cgroup,
    server: Cgroup,
    plain: Cgroup,
    cpu: usize,
}

impl Stage {
    /// Starts the agent with ten rules.
    pub(crate) fn set(plan: &Plan, label: &str) -> Result<Self> {
        Self::set_with(plan, label, |builder| builder)
    }

    /// Starts the agent with ten rules and more.
    pub(crate) fn set_with(
        plan: &Plan,
        label: &str,
        more: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> Result<Self> {
        let mut place = None;
        let world = World::start(label, |sandbox, builder| {
            let host = sandbox.host("host")?;
            far_addresses(&host)?;
            let (client, its) = World::member(sandbox, "client")?;
            let (server, others) = World::member(sandbox, "server")?;
            place = Some((host, client, server));
            let builder = builder.workload(its).workload(others);
            filled(more(builder).policy("base.yaml", &base())?, 10)
        })?;
        let (agent_cpu, cpu) = plan.cpus();
        world.confine_agent(agent_cpu)?;
        let plain = world.sandbox.outside().child("plain")?;
        let Some((host, client, server)) = place else {
            anyhow::bail!("the world was prepared")
        };
        Ok(Self {
            world,
            host,
            client,
            server,
            plain,
            cpu,
        })
    }

    /// A worker that listens as `listens` and connects as `connects`.
    fn worker(&self, listens: &Cgroup, at: IpAddr, port: u16, connects: &Cgroup) -> Result<Worker> {
        let mut worker = Worker::start(listens, Some(&self.host), Some(self.cpu))?;
        worker.listen(SocketAddr::new(at, port))?;
        worker.enter(connects)?;
        worker.ask(&Order::Urgent)?;
        Ok(worker)
    }

    /// A worker outside that listens and connects, and where it listens.
    pub(crate) fn unmanaged(&self, at: IpAddr) -> Result<(Worker, SocketAddr)> {
        let worker = self.worker(&self.plain, at, 7000, &self.plain)?;
        Ok((worker, SocketAddr::new(at, 7000)))
    }

    /// A worker that listens as one workload and connects as another, and where it listens.
    pub(crate) fn both_managed(&self, at: IpAddr) -> Result<(Worker, SocketAddr)> {
        let worker = self.worker(&self.server, at, INSIDE, &self.client)?;
        Ok((worker, SocketAddr::new(at, INSIDE)))
    }

    /// A worker in a managed cgroup whose own listener is outside.
    pub(crate) fn managed_client(&self) -> Result<Worker> {
        self.worker(&self.plain, Ipv4Addr::UNSPECIFIED.into(), OUTSIDE, &self.client)
    }
}

fn far_addresses(host: &Host) -> Result<()> {
    for arguments in [["-4", "198.51.100.0/24"], ["-6", "2001:db8::/64"]] {
        let [family, network] = arguments;
        let status = host
            .command("ip")
            .args([family, "route", "add", "local", network, "dev", "lo"])
            .status()?;
        ensure!(status.success(), "ip route add local {network}: {status}");
    }
    Ok(())
}

fn base() -> String {
    let client = format!("spiffe: '{}'", id("client"));
    let server = format!("spiffe: '{}'", id("server"));
    policy(
        "base",
        &[
            rule(&client, "entity: host", OUTSIDE),
            rule(&client, "cidr: 198.51.100.0/24", OUTSIDE),
            rule(&client, "cidr: '2001:db8::/64'", OUTSIDE),
            rule(&client, &server, INSIDE),
        ]
        .concat(),
    )
}

/// Where the source of `connects` goes, outwards.
pub(crate) fn far() -> SocketAddr {
    SocketAddr::new(FAR_V4.into(), OUTSIDE)
}

/// Opening connections, with tables of three sizes, over IPv4 and, in a full run, IPv6.
pub(crate) fn connect(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let stage = Stage::set(plan, "connect")?;
    for rules in [10, 1000, 100_000] {
        if rules != 10 {
            stage.world.fill(rules)?;
        }
        let families: &[(&str, IpAddr, IpAddr)] = &[
            ("v4", Ipv4Addr::LOCALHOST.into(), FAR_V4.into()),
            ("v6", Ipv6Addr::LOCALHOST.into(), FAR_V6.into()),
        ];
        for (family, near, far) in families.iter().take(if plan.quick { 1 } else { 2 }) {
            connect_over(
                &stage,
                plan,
                &format!("connect+close {family}, {rules} rules"),
                *near,
                *far,
                metrics,
            )?;
        }
    }
    Ok(())
}

fn connect_over(
    stage: &Stage,
    plan: &Plan,
    name: &str,
    near: IpAddr,
    far: IpAddr,
    metrics: &mut Vec<Metric>,
) -> Result<()> {
    let any = if near.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let mut plain = stage.worker(&stage.plain, any, 7000, &stage.plain)?;
    let mut source = stage.worker(&stage.plain, any, OUTSIDE, &stage.client)?;
    let mut both = stage.worker(&stage.server, near, INSIDE, &stage.client)?;
    let samples = interleave(plan.rounds(40, 120), |turn| match turn {
        0 => plain.micros(&connects(SocketAddr::new(far, 7000))),
        1 => source.micros(&connects(SocketAddr::new(far, OUTSIDE))),
        2 => plain.micros(&connects(SocketAddr::new(near, 7000))),
        3 => source.micros(&connects(SocketAddr::new(near, OUTSIDE))),
        _ => both.micros(&connects(SocketAddr::new(near, INSIDE))),
    })?;
    let [far_plain, far_source, near_plain, near_source, near_both] = &samples;
    let source = Target::RatioAtMost(1.03);
    metrics
        .push(Metric::compared(format!("{name}, source only"), "µs", far_plain, far_source).target(source));
    let local = format!("{name}, source only, own address");
    metrics.push(Metric::compared(local, "µs", near_plain, near_source).target(source));
    let both = Target::RatioAtMost(1.10);
    metrics.push(Metric::compared(format!("{name}, both ends"), "µs", near_plain, near_both).target(both));
    Ok(())
}

/// Opening and closing so many.
pub(crate) fn connects(to: SocketAddr) -> Order {
    Order::Connects { to, count: 400 }
}

/// Established connections: nothing of zt runs for a segment, unless a second agent's `packetGuard` asks for it.
pub(crate) fn established(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let stage = Stage::set(plan, "established")?;
    let guarded = Stage::set_with(plan, "packet-guard", |builder| {
        builder.config("packetGuard", json!(true))
    })?;
    let near = Ipv4Addr::LOCALHOST.into();
    stage.world.fill(1000)?;
    guarded.world.fill(1000)?;
    let (mut plain, to_plain) = stage.unmanaged(near)?;
    let (mut managed, to_managed) = stage.both_managed(near)?;
    let (mut watched, to_watched) = guarded.both_managed(near)?;

    let trips = |to: SocketAddr| Order::RoundTrips { to, count: 2000 };
    let [without, with, looked_at] = interleave(plan.rounds(40, 150), |turn| match turn {
        0 => plain.micros(&trips(to_plain)),
        1 => managed.micros(&trips(to_managed)),
        _ => watched.micros(&trips(to_watched)),
    })?;
    let target = Target::RatioAtMost(1.01);
    metrics.push(Metric::compared("1-byte round trip", "µs", &without, &with).target(target));
    let name = "1-byte round trip, packetGuard";
    metrics.push(Metric::compared(name, "µs", &without, &looked_at));

    let bulk = |to: SocketAddr| Order::Bulk { to, chunks: 512 };
    // Bytes a microsecond are megabytes a second.
    let rate = |micros: f64| CHUNK as f64 / micros / 1000.0;
    let [without, with, looked_at] = interleave(plan.rounds(30, 100), |turn| match turn {
        0 => plain.micros(&bulk(to_plain)).map(rate),
        1 => managed.micros(&bulk(to_managed)).map(rate),
        _ => watched.micros(&bulk(to_watched)).map(rate),
    })?;
    let target = Target::RatioAtLeast(0.99);
    metrics.push(Metric::compared("bulk TCP, both ends on one core", "GB/s", &without, &with).target(target));
    let name = "bulk TCP, both ends on one core, packetGuard";
    metrics.push(Metric::compared(name, "GB/s", &without, &looked_at));
    Ok(())
}

/// A refused connect, next to one that the other end refuses and one that succeeds.
pub(crate) fn denied(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let stage = Stage::set(plan, "denied")?;
    stage.world.fill(1000)?;
    let near = Ipv4Addr::LOCALHOST.into();
    let mut plain = stage.worker(&stage.plain, near, 7000, &stage.plain)?;
    let mut managed = stage.worker(&stage.plain, near, OUTSIDE, &stage.client)?;
    let nowhere = Order::Failures {
        to: SocketAddr::new(near, NOWHERE),
        count: 500,
    };
    for (worker, errno) in [(&mut managed, libc::EPERM), (&mut plain, libc::ECONNREFUSED)] {
        let answer = worker.ask(&nowhere)?.errno;
        ensure!(
            answer == errno,
            "a connect that was to fail with {errno} fails with {answer}"
        );
    }
    let [open, reset, denied] = interleave(plan.rounds(40, 120), |turn| match turn {
        0 => plain.micros(&connects(SocketAddr::new(near, 7000))),
        1 => plain.micros(&nowhere),
        _ => managed.micros(&nowhere),
    })?;
    metrics.push(Metric::compared(
        "denied connect (EPERM) ÷ refused by reset",
        "µs",
        &reset,
        &denied,
    ));
    metrics.push(Metric::compared(
        "denied connect (EPERM) ÷ successful",
        "µs",
        &open,
        &denied,
    ));
    Ok(())
}

/// Where connect's time goes: programs that run for a connection, and how long.
pub(crate) fn profile(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let stage = Stage::set(plan, "profile")?;
    stage.world.fill(1000)?;
    let near: IpAddr = Ipv4Addr::LOCALHOST.into();
    let mut source = stage.worker(&stage.plain, Ipv4Addr::UNSPECIFIED.into(), OUTSIDE, &stage.client)?;
    let mut both = stage.worker(&stage.server, near, INSIDE, &stage.client)?;
    let to = |ip, port| SocketAddr::new(ip, port);
    let cases = [
        ("source only", &mut source, to(FAR_V4.into(), OUTSIDE)),
        ("both ends", &mut both, to(near, INSIDE)),
    ];
    for (name, worker, to) in cases {
        decision::profile(&stage.world, worker, to, name, metrics)?;
    }
    decision::profile(
        &stage.world,
        &mut source,
        to(near, OUTSIDE),
        "source only, own address",
        metrics,
    )
}
