// SPDX-License-Identifier: Apache-2.0
//! The verdict: the one function that says yes or no, called by the kernel programs over the pinned table and by
//! user space over the compiled one. They cannot drift apart, because there is nothing to drift.

use crate::entry::{
    ACTION_ALLOW, ACTION_DENY, AllowEntry, AllowKey, Flow, PROTOCOL_RAW, REQUIRES_PROOF, SHAPES, Shapes,
};
use crate::identity;

/// The number of the rule `builtin/self`: a workload reaches itself.
pub const RULE_SELF: u64 = 1;
/// The number of the rule `builtin/host`: this node reaches its workloads.
pub const RULE_HOST: u64 = 2;

/// The number of the rule `builtin/require-policy`: whom no policy names is reached by nobody and reaches nobody.
pub const RULE_REQUIRE_POLICY: u64 = 3;

/// An allow table that can be asked for one key.
pub trait AllowLookup {
    /// The entry under `key`.
    fn get(&self, key: &AllowKey) -> Option<AllowEntry>;
}

/// Why a decision fell as it did. A closed list; the numbers are part of the ABI.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Reason {
    /// A rule allows.
    Rule = 0,
    /// A DENY rule matches.
    DenyRule = 1,
    /// No rule matches, and the default is to deny.
    NoRule = 2,
    /// No rule matches, and every loaded policy says that the default is to allow.
    DefaultAllow = 3,
    /// No rule matches; the source has no identity.
    UnknownSource = 4,
    /// No rule matches; the destination has no identity.
    UnknownDestination = 5,
    /// No policy has ever been loaded.
    NoPolicy = 6,
    /// A task outside the managed tree uses a socket of the managed tree.
    AlienTask = 7,
    /// A raw socket, without the right to one.
    RawSocket = 8,
    /// A multipath TCP socket: its joins would pass by every decision.
    Mptcp = 9,
    /// A protocol that no policy can speak about.
    Protocol = 10,
    /// An established connection that policy no longer allows.
    Revoked = 11,
    /// A refused socket that no fence would hold; it is being destroyed.
    Unfenced = 12,
    /// Somebody else answered than the one who had been taken for the destination.
    IdentityMismatch = 13,
    /// The source has the address of a workload of this node, and did not prove to be one.
    ProofMissing = 14,
    /// The other end bears an identity option whose tag does not verify.
    TagInvalid = 15,
    /// The rule asks for proof of who is at the other end, and the handshake gave none.
    ProofRequired = 16,
}

impl Reason {
    /// All reasons, by number.
    pub const ALL: [Self; 17] = [
        Self::Rule,
        Self::DenyRule,
        Self::NoRule,
        Self::DefaultAllow,
        Self::UnknownSource,
        Self::UnknownDestination,
        Self::NoPolicy,
        Self::AlienTask,
        Self::RawSocket,
        Self::Mptcp,
        Self::Protocol,
        Self::Revoked,
        Self::Unfenced,
        Self::IdentityMismatch,
        Self::ProofMissing,
        Self::TagInvalid,
        Self::ProofRequired,
    ];

    /// The name in records and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::DenyRule => "deny_rule",
            Self::NoRule => "no_rule",
            Self::DefaultAllow => "default_allow",
            Self::UnknownSource => "unknown_source",
            Self::UnknownDestination => "unknown_destination",
            Self::NoPolicy => "no_policy",
            Self::AlienTask => "alien_task",
            Self::RawSocket => "raw_socket",
            Self::Mptcp => "mptcp",
            Self::Protocol => "protocol",
            Self::Revoked => "revoked",
            Self::Unfenced => "unfenced",
            Self::IdentityMismatch => "identity_mismatch",
            Self::ProofMissing => "proof_missing",
            Self::TagInvalid => "tag_invalid",
            Self::ProofRequired => "proof_required",
        }
    }

    /// From the number that the kernel side wrote.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What policy says about one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Whether policy allows the flow. Whether a refusal *happens* is a matter of the workload's mode.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
    /// Number of the rule that decided, or 0 where none did.
    pub rule: u64,
    /// Revision of the policy that decided, or 0 where there is none.
    pub revision: u64,
    /// Whether the rule asks for proof: without it, the verdict is [`Self::unproven`].
    pub proof: bool,
}

impl Verdict {
    /// A refusal that no rule made.
    #[inline(always)]
    pub const fn refusal(reason: Reason, revision: u64) -> Self {
        Self {
            allowed: false,
            reason,
            rule: 0,
            revision,
            proof: false,
        }
    }

    /// What becomes of it where the handshake did not prove who is at the other end, or cannot.
    #[inline(always)]
    #[must_use]
    pub const fn unproven(self) -> Self {
        if self.allowed && self.proof {
            Self {
                allowed: false,
                reason: Reason::ProofRequired,
                ..self
            }
        } else {
            self
        }
    }
}

