// SPDX-License-Identifier: Apache-2.0
//! From the kernel's numbers to names.
//!
//! The kernel speaks of identities and rules by number, and goes on doing so for a while after policy or workloads
//! changed, or the agent was restarted. So names are kept for longer than they are in force: in memory the most
//! recent ones, in the store all of them.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use foldhash::fast::RandomState;
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

/// The names of the rules in force. There may be a hundred thousand, of which few are ever asked for: they are put together
/// when they are.
pub trait RuleTexts: std::fmt::Debug + Send + Sync {
    /// The name of the rule with that number.
    fn get(&self, number: u64) -> Option<Arc<str>>;
    /// Whether there is such a rule.
    fn has(&self, number: u64) -> bool;
    /// The numbers, in no order.
    fn numbers(&self) -> Box<dyn Iterator<Item = u64> + '_>;
}

/// No rules.
impl RuleTexts for () {
    fn get(&self, _: u64) -> Option<Arc<str>> {
        None
    }

    fn has(&self, _: u64) -> bool {
        false
    }

    fn numbers(&self) -> Box<dyn Iterator<Item = u64> + '_> {
        Box::new(std::iter::empty())
    }
}

/// What there is to name at one moment, as the snapshot in force has it.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Identities and networks by number. Entities need not be listed.
    pub identities: Vec<(u64, Arc<str>)>,
    /// Rules by number. Built-in ones need not be listed.
    pub rules: Arc<dyn RuleTexts>,
    /// The workloads of this node.
    pub workloads: Vec<Placement>,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            identities: Vec::new(),
            rules: Arc::new(()),
            workloads: Vec::new(),
        }
    }
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

type Texts = HashMap<(Kind, u64), Arc<str>, RandomState>;
/// Who of this node is reached where.
type Here = HashMap<IpAddr, (u64, Option<Arc<str>>)>;

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

/// The names of one moment. See [`NameBook::load`].
#[derive(Debug)]
pub struct Names {
    identities: Arc<Texts>,
    rules: Arc<dyn RuleTexts>,
    pods: Texts,
    past: Arc<Texts>,
    here: Arc<Here>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            identities: Arc::default(),
            rules: Arc::new(()),
            pods: Texts::default(),
            past: Arc::default(),
            here: Arc::default(),
        }
    }
}

impl Names {
    fn get(&self, kind: Kind, number: u64) -> Option<Arc<str>> {
        let known = match kind {
            Kind::Identity => self.identities.get(&(kind, number)).cloned(),
            Kind::Rule => self.rules.get(number),
            Kind::Pod => self.pods.get(&(kind, number)).cloned(),
        };
        known.or_else(|| self.past.get(&(kind, number)).cloned())
    }
}

/// Names for the records of one batch: those of rules are put together once.
#[derive(Debug)]
pub(super) struct OfBatch<'a> {
    names: &'a Names,
    rules: RefCell<HashMap<u64, Option<Arc<str>>, RandomState>>,
}

impl<'a> OfBatch<'a> {
    pub(super) fn new(names: &'a Names) -> Self {
        Self {
            names,
            rules: RefCell::default(),
        }
    }
}

impl NameResolver for OfBatch<'_> {
    fn identity(&self, number: u64) -> Option<Arc<str>> {
        self.names.identity(number)
    }

    fn rule(&self, number: u64) -> Option<Arc<str>> {
        let mut rules = self.rules.borrow_mut();
        let rule = rules.entry(number).or_insert_with(|| self.names.rule(number));
        rule.clone()
    }

    fn pod(&self, cgroup: u64) -> Option<Arc<str>> {
        self.names.pod(cgroup)
    }

    fn here(&self, address: IpAddr) -> Option<(u64, Option<Arc<str>>)> {
        self.names.here(address)
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
