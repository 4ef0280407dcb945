// SPDX-License-Identifier: Apache-2.0
//! The container image, unpacked as a runtime does it: what it says of itself, what is in it and what runs there.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::deployment::Container;

use super::{made, said};

/// Whose the engine's directories are, and who it is.
const NONROOT: u32 = 65532;

struct Image {
    directory: tempfile::TempDir,
    config: Value,
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

/// Where what a descriptor names is.
fn blob(descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("a digest")?;
    let name = digest.strip_prefix("sha256:").context("SHA-256")?;
    Ok(made("image/blobs/sha256")?.join(name))
}

impl Image {
    fn unpack() -> Result<Self> {
        let index = read(&made("image/index.json")?)?;
        let manifest = read(&blob(&index["manifests"][0])?)?;
        let directory = tempfile::tempdir()?;
        for layer in manifest["layers"].as_array().context("layers")? {
            let output = Command::new("tar")
                .args(["--extract", "--gzip", "--preserve-permissions", "--numeric-owner"])
                .arg("--file")
                .arg(blob(layer)?)
                .arg("--directory")
                .arg(directory.path())
                .output()?;
            ensure!(output.status.success(), "{}", said(&output));
        }
        // As a runtime makes it, and not as the directory was made for this test.
        let open = Command::new("chmod").arg("0755").arg(directory.path()).status()?;
        ensure!(open.success(), "chmod");
        let config = read(&blob(&manifest["config"])?)?;
        Ok(Self { directory, config })
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A list of words that it is configured with.
    fn words(&self, name: &str) -> Result<Vec<String>> {
        serde_json::from_value(self.config["config"][name].clone()).with_context(|| name.to_owned())
    }

    /// What runs its program with these arguments, as whom it says.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut program = self.words("Entrypoint")?;
        program.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let output = self.container()?.command(&program).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
        Ok(said(&output))
    }

    fn container(&self) -> Result<Container<'_>> {
        Ok(Container {
            root: self.root(),
            user: self.config["config"]["User"].as_str().context("a user")?,
            borrowed: "",
        })
    }

    /// Everything that is in it, by its path there.
    fn content(&self) -> Result<Vec<(String, Metadata)>> {
        let mut found = Vec::new();
        let mut directories = vec![self.root().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                let metadata = path.symlink_metadata()?;
                let inside = path.strip_prefix(self.root())?.display().to_string();
                found.push((inside, metadata.clone()));
                if metadata.is_dir() {
                    directories.push(path);
                }
            }
        }
        Ok(found)
    }
}

#[test]
fn the_image_says_who_runs_what_in_it() -> Result<()> {
    let image = Image::unpack()?;
    let config = &image.config["config"];
    assert_eq!(config["User"], format!("{NONROOT}:{NONROOT}"));
    assert_eq!(config["Entrypoint"], json!(["/usr/bin/zt-agent"]));
    assert_eq!(config["Cmd"], json!(["engine"]));
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(
        config["ExposedPorts"],
        json!({"8054/tcp": {}, "8055/tcp": {}, "8056/tcp": {}})
    );
    let labels = &config["Labels"];
    for (name, value) in [
        ("title", "zt"),
        ("source", "https://github.com/hanzoai/zt"),
        ("licenses", "Apache-2.0"),
    ] {
        assert_eq!(labels[format!("org.opencontainers.image.{name}")], value);
    }
    assert!(labels["org.opencontainers.image.description"].is_string());
    Ok(())
}

#[test]
fn nothing_but_the_program_can_be_run_in_the_image() -> Result<()> {
    let image = Image::unpack()?;
    let (mut programs, mut size) = (BTreeSet::new(), 0);
    for (path, metadata) in image.content()? {
        let (mode, owners) = (metadata.mode(), (metadata.uid(), metadata.gid()));
        let own = matches!(path.as_str(), "var/lib/zt" | "run/zt");
        let owner = if own { NONROOT } else { 0 };
        assert_eq!(owners, (owner, owner), "{path}");
        assert_eq!(mode & 0o6000, 0, "{path} runs as somebody else");
        let open = matches!(path.as_str(), "tmp" | "var/tmp");
        assert!(
            metadata.is_symlink() || mode & 0o022 == 0 || open,
            "{path} may be written: {mode:o}"
        );
        if metadata.is_file() {
            size += metadata.len();
            // The C library may be run, and then says its version.
            if mode & 0o111 != 0 && !path.contains(".so") {
                programs.insert(path);
            }
        }
    }
    assert_eq!(programs, BTreeSet::from(["usr/bin/zt-agent".to_owned()]));
    assert!(size < 100 << 20, "{size} bytes: what is for debuggers came along");
    Ok(())
}

#[test]
fn the_image_says_what_it_is_made_of() -> Result<()> {
    let image = Image::unpack()?;
    for list in ["zt-agent.cdx.json", "zt-ebpf.cdx.json"] {
        let inside = image.root().join("usr/share/doc/zt").join(list);
        assert_eq!(read(&inside)?, read(&made(list)?)?, "{list}");
    }
    // What came from Debian, where scanners look for it, with its licences.
    let listed: Vec<PathBuf> = fs::read_dir(image.root().join("var/lib/dpkg/status.d"))?
        .map(|entry| -> Result<PathBuf> { Ok(entry?.path()) })
        .collect::<Result<_>>()?;
    assert!(listed.len() > 3, "{listed:?}");
    for file in listed {
        let fields = fs::read_to_string(&file)?;
        let package = fields.lines().find_map(|line| line.strip_prefix("Package: "));
        let package = package.with_context(|| file.display().to_string())?;
        assert!(fields.contains("\nVersion: "), "{fields}");
        let licences = image.root().join("usr/share/doc").join(package).join("copyright");
        assert!(licences.is_file(), "{}", licences.display());
    }
    let release = fs::read_to_string(image.root().join("usr/lib/os-release"))?;
    assert!(release.contains("\nID="), "{release}");
    let certificates = fs::read_to_string(image.root().join("etc/ssl/certs/ca-certificates.crt"))?;
    assert!(certificates.matches("BEGIN CERTIFICATE").count() > 50);
    Ok(())
}

#[test]
fn the_program_runs_in_the_image() -> Result<()> {
    let image = Image::unpack()?;
    let version = image.run(&["--version"])?;
    assert_eq!(version.trim(), concat!("zt-agent ", env!("CARGO_PKG_VERSION")));
    let checked = image.run(&["policy", "check", "/etc/zt/policies"])?;
    assert!(checked.contains("digest"), "{checked}");
    Ok(())
}

#[test]
fn the_manifest_of_the_specification_starts_an_engine_in_the_image() -> Result<()> {
    let image = Image::unpack()?;
    let program = [image.words("Entrypoint")?, image.words("Cmd")?].concat();
    image.container()?.starts_an_engine(&program)
}
