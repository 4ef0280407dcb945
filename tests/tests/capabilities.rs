// SPDX-License-Identifier: Apache-2.0
//! The capabilities that the manifests grant are all that the agent needs, in a container as on a host, and the default
//! seccomp profile of runtimes refuses nothing of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use zt_agent::kernel::CAPABILITIES;
use zt_tests::agent::AgentBuilder;
use zt_tests::hooks::attached;
use zt_tests::pair::{any, pair, policy};
use zt_tests::probe::{Operation, TIMEOUT, built_binary};
use zt_tests::{Policy, eventually};

/// The container of the `DaemonSet`, as far as the kernel has a part in it: namespaces of mounts and cgroups of its own, the
/// node's cgroups and bpffs mounted into it, the capabilities in `$1` and no way to gain others, and the filter of system
/// calls that `$3` installs.
const CONTAINER: &str = r#"
set -e
capabilities=$1 cgroups=$2 sealed=$3; shift 3
mount --bind "$cgroups" "$cgroups"
mount -o remount,bind,ro "$cgroups"
exec setpriv --bounding-set "-all,$capabilities" --inh-caps=-all --ambient-caps=-all --no-new-privs "$sealed" "$@"
"#;

fn file(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// What the `DaemonSet` adds, in the words of the kernel: `CAP_…`.
fn granted() -> Result<BTreeSet<String>> {
    let text = file("deploy/manifests/agent.yaml")?;
    let container = text
        .split("name: agent\n")
        .last()
        .context("the agent's container")?;
    let list = container
        .split("add:\n")
        .nth(1)
        .context("capabilities that are added")?;
    let names = list
        .lines()
        .map(str::trim)
        .take_while(|line| line.starts_with('#') || line.starts_with("- "));
    let names: BTreeSet<String> = names
        .filter_map(|line| line.strip_prefix("- "))
        .map(|name| format!("CAP_{name}"))
        .collect();
    ensure!(!names.is_empty(), "no capabilities in {list}");
    Ok(names)
}

/// For `setpriv`: those and no others.
fn only(capabilities: &BTreeSet<String>) -> String {
    let added = capabilities.iter().map(|name| {
        let name = name.trim_start_matches("CAP_").to_lowercase();
        format!("+{name}")
    });
    added.collect::<Vec<_>>().join(",")
}

fn contained(agent: AgentBuilder, capabilities: &BTreeSet<String>) -> Result<AgentBuilder> {
    let cgroups = zt_tests::cgroup::mount_point()?;
    let cgroups = cgroups.to_str().context("plain letters")?.to_owned();
    let words = ["unshare", "--mount", "--cgroup", "sh", "-c", CONTAINER, "sh"];
    let mut through: Vec<String> = words.map(str::to_owned).into();
    let sealed = built_binary("zt-sealed", "cargo build -p zt-tests")?;
    let sealed = sealed.to_str().context("plain letters")?.to_owned();
    through.extend([only(capabilities), cgroups, sealed]);
    Ok(agent.through(through))
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
