// SPDX-License-Identifier: Apache-2.0
//! Policies that are kept elsewhere than in files: one object a policy, which tells by itself when somebody else changed
//! it.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use uuid::Uuid;

use super::{BODY, EditError};
use crate::policy::{
    self, AnyPolicy, Document, RESOURCES, Settings, collection_of, mark_resource, resource_of,
};

/// A policy as it is kept.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its document, whose file is `COLLECTION/NAME`.
    pub document: Document,
    /// The object that it is in.
    pub resource: Value,
}

/// What keeps policies as objects. Everything here blocks.
pub trait Store: Debug + Send + Sync {
    /// What it is called in records.
    fn name(&self) -> &str;

    /// All policies, as they are kept now.
    fn read(&self) -> Result<Vec<Held>, EditError>;

    /// Puts `to` in the place of `from`, which it must still be; without `from` makes it, without `to` deletes it. What
    /// is kept then.
    fn write(
        &self,
        place: &str,
        from: Option<&Value>,
        to: Option<&Value>,
    ) -> Result<Option<Value>, EditError>;
}

/// Where one policy is kept, and what is there.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    store: Arc<dyn Store>,
    place: String,
    before: Option<Value>,
    now: Arc<Mutex<Option<Value>>>,
}

impl Slot {
    pub(super) fn new(store: Arc<dyn Store>, place: String, held: Option<Held>) -> Self {
        let before = held.map(|held| held.resource);
        Self {
            store,
            place,
            now: Arc::new(Mutex::new(before.clone())),
            before,
        }
    }

    /// Has it hold this document, or be gone; with the word which change did that, if it has an id.
    pub(super) fn commit(&self, document: Option<Value>, change: Option<Uuid>) -> Result<(), EditError> {
        self.put(document.map(|document| {
            let mut resource = resource_of(&document, self.before.as_ref());
            if let Some(change) = change {
                mark_resource(&mut resource, &change.to_string());
            }
            resource
        }))
    }

    /// Has it hold what it held before.
    pub(super) fn undo(&self) -> Result<(), EditError> {
        self.put(self.before.clone())
    }

    fn put(&self, to: Option<Value>) -> Result<(), EditError> {
        // One change at a time, so that nobody waits for this.
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let to = to.map(|mut to| {
            // It replaces what is there now, or nothing.
            let version = |field: &str| {
                now.as_ref()
                    .map_or(Value::Null, |now| now["metadata"][field].clone())
            };
            let known = ["resourceVersion", "uid"].map(|field| (field, version(field)));
            if let Some(metadata) = to["metadata"].as_object_mut() {
                metadata.remove("managedFields");
                for (field, value) in known {
                    metadata.remove(field);
                    if !value.is_null() {
                        metadata.insert(field.to_owned(), value);
                    }
                }
            }
            to
        });
        if now.is_none() && to.is_none() {
            return Ok(());
        }
        *now = self.store.write(&self.place, now.as_ref(), to.as_ref())?;
        Ok(())
    }
}

/// Where a policy is kept, or is to be.
pub(super) fn file_of(
    name: &str,
    text: Option<&str>,
    old: Option<&AnyPolicy>,
    settings: &Settings,
) -> Result<PathBuf, EditError> {
    let kind = match text {
        Some(text) => {
            let kind = kind_of(text, settings)?;
            if let Some(old) = old.filter(|old| kind.is_some_and(|kind| kind != old.kind())) {
                return Err(EditError::OtherKind {
                    name: name.to_owned(),
                    kind: old.kind(),
                });
            }
            kind
        }
        None => old.map(AnyPolicy::kind),
    };
    let collection = kind.and_then(collection_of);
    let collection = collection.ok_or_else(|| EditError::NotFound(name.to_owned()))?;
    Ok(PathBuf::from(format!("{collection}/{name}")))
}

/// Where what is not valid is kept, if it can be replaced by that policy.
pub(super) fn in_place_of(
    broken: &Document,
    name: &str,
    text: Option<&str>,
    settings: &Settings,
) -> Result<PathBuf, EditError> {
    let collection = broken.file.split('/').next();
    if let Some(text) = text
        && kind_of(text, settings)?.and_then(collection_of) != collection
    {
        let kinds = RESOURCES.iter().find(|(_, of)| Some(*of) == collection);
        return Err(EditError::OtherKind {
            name: name.to_owned(),
            kind: kinds.map_or("unknown", |(kind, _)| kind),
        });
    }
    Ok(PathBuf::from(&broken.file))
}

fn kind_of(text: &str, settings: &Settings) -> Result<Option<&'static str>, EditError> {
    let document = Document {
        file: BODY.to_owned(),
        text: text.to_owned(),
    };
    let set = policy::parse(&[document], settings).map_err(EditError::Invalid)?;
    Ok(set.all().first().map(AnyPolicy::kind))
}

#[cfg(test)]
mod tests;
