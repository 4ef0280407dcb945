// SPDX-License-Identifier: Apache-2.0
//! How the other end's identity was proven. The numbers are part of the ABI.

/// What a record says of proof.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Proof {
    /// No handshake bore identities here: not within the node, not TCP, decided before one, or switched off.
    None = 0,
    /// The destination proved who it is, in answer to a source that proved the same.
    Mutual = 1,
    /// The source did.
    Source = 2,
    /// The destination did, and had not been the one that the source took it for.
    Destination = 3,
    /// None: nobody answered.
    Unanswered = 4,
    /// None: the other end's segment bore no option.
    Absent = 5,
    /// None: this listener keeps nothing of a SYN, and the segment after it bore no option.
    Unsaved = 6,
    /// None: there was an option, and its tag did not verify.
    TagInvalid = 7,
}

impl Proof {
    /// All of them, by number.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Mutual,
        Self::Source,
        Self::Destination,
        Self::Unanswered,
        Self::Absent,
        Self::Unsaved,
        Self::TagInvalid,
    ];

    /// The name in records. Where there is none, why follows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mutual => "mutual",
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Unanswered => "none:unanswered",
            Self::Absent => "none:absent",
            Self::Unsaved => "none:unsaved",
            Self::TagInvalid => "none:tag_invalid",
        }
    }

    /// Whether somebody has proven who he is. Of those who were meant, or who said so: which of the two, the name says.
    pub const fn is_proof(self) -> bool {
        matches!(self, Self::Mutual | Self::Source | Self::Destination)
    }

    /// From the number that the kernel side wrote.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}
