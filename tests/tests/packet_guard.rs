// SPDX-License-Identifier: Apache-2.0
//! `packetGuard`: what policy no longer allows carries nothing more, whether anybody destroys it or not; what it allows goes on, and
//! where nobody asks for the guard there is none.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_common::counter::Counter;
use zt_tests::agent_files::Workload;
use zt_tests::hooks::{attached, counted, pins, revoke};
use zt_tests::pair::{any, lives};
use zt_tests::probe::{Handle, Operation, TIMEOUT};
use zt_tests::programs::{Measuring, held_by};
use zt_tests::{Agent, Party, Policy, Scene, TCP, eventually, spiffe};

/// What TCP has kept back is sent again after pauses that double.
const PATIENCE: Duration = Duration::from_secs(60);
const GUARD: [&str; 2] = ["zt_packet_egress", "zt_packet_ingress"];
/// Bytes of a program's name that the kernel keeps.
const KEPT: usize = 15;

/// Client and neighbour, which is in the server's namespace, may reach the server at these ports, and so may the world.
fn allowed_at(ports: &str) -> Policy {
    Policy::new("guarded")
        .allow("client", "server", TCP, ports)
        .allow("neighbour", "server", TCP, ports)
        .allow("world", "server", TCP, ports)
}

/// Two echo servers of `server`, and who calls them. What is sent to port 80 is revoked later.
struct Cast {
    server: Party,
    client: Party,
    neighbour: Party,
    stranger: Party,
    revoked: Handle,
    /// Last, as what it is made of goes with it.
    scene: Scene,
}

impl Cast {
    fn new(label: &str) -> Result<Self> {
        let mut scene = Scene::new(label)?;
        let (server, client) = (scene.workload("server")?, scene.workload("client")?);
        let neighbour = scene.workload_in("neighbour", &server.host)?;
        let stranger = scene.outsider("stranger")?;
        Ok(Self {
            scene,
            server,
            client,
            neighbour,
            stranger,
            revoked: Handle::default(),
        })
    }

    fn agent(&self, mode: &str) -> Result<Agent> {
        let agent = self.scene.agent(&allowed_at("80 81"))?.mode(mode);
        agent.config("packetGuard", json!(true)).start()
    }

    fn serve(&mut self) -> Result<()> {
        self.revoked = self.server.serve(any(80))?.handle()?;
        self.server.serve(any(81))?.local()?;
        Ok(())
    }

    fn maps(&self) -> Result<PathBuf> {
        self.scene.sandbox().maps()
    }

    /// Bytes that the server has received at the port that is revoked.
    fn received(&mut self) -> Result<u64> {
        let socket = self.revoked;
        let state = self.server.call(Operation::ServeState { socket })?;
        state.bytes.context("the server counts")
    }

    /// Connections to a port, each of which has carried a word: the client's, over both families and the mapped form, the
    /// neighbour's over loopback, and the stranger's.
    fn open(&mut self, port: u16) -> Result<Open> {
        let to = self.server.everywhere(port);
        let client = to.map(|to| self.client.connect(to)?.handle());
        let client = client.into_iter().collect::<Result<Vec<_>>>()?;
        let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let neighbour = self.neighbour.connect(loopback)?.handle()?;
        let stranger = self.stranger.connect(self.server.v4(port))?.handle()?;
        let open = Open {
            client,
            neighbour,
            stranger,
        };
        self.all_live(&open)?;
        Ok(open)
    }

    fn all_live(&mut self, open: &Open) -> Result<()> {
        for socket in &open.client {
            ensure!(lives(&mut self.client, *socket)?, "{socket:?} of the client");
        }
        ensure!(lives(&mut self.neighbour, open.neighbour)?, "the neighbour's");
        ensure!(lives(&mut self.stranger, open.stranger)?, "the stranger's");
        Ok(())
    }

    /// Says a word that must not arrive on each of them.
    fn say_in_vain(&mut self, revoked: &Open, still: &Open) -> Result<()> {
        let before = (self.received()?, counted(&self.maps()?, Counter::PacketsRefused)?);
        for socket in &revoked.client {
            self.client.send_text(*socket, "secret")?.ok()?;
        }
        self.neighbour.send_text(revoked.neighbour, "secret")?.ok()?;
        self.stranger.send_text(revoked.stranger, "secret")?.ok()?;
        // Those that are allowed come later, and are answered by the same process.
        self.all_live(still)?;
        assert_eq!(self.received()?, before.0);
        let dropped = counted(&self.maps()?, Counter::PacketsRefused)? - before.1;
        assert!(dropped >= 5, "{dropped} packets were dropped");
        Ok(())
    }

    /// What was said in vain arrives.
    fn hear(&mut self, open: &Open) -> Result<()> {
        for socket in &open.client {
            heard(&mut self.client, *socket)?;
        }
        heard(&mut self.neighbour, open.neighbour)?;
        heard(&mut self.stranger, open.stranger)
    }
}

