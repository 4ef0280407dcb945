// SPDX-License-Identifier: Apache-2.0
//! The container image, with neither a daemon nor a registry: the last stage of the Dockerfile as it stands there, by buildah.
//! What the stage before it makes is made here, by the same commands.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{package, privilege, setup, workspace};

/// What the image is called until it is unpacked.
const NAME: &str = "localhost/zt";
/// Where in the context the stage before is, by the paths that it has there.
const STAGED: &str = "staged";
/// What is trusted: no image is fetched.
const TRUST: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
const WHY: &str = "because the files of the container image are root's";

/// Builds the image in `out`, which has the lists of what is in the program: `image`, a layout of the OCI. The context has what
/// `.dockerignore` lets through.
pub(crate) fn make(out: &Path, context: &Path, dockerfile: &str) -> Result<()> {
    setup::for_image()?;
    stage(&context.join(STAGED), out, dockerfile)?;
    let store = Store::new(out)?;
    let file = store.directory.join("Dockerfile");
    fs::write(&file, last_stage(dockerfile)?)?;
    store.buildah(&[
        "bud".as_ref(),
        "--isolation=chroot".as_ref(),
        "--layers=false".as_ref(),
        "--format=oci".as_ref(),
        "--signature-policy".as_ref(),
        store.policy().as_os_str(),
        "--tag".as_ref(),
        NAME.as_ref(),
        "--file".as_ref(),
        file.as_os_str(),
        context.as_os_str(),
    ])?;
    let layout = out.join("image");
    remove(&layout)?;
    let to = format!("oci:{}:zt", layout.to_str().context("a plain path")?);
    store.buildah(&[
        "push".as_ref(),
        "--quiet".as_ref(),
        "--signature-policy".as_ref(),
        store.policy().as_os_str(),
        NAME.as_ref(),
        to.as_ref(),
    ])?;
    println!("  the image as it is sent, in bytes: {}", packed(&layout)?);
    Ok(())
}

/// The Dockerfile from its last stage on, with what is staged in place of the one before.
fn last_stage(dockerfile: &str) -> Result<String> {
    let begin = dockerfile
        .rfind("\nFROM ")
        .context("the Dockerfile has one stage")?;
    Ok(format!(
        "FROM scratch AS builder\nCOPY {STAGED}/ /\n{}",
        &dockerfile[begin + 1..]
    ))
}

/// Makes what the last stage takes from the one before.
fn stage(to: &Path, out: &Path, dockerfile: &str) -> Result<()> {
    let (sources, made) = (to.join("opt/zt"), to.join("opt/out"));
    let run = package::command(dockerfile, "cargo build ")?;
    let (build, then) = run.split_once("&&").context("the program is stripped")?;
    let status = Command::new(workspace::cargo())
        .args(build.split_whitespace().skip(1))
        .current_dir(workspace::root())
        .status()?;
    ensure!(status.success(), "{}: its messages are above", build.trim());
    let program = "target/release/zt-agent";
    let built = workspace::target()?.join("release/zt-agent");
    for directory in [
        sources.join("target/release"),
        made.join("state"),
        made.join("run"),
    ] {
        fs::create_dir_all(directory)?;
    }
    fs::copy(&built, sources.join(program)).with_context(|| format!("cannot copy {}", built.display()))?;
    // Of the copy: what cargo built stays as it is.
    let status = Command::new("sh")
        .args(["-euc", then])
        .current_dir(&sources)
        .status()?;
    ensure!(status.success(), "{}: its messages are above", then.trim());
    for list in ["zt-agent.cdx.json", "zt-ebpf.cdx.json"] {
        fs::copy(out.join(list), made.join(list)).with_context(|| format!("there is no {list}"))?;
    }
    let gathered = Command::new("sh")
        .arg(workspace::root().join("deploy/image/base.sh"))
        .arg(made.join("base"))
        .status()?;
    ensure!(
        gathered.success(),
        "deploy/image/base.sh could not gather the image's base: it takes a Debian, and package lists that are up to date \
         (`apt-get update`)"
    );
    Ok(())
}

/// Where buildah keeps what it works on. It is removed with this, whatever came of the image.
struct Store {
    directory: PathBuf,
}

impl Store {
    fn new(out: &Path) -> Result<Self> {
        let store = Self {
            directory: out.join("store"),
        };
        remove(&store.directory)?;
        fs::create_dir_all(&store.directory)?;
        fs::write(store.policy(), TRUST)?;
        Ok(store)
    }

    fn policy(&self) -> PathBuf {
        self.directory.join("policy.json")
    }

    fn buildah(&self, arguments: &[&OsStr]) -> Result<()> {
        let status = privilege::as_root("buildah", WHY)?
            .arg("--root")
            .arg(self.directory.join("storage"))
            .arg("--runroot")
            .arg(self.directory.join("run"))
            // Directories, and no mounts: it works wherever this runs.
            .args(["--storage-driver", "vfs"])
            .args(arguments)
            .status()
            .context("cannot run buildah")?;
        ensure!(status.success(), "buildah failed: its messages are above");
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            eprintln!("  {error:#}");
        }
    }
}

/// Removes a directory of root's, if it is there.
fn remove(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let removed = privilege::as_root("rm", WHY)?
        .args(["--recursive", "--force", "--"])
        .arg(directory)
        .status()?;
    ensure!(removed.success(), "cannot remove {}", directory.display());
    Ok(())
}

/// How large the image is as a registry has it.
fn packed(layout: &Path) -> Result<u64> {
    let mut sum = 0;
    for blob in fs::read_dir(layout.join("blobs/sha256"))? {
        sum += blob?.metadata()?.len();
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stage_stays_as_it_is() -> Result<()> {
        let text = "FROM a AS builder\nRUN b\n\nFROM scratch\nCOPY --from=builder /c /c\nUSER 1\n";
        let last = last_stage(text)?;
        assert!(last.starts_with("FROM scratch AS builder\nCOPY staged/ /\nFROM scratch\n"));
        assert!(last.ends_with("COPY --from=builder /c /c\nUSER 1\n") && !last.contains("RUN b"));
        assert!(last_stage("FROM scratch\n").is_err());
        Ok(())
    }
}
