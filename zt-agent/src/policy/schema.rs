// SPDX-License-Identifier: Apache-2.0
//! Policies as Kubernetes resources: the `CustomResourceDefinition`s, from the field lists that documents are read with, and
//! the way between a resource and a document.
//!
//! The schemas check what a schema can check, so that most mistakes are refused when they are made. They keep unknown
//! fields: dropped in silence, a misspelt `action` would make an ALLOW of a DENY. Whoever reads the resource refuses it by
//! name instead, as in a file.

mod rollout;

use serde_json::{Map, Value as Json, json};

use super::action::{Action, Protocol};
use super::document::{KIND, RULE_FIELDS, SPEC_FIELDS, TARGET_FIELDS};
use super::endpoint;
use super::entity::ENTITIES;
use super::envelope::API_VERSION;
use super::operator::{
    CONDITION_FIELDS, MAX_WORD_CHARS, OPERATOR_KIND, OPERATOR_RULE_FIELDS, OPERATOR_SPEC_FIELDS,
    OPERATOR_TARGET_FIELDS,
};
use super::rollout::ROLLOUT_KIND;

/// The API group of the resources.
pub const GROUP: &str = "zt.hanzo.ai";
/// Kinds and the names of their collections.
pub const RESOURCES: [(&str, &str); 3] = [
    (KIND, "serviceaccesspolicies"),
    (OPERATOR_KIND, "operatoraccesspolicies"),
    (ROLLOUT_KIND, "enforcementrollouts"),
];
/// Where a resource has what a document has in `metadata.description`.
const DESCRIPTION: &str = "zt.hanzo.ai/description";
/// Where a resource has which change over an API of ours wrote it.
const CHANGE: &str = "zt.hanzo.ai/change";

/// The definitions of all kinds, in the order of [`RESOURCES`].
pub fn definitions() -> [Json; RESOURCES.len()] {
    [
        definition(KIND, "sap", &service_spec()),
        definition(OPERATOR_KIND, "oap", &operator_spec()),
        definition(ROLLOUT_KIND, "er", &rollout::spec()),
    ]
}

/// The name of the collection of a kind.
pub fn collection_of(kind: &str) -> Option<&'static str> {
    RESOURCES
        .into_iter()
        .find(|(of, _)| *of == kind)
        .map(|(_, collection)| collection)
}

/// The document that a resource is: without what belongs to Kubernetes.
pub fn document_of(resource: &Json) -> Json {
    let metadata = &resource["metadata"];
    let mut head = Map::new();
    head.insert("name".to_owned(), metadata["name"].clone());
    if let Some(text) = metadata["annotations"][DESCRIPTION].as_str() {
        head.insert("description".to_owned(), text.into());
    }
    let mut document = Map::new();
    document.insert("metadata".to_owned(), Json::Object(head));
    // Whatever else somebody wrote there is for the reader to refuse.
    for (field, value) in resource.as_object().into_iter().flatten() {
        if field != "metadata" && field != "status" {
            document.insert(field.clone(), value.clone());
        }
    }
    Json::Object(document)
}

/// The resource that a document is, in the place of `before` if there is one: labels, annotations and owners stay.
pub fn resource_of(document: &Json, before: Option<&Json>) -> Json {
    let mut resource = document.clone();
    let description = document["metadata"]["description"].clone();
    let mut metadata = before.map_or_else(|| json!({}), |before| before["metadata"].clone());
    metadata["name"] = document["metadata"]["name"].clone();
    if let Some(fields) = metadata.as_object_mut() {
        fields.remove("managedFields");
    }
    match description {
        Json::String(text) => metadata["annotations"][DESCRIPTION] = text.into(),
        _ => {
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Json::as_object_mut) {
                annotations.remove(DESCRIPTION);
            }
        }
    }
    resource["metadata"] = metadata;
    resource
}

/// Has a resource say which change wrote it. No document has that.
pub fn mark_resource(resource: &mut Json, change: &str) {
    resource["metadata"]["annotations"][CHANGE] = change.into();
}

/// Which change over an API of ours wrote a resource last; what is changed elsewhere mostly keeps the word of the one before.
pub fn mark_of(resource: &Json) -> Option<&str> {
    resource["metadata"]["annotations"][CHANGE].as_str()
}

fn definition(kind: &str, short: &str, spec: &Json) -> Json {
    let plural = collection_of(kind).unwrap_or_default();
    let singular = kind.to_lowercase();
    let (_, version) = API_VERSION.split_once('/').unwrap_or_default();
    let column =
        |name: &str, path: &str, r#type: &str| json!({"name": name, "jsonPath": path, "type": r#type});
    let accepted = ".status.conditions[?(@.type==\"Accepted\")]";
    let stage = (kind == ROLLOUT_KIND).then(|| column("Stage", ".spec.stage", "string"));
    let columns = [
        column("Accepted", &format!("{accepted}.status"), "string"),
        column("Reason", &format!("{accepted}.reason"), "string"),
        column(
            "InForce",
            ".status.conditions[?(@.type==\"InForce\")].status",
            "string",
        ),
        column("Age", ".metadata.creationTimestamp", "date"),
    ];
    let columns: Vec<Json> = stage.into_iter().chain(columns).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": singular,
                "shortNames": [short],
                "categories": ["zt"],
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object", "properties": {"name": {
                            "type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
                        }}},
                        "spec": spec,
                        "status": status(kind == ROLLOUT_KIND),
                    },
                }},
            }],
        },
    })
}

