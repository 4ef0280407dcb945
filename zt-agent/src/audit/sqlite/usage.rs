// SPDX-License-Identifier: Apache-2.0
//! What a file is for. Who opens it knows; what the file says of itself is said by anybody who can write it.

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Entries stay until they are pruned, and that is signed.
    Trail,
    /// Entries go when a server has them.
    Spool,
}
