// SPDX-License-Identifier: Apache-2.0
//! The capabilities that the manifests grant are all that the agent needs, in a container as on a host, and the default
//! seccomp profile of runtimes refuses nothing of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use zt_agent::kernel::CAPABILITIES;
use zt_tests::agent::AgentBuilder;
use zt_tests::contained::{granted, through};
use zt_tests::hooks::attached;
use zt_tests::pair::{any, pair, pair_after_agent, policy};
use zt_tests::probe::{Operation, TIMEOUT};
use zt_tests::{Policy, Scene, eventually};

fn file(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn contained(agent: AgentBuilder, capabilities: &BTreeSet<String>) -> Result<AgentBuilder> {
    Ok(agent.through(through(capabilities)?))
}

#[test]
fn what_is_granted_is_what_the_agent_names() -> Result<()> {
    let named: BTreeSet<String> = CAPABILITIES.iter().map(|each| each.name.to_owned()).collect();
    assert_eq!(granted()?, named, "deploy/manifests/agent.yaml");
    let unit = file("deploy/zt-agent.service")?;
    let set = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .context("a bounding set")?;
    let set: BTreeSet<String> = set.split(' ').map(str::to_owned).collect();
    assert_eq!(set, named, "deploy/zt-agent.service");
    Ok(())
}

#[test]
fn what_is_granted_is_enough() -> Result<()> {
    let (scene, mut server, mut client) = pair("capabilities")?;
    server.udp_bind(any(80))?.handle()?;
    let old = client.connect(server.v4(81))?.handle()?;
    // The agent reaches for it in the other process (`pidfd_getfd`).
    let raw = Operation::Socket {
        family: libc::AF_INET,
        kind: libc::SOCK_RAW,
        protocol: libc::IPPROTO_ICMP,
    };
    client.call(raw)?.handle()?;
    let capabilities = granted()?;
    let mut agent = contained(scene.agent(&policy())?, &capabilities)?.start()?;

    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid().context("it runs")?))?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let bits = field("CapEff:").and_then(|bits| u64::from_str_radix(bits, 16).ok());
    assert_eq!(
        bits.context("capabilities")?.count_ones() as usize,
        capabilities.len()
    );
    assert_eq!(field("CapBnd:"), field("CapEff:"));
    assert_eq!(field("NoNewPrivs:"), Some("1"));
    assert_eq!(field("Seccomp:"), Some("2"), "a filter");
    let log = agent.log()?;
    assert!(!log.contains("without CAP_"), "{log}");

    // What was open before, what is tried now, and what a change of policy takes back.
    client.dies(old)?;
    let fenced = |event: &str| -> Result<u64> {
        Ok(agent.metrics()?.sum("zt_node_events_total", &[("event", event)]))
    };
    eventually("the raw socket to be cut off", TIMEOUT, || {
        Ok(fenced("raw_fenced")? == 1)
    })?;
    assert_eq!(fenced("raw_left")?, 0);
    for to in server.everywhere(80) {
        assert_eq!(client.tcp(to)?, "ok");
    }
    assert_eq!(
        (
            client.tcp(server.v6(81))?.as_str(),
            client.udp(server.v4(81))?.as_str()
        ),
        ("EPERM", "EPERM")
    );
    assert_eq!(client.udp(server.v4(80))?, "ok");
    let live = client.connect(server.v4(80))?.handle()?;
    agent
        .files
        .write_policy("policy.yaml", &Policy::new("policy").text())?;
    client.dies(live)?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");

    // The next one takes over what this one has pinned.
    agent.kill()?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    agent.files.write_policy("policy.yaml", &policy().text())?;
    agent.restart()?;
    assert_eq!(
        (
            client.tcp(server.v4(80))?.as_str(),
            client.tcp(server.v4(81))?.as_str()
        ),
        ("ok", "EPERM")
    );
    assert!(!attached(scene.sandbox().managed())?.is_empty());
    for record in agent.audit("decision=DENY&limit=100")? {
        assert_ne!(record["reason"], "unfenced", "{record}");
    }
    assert!(agent.terminate()?.success());
    Ok(())
}

#[test]
fn what_is_granted_is_enough_for_handshakes_that_bear_identities() -> Result<()> {
    let contain = |agent: AgentBuilder| agent.contained().unwrap_or_else(|error| panic!("{error:#}"));
    let (_scene, server, mut client, agent) = pair_after_agent("caps-handshake", &policy(), contain)?;
    for to in server.everywhere(80) {
        assert_eq!(client.talk(to)?, "ok", "{to}");
    }
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    agent.records("decision=ALLOW", 3, |record| record["proof"] == "mutual")?;
    // Of programs of BPF LSM kernels say that without them, too, and to whoever has all capabilities.
    let log = agent.log()?;
    let is_missed = |line: &str| {
        line.contains("without CAP_")
            || line.contains("Operation not permitted") && !line.contains("takes no program of BPF LSM")
    };
    assert!(!log.lines().any(is_missed), "{log}");
    Ok(())
}

