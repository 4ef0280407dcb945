// SPDX-License-Identifier: Apache-2.0
//! What a full spool gives up.

/// Which records are lost when the spool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Those that have waited longest.
    #[default]
    Oldest,
    /// Those that come.
    Newest,
}

impl WhenFull {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Oldest => "oldest",
            Self::Newest => "newest",
        }
    }

    /// The one with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Oldest, Self::Newest]
            .into_iter()
            .find(|policy| policy.name() == name)
    }
}
