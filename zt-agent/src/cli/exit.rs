// SPDX-License-Identifier: Apache-2.0
//! Exit codes, and how a failed command says why.

use std::io;
use std::process::ExitCode;

use super::client::ClientError;
use crate::app::AppError;
use crate::config::ConfigError;
use crate::log::LogError;
use crate::policy::Problem;

/// How a command ended. The numbers are a contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, or `--fail` and the answer was no.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The configuration or the policy is bad; nothing was started.
    Invalid = 64,
    /// The kernel or a privilege is missing.
    Unavailable = 77,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The agent could not be asked, or it refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The agent found a policy invalid.
    #[error(transparent)]
    Invalid(ClientError),
    /// The configuration is bad: every problem, one a line.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The policy files are bad: every problem, one a line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Policy(Vec<Problem>),
    /// The arguments contradict each other or name what does not exist.
    #[error("{0}")]
    Usage(String),
    /// The answer lacks something that it must have.
    #[error("the agent's answer has no `{field}`; is it of another version than this program?")]
    Answer {
        /// What is missing.
        field: &'static str,
    },
    /// What was asked for does not exist.
    #[error("{0}")]
    NotFound(String),
    /// Policy cannot be compiled.
    #[error(transparent)]
    Compile(#[from] crate::policy::CompileError),
    /// The agent did not start, or stopped.
    #[error(transparent)]
    App(#[from] AppError),
    /// The audit store cannot be used.
    #[error(transparent)]
    Store(#[from] crate::audit::sqlite::StoreError),
    /// `PostgreSQL` cannot be used.
    #[error(transparent)]
    Postgres(#[from] crate::audit::postgres::PgError),
    /// The audit trail cannot be looked after.
    #[error(transparent)]
    Archive(#[from] crate::audit::archive::ArchiveError),
    /// The keys of the audit trail cannot be used.
    #[error(transparent)]
    Keys(#[from] crate::audit::seal::KeyError),
    /// The trail cannot be exported.
    #[error("{0}")]
    Export(String),
    /// Somebody else is at it.
    #[error("{0}")]
    Busy(String),
    /// Logging could not be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Printing or reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Failure {
    /// The exit code that goes with it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Policy(_) | Self::Compile(_) | Self::Invalid(_) => Exit::Invalid,
            Self::Usage(_) | Self::Log(_) => Exit::Usage,
            Self::App(error) if error.is_input() => Exit::Invalid,
            Self::App(error) if error.is_unsupported() => Exit::Unavailable,
            Self::App(_)
            | Self::Client(_)
            | Self::Answer { .. }
            | Self::NotFound(_)
            | Self::Store(_)
            | Self::Postgres(_)
            | Self::Archive(_)
            | Self::Keys(_)
            | Self::Export(_)
            | Self::Busy(_)
            | Self::Io(_) => Exit::Failed,
        }
    }
}

/// Prints why a command failed; the exit code. A reader who has seen enough (`| head`) is no failure.
pub fn report(result: Result<Exit, Failure>) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(failure) => {
            let text = failure.to_string();
            if text.contains('\n') {
                eprintln!("error:\n{text}");
            } else {
                eprintln!("error: {text}");
            }
            failure.exit()
        }
    }
}
