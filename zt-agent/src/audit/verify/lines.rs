// SPDX-License-Identifier: Apache-2.0
//! The lines of an export. Each must be, byte for byte, what an export writes.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Finding, Verifier};
use crate::audit::chain::Hash;
use crate::audit::record::Kept;
use crate::audit::seal::{Checkpoint, Gap, KeyRecord};

/// The first line, the last, and what is neither an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    /// The first line.
    Export {
        /// The layout: 1.
        format: u32,
    },
    /// A key.
    Key(KeyRecord),
    /// A checkpoint.
    Checkpoint(Checkpoint),
    /// Entries that are not there, as somebody has signed.
    Gap(Gap),
    /// Entries that the filters left out.
    Omitted {
        /// Whose.
        writer: Uuid,
        /// Number of the first.
        seq: u64,
        /// Their digests.
        digests: Vec<Hash>,
    },
    /// The last line.
    End {
        /// How many entries there were, those left out not counted.
        entries: u64,
    },
}

/// A line that no export has written.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Not JSON, or not of ours.
    #[error("not a line of an export: {0}")]
    Json(#[from] serde_json::Error),
    /// Of ours, and not as we write it.
    #[error("not as an export writes it: something in it was changed")]
    NotCanonical,
    /// Of a layout that this version does not know.
    #[error("the export has layout {found}, this version reads 1")]
    Format {
        /// The layout.
        found: u32,
    },
}

/// Type of a line, whatever else it says.
#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

/// Hands one line over. Returns the number of entries where it is the last line.
pub fn read_line(verifier: &mut Verifier, text: &str) -> Result<Option<u64>, LineError> {
    let Typed { r#type } = serde_json::from_str(text)?;
    if ["export", "key", "checkpoint", "gap", "omitted", "end"].contains(&&*r#type) {
        let line: Line = serde_json::from_str(text)?;
        canonical(&line, text)?;
        match line {
            Line::Export { format: 1 } => {}
            Line::Export { format } => return Err(LineError::Format { found: format }),
            Line::Key(key) => verifier.key(&key),
            Line::Checkpoint(checkpoint) => verifier.checkpoint(&checkpoint),
            Line::Gap(gap) => verifier.gap(&gap),
            Line::Omitted { writer, seq, digests } => {
                for (number, digest) in (0..).zip(digests) {
                    verifier.omitted(writer, seq.saturating_add(number), digest);
                }
            }
            Line::End { entries } => {
                if verifier.entries() != entries {
                    verifier.found(Finding::Other(format!(
                        "the export has {} entries and says that it has {entries}",
                        verifier.entries()
                    )));
                }
                return Ok(Some(entries));
            }
        }
        return Ok(None);
    }
    let kept: Kept = serde_json::from_str(text)?;
    canonical(&kept, text)?;
    verifier.entry(&kept);
    Ok(None)
}

/// Two texts may mean the same and only one of them was written.
fn canonical(value: &impl Serialize, text: &str) -> Result<(), LineError> {
    if serde_json::to_string(value)? == text {
        Ok(())
    } else {
        Err(LineError::NotCanonical)
    }
}
