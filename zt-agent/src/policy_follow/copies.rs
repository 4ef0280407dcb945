// SPDX-License-Identifier: Apache-2.0
//! Policies on disk that are found by their digest: what was in force when the trail told of it, for whoever is to say later what a
//! change of it meant.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::copy::{Copy, CopyError};
use crate::policy::{PolicySet, Settings};

/// What the directory of the copies is called behind the name of the trail's file: what a trail told of is its own.
const DIRECTORY: &str = ".policies-told";

/// Copies of policies, each in a file that is called by its digest.
#[derive(Clone, Debug)]
pub struct Copies {
    directory: PathBuf,
}

impl Copies {
    /// Those beside the file of a trail, or of its spool.
    pub fn beside(trail: &Path) -> Self {
        let mut directory = trail.as_os_str().to_owned();
        directory.push(DIRECTORY);
        Self {
            directory: directory.into(),
        }
    }

    /// Keeps a copy of these policies, which came from there.
    pub(crate) async fn keep(&self, from: &str, policies: &Arc<PolicySet>) -> Result<(), CopyError> {
        // There is nothing that such a file could say.
        if policies.all().is_empty() {
            return Ok(());
        }
        Copy::at(self.file(policies.digest()))
            .keep(from, Arc::clone(policies))
            .await
    }

    /// The policies of that digest, if there is a copy of them that can be believed.
    pub(crate) async fn load(&self, digest: &str, settings: &Arc<Settings>) -> Result<PolicySet, CopyError> {
        let none = PolicySet::default();
        if digest == none.digest() {
            return Ok(none);
        }
        let path = self.file(digest);
        // It is to name a file of this directory.
        if digest.is_empty() || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let source = io::ErrorKind::NotFound.into();
            return Err(CopyError::Io { path, source });
        }
        let (copy, settings) = (Copy::at(path.clone()), Arc::clone(settings));
        let policies = match spawn_blocking(move || copy.load(&settings)).await {
            Ok(loaded) => loaded?,
            Err(error) => {
                let source = io::Error::other(error);
                return Err(CopyError::Io { path, source });
            }
        };
        if policies.digest() != digest {
            let why = "it is the copy of other policies".to_owned();
            return Err(CopyError::Damaged { path, why });
        }
        Ok(policies)
    }

    /// Removes all copies but those of these digests.
    pub(crate) async fn keep_only(&self, digests: &[&str]) -> io::Result<()> {
        let kept: Vec<PathBuf> = digests.iter().map(|digest| self.file(digest)).collect();
        let directory = self.directory.clone();
        let removed = spawn_blocking(move || remove_others(&directory, &kept));
        removed.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn file(&self, digest: &str) -> PathBuf {
        self.directory.join(format!("{digest}.json"))
    }
}

/// Removes what copies there are, and what a crash has left of one, but these.
fn remove_others(directory: &Path, kept: &[PathBuf]) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if matches!(extension, Some("json" | "new")) && !kept.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::policy::sample::of_ports;

    fn policies(port: u16) -> Arc<PolicySet> {
        Arc::new(of_ports(&[("p", port)]))
    }

    #[tokio::test]
    async fn what_was_kept_is_found_by_its_digest_until_it_is_not_wanted_any_more() {
        let directory = tempfile::tempdir().expect("directory");
        let (copies, settings) = (
            Copies::beside(&directory.path().join("audit.db")),
            Arc::new(Settings::default()),
        );
        let (first, second, none) = (policies(1), policies(2), Arc::<PolicySet>::default());
        copies.keep_only(&[]).await.expect("nothing is there");
        for all in [&first, &second, &none] {
            copies.keep("here", all).await.expect("kept");
        }
        for all in [&first, &second, &none] {
            let found = copies.load(all.digest(), &settings).await.expect("there");
            assert_eq!(found.digest(), all.digest());
            assert!(found.diff_from(all).policies.is_empty());
        }
        copies.keep_only(&[second.digest()]).await.expect("removed");
        let gone = copies.load(first.digest(), &settings).await.expect_err("gone");
        assert!(gone.is_missing(), "{gone}");
        assert!(copies.load(second.digest(), &settings).await.is_ok());
        for digest in ["", "another", "../policy"] {
            let error = copies.load(digest, &settings).await.expect_err("no digest");
            assert!(error.is_missing(), "{digest}: {error}");
        }
    }

    #[tokio::test]
    async fn two_trails_of_one_directory_keep_each_its_own() {
        let directory = tempfile::tempdir().expect("directory");
        let settings = Arc::new(Settings::default());
        let [agent, engine] =
            ["audit.db", "engine.db"].map(|name| Copies::beside(&directory.path().join(name)));
        let (first, second) = (policies(1), policies(2));
        agent.keep("here", &first).await.expect("kept");
        engine.keep("there", &second).await.expect("kept");
        engine.keep_only(&[second.digest()]).await.expect("removed");
        assert!(agent.load(first.digest(), &settings).await.is_ok());
        let gone = agent
            .load(second.digest(), &settings)
            .await
            .expect_err("another's");
        assert!(gone.is_missing(), "{gone}");
        assert!(directory.path().join("audit.db.policies-told").is_dir());
    }

    #[tokio::test]
    async fn a_copy_that_is_not_what_was_kept_is_not_believed() {
        let directory = tempfile::tempdir().expect("directory");
        let (copies, settings) = (
            Copies::beside(&directory.path().join("audit.db")),
            Arc::new(Settings::default()),
        );
        let (first, second) = (policies(1), policies(2));
        copies.keep("here", &first).await.expect("kept");
        let file = copies.file(first.digest());
        let text = fs::read_to_string(&file).expect("reads");
        let mode = |mode| fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("modes");
        let load = async |digest: &str| copies.load(digest, &settings).await.map(|_| ());
        mode(0o666);
        assert!(load(first.digest()).await.is_err(), "anybody may have written it");
        mode(0o600);
        assert!(load(first.digest()).await.is_ok());
        for other in [
            text.replace("policies", "policy"),
            text[..text.len() / 2].to_owned(),
        ] {
            fs::write(&file, other).expect("writes");
            assert!(load(first.digest()).await.is_err());
        }
        // Whole, and of others.
        fs::write(copies.file(second.digest()), &text).expect("writes");
        let renamed = copies.file(second.digest());
        fs::set_permissions(&renamed, PermissionsExt::from_mode(0o600)).expect("modes");
        let error = load(second.digest()).await.expect_err("another's");
        assert!(error.to_string().contains("other policies"), "{error}");
    }
}
