// SPDX-License-Identifier: Apache-2.0
//! What the pipeline needs of a place to keep records.

use std::future::Future;
use std::sync::Arc;

use uuid::Uuid;

use super::names::Named;
use super::query::HOUR;
use super::record::{Entry, Kept, Timestamp};
use super::seal::{Checkpoint, Gap, KeyRecord};

/// Keeps records. A batch is kept as a whole or not at all.
pub trait Sink: Send + Sync + 'static {
    /// Why a batch was not kept.
    type Error: SinkError;

    /// Keeps a batch, in the order given, and with it, in the same transaction, up to where the ring buffer is
    /// accounted for. When the future is dropped before it is done, nothing of the batch is kept.
    fn append(
        &self,
        entries: &[Entry],
        mark: Option<RingMark>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns when what was kept before survives a crash of the machine: who is answered for it waits for this.
    fn sync(&self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Keeps names of numbers, so that a later run of the agent can still tell what they stood for.
    fn remember(&self, names: &[Named]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Enforces the limits on space and age; a short piece of work at a time. Says how many records went.
    fn prune(&self) -> impl Future<Output = Result<Pruned, Self::Error>> + Send;

    /// Whether evaluations over the API may take more of the space.
    fn takes_evaluations(&self) -> bool {
        true
    }

    /// Signs where the chain stands, if it moved since. A store without a chain of its own has nothing to sign.
    fn seal(&self) -> impl Future<Output = Result<Option<Checkpoint>, Self::Error>> + Send {
        async { Ok(None) }
    }

    /// How many signed checkpoints are kept because the chain did not go on from them: until somebody takes them away.
    fn breaks(&self) -> Result<u64, Self::Error> {
        Ok(0)
    }

    /// What was put aside since the start because it was damaged.
    fn put_aside(&self) -> PutAside {
        PutAside::default()
    }

    /// How many damaged files were put aside, by whatever run: until somebody takes them away.
    fn damaged(&self) -> Result<u64, Self::Error> {
        Ok(0)
    }
}

/// What was put aside since the start because it was damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutAside {
    /// Files.
    pub files: u64,
    /// Records in them, that the trail does not have any more. What a spool loses is in its own account.
    pub records: u64,
}

/// A whole trail at one moment, from its beginning.
pub trait Trail {
    /// Why it cannot be read.
    type Error: std::error::Error;

    /// Every key that has signed, oldest first.
    fn keys(&mut self) -> impl Future<Output = Result<Vec<Told<KeyRecord>>, Self::Error>>;

    /// The next statements, in any order; none at the end.
    fn statements(&mut self) -> impl Future<Output = Result<Vec<Told<Statement>>, Self::Error>>;

    /// The next entries, each writer's in the order of their numbers; none at the end.
    fn more(&mut self) -> impl Future<Output = Result<Vec<Found>, Self::Error>>;

    /// The next counts that do not fit the entries, after the last of those; `None` at the end. Now and then there are
    /// none, so that who waits hears how far it is.
    fn miscounts(&mut self) -> impl Future<Output = Result<Option<Vec<Miscount>>, Self::Error>>;
}

/// What queries and the graph go by, where it is not what the entries say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miscount {
    /// Which count, for people: its edge and hour.
    pub what: String,
    /// What it says: `nothing` where it is not there.
    pub kept: String,
    /// What the entries say.
    pub counted: String,
}

impl Miscount {
    /// A count of an hour that is or should be there.
    pub fn of(what: String, kept: Option<Tally>, counted: Option<Tally>) -> Self {
        let says =
            |tally: Option<Tally>| tally.map_or_else(|| "nothing".to_owned(), |tally| tally.to_string());
        Self {
            what,
            kept: says(kept),
            counted: says(counted),
        }
    }

    /// The count of an edge in an hour since 1970.
    pub fn hour(hour: i64, edge: &str) -> String {
        format!(
            "the count of {edge} in the hour from {}",
            Timestamp(hour.saturating_mul(HOUR))
        )
    }

    /// The count of an edge in a day since 1970.
    pub fn day(day: i32, edge: &str) -> String {
        let begin = Timestamp(i64::from(day).saturating_mul(24 * HOUR));
        format!("the count of {edge} in the day from {begin}")
    }
}

/// What a count says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Records, where they are counted apart.
    pub records: Option<i64>,
    /// The connections that they stand for.
    pub connections: i64,
    /// The first.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(records) = self.records {
            write!(f, "{records} records, ")?;
        }
        write!(
            f,
            "{} connections, from {} to {}",
            self.connections, self.first, self.last
        )
    }
}

/// What was signed about a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Where it stood.
    Checkpoint(Checkpoint),
    /// What of it is not there.
    Gap(Gap),
}

/// A key or a statement as a [`Trail`] has it.
#[derive(Clone, Debug)]
pub struct Told<T> {
    /// Where it is, for people.
    pub what: String,
    /// What it says, or why it cannot be read.
    pub read: Result<T, String>,
}

impl<T: serde::de::DeserializeOwned + serde::Serialize> Told<T> {
    /// One that was kept as a text; `same` looks whether it is the one that its place says.
    pub fn text(what: String, text: &str, same: impl FnOnce(&T) -> bool) -> Self {
        let read = match serde_json::from_str(text) {
            Ok(read) if !same(&read) => Err("it is not the one that its row says".to_owned()),
            // People read the text, and two texts may mean the same to a program.
            Ok(read) if serde_json::to_string(&read).is_ok_and(|written| written == text) => Ok(read),
            Ok(_) => Err("its text is not as it was written".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        Self { what, read }
    }
}

impl<T> Told<T> {
    /// The same, as something else.
    pub fn map<U>(self, into: impl FnOnce(T) -> U) -> Told<U> {
        Told {
            what: self.what,
            read: self.read.map(into),
        }
    }
}

/// An entry as a [`Trail`] has it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Whose.
    pub writer: Uuid,
    /// Its number.
    pub seq: u64,
    /// The login that inserted it, where that is known.
    pub login: Option<Arc<str>>,
    /// What it says, or why it cannot be read.
    pub kept: Result<Kept, String>,
}

/// An error of a [`Sink`].
pub trait SinkError: std::error::Error + Send + Sync + 'static {
    /// Whether the same batch may be taken later: the disk is full, the database is locked or away.
    fn is_transient(&self) -> bool;
}

/// A place in the ring buffer: everything before it is stored or counted as lost.
///
/// It is kept with the records that it speaks of, so that an agent that takes over from one that was killed knows
/// which events are records already, whatever the ring buffer itself says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingMark {
    /// Which ring buffer: one of another boot, or made anew, has another.
    pub ring: Uuid,
    /// The position, in bytes since it was made.
    pub position: u64,
}

/// Records that made room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Because of the limit on space.
    pub for_space: u64,
    /// Because of their age.
    pub for_age: u64,
    /// There is more to do, at once.
    pub more: bool,
}
