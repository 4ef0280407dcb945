// SPDX-License-Identifier: Apache-2.0
//! The destination's decision: a managed workload refuses what policy refuses, although nobody manages the source.
//! Not one byte of it arrives.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use zt_tests::probe::{ConnectOptions, Flood, Handle, ListenOptions, Operation, TIMEOUT};
use zt_tests::trail::{RECORDED, says};
use zt_tests::{Agent, Party, Policy, Scene, TCP, crossing, eventually};

/// Long enough for whatever was going to arrive.
const SOON: Duration = Duration::from_millis(300);

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// A server that nobody may reach, and a stranger who tries.
fn two(label: &str) -> Result<(Scene, Party, Party, Agent)> {
    two_with(label, "auto")
}

fn two_with(label: &str, handshake: &str) -> Result<(Scene, Party, Party, Agent)> {
    let mut scene = Scene::new(label)?;
    let server = scene.workload("server")?;
    let stranger = scene.outsider("stranger")?;
    let policy = Policy::new("inbound").allow("world", "server", TCP, "443");
    let agent = scene
        .agent(&policy)?
        .config("handshake", json!(handshake))
        .start()?;
    Ok((scene, server, stranger, agent))
}

/// Nothing that came over a connection can be read, in whatever way, from the socket that a listener hands out. Whether there was a
/// socket to read from.
fn nothing_arrives(server: &mut Party, listener: Handle, how: &str) -> Result<bool> {
    let accepted = server.call(Operation::Accept {
        socket: listener,
        timeout: SOON,
    })?;
    // The connection may be gone before it is accepted.
    let Some(socket) = accepted.socket else {
        return Ok(false);
    };
    let (max, timeout) = (64, SOON);
    let reply = server.call(match how {
        "recv" => Operation::Recv { socket, max, timeout },
        "peek" => Operation::Peek { socket, max, timeout },
        _ => Operation::SpliceRead { socket, max, timeout },
    })?;
    ensure!(
        reply.data.as_deref().unwrap_or_default().is_empty(),
        "{how} gave {reply:?}"
    );
    Ok(true)
}