/// An object with these fields, each of which `schema` knows.
fn object(fields: &[&str], required: &[&str], schema: impl Fn(&str) -> Json) -> Json {
    let properties: Map<String, Json> = fields
        .iter()
        .map(|field| ((*field).to_owned(), schema(field)))
        .collect();
    let mut object = json!({
        "type": "object",
        "properties": properties,
        "x-kubernetes-preserve-unknown-fields": true,
    });
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object
}

fn list(least: usize, items: &Json) -> Json {
    let mut list = json!({"type": "array", "items": items});
    if least > 0 {
        list["minItems"] = least.into();
    }
    list
}

fn text(description: &str) -> Json {
    json!({"type": "string", "description": description})
}

fn one_of(names: &[&str], description: &str) -> Json {
    json!({"type": "string", "enum": names, "description": description})
}

fn flag(description: &str) -> Json {
    json!({"type": "boolean", "description": description})
}

fn note() -> Json {
    text("For people.")
}

fn service_spec() -> Json {
    object(&SPEC_FIELDS, &["rules"], |field| match field {
        "rules" => list(0, &service_rule()),
        "defaultAction" => one_of(
            &Action::NAMES,
            "What happens to what no rule is about. ALLOW holds only where every policy says so.",
        ),
        _ => note(),
    })
}

fn service_rule() -> Json {
    object(&RULE_FIELDS, &["from"], |field| match field {
        "from" => parties(&endpoint::FIELDS),
        "to" => list(1, &parties(&TARGET_FIELDS)),
        "action" => one_of(&Action::NAMES, "DENY beats every ALLOW."),
        "rawSockets" => flag("The source may open raw sockets."),
        _ => note(),
    })
}

/// An end of a rule: exactly one way to say who it is.
fn parties(fields: &[&str]) -> Json {
    let entities = ENTITIES.map(|(name, _)| name);
    let mut party = object(fields, &[], |field| match field {
        "spiffe" => text("A SPIFFE ID; `*` stands for a whole segment of its path, or for any."),
        "entity" => one_of(&entities, "Somebody without a SPIFFE ID."),
        "cidr" => text("A network; the longest that policies name is who an address is."),
        "ports" => list(
            1,
            &json!({"x-kubernetes-int-or-string": true, "description": "A port, or a range such as 8000-8100."}),
        ),
        "protocol" => one_of(&Protocol::NAMES, "TCP where nothing is said."),
        "requireProof" => flag("Only for who proves in the TCP handshake who it is, at both ends."),
        _ => note(),
    });
    let one: Vec<Json> = endpoint::FIELDS
        .iter()
        .map(|field| json!({"required": [field]}))
        .collect();
    party["oneOf"] = one.into();
    party
}

fn operator_spec() -> Json {
    object(&OPERATOR_SPEC_FIELDS, &["rules"], |field| match field {
        "rules" => list(0, &operator_rule()),
        _ => note(),
    })
}

fn operator_rule() -> Json {
    object(&OPERATOR_RULE_FIELDS, &["role", "targets"], |field| match field {
        "role" => word("Whom it is about."),
        "targets" => list(
            1,
            &object(
                &OPERATOR_TARGET_FIELDS,
                &OPERATOR_TARGET_FIELDS,
                |field| match field {
                    "actions" => list(1, &word("What may be done.")),
                    _ => word("What it may be done to; `*` for everything."),
                },
            ),
        ),
        "conditions" => list(
            0,
            &object(&CONDITION_FIELDS, &[], |field| match field {
                "requireMFA" => flag("Only with a second factor."),
                _ => flag("Only for an incident, which is named."),
            }),
        ),
        _ => note(),
    })
}

fn count(description: &str) -> Json {
    json!({"type": "integer", "format": "int64", "description": description})
}

fn word(description: &str) -> Json {
    json!({"type": "string", "minLength": 1, "maxLength": MAX_WORD_CHARS, "description": description})
}

/// The status; of a rollout, with who stopped in it.
fn status(is_rollout: bool) -> Json {
    let condition = json!({
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": {"type": "string"},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "reason": {"type": "string"},
            "message": {"type": "string"},
        },
    });
    let in_force = if is_rollout {
        rollout::IN_FORCE
    } else {
        "Those of them that have exactly its policies in force."
    };
    let mut engine = json!({
        "type": "object",
        "required": ["name", "nodes", "nodesInForce", "reported"],
        "properties": {
            "name": {"type": "string"},
            "nodes": count("Nodes that follow it."),
            "nodesInForce": count(in_force),
            "reported": {"type": "string", "format": "date-time"},
        },
    });
    if is_rollout {
        engine["properties"]["nodesStopped"] = count("Those of them that stopped of their own accord.");
        engine["properties"]["stopped"] = rollout::stopped();
        engine["properties"]["nodesSilent"] = count("Those of them that were not heard for two minutes.");
        engine["properties"]["silent"] =
            rollout::missed("The first by name that were not heard for half a minute, and when last.");
        engine["properties"]["heard"] =
            rollout::missed("Those that others miss and it has heard since, with the time that these say.");
    }
    json!({
        "type": "object",
        "description": "Written by policy engines.",
        "properties": {
            "conditions": {
                "type": "array",
                "items": condition,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
            "digest": text("Of this policy, where it is valid: its ETag in the API."),
            "engines": {
                "type": "array",
                "description": "Policy engines that nodes follow (`policySource: engine`), each with its nodes.",
                "items": engine,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        },
    })
}
