// SPDX-License-Identifier: Apache-2.0
//! What the server holds, and what happened to it.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

/// An object's place in its collection: namespace and name.
pub(super) type Place = (String, String);

/// How often a collection was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lists that were begun; further pages are not counted.
    pub lists: u64,
    /// Watches that were opened, those that were refused among them.
    pub watches: u64,
    /// Bookmarks that were sent.
    pub bookmarks: u64,
}

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub(super) struct Happened {
    pub(super) version: u64,
    pub(super) collection: String,
    pub(super) before: Option<Value>,
    /// As it is now, or, where it was deleted, as it was with the version of its deletion.
    pub(super) object: Value,
    pub(super) deleted: bool,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    version: u64,
    compacted: u64,
    objects: BTreeMap<String, BTreeMap<Place, Value>>,
    log: Vec<Happened>,
    counts: HashMap<String, Counts>,
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn counts(&self, collection: &str) -> Counts {
        self.counts.get(collection).copied().unwrap_or_default()
    }

    pub(super) fn count(&mut self, collection: &str, count: impl FnOnce(&mut Counts)) {
        count(self.counts.entry(collection.to_owned()).or_default());
    }

    pub(super) fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        self.objects
            .get(collection)?
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// The objects of a collection from behind a place on.
    pub(super) fn list(
        &self,
        collection: &str,
        after: Option<&Place>,
    ) -> impl Iterator<Item = (&Place, &Value)> {
        let objects = self.objects.get(collection).into_iter().flatten();
        objects.filter(move |(place, _)| after.is_none_or(|after| *place > after))
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.log.clear();
    }

    /// What happened since a version; `None` where that is no longer known.
    pub(super) fn since(&self, version: u64) -> Option<&[Happened]> {
        if version < self.compacted {
            return None;
        }
        let first = self.log.partition_point(|happened| happened.version <= version);
        Some(&self.log[first..])
    }

    pub(super) fn put(&mut self, collection: &str, mut object: Value) -> Value {
        let place = place_of(&object);
        let before = self.get(collection, &place.0, &place.1);
        let uid_before = before.as_ref().map(|before| before["metadata"]["uid"].clone());
        let next = self.version + 1;
        let metadata = metadata(&mut object);
        if !metadata.contains_key("uid") {
            let uid = uid_before.clone().filter(Value::is_string);
            let fresh = || json!(format!("00000000-0000-4000-8000-{next:012x}"));
            metadata.insert("uid".to_owned(), uid.unwrap_or_else(fresh));
        }
        let another = uid_before.is_some_and(|before| before != metadata["uid"]);
        if another {
            self.delete(collection, &place.0, &place.1);
        }
        let before = before.filter(|_| !another);
        self.version += 1;
        let metadata = self::metadata(&mut object);
        metadata.insert("resourceVersion".to_owned(), json!(self.version.to_string()));
        let generation = before.as_ref().map_or(1, |before| {
            let generation = before["metadata"]["generation"].as_u64().unwrap_or(1);
            generation + u64::from(before.get("spec") != object.get("spec"))
        });
        self::metadata(&mut object).insert("generation".to_owned(), json!(generation));
        let objects = self.objects.entry(collection.to_owned()).or_default();
        objects.insert(place, object.clone());
        self.log.push(Happened {
            version: self.version,
            collection: collection.to_owned(),
            before,
            object: object.clone(),
            deleted: false,
        });
        object
    }

    pub(super) fn delete(&mut self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let place = (namespace.to_owned(), name.to_owned());
        let before = self.objects.get_mut(collection)?.remove(&place)?;
        self.version += 1;
        let mut object = before.clone();
        metadata(&mut object).insert("resourceVersion".to_owned(), json!(self.version.to_string()));
        self.log.push(Happened {
            version: self.version,
            collection: collection.to_owned(),
            before: Some(before),
            object: object.clone(),
            deleted: true,
        });
        Some(object)
    }
}

/// The metadata of an object, which is made if it has none.
fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().expect("it is an object")
}

fn place_of(object: &Value) -> Place {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// A `Status` as the API answers errors.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    })
}
