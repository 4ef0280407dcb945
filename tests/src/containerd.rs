// SPDX-License-Identifier: Apache-2.0
//! Real containerd for a test, with NRI: on sockets and in directories of its own, with process numbers and mounts that end
//! with it, in the network of a [`Host`]. Its containers have what is below `/usr` of this machine.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::network::Host;
use crate::obtained::newest;
use crate::sandbox::Sandbox;
use crate::wait::wait_for;

/// How long anything may take on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(90);
/// The one image, which sandboxes and containers have.
const IMAGE: &str = "localhost/pause:1";
/// What the image gets from the machine.
const FROM_HERE: [&str; 4] = ["usr", "bin", "lib", "lib64"];
/// Enters the cgroup, hides what containerd has in `/run`, and becomes it.
const ENTER: &str = "echo 0 > \"$0/cgroup.procs\" && mount -t tmpfs none /run && exec \"$@\"";

/// A running containerd. It is killed when this is dropped, and all its containers with it.
#[derive(Debug)]
pub struct Containerd {
    programs: PathBuf,
    directory: PathBuf,
    cgroup: Cgroup,
    host: Host,
    child: Option<Child>,
}

/// A pod that containerd runs.
#[derive(Clone, Debug)]
pub struct PodSandbox {
    id: String,
    config: PathBuf,
}