/// What policy says about `flow`.
///
/// Order: DENY rules, rules that require proof, `builtin/self`, `builtin/host`, ALLOW rules from the most exact shape to the
/// widest, default. Proof is a matter of the handshake, which comes later; what has none (UDP) is refused here.
/// The number of lookups depends on the shapes that a table has, never on the number of its rules.
#[inline(always)]
pub fn verdict<T: AllowLookup>(table: &T, flow: &Flow) -> Verdict {
    let Some(header) = table.get(&AllowKey::HEADER) else {
        return Verdict::refusal(Reason::NoPolicy, 0);
    };
    let revision = header.number;
    let shapes = Shapes(header.bits);

    let denying = shapes.denying();
    if denying != 0
        && let Some(rule) = find(table, flow, denying, ACTION_DENY)
    {
        return Verdict {
            allowed: false,
            reason: Reason::DenyRule,
            rule,
            revision,
            proof: false,
        };
    }
    let requiring = shapes.requiring();
    if requiring != 0
        && let Some(rule) = find(table, flow, requiring, REQUIRES_PROOF)
    {
        let verdict = Verdict {
            allowed: true,
            reason: Reason::Rule,
            rule,
            revision,
            proof: true,
        };
        return if flow.protocol == HAS_HANDSHAKE {
            verdict
        } else {
            verdict.unproven()
        };
    }
    if shapes.has(Shapes::SELF) && flow.source == flow.destination && identity::is_workload(flow.source) {
        return Verdict {
            allowed: true,
            reason: Reason::Rule,
            rule: RULE_SELF,
            revision,
            proof: false,
        };
    }
    if shapes.has(Shapes::HOST) && flow.source == identity::HOST && identity::is_workload(flow.destination) {
        return Verdict {
            allowed: true,
            reason: Reason::Rule,
            rule: RULE_HOST,
            revision,
            proof: false,
        };
    }
    if let Some(rule) = find(table, flow, shapes.allowing(), ACTION_ALLOW) {
        return Verdict {
            allowed: true,
            reason: Reason::Rule,
            rule,
            revision,
            proof: false,
        };
    }
    if shapes.has(Shapes::DEFAULT_ALLOW) {
        return Verdict {
            allowed: true,
            reason: Reason::DefaultAllow,
            rule: 0,
            revision,
            proof: false,
        };
    }
    let reason = if flow.source == identity::UNKNOWN {
        Reason::UnknownSource
    } else if flow.destination == identity::UNKNOWN {
        Reason::UnknownDestination
    } else {
        Reason::NoRule
    };
    Verdict::refusal(reason, revision)
}

/// Whether `source` may open raw sockets, and by which rule.
#[inline(always)]
pub fn raw_socket_verdict<T: AllowLookup>(table: &T, source: u64) -> Verdict {
    let revision = match table.get(&AllowKey::HEADER) {
        Some(header) => header.number,
        None => return Verdict::refusal(Reason::NoPolicy, 0),
    };
    let key = AllowKey {
        source,
        destination: identity::RAW_SOCKETS,
        port: 0,
        protocol: PROTOCOL_RAW,
        port_bits: 0,
        reserved: 0,
    };
    match table.get(&key) {
        Some(entry) if entry.bits == ACTION_ALLOW => Verdict {
            allowed: true,
            reason: Reason::Rule,
            rule: entry.number,
            revision,
            proof: false,
        },
        _ => Verdict::refusal(Reason::RawSocket, revision),
    }
}

/// IP protocol number of TCP, whose handshake bears proof.
const HAS_HANDSHAKE: u8 = 6;

/// The rule with `bit` that covers `flow`, searched in the shapes of `mask` from the most exact on.
#[inline(always)]
fn find<T: AllowLookup>(table: &T, flow: &Flow, mask: u32, bit: u64) -> Option<u64> {
    let mut shape = 0;
    while shape < SHAPES {
        let remaining = mask >> shape;
        if remaining == 0 {
            return None;
        }
        if remaining & 1 != 0 && wildcards_apply(flow, shape) {
            let key = AllowKey::for_shape(flow, shape);
            if let Some(entry) = table.get(&key)
                && entry.bits & bit != 0
            {
                return Some(entry.number);
            }
        }
        shape += 1;
    }
    None
}

/// A wildcard stands for SPIFFE identities, not for the world, the unknown or a network.
#[inline(always)]
const fn wildcards_apply(flow: &Flow, shape: u32) -> bool {
    let combination = shape / 5;
    (combination & 2 == 0 || identity::is_workload(flow.source))
        && (combination & 1 == 0 || identity::is_workload(flow.destination))
}
