// SPDX-License-Identifier: Apache-2.0
//! What this process knows of a chain, whatever the file says.

use std::path::{Path, PathBuf};

use super::Use;
use crate::audit::chain::Head;

/// What is known of the chain of a file.
#[derive(Debug)]
pub(super) struct Watched {
    /// The file.
    pub(super) path: PathBuf,
    /// What it is for.
    pub(super) used_as: Use,
    /// Where the chain ends that was seen to go on from what was signed, with all that was appended here since; `None`
    /// before one has looked.
    pub(super) trusted: Option<Head>,
}

impl Watched {
    /// Nothing is known yet.
    pub(super) fn new(path: &Path, used_as: Use) -> Self {
        Self {
            path: path.to_owned(),
            used_as,
            trusted: None,
        }
    }
}
