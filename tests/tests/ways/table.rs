// SPDX-License-Identifier: Apache-2.0
//! The table: what is tried, by whom, what comes of it, and why.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use zt_tests::attack::NOBODY;

use crate::ways::{Expected, Way, Who};
use crate::{Stage, at};
use Expected::{Dropped, Limit, Nowhere, Refused, Undecided};
use Who::{Client, Lax, Other};

/// Headings of `docs/limits.md`.
const PASSED_ON: &str = "Connected sockets passed between workloads";
const RINGS: &str = "Rings of io_uring passed between workloads";
const FAMILIES: &str = "Packet sockets, and other socket families";
const DATAGRAMS: &str = "The source address of a datagram";

fn words(words: &[&dyn std::fmt::Display]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn ring(stage: &Stage, v6: bool, flags: &[&str]) -> Vec<String> {
    let mut ring = words(&[&"ring", &stage.server(v6)]);
    ring.extend(flags.iter().map(|flag| (*flag).to_owned()));
    ring
}

fn inherited(stage: &Stage, v6: bool, heir: Who, flags: &[&str]) -> Vec<String> {
    let mut ring = ring(stage, v6, flags);
    ring.extend([
        "--heir".to_owned(),
        stage.party(heir).cgroup.path().display().to_string(),
    ]);
    ring
}

fn source(stage: &Stage, v6: bool, how: &str, from: IpAddr) -> Vec<String> {
    words(&[&"source", &how, &from, &stage.server(v6)])
}

fn routed(stage: &Stage, v6: bool, flag: &[&str]) -> Vec<String> {
    let (to, via) = (at(&stage.friend, v6), stage.server(v6).ip());
    let mut route = words(&[&"route", &to, &via]);
    route.extend(flag.iter().map(|flag| (*flag).to_owned()));
    route
}

fn framed(stage: &Stage, v6: bool, from: IpAddr, port: u16, flag: &[&str]) -> Result<Vec<String>> {
    let hardware = stage
        .server
        .host
        .hardware()?
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    let mut frame = words(&[
        &"frame",
        &SocketAddr::new(from, port),
        &stage.server(v6),
        &hardware,
    ]);
    frame.extend(flag.iter().map(|flag| (*flag).to_owned()));
    Ok(frame)
}

fn family(stage: &Stage, v6: bool, family: &str) -> Vec<String> {
    words(&[&"family", &family, &stage.server(v6)])
}

fn inside(stage: &Stage, v6: bool) -> Vec<String> {
    let to = SocketAddr::new(
        if v6 {
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])
        } else {
            [127, 0, 0, 1].into()
        },
        80,
    );
    let netns = stage.server.host.namespace_file();
    words(&[&"inside", &netns.display(), &to])
}

/// A connection that the client has open, from outside of it.
fn borrowed(stage: &Stage, v6: bool) -> Result<Vec<String>> {
    let descriptor = *stage.open.get(usize::from(v6)).context("an open connection")?;
    Ok(words(&[&"borrow", &stage.client.pid(), &descriptor]))
}

