// SPDX-License-Identifier: Apache-2.0
//! The pods that were known, on disk: an agent that starts while the API is away goes on with them.
//!
//! Who a pod of this node is, is known by the uid in its cgroup's name, and stays true. Where pods are reached does not: no
//! address is believed after another start of the machine, nor when the API was heard longer ago than [`MOST_AGE`], as it may be
//! another pod's by then.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::identity::kept;
use crate::identity::kubernetes::{Directory, Known, Part};

/// The file in the directory of the agent's state.
pub const FILE: &str = "pods.json";
/// How long ago the API may have been heard for addresses to be believed: as long as SPIRE's word lasts without SPIRE, by the
/// specification.
pub(super) const MOST_AGE: Duration = Duration::from_secs(3600);
/// Most bytes that are read, and written.
const MAX_BYTES: u64 = 256 << 20;

#[derive(Deserialize)]
struct Remembered {
    #[serde(default)]
    boot: String,
    #[serde(default)]
    heard: u64,
    node: String,
    naming: String,
    pods: Vec<(Part, Arc<str>, Known)>,
}

/// As [`Remembered`].
#[derive(Serialize)]
struct Remember<'a> {
    /// Which start of the machine it was.
    boot: String,
    /// When the API last said that it is so, seconds since 1970.
    heard: u64,
    node: &'a str,
    naming: &'a str,
    pods: Vec<(Part, &'a Arc<str>, &'a Known)>,
}

/// What was taken up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Recalled {
    /// How many pods.
    pub(super) pods: usize,
    /// Whether their addresses are believed.
    pub(super) addresses: bool,
    /// When the API last said that it is so; the beginning of time where nothing was taken up.
    pub(super) heard: Option<SystemTime>,
}

/// Takes up what was known when `path` was written: nothing where it cannot be read, or speaks of another node or other
/// names.
pub(super) fn recall(path: &Path, node: &str, directory: &mut Directory) -> Recalled {
    let Some(remembered) = kept::read::<Remembered>(path, MAX_BYTES, "pods") else {
        return Recalled::default();
    };
    if remembered.node != node || remembered.naming != directory.naming() {
        return Recalled::default();
    }
    let heard = UNIX_EPOCH.checked_add(Duration::from_secs(remembered.heard));
    // What was heard in the future was heard nobody knows when.
    let age = heard.and_then(|heard| SystemTime::now().duration_since(heard).ok());
    let same_boot = kept::boot().is_some_and(|boot| boot == remembered.boot);
    let mut recalled = Recalled {
        pods: 0,
        addresses: same_boot && age.is_some_and(|age| age <= MOST_AGE),
        heard,
    };
    for (part, name, known) in remembered.pods {
        let known = match part {
            _ if recalled.addresses => known,
            Part::Here => known.without_addresses(),
            Part::Elsewhere => continue,
        };
        directory.recall(part, name, known);
        recalled.pods += 1;
    }
    recalled
}

/// What is to be written, of what the API last said at `heard`.
pub(super) fn text(node: &str, directory: &Directory, heard: Option<SystemTime>) -> io::Result<Vec<u8>> {
    text_below(MAX_BYTES, node, directory, heard)
}

