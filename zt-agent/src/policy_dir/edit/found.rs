// SPDX-License-Identifier: Apache-2.0
//! What is kept now, and what of it is valid: a document that is not must not keep anybody from changing another, nor from
//! mending or removing it.

use std::path::Path;

use uuid::Uuid;

use super::{EditError, Editor, Held};
use crate::policy::{self, Document, PolicySet, Problem, Standing, text_digest};
use crate::policy_dir::read_each;

/// One policy as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Its digest, or that of what is in its place and not valid; `None` where there is nothing.
    pub digest: Option<String>,
    /// The change over an API of ours that wrote it; `None` where it was made elsewhere, and in files.
    pub written_by: Option<Uuid>,
}

/// What is kept now.
pub(super) struct Found {
    /// All documents that can be read.
    pub(super) documents: Vec<Document>,
    /// Files that cannot.
    pub(super) unreadable: Vec<Problem>,
    /// Where the documents come from, if that is not files.
    pub(super) held: Vec<Held>,
    /// Which of them are valid.
    pub(super) standing: Standing,
}

impl Found {
    /// The documents of an editor. Those that `known` was parsed from are not read anew.
    pub(super) fn of(editor: &Editor, known: &PolicySet) -> Result<Self, EditError> {
        let (documents, unreadable, held) = if let Some(store) = &editor.store {
            let held = store.read()?;
            let documents = held.iter().map(|held| held.document.clone()).collect();
            (documents, Vec::new(), held)
        } else {
            let (documents, unreadable) = read_each(&editor.path).map_err(EditError::DiskInvalid)?;
            (documents, unreadable, Vec::new())
        };
        let standing = policy::standing(&documents, &editor.settings, known);
        Ok(Self {
            documents,
            unreadable,
            held,
            standing,
        })
    }

    /// Everything that is wrong with it.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.unreadable
            .iter()
            .chain(&self.standing.problems)
            .cloned()
            .collect()
    }

    /// The digest of a policy, or of the text of the document that is not valid and in its place.
    pub(super) fn digest(&self, name: &str, known: &PolicySet) -> Option<String> {
        let valid = self.standing.set.get(name);
        let valid = valid.map(|policy| policy.digest().to_owned());
        valid.or_else(|| {
            self.broken(name, known)
                .map(|document| text_digest(&document.text))
        })
    }

    /// A policy, and which change wrote it.
    pub(super) fn sighting(&self, name: &str, known: &PolicySet) -> Sighting {
        let valid = self.standing.set.get(name).map(policy::AnyPolicy::file);
        let file = valid.or_else(|| Some(self.broken(name, known)?.file.as_str()));
        let held = self
            .held
            .iter()
            .find(|held| Some(held.document.file.as_str()) == file);
        Sighting {
            digest: self.digest(name, known),
            written_by: held
                .and_then(|held| policy::mark_of(&held.resource))
                .and_then(|change| change.parse().ok()),
        }
    }

    /// The document that is not valid and is in the place of the policy of that name: where it was when it was valid, or in
    /// the file that is called so.
    pub(super) fn broken(&self, name: &str, known: &PolicySet) -> Option<&Document> {
        let before = known.get(name).map(policy::AnyPolicy::file);
        let is_called_so = |document: &Document| {
            let stem = Path::new(&document.file).file_stem();
            stem.is_some_and(|stem| stem.as_encoded_bytes() == name.as_bytes())
        };
        let broken = || {
            self.documents
                .iter()
                .filter(|document| self.standing.invalid.contains(&document.file))
        };
        broken()
            .find(|document| before == Some(document.file.as_str()))
            .or_else(|| broken().find(|document| is_called_so(document)))
    }
}

/// How many policies a document that is not valid may hold, as far as that can be told.
pub(super) fn held_by(document: &Document, known: &PolicySet) -> usize {
    let before = known.all().iter().filter(|policy| policy.file() == document.file);
    let parts = document.text.split("\n---").filter(|part| {
        let mut lines = part.lines().map(str::trim);
        lines.any(|line| !line.is_empty() && !line.starts_with('#') && line != "---")
    });
    before.count().max(parts.count())
}
