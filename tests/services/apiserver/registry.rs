// SPDX-License-Identifier: Apache-2.0
//! A SPIRE as `deploy/spire/` has it, beside the real API server: its server, its agent and the spire-controller-manager, each
//! with the settings of its `ConfigMap` and the rights of its role. Only the kubelet and the database are missing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::ensure;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use zt_tests::ports;

use super::cluster::end;
use super::manifests::{files, head, make, rendered};
use super::*;

const ACCOUNTS: &str = "/api/v1/namespaces/spire/serviceaccounts";
/// What a `StatefulSet` or a `DaemonSet` would start is started here.
const NOT_MADE: [&str; 9] = [
    "StatefulSet",
    "DaemonSet",
    "Deployment",
    "Job",
    "Service",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "ServiceMonitor",
    "PrometheusRule",
];

/// What was started, and ends with the test.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.0.drain(..) {
            let _ = end(child);
        }
    }
}

/// The settings in a `ConfigMap`, with the places of this test in place of the pod's.
fn settings(manifests: &[String], key: &str, changes: &[(&str, String)]) -> Result<String> {
    let marker = format!("  {key}: |\n");
    let (_, text) = manifests
        .iter()
        .find_map(|manifest| manifest.split_once(&marker))
        .with_context(|| format!("no {key}"))?;
    let inside = text
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "));
    let mut text: String = inside
        .flat_map(|line| [line.get(4..).unwrap_or(""), "\n"])
        .collect();
    for (from, to) in changes {
        ensure!(text.contains(from), "{key} has no {from}: {text}");
        text = text.replace(from, to);
    }
    Ok(text)
}

/// SPIRE and its controller manager beside an API server.
pub(crate) struct Registry {
    pub(crate) cluster: Cluster,
    manifests: Vec<String>,
    running: Running,
    spire: PathBuf,
    pub(crate) node_uid: String,
    // Its name is short: that of a socket has a limit.
    place: tempfile::TempDir,
    _sandbox: Sandbox,
}

