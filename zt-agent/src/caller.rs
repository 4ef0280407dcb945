// SPDX-License-Identifier: Apache-2.0
//! Who may use the API from other machines, and for what.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::spiffe_id::{Pattern, SpiffeId};

/// What an entry of `api.callers` lets a caller do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Ask for decisions.
    Evaluate,
    /// What a node needs that follows: the policies, the feed of revisions, and to say what is in force on itself.
    Follow,
    /// Read everything, and ask for decisions.
    Read,
    /// All of that, for any node, and change policy and mode.
    Admin,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It asks for decisions.
    Evaluate,
    /// It asks for the policies in force, or to be told of new ones.
    Follow,
    /// It says what is in force on a node.
    Report,
    /// It reads anything else.
    Read,
    /// It changes something.
    Change,
}

impl Role {
    /// Every role, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Evaluate, Self::Follow, Self::Read, Self::Admin];

    /// From the word in the configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// The word in the configuration and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Evaluate => "evaluate",
            Self::Follow => "follow",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    /// Whether who has it may do that. For which node somebody may report is [`Rights::speaks_for`]'s to say.
    pub const fn allows(self, act: Act) -> bool {
        match self {
            Self::Evaluate => matches!(act, Act::Evaluate),
            Self::Follow => matches!(act, Act::Follow | Act::Report),
            Self::Read => matches!(act, Act::Evaluate | Act::Follow | Act::Read),
            Self::Admin => true,
        }
    }
}

/// One entry of `api.callers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerRule {
    /// Whose certificates it is about.
    pub spiffe: Pattern,
    /// What they may do.
    pub role: Role,
    /// With [`Role::Follow`]: the node that they are; `None`: the one that the last segment of the SPIFFE ID names.
    pub node: Option<Arc<str>>,
}

/// What one caller may do: all that the entries about it say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    roles: BTreeSet<Role>,
    nodes: BTreeSet<Arc<str>>,
}

impl Rights {
    /// The rights of whoever operates this machine.
    pub fn operator() -> Self {
        Self {
            roles: BTreeSet::from([Role::Admin]),
            nodes: BTreeSet::new(),
        }
    }

    /// What these entries let `id` do.
    pub fn of(rules: &[CallerRule], id: &SpiffeId) -> Self {
        let mut rights = Self::default();
        for rule in rules.iter().filter(|rule| rule.spiffe.matches(id)) {
            rights.roles.insert(rule.role);
            if rule.role == Role::Follow {
                let last = || id.path().rsplit('/').next().map(Arc::from);
                rights.nodes.extend(rule.node.clone().or_else(last));
            }
        }
        rights
    }

    /// Whether no entry is about the caller.
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty()
    }

    /// Whether the caller may do that.
    pub fn allow(&self, act: Act) -> bool {
        self.roles.iter().any(|role| role.allows(act))
    }

    /// Whether the caller may say what is in force on that node.
    pub fn speaks_for(&self, node: &str) -> bool {
        self.roles.contains(&Role::Admin) || self.nodes.contains(node)
    }

    /// The roles, for messages: `evaluate, follow`.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.roles.iter().map(|role| role.name()).collect();
        names.join(", ")
    }

    /// The nodes that the caller speaks for by name, for messages.
    pub fn nodes(&self) -> String {
        let names: Vec<&str> = self.nodes.iter().map(|name| &**name).collect();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pattern: &str, role: Role, node: Option<&str>) -> CallerRule {
        CallerRule {
            spiffe: Pattern::parse(pattern).expect("pattern"),
            role,
            node: node.map(Arc::from),
        }
    }

    fn id(text: &str) -> SpiffeId {
        SpiffeId::parse(text).expect("an ID")
    }

    #[test]
    fn each_role_is_for_its_acts_alone() {
        const ACTS: [Act; 5] = [Act::Evaluate, Act::Follow, Act::Report, Act::Read, Act::Change];
        for (role, allowed) in [
            (Role::Evaluate, [true, false, false, false, false]),
            (Role::Follow, [false, true, true, false, false]),
            (Role::Read, [true, true, false, true, false]),
            (Role::Admin, [true; 5]),
        ] {
            assert_eq!(ACTS.map(|act| role.allows(act)), allowed, "{role:?}");
            assert_eq!(Role::from_name(role.name()), Some(role));
        }
        assert_eq!(Role::from_name("root"), None);
    }

    #[test]
    fn a_follower_speaks_for_the_node_that_its_identity_names() {
        let rules = [
            rule("spiffe://hanzo.ai/nodes/*", Role::Follow, None),
            rule(
                "spiffe://hanzo.ai/zt/edge",
                Role::Follow,
                Some("edge-1.example.org"),
            ),
            rule("spiffe://hanzo.ai/nodes/both", Role::Evaluate, None),
            rule("spiffe://hanzo.ai/audit/reader", Role::Read, None),
        ];
        let one = Rights::of(&rules, &id("spiffe://hanzo.ai/nodes/worker-1"));
        assert!(one.speaks_for("worker-1") && one.allow(Act::Report));
        for other in ["worker-2", "WORKER-1", "", "nodes/worker-1", "worker-1 "] {
            assert!(!one.speaks_for(other), "{other}");
        }
        let edge = Rights::of(&rules, &id("spiffe://hanzo.ai/zt/edge"));
        assert!(edge.speaks_for("edge-1.example.org") && !edge.speaks_for("edge"));
        let both = Rights::of(&rules, &id("spiffe://hanzo.ai/nodes/both"));
        assert!(both.allow(Act::Evaluate) && both.allow(Act::Follow) && !both.allow(Act::Read));
        assert_eq!(both.names(), "evaluate, follow");
        let reader = Rights::of(&rules, &id("spiffe://hanzo.ai/audit/reader"));
        assert!(!reader.allow(Act::Report) && !reader.speaks_for("reader"));
        assert!(Rights::of(&rules, &id("spiffe://hanzo.ai/else")).is_empty());
        assert!(Rights::operator().speaks_for("anyone"));
    }
}
