// SPDX-License-Identifier: Apache-2.0
//! Every manifest of the repository is taken by the API server, which knows more than the types: names, selectors,
//! quantities, what may be beside what.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::ensure;

use super::*;

/// Nothing is kept, and a field that is not known is an error.
const DRY: &str = "?dryRun=All&fieldValidation=Strict";

/// The chart with these values: its documents, definitions first.
pub(crate) fn rendered(values: &[&str]) -> Result<Vec<String>> {
    let program = std::env::var_os("ZT_CHART");
    let program = program.context("ZT_CHART is not set: run `cargo xtask test apiserver`")?;
    let output = Command::new(program)
        .args(["template", "deploy/helm/zt"])
        .args(values)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .context("cannot run zt-chart")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut files: BTreeMap<String, String> = serde_json::from_slice(&output.stdout)?;
    files.remove("NOTES.txt");
    Ok(files.values().flat_map(|text| documents(text)).collect())
}

/// The documents of a file, those that are not empty.
pub(crate) fn documents(text: &str) -> Vec<String> {
    let parts = text.split("\n---\n").map(|part| part.trim_start_matches("---\n"));
    let with_kind = parts.filter(|part| part.lines().any(|line| line.starts_with("kind: ")));
    with_kind.map(str::to_owned).collect()
}

/// The value of a key at the top of a document.
pub(crate) fn head<'a>(document: &'a str, key: &str) -> &'a str {
    let line = document.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.strip_prefix(": ")).unwrap_or_default()
}

/// The value of a key in the metadata of a document, which may be written in one line.
pub(crate) fn metadata<'a>(document: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = document.split_once("\nmetadata:")?;
    let mut lines = rest.split_inclusive('\n');
    let first = lines.next()?.len();
    let inside = lines.take_while(|line| line.starts_with([' ', '\n']));
    let length = first + inside.map(str::len).sum::<usize>();
    let (_, value) = rest[..length].split_once(&format!("{key}: "))?;
    value.split([',', '}', '\n']).next()
}

/// Where documents of this kind are made; `None` if the API server does not know it.
pub(crate) fn collection(cluster: &Cluster, document: &str) -> Result<Option<String>> {
    let (version, kind) = (head(document, "apiVersion"), head(document, "kind"));
    let base = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    if !cluster.has(&base)? {
        return Ok(None);
    }
    let known = cluster.get(&base)?;
    let resources = known["resources"].as_array().context("resources")?;
    let is = |found: &&Value| {
        found["kind"] == kind && !found["name"].as_str().is_some_and(|name| name.contains('/'))
    };
    let Some(resource) = resources.iter().find(is) else {
        return Ok(None);
    };
    let plural = resource["name"].as_str().context("a name")?;
    if resource["namespaced"] == false {
        return Ok(Some(format!("{base}/{plural}")));
    }
    let namespace = metadata(document, "namespace").with_context(|| format!("a namespace: {document}"))?;
    Ok(Some(format!("{base}/namespaces/{namespace}/{plural}")))
}

/// The documents below a directory of the repository.
pub(crate) fn files(directory: &str) -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory);
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            found.extend(documents(&text));
        }
    }
    ensure!(!found.is_empty(), "no manifests in {directory}");
    Ok(found)
}

/// Makes what a document says, and waits until the kind that it may define is served.
pub(crate) fn make(cluster: &Cluster, document: &str) -> Result<()> {
    let place = collection(cluster, document)?.with_context(|| format!("unknown kind: {document}"))?;
    let answer = cluster.request("POST", &place, "application/yaml", document)?;
    // A namespace may be in more than one file.
    ensure!(
        [201, 409].contains(&answer.status),
        "{place}: {}\n{document}",
        answer.body
    );
    if head(document, "kind") == "CustomResourceDefinition" {
        let (plural, group) = metadata(document, "name")
            .and_then(|name| name.split_once('.'))
            .context("plural.group")?;
        let version = if group == "zt.hanzo.ai" { "v1" } else { "v1alpha1" };
        let served = format!("/apis/{group}/{version}/{plural}");
        eventually(&format!("{served} to be served"), LATER, || cluster.has(&served))?;
    }
    Ok(())
}

