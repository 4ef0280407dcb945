// SPDX-License-Identifier: Apache-2.0
//! The names in force and those that were.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};

use super::{Directory, Here, Kind, Named, Names, Placement, RuleTexts, Texts};

/// Names no longer in force that are kept in memory: the store has the rest.
const MAX_PAST: usize = 16_384;

/// The names that a snapshot brings with it.
struct InForce {
    identities: Arc<Texts>,
    rules: Arc<dyn RuleTexts>,
    here: Arc<Here>,
}

/// The pods by their cgroups.
fn pods(workloads: &[Placement]) -> Texts {
    let named = |workload: &Placement| workload.pod.clone().map(|pod| (pod, workload.cgroups.clone()));
    workloads
        .iter()
        .filter_map(named)
        .flat_map(|(pod, cgroups)| {
            cgroups
                .into_iter()
                .map(move |cgroup| ((Kind::Pod, cgroup), Arc::clone(&pod)))
        })
        .collect()
}

/// The names in force and those that were: one writer ([`NameBook::update`]), any number of readers.
#[derive(Debug, Default)]
pub struct NameBook {
    names: ArcSwap<Names>,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    order: VecDeque<(Kind, u64)>,
    texts: Arc<Texts>,
    unsaved: Vec<Named>,
}

impl NameBook {
    /// Starts with what the store remembers of earlier runs, the most recent first.
    pub fn new(remembered: Vec<Named>) -> Self {
        let mut history = History::default();
        let texts = Arc::make_mut(&mut history.texts);
        for named in remembered.into_iter().take(MAX_PAST).rev() {
            history.order.push_back((named.kind, named.number));
            texts.insert((named.kind, named.number), named.text);
        }
        let names = Names {
            past: Arc::clone(&history.texts),
            ..Names::default()
        };
        Self {
            names: ArcSwap::from_pointee(names),
            history: Mutex::new(history),
        }
    }

    /// Takes over the names of a new snapshot. Call it before the kernel is given what they stand for, so that no
    /// decision comes back under a number without a name.
    pub fn update(&self, directory: &Directory) {
        let mut here = HashMap::new();
        let named = directory.identities.iter();
        let identities: Texts = named
            .map(|(number, text)| ((Kind::Identity, *number), Arc::clone(text)))
            .collect();
        for workload in &directory.workloads {
            here.extend(
                workload
                    .addresses
                    .iter()
                    .map(|ip| (*ip, (workload.identity, workload.pod.clone()))),
            );
        }
        let texts = InForce {
            identities: Arc::new(identities),
            rules: Arc::clone(&directory.rules),
            here: Arc::new(here),
        };
        self.change(Some(texts), pods(&directory.workloads));
    }

    /// Takes over where workloads are now, and leaves all other names as they are: a cgroup that comes or goes costs
    /// what the pods cost, not what the policy does.
    pub fn place(&self, workloads: &[Placement]) {
        self.change(None, pods(workloads));
    }

    fn change(&self, texts: Option<InForce>, pods: Texts) {
        // Nothing in here can panic half-way, so what a poisoned lock guards is whole.
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.names.load();
        let gone = before.pods.iter().filter(|(key, _)| !pods.contains_key(*key));
        history.keep(gone.map(|(key, text)| (*key, Arc::clone(text))));
        let now = match texts {
            Some(now) => {
                let gone = before.identities.iter();
                let gone = gone.filter(|(key, _)| !now.identities.contains_key(*key));
                history.keep(gone.map(|(key, text)| (*key, Arc::clone(text))));
                let new = now.identities.iter();
                let new = new.filter(|(key, text)| before.identities.get(*key) != Some(*text));
                history.note(new.map(|(key, text)| (*key, Arc::clone(text))));
                // A rule's number is made of its name: another name has another number.
                history.keep(only(&*before.rules, &*now.rules));
                history.note(only(&*now.rules, &*before.rules));
                now
            }
            None => InForce {
                identities: Arc::clone(&before.identities),
                rules: Arc::clone(&before.rules),
                here: Arc::clone(&before.here),
            },
        };
        self.names.store(Arc::new(Names {
            identities: now.identities,
            rules: now.rules,
            pods,
            past: Arc::clone(&history.texts),
            here: now.here,
        }));
    }

    /// The names as of now, for one batch.
    pub fn load(&self) -> Guard<Arc<Names>> {
        self.names.load()
    }

    /// Names that the store does not have yet. The caller saves them, or hands them back with
    /// [`NameBook::put_back`].
    pub fn take_unsaved(&self) -> Vec<Named> {
        std::mem::take(
            &mut self
                .history
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .unsaved,
        )
    }

