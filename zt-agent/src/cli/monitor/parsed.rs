// SPDX-License-Identifier: Apache-2.0
//! What the view needs of a record, borrowed from its text: most records are counted and never shown.

use std::borrow::Cow;

use serde::Deserialize;

/// A text that is copied only if it has escapes.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A record. Whatever is missing in a change, or from another version, is absent and no error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parsed<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    timestamp: Option<Text<'a>>,
    #[serde(borrow)]
    decision: Option<Text<'a>>,
    enforced: Option<bool>,
    #[serde(borrow)]
    source: Option<End<'a>>,
    #[serde(borrow)]
    destination: Option<End<'a>>,
    #[serde(borrow)]
    protocol: Option<Text<'a>>,
    #[serde(borrow)]
    policy_matched: Option<Text<'a>>,
    #[serde(borrow)]
    reason: Option<Text<'a>>,
    count: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct End<'a> {
    #[serde(borrow)]
    spiffe_id: Option<Text<'a>>,
    #[serde(borrow)]
    entity: Option<Text<'a>>,
    #[serde(borrow)]
    address: Option<Text<'a>>,
    #[serde(borrow)]
    node: Option<Text<'a>>,
    #[serde(borrow)]
    pod: Option<Text<'a>>,
    port: Option<u16>,
}

/// What policy said, and whether it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    Denied,
    /// Denied by policy, and let through by a workload that only observes.
    Observed,
    /// No decision: policy, a mode or an identity changed.
    Change,
}

fn text<'t>(text: Option<&'t Text<'_>>) -> Option<&'t str> {
    text.map(|text| text.0.as_ref())
}

impl<'a> Parsed<'a> {
    /// Of a record's JSON; `None` where it is none.
    pub(super) fn of(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }
}

impl Parsed<'_> {
    pub(super) fn verdict(&self) -> Verdict {
        if !matches!(self.kind(), None | Some("decision")) {
            return Verdict::Change;
        }
        match (text(self.decision.as_ref()), self.enforced) {
            (Some("DENY"), Some(true)) => Verdict::Denied,
            (Some("DENY"), _) => Verdict::Observed,
            _ => Verdict::Allowed,
        }
    }

    /// Its `type`.
    pub(super) fn kind(&self) -> Option<&str> {
        text(self.kind.as_ref())
    }

    /// The time of day, which is enough for what happens now.
    pub(super) fn time(&self) -> &str {
        let time = text(self.timestamp.as_ref());
        time.and_then(|time| time.get(11..23)).unwrap_or("-")
    }

    /// For how many decisions it stands.
    pub(super) fn weight(&self) -> u64 {
        self.count.unwrap_or(1).max(1)
    }

    pub(super) fn source(&self) -> &str {
        self.source.as_ref().map_or("-", End::name)
    }

    pub(super) fn destination(&self) -> &str {
        self.destination.as_ref().map_or("-", End::name)
    }

    pub(super) fn port(&self) -> u16 {
        self.destination.as_ref().and_then(|end| end.port).unwrap_or(0)
    }

    pub(super) fn protocol(&self) -> &str {
        text(self.protocol.as_ref()).unwrap_or("-")
    }

    /// The rule that decided.
    pub(super) fn rule(&self) -> Option<&str> {
        text(self.policy_matched.as_ref())
    }

    /// Why it was decided so.
    pub(super) fn reason(&self) -> &str {
        text(self.reason.as_ref()).unwrap_or("-")
    }

    /// Nodes, pods and addresses of both ends.
    pub(super) fn places(&self) -> impl Iterator<Item = &str> {
        let ends = [self.source.as_ref(), self.destination.as_ref()];
        ends.into_iter()
            .flatten()
            .flat_map(|end| [&end.node, &end.pod, &end.address])
            .filter_map(|place| text(place.as_ref()))
    }

    /// The address of the source, and of the destination, where it is known by that alone.
    pub(super) fn addresses(&self) -> [Option<&str>; 2] {
        [
            self.source.as_ref().and_then(End::nameless),
            self.destination.as_ref().and_then(End::nameless),
        ]
    }
}

impl End<'_> {
    fn name(&self) -> &str {
        text(self.spiffe_id.as_ref())
            .or_else(|| text(self.entity.as_ref()))
            .unwrap_or("unknown")
    }

    fn nameless(&self) -> Option<&str> {
        match self.spiffe_id {
            Some(_) => None,
            None => text(self.address.as_ref()),
        }
    }
}
