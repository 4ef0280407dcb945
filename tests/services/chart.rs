// SPDX-License-Identifier: Apache-2.0
//! What a cluster is given: the Helm chart, the manifests rendered from it, SPIRE's settings, and the image's engine.

#[path = "chart/engine.rs"]
mod engine;
#[path = "chart/layout.rs"]
mod layout;
#[path = "chart/modes.rs"]
mod modes;
#[path = "chart/names.rs"]
mod names;
#[path = "chart/spire.rs"]
mod spire;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use zt_agent::config::{Config, IdentitySource, Sources};

/// How the kept manifests are rendered: they make their namespace themselves.
const KEPT: [&str; 1] = ["createNamespace=true"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    let path = root().join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Runs what `cargo xtask setup` has built of Helm, in the repository.
fn helm(arguments: &[&str]) -> Result<Output> {
    let program = std::env::var_os("ZT_CHART");
    let program = program.context("ZT_CHART is not set: run `cargo xtask test services`")?;
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    output.context("cannot run zt-chart")
}

/// The chart with these values: files and their text.
fn rendered(values: &[&str]) -> Result<BTreeMap<String, String>> {
    let output = helm(&[&["template", "deploy/helm/zt"], values].concat())?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let files: BTreeMap<String, String> = serde_json::from_slice(&output.stdout)?;
    // One directory for all: `kubectl apply -f` looks into no other.
    let flat = files.into_iter().map(|(name, text)| {
        let name = name.strip_prefix("crds/").unwrap_or(&name).to_owned();
        (name, text)
    });
    Ok(flat.collect())
}

/// A block scalar of a manifest, such as the file in a `ConfigMap`, without its indentation.
fn block(manifest: &str, key: &str) -> Result<String> {
    let mut lines = manifest
        .lines()
        .skip_while(|line| line.trim() != format!("{key}: |"));
    let head = lines.next().with_context(|| format!("no {key}"))?;
    let indent = head.len() - head.trim_start().len();
    let inside =
        lines.take_while(|line| line.trim().is_empty() || line.len() - line.trim_start().len() > indent);
    let text: Vec<&str> = inside.map(|line| line.get(indent + 2..).unwrap_or("")).collect();
    Ok(text.join("\n") + "\n")
}

/// Loads a configuration as the container would, from its text.
fn load(text: &str) -> Result<Config> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("agent.yaml");
    fs::write(&file, text)?;
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    Config::load(&sources).with_context(|| text.to_owned())
}

/// Checks manifests against the types of the API server.
fn check(files: &[&str]) -> Result<Output> {
    helm(&[&["check"], files].concat())
}

#[test]
fn the_chart_passes_the_linter() -> Result<()> {
    let output = helm(&["lint", "deploy/helm/zt"])?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    // What the values' schema refuses is not rendered.
    for wrong in [
        "agent.config.mode=deny",
        "engine.replicas=0",
        "nod=x",
        "agent.config.node=x",
        // There is one place for it, which feeds all others.
        "agent.config.identity.template=spiffe://{trustDomain}/{namespace}/{serviceAccount}",
        "spiffeIDTemplate=spiffe://{trustDomain}/{namespace}",
        "spiffeIDTemplate=spiffe://hanzo.ai/{namespace}/{serviceAccount}",
        "operators={operator}",
    ] {
        let output = helm(&["template", "deploy/helm/zt", wrong])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("schema"),
            "{wrong}: {said}"
        );
    }
    Ok(())
}

/// Run with `ZT_BLESS=1` to write what the chart renders.
#[test]
fn the_manifests_are_what_the_chart_renders() -> Result<()> {
    let directory = root().join("deploy/manifests");
    let mut wanted = rendered(&KEPT)?;
    // A note to people, and hooks, which mean something to `helm uninstall` only.
    wanted.remove("NOTES.txt");
    wanted.remove("detach.yaml");
    let head = "# SPDX-License-Identifier: Apache-2.0\n# Rendered from deploy/helm/zt, and kept the same by a test. Change the chart.\n";
    let wanted: BTreeMap<String, String> = wanted
        .into_iter()
        .map(|(name, text)| {
            // What is not a template has the licence's line already.
            let text = text.trim_start_matches("# SPDX-License-Identifier: Apache-2.0\n");
            (name, format!("{head}{}\n", text.trim()))
        })
        .collect();
    if std::env::var_os("ZT_BLESS").is_some() {
        fs::create_dir_all(&directory)?;
        for (name, text) in &wanted {
            fs::write(directory.join(name), text)?;
        }
    }
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        found.insert(name, fs::read_to_string(entry.path())?);
    }
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>()
    );
    for (name, text) in found {
        assert!(
            text == wanted[&name],
            "deploy/manifests/{name} is not what the chart renders: run this test with ZT_BLESS=1"
        );
    }
    Ok(())
}

