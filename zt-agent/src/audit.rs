// SPDX-License-Identifier: Apache-2.0
//! The audit trail: what the kernel and the API decided, decoded, named, recorded and kept.
//!
//! Ring-buffer bytes → [`decode`] → [`Decision`] → [`record::AuditRecord`] → [`pipeline`] → a [`store::Sink`].
//! Everything up to the record is pure; [`sqlite`] is the only part that knows a database.
//!
//! Invariant: each decision that reaches [`pipeline::Intake`] is stored or counted in [`pipeline::Stats`] under the
//! reason it was not. What never got that far was counted by the kernel.

pub mod archive;
pub mod chain;
pub mod clock;
pub mod convert;
pub mod decode;
pub mod export;
pub mod id;
pub mod intent;
pub mod join;
pub mod names;
pub mod ocsf;
pub mod pipeline;
pub mod postgres;
pub mod query;
pub mod record;
#[cfg(test)]
pub(crate) mod sample;
pub mod seal;
pub mod spool;
pub mod sqlite;
pub mod store;
pub mod verify;

pub use convert::{
    Context, Evaluation, IdentityChange, PolicyChange, from_decision, from_evaluation, from_identity_change,
    from_mode_change, from_policy_change,
};
pub use decode::{Decision, DecodeError, Event, Notice, decode};
pub use names::{Directory, NameBook, NameResolver, RuleTexts};
pub use record::{AuditRecord, Entry, Kept};
