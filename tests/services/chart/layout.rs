// SPDX-License-Identifier: Apache-2.0
//! One value of the chart says how SPIFFE IDs are made, and everything that the chart writes has them so.

use std::collections::BTreeSet;

use zt_agent::caller::{Act, Rights};
use zt_agent::identity::kubernetes::Template;
use zt_agent::policy::{self, Document};
use zt_agent::spiffe_id::SpiffeId;

use super::*;

/// The layout of the specification, and that of the charts of SPIRE's own project.
const LAYOUTS: [&str; 2] = [
    Template::DEFAULT,
    "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}",
];

/// What a template makes of a service account.
fn id(template: &str, namespace: &str, account: &str) -> String {
    template
        .replace("{trustDomain}", "example.org")
        .replace("{cluster}", "east")
        .replace("{namespace}", namespace)
        .replace("{serviceAccount}", account)
}

/// What follows a key in a manifest, up to the end of its line.
fn after<'a>(text: &'a str, key: &str) -> &'a str {
    let (_, rest) = text.split_once(key).unwrap_or_default();
    rest.lines().next().unwrap_or_default().trim_matches('"')
}

/// The `ClusterSPIFFEID`s: name, template and hint of each.
fn cluster_ids(text: &str) -> Vec<(&str, &str, &str)> {
    text.split("\n---\n")
        .filter(|text| text.contains("kind: ClusterSPIFFEID"))
        .map(|text| {
            (
                after(text, "  name: "),
                after(text, "spiffeIDTemplate: "),
                after(text, "hint: "),
            )
        })
        .collect()
}

#[test]
fn one_value_says_how_every_id_is_made() -> Result<()> {
    for template in LAYOUTS {
        let files = rendered(&[
            &format!("spiffeIDTemplate={template}"),
            "trustDomain=example.org",
            "cluster=east",
            "spire.clusterSPIFFEIDs.workloads=true",
            "operators={ops/operator,spiffe://example.org/people/root}",
        ])?;
        let mine = |namespace: &str, account: &str| id(template, namespace, account);

        // The agents name other nodes' pods so, and SPIRE this node's.
        let agent = load(&block(&files["agent.yaml"], "agent.yaml")?)?;
        let engine = load(&block(&files["engine.yaml"], "engine.yaml")?)?;
        for config in [&agent, &engine] {
            assert_eq!(config.identity.template.as_str(), template);
        }
        let delegate = mine("zt-system", "zt-agent");
        let node = format!("{delegate}/nodes/{{{{ .PodSpec.NodeName }}}}");
        let engines = mine("zt-system", "zt-policy-engine");
        let pods = mine("{{ .PodMeta.Namespace }}", "{{ .PodSpec.ServiceAccountName }}");
        assert_eq!(
            cluster_ids(&files["spire-ids.yaml"]),
            [
                ("zt-agent", delegate.as_str(), "zt"),
                ("zt-agent-node", &node, "zt-node"),
                ("zt-policy-engine", &engines, "zt"),
                ("zt-workloads", &pods, "zt"),
            ]
        );
        assert!(files["NOTES.txt"].contains(&format!("authorized_delegates = [\"{delegate}\"]")));

        // Who may do what.
        let may = |config: &Config, id: &str, act| -> Result<bool> {
            Ok(Rights::of(&config.api.callers, &SpiffeId::parse(id)?).allow(act))
        };
        for operator in [&mine("ops", "operator"), "spiffe://example.org/people/root"] {
            assert!(may(&agent, operator, Act::Change)? && may(&engine, operator, Act::Change)?);
        }
        assert!(may(&engine, &delegate, Act::Follow)? && !may(&engine, &delegate, Act::Read)?);
        // An agent says what is in force on its own node, and on no other.
        let worker = SpiffeId::parse(&format!("{delegate}/nodes/worker-1"))?;
        let rights = Rights::of(&engine.api.callers, &worker);
        assert!(rights.allow(Act::Report) && rights.speaks_for("worker-1") && !rights.speaks_for("worker-2"));
        assert!(
            !may(&agent, &delegate, Act::Follow)?,
            "agents follow engines alone"
        );
        // No service account can have such an ID.
        let segments = |id: &str| id.split('/').count();
        assert_ne!(segments(worker.as_str()), segments(&pods));

        // The baseline is about the same pods as before.
        let text = block(&files["policies.yaml"], "baseline.yaml")?;
        let named = |text: &str| -> BTreeSet<String> {
            text.split('"')
                .filter(|word| word.starts_with("spiffe://"))
                .map(str::to_owned)
                .collect()
        };
        let wanted = ["coredns", "kube-dns", "node-local-dns"].map(|account| mine("kube-system", account));
        assert_eq!(named(&text), BTreeSet::from(wanted));
        let document = Document {
            file: "baseline.yaml".to_owned(),
            text,
        };
        policy::parse(&[document], &agent.policy_settings())
            .map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let own = SpiffeId::parse(&delegate)?;
        assert_eq!(agent.modes().of(&own).name(), "observe");
    }
    // With the defaults it is the file, word for word.
    let text = block(&rendered(&[])?["policies.yaml"], "baseline.yaml")?;
    let file = read("policies/baseline.yaml")?;
    assert_eq!(
        text.trim(),
        file.trim_start_matches("# SPDX-License-Identifier: Apache-2.0\n")
            .trim()
    );
    Ok(())
}
