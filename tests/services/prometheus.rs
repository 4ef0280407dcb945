// SPDX-License-Identifier: Apache-2.0
//! The metrics as a real Prometheus scrapes them, and the alerts as it evaluates them.
//!
//! It is the parser that those who run zt have: it asks for `OpenMetrics` by its own Accept header, and refuses a whole
//! scrape for one line that it cannot read. `promtool check metrics` reads only the older text format.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_agent::identity::spire;
use zt_agent::metrics::{CONTENT_TYPE, Metrics};
use zt_tests::postgres::Server;
use zt_tests::{Engine, KubeApi, Policy, Scene, TCP, eventually, http, ports, spiffe, wait_for};

/// Longer than a scrape takes on a busy machine.
const LATER: Duration = Duration::from_secs(150);

/// The alerts, where they are deployed from.
fn rules() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

fn promtool(arguments: &[&str]) -> Result<()> {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(rules())
        .output()
        .context("promtool is not installed: run `cargo xtask setup`")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "promtool {arguments:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn the_alerts_are_valid_and_fire_when_they_should() -> Result<()> {
    promtool(&["check", "rules", "--lint-fatal", "zt.rules.yaml"])?;
    promtool(&["test", "rules", "zt.rules.test.yaml"])
}

/// A Prometheus that scrapes these every few seconds; it ends with the test.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    log: std::path::PathBuf,
}

/// The address of a question about the series of one job.
fn selected(what: &str, parameter: &str, job: &str) -> String {
    format!("/api/v1/{what}?{parameter}=%7Bjob%3D%22{job}%22%7D")
}

impl Prometheus {
    fn start(home: &Path, targets: &[(&str, SocketAddr)]) -> Result<Self> {
        fs::create_dir_all(home)?;
        let jobs: Vec<Value> = targets
            .iter()
            .map(|(job, target)| json!({"job_name": job, "static_configs": [{"targets": [target]}]}))
            .collect();
        let config = json!({
            // A scrape may take as long as the interval, and on a busy machine it takes more than a second.
            "global": {"scrape_interval": "10s", "scrape_timeout": "10s", "evaluation_interval": "1s"},
            "rule_files": [rules().join("zt.rules.yaml")],
            "scrape_configs": jobs,
        });
        fs::write(home.join("prometheus.yml"), format!("{config:#}\n"))?;
        let address = ports::free()?;
        let log = home.join("log");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", home.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("prometheus is not installed: run `cargo xtask setup`")?;
        let prometheus = Self { child, address, log };
        eventually("Prometheus to be ready", LATER, || {
            Ok(http::get(address, "/-/ready").is_ok_and(|answer| answer.status == 200))
        })?;
        Ok(prometheus)
    }

    fn get(&self, path: &str) -> Result<Value> {
        Ok(http::get(self.address, path)?.success()?.json()?["data"].clone())
    }

    /// Waits until every target has been scraped; an error says what Prometheus has against one.
    fn scraped(&self, count: usize) -> Result<()> {
        let mut against = Value::Null;
        let scraped = wait_for("every target to be scraped", LATER, || {
            let targets = self.get("/api/v1/targets")?;
            let active = targets["activeTargets"].as_array().context("targets")?;
            against = active.iter().map(|target| target["lastError"].clone()).collect();
            let up = active.iter().filter(|target| target["health"] == "up").count();
            Ok((up == count).then_some(()))
        });
        scraped.with_context(|| format!("Prometheus says {against}"))
    }

    /// The types of a job's metrics, by name.
    fn types(&self, job: &str) -> Result<BTreeMap<String, String>> {
        let metadata = self.get(&selected("targets/metadata", "match_target", job))?;
        let all = metadata.as_array().context("a list")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(all
            .iter()
            .map(|one| (text(&one["metric"]), text(&one["type"])))
            .filter(|(name, _)| name.starts_with("zt_"))
            .collect())
    }

