// SPDX-License-Identifier: Apache-2.0
//! Who shares a namespace with the host's processes must never be taken for the host, nor the host for him: the
//! destination knows a local source by the handshake that its kernel saw begin, and by nothing else.

use std::net::SocketAddr;

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use zt_tests::hooks::fill_connections;
use zt_tests::probe::{ConnectOptions, Flood, Handle, ListenOptions, Operation, TIMEOUT};
use zt_tests::trail::{RECORDED, party, says};
use zt_tests::{Agent, Party, Policy, Scene, TCP, eventually};

const PORT: u16 = 8000;

/// A server that enforces, a workload beside it that may not reach it and is only observed, and a process of the host.
/// What the source's end lets pass for this reason, the destination's end has to refuse under the right name.
struct Beside {
    scene: Scene,
    server: Party,
    lax: Party,
    host: Party,
    agent: Agent,
}

fn beside(label: &str) -> Result<Beside> {
    beside_with(label, "auto")
}

fn beside_with(label: &str, handshake: &str) -> Result<Beside> {
    let mut scene = Scene::new(label)?;
    let namespace = scene.host("node")?;
    let server = scene.workload_in("server", &namespace)?;
    let lax = scene.workload_in("lax", &namespace)?;
    scene.declare("lax", |workload| workload.mode("observe"))?;
    let host = scene.outsider_in("daemon", &namespace)?;
    // Names a workload, allows nothing between these two. `builtin/host` is on.
    let policy = Policy::new("beside").allow("server", "lax", TCP, "1");
    let agent = scene
        .agent(&policy)?
        .config("handshake", json!(handshake))
        .start()?;
    Ok(Beside {
        scene,
        server,
        lax,
        host,
        agent,
    })
}

impl Beside {
    fn serve(&mut self, options: ListenOptions) -> Result<Handle> {
        let at = SocketAddr::new(self.server.host.ipv4.into(), PORT);
        self.server.call(Operation::Serve { at, options })?.handle()
    }

    fn bytes(&mut self, socket: Handle) -> Result<Option<u64>> {
        Ok(self.server.call(Operation::ServeState { socket })?.bytes)
    }

    /// Nothing that the destination's end said names anybody but `lax`.
    fn never_the_host(&self) -> Result<()> {
        let records = self.agent.all_records("")?;
        let named: Vec<_> = records
            .iter()
            .filter(|record| party(&record["source"]) != self.lax.id)
            .collect();
        assert!(
            named.is_empty(),
            "{} of {}: {:?}",
            named.len(),
            records.len(),
            named.first()
        );
        Ok(())
    }
}

/// With TCP Fast Open, which is on where handshakes bear no identities, the destination's socket is there before the source has heard anything.
#[test]
fn fast_open_is_no_other_name() -> Result<()> {
    const COUNT: usize = 20;
    let mut world = beside_with("name-tfo", "off")?;
    world.server.host.sysctl("net/ipv4/tcp_fastopen", "519")?;
    let socket = world.serve(ListenOptions {
        fast_open: Some(64),
        ..ListenOptions::default()
    })?;
    let to = world.server.v4(PORT);
    for _ in 0..COUNT {
        let options = ConnectOptions {
            fast_open: Some("secret".into()),
            ..ConnectOptions::default()
        };
        if let Some(socket) = world.lax.connect_with(to, options)?.socket {
            let timeout = TIMEOUT;
            world.lax.call(Operation::WaitEnd { socket, timeout })?.ok()?;
        }
    }
    let id = world.server.id.clone();
    world.agent.records("", COUNT, |record| {
        record["observer"] == "destination" && says(record, &world.lax.id, &id, "DENY", "no_rule")
    })?;
    world.never_the_host()?;
    assert_eq!(world.bytes(socket)?, Some(0));
    Ok(())
}

/// A refused socket that was made by a SYN cookie is made anew by the next segment, and judged again.
#[test]
fn a_second_socket_of_one_syn_cookie_has_the_same_name() -> Result<()> {
    let mut world = beside("name-cookie")?;
    world.server.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let socket = world.serve(ListenOptions::default())?;
    for _ in 0..10 {
        assert_ne!(world.lax.talk(world.server.v4(PORT))?, "ok");
    }
    // One for each connection at the least: a cookie may make more than one socket.
    eventually("ten refusals by the destination", RECORDED, || {
        let records = world.agent.all_records("")?;
        Ok(records
            .iter()
            .filter(|record| record["observer"] == "destination")
            .count()
            >= 10)
    })?;
    world.never_the_host()?;
    assert_eq!(world.bytes(socket)?, Some(0));
    Ok(())
}

/// A source that resets its connection as soon as it has one may be gone before the destination's end has looked.
#[test]
fn an_early_reset_leaves_its_name() -> Result<()> {
    const TRIES: u64 = 5000;
    let mut world = beside("name-reset")?;
    // Packets of one connection are handled on another processor than the one that closes it.
    let queues = "/sys/class/net/lo/queues/rx-0/rps_cpus";
    let script = format!("mount -t sysfs sysfs /sys && echo 3 > {queues}");
    let status = world
        .server
        .host
        .command("unshare")
        .args(["-m", "sh", "-c", &script])
        .status()?;
    assert!(status.success(), "cannot steer the packets of lo");
    let socket = world.serve(ListenOptions::default())?;
    let flood = Flood::new(world.server.v4(PORT), TRIES);
    world.lax.call(Operation::ConnectMany(flood))?.ok()?;
    // Not every one gets as far as the destination.
    world.agent.records("", usize::try_from(TRIES)?, |record| {
        record["observer"] == "source"
    })?;
    world.never_the_host()?;
    assert_eq!(world.bytes(socket)?, Some(0));
    Ok(())
}

