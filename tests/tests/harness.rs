// SPDX-License-Identifier: Apache-2.0
//! The harness itself, without any agent: workloads reach each other, and nothing is left behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use zt_tests::probe::{ConnectOptions, Flood, ListenOptions, Operation, Reply, TIMEOUT};
use zt_tests::{Cgroup, Host, Probe, Sandbox, sweep};

const SHORT: Duration = Duration::from_millis(200);

/// A server and a client, each with its own cgroup and namespace.
struct Pair {
    server: Probe,
    client: Probe,
    server_host: Host,
    client_host: Host,
    // Dropped last: it removes what the probes run in.
    sandbox: Sandbox,
}

fn pair(label: &str) -> Result<Pair> {
    let sandbox = Sandbox::new(label)?;
    let (server_host, client_host) = (sandbox.host("server")?, sandbox.host("client")?);
    let server = sandbox.probe(&sandbox.cgroup("server")?, Some(&server_host))?;
    let client = sandbox.probe(&sandbox.cgroup("client")?, Some(&client_host))?;
    Ok(Pair {
        server,
        client,
        server_host,
        client_host,
        sandbox,
    })
}

fn any(ip: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(ip.into(), 0)
}

#[test]
fn tcp_over_both_families() -> Result<()> {
    let mut pair = pair("tcp")?;
    for (address, source) in pair
        .server_host
        .addresses()
        .into_iter()
        .zip(pair.client_host.addresses())
    {
        let listener = pair.server.listen(any(address))?;
        let to = listener.local()?;
        let client = pair.client.connect(to)?.ok()?;
        assert_eq!(client.peer, Some(to));
        assert_eq!(client.local()?.ip(), source);
        let accepted = pair.server.accept(listener.handle()?)?.ok()?;
        assert_eq!(accepted.peer, client.local);

        pair.client.send_text(client.handle()?, "hello")?.ok()?;
        assert_eq!(
            pair.server.receive(accepted.handle()?)?.data.as_deref(),
            Some("hello")
        );
        pair.server.close(accepted.handle()?)?.ok()?;
        let wait = Operation::WaitEnd {
            socket: client.handle()?,
            timeout: TIMEOUT,
        };
        assert_eq!(pair.client.call(wait)?.data.as_deref(), Some("eof"));
    }
    Ok(())
}

#[test]
fn udp_over_both_families_and_back() -> Result<()> {
    let mut pair = pair("udp")?;
    for address in pair.server_host.addresses() {
        let server = pair.server.udp_bind(any(address))?;
        let send = Operation::UdpSendTo {
            socket: None,
            to: server.local()?,
            data: "question".into(),
        };
        let client = pair.client.call(send)?;
        let server = server.handle()?;
        let question = pair
            .server
            .call(Operation::UdpRecvFrom {
                socket: server,
                timeout: TIMEOUT,
            })?
            .ok()?;
        assert_eq!(question.data.as_deref(), Some("question"));
        let back = question.peer.unwrap();
        pair.server
            .call(Operation::UdpSendTo {
                socket: Some(server),
                to: back,
                data: "answer".into(),
            })?
            .ok()?;
        let answer = Operation::UdpRecvFrom {
            socket: client.handle()?,
            timeout: TIMEOUT,
        };
        assert_eq!(pair.client.call(answer)?.data.as_deref(), Some("answer"));
    }
    Ok(())
}

#[test]
fn failures_have_their_kernel_names() -> Result<()> {
    let mut pair = pair("names")?;
    let closed = SocketAddr::new(pair.server_host.ipv4.into(), 9);
    assert_eq!(pair.client.connect(closed)?.outcome(), "ECONNREFUSED");
    let nowhere = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 9);
    assert_eq!(pair.client.connect(nowhere)?.outcome(), "ENETUNREACH");
    let silent = SocketAddr::new(Ipv4Addr::new(10, 99, 200, 200).into(), 9);
    let options = ConnectOptions {
        timeout: SHORT,
        ..ConnectOptions::default()
    };
    assert_eq!(pair.client.connect_with(silent, options)?.outcome(), "ETIMEDOUT");
    let listener = pair.server.listen(any(Ipv6Addr::UNSPECIFIED))?.handle()?;
    let none = pair.server.call(Operation::Accept {
        socket: listener,
        timeout: SHORT,
    })?;
    assert_eq!(none.outcome(), "EAGAIN");
    assert_eq!(pair.server.close(999)?.outcome(), "EBADF");
    Ok(())
}