impl Registry {
    /// A cluster with one node and everything of both sets of manifests but the workloads.
    pub(crate) fn new() -> Result<Self> {
        let sandbox = Sandbox::new("apiserver-registration")?;
        let cluster = Cluster::start(&sandbox)?;
        let mut manifests = files("deploy/spire")?;
        manifests.extend(rendered(&[
            "createNamespace=true",
            "spire.clusterSPIFFEIDs.workloads=true",
        ])?);
        let rank = |document: &String| match head(document, "kind") {
            "Namespace" => 0,
            "CustomResourceDefinition" => 1,
            _ => 2,
        };
        manifests.sort_by_key(rank);
        for document in manifests
            .iter()
            .filter(|text| !NOT_MADE.contains(&head(text, "kind")))
        {
            make(&cluster, document)?;
        }
        // Static pods have their entries on nodes of the control plane alone.
        let labels = json!({ "node-role.kubernetes.io/control-plane": "" });
        let node = cluster.create(
            "/api/v1/nodes",
            &json!({ "metadata": { "name": NODE, "labels": labels } }),
        )?;
        let spire =
            std::env::var_os("ZT_SPIRE").context("ZT_SPIRE is not set: run `cargo xtask test apiserver`")?;
        Ok(Self {
            node_uid: node["metadata"]["uid"].as_str().context("a uid")?.to_owned(),
            cluster,
            manifests,
            running: Running(Vec::new()),
            spire: spire.into(),
            place: tempfile::Builder::new().prefix("zt-reg-").tempdir_in("/tmp")?,
            _sandbox: sandbox,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn quoted(&self, name: &str) -> String {
        format!("\"{}\"", self.path(name).display())
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// The kubeconfig of a service account of the namespace `spire`: it has the rights that the manifests give it.
    fn kubeconfig(&self, account: &str) -> Result<PathBuf> {
        let token = self.token(account, &json!({}))?;
        self.cluster.kubeconfig_of(account, &token)
    }

    pub(crate) fn token(&self, account: &str, spec: &Value) -> Result<String> {
        let request =
            json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let answer = self
            .cluster
            .create(&format!("{ACCOUNTS}/{account}/token"), &request)?;
        Ok(answer["status"]["token"].as_str().context("a token")?.to_owned())
    }

    fn launch(&mut self, command: Command, who: &str) -> Result<()> {
        let child = self.cluster.launch(command, who)?;
        self.running.0.push(child);
        Ok(())
    }

    /// What `spire-server` of the command line says.
    pub(crate) fn server(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.spire.join("spire-server"))
            .args(arguments)
            .arg("-socketPath")
            .arg(self.path("api.sock"))
            .output()?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(crate) fn log(&self, who: &str) -> String {
        let text = fs::read_to_string(self.cluster.log(who)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Starts the server with the settings of `server.yaml`.
    pub(crate) fn start_server(&mut self) -> Result<SocketAddr> {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        self.write("root.crt", &root.self_signed(&key)?.pem())?;
        self.write("root.key", &key.serialize_pem())?;
        let kubeconfig = self.kubeconfig("spire-server")?;
        let (at, health) = ports::two()?;
        let text = settings(
            &self.manifests,
            "server.conf",
            &[
                ("\"0.0.0.0\"", "\"127.0.0.1\"".to_owned()),
                ("\"8081\"", format!("\"{}\"", at.port())),
                ("\"8080\"", format!("\"{}\"", health.port())),
                ("\"/run/spire/server/api.sock\"", self.quoted("api.sock")),
                ("\"/var/lib/spire\"", self.quoted("server")),
                ("\"/var/lib/spire/keys.json\"", self.quoted("keys.json")),
                ("\"/run/spire/root/root.crt\"", self.quoted("root.crt")),
                ("\"/run/spire/root/root.key\"", self.quoted("root.key")),
                ("\"postgres\"", "\"sqlite3\"".to_owned()),
                ("\"${DATASTORE}\"", self.quoted("server.db")),
                (
                    "[\"spire:spire-agent\"]",
                    format!(
                        "[\"spire:spire-agent\"]\nkube_config_file = \"{}\"",
                        kubeconfig.display()
                    ),
                ),
                (
                    "config_map = \"spire-bundle\"",
                    format!(
                        "config_map = \"spire-bundle\"\nkube_config_file_path = \"{}\"",
                        kubeconfig.display()
                    ),
                ),
            ],
        )?;
        let file = self.write("server.conf", &text)?;
        let mut command = Command::new(self.spire.join("spire-server"));
        command.args(["run", "-config"]).arg(file);
        self.launch(command, "spire-server")?;
        let healthy = eventually("the SPIRE server to answer", LATER, || {
            Ok(self.server(&["healthcheck"]).is_ok())
        });
        healthy.with_context(|| self.log("spire-server"))?;
        Ok(at)
    }

    /// Starts the agent with the settings of `agent.yaml`, as the pod that has this token.
    pub(crate) fn start_agent(&mut self, server: SocketAddr, token: &str) -> Result<()> {
        // As the kubelet mounts them.
        let bundle = wait_for("the bundle to be told", LATER, || {
            let found = self
                .cluster
                .get("/api/v1/namespaces/spire/configmaps/spire-bundle")?;
            Ok(found["data"]["bundle.crt"].as_str().map(str::to_owned))
        });
        self.write("bundle.crt", &bundle.with_context(|| self.log("spire-server"))?)?;
        self.write("token", token)?;
        let health = ports::free()?;
        let text = settings(
            &self.manifests,
            "agent.conf",
            &[
                ("\"spire-server.spire.svc\"", "\"127.0.0.1\"".to_owned()),
                ("\"8081\"", format!("\"{}\"", server.port())),
                ("\"9982\"", format!("\"{}\"", health.port())),
                ("\"INFO\"", "\"DEBUG\"".to_owned()),
                ("\"/var/lib/spire/agent\"", self.quoted("agent")),
                ("\"/run/spire/bundle/bundle.crt\"", self.quoted("bundle.crt")),
                (
                    "\"/run/spire/sockets/agent.sock\"",
                    self.quoted("public/agent.sock"),
                ),
                ("\"/run/spire/admin/admin.sock\"", self.quoted("admin/admin.sock")),
                (
                    "{ cluster = \"hanzo-k8s\" }",
                    format!(
                        "{{\ncluster = \"hanzo-k8s\"\ntoken_path = {}\n}}",
                        self.quoted("token")
                    ),
                ),
                (
                    "# skip_kubelet_verification = true",
                    format!(
                        "skip_kubelet_verification = true\ntoken_path = {}",
                        self.quoted("token")
                    ),
                ),
            ],
        )?;
        fs::create_dir_all(self.path("agent"))?;
        let file = self.write("agent.conf", &text)?;
        let mut command = Command::new(self.spire.join("spire-agent"));
        command.args(["run", "-config"]).arg(file);
        self.launch(command, "spire-agent")
    }

    /// Starts the controller manager with the settings of `controller-manager.yaml` and the variables of `server.yaml`.
    pub(crate) fn start_manager(&mut self) -> Result<()> {
        let program = std::env::var_os("ZT_CONTROLLER_MANAGER");
        let program =
            program.context("ZT_CONTROLLER_MANAGER is not set: run `cargo xtask test apiserver`")?;
        let health = ports::free()?;
        let text = settings(
            &self.manifests,
            "config.yaml",
            &[
                (
                    "/run/spire/server/api.sock",
                    self.path("api.sock").display().to_string(),
                ),
                ("\":8083\"", format!("\"127.0.0.1:{}\"", health.port())),
            ],
        )?;
        let file = self.write("manager.yaml", &text)?;
        let pod = self
            .manifests
            .iter()
            .find(|text| head(text, "kind") == "StatefulSet");
        ensure!(
            pod.is_some_and(|text| text.contains("{name: ENABLE_WEBHOOKS, value: \"false\"}")),
            "server.yaml switches the webhook off"
        );
        let mut command = Command::new(program);
        command
            .arg(format!("--config={}", file.display()))
            .env("ENABLE_WEBHOOKS", "false")
            .env("KUBECONFIG", self.kubeconfig("spire-server")?);
        self.launch(command, "spire-controller-manager")
    }

    /// Makes a pod on the one node. Returns its uid.
    pub(crate) fn pod(&self, namespace: &str, name: &str, account: &str, labels: &Value) -> Result<String> {
        let pod = self.cluster.create(
            &format!("/api/v1/namespaces/{namespace}/pods"),
            &json!({
                "metadata": { "name": name, "labels": labels },
                "spec": {
                    "nodeName": NODE,
                    "serviceAccountName": account,
                    "containers": [{ "name": "app", "image": "registry.invalid/app" }],
                },
            }),
        )?;
        Ok(pod["metadata"]["uid"].as_str().context("a uid")?.to_owned())
    }

    /// The entries: for each its SPIFFE ID, that of its parent, hint, selectors and names.
    fn entries(&self) -> Result<BTreeSet<String>> {
        let answer: Value = serde_json::from_str(&self.server(&["entry", "show", "-output", "json"])?)?;
        let id = |id: &Value| {
            let text = |key: &str| id[key].as_str().unwrap_or_default().to_owned();
            format!("spiffe://{}{}", text("trust_domain"), text("path"))
        };
        let list = |values: &Value, each: &dyn Fn(&Value) -> String| -> String {
            let values = values.as_array().cloned().unwrap_or_default();
            values.iter().map(each).collect::<Vec<_>>().join(",")
        };
        let entries = answer["entries"].as_array().cloned().unwrap_or_default();
        let line = |entry: &Value| {
            let selector = |each: &Value| {
                let text = |key: &str| each[key].as_str().unwrap_or_default().to_owned();
                format!("{}:{}", text("type"), text("value"))
            };
            let name = |each: &Value| each.as_str().unwrap_or_default().to_owned();
            format!(
                "{} of {} hint={} for {} dns={}",
                id(&entry["spiffe_id"]),
                id(&entry["parent_id"]),
                entry["hint"].as_str().unwrap_or_default(),
                list(&entry["selectors"], &selector),
                list(&entry["dns_names"], &name),
            )
        };
        Ok(entries.iter().map(line).collect())
    }

    /// Waits until there are just these entries.
    pub(crate) fn wait_entries(&self, wanted: &BTreeSet<String>) -> Result<()> {
        let mut last = BTreeSet::new();
        let done = eventually("the entries to be those", LATER, || {
            last = self.entries()?;
            Ok(&last == wanted)
        });
        done.with_context(|| {
            format!(
                "wanted {wanted:#?}\nlast {last:#?}\n{}",
                self.log("spire-controller-manager")
            )
        })
    }
}
