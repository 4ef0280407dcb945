// SPDX-License-Identifier: Apache-2.0
//! The agent that runs here, and what it says of itself.

use std::time::Duration;

use serde_json::Value;

use super::finding::Finding;
use super::hooks::Agent;
use crate::cli::client::{ApiArgs, Client};
use crate::config::Config;
use crate::kernel::Holder;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the agent of a configuration can be asked on its own machine; `None` where only those with a certificate may, and there
/// is no socket.
pub fn address(config: &Config) -> Option<ApiArgs> {
    let at = |api: String| ApiArgs {
        api,
        ..ApiArgs::default()
    };
    match &config.api.socket {
        Some(socket) if socket.exists() => Some(at(format!("unix://{}", socket.display()))),
        _ if config.api.tls.all().is_some() => None,
        _ => Some(at(format!("http://{}", config.api.listen))),
    }
}

/// What the agent says at a path of its API, or why it says nothing.
pub async fn ask(config: &Config, path: &str) -> Result<Value, String> {
    let Some(address) = address(config) else {
        return Err("its API takes certificates alone, and there is no socket (`api.socket`)".to_owned());
    };
    let client = Client::new(&address).map_err(|error| error.to_string())?;
    match tokio::time::timeout(PATIENCE, client.get(path, &[])).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("{} does not answer within {PATIENCE:?}", address.api)),
    }
}

/// `holder`: who works on the pins; `status`: what `/v1/status` says.
pub(super) fn alive(agent: Agent, holder: Option<&Holder>, status: &Result<Value, String>) -> Finding {
    const CHECK: &str = "agent.alive";
    const LOG: &str =
        "see its log: `journalctl -u zt-agent`, or `kubectl -n zt-system logs` of the node's pod";
    match (agent, holder, status) {
        (Agent::Runs, Some(holder), Ok(_)) => Finding::ok(CHECK, format!("{holder}; it answers")),
        (Agent::Runs, Some(holder), Err(error)) => Finding::failed(
            CHECK,
            format!("{holder} has the pins and does not answer: {error}"),
            LOG,
        ),
        (Agent::Gone, ..) => Finding::failed(
            CHECK,
            "no agent runs: the kernel goes on enforcing what the last one left, and nothing new",
            "`systemctl start zt-agent`, or see why the pod of this node does not run; `zt-agent run` says why it ends",
        ),
        (Agent::Unknown, ..) => Finding::warning(
            CHECK,
            "it cannot be told whether an agent runs here, or has left something",
            "run this as root, where the agent runs: `bpffs` says whether its pins can be seen",
        ),
        _ => Finding::warning(
            CHECK,
            "no agent runs here, and none has left anything: nothing is enforced",
            "`systemctl start zt-agent`, or `zt-agent run`",
        ),
    }
}

