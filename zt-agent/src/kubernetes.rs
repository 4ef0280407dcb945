// SPDX-License-Identifier: Apache-2.0
//! The Kubernetes API: how it is reached, how collections are followed, and what is read of each kind of object.
//!
//! Nothing here knows what follows from an object. Each file of a kind turns what the API says into a small type of ours, in
//! which every field may be missing: one object that makes no sense costs itself and nothing else.

pub mod client;
pub mod freshness;
pub mod health;
mod memory;
pub mod nodes;
pub mod pods;
pub mod policies;
pub mod services;
mod source;
pub mod watch;
pub mod watches;

pub use self::client::{Client, ClientError};
pub use self::freshness::{Freshness, Status};
pub use self::health::Health;
pub use self::memory::FILE;
pub use self::source::{Nodes, Others, Settings, Source};
pub use self::watch::{Collection, Said, Timing, follow};
pub use self::watches::Watches;