#[test]
fn the_api_server_takes_every_manifest() -> Result<()> {
    let sandbox = Sandbox::new("apiserver-manifests")?;
    let cluster = Cluster::start(&sandbox)?;
    let everything = [
        "createNamespace=true",
        "spire.clusterSPIFFEIDs.workloads=true",
        "spire.clusterSPIFFEIDs.className=zt",
        "agent.priorityQuota=true",
        "agent.auditSecret.name=zt-secrets",
        "image.pullSecrets[0].name=registry",
        "networkPolicy.monitoringNamespaces.matchLabels.name=monitoring",
        "agent.config.policySource=kubernetes",
        "engine.config.policySource=kubernetes",
        "metrics.serviceMonitor.enabled=true",
        "metrics.rules.enabled=true",
    ];
    let mut all = files("deploy/spire")?;
    all.extend(files("deploy/manifests")?);
    all.extend(rendered(&everything)?);
    // What others are in, or are instances of, comes first: tried, and then made.
    let rank = |document: &String| match head(document, "kind") {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        _ => 2,
    };
    all.sort_by_key(rank);
    let (mut taken, mut others) = (BTreeMap::<String, usize>::new(), Vec::new());
    for document in &all {
        let kind = head(document, "kind").to_owned();
        let Some(place) = collection(&cluster, document)? else {
            others.push(head(document, "apiVersion").to_owned());
            continue;
        };
        let answer = cluster.request("POST", &format!("{place}{DRY}"), "application/yaml", document)?;
        let there = rank(document) < 2 && answer.status == 409;
        ensure!(
            answer.status == 201 || there,
            "{place}: {}\n{document}",
            answer.body
        );
        // Here, as from `kubectl apply`, a warning would be a field that has no effect.
        *taken.entry(kind).or_default() += 1;
        if rank(document) < 2 {
            make(&cluster, document)?;
        }
    }
    for kind in [
        "DaemonSet",
        "StatefulSet",
        "ClusterSPIFFEID",
        "ResourceQuota",
        "Job",
    ] {
        assert!(taken.contains_key(kind), "{kind}: {taken:?}");
    }
    // Those of the Prometheus operator, whose definitions are not here.
    assert!(
        others.iter().all(|version| version == "monitoring.coreos.com/v1"),
        "{others:?}"
    );
    assert_eq!(others.len(), 3, "{others:?}");

    // A slip is found: what the type allows, and the API server does not.
    let agent = all
        .iter()
        .find(|text| head(text, "kind") == "DaemonSet" && text.contains("maxSurge: 1"));
    let slip = agent.context("zt's agent")?.replace("maxSurge: 1", "maxSurge: 0");
    let place = collection(&cluster, &slip)?.context("it is known")?;
    let answer = cluster.request("POST", &format!("{place}{DRY}"), "application/yaml", &slip)?;
    assert_eq!(answer.status, 422, "{}", answer.body);
    Ok(())
}

/// As `kubectl apply` asks for it.
#[test]
fn the_api_server_takes_the_policies_of_the_repository() -> Result<()> {
    let sandbox = Sandbox::new("apiserver-policies-taken")?;
    let cluster = Cluster::start(&sandbox)?;
    for document in files("deploy/crds")? {
        make(&cluster, &document)?;
    }
    for document in files("policies")? {
        let place = collection(&cluster, &document)?.context("it is known")?;
        let name = metadata(&document, "name").context("a name")?;
        let taken = wait_for(&format!("{name} to be taken"), LATER, || {
            // A definition that has just been made is not in force everywhere at once.
            let answer = cluster.request("POST", &format!("{place}{DRY}"), "application/yaml", &document)?;
            ensure!(![400, 422].contains(&answer.status), "{name}: {}", answer.body);
            Ok((answer.status == 201).then_some(()))
        });
        taken?;
    }
    Ok(())
}