impl Containerd {
    /// Starts one in this host's network, whose plugins may take as long as a test.
    pub fn start(sandbox: &Sandbox, host: &Host) -> Result<Self> {
        let directory = sandbox.directory().join("containerd");
        for part in ["pods", "image", "logs"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let mut containerd = Self {
            programs: programs()?,
            directory,
            cgroup: sandbox.outside().child("containerd")?,
            host: host.clone(),
            child: None,
        };
        fs::write(containerd.directory.join("config.toml"), containerd.settings())?;
        let endpoint = format!("runtime-endpoint: unix://{}\n", containerd.socket().display());
        fs::write(containerd.directory.join("crictl.yaml"), endpoint)?;
        containerd.launch()?;
        containerd.import()?;
        Ok(containerd)
    }

    /// Where it takes plugins.
    pub fn nri_socket(&self) -> PathBuf {
        self.directory.join("nri/nri.sock")
    }

    /// Kills it and all its containers, as a crash of the machine's part would.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            // The first process of its namespace of process numbers goes with it, and all others with that one.
            child.kill()?;
            child.wait()?;
            self.cgroup.kill()?;
        }
        Ok(())
    }

    /// Starts it, after it was killed, and waits until it answers.
    pub fn launch(&mut self) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))?;
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.programs.display());
        let child = self
            .host
            .command("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "--", "sh", "-c", ENTER])
            .arg(self.cgroup.path())
            .arg(self.programs.join("containerd"))
            .arg("--config")
            .arg(self.directory.join("config.toml"))
            .env("PATH", path)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run nsenter and unshare")?;
        let child = self.child.insert(child);
        let (crictl, config) = (self.programs.join("crictl"), self.directory.join("crictl.yaml"));
        let up = wait_for("containerd to answer", PATIENCE, || {
            if let Some(status) = child.try_wait()? {
                bail!("containerd ended with {status}");
            }
            let info = Command::new(&crictl)
                .arg("--config")
                .arg(&config)
                .arg("info")
                .output()?;
            Ok(info.status.success().then_some(()))
        });
        up.with_context(|| self.log_tail())
    }

    /// Runs the sandbox of a pod of the namespace `shop`, whose cgroup is `cgroup`. Its network is that of containerd.
    pub fn run_pod(&self, name: &str, uid: &str, cgroup: &Cgroup) -> Result<PodSandbox> {
        let config = self.directory.join("pods").join(format!("{uid}.json"));
        let pod = json!({
            "metadata": { "name": name, "namespace": "shop", "uid": uid, "attempt": 0 },
            "log_directory": self.directory.join("logs"),
            "linux": {
                "cgroup_parent": Path::new("/").join(cgroup.relative()),
                "security_context": { "namespace_options": { "network": 2, "pid": 1 } },
            },
        });
        fs::write(&config, pod.to_string())?;
        let id = self.crictl(&["runp", &config.to_string_lossy()])?;
        Ok(PodSandbox { id, config })
    }

    /// Makes a container of a pod which will run a command, and returns its id.
    pub fn create(&self, pod: &PodSandbox, name: &str, command: &[&str]) -> Result<String> {
        let mounts: Vec<Value> = FROM_HERE
            .iter()
            .map(|part| Path::new("/").join(part))
            .filter(|path| path.exists())
            .map(|path| json!({ "host_path": path, "container_path": path, "readonly": true }))
            .collect();
        let container = json!({
            "metadata": { "name": name },
            "image": { "image": IMAGE },
            "command": command,
            "mounts": mounts,
            "log_path": format!("{}-{name}.log", pod.id),
            "linux": {},
        });
        let config = self
            .directory
            .join("pods")
            .join(format!("{}-{name}.json", pod.id));
        fs::write(&config, container.to_string())?;
        let (container, pod_config) = (config.to_string_lossy(), pod.config.to_string_lossy());
        self.crictl(&["create", "--no-pull", &pod.id, &container, &pod_config])
    }

    /// The command that starts a container, and ends when the runtime has done so.
    pub fn starting(&self, container: &str) -> Command {
        let mut command = Command::new(self.programs.join("crictl"));
        command
            .arg("--config")
            .arg(self.directory.join("crictl.yaml"))
            .args(["--timeout", "120s", "start", container]);
        command
    }

    /// Starts a container and waits until its command has ended. What it returned.
    pub fn run(&self, container: &str) -> Result<i64> {
        output(&mut self.starting(container)).with_context(|| self.log_tail())?;
        self.wait_exit(container)
    }

    /// Waits until the command of a container has ended. What it returned.
    pub fn wait_exit(&self, container: &str) -> Result<i64> {
        wait_for("a container to end", PATIENCE, || {
            let status = self.inspect(container)?;
            let ended = status["state"] == "CONTAINER_EXITED";
            Ok(status["exitCode"].as_i64().filter(|_| ended))
        })
    }

    /// How a container is, as the runtime says.
    pub fn inspect(&self, container: &str) -> Result<Value> {
        let text = self.crictl(&["inspect", "--output", "json", container])?;
        let answer: Value = serde_json::from_str(&text)?;
        Ok(answer["status"].clone())
    }

    /// Where its end is, for the message of a failure.
    fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(20)..];
        format!("containerd said at last:\n{}", tail.join("\n"))
    }

    fn crictl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.programs.join("crictl"));
        command
            .arg("--config")
            .arg(self.directory.join("crictl.yaml"))
            .args(arguments);
        let output = output(&mut command).with_context(|| self.log_tail())?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    fn settings(&self) -> String {
        let directory = self.directory.display();
        format!(
            r#"version = 3
root = "{directory}/root"
state = "{directory}/state"

[grpc]
  address = "{directory}/containerd.sock"

[ttrpc]
  address = "{directory}/containerd.sock.ttrpc"

[plugins."io.containerd.nri.v1.nri"]
  disable = false
  socket_path = "{directory}/nri/nri.sock"
  plugin_path = "{directory}/nri/plugins"
  plugin_config_path = "{directory}/nri/conf.d"
  plugin_request_timeout = "100s"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
      Root = "{directory}/runc"
"#
        )
    }

    /// Puts the image together and has it imported: an archive as `docker save` makes it.
    fn import(&self) -> Result<()> {
        let image = self.directory.join("image");
        let root = image.join("root");
        fs::create_dir_all(&root)?;
        fs::copy(self.programs.join("pause"), root.join("pause"))?;
        for part in FROM_HERE {
            fs::create_dir_all(root.join(part))?;
        }
        tar(&root, &image.join("layer.tar"), &["."])?;
        let layer = sha256(&image.join("layer.tar"))?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": ["/pause"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        });
        fs::write(image.join("config.json"), config.to_string())?;
        let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
        fs::write(image.join("manifest.json"), manifest.to_string())?;
        let archive = self.directory.join("image.tar");
        tar(&image, &archive, &["config.json", "layer.tar", "manifest.json"])?;
        let mut import = Command::new(self.programs.join("ctr"));
        import
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io", "images", "import", "--local"])
            .args(["--snapshotter", "native"])
            .arg(archive);
        output(&mut import).with_context(|| self.log_tail())?;
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if let Err(error) = self.kill() {
            eprintln!("containerd: {error:#}");
        }
    }
}

/// The architecture, as images have it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tar(directory: &Path, archive: &Path, parts: &[&str]) -> Result<()> {
    let mut command = Command::new("tar");
    command
        .arg("-C")
        .arg(directory)
        .arg("-cf")
        .arg(archive)
        .args(parts);
    output(&mut command).map(drop)
}

fn sha256(file: &Path) -> Result<String> {
    let said = output(Command::new("sha256sum").arg(file))?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let digest = text.split(' ').next().context("a digest")?;
    Ok(digest.to_owned())
}

/// What a command says that must succeed.
fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn programs() -> Result<PathBuf> {
    let directory = std::env::var_os("ZT_CONTAINERD").map(PathBuf::from);
    let directory = directory
        .or_else(|| newest("containerd"))
        .context("containerd is not there: run `cargo xtask setup`")?;
    ensure!(
        directory.join("containerd").is_file(),
        "containerd is not in {}: run `cargo xtask setup`",
        directory.display()
    );
    Ok(directory)
}