/// The same in so many bytes. Where all is more, it is this node's pods alone: of the others the API tells again.
fn text_below(
    most: u64,
    node: &str,
    directory: &Directory,
    heard: Option<SystemTime>,
) -> io::Result<Vec<u8>> {
    let since = heard.and_then(|heard| heard.duration_since(UNIX_EPOCH).ok());
    let mut remember = Remember {
        boot: kept::boot().unwrap_or_default(),
        heard: since.map_or(0, |since| since.as_secs()),
        node,
        naming: directory.naming(),
        pods: directory.remembered().collect(),
    };
    let text = serde_json::to_vec(&remember)?;
    if u64::try_from(text.len()).is_ok_and(|length| length <= most) {
        return Ok(text);
    }
    let before = remember.pods.len();
    remember.pods.retain(|(part, ..)| *part == Part::Here);
    let left_out = before - remember.pods.len();
    tracing::warn!(
        left_out,
        "what is known of other nodes' pods is more than can be remembered: a successor begins with this node's"
    );
    Ok(serde_json::to_vec(&remember)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::identity::kubernetes::{Changes, Pod, Template};

    fn directory(node: &str) -> Directory {
        let naming = Template::default().fixed("hanzo.ai", "c").expect("it makes IDs");
        Directory::new(naming, node.to_owned(), vec!["kubepods".into()], Vec::new())
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
    fn what_was_known_is_known_again_on_the_same_node_only() {
        let temporary = tempfile::tempdir().expect("a directory");
        let path = temporary.path().join(FILE);
        let mut before = directory("one");
        before.applied(Part::Here, &pod("a", "one", "10.0.0.1"));
        before.applied(Part::Elsewhere, &pod("b", "two", "10.0.0.2"));
        let known = before.changes();
        let now = SystemTime::now();
        kept::replace_synced(&path, &text("one", &before, Some(now)).expect("JSON")).expect("written");

        let mut after = directory("one");
        let recalled = recall(&path, "one", &mut after);
        assert_eq!((recalled.pods, recalled.addresses), (2, true));
        assert!(recalled.heard.is_some_and(|heard| heard <= now));
        let after = after.changes();
        assert!(
            after.told && !known.told,
            "what is remembered is known, and one pod is not all"
        );
        assert_eq!(Changes { told: false, ..after }, known);
        assert_eq!(recall(&path, "two", &mut directory("two")), Recalled::default());
        fs::write(&path, "nonsense").expect("written");
        assert_eq!(recall(&path, "one", &mut directory("one")), Recalled::default());
    }

    #[test]
    fn where_all_is_too_much_this_nodes_pods_are_remembered() {
        let temporary = tempfile::tempdir().expect("a directory");
        let path = temporary.path().join(FILE);
        let mut before = directory("one");
        before.applied(Part::Here, &pod("a", "one", "10.0.0.1"));
        before.applied(Part::Elsewhere, &pod("b", "two", "10.0.0.2"));
        let now = Some(SystemTime::now());
        let all = text("one", &before, now).expect("JSON").len() as u64;
        for (most, pods) in [(all, 2), (all - 1, 1)] {
            let text = text_below(most, "one", &before, now).expect("JSON");
            assert!(text.len() as u64 <= most);
            fs::write(&path, text).expect("written");
            let mut after = directory("one");
            assert_eq!(recall(&path, "one", &mut after).pods, pods);
            assert_eq!(
                after.changes().workloads.map(|workloads| workloads.len()),
                Some(1)
            );
        }
    }

    #[test]
    fn no_address_is_believed_that_is_old_or_of_another_start_of_the_machine() {
        let temporary = tempfile::tempdir().expect("a directory");
        let path = temporary.path().join(FILE);
        let mut before = directory("one");
        before.cgroup_created(Path::new("kubepods/poduid-a"));
        before.applied(Part::Here, &pod("a", "one", "10.0.0.1"));
        before.applied(Part::Elsewhere, &pod("b", "two", "10.0.0.2"));
        let now = SystemTime::now();
        let written = |heard: Option<SystemTime>| {
            let text = text("one", &before, heard).expect("JSON");
            String::from_utf8(text).expect("it is text")
        };
        let boot = kept::boot().expect("the kernel says");
        for text in [
            written(Some(now - 2 * MOST_AGE)),
            written(Some(now + MOST_AGE)),
            written(None),
            written(Some(now)).replace(&boot, "of-another-start"),
            written(Some(now)).replace("\"boot\"", "\"as-it-was-written-once\""),
        ] {
            fs::write(&path, &text).expect("written");
            let mut after = directory("one");
            after.cgroup_created(Path::new("kubepods/poduid-a"));
            let recalled = recall(&path, "one", &mut after);
            assert_eq!((recalled.pods, recalled.addresses), (1, false), "{text}");
            let changes = after.changes();
            assert!(changes.addresses.is_empty(), "{text}");
            let workloads = changes.workloads.expect("the pod of this node");
            assert_eq!(workloads.len(), 1, "its cgroup says who it is");
            assert!(workloads[0].addresses.is_empty(), "{text}");
        }
    }
}