/// Whatever is tried, the server is called by somebody whom no rule lets reach it, unless the row says otherwise.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn ways() -> Vec<Way> {
    let way = Way::new;
    let decided_here = "the task that calls is asked, whatever calls on its behalf";
    let by_cgroup = "an identity is a cgroup, not an address";
    vec![
        way(
            "a ring connects",
            Other,
            |s, v6| Ok(ring(s, v6, &[])),
            Refused("connect: EPERM"),
            decided_here,
        )
        .rare(),
        way(
            "a worker of a ring connects",
            Other,
            |s, v6| Ok(ring(s, v6, &["--aside"])),
            Refused("connect: EPERM"),
            "its workers are in its cgroup",
        )
        .rare(),
        way(
            "the thread that polls a ring connects",
            Other,
            |s, v6| Ok(ring(s, v6, &["--polled"])),
            Refused("connect: EPERM"),
            "the thread is in the cgroup of who made the ring",
        )
        .rare(),
        way(
            "a ring sends a datagram",
            Other,
            |s, v6| Ok(ring(s, v6, &["--datagram"])),
            Refused("send: EPERM"),
            decided_here,
        )
        .rare(),
        way(
            "the thread that polls a ring sends a datagram",
            Other,
            |s, v6| Ok(ring(s, v6, &["--datagram", "--polled"])),
            Refused("send: EPERM"),
            "the thread is in the cgroup of who made the ring",
        )
        .rare(),
        way(
            "a ring that was inherited from who may",
            Client,
            |s, v6| Ok(inherited(s, v6, Other, &[])),
            Refused("connect: EPERM"),
            "the task that submits is asked",
        )
        .rare(),
        way(
            "a ring that was inherited from who may not, polled",
            Other,
            |s, v6| Ok(inherited(s, v6, Client, &["--polled"])),
            Refused("connect: EPERM"),
            "the thread is in the cgroup of who made the ring",
        )
        .rare(),
        way(
            "a ring that was inherited from who may, polled",
            Client,
            |s, v6| Ok(inherited(s, v6, Other, &["--polled"])),
            Limit(RINGS),
            "its thread acts as who made it, as long as that lives",
        )
        .rare(),
        way(
            "IP_FREEBIND to the address of who may",
            Other,
            |s, v6| Ok(source(s, v6, "freebind", at(&s.client, v6).ip())),
            Refused("connect: EPERM"),
            by_cgroup,
        ),
        way(
            "IP_TRANSPARENT with the address of who may",
            Other,
            |s, v6| Ok(source(s, v6, "transparent", at(&s.client, v6).ip())),
            Refused("connect: EPERM"),
            by_cgroup,
        ),
        way(
            "IP_PKTINFO with the address of who may",
            Other,
            |s, v6| Ok(source(s, v6, "packet-info", at(&s.client, v6).ip())),
            Refused("send: EPERM"),
            by_cgroup,
        ),
        way(
            "IP_PKTINFO of who is only observed, own address",
            Lax,
            |s, v6| Ok(source(s, v6, "packet-info", at(&s.lax, v6).ip())),
            Dropped,
            "the destination decides too",
        ),
        way(
            "IP_PKTINFO of who is only observed, address of who may",
            Lax,
            |s, v6| Ok(source(s, v6, "packet-info", at(&s.client, v6).ip())),
            Limit(DATAGRAMS),
            "a datagram bears no proof",
        ),
        way(
            "TCP_REPAIR",
            Other,
            |s, v6| Ok(words(&[&"repair", &s.server(v6)])),
            Refused("connect: EPERM"),
            "a repaired socket connects like any other",
        ),
        way(
            "a source route by way of the server",
            Other,
            |s, v6| Ok(routed(s, v6, &[])),
            Nowhere,
            "hosts take no source routes (`accept_source_route`, `seg6_enabled`)",
        ),
        way(
            "a source route by way of the server, a datagram",
            Other,
            |s, v6| Ok(routed(s, v6, &["--datagram"])),
            Nowhere,
            "hosts take no source routes (`accept_source_route`, `seg6_enabled`)",
        ),
        way(
            "a source route to who takes such, a datagram",
            Other,
            |s, v6| Ok(routed(s, v6, &["--datagram"])),
            Nowhere,
            "nothing of it reaches the server's program",
        )
        .routed(),
        way(
            "a source route to who takes such",
            Other,
            |s, v6| Ok(routed(s, v6, &[])),
            Nowhere,
            "nothing of it reaches the server's program",
        )
        .routed(),
        way(
            "pidfd_getfd of an ordinary user",
            Other,
            borrowed,
            Nowhere,
            "asks for the right to trace the process",
        )
        .by_user(NOBODY),
        way(
            "pidfd_getfd of who may trace the process",
            Other,
            borrowed,
            Limit(PASSED_ON),
            "a connection is a capability",
        ),
        way(
            "a frame of its own, own address",
            Other,
            |s, v6| framed(s, v6, at(&s.other, v6).ip(), 4001, &[]),
            Dropped,
            "the destination decides too",
        )
        .beyond(),
        way(
            "a frame of its own, address of who may",
            Other,
            |s, v6| framed(s, v6, at(&s.client, v6).ip(), 4002, &[]),
            Limit(FAMILIES),
            "no socket that is asked about",
        )
        .beyond(),
        way(
            "a frame of an ordinary user",
            Other,
            |s, v6| framed(s, v6, at(&s.client, v6).ip(), 4003, &[]),
            Nowhere,
            "asks for CAP_NET_RAW",
        )
        .by_user(NOBODY),
        way(
            "AF_XDP, own address",
            Other,
            |s, v6| framed(s, v6, at(&s.other, v6).ip(), 4004, &["--xdp"]),
            Dropped,
            "the destination decides too",
        )
        .beyond()
        .rare(),
        way(
            "AF_XDP, address of who may",
            Other,
            |s, v6| framed(s, v6, at(&s.client, v6).ip(), 4005, &["--xdp"]),
            Limit(FAMILIES),
            "no socket that is asked about",
        )
        .beyond()
        .rare(),
        way(
            "AF_XDP of an ordinary user",
            Other,
            |s, v6| framed(s, v6, at(&s.client, v6).ip(), 4006, &["--xdp"]),
            Nowhere,
            "asks for CAP_NET_RAW",
        )
        .by_user(NOBODY)
        .rare(),
        way(
            "SMC",
            Other,
            |s, v6| Ok(family(s, v6, "smc")),
            Refused("connect: EPERM"),
            "its handshake is TCP of the task's",
        )
        .beyond()
        .rare(),
        way(
            "VSOCK",
            Other,
            |s, v6| Ok(family(s, v6, "vsock")),
            Undecided(FAMILIES),
            "no hook of cgroups runs for it",
        )
        .beyond()
        .once()
        .rare(),
        way(
            "TIPC",
            Other,
            |s, v6| Ok(family(s, v6, "tipc")),
            Undecided(FAMILIES),
            "no hook of cgroups runs for it",
        )
        .beyond()
        .once()
        .rare(),
        way(
            "DCCP",
            Other,
            |s, v6| Ok(family(s, v6, "dccp")),
            Refused("socket: EPERM"),
            "no policy can name it",
        )
        .rare(),
        way(
            "SCTP",
            Other,
            |s, v6| Ok(family(s, v6, "sctp")),
            Refused("socket: EPERM"),
            "no policy can name it",
        )
        .rare(),
        way(
            "UDP-Lite",
            Other,
            |s, v6| Ok(family(s, v6, "udp-lite")),
            Refused("socket: EPERM"),
            "no policy can name it",
        )
        .rare(),
        way(
            "a user and a network namespace of its own",
            Other,
            |s, v6| Ok(words(&[&"apart", &s.server(v6)])),
            Refused("connect: EPERM"),
            by_cgroup,
        )
        .by_user(NOBODY),
        way(
            "the server's own namespace",
            Other,
            |s, v6| Ok(inside(s, v6)),
            Refused("connect: EPERM"),
            by_cgroup,
        ),
        way(
            "the server's own namespace, of an ordinary user",
            Other,
            |s, v6| Ok(inside(s, v6)),
            Nowhere,
            "asks for CAP_SYS_ADMIN",
        )
        .by_user(NOBODY),
    ]
}
