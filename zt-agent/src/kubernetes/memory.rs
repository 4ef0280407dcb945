// SPDX-License-Identifier: Apache-2.0
//! The pods that were known, on disk: an agent that starts while the API is away goes on with them.
//!
//! A pod of this node is known by the uid in its cgroup's name, and stays true. Where pods of other nodes are reached is
//! not believed for longer than [`MOST_AGE`], as their addresses may be other pods' by then.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::identity::kubernetes::{Directory, Known, Part};

/// The file in the directory of the agent's state.
pub const FILE: &str = "pods.json";
/// How long ago the file may have been written for what it says of other nodes to be believed.
const MOST_AGE: Duration = Duration::from_secs(600);
/// Most bytes that are read.
const MAX_BYTES: u64 = 256 << 20;

#[derive(Deserialize)]
struct Remembered {
    node: String,
    naming: String,
    pods: Vec<(Part, Arc<str>, Known)>,
}

/// As [`Remembered`].
#[derive(Serialize)]
struct Remember<'a> {
    node: &'a str,
    naming: &'a str,
    pods: Vec<(Part, &'a Arc<str>, &'a Known)>,
}

/// Takes up what was known when `path` was written. How many pods; none where it cannot be read, or speaks of another node
/// or other names.
pub(super) fn recall(path: &Path, node: &str, directory: &mut Directory) -> usize {
    let read = || -> io::Result<(Remembered, Duration)> {
        let metadata = fs::metadata(path)?;
        if metadata.len() > MAX_BYTES {
            return Err(io::Error::other("it is too large"));
        }
        // One from the future is as good as none.
        let age = SystemTime::now().duration_since(metadata.modified()?);
        Ok((
            serde_json::from_slice(&fs::read(path)?)?,
            age.unwrap_or(Duration::MAX),
        ))
    };
    let (remembered, age) = match read() {
        Ok(read) => read,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(file = %path.display(), %error, "pods that were known before cannot be read");
            }
            return 0;
        }
    };
    if remembered.node != node || remembered.naming != directory.naming() {
        return 0;
    }
    let mut recalled = 0;
    for (part, name, known) in remembered.pods {
        if part == Part::Here || age <= MOST_AGE {
            directory.recall(part, name, known);
            recalled += 1;
        }
    }
    recalled
}

/// What is to be written.
pub(super) fn text(node: &str, directory: &Directory) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Remember {
        node,
        naming: directory.naming(),
        pods: directory.remembered().collect(),
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::kept;
    use crate::identity::kubernetes::{Pod, Template};

    fn directory(node: &str) -> Directory {
        let naming = Template::default().fixed("hanzo.ai", "c").expect("it makes IDs");
        Directory::new(naming, node.to_owned(), vec!["kubepods".into()])
    }

    fn pod(name: &str, node: &str, address: &str) -> Pod {
        Pod {
            namespace: "n".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            node: node.to_owned(),
            service_account: "a".to_owned(),
            addresses: vec![address.parse().expect("literal")],
            ..Pod::default()
        }
    }

    #[test]
    fn what_was_known_is_known_again_on_the_same_node_only_and_elsewhere_not_for_long() {
        let temporary = tempfile::tempdir().expect("a directory");
        let path = temporary.path().join(FILE);
        let mut before = directory("one");
        before.applied(Part::Here, &pod("a", "one", "10.0.0.1"));
        before.applied(Part::Elsewhere, &pod("b", "two", "10.0.0.2"));
        let known = before.changes();
        kept::replace_synced(&path, &text("one", &before).expect("JSON")).expect("written");

        let mut after = directory("one");
        assert_eq!(recall(&path, "one", &mut after), 2);
        assert_eq!(after.changes(), known);

        assert_eq!(recall(&path, "two", &mut directory("two")), 0);
        let file = fs::File::open(&path).expect("it is there");
        file.set_modified(SystemTime::now() - 2 * MOST_AGE).expect("set");
        let mut later = directory("one");
        assert_eq!(recall(&path, "one", &mut later), 1, "that of this node");
        assert!(later.changes().addresses.is_empty());
        fs::write(&path, "nonsense").expect("written");
        assert_eq!(recall(&path, "one", &mut directory("one")), 0);
    }
}