#[test]
fn every_manifest_is_of_its_type() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let everything = [
        "createNamespace=true",
        "metrics.serviceMonitor.enabled=true",
        "metrics.rules.enabled=true",
        "metrics.dashboard.enabled=true,databaseRoles=true",
        "spire.clusterSPIFFEIDs.workloads=true",
        "spire.clusterSPIFFEIDs.className=zt",
        "spire.adminGroup=1000000",
        "agent.priorityQuota=true",
        "agent.auditSecret.name=zt-secrets",
        "image.pullSecrets[0].name=registry",
        "networkPolicy.monitoringNamespaces.matchLabels.name=monitoring",
        "networkPolicy.from[0].ipBlock.cidr=10.0.0.0/16",
        "networkPolicy.egress[0].ports[0].port=5432",
        "agent.config.policySource=kubernetes",
        "engine.config.policySource=kubernetes",
        "agent.config.identity.source={spire,kubernetes}",
        "agent.config.identity.nri.socket=/var/run/nri/nri.sock",
    ];
    let mut files: Vec<String> = ["agent", "controller-manager", "crds", "server"]
        .iter()
        .map(|name| format!("deploy/spire/{name}.yaml"))
        .collect();
    for (number, values) in [&KEPT[..], &everything[..]].into_iter().enumerate() {
        for (name, text) in rendered(values)? {
            if name != "NOTES.txt" {
                let file = directory.path().join(format!("{number}-{name}"));
                fs::write(&file, text)?;
                files.push(file.display().to_string());
            }
        }
    }
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    let output = check(&names)?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for kind in [
        "apps/v1 DaemonSet",
        "apps/v1 Deployment",
        "batch/v1 Job",
        "rbac.authorization.k8s.io/v1 ClusterRole",
        "monitoring.coreos.com/v1 ServiceMonitor",
        "monitoring.coreos.com/v1 PrometheusRule",
    ] {
        let line = said.lines().find(|line| line.contains(kind));
        assert!(
            line.is_some_and(|line| line.ends_with(kind)),
            "{kind} has no types: {said}"
        );
    }
    // A slip is found.
    let slip = directory.path().join("slip.yaml");
    let files = rendered(&everything)?;
    for (name, right, wrong) in [
        ("agent.yaml", "hostPID:", "hostPid:"),
        ("metrics.yaml", "interval:", "intervall:"),
        ("metrics.yaml", "jobLabel:", "joblabel:"),
        ("metrics.yaml", "expr:", "expression:"),
    ] {
        assert!(files[name].contains(right), "{name} has no {right}");
        fs::write(&slip, files[name].replace(right, wrong))?;
        let output = check(&[slip.to_str().context("plain letters")?])?;
        let said = String::from_utf8_lossy(&output.stderr);
        let word = wrong.trim_end_matches(':');
        assert!(!output.status.success() && said.contains(word), "{wrong}: {said}");
    }
    Ok(())
}

/// Who may reach the engines, and what they may, is open until somebody says otherwise.
#[test]
fn the_network_of_the_engines_is_as_narrow_as_is_said() -> Result<()> {
    let policy = |values: &[&str]| -> Result<String> {
        let text = rendered(values)?["engine.yaml"].clone();
        let policy = text
            .split("\n---\n")
            .find(|part| part.contains("kind: NetworkPolicy"));
        Ok(policy.context("a NetworkPolicy")?.to_owned())
    };
    let open = policy(&[])?;
    assert!(
        open.contains("policyTypes: [Ingress]\n") && !open.contains("from:") && !open.contains("egress:")
    );
    let narrow = policy(&[
        "networkPolicy.from[0].ipBlock.cidr=10.0.0.0/16",
        "networkPolicy.egress[0].to[0].ipBlock.cidr=10.0.3.7/32",
        "networkPolicy.egress[0].ports[0].port=5432",
    ])?;
    assert!(narrow.contains("policyTypes: [Ingress, Egress]\n"), "{narrow}");
    let lines: Vec<&str> = narrow.lines().map(str::trim).collect();
    let policy_port = lines.iter().position(|line| line.contains("port: policy"));
    let after = &lines[policy_port.context("the port of the policy")? + 1..];
    assert_eq!(
        after[..3],
        ["from:", "- ipBlock:", "cidr: 10.0.0.0/16"],
        "{narrow}"
    );
    let egress = narrow.split("egress:\n").nth(1).context("egress")?;
    assert_eq!(
        egress.matches("\n    - ").count(),
        2,
        "DNS and the database: {egress}"
    );
    assert!(
        egress.contains("port: 53,") && egress.contains("cidr: 10.0.3.7/32") && egress.contains("port: 5432")
    );
    Ok(())
}

