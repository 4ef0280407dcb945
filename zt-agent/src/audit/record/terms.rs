// SPDX-License-Identifier: Apache-2.0
//! The closed vocabularies of a record: each is an enum here and one of a few words outside.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zt_common::{event, proof, verdict};

/// A word that is not one of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a {vocabulary}")]
pub struct UnknownTerm {
    /// What the word should have been.
    pub vocabulary: &'static str,
    /// The word.
    pub found: String,
}

/// Serialization by name, for types with `name` and `from_name`.
macro_rules! by_name {
    ($type:ty, $vocabulary:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = UnknownTerm;

            fn from_str(text: &str) -> Result<Self, UnknownTerm> {
                Self::from_name(text).ok_or_else(|| UnknownTerm {
                    vocabulary: $vocabulary,
                    found: text.to_owned(),
                })
            }
        }
    };
}

/// An enum with one name for each variant.
macro_rules! vocabulary {
    ($(#[$meta:meta])* $type:ident, $vocabulary:literal { $($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$doc])* $variant),+ }

        impl $type {
            /// The name in records.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The one with that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }

        by_name!($type, $vocabulary);
    };
}

vocabulary!(
    /// Policy's verdict. Whether a refusal happened is for [`Mode`] and `enforced` to say.
    Outcome, "decision (ALLOW or DENY)" {
        /// Policy allows.
        Allow = "ALLOW",
        /// Policy denies.
        Deny = "DENY",
    }
);

vocabulary!(
    /// What an entry of the trail is.
    Kind, "type (decision, policy_change, mode_change or identity_change)" {
        /// Something was decided.
        Decision = "decision",
        /// Another policy is in force.
        PolicyChange = "policy_change",
        /// An operator changed the mode of a node.
        ModeChange = "mode_change",
        /// A workload has lost its identity, or has another.
        IdentityChange = "identity_change",
    }
);

vocabulary!(
    /// Which end of the connection decided.
    Observer, "observer (source or destination)" {
        /// The one that connects or sends.
        Source = "source",
        /// The one that is connected to.
        Destination = "destination",
    }
);

vocabulary!(
    /// What the deciding end does with a refusal.
    Mode, "mode (observe or enforce)" {
        /// It is recorded.
        Observe = "observe",
        /// It happens.
        Enforce = "enforce",
    }
);

vocabulary!(
    /// How the other end's identity was proven. Where it was not, the node's own sockets or the address directory named it,
    /// and why follows.
    Proof, "kind of proof" {
        /// No handshake bore identities.
        None = "none",
        /// Both ends proved theirs.
        Mutual = "mutual",
        /// The source did.
        Source = "source",
        /// The destination did, and was not the one that the source had taken it for.
        Destination = "destination",
        /// Nobody answered.
        Unanswered = "none:unanswered",
        /// The other end's segment bore no option.
        Absent = "none:absent",
        /// The listener keeps nothing of a SYN.
        Unsaved = "none:unsaved",
        /// There was an option, and its tag did not verify.
        TagInvalid = "none:tag_invalid",
    }
);

impl From<proof::Proof> for Proof {
    fn from(proof: proof::Proof) -> Self {
        match proof {
            proof::Proof::None => Self::None,
            proof::Proof::Mutual => Self::Mutual,
            proof::Proof::Source => Self::Source,
            proof::Proof::Destination => Self::Destination,
            proof::Proof::Unanswered => Self::Unanswered,
            proof::Proof::Absent => Self::Absent,
            proof::Proof::Unsaved => Self::Unsaved,
            proof::Proof::TagInvalid => Self::TagInvalid,
        }
    }
}

/// Where a decision was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// In the kernel, or by the sweep that goes through its sockets.
    Kernel(event::Hook),
    /// Over the API: nothing was connected.
    Api,
}

impl Hook {
    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel(hook) => hook.name(),
            Self::Api => "api",
        }
    }

    /// The one with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "api" {
            return Some(Self::Api);
        }
        (1..=u8::MAX)
            .map_while(event::Hook::from_number)
            .find(|hook| hook.name() == name)
            .map(Self::Kernel)
    }
}

by_name!(Hook, "hook");

/// Why it was decided so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// As the verdict says.
    Verdict(verdict::Reason),
    /// An operator would need a second factor.
    MfaRequired,
    /// An operator would need an incident.
    IncidentRequired,
}

impl Reason {
    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verdict(reason) => reason.name(),
            Self::MfaRequired => "mfa_required",
            Self::IncidentRequired => "incident_required",
        }
    }

    /// The one with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let verdicts = verdict::Reason::ALL.into_iter().map(Self::Verdict);
        verdicts
            .chain([Self::MfaRequired, Self::IncidentRequired])
            .find(|reason| reason.name() == name)
    }
}

by_name!(Reason, "reason");

/// An IP protocol. Policy speaks of TCP and UDP; refusals of raw and other sockets name the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

const PROTOCOLS: [(u8, &str); 6] = [
    (1, "ICMP"),
    (6, "TCP"),
    (17, "UDP"),
    (58, "ICMPV6"),
    (132, "SCTP"),
    (136, "UDPLITE"),
];

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match PROTOCOLS.into_iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.pad(name),
            None => write!(f, "IP-{}", self.0),
        }
    }
}

impl std::str::FromStr for Protocol {
    type Err = UnknownTerm;

    fn from_str(text: &str) -> Result<Self, UnknownTerm> {
        PROTOCOLS
            .into_iter()
            .find(|(_, name)| *name == text)
            .map(|(number, _)| number)
            .or_else(|| text.strip_prefix("IP-")?.parse().ok())
            .map(Self)
            .ok_or_else(|| UnknownTerm {
                vocabulary: "protocol",
                found: text.to_owned(),
            })
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back() {
        for number in 1..=7 {
            let hook = Hook::Kernel(event::Hook::from_number(number).expect("hook"));
            assert_eq!(Hook::from_name(hook.name()), Some(hook));
        }
        assert_eq!(Hook::from_name("api"), Some(Hook::Api));
        for reason in verdict::Reason::ALL {
            assert_eq!(Reason::from_name(reason.name()), Some(Reason::Verdict(reason)));
        }
        for reason in [Reason::MfaRequired, Reason::IncidentRequired] {
            assert_eq!(Reason::from_name(reason.name()), Some(reason));
        }
        for proof in proof::Proof::ALL {
            assert_eq!(Proof::from(proof).name(), proof.name());
            assert_eq!(Proof::from_name(proof.name()), Some(proof.into()));
        }
        for number in 0..=u8::MAX {
            assert_eq!(Protocol(number).to_string().parse(), Ok(Protocol(number)));
        }
        let error = "MAYBE".parse::<Outcome>().expect_err("no such outcome");
        assert_eq!(error.to_string(), "`MAYBE` is not a decision (ALLOW or DENY)");
    }
}
