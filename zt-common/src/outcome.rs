// SPDX-License-Identifier: Apache-2.0
//! What a handshake comes to at each end: who is taken for the other one, what the record says of proof, and which reason it gives. The
//! tables of `docs/handshake.md` as functions; a test compares the two, row by row.
//!
//! The programs find the same out in pieces, each where it is known and where their stack has room (`zt_of_source`, `zt_origin`,
//! `zt_passive`; `zt_of_destination`, `zt_active`, `zt_again`). This is a model, which is held to the document;
//! the programs are held to single points of it.

use crate::proof::Proof;
use crate::verdict::{Reason, Verdict};

/// What the option of the source says, in its SYN or in the segment after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// It verifies.
    Proof,
    /// Its tag does not.
    Unverified,
    /// It has another length.
    Malformed,
    /// There is none; of a SYN whose option is deferred, or that was forgotten, none in the segment after either.
    Nothing,
    /// There is none in the segment after, and the listener keeps nothing of a SYN: there may have been one in that.
    Unsaved,
}

impl Shown {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Proof,
        Self::Unverified,
        Self::Malformed,
        Self::Nothing,
        Self::Unsaved,
    ];
}

/// What the destination's kernel has noted of the SYN, because a workload of its own node has sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Noted {
    /// Nothing.
    Nothing,
    /// It was sent, and that does not name who sends it here: another handshake was answered, or it was long ago, or it went elsewhere, or
    /// the workload is gone.
    Sent,
    /// The socket that sent it has taken the answer of this very handshake.
    Answered,
}

impl Noted {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nothing, Self::Sent, Self::Answered];
}

/// Whose the address of the source is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The namespace's own, as the destination sees it.
    Home,
    /// The same, and a workload of the namespace has made a call of which nothing could be noted.
    HomeUnnoted,
    /// That of a workload whose kernel has it prove who it is: one of this node, or of another one that proves and with which there are
    /// keys.
    Prover,
    /// That of another workload, of which nobody's agent tells, or with whose node there are no keys.
    Workload,
    /// That of a workload of a node whose agent says that it does not prove, or is not heard any more.
    Bare,
    /// That of an entity or a network.
    Elsewhere,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Home,
        Self::HomeUnnoted,
        Self::Prover,
        Self::Workload,
        Self::Bare,
        Self::Elsewhere,
    ];
}

/// A connection as the destination's end has it before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// What the source shows.
    pub shown: Shown,
    /// What is known of its SYN.
    pub noted: Noted,
    /// Where it comes from.
    pub from: Place,
}

/// What the source called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Called {
    /// The place of a workload whose kernel has it prove who it is.
    Workload,
    /// That of a workload of a node whose agent says that it does not prove, or is not heard any more.
    Bare,
    /// A virtual address behind which there is one identity.
    One,
    /// One behind which there are several.
    Several,
    /// One behind which they listen on several ports.
    Ports,
    /// An address of a node, which may lead anywhere.
    Node,
}

impl Called {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Workload,
        Self::Bare,
        Self::One,
        Self::Several,
        Self::Ports,
        Self::Node,
    ];
}

/// What the option of the SYN-ACK says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It verifies, and is who was taken for the destination; of several who may be, one whom policy allows.
    Meant,
    /// It verifies, and is somebody else.
    Another,
    /// Its tag does not verify.
    Unverified,
    /// It has another length.
    Malformed,
    /// There is none.
    Nothing,
    /// There is no answer.
    Never,
}

impl Answer {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Meant,
        Self::Another,
        Self::Unverified,
        Self::Malformed,
        Self::Nothing,
        Self::Never,
    ];
}

/// Who the other end is taken for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Named {
    /// Who its option says.
    ByOption,
    /// The workload whose socket has sent the SYN.
    BySocket,
    /// The host.
    Host,
    /// Whoever the directory has there: a workload, an entity, a network.
    ByDirectory,
    /// Whom `connect` has decided about.
    AsDecided,
    /// Nobody: `unknown`.
    Nobody,
}

