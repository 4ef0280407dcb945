// SPDX-License-Identifier: Apache-2.0
//! Changes one policy of the directory: what would come of it is known before a file is touched, and a file is replaced
//! whole or not at all.

mod error;
mod file;
mod found;
mod lock;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

pub use self::error::EditError;
pub use self::found::Sighting;
use self::found::{Found, held_by};
pub use self::lock::Turn;
use self::store::Slot;
pub use self::store::{Held, Store};
use super::MAX_TOTAL_BYTES;
use crate::policy::{self, AnyPolicy, Document, PolicySet, Problem, Settings, is_policy_name};

/// What is to be changed.
#[derive(Clone, Debug)]
pub enum Edit {
    /// The policy of that name is to be this document.
    Put {
        /// Its name.
        name: String,
        /// YAML or JSON, one document.
        text: String,
    },
    /// The policy of that name is to go.
    Delete {
        /// Its name.
        name: String,
    },
}

/// What the document of a [`Edit::Put`] is called in problems.
pub const BODY: &str = "body";

/// Changes policies where they are kept. One change at a time: the caller holds a [`Turn`] from plan to commit.
#[derive(Clone, Debug)]
pub struct Editor {
    path: PathBuf,
    /// What keeps them, if it is not that path.
    store: Option<Arc<dyn Store>>,
    settings: Settings,
}

/// A change that can be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is on disk; where that is mended by the change, what is in force.
    pub before: PolicySet,
    /// What will be.
    pub after: PolicySet,
    /// The policy's name.
    pub name: String,
    /// There is something in its place now, be it valid or not.
    pub existed: bool,
    /// What is wrong with others and stays so: until that is mended, nothing comes into force. Neither of the two sets
    /// has them.
    pub waits_for: Vec<Problem>,
    file: PathBuf,
    old_text: Option<String>,
    new_text: Option<String>,
    /// What keeps it, if it is not that file.
    slot: Option<Slot>,
}

impl Plan {
    /// The policy before, if it was there.
    pub fn policy_before(&self) -> Option<&AnyPolicy> {
        self.before.get(&self.name)
    }

    /// The policy after, if it will be there.
    pub fn policy_after(&self) -> Option<&AnyPolicy> {
        self.after.get(&self.name)
    }

    /// Makes the change. When this returns it is on disk.
    pub fn commit(&self) -> Result<(), EditError> {
        self.make(None)
    }

    /// The same for a change that has an id: where objects keep policies, what it writes bears that.
    pub fn commit_as(&self, change: Uuid) -> Result<(), EditError> {
        self.make(Some(change))
    }

    fn make(&self, change: Option<Uuid>) -> Result<(), EditError> {
        if let Some(slot) = &self.slot {
            return slot.commit(self.policy_after().map(AnyPolicy::document), change);
        }
        self.replace(self.old_text.as_deref(), self.new_text.as_deref())
    }

    /// Takes a committed change back.
    pub fn undo(&self) -> Result<(), EditError> {
        if let Some(slot) = &self.slot {
            return slot.undo();
        }
        self.replace(self.new_text.as_deref(), self.old_text.as_deref())
    }

    fn replace(&self, from: Option<&str>, to: Option<&str>) -> Result<(), EditError> {
        if from == to {
            return Ok(());
        }
        let found = match fs::read(&self.file) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(file::failed(&self.file, source)),
        };
        if found.as_deref() != from.map(str::as_bytes) {
            return Err(EditError::Raced(self.file.display().to_string()));
        }
        file::replace(&self.file, to, found.is_some())
    }
}

impl Editor {
    /// An editor of what is at `path`, read with these settings.
    pub fn new(path: PathBuf, settings: Settings) -> Self {
        Self {
            path,
            store: None,
            settings,
        }
    }

    /// An editor of what `store` keeps.
    pub fn of_store(store: Arc<dyn Store>, settings: Settings) -> Self {
        Self {
            path: PathBuf::new(),
            store: Some(store),
            settings,
        }
    }

    /// Where policies are, as records say.
    pub fn place(&self) -> String {
        if let Some(store) = &self.store {
            return store.name().to_owned();
        }
        let kind = if self.path.is_dir() { "directory" } else { "file" };
        format!("{kind} {}", self.path.display())
    }

