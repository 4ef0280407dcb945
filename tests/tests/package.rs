// SPDX-License-Identifier: Apache-2.0
//! What a release is made of, as it was made: the Debian package, with what its scripts do on a host, the lists of what is in
//! the program, and the container image.

#[path = "package/image.rs"]
mod image;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

fn made(name: &str) -> Result<PathBuf> {
    let directory = std::env::var_os("ZT_PACKAGE");
    let directory = directory.context("ZT_PACKAGE is not set: run `cargo xtask test package`")?;
    Ok(Path::new(&directory).join(name))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn dpkg_deb(arguments: &[&str], file: &Path, to: Option<&Path>) -> Result<String> {
    let mut command = Command::new("dpkg-deb");
    command.args(arguments).arg(file).args(to);
    let output = command.output().context("cannot run dpkg-deb")?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(String::from_utf8(output.stdout)?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The files of the package: mode and path.
fn content() -> Result<BTreeSet<(String, String)>> {
    let listed = dpkg_deb(&["--contents"], &made("zt-agent.deb")?, None)?;
    let files = listed.lines().filter(|line| line.starts_with('-'));
    let parts = files.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(words[1] == "0/0" || words[1] == "root/root", "{line}");
        Ok((words[0].to_owned(), words[5].trim_start_matches("./").to_owned()))
    });
    parts.collect()
}

#[test]
fn the_package_holds_what_a_host_needs_and_nobody_else_may_write_it() -> Result<()> {
    let content = content()?;
    let has = |mode: &str, path: &str| content.contains(&(mode.to_owned(), path.to_owned()));
    assert!(has("-rwxr-xr-x", "usr/bin/zt-agent"), "{content:?}");
    for path in [
        "etc/zt/agent.yaml",
        "etc/zt/workloads.yaml",
        "etc/zt/policies/baseline.yaml",
        "usr/lib/systemd/system/zt-agent.service",
        "usr/lib/systemd/system/zt-engine.service",
        "usr/share/doc/zt-agent/copyright",
        "usr/share/doc/zt-agent/README.md",
        "usr/share/doc/zt-agent/docs/upgrading.md",
        "usr/share/doc/zt-agent/examples/cluster/agent.yaml",
        "usr/share/doc/zt-agent/examples/prometheus/zt.rules.yaml",
        "usr/share/doc/zt-agent/examples/grafana/zt.json",
        "usr/share/doc/zt-agent/examples/postgres/roles.sql",
    ] {
        assert!(has("-rw-r--r--", path), "{path}: {content:?}");
    }
    let pages = |directory: &str| -> Result<usize> {
        let names = fs::read_dir(root().join(directory))?.collect::<Result<Vec<_>, _>>()?;
        let is_page = |path: &Path| path.extension().is_some_and(|extension| extension == "md");
        Ok(names.iter().filter(|name| is_page(&name.path())).count())
    };
    let packed = content
        .iter()
        .filter(|(_, path)| path.starts_with("usr/share/doc/zt-agent/docs/"));
    assert_eq!(packed.count(), pages("docs")?);
    assert!(
        content
            .iter()
            .all(|(mode, _)| mode.ends_with("r--") || mode.ends_with("r-x"))
    );

    let control = dpkg_deb(&["--info"], &made("zt-agent.deb")?, None)?;
    for words in ["Package: zt-agent", "Section: admin", "Recommends: bpftool"] {
        assert!(control.contains(words), "{control}");
    }
    // What the program is linked with was looked up, and not guessed.
    let depends = control.lines().find(|line| line.trim().starts_with("Depends: "));
    assert!(
        depends.is_some_and(|line| line.contains("libc6 (>= ")),
        "{control}"
    );
    let conffiles = dpkg_deb(&["--info"], &made("zt-agent.deb")?, Some(Path::new("conffiles")))?;
    let conffiles: Vec<&str> = conffiles.lines().collect();
    assert_eq!(
        conffiles,
        [
            "/etc/zt/agent.yaml",
            "/etc/zt/workloads.yaml",
            "/etc/zt/policies/baseline.yaml"
        ]
    );
    Ok(())
}

/// A host with systemd, as far as the package's scripts see one: what they would have it do is written down.
struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let control = directory.path().join("control");
        dpkg_deb(&["--control"], &made("zt-agent.deb")?, Some(&control))?;
        let programs = directory.path().join("bin");
        fs::create_dir(&programs)?;
        for name in [
            "systemctl",
            "deb-systemd-invoke",
            "deb-systemd-helper",
            "zt-agent",
        ] {
            // Units that somebody has enabled.
            let text = "#!/bin/sh\necho \"${0##*/} $*\" >>\"$LOG\"\n";
            fs::write(programs.join(name), text)?;
            fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { directory })
    }

    /// Runs a script of the package as dpkg does: what it had done.
    fn run(&self, script: &str, arguments: &[&str]) -> Result<Vec<String>> {
        let log = self.directory.path().join("log");
        fs::write(&log, "")?;
        let path = self.directory.path().join("control").join(script);
        ensure!(path.is_file(), "the package has no {script}");
        let path_of_programs = format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin",
            self.directory.path().join("bin").display()
        );
        // In mounts of its own, where systemd runs.
        let inside = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec \"$@\"";
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", inside, "sh"])
            .arg(path)
            .args(arguments)
            .env("PATH", path_of_programs)
            .env("LOG", &log)
            .env("DPKG_MAINTSCRIPT_PACKAGE", "zt-agent")
            .output()?;
        ensure!(
            output.status.success(),
            "{script} {arguments:?}: {}",
            said(&output)
        );
        Ok(fs::read_to_string(log)?.lines().map(str::to_owned).collect())
    }
}

