// SPDX-License-Identifier: Apache-2.0
//! What a runtime may say, and fail at.

mod fake;
mod faults;
mod hold;
mod starts;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use crate::identity::{Mode, WorkloadRecord};
use crate::spiffe_id::SpiffeId;
use crate::state::{Placed, Snapshot};

const UID: &str = "2f8c6f0e-3a7d-4d0e-9f4b-0c5d8e7a1b2c";
const ID: &str = "292c84db93e00b10d4a3f9e7c95311e0cc52e00bcadd148bbfbe909e5740fe69";
const ROOT: &str = "kubepods";

/// A snapshot in which there is a workload with this cgroup; with `exists` the cgroup is there.
fn snapshot(cgroup: &str, exists: bool) -> Snapshot {
    let record = WorkloadRecord {
        spiffe: SpiffeId::parse("spiffe://hanzo.ai/hanzo-k8s/shop/client").expect("an id"),
        cgroup: PathBuf::from(cgroup),
        cgroup_id: None,
        addresses: Vec::new(),
        mode: None,
        pod: Some("shop/client".into()),
    };
    Snapshot {
        workloads: Arc::new(vec![Placed {
            record: Arc::new(record),
            cgroup_ids: if exists { vec![77] } else { Vec::new() },
            mode: Mode::Enforce,
        }]),
        ..Snapshot::default()
    }
}
