// SPDX-License-Identifier: Apache-2.0
//! From the kernel's numbers to names.
//!
//! The kernel speaks of identities and rules by number, and goes on doing so for a while after policy or workloads
//! changed, or the agent was restarted. So names are kept for longer than they are in force: in memory the most
//! recent ones, in the store all of them.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use zt_common::identity;
use zt_common::verdict::{RULE_HOST, RULE_SELF};

/// Answers what a number or an address stands for.
pub trait NameResolver {
    /// The SPIFFE ID, entity or network with that number.
    fn identity(&self, number: u64) -> Option<Arc<str>>;
    /// The rule with that number, as `<policy>/rule-<n>`.
    fn rule(&self, number: u64) -> Option<Arc<str>>;
    /// The pod of the workload with that cgroup id.
    fn pod(&self, cgroup: u64) -> Option<Arc<str>>;
    /// The workload of this node that is reached at an address: its identity's number and its pod.
    fn here(&self, address: IpAddr) -> Option<(u64, Option<Arc<str>>)>;
}

/// What there is to name at one moment, as the snapshot in force has it.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Identities and networks by number. Entities need not be listed.
    pub identities: Vec<(u64, Arc<str>)>,
    /// Rules by number. Built-in ones need not be listed.
    pub rules: Vec<(u64, Arc<str>)>,
    /// The workloads of this node.
    pub workloads: Vec<Placement>,
}

/// A workload of this node.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// Number of its identity.
    pub identity: u64,
    /// Its cgroup and those nested in it.
    pub cgroups: Vec<u64>,
    /// Where it is reached.
    pub addresses: Vec<IpAddr>,
    /// Its pod.
    pub pod: Option<Arc<str>>,
}

/// What kind of thing a number stands for: each kind has its own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An identity or a network.
    Identity,
    /// A rule.
    Rule,
    /// The pod of a cgroup.
    Pod,
}

impl Kind {
    /// The name under which the store files it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Rule => "rule",
            Self::Pod => "pod",
        }
    }

    /// The one with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Identity, Self::Rule, Self::Pod]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// A number and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// What kind of thing it is.
    pub kind: Kind,
    /// Its number.
    pub number: u64,
    /// Its name.
    pub text: Arc<str>,
}

/// Names no longer in force that are kept in memory: the store has the rest.
pub const MAX_PAST: usize = 16_384;

type Texts = HashMap<(Kind, u64), Arc<str>>;
/// Who of this node is reached where.
type Here = HashMap<IpAddr, (u64, Option<Arc<str>>)>;

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

/// The names of one moment. See [`NameBook::load`].
#[derive(Debug, Default)]
pub struct Names {
    current: Arc<Texts>,
    pods: Texts,
    past: Arc<Texts>,
    here: Arc<Here>,
}

impl Names {
    fn get(&self, kind: Kind, number: u64) -> Option<Arc<str>> {
        self.current
            .get(&(kind, number))
            .or_else(|| self.pods.get(&(kind, number)))
            .or_else(|| self.past.get(&(kind, number)))
            .cloned()
    }
}

impl NameResolver for Names {
    fn identity(&self, number: u64) -> Option<Arc<str>> {
        match entity(number) {
            Some(name) => Some(Arc::from(name)),
            None => self.get(Kind::Identity, number),
        }
    }

    fn rule(&self, number: u64) -> Option<Arc<str>> {
        match number {
            0 => None,
            RULE_SELF => Some(Arc::from("builtin/self")),
            RULE_HOST => Some(Arc::from("builtin/host")),
            _ => self.get(Kind::Rule, number),
        }
    }

    fn pod(&self, cgroup: u64) -> Option<Arc<str>> {
        self.get(Kind::Pod, cgroup)
    }

    fn here(&self, address: IpAddr) -> Option<(u64, Option<Arc<str>>)> {
        self.here.get(&address).cloned()
    }
}

/// Parties without a SPIFFE ID that the kernel knows by small numbers.
const ENTITIES: [(u64, &str); 6] = [
    (identity::UNKNOWN, "unknown"),
    (identity::HOST, "host"),
    (identity::REMOTE_NODE, "remote-node"),
    (identity::KUBE_APISERVER, "kube-apiserver"),
    (identity::WORLD, "world"),
    (identity::RAW_SOCKETS, "raw-sockets"),
];

/// The name of an entity's number.
pub fn entity(number: u64) -> Option<&'static str> {
    ENTITIES
        .iter()
        .find(|(of, _)| *of == number)
        .map(|(_, name)| *name)
}

/// Whether `name` is that of an entity.
pub fn is_entity(name: &str) -> bool {
    ENTITIES.iter().any(|(_, of)| *of == name)
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
        let mut current = Texts::new();
        let mut here = HashMap::new();
        let of = |kind: Kind| move |(number, text): &(u64, Arc<str>)| ((kind, *number), Arc::clone(text));
        current.extend(directory.identities.iter().map(of(Kind::Identity)));
        current.extend(directory.rules.iter().map(of(Kind::Rule)));
        for workload in &directory.workloads {
            here.extend(
                workload
                    .addresses
                    .iter()
                    .map(|ip| (*ip, (workload.identity, workload.pod.clone()))),
            );
        }
        self.change(
            Some((Arc::new(current), Arc::new(here))),
            pods(&directory.workloads),
        );
    }

    /// Takes over where workloads are now, and leaves all other names as they are: a cgroup that comes or goes costs
    /// what the pods cost, not what the policy does.
    pub fn place(&self, workloads: &[Placement]) {
        self.change(None, pods(workloads));
    }

    fn change(&self, texts: Option<(Arc<Texts>, Arc<Here>)>, pods: Texts) {
        // Nothing in here can panic half-way, so what a poisoned lock guards is whole.
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.names.load();
        history.keep(before.pods.iter().filter(|(key, _)| !pods.contains_key(*key)));
        let (current, here) = match texts {
            Some((current, here)) => {
                history.keep(
                    before
                        .current
                        .iter()
                        .filter(|(key, _)| !current.contains_key(*key)),
                );
                history.note(
                    current
                        .iter()
                        .filter(|(key, text)| before.current.get(*key) != Some(*text)),
                );
                (current, here)
            }
            None => (Arc::clone(&before.current), Arc::clone(&before.here)),
        };
        self.names.store(Arc::new(Names {
            current,
            pods,
            past: Arc::clone(&history.texts),
            here,
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
    fn keep<'a>(&mut self, gone: impl Iterator<Item = (&'a (Kind, u64), &'a Arc<str>)>) {
        let mut gone = gone.peekable();
        if gone.peek().is_none() {
            return;
        }
        let texts = Arc::make_mut(&mut self.texts);
        for (key, text) in gone {
            if texts.insert(*key, Arc::clone(text)).is_none() {
                self.order.push_back(*key);
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
    fn note<'a>(&mut self, new: impl Iterator<Item = (&'a (Kind, u64), &'a Arc<str>)>) {
        self.unsaved.extend(new.map(|((kind, number), text)| Named {
            kind: *kind,
            number: *number,
            text: Arc::clone(text),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(identities: &[(u64, &str)], rules: &[(u64, &str)]) -> Directory {
        let owned = |list: &[(u64, &str)]| list.iter().map(|(n, t)| (*n, Arc::from(*t))).collect();
        Directory {
            identities: owned(identities),
            rules: owned(rules),
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
        let first = directory(&[(1 << 40, "spiffe://a/b")], &[]);
        book.update(&first);
        book.update(&first);
        let unsaved = book.take_unsaved();
        assert_eq!(unsaved.len(), 1);
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
