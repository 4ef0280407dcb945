// SPDX-License-Identifier: Apache-2.0
//! A real `kube-apiserver` on a real etcd, on loopback, gone with the test however that ends.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use zt_tests::http::Answer;
use zt_tests::ports;
use zt_tests::{Cgroup, Sandbox, eventually};

use super::LATER;

/// Who may do everything.
const ADMIN: &str = "admin-of-this-test";
/// What virtual addresses are taken from.
const SERVICE_NETWORK: &str = "10.96.0.0/16";
/// Where the API server says that it is; the test asks it on loopback.
const ADVERTISED: &str = "192.0.2.250";

/// One at a time: starting one is work for two cores.
static ONE: Mutex<()> = Mutex::new(());

/// Both programs. What is in etcd stays when the API server is stopped.
pub(crate) struct Cluster {
    directory: PathBuf,
    /// Where both run, so that they are swept up when this process is killed.
    cgroup: Cgroup,
    etcd: Option<Child>,
    server: Option<Child>,
    etcd_at: SocketAddr,
    at: SocketAddr,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts both and waits until the API server is ready.
    pub(crate) fn start(sandbox: &Sandbox) -> Result<Self> {
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = sandbox.directory().join("cluster");
        fs::create_dir_all(&directory)?;
        let (etcd_at, peers, at) = (ports::free()?, ports::free()?, ports::free()?);
        let mut cluster = Self {
            directory,
            cgroup: sandbox.outside().child("cluster")?,
            etcd: None,
            server: None,
            etcd_at,
            at,
            _alone: alone,
        };
        cluster.write("tokens.csv", &format!("{ADMIN},admin,1,\"system:masters\"\n"))?;
        let key = rcgen::KeyPair::generate()?;
        cluster.write("accounts.key", &key.serialize_pem())?;
        cluster.write("accounts.pub", &key.public_key_pem())?;
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir")
            .arg(cluster.directory.join("etcd"))
            .args(["--listen-client-urls", &format!("http://{etcd_at}")])
            .args(["--advertise-client-urls", &format!("http://{etcd_at}")])
            .args(["--listen-peer-urls", &format!("http://{peers}")]);
        cluster.etcd = Some(cluster.launch(etcd, "etcd")?);
        cluster.start_server()?;
        Ok(cluster)
    }

