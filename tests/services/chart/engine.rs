// SPDX-License-Identifier: Apache-2.0
//! The specification's Deployment, as it stands there, on the image as the Dockerfile puts it together.

use std::fs::File;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::process::{Child, Stdio};
use std::time::Duration;

use zt_agent::kernel::netns;
use zt_tests::agent::binary;
use zt_tests::{http, wait_for};

use super::*;

/// HIP-54, "Policy Engine".
const MANIFEST: &str = "\
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

/// The last stage of the Dockerfile: what is copied where and for whom, who runs what.
#[derive(Debug, Default)]
struct Image {
    copies: Vec<(String, String, bool)>,
    user: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
}

fn image() -> Result<Image> {
    let text = read("deploy/Dockerfile")?;
    let (_, last) = text.rsplit_once("\nFROM ").context("two stages")?;
    let mut image = Image::default();
    for line in last.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let exec = || -> Result<Vec<String>> {
            let (_, list) = line.split_once(' ').context("a list")?;
            Ok(serde_json::from_str(list)?)
        };
        match words.first() {
            Some(&"COPY") => {
                let [from, to] = words[words.len() - 2..] else {
                    unreachable!("two words")
                };
                let owned = words.iter().any(|word| word.starts_with("--chown=65532:65532"));
                image.copies.push((from.to_owned(), to.to_owned(), owned));
            }
            Some(&"USER") => words[1].clone_into(&mut image.user),
            Some(&"ENTRYPOINT") => image.entrypoint = exec()?,
            Some(&"CMD") => image.command = exec()?,
            _ => {}
        }
    }
    Ok(image)
}

/// Makes the image's file system in a directory. The base is stood for by the C library of this machine.
fn unpack(image: &Image, to: &Path) -> Result<()> {
    for directory in ["usr/lib", "proc", "dev", "tmp", "etc"] {
        fs::create_dir_all(to.join(directory))?;
    }
    for link in ["lib", "lib64"] {
        symlink(format!("usr/{link}"), to.join(link))?;
    }
    fs::create_dir_all(to.join("usr/lib64"))?;
    for (from, inside, owned) in &image.copies {
        let place = to.join(inside.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a parent")?)?;
        if *owned {
            // Empty directories, made in the stage before.
            fs::create_dir_all(&place)?;
            chown(&place, Some(65532), Some(65532))?;
        } else if from.ends_with("/zt-agent") {
            fs::copy(binary()?, &place)?;
        } else if from.starts_with("/opt/out/") {
            fs::write(&place, "{}")?;
        } else {
            fs::copy(root().join(from), &place).with_context(|| from.clone())?;
        }
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
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

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A mount namespace and a network of its own, as a container has them; then it becomes the program.
const CONTAINER: &str = "set -e
root=$1 user=$2; shift 2
mount --bind /usr/lib \"$root/usr/lib\"
mount --bind /usr/lib64 \"$root/usr/lib64\"
mount --bind /dev \"$root/dev\"
mount -t proc proc \"$root/proc\"
ip link set lo up
exec chroot --userspec=\"$user\" --groups= \"$root\" \"$@\"";

#[test]
fn the_manifest_of_the_specification_starts_an_engine() -> Result<()> {
    let image = image()?;
    assert_eq!(
        (image.user.as_str(), &image.command[..]),
        ("65532:65532", &["engine".to_owned()][..])
    );
    let directory = tempfile::tempdir()?;
    unpack(&image, directory.path())?;
    assert!(
        !MANIFEST.contains("args:") && !MANIFEST.contains("command:"),
        "so the image's own count"
    );
    // Nobody listens there: records wait in the spool.
    let environment = environment("postgres://zt_engine@127.0.0.1:1/zt");
    let names: Vec<&str> = environment.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["ZT_SPIRE_SOCKET", "ZT_POLICY_PATH", "ZT_AUDIT_DSN"]);
    let log = directory.path().join("log");
    let child = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", CONTAINER, "sh"])
        .arg(directory.path())
        .arg(&image.user)
        .args(&image.entrypoint)
        .args(&image.command)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        // As the kubelet does for the Services of the namespace.
        .env("ZT_POLICY_ENGINE_SERVICE_HOST", "10.0.0.1")
        .env("ZT_POLICY_ENGINE_PORT", "tcp://10.0.0.1:8054")
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()?;
    let mut running = Running(child);
    let namespace = format!("/proc/{}/ns/net", running.0.id());
    for probe in ["/healthz", "/readyz"] {
        let answered = wait_for(probe, DEADLINE, || {
            if let Some(status) = running.0.try_wait()? {
                anyhow::bail!("it ended with {status}");
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
        answered.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
    }
    // The port of the policy is open, to who has a certificate.
    let open = netns::inside(&File::open(&namespace)?, || {
        std::net::TcpStream::connect("127.0.0.1:8054").is_ok()
    })?;
    assert!(open);
    assert!(directory.path().join("var/lib/zt/spool.db").exists());
    Ok(())
}