    /// The names of a job's series.
    fn names(&self, job: &str) -> Result<BTreeSet<String>> {
        let names = self.get(&selected("label/__name__/values", "match%5B%5D", job))?;
        let all = names.as_array().context("a list")?;
        let names = all.iter().filter_map(Value::as_str);
        Ok(names
            .filter(|name| name.starts_with("zt_"))
            .map(str::to_owned)
            .collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Both fail where it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// The metrics that README's table names.
fn documented() -> Result<BTreeSet<String>> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let section = readme.split("\n## Metrics\n").nth(1).context("a section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
    let words = rows.flat_map(|(names, _)| names.split(['`', '{']));
    Ok(words
        .filter(|word| word.starts_with("zt_"))
        .map(str::to_owned)
        .collect())
}

/// Looks that Prometheus knows each metric of a text as what it is, and has its samples. Returns their names.
fn reads(prometheus: &Prometheus, job: &str, text: &str) -> Result<BTreeSet<String>> {
    let mut declared = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').context("a type")?;
        declared.insert(name.to_owned(), kind.to_owned());
    }
    assert_eq!(prometheus.types(job)?, declared, "{job}");
    let samples: BTreeSet<String> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next().map(str::to_owned))
        .collect();
    let names = prometheus.names(job)?;
    assert_eq!(names, samples, "{job}");
    Ok(names)
}

/// Whether a metric is there only with SPIRE, other nodes' agents or a container runtime.
fn is_of_others(name: &str) -> bool {
    ["zt_spire_", "zt_svid_", "zt_own_svid_", "zt_nri_", "zt_peers"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// The metrics that README tells of and that are not among these, of those that `wanted` takes.
fn missing(seen: &BTreeSet<String>, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let is_seen = |name: &String| seen.contains(name) || seen.contains(&format!("{name}_count"));
    let documented = documented()?.into_iter();
    Ok(documented.filter(|name| wanted(name) && !is_seen(name)).collect())
}

/// Serves a text as an agent serves its metrics, until the test ends.
fn serve(text: String) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who hung up comes again.
            let _ = answer(stream, &text);
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, text: &str) -> io::Result<()> {
    for line in BufReader::new(&stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let length = text.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
    )
}

#[test]
fn a_real_prometheus_reads_what_there_is_of_spire_of_other_nodes_and_of_a_container_runtime() -> Result<()> {
    let metrics = Metrics::new();
    let health = spire::Health::new();
    // As no SPIFFE ID is: all that has to be escaped.
    for service in [spiffe("gateway").as_str(), "a \"b\" \\ c\nd, {e=\"f\"} é"] {
        health.rotated(&Arc::from(service));
    }
    metrics.read_spire(health);
    metrics.read_svid(Arc::default());
    metrics.read_nri(Arc::default());
    metrics.read_peers(Arc::default());
    let text = metrics.encode()?;
    let home = tempfile::tempdir()?;
    let target = serve(text.clone())?;
    let prometheus = Prometheus::start(home.path(), &[("zt-others", target)])?;
    prometheus.scraped(1)?;
    let seen = reads(&prometheus, "zt-others", &text)?;
    let missing = missing(&seen, is_of_others)?;
    ensure!(missing.is_empty(), "README tells of {missing:?}");
    Ok(())
}

#[test]
fn a_real_prometheus_reads_every_metric_of_a_node_and_of_an_engine() -> Result<()> {
    let server = Server::start("fsync = off")?;
    server.sql("GRANT zt_audit_maintainer TO engine")?;
    let mut scene = Scene::new("prometheus")?;
    let (target, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let home = scene.sandbox().directory().to_path_buf();
    let policies = home.join("shared");
    fs::create_dir_all(&policies)?;
    let policy = Policy::new("base").allow("client", "server", TCP, "80");
    fs::write(policies.join("base.yaml"), policy.text())?;
    let mut engine = Engine::new(scene.sandbox(), "engine", &policies)?.on_server(&server.dsn("engine"), 365);
    engine.start()?;
    let kubernetes = KubeApi::start()?;
    let kubeconfig = kubernetes.kubeconfig(&home)?;
    let node = scene
        .agent(&Policy::new("unused"))?
        .env("ZT_IDENTITY_SOURCE", "file,kubernetes")
        .env("ZT_KUBECONFIG", &kubeconfig.display().to_string())
        .config("policySource", json!("engine"))
        .config("policyPath", json!("/nonexistent"))
        .config("engineUrl", json!(engine.url()))
        .config(
            "audit",
            json!({"dsn": server.dsn("node"), "spool": home.join("spool.db"), "keys": home.join("keys")}),
        )
        .start()?;
    // Something of everything: decisions of the kernel, evaluations, names that have to be escaped.
    assert_eq!(client.tcp(target.v4(81))?, "EPERM");
    for name in ["client", "made-up"] {
        let question = json!({
            "source": {"spiffe_id": spiffe(name)},
            "destination": {"spiffe_id": spiffe("server"), "port": 80, "protocol": "TCP"},
        });
        http::post(engine.api(), "/v1/evaluate", &question)?.success()?;
    }
    // A checkpoint is signed within a minute of the first record.
    eventually("a checkpoint of each", LATER, || {
        let signed = |text: &str| text.contains("\nzt_audit_checkpoint_seq ");
        Ok(signed(&node.metrics()?.text) && signed(&engine.metrics()?.text))
    })?;

    let prometheus = Prometheus::start(
        &home.join("prometheus"),
        &[("zt-agent", node.health()), ("zt-engine", engine.health())],
    )?;
    prometheus.scraped(2)?;
    let mut seen = BTreeSet::new();
    for (job, text) in [
        ("zt-agent", node.metrics()?.text),
        ("zt-engine", engine.metrics()?.text),
    ] {
        seen.extend(reads(&prometheus, job, &text)?);
    }
    // Together they have every metric that README tells of, but those that there are only with others.
    let missing = missing(&seen, |name| !is_of_others(name))?;
    ensure!(missing.is_empty(), "README tells of {missing:?}");

    // It evaluates the alerts on them, and where all is well none fires.
    let groups = wait_for("every rule to be evaluated", LATER, || {
        let rules = prometheus.get("/api/v1/rules")?;
        let groups = rules["groups"].as_array().context("groups")?.clone();
        let all = || {
            groups
                .iter()
                .filter_map(|group| group["rules"].as_array())
                .flatten()
        };
        Ok(all().all(|rule| rule["health"] == "ok").then_some(groups.clone()))
    })?;
    ensure!(groups.len() >= 4, "{groups:?}");
    let alerts = prometheus.get("/api/v1/alerts")?;
    let alerts = alerts["alerts"].as_array().context("alerts")?;
    // One that is pending may be of the moment in which all of this was started.
    ensure!(
        alerts.iter().all(|alert| alert["state"] != "firing"),
        "{alerts:?}"
    );
    Ok(())
}
