// SPDX-License-Identifier: Apache-2.0
//! An agent's own life: how it starts, refuses to start, accounts for what it saw, and ends.

use std::fs;
use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use zt_tests::agent::{AgentBuilder, DEADLINE, binary};
use zt_tests::agent_files::Workload;
use zt_tests::hooks::attached;
use zt_tests::pair::{pair, policy};
use zt_tests::probe::{Flood, Operation, TIMEOUT};
use zt_tests::{Cgroup, Party, Sandbox, TCP, UDP, eventually, http, spiffe};

/// `count` connections, half of them to the port that is refused.
fn connections(client: &mut Party, server: &Party, count: u64) -> Result<()> {
    let flood = Flood {
        to: vec![server.v4(80), server.v6(81)],
        ..Flood::new(server.v4(80), count)
    };
    let reply = client.call(Operation::ConnectMany(flood))?.ok()?;
    assert_eq!(reply.outcomes[0].count("ok"), count / 2);
    assert_eq!(reply.outcomes[1].count("EPERM"), count / 2);
    Ok(())
}

#[test]
fn every_decision_is_counted_and_recorded_exactly_once() -> Result<()> {
    const COUNT: u64 = 6000;
    let (scene, server, mut client) = pair("accounting")?;
    let mut stranger = scene.outsider("stranger")?;
    let agent = scene.agent(&policy())?.start()?;
    connections(&mut client, &server, COUNT)?;
    for _ in 0..10 {
        assert_eq!(stranger.talk(server.v4(80))?, "ECONNRESET");
        assert_eq!(client.udp(server.v4(81))?, "EPERM");
    }
    let total = COUNT + 20;
    let denied = COUNT / 2 + 20;
    agent.records("", usize::try_from(total)?, |_| true)?;
    agent.records("decision=DENY", usize::try_from(denied)?, |_| true)?;
    assert_eq!(agent.decisions()?, total);
    assert_eq!(agent.counter("denied_enforced")?, denied);
    assert_eq!(agent.counter("allowed_enforced")?, COUNT / 2);
    assert_eq!(agent.counter("events_lost")?, 0);
    let status = agent.get("/v1/status")?;
    assert_eq!(status["audit"]["received"], total, "{}", status["audit"]);
    assert_eq!(status["audit"]["stored"], total, "{}", status["audit"]);
    let lost = status["audit"]["lost"].as_object().context("losses by cause")?;
    assert!(lost.values().all(|count| *count == 0), "{lost:?}");
    let metrics = agent.metrics()?;
    assert_eq!(metrics.sum("zt_decisions_total", &[]), total);
    assert_eq!(metrics.sum("zt_enforced_denials_total", &[]), denied);
    let pair = [
        ("decision", "allow"),
        ("source", client.id.as_str()),
        ("dest", server.id.as_str()),
    ];
    assert_eq!(metrics.sum("zt_decisions_total", &pair), COUNT / 2);
    Ok(())
}

#[test]
fn ending_flushes_the_records_and_leaves_enforcement_on() -> Result<()> {
    const COUNT: u64 = 2000;
    let (scene, server, mut client) = pair("sigterm")?;
    let mut agent = scene.agent(&policy())?.start()?;
    connections(&mut client, &server, COUNT)?;
    // At once: what was decided a moment ago is in the trail all the same.
    assert!(agent.terminate()?.success());
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    agent.restart()?;
    agent.records("", usize::try_from(COUNT)? + 2, |_| true)?;
    Ok(())
}

#[test]
fn systemd_is_told() -> Result<()> {
    let (scene, ..) = pair("notify")?;
    let path = scene.sandbox().directory().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let text = path.to_str().context("a path of plain letters")?;
    let mut agent = scene.agent(&policy())?.env("NOTIFY_SOCKET", text).start()?;
    let mut told = String::new();
    let mut wait_for = |what: &str| -> Result<()> {
        while !told.contains(what) {
            let mut buffer = [0; 1024];
            let count = socket
                .recv(&mut buffer)
                .with_context(|| format!("{what} after {told:?}"))?;
            told.push_str(&String::from_utf8_lossy(&buffer[..count]));
            told.push('\n');
        }
        Ok(())
    };
    wait_for("READY=1")?;
    // At once: from its first word on it ends in order.
    assert!(agent.terminate()?.success());
    wait_for("STOPPING=1")
}

