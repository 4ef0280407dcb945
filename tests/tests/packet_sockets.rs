// SPDX-License-Identifier: Apache-2.0
//! Packet sockets and sockets of other families that reach the network: decided on as raw sockets are where the kernel asks programs of
//! BPF LSM, and a limit that `docs/limits.md` tells of where it does not.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::hooks::{attached, pins};
use zt_tests::probe::Operation;
use zt_tests::trail::party;
use zt_tests::{Agent, Cgroup, Party, Policy, Scene, TCP, eventually};

const PROGRAM: &str = "zt_socket_create";
/// Bytes of a program's name that the kernel keeps.
const KEPT: usize = 15;
/// How long a pin that somebody has removed may be away, and the program of a root that was made anew.
const PUT_BACK: Duration = Duration::from_secs(30);
const AF_TIPC: i32 = 30;
const AF_RDS: i32 = 21;
const AF_SMC: i32 = 43;

/// Below IP or beside it: family, type.
const BEYOND: [(i32, i32); 9] = [
    (libc::AF_PACKET, libc::SOCK_RAW),
    (libc::AF_PACKET, libc::SOCK_DGRAM),
    (libc::AF_XDP, libc::SOCK_RAW),
    (libc::AF_VSOCK, libc::SOCK_STREAM),
    (AF_TIPC, libc::SOCK_STREAM),
    (AF_RDS, libc::SOCK_SEQPACKET),
    (AF_SMC, libc::SOCK_STREAM),
    (libc::AF_BLUETOOTH, libc::SOCK_RAW),
    (libc::AF_CAN, libc::SOCK_RAW),
];
/// Those of [`BEYOND`] that every kernel has. To make one of the others may load a module.
const EVERYWHERE: usize = 2;
/// Of no concern to policy, or of other hooks'.
const OTHERS: [(i32, i32); 6] = [
    (libc::AF_UNIX, libc::SOCK_STREAM),
    (libc::AF_NETLINK, libc::SOCK_RAW),
    (libc::AF_INET, libc::SOCK_STREAM),
    (libc::AF_INET, libc::SOCK_DGRAM),
    (libc::AF_INET6, libc::SOCK_STREAM),
    (libc::AF_INET6, libc::SOCK_DGRAM),
];

struct Cast {
    server: Party,
    /// Has no right to raw sockets, and enforces.
    strict: Party,
    /// Has none either, and is observed.
    lax: Party,
    trusted: Party,
    agent: Agent,
    /// Last, as what it is made of goes with it.
    scene: Scene,
}

impl Cast {
    fn new(label: &str) -> Result<Self> {
        let mut scene = Scene::new(label)?;
        let (mut server, strict) = (scene.workload("server")?, scene.workload("strict")?);
        let (lax, trusted) = (scene.workload("lax")?, scene.workload("trusted")?);
        scene.declare("lax", |workload| workload.mode("observe"))?;
        let policy = Policy::new("packets")
            .allow("strict", "server", TCP, "80")
            .raw_sockets("trusted");
        let agent = scene.agent(&policy)?.start()?;
        server
            .serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 80))?
            .local()?;
        Ok(Self {
            server,
            strict,
            lax,
            trusted,
            agent,
            scene,
        })
    }

    /// What everybody may, enforced upon or not.
    fn others_go_on(&mut self) -> Result<()> {
        for (family, kind) in OTHERS {
            for who in [&mut self.strict, &mut self.lax, &mut self.trusted] {
                assert_eq!(socket(who, family, kind)?, "ok", "{family} {kind}");
            }
        }
        assert_eq!(self.strict.talk(self.server.v4(80))?, "ok");
        assert_eq!(self.strict.talk(self.server.v6(80))?, "ok");
        Ok(())
    }

    /// Whether the kernel has the program at the managed root, and how many pins of its links there are.
    fn program(&self) -> Result<(bool, usize)> {
        let there = is_at(self.scene.sandbox().managed())?;
        let pinned = pins(&self.scene.sandbox().pins()?)?;
        let of_it = |pin: &&PathBuf| pin.display().to_string().contains(&format!("links/{PROGRAM}-"));
        Ok((there, pinned.iter().filter(of_it).count()))
    }

    /// What the agent's status says of it.
    fn told(&self) -> Result<Value> {
        let mut status = self.agent.get("/v1/status")?;
        Ok(status["packet_sockets"].take())
    }
}

/// Whether the kernel has the program at this very cgroup.
fn is_at(cgroup: &Cgroup) -> Result<bool> {
    let there = attached(cgroup)?;
    Ok(there.iter().any(|attached| attached.name == PROGRAM[..KEPT]))
}

/// What comes of making a socket: `ok`, or the name of the error.
fn socket(party: &mut Party, family: i32, kind: i32) -> Result<String> {
    let asked = Operation::Socket {
        family,
        kind,
        protocol: 0,
    };
    Ok(party.call(asked)?.outcome().to_owned())
}