#[test]
fn a_v4_mapped_address_reaches_an_ipv4_listener() -> Result<()> {
    let mut pair = pair("mapped")?;
    let port = pair.server.serve(any(Ipv4Addr::UNSPECIFIED))?.local()?.port();
    let mapped = pair.server_host.ipv4.to_ipv6_mapped();
    assert_eq!(
        pair.client
            .connect(SocketAddr::new(mapped.into(), port))?
            .outcome(),
        "ok"
    );
    Ok(())
}

#[test]
fn sockets_of_every_kind_can_be_asked_for() -> Result<()> {
    let mut pair = pair("kinds")?;
    let mut socket = |family, kind, protocol| {
        pair.client.call(Operation::Socket {
            family,
            kind,
            protocol,
        })
    };
    assert_eq!(
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?.outcome(),
        "ok"
    );
    assert_eq!(socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?.outcome(), "ok");
    assert_eq!(
        socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_UDP)?.outcome(),
        "EPROTONOSUPPORT"
    );

    // TCP Fast Open needs the namespace's permission; without it, the data follows the handshake.
    let options = ListenOptions {
        fast_open: Some(16),
        ..ListenOptions::default()
    };
    let at = any(pair.server_host.ipv4);
    let to = pair.server.call(Operation::Serve { at, options })?.local()?;
    let options = ConnectOptions {
        fast_open: Some("early".into()),
        ..ConnectOptions::default()
    };
    let early = pair.client.connect_with(to, options)?.handle()?;
    assert_eq!(pair.client.receive(early)?.data.as_deref(), Some("early"));

    let plain = pair.client.connect(to)?.handle()?;
    pair.client.send_text(plain, "pipe")?.ok()?;
    let splice = Operation::SpliceRead {
        socket: plain,
        max: 64,
        timeout: TIMEOUT,
    };
    assert_eq!(pair.client.call(splice)?.data.as_deref(), Some("pipe"));
    Ok(())
}

#[test]
fn a_socket_can_be_passed_to_another_workload() -> Result<()> {
    let mut pair = pair("pass")?;
    let to = pair.server.serve(any(pair.server_host.ipv4))?.local()?;
    let mut receiver = pair
        .sandbox
        .probe(&pair.sandbox.cgroup("receiver")?, Some(&pair.client_host))?;
    let path = pair.sandbox.directory().join("mailbox");
    let mailbox = receiver
        .call(Operation::FdMailbox { path: path.clone() })?
        .handle()?;
    let socket = pair.client.connect(to)?.handle()?;
    pair.client.call(Operation::SendFd { path, socket })?.ok()?;
    pair.client.close(socket)?.ok()?;
    let passed = receiver
        .call(Operation::RecvFd {
            socket: mailbox,
            timeout: TIMEOUT,
        })?
        .handle()?;
    receiver.send_text(passed, "passed")?.ok()?;
    assert_eq!(receiver.receive(passed)?.data.as_deref(), Some("passed"));
    Ok(())
}

#[test]
fn probes_are_where_they_were_put() -> Result<()> {
    let pair = pair("place")?;
    let (cgroup, other) = (
        pair.sandbox.cgroup("client")?,
        pair.sandbox.cgroup("other/nested")?,
    );
    let mut client = pair.client;
    assert_eq!(cgroup.processes()?, [client.pid()]);
    let child = client
        .call(Operation::Spawn {
            cgroup: Some(other.path().to_owned()),
        })?
        .handle()?;
    assert_eq!(other.processes()?.len(), 1);
    let hello = Operation::Child {
        socket: child,
        operation: Box::new(Operation::Hello),
    };
    assert_eq!(client.call(hello)?.outcome(), "ok");
    client.move_to(&other)?.ok()?;
    assert_eq!(other.processes()?.len(), 2);
    assert_ne!(cgroup.id()?, other.id()?);
    let namespace = fs::read_link(format!("/proc/{}/ns/net", client.pid()))?;
    assert_ne!(namespace, fs::read_link("/proc/self/ns/net")?);
    Ok(())
}

