// SPDX-License-Identifier: Apache-2.0
//! Which parts of the cgroup hierarchy are managed.

use std::path::{Component, Path, PathBuf};

/// The cgroups below which the kernel asks policy, as the configuration names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ManagedCgroup {
    /// Those of Kubernetes pods, wherever the kubelet's cgroup driver puts them.
    #[default]
    Auto,
    /// These, relative to the cgroup2 mount; none is below another.
    Paths(Vec<PathBuf>),
}

/// Why a list of managed cgroups makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManagedError {
    /// The list is empty.
    #[error("at least one cgroup must be managed; leave the key out for `auto`")]
    Empty,
    /// It is absolute.
    #[error("`{path}` must be relative to the cgroup2 mount, such as `kubepods.slice`")]
    Absolute {
        /// The path.
        path: String,
    },
    /// It has `.` or `..`.
    #[error("`{path}` must not contain `.` or `..`")]
    Dots {
        /// The path.
        path: String,
    },
    /// It is empty: the root.
    #[error("the root of the hierarchy cannot be managed; name a cgroup below it")]
    Root,
    /// One lies below the other, or they are equal.
    #[error("`{inner}` is covered by `{outer}` already; name it once")]
    Nested {
        /// The deeper one.
        inner: String,
        /// The one above.
        outer: String,
    },
}

/// What `auto` stands for: the systemd cgroup driver's slice, then the cgroupfs driver's directory.
const AUTO: [&str; 2] = ["kubepods.slice", "kubepods"];

impl ManagedCgroup {
    /// From what the configuration says: `auto` alone, or paths.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, ManagedError> {
        let names: Vec<_> = names.into_iter().map(str::trim).collect();
        if names == ["auto"] {
            return Ok(Self::Auto);
        }
        if names.is_empty() {
            return Err(ManagedError::Empty);
        }
        let mut paths: Vec<PathBuf> = Vec::with_capacity(names.len());
        for name in names {
            let path = below_mount(name)?;
            for other in &paths {
                let (inner, outer) = if path.starts_with(other) {
                    (&path, other)
                } else {
                    (other, &path)
                };
                if inner.starts_with(outer) {
                    let (inner, outer) = (inner.display().to_string(), outer.display().to_string());
                    return Err(ManagedError::Nested { inner, outer });
                }
            }
            paths.push(path);
        }
        Ok(Self::Paths(paths))
    }

    /// The managed roots, relative to the cgroup2 mount, whether they exist or not.
    pub fn roots(&self) -> Vec<PathBuf> {
        match self {
            Self::Auto => AUTO.iter().map(PathBuf::from).collect(),
            Self::Paths(paths) => paths.clone(),
        }
    }

    /// Those roots that exist below `mount` now.
    pub fn present(&self, mount: &Path) -> Vec<PathBuf> {
        let mut roots = self.roots();
        roots.retain(|root| mount.join(root).is_dir());
        roots
    }
}

fn below_mount(name: &str) -> Result<PathBuf, ManagedError> {
    let path = Path::new(name);
    if path.is_absolute() {
        return Err(ManagedError::Absolute {
            path: name.to_owned(),
        });
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        let Component::Normal(part) = component else {
            return Err(ManagedError::Dots {
                path: name.to_owned(),
            });
        };
        clean.push(part);
    }
    if clean.as_os_str().is_empty() {
        Err(ManagedError::Root)
    } else {
        Ok(clean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(names: &[&str]) -> String {
        ManagedCgroup::from_names(names.iter().copied())
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn auto_is_both_drivers_of_the_kubelet() {
        let auto = ManagedCgroup::from_names(["auto"]).expect("valid");
        assert_eq!(auto, ManagedCgroup::default());
        let mount = tempfile::tempdir().expect("tempdir");
        assert!(auto.present(mount.path()).is_empty());
        std::fs::create_dir(mount.path().join("kubepods")).expect("mkdir");
        assert_eq!(auto.present(mount.path()), [PathBuf::from("kubepods")]);
        assert_eq!(
            auto.roots(),
            [PathBuf::from("kubepods.slice"), PathBuf::from("kubepods")]
        );
    }

    #[test]
    fn paths_are_cleaned_and_checked() {
        let paths = ManagedCgroup::from_names(["a/b/", "a/c"]).expect("valid");
        assert_eq!(paths.roots(), [PathBuf::from("a/b"), PathBuf::from("a/c")]);
        assert!(error(&[]).contains("at least one"));
        assert!(error(&[""]).contains("root of the hierarchy"));
        assert!(error(&["/kubepods"]).contains("relative"));
        assert!(error(&["a/../b"]).contains("`..`"));
        assert_eq!(
            error(&["a", "b", "b/c"]),
            "`b/c` is covered by `b` already; name it once"
        );
        assert_eq!(
            error(&["b/c", "b"]),
            "`b/c` is covered by `b` already; name it once"
        );
        assert!(error(&["a", "a"]).contains("covered"));
    }
}
