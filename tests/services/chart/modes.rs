// SPDX-License-Identifier: Apache-2.0
//! Whom the chart leaves in `observe`: what a cluster cannot do without, unless it is named.

use zt_agent::policy::{Document, PolicySet, parse};
use zt_agent::spiffe_id::SpiffeId;
use zt_agent::state::NodeModes;

use super::*;

/// Workloads that a cluster's own work depends on, under both layouts of SPIFFE IDs.
const SPARED: [&str; 15] = [
    "hanzo-k8s/kube-system/kube-proxy",
    "hanzo-k8s/kube-system/_static.kube-apiserver",
    "hanzo-k8s/zt-system/zt-agent",
    "hanzo-k8s/zt-system/zt-engine",
    "hanzo-k8s/spire/spire-agent",
    "hanzo-k8s/spire-server/spire-server",
    "ns/spire-system/sa/spire-agent",
    "hanzo-k8s/calico-system/calico-node",
    "hanzo-k8s/tigera-operator/tigera-operator",
    "hanzo-k8s/kube-flannel/flannel",
    "hanzo-k8s/cilium/cilium",
    "ns/kube-system/sa/cilium",
    "hanzo-k8s/istio-system/ztunnel",
    "ns/linkerd/sa/linkerd-destination",
    "ns/linkerd-cni/sa/linkerd-cni",
];

fn id(path: &str) -> Result<SpiffeId> {
    Ok(SpiffeId::parse(&format!("spiffe://hanzo.ai/{path}"))?)
}

/// The chart's agent, told to enforce, with one workload of a spared namespace named.
fn enforcing() -> Result<Config> {
    let manifest = &rendered(&[
        "agent.config.mode=enforce",
        "modes[0].spiffe=spiffe://hanzo.ai/hanzo-k8s/kube-system/coredns",
        "modes[0].mode=enforce",
    ])?["agent.yaml"];
    load(&block(manifest, "agent.yaml")?)
}

#[test]
fn nobody_locks_himself_out() -> Result<()> {
    let modes = enforcing()?.modes();
    for path in SPARED {
        assert_eq!(modes.of(&id(path)?).name(), "observe", "{path}");
    }
    for path in ["hanzo-k8s/kube-system/coredns", "hanzo-k8s/hanzo/iam"] {
        assert_eq!(modes.of(&id(path)?).name(), "enforce", "{path}");
    }
    Ok(())
}

/// Nor by a rollout, until a stage of it names them.
#[test]
fn a_rollout_of_everybody_locks_nobody_out() -> Result<()> {
    let config = enforcing()?;
    let settings = config.policy_settings();
    let reached = |spec: &str| -> Result<NodeModes> {
        let document = Document {
            file: "rollout.yaml".to_owned(),
            text: format!(
                "apiVersion: zt.hanzo.ai/v1\nkind: EnforcementRollout\nmetadata: {{name: r}}\nspec: {{{spec}}}\n"
            ),
        };
        let policies: PolicySet =
            parse(&[document], &settings).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        Ok(NodeModes::new(config.modes(), &policies, &settings, "node-1"))
    };
    let other = "stages: [{name: a, identities: ['spiffe://hanzo.ai/other'], mode: observe}]";
    for spec in [
        "stage: all, stages: [{name: all, requirePolicy: true}]",
        &format!("defaultMode: enforce, {other}"),
    ] {
        let modes = reached(spec)?;
        for path in SPARED {
            assert_eq!(modes.of(&id(path)?).name(), "observe", "{path}: {spec}");
        }
        assert_eq!(modes.of(&id("hanzo-k8s/hanzo/iam")?).name(), "enforce", "{spec}");
    }
    let named = "stage: a, stages: [{name: a, identities: ['spiffe://hanzo.ai/hanzo-k8s/kube-system/*'], mode: enforce}]";
    let modes = reached(named)?;
    assert_eq!(modes.of(&id(SPARED[0])?).name(), "enforce");
    Ok(())
}
