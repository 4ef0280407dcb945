// SPDX-License-Identifier: Apache-2.0
//! From the kernel's numbers to names.
//!
//! The kernel speaks of identities and rules by number, and goes on doing so for a while after policy or workloads
//! changed, or the agent was restarted. So names are kept for longer than they are in force: in memory the most
//! recent ones, in the store all of them.

mod book;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use zt_common::identity;
use zt_common::verdict::{RULE_HOST, RULE_REQUIRE_POLICY, RULE_SELF};

pub use self::book::NameBook;

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

type Texts = HashMap<(Kind, u64), Arc<str>, RandomState>;
/// Who of this node is reached where.
type Here = HashMap<IpAddr, (u64, Option<Arc<str>>)>;

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
            RULE_REQUIRE_POLICY => Some(Arc::from("builtin/require-policy")),
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
