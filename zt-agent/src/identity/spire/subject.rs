// SPDX-License-Identifier: Apache-2.0
//! Whom SPIRE is asked about: a live process, or a pod in whose cgroup nobody runs yet, by its selectors.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spire_api::pb::spire::api::agent::delegatedidentity::v1::SubscribeToX509sviDsRequest;
use spire_api::pb::spire::api::types::Selector;
use tokio::sync::watch;

use super::process::Process;

/// What Kubernetes says that SPIRE may be asked about: by the pod's cgroup, the values of selectors of type `k8s`.
pub type Pods = Arc<HashMap<PathBuf, Arc<[String]>>>;

/// The type of what the `k8s` attestor finds out.
const TYPE: &str = "k8s";

/// Who is asked about.
#[derive(Debug)]
pub(super) enum Subject {
    Process(Process),
    Pod(Pod),
}

/// A pod whose cgroup is there.
#[derive(Debug)]
pub(super) struct Pod {
    selectors: Arc<[String]>,
    told: watch::Receiver<Pods>,
    path: PathBuf,
    directory: PathBuf,
    cgroup: u64,
}

impl Subject {
    /// Tells it from others in the same cgroup.
    pub(super) fn birth(&self) -> (u32, u64) {
        match self {
            Self::Process(process) => process.birth(),
            Self::Pod(_) => (0, 0),
        }
    }

    /// Whether it is still what was asked about.
    pub(super) fn is_there(&self) -> bool {
        match self {
            Self::Process(process) => process.is_there(),
            Self::Pod(pod) => pod.is_there(),
        }
    }

    /// Completes when it certainly is not any more.
    pub(super) async fn ended(&self) {
        match self {
            Self::Process(process) => process.ended().await,
            Self::Pod(pod) => {
                let mut told = pod.told.clone();
                while pod.is_told() {
                    if told.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }

    /// The question; `None` where it cannot be asked.
    pub(super) fn request(&self) -> Option<SubscribeToX509sviDsRequest> {
        Some(match self {
            Self::Process(process) => SubscribeToX509sviDsRequest {
                selectors: Vec::new(),
                pid: i32::try_from(process.pid()).ok()?,
            },
            Self::Pod(pod) => {
                let selector = |value: &String| Selector {
                    r#type: TYPE.to_owned(),
                    value: value.clone(),
                };
                SubscribeToX509sviDsRequest {
                    selectors: pod.selectors.iter().map(selector).collect(),
                    pid: 0,
                }
            }
        })
    }
}

impl Pod {
    /// The pod at a path, if Kubernetes says that there is one.
    pub(super) fn at(
        told: &watch::Receiver<Pods>,
        path: &Path,
        directory: &Path,
        cgroup: u64,
    ) -> Option<Self> {
        let selectors = told.borrow().get(path).cloned()?;
        Some(Self {
            selectors,
            told: told.clone(),
            path: path.to_path_buf(),
            directory: directory.to_path_buf(),
            cgroup,
        })
    }

    fn is_told(&self) -> bool {
        self.told.borrow().get(&self.path) == Some(&self.selectors)
    }

    /// A process of its own speaks for itself.
    fn is_there(&self) -> bool {
        self.is_told()
            && std::fs::metadata(&self.directory).is_ok_and(|found| found.ino() == self.cgroup)
            && matches!(Process::oldest(&self.directory, self.cgroup), Ok(None))
    }
}

/// Completes when Kubernetes says that there is a pod at this path.
pub(super) async fn told_of(told: &watch::Receiver<Pods>, path: &Path) {
    let mut told = told.clone();
    while !told.borrow_and_update().contains_key(path) {
        if told.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