/// See [`Cast::open`].
struct Open {
    client: Vec<Handle>,
    neighbour: Handle,
    stranger: Handle,
}

fn heard(party: &mut Party, socket: Handle) -> Result<()> {
    eventually("what was kept back to be answered", PATIENCE, || {
        Ok(party.receive(socket)?.data.as_deref() == Some("secret"))
    })
}

#[test]
fn what_is_revoked_while_nobody_destroys_it_carries_nothing_more() -> Result<()> {
    let mut cast = Cast::new("packet-guard")?;
    let mut agent = cast.agent("enforce")?;
    cast.serve()?;
    let (revoked, still) = (cast.open(80)?, cast.open(81)?);
    agent.kill()?;
    cast.all_live(&revoked)?;
    assert_eq!(counted(&cast.maps()?, Counter::PacketsRefused)?, 0);

    assert!(revoke(&cast.maps()?, &[80])? >= 3);
    cast.say_in_vain(&revoked, &still)?;

    // With the agent the policy comes back that allows them. It destroys nothing, and records each refusal once for its socket.
    agent.restart()?;
    cast.hear(&revoked)?;
    cast.all_live(&revoked)?;
    cast.all_live(&still)?;
    let told = |record: &Value, observer: &str| {
        record["hook"] == "packet"
            && record["observer"] == observer
            && record["destination"]["port"] == 80
            && record["reason"] == "revoked"
            && record["enforced"] == true
    };
    // Three of the client and one of the neighbour at their own end.
    agent.records("decision=DENY", 4, |record| told(record, "source"))?;
    agent.records("decision=DENY", 1, |record| {
        told(record, "destination") && record["source"]["entity"] == "world"
    })?;
    assert!(agent.counter("packets_refused")? >= 5);
    Ok(())
}

/// Fails where the guard drops what an abort sends: who is not managed, and only reads, would wait for ever.
#[test]
fn the_reset_of_what_the_agent_destroys_arrives() -> Result<()> {
    let mut cast = Cast::new("packet-reset")?;
    let agent = cast.agent("enforce")?;
    cast.serve()?;
    let (revoked, still) = (cast.open(80)?, cast.open(81)?);
    let over_ipv6 = cast.stranger.connect(cast.server.v6(80))?.handle()?;
    assert!(lives(&mut cast.stranger, over_ipv6)?);
    agent.change_policy(&allowed_at("81").text())?;
    for socket in [revoked.stranger, over_ipv6] {
        assert_eq!(cast.stranger.end(socket, TIMEOUT)?, "ECONNRESET");
    }
    for socket in revoked.client {
        cast.client.dies(socket)?;
    }
    cast.neighbour.dies(revoked.neighbour)?;
    cast.all_live(&still)
}

/// The sweep looks for the workload around the cgroup that a connection is filed under, and so does the guard.
#[test]
fn what_began_before_its_pod_was_declared_is_the_pods() -> Result<()> {
    let mut scene = Scene::new("packet-late")?;
    let mut stranger = scene.outsider("stranger")?;
    let pod = scene.sandbox().cgroup("late")?;
    let (leaf, host) = (pod.child("container")?, scene.host("late")?);
    let mut late = scene.start("late", &leaf, &host)?;
    let policy = Policy::new("guarded").allow("late", "world", TCP, "90");
    let agent = scene.agent(&policy)?.config("packetGuard", json!(true));
    let mut agent = agent.start()?;
    stranger.serve(any(90))?.local()?;
    let mut open = Vec::new();
    for to in [stranger.v4(90), stranger.v6(90)] {
        open.push(late.connect(to)?.handle()?);
    }
    for socket in &open {
        assert!(lives(&mut late, *socket)?);
    }

    scene.add("late", Workload::new(&spiffe("late"), &pod).at(host.addresses()));
    agent.files.write_workloads(&scene.workloads())?;
    agent.restart_with("unknownWorkload", json!("deny"))?;
    for socket in &open {
        assert!(lives(&mut late, *socket)?);
    }
    assert_eq!(counted(&scene.sandbox().maps()?, Counter::PacketsRefused)?, 0);

    // By the pod's policy, not by nobody's.
    agent.kill()?;
    assert!(revoke(&scene.sandbox().maps()?, &[90])? >= 1);
    for socket in &open {
        late.send_text(*socket, "secret")?.ok()?;
    }
    eventually("what is revoked to be dropped", PATIENCE, || {
        Ok(counted(&scene.sandbox().maps()?, Counter::PacketsRefused)? >= 2)
    })
}

