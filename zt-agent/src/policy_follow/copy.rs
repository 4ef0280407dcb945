// SPDX-License-Identifier: Apache-2.0
//! The last good policy on disk, for a start without the engine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fetch::documents;
use crate::policy::{self, PolicySet};

/// The name of the copy in its directory.
pub const COPY: &str = "policy.json";

/// A copy is no longer than what an engine may answer.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Only the agent reads and writes it.
const MODE: u32 = 0o600;

/// Why there is no copy that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// It is not what was written.
    #[error("{} is damaged: {why}; it is not used", path.display())]
    Damaged { path: PathBuf, why: String },
}

impl CopyError {
    /// Whether there has never been one.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The copy.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    path: PathBuf,
    /// The digest that is on disk.
    written: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    /// Where it came from, for whoever looks.
    engine: String,
    digest: String,
    policies: Vec<StoredPolicy>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPolicy {
    name: String,
    document: Value,
}

const FORMAT: u32 = 1;

impl Copy {
    pub(crate) fn new(directory: &Path) -> Self {
        Self::at(directory.join(COPY))
    }

    /// The one in this file.
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, written: None }
    }

    /// Reads the copy, and believes it only if its digest is that of its documents.
    pub(crate) fn load(&self, settings: &policy::Settings) -> Result<PolicySet, CopyError> {
        let bytes = read(&self.path).map_err(|source| self.io(source))?;
        let damaged = |why: String| CopyError::Damaged {
            path: self.path.clone(),
            why,
        };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if stored.format != FORMAT {
            return Err(damaged(format!("its format is {}, not {FORMAT}", stored.format)));
        }
        let documents = documents(
            stored
                .policies
                .iter()
                .map(|item| (item.name.as_str(), &item.document)),
        );
        let policies = policy::parse(&documents, settings).map_err(|problems| {
            damaged(
                problems
                    .first()
                    .map_or_else(|| "it has no policy".to_owned(), ToString::to_string),
            )
        })?;
        if policies.digest() != stored.digest {
            return Err(damaged("its digest is not that of its policies".to_owned()));
        }
        Ok(policies)
    }

    /// Writes the copy anew, whole or not at all, unless it is what is on disk. Megabytes may have to reach the disk: that
    /// holds up no task.
    pub(crate) async fn keep(&mut self, engine: &str, policies: Arc<PolicySet>) -> Result<(), CopyError> {
        if self.written.as_deref() == Some(policies.digest()) {
            return Ok(());
        }
        let (mut copy, engine) = (self.clone(), engine.to_owned());
        let saved = tokio::task::spawn_blocking(move || copy.save(&engine, &policies).map(|()| copy.written));
        match saved.await {
            Ok(saved) => self.written = saved?,
            Err(error) => return Err(self.io(io::Error::other(error))),
        }
        Ok(())
    }

    /// Writes the copy anew, whole or not at all.
    fn save(&mut self, engine: &str, policies: &PolicySet) -> Result<(), CopyError> {
        let all = policies.all().iter().map(|policy| StoredPolicy {
            name: policy.name().to_owned(),
            document: policy.document(),
        });
        let stored = Stored {
            format: FORMAT,
            engine: engine.to_owned(),
            digest: policies.digest().to_owned(),
            policies: all.collect(),
        };
        let text = serde_json::to_vec(&stored).map_err(|error| self.io(error.into()))?;
        write(&self.path, &text).map_err(|source| self.io(source))?;
        self.written = Some(stored.digest);
        Ok(())
    }

    fn io(&self, source: io::Error) -> CopyError {
        CopyError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    let ours = metadata.uid() == nix::unistd::geteuid().as_raw();
    if !metadata.is_file() || !ours || metadata.mode() & 0o022 != 0 {
        let why = "must be a file of the agent's own user that nobody else may write";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.new"));
    // One that a crash left behind, with whatever mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn writing_holds_up_no_task() {
        let directory = tempfile::tempdir().expect("directory");
        let text =
            "{apiVersion: zt.hanzo.ai/v1, kind: ServiceAccessPolicy, metadata: {name: p}, spec: {rules: []}}";
        let documents = [policy::Document {
            file: "p.yaml".to_owned(),
            text: text.to_owned(),
        }];
        let settings = policy::Settings::default();
        let policies = Arc::new(policy::parse(&documents, &settings).expect("valid"));
        let mut copy = Copy::new(directory.path());
        {
            let mut keeping = Box::pin(copy.keep("https://engine.example.com", Arc::clone(&policies)));
            assert!(poll!(&mut keeping).is_pending(), "others have their turn");
            keeping.await.expect("written");
        }
        assert_eq!(
            copy.load(&settings).expect("is there").digest(),
            policies.digest()
        );
        fs::remove_file(directory.path().join(COPY)).expect("removed");
        let mut again = Box::pin(copy.keep("https://engine.example.com", policies));
        assert!(
            matches!(poll!(&mut again), std::task::Poll::Ready(Ok(()))),
            "it was written"
        );
    }
}
