// SPDX-License-Identifier: Apache-2.0
//! What several sources say, put together. Pure.
//!
//! The file says where workloads are reached and in which mode they run, SPIRE says who they are. A cgroup that one of them
//! names has that name; one that both name has it where they agree. Where they do not, it has none.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spire::Known;
use super::{Mode, WorkloadRecord};
use crate::spiffe_id::SpiffeId;

/// Who is who by all sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Each workload once.
    pub workloads: Vec<Arc<WorkloadRecord>>,
    /// Cgroups that have no identity because the sources disagree.
    pub disputes: Vec<Dispute>,
}

/// Two sources give one cgroup different identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// The cgroup, below the cgroup2 mount.
    pub cgroup: PathBuf,
    /// Its id.
    pub cgroup_id: u64,
    /// What the file says.
    pub declared: SpiffeId,
    /// What SPIRE says.
    pub attested: SpiffeId,
    /// The mode that the file says.
    pub mode: Option<Mode>,
}

/// Puts the workloads of the file and those that SPIRE attested together.
pub fn merge(declared: &[Arc<WorkloadRecord>], attested: &Known) -> Merged {
    let mut merged = Merged::default();
    let mut named: HashMap<&Path, &Arc<WorkloadRecord>> = HashMap::new();
    for record in declared {
        match attested.get(&record.cgroup) {
            Some((cgroup_id, identity)) if identity.spiffe != record.spiffe => {
                merged.disputes.push(Dispute {
                    cgroup: record.cgroup.clone(),
                    cgroup_id: *cgroup_id,
                    declared: record.spiffe.clone(),
                    attested: identity.spiffe.clone(),
                    mode: record.mode,
                });
            }
            _ => merged.workloads.push(Arc::clone(record)),
        }
        named.insert(&record.cgroup, record);
    }
    for (cgroup, (cgroup_id, identity)) in attested {
        if !named.contains_key(cgroup.as_path()) {
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
        let merged = merge(&file, &attested(&[("r/iam", 5, "iam"), ("r/web", 6, "web")]));
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
        let merged = merge(&file, &attested(&[("r/a", 5, "chat")]));
        assert!(merged.workloads.is_empty());
        let dispute = &merged.disputes[0];
        assert_eq!((&dispute.declared, &dispute.attested), (&id("iam"), &id("chat")));
        assert_eq!((dispute.cgroup_id, dispute.mode), (5, Some(Mode::Enforce)));
    }

    #[test]
    fn replicas_share_an_identity_in_cgroups_of_their_own() {
        let merged = merge(&[declared("iam", "r/a")], &attested(&[("r/b", 7, "iam")]));
        assert_eq!(merged.workloads.len(), 2);
        assert!(merged.disputes.is_empty());
    }
}
