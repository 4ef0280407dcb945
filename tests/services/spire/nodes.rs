// SPDX-License-Identifier: Apache-2.0
//! Two nodes of one SPIRE, each with an agent of its own: they show each other the SVIDs of their workloads.

use std::process::Output;

use zt_tests::nodes::NODES;
use zt_tests::ports;

use super::*;

const CHAT: &str = "spiffe://hanzo.ai/hanzo-k8s/test/chat";
const IAM: &str = "spiffe://hanzo.ai/hanzo-k8s/test/iam";

/// Where SPIRE is on a node, and which node it is.
struct Place {
    id: String,
    socket: PathBuf,
    admin_socket: PathBuf,
}

/// The agent of a node, which shows its node's SVID.
fn agent(
    sandbox: &Sandbox,
    place: &Place,
    (index, listen): (usize, &[SocketAddr; 2]),
    hosts: &[&Host; 2],
    workload: (&str, &Cgroup),
) -> Result<Agent> {
    let node = NODES[index];
    let entry = |index: usize| {
        json!({
            "name": NODES[index],
            "address": listen[index].to_string(),
            "speaksFor": hosts[index].addresses(),
        })
    };
    let files = sandbox.directory().join(node);
    let (api, health) = ports::two()?;
    let (id, cgroup) = workload;
    let policy = Policy::new("nodes").allow(CHAT, IAM, TCP, &OPEN.to_string());
    let workload = zt_tests::agent_files::Workload::new(id, cgroup).at(hosts[index].addresses());
    sandbox
        .agent_beside(node)?
        .mode("enforce")
        .workload(workload)
        .policy("policy.yaml", &policy.text())?
        .listens(api, health)
        .config("node", json!(node))
        .config("handshake", json!("auto"))
        .config("managedCgroup", json!(sandbox.cgroup(node)?.relative()))
        .config("bpffs", json!(sandbox.pins()?.join(node)))
        .config(
            "identity",
            json!({
                "source": ["file", "spire", "peers"],
                "file": files.join("workloads.yaml"),
                "spireSocket": place.socket,
                "spireAdminSocket": place.admin_socket,
                "peers": {
                    "listen": listen[index],
                    "nodes": [entry(0), entry(1)],
                    "id": "spiffe://hanzo.ai/agents/{node}",
                },
            }),
        )
        .config(
            "api",
            json!({"listen": api, "health": health, "socket": files.join("agent.sock"), "tls": "spire"}),
        )
        .start()
}

fn ask_for(agent: &Agent, arguments: &[&str]) -> Result<Output> {
    let api = format!("unix://{}", agent.socket().display());
    let mut command = Command::new(zt_tests::agent::binary()?);
    Ok(command
        .args(arguments)
        .args(["--api", &api, "-o", "json"])
        .output()?)
}

/// What an agent says of the other node.
fn other(agent: &Agent) -> Result<Value> {
    let output = ask_for(agent, &["status"])?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    let status: Value = serde_json::from_slice(&output.stdout).with_context(said)?;
    Ok(status["peers"]["nodes"][0].clone())
}

#[test]
fn agents_of_two_nodes_show_each_other_what_spire_gave_them() -> Result<()> {
    let sandbox = Sandbox::new("spire-nodes")?;
    let spire = Spire::start(Duration::from_secs(3600))?;
    let two = spire.join("two")?;
    let places = [
        Place {
            id: zt_tests::spire::NODE.to_owned(),
            socket: spire.socket(),
            admin_socket: spire.admin_socket(),
        },
        Place {
            id: two.id.clone(),
            socket: two.socket.clone(),
            admin_socket: two.admin_socket.clone(),
        },
    ];
    let hosts = [sandbox.host("chat")?, sandbox.host("iam")?];
    let hosts = [&hosts[0], &hosts[1]];
    let names = [("chat", CHAT), ("iam", IAM)];
    let binary = format!("unix:path:{}", zt_tests::agent::binary()?.display());
    let (mut cgroups, mut probes) = (Vec::new(), Vec::new());
    for (index, (name, id)) in names.into_iter().enumerate() {
        let node = &places[index].id;
        let agent = format!("spiffe://hanzo.ai/agents/{}", NODES[index]);
        spire.register_on(node, &Spire::delegate(), &[&binary], &["-hint", "zt"])?;
        spire.register_on(node, &agent, &[&binary], &["-hint", "zt-node"])?;
        let path = program(&sandbox, name);
        let selector = format!("unix:path:{}", path.display());
        spire.register_on(node, id, &[&selector], &[])?;
        fs::copy(probe::binary()?, &path)?;
        let cgroup = sandbox.cgroup(&format!("{}/{name}", NODES[index]))?;
        probes.push(Probe::start_as(&path, &cgroup, Some(hosts[index]))?);
        cgroups.push(cgroup);
    }
    let listen = [ports::free()?, ports::free()?];
    let start = |index: usize| {
        let workload = (names[index].1, &cgroups[index]);
        agent(&sandbox, &places[index], (index, &listen), &hosts, workload)
    };
    let agents = [start(0)?, start(1)?];
    for agent in &agents {
        let mut last = Value::Null;
        let known = wait_for("the other node to be known", LATER, || {
            last = other(agent)?;
            let is_known = last["addresses"].as_u64() == Some(2) && last["epoch"].as_u64() > Some(0);
            Ok(is_known.then_some(()))
        });
        known.with_context(|| format!("last: {last}"))?;
        assert_eq!(
            (&last["state"], &last["refused"]),
            (&json!("connected"), &json!(0)),
            "{last}"
        );
    }
    let to = SocketAddr::from((hosts[1].ipv4, OPEN));
    probes[1].serve(to)?.ok()?;
    assert_eq!(probes[0].connect(to)?.outcome(), "ok");
    let proven = wait_for("the proof to be recorded", LATER, || {
        let found = ask_for(&agents[0], &["audit", "query", "--decision", "allow"])?;
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        Ok(text.contains("mutual").then_some(()))
    });
    proven?;
    // On the other node the SPIRE agent there has nothing to give for it: nobody is named by its SVID.
    let shut = SocketAddr::from((hosts[1].ipv4, SHUT));
    assert_eq!(probes[0].connect(shut)?.outcome(), "EPERM");
    Ok(())
}
