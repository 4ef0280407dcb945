// SPDX-License-Identifier: Apache-2.0
//! Somebody else's programs at the hooks of sockets and binds, before ours and after it, above and below: each has its say, and
//! none takes away another's.

use anyhow::{Context as _, Result};
use serde_json::json;
use zt_tests::hooks::attached;
use zt_tests::other_program::{Asked, OtherProgram};
use zt_tests::pair::{any, pair, policy};
use zt_tests::probe::Operation;
use zt_tests::programs::Measuring;
use zt_tests::{Agent, Cgroup, Party, Scene};

const ASKED: [(Asked, &str); 3] = [
    (Asked::SockCreate, "cgroup_inet_sock_create"),
    (Asked::PostBind4, "cgroup_inet4_post_bind"),
    (Asked::PostBind6, "cgroup_inet6_post_bind"),
];

/// One of each kind on a cgroup.
fn others(cgroup: &Cgroup, allows: bool) -> Result<Vec<OtherProgram>> {
    ASKED
        .iter()
        .map(|(asked, _)| OtherProgram::answering(cgroup, *asked, allows))
        .collect()
}

fn raw(party: &mut Party) -> Result<String> {
    let (family, kind, protocol) = (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
    let made = party.call(Operation::Socket {
        family,
        kind,
        protocol,
    })?;
    Ok(made.outcome().to_owned())
}

/// Ours decides: what is raw is refused, whoever listens is known, a port that policy does not name is refused.
fn ours_decides(server: &mut Party, client: &mut Party, port: u16) -> Result<()> {
    assert_eq!(raw(client)?, "EPERM");
    let listener = server.serve(any(port))?.handle()?;
    for (to, outcome) in [
        (server.v4(80), "ok"),
        (server.v6(80), "ok"),
        (server.v4(port), "EPERM"),
        (server.v6(port), "EPERM"),
    ] {
        assert_eq!(client.talk(to)?, outcome, "{to}");
    }
    server.close(listener)?;
    Ok(())
}

/// Whose place a port is that a workload binds, to somebody in its namespace: what `post_bind` noted.
fn is_owned(scene: &Scene, agent: &Agent, server: &mut Party, port: u16) -> Result<()> {
    let mut neighbour = scene.start("neighbour", &scene.sandbox().cgroup("client")?, &server.host)?;
    for at in ["127.0.0.1", "::1"] {
        let at = std::net::SocketAddr::new(at.parse()?, port);
        let listener = server.serve(at)?.handle()?;
        assert_eq!(neighbour.tcp(at)?, "EPERM", "{at}");
        server.close(listener)?;
    }
    let to_it = format!("destination={}&port={port}", server.id);
    agent.records(&to_it, 2, |record| record["reason"] == json!("no_rule"))?;
    Ok(())
}

#[test]
fn programs_of_others_before_and_after_ours_have_their_say_and_ours_has_its() -> Result<()> {
    let (scene, mut server, mut client) = pair("beside-sockets")?;
    let managed = scene.sandbox().managed().clone();
    // Above ours, before ours on the same cgroup, and below.
    let above = Cgroup::at(managed.relative().parent().context("a cgroup above")?)?;
    let mut theirs = Vec::new();
    for cgroup in [&above, &managed, &client.cgroup, &server.cgroup] {
        theirs.extend(others(cgroup, true)?);
    }
    let agent = scene.agent(&policy())?.start()?;
    // And after it.
    theirs.extend(others(&managed, true)?);
    let at_root = attached(&managed)?;
    for (_, hook) in ASKED {
        let here = at_root.iter().filter(|attached| attached.hook == hook);
        assert_eq!(here.count(), 3, "{hook}: {at_root:?}");
    }
    let unnamed = at_root.iter().filter(|attached| attached.name.is_empty());
    let numbers = unnamed.map(|attached| Ok((attached.id.to_string(), u32::try_from(attached.id)?)));
    let measuring = Measuring::begin(numbers.collect::<Result<_>>()?)?;
    let ran = measuring.during(|| ours_decides(&mut server, &mut client, 83))?;
    // Both were asked, ours in between.
    assert_eq!(ran.len(), ASKED.len() * 2, "{ran:?}");
    assert!(
        ran.values().filter(|program| program.runs > 0).count() >= 4,
        "{ran:?}"
    );
    is_owned(&scene, &agent, &mut server, 84)?;

    // One that refuses is heard, and ours does not turn it into yes; when it has gone, all is as it was.
    let refusing = others(&managed, false)?;
    let made = client.connect(server.v4(80))?;
    assert_eq!(made.outcome(), "EPERM");
    assert_eq!(raw(&mut client)?, "EPERM");
    drop(refusing);
    ours_decides(&mut server, &mut client, 85)?;
    // A bind that somebody else refuses after ours has noted it leaves no owner behind.
    let refusing = OtherProgram::answering(&server.cgroup, Asked::PostBind6, false)?;
    assert_ne!(server.serve(any(86))?.outcome(), "ok");
    drop(refusing);
    drop(theirs);
    ours_decides(&mut server, &mut client, 86)?;
    is_owned(&scene, &agent, &mut server, 87)
}
