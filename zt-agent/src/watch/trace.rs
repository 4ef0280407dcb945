// SPDX-License-Identifier: Apache-2.0
//! Which directories' changes can change what a path leads to.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// As many symlinks as the kernel itself follows.
const MOST_LINKS: usize = 40;

/// What about one directory matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interest {
    /// Every entry, or only `names`.
    pub(super) all: bool,
    /// The entries that a path's resolution goes through.
    pub(super) names: BTreeSet<OsString>,
    /// Whether the files' contents matter, and not just which entries there are.
    pub(super) contents: bool,
}

impl Interest {
    /// Whether a change of the entry `name` matters.
    pub(super) fn concerns(&self, name: &OsStr) -> bool {
        self.all || self.names.contains(name)
    }
}

/// The directories to watch, by their physical path, so that any change of what `path` holds is seen. Where `path` does
/// not exist, they lead to the deepest ancestor that does.
pub(super) fn trace(path: &Path) -> HashMap<PathBuf, Interest> {
    let mut plan = HashMap::new();
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let Some(place) = resolve(&path, &mut plan) else {
        return plan;
    };
    if place.is_dir() {
        let interest = plan.entry(place.clone()).or_default();
        interest.all = true;
        interest.contents = true;
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                resolve(&entry.path(), &mut plan);
            }
        }
    }
    plan
}

/// Walks `path`, an absolute one, as the kernel would; notes every directory that it looks into. The physical path, or
/// `None` where it leads nowhere.
fn resolve(path: &Path, plan: &mut HashMap<PathBuf, Interest>) -> Option<PathBuf> {
    let mut place = PathBuf::from("/");
    let mut pending: VecDeque<OsString> = VecDeque::new();
    prepend(path, &mut pending);
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            place.pop();
            continue;
        }
        let interest = plan.entry(place.clone()).or_default();
        interest.names.insert(name.clone());
        // The last name may be a file, which is written to in place.
        interest.contents |= pending.is_empty();
        let next = place.join(&name);
        let metadata = fs::symlink_metadata(&next).ok()?;
        if !metadata.is_symlink() {
            place = next;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return None;
        }
        let target = fs::read_link(&next).ok()?;
        if target.is_absolute() {
            place = PathBuf::from("/");
        }
        prepend(&target, &mut pending);
    }
    Some(place)
}

fn prepend(path: &Path, pending: &mut VecDeque<OsString>) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => pending.push_front(name.to_owned()),
            Component::ParentDir => pending.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_directory_on_the_way_is_watched() {
        let root = tempfile::tempdir().expect("tempdir");
        let root = root.path().canonicalize().expect("canonical");
        fs::create_dir_all(root.join("v1")).expect("mkdir");
        fs::write(root.join("v1/a.yaml"), "").expect("write");
        symlink("v1", root.join("..data")).expect("symlink");
        symlink("..data/a.yaml", root.join("a.yaml")).expect("symlink");

        let plan = trace(&root.join("a.yaml"));
        let names: Vec<_> = plan[&root]
            .names
            .iter()
            .map(|name| name.to_str().expect("utf-8"))
            .collect();
        assert_eq!(names, ["..data", "a.yaml", "v1"]);
        assert!(plan[&root.join("v1")].contents && plan[&root.join("v1")].concerns("a.yaml".as_ref()));
        assert!(
            !plan[Path::new("/")].contents,
            "nothing is written to in the directories above"
        );

        let plan = trace(&root);
        assert!(plan[&root].all && plan.contains_key(&root.join("v1")));
    }

    #[test]
    fn what_is_missing_is_awaited_where_it_would_appear() {
        let root = tempfile::tempdir().expect("tempdir");
        let root = root.path().canonicalize().expect("canonical");
        let plan = trace(&root.join("etc/zt/policies"));
        assert!(plan[&root].concerns("etc".as_ref()));
        assert!(!plan.contains_key(&root.join("etc")));
    }

    #[test]
    fn symlink_loops_end() {
        let root = tempfile::tempdir().expect("tempdir");
        symlink("b", root.path().join("a")).expect("symlink");
        symlink("a", root.path().join("b")).expect("symlink");
        assert!(!trace(&root.path().join("a")).is_empty());
    }
}