#[test]
fn the_kernel_sides_own_log_is_switched_on_and_off_while_it_runs() -> Result<()> {
    const SAID: &str = "never bound has no owner yet";
    /// The kernel side's log is read once a second.
    const READ: std::time::Duration = std::time::Duration::from_millis(1500);
    let (scene, mut server, _client) = pair("diagnostics")?;
    let agent = scene.agent(&policy())?.start()?;
    let mut provoke = || -> Result<()> {
        let socket = server.call(Operation::Socket {
            family: libc::AF_INET,
            kind: libc::SOCK_STREAM,
            protocol: 6,
        })?;
        let (socket, backlog) = (socket.handle()?, 1);
        server.call(Operation::Listen { socket, backlog })?.ok()?;
        Ok(())
    };
    for (turn, on) in [(0, false), (1, true), (2, false)] {
        if turn > 0 {
            agent.signal(Signal::SIGUSR1)?;
            eventually("the switch", TIMEOUT, || {
                Ok(agent.log()?.matches("kernel-side diagnostics").count() == turn)
            })?;
        }
        if !on {
            // What was said before is in the agent's log by then.
            std::thread::sleep(READ);
        }
        let before = agent.log()?.matches(SAID).count();
        provoke()?;
        if on {
            eventually("a word of the kernel side", TIMEOUT, || {
                Ok(agent.log()?.matches(SAID).count() > before)
            })?;
        } else {
            std::thread::sleep(READ);
            assert_eq!(agent.log()?.matches(SAID).count(), before);
        }
    }
    Ok(())
}

#[test]
fn without_the_privilege_it_says_what_is_missing_and_touches_nothing() -> Result<()> {
    let (scene, ..) = pair("privilege")?;
    let mut agent = scene.agent(&policy())?.start()?;
    agent.terminate()?;
    assert!(agent.command(&["detach", "--yes"]).status()?.success());
    for (without, named) in [
        ("-bpf", "CAP_BPF"),
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-sys_admin", "CAP_SYS_ADMIN"),
    ] {
        let output = Command::new("setpriv")
            .args(["--bounding-set", without])
            .arg(binary()?)
            .args(["run", "--config"])
            .arg(agent.files.config())
            .output()
            .context("cannot run `setpriv`: run `apt-get install util-linux`")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(77), "{without}: {said}");
        assert!(said.contains(named), "{without}: {said}");
        assert_eq!(attached(scene.sandbox().managed())?, [], "{without}");
    }
    Ok(())
}

#[test]
fn a_missing_bpf_file_system_is_mounted_and_another_one_is_refused() -> Result<()> {
    let (scene, server, mut client) = pair("bpffs")?;
    let mut agent = scene.agent(&policy())?.start()?;
    agent.terminate()?;
    assert!(agent.command(&["detach", "--yes"]).status()?.success());
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    // In a mount namespace of its own, so that the machine keeps its mount; and with processes of its own, of which it is the
    // first: so it takes that namespace for the machine's.
    let mut child = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--mount-proc",
        ])
        .args(["sh", "-c", "umount /sys/fs/bpf && exec \"$@\"", "sh"])
        .arg(binary()?)
        .args(["run", "--config"])
        .arg(agent.files.config())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run `unshare`: run `apt-get install util-linux`")?;
    let ready = eventually("the agent to be ready", DEADLINE, || {
        Ok(http::get(agent.health(), "/readyz").is_ok_and(|answer| answer.status == 200))
    });
    let refused = client.tcp(server.v4(81));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()))?;
    for pid in children.split_whitespace() {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGTERM)?;
    }
    let mut said = String::new();
    child.stderr.take().context("piped")?.read_to_string(&mut said)?;
    assert!(child.wait()?.success(), "{said}");
    ready.context(said.clone())?;
    assert_eq!(refused?, "EPERM");
    assert!(said.contains("mounted the BPF file system"), "{said}");

    let elsewhere = scene.sandbox().directory().join("no/bpffs");
    let mut agent = scene
        .agent(&policy())?
        .config("bpffs", json!(elsewhere))
        .launch()?;
    assert_eq!(agent.wait_exit()?.code(), Some(77));
    let said = agent.log()?;
    assert!(
        said.contains("BPF file system at") && said.contains("no/bpffs"),
        "{said}"
    );
    assert!(!scene.sandbox().directory().join("no").exists());
    Ok(())
}

