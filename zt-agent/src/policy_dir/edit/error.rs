// SPDX-License-Identifier: Apache-2.0
//! Why a change of policy cannot be made.

use std::io;
use std::path::PathBuf;

use crate::policy::Problem;

/// Why a change cannot be made. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It cannot be the name of a policy.
    #[error(
        "a policy's name has 1 to 63 of a-z, 0-9 and `-`, neither first nor last a `-`, and is not `builtin`"
    )]
    Name,
    /// The document is not valid; problems name the file [`BODY`](super::BODY).
    #[error("the policy is not valid")]
    Invalid(Vec<Problem>),
    /// What is on disk cannot be read at all.
    #[error("the policies on disk cannot be read: mend that first")]
    DiskInvalid(Vec<Problem>),
    /// There is no such policy.
    #[error("there is no policy `{0}`")]
    NotFound(String),
    /// The precondition does not hold.
    #[error("the policy is another by now: {0}")]
    Precondition(String),
    /// `policyPath` is a file.
    #[error("policyPath is the file {}: policies can be added and removed by editing it, or in a directory", .0.display())]
    NoDirectory(PathBuf),
    /// The file is not one that may be replaced.
    #[error("{} is a link: what it leads to is kept elsewhere, as with a ConfigMap; change it there", .0.display())]
    Link(PathBuf),
    /// The file holds more than that policy.
    #[error(
        "{file} holds {count} policies and was written by hand: edit it, or give each policy a file of its own"
    )]
    SharedFile {
        /// The file.
        file: String,
        /// How many policies it holds.
        count: usize,
    },
    /// The file that the policy would be in holds another one.
    #[error("{0} exists and does not hold this policy: rename that file")]
    FileTaken(String),
    /// Without it the directory would be empty, which is not a policy.
    #[error("this is the last policy: to allow nothing, write a policy without rules")]
    LastPolicy,
    /// The file was changed meanwhile.
    #[error("{0} was changed by someone else at the same time: look at it and try again")]
    Raced(String),
    /// Another process is changing the directory, and does not come to an end.
    #[error(
        "{0} is held by another process that changes policies: try again; if it stays so, look for an agent that hangs"
    )]
    Busy(String),
    /// Where policies are kept it was changed by someone else.
    #[error("`{0}` was changed by someone else at the same time: look at it and try again")]
    Conflict(String),
    /// There is another kind of policy of that name.
    #[error("`{name}` is a policy of another kind ({kind}): delete it first")]
    OtherKind {
        /// Its name.
        name: String,
        /// Its kind.
        kind: &'static str,
    },
    /// Where policies are kept we are refused.
    #[error("{0}")]
    Refused(String),
    /// Where policies are kept cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The directory cannot be written to.
    #[error(
        "{file} cannot be written: {source}; policies of this node are changed where that directory comes from"
    )]
    ReadOnly {
        /// The file.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Writing failed.
    #[error("{file} cannot be written: {source}")]
    Write {
        /// The file.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
}
