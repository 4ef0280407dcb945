// SPDX-License-Identifier: Apache-2.0
//! `zt-agent sysdump`: one archive with what support would ask for. It works without an agent, and what cannot be had is noted and
//! no reason to stop.
//!
//! Whatever goes into it passes [`redact`]: secrets that are known are searched for everywhere, and what looks like one goes too. No
//! private key, no environment and no content of a kernel map is read in the first place.

mod archive;
mod commands;
mod host;
mod kernel;
mod pods;
mod redact;
mod said;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use self::archive::{Manifest, Missing};

use self::archive::Archive;
use self::redact::Redactor;
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::config::{Config, DEFAULT_FILE};
use crate::doctor::{self, Patient};
use crate::kernel::Lock;

/// Files of a directory that are taken.
const MOST_FILES: usize = 500;
/// Most bytes of one file of the operator.
const MOST_BYTES: u64 = 1 << 20;

/// What is gathered, and how much of it.
#[derive(Debug)]
pub struct Order {
    /// Whose configuration it is.
    pub patient: Patient,
    /// Lines of each log, the last ones.
    pub log_lines: usize,
    /// The doctor's report as people read it.
    pub render: fn(&doctor::Report) -> String,
}

/// What an archive of this moment is called, without its ending.
pub fn name(node: &str, now: i64) -> String {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    let node: String = node
        .chars()
        .map(|character| if is_plain(character) { character } else { '-' })
        .collect();
    let time = Timestamp(now - now.rem_euclid(1_000_000_000)).to_string();
    let time: String = time
        .chars()
        .filter(|character| !matches!(character, '-' | ':'))
        .collect();
    format!("zt-sysdump-{node}-{time}")
}

/// Gathers everything into `to`. `progress` is told before what may take a second.
pub async fn gather<W: Write>(order: &Order, to: W, progress: &dyn Fn(&str)) -> io::Result<(W, Manifest)> {
    let defaults = Config::default();
    let config = order.patient.loaded.as_ref().unwrap_or(&defaults);
    let file = order.patient.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    let pid = Lock::holder(&config.bpffs)
        .ok()
        .flatten()
        .and_then(|holder| holder.pid());
    let now = clock::now();
    let mut archive = Archive::begin(
        to,
        name(&config.node, now),
        secrets(config, file, pid),
        (now / 1_000_000_000).unsigned_abs(),
        Timestamp(now).to_string(),
    );
    progress("looking at this machine as `zt-agent doctor` does");
    let report = doctor::examine(&order.patient, progress).await;
    archive.text("doctor.txt", &(order.render)(&report))?;
    archive.json("doctor.json", &report)?;
    written_by_the_operator(&mut archive, config, file)?;
    progress("asking the agent");
    said::gather(&mut archive, config).await?;
    kernel::gather(&mut archive, config)?;
    progress("gathering logs, and what the machine is like");
    host::gather(&mut archive, pid, order.log_lines)?;
    archive.finish()
}

/// Secrets that are known: of the configuration, of the agent's command line, and of the environment, which are read for nothing
/// else.
fn secrets(config: &Config, file: &Path, pid: Option<u32>) -> Redactor {
    let mut redactor = Redactor::default();
    for (_, dsn) in config.audit.dsns() {
        redactor.learn_dsn(dsn);
    }
    redactor.learn(&fs::read_to_string(file).unwrap_or_default());
    let own = std::env::vars_os();
    for (name, value) in own {
        redactor.learn(&format!("{}={}", name.to_string_lossy(), value.to_string_lossy()));
    }
    if let Some(pid) = pid {
        for file in ["cmdline", "environ"] {
            redactor.learn(&separated(&format!("/proc/{pid}/{file}")).unwrap_or_default());
        }
    }
    let kubeconfig = config
        .kubeconfig
        .as_ref()
        .and_then(|path| fs::read_to_string(path).ok());
    redactor.learn(&kubeconfig.unwrap_or_default());
    redactor
}

/// A file of strings that end in a zero, one a line.
fn separated(path: &str) -> io::Result<String> {
    let bytes = fs::read(path)?;
    Ok(String::from_utf8_lossy(&bytes).replace('\0', "\n"))
}

/// Configuration, policies and workloads, as they are on disk.
fn written_by_the_operator<W: Write>(
    archive: &mut Archive<W>,
    config: &Config,
    file: &Path,
) -> io::Result<()> {
    archive.text_or_why("config/agent.yaml", text_of(file))?;
    archive.text("config/in-effect.txt", &format!("{config:#?}\n"))?;
    archive.text_or_why("config/workloads.yaml", text_of(&config.identity.file))?;
    let path = &config.policy_path;
    if path.is_file() {
        return archive.text_or_why("config/policies.yaml", text_of(path));
    }
    let files = match yaml_files(path) {
        Ok(files) => files,
        Err(error) => {
            archive.missing("config/policies", &format!("{}: {error}", path.display()));
            return Ok(());
        }
    };
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        archive.text_or_why(&format!("config/policies/{name}"), text_of(&file))?;
    }
    Ok(())
}

/// What policies are read from: others may be anything.
fn yaml_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
        })
        .filter(|path| path.is_file())
        .take(MOST_FILES)
        .collect();
    files.sort();
    Ok(files)
}

/// A file of the operator.
fn text_of(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return Err(format!("{shown} is not a file of at most 1 MiB"));
    }
    fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_named_after_node_and_time() {
        assert_eq!(
            name("worker 1/a", 1_764_236_645_123_456_789),
            "zt-sysdump-worker-1-a-20251127T094405Z"
        );
    }
}
