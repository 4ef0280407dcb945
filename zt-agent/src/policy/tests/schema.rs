// SPDX-License-Identifier: Apache-2.0
//! The definitions of the Kubernetes resources: what a file may say a resource may say, and the schema is one that an API
//! server takes.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{document, set};
use crate::policy::{
    RESOURCES, Settings, collection_of, definitions, document_of, mark_of, mark_resource, parse, resource_of,
};
use crate::yaml;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn schema(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// As a validator of JSON schema sees it, which knows nothing of Kubernetes.
fn validator(kind: &str) -> jsonschema::Validator {
    let definition = definitions()
        .into_iter()
        .find(|one| one["spec"]["names"]["kind"] == kind);
    jsonschema::validator_for(schema(&definition.expect("a definition"))).expect("a schema")
}

#[test]
fn the_files_are_what_is_generated() {
    for (definition, (kind, collection)) in definitions().iter().zip(RESOURCES) {
        assert_eq!(collection_of(kind), Some(collection));
        let path = root().join(format!("deploy/crds/{collection}.yaml"));
        let wanted = format!(
            "# SPDX-License-Identifier: Apache-2.0\n{}",
            yaml::write(definition).expect("YAML")
        );
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "{} is not what the agent says: run `zt-agent policy crds --write deploy/crds`",
            path.display()
        );
    }
}

#[test]
fn every_example_passes_the_schema_and_comes_back_the_same() {
    let mut seen = 0;
    for directory in ["policies", "policies/examples"] {
        for entry in std::fs::read_dir(root().join(directory)).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a file");
            let Ok(policies) = parse(&[document("example.yaml", &text)], &Settings::default()) else {
                continue;
            };
            for policy in policies.all() {
                let resource = resource_of(&policy.document(), None);
                let checked = validator(policy.kind())
                    .validate(&resource)
                    .map_err(|error| error.to_string());
                assert_eq!(checked, Ok(()), "{}: {resource}", path.display());
                let back = document("back.json", &document_of(&resource).to_string());
                assert_eq!(set(&[back]).all()[0].digest(), policy.digest());
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "there are examples");
}

#[test]
fn what_the_schema_refuses_a_file_may_not_say_either() {
    let rule = |rule: Value| json!({"apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "p"}, "spec": {"rules": [rule]}});
    let me = json!({"spiffe": "*"});
    for bad in [
        rule(json!({"from": me, "to": []})),
        rule(json!({"to": [me]})),
        rule(json!({"from": me, "to": [me], "action": "PERHAPS"})),
        rule(json!({"from": me, "to": [{"spiffe": "*", "ports": []}]})),
        rule(json!({"from": me, "to": [{"spiffe": "*", "cidr": "10.0.0.0/8"}]})),
        rule(json!({"from": me, "to": [{"ports": [80]}]})),
        rule(json!({"from": {"entity": "moon"}, "to": [me]})),
        rule(json!({"from": me, "to": [me], "rawSockets": "yes"})),
        rule(json!({"from": me, "to": [{"spiffe": "*", "requireProof": "yes"}]})),
        json!({"apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "p"}, "spec": {}}),
        json!({"apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "No_Name"}, "spec": {"rules": []}}),
    ] {
        assert!(!validator("ServiceAccessPolicy").is_valid(&bad), "{bad}");
        assert!(
            parse(&[document("bad.json", &bad.to_string())], &Settings::default()).is_err(),
            "{bad}"
        );
    }
    let misspelt = rule(json!({"from": me, "to": [me], "actoin": "DENY"}));
    assert!(
        validator("ServiceAccessPolicy").is_valid(&misspelt),
        "it is kept, for the reader to refuse"
    );
    assert!(
        parse(
            &[document("bad.json", &document_of(&misspelt).to_string())],
            &Settings::default()
        )
        .is_err()
    );
}

/// What an API server asks of a structural schema: each value has a type, but those that may be of two; each object keeps
/// what it does not know, but the status.
fn structural(schema: &Value, path: &str, in_spec: bool) {
    if schema["x-kubernetes-int-or-string"] == true {
        assert!(schema["type"].is_null(), "{path}");
        return;
    }
    let kind = schema["type"]
        .as_str()
        .unwrap_or_else(|| panic!("{path} has no type"));
    match kind {
        "object" => {
            for (field, inner) in schema["properties"].as_object().expect("properties") {
                structural(inner, &format!("{path}.{field}"), in_spec || field == "spec");
            }
            assert_eq!(
                schema["x-kubernetes-preserve-unknown-fields"] == true,
                in_spec,
                "{path}"
            );
        }
        "array" => structural(&schema["items"], &format!("{path}[]"), in_spec),
        _ => {}
    }
}

#[test]
fn the_schemas_are_structural() {
    for definition in definitions() {
        structural(schema(&definition), "", false);
        assert_eq!(definition["spec"]["scope"], "Cluster");
        let name = format!(
            "{}.zt.hanzo.ai",
            definition["spec"]["names"]["plural"].as_str().expect("a name")
        );
        assert_eq!(definition["metadata"]["name"], name);
    }
}

#[test]
fn a_resource_keeps_what_is_not_of_the_document() {
    let document = json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy",
        "metadata": {"name": "p", "description": "why"}, "spec": {"rules": []},
    });
    let before = json!({
        "metadata": {"name": "p", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"}, "managedFields": [{}],
            "annotations": {"other": "x"}},
        "spec": {"rules": [1]}, "status": {"digest": "d"},
    });
    let resource = resource_of(&document, Some(&before));
    assert_eq!(
        resource["metadata"],
        json!({"name": "p", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"},
            "annotations": {"other": "x", "zt.hanzo.ai/description": "why"}})
    );
    assert_eq!(document_of(&resource), document);
    let bare = json!({"apiVersion": "v", "kind": "k", "metadata": {"name": "p"}, "spec": {}});
    let resource = resource_of(&bare, Some(&resource));
    assert_eq!(resource["metadata"]["annotations"], json!({"other": "x"}));
    // What somebody wrote beside the spec is for the reader to refuse, not to be lost.
    let odd =
        document_of(&json!({"kind": "k", "metadata": {"name": "p"}, "spec": {}, "rules": [], "status": {}}));
    assert_eq!(
        odd,
        json!({"kind": "k", "metadata": {"name": "p"}, "spec": {}, "rules": []})
    );
}

#[test]
fn a_resource_says_which_change_wrote_it_and_its_document_does_not() {
    let document = json!({"apiVersion": "v", "kind": "k", "metadata": {"name": "p"}, "spec": {}});
    let mut resource = resource_of(&document, None);
    assert_eq!(mark_of(&resource), None);
    mark_resource(&mut resource, "one");
    mark_resource(&mut resource, "another");
    assert_eq!(mark_of(&resource), Some("another"));
    assert_eq!(document_of(&resource), document);
    // What the next one writes says so itself.
    assert_eq!(mark_of(&resource_of(&document, Some(&resource))), Some("another"));
}