#[test]
fn where_the_kernel_asks_about_packet_sockets_they_are_decided_on() -> Result<()> {
    let mut cast = Cast::new("packet-sockets")?;
    if !cast.agent.decides_packet_sockets()? {
        return is_the_limit_that_is_told_of(&mut cast);
    }
    assert_eq!(cast.program()?, (true, 1));
    for (family, kind) in BEYOND {
        // Also where the kernel knows no such family: the program is asked first.
        assert_eq!(
            socket(&mut cast.strict, family, kind)?,
            "EPERM",
            "{family} {kind}"
        );
    }
    for (family, kind) in &BEYOND[..EVERYWHERE] {
        for who in [&mut cast.lax, &mut cast.trusted] {
            assert_eq!(socket(who, *family, *kind)?, "ok", "{family} {kind}");
        }
    }
    for (id, decision, enforced, reason, count) in [
        (&cast.strict.id, "DENY", true, "raw_socket", BEYOND.len()),
        (&cast.lax.id, "DENY", false, "raw_socket", EVERYWHERE),
        (&cast.trusted.id, "ALLOW", true, "rule", EVERYWHERE),
    ] {
        let query = format!("source={id}&decision={decision}&enforced={enforced}");
        let records = cast.agent.records(&query, count, |record| {
            record["hook"] == "socket" && record["reason"] == reason
        })?;
        ensure!(
            records.iter().all(|record| party(&record["source"]) == id),
            "{records:?}"
        );
    }
    cast.others_go_on()
}

/// As it is without that hook: the sockets are made, and nobody records it.
fn is_the_limit_that_is_told_of(cast: &mut Cast) -> Result<()> {
    assert_eq!(cast.program()?, (false, 0));
    for (family, kind) in &BEYOND[..EVERYWHERE] {
        assert_eq!(socket(&mut cast.strict, *family, *kind)?, "ok", "{family} {kind}");
    }
    cast.others_go_on()?;
    let records = cast.agent.all_records("decision=DENY")?;
    ensure!(
        records.iter().all(|record| record["hook"] != "socket"),
        "{records:?}"
    );
    let limits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/limits.md");
    let limits = fs::read_to_string(limits)?;
    ensure!(
        limits
            .lines()
            .any(|line| line == "### Packet sockets, and other socket families"),
        "docs/limits.md does not tell of it"
    );
    Ok(())
}

/// It lives as the other hooks do, and where the kernel does not have it nothing is missing.
#[test]
fn what_decides_on_packet_sockets_outlives_the_agent_and_is_put_back_and_goes_with_the_rest() -> Result<()> {
    let mut cast = Cast::new("packet-life")?;
    let decided = cast.agent.decides_packet_sockets()?;
    let (there, gone) = ((decided, usize::from(decided)), (false, 0));
    let (family, kind) = BEYOND[0];
    let came = if decided { "EPERM" } else { "ok" };
    assert_eq!(socket(&mut cast.strict, family, kind)?, came);

    cast.agent.kill()?;
    assert_eq!(cast.program()?, there);
    assert_eq!(socket(&mut cast.strict, family, kind)?, came);
    cast.agent.restart()?;
    assert_eq!(cast.agent.decides_packet_sockets()?, decided);
    assert_eq!(cast.program()?, there);
    assert_eq!(socket(&mut cast.strict, family, kind)?, came);

    if decided {
        let links = pins(&cast.scene.sandbox().pins()?)?;
        let pin = links
            .iter()
            .find(|pin| pin.display().to_string().contains(PROGRAM));
        fs::remove_file(pin.context("the link is pinned")?)?;
        eventually(
            "the pin to be put back",
            PUT_BACK,
            || Ok(cast.program()? == there),
        )?;
    }

    cast.agent.terminate()?;
    let detached = cast.agent.command(&["detach", "--yes"]).output()?;
    assert!(detached.status.success(), "{detached:?}");
    assert_eq!(cast.program()?, gone);
    assert_eq!(socket(&mut cast.strict, family, kind)?, "ok");
    Ok(())
}

/// A root at which it cannot be attached takes it from no other root, and has it as soon as it is attached to anew.
#[test]
fn a_root_where_packet_sockets_cannot_be_decided_on_takes_it_from_no_other() -> Result<()> {
    let mut cast = Cast::new("packet-roots")?;
    if !cast.agent.decides_packet_sockets()? {
        return is_the_limit_that_is_told_of(&mut cast);
    }
    let sandbox = cast.scene.sandbox();
    let (managed, second) = (sandbox.managed().clone(), sandbox.outside().child("second")?);
    let links = pins(&sandbox.pins()?)?;
    let pin = links
        .iter()
        .find(|pin| pin.display().to_string().contains(PROGRAM));
    let pin = pin.context("the link is pinned")?;
    // Where its link would be pinned is something that is no link.
    let obstacle = pin.with_file_name(format!("{PROGRAM}-{}", second.id()?));
    fs::create_dir(&obstacle)?;
    let roots = json!([managed.relative(), second.relative()]);
    cast.agent.restart_with("managedCgroup", roots)?;
    let told = cast.told()?;
    let reason = told["reason"].as_str().unwrap_or_default();
    let place = second.path().display().to_string();
    assert!(told["decided"] == false && reason.contains(&place), "{told}");
    let (family, kind) = BEYOND[0];
    assert_eq!(socket(&mut cast.strict, family, kind)?, "EPERM");
    assert_eq!(cast.program()?, (true, 1));
    assert!(!is_at(&second)?);

    fs::remove_dir(&obstacle)?;
    second.remove()?;
    let second = Cgroup::create(second.relative())?;
    eventually("both roots to have it", PUT_BACK, || {
        Ok(is_at(&second)? && cast.told()?["decided"] == true)
    })?;
    assert_eq!(cast.program()?, (true, 2));
    assert_eq!(socket(&mut cast.strict, family, kind)?, "EPERM");
    Ok(())
}