    /// The digest of a policy as it is on disk now, or of what is in its place and not valid; `None` where there is nothing.
    /// `known` spares reading anew what it was parsed from.
    pub fn on_disk(&self, name: &str, known: &PolicySet) -> Result<Option<String>, EditError> {
        Ok(self.look(name, known)?.digest)
    }

    /// A policy as it is on disk now, and which change wrote it.
    pub fn look(&self, name: &str, known: &PolicySet) -> Result<Sighting, EditError> {
        Ok(Found::of(self, known)?.sighting(name, known))
    }

    /// The same of several policies, all as they are at one moment.
    pub fn look_at(
        &self,
        names: BTreeSet<String>,
        known: &PolicySet,
    ) -> Result<BTreeMap<String, Sighting>, EditError> {
        let found = Found::of(self, known)?;
        let seen = names.into_iter().map(|name| {
            let sighting = found.sighting(&name, known);
            (name, sighting)
        });
        Ok(seen.collect())
    }

    /// The digest of all policies on disk now that are valid.
    pub fn all_on_disk(&self, known: &PolicySet) -> Result<String, EditError> {
        Ok(Found::of(self, known)?.standing.set.digest().to_owned())
    }

    /// Whether what is kept says which change wrote it, and may take a write some time after it was sent.
    pub fn keeps_objects(&self) -> bool {
        self.store.is_some()
    }

    /// Waits until no other process changes policies here. Blocks, for seconds at most.
    pub fn turn(&self) -> Result<Turn, EditError> {
        if self.store.is_some() {
            // It tells by itself when two change one thing.
            return Ok(Turn::none());
        }
        Turn::wait(&self.path)
    }

    /// Finds out what `edit` would do. `precondition` is told the digest of the policy as it is on disk, and says what
    /// is wrong with it. `known` spares reading anew what it was parsed from.
    pub fn plan(
        &self,
        edit: Edit,
        known: &PolicySet,
        precondition: impl FnOnce(Option<&str>) -> Result<(), String>,
    ) -> Result<Plan, EditError> {
        let (Edit::Put { name, .. } | Edit::Delete { name }) = &edit;
        let name = name.clone();
        if !is_policy_name(&name) {
            return Err(EditError::Name);
        }
        let new_text = match edit {
            Edit::Put { text, .. } => {
                self.check(&name, &text)?;
                Some(text)
            }
            Edit::Delete { .. } => None,
        };
        let mut found = Found::of(self, known)?;
        let digest = found.digest(&name, known);
        precondition(digest.as_deref()).map_err(EditError::Precondition)?;
        let existed = digest.is_some();
        if !existed && new_text.is_none() {
            return Err(EditError::NotFound(name));
        }
        let old = found.standing.set.get(&name);
        let broken = if old.is_none() {
            found.broken(&name, known)
        } else {
            None
        };
        let file = match (&self.store, broken) {
            (Some(_), None) => store::file_of(&name, new_text.as_deref(), old, &self.settings)?,
            (Some(_), Some(broken)) => {
                store::in_place_of(broken, &name, new_text.as_deref(), &self.settings)?
            }
            (None, None) => self.file_of(&name, &found.standing.set)?,
            (None, Some(broken)) => own_file(broken, held_by(broken, known))?,
        };
        let shown = file.display().to_string();
        let mut documents = std::mem::take(&mut found.documents);
        let at = documents.iter().position(|document| document.file == shown);
        let old_text = at.map(|at| documents.remove(at).text);
        if let Some(text) = &new_text {
            let document = Document {
                file: shown.clone(),
                text: text.clone(),
            };
            documents.push(document);
            documents.sort_by(|a, b| a.file.cmp(&b.file));
            small_enough(&documents)?;
        }
        let after = policy::standing(&documents, &self.settings, &found.standing.set);
        // What was wrong before is not for this change to answer for.
        let before = &found.standing.invalid;
        let of_this = |problem: &Problem| problem.file == shown || !before.contains(&problem.file);
        let mut problems: Vec<Problem> = after.problems.iter().filter(|p| of_this(p)).cloned().collect();
        if !problems.is_empty() {
            for problem in problems.iter_mut().filter(|problem| problem.file == shown) {
                BODY.clone_into(&mut problem.file);
            }
            return Err(EditError::Invalid(problems));
        }
        let waits_for: Vec<Problem> = found.unreadable.iter().chain(&after.problems).cloned().collect();
        if after.set.all().is_empty() && waits_for.is_empty() {
            return Err(EditError::LastPolicy);
        }
        let mended = waits_for.is_empty() && !found.problems().is_empty();
        let slot = self.store.as_ref().map(|store| {
            let held = found.held.into_iter().find(|held| held.document.file == shown);
            Slot::new(Arc::clone(store), shown, held)
        });
        Ok(Plan {
            before: if mended { known.clone() } else { found.standing.set },
            after: after.set,
            name,
            existed,
            waits_for,
            file,
            old_text,
            new_text,
            slot,
        })
    }