/// Waits until a namespace has no socket left that is connected to `remote`.
fn destroyed(party: &Party, remote: IpAddr) -> Result<()> {
    eventually("the refused socket to be destroyed", TIMEOUT, || {
        let output = party
            .host
            .command("ss")
            .args(["-tanH", "state", "connected"])
            .output()?;
        ensure!(
            output.status.success(),
            "ss: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(!text.contains(&remote.to_string()))
    })
}

#[test]
fn not_one_byte_of_a_stranger_arrives() -> Result<()> {
    /// A socket that the agent destroys before it is accepted says nothing of what can be read from one.
    const TRIES: usize = 50;
    let (_scene, mut server, mut stranger, agent) = two("bytes")?;
    let mut count = 0;
    for (port, how) in (8000..).zip(["recv", "peek", "splice"]) {
        for to in [server.v4(port), server.v6(port)] {
            let listener = server.listen(SocketAddr::new(to.ip(), port))?.handle()?;
            let mut attempt = || -> Result<bool> {
                let connected = stranger.connect(to)?;
                let sent = stranger.say(&connected, "secret")?;
                let was_read = nothing_arrives(&mut server, listener, how)?;
                stranger.was_reset(&connected, sent.as_ref())?;
                count += 1;
                Ok(was_read)
            };
            let mut tries = 1;
            while !attempt()? {
                ensure!(
                    tries < TRIES,
                    "{how} at {to}: nothing to read from in {TRIES} connections"
                );
                tries += 1;
            }
        }
    }
    destroyed(&server, stranger.host.ipv4.into())?;
    destroyed(&server, stranger.host.ipv6.into())?;
    let records = agent.records("", count, |_| true)?;
    for record in records {
        assert!(says(&record, "world", &server.id, "DENY", "no_rule"), "{record}");
        assert_eq!(record["hook"], "established");
        assert_eq!(record["observer"], "destination");
        assert_eq!(record["enforced"], true);
    }
    for fence in ["fence_hash_failed", "fence_bind_failed", "unfenced"] {
        assert_eq!(agent.counter(fence)?, 0, "{fence}");
    }
    Ok(())
}

#[test]
fn a_stranger_that_only_listens_is_reset_too() -> Result<()> {
    let (_scene, mut server, mut stranger, _agent) = two("idle")?;
    server.serve(any(80))?.local()?;
    for to in [server.v4(80), server.v6(80)] {
        let connected = stranger.connect(to)?;
        // It says nothing, like the client of a server that speaks first.
        stranger.was_reset(&connected, None)?;
    }
    Ok(())
}

#[test]
fn what_policy_allows_of_the_world_arrives() -> Result<()> {
    let (_scene, mut server, mut stranger, agent) = two("admitted")?;
    server.serve(any(443))?.local()?;
    for to in server.everywhere(443) {
        assert_eq!(stranger.talk(to)?, "ok", "{to}");
    }
    agent.records("decision=ALLOW", 3, |record| {
        says(record, "world", &server.id, "ALLOW", "rule") && record["observer"] == "destination"
    })?;
    Ok(())
}

#[test]
fn of_many_at_once_each_is_refused_and_recorded_once() -> Result<()> {
    const EACH: u64 = 250;
    let (scene, mut server, stranger, agent) = two("many")?;
    let state = Operation::ServeState {
        socket: server.serve(any(80))?.handle()?,
    };
    let mut strangers = vec![stranger];
    for name in ["second", "third"] {
        strangers.push(scene.outsider(name)?);
    }
    for (number, stranger) in strangers.iter_mut().enumerate() {
        let to = server.everywhere(80)[number];
        let flood = Flood {
            echo: true,
            ..Flood::new(to, EACH)
        };
        stranger.send(Operation::ConnectMany(flood))?;
    }
    for stranger in &mut strangers {
        let reply = stranger.wait()?.ok()?;
        let outcomes = &reply.outcomes[0];
        assert_eq!(outcomes.count("ok"), 0, "{outcomes:?}");
        assert_eq!(outcomes.count("ETIMEDOUT"), 0, "{outcomes:?}");
    }
    let total = EACH * 3;
    let records = agent.records("decision=DENY", usize::try_from(total)?, |_| true)?;
    assert!(
        records
            .iter()
            .all(|record| says(record, "world", &server.id, "DENY", "no_rule"))
    );
    assert_eq!(agent.counter("denied_enforced")?, total);
    assert_eq!(server.call(state)?.bytes, Some(0));
    assert_eq!(agent.counter("unfenced")?, 0);
    Ok(())
}

#[test]
fn a_sender_that_was_blocked_in_its_handshake_gets_nothing_through() -> Result<()> {
    let (_scene, mut server, mut stranger, agent) = two("blocked")?;
    let socket = server.serve(any(80))?.handle()?;
    // The addresses are resolved before the cut, so that it is the SYN that waits.
    stranger.talk(server.v4(80))?;
    server.host.cut()?;
    stranger.send(Operation::SendWhileConnecting {
        to: server.v4(80),
        data: "secret".repeat(100),
        timeout: Duration::from_secs(10),
    })?;
    server.host.mend()?;
    // What it wrote leaves with the last packet of the handshake, before anyone can tell it to stop.
    stranger.wait()?;
    agent.records("decision=DENY", 2, |_| true)?;
    destroyed(&server, stranger.host.ipv4.into())?;
    let state = server.call(Operation::ServeState { socket })?;
    assert_eq!(state.bytes, Some(0));
    Ok(())
}

/// TCP Fast Open carries data in the SYN, if the namespace of the server offers it and handshakes bear no identities.
#[test]
fn fast_open_carries_nothing_in() -> Result<()> {
    const COUNT: usize = 20;
    /// A client, a server, and both without a cookie: the first SYN carries data already.
    const ALWAYS: &str = "519";
    let (_scene, mut server, mut stranger, agent) = two_with("fast-open", "off")?;
    for host in [&server.host, &stranger.host] {
        host.sysctl("net/ipv4/tcp_fastopen", ALWAYS)?;
    }
    let options = ListenOptions {
        fast_open: Some(16),
        ..ListenOptions::default()
    };
    let at = any(80);
    let socket = server.call(Operation::Serve { at, options })?.handle()?;
    for number in 0..COUNT {
        let options = ConnectOptions {
            fast_open: Some("secret".into()),
            ..ConnectOptions::default()
        };
        let to = if number % 2 == 0 {
            server.v4(80)
        } else {
            server.v6(80)
        };
        let early = stranger.connect_with(to, options)?;
        if let Some(socket) = early.socket {
            let timeout = TIMEOUT;
            let end = stranger.call(Operation::WaitEnd { socket, timeout })?;
            assert_eq!(end.data.as_deref(), Some("ECONNRESET"));
        }
    }
    agent.records("decision=DENY", COUNT, |_| true)?;
    // Now and then one falls back to an ordinary handshake.
    let counters = server
        .host
        .command("nstat")
        .args(["-asz", "TcpExtTCPFastOpenPassive"])
        .output()
        .context("cannot run `nstat`: run `apt-get install iproute2`")?;
    let counters = String::from_utf8_lossy(&counters.stdout).into_owned();
    let in_a_syn = counters
        .split_whitespace()
        .find_map(|word| word.parse::<usize>().ok());
    assert!(in_a_syn.is_some_and(|count| count > COUNT / 2), "{counters}");
    let state = server.call(Operation::ServeState { socket })?;
    assert_eq!(state.bytes, Some(0));
    Ok(())
}

/// Under a flood the kernel answers SYNs with cookies and makes the socket of the last packet alone. A segment that
/// follows meets no socket, because the refused one is fenced off, and its cookie still holds: it makes one more, which
/// is refused and recorded in its turn. So there may be more records than connections, and still not a byte arrives.
#[test]
fn a_connection_by_syn_cookie_is_judged_like_any_other() -> Result<()> {
    let (_scene, mut server, mut stranger, agent) = two("cookies")?;
    // Always, not only when the queue is full.
    server.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let refused = server.serve(any(80))?.handle()?;
    server.serve(any(443))?.local()?;
    for port in [80, 443] {
        for to in [server.v4(port), server.v6(port)] {
            let wanted = if port == 443 { "ok" } else { "ECONNRESET" };
            assert_eq!(stranger.talk(to)?, wanted, "{to}");
        }
    }
    eventually("a record of each refused connection", RECORDED, || {
        let records = agent.all_records("decision=DENY")?;
        let mut addresses: Vec<_> = records
            .iter()
            .map(|record| &record["source"]["address"])
            .collect();
        addresses.dedup();
        Ok(addresses.len() == 2)
    })?;
    agent.records("decision=ALLOW", 2, |_| true)?;
    let state = server.call(Operation::ServeState { socket: refused })?;
    assert_eq!(state.bytes, Some(0));
    Ok(())
}

/// Two sockets that open toward each other both complete as if they had been called: each was decided in `connect`,
/// and is not a connection from outside.
#[test]
fn a_simultaneous_open_is_the_sources_decision() -> Result<()> {
    let mut scene = Scene::new("crossing")?;
    let mut client = scene.workload("client")?;
    let mut stranger = scene.outsider("stranger")?;
    let policy = Policy::new("crossing").allow("client", "world", TCP, "7001");
    let agent = scene.agent(&policy)?.start()?;
    for port in [7001_u16, 7002] {
        // Addresses are resolved first; nobody listens there.
        client.tcp(stranger.v4(7001))?;
        let (here, there) = (client.v4(7000 + port), stranger.v4(port));
        crossing::begin(&mut client, here, &mut stranger, there)?;
        if port == 7002 {
            // The client was refused at once: what the stranger's SYN meets is no listener and no open socket.
            client.host.mend()?;
            assert_eq!(client.wait()?.outcome(), "EPERM");
            assert_eq!(stranger.wait()?.outcome(), "ECONNREFUSED");
            continue;
        }
        let [ours, theirs] = crossing::meet(&mut client, &mut stranger)?;
        client.send_text(ours, "over")?.ok()?;
        assert_eq!(stranger.receive(theirs)?.data.as_deref(), Some("over"));
        stranger.send_text(theirs, "back")?.ok()?;
        assert_eq!(client.receive(ours)?.data.as_deref(), Some("back"));
    }
    let records = agent.records("", 4, |_| true)?;
    assert!(
        records.iter().all(|record| record["hook"] == "connect"),
        "{records:?}"
    );
    Ok(())
}
