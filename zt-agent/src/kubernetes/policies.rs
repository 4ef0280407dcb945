// SPDX-License-Identifier: Apache-2.0
//! What is read and written of policies as resources of the cluster.

use hyper::Method;
use serde::Deserialize;
use serde_json::Value;

use super::{Client, ClientError, Collection};
use crate::policy::{API_VERSION, RESOURCES};

/// Most bytes of one answer: all policies of a kind.
const MOST: usize = 64 << 20;
const JSON: &str = "application/json";

/// The collections of policies, in the order of [`RESOURCES`].
pub fn collections() -> [Collection; RESOURCES.len()] {
    RESOURCES.map(|(_, name)| Collection {
        name,
        path: path(name),
        field_selector: None,
    })
}

fn path(collection: &str) -> String {
    format!("/apis/{API_VERSION}/{collection}")
}

/// A policy as a resource. One without a name is not understood.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub struct ReadPolicy {
    /// Its name.
    pub name: String,
    /// Which of those that had that name.
    pub uid: String,
    /// Counts changes of its `spec`.
    pub generation: i64,
    /// All of it.
    pub resource: Value,
}

impl TryFrom<Value> for ReadPolicy {
    type Error = String;

    fn try_from(resource: Value) -> Result<Self, String> {
        let metadata = &resource["metadata"];
        let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
        let name = text("name");
        if name.is_empty() {
            return Err("metadata.name is missing".to_owned());
        }
        Ok(Self {
            name,
            uid: text("uid"),
            generation: metadata["generation"].as_i64().unwrap_or_default(),
            resource,
        })
    }
}

/// All policies of a kind, as they are now.
pub async fn list(client: &Client, collection: &str) -> Result<Vec<ReadPolicy>, ClientError> {
    let path = path(collection);
    let body = client.get(&path, &path, MOST).await?;
    let garbled = |message: String| ClientError::Garbled {
        what: path.clone(),
        message,
    };
    let answer = serde_json::from_slice(&body).map_err(|error| garbled(error.to_string()))?;
    read(answer, collection).map_err(garbled)
}

/// Reads a list, or says why it is none.
fn read(mut answer: Value, collection: &str) -> Result<Vec<ReadPolicy>, String> {
    let items = answer.get_mut("items").map(Value::take);
    let Some(Value::Array(items)) = items else {
        return Err("it has no items".to_owned());
    };
    let kind = RESOURCES
        .iter()
        .find(|(_, of)| *of == collection)
        .map(|(kind, _)| *kind);
    let read = items.into_iter().map(|item| {
        let Value::Object(mut item) = item else {
            return Err("one of its items is no object".to_owned());
        };
        // Items of a list do not say what they are.
        item.insert("apiVersion".to_owned(), API_VERSION.into());
        item.insert("kind".to_owned(), kind.into());
        ReadPolicy::try_from(Value::Object(item))
    });
    read.collect()
}

/// Makes a new one.
pub async fn create(client: &Client, collection: &str, resource: &Value) -> Result<Value, ClientError> {
    let path = path(collection);
    send(client, Method::POST, &path, Some(resource)).await
}

/// Puts it in the place of the version that `resource` says it replaces.
pub async fn replace(client: &Client, collection: &str, resource: &Value) -> Result<Value, ClientError> {
    let name = resource["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("{}/{name}", path(collection));
    send(client, Method::PUT, &path, Some(resource)).await
}

/// Replaces its status, unless it is another version by now than `resource` says.
pub async fn replace_status(
    client: &Client,
    collection: &str,
    resource: &Value,
) -> Result<Value, ClientError> {
    let name = resource["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("{}/{name}/status", path(collection));
    send(client, Method::PUT, &path, Some(resource)).await
}

/// Deletes that version of it.
pub async fn delete(client: &Client, collection: &str, resource: &Value) -> Result<(), ClientError> {
    let metadata = &resource["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let path = format!("{}/{name}", path(collection));
    let only = serde_json::json!({
        "kind": "DeleteOptions",
        "apiVersion": "v1",
        "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
    });
    send(client, Method::DELETE, &path, Some(&only)).await.map(drop)
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, ClientError> {
    let content = body.map(|body| (JSON, body.to_string().into_bytes()));
    let answer = client.change(method, path, content, path, MOST).await?;
    serde_json::from_slice(&answer).map_err(|error| ClientError::Garbled {
        what: path.to_owned(),
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_read_and_what_is_none_is_an_error() {
        let (kind, collection) = RESOURCES[0];
        let list = json!({ "items": [{ "metadata": { "name": "a", "generation": 3 } }] });
        let policies = read(list, collection).expect("a list");
        assert_eq!((policies[0].name.as_str(), policies[0].generation), ("a", 3));
        assert_eq!(policies[0].resource["kind"], kind);
        for odd in [
            json!(null),
            json!([]),
            json!("text"),
            json!(7),
            json!({}),
            json!({ "items": {} }),
            json!({ "items": [7] }),
            json!({ "items": ["a"] }),
            json!({ "items": [[]] }),
            json!({ "items": [null] }),
            json!({ "items": [{}] }),
            json!({ "items": [{ "metadata": 7 }] }),
        ] {
            assert!(read(odd.clone(), collection).is_err(), "{odd}");
        }
    }
}
