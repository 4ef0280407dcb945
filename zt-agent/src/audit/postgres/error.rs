// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a `PostgreSQL` server.

use crate::audit::query::TooMuch;

/// An error of the `PostgreSQL` store. None of them shows the DSN: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// The DSN cannot be used.
    #[error("{problem}; write postgres://user@host/database?sslmode=verify-full")]
    Dsn {
        /// What is wrong with it.
        problem: String,
    },
    /// No connection in that role.
    #[error(
        "cannot connect to PostgreSQL at {place} as {role}: {source}{}",
        advice(source)
    )]
    Connect {
        /// Host and database.
        place: String,
        /// The role that was to be taken.
        role: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// The server is of a release that cannot hold the tables.
    #[error(
        "the server at {place} is PostgreSQL {found}, and the audit trail needs {oldest} or later: nothing was made in it; \
         upgrade the server, or name another one in audit.dsn"
    )]
    Version {
        /// Host and database.
        place: String,
        /// Its release.
        found: String,
        /// The oldest that can.
        oldest: i32,
    },
    /// The tables could not be made or brought up to date.
    #[error("cannot bring the audit trail's tables at {place} up to date: {source}")]
    Migrate {
        /// Host and database.
        place: String,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed.
    #[error("PostgreSQL: {source}{}", advice(source))]
    Database {
        /// Why.
        #[from]
        source: sqlx::Error,
    },
    /// The server did not answer in time.
    #[error("PostgreSQL did not answer within {seconds} s")]
    Slow {
        /// How long it was waited for.
        seconds: u64,
    },
    /// A record is of a time that has not come, by this machine's own clock.
    #[error("record {id} is of {time}, more than a day ahead of this machine's clock")]
    Ahead {
        /// Its id.
        id: uuid::Uuid,
        /// When it says that it was.
        time: crate::audit::record::Timestamp,
    },
    /// Who drops what is old must know how late it is.
    #[error(
        "nothing was dropped: this machine's clock and that of PostgreSQL are {seconds} s apart; set the one that is wrong"
    )]
    Clocks {
        /// How far.
        seconds: u64,
    },
    /// The answer would be too large.
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
    /// A record cannot be read back.
    #[error("record {id} of the audit trail in PostgreSQL is damaged: {column} is {found}")]
    Damaged {
        /// Its id.
        id: uuid::Uuid,
        /// The column.
        column: &'static str,
        /// What it holds.
        found: String,
    },
}

/// The causes that [`PgError::cause`] tells apart.
pub const CAUSES: [&str; 7] = [
    "unreachable",
    "slow",
    "permission",
    "full",
    "clock",
    "rejected",
    "other",
];

impl PgError {
    /// Why, in one of the words of [`CAUSES`], for counting.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Slow { .. } => "slow",
            Self::Ahead { .. } => "rejected",
            Self::Clocks { .. } => "clock",
            Self::Dsn { .. }
            | Self::Version { .. }
            | Self::Migrate { .. }
            | Self::Damaged { .. }
            | Self::TooMuch(_) => "other",
            Self::Connect { source, .. } | Self::Database { source } => match source {
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut => "unreachable",
                sqlx::Error::Encode(_) => "rejected",
                sqlx::Error::Database(error) => of_code(
                    error.code().as_deref().unwrap_or_default(),
                    error.constraint().unwrap_or_default(),
                ),
                _ => "other",
            },
        }
    }

    /// What became of a question that had so many seconds: one that took longer, or more of the server's disk, than it gives to
    /// one is told as that.
    pub(super) fn of_question(self, seconds: u64) -> Self {
        let Self::Database { source } = &self else {
            return self;
        };
        match code(source).as_deref() {
            Some("57014") => Self::Slow { seconds },
            // `temp_file_limit`.
            Some("53400") => Self::TooMuch(TooMuch::Room),
            _ => self,
        }
    }

    /// Whether the login lacks the role that this takes.
    pub fn is_forbidden(&self) -> bool {
        let (Self::Connect { source, .. } | Self::Database { source }) = self else {
            return false;
        };
        code(source).as_deref() == Some("42501")
    }

    /// Whether the server cannot be reached, or does not answer.
    pub fn is_away(&self) -> bool {
        matches!(self.cause(), "unreachable" | "slow")
    }

    /// Whether the server refuses what the batch itself says, and would whatever else is in its tables and whatever its
    /// clock shows.
    pub fn is_of_the_batch(&self) -> bool {
        self.cause() == "rejected"
    }
}

