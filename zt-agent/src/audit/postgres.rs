// SPDX-License-Identifier: Apache-2.0
//! The audit trail in `PostgreSQL`, for a cluster: many writers, one trail.
//!
//! Layout (see `migrations/`): a record is a narrow row in a partition of its day and points to its *shape*, as in
//! [`super::sqlite`]; shapes are named by a hash of what they say, so that a writer needs no right to read. A trigger adds
//! up what was inserted by shape and hour: in the graph, and in where to look for a record, so that no question walks
//! through the trail. The hours of a day that is over are added up once more. `facet` lists what shapes say in few words, so
//! that words which never come together are not looked for in the shapes. `batch` notes what was shipped together.
//!
//! Nobody who may insert is believed: see the head of the migration.
//!
//! Three roles, made by `deploy/postgres/roles.sql`; every connection is opened in exactly one of them, whatever else its
//! login may do: the [`Writer`] may `INSERT`, the [`Reader`] may `SELECT`, the [`Maintainer`] owns the tables.

mod batch;
mod closing;
mod connect;
mod counts;
mod cut;
mod days;
mod error;
mod examine;
mod facets;
mod graph;
mod guide;
mod maintain;
mod pruning;
mod reader;
mod rows;
mod rules;
mod select;
mod shape;
mod spans;
mod statements;
mod sums;
mod targets;
mod traffic;
mod turn;
mod unlisted;
mod version;
mod walk;
mod writer;

pub use self::batch::{Batch, Prepared};
pub use self::connect::Target;
pub use self::error::{CAUSES, PgError};
pub use self::examine::{Examined, examine};
pub use self::maintain::{Kept as Upkeep, Maintainer};
pub use self::reader::Reader;
pub use self::targets::Targets;
pub use self::turn::Turn;
pub use self::walk::Walk;
pub use self::writer::Writer;

/// Width of a partition, nanoseconds.
pub(crate) const DAY: i64 = 86_400_000_000_000;