#[test]
fn loops_count_every_attempt() -> Result<()> {
    let mut pair = pair("loops")?;
    let server = pair.server.serve(any(pair.server_host.ipv6))?;
    let closed = SocketAddr::new(pair.server_host.ipv6.into(), 9);
    let mut flood = Flood::new(server.local()?, 400);
    flood.to.push(closed);
    flood.echo = true;
    let reply = pair.client.call(Operation::ConnectMany(flood))?.ok()?;
    let [open, refused] = &reply.outcomes[..] else {
        panic!("two destinations: {reply:?}")
    };
    assert_eq!((open.count("ok"), refused.count("ECONNREFUSED")), (200, 200));
    assert_eq!((open.changes.len(), refused.changes.len()), (1, 1));
    assert!(open.latency_ns.is_sorted() && open.latency_ns[0] > 0);

    let datagrams = pair.server.udp_bind(any(pair.server_host.ipv4))?.local()?;
    let sent = pair
        .client
        .call(Operation::SendMany(Flood::new(datagrams, 50)))?
        .ok()?;
    assert_eq!(sent.outcomes[0].count("ok"), 50);
    Ok(())
}

#[test]
fn a_group_notices_the_end_of_its_connections() -> Result<()> {
    let mut pair = pair("group")?;
    let server = pair.server.serve(any(pair.server_host.ipv4))?;
    let open = Operation::OpenMany {
        to: server.local()?,
        count: 300,
        options: ConnectOptions::default(),
    };
    let group: Reply = pair.client.call(open)?.ok()?;
    assert_eq!(group.open, Some(300));
    let wait = |timeout| -> Result<_> {
        Ok(Operation::WaitGroupEnd {
            socket: group.handle()?,
            count: 300,
            timeout,
        })
    };
    assert_eq!(pair.client.call(wait(SHORT)?)?.count, Some(0));
    pair.server.close(server.handle()?)?.ok()?;
    assert_eq!(pair.client.call(wait(TIMEOUT)?)?.count, Some(300));
    Ok(())
}

#[test]
fn a_sandbox_leaves_nothing_behind() -> Result<()> {
    let pair = pair("clean")?;
    let name = pair.sandbox.name().to_owned();
    let (cgroup, namespace) = (pair.sandbox.managed().clone(), pair.client_host.namespace_file());
    let directory = pair.sandbox.directory().to_owned();
    let process = format!("/proc/{}", pair.client.pid());
    assert!(cgroup.path().exists() && namespace.exists() && directory.exists());
    drop(pair.sandbox);
    for path in [cgroup.path().parent().unwrap(), &namespace, &directory] {
        assert!(!path.exists(), "{} is still there after {name}", path.display());
    }
    // Killed, though its handle still lives.
    assert!(fs::read_to_string(format!("{process}/stat"))?.contains(" Z "));
    Ok(())
}

#[test]
fn a_dead_tests_leftovers_are_swept_up() -> Result<()> {
    let _root = Sandbox::new("sweeper")?;
    let mut gone = Command::new("true").spawn()?;
    let dead = format!("{}{}-0-dead", sweep::PREFIX, gone.id());
    gone.wait()?;
    let cgroup = Cgroup::create(format!("{dead}/managed/nested"))?;
    let mut process = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn()?;
    cgroup.add(process.id())?;
    let directory = std::env::temp_dir().join(&dead);
    fs::create_dir_all(&directory)?;
    let namespace = format!("{dead}-host");
    assert!(
        Command::new("ip")
            .args(["netns", "add", &namespace])
            .status()?
            .success()
    );

    sweep::sweep()?;
    assert!(!cgroup.path().exists() && !directory.exists());
    assert!(!Path::new("/run/netns").join(namespace).exists());
    assert!(!process.wait()?.success());
    Ok(())
}

#[test]
fn fifty_hosts_reach_one() -> Result<()> {
    let sandbox = Sandbox::new("fifty")?;
    let cgroup = sandbox.cgroup("all")?;
    let host = sandbox.host("server")?;
    let mut server = sandbox.probe(&cgroup, Some(&host))?;
    let at = server.serve(any(host.ipv4))?;
    let mut clients = Vec::new();
    for number in 0..50 {
        let host = sandbox.host(&number.to_string())?;
        clients.push(sandbox.probe(&cgroup, Some(&host))?);
    }
    for client in &mut clients {
        let options = ConnectOptions::default();
        client.send(Operation::OpenMany {
            to: at.local()?,
            count: 200,
            options,
        })?;
    }
    for client in &mut clients {
        assert_eq!(client.wait()?.open, Some(200));
    }
    let state = Operation::ServeState { socket: at.handle()? };
    zt_tests::eventually("10,000 connections", Duration::from_secs(10), || {
        Ok(server.call(state.clone())?.open == Some(10_000))
    })
}