/// The cause that a code (`SQLSTATE`) and the name of a constraint stand for. What is `rejected` is given up: so that is a
/// list of what comes from a record's own values alone, and no class of codes, in which sums of the tables and keys of
/// others have their place too.
fn of_code(code: &str, constraint: &str) -> &'static str {
    match code {
        "42501" => "permission",
        "53100" | "53200" | "53400" => "full",
        "57014" => "slow",
        // The server is starting, stopping or was killed; too many connections.
        "57P01" | "57P02" | "57P03" | "53300" => "unreachable",
        // No such role, password wrong, not in pg_hba.conf.
        _ if code.starts_with("28") => "permission",
        _ if code.starts_with("08") => "unreachable",
        // Too far ahead of the server's clock: the record will do when that has come so far, or is set right.
        "23514" if constraint.ends_with("_not_ahead") => "clock",
        // The day is about to be dropped: the record will do when it is gone.
        "23514" if constraint == super::closing::CLOSED => "other",
        // No check by a name but the bounds of a partition: it was attached while the record was on its way to another one.
        "23514" if constraint.is_empty() => "other",
        // Characters that no text may have, text that is not JSON, a value that is missing or breaks a check, a value too
        // large for an index.
        "22021" | "22P05" | "22P02" | "23502" | "23514" | "54000" => "rejected",
        _ => "other",
    }
}

/// The code (`SQLSTATE`) of what the server says.
fn code(source: &sqlx::Error) -> Option<String> {
    let error = source.as_database_error()?;
    error.code().map(std::borrow::Cow::into_owned)
}

/// What to do about a refusal that has one usual reason.
fn advice(source: &sqlx::Error) -> &'static str {
    match code(source).as_deref() {
        Some("42501") => {
            "; GRANT that role to the login of audit.dsn, or of audit.readDsn or audit.maintainDsn where that has a login of its \
             own, see deploy/postgres/roles.sql"
        }
        Some("22023" | "42704" | "42883") => "; run deploy/postgres/roles.sql in that database",
        Some("42P01") => {
            "; the tables are made by the first agent whose login is a member of zt_audit_maintainer, \
             or by `zt-agent audit prune`: wait for it, or see its log"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_cause_and_only_bad_values_are_the_batchs_fault() {
        for (code, constraint, cause) in [
            ("42501", "", "permission"),
            ("28P01", "", "permission"),
            ("53100", "", "full"),
            ("57P03", "", "unreachable"),
            ("08006", "", "unreachable"),
            ("57014", "", "slow"),
            ("22021", "", "rejected"),
            ("23502", "", "rejected"),
            ("23514", "record_numbers", "rejected"),
            // What the clock, a sum, another's row or the state of the tables is to blame for.
            ("23514", "record_not_ahead", "clock"),
            ("23514", "record_closed", "other"),
            ("23514", "", "other"),
            ("22003", "", "other"),
            ("22012", "", "other"),
            ("23503", "", "other"),
            ("23505", "record_pkey", "other"),
            ("40P01", "", "other"),
            ("54001", "", "other"),
            ("55P03", "", "other"),
            ("", "", "other"),
        ] {
            assert_eq!(of_code(code, constraint), cause, "{code}");
            assert!(CAUSES.contains(&cause));
        }
        assert!(!PgError::Slow { seconds: 1 }.is_of_the_batch());
        assert!(!PgError::Clocks { seconds: 900 }.is_of_the_batch());
    }
}