/// What `status`, an answer of `/v1/status`, says that somebody should know.
pub(super) fn said(status: &Value) -> Vec<Finding> {
    let mut findings = vec![version(status), ready(status), policy(status)];
    findings.extend(
        [
            configuration(status),
            break_glass(status),
            losses(status),
            names(status),
            handshakes(status),
            paths(status),
            spire(status),
            svid(status),
            kubernetes(status),
            spool(status),
        ]
        .into_iter()
        .flatten(),
    );
    findings
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn version(status: &Value) -> Finding {
    const CHECK: &str = "agent.version";
    let (running, own) = (text(&status["version"]), env!("CARGO_PKG_VERSION"));
    if running == own {
        Finding::ok(CHECK, format!("{running}, as this program"))
    } else {
        let found = format!("{running} runs, and this program is {own}");
        let remedy = "restart the agent if it was upgraded on disk: `systemctl restart zt-agent`";
        Finding::warning(CHECK, found, remedy)
    }
}

fn ready(status: &Value) -> Finding {
    const CHECK: &str = "agent.ready";
    if status["ready"] == true {
        return Finding::ok(CHECK, "its policy is loaded and its hooks are attached");
    }
    let why = status["not_ready"].as_str().unwrap_or("it does not say why");
    Finding::failed(
        CHECK,
        format!("it is not ready: {why}"),
        "the reason says what is missing; docs/troubleshooting.md",
    )
}

fn policy(status: &Value) -> Finding {
    const CHECK: &str = "agent.policy";
    let policy = &status["policy"];
    let digest: String = text(&policy["digest"]).chars().take(12).collect();
    let found = format!(
        "revision {} of {} policies in force, digest {digest}",
        number(&policy["revision"]),
        number(&policy["policies"])
    );
    let errors = policy["errors"].as_array().map_or(0, Vec::len);
    if errors > 0 {
        let first = &policy["errors"][0];
        let found = format!(
            "{found}; it is an older one, as {errors} problems are in what there is now, the first: {} {}",
            text(&first["file"]),
            text(&first["message"])
        );
        return Finding::failed(CHECK, found, "correct what `zt-agent policy check` names");
    }
    let source = &policy["source"];
    if source["stale"] == true {
        let found = format!("{found}; it may be old: {}", text(&source["error"]));
        return Finding::warning(
            CHECK,
            found,
            "see to the policy engine or the Kubernetes API, and the way there: docs/engine.md",
        );
    }
    Finding::ok(CHECK, found)
}

fn configuration(status: &Value) -> Option<Finding> {
    const CHECK: &str = "agent.configuration";
    let configuration = &status["configuration"];
    let errors = configuration["errors"].as_array().map_or(0, Vec::len);
    if errors > 0 {
        let found = format!("the file on disk has {errors} problems: what was read before is in force");
        return Some(Finding::failed(CHECK, found, "see `config`"));
    }
    (configuration["restart_needed"] == true).then(|| {
        let remedy = "`systemctl restart zt-agent`; the kernel goes on enforcing meanwhile";
        Finding::warning(
            CHECK,
            "keys were changed on disk that are taken at the next start",
            remedy,
        )
    })
}

fn break_glass(status: &Value) -> Option<Finding> {
    (status["modes"]["observe_all"] == true).then(|| {
        let found = "break-glass is on: nothing is refused on this node";
        Finding::warning(
            "agent.break_glass",
            found,
            "`zt-agent mode restore` when the reason is gone",
        )
    })
}

fn losses(status: &Value) -> Option<Finding> {
    let lost = status["audit"]["lost"].as_object()?;
    let causes: Vec<String> = lost
        .iter()
        .filter(|(_, count)| number(count) > 0)
        .map(|(cause, count)| format!("{} by {cause}", number(count)))
        .collect();
    (!causes.is_empty()).then(|| {
        let found = format!("records were lost since the agent started: {}", causes.join(", "));
        Finding::warning("audit.lost", found, "docs/audit.md has the causes")
    })
}

fn names(status: &Value) -> Option<Finding> {
    const CHECK: &str = "identities";
    let disputes = status["disputes"].as_array().map_or(0, Vec::len);
    let unnamed = status["unnamed"].as_array();
    let unnamed = unnamed.map_or(0, Vec::len) as u64 + number(&status["unnamed_more"]);
    if disputes > 0 {
        let found = format!("{disputes} cgroups are nobody, as two sources name them differently");
        return Some(Finding::failed(
            CHECK,
            found,
            "`zt-agent status` lists them (`disputes`): docs/troubleshooting.md",
        ));
    }
    (unnamed > 0).then(|| {
        let found = format!("{unnamed} pods have no identity");
        Finding::warning(
            CHECK,
            found,
            "`zt-agent status` lists them with the reason (`unnamed`): docs/kubernetes.md (With SPIRE)",
        )
    })
}

fn handshakes(status: &Value) -> Option<Finding> {
    let handshake = &status["handshake"];
    let without = number(&handshake["older_reading"]) + number(&handshake["older_failed"]);
    (without > 0).then(|| {
        let found = format!("{without} servers are older than the agent and do not prove who they are");
        Finding::warning(
            "handshake.older_listeners",
            found,
            "restart them, one after the other",
        )
    })
}

fn paths(status: &Value) -> Option<Finding> {
    let paths = status["handshake"]["paths"].as_array()?;
    let last = paths.first()?;
    let to = last["node"].as_str().map_or_else(
        || format!("the network {}", text(&last["network"])),
        |node| format!("node {node}"),
    );
    let found = format!(
        "identities did not arrive in TCP handshakes on {} ways in the last hour, the last one between here and {to}",
        paths.len()
    );
    Some(Finding::warning(
        "handshake.paths",
        found,
        "`zt-agent status` lists them (`handshake`, `paths`): docs/troubleshooting.md (Identities do not arrive)",
    ))
}

fn spire(status: &Value) -> Option<Finding> {
    let spire = &status["spire"];
    (spire.is_object() && spire["connected"] != true).then(|| {
        let found = format!("the agent has no connection to SPIRE: {}", text(&spire["error"]));
        Finding::failed(
            "spire.connected",
            found,
            "docs/troubleshooting.md (Workloads have no identity)",
        )
    })
}

fn svid(status: &Value) -> Option<Finding> {
    let problem = status["svid"]["problem"].as_str()?;
    Some(Finding::failed(
        "spire.svid",
        problem,
        "SPIRE needs an entry for this agent: docs/spire.md",
    ))
}

fn kubernetes(status: &Value) -> Option<Finding> {
    let collections = status["kubernetes"]["collections"].as_object()?;
    let stale: Vec<&str> = collections
        .iter()
        .filter(|(_, state)| state["stale"] == true)
        .map(|(name, _)| name.as_str())
        .collect();
    (!stale.is_empty()).then(|| {
        let found = format!("the Kubernetes API is not heard of: {}", stale.join(", "));
        Finding::warning(
            "kubernetes.heard",
            found,
            "what was known holds; `zt-agent status` has the reason: docs/kubernetes.md",
        )
    })
}

fn spool(status: &Value) -> Option<Finding> {
    let spool = &status["audit"]["spool"];
    (spool.is_object() && spool["reachable"] != true).then(|| {
        let waiting = number(&spool["waiting"]);
        let found = format!(
            "the agent does not reach PostgreSQL: {}; {waiting} records wait",
            text(&spool["error"])
        );
        Finding::failed("audit.shipping", found, "see `audit.database`")
    })
}

#[cfg(test)]
mod tests;
