// SPDX-License-Identifier: Apache-2.0
//! `deploy/spire/` and the chart's `ClusterSPIFFEID`s end in entries.

use std::collections::BTreeSet;

use super::registry::Registry;
use super::*;

/// The alias for all nodes of a cluster, and an entry below it, as docs/spire.md has them made by hand.
const BY_HAND: [&str; 2] = [
    "entry create -node -spiffeID spiffe://hanzo.ai/hanzo-k8s/spire-nodes -selector k8s_psat:cluster:hanzo-k8s",
    "entry create -parentID spiffe://hanzo.ai/hanzo-k8s/spire-nodes -spiffeID spiffe://hanzo.ai/hanzo-k8s/hanzo/iam \
     -selector k8s:ns:hanzo -selector k8s:sa:iam -hint zt",
];

/// A SPIRE whose agent has shown the token of its pod, and which has the entries by hand. With it the uid of that pod.
fn attested() -> Result<(Registry, String)> {
    let mut registry = Registry::new()?;
    let server = registry.start_server()?;
    let uid = registry.pod("spire", "spire-agent-x", "spire-agent", &json!({}))?;
    let bound = json!({ "apiVersion": "v1", "kind": "Pod", "name": "spire-agent-x", "uid": uid });
    let token = registry.token(
        "spire-agent",
        &json!({ "audiences": ["spire-server"], "boundObjectRef": bound }),
    )?;
    registry.start_agent(server, &token)?;
    // SPIRE knows the node by the cluster's name and the node's uid.
    let path = format!("/spire/agent/k8s_psat/hanzo-k8s/{}", registry.node_uid);
    let attested = eventually("the node to be attested", LATER, || {
        Ok(registry
            .server(&["agent", "list", "-output", "json"])?
            .contains(&path))
    });
    attested.with_context(|| {
        format!(
            "{}\n{}",
            registry.log("spire-agent"),
            registry.log("spire-server")
        )
    })?;
    let page = repository("docs/spire.md")?;
    for command in BY_HAND {
        assert!(page.contains(command), "docs/spire.md: {command}");
        registry.server(&command.split(' ').collect::<Vec<_>>())?;
    }
    Ok((registry, uid))
}

/// Those entries, as [`Registry::wait_entries`] has them.
fn by_hand() -> BTreeSet<String> {
    let entries = [
        "spiffe://hanzo.ai/hanzo-k8s/spire-nodes of spiffe://hanzo.ai/spire/server hint= for k8s_psat:cluster:hanzo-k8s dns=",
        "spiffe://hanzo.ai/hanzo-k8s/hanzo/iam of spiffe://hanzo.ai/hanzo-k8s/spire-nodes hint=zt for k8s:ns:hanzo,k8s:sa:iam dns=",
    ];
    entries.map(str::to_owned).into()
}

/// Waits until the agent of the node has been told of these identities.
fn heard(registry: &Registry, ids: &[&str]) -> Result<()> {
    for id in ids {
        let told = format!("spiffe_id=\"spiffe://hanzo.ai/hanzo-k8s/{id}\"");
        let heard = eventually(&format!("the node to be told of {id}"), LATER, || {
            Ok(fs::read_to_string(registry.cluster.log("spire-agent"))?.contains(&told))
        });
        heard.with_context(|| registry.log("spire-agent"))?;
    }
    Ok(())
}

#[test]
fn entries_by_hand_reach_every_node_of_the_cluster() -> Result<()> {
    let (registry, _) = attested()?;
    registry.wait_entries(&by_hand())?;
    heard(&registry, &["hanzo/iam"])
}

#[test]
fn pods_get_entries_from_the_chart_and_a_spire_of_the_repository() -> Result<()> {
    let (mut registry, uid) = attested()?;
    let parent = format!(
        "spiffe://hanzo.ai/spire/agent/k8s_psat/hanzo-k8s/{}",
        registry.node_uid
    );
    let labels =
        |component: &str| json!({ "app.kubernetes.io/name": "zt", "app.kubernetes.io/component": component });
    let agent = registry.pod("zt-system", "zt-agent-x", "zt-agent", &labels("zt-agent"))?;
    let engine = registry.pod(
        "zt-system",
        "zt-policy-engine-x",
        "zt-policy-engine",
        &labels("zt-engine"),
    )?;
    // In a namespace that controller managers leave out unless they are told otherwise.
    let names = registry.pod("kube-system", "coredns-x", "coredns", &json!({}))?;
    registry.start_manager()?;
    let mut wanted = by_hand();
    let mut entry = |id: &str, hint: &str, uid: &str, dns: &str| {
        wanted.insert(format!(
            "spiffe://hanzo.ai/hanzo-k8s/{id} of {parent} hint={hint} for k8s:pod-uid:{uid} dns={dns}"
        ));
    };
    entry("spire/spire-agent", "zt", &uid, "");
    entry("zt-system/zt-agent", "zt", &agent, "");
    entry(&format!("zt-system/zt-agent/nodes/{NODE}"), "zt-node", &agent, "");
    entry(
        "zt-system/zt-policy-engine",
        "zt",
        &engine,
        "zt-policy-engine.zt-system.svc,zt-policy-engine.zt-system.svc.cluster.local",
    );
    entry("kube-system/coredns", "zt", &names, "");
    // Those of static pods, which are nobody's pods to a controller manager.
    let nodes = "spiffe://hanzo.ai/hanzo-k8s/control-plane-nodes";
    wanted.insert(format!(
        "{nodes} of spiffe://hanzo.ai/spire/server hint= for \
         k8s_psat:agent_node_label:node-role.kubernetes.io/control-plane:,k8s_psat:cluster:hanzo-k8s dns="
    ));
    for component in [
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
    ] {
        wanted.insert(format!(
            "spiffe://hanzo.ai/hanzo-k8s/kube-system/_static.{component} of {nodes} hint=zt \
             for k8s:ns:kube-system,k8s:pod-label:component:{component},k8s:sa: dns="
        ));
    }
    registry.wait_entries(&wanted)?;
    heard(
        &registry,
        &[
            "kube-system/coredns",
            "zt-system/zt-agent",
            "kube-system/_static.etcd",
        ],
    )?;
    // What became of a resource is written into it.
    let path = "/apis/spire.spiffe.io/v1alpha1/clusterspiffeids/zt-agent-node";
    eventually("the status to be told", LATER, || {
        Ok(registry.cluster.get(path)?["status"]["stats"]["entriesToSet"] == 1)
    })?;

    // A pod that is gone has no entry, and what was made by hand stays.
    registry
        .cluster
        .delete("/api/v1/namespaces/kube-system/pods/coredns-x", 0)?;
    wanted.retain(|entry| !entry.contains("coredns"));
    registry.wait_entries(&wanted)
}