    /// Whether `text` is one valid document, called `name`.
    fn check(&self, name: &str, text: &str) -> Result<(), EditError> {
        let document = Document {
            file: BODY.to_owned(),
            text: text.to_owned(),
        };
        let set = policy::parse(&[document], &self.settings).map_err(EditError::Invalid)?;
        let invalid = |policy: &AnyPolicy, message: String| {
            let (line, column) = policy.place();
            EditError::Invalid(vec![Problem {
                file: BODY.to_owned(),
                line,
                column,
                field: "metadata.name".to_owned(),
                message,
            }])
        };
        match set.all() {
            [policy] if policy.name() == name => Ok(()),
            [policy] => {
                let message = format!("is `{}`, and the request is about `{name}`", policy.name());
                Err(invalid(policy, message))
            }
            several => {
                let message = format!("is one of {} policies: send one", several.len());
                // A set that parsed has at least one policy.
                Err(several
                    .first()
                    .map_or(EditError::Name, |policy| invalid(policy, message)))
            }
        }
    }

    /// The file that the policy is in, or is to be in.
    fn file_of(&self, name: &str, before: &PolicySet) -> Result<PathBuf, EditError> {
        let is_directory = self.path.is_dir();
        let Some(old) = before.get(name) else {
            if !is_directory {
                return Err(EditError::NoDirectory(self.path.clone()));
            }
            // `..data` is how a ConfigMap is mounted: whatever is written there is gone with the next update.
            let mount = self.path.join("..data");
            if is_link(&mount) {
                return Err(EditError::Link(mount));
            }
            let file = self.path.join(format!("{name}.yaml"));
            if is_link(&file) {
                return Err(EditError::Link(file));
            }
            if file.exists() {
                return Err(EditError::FileTaken(file.display().to_string()));
            }
            return Ok(file);
        };
        let file = Path::new(old.file()).to_path_buf();
        if is_link(&file) {
            return Err(EditError::Link(file));
        }
        let count = before
            .all()
            .iter()
            .filter(|policy| policy.file() == old.file())
            .count();
        not_shared(file, count)
    }
}

/// The file of a document that is not valid, if it may be replaced.
fn own_file(broken: &Document, held: usize) -> Result<PathBuf, EditError> {
    let file = PathBuf::from(&broken.file);
    if is_link(&file) {
        return Err(EditError::Link(file));
    }
    not_shared(file, held)
}

fn not_shared(file: PathBuf, count: usize) -> Result<PathBuf, EditError> {
    if count > 1 {
        let file = file.display().to_string();
        return Err(EditError::SharedFile { file, count });
    }
    Ok(file)
}

/// What is written must be read again: all files together are limited.
fn small_enough(documents: &[Document]) -> Result<(), EditError> {
    let total: u64 = documents.iter().map(|document| document.text.len() as u64).sum();
    if total <= MAX_TOTAL_BYTES {
        return Ok(());
    }
    Err(EditError::Invalid(vec![Problem {
        file: BODY.to_owned(),
        line: 0,
        column: 0,
        field: String::new(),
        message: format!(
            "would make all policies {total} bytes together: at most {MAX_TOTAL_BYTES} are read; remove or shorten others"
        ),
    }]))
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

#[cfg(test)]
mod tests;