/// The page says what the chart does.
#[test]
fn the_page_about_upgrades_knows_how_long_an_agent_must_be_ready() -> Result<()> {
    let chart = read("deploy/manifests/agent.yaml")?;
    let seconds = chart
        .lines()
        .find_map(|line| line.trim().strip_prefix("minReadySeconds: "));
    let words = format!("been ready for {} seconds", seconds.context("minReadySeconds")?);
    let page = read("docs/upgrading.md")?.replace('\n', " ");
    assert!(page.contains(&words), "docs/upgrading.md does not say: {words}");
    Ok(())
}

#[test]
fn rights_are_asked_for_where_they_are_used() -> Result<()> {
    let agent = |values: &[&str]| -> Result<String> { Ok(rendered(values)?["agent.yaml"].clone()) };
    let plain = agent(&["agent.config.identity.source={spire}"])?;
    assert!(!plain.contains("ClusterRole") && plain.contains("automountServiceAccountToken: false"));
    let pods = agent(&[])?;
    assert!(pods.contains("resources: [pods, nodes, services]") && pods.contains("verbs: [list, watch]"));
    assert!(!pods.contains("serviceaccesspolicies") && !pods.contains("secrets"));
    assert!(pods.contains("automountServiceAccountToken: true"));
    // A node that is taken over changes no policy; an engine does, for those who ask it.
    let policies = agent(&["agent.config.policySource=kubernetes"])?;
    assert!(policies.contains("serviceaccesspolicies"));
    let verbs = policies.lines().filter(|line| line.contains("verbs:"));
    assert!(
        verbs
            .into_iter()
            .all(|line| line.trim() == "verbs: [list, watch]")
    );
    let engine = rendered(&["engine.config.policySource=kubernetes"])?["engine.yaml"].clone();
    assert!(engine.contains("verbs: [list, watch, create, update, delete]"));
    assert!(engine.contains("serviceaccesspolicies/status") && engine.contains("verbs: [update]"));
    Ok(())
}

/// The values of the quick start for a cluster without SPIRE.
#[test]
fn without_spire_nothing_of_it_is_asked_for() -> Result<()> {
    let values = [
        "agent.config.identity.source={kubernetes}",
        "agent.config.api.tls=null",
        "engine.enabled=false",
        "spire.clusterSPIFFEIDs.own=false",
    ];
    let page = read("docs/quick-start.md")?;
    for value in values {
        assert!(
            page.contains(&format!("`{value}`")),
            "docs/quick-start.md: {value}"
        );
    }
    let files = rendered(&values)?;
    let agent = &files["agent.yaml"];
    let config = load(&block(agent, "agent.yaml")?)?;
    assert!(!config.api.tls.spire && !config.identity.has(IdentitySource::Spire));
    // Neither directories of its sockets nor resources of its controller manager.
    assert!(
        !agent.contains("spire-socket") && !agent.contains("spire-admin"),
        "{agent}"
    );
    assert!(files.values().all(|text| !text.contains("spire.spiffe.io")));
    assert!(!files.contains_key("engine.yaml"));
    Ok(())
}

/// Nodes and pods that have no IPv4 address.
#[test]
fn with_ipv6_alone_it_listens_there() -> Result<()> {
    let files = rendered(&[
        "agent.config.api.health=[::]:8055",
        "engine.config.api.health=[::]:8055",
        "engine.config.api.listen=[::]:8054",
    ])?;
    for file in ["agent.yaml", "engine.yaml"] {
        let config = load(&block(&files[file], file)?)?;
        assert_eq!(config.api.health.to_string(), "[::]:8055", "{file}");
    }
    Ok(())
}

#[test]
fn the_container_runtime_is_reached_where_that_is_asked_for() -> Result<()> {
    let agent = |values: &[&str]| -> Result<String> { Ok(rendered(values)?["agent.yaml"].clone()) };
    assert!(!agent(&[])?.contains("nri"));
    let manifest = agent(&["agent.config.identity.nri.socket=/var/run/nri/nri.sock"])?;
    assert!(manifest.contains("{name: nri, mountPath: /var/run/nri, readOnly: true}"));
    assert!(manifest.contains("hostPath: {path: /var/run/nri, type: DirectoryOrCreate}"));
    let config = load(&block(&manifest, "agent.yaml")?)?;
    assert_eq!(
        config.identity.nri_socket.as_deref(),
        Some(Path::new("/var/run/nri/nri.sock"))
    );
    Ok(())
}