    /// Starts the API server, at the same address as before, and waits until it is ready.
    pub(crate) fn start_server(&mut self) -> Result<()> {
        let program = std::env::var_os("ZT_KUBE_APISERVER")
            .context("ZT_KUBE_APISERVER is not set: run `cargo xtask test apiserver`")?;
        let file = |name: &str| self.directory.join(name).display().to_string();
        let mut command = Command::new(program);
        command
            .arg(format!("--etcd-servers=http://{}", self.etcd_at))
            .arg(format!("--secure-port={}", self.at.port()))
            .arg(format!("--bind-address={}", self.at.ip()))
            .arg(format!("--advertise-address={ADVERTISED}"))
            .arg(format!("--cert-dir={}", file("certs")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", file("accounts.pub")))
            .arg(format!(
                "--service-account-signing-key-file={}",
                file("accounts.key")
            ))
            .arg(format!("--service-cluster-ip-range={SERVICE_NETWORK}"))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .arg("--authorization-mode=RBAC")
            // Nobody is there who would make a service account for each namespace.
            .arg("--disable-admission-plugins=ServiceAccount");
        self.server = Some(self.launch(command, "apiserver")?);
        let ready = eventually("the API server to be ready", LATER, || {
            for (who, child) in [("etcd", &mut self.etcd), ("apiserver", &mut self.server)] {
                if let Some(status) = child.as_mut().context("it was started")?.try_wait()? {
                    bail!("{who} ended with {status}");
                }
            }
            // Its certificate is not there at first, and nobody listens.
            let answer = self.request("GET", "/readyz", "", "");
            Ok(answer.is_ok_and(|answer| answer.status == 200))
        });
        ready.with_context(|| self.logs())
    }

    /// Ends the API server, as a crash would.
    pub(crate) fn stop_server(&mut self) -> Result<()> {
        end(self.server.take().context("the API server runs")?)
    }

    /// Makes an object in a collection, and returns it as the API server has it.
    pub(crate) fn create(&self, collection: &str, object: &Value) -> Result<Value> {
        self.json("POST", collection, "application/json", &object.to_string())
    }

    /// Makes an object from a manifest.
    pub(crate) fn create_yaml(&self, collection: &str, manifest: &str) -> Result<Value> {
        self.json("POST", collection, "application/yaml", manifest)
    }

    /// Merges something into an object.
    pub(crate) fn merge(&self, path: &str, change: &Value) -> Result<Value> {
        self.json("PATCH", path, "application/merge-patch+json", &change.to_string())
    }

    /// An object, or a list of them.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        self.json("GET", path, "", "")
    }

    /// Whether an object is there.
    pub(crate) fn has(&self, path: &str) -> Result<bool> {
        let answer = self.request("GET", path, "", "")?;
        ensure!([200, 404].contains(&answer.status), "{path}: {answer:?}");
        Ok(answer.status == 200)
    }

    /// Deletes an object. A pod is gone after so many seconds or when its kubelet says so, and at once with 0.
    pub(crate) fn delete(&self, path: &str, grace: u32) -> Result<()> {
        let path = format!("{path}?gracePeriodSeconds={grace}");
        self.json("DELETE", &path, "", "").map(drop)
    }

    /// What the API server answers to the administrator.
    pub(crate) fn request(&self, method: &str, path: &str, kind: &str, body: &str) -> Result<Answer> {
        self.request_as(ADMIN, method, path, kind, body)
    }

    /// What the API server answers to whoever has this token.
    pub(crate) fn request_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> Result<Answer> {
        let mut curl = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*"])
            .arg("--cacert")
            .arg(self.authority())
            .args(["--request", method, "--write-out", "\\n%{http_code}"])
            .args(["--header", &format!("Authorization: Bearer {token}")])
            .args(["--header", &format!("Content-Type: {kind}")])
            .args(["--data-binary", "@-"])
            .arg(format!("https://{}{path}", self.at))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run curl")?;
        let mut input = curl.stdin.take().context("its input")?;
        // One that could not connect does not read it, and says so below.
        let _ = input.write_all(body.as_bytes());
        drop(input);
        let output = curl.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{method} {path}: {errors}");
        let said = String::from_utf8(output.stdout)?;
        let (body, status) = said.rsplit_once('\n').context("a status")?;
        Ok(Answer {
            status: status.parse()?,
            body: body.to_owned(),
        })
    }

    /// Writes the kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig_of("admin", ADMIN)
    }

    /// Writes a kubeconfig with a token.
    pub(crate) fn kubeconfig_of(&self, name: &str, token: &str) -> Result<PathBuf> {
        let cluster = json!({
            "server": format!("https://{}", self.at),
            "certificate-authority": self.authority(),
        });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        });
        self.write(&format!("kubeconfig-{name}"), &config.to_string())
    }

    fn json(&self, method: &str, path: &str, kind: &str, body: &str) -> Result<Value> {
        let answer = self.request(method, path, kind, body)?.success();
        answer.with_context(|| format!("{method} {path} {body}"))?.json()
    }

    /// The certificate that it made for itself, and that one's authority.
    fn authority(&self) -> PathBuf {
        self.directory.join("certs/apiserver.crt")
    }

    /// Writes a file beside those of the two.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Starts one more program beside them, whose words are in the log of that name.
    pub(crate) fn launch(&self, mut command: Command, who: &str) -> Result<Child> {
        let log: File = OpenOptions::new().create(true).append(true).open(self.log(who))?;
        let child = command
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        self.cgroup.add(child.id())?;
        Ok(child)
    }

    /// Where one of them writes what it has to say.
    pub(crate) fn log(&self, who: &str) -> PathBuf {
        self.directory.join(format!("{who}.log"))
    }

    /// The last of what both have said.
    fn logs(&self) -> String {
        let last = |path: &Path| {
            let log = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        format!(
            "etcd:\n{}\nkube-apiserver:\n{}",
            last(&self.log("etcd")),
            last(&self.log("apiserver"))
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in [self.server.take(), self.etcd.take()].into_iter().flatten() {
            let _ = end(child);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// Ends a program, as a crash would.
pub(crate) fn end(mut child: Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}
