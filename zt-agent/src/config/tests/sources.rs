// SPDX-License-Identifier: Apache-2.0
//! Which source wins.

use super::*;

#[test]
fn flags_beat_variables_beat_the_file() {
    let config = load(
        "node: file\ncluster: file\nmode: observe\n",
        &[
            ("ZT_NODE", "variable"),
            ("ZT_CLUSTER", "variable"),
            ("ZT_CLUSTER_CIDRS", "10.0.0.0/8, fd00::/8"),
        ],
        &[("node", "flag"), ("managedCgroup", "a,b")],
    )
    .expect("valid");
    assert_eq!(
        (config.node.as_str(), config.cluster.as_str()),
        ("flag", "variable")
    );
    assert_eq!(config.cluster_cidrs.len(), 2);
    assert_eq!(config.managed_cgroup.roots().len(), 2);
}
