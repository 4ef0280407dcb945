// SPDX-License-Identifier: Apache-2.0
//! What can be wrong with a trail.

use uuid::Uuid;

/// What is wrong with a trail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// An entry does not say what it said.
    #[error("entry {seq} of {writer} was changed, or inserted (id {id})")]
    Changed {
        /// Whose.
        writer: Uuid,
        /// Its number.
        seq: u64,
        /// Its id.
        id: String,
    },
    /// Entries are not there.
    #[error("entries {first} to {last} of {writer} are missing")]
    Missing {
        /// Whose.
        writer: Uuid,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// An entry is where it does not belong.
    #[error("entry {seq} of {writer} is out of its order, twice there, or was inserted (id {id})")]
    Misplaced {
        /// Whose.
        writer: Uuid,
        /// Its number.
        seq: u64,
        /// Its id.
        id: String,
    },
    /// Entries where there should be none.
    #[error(
        "entries {first} to {last} of {writer} are where it states that it gave them up: nothing proves them"
    )]
    Unproven {
        /// Whose.
        writer: Uuid,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// An entry without a place.
    #[error("an entry has no place in a chain (id {id}): it was inserted, or is older than the chain")]
    Unchained {
        /// Its id.
        id: String,
    },
    /// An entry that cannot be read.
    #[error("entry {seq} of {writer} cannot be read: {cause}")]
    Unreadable {
        /// Whose.
        writer: Uuid,
        /// Its number.
        seq: u64,
        /// Why not.
        cause: String,
    },
    /// A key, a checkpoint or the statement of a gap that cannot be read.
    #[error("{what} cannot be read: {cause}")]
    UnreadableStatement {
        /// Which.
        what: String,
        /// Why not.
        cause: String,
    },
    /// The hash of an entry is not the one that was signed.
    #[error(
        "what {writer} had written up to entry {seq} was rewritten: its statement of {time} signs another hash"
    )]
    Rewritten {
        /// Whose.
        writer: Uuid,
        /// Number of the entry that the statement names.
        seq: u64,
        /// When it was signed.
        time: String,
    },
    /// A checkpoint that no trusted key has signed.
    #[error("the checkpoint of {writer} at entry {seq} has no signature that a trusted key has made")]
    Forged {
        /// Whose.
        writer: Uuid,
        /// At which entry.
        seq: u64,
    },
    /// A statement of a gap that no trusted key has signed.
    #[error(
        "the statement that entries {first} to {last} of {writer} are not there has no signature that a trusted key has made"
    )]
    ForgedGap {
        /// Whose.
        writer: Uuid,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// A checkpoint that another one's key has signed.
    #[error(
        "the checkpoint of {writer} at entry {seq} is signed by {key}, which is trusted, but {writer} is {owner}'s"
    )]
    Rival {
        /// Whose.
        writer: Uuid,
        /// At which entry.
        seq: u64,
        /// The first key of the one who signed.
        key: String,
        /// The first key of the one whose writer it is.
        owner: String,
    },
    /// A statement of a gap that another one's key has signed.
    #[error(
        "{key} states that entries {first} to {last} of {writer} are not there ({cause}): it is trusted, but neither that writer's nor a maintainer's key"
    )]
    Claimed {
        /// Whose.
        writer: Uuid,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
        /// Why they are not there, it says.
        cause: &'static str,
        /// The first key of the one who signed.
        key: String,
    },
    /// A key that no trusted key has signed.
    #[error("the key {key} is signed by no key that is trusted")]
    UntrustedKey {
        /// Its id.
        key: String,
    },
    /// A key that two have signed.
    #[error("the key {key} is there twice, signed for {owner} and for {other}")]
    SharedKey {
        /// Its id.
        key: String,
        /// The first key of one.
        owner: String,
        /// The first key of the other.
        other: String,
    },
    /// No checkpoint at all.
    #[error("{writer} has no checkpoint that a trusted key has signed: nothing of it is proven")]
    Unsealed {
        /// Whose.
        writer: Uuid,
    },
    /// A checkpoint that was noted apart from the trail and is not in it.
    #[error(
        "the checkpoint of {writer} at entry {seq} is not in the trail: it was removed, or the trail's end was cut off"
    )]
    Lacking {
        /// Whose.
        writer: Uuid,
        /// At which entry.
        seq: u64,
    },
    /// What queries and the graph go by is not what the entries say.
    #[error("{what} says {kept}, and its entries say {counted}: queries and the graph go by it")]
    Miscounted {
        /// Which count.
        what: String,
        /// What it says.
        kept: String,
        /// What the entries say.
        counted: String,
    },
    /// Entries of one chain that several logins inserted.
    #[error(
        "{entries} entries of {writer}, from {first} to {last}, were inserted by the login {login}, and others by {other}: a chain belongs to one login"
    )]
    SecondLogin {
        /// Whose chain.
        writer: Uuid,
        /// The login.
        login: String,
        /// The one that inserted the first entry that is there.
        other: String,
        /// How many entries it inserted.
        entries: u64,
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// Something else that should not be.
    #[error("{0}")]
    Other(String),
}