/// A SYN that has to be sent again comes from whom it came from before.
#[test]
fn a_repeated_syn_has_the_same_name() -> Result<()> {
    let mut world = beside("name-again")?;
    let at = world.server.v4(PORT);
    // One connection waits to be accepted and no more is let in: the handshake takes as many SYNs as it needs.
    let options = ListenOptions {
        backlog: 0,
        ..ListenOptions::default()
    };
    let listener = world
        .server
        .call(Operation::TcpListen { at, options })?
        .handle()?;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(world.host.connect(at)?.socket);
    }
    let options = ConnectOptions {
        timeout: Duration::from_secs(30),
        ..ConnectOptions::default()
    };
    world.lax.send(Operation::TcpConnect { to: at, options })?;
    eventually("the SYN to be sent again", TIMEOUT, || {
        let output = world
            .lax
            .host
            .command("ss")
            .args(["-tinH", "state", "syn-sent"])
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("retrans"))
    })?;
    let (socket, timeout) = (listener, TIMEOUT);
    for _ in 0..2 {
        world.server.call(Operation::Accept { socket, timeout })?;
    }
    world.lax.wait()?;
    let id = world.server.id.clone();
    world.agent.records("", 1, |record| {
        record["observer"] == "destination" && says(record, &world.lax.id, &id, "DENY", "no_rule")
    })?;
    Ok(())
}

/// A table that a workload has filled up makes nobody anonymous.
#[test]
fn a_full_table_of_connections_takes_no_ones_name() -> Result<()> {
    let mut world = beside("name-full")?;
    let socket = world.serve(ListenOptions::default())?;
    let full = fill_connections(&world.scene.sandbox().maps()?)?;
    let to = world.server.v4(PORT);
    assert_ne!(world.lax.talk(to)?, "ok");
    // Also from a socket that was bound, with which something is stored already.
    let from = ConnectOptions {
        bind: Some(world.server.v4(4000)),
        ..ConnectOptions::default()
    };
    if let Some(socket) = world.lax.connect_with(to, from)?.socket {
        let timeout = TIMEOUT;
        world.lax.call(Operation::WaitEnd { socket, timeout })?;
    }
    let id = world.server.id.clone();
    world.agent.records("", 2, |record| {
        record["observer"] == "destination" && says(record, &world.lax.id, &id, "DENY", "no_rule")
    })?;
    world.never_the_host()?;
    assert!(
        world.agent.counter("connections_full")? > 0,
        "{full} entries did not fill it"
    );
    assert_eq!(world.bytes(socket)?, Some(0));
    Ok(())
}

/// A SYN that left before there was a hook is noted nowhere. Whose it was is not known, and it was not the host for that.
#[test]
fn a_syn_older_than_the_hooks_is_not_the_hosts() -> Result<()> {
    let mut scene = Scene::new("name-older")?;
    let namespace = scene.host("node")?;
    let mut server = scene.workload_in("server", &namespace)?;
    let mut lax = scene.workload_in("lax", &namespace)?;
    scene.declare("lax", |workload| workload.mode("observe"))?;
    let mut host = scene.outsider_in("daemon", &namespace)?;
    let at = server.v4(PORT);
    let options = ListenOptions {
        backlog: 0,
        ..ListenOptions::default()
    };
    let socket = server.call(Operation::TcpListen { at, options })?.handle()?;
    // One waits to be accepted and no more is let in.
    host.connect(at)?.handle()?;
    let options = ConnectOptions {
        timeout: Duration::from_secs(60),
        ..ConnectOptions::default()
    };
    lax.send(Operation::TcpConnect { to: at, options })?;
    eventually("the SYN to be sent", TIMEOUT, || {
        let listed = lax
            .host
            .command("ss")
            .args(["-tnH", "state", "syn-sent"])
            .output()?;
        Ok(!listed.stdout.is_empty())
    })?;
    let policy = Policy::new("older").allow("server", "lax", TCP, "1");
    let agent = scene.agent(&policy)?.config("handshake", json!("off")).start()?;
    let timeout = TIMEOUT;
    server.call(Operation::Accept { socket, timeout })?.ok()?;
    lax.wait()?;
    agent.records("", 1, |record| {
        record["observer"] == "destination" && says(record, "unknown", &server.id, "DENY", "unknown_source")
    })?;
    assert!(agent.counter("unnoted")? > 0);
    Ok(())
}

/// Who has a port next speaks for himself: the host's process is not refused for who had it before.
#[test]
fn the_next_owner_of_a_port_is_not_taken_for_the_last() -> Result<()> {
    let mut world = beside("name-next")?;
    world.serve(ListenOptions::default())?;
    let to = world.server.v4(PORT);
    let from = ConnectOptions {
        bind: Some(world.server.v4(4000)),
        ..ConnectOptions::default()
    };
    for _ in 0..20 {
        if let Some(socket) = world.lax.connect_with(to, from.clone())?.socket {
            let timeout = TIMEOUT;
            world.lax.call(Operation::WaitEnd { socket, timeout })?;
            world.lax.close(socket)?;
        }
        let socket = world.host.connect_with(to, from.clone())?.handle()?;
        world.host.send_text(socket, "word")?.ok()?;
        assert_eq!(world.host.receive(socket)?.data.as_deref(), Some("word"));
        // A reset, so that the port is free at once.
        world.host.reset(socket)?;
    }
    world.agent.records("", 20, |record| {
        record["observer"] == "destination" && says(record, "host", &world.server.id, "ALLOW", "rule")
    })?;
    Ok(())
}
