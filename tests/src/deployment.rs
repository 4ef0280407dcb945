// SPDX-License-Identifier: Apache-2.0
//! The specification's Deployment of the policy engine, as it stands there, started as a kubelet has it started: in the file
//! system of an image, in mounts and a network of its own.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use zt_agent::kernel::netns;

use crate::{http, wait_for};

/// HIP-54, "Policy Engine".
pub const MANIFEST: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: zt-policy-engine
  namespace: hanzo
spec:
  replicas: 3
  template:
    spec:
      containers:
        - name: zt
          image: ghcr.io/hanzoai/zt:latest
          ports:
            - containerPort: 8054
              name: policy
            - containerPort: 8055
              name: health
          env:
            - name: ZT_SPIRE_SOCKET
              value: /run/spire/sockets/agent.sock
            - name: ZT_POLICY_PATH
              value: /etc/zt/policies/
            - name: ZT_AUDIT_DSN
              valueFrom:
                secretKeyRef:
                  name: zt-secrets
                  key: AUDIT_DATABASE_URL
          resources:
            requests:
              memory: \"128Mi\"
              cpu: \"100m\"
            limits:
              memory: \"512Mi\"
              cpu: \"500m\"
          readinessProbe:
            httpGet:
              path: /healthz
              port: 8055
            initialDelaySeconds: 5
            periodSeconds: 10
          livenessProbe:
            httpGet:
              path: /healthz
              port: 8055
            initialDelaySeconds: 15
            periodSeconds: 30
";

const DEADLINE: Duration = Duration::from_secs(60);

/// Mounts and a network of its own, as a container has them; then it becomes the program.
const ENTER: &str = "set -e
root=$1 user=$2 borrowed=$3; shift 3
for directory in $borrowed; do
    mount --bind \"/$directory\" \"$root/$directory\"
done
mount --bind /dev \"$root/dev\"
mount -t proc proc \"$root/proc\"
ip link set lo up
exec chroot --userspec=\"$user\" --groups= \"$root\" \"$@\"";

/// The file system of a container, and who runs in it.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// Where it is on this machine.
    pub root: &'a Path,
    /// User and group, by their numbers.
    pub user: &'a str,
    /// Directories of this machine that stand for those of the image, separated by spaces, without the first slash.
    pub borrowed: &'a str,
}

impl Container<'_> {
    /// A command that runs this program with these arguments in it, with no variable but `PATH`.
    pub fn command(&self, program: &[String]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "sh", "-c", ENTER, "sh"])
            .arg(self.root)
            .args([self.user, self.borrowed])
            .args(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        command
    }

    /// Starts the image's own program as the manifest has it, and waits until it is healthy and ready, and the port of the
    /// policy is open.
    pub fn starts_an_engine(&self, program: &[String]) -> Result<()> {
        ensure!(
            !MANIFEST.contains("args:") && !MANIFEST.contains("command:"),
            "so the image's own count"
        );
        // Nobody listens there: records wait in the spool.
        let environment = environment("postgres://zt_engine@127.0.0.1:1/zt");
        let names: Vec<&str> = environment.iter().map(|(name, _)| name.as_str()).collect();
        ensure!(
            names == ["ZT_SPIRE_SOCKET", "ZT_POLICY_PATH", "ZT_AUDIT_DSN"],
            "{names:?}"
        );
        let log = tempfile::NamedTempFile::new()?;
        let child = self
            .command(program)
            // As the kubelet does for the Services of the namespace.
            .env("ZT_POLICY_ENGINE_SERVICE_HOST", "10.0.0.1")
            .env("ZT_POLICY_ENGINE_PORT", "tcp://10.0.0.1:8054")
            .envs(environment)
            .stdout(Stdio::null())
            .stderr(log.reopen()?)
            .spawn()?;
        let mut running = Running(child);
        let namespace = format!("/proc/{}/ns/net", running.0.id());
        for probe in ["/healthz", "/readyz"] {
            let answered = wait_for(probe, DEADLINE, || {
                if let Some(status) = running.0.try_wait()? {
                    bail!("it ended with {status}");
                }
                // Before it is in its own namespace, this address is somebody else's.
                if fs::read_link(&namespace)? == fs::read_link("/proc/self/ns/net")? {
                    return Ok(None);
                }
                let answer = netns::inside(&File::open(&namespace)?, || {
                    http::get("127.0.0.1:8055".parse().ok()?, probe).ok()
                })?;
                Ok(answer.filter(|answer| answer.status == 200).map(drop))
            });
            answered.with_context(|| fs::read_to_string(log.path()).unwrap_or_default())?;
        }
        // The port of the policy is open, to who has a certificate.
        let open = netns::inside(&File::open(&namespace)?, || {
            std::net::TcpStream::connect("127.0.0.1:8054").is_ok()
        })?;
        ensure!(open, "nobody listens on 8054");
        ensure!(self.root.join("var/lib/zt/spool.db").exists(), "no spool");
        Ok(())
    }
}

/// The variables that the manifest sets; a secret has this value.
fn environment(secret: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let inside = MANIFEST.lines().skip_while(|line| line.trim() != "env:").skip(1);
    for line in inside.take_while(|line| line.starts_with("            ")) {
        if let Some(name) = line.trim().strip_prefix("- name: ") {
            found.push((name.to_owned(), secret.to_owned()));
        } else if let (Some(value), Some(last)) = (line.trim().strip_prefix("value: "), found.last_mut()) {
            value.clone_into(&mut last.1);
        }
    }
    found
}

/// A container's process, killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
