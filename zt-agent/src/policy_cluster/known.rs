// SPDX-License-Identifier: Apache-2.0
//! What the cluster has.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kubernetes::Said;
use crate::kubernetes::policies::ReadPolicy;
use crate::policy::{API_VERSION, Document, Problem, RESOURCES, document_of};
use crate::policy_dir::{Contents, MAX_FILE_BYTES, MAX_TOTAL_BYTES};

/// All policies that the API has told of.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// By their place: kind, as in [`RESOURCES`], and name.
    policies: BTreeMap<(usize, String), ReadPolicy>,
    /// The kinds that were listed whole.
    listed: [bool; RESOURCES.len()],
}

impl Known {
    /// Whether it is all that there is.
    pub fn is_whole(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }

    /// Whether the cluster has none.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Each, with its collection and the file that its problems name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, String, &ReadPolicy)> {
        self.policies.iter().filter_map(|((kind, name), policy)| {
            let (_, collection) = RESOURCES.get(*kind)?;
            Some((*collection, format!("{collection}/{name}"), policy))
        })
    }

    /// As the files of a directory would be.
    pub fn contents(&self) -> Contents {
        if self.policies.is_empty() {
            let message = "the cluster has no policy; to allow nothing, make one without rules";
            return Contents(Err(vec![problem("", message.to_owned())]));
        }
        let mut documents = Vec::with_capacity(self.policies.len());
        let mut total = 0;
        for (_, file, policy) in self.iter() {
            let document = document(&policy.resource, file);
            let bytes = document.text.len() as u64;
            total += bytes;
            if bytes > MAX_FILE_BYTES {
                let message = format!("has more than {MAX_FILE_BYTES} bytes; split it");
                return Contents(Err(vec![problem(&document.file, message)]));
            }
            if total > MAX_TOTAL_BYTES {
                let message =
                    format!("the policies up to this one have more than {MAX_TOTAL_BYTES} bytes together");
                return Contents(Err(vec![problem(&document.file, message)]));
            }
            documents.push(document);
        }
        documents.sort_by(|a, b| a.file.cmp(&b.file));
        Contents(Ok(documents))
    }

    pub(super) fn take(&mut self, kind: usize, said: Said<ReadPolicy>) {
        match said {
            Said::All(all) => {
                self.policies.retain(|(of, _), _| *of != kind);
                let all = all
                    .into_iter()
                    .map(|policy| ((kind, policy.name.clone()), policy));
                self.policies
                    .extend(all.map(|(place, policy)| (place, named(kind, policy))));
                if let Some(listed) = self.listed.get_mut(kind) {
                    *listed = true;
                }
            }
            Said::Applied(policy) => {
                self.policies
                    .insert((kind, policy.name.clone()), named(kind, policy));
            }
            Said::Deleted(policy) => {
                let place = (kind, policy.name);
                if self
                    .policies
                    .get(&place)
                    .is_some_and(|known| known.uid == policy.uid)
                {
                    self.policies.remove(&place);
                }
            }
        }
    }
}

/// Items of a list need not say what they are.
fn named(kind: usize, mut policy: ReadPolicy) -> ReadPolicy {
    let (kind, _) = RESOURCES[kind.min(RESOURCES.len() - 1)];
    for (field, value) in [("apiVersion", API_VERSION), ("kind", kind)] {
        if policy.resource[field].is_null() {
            policy.resource[field] = value.into();
        }
    }
    policy
}

/// A resource as a document.
pub(super) fn document(resource: &Value, file: String) -> Document {
    Document {
        file,
        text: document_of(resource).to_string(),
    }
}

fn problem(file: &str, message: String) -> Problem {
    Problem {
        file: file.to_owned(),
        line: 0,
        column: 0,
        field: String::new(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(name: &str, uid: &str, extra: &Value) -> ReadPolicy {
        let mut object =
            json!({"metadata": {"name": name, "uid": uid, "resourceVersion": "9"}, "spec": {"rules": []}});
        if let (Some(fields), Some(extra)) = (object.as_object_mut(), extra.as_object()) {
            fields.extend(extra.clone());
        }
        serde_json::from_value(object).expect("understood")
    }

    #[test]
    fn all_of_every_kind_is_known_before_anything_is_said() {
        let mut known = Known::default();
        known.take(
            0,
            Said::All(vec![
                read("b", "1", &json!({})),
                read("a", "2", &json!({"status": {"digest": "x"}})),
            ]),
        );
        assert!(!known.is_whole());
        known.take(1, Said::All(vec![]));
        assert!(!known.is_whole());
        known.take(2, Said::All(vec![]));
        assert!(known.is_whole());
        let documents = known.contents().0.expect("documents");
        let files: Vec<&str> = documents.iter().map(|document| document.file.as_str()).collect();
        assert_eq!(files, ["serviceaccesspolicies/a", "serviceaccesspolicies/b"]);
        let first: Value = serde_json::from_str(&documents[0].text).expect("JSON");
        assert_eq!(
            first,
            json!({"apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "a"}, "spec": {"rules": []}})
        );
    }

    #[test]
    fn one_that_is_gone_is_that_one() {
        let mut known = Known::default();
        known.take(0, Said::Applied(read("a", "new", &json!({}))));
        known.take(0, Said::Deleted(read("a", "old", &json!({}))));
        assert!(!known.is_empty());
        known.take(0, Said::Deleted(read("a", "new", &json!({}))));
        assert!(known.is_empty());
        let problems = known.contents().0.expect_err("none");
        assert!(problems[0].message.contains("no policy"), "{problems:?}");
    }

    #[test]
    fn too_much_is_refused_by_name() {
        let mut known = Known::default();
        let long = "x".repeat(MAX_FILE_BYTES as usize);
        known.take(
            0,
            Said::Applied(read(
                "long",
                "1",
                &json!({"spec": {"rules": [], "description": long}}),
            )),
        );
        let problems = known.contents().0.expect_err("too long");
        assert_eq!(problems[0].file, "serviceaccesspolicies/long");
    }
}