/// Starts an agent that must refuse, and returns what it said.
fn refused(agent: AgentBuilder) -> Result<String> {
    let mut agent = agent.launch()?;
    let status = agent.wait_exit()?;
    let said = agent.log()?;
    assert_eq!(status.code(), Some(64), "{said}");
    Ok(said)
}

#[test]
fn bad_input_at_the_start_starts_nothing() -> Result<()> {
    let sandbox = Sandbox::new("bad-input")?;
    let good = policy().text();
    let agent = || -> Result<AgentBuilder> { sandbox.agent()?.policy("policy.yaml", &good) };
    let iam = sandbox.cgroup("iam")?;

    let said = refused(agent()?.config("mod", json!("enforce")))?;
    assert!(said.contains("mod") && said.contains("mode"), "{said}");
    let said = refused(agent()?.config("mode", json!("strict")))?;
    assert!(said.contains("strict"), "{said}");
    let misspelt = good.replace("\"ports\"", "\"prots\"");
    let said = refused(agent()?.policy("policy.yaml", &misspelt)?)?;
    assert!(said.contains("policy.yaml") && said.contains("prots"), "{said}");
    let agent_without = sandbox.agent()?;
    fs::remove_file(sandbox.directory().join("policies/policy.yaml"))?;
    let said = refused(agent_without)?;
    assert!(said.contains("no *.yaml"), "{said}");

    let outside = Workload::new(&spiffe("iam"), sandbox.outside());
    let said = refused(agent()?.workload(outside))?;
    assert!(
        said.contains("workloads.yaml") && said.contains("cgroup"),
        "{said}"
    );
    let twice = |name: &str| Workload::new(&spiffe(name), &iam);
    let said = refused(agent()?.workload(twice("one")).workload(twice("two")))?;
    assert!(
        said.contains("workloads.yaml") && said.contains("cgroup"),
        "{said}"
    );
    let address: std::net::IpAddr = "10.99.0.1".parse()?;
    let absent = Cgroup::absent(sandbox.managed(), "absent");
    let one = Workload::new(&spiffe("one"), &iam).at([address]);
    let two = Workload::new(&spiffe("two"), &absent).at([address]);
    let said = refused(agent()?.workload(one).workload(two))?;
    assert!(said.contains("10.99.0.1"), "{said}");
    assert_eq!(attached(sandbox.managed())?, []);
    Ok(())
}

#[test]
fn evaluations_are_answered_recorded_and_not_connections() -> Result<()> {
    let (scene, server, mut client) = pair("evaluate")?;
    let agent = scene.agent(&policy())?.start()?;
    let ask = |port: u16, protocol: &str| -> Result<serde_json::Value> {
        let question = json!({
            "source": { "spiffe_id": client.id },
            "destination": { "spiffe_id": server.id, "port": port, "protocol": protocol },
        });
        agent.post("/v1/evaluate", &question)?.success()?.json()
    };
    let (allowed, denied) = (ask(80, TCP)?, ask(81, UDP)?);
    assert_eq!(allowed["decision"], "ALLOW");
    assert_eq!(allowed["policy_matched"], "policy/rule-1");
    assert_eq!(
        (&allowed["mode"], &allowed["enforced"]),
        (&json!("enforce"), &json!(true))
    );
    assert_eq!(
        (&denied["decision"], &denied["policy_matched"]),
        (&json!("DENY"), &json!(null))
    );
    let records = agent.records("", 2, |record| record["hook"] == "api")?;
    assert!(records.iter().all(|record| record["caller"].is_string()));
    assert_eq!(agent.decisions()?, 0);

    assert_eq!(client.tcp(server.v4(80))?, "ok");
    eventually("the graph to have the one connection", TIMEOUT, || {
        let graph = agent.get("/v1/graph")?;
        let edges = graph["edges"].as_array().context("edges")?;
        Ok(edges.len() == 1 && edges[0]["allowed"] == 1 && edges[0]["denied"] == 0)
    })
}