fn has(done: &[String], words: &[&str]) -> bool {
    done.iter()
        .any(|line| words.iter().all(|word| line.contains(word)))
}

#[test]
fn nothing_is_started_or_enabled_by_the_installation() -> Result<()> {
    let done = Machine::new()?.run("postinst", &["configure", ""])?;
    for word in [" start", "restart", "helper enable"] {
        assert!(!has(&done, &[word]), "{done:?}");
    }
    Ok(())
}

/// `docs/upgrading.md`: the old agent goes on until the new program is there, is then stopped in order, and the new one is started.
#[test]
fn an_upgrade_restarts_what_ran_and_detaches_nothing() -> Result<()> {
    let machine = Machine::new()?;
    let before = machine.run("prerm", &["upgrade", "9.0.0"])?;
    assert!(
        !has(&before, &["stop"]) && !has(&before, &["zt-agent detach"]),
        "{before:?}"
    );
    let after = machine.run("postinst", &["configure", "0.0.1"])?;
    for unit in ["zt-agent.service", "zt-engine.service"] {
        // Where it does not run, it is not started either.
        assert!(has(&after, &["try-restart", unit]), "{after:?}");
    }
    assert!(
        !has(&after, &["invoke start"]) && !has(&after, &["zt-agent detach"]),
        "{after:?}"
    );
    Ok(())
}

#[test]
fn a_removal_stops_the_agent_first_and_then_detaches() -> Result<()> {
    let done = Machine::new()?.run("prerm", &["remove"])?;
    let stopped = done
        .iter()
        .position(|line| line.contains("stop") && line.contains("zt-agent.service"));
    let detached = done.iter().position(|line| line == "zt-agent detach --yes");
    assert!(stopped.is_some() && stopped < detached, "{done:?}");
    Ok(())
}

/// The names of what a list has.
fn listed(file: &str) -> Result<BTreeSet<String>> {
    let list: Value = serde_json::from_str(&fs::read_to_string(made(file)?)?)?;
    ensure!(list["bomFormat"] == "CycloneDX", "{file}");
    let components = list["components"].as_array().context("components")?;
    let name = |component: &Value| component["name"].as_str().map(str::to_owned);
    Ok(components.iter().filter_map(name).collect())
}

/// The crates that a manifest depends on.
fn depends(manifest: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(root().join(manifest))?;
    let (_, rest) = text.split_once("[dependencies]\n").context("dependencies")?;
    let lines = rest.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split([' ', '.', '=']).next());
    Ok(names
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

/// Both halves of the program are listed: what runs as a process, and what it loads into the kernel.
#[test]
fn the_lists_have_every_crate_of_both_halves() -> Result<()> {
    for (list, manifest, most) in [
        ("zt-agent.cdx.json", "zt-agent/Cargo.toml", 150),
        ("zt-ebpf.cdx.json", "zt-ebpf/Cargo.toml", 2),
    ] {
        let listed = listed(list)?;
        let depends = depends(manifest)?;
        assert!(depends.len() > 1 && listed.len() >= most, "{list}: {listed:?}");
        for name in depends {
            // A crate that goes by another name here.
            let renamed = name == "serde_yaml";
            assert!(
                renamed || listed.contains(&name),
                "{list} has no {name}: {listed:?}"
            );
        }
    }
    Ok(())
}