    /// Hands back names that could not be saved.
    pub fn put_back(&self, mut names: Vec<Named>) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        names.append(&mut history.unsaved);
        history.unsaved = names;
    }
}

impl History {
    /// Keeps names that went out of force, as many as there is room for.
    fn keep(&mut self, gone: impl Iterator<Item = ((Kind, u64), Arc<str>)>) {
        let mut gone = gone.peekable();
        if gone.peek().is_none() {
            return;
        }
        let texts = Arc::make_mut(&mut self.texts);
        for (key, text) in gone {
            if texts.insert(key, text).is_none() {
                self.order.push_back(key);
            }
            while self.order.len() > MAX_PAST {
                let Some(oldest) = self.order.pop_front() else {
                    break;
                };
                texts.remove(&oldest);
            }
        }
    }

    /// Notes names to be saved. Pods of cgroups are not: cgroup ids do not outlive the cgroup.
    fn note(&mut self, new: impl Iterator<Item = ((Kind, u64), Arc<str>)>) {
        self.unsaved
            .extend(new.map(|((kind, number), text)| Named { kind, number, text }));
    }
}

/// The rules of `these` that `others` does not have.
fn only<'a>(
    these: &'a dyn RuleTexts,
    others: &'a dyn RuleTexts,
) -> impl Iterator<Item = ((Kind, u64), Arc<str>)> + 'a {
    let numbers = these.numbers().filter(|number| !others.has(*number));
    numbers.filter_map(|number| Some(((Kind::Rule, number), these.get(number)?)))
}

#[cfg(test)]
mod tests {
    use zt_common::identity;
    use zt_common::verdict::{RULE_HOST, RULE_SELF};

    use super::super::NameResolver as _;
    use super::*;

    impl RuleTexts for Vec<(u64, Arc<str>)> {
        fn get(&self, number: u64) -> Option<Arc<str>> {
            let found = self.iter().find(|(of, _)| *of == number);
            found.map(|(_, text)| Arc::clone(text))
        }

        fn has(&self, number: u64) -> bool {
            self.get(number).is_some()
        }

        fn numbers(&self) -> Box<dyn Iterator<Item = u64> + '_> {
            Box::new(self.iter().map(|(number, _)| *number))
        }
    }

    fn directory(identities: &[(u64, &str)], rules: &[(u64, &str)]) -> Directory {
        let owned = |list: &[(u64, &str)]| -> Vec<(u64, Arc<str>)> {
            list.iter().map(|(n, t)| (*n, Arc::from(*t))).collect()
        };
        Directory {
            identities: owned(identities),
            rules: Arc::new(owned(rules)),
            workloads: Vec::new(),
        }
    }

    #[test]
    fn entities_and_builtin_rules_need_no_entry_and_do_not_mix() {
        let book = NameBook::default();
        let names = book.load();
        assert_eq!(names.identity(identity::HOST).as_deref(), Some("host"));
        assert_eq!(names.rule(RULE_HOST).as_deref(), Some("builtin/host"));
        assert_eq!(names.rule(RULE_SELF).as_deref(), Some("builtin/self"));
        assert_eq!(names.rule(0), None);
        assert_eq!(names.identity(1 << 40), None);
    }

    #[test]
    fn a_name_out_of_force_still_names() {
        let book = NameBook::default();
        book.update(&directory(&[(1 << 40, "spiffe://a/b")], &[(1 << 41, "p/rule-1")]));
        book.update(&Directory::default());
        let names = book.load();
        assert_eq!(names.identity(1 << 40).as_deref(), Some("spiffe://a/b"));
        assert_eq!(names.rule(1 << 41).as_deref(), Some("p/rule-1"));
    }

    #[test]
    fn each_new_name_is_to_be_saved_once() {
        let book = NameBook::default();
        let first = directory(&[(1 << 40, "spiffe://a/b")], &[(1 << 41, "p/rule-1")]);
        book.update(&first);
        book.update(&first);
        let unsaved = book.take_unsaved();
        assert_eq!(unsaved.len(), 2);
        assert_eq!(book.take_unsaved(), []);
        book.put_back(unsaved.clone());
        assert_eq!(book.take_unsaved(), unsaved);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let book = NameBook::default();
        for round in 0..5_u64 {
            let names: Vec<(u64, Arc<str>)> = (0..5000)
                .map(|n| (1 << 40 | round << 20 | n, Arc::from("spiffe://a/b")))
                .collect();
            book.update(&Directory {
                identities: names,
                ..Directory::default()
            });
        }
        book.update(&Directory::default());
        assert_eq!(book.load().past.len(), MAX_PAST);
        assert!(
            book.load().identity(1 << 40 | 4 << 20).is_some(),
            "the latest are kept"
        );
        assert!(book.load().identity(1 << 40).is_none(), "the oldest are not");
    }
}