/// Which reason the record gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// As policy says.
    Policy,
    /// This one, where policy refuses whoever has no name.
    Unnamed(Reason),
    /// This one, allowed or not.
    Always(Reason),
}

/// What a handshake comes to at one end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Who the other end is.
    pub named: Named,
    /// What the record says of proof.
    pub proof: Proof,
    /// Why, where that is not for policy to say.
    pub why: Why,
}

impl Outcome {
    /// What is decided, where this is what policy says of who the other end is taken for.
    #[must_use]
    pub fn judged(&self, policy: Verdict) -> Verdict {
        let mut verdict = if self.proof.is_proof() {
            policy
        } else {
            policy.unproven()
        };
        match self.why {
            Why::Always(reason) => verdict.reason = reason,
            Why::Unnamed(reason) if !verdict.allowed && verdict.reason == Reason::UnknownSource => {
                verdict.reason = reason;
            }
            Why::Policy | Why::Unnamed(_) => {}
        }
        verdict
    }
}

/// What the destination's end makes of a connection.
pub fn at_destination(arrived: &Arrived) -> Outcome {
    let Arrived { shown, noted, from } = *arrived;
    let proof = match shown {
        Shown::Proof => Proof::Source,
        // A kernel whose agent is not heard goes on with tags that nobody here can believe; it could as well leave them out.
        Shown::Unverified if from == Place::Bare => Proof::Absent,
        Shown::Unverified | Shown::Malformed => Proof::TagInvalid,
        Shown::Nothing => Proof::Absent,
        Shown::Unsaved => Proof::Unsaved,
    };
    let invalid = proof == Proof::TagInvalid;
    let unproven = noted == Noted::Sent || proof != Proof::Unsaved && from == Place::Prover;
    let named = match (noted, from) {
        _ if proof == Proof::Source => Named::ByOption,
        (Noted::Answered, _) => Named::BySocket,
        _ if unproven => Named::Nobody,
        // With a tag that is none he is not the host, and no address of a workload is a name.
        (_, Place::Home | Place::Prover | Place::Workload | Place::Bare) if invalid => Named::Nobody,
        (_, Place::HomeUnnoted) => Named::Nobody,
        (_, Place::Home) => Named::Host,
        (_, Place::Prover | Place::Workload | Place::Bare | Place::Elsewhere) => Named::ByDirectory,
    };
    let why = match named {
        _ if invalid => Why::Unnamed(Reason::TagInvalid),
        Named::Nobody if unproven => Why::Unnamed(Reason::ProofMissing),
        _ => Why::Policy,
    };
    Outcome { named, proof, why }
}

/// What the source's end makes of the answer to what it has called.
pub fn at_source(called: Called, answer: Answer) -> Outcome {
    let some_port = matches!(called, Called::Ports | Called::Node);
    let answer = match (called, answer) {
        // Whoever answers there could have left it out, and nobody would know whose key to verify it with.
        (Called::Node, Answer::Unverified | Answer::Malformed) | (Called::Bare, Answer::Unverified) => {
            Answer::Nothing
        }
        (_, answer) => answer,
    };
    let (named, proof, why) = match answer {
        // Who of them is meant by whom is not known.
        Answer::Meant | Answer::Another if some_port => (Named::AsDecided, Proof::Source, Why::Policy),
        Answer::Meant => (Named::ByOption, Proof::Mutual, Why::Policy),
        Answer::Another => (
            Named::ByOption,
            Proof::Destination,
            Why::Always(Reason::IdentityMismatch),
        ),
        Answer::Unverified | Answer::Malformed => {
            (Named::Nobody, Proof::TagInvalid, Why::Always(Reason::TagInvalid))
        }
        Answer::Nothing => (Named::AsDecided, Proof::Absent, Why::Policy),
        Answer::Never => (Named::AsDecided, Proof::Unanswered, Why::Policy),
    };
    Outcome { named, proof, why }
}

#[cfg(all(test, feature = "user"))]
mod tests;