#[test]
fn what_is_older_than_the_agent_is_judged_by_its_sockets_and_by_address() -> Result<()> {
    let mut cast = Cast::new("packet-older")?;
    cast.serve()?;
    let (revoked, still) = (cast.open(80)?, cast.open(81)?);
    let mut agent = cast.agent("enforce")?;
    cast.all_live(&revoked)?;
    cast.all_live(&still)?;
    agent.kill()?;
    assert_eq!(counted(&cast.maps()?, Counter::PacketsRefused)?, 0);
    assert!(revoke(&cast.maps()?, &[80])? >= 3);
    cast.say_in_vain(&revoked, &still)?;
    agent.restart()?;
    cast.hear(&revoked)?;
    Ok(())
}

#[test]
fn who_observes_is_refused_nothing() -> Result<()> {
    let mut cast = Cast::new("packet-observed")?;
    let mut agent = cast.agent("observe")?;
    cast.serve()?;
    let open = cast.open(80)?;
    agent.kill()?;
    assert!(revoke(&cast.maps()?, &[80])? >= 3);
    cast.all_live(&open)?;
    assert_eq!(counted(&cast.maps()?, Counter::PacketsRefused)?, 0);
    Ok(())
}

/// The guard's hooks at the managed root, by what the kernel says, and its pins.
fn guard_of(scene: &Scene) -> Result<(BTreeSet<String>, usize)> {
    let attached = attached(scene.sandbox().managed())?;
    let hooks = attached
        .into_iter()
        .filter(|attached| attached.name.starts_with("zt_packet_"));
    let pinned = pins(&scene.sandbox().pins()?)?;
    let pinned = pinned
        .iter()
        .filter(|pin| pin.display().to_string().contains("links/zt_packet_"));
    Ok((hooks.map(|attached| attached.hook).collect(), pinned.count()))
}

#[test]
fn it_is_there_where_it_is_asked_for_and_nowhere_else() -> Result<()> {
    let mut cast = Cast::new("packet-switch")?;
    let both = BTreeSet::from(["cgroup_inet_egress".to_owned(), "cgroup_inet_ingress".to_owned()]);
    let (there, gone) = ((both, 2), (BTreeSet::new(), 0));
    let mut agent = cast.agent("enforce")?;
    cast.serve()?;
    let open = cast.open(80)?;
    assert_eq!(guard_of(&cast.scene)?, there);
    let status = agent.get("/v1/status")?;
    let hooks = status["hooks"].as_array().context("hooks")?;
    let guard = |hook: &&Value| {
        let program = hook["program"].as_str().unwrap_or_default();
        program.starts_with("zt_packet_") && hook["attached"] == true
    };
    assert_eq!(hooks.iter().filter(guard).count(), 2, "{status}");

    // It outlives the agent, and the next one takes it over.
    agent.kill()?;
    assert_eq!(guard_of(&cast.scene)?, there);
    cast.all_live(&open)?;
    agent.restart()?;
    assert_eq!(guard_of(&cast.scene)?, there);

    agent.restart_with("packetGuard", json!(false))?;
    assert_eq!(guard_of(&cast.scene)?, gone);
    let held = held_by(agent.pid().context("it runs")?)?;
    assert!(
        !held.keys().any(|name| name.starts_with("zt_packet_")),
        "{held:?}"
    );
    cast.all_live(&open)?;
    agent.restart_with("packetGuard", json!(true))?;
    assert_eq!(guard_of(&cast.scene)?, there);
    cast.all_live(&open)?;

    agent.terminate()?;
    let detached = agent.command(&["detach", "--yes"]).output()?;
    assert!(detached.status.success(), "{detached:?}");
    assert_eq!(guard_of(&cast.scene)?, gone);
    cast.all_live(&open)
}

/// What the kernel measures is what `docs/performance.md` says of a segment.
#[test]
fn a_segment_runs_the_guard_and_nothing_else() -> Result<()> {
    const COUNT: u64 = 5000;
    let mut cast = Cast::new("packet-cost")?;
    let agent = cast.agent("enforce")?;
    cast.serve()?;
    let to = cast.server.v4(80);
    let socket = cast.client.connect(to)?.handle()?;
    assert!(lives(&mut cast.client, socket)?);
    let measuring = Measuring::begin(held_by(agent.pid().context("it runs")?)?)?;
    let ran = measuring.during(|| {
        let trips = Operation::RoundTrips {
            socket,
            count: COUNT,
            size: 1,
            timeout: PATIENCE,
        };
        cast.client.call(trips)?.ok().map(drop)
    })?;
    let names: Vec<&str> = ran
        .iter()
        .filter(|(_, program)| program.runs > 0)
        .map(|(name, _)| name.as_str())
        .collect();
    let guard = GUARD.map(|name| &name[..KEPT]);
    assert_eq!(names, guard);
    for name in guard {
        // Two segments a round trip, each of which one end sends and the other one receives.
        assert!(ran[name].runs >= 2 * COUNT, "{:?}", ran[name]);
        eprintln!("{name}: {:.0} ns for a segment", ran[name].nanoseconds());
    }
    Ok(())
}