#[test]
fn without_any_of_them_it_says_which_and_why() -> Result<()> {
    let all = granted()?;
    for capability in CAPABILITIES {
        let (scene, server, mut client) = pair("without")?;
        let mut less = all.clone();
        assert!(less.remove(capability.name));
        let agent = contained(scene.agent(&policy())?, &less)?;
        let Some(without) = capability.without else {
            let mut agent = agent.launch()?;
            let code = agent.wait_exit()?.code();
            let log = agent.log()?;
            assert_eq!(code, Some(77), "{}: {log}", capability.name);
            assert!(
                log.contains(capability.name) && log.contains(capability.purpose),
                "{log}"
            );
            assert_eq!(attached(scene.sandbox().managed())?, [], "{}", capability.name);
            continue;
        };
        // It enforces all the same.
        let agent = agent.start()?;
        let log = agent.log()?;
        assert!(
            log.contains(&format!("without {}", capability.name)) && log.contains(without),
            "{log}"
        );
        eventually("it to enforce", TIMEOUT, || {
            Ok(client.tcp(server.v4(81))? == "EPERM")
        })?;
        assert_eq!(client.tcp(server.v4(80))?, "ok", "{}", capability.name);
    }
    Ok(())
}

/// On a host where nobody took anything from root: it takes it from itself, in all of its threads.
#[test]
fn root_on_a_host_keeps_what_it_needs_and_no_more() -> Result<()> {
    let (scene, server, mut client) = pair("confined")?;
    let agent = scene.agent(&policy())?.start()?;
    let capabilities = granted()?.len();
    let tasks = format!("/proc/{}/task", agent.pid().context("it runs")?);
    let mut threads = 0;
    for task in fs::read_dir(tasks)? {
        // Threads that wait for files come and go.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.map(str::trim).context("a field of the status")
        };
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            let bits = u64::from_str_radix(field(set)?, 16)?;
            assert_eq!(bits.count_ones() as usize, capabilities, "{status}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(field(set)?, 16)?, 0, "{status}");
        }
        assert_eq!(field("NoNewPrivs:")?, "1", "{status}");
        assert_eq!(field("Seccomp:")?, "2", "{status}");
        threads += 1;
    }
    assert!(threads > 2, "{threads}");
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    let log = agent.log()?;
    assert!(!log.contains("more rights than it needs"), "{log}");
    Ok(())
}

/// A container on a node that has no bpffs: what the agent mounted there itself would go with the container.
#[test]
fn no_bpffs_of_its_own_in_a_container() -> Result<()> {
    let (scene, server, mut client) = pair("bpffs")?;
    let words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "umount --lazy /sys/fs/bpf; exec \"$@\"",
        "sh",
    ];
    let mut agent = scene
        .agent(&policy())?
        .through(words.map(str::to_owned).into())
        .launch()?;
    let code = agent.wait_exit()?.code();
    let log = agent.log()?;
    assert_eq!(code, Some(77), "{log}");
    assert!(
        log.contains("a BPF file system at /sys/fs/bpf of the host"),
        "{log}"
    );
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    Ok(())
}

/// The configuration that the pod of `detach.yaml` has: none. Its arguments say where the pins are.
fn detach(scene: &Scene, capabilities: &BTreeSet<String>) -> Result<Output> {
    let mut words = through(capabilities)?.into_iter();
    let mut command = Command::new(words.next().context("a program")?);
    command.args(words).arg(zt_tests::agent::binary()?);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ZT_")) {
        command.env_remove(name);
    }
    let pins = scene.sandbox().pins()?;
    command.args(["detach", "--yes", "--bpffs"]).arg(pins);
    command.output().context("cannot run unshare")
}

/// What `helm uninstall` does on each node, beside an agent that still runs, and again after it.
#[test]
fn a_container_with_the_same_detaches() -> Result<()> {
    let chart = file("deploy/helm/zt/templates/detach.yaml")?;
    ensure!(
        chart.contains("args: [detach, --yes, --bpffs, ") && chart.contains("\"zt.agent.securityContext\"")
    );
    let (scene, server, mut client) = pair("detach-contained")?;
    let capabilities = granted()?;
    let mut agent = contained(scene.agent(&policy())?, &capabilities)?.start()?;
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    for (round, runs) in [(1, true), (2, false)] {
        let output = detach(&scene, &capabilities)?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "round {round}: {said}");
        assert_eq!(
            said.contains("zt-agent still runs"),
            runs,
            "round {round}: {said}"
        );
        // Nobody attaches anything again.
        assert_eq!(client.tcp(server.v4(81))?, "ok", "round {round}");
        for cgroup in [scene.sandbox().managed(), &server.cgroup, &client.cgroup] {
            assert_eq!(
                attached(cgroup)?,
                [],
                "round {round}: {}",
                cgroup.path().display()
            );
        }
        if runs {
            assert!(agent.terminate()?.success());
            // One that was killed leaves its pins.
            agent.restart()?;
            assert_eq!(client.tcp(server.v4(81))?, "EPERM");
            agent.kill()?;
            assert_eq!(client.tcp(server.v4(81))?, "EPERM");
        }
    }
    ensure!(!scene.sandbox().pins()?.exists(), "the directory of the pins");
    Ok(())
}
