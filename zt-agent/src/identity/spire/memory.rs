// SPDX-License-Identifier: Apache-2.0
//! Which cgroups had which identity, on disk: an agent that starts again goes on with it until SPIRE has answered, so that
//! nothing is refused in between, and while SPIRE is down until the SVIDs expire.
//!
//! A cgroup is known by its id, which no other has until the machine boots again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Attested, Known};
use crate::identity::kept;

/// The file in the directory of the agent's state.
pub const FILE: &str = "identities.json";
/// Most bytes that are read.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Remembered {
    boot: String,
    trust_domain: String,
    workloads: Vec<Workload>,
}

#[derive(Serialize, Deserialize)]
struct Workload {
    cgroup: Name,
    cgroup_id: u64,
    #[serde(flatten)]
    identity: Attested,
}

/// A path. The kernel lets a cgroup be called anything, and JSON does not.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Bytes(Vec<u8>),
}

impl Name {
    fn of(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }

    fn path(self) -> PathBuf {
        match self {
            Self::Text(text) => text.into(),
            Self::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

/// What was known when `path` was written, of the cgroups that exist still. Nothing where it cannot be read: that costs
/// the names until SPIRE has answered.
pub(super) fn recall(path: &Path, trust_domain: &str, present: &BTreeMap<PathBuf, u64>) -> Known {
    let Some(remembered) = kept::read::<Remembered>(path, MAX_BYTES, "identities") else {
        return Known::new();
    };
    if kept::boot().is_none_or(|boot| boot != remembered.boot) || remembered.trust_domain != trust_domain {
        return Known::new();
    }
    remembered
        .workloads
        .into_iter()
        .map(|workload| (workload.cgroup.path(), (workload.cgroup_id, workload.identity)))
        .filter(|(cgroup, (cgroup_id, _))| present.get(cgroup) == Some(cgroup_id))
        .filter(|(_, (_, identity))| identity.spiffe.trust_domain() == trust_domain)
        .collect()
}

/// Replaces what `path` says. Only root may read it. Where that fails there is no file afterwards: names that were taken
/// back since would be in an old one.
pub(super) fn remember(path: &Path, trust_domain: &str, known: &Known) -> io::Result<()> {
    let written = write(path, trust_domain, known);
    if written.is_err() {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(file = %path.display(), %error, "identities of before cannot be forgotten: remove the file");
            }
            _ => {}
        }
    }
    written
}

fn write(path: &Path, trust_domain: &str, known: &Known) -> io::Result<()> {
    let remembered = Remembered {
        boot: kept::boot().unwrap_or_default(),
        trust_domain: trust_domain.to_owned(),
        workloads: known
            .iter()
            .map(|(cgroup, (cgroup_id, identity))| Workload {
                cgroup: Name::of(cgroup),
                cgroup_id: *cgroup_id,
                identity: identity.clone(),
            })
            .collect(),
    };
    let text = serde_json::to_vec(&remembered)?;
    // Not synced: after a crash of the machine nothing in it would be true.
    kept::replace(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spiffe_id::SpiffeId;

    const DOMAIN: &str = "hanzo.ai";

    fn known(entries: &[(&str, u64)]) -> Known {
        let identity = Attested {
            spiffe: SpiffeId::parse("spiffe://hanzo.ai/ns/hanzo/sa/iam").expect("id"),
            expires: 1_900_000_000,
        };
        entries
            .iter()
            .map(|(path, id)| (PathBuf::from(path), (*id, identity.clone())))
            .collect()
    }

    #[test]
    fn what_was_known_of_cgroups_that_exist_is_known_again() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(FILE);
        let present = BTreeMap::from([("a".into(), 1), ("b".into(), 9)]);
        assert!(recall(&path, DOMAIN, &present).is_empty(), "there is no file");
        remember(&path, DOMAIN, &known(&[("a", 1), ("b", 2), ("c", 3)])).expect("written");
        // `b` is another cgroup by now, and `c` is gone.
        assert_eq!(recall(&path, DOMAIN, &present), known(&[("a", 1)]));
        assert!(recall(&path, "other.example", &present).is_empty());

        let text = fs::read_to_string(&path).expect("read");
        let boot = kept::boot().expect("boot id");
        fs::write(&path, text.replace(&boot, "another-boot")).expect("written");
        assert!(recall(&path, DOMAIN, &present).is_empty());
        fs::write(&path, "{ not json").expect("written");
        assert!(recall(&path, DOMAIN, &present).is_empty());
    }

    #[test]
    fn a_name_that_is_no_text_is_remembered_beside_the_others() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(FILE);
        let odd = PathBuf::from(OsString::from_vec(b"root/\xff".to_vec()));
        let mut names = known(&[("a", 1)]);
        let identity = names[Path::new("a")].1.clone();
        names.insert(odd.clone(), (2, identity));
        remember(&path, DOMAIN, &names).expect("written");
        let present = BTreeMap::from([("a".into(), 1), (odd, 2)]);
        assert_eq!(recall(&path, DOMAIN, &present), names);
    }

    #[test]
    fn what_cannot_be_replaced_is_forgotten() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(FILE);
        remember(&path, DOMAIN, &known(&[("a", 1)])).expect("written");
        fs::create_dir(path.with_extension("new")).expect("in the way");
        remember(&path, DOMAIN, &known(&[])).expect_err("it cannot be written");
        assert!(!path.exists());
    }
}
