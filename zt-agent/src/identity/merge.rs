// SPDX-License-Identifier: Apache-2.0
//! What several sources say, put together. Pure.
//!
//! The file says where workloads are reached and in which mode they run, Kubernetes which pods there are and where they are
//! reached, SPIRE who they are. A cgroup that one of them names has that name; one that several name has it where they agree.
//! Where they do not, it has none. With SPIRE among them, a pod has no name until SPIRE has said it: Kubernetes says where.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spire::Known;
use super::{Mode, WorkloadRecord};
use crate::spiffe_id::SpiffeId;

/// What each source says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said<'a> {
    /// The workloads file.
    pub file: &'a [Arc<WorkloadRecord>],
    /// Kubernetes: the pods of this node.
    pub pods: &'a [Arc<WorkloadRecord>],
    /// SPIRE; `None` where it is not asked. Where it is, Kubernetes names no pod by itself.
    pub spire: Option<&'a Known>,
}

/// Who is who by all sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Each workload once.
    pub workloads: Vec<Arc<WorkloadRecord>>,
    /// Cgroups that have no identity because the sources disagree.
    pub disputes: Vec<Dispute>,
    /// Addresses of pods that have no identity.
    pub nobody: Vec<IpAddr>,
    /// Pods of whose own cgroup SPIRE says nothing. They have no identity: what Kubernetes calls them is only whom SPIRE could
    /// name there.
    pub unnamed: Vec<Arc<WorkloadRecord>>,
}

/// Sources give one cgroup different identities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dispute {
    /// The cgroup, below the cgroup2 mount.
    pub cgroup: PathBuf,
    /// Its id; `None`: of whichever is at that path.
    pub cgroup_id: Option<u64>,
    /// What the file says, if it says something.
    pub file: Option<SpiffeId>,
    /// What Kubernetes says, if it says something.
    pub kubernetes: Option<SpiffeId>,
    /// What SPIRE says, if it says something.
    pub spire: Option<SpiffeId>,
    /// The mode that the file says.
    pub mode: Option<Mode>,
}

/// Puts together what the sources say.
pub fn merge(said: &Said<'_>) -> Merged {
    let nothing = Known::new();
    let attested = said.spire.unwrap_or(&nothing);
    let mut merged = Merged::default();
    let mut spoken_for: HashSet<&Path> = HashSet::new();
    let pods: HashMap<&Path, &Arc<WorkloadRecord>> =
        said.pods.iter().map(|pod| (pod.cgroup.as_path(), pod)).collect();
    for record in said.file {
        spoken_for.insert(&record.cgroup);
        let pod = pods.get(record.cgroup.as_path());
        let by_spire = attested.get(&record.cgroup);
        let agrees = |id: &SpiffeId| *id == record.spiffe;
        if pod.is_none_or(|pod| agrees(&pod.spiffe)) && by_spire.is_none_or(|(_, id)| agrees(&id.spiffe)) {
            merged.workloads.push(match pod {
                Some(pod) => Arc::new(both(record, pod)),
                None => Arc::clone(record),
            });
        } else {
            merged.nobody.extend(pod.iter().flat_map(|pod| &pod.addresses));
            merged.disputes.push(Dispute {
                cgroup: record.cgroup.clone(),
                cgroup_id: by_spire.map(|(id, _)| *id),
                file: Some(record.spiffe.clone()),
                kubernetes: pod.map(|pod| pod.spiffe.clone()),
                spire: by_spire.map(|(_, id)| id.spiffe.clone()),
                mode: record.mode,
            });
        }
    }
    for pod in said.pods {
        if spoken_for.contains(pod.cgroup.as_path()) {
            continue;
        }
        if said.spire.is_none() {
            merged.workloads.push(Arc::clone(pod));
            continue;
        }
        // Who it is, SPIRE says: of the pod's cgroup, or of the containers in it.
        let inside = attested
            .range::<Path, _>((Bound::Included(pod.cgroup.as_path()), Bound::Unbounded))
            .take_while(|(cgroup, _)| cgroup.starts_with(&pod.cgroup));
        let mut named = Vec::new();
        let disputes_before = merged.disputes.len();
        for (cgroup, (cgroup_id, identity)) in inside {
            if !spoken_for.insert(cgroup) {
                continue;
            }
            if identity.spiffe == pod.spiffe {
                named.push(WorkloadRecord {
                    cgroup: cgroup.clone(),
                    cgroup_id: Some(*cgroup_id),
                    addresses: Vec::new(),
                    ..WorkloadRecord::clone(pod)
                });
            } else {
                merged.disputes.push(Dispute {
                    cgroup: cgroup.clone(),
                    cgroup_id: Some(*cgroup_id),
                    kubernetes: Some(pod.spiffe.clone()),
                    spire: Some(identity.spiffe.clone()),
                    ..Dispute::default()
                });
            }
        }
        if !attested.contains_key(&pod.cgroup) {
            merged.unnamed.push(Arc::clone(pod));
        }
        let agreed = merged.disputes.len() == disputes_before;
        match named.first_mut().filter(|_| agreed) {
            Some(first) => first.addresses.clone_from(&pod.addresses),
            None => merged.nobody.extend(&pod.addresses),
        }
        merged.workloads.extend(named.into_iter().map(Arc::new));
    }
    for (cgroup, (cgroup_id, identity)) in attested {
        if !spoken_for.contains(cgroup.as_path()) {
            merged.workloads.push(Arc::new(WorkloadRecord {
                spiffe: identity.spiffe.clone(),
                cgroup: cgroup.clone(),
                cgroup_id: Some(*cgroup_id),
                addresses: Vec::new(),
                mode: None,
                pod: None,
            }));
        }
    }
    merged
}

/// A pod that the file knows too: its mode is the file's, and it is reached wherever either says.
fn both(record: &WorkloadRecord, pod: &WorkloadRecord) -> WorkloadRecord {
    let mut both = record.clone();
    let more = pod
        .addresses
        .iter()
        .filter(|address| !record.addresses.contains(address));
    both.addresses.extend(more);
    both.pod = record.pod.clone().or_else(|| pod.pod.clone());
    both
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::spire::Attested;

    fn id(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://hanzo.ai/c/n/{name}")).expect("id")
    }

    fn declared(name: &str, cgroup: &str) -> Arc<WorkloadRecord> {
        Arc::new(WorkloadRecord {
            spiffe: id(name),
            cgroup: cgroup.into(),
            cgroup_id: None,
            addresses: vec!["10.0.0.1".parse().expect("address")],
            mode: Some(Mode::Enforce),
            pod: None,
        })
    }

    fn attested(entries: &[(&str, u64, &str)]) -> Known {
        let entry = |(cgroup, cgroup_id, name): &(&str, u64, &str)| {
            let identity = Attested {
                spiffe: id(name),
                expires: 0,
            };
            (PathBuf::from(cgroup), (*cgroup_id, identity))
        };
        entries.iter().map(entry).collect()
    }

    #[test]
    fn one_source_is_enough_and_two_that_agree_are_one_workload() {
        let file = [declared("iam", "r/iam"), declared("chat", "r/chat")];
        let known = attested(&[("r/iam", 5, "iam"), ("r/web", 6, "web")]);
        let merged = merge(&Said {
            file: &file,
            spire: Some(&known),
            ..Said::default()
        });
        assert!(merged.disputes.is_empty());
        assert_eq!(merged.workloads[..2], file, "addresses and mode are the file's");
        let web = &merged.workloads[2];
        assert_eq!(
            (&web.spiffe, web.cgroup_id, web.mode),
            (&id("web"), Some(6), None)
        );
        assert_eq!(merged.workloads.len(), 3);
    }

    #[test]
    fn a_cgroup_with_two_names_has_none() {
        let file = [declared("iam", "r/a")];
        let known = attested(&[("r/a", 5, "chat")]);
        let merged = merge(&Said {
            file: &file,
            spire: Some(&known),
            ..Said::default()
        });
        assert!(merged.workloads.is_empty());
        let expected = Dispute {
            cgroup: "r/a".into(),
            cgroup_id: Some(5),
            file: Some(id("iam")),
            kubernetes: None,
            spire: Some(id("chat")),
            mode: Some(Mode::Enforce),
        };
        assert_eq!(merged.disputes, [expected]);
    }

    #[test]
    fn replicas_share_an_identity_in_cgroups_of_their_own() {
        let known = attested(&[("r/b", 7, "iam")]);
        let merged = merge(&Said {
            file: &[declared("iam", "r/a")],
            spire: Some(&known),
            ..Said::default()
        });
        assert_eq!(merged.workloads.len(), 2);
        assert!(merged.disputes.is_empty());
    }
    fn pod(name: &str, cgroup: &str, address: &str) -> Arc<WorkloadRecord> {
        Arc::new(WorkloadRecord {
            addresses: vec![address.parse().expect("address")],
            mode: None,
            pod: Some(format!("n/{name}")),
            ..WorkloadRecord::clone(&declared(name, cgroup))
        })
    }

    #[test]
    fn kubernetes_alone_names_pods_and_the_file_says_their_mode() {
        let pods = [pod("iam", "r/pod1", "10.0.0.1"), pod("web", "r/pod2", "10.0.0.2")];
        let file = [declared("iam", "r/pod1")];
        let merged = merge(&Said {
            file: &file,
            pods: &pods,
            spire: None,
        });
        assert!(merged.disputes.is_empty() && merged.nobody.is_empty());
        let iam = &merged.workloads[0];
        assert_eq!(
            (iam.mode, iam.pod.as_deref(), iam.addresses.len()),
            (Some(Mode::Enforce), Some("n/iam"), 1)
        );
        assert_eq!(merged.workloads[1], pods[1]);
        let merged = merge(&Said {
            file: &[declared("other", "r/pod1")],
            pods: &pods[..1],
            spire: None,
        });
        assert!(merged.workloads.is_empty());
        assert_eq!(merged.nobody, pods[0].addresses);
        let dispute = &merged.disputes[0];
        assert_eq!(
            (&dispute.file, &dispute.kubernetes),
            (&Some(id("other")), &Some(id("iam")))
        );
    }

    #[test]
    fn with_spire_a_pod_is_nobody_until_spire_says_who_and_kubernetes_says_where() {
        let pods = [pod("iam", "r/pod1", "10.0.0.1")];
        let merged = |known: &Known| {
            merge(&Said {
                file: &[],
                pods: &pods,
                spire: Some(known),
            })
        };
        let alone = merged(&Known::new());
        assert!(alone.workloads.is_empty() && alone.disputes.is_empty());
        assert_eq!(alone.nobody, pods[0].addresses);
        assert_eq!(alone.unnamed, pods, "it may be left alone all the same");

        // Of the containers in the pod, not of a pod whose name begins alike.
        let said = merged(&attested(&[
            ("r/pod1/a", 5, "iam"),
            ("r/pod1/b", 6, "iam"),
            ("r/pod11", 7, "web"),
        ]));
        let of = |index: usize| {
            let record = &said.workloads[index];
            (
                record.cgroup.display().to_string(),
                record.addresses.len(),
                record.pod.clone(),
            )
        };
        assert_eq!(said.workloads.len(), 3);
        assert_eq!(of(0), ("r/pod1/a".to_owned(), 1, Some("n/iam".to_owned())));
        assert_eq!(of(1), ("r/pod1/b".to_owned(), 0, Some("n/iam".to_owned())));
        assert_eq!(of(2), ("r/pod11".to_owned(), 0, None));
        assert!(said.disputes.is_empty() && said.nobody.is_empty());
        assert_eq!(
            said.unnamed, pods,
            "its containers have names, its own cgroup has none"
        );
        assert!(merged(&attested(&[("r/pod1", 5, "iam")])).unnamed.is_empty());
    }

    #[test]
    fn what_spire_and_kubernetes_disagree_about_is_nobody_and_so_is_the_address() {
        let pods = [pod("iam", "r/pod1", "10.0.0.1")];
        let known = attested(&[("r/pod1", 5, "iam"), ("r/pod1/b", 6, "web")]);
        let merged = merge(&Said {
            file: &[],
            pods: &pods,
            spire: Some(&known),
        });
        assert_eq!(merged.workloads.len(), 1, "the pod itself is agreed upon");
        assert!(merged.workloads[0].addresses.is_empty());
        assert_eq!(merged.nobody, pods[0].addresses);
        let dispute = &merged.disputes[0];
        assert_eq!(
            (dispute.cgroup_id, &dispute.kubernetes, &dispute.spire),
            (Some(6), &Some(id("iam")), &Some(id("web")))
        );
    }
}
